// SPDX-License-Identifier: BSD-2-Clause

//! Guests that drive devices: 32-bit programs that are written as a list of accesses.
//!
//! Such a guest brings devices into a state, says `ready`, waits for a character, and then tells over COM1 all that it finds in the
//! state: registers, memory that devices have written, interrupts that have waited. What it tells after the character is the same
//! whenever and wherever it is told.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::guests::{COM1, LOAD, assemble};

/// What the guest writes when it is in its state.
pub const READY: &str = "ready\n";
/// What makes it go on.
pub const GO: &str = "g";
/// The last line that it writes.
pub const DONE: &str = "done\n";

/// Where the guest keeps what tells it from all others.
const NONCE: u32 = 0x9800;
/// A word that a second processor counts up.
pub const COUNT: u32 = 0x9900;
/// The descriptor tables and what LGDT and LIDT read.
const GDT: u32 = 0x9000;
const IDT: u32 = 0xa000;
/// Selectors of [`Driver::descriptors`].
const CODE32: u32 = 0x08;
const DATA32: u32 = 0x10;
const CODE64: u32 = 0x18;
const CODE16: u32 = 0x20;
const DATA16: u32 = 0x28;
/// Where 16-bit code is put: the first page that a STARTUP may name here, and the one after it.
pub const AP_CODE: u32 = 0x7000;
const REAL_CODE: u32 = 0x8000;
/// The page tables of 64-bit mode.
const PAGE_TABLES: u32 = 0x3_0000;
/// The local APIC's registers.
pub const APIC: u32 = 0xfee0_0000;

/// Width of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
}

use Width::{Byte, Half, Word};

/// What a guest does in the handler of an interrupt, beside saying so and ending it.
pub type Work<'a> = &'a dyn Fn(&mut Driver);

/// A vector with the work of its handler.
pub type Handler<'a> = (u8, Work<'a>);

/// A guest that is being written.
pub struct Driver {
    a: CodeAssembler,
    hex: CodeLabel,
    polls: bool,
}

impl Driver {
    /// A guest that does `setup`, says [`READY`], and when it may go on tells its nonce, does `report` and says [`DONE`]. The report
    /// is handed what `setup` knows of the state.
    pub fn guest<T>(
        handlers: &[Handler],
        setup: impl FnOnce(&mut Driver) -> T,
        report: impl FnOnce(&mut Driver, T),
    ) -> Vec<u8> {
        let mut driver = Driver::new(32);
        driver.descriptors();
        driver.interrupts(handlers);
        driver.take_nonce();
        let known = setup(&mut driver);
        driver.wait_for_go();
        driver.tell_nonce();
        report(&mut driver, known);
        driver.end();
        driver.program()
    }

    /// The same of a guest in real mode, without devices.
    pub fn real_mode(setup: impl FnOnce(&mut Driver)) -> Vec<u8> {
        let mut real = Driver::new(16);
        real.put(|a| {
            a.mov(ax, 0)?;
            a.mov(ds, ax)?;
            a.mov(es, ax)?;
            a.mov(ss, ax)?;
            a.mov(esp, 0x7000)
        });
        real.wait_for_go();
        real.tell_nonce();
        real.end();
        let code = real.code(REAL_CODE);
        let mut driver = Driver::new(32);
        driver.descriptors();
        driver.take_nonce();
        setup(&mut driver);
        // A 16-bit code segment, then CR0.PE off, then a real selector.
        let stub = real_mode_stub(code);
        driver.bytes(REAL_CODE - STUB, &stub);
        driver.put(|a| {
            a.push(CODE16 as i32)?;
            a.push((REAL_CODE - STUB) as i32)?;
            a.retf()
        });
        driver.program()
    }

