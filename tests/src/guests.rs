// SPDX-License-Identifier: BSD-2-Clause

//! Guests of our own: small 32-bit programs, assembled here, in ELF files with a multiboot header.

use std::path::Path;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Guest physical address at which the guests are loaded and entered.
pub(crate) const LOAD: u32 = 0x10_0000;
/// Length of an ELF header and one program header.
const HEADERS: u32 = 52 + 32;
/// Length of the multiboot header that stands before the code.
const MULTIBOOT: u32 = 12;
/// First address of the code.
const ENTRY: u32 = LOAD + HEADERS + MULTIBOOT;
/// COM1's data port.
pub(crate) const COM1: u32 = 0x3f8;

/// First byte of the window of memory that [`dirty`] walks.
pub const WINDOW: u32 = 0x20_0000;
/// Size of its pages in bytes.
pub const PAGE: u32 = 4096;

/// A guest smaller than a disk sector that walks `pages` pages from [`WINDOW`], adds one to the first byte of each, and writes
/// `B` to COM1 after each lap. Wherever it is stopped, the bytes are n+1 up to some page and n from there on.
pub fn dirty(pages: u32) -> Vec<u8> {
    let program = assemble(|a| {
        let mut lap = a.create_label();
        let mut page = a.create_label();
        a.mov(edx, COM1)?;
        a.mov(al, i32::from(b'A'))?;
        a.out(dx, al)?;
        a.set_label(&mut lap)?;
        a.mov(ebx, WINDOW)?;
        a.mov(ecx, pages)?;
        a.set_label(&mut page)?;
        a.inc(byte_ptr(ebx))?;
        a.add(ebx, PAGE)?;
        a.dec(ecx)?;
        a.jnz(page)?;
        a.mov(al, i32::from(b'B'))?;
        a.out(dx, al)?;
        a.jmp(lap)
    });
    assert!(program.len() < 512, "this guest is to fit in a sector");
    program
}

/// Whether the first bytes of the window's pages are as [`dirty`] can have left them.
pub fn is_step_shaped(first_bytes: &[u8]) -> bool {
    let Some(&first) = first_bytes.first() else {
        return false;
    };
    let step = first_bytes
        .iter()
        .position(|&b| b != first)
        .unwrap_or(first_bytes.len());
    first_bytes[step..]
        .iter()
        .all(|&b| b == first.wrapping_sub(1))
}

/// A guest that takes a nonce from the time stamp counter, keeps it in memory only, and for ever writes lines
/// `NONCE COUNTER` to COM1, both as eight hexadecimal digits. A guest that was started anew has another nonce.
pub fn nonce() -> Vec<u8> {
    let nonce = dword_ptr(WINDOW);
    let counter = dword_ptr(WINDOW + PAGE);
    assemble(|a| {
        let mut line = a.create_label();
        let mut hex = a.create_label();
        let mut digit = a.create_label();
        let mut letter = a.create_label();
        let mut delay = a.create_label();
        a.mov(esp, LOAD)?;
        a.rdtsc()?;
        a.imul_3(eax, eax, 0x9e37_79b1u32 as i32)?;
        a.mov(nonce, eax)?;
        a.set_label(&mut line)?;
        a.mov(eax, nonce)?;
        a.mov(bl, i32::from(b' '))?;
        a.call(hex)?;
        a.inc(counter)?;
        a.mov(eax, counter)?;
        a.mov(bl, i32::from(b'\n'))?;
        a.call(hex)?;
        a.mov(ecx, 100_000)?;
        a.set_label(&mut delay)?;
        a.dec(ecx)?;
        a.jnz(delay)?;
        a.jmp(line)?;

        // Writes eax in hexadecimal, then bl.
        a.set_label(&mut hex)?;
        a.mov(edx, COM1)?;
        a.mov(ecx, 8)?;
        a.mov(esi, eax)?;
        a.set_label(&mut digit)?;
        a.rol(esi, 4)?;
        a.mov(eax, esi)?;
        a.and(eax, 15)?;
        a.add(eax, i32::from(b'0'))?;
        a.cmp(eax, i32::from(b'9'))?;
        a.jbe(letter)?;
        a.add(eax, i32::from(b'a' - b'0') - 10)?;
        a.set_label(&mut letter)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jnz(digit)?;
        a.mov(al, bl)?;
        a.out(dx, al)?;
        a.ret()
    })
}

