#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Looks for input that does what no input may do, in each target for FUZZ_SECONDS (60).
#
#   run.sh            all targets
#   run.sh NAME ...   these
#
# What it finds is left in fuzz/artifacts/NAME. A file that is moved to fuzz/seeds/NAME is tried by every `cargo test`.
set -eu
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz" >&2
    cargo install --quiet --locked cargo-fuzz
fi
# AddressSanitizer is for unstable compilers, or for one that is told that it is. Every release comes with what it takes.
export RUSTC_BOOTSTRAP=1

# No search for leaks: a thread that ends a moment after its case looks like one.
[ $# != 0 ] || set -- $(cargo fuzz list)
cargo fuzz build --target-dir target/fuzz
failed=
for name; do
    corpus=target/fuzz/corpus/$name
    # From nothing it would be a long way to inputs that do much.
    [ -d "$corpus" ] || { mkdir -p "$corpus"; head -c 65536 /dev/urandom | split -b 2048 - "$corpus/random"; }
    mkdir -p "fuzz/seeds/$name"
    echo "== $name" >&2
    cargo fuzz run --target-dir target/fuzz "$name" "$corpus" "fuzz/seeds/$name" -- \
        -max_total_time="$seconds" -max_len=4096 -len_control=0 -timeout=60 -detect_leaks=0 -rss_limit_mb=4096 -print_final_stats=1 ||
        failed="$failed $name"
    rmdir "fuzz/seeds/$name" 2>/dev/null || true
done
[ -z "$failed" ] || { echo "fuzz: found something in$failed" >&2; exit 1; }
