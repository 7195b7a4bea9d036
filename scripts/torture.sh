#!/usr/bin/env bash
# `make torture`: ROUNDS events (200) in the order of SEED (printed; random where it is not given), on two real servers.
set -euo pipefail
cd "$(dirname "$0")/.."

export MYSQL_PITR_ROUNDS=${ROUNDS:-200}
[[ -z ${SEED:-} ]] || export MYSQL_PITR_SEED=$SEED
exec scripts/test.sh --test servers torture:: -- --nocapture
