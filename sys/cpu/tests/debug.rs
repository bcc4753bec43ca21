// SPDX-License-Identifier: BSD-2-Clause

//! Debug exceptions that only the supervisor can have, with the section of the manual that says what is right (Intel SDM volume 3B
//! unless said otherwise). What user mode can show is in the differential test, which asks the host's processor.

mod machine;

use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, eax, ebx, fs, rbx, registers, ss, word_ptr};
use machine::*;
use vmm_cpu::*;

const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const BT: u64 = 1 << 15;
/// DR7 with breakpoint 0 on execution, on writes of a byte, and on ports.
const ON_CODE: u64 = 0x401;
const ON_WRITE: u64 = 0x1_0401;
const ON_PORT: u64 = 0x2_0401;

/// Runs a 64-bit program to the HLT of a handler, or its own.
fn run(setup: impl FnOnce(&mut Machine), program: impl Fn(&mut CodeAssembler)) -> Machine {
    let mut m = Machine::long();
    m.load(64, &program);
    setup(&mut m);
    assert_eq!(m.run(), Exit::Hlt);
    m
}

/// The vector of the handler that has halted, RIP and RFLAGS that it was given, and DR6's reasons.
fn seen(m: &Machine) -> (u64, u64, u64, u64) {
    let sp = m.cpu.get(Reg::Rsp);
    let dr6 = m.cpu.get(Reg::Dr6) & 0xe00f;
    (
        m.cpu.get(Reg::Rax),
        m.ram.read64(sp),
        m.ram.read64(sp + 16),
        dr6,
    )
}

/// Lets the handler return, with this RFLAGS, to its next HLT.
fn go_on(m: &mut Machine, change: impl Fn(u64) -> u64) {
    let at = m.cpu.get(Reg::Rsp) + 16;
    m.ram.write64(at, change(m.ram.read64(at)));
    assert_eq!(m.run(), Exit::Hlt);
}

/// 18.3.1.1: an instruction breakpoint is a fault, whose image has RF clear; with RF set, the instruction is executed.
#[test]
fn an_instruction_breakpoint_waits_for_rf() {
    let mut m = run(
        |m| {
            m.cpu.set(Reg::Dr0, CODE + 1);
            m.cpu.set(Reg::Dr7, ON_CODE);
            m.cpu.set(Reg::Dr6, 0xffff_0ff2);
        },
        |a| {
            a.nop().unwrap();
            a.mov(ebx, 1).unwrap();
            a.hlt().unwrap();
        },
    );
    // 18.2.3: of B0 to B3, those are set that are hit now.
    assert_eq!(seen(&m), (1, CODE + 1, 2, 1));
    go_on(&mut m, |flags| flags);
    assert_eq!(seen(&m), (1, CODE + 1, 2, 1), "once more");
    go_on(&mut m, |flags| flags | RF);
    assert_eq!((m.cpu.get(Reg::Rbx), m.cpu.get(Reg::Rip)), (1, CODE + 7));
}

/// 18.2.3: BS stays until software clears it; B0 to B3 do not.
#[test]
fn dr6_keeps_reasons_but_not_hits() {
    let mut m = run(
        |m| {
            m.cpu.set(Reg::Dr0, 0x20_0000);
            m.cpu.set(Reg::Dr7, ON_WRITE);
        },
        |a| {
            a.mov(byte_ptr(0x20_0000), 1).unwrap();
            a.nop().unwrap();
            a.nop().unwrap();
            a.hlt().unwrap();
        },
    );
    assert_eq!(seen(&m), (1, CODE + 8, 2, 1));
    go_on(&mut m, |flags| flags | TF);
    assert_eq!(seen(&m), (1, CODE + 9, 2 | TF, BS));
}

/// 18.2.4 and 18.3.1.3: I/O breakpoints are there while CR4.DE is set, and are traps.
#[test]
fn io_breakpoints() {
    for (port, de, hit) in [
        (0x80, true, true),
        (0x80, false, false),
        (0x84, true, false),
    ] {
        let m = run(
            |m| {
                m.bus.ports = true;
                m.cpu.set(Reg::Dr0, 0x80);
                m.cpu.set(Reg::Dr7, ON_PORT);
                if de {
                    m.cpu.set(Reg::Cr4, m.cpu.get(Reg::Cr4) | cr4::DE);
                }
            },
            |a| {
                a.out(port, al).unwrap();
                a.hlt().unwrap();
            },
        );
        if hit {
            assert_eq!(seen(&m), (1, CODE + 2, 2, 1));
        } else {
            assert_eq!(m.cpu.get(Reg::Rip), CODE + 3, "port {port:#x} DE {de}");
        }
    }
}