    /// The same of a guest in 64-bit mode, with all registers that only it has in use.
    pub fn long_mode(setup: impl FnOnce(&mut Driver), report: impl FnOnce(&mut Driver)) -> Vec<u8> {
        let mut long = Driver::new(64);
        long.put(|a| {
            a.mov(eax, DATA32)?;
            a.mov(ds, eax)?;
            a.mov(ss, eax)?;
            a.mov(rsp, u64::from(LOAD))
        });
        long.load_registers();
        long.wait_for_go();
        long.tell_nonce();
        long.tell_registers();
        report(&mut long);
        long.end();
        // The 64-bit code lies above the 32-bit code, where nothing of the program can reach.
        let code = long.code(LONG_CODE);
        let mut driver = Driver::new(32);
        driver.descriptors();
        driver.take_nonce();
        setup(&mut driver);
        driver.bytes(LONG_CODE, &code);
        driver.page_tables();
        driver.put(|a| {
            a.mov(eax, cr4)?;
            // PAE, OSFXSR, OSXMMEXCPT.
            a.or(eax, 0x620)?;
            a.mov(cr4, eax)?;
            a.mov(eax, PAGE_TABLES)?;
            a.mov(cr3, eax)?;
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            // LME, SCE, NXE.
            a.or(eax, 0x901)?;
            a.wrmsr()?;
            a.mov(eax, cr0)?;
            a.or(eax, 1 << 31 | 1 << 16)?;
            a.mov(cr0, eax)?;
            a.push(CODE64 as i32)?;
            a.push(LONG_CODE as i32)?;
            a.retf()
        });
        driver.program()
    }

    fn new(bits: u32) -> Driver {
        let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
        let hex = a.create_label();
        Driver {
            a,
            hex,
            polls: false,
        }
    }

    /// Any instructions.
    pub fn put(&mut self, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        code(&mut self.a).expect("the instruction exists");
    }

    /// The code alone, as it is at `address`, with the subroutine at its end.
    fn code(mut self, address: u32) -> Vec<u8> {
        self.hex_routine();
        let code = self.a.assemble(address.into());
        code.expect("the program is well formed")
    }

    fn program(mut self) -> Vec<u8> {
        self.hex_routine();
        let mut a = Some(self.a);
        assemble(|out| {
            *out = a.take().expect("assembled once");
            Ok(())
        })
    }

    /// Writes eax to COM1 in hexadecimal, then a line feed; uses esi, ecx and edx.
    fn hex_routine(&mut self) {
        let mut hex = self.hex;
        self.put(|a| {
            let mut digit = a.create_label();
            let mut letter = a.create_label();
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
            a.mov(al, i32::from(b'\n'))?;
            a.out(dx, al)?;
            a.ret()
        });
    }

    /// Flat segments of our own, so that interrupts find their selectors.
    fn descriptors(&mut self) {
        let flat = |code: u64| code << 40 | 0xf << 48 | 0xffff;
        let table = [
            0,
            flat(0x9b) | 0xc << 52,
            flat(0x93) | 0xc << 52,
            flat(0x9b) | 0xa << 52,
            0x9b << 40 | 0xffff,
            0x93 << 40 | 0xffff,
        ];
        self.put(|a| a.mov(esp, LOAD));
        for (at, descriptor) in (GDT..).step_by(8).zip(table) {
            self.bytes(at, &u64::to_le_bytes(descriptor));
        }
        let pointer = GDT + 0x100;
        self.store(pointer, Half, 6 * 8 - 1);
        self.store(pointer + 2, Word, GDT);
        self.put(|a| {
            // A call leaves the address of what follows it beside the selector.
            let mut far = a.create_label();
            let mut next = a.create_label();
            a.lgdt(fword_ptr(pointer))?;
            a.push(CODE32 as i32)?;
            a.call(far)?;
            a.jmp(next)?;
            a.set_label(&mut far)?;
            a.retf()?;
            a.set_label(&mut next)?;
            a.mov(eax, DATA32)?;
            a.mov(ds, eax)?;
            a.mov(es, eax)?;
            a.mov(fs, eax)?;
            a.mov(gs, eax)?;
            a.mov(ss, eax)
        });
    }

