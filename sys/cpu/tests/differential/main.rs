// SPDX-License-Identifier: BSD-2-Clause

//! The host's own processor as the oracle: random instructions run natively and in this crate, and everything that can be
//! seen afterwards is compared: registers, defined flags, x87 and vector state, memory, and the fault with its error code.
//!
//! `DIFF_CASES` is the number of cases, `DIFF_SEED` the first one's seed (each case has its own, one after the other), so that
//! a failed case is repeated by the command that its report ends with. Seeds that failed once are kept in `tests/seeds` and
//! run first.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod case;
mod compare;
mod engine;
mod generate;
mod hints;
mod native;
mod rng;
mod stepping;
mod sweep;
mod units;
mod values;

use std::collections::BTreeMap;
use std::time::Instant;

use case::{Case, Outcome};
use engine::Engine;
use generate::{Generator, Kind};
use native::Native;
use sweep::Expected;

/// The vector of #AC: the host's kernel refuses split locks in this way.
const ALIGNMENT_CHECK: u8 = 17;
/// The vector of #UD.
const INVALID_OPCODE: u8 = 6;
/// MXCSR's bit 17, in its third byte: AMD's processors have it, ours does not.
const MISALIGNED: u8 = 2;
/// How many failures are shown in full.
const SHOWN: usize = 10;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The seeds of a file of `tests/seeds`: one a line, with a comment behind it.
fn kept(seeds: &str) -> impl Iterator<Item = u64> {
    seeds.lines().filter_map(|line| {
        let word = line.split('#').next()?.split_whitespace().next()?;
        Some(
            u64::from_str_radix(word.trim_start_matches("0x"), 16)
                .unwrap_or_else(|_| panic!("not a seed: {line}")),
        )
    })
}

/// Whether the host is of the vendor whose processors the engine is modelled on: in a few places (the destination of a CMPXCHG
/// that fails, the order of two faults, alignment of SHA's operands) the vendors' processors differ.
fn host_is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    (leaf.ebx, leaf.edx, leaf.ecx)
        == (
            u32::from_le_bytes(*b"Auth"),
            u32::from_le_bytes(*b"enti"),
            u32::from_le_bytes(*b"cAMD"),
        )
}

/// Runs kept seeds and then as many new ones as are asked for; panics with a report if any fails.
fn explore(kind: Kind, test: &str, seeds: &str, cases: u64, mut run: impl FnMut(&Case) -> Outcome) {
    if !host_is_amd() && number("DIFF_CASES").is_none() {
        println!(
            "{test}: the host is not AMD's, which the engine is modelled on; set DIFF_CASES to see how they differ"
        );
        return;
    }
    let started = Instant::now();
    let mut native = Native::new();
    let mut generator = Generator::new();
    let first = number("DIFF_SEED");
    let fresh = first.unwrap_or(0)
        ..first
            .unwrap_or(0)
            .saturating_add(number("DIFF_CASES").unwrap_or(cases));
    let count = fresh.end - fresh.start;
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    let mut reports = String::new();
    let mut shown = 0;
    for seed in kept(seeds).filter(|_| first.is_none()).chain(fresh) {
        let case = generator.case(kind, seed);
        let theirs = native.run(&case);
        if matches!(theirs.vector, ALIGNMENT_CHECK | native::ENDLESS)
            || theirs.fx[26] & MISALIGNED != 0
        {
            continue;
        }
        let ours = run(&case);
        let differences = compare::differences(&case, &theirs, &ours);
        if differences.is_empty() {
            continue;
        }
        let name = match case.instructions.as_slice() {
            [only] => format!("{:?}", only.instruction.code()),
            _ => String::from("sequences"),
        };
        let seen = failures.entry(name).or_default();
        *seen += 1;
        // One of each encoding; of sequences, which differ for many reasons, some more.
        if (*seen == 1
            || case.instructions.len() > 1
            || case.instructions[0].instruction.is_invalid())
            && shown < SHOWN
        {
            shown += 1;
            reports += &format!(
                "seed {seed:#x}\n{}{differences}  again: DIFF_SEED={seed:#x} DIFF_CASES=1 cargo test -p vmm-cpu --test differential {test}\n\n",
                compare::describe(&case)
            );
        }
    }
    let total: usize = failures.values().sum();
    println!(
        "{test}: {count} cases in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    assert!(
        failures.is_empty(),
        "{total} cases differ\n\n{reports}\nby encoding: {failures:#?}"
    );
}