/// What the caller has completed traps as well: an OUT that the bus does not take.
#[test]
fn traps_behind_what_the_caller_completes() {
    for (dr7, flags, reason) in [(ON_PORT, 2, 1), (0x400, 2 | TF, BS)] {
        let mut m = Machine::long();
        m.load(64, |a| {
            a.out(0x80, al).unwrap();
            a.nop().unwrap();
            a.hlt().unwrap();
        });
        m.cpu.set(Reg::Dr0, 0x80);
        m.cpu.set(Reg::Dr7, dr7);
        m.cpu.set(Reg::Cr4, m.cpu.get(Reg::Cr4) | cr4::DE);
        m.cpu.set(Reg::Rflags, flags);
        assert!(matches!(m.run(), Exit::Out { port: 0x80, .. }));
        m.cpu.skip(2);
        assert_eq!(m.run(), Exit::Hlt);
        assert_eq!(seen(&m), (1, CODE + 2, flags, reason));
    }
}

/// 18.2.4, GD: #DB as a fault before the access; the processor clears GD, so that the handler can go on.
#[test]
fn general_detect() {
    let mut m = run(
        |m| m.cpu.set(Reg::Dr7, 0x2400),
        |a| {
            a.mov(rbx, registers::dr6).unwrap();
            a.hlt().unwrap();
        },
    );
    assert_eq!(seen(&m), (1, CODE, 2 | RF, BD));
    assert_eq!(m.cpu.get(Reg::Dr7), 0x400);
    go_on(&mut m, |flags| flags);
    assert_eq!(m.cpu.get(Reg::Rip), CODE + 4);
}

/// SDM 3A, 6.8.3, and 18.3.1.1: MOV SS and POP SS hold off what they hit themselves, a breakpoint on the next instruction and
/// single steps; a data breakpoint comes behind the next instruction, or before the first one of the handler that it leads to.
#[test]
fn mov_ss_holds_off() {
    let memory = |m: &mut Machine| {
        m.ram.write64(0x20_0000, 16);
        m.cpu.set(Reg::Dr0, 0x20_0000);
        m.cpu.set(Reg::Dr1, CODE + 7);
        // On reads and writes of a byte; and on execution.
        m.cpu.set(Reg::Dr7, 0x3_0405);
    };
    let m = run(memory, |a| {
        a.mov(ss, word_ptr(0x20_0000)).unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(seen(&m), (1, CODE + 8, 2, 1));
    let m = run(memory, |a| {
        a.mov(ss, word_ptr(0x20_0000)).unwrap();
        a.int(0x30).unwrap();
    });
    assert_eq!(seen(&m).1, HANDLERS + 16 * 0x30, "the handler's first");
    // STI and LSS hold off interrupts, or nothing.
    let m = run(
        |m| m.cpu.set(Reg::Rflags, 2 | TF),
        |a| {
            a.sti().unwrap();
            a.nop().unwrap();
        },
    );
    assert_eq!(seen(&m).1, CODE + 1);
}

/// 18.3.1.4 and the description of HLT: the trap behind it wakes the processor.
#[test]
fn hlt_is_stepped_over() {
    let m = run(
        |m| m.cpu.set(Reg::Rflags, 2 | TF),
        |a| {
            a.hlt().unwrap();
            a.nop().unwrap();
        },
    );
    assert_eq!(seen(&m), (1, CODE + 1, 2 | TF, BS));
}

/// SDM 2, SYSCALL and SYSRET (and what Linux's entry code, which clears TF by SFMASK, relies on): the flags that are loaded decide
/// whether a trap follows.
#[test]
fn syscall_and_sysret_step_by_their_new_flags() {
    let user = CODE + 0x1000;
    let setup = |mask: u64, r11: u64| {
        move |m: &mut Machine| {
            m.cpu.set(Reg::Star, 0x18 << 48 | 8 << 32);
            m.cpu.set(Reg::Lstar, CODE + 0x2000);
            m.cpu.set(Reg::Sfmask, mask);
            m.cpu.set(Reg::Rcx, user);
            m.cpu.set(Reg::R11, r11);
            m.ram.write(user, &[0x0f, 0x05]);
            m.load_at(CODE + 0x2000, 64, |a| {
                a.nop().unwrap();
                a.hlt().unwrap();
            });
        }
    };
    let sysret = |a: &mut CodeAssembler| a.sysretq().unwrap();
    let m = run(setup(TF, 2 | TF), sysret);
    assert_eq!(
        seen(&m),
        (1, user, 2 | TF, BS),
        "before the first of the program"
    );
    // The program is stepped again, and SYSCALL is not.
    let mut m = m;
    m.cpu.set(Reg::Rsp, m.cpu.get(Reg::Rsp));
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rip), CODE + 0x2002, "no trap in the kernel");
    assert_eq!(m.cpu.get(Reg::R11) & TF, TF);
    let mut m = run(setup(0, 2 | TF), sysret);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(seen(&m).1, CODE + 0x2000, "TF is not masked");
}

