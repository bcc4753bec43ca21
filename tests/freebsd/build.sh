#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Builds bhyve and bhyvectl for FreeBSD on amd64, with every warning an error, and checks what came out.
#
#   build.sh DIR     leaves DIR/x86_64-unknown-freebsd/release/{bhyve,bhyvectl}; the tools that it takes are in DIR, too
#
# On FreeBSD this is a plain build. Elsewhere the C compiler, the headers and the libraries' stubs are zig's, and the Rust
# toolchain is the one in use, if it has the target's standard library (rustup target add x86_64-unknown-freebsd). If it has
# not, it is Debian's, which has that library's source.
#
# Exit status 3: what it takes cannot be had here, and nothing was checked.
set -eu

dir=${1:?usage: build.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
target=x86_64-unknown-freebsd
# The oldest release that is supported: what that one lacks is not there to be linked with.
oldest=14.0

check() {
    cargo clippy "$@" --release --workspace --all-targets -- -D warnings
    cargo build "$@" --release -p bhyve -p bhyvectl
}

if [ "$(uname)" = FreeBSD ]; then
    check
    exit
fi

mkdir -p "$dir/tools"
dir=$(cd "$dir" && pwd)
"$here/zig.sh" "$dir"
zig=$dir/zig/ziglang/zig

# rustc and cc name the target in their own ways, and the libc crate names libraries that zig has no stubs of. Nothing needs them.
cat > "$dir/tools/cc" <<CC
#!/bin/sh
for arg; do
    shift
    case \$arg in
    -m64 | --target=* | -lkvm | -lmemstat | -lprocstat | -ldevstat) ;;
    *) set -- "\$@" "\$arg" ;;
    esac
done
exec "$zig" cc -target x86_64-freebsd.$oldest "\$@"
CC
for tool in ar ranlib; do printf '#!/bin/sh\nexec "%s" %s "$@"\n' "$zig" $tool > "$dir/tools/$tool"; done
chmod 755 "$dir/tools/cc" "$dir/tools/ar" "$dir/tools/ranlib"
cat > "$dir/tools/toolchain.cmake" <<CMAKE
set(CMAKE_SYSTEM_NAME FreeBSD)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER "$dir/tools/cc")
set(CMAKE_AR "$dir/tools/ar")
set(CMAKE_RANLIB "$dir/tools/ranlib")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
CMAKE

# Debian's packages of a current Rust; they are beside whatever else is installed, in /usr/bin.
debians_rust() {
    needed="rustc-web cargo-web rust-web-src rust-web-clippy"
    missing=
    for package in $needed; do
        dpkg-query -W -f '${Status}' $package 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    echo "build.sh: installing$missing" >&2
    $as_root apt-get update -qq
    # A Rust that is there already is not to be pushed out.
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends --no-remove $missing >/dev/null
}

(
    if [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
        set --
    elif command -v apt-get >/dev/null && debians_rust; then
        PATH=/usr/bin:$PATH
        unset RUSTUP_TOOLCHAIN RUSTC
        export RUSTC_BOOTSTRAP=1 # for -Z
        set -- -Zbuild-std=std,panic_abort
    else
        echo "build.sh: no Rust here with a standard library for $target" >&2
        exit 3
    fi
    echo "build.sh: $(rustc --version), $target${1:+, with its standard library from source}" >&2
    export ZIG_GLOBAL_CACHE_DIR="$dir/zig-cache" ZIG_LOCAL_CACHE_DIR="$dir/zig-local"
    export CARGO_TARGET_DIR="$dir"
    export CARGO_TARGET_X86_64_UNKNOWN_FREEBSD_LINKER="$dir/tools/cc"
    export CC_x86_64_unknown_freebsd="$dir/tools/cc"
    export AR_x86_64_unknown_freebsd="$dir/tools/ar"
    export RANLIB_x86_64_unknown_freebsd="$dir/tools/ranlib"
    export CMAKE_TOOLCHAIN_FILE_x86_64_unknown_freebsd="$dir/tools/toolchain.cmake"
    check --target $target "$@"
)
cargo run --quiet -p freebsd-check -- "$dir/zig-cache" "$dir/$target/release/bhyve" "$dir/$target/release/bhyvectl"
