// SPDX-License-Identifier: BSD-2-Clause

//! Small programs in every mode, run whole and in pieces.

#![expect(unsafe_code, reason = "memory for the guest, by address")]

mod machine;

use iced_x86::code_asm::*;
use machine::*;
use vmm_cpu::*;

/// Runs a long-mode program whole and one instruction at a time, and compares everything.
fn long_both(f: impl Fn(&mut CodeAssembler)) -> Machine {
    let run = |step: u64| {
        let mut m = Machine::long();
        m.load(64, |a| f(a));
        let exit = m.run_by(step);
        assert_eq!(
            exit,
            Exit::Hlt,
            "rip {:#x} cr2 {:#x}",
            m.cpu.get(Reg::Rip),
            m.cpu.get(Reg::Cr2)
        );
        m
    };
    let whole = run(1_000_000);
    for step in [1, 2, 3, 7] {
        let pieces = run(step);
        assert_eq!(whole.state(), pieces.state(), "in steps of {step}");
        assert!(
            whole.ram.read(0, RAM_SIZE) == pieces.ram.read(0, RAM_SIZE),
            "memory differs in steps of {step}"
        );
    }
    whole
}

#[test]
fn loop_sums() {
    let m = long_both(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 1000).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::Rax), 500_500);
    assert_eq!(m.cpu.retired(), 3 + 3000);
}

#[test]
fn stack_call_and_memory() {
    let m = long_both(|a| {
        let mut f = a.create_label();
        a.mov(rdi, 0x20_0000u64).unwrap();
        a.mov(eax, 5).unwrap();
        a.call(f).unwrap();
        a.call(f).unwrap();
        a.mov(rbx, qword_ptr(rdi)).unwrap();
        a.mov(rcx, qword_ptr(rdi + 0xffe)).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut f).unwrap();
        a.push(rbp).unwrap();
        a.mov(rbp, rsp).unwrap();
        a.imul_3(eax, eax, 7).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        // Across a page boundary.
        a.mov(qword_ptr(rdi + 0xffe), rax).unwrap();
        a.add(dword_ptr(rdi + 0xffe), 1).unwrap();
        a.leave().unwrap();
        a.ret().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::Rbx), 245);
    assert_eq!(m.cpu.get(Reg::Rcx), 246);
    assert_eq!(m.cpu.get(Reg::Rsp), STACK);
}

#[test]
fn strings() {
    let m = long_both(|a| {
        a.cld().unwrap();
        a.mov(edi, 0x20_0ff3).unwrap();
        a.mov(ecx, 10_000).unwrap();
        a.mov(eax, 0x41).unwrap();
        a.rep().stosb().unwrap();
        a.mov(esi, 0x20_0ff3).unwrap();
        a.mov(edi, 0x21_0001).unwrap();
        a.mov(ecx, 1250).unwrap();
        a.rep().movsq().unwrap();
        a.mov(byte_ptr(0x21_0001 + 777), 0).unwrap();
        a.mov(edi, 0x21_0001).unwrap();
        a.mov(ecx, 10_000).unwrap();
        a.xor(eax, eax).unwrap();
        a.repne().scasb().unwrap();
        a.mov(rbx, rcx).unwrap();
        a.mov(esi, 0x20_0ff3).unwrap();
        a.mov(edi, 0x21_0001).unwrap();
        a.mov(ecx, 10_000).unwrap();
        a.repe().cmpsb().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::Rbx), 10_000 - 778);
    assert_eq!(m.cpu.get(Reg::Rcx), 10_000 - 778);
    assert_eq!(m.ram.read(0x21_0001 + 9999, 2), [0x41, 0]);
}