/// SDM 3A, 6.13, and 2, INT1: no DPL is checked for INT1, and what its delivery meets has EXT; INT3 is a program's own.
#[test]
fn int1_is_no_programs_interrupt() {
    let gate = |vector: u64, kind: u64| {
        move |m: &mut Machine| {
            let at = HANDLERS + vector * 16;
            let gate = at & 0xffff | 8 << 16 | kind << 40 | (at >> 16) << 48;
            m.ram.write64(IDT + vector * 16, gate);
            for seg in [(Seg::Cs, 0x2b, 0xa0fb), (Seg::Ss, 0x23, 0xc0f3)] {
                let segment = Segment {
                    selector: seg.1,
                    base: 0,
                    limit: u32::MAX,
                    access: seg.2,
                };
                m.cpu.set_segment(seg.0, segment);
            }
        }
    };
    let error = |m: &Machine| m.ram.read64(m.cpu.get(Reg::Rsp));
    let int1 = |a: &mut CodeAssembler| a.int1().unwrap();
    let int3 = |a: &mut CodeAssembler| a.int3().unwrap();
    let m = run(gate(1, 0x8e), int1);
    assert_eq!(seen(&m), (1, CODE + 1, 2, 0));
    let m = run(gate(1, 0x0e), int1);
    assert_eq!((seen(&m).0, error(&m)), (11, 1 << 3 | 3));
    let m = run(gate(3, 0x8e), int3);
    assert_eq!((seen(&m).0, error(&m)), (13, 3 << 3 | 2));
    let m = run(gate(3, 0x6e), int3);
    assert_eq!((seen(&m).0, error(&m)), (11, 3 << 3 | 2));
}

/// SDM 3B, 21.3 (and 2, INT3): IOPL is for INT n in virtual-8086 mode; INT3, INTO and INT1 do not ask for it.
#[test]
fn iopl_is_for_int_n() {
    for (code, vector) in [
        (&[0xcd, 0x03][..], 13),
        (&[0xcc], 3),
        (&[0xce], 4),
        (&[0xf1], 1),
    ] {
        let mut m = Machine::protected();
        m.ram.write(TSS + 4, &0x8_0000_u32.to_le_bytes());
        m.ram.write(TSS + 8, &16_u16.to_le_bytes());
        m.ram.write(0x1_0000, code);
        let tss = Segment {
            selector: 48,
            base: TSS,
            limit: 0x67,
            access: 0x8b,
        };
        m.cpu.set_segment(Seg::Tr, tss);
        // VM, OF.
        m.cpu.set(Reg::Rflags, 2 | 1 << 17 | 1 << 11);
        for seg in [Seg::Cs, Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            let segment = Segment {
                selector: 0x1000,
                base: 0x1_0000,
                limit: 0xffff,
                access: 0xf3,
            };
            m.cpu.set_segment(seg, segment);
        }
        m.cpu.set(Reg::Rip, 0);
        m.cpu.set(Reg::Rsp, 0x100);
        assert_eq!(m.run(), Exit::Hlt, "{code:02x?}");
        assert_eq!(m.cpu.get(Reg::Rax), vector, "{code:02x?}");
    }
}

