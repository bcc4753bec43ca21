#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Has Miri execute the tests of what is pure enough for it: the ABI and the names of x86, the configuration tree, a checkpoint's format,
# virtqueues. It looks for undefined behaviour, in our code and in what we give to others' unsafe code.
#
# Exit status 3: this machine has no Miri (rustup component add --toolchain nightly miri), and nothing was checked.
set -eu
cd "$(dirname "$0")/.."
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "miri.sh: not checked: there is no Miri (rustup component add --toolchain nightly miri)" >&2
    exit 3
fi
# Files and clocks are the host's.
export MIRIFLAGS=-Zmiri-disable-isolation
set -- cargo +nightly miri test --target-dir target/miri
"$@" -p vmm-abi -p vmm-x86
"$@" -p vmmapi --lib -- nvlist iovec linear checkpoint::meta cpuset
"$@" -p bhyve --lib -- config:: cli:: devices::virtio::queue iov
