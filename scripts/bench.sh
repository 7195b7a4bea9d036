#!/usr/bin/env bash
# `make bench`: everything that the benches need, then the benches, optimised. Arguments name them; none means all.
#
#   BENCH_SCALE    1 is what is published; 0.1 is a tenth of the bytes and of the time
#   TMPDIR         where the servers have their data
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "bench.sh: no cargo on PATH; hint: install Rust (the version is in Cargo.toml) and run this again" >&2
    exit 1
}
scripts/need.sh build-essential cc --version

# The server is fetched while cargo builds.
scripts/mysql.sh >/dev/null &
fetch=$!
trap 'kill "$fetch" 2>/dev/null || true' EXIT
bench=(${CI:+--locked} --features bench --bench suite)
cargo bench "${bench[@]}" --no-run
wait "$fetch" || true
trap - EXIT

# At once, where the first call succeeded. Where it failed this one tries again, and its words are the last ones on the screen.
bin=$(scripts/mysql.sh | tail -n 1)
MYSQLD=$bin/$(basename "${MYSQLD:-mysqld}")
export MYSQLD
MYSQL_PITR_MYSQLBINLOG=$(scripts/mysqlbinlog.sh "$bin")
export MYSQL_PITR_MYSQLBINLOG
[[ -n $MYSQL_PITR_MYSQLBINLOG ]] || {
    echo "bench.sh: no mysqlbinlog here to compare with; hint: install MySQL's clients, or set MYSQL_PITR_MYSQLBINLOG" >&2
    exit 1
}
# Recoveries are compared with `mysqlbinlog | mysql`.
[[ -x $(dirname "$MYSQL_PITR_MYSQLBINLOG")/mysql ]] || {
    echo "bench.sh: no mysql beside $MYSQL_PITR_MYSQLBINLOG; hint: set MYSQL_PITR_MYSQLBINLOG to one that lies beside the client" >&2
    exit 1
}

exec cargo bench --quiet "${bench[@]}" -- "$@"
