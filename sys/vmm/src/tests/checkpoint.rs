// SPDX-License-Identifier: BSD-2-Clause

//! State saved in one VM and restored in another.

use vmm_abi::soft::*;

use super::*;

/// Everything, in an order in which it can be restored.
const STRUCTS: [u32; 18] = [
    SOFT_STRUCT_VM,
    STRUCT_VHPET,
    STRUCT_VM,
    STRUCT_VIOAPIC,
    STRUCT_VLAPIC,
    STRUCT_VMCX,
    STRUCT_VATPIT,
    STRUCT_VATPIC,
    STRUCT_VPMTMR,
    STRUCT_VRTC,
    SOFT_STRUCT_VMCX,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VHPET,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VIOAPIC,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VLAPIC,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VATPIT,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VATPIC,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VPMTMR,
    SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VRTC,
];

fn snapshot(bench: &Bench, dev_req: u32, op: u32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let start = buffer.as_mut_ptr().expose_provenance() as u64;
    let size = buffer.len() as u64;
    let buffer = VmSnapshotBuffer {
        buf_start: start,
        buf_size: size,
        buf: start,
        buf_rem: size,
    };
    let meta = bench.get(
        VM_SNAPSHOT_REQ,
        VmSnapshotMeta {
            dev_req,
            op,
            buffer,
            ..Default::default()
        },
    )?;
    assert_eq!(meta.buffer.buf - start, size - meta.buffer.buf_rem);
    Ok((size - meta.buffer.buf_rem) as usize)
}

