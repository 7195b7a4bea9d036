#!/usr/bin/env bash
# Prints, as the last line of its standard output, the folder that holds the programs of a MySQL server to use.
#
#   1. $MYSQLD, if set, names the server.
#   2. Otherwise a mysqld of version 8.0 or later on PATH is taken. (MariaDB's version numbers are higher, but it is not MySQL.)
#   3. Otherwise MySQL is fetched from Debian's unstable suite, the only one of Debian's suites that has it, into
#      ${MYSQL_PITR_CACHE:-$HOME/.cache/mysql-pitr}/mysql. The system is not touched, and root is not needed: apt gets a
#      configuration of its own, the packages are unpacked but not installed, and wrappers start the programs with the
#      libraries that came with them. Signatures are checked as always, against Debian's keyring.
#
# In cases 1 and 2 the folder may hold mysqld alone: other packages put the clients elsewhere (/usr/sbin and /usr/bin).
#
# The fetched mysqld needs --no-defaults or --defaults-file first on its command line, as every mysqld does. Beside that,
# --secure-file-priv=NULL (the compiled-in folder does not exist), and --user=root where root runs it.
#
# A keyring, which --binlog-encryption=ON needs, is a component that mysqld loads through a manifest beside its binary.
# The fetched mysqld has one, and it only says: read the data directory's own. So a data directory without a manifest is
# not affected, and a test that wants a keyring writes two files, after --initialize-insecure and before the first start:
#
#   DATADIR/mysqld.my                     {"components": "file://component_keyring_file"}
#   DATADIR/component_keyring_file.cnf    {"path": "/absolute/path/of/keyring", "read_only": false}
#
# mysqld makes the keyring file; its folder must exist. SHOW BINARY LOGS then says Encrypted: Yes. A server found in
# cases 1 and 2 has such a manifest only if somebody put it there: such a test must look, and say so when it is skipped.
set -euo pipefail

# Raise this when what is written below changes: a prefix made by an older version of this script is then made anew.
layout=1

say() { printf 'mysql.sh: %s\n' "$*" >&2; }
die() {
    say "$1"
    say "hint: $2"
    exit 1
}
own="install MySQL 8.0 or later yourself and set MYSQLD to the path of its mysqld"

# mysqld_will_do PATH: is it MySQL, 8.0 or later? Versions are compared as numbers: 10 and 26 come after 8.
mysqld_will_do() {
    local version
    version=$("$1" --version 2>/dev/null) || return 1
    [[ $version != *MariaDB* && $version =~ Ver\ ([0-9]+)\. ]] && ((BASH_REMATCH[1] >= 8))
}

if [[ -n ${MYSQLD:-} ]]; then
    [[ -f $MYSQLD && -x $MYSQLD ]] || die "MYSQLD is $MYSQLD, which is not a program" "unset it, or set it to the path of a mysqld"
    cd "$(dirname "$MYSQLD")" && pwd
    exit
fi
if found=$(type -P mysqld) && mysqld_will_do "$found"; then
    cd "$(dirname "$found")" && pwd
    exit
fi

cache=${MYSQL_PITR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mysql-pitr}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
prefix=$cache/mysql # complete whenever it is there, for it comes into being by a rename
tmp=$cache/mysql.tmp

done_already() { [[ $(cat "$prefix/layout" 2>/dev/null) == "$layout" ]]; }
finish() {
    printf '%s\n' "$prefix/bin"
    exit
}
done_already && finish

for tool in apt-get dpkg dpkg-deb flock; do
    command -v "$tool" >/dev/null || die "no MySQL server on PATH, and no $tool to fetch one from Debian" "$own"
done
arch=$(dpkg --print-architecture)
case $arch in
    amd64) triplet=x86_64-linux-gnu loader=ld-linux-x86-64.so.2 ;;
    arm64) triplet=aarch64-linux-gnu loader=ld-linux-aarch64.so.1 ;;
    *) die "Debian's MySQL is fetched for amd64 and arm64 only; this machine is $arch" "$own" ;;
esac

# Only the holder of the lock builds. The one who waited finds the other's work done.
exec 9>"$cache/mysql.lock"
if ! flock --nonblock 9; then
    say "waiting for another process that is fetching MySQL ..."
    flock 9
fi
done_already && finish
trap 'rm -rf "$tmp"' EXIT
rm -rf "$tmp" # what a killed run left
mkdir -p "$tmp"/{bin,root} "$tmp"/apt/{lists,cache/archives}/partial

# The machine's own apt knows where Debian's archive is, in whichever format its sources are written. Other publishers and
# the security archive have no unstable suite; should one slip through here, it fails the check against Debian's keyring.
# shellcheck disable=SC2016 # the $(...) are apt's own
archives=$(apt-get indextargets --no-release-info --format '$(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "main" && $2 !~ /security/ && $3 !~ /^cdrom:/ && !seen[$3]++ { print $3 }') ||
    die "apt cannot say what its sources are" "see its words above, or $own"
