#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Installs what building and testing need besides cargo, if it is missing, and says so.
#
#   install.sh          cmake (libucl), libslirp, mkfs and fsck of ext4, ip(8)
#   install.sh bench    qemu-system-x86 too, to be measured against, and valgrind, to count instructions
set -eu

# command or library : Debian's package : FreeBSD's package
needed="cmake:cmake:cmake
libslirp.so.0:libslirp0:libslirp
mkfs.ext4:e2fsprogs:e2fsprogs
ip:iproute2:-"
[ "${1:-}" = bench ] && needed="$needed
qemu-system-x86_64:qemu-system-x86:qemu-nox11
valgrind:valgrind:valgrind"

PATH=$PATH:/sbin:/usr/sbin
has() {
    case $1 in
    *.so.*) ls /lib/*/"$1" /usr/lib/*/"$1" /usr/lib/"$1" /usr/local/lib/"$1" ;;
    *) command -v "$1" ;;
    esac 2>/dev/null | grep -q .
}

missing=
for line in $needed; do
    what=${line%%:*} rest=${line#*:}
    has "$what" && continue
    if [ "$(uname)" = FreeBSD ]; then package=${rest#*:}; else package=${rest%%:*}; fi
    [ "$package" = - ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
echo "installing$missing" >&2
if [ "$(uname)" = FreeBSD ]; then
    $as_root pkg install -y $missing
elif command -v apt-get >/dev/null; then
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "install.sh: install these by hand:$missing" >&2
    exit 1
fi
