// SPDX-License-Identifier: BSD-2-Clause

//! Instructions that access devices from the middle of a block: each access is made once, and what the device does in answer comes
//! before the next instruction.

#![expect(unsafe_code, reason = "memory for the guest, by address")]

mod machine;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::*;
use vmm_cpu::*;

/// Nothing but devices from here on,
const DEVICE: u64 = 0x3000_0000;
/// but for a page of memory here.
const ISLAND: u64 = DEVICE + 0x10_0000;
/// Where the program has data in memory.
const DATA: u64 = 0x20_0000;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// One instruction, with RBX at a device, RSI at memory, RDI at a device, ECX 5 and DX a port.
const ACCESSES: &[(&str, Code)] = &[
    ("store", |a| a.mov(dword_ptr(rbx), eax)),
    ("store of an immediate", |a| a.mov(word_ptr(rbx), 7)),
    ("load", |a| a.mov(rax, qword_ptr(rbx + 8))),
    ("load with extension", |a| a.movsx(rax, byte_ptr(rbx))),
    ("add to it", |a| a.add(dword_ptr(rbx), eax)),
    ("add from it", |a| a.add(rax, qword_ptr(rbx))),
    ("comparison", |a| a.cmp(qword_ptr(rbx), rax)),
    ("locked increment", |a| a.lock().inc(dword_ptr(rbx))),
    ("exchange", |a| a.xchg(dword_ptr(rbx), eax)),
    ("compare and exchange", |a| {
        a.lock().cmpxchg(qword_ptr(rbx), rdi)
    }),
    ("bit", |a| a.bts(dword_ptr(rbx), ecx)),
    ("locked bit", |a| a.lock().btr(qword_ptr(rbx), 9)),
    ("shift", |a| a.shl(dword_ptr(rbx), 3)),
    ("push", |a| a.push(qword_ptr(rbx))),
    ("pop", |a| a.pop(qword_ptr(rbx))),
    ("vector", |a| a.movups(xmmword_ptr(rbx), xmm0)),
    ("save of the FPU", |a| a.fxsave(ptr(rbx))),
    ("string store", |a| a.stosd()),
    ("string stores", |a| a.rep().stosd()),
    ("string moves", |a| a.rep().movsw()),
    ("string input", |a| a.insd()),
    ("string inputs", |a| a.rep().insb()),
    ("string output", |a| a.outsd()),
    ("from memory into a device", |a| {
        a.mov(qword_ptr(rbp - 3), rax)
    }),
    ("from a device into memory", |a| {
        a.mov(rax, qword_ptr(rbp + 0xffb))
    }),
    ("indirect call", |a| a.call(qword_ptr(rbx))),
];

/// An access amidst other instructions, with or without one behind it that does nothing.
fn program(access: Code, nop: bool) -> Machine {
    let mut m = Machine::long();
    // The island's page is the first of RAM, which the program does not use.
    // SAFETY: `m` drops the RAM last.
    unsafe { m.mem.map(ISLAND, m.ram.host, 0x1000, true).unwrap() };
    m.load(64, |a| {
        let mut code = || {
            a.mov(ebx, DEVICE as u32)?;
            a.mov(ebp, ISLAND as u32)?;
            a.mov(esi, DATA as u32)?;
            a.mov(edi, DEVICE as u32 + 0xff8)?;
            a.mov(ecx, 5)?;
            a.mov(edx, 0x70)?;
            a.mov(rax, 0x0123_4567_89ab_cdefu64)?;
            a.sub(r8, 1)?;
            access(a)?;
            if nop {
                a.nop()?;
            }
            a.inc(r9)?;
            a.add(r10, r9)?;
            a.hlt()
        };
        code().unwrap();
    });
    m.bus.mmio = true;
    m.bus.ports = true;
    m
}

/// All that is to be seen of a run.
#[derive(Debug, PartialEq)]
struct Seen {
    exit: Exit,
    state: Vec<u64>,
    mmio: Vec<(u64, u8, Option<u64>)>,
    ins: Vec<u16>,
    outs: Vec<(u16, u32)>,
    /// What is not zero in the island, and in the stack with what an interrupt puts there.
    memory: Vec<(u64, u8)>,
}