    /// The handlers; both 8259s at vectors 0x20 and 0x28 with everything masked, and the local APIC that lets them through.
    fn interrupts(&mut self, handlers: &[Handler]) {
        for (vector, work) in handlers {
            // The call leaves the handler's address.
            let mut over = self.a.create_label();
            self.put(|a| {
                a.call(over)?;
                a.pushad()
            });
            self.say(&format!("interrupt {vector:02x}\n"));
            work(self);
            match vector {
                0x20..=0x27 => self.out(0x20, Byte, 0x20),
                0x28..=0x2f => {
                    self.out(0xa0, Byte, 0x20);
                    self.out(0x20, Byte, 0x20);
                }
                _ => self.store(APIC + 0xb0, Word, 0),
            }
            self.put(|a| {
                a.popad()?;
                a.iretd()?;
                a.set_label(&mut over)?;
                a.pop(eax)
            });
            self.gate((*vector).into());
        }
        let pointer = GDT + 0x110;
        self.store(pointer, Half, 0x7ff);
        self.store(pointer + 2, Word, IDT);
        self.put(|a| a.lidt(fword_ptr(pointer)));
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x28),
            (0xa1, 2),
            (0xa1, 1),
            (0x21, 0xff),
            (0xa1, 0xff),
        ] {
            self.out(port, Byte, value);
        }
        self.store(APIC + 0xf0, Word, 0x1ff);
        self.store(APIC + 0x350, Word, 0x700);
    }

    /// Lets these lines of the 8259s through.
    pub fn unmask(&mut self, lines: &[u8]) {
        let mask = lines
            .iter()
            .fold(0xfffb_u16, |mask, line| mask & !(1 << line));
        self.out(0x21, Byte, u32::from(mask & 0xff));
        self.out(0xa1, Byte, u32::from(mask >> 8));
    }

    /// Leaves interrupts alone from here on: when they come is for the host to say, unless instructions are the clock.
    pub fn poll(&mut self) {
        self.polls = true;
    }

    /// Whether it does so.
    pub fn polls(&self) -> bool {
        self.polls
    }

    /// Takes the interrupts that wait.
    pub fn take_interrupts(&mut self) {
        if self.polls {
            return;
        }
        self.put(|a| {
            a.sti()?;
            for _ in 0..8 {
                a.nop()?;
            }
            a.cli()
        });
    }

    /// Takes the interrupt of a vector of the local APIC, and does not end it.
    pub fn begin_service(&mut self, vector: u32) {
        let mut over = self.a.create_label();
        let mut done = self.a.create_label();
        self.put(|a| {
            a.call(over)?;
            a.mov(esp, LOAD)?;
            a.jmp(done)?;
            a.set_label(&mut over)?;
            a.pop(eax)
        });
        self.gate(vector);
        self.store(APIC + 0x300, Word, 0x4_0000 | vector);
        self.put(|a| {
            let mut wait = a.create_label();
            a.sti()?;
            a.set_label(&mut wait)?;
            a.jmp(wait)?;
            a.set_label(&mut done)
        });
    }

    /// Makes eax the address of a vector's handler.
    fn gate(&mut self, vector: u32) {
        let gate = IDT + 8 * vector;
        self.put(|a| {
            a.mov(word_ptr(gate), ax)?;
            a.shr(eax, 16)?;
            a.mov(word_ptr(gate + 6), ax)
        });
        self.store(gate + 2, Word, 0x8e00 << 16 | CODE32);
    }

    /// Rests until an interrupt has come.
    pub fn wait_for_interrupt(&mut self) {
        self.put(|a| {
            a.sti()?;
            a.hlt()?;
            a.cli()
        });
    }

    fn take_nonce(&mut self) {
        self.put(|a| {
            a.rdtsc()?;
            a.imul_3(eax, eax, 0x9e37_79b1u32 as i32)?;
            a.mov(dword_ptr(NONCE), eax)
        });
    }

    fn tell_nonce(&mut self) {
        self.say("nonce ");
        self.show(NONCE, Word);
    }

    fn wait_for_go(&mut self) {
        self.tell_nonce();
        self.say(READY);
        self.put(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(edx, COM1 + 5)?;
            a.in_(al, dx)?;
            a.test(al, 1)?;
            a.jz(again)?;
            a.mov(edx, COM1)?;
            a.in_(al, dx)?;
            a.cmp(al, i32::from(GO.as_bytes()[0]))?;
            a.jne(again)
        });
    }

    /// A guest that never waits for anybody: what it does in `step` it does for ever.
    pub fn endless(
        handlers: &[Handler],
        setup: impl FnOnce(&mut Driver),
        step: impl FnOnce(&mut Driver),
    ) -> Vec<u8> {
        let mut driver = Driver::new(32);
        driver.descriptors();
        driver.interrupts(handlers);
        driver.take_nonce();
        setup(&mut driver);
        let mut again = driver.a.create_label();
        driver.put(|a| a.set_label(&mut again));
        driver.tell_nonce();
        step(&mut driver);
        driver.put(|a| a.jmp(again));
        driver.program()
    }

    /// Tells the low half of the time stamp counter.
    pub fn show_time(&mut self) {
        self.put(|a| a.rdtsc());
        self.tell();
    }

    fn end(&mut self) {
        self.say(DONE);
        self.put(|a| {
            let mut rest = a.create_label();
            a.set_label(&mut rest)?;
            a.cli()?;
            a.hlt()?;
            a.jmp(rest)
        });
    }

    /// One page for each of the lowest 4 GiB's 2 MiB, one to one.
    fn page_tables(&mut self) {
        let tables = PAGE_TABLES;
        self.put(|a| {
            let mut next = a.create_label();
            a.mov(dword_ptr(tables), (tables + 0x1003) as i32)?;
            for gib in 0..4 {
                let directory = tables + 0x2000 + gib * 0x1000;
                a.mov(dword_ptr(tables + 0x1000 + gib * 8), (directory | 3) as i32)?;
            }
            a.mov(eax, 0x83)?;
            a.mov(ebx, tables + 0x2000)?;
            a.mov(ecx, 4 * 512)?;
            a.set_label(&mut next)?;
            a.mov(dword_ptr(ebx), eax)?;
            a.add(ebx, 8)?;
            a.add(eax, 0x20_0000)?;
            a.dec(ecx)?;
            a.jnz(next)
        });
    }

    /// Fills registers that only 64-bit mode, SSE and x87 have, and some that no access to memory shows.
    fn load_registers(&mut self) {
        self.put(|a| {
            let value = |n: u64| 0x1122_3344_5566_7788u64.wrapping_mul(2 * n + 1);
            for (n, register) in (0..).zip([r8, r9, r10, r11, r12, r13, r14, r15, rbp, rdi]) {
                a.mov(register, value(n))?;
            }
            for (n, msr) in (20..).zip(MSRS) {
                let value = value(n) & 0x7fff_ffff;
                a.mov(ecx, msr)?;
                a.mov(eax, value as u32)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
            }
            a.mov(rax, value(40))?;
            a.mov(dr0, rax)?;
            a.mov(rax, value(41))?;
            a.movq(xmm9, rax)?;
            a.mov(rax, value(42))?;
            a.mov(cr2, rax)?;
            a.fninit()?;
            a.fldpi()
        });
    }

    fn tell_registers(&mut self) {
        for register in [r8, r9, r10, r11, r12, r13, r14, r15, rbp, rdi] {
            self.tell_both(|a| a.mov(rbx, register));
        }
        for msr in MSRS {
            self.put(|a| {
                a.mov(ecx, msr)?;
                a.rdmsr()
            });
            self.tell();
        }
        self.tell_both(|a| a.mov(rbx, dr0));
        self.tell_both(|a| a.movq(rbx, xmm9));
        self.tell_both(|a| a.mov(rbx, cr2));
        self.tell_both(|a| {
            a.fst(qword_ptr(u64::from(NONCE) + 0x80))?;
            a.mov(rbx, qword_ptr(u64::from(NONCE) + 0x80))
        });
    }

    /// Tells both halves of rbx when `code` has loaded it.
    fn tell_both(&mut self, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.put(|a| {
            code(a)?;
            a.mov(eax, ebx)
        });
        self.tell();
        self.put(|a| {
            a.shr(rbx, 32)?;
            a.mov(eax, ebx)
        });
        self.tell();
    }

    /// Writes a text to COM1.
    pub fn say(&mut self, text: &str) {
        self.put(|a| {
            a.mov(edx, COM1)?;
            for byte in text.bytes() {
                a.mov(al, i32::from(byte))?;
                a.out(dx, al)?;
            }
            Ok(())
        });
    }

    /// Writes eax to COM1.
    fn tell(&mut self) {
        let hex = self.hex;
        self.put(|a| a.call(hex));
    }

    /// OUT.
    pub fn out(&mut self, port: u32, width: Width, value: u32) {
        self.put(|a| {
            a.mov(edx, port)?;
            a.mov(eax, value)?;
            match width {
                Byte => a.out(dx, al),
                Half => a.out(dx, ax),
                Word => a.out(dx, eax),
            }
        });
    }

    /// IN, into eax.
    pub fn read_port(&mut self, port: u32, width: Width) {
        self.put(|a| {
            a.mov(edx, port)?;
            a.xor(eax, eax)?;
            match width {
                Byte => a.in_(al, dx),
                Half => a.in_(ax, dx),
                Word => a.in_(eax, dx),
            }
        });
    }

    /// IN, and tells it.
    pub fn show_port(&mut self, port: u32, width: Width) {
        self.read_port(port, width);
        self.tell();
    }

    /// A store to memory or to a register that is mapped there.
    pub fn store(&mut self, address: u32, width: Width, value: u32) {
        self.put(|a| {
            a.mov(ebx, address)?;
            a.mov(eax, value)?;
            match width {
                Byte => a.mov(byte_ptr(ebx), al),
                Half => a.mov(word_ptr(ebx), ax),
                Word => a.mov(dword_ptr(ebx), eax),
            }
        });
    }

    /// A load, into eax.
    fn load(&mut self, address: u32, width: Width) {
        self.put(|a| {
            a.mov(ebx, address)?;
            match width {
                Byte => a.movzx(eax, byte_ptr(ebx)),
                Half => a.movzx(eax, word_ptr(ebx)),
                Word => a.mov(eax, dword_ptr(ebx)),
            }
        });
    }

    /// A load, and tells it.
    pub fn show(&mut self, address: u32, width: Width) {
        self.load(address, width);
        self.tell();
    }

    /// Tells words, one after the other.
    pub fn show_words(&mut self, address: u32, count: u32) {
        for n in 0..count {
            self.show(address + 4 * n, Word);
        }
    }

    /// Bytes into memory.
    pub fn bytes(&mut self, address: u32, bytes: &[u8]) {
        for (at, word) in (address..).step_by(4).zip(bytes.chunks(4)) {
            let mut padded = [0; 4];
            padded[..word.len()].copy_from_slice(word);
            self.store(at, Word, u32::from_le_bytes(padded));
        }
    }

    /// Words into memory.
    pub fn words(&mut self, address: u32, words: &[u32]) {
        for (at, word) in (address..).step_by(4).zip(words) {
            self.store(at, Word, *word);
        }
    }

    /// Waits until the bits under `mask` are `wanted`.
    pub fn wait(&mut self, address: u32, width: Width, mask: u32, wanted: u32) {
        let mut again = self.a.create_label();
        self.put(|a| a.set_label(&mut again));
        self.load(address, width);
        self.put(|a| {
            a.and(eax, mask as i32)?;
            a.cmp(eax, wanted as i32)?;
            a.jne(again)
        });
    }

    /// The same of a port.
    pub fn wait_port(&mut self, port: u32, width: Width, mask: u32, wanted: u32) {
        let mut again = self.a.create_label();
        self.put(|a| a.set_label(&mut again));
        self.read_port(port, width);
        self.put(|a| {
            a.and(eax, mask as i32)?;
            a.cmp(eax, wanted as i32)?;
            a.jne(again)
        });
    }

    /// Waits until the word is another one.
    pub fn wait_for_change(&mut self, address: u32) {
        let mut again = self.a.create_label();
        self.put(|a| {
            a.mov(ecx, dword_ptr(address))?;
            a.set_label(&mut again)?;
            a.cmp(dword_ptr(address), ecx)?;
            a.je(again)
        });
    }

    /// Shows the register of slot `slot`, function 0, in the window of the configuration space.
    pub fn select_cfg(&mut self, slot: u32, offset: u32) {
        self.out(0xcf8, Word, 1 << 31 | slot << 11 | offset & 0xfc);
    }

    /// Writes a register of the configuration space.
    pub fn cfg(&mut self, slot: u32, offset: u32, width: Width, value: u32) {
        self.select_cfg(slot, offset);
        self.out(0xcfc + (offset & 3), width, value);
    }

    /// Reads one, and tells it.
    pub fn show_cfg(&mut self, slot: u32, offset: u32) {
        self.select_cfg(slot, offset);
        self.show_port(0xcfc, Word);
    }

    /// Puts BARs of a slot at these addresses, and lets the function decode them and write memory.
    pub fn place(&mut self, slot: u32, bars: &[(u32, u32)]) {
        self.cfg(slot, 4, Half, 0);
        for (bar, address) in bars {
            self.cfg(slot, 0x10 + 4 * bar, Word, *address);
        }
        self.cfg(slot, 4, Half, 7);
    }

    /// Starts the second processor: it counts [`COUNT`] up for ever, in real mode.
    pub fn start_second(&mut self) {
        let mut ap = Driver::new(16);
        ap.put(|a| {
            let mut again = a.create_label();
            a.xor(ax, ax)?;
            a.mov(ds, ax)?;
            a.set_label(&mut again)?;
            a.inc(dword_ptr(COUNT))?;
            a.jmp(again)
        });
        let code = ap.a.assemble(AP_CODE.into()).expect("a small program");
        self.bytes(AP_CODE, &code);
        // INIT and STARTUP to all but this one.
        self.store(APIC + 0x300, Word, 0xc_4500);
        self.store(APIC + 0x300, Word, 0xc_4600 | AP_CODE >> 12);
        self.wait_for_change(COUNT);
    }
}

/// Where 64-bit code is put.
const LONG_CODE: u32 = 0x28_0000;
/// STAR, LSTAR, SFMASK, FS.base, GS.base, KERNEL_GS.base, SYSENTER_CS, SYSENTER_ESP, TSC_AUX is not every processor's.
const MSRS: [u32; 7] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0x176,
];
/// Room before the real-mode code for what leads there.
const STUB: u32 = 0x40;

/// `code` behind what leaves protected mode from a 16-bit segment.
fn real_mode_stub(code: Vec<u8>) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).expect("16 is a bitness");
    let build = |a: &mut CodeAssembler| {
        a.mov(ax, DATA16)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(fs, ax)?;
        a.mov(gs, ax)?;
        a.mov(ss, ax)?;
        a.mov(eax, cr0)?;
        a.and(eax, !1)?;
        a.mov(cr0, eax)?;
        // jmp 0:REAL_CODE
        a.db(&[0xea])?;
        a.dw(&[REAL_CODE as u16, 0])
    };
    build(&mut a).expect("the instructions exist");
    let mut bytes = a
        .assemble(u64::from(REAL_CODE - STUB))
        .expect("the program is well formed");
    bytes.resize(STUB as usize, 0x90);
    bytes.extend(code);
    bytes
}