#[test]
fn units_match_the_host() {
    explore(
        Kind::Units,
        "units_match_the_host",
        include_str!("../seeds/units.txt"),
        300_000,
        units::run,
    );
}

#[test]
fn user_code_matches_the_host() {
    let mut engine = Engine::new();
    let run = |case: &Case| engine.run(case);
    explore(
        Kind::User,
        "user_code_matches_the_host",
        include_str!("../seeds/user.txt"),
        1_000_000,
        run,
    );
}

/// Where the trap flag stops a program.
#[test]
fn steps_match_the_host() {
    let mut native = Native::new();
    let mut engine = Engine::new();
    for (name, case) in stepping::cases() {
        let (theirs, end) = native.step(&case);
        let (ours, our_end) = engine.step(&case);
        assert!(!theirs.is_empty(), "{name}");
        assert_eq!(
            stepping::offsets(&case, &ours),
            stepping::offsets(&case, &theirs),
            "{name}"
        );
        assert_eq!(
            (our_end.vector, our_end.rip),
            (end.vector, end.rip),
            "{name}"
        );
        assert_eq!(our_end.regs, end.regs, "{name}");
    }
}

/// Every `one_in`th encoding of the whole space, from the `first` on.
fn sweep(one_in: usize, first: usize) {
    let started = Instant::now();
    let mut native = Native::new();
    let mut engine = Engine::new();
    let start = sweep::Start::new();
    let (mut cases, mut compared) = (0, 0);
    let mut reports: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for bits in [64, 32] {
        for encoding in sweep::encodings(bits).skip(first % one_in).step_by(one_in) {
            cases += 1;
            let expected = encoding.expected(host_is_amd());
            if expected == Expected::Unknown {
                continue;
            }
            let case = &start.case(&encoding);
            let ours = match bits {
                64 => engine.run(case),
                _ => engine.run_32(case),
            };
            let differences = if expected == Expected::Undefined {
                match ours.vector {
                    INVALID_OPCODE => String::new(),
                    vector => format!("  of no feature that is shown: vector {vector}\n"),
                }
            } else {
                compared += 1;
                let theirs = match bits {
                    64 => native.run(case),
                    _ => native.run_32(case),
                };
                if theirs.vector == ALIGNMENT_CHECK {
                    continue;
                }
                match expected {
                    Expected::SameEnd if (ours.vector, ours.rip) == (theirs.vector, theirs.rip) => {
                        String::new()
                    }
                    _ => compare::differences(case, &theirs, &ours),
                }
            };
            if !differences.is_empty() {
                let name = format!("{bits} {:?}", encoding.instruction.mnemonic());
                let report = || format!("{}{differences}", sweep::describe(&encoding));
                reports.entry(name).or_insert_with(|| (0, report())).0 += 1;
            }
        }
    }
    println!(
        "{cases} encodings, {compared} of them compared, in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let text: String = reports
        .iter()
        .map(|(name, (count, report))| format!("{name}: {count}\n{report}\n"))
        .collect();
    assert!(reports.is_empty(), "{text}");
}

#[test]
fn a_sample_of_all_encodings_matches_the_host() {
    sweep(16, number("DIFF_SEED").unwrap_or(0) as usize);
}

#[test]
#[ignore = "a long run: make soak"]
fn all_encodings_match_the_host() {
    sweep(1, 0);
}

/// Unlike the random cases, these do not come from a list of encodings that somebody wrote, but from the space of bytes that the
/// architecture set aside; and no two vendors differ in them, but for the register form of AMD's PREFETCH.
#[test]
fn hints_match_the_host() {
    let mut native = Native::new();
    let mut engine = Engine::new();
    let mut reports = String::new();
    let mut count = 0;
    for case in hints::cases(host_is_amd()) {
        count += 1;
        let theirs = native.run(&case);
        let differences = compare::differences(&case, &theirs, &engine.run(&case));
        if !differences.is_empty() && reports.len() < 4000 {
            reports += &format!("{}{differences}\n", hints::describe(&case));
        }
    }
    assert!(reports.is_empty(), "of {count} encodings\n{reports}");
    assert!(count > 30_000, "{count} encodings");
}