/// 18.3.1.1: an event between two iterations of a REP instruction pushes RF; each iteration is a step, and a breakpoint's trap
/// comes behind the iteration that hits it.
#[test]
fn iterations_trap() {
    let setup = |dr7, flags| {
        move |m: &mut Machine| {
            m.cpu.set(Reg::Dr0, 0x20_0002);
            m.cpu.set(Reg::Dr7, dr7);
            m.cpu.set(Reg::Rflags, flags);
            m.cpu.set(Reg::Rdi, 0x20_0000);
            m.cpu.set(Reg::Rcx, 100);
        }
    };
    let stosb = |a: &mut CodeAssembler| {
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    };
    let m = run(setup(ON_WRITE, 2), stosb);
    assert_eq!(seen(&m), (1, CODE, 2 | RF, 1));
    assert_eq!(m.cpu.get(Reg::Rcx), 97);
    let m = run(setup(0x400, 2 | TF), stosb);
    assert_eq!(seen(&m), (1, CODE, 2 | RF | TF, BS));
    assert_eq!(m.cpu.get(Reg::Rcx), 99);
}

/// A machine with two tasks: 40, the present one, and 48, whose T bit is `debug`. Vectors 6 and 13 are gates to it.
fn tasks(debug: u16) -> Machine {
    let mut m = Machine::protected();
    let (old, new) = (0x6000_u64, 0x6100_u64);
    m.ram.write64(GDT + 40, 0x0000_8b00_0000_0067 | old << 16);
    m.ram.write64(GDT + 48, 0x0000_8900_0000_0067 | new << 16);
    let tss = Segment {
        selector: 40,
        base: old,
        limit: 0x67,
        access: 0x8b,
    };
    m.cpu.set_segment(Seg::Tr, tss);
    for (offset, value) in [(0x20, 0x10_3000_u32), (0x24, 2), (0x38, 0x8_0000)] {
        m.ram.write(new + offset, &value.to_le_bytes());
    }
    for (i, selector) in [16_u32, 8, 16, 16, 16, 16].iter().enumerate() {
        let at = new + 0x48 + 4 * i as u64;
        m.ram.write(at, &selector.to_le_bytes());
    }
    m.ram.write(new + 0x64, &debug.to_le_bytes());
    for vector in [6, 13] {
        m.ram.write64(IDT + vector * 8, 48 << 16 | 0x85 << 40);
    }
    m.load_at(0x10_3000, 32, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    m
}

/// SDM 3A, 7.3 and 6.13: a task gate pushes the error code as any other gate does.
#[test]
fn a_task_gate_pushes_the_error_code_as_it_is() {
    let mut m = tasks(0);
    m.load(32, |a| {
        a.mov(eax, 0x38).unwrap();
        a.mov(fs, eax).unwrap();
    });
    m.ram.write64(GDT + 56, 0);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rip), 0x10_3002);
    let sp = m.cpu.get(Reg::Rsp);
    assert_eq!(sp, 0x8_0000 - 4);
    assert_eq!(m.ram.read(sp, 4), [0x38, 0, 0, 0]);
}

/// SDM 3A, 6.13: what the switch itself meets has EXT, and a fault behind it is on the new task's stack.
#[test]
fn a_fault_of_the_new_task_is_its_own() {
    let mut m = tasks(0);
    // DS of the new task is outside of the GDT.
    m.ram.write(0x6100 + 0x54, &0x78_u32.to_le_bytes());
    m.load(32, |a| a.ud2().unwrap());
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 10);
    let sp = m.cpu.get(Reg::Rsp);
    assert_eq!(sp, 0x8_0000 - 16);
    assert_eq!(m.ram.read(sp, 4), [0x79, 0, 0, 0]);
}

/// 18.3.1.5: the T bit is a trap behind the switch, the error code included, before the first instruction of the task.
#[test]
fn a_tasks_t_bit_traps_behind_the_switch() {
    let mut m = tasks(1);
    m.load(32, |a| {
        a.mov(eax, 0x38).unwrap();
        a.mov(fs, eax).unwrap();
    });
    m.ram.write64(GDT + 56, 0);
    m.cpu.set(Reg::Dr6, 0xffff_0ff1);
    assert_eq!(m.run(), Exit::Hlt);
    let sp = m.cpu.get(Reg::Rsp);
    assert_eq!((m.cpu.get(Reg::Rax), sp), (1, 0x8_0000 - 16));
    assert_eq!(m.ram.read(sp, 4), 0x10_3000_u32.to_le_bytes());
    assert_eq!(m.ram.read(sp + 12, 4), [0x38, 0, 0, 0]);
    assert_eq!(m.cpu.get(Reg::Dr6) & 0xe00f, BT);
}
