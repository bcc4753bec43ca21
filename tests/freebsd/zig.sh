#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Fetches zig from PyPI (package ziglang), which has FreeBSD's headers, the stubs of its libraries, and a C compiler for them.
#
#   zig.sh DIR       leaves DIR/zig/ziglang/zig; does nothing if it is there
#
# Exit status 3: it cannot be had here.
set -eu

dir=${1:?usage: zig.sh DIR}
# The headers are what sys/abi and sys/x86 are held against: another version may be of another FreeBSD.
package=ziglang==0.17.1
[ -x "$dir/zig/ziglang/zig" ] && exit 0

pip() { python3 -m pip "$@"; }
if ! pip --version >/dev/null 2>&1 && command -v apt-get >/dev/null; then
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    echo "zig.sh: installing python3-pip" >&2
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends python3-pip >/dev/null
fi
pip --version >/dev/null 2>&1 || { echo "zig.sh: no pip here" >&2; exit 3; }

mkdir -p "$dir"
echo "zig.sh: fetching $package into $dir/zig" >&2
new=$(mktemp -d "$dir/zig.XXXXXX")
trap 'rm -rf "$new"' EXIT
pip install --quiet --no-deps --target "$new" "$package" || { echo "zig.sh: pip cannot have $package" >&2; exit 3; }
rm -rf "$dir/zig"
mv "$new" "$dir/zig"
