// SPDX-License-Identifier: BSD-2-Clause

//! How fast the processor is: micro guests, each run for a fixed number of instructions. `cargo run --release --example mips`.

#![expect(unsafe_code, reason = "memory for the guest, by address")]

#[path = "../tests/machine/mod.rs"]
mod machine;

use iced_x86::code_asm::*;
use machine::*;
use vmm_cpu::*;

/// Seconds of processor time that this thread has used: the host may have other things to do.
fn seconds() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Runs `n` instructions and prints the rate.
fn measure(name: &str, n: u64, mut m: Machine) {
    let start = seconds();
    let exit = m.cpu.run(&mut m.bus, n);
    let time = seconds() - start;
    assert_eq!(
        exit,
        Exit::Limit,
        "{name}: rip {:#x} cr2 {:#x}",
        m.cpu.get(Reg::Rip),
        m.cpu.get(Reg::Cr2)
    );
    println!("{name:12} {:8.1} MIPS", m.cpu.retired() as f64 / time / 1e6);
}

fn guest(f: impl FnOnce(&mut CodeAssembler)) -> Machine {
    let mut m = Machine::long();
    m.load(64, f);
    m
}

fn alu(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.mov(rcx, -1i64).unwrap();
    a.set_label(&mut top).unwrap();
    a.add(rax, rcx).unwrap();
    a.mov(rdx, rax).unwrap();
    a.shr(rdx, 7).unwrap();
    a.xor(rax, rdx).unwrap();
    a.lea(rbx, qword_ptr(rax + rdx * 4 + 5)).unwrap();
    a.imul_2(rbx, rdx).unwrap();
    a.and(rbx, 0xffff).unwrap();
    a.dec(rcx).unwrap();
    a.jne(top).unwrap();
}

fn memory(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.mov(rdi, 0x20_0000u64).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rax, qword_ptr(rdi + rcx * 8)).unwrap();
    a.add(rax, 3).unwrap();
    a.mov(qword_ptr(rdi + rcx * 8 + 0x1_0000), rax).unwrap();
    a.add(dword_ptr(rdi + rcx * 4), 1).unwrap();
    a.movzx(edx, byte_ptr(rdi + rcx)).unwrap();
    a.inc(rcx).unwrap();
    a.and(ecx, 0xfff).unwrap();
    a.jmp(top).unwrap();
}

fn calls(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    let mut f = a.create_label();
    a.set_label(&mut top).unwrap();
    a.call(f).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut f).unwrap();
    a.push(rbp).unwrap();
    a.mov(rbp, rsp).unwrap();
    a.push(rbx).unwrap();
    a.add(rax, rbx).unwrap();
    a.pop(rbx).unwrap();
    a.pop(rbp).unwrap();
    a.ret().unwrap();
}

fn indirect(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.lea(rbx, qword_ptr(top)).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut top).unwrap();
    for _ in 0..8 {
        let mut to = a.create_label();
        a.lea(rbx, qword_ptr(to)).unwrap();
        a.inc(ecx).unwrap();
        a.test(ecx, 7).unwrap();
        a.jmp(rbx).unwrap();
        a.set_label(&mut to).unwrap();
    }
    a.jmp(top).unwrap();
}

fn chains(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    for i in 0..16 {
        let mut to = a.create_label();
        a.add(eax, i).unwrap();
        a.cmp(eax, ecx).unwrap();
        a.je(to).unwrap();
        a.mov(edx, eax).unwrap();
        a.test(edx, edx).unwrap();
        a.js(to).unwrap();
        a.set_label(&mut to).unwrap();
    }
    a.jmp(top).unwrap();
}

fn syscalls(a: &mut CodeAssembler) {
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
    a.lea(rcx, qword_ptr(user)).unwrap();
    a.mov(r11d, 2).unwrap();
    a.set_label(&mut kernel).unwrap();
    a.swapgs().unwrap();
    a.swapgs().unwrap();
    a.sysretq().unwrap();
    a.set_label(&mut user).unwrap();
    a.mov(eax, 39).unwrap();
    a.syscall().unwrap();
    a.jmp(user).unwrap();
}