#[test]
fn page_fault_is_precise() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(rax, 0x0008_0000_0000_0000_u64 >> 4).unwrap();
        a.mov(ebx, 0x4000_0000).unwrap();
        a.add(dword_ptr(rbx), 1).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 14);
    assert_eq!(m.cpu.get(Reg::Cr2), 0x4000_0000);
    let top = m.cpu.get(Reg::Rsp);
    assert_eq!(top, STACK - 48);
    assert_eq!(m.ram.read64(top), 2);
    assert_eq!(m.ram.read64(top + 8), CODE + 15);
    assert_eq!(m.ram.read64(top + 16), 8);
}

#[test]
fn divide_error_and_undefined() {
    for (code, vector) in [
        (&[0x31u8, 0xc9, 0xf7, 0xf1][..], 0),
        (&[0x0f, 0x0b], 6),
        (&[0xcc], 3),
        (&[0xcd, 0x80], 0x80),
    ] {
        let mut m = Machine::long();
        m.ram.write(CODE, code);
        assert_eq!(m.run(), Exit::Hlt);
        assert_eq!(m.cpu.get(Reg::Rax), vector);
    }
}

#[test]
fn triple_fault() {
    let mut m = Machine::long();
    m.cpu.set_idtr(Table { base: 0, limit: 0 });
    m.ram.write(CODE, &[0x0f, 0x0b]);
    assert_eq!(m.run(), Exit::Shutdown);
}

#[test]
fn interrupt_waits_for_sti_and_its_shadow() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(ebx, 1).unwrap();
        a.sti().unwrap();
        a.mov(ebx, 2).unwrap();
        a.mov(ebx, 3).unwrap();
        a.hlt().unwrap();
    });
    m.bus.events.push_back(Event::Interrupt(0x55));
    m.cpu.signals().notify();
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 0x55);
    assert_eq!(m.cpu.get(Reg::Rbx), 2);
}

#[test]
fn user_mode_and_syscall() {
    let m = long_both(|a| {
        let mut user = a.create_label();
        let mut kernel = a.create_label();
        a.mov(ecx, 0xc000_0081u32).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(edx, 0x001b_0008).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0xc000_0082u32).unwrap();
        a.lea(rax, qword_ptr(kernel)).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.push(32 | 3).unwrap();
        a.push(0x7_0000).unwrap();
        a.push(0x202).unwrap();
        a.push(40 | 3).unwrap();
        a.lea(rax, qword_ptr(user)).unwrap();
        a.push(rax).unwrap();
        a.iretq().unwrap();
        a.set_label(&mut user).unwrap();
        a.mov(r8, cs).unwrap();
        a.syscall().unwrap();
        a.set_label(&mut kernel).unwrap();
        a.mov(r9, cs).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::R8), 43);
    assert_eq!(m.cpu.get(Reg::R9), 8);
    assert_eq!(m.cpu.get(Reg::R11), 0x202);
}

#[test]
fn code_that_changes_itself() {
    let m = long_both(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut top).unwrap();
        // Raises the immediate of the very next instruction.
        a.inc(byte_ptr(CODE + 16)).unwrap();
        a.add(ebx, 1).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::Rbx), 2 + 3 + 4);
}

#[test]
fn real_mode_reset_vector() {
    let mut m = Machine::new();
    m.cpu.set_segment(
        Seg::Cs,
        Segment {
            selector: 0x1000,
            base: 0x1_0000,
            limit: 0xffff,
            access: 0x9b,
        },
    );
    m.cpu.set(Reg::Rip, 0);
    m.load_at(0x1_0000, 16, |a| {
        a.mov(ax, 0x2000).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x100).unwrap();
        a.mov(word_ptr(0x10), 0x1234).unwrap();
        a.push(word_ptr(0x10)).unwrap();
        a.pop(bx).unwrap();
        a.int(0x21).unwrap();
        a.hlt().unwrap();
    });
    // Vector 0x21 at 0x3000:0x0005: inc bx, iret.
    m.ram.write(0x21 * 4, &[5, 0, 0, 0x30]);
    m.ram.write(0x3_0005, &[0x43, 0xcf]);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rbx), 0x1235);
    assert_eq!(m.cpu.get(Reg::Rsp), 0x100);
    assert_eq!(m.ram.read(0x2_0010, 2), [0x34, 0x12]);
}