/// The whole lines that [`nonce`] has printed: the nonce, and the counter. A console that begins or ends within a line, as that of
/// a restored guest may, has none of that one.
pub fn lines(console: &str) -> Vec<(String, u32)> {
    let parse = |line: &str| {
        let (nonce, counter) = line.split_once(' ')?;
        let whole = nonce.len() == 8 && counter.len() == 8;
        let counter = u32::from_str_radix(counter, 16).ok()?;
        whole.then(|| (nonce.to_owned(), counter))
    };
    console.lines().filter_map(parse).collect()
}

/// A guest that keeps values in registers of x87 and SSE and their control words, and for ever writes lines to COM1: `y` as long
/// as they are there, `n` when they are not.
pub fn floats() -> Vec<u8> {
    const VALUE: u32 = 0x5a17_c0de;
    const MXCSR: u32 = 0x3f80;
    /// FCW rounds to zero, and all exceptions are masked.
    const FCW: u32 = 0xf7f;
    /// The upper half of pi as a double.
    const PI: u32 = 0x4009_21fb;
    assemble(|a| {
        let mut line = a.create_label();
        let mut lost = a.create_label();
        let mut write = a.create_label();
        let mut delay = a.create_label();
        let [mxcsr, fcw, pi] = [0, 4, 12].map(|offset| dword_ptr(WINDOW + offset));
        a.mov(eax, cr4)?;
        // OSFXSR and OSXMMEXCPT.
        a.or(eax, 0x600)?;
        a.mov(cr4, eax)?;
        a.mov(mxcsr, MXCSR)?;
        a.ldmxcsr(mxcsr)?;
        a.fninit()?;
        a.mov(fcw, FCW)?;
        a.fldcw(word_ptr(WINDOW + 4))?;
        a.fldpi()?;
        a.mov(eax, VALUE)?;
        a.movd(xmm5, eax)?;

        a.set_label(&mut line)?;
        a.mov(mxcsr, 0)?;
        a.mov(fcw, 0)?;
        a.mov(pi, 0)?;
        a.movd(ebx, xmm5)?;
        a.stmxcsr(mxcsr)?;
        a.fnstcw(word_ptr(WINDOW + 4))?;
        a.fst(qword_ptr(WINDOW + 8))?;
        a.cmp(ebx, VALUE as i32)?;
        a.jne(lost)?;
        a.cmp(mxcsr, MXCSR as i32)?;
        a.jne(lost)?;
        a.cmp(fcw, FCW as i32)?;
        a.jne(lost)?;
        a.cmp(pi, PI as i32)?;
        a.mov(al, i32::from(b'y'))?;
        a.je(write)?;
        a.set_label(&mut lost)?;
        a.mov(al, i32::from(b'n'))?;
        a.set_label(&mut write)?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.mov(al, i32::from(b'\n'))?;
        a.out(dx, al)?;
        a.mov(ecx, 100_000)?;
        a.set_label(&mut delay)?;
        a.dec(ecx)?;
        a.jnz(delay)?;
        a.jmp(line)
    })
}

/// A guest that starts a second processor, which then does nothing without end, and powers off as [`poweroff`] does.
pub fn poweroff_with_two() -> Vec<u8> {
    /// Where the second one begins, and the local APIC's interrupt command register.
    const TRAMPOLINE: u32 = 0x8000;
    const ICR: u32 = 0xfee0_0300;
    assemble(|a| {
        let mut delay = a.create_label();
        // jmp $
        a.mov(word_ptr(TRAMPOLINE), 0xfeeb)?;
        // INIT and STARTUP to all but this one.
        a.mov(dword_ptr(ICR), 0xc_4500)?;
        a.mov(dword_ptr(ICR), 0xc_4600 | TRAMPOLINE >> 12)?;
        a.mov(ecx, 10_000_000)?;
        a.set_label(&mut delay)?;
        a.dec(ecx)?;
        a.jnz(delay)?;
        a.mov(edx, 0x404)?;
        a.mov(eax, (5 << 10) | (1 << 13))?;
        a.out(dx, ax)?;
        halt(a)
    })
}

/// What the first of three processors does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturb {
    /// Starts the second one, with INIT and STARTUP.
    Start,
    /// Moves the memory BAR of the frame buffer in slot 2, while the second processor does nothing without end.
    Move,
}

