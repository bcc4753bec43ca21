#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Checks what only a FreeBSD host can show: see docs/freebsd-host.md. Every check is made, whatever the ones before it said.
#
# Exit status 1: a check failed; 2: this is no place to make them.
set -u

system=$(uname)
[ "$system" = FreeBSD ] || { echo "check-host.sh: these checks are FreeBSD's; this is $system" >&2; exit 2; }
[ "$(uname -m)" = amd64 ] || { echo "check-host.sh: vmm(4) is checked on amd64; this is $(uname -m)" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "check-host.sh: vmm(4) is root's" >&2; exit 2; }
kldload -n vmm if_tuntap nmdm || { echo "check-host.sh: there is no vmm(4) here" >&2; exit 2; }
cd "$(dirname "$0")/../.."

failed=
check() {
    what=$1
    shift
    echo "=== $what"
    "$@" || failed="$failed
    $what"
}

check "programs build without a warning" make freebsd
check "the tests pass" make test
check "the ABI is that of this host's headers" env HEADERS_CC=cc cargo test --release -p freebsd-check --test abi the_abi
check "the kernel's vmm" cargo test --release -p vmm-tests --test freebsd_host -- --ignored --nocapture --test-threads=1
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
echo "all checks passed on $(uname -rsm)"
