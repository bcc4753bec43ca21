//! Small programs in every mode, run whole and in pieces.

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
        assert_eq!(exit, Exit::Hlt, "rip {:#x} cr2 {:#x}", m.cpu.get(Reg::Rip), m.cpu.get(Reg::Cr2));
        m
    };
    let whole = run(1_000_000);
    for step in [1, 2, 3, 7] {
        let pieces = run(step);
        assert_eq!(whole.state(), pieces.state(), "in steps of {step}");
        assert!(whole.ram.read(0, RAM_SIZE) == pieces.ram.read(0, RAM_SIZE), "memory differs in steps of {step}");
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
        a.mov(rax, 0x8000_0000_0000_0u64 >> 4).unwrap();
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
    for (code, vector) in [(&[0x31u8, 0xc9, 0xf7, 0xf1][..], 0), (&[0x0f, 0x0b], 6), (&[0xcc], 3), (&[0xcd, 0x80], 0x80)] {
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
    m.cpu.set_segment(Seg::Cs, Segment { selector: 0x1000, base: 0x1_0000, limit: 0xffff, access: 0x9b });
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
    assert_eq!(m.run(), Exit::Out { port: 0x80, size: 1, value: 0x42, len: 2 });
    assert_eq!(m.cpu.get(Reg::Rip), CODE + 5);
    m.cpu.skip(2);
    let Exit::Mmio(mmio) = m.run() else { panic!("no MMIO exit") };
    assert_eq!((mmio.gpa, mmio.write, mmio.size, mmio.len), (0x3000_0008, true, 4, 3));
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
