// SPDX-License-Identifier: BSD-2-Clause

//! Guests that run.

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;

use super::*;

/// Where a handler is that stands behind a short jump over it at the start of the program.
const HANDLER: u32 = ENTRY as u32 + 2;
const CLOCKS: [Clock; 2] = [Clock::Host, Clock::Instructions];

/// A loop that counts in memory and says so at a port.
fn counting() -> Vec<u8> {
    assemble(16, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(word_ptr(0x500))?;
        a.mov(ax, word_ptr(0x500))?;
        a.out(0x80, ax)?;
        a.jmp(again)
    })
}

#[test]
fn ports_come_out() {
    for clock in CLOCKS {
        let bench = Bench::with_program(clock, 1, &counting());
        for n in 1..1000 {
            assert_eq!(bench.next_out(0), (0x80, n));
        }
        assert_eq!(bench.read(0x500, 2), 999u16.to_le_bytes());
    }
}

#[test]
fn a_turn_may_end_with_an_instruction_that_userland_completes() {
    // A turn is no multiple of the round's three instructions: soon the one that comes out is the last of a turn.
    assert_ne!(crate::turn::QUANTUM % 3, 0);
    let code = assemble(16, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(ax)?;
        a.out(0x80, ax)?;
        a.jmp(again)
    });
    let bench = Bench::with_program(Clock::Instructions, 1, &code);
    for n in 1..=25_000 {
        assert_eq!(bench.next_out(0), (0x80, n));
    }
}

#[test]
fn userland_completes_an_in() {
    let code = assemble(16, |a| {
        a.in_(al, 0x90)?;
        a.out(0x80, al)?;
        a.hlt()
    });
    let bench = Bench::with_program(Clock::Host, 1, &code);
    let exit = bench.run(0).unwrap();
    assert!(exit.inout().is_in() && exit.inout().bytes() == 1);
    assert_eq!((exit.rip, exit.inst_length), (ENTRY, 2));
    bench.set_reg(0, VM_REG_GUEST_RAX, 0x5a);
    assert_eq!(bench.next_out(0), (0x80, 0x5a));
}

#[test]
fn mmio_comes_out_with_its_instruction() {
    let code = assemble(16, |a| {
        a.mov(ax, 0xffff)?;
        a.mov(ds, ax)?;
        // FFFF:4010 lies at 10_4000, which is memory; what userland makes of it shows in the port.
        a.mov(byte_ptr(0x4010), 7)?;
        a.out(0x80, al)?;
        a.hlt()
    });
    let bench = Bench::with_program(Clock::Host, 1, &code);
    bench
        .set(
            VM_MUNMAP_MEMSEG,
            VmMunmap {
                gpa: 0,
                len: MEMORY,
            },
        )
        .unwrap();
    let map = VmMemmap {
        len: 0x10_0000,
        prot: VM_PROT_ALL,
        ..Default::default()
    };
    bench.set(VM_MMAP_MEMSEG, map).unwrap();
    let exit = bench.run(0).unwrap();
    assert_eq!(exit.exitcode, VM_EXITCODE_INST_EMUL, "{exit:?}");
    let emul = exit.inst_emul();
    assert_eq!((emul.gpa, exit.inst_length), (0x10_4000, 5));
    assert_eq!(emul.vie.inst[..5], [0xc6, 0x06, 0x10, 0x40, 7]);
    assert_eq!(bench.reg(0, VM_REG_GUEST_RIP), exit.rip);
    // Asked to, the guest executes the instruction again.
    bench.set(VM_RESTART_INSTRUCTION, 0i32).unwrap();
    assert_eq!(bench.run(0).unwrap().rip, exit.rip);
    // Otherwise it goes on behind it.
    assert_eq!(bench.next_out(0).0, 0x80);
}

/// A kernel says of an access that userland emulates what the instruction is; only the software vmm says what it does.
#[test]
fn an_access_comes_out_decoded_unless_a_kernel_is_stood_in_for() {
    let code = assemble(16, |a| {
        a.mov(ax, 0xffff)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(0x4010), 7)
    });
    let vie = |as_kernel| {
        let bench = Bench::with_options(Options {
            as_kernel,
            ..Options::default()
        });
        let bench = bench.loaded(1, &code);
        let (gpa, len) = (0, MEMORY);
        bench.set(VM_MUNMAP_MEMSEG, VmMunmap { gpa, len }).unwrap();
        let map = VmMemmap {
            len: 0x10_0000,
            prot: VM_PROT_ALL,
            ..Default::default()
        };
        bench.set(VM_MMAP_MEMSEG, map).unwrap();
        let exit = bench.run(0).unwrap();
        assert_eq!(exit.exitcode, VM_EXITCODE_INST_EMUL, "{exit:?}");
        exit.inst_emul().vie
    };
    let kernels = vie(Some(crate::KernelTraits { saves_mtrrs: true }));
    let undecoded = Vie {
        inst: kernels.inst,
        num_valid: 5,
        base_register: VM_REG_LAST,
        index_register: VM_REG_LAST,
        segment_register: VM_REG_LAST,
        ..Vie::default()
    };
    assert_eq!(kernels, undecoded);
    let ours: soft::VieSoft = zerocopy::transmute!(vie(None));
    let stores = soft::VieSoft {
        inst: kernels.inst,
        num_valid: 5,
        transfer: soft::SOFT_TRANSFER_STORE,
        size: 1,
        value: 7,
        ..Default::default()
    };
    assert_eq!(ours, stores);
}

