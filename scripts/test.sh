#!/usr/bin/env bash
# `make test`: everything that the tests need, then the tests. Arguments go to `cargo test`.
#
# The tests find the outside world through the environment:
#
#   MYSQLD                    the mysqld to start servers with
#   MYSQL_PITR_MYSQLBINLOG    a stock mysqlbinlog; not set where there is none
#   MYSQL_PITR_MOTO           moto's server, which speaks S3
#   MYSQL_PITR_MINIO          1: MinIO is built, and its replication is watched; or a folder with minio and mc
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/need.sh build-essential cc --version
scripts/need.sh python3-venv python3 -c 'import ensurepip, venv'
# For the stand-in for EBS, whose tests are skipped where nobody may mount.
if ((EUID == 0)); then
    scripts/need.sh btrfs-progs mkfs.btrfs --version || true
    scripts/need.sh xfsprogs mkfs.xfs -V || true
fi

# The servers are fetched while cargo builds.
scripts/mysql.sh >/dev/null &
mysql=$!
scripts/moto.sh >/dev/null &
moto=$!
trap 'kill "$mysql" "$moto" 2>/dev/null || true' EXIT
cargo test ${CI:+--locked} --no-run "$@"
wait "$mysql" || true
wait "$moto" || true
trap - EXIT

# At once, where the first calls succeeded. Where one failed this one tries again, and its words are the last ones on the screen.
bin=$(scripts/mysql.sh | tail -n 1)
MYSQLD=$bin/$(basename "${MYSQLD:-mysqld}")
export MYSQLD
MYSQL_PITR_MOTO=$(scripts/moto.sh | tail -n 1)
export MYSQL_PITR_MOTO

# Only where it is asked for: building it takes ten minutes.
if [[ ${MYSQL_PITR_MINIO:-} == 1 ]]; then
    MYSQL_PITR_MINIO=$(scripts/minio.sh | tail -n 1)
    export MYSQL_PITR_MINIO
fi

mysqlbinlog=$(scripts/mysqlbinlog.sh "$bin")
[[ -z $mysqlbinlog ]] || export MYSQL_PITR_MYSQLBINLOG=$mysqlbinlog
[[ -n ${MYSQL_PITR_MYSQLBINLOG:-} ]] || echo "test.sh: no mysqlbinlog here: the tests that compare with it will be skipped" >&2

exec cargo test ${CI:+--locked} "$@"