/// A guest of three processors. The first writes `A` to COM1, and then disturbs the others, until the power button is pressed, which
/// powers the machine off. The third counts so far and then faults without an interrupt table, or does nothing without end.
pub fn disturbed(disturb: Disturb, fault_after: Option<u32>) -> Vec<u8> {
    /// Where the others begin.
    const SECOND: u32 = 0x8000;
    const THIRD: u32 = 0x9000;
    /// The local APIC's spurious interrupt vector register, which switches it on.
    const SVR: u32 = 0xfee0_00f0;
    const CONFIG_ADDRESS: u32 = 0xcf8;
    const CONFIG_DATA: u32 = 0xcfc;
    /// Command register and second BAR of the function in slot 2, and the BAR's two places.
    const COMMAND: u32 = 0x8000_1004;
    const BAR: u32 = 0x8000_1014;
    const PLACES: [u32; 2] = [0xd000_0000, 0xd800_0000];
    let third = assemble_16(THIRD, |a| {
        let mut count = a.create_label();
        a.mov(ecx, fault_after.unwrap_or(1))?;
        a.set_label(&mut count)?;
        if fault_after.is_some() {
            a.dec(ecx)?;
        }
        a.jnz(count)?;
        // Six zero bytes: a limit of 0.
        a.lidt(fword_ptr(0x7000))?;
        a.ud2()
    });
    assemble(|a| {
        let mut behind = a.create_label();
        let mut again = a.create_label();
        let mut pressed = a.create_label();
        // jmp $
        a.mov(word_ptr(SECOND), 0xfeeb)?;
        // The third one's code, whose address the call leaves behind.
        a.mov(esp, LOAD)?;
        a.call(behind)?;
        a.db(&third)?;
        a.set_label(&mut behind)?;
        a.pop(esi)?;
        a.mov(edi, THIRD)?;
        a.mov(ecx, third.len() as u32)?;
        a.rep().movsb()?;
        a.mov(dword_ptr(SVR), 0x1ff)?;
        // ACPI on, so that the power button is seen.
        a.mov(al, 0xa0)?;
        a.out(0xb2, al)?;
        a.mov(edx, COM1)?;
        a.mov(al, i32::from(b'A'))?;
        a.out(dx, al)?;
        if disturb == Disturb::Move {
            start(a, 1, SECOND)?;
        }
        start(a, 2, THIRD)?;
        a.mov(ebx, PLACES[0])?;
        a.set_label(&mut again)?;
        match disturb {
            Disturb::Start => start(a, 1, SECOND)?,
            Disturb::Move => {
                a.xor(ebx, (PLACES[0] ^ PLACES[1]) as i32)?;
                // Memory on, and its place.
                for (register, value) in [(COMMAND, None), (BAR, Some(ebx))] {
                    a.mov(edx, CONFIG_ADDRESS)?;
                    a.mov(eax, register)?;
                    a.out(dx, eax)?;
                    a.mov(edx, CONFIG_DATA)?;
                    match value {
                        Some(value) => a.mov(eax, value)?,
                        None => a.mov(eax, 2)?,
                    }
                    a.out(dx, eax)?;
                }
            }
        }
        a.mov(edx, 0x400)?;
        a.in_(ax, dx)?;
        a.test(ax, 1 << 8)?;
        a.jnz(pressed)?;
        a.jmp(again)?;
        a.set_label(&mut pressed)?;
        sleep(a)
    })
}

/// INIT and STARTUP to a processor by its number.
fn start(a: &mut CodeAssembler, processor: u32, address: u32) -> Result<(), IcedError> {
    for command in [0x4500, 0x4600 | address >> 12] {
        a.mov(dword_ptr(0xfee0_0310_u32), (processor << 24) as i32)?;
        a.mov(dword_ptr(0xfee0_0300_u32), command as i32)?;
    }
    Ok(())
}

/// A guest that powers off through ACPI's PM1 control register (SLP_TYP 5, SLP_EN).
pub fn poweroff() -> Vec<u8> {
    assemble(sleep)
}

fn sleep(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 0x404)?;
    a.mov(eax, (5 << 10) | (1 << 13))?;
    a.out(dx, ax)?;
    halt(a)
}

/// What a guest leaves for userland by.
#[derive(Debug, Clone, Copy)]
pub enum Leave {
    /// OUT to a port where nothing is.
    Port,
    /// A store to emulated memory where nothing is.
    Store,
}

/// A guest that does nothing but leave for userland, so many times, and then powers off.
pub fn exits(count: u32, by: Leave) -> Vec<u8> {
    assemble(|a| {
        let mut next = a.create_label();
        a.mov(ecx, count)?;
        a.set_label(&mut next)?;
        match by {
            Leave::Port => a.out(0x80, al)?,
            Leave::Store => a.mov(byte_ptr(0xd000_0000_u32), al)?,
        }
        a.dec(ecx)?;
        a.jnz(next)?;
        sleep(a)
    })
}

