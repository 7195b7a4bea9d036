#!/bin/sh
# Prints the folder of minio and mc, with which tests watch a real replication of buckets; builds them with Go first where they are missing,
# which takes ten minutes and 2 GB of disk.
set -eu

minio=v0.0.0-20260212201848-7aac2a2c5b7c
mc=v0.0.0-20250313080218-cf909e1063a9
cache=${MYSQL_PITR_CACHE:-$HOME/.cache/mysql-pitr}
folder=$cache/minio
marker=$folder/built-$minio-$mc

mkdir -p "$cache"
exec 9>"$cache/minio.lock"
flock 9

# The marker is made last: a build that was interrupted is begun anew.
if [ ! -e "$marker" ]; then
    command -v go >/dev/null || {
        echo "minio.sh: there is no Go here, with which to build MinIO" >&2
        exit 1
    }
    rm -rf "$folder"
    mkdir -p "$folder"
    GOBIN=$folder nice -n 19 go install "github.com/minio/minio@$minio" >&2
    GOBIN=$folder nice -n 19 go install "github.com/minio/mc@$mc" >&2
    touch "$marker"
fi
echo "$folder"
