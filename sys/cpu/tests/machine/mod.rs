// SPDX-License-Identifier: BSD-2-Clause

//! A minimal machine around a `Cpu` for tests: RAM, a bus that logs, and programs from iced's assembler.

#![expect(unsafe_code, reason = "memory for the guest, by address")]
#![allow(
    dead_code,
    reason = "the tests and the bench of the interpreter each use a part of it"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use vmm_cpu::*;

/// RAM that stays mapped as long as it lives.
pub struct Ram {
    pub host: *mut u8,
    pub len: usize,
}

impl Ram {
    pub fn new(len: usize) -> Self {
        // SAFETY: the layout is not empty.
        let host = unsafe { alloc_zeroed(Layout::from_size_align(len, 4096).unwrap()) };
        assert!(!host.is_null());
        Ram { host, len }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.len);
        // SAFETY: checked above.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.add(at as usize), bytes.len())
        };
    }

    pub fn write64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at as usize + len <= self.len);
        // SAFETY: checked above.
        (0..len)
            .map(|i| unsafe { self.host.add(at as usize + i).read_volatile() })
            .collect()
    }

    pub fn read64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at, 8).try_into().unwrap())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated so in `new`.
        unsafe { dealloc(self.host, Layout::from_size_align(self.len, 4096).unwrap()) };
    }
}

// SAFETY: a plain memory region; the tests synchronise themselves.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

/// A bus without devices: MMIO and ports leave `run`, but for those that the fields say.
#[derive(Default)]
pub struct TestBus {
    pub events: std::collections::VecDeque<Event>,
    pub leave: bool,
    pub out: Vec<(u16, u32)>,
    pub ports: bool,
    pub mmio: bool,
    pub mmio_log: Vec<(u64, u8, Option<u64>)>,
    pub port_log: Vec<u16>,
    /// Every access to a device makes it interrupt this processor, with vector [`DEVICE_VECTOR`].
    pub interrupts: Option<Arc<Signals>>,
}

pub const DEVICE_VECTOR: u8 = 0x40;

impl TestBus {
    fn accessed(&mut self) {
        if let Some(signals) = &self.interrupts {
            self.events.push_back(Event::Interrupt(DEVICE_VECTOR));
            signals.notify();
        }
    }
}

impl Bus for TestBus {
    fn mmio_read(&mut self, _now: u64, gpa: u64, size: u8) -> Reply<u64> {
        if !self.mmio {
            return Reply::Exit;
        }
        self.mmio_log.push((gpa, size, None));
        self.accessed();
        Reply::Done(0x1122_3344_5566_7788)
    }

    fn mmio_write(&mut self, _now: u64, gpa: u64, size: u8, value: u64) -> Reply<()> {
        if !self.mmio {
            return Reply::Exit;
        }
        self.mmio_log.push((gpa, size, Some(value)));
        self.accessed();
        Reply::Done(())
    }

    fn in_port(&mut self, _now: u64, port: u16, _size: u8) -> Reply<u32> {
        if self.ports {
            self.port_log.push(port);
            self.accessed();
            Reply::Done(u32::from(port) + 1)
        } else {
            Reply::Exit
        }
    }

    fn out_port(&mut self, _now: u64, port: u16, _size: u8, value: u32) -> Reply<()> {
        if !self.ports {
            return Reply::Exit;
        }
        self.out.push((port, value));
        self.accessed();
        Reply::Done(())
    }

    fn rdmsr(&mut self, _now: u64, _index: u32) -> Reply<u64> {
        Reply::Fault
    }

    fn wrmsr(&mut self, _now: u64, _index: u32, _value: u64) -> Reply<()> {
        Reply::Fault
    }

    fn cpuid(&mut self, leaf: u32, _subleaf: u32, _inputs: CpuidInputs) -> [u32; 4] {
        [leaf, 1, 2, 3]
    }

    fn tsc(&mut self, now: u64) -> u64 {
        now
    }

    fn cr8(&mut self, _now: u64) -> u64 {
        0
    }

    fn set_cr8(&mut self, _now: u64, _value: u64) {}

    fn poll(&mut self, _now: u64, window: Window) -> Poll {
        if self.leave {
            return Poll::Exit;
        }
        match self.events.front() {
            None => Poll::Nothing,
            Some(Event::Nmi) if !window.nmi => Poll::Blocked,
            Some(Event::Interrupt(_)) if !window.interrupt => Poll::Blocked,
            Some(_) => Poll::Event(self.events.pop_front().unwrap()),
        }
    }

    fn random(&mut self, now: u64) -> u64 {
        now
    }
}

pub const RAM_SIZE: usize = 4 << 20;
/// Where programs are put.
pub const CODE: u64 = 0x10_0000;
/// Top of the stack.
pub const STACK: u64 = 0x9_0000;
/// Page tables: PML4, PDPT, PD.
pub const TABLES: u64 = 0x1000;
pub const GDT: u64 = 0x4000;
pub const IDT: u64 = 0x5000;
pub const TSS: u64 = 0x6000;
/// Handlers, 16 bytes each: they store the vector and halt.
pub const HANDLERS: u64 = 0x7000;

pub struct Machine {
    pub cpu: Cpu,
    pub bus: TestBus,
    pub mem: Arc<PhysMem>,
    // Last: the processor points into it.
    pub ram: Ram,
}

impl Machine {
    /// A machine in real mode after reset, with RAM from 0.
    pub fn new() -> Self {
        let ram = Ram::new(RAM_SIZE);
        let mem = PhysMem::new();
        // SAFETY: `ram` is dropped after `cpu` and `mem`.
        unsafe { mem.map(0, ram.host, RAM_SIZE as u64, true).unwrap() };
        Machine {
            cpu: Cpu::new(mem.clone()),
            bus: TestBus::default(),
            mem,
            ram,
        }
    }

