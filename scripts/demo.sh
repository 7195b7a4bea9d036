#!/usr/bin/env bash
# `make demo`: all the set-up, then the demo. MySQL is fetched while cargo builds.
#
# Without default features: the AWS SDK takes minutes to build, and the demo stores its archive in a folder.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "demo.sh: no cargo on PATH; hint: install Rust (the version is in Cargo.toml) and run this again" >&2
    exit 1
}
scripts/need.sh build-essential cc --version # SQLite, zstd and aws-lc are C

scripts/mysql.sh >/dev/null &
fetch=$!
trap 'kill "$fetch" 2>/dev/null || true' EXIT
features=(--no-default-features --features demo)
cargo build ${CI:+--locked} "${features[@]}" --bins
wait "$fetch" || true
trap - EXIT

# At once, where the first call succeeded. Where it failed this one tries again, and its words are the last ones on the screen.
bin=$(scripts/mysql.sh | tail -n 1)
MYSQLD=$bin/$(basename "${MYSQLD:-mysqld}")
export MYSQLD
exec cargo run ${CI:+--locked} --quiet "${features[@]}" --bin mysql-pitr-demo -- "$@"
