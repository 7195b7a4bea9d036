#!/bin/sh
# Checks ansible/: the playbook's syntax, ansible-lint's rules, and that mysql-pitr takes the configurations that the roles write. The tools go into the
# cache, once: 700 MB. MYSQL_PITR_PROGRAM names a mysql-pitr that is built already.
set -eu
cd "$(dirname "$0")/.."

ansible=12.3.0 # with its collections, for which one would otherwise have to ask Galaxy
lint=26.10.1
cache=${MYSQL_PITR_CACHE:-$HOME/.cache/mysql-pitr}
venv=$cache/ansible-lint
marker=$venv/installed-$ansible-$lint

mkdir -p "$cache"
# Two at a time would build one environment in each other's way.
exec 9>"$cache/ansible-lint.lock"
flock 9

# The marker is made last: an installation that was interrupted is begun anew.
if [ ! -e "$marker" ]; then
    scripts/need.sh python3-venv python3 -c 'import ensurepip, venv' >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check "ansible==$ansible" "ansible-lint==$lint" >&2
    touch "$marker"
fi
flock -u 9
exec 9>&-
PATH=$venv/bin:$PATH
export ANSIBLE_PYTHON_INTERPRETER="$venv/bin/python" ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_INVENTORY_UNPARSED_WARNING=false

ansible-playbook --inventory localhost,example, --syntax-check ansible/playbook.yml
(cd ansible && ansible-lint --offline -q playbook.yml roles)

program=${MYSQL_PITR_PROGRAM:-}
if [ -z "$program" ]; then
    cargo build ${CI:+--locked} --quiet --bin mysql-pitr
    program=${CARGO_TARGET_DIR:-target}/debug/mysql-pitr
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/archive"
for settings in tests/fixtures/ansible/least.yml tests/fixtures/ansible/most.yml; do
    ansible-playbook tests/fixtures/ansible/render.yml --extra-vars "roles=$PWD/ansible/roles settings=$PWD/$settings folder=$folder \
        mysql_pitr_store_url=file://$folder/archive" >"$folder/log" 2>&1 || {
        cat "$folder/log"
        exit 1
    }
    for config in agent prune; do
        # The archive is empty; what is refused here is the configuration.
        "$program" list --json --config "$folder/$config.toml" >/dev/null || {
            cat "$folder/$config.toml"
            exit 1
        }
    done
    echo "$settings: mysql-pitr takes what the roles write"
done