/// The 8259s at vectors 20h and 28h with only the timer allowed, the 8254 as a rate generator of about 1 ms.
fn timer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe),
        (0x43, 0x34),
    ] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.mov(al, 1193i32 & 0xff)?;
    a.out(0x40, al)?;
    a.mov(al, 1193i32 >> 8)?;
    a.out(0x40, al)
}

/// Sleeps between timer interrupts, and counts them at a port.
pub(super) fn ticking() -> Vec<u8> {
    assemble(16, |a| {
        let mut start = a.create_label();
        let mut again = a.create_label();
        a.jmp(start)?;
        a.push(ax)?;
        a.inc(word_ptr(0x500))?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.pop(ax)?;
        a.iret()?;
        a.set_label(&mut start)?;
        a.mov(word_ptr(0x20 * 4), HANDLER)?;
        a.mov(word_ptr(0x20 * 4 + 2), 0)?;
        timer(a)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.hlt()?;
        a.mov(ax, word_ptr(0x500))?;
        a.out(0x80, ax)?;
        a.jmp(again)
    })
}

#[test]
fn the_timer_wakes_a_halted_cpu() {
    for clock in CLOCKS {
        let bench = Bench::with_program(clock, 1, &ticking());
        let began = Instant::now();
        for n in 1..=20 {
            let (port, count) = bench.next_out(0);
            assert_eq!(port, 0x80);
            assert!(count >= n, "{count} < {n}");
        }
        if clock == Clock::Host {
            assert!(
                began.elapsed() >= Duration::from_millis(15),
                "{:?}",
                began.elapsed()
            );
        }
    }
}

/// Starts virtual CPU 1 with INIT and STARTUP, which says at a port that it lives.
fn starting_another() -> Vec<u8> {
    assemble(32, |a| {
        for icr in [0xc4500, 0xc4609] {
            a.mov(dword_ptr(0xfee0_0300u32), icr)?;
        }
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(byte_ptr(0x500), 1)?;
        a.jne(wait)?;
        a.mov(al, 0x11)?;
        a.out(0x80, al)?;
        a.cli()?;
        a.hlt()
    })
}

#[test]
fn another_cpu_is_started() {
    for clock in CLOCKS {
        let bench = Bench::with_program(clock, 2, &starting_another());
        let flat = |regnum, access| {
            let desc = SegDesc::new(0, u32::MAX, access);
            bench
                .set(
                    VM_SET_SEGMENT_DESCRIPTOR,
                    VmSegDesc {
                        cpuid: 0,
                        regnum,
                        desc,
                    },
                )
                .unwrap();
        };
        bench.set_reg(0, VM_REG_GUEST_CR0, 0x21);
        flat(VM_REG_GUEST_CS, 0xc09b);
        for regnum in [VM_REG_GUEST_DS, VM_REG_GUEST_ES, VM_REG_GUEST_SS] {
            flat(regnum, 0xc093);
        }
        let other = assemble(16, |a| {
            a.mov(byte_ptr(0x500), 1)?;
            a.cli()?;
            a.hlt()
        });
        bench.write(0x9000, &other);
        // The local APIC has to be switched on before it sends anything.
        let svr = VmReadwriteKernemuDevice {
            vcpuid: 0,
            access_width: 2,
            gpa: 0xfee0_00f0,
            value: 0x1ff,
        };
        bench.set(VM_SET_KERNEMU_DEV, svr).unwrap();
        bench
            .set(VM_SUSPEND_CPU, VmActivateCpu { vcpuid: 1 })
            .unwrap();
        let (init, targets) = bench.run_with_targets(0).unwrap();
        assert_eq!(
            (init.exitcode, init.ipi().mode),
            (VM_EXITCODE_IPI, 0x500),
            "{init:?}"
        );
        assert_eq!((targets[0], targets[15]), (0b10, 0));
        assert_eq!(bench.run(1).unwrap().exitcode, VM_EXITCODE_DEBUG);
        let (startup, targets) = bench.run_with_targets(0).unwrap();
        assert_eq!(
            (startup.exitcode, startup.ipi().mode, startup.ipi().vector),
            (VM_EXITCODE_IPI, 0x600, 9)
        );
        assert_eq!(targets[0], 0b10);
        bench.start_at(1, 0x900, 0);
        bench
            .set(VM_RESUME_CPU, VmActivateCpu { vcpuid: 1 })
            .unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| bench.run(1).unwrap());
            assert_eq!(bench.next_out(0), (0x80, 0x11));
            // Both halt with interrupts disabled: that is the end.
            let exit = bench.run(0).unwrap();
            assert_eq!(
                (exit.exitcode, exit.suspended().how),
                (VM_EXITCODE_SUSPENDED, VM_SUSPEND_HALT),
                "{exit:?}"
            );
            assert_eq!(other.join().unwrap().exitcode, VM_EXITCODE_SUSPENDED);
        });
    }
}