fn save_one(bench: &Bench, dev_req: u32) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 20];
    let len = snapshot(bench, dev_req, VM_SNAPSHOT_SAVE, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

fn save(bench: &Bench) -> Vec<Vec<u8>> {
    STRUCTS
        .iter()
        .map(|&dev_req| save_one(bench, dev_req))
        .collect()
}

/// Everything that a guest can see, memory included.
#[derive(PartialEq)]
struct Whole {
    structs: Vec<Vec<u8>>,
    memory: Vec<u8>,
}

fn whole(bench: &Bench) -> Whole {
    Whole {
        structs: save(bench),
        memory: bench.read(0, MEMORY as usize),
    }
}

fn same(one: &Whole, other: &Whole) {
    for ((dev_req, one), other) in STRUCTS.iter().zip(&one.structs).zip(&other.structs) {
        let differs = one.iter().zip(other).position(|(a, b)| a != b);
        assert_eq!(
            (one.len(), differs),
            (other.len(), None),
            "struct {dev_req:#x}"
        );
    }
    assert!(one.memory == other.memory, "memory differs");
}

/// A new VM that goes on where the old one was.
fn twin(clock: Clock, cpus: i32, state: &Whole) -> Bench {
    let bench = Bench::with_program(clock, cpus, &[]);
    bench.write(0, &state.memory);
    for (&dev_req, bytes) in STRUCTS.iter().zip(&state.structs) {
        let restored = snapshot(&bench, dev_req, VM_SNAPSHOT_RESTORE, &mut bytes.clone());
        assert_eq!(restored, Ok(bytes.len()), "struct {dev_req:#x}");
    }
    bench.set(VM_RESTORE_TIME, 0i32).unwrap();
    bench
}

#[test]
fn sizes_are_the_kernels() {
    let bench = Bench::with_program(Clock::Host, 2, &[]);
    let sizes = [
        (STRUCT_VM, 2 * 184 + 128),
        (STRUCT_VMCX, 2 * 1028),
        (STRUCT_VHPET, 284),
        (STRUCT_VIOAPIC, 388),
        (STRUCT_VLAPIC, 2 * 4169),
        (STRUCT_VATPIT, 172),
        (STRUCT_VATPIC, 118),
        (STRUCT_VPMTMR, 4),
        (STRUCT_VRTC, 140),
    ];
    for (dev_req, size) in sizes {
        assert_eq!(save_one(&bench, dev_req).len(), size, "struct {dev_req}");
        let mut short = vec![0; size - 1];
        assert_eq!(
            snapshot(&bench, dev_req, VM_SNAPSHOT_SAVE, &mut short),
            Err(Errno::E2BIG)
        );
        assert_eq!(
            snapshot(&bench, dev_req, VM_SNAPSHOT_RESTORE, &mut short),
            Err(Errno::E2BIG)
        );
    }
    for (dev_req, op) in [(0, 0), (VM_MEM, 0), (11, 0), (0x1000, 0), (STRUCT_VM, 2)] {
        assert_eq!(
            snapshot(&bench, dev_req, op, &mut [0; 4096]),
            Err(Errno::EINVAL)
        );
    }
}

#[test]
fn a_guest_goes_on_in_another_vm() {
    for clock in [Clock::Host, Clock::Instructions] {
        let old = Bench::with_program(clock, 1, &super::guests::ticking());
        let mut last = 0;
        for _ in 0..10 {
            last = old.next_out(0).1;
        }
        // Time has to stand still while one struct after the other is saved.
        old.set(VM_SUSPEND_CPU, VmActivateCpu { vcpuid: -1 })
            .unwrap();
        let state = whole(&old);
        drop(old);
        let new = twin(clock, 1, &state);
        same(&state, &whole(&new));
        let (port, count) = new.next_out(0);
        assert_eq!(port, 0x80);
        // On a busy host a tick may pass before the program has said so.
        let late = if clock == Clock::Host { 20 } else { 0 };
        assert!(
            (last + 1..=last + 1 + late).contains(&count),
            "{count} after {last}"
        );
    }
}

#[test]
fn hostile_state_is_refused_or_harmless() {
    let bench = Bench::with_program(Clock::Host, 2, &super::guests::ticking());
    let state = save(&bench);
    // A simple generator is enough to hit all fields.
    let mut seed = 1u64;
    for (&dev_req, bytes) in STRUCTS.iter().zip(&state) {
        for _ in 0..300 {
            let mut bytes = bytes.clone();
            for _ in 0..3 {
                let at = crate::entropy::repeatable(&mut seed) as usize % bytes.len();
                bytes[at] = crate::entropy::repeatable(&mut seed) as u8;
            }
            if snapshot(&bench, dev_req, VM_SNAPSHOT_RESTORE, &mut bytes).is_err() {
                assert_eq!(
                    snapshot(
                        &bench,
                        dev_req,
                        VM_SNAPSHOT_RESTORE,
                        &mut save_one(&bench, dev_req)
                    )
                    .err(),
                    None
                );
            }
        }
    }
}

/// Runs until all are held, answering every exit in the way of a device whose answers depend on nothing.
fn run_held(bench: &Bench, cpus: i32) {
    std::thread::scope(|scope| {
        for cpu in 0..cpus {
            scope.spawn(move || {
                loop {
                    let exit = bench.run(cpu).unwrap();
                    match exit.exitcode {
                        VM_EXITCODE_INOUT | VM_EXITCODE_REQIDLE => {}
                        VM_EXITCODE_DEBUG => return,
                        _ => panic!("{exit:?}"),
                    }
                }
            });
        }
    });
}

fn run_to(bench: &Bench, cpus: i32, count: u64) {
    bench
        .set(VM_RESUME_CPU, VmActivateCpu { vcpuid: -1 })
        .unwrap();
    bench.set(VM_SOFT_STOP_AT, count).unwrap();
    run_held(bench, cpus);
    assert!(bench.get(VM_SOFT_INSTRUCTIONS, 0u64).unwrap() >= count);
}

/// One counts timer interrupts between bursts of work, the others work on shared memory without end.
fn busy() -> Bench {
    let bench = Bench::with_program(Clock::Instructions, 3, &super::guests::ticking());
    let worker = assemble(16, |a| {
        use iced_x86::code_asm::*;
        let mut again = a.create_label();
        a.mov(si, 0x600)?;
        a.set_label(&mut again)?;
        a.lock().inc(word_ptr(0x600))?;
        a.rdtsc()?;
        a.mov(word_ptr(si), ax)?;
        a.add(si, 2)?;
        a.and(si, 0x6fe)?;
        a.or(si, 0x600)?;
        a.inc(bx)?;
        a.test(bx, 0xfff)?;
        a.jne(again)?;
        a.out(0x81, al)?;
        a.jmp(again)
    });
    bench.write(0x9000, &worker);
    bench.start_at(1, 0x900, 0);
    bench.start_at(2, 0x900, 0);
    bench
}

#[test]
fn instruction_time_repeats_itself() {
    const HALF: u64 = 3_000_000;
    const END: u64 = 7_000_000;
    let straight = busy();
    run_to(&straight, 3, END);
    let straight = whole(&straight);

    let again = busy();
    run_to(&again, 3, END);
    same(&straight, &whole(&again));

    let first = busy();
    run_to(&first, 3, HALF);
    let state = whole(&first);
    drop(first);
    let second = twin(Clock::Instructions, 3, &state);
    same(&state, &whole(&second));
    run_to(&second, 3, END);
    same(&straight, &whole(&second));
}

/// What stands in `STRUCT_VMCX` of the host: intercepts, ASID, TLB control, AVIC, and where the processor last ran.
fn host_fields() -> impl Iterator<Item = usize> {
    // Ten registers, eight segments, EFER, two tables, the interrupt shadow; then the control block's fields of eight
    // bytes, of which nine are the guest's registers.
    const FIELDS: usize = 10 * 8 + 8 * 24 + 8 + 2 * 16 + 8;
    const CONTEXT: usize = FIELDS + 34 * 8;
    const HOST: usize = CONTEXT + 19 * 8;
    let control = FIELDS..FIELDS + 20 * 8;
    let more = FIELDS + 29 * 8..CONTEXT;
    control.chain(more).chain(HOST..HOST + 28)
}

/// The byte with IRET's intercept, which is set while NMIs are blocked.
const IRET_INTERCEPT: usize = 10 * 8 + 8 * 24 + 8 + 2 * 16 + 8 + 3 * 8 + 2;

#[test]
fn host_state_is_neither_saved_nor_believed() {
    let bench = Bench::with_program(Clock::Instructions, 1, &super::guests::ticking());
    for _ in 0..5 {
        bench.next_out(0);
    }
    let saved = save_one(&bench, STRUCT_VMCX);
    let mut other = saved.clone();
    for at in host_fields().filter(|at| *at != IRET_INTERCEPT) {
        other[at] ^= 0xff;
    }
    let restored = snapshot(&bench, STRUCT_VMCX, VM_SNAPSHOT_RESTORE, &mut other);
    assert_eq!(restored, Ok(saved.len()));
    assert!(save_one(&bench, STRUCT_VMCX) == saved);
    bench.next_out(0);
}

#[test]
fn blocked_nmis_stay_blocked() {
    let bench = Bench::with_program(Clock::Instructions, 1, &super::guests::ticking());
    let mut saved = save_one(&bench, STRUCT_VMCX);
    assert_eq!(saved[IRET_INTERCEPT] & 0x10, 0);
    saved[IRET_INTERCEPT] |= 0x10;
    let restored = snapshot(&bench, STRUCT_VMCX, VM_SNAPSHOT_RESTORE, &mut saved.clone());
    assert_eq!(restored, Ok(saved.len()));
    assert!(save_one(&bench, STRUCT_VMCX) == saved);
}

/// Where a pin's redirection entry is in `STRUCT_VIOAPIC`, and the bits of it that only the I/O APIC sets.
const PIN: usize = 4;
const PIN_SIZE: usize = 12;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;

fn with_entry(ioapic: &[u8], pin: usize, entry: u64) -> Vec<u8> {
    let mut bytes = ioapic.to_vec();
    let at = PIN + pin * PIN_SIZE;
    bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    bytes
}

#[test]
fn what_a_register_cannot_hold_cannot_be_restored() {
    let bench = Bench::with_program(Clock::Host, 1, &[]);
    let ioapic = save_one(&bench, STRUCT_VIOAPIC);
    for (entry, fits) in [
        (LEVEL | 0x40, true),
        (LEVEL | REMOTE_IRR | 0x40, true),
        (REMOTE_IRR | 0x40, false),
        (DELIVERY_STATUS | 0x40, false),
    ] {
        let mut bytes = with_entry(&ioapic, 5, entry);
        let restored = snapshot(&bench, STRUCT_VIOAPIC, VM_SNAPSHOT_RESTORE, &mut bytes);
        assert_eq!(restored.is_ok(), fits, "{entry:#x}");
    }
}

#[test]
fn trigger_modes_are_recomputed() {
    // The page of registers comes first.
    const TMR: usize = 0x180;
    const VECTOR: usize = 0x41;
    let bench = Bench::with_program(Clock::Host, 1, &[]);
    let lapic = save_one(&bench, STRUCT_VLAPIC);
    let word = TMR + VECTOR / 32 * 16;
    let level = |lapic: &[u8]| lapic[word + VECTOR % 32 / 8] & 1 << (VECTOR % 8) != 0;
    assert!(!level(&lapic));
    // The entry is a level one; the local APIC that is restored after it says that none is.
    let ioapic = save_one(&bench, STRUCT_VIOAPIC);
    let mut ioapic = with_entry(&ioapic, 5, LEVEL | VECTOR as u64);
    for (dev_req, bytes) in [
        (STRUCT_VIOAPIC, &mut ioapic),
        (STRUCT_VLAPIC, &mut lapic.clone()),
    ] {
        let restored = snapshot(&bench, dev_req, VM_SNAPSHOT_RESTORE, bytes);
        assert_eq!(restored, Ok(bytes.len()), "{dev_req}");
    }
    assert!(level(&save_one(&bench, STRUCT_VLAPIC)));
}
