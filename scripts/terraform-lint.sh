#!/bin/sh
# Checks terraform/ with what asks no provider: its names (scripts/terraform-lint.py, on python-hcl2's parse), checkov's rules for AWS, and terraform's own
# format where there is a terraform. The tools go into the cache, once: 300 MB, and a minute. Then it takes ten seconds.
set -eu
cd "$(dirname "$0")/.."

checkov=3.3.30
hcl2=8.1.4
cache=${MYSQL_PITR_CACHE:-$HOME/.cache/mysql-pitr}
# Two environments: checkov brings another hcl2 of its own.
venv=$cache/terraform-lint
marker=$venv/installed-$checkov-$hcl2

mkdir -p "$cache"
# Two at a time would build one environment in each other's way.
exec 9>"$cache/terraform-lint.lock"
flock 9

# The marker is made last: an installation that was interrupted is begun anew.
if [ ! -e "$marker" ]; then
    scripts/need.sh python3-venv python3 -c 'import ensurepip, venv' >&2
    rm -rf "$venv"
    mkdir "$venv"
    python3 -m venv "$venv/hcl2" >&2
    "$venv/hcl2/bin/pip" install --quiet --disable-pip-version-check "python-hcl2==$hcl2" >&2
    python3 -m venv "$venv/checkov" >&2
    "$venv/checkov/bin/pip" install --quiet --disable-pip-version-check "checkov==$checkov" >&2
    touch "$marker"
fi
flock -u 9

"$venv/hcl2/bin/python" scripts/terraform-lint.py terraform
"$venv/checkov/bin/checkov" --directory terraform --framework terraform --skip-download --quiet --compact 9>&-
if command -v terraform >/dev/null; then
    terraform fmt -check -diff -recursive terraform
else
    echo "SKIPPED: no terraform here, whose fmt looks at the format"
fi