/// Every iteration takes a page fault, whose handler drops the error code and moves on.
fn faults(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    let mut handler = a.create_label();
    a.lea(rax, qword_ptr(handler)).unwrap();
    a.mov(word_ptr(IDT + 14 * 16), ax).unwrap();
    a.shr(rax, 16).unwrap();
    a.mov(word_ptr(IDT + 14 * 16 + 6), ax).unwrap();
    a.mov(ebx, 0x4000_0000).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(eax, dword_ptr(rbx)).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut handler).unwrap();
    a.add(rsp, 8).unwrap();
    a.add(qword_ptr(rsp), 2).unwrap();
    a.iretq().unwrap();
}

fn copy(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    a.mov(esi, 0x20_0000).unwrap();
    a.mov(edi, 0x28_0000).unwrap();
    a.mov(ecx, 0x8_0000).unwrap();
    a.rep().movsb().unwrap();
    a.jmp(top).unwrap();
}

/// As a kernel's code is: thousands of functions, each short and seldom in the nearest cache, called from everywhere; with
/// ftrace's NOPs, saved registers, loads, tests and branches.
fn wide(a: &mut CodeAssembler) {
    const FUNCTIONS: usize = 3000;
    let mut seed = 1u32;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    let mut top = a.create_label();
    let mut functions: Vec<_> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    a.mov(rdi, 0x20_0000u64).unwrap();
    a.set_label(&mut top).unwrap();
    for _ in 0..FUNCTIONS {
        let callee = functions[random(FUNCTIONS as u32) as usize];
        a.mov(ebx, random(0x8_0000)).unwrap();
        a.call(callee).unwrap();
    }
    a.jmp(top).unwrap();
    for (n, function) in functions.iter_mut().enumerate() {
        let mut skip = a.create_label();
        let mut out = a.create_label();
        a.set_label(function).unwrap();
        a.db(&[0x0f, 0x1f, 0x44, 0x00, 0x00]).unwrap();
        a.push(rbp).unwrap();
        a.push(rbx).unwrap();
        a.mov(rbp, rdi).unwrap();
        a.mov(rax, qword_ptr(rdi + rbx)).unwrap();
        a.test(rax, rax).unwrap();
        if n % 3 == 0 {
            a.jne(out).unwrap();
        } else {
            a.je(skip).unwrap();
        }
        a.lea(rdx, qword_ptr(rax + rbx * 8 + 0x10)).unwrap();
        a.mov(ecx, dword_ptr(rbp + 0x40)).unwrap();
        a.and(ecx, 0xff).unwrap();
        a.cmp(ecx, n as u32).unwrap();
        a.je(out).unwrap();
        a.set_label(&mut skip).unwrap();
        a.mov(qword_ptr(rbp + rbx + 8), rdx).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut out).unwrap();
        a.pop(rbx).unwrap();
        a.pop(rbp).unwrap();
        a.ret().unwrap();
    }
}

fn sse(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    a.movups(xmm0, xmmword_ptr(0x20_0000)).unwrap();
    a.paddd(xmm0, xmm1).unwrap();
    a.pxor(xmm2, xmm0).unwrap();
    a.addsd(xmm3, xmm3).unwrap();
    a.mulsd(xmm3, xmm4).unwrap();
    a.movups(xmmword_ptr(0x20_0010), xmm0).unwrap();
    a.jmp(top).unwrap();
}

fn main() {
    let n = std::env::args()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(200_000_000);
    measure("alu", n, guest(alu));
    measure("memory", n, guest(memory));
    measure("call/ret", n, guest(calls));
    measure("indirect", n, guest(indirect));
    measure("branches", n, guest(chains));
    measure("wide", n, guest(wide));
    measure("syscall", n / 10, guest(syscalls));
    measure("page fault", n / 10, guest(faults));
    measure("sse", n / 4, guest(sse));
    let mut m = guest(copy);
    let start = seconds();
    // 512 KiB a round, of 128 chunks and four other instructions.
    let exit = m.cpu.run(&mut m.bus, 132 * 4000);
    assert_eq!(exit, Exit::Limit);
    println!(
        "{:12} {:8.1} GB/s",
        "rep movsb",
        4000.0 * 524_288.0 / (seconds() - start) / 1e9
    );
}
