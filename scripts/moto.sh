#!/bin/sh
# Prints the path of a moto_server, the S3 of the tests; installs it first where it is missing.
set -eu

version=5.2.5
cache=${MYSQL_PITR_CACHE:-$HOME/.cache/mysql-pitr}
venv=$cache/moto
marker=$venv/installed-$version

mkdir -p "$cache"
# Two at a time would build one environment in each other's way.
exec 9>"$cache/moto.lock"
flock 9

# The marker is made last: an installation that was interrupted is begun anew.
if [ ! -e "$marker" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$version" >&2
    touch "$marker"
fi
echo "$venv/bin/moto_server"