/// Runs so many instructions at a time.
fn seen(m: &mut Machine, step: u64) -> Seen {
    let exit = m.run_by(step);
    let memory = [0..0x1000, STACK - 0x100..STACK]
        .into_iter()
        .flat_map(|range| {
            let len = (range.end - range.start) as usize;
            range.clone().zip(m.ram.read(range.start, len))
        });
    Seen {
        exit,
        state: m.state(),
        mmio: m.bus.mmio_log.clone(),
        ins: m.bus.port_log.clone(),
        outs: m.bus.out.clone(),
        memory: memory.filter(|(_, byte)| *byte != 0).collect(),
    }
}

/// Every access, from the middle of a block and one instruction at a time, with devices that interrupt and devices that do not.
#[test]
fn an_access_is_made_once_and_its_interrupt_comes_before_the_next_instruction() {
    for (name, access) in ACCESSES {
        for (nop, interrupts) in [(false, false), (true, false), (false, true), (true, true)] {
            let run = |step| {
                let mut m = program(*access, nop);
                if interrupts {
                    m.bus.interrupts = Some(m.cpu.signals().clone());
                    m.cpu.set(Reg::Rflags, 2 | flag::IF);
                }
                seen(&mut m, step)
            };
            let alone = run(1);
            assert_eq!(alone.exit, Exit::Hlt, "{name}");
            assert!(
                alone.mmio.len() + alone.ins.len() + alone.outs.len() > 0,
                "{name}"
            );
            for step in [1_000_000, 3, 10] {
                let together = run(step);
                assert_eq!(
                    together, alone,
                    "{name}, nop {nop}, interrupts {interrupts}"
                );
            }
        }
    }
}

/// The same code with devices and then with memory: it is as it was before its blocks were ended in their middle.
#[test]
fn a_block_that_was_ended_short_is_whole_again() {
    for (name, access) in &ACCESSES[..4] {
        let run = |step| {
            let mut m = program(*access, false);
            m.load(64, |a| {
                let mut code = || {
                    let mut again = a.create_label();
                    a.mov(ebx, DEVICE as u32)?;
                    a.mov(r13d, ISLAND as u32)?;
                    a.mov(r8d, 3)?;
                    a.set_label(&mut again)?;
                    a.inc(r9)?;
                    access(a)?;
                    a.inc(r10)?;
                    a.add(r11, r10)?;
                    access(a)?;
                    a.inc(r12)?;
                    a.dec(r8d)?;
                    a.cmp(r8d, 1)?;
                    a.cmove(rbx, r13)?;
                    a.test(r8d, r8d)?;
                    a.jne(again)?;
                    a.hlt()
                };
                code().unwrap();
            });
            seen(&mut m, step)
        };
        let alone = run(1);
        assert_eq!(alone.mmio.len(), 4, "{name}");
        assert_eq!(run(1_000_000), alone, "{name}");
    }
}

/// An exit to the caller from the middle of a block: nothing of the instruction has happened, and the caller completes it.
#[test]
fn an_exit_from_the_middle_of_a_block_is_precise() {
    for (name, access) in ACCESSES.iter().filter(|(name, _)| !name.contains("string")) {
        let run = |step| {
            let mut m = program(*access, false);
            m.bus.mmio = false;
            seen(&mut m, step)
        };
        let alone = run(1);
        assert!(
            matches!(alone.exit, Exit::Mmio(_)),
            "{name}: {:?}",
            alone.exit
        );
        assert_eq!(run(1_000_000), alone, "{name}");
    }
}

