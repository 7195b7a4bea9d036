#!/usr/bin/env bash
# scripts/need.sh PACKAGE COMMAND [ARGUMENT...]: sees to it that COMMAND works, and that is all.
#
# Where it fails, root on a Debian machine gets Debian's PACKAGE installed, since a fresh machine should need one command
# only; anybody else is told what to install.
set -euo pipefail

package=$1
shift
works() { "$@" >/dev/null 2>&1; }
works "$@" && exit

if ((EUID == 0)) && command -v apt-get >/dev/null; then
    printf 'need.sh: installing %s, for %s does not work here ...\n' "$package" "$1" >&2
    export DEBIAN_FRONTEND=noninteractive
    # A new machine or container has no package lists, or old ones.
    install() { apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$package" </dev/null >/dev/null 2>&1; }
    install || { apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 && install; } || true
    works "$@" && exit
fi

printf 'need.sh: %s does not work here: %s\n' "$1" "$*" >&2
printf 'need.sh: hint: install it (on Debian or Ubuntu: sudo apt-get install %s) and run this again\n' "$package" >&2
exit 1