    /// A machine in long mode at CPL 0: the first GiB identity-mapped by 2 MiB pages, a GDT (8: 64-bit code, 16: data, 24: 32-bit
    /// user code, 32: user data, 40: 64-bit user code, 48: TSS) and an IDT whose handlers halt with the vector in RAX.
    pub fn long() -> Self {
        let mut m = Self::new();
        m.ram.write64(TABLES, (TABLES + 0x1000) | 7);
        m.ram.write64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        for i in 0..512 {
            m.ram.write64(TABLES + 0x2000 + i * 8, i << 21 | 0x87);
        }
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8900_6000_0067,
            0,
        ];
        for (i, d) in gdt.iter().enumerate() {
            m.ram.write64(GDT + i as u64 * 8, *d);
        }
        for v in 0..256u64 {
            let at = HANDLERS + v * 16;
            // mov eax, v; hlt; iretq
            m.ram.write(at, &[0xb8, v as u8, 0, 0, 0, 0xf4, 0x48, 0xcf]);
            m.ram.write64(
                IDT + v * 16,
                at & 0xffff | 8 << 16 | 0xee00 << 32 | (at >> 16) << 48,
            );
            m.ram.write64(IDT + v * 16 + 8, 0);
        }
        m.ram.write64(TSS + 4, 0x8_0000);
        let cpu = &mut m.cpu;
        cpu.set(Reg::Cr0, cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::MP);
        cpu.set(Reg::Cr3, TABLES);
        cpu.set(
            Reg::Cr4,
            cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE,
        );
        cpu.set(Reg::Efer, efer::LME | efer::LMA | efer::NXE | efer::SCE);
        cpu.set_segment(
            Seg::Cs,
            Segment {
                selector: 8,
                base: 0,
                limit: u32::MAX,
                access: 0xa09b,
            },
        );
        for seg in [Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            cpu.set_segment(
                seg,
                Segment {
                    selector: 16,
                    base: 0,
                    limit: u32::MAX,
                    access: 0xc093,
                },
            );
        }
        cpu.set_segment(
            Seg::Tr,
            Segment {
                selector: 48,
                base: TSS,
                limit: 0x67,
                access: 0x8b,
            },
        );
        cpu.set_gdtr(Table {
            base: GDT,
            limit: 63,
        });
        cpu.set_idtr(Table {
            base: IDT,
            limit: 4095,
        });
        cpu.set(Reg::Rsp, STACK);
        cpu.set(Reg::Rip, CODE);
        cpu.set(Reg::Rflags, 2);
        m
    }

    /// 32-bit protected mode without paging, flat segments.
    pub fn protected() -> Self {
        let mut m = Self::new();
        for (i, d) in [
            0u64,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
        ]
        .iter()
        .enumerate()
        {
            m.ram.write64(GDT + i as u64 * 8, *d);
        }
        for v in 0..256u64 {
            let at = HANDLERS + v * 16;
            m.ram.write(at, &[0xb8, v as u8, 0, 0, 0, 0xf4, 0xcf]);
            m.ram.write64(
                IDT + v * 8,
                at & 0xffff | 8 << 16 | 0xee00 << 32 | (at >> 16) << 48,
            );
        }
        let cpu = &mut m.cpu;
        cpu.set(Reg::Cr0, cr0::PE | cr0::NE);
        cpu.set_segment(
            Seg::Cs,
            Segment {
                selector: 8,
                base: 0,
                limit: u32::MAX,
                access: 0xc09b,
            },
        );
        for seg in [Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            cpu.set_segment(
                seg,
                Segment {
                    selector: 16,
                    base: 0,
                    limit: u32::MAX,
                    access: 0xc093,
                },
            );
        }
        cpu.set_gdtr(Table {
            base: GDT,
            limit: 63,
        });
        cpu.set_idtr(Table {
            base: IDT,
            limit: 2047,
        });
        cpu.set(Reg::Rsp, STACK);
        cpu.set(Reg::Rip, CODE);
        cpu.set(Reg::Rflags, 2);
        m
    }

    /// Assembles a program at `CODE`.
    pub fn load(&mut self, bitness: u32, f: impl FnOnce(&mut CodeAssembler)) {
        self.load_at(CODE, bitness, f);
    }

    pub fn load_at(&mut self, at: u64, bitness: u32, f: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(bitness).unwrap();
        f(&mut a);
        self.ram.write(at, &a.assemble(at).unwrap());
    }

    /// Runs to an exit other than `Limit`, `step` instructions at a time.
    pub fn run_by(&mut self, step: u64) -> Exit {
        for _ in 0..10_000_000 / step.min(10_000_000) + 1 {
            match self.cpu.run(&mut self.bus, step) {
                Exit::Limit => {}
                exit => return exit,
            }
        }
        panic!(
            "the program does not end: rip {:#x}",
            self.cpu.get(Reg::Rip)
        );
    }

    pub fn run(&mut self) -> Exit {
        self.run_by(10_000_000)
    }

    /// Everything that a program can see of the processor.
    pub fn state(&self) -> Vec<u64> {
        let mut all: Vec<u64> = Reg::GENERAL.iter().map(|&r| self.cpu.get(r)).collect();
        all.extend([Reg::Rip, Reg::Rflags, Reg::Cr0, Reg::Cr2, Reg::Cr3].map(|r| self.cpu.get(r)));
        all.push(self.cpu.retired());
        all
    }
}
