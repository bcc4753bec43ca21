// SPDX-License-Identifier: BSD-2-Clause

//! A fixed number of cases of every target: what was found once, then what a generator makes of the first numbers.
//!
//! `FUZZ_CASES` is the number of cases, `FUZZ_SEED` the first one's seed; a case that fails names its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that the targets have others start. Their panics go unnoticed otherwise.
const THREADS: [&str; 4] = ["control", "rfb", "vcpu", "blk"];
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            if THREADS.iter().any(|ours| name.starts_with(ours)) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
    });
}

/// Whether a target survives an input.
fn survives(target: fn(&[u8]), input: &[u8]) -> bool {
    let before = PANICS.load(Ordering::Relaxed);
    let survived = catch_unwind(AssertUnwindSafe(|| target(input))).is_ok();
    survived && PANICS.load(Ordering::Relaxed) == before
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Bytes that follow from a seed; some inputs are short.
fn bytes(seed: u64, most: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let len = if next() % 4 == 0 {
        next() as usize % most
    } else {
        most
    };
    (0..len.div_ceil(8))
        .flat_map(|_| next().to_le_bytes())
        .collect()
}

/// Nothing, the inputs in `fuzz/seeds/NAME` of the top folder, then `cases` inputs of up to `most` bytes.
fn explore(name: &str, target: fn(&[u8]), cases: u64, most: usize) {
    listen_for_panics();
    assert!(survives(target, &[]), "an empty input");
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(name);
    for entry in std::fs::read_dir(seeds).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let input = std::fs::read(&path).expect("an input");
        assert!(survives(target, &input), "again: {}", path.display());
    }
    let first = number("FUZZ_SEED", 0);
    for seed in first..first + number("FUZZ_CASES", cases) {
        assert!(
            survives(target, &bytes(seed, most)),
            "again: FUZZ_SEED={seed} FUZZ_CASES=1 cargo test -p bhyve fuzz::tests::{name}"
        );
    }
}

macro_rules! targets {
    ($( $name:ident: $cases:literal of $most:literal, )*) => { $(
        #[test]
        fn $name() {
            explore(stringify!($name), super::$name, $cases, $most);
        }
    )* };
}

targets! {
    devices: 300 of 12_000,
    device_state: 150 of 1_500,
    checkpoint: 60 of 40,
    control: 200 of 1_500,
    vnc: 60 of 400,
    gdb: 5 of 400,
    guest: 300 of 600,
    ioctl: 1_000 of 1_500,
    emul: 3_000 of 300,
    boot: 1_000 of 600,
    unpack: 2_000 of 400,
}
