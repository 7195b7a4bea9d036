#!/usr/bin/env bash
# Prints, as the last line of its standard output, the path of cargo-deny. Where PATH has none, it is built from source, once,
# into ${MYSQL_PITR_CACHE:-$HOME/.cache/mysql-pitr}/tools. Without optimisation: that takes a minute, and it has little to do.
set -euo pipefail

version=0.20.2 # deny.toml is written for this one
type -P cargo-deny && exit

tools=${MYSQL_PITR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mysql-pitr}/tools
mkdir -p "$tools"
exec 9>"$tools/cargo-deny.lock" # two builds at once would only be slow
flock 9
if [[ $("$tools/bin/cargo-deny" --version 2>/dev/null) != "cargo-deny $version" ]]; then
    echo "cargo-deny.sh: building cargo-deny $version, once ..." >&2
    # A build folder of its own, which cargo removes afterwards.
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install cargo-deny --version "$version" --locked --debug --quiet --force --root "$tools" >&2 9>&-
fi
printf '%s\n' "$tools/bin/cargo-deny"