[[ -n $archives ]] || die "no MySQL server on PATH, and apt's sources name no Debian archive to fetch one from" "$own"
signed_by=
for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
    [[ -e $keyring ]] && signed_by="[signed-by=$keyring] " && break
done

# Read after the machine's own configuration, which may know of a proxy or a certificate. Hooks meant for the real system
# are dropped. With an empty status file nothing counts as installed, so every library comes along.
: >"$tmp/apt/status"
cat >"$tmp/apt/apt.conf" <<END
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Architectures;
#clear APT::Default-Release;
#clear Acquire::Languages;
Dir::Etc::sourcelist "$tmp/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::Lists "$tmp/apt/lists";
Dir::State::status "$tmp/apt/status";
Dir::State::extended_states "$tmp/apt/extended_states";
Dir::Cache "$tmp/apt/cache";
Dir::Cache::archives "archives";
Dir::Log "$tmp/apt";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
END
apt() { apt-get -c "$tmp/apt/apt.conf" -qq "$@" 9>&-; }

say "reading the package list of Debian unstable ..."
for archive in $archives; do
    printf 'deb %s%s sid main\n' "$signed_by" "$archive" >"$tmp/apt/sources.list"
    apt update >"$tmp/apt/update.log" 2>&1 && break
    sed 's/^/    /' "$tmp/apt/update.log" >&2
    archive=
done
[[ -n $archive ]] || die "cannot read Debian's unstable suite" "see apt's words above; is the network there? Or $own"

packages=(mysql-server-core mysql-client-core)
plan=$(apt --print-uris install "${packages[@]}") ||
    die "Debian unstable cannot give ${packages[*]} at the moment" "try again later, or $own"
mb=$(awk '{ bytes += $3 } END { printf "%.0f", bytes / 1e6 }' <<<"$plan")
say "fetching MySQL from Debian unstable ($mb MB) ..."
apt -y --download-only install "${packages[@]}" >&2 || die "fetching MySQL failed" "is the network there? Run this again, or $own"

say "unpacking ..."
for deb in "$tmp"/apt/cache/archives/*.deb; do
    case ${deb##*/} in
        perl* | libperl*) ;; # for scripts that nobody calls here
        *) dpkg-deb -x "$deb" "$tmp/root" || die "unpacking ${deb##*/} failed" "is there room in $cache?" ;;
    esac
done
rm -rf "$tmp/apt"

# wrapper PROGRAM PATH-UNDER-ROOT [OPTION...]: the options come last, since --no-defaults and --defaults-file must come first.
wrapper() {
    local name=$1 program=$2 lib=$prefix/root/usr/lib/$triplet
    shift 2
    {
        printf '#!/usr/bin/env bash\n# made by scripts/mysql.sh\nexec'
        printf ' %q' "$lib/$loader" --library-path "$lib:$lib/mysql" "$prefix/root/$program"
        printf ' "$@"'
        (($#)) && printf ' %q' "$@"
        echo
    } >"$tmp/bin/$name"
    chmod +x "$tmp/bin/$name"
}
wrapper mysqld usr/sbin/mysqld "--basedir=$prefix/root/usr" "--plugin-dir=$prefix/root/usr/lib/mysql/plugin" \
    "--lc-messages-dir=$prefix/root/usr/share/mysql" "--character-sets-dir=$prefix/root/usr/share/mysql/charsets"
for client in mysql mysqladmin mysqlbinlog mysqldump mysqlslap; do
    [[ -x $tmp/root/usr/bin/$client ]] || die "Debian's packages hold no $client" "$own"
    wrapper "$client" "usr/bin/$client"
done

# mysqld looks for its manifest beside its binary, and the component for its configuration in the plugin folder. mysqld warns
# of a manifest that it could write to.
printf '{"read_local_manifest": true}\n' >"$tmp/root/usr/sbin/mysqld.my"
printf '{"read_local_config": true}\n' >"$tmp/root/usr/lib/mysql/plugin/component_keyring_file.cnf"
chmod 444 "$tmp/root/usr/sbin/mysqld.my" "$tmp/root/usr/lib/mysql/plugin/component_keyring_file.cnf"

version=$("$tmp/root/usr/lib/$triplet/$loader" --library-path "$tmp/root/usr/lib/$triplet" "$tmp/root/usr/sbin/mysqld" \
    --no-defaults --version) || die "the fetched mysqld does not run here" "$own"
echo "$layout" >"$tmp/layout"

if [[ -e $prefix ]]; then # of another layout
    mv -T "$prefix" "$tmp/old"
fi
mv -T "$tmp" "$prefix"
rm -rf "$prefix/old"
say "ready: MySQL ${version#* Ver }"
finish