/// A guest that resets the machine through port 0xCF9.
pub fn reset() -> Vec<u8> {
    assemble(|a| {
        a.mov(edx, 0xcf9)?;
        a.mov(al, 6)?;
        a.out(dx, al)?;
        halt(a)
    })
}

/// A guest that writes a line `up` to COM1 and then what it is sent there: `r` resets the machine, `q` powers it off.
pub fn typed() -> Vec<u8> {
    assemble(|a| {
        let mut wait = a.create_label();
        let mut not_reset = a.create_label();
        let mut echo = a.create_label();
        a.mov(edx, COM1)?;
        for byte in b"up\n" {
            a.mov(al, i32::from(*byte))?;
            a.out(dx, al)?;
        }
        // The line status register says when there is a byte.
        a.set_label(&mut wait)?;
        a.mov(edx, COM1 + 5)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(wait)?;
        a.mov(edx, COM1)?;
        a.in_(al, dx)?;
        a.cmp(al, i32::from(b'r'))?;
        a.jne(not_reset)?;
        a.mov(edx, 0xcf9)?;
        a.mov(al, 6)?;
        a.out(dx, al)?;
        halt(a)?;
        a.set_label(&mut not_reset)?;
        a.cmp(al, i32::from(b'q'))?;
        a.jne(echo)?;
        sleep(a)?;
        a.set_label(&mut echo)?;
        a.out(dx, al)?;
        a.jmp(wait)
    })
}

/// A guest that reads its flags into EAX, writes them back, reads them into EBX, and stays there.
pub fn flags() -> Vec<u8> {
    assemble(|a| {
        let mut stay = a.create_label();
        a.mov(esp, LOAD)?;
        a.pushfd()?;
        a.pop(eax)?;
        a.push(eax)?;
        a.popfd()?;
        a.pushfd()?;
        a.pop(ebx)?;
        a.set_label(&mut stay)?;
        a.jmp(stay)
    })
}

/// A guest that halts with interrupts off.
pub fn halted() -> Vec<u8> {
    assemble(halt)
}

/// A guest that faults without an interrupt table.
pub fn triple_fault() -> Vec<u8> {
    assemble(|a| {
        // Six zero bytes at an address that holds none of ours: a limit of 0.
        a.lidt(fword_ptr(0x9000))?;
        a.ud2()
    })
}

fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.hlt()
}

/// Assembles `code` and puts it behind the headers.
pub(crate) fn assemble(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).expect("32 is a bitness");
    code(&mut a).expect("the program is well formed");
    let code = a
        .assemble(u64::from(ENTRY))
        .expect("the program is well formed");
    elf(&code)
}

/// Assembles real-mode code for an address.
fn assemble_16(
    address: u32,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).expect("16 is a bitness");
    code(&mut a).expect("the program is well formed");
    a.assemble(u64::from(address))
        .expect("the program is well formed")
}

/// An ELF32 file with one loadable segment: a multiboot header and `code`.
fn elf(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + MULTIBOOT + code.len() as u32;
    let mut file = Vec::new();
    let half = |file: &mut Vec<u8>, v: u16| file.extend(v.to_le_bytes());
    let word = |file: &mut Vec<u8>, v: u32| file.extend(v.to_le_bytes());
    // e_ident: 32 bit, little endian, version 1.
    file.extend(*b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut file, 2); // ET_EXEC
    half(&mut file, 3); // EM_386
    word(&mut file, 1);
    word(&mut file, ENTRY);
    word(&mut file, 52); // e_phoff
    word(&mut file, 0);
    word(&mut file, 0);
    half(&mut file, 52);
    half(&mut file, 32);
    half(&mut file, 1); // e_phnum
    half(&mut file, 40);
    half(&mut file, 0);
    half(&mut file, 0);
    // PT_LOAD of the whole file, readable, writable and executable.
    for v in [1, 0, LOAD, LOAD, size, size, 7, 4096] {
        word(&mut file, v);
    }
    let (magic, flags) = (0x1bad_b002u32, 0u32);
    word(&mut file, magic);
    word(&mut file, flags);
    word(&mut file, 0u32.wrapping_sub(magic).wrapping_sub(flags));
    file.extend(code);
    file
}

/// Writes `program` to `path`.
pub fn write(path: &Path, program: &[u8]) {
    std::fs::write(path, program).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_in_part_are_not_taken_for_lines() {
        let lines = super::lines("004b\n03a49c58 0000004c\n03a49c58 0000004d\n03a4");
        assert_eq!(
            lines,
            [("03a49c58".into(), 0x4c), ("03a49c58".into(), 0x4d)]
        );
    }
}