#[test]
fn protected_mode_far_call_and_interrupt() {
    let mut m = Machine::protected();
    m.load(32, |a| {
        a.mov(eax, 7).unwrap();
        a.mov(dword_ptr(0x20_0000), eax).unwrap();
        a.push(dword_ptr(0x20_0000)).unwrap();
        a.pop(ebx).unwrap();
        a.db(&[0x9a, 0x00, 0x20, 0x10, 0x00, 0x08, 0x00]).unwrap();
        a.hlt().unwrap();
    });
    m.load_at(0x10_2000, 32, |a| {
        a.add(ebx, 1).unwrap();
        a.retf().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rbx), 8);
    assert_eq!(m.cpu.get(Reg::Rsp), STACK);
}

#[test]
fn exits_are_precise() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(eax, 0x42).unwrap();
        a.out(0x80, al).unwrap();
        a.mov(ebx, 0x3000_0000).unwrap();
        a.mov(dword_ptr(rbx + 8), eax).unwrap();
        a.mov(ecx, dword_ptr(rbx + 12)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(
        m.run(),
        Exit::Out {
            port: 0x80,
            size: 1,
            value: 0x42,
            len: 2
        }
    );
    assert_eq!(m.cpu.get(Reg::Rip), CODE + 5);
    m.cpu.skip(2);
    let Exit::Mmio(mmio) = m.run() else {
        panic!("no MMIO exit")
    };
    assert_eq!(
        (mmio.gpa, mmio.write, mmio.size, mmio.len),
        (0x3000_0008, true, 4, 3)
    );
    assert_eq!(mmio.bytes[..3], [0x89, 0x43, 0x08]);
    m.cpu.skip(3);
    m.bus.mmio = true;
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rcx), 0x5566_7788);
    assert_eq!(m.cpu.retired(), 6);
}

#[test]
fn single_step_trap() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(ebx, 1).unwrap();
        a.mov(ebx, 2).unwrap();
        a.hlt().unwrap();
    });
    m.cpu.set(Reg::Rflags, 2 | flag::TF);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 1);
    assert_eq!(m.cpu.get(Reg::Rbx), 1);
    assert_eq!(m.cpu.get(Reg::Dr6) & 0x4000, 0x4000);
    assert_eq!(m.ram.read64(m.cpu.get(Reg::Rsp)), CODE + 5);
}