#[test]
fn suspended_once_and_started_again() {
    for clock in CLOCKS {
        let bench = Bench::with_program(clock, 1, &counting());
        bench.next_out(0);
        assert_eq!(bench.set(VM_REINIT, [0u8; 0]), Err(Errno::EBUSY));
        assert_eq!(bench.suspend(VM_SUSPEND_RESET), Ok(()));
        assert_eq!(bench.suspend(VM_SUSPEND_POWEROFF), Err(Errno::EALREADY));
        let exit = bench.run(0).unwrap();
        assert_eq!(
            (exit.exitcode, exit.suspended().how),
            (VM_EXITCODE_SUSPENDED, VM_SUSPEND_RESET)
        );
        assert_eq!(
            bench.run(0).err(),
            Some(Errno::EINVAL),
            "it has seen that it is suspended"
        );
        assert_eq!(bench.set(VM_REINIT, [0u8; 0]), Ok(()));
        bench
            .set(VM_ACTIVATE_CPU, VmActivateCpu { vcpuid: 0 })
            .unwrap();
        bench.start_at(0, 0, ENTRY);
        assert_eq!(bench.next_out(0), (0x80, 2), "memory is kept");
    }
}

#[test]
fn triple_faults_suspend() {
    for clock in CLOCKS {
        let bench = Bench::with_program(clock, 1, &assemble(16, |a| a.ud2()));
        let desc = SegDesc::default();
        bench
            .set(
                VM_SET_SEGMENT_DESCRIPTOR,
                VmSegDesc {
                    cpuid: 0,
                    regnum: VM_REG_GUEST_IDTR,
                    desc,
                },
            )
            .unwrap();
        let exit = bench.run(0).unwrap();
        assert_eq!(
            (exit.exitcode, exit.suspended().how),
            (VM_EXITCODE_SUSPENDED, VM_SUSPEND_TRIPLEFAULT),
            "{exit:?}"
        );
    }
}

#[test]
fn a_request_reaches_a_running_cpu() {
    let bench = Bench::with_program(
        Clock::Host,
        1,
        &assemble(16, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.jmp(again)
        }),
    );
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            loop {
                let exit = bench.run(0).unwrap();
                match exit.exitcode {
                    VM_EXITCODE_REQIDLE => {}
                    _ => return exit,
                }
            }
        });
        for _ in 0..10 {
            assert_eq!(bench.reg(0, VM_REG_GUEST_RIP), ENTRY);
        }
        bench
            .set(VM_SUSPEND_CPU, VmActivateCpu { vcpuid: -1 })
            .unwrap();
        assert_eq!(runner.join().unwrap().exitcode, VM_EXITCODE_DEBUG);
        bench
            .set(VM_RESUME_CPU, VmActivateCpu { vcpuid: -1 })
            .unwrap();
    });
}

#[test]
fn exceptions_are_injected() {
    let code = assemble(16, |a| {
        let mut start = a.create_label();
        a.jmp(start)?;
        a.mov(al, 0x13)?;
        a.out(0x81, al)?;
        a.hlt()?;
        a.set_label(&mut start)?;
        a.mov(word_ptr(13 * 4), HANDLER)?;
        a.mov(word_ptr(13 * 4 + 2), 0)?;
        a.out(0x80, al)?;
        a.hlt()
    });
    let bench = Bench::with_program(Clock::Host, 1, &code);
    assert_eq!(bench.next_out(0).0, 0x80);
    let exception = VmException {
        vector: 13,
        error_code_valid: 1,
        ..Default::default()
    };
    bench.set(VM_INJECT_EXCEPTION, exception).unwrap();
    let info = bench.get(VM_GET_INTINFO, VmIntinfo::default()).unwrap();
    assert_eq!(
        (info.info1, info.info2),
        (0, 0x8000_030d),
        "no error code in real mode"
    );
    assert_eq!(
        bench.next_out(0),
        (0x81, bench.reg(0, VM_REG_GUEST_RAX) as u32 & 0xff00 | 0x13)
    );
}

/// The control block has the ring apart from the segments.
#[test]
fn no_request_sets_the_ring() {
    let bench = Bench::with_program(Clock::Host, 1, &[0xf4]);
    let ring_after = |access| {
        let desc = |access| VmSegDesc {
            cpuid: 0,
            regnum: VM_REG_GUEST_SS,
            desc: SegDesc::new(0, 0xffff_ffff, access),
        };
        bench.set(VM_SET_SEGMENT_DESCRIPTOR, desc(access)).unwrap();
        let got = bench.get(VM_GET_SEGMENT_DESCRIPTOR, desc(0)).unwrap();
        got.desc.access >> 5 & 3
    };
    assert_eq!(ring_after(0xf3), 0);
    bench.set_reg(0, VM_REG_GUEST_CR0, 0x11);
    assert_eq!(ring_after(0xf3), 0);
    bench.set_reg(0, VM_REG_GUEST_RFLAGS, 0x2_0002);
    assert_eq!(ring_after(0x93), 3);
}