/// What an exit says of the instruction, and what it does not: where there is more to it, or only a part of the operand.
#[test]
fn an_exit_says_what_the_instruction_does_if_that_is_all() {
    let store = |value| Some(Transfer::Store(value));
    let load = |register, shift, size, signed| {
        Some(Transfer::Load(Load {
            register,
            shift,
            size,
            signed,
        }))
    };
    const CASES: &[Code] = &[
        |a| a.mov(dword_ptr(rbx), eax),
        |a| a.mov(byte_ptr(rbx), ah),
        |a| a.mov(qword_ptr(rbx), -2),
        |a| a.mov(cx, word_ptr(rbx)),
        |a| a.mov(bh, byte_ptr(rbx)),
        |a| a.movsx(r12, word_ptr(rbx)),
        |a| a.movzx(esp, byte_ptr(rbx)),
        // The device's page and another.
        |a| a.mov(dword_ptr(rbx + 0xffe), eax),
        |a| a.mov(eax, dword_ptr(rbx + 0xffe)),
        |a| a.add(dword_ptr(rbx), eax),
        |a| a.stosb(),
        |a| a.pop(qword_ptr(rbx)),
    ];
    let told = [
        store(0x89ab_cdef),
        store(0xcd),
        store(-2i64 as u64),
        load(Reg::Rcx, 0, 2, false),
        load(Reg::Rbx, 8, 1, false),
        load(Reg::R12, 0, 8, true),
        load(Reg::Rsp, 0, 4, false),
    ];
    let told = told.into_iter().chain(std::iter::repeat(None));
    for (n, (access, told)) in CASES.iter().zip(told).enumerate() {
        for step in [1, 1_000_000] {
            let mut m = program(*access, false);
            m.bus.mmio = false;
            let Exit::Mmio(mmio) = m.run_by(step) else {
                panic!("no exit of case {n}");
            };
            assert_eq!(mmio.transfer, told, "case {n}");
        }
    }
}

/// An instruction that accesses a device and then faults is left at itself, and the block is whole behind it.
#[test]
fn a_fault_after_an_access() {
    let run = |step| {
        let mut m = program(|a| a.push(qword_ptr(rbx)), false);
        m.bus.interrupts = Some(m.cpu.signals().clone());
        m.cpu.set(Reg::Rflags, 2 | flag::IF);
        // No stack there; the handler's is the TSS's.
        m.ram.write64(TSS + 0x24, 0x8_8000);
        for vector in [13u64, 14, 12, u64::from(DEVICE_VECTOR)] {
            let gate = m.ram.read64(IDT + vector * 16);
            m.ram.write64(IDT + vector * 16, gate | 1 << 32);
        }
        m.cpu.set(Reg::Rsp, 0x8000_0000_0000);
        seen(&mut m, step)
    };
    let alone = run(1);
    assert_eq!(alone.exit, Exit::Hlt);
    assert_eq!(alone.mmio.len(), 1, "the device was read");
    assert_eq!(run(1_000_000), alone);
}

/// Code that changes itself in the block that is running, by each way of writing.
#[test]
fn a_write_to_the_running_block_is_seen_by_the_next_instruction() {
    const WRITES: &[(&str, Code)] = &[
        ("store", |a| a.mov(byte_ptr(rbx), 7)),
        ("add", |a| a.add(byte_ptr(rbx), 6)),
        ("locked exchange", |a| a.xchg(byte_ptr(rbx), cl)),
        ("string store", |a| a.stosb()),
        ("vector", |a| a.movd(dword_ptr(rbx), xmm0)),
    ];
    for (name, write) in WRITES {
        let run = |step| {
            let mut m = Machine::long();
            m.load(64, |a| {
                let mut code = || {
                    let mut there = a.create_label();
                    a.mov(ecx, 7)?;
                    a.mov(eax, 7)?;
                    a.movd(xmm0, ecx)?;
                    a.lea(rbx, qword_ptr(there))?;
                    a.inc(rbx)?;
                    a.mov(rdi, rbx)?;
                    write(a)?;
                    a.nop()?;
                    a.set_label(&mut there)?;
                    a.mov(r8d, 1)?;
                    a.hlt()
                };
                code().unwrap();
            });
            // The immediate is behind a prefix and the opcode.
            let mut at = CODE;
            while m.ram.read(at, 3) != [0x41, 0xb8, 1] {
                at += 1;
            }
            m.ram.write(at, &[0xb8]);
            m.ram.write(at + 1, &[1, 0, 0, 0, 0xf4, 0xf4]);
            (seen(&mut m, step), m.cpu.get(Reg::Rax))
        };
        let alone = run(1);
        assert_eq!(alone.1, 7, "{name}");
        assert_eq!(run(1_000_000), alone, "{name}");
    }
}