#[test]
fn sse_moves_and_arithmetic() {
    let m = long_both(|a| {
        a.mov(eax, 3).unwrap();
        a.cvtsi2sd(xmm0, eax).unwrap();
        a.addsd(xmm0, xmm0).unwrap();
        a.movups(xmmword_ptr(0x20_0ff8), xmm0).unwrap();
        a.movups(xmm1, xmmword_ptr(0x20_0ff8)).unwrap();
        a.cvttsd2si(rbx, xmm1).unwrap();
        a.fninit().unwrap();
        a.fld1().unwrap();
        a.fstp(qword_ptr(0x20_2000)).unwrap();
        a.mov(rcx, qword_ptr(0x20_2000)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::Rbx), 6);
    assert_eq!(f64::from_bits(m.cpu.get(Reg::Rcx)), 1.0);
}

#[test]
fn instruction_that_straddles_pages() {
    // A jump whose displacement lies in the next page, taken and not taken in turn from two places.
    for at in 0xff9..0x1000u64 {
        let run = |step| {
            let mut m = Machine::long();
            m.load_at(0x10_0000 + at, 64, |a| {
                let mut over = a.create_label();
                let mut top = a.create_label();
                a.set_label(&mut top).unwrap();
                a.inc(ecx).unwrap();
                a.test(cl, 1).unwrap();
                a.je(over).unwrap();
                a.add(ebx, dword_ptr(0x20_0000)).unwrap();
                a.add(qword_ptr(0x20_0000), 0x1234_5678).unwrap();
                a.set_label(&mut over).unwrap();
                a.cmp(ecx, 100).unwrap();
                a.jne(top).unwrap();
                a.hlt().unwrap();
            });
            m.cpu.set(Reg::Rip, 0x10_0000 + at);
            assert_eq!(m.run_by(step), Exit::Hlt);
            m
        };
        assert_eq!(run(100_000).state(), run(1).state());
        assert_eq!(run(100_000).ram.read64(0x20_0000), 50 * 0x1234_5678);
    }
}

#[test]
fn straddling_instruction_that_changes() {
    let mut m = Machine::long();
    // MOV EAX, imm32 with two bytes in the first page; HLT.
    m.ram
        .write(0x10_0ffe, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    let mut run = |write: Option<(u64, &[u8])>| {
        if let Some((at, bytes)) = write {
            m.ram.write(at, bytes);
            m.mem.mark_written(at, bytes.len() as u64);
        }
        m.cpu.set(Reg::Rip, 0x10_0ffe);
        assert_eq!(m.run(), Exit::Hlt);
        (m.cpu.get(Reg::Rax), m.cpu.get(Reg::Rcx))
    };
    assert_eq!(run(None), (0x4433_2211, 0));
    assert_eq!(run(None), (0x4433_2211, 0));
    assert_eq!(run(Some((0x10_1000, &[0x55]))), (0x4433_5511, 0));
    assert_eq!(run(Some((0x10_0fff, &[0x66]))), (0x4433_5566, 0));
    // Beside it, in either page.
    assert_eq!(run(Some((0x10_0ffd, &[0]))), (0x4433_5566, 0));
    assert_eq!(run(Some((0x10_1005, &[0]))), (0x4433_5566, 0));
    // HLT; and MOV ECX instead.
    assert_eq!(run(Some((0x10_0ffe, &[0xb9]))), (0x4433_5566, 0x4433_5566));
    assert_eq!(run(Some((0x10_0ffe, &[0xf4]))), (0x4433_5566, 0x4433_5566));
}

/// A row of conditional branches, each of them taken in its time.
#[test]
fn branches_that_leave_the_middle() {
    let m = long_both(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.set_label(&mut top).unwrap();
        for n in 0..9 {
            let mut over = a.create_label();
            a.nop().unwrap();
            a.mov(edx, ecx).unwrap();
            a.and(edx, 15).unwrap();
            if n % 2 == 0 {
                a.cmp(edx, n).unwrap();
            } else {
                a.sub(edx, n).unwrap();
            }
            a.je(over).unwrap();
            a.add(eax, 1 << n).unwrap();
            a.set_label(&mut over).unwrap();
        }
        a.inc(ecx).unwrap();
        a.cmp(ecx, 160).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.cpu.get(Reg::Rax), 511 * 150);
    assert_eq!(m.cpu.retired(), 3 + 160 * (9 * 6 + 3) - 90);
}

/// Maps one 4 KiB page at 1 GiB + `n` pages in a machine from `Machine::long`.
fn map_page(m: &Machine, n: u64, entry: u64) {
    let (pd, pt) = (0xa000, 0xb000);
    m.ram.write64(TABLES + 0x1000 + 8, pd | 7);
    m.ram.write64(pd, pt | 7);
    m.ram.write64(pt + n * 8, entry);
}

const PAGED: u64 = 0x4000_0000;

#[test]
fn page_protection() {
    let nx = 1u64 << 63;
    // Entry, user access, write, fetch -> error code or none.
    let cases = [
        (0x30_0000 | 1, false, true, false, Some(3)),
        (0x30_0000 | 1, true, false, false, Some(5)),
        (0x30_0000 | 3, false, true, false, None),
        (0x30_0000 | 7, true, true, false, None),
        (0x30_0000 | 5, true, true, false, Some(7)),
        (0, true, true, false, Some(6)),
        (0x30_0000 | 7 | nx, true, false, true, Some(0x15)),
        (0x30_0000 | 1 << 51 | 7, true, false, false, Some(0xd)),
    ];
    for (entry, user, write, exec, expected) in cases {
        let m = Machine::long();
        map_page(&m, 3, entry);
        let paging = m.cpu.paging();
        let result = m
            .cpu
            .translate(&paging, PAGED + 0x3010, Access { write, exec, user }, true);
        assert_eq!(
            result,
            expected.map_or(Ok(0x30_0010), |error| Err(PageFault { error })),
            "{entry:#x}"
        );
        let after = m.ram.read64(0xb000 + 24);
        let marks = if expected.is_some() {
            0
        } else if write {
            0x60
        } else {
            0x20
        };
        assert_eq!(after, entry | marks, "accessed and dirty bits");
    }
}

#[test]
fn smap_and_smep() {
    let mut m = Machine::long();
    map_page(&m, 0, 0x30_0000 | 7);
    m.cpu
        .set(Reg::Cr4, m.cpu.get(Reg::Cr4) | cr4::SMAP | cr4::SMEP);
    // The program's own pages are user pages in this machine: make the first GiB the supervisor's.
    m.ram.write64(TABLES, (TABLES + 0x1000) | 7);
    for i in 0..512 {
        m.ram.write64(TABLES + 0x2000 + i * 8, i << 21 | 0x83);
    }
    m.load(64, |a| {
        a.mov(ebx, PAGED as u32).unwrap();
        a.stac().unwrap();
        a.mov(dword_ptr(rbx), 5).unwrap();
        a.mov(ecx, dword_ptr(rbx)).unwrap();
        a.clac().unwrap();
        a.mov(edx, dword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!((m.cpu.get(Reg::Rax), m.cpu.get(Reg::Rcx)), (14, 5));
    assert_eq!(m.ram.read64(m.cpu.get(Reg::Rsp)), 1);
    m.cpu.set(Reg::Rip, PAGED);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.ram.read64(m.cpu.get(Reg::Rsp)), 0x11);
}

/// CPUID, not CR4, says whether CLAC and STAC are there, and only CPL 0 may execute them.
#[test]
fn stac_and_clac_do_not_ask_for_smap() {
    let mut m = Machine::long();
    assert_eq!(m.cpu.get(Reg::Cr4) & cr4::SMAP, 0);
    m.load(64, |a| {
        a.stac().unwrap();
        a.pushfq().unwrap();
        a.clac().unwrap();
        a.pushfq().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.ram.read64(STACK - 8) & flag::AC, flag::AC);
    assert_eq!(m.ram.read64(STACK - 16) & flag::AC, 0);
    for code in [[0x0f, 0x01, 0xcb], [0x0f, 0x01, 0xca]] {
        let mut m = Machine::long();
        let user = |selector, access| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access,
        };
        m.cpu.set_segment(Seg::Cs, user(43, 0xa0fb));
        m.cpu.set_segment(Seg::Ss, user(35, 0xc0f3));
        m.ram.write(CODE, &code);
        assert_eq!(m.run(), Exit::Hlt);
        assert_eq!(m.cpu.get(Reg::Rax), 6);
    }
}

#[test]
fn rdpid_reads_tsc_aux() {
    // RAX, and ECX of 32-bit code, where the upper half is not to be seen.
    let mut m = Machine::long();
    m.cpu.set(Reg::TscAux, 0xfedc_ba98);
    m.cpu.set(Reg::Rax, u64::MAX);
    m.load(64, |a| {
        a.rdpid(rax).unwrap();
        a.rdpid(r9).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 0xfedc_ba98);
    assert_eq!(m.cpu.get(Reg::R9), 0xfedc_ba98);
    let mut m = Machine::protected();
    m.cpu.set(Reg::TscAux, 0x8000_0001);
    m.load(32, |a| {
        a.rdpid(ecx).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rcx), 0x8000_0001);
}

#[test]
fn invlpg_forgets_data_and_code() {
    let mut m = Machine::long();
    map_page(&m, 0, 0x30_0000 | 7);
    // Two pages with a function each: mov eax, 1 or 2; ret.
    m.ram.write(0x30_0000, &[0xb8, 1, 0, 0, 0, 0xc3]);
    m.ram.write(0x30_1000, &[0xb8, 2, 0, 0, 0, 0xc3]);
    m.load(64, |a| {
        a.mov(ebx, PAGED as u32).unwrap();
        a.call(rbx).unwrap();
        a.mov(esi, eax).unwrap();
        a.mov(ebp, dword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(0xb000), 0x30_1007).unwrap();
        a.invlpg(byte_ptr(rbx)).unwrap();
        a.call(rbx).unwrap();
        a.mov(edi, dword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!((m.cpu.get(Reg::Rsi), m.cpu.get(Reg::Rax)), (1, 2));
    assert_eq!((m.cpu.get(Reg::Rbp), m.cpu.get(Reg::Rdi)), (0x1b8, 0x2b8));
}

#[test]
fn one_page_of_code_at_two_addresses() {
    let mut m = Machine::long();
    // The page at 0x30_0000 is mapped twice, each time with another page behind it.
    for (n, page) in [
        (0, 0x30_0000),
        (1, 0x30_1000),
        (4, 0x30_0000),
        (5, 0x30_2000),
    ] {
        map_page(&m, n, page | 7);
    }
    // ADD EAX begins in the first page and ends in the other.
    m.ram.write(0x30_0ffe, &[0x90, 0x83]);
    m.ram.write(0x30_1000, &[0xc0, 1, 0xc3]);
    m.ram.write(0x30_2000, &[0xc0, 16, 0xc3]);
    m.load(64, |a| {
        let mut top = a.create_label();
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 3).unwrap();
        a.mov(ebx, PAGED as u32 + 0xffe).unwrap();
        a.mov(ebp, PAGED as u32 + 0x4ffe).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(rbx).unwrap();
        a.call(rbp).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 3 * 17);
}

#[test]
fn device_writes_are_seen_by_code() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(eax, 1).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 1);
    m.ram.write(CODE + 1, &[9]);
    m.mem.mark_written(CODE + 1, 1);
    m.cpu.set(Reg::Rip, CODE);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rax), 9);
}

#[test]
fn dirty_pages() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(dword_ptr(0x20_0000), 1).unwrap();
        a.hlt().unwrap();
    });
    for _ in 0..2 {
        assert!(!m.mem.is_dirty(0x20_0000));
        m.cpu.set(Reg::Rip, CODE);
        assert_eq!(m.run(), Exit::Hlt);
        assert!(m.mem.is_dirty(0x20_0000) && !m.mem.is_dirty(0x20_1000));
        m.mem.clear_dirty(0, RAM_SIZE as u64);
    }
}

/// Nested page faults show in the exits, and nowhere else; an event that meets one waits.
#[test]
fn pages_come_as_they_are_needed() {
    let machine = || {
        let mut m = Machine::long();
        m.load(64, |a| {
            a.mov(rsi, 0x20_0ff0_u64).unwrap();
            a.mov(rdi, 0x30_0ff8_u64).unwrap();
            a.mov(ecx, 0x400).unwrap();
            a.rep().movsq().unwrap();
            a.push(qword_ptr(0x28_0ffc)).unwrap();
            a.int(0x41).unwrap();
        });
        m.ram.write64(0x20_0ff8, 0x1234);
        m
    };
    let mut whole = machine();
    assert_eq!(whole.run(), Exit::Hlt);

    let mut m = machine();
    m.mem.unmap(0, RAM_SIZE as u64).unwrap();
    // SAFETY: as where it was mapped first.
    unsafe { m.mem.map_lazily(0, m.ram.host, RAM_SIZE as u64, true) }.unwrap();
    let mut faults = Vec::new();
    let mut interrupted = Vec::new();
    while let Exit::NestedFault { gpa } = m.run() {
        faults.push(gpa & !0xfff);
        interrupted.extend(m.cpu.pending());
    }
    assert_eq!(m.state(), whole.state());
    let pages = faults.len();
    faults.sort_unstable();
    faults.dedup();
    assert_eq!(faults.len(), pages, "each page once: {faults:x?}");
    for page in [CODE, IDT, 0x20_0000, 0x30_2000, 0x28_1000, STACK - 0x1000] {
        assert!(faults.contains(&page), "{page:x}: {faults:x?}");
    }
    // The gate, its segment, and the stack was there.
    let int = Pending::Software {
        vector: 0x41,
        len: 2,
    };
    assert_eq!(interrupted, [int; 2]);
}

#[test]
fn hardware_breakpoints() {
    let mut m = Machine::long();
    m.load(64, |a| {
        a.mov(ebx, 1).unwrap();
        a.mov(dword_ptr(0x20_0004), ebx).unwrap();
        a.mov(ebx, 2).unwrap();
        a.hlt().unwrap();
    });
    m.cpu.set(Reg::Dr0, 0x20_0004);
    m.cpu.set(Reg::Dr7, 0x400 | 1 | 0xd << 16);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!((m.cpu.get(Reg::Rax), m.cpu.get(Reg::Rbx)), (1, 1));
    assert_eq!(m.ram.read64(m.cpu.get(Reg::Rsp)), CODE + 12);
    assert_eq!(m.cpu.get(Reg::Dr6) & 0xf, 1);
    m.cpu.set(Reg::Dr0, CODE + 12);
    m.cpu.set(Reg::Dr7, 0x400 | 1);
    m.cpu.set(Reg::Rip, CODE);
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!((m.cpu.get(Reg::Rax), m.cpu.get(Reg::Rbx)), (1, 1));
    assert_eq!(m.ram.read64(m.cpu.get(Reg::Rsp)), CODE + 12);
}

#[test]
fn task_switch_and_back() {
    let mut m = Machine::protected();
    let (old, new) = (0x6000u64, 0x6100u64);
    m.ram.write64(GDT + 40, 0x0000_8b00_0000_0067 | old << 16);
    m.ram.write64(GDT + 48, 0x0000_8900_0000_0067 | new << 16);
    m.cpu.set_segment(
        Seg::Tr,
        Segment {
            selector: 40,
            base: old,
            limit: 0x67,
            access: 0x8b,
        },
    );
    for (offset, value) in [
        (0x20, 0x10_3000u32),
        (0x24, 2),
        (0x28, 77),
        (0x38, 0x8_0000),
    ] {
        m.ram.write(new + offset, &value.to_le_bytes());
    }
    for (i, selector) in [16u32, 8, 16, 16, 16, 16].iter().enumerate() {
        m.ram
            .write(new + 0x48 + 4 * i as u64, &selector.to_le_bytes());
    }
    m.load(32, |a| {
        a.mov(ebx, 5).unwrap();
        a.db(&[0x9a, 0, 0, 0, 0, 48, 0]).unwrap();
        a.add(ebx, 1).unwrap();
        a.hlt().unwrap();
    });
    m.load_at(0x10_3000, 32, |a| {
        a.mov(dword_ptr(0x20_0000), eax).unwrap();
        a.iretd().unwrap();
    });
    assert_eq!(m.run(), Exit::Hlt);
    assert_eq!(m.cpu.get(Reg::Rbx), 6);
    assert_eq!(m.ram.read64(0x20_0000), 77);
    assert_eq!(m.cpu.segment(Seg::Tr).selector, 40);
    assert_eq!(m.cpu.get(Reg::Cr0) & cr0::TS, cr0::TS);
}

/// Runs the same memory from several threads until all have halted.
fn run_together(first: Machine, cpus: usize) -> Machine {
    let copies: Vec<Cpu> = (1..cpus)
        .map(|i| {
            let mut cpu = Cpu::new(first.mem.clone());
            for r in [
                Reg::Cr0,
                Reg::Cr3,
                Reg::Cr4,
                Reg::Efer,
                Reg::Rip,
                Reg::Rflags,
            ] {
                cpu.set(r, first.cpu.get(r));
            }
            for seg in Seg::ALL {
                cpu.set_segment(seg, first.cpu.segment(seg));
            }
            cpu.set_gdtr(first.cpu.gdtr());
            cpu.set_idtr(first.cpu.idtr());
            cpu.set(Reg::Rsp, STACK - 0x1000 * i as u64);
            cpu.set(Reg::R8, i as u64);
            cpu
        })
        .collect();
    let Machine {
        mut cpu,
        mut bus,
        mem,
        ram,
    } = first;
    std::thread::scope(|scope| {
        for mut cpu in copies {
            scope.spawn(move || {
                let mut bus = TestBus::default();
                assert_eq!(cpu.run(&mut bus, u64::MAX), Exit::Hlt);
            });
        }
        assert_eq!(cpu.run(&mut bus, u64::MAX), Exit::Hlt);
    });
    Machine { cpu, bus, mem, ram }
}

#[test]
fn locked_operations_of_two_processors() {
    let mut m = Machine::long();
    m.load(64, |a| {
        let mut top = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 100_000).unwrap();
        a.set_label(&mut top).unwrap();
        a.lock().inc(dword_ptr(0x20_0000)).unwrap();
        a.mov(edx, 3).unwrap();
        a.lock().xadd(qword_ptr(0x20_0008), rdx).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(eax, dword_ptr(0x20_0010)).unwrap();
        a.lea(edx, dword_ptr(rax + 2)).unwrap();
        a.lock().cmpxchg(dword_ptr(0x20_0010), edx).unwrap();
        a.jne(again).unwrap();
        // Unaligned within a page, and across two.
        a.lock().add(dword_ptr(0x20_0021), 1).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let m = run_together(m, 2);
    assert_eq!(m.ram.read64(0x20_0000), 200_000);
    assert_eq!(m.ram.read64(0x20_0008), 600_000);
    assert_eq!(m.ram.read64(0x20_0010), 400_000);
    assert_eq!(m.ram.read(0x20_0021, 4), 200_000u32.to_le_bytes());
}

#[test]
fn one_processor_changes_the_code_of_another() {
    let mut m = Machine::long();
    m.load(64, |a| {
        let mut writer = a.create_label();
        let mut wait = a.create_label();
        let mut call = a.create_label();
        let mut answer = a.create_label();
        let mut function = a.create_label();
        a.test(r8d, r8d).unwrap();
        a.jne(writer).unwrap();
        // The caller: round after round, waits for the number of the round and expects it from the function.
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut call).unwrap();
        a.inc(ebx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(0x20_0000), ebx).unwrap();
        a.jne(wait).unwrap();
        a.mov(edi, 0x10_8000).unwrap();
        a.call(rdi).unwrap();
        a.sub(eax, ebx).unwrap();
        a.add(dword_ptr(0x20_0008), eax).unwrap();
        a.mov(dword_ptr(0x20_0004), ebx).unwrap();
        a.cmp(ebx, 1000).unwrap();
        a.jne(call).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut writer).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut function).unwrap();
        a.inc(ebx).unwrap();
        a.mov(dword_ptr(0x10_8001), ebx).unwrap();
        a.mov(dword_ptr(0x20_0000), ebx).unwrap();
        a.set_label(&mut answer).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(0x20_0004), ebx).unwrap();
        a.jne(answer).unwrap();
        a.cmp(ebx, 1000).unwrap();
        a.jne(function).unwrap();
        a.hlt().unwrap();
    });
    m.ram.write(0x10_8000, &[0xb8, 0, 0, 0, 0, 0xc3]);
    let m = run_together(m, 2);
    assert_eq!(
        m.ram.read(0x20_0004, 8),
        [0xe8, 3, 0, 0, 0, 0, 0, 0],
        "every round saw the code of its own number"
    );
}
