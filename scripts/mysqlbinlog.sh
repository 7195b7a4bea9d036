#!/usr/bin/env bash
# scripts/mysqlbinlog.sh FOLDER: prints the path of a stock mysqlbinlog: $MYSQL_PITR_MYSQLBINLOG, or the one in FOLDER, or on
# PATH. Nothing where there is none: an installed server may have its clients in another folder, or not at all; and PATH may
# have MariaDB's.
set -euo pipefail

for program in "${MYSQL_PITR_MYSQLBINLOG:-}" "$1/mysqlbinlog" "$(type -P mysqlbinlog || true)"; do
    if [[ -x $program && $("$program" --no-defaults --version) != *MariaDB* ]]; then
        printf '%s\n' "$program"
        exit
    fi
done
