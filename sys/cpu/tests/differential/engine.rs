// SPDX-License-Identifier: BSD-2-Clause

//! The whole processor: long mode, privilege level 3, the case's pages at the same addresses as on the host. Every exception
//! is delivered through the IDT to a HLT of its own in privilege level 0, so that delivery is under test, too.

#![expect(unsafe_code, reason = "memory for the guest, by address")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr;
use std::sync::Arc;

use vmm_cpu::fpu::Form;
use vmm_cpu::{
    Bus, Cpu, CpuidInputs, Exit, PhysMem, Poll, Reg, Reply, Seg, Segment, Table, Traps, Window,
    cr0, cr4, efer,
};

use crate::case::{CODE, CODE_LEN, Case, DATA, DATA_LEN, DATA_RW, Outcome};

const RAM: usize = 0x4_0000;
const PAGE: u64 = 0x1000;
/// Where the kernel sees all of RAM.
const KERNEL: u64 = 0xffff_8000_0000_0000;

// Guest-physical addresses.
const PML4: u64 = 0x1000;
const USER_PDPT: u64 = 0x2000;
const USER_PD: u64 = 0x3000;
const CODE_PT: u64 = 0x4000;
const DATA_PT: u64 = 0x5000;
const KERNEL_PDPT: u64 = 0x6000;
const KERNEL_PD: u64 = 0x7000;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x9000;
const TSS: u64 = 0x9100;
/// HLT, one for each vector.
const HANDLERS: u64 = 0xa000;
const STACK_TOP: u64 = 0xc000;
const CODE_PAGE: u64 = 0x1_0000;
const DATA_PAGES: u64 = 0x2_0000;

// Page table entries.
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const LARGE: u64 = 0x80;
const NX: u64 = 1 << 63;

const KERNEL_CS: u64 = 8;
const VECTORS: u64 = 32;
/// An interrupt gate of privilege level 0, and one that INT3 and INTO may use.
const GATE: u64 = 0x8e;
const USER_GATE: u64 = 0xee;
const USER_DATA: Segment = Segment {
    selector: 0x2b,
    base: 0,
    limit: u32::MAX,
    access: 0xc0f3,
};
/// More than any case executes.
const BUDGET: u64 = 1_000_000;

/// A machine with nothing but memory.
struct Nothing;

impl Bus for Nothing {
    fn mmio_read(&mut self, _: u64, _: u64, _: u8) -> Reply<u64> {
        Reply::Exit
    }
    fn mmio_write(&mut self, _: u64, _: u64, _: u8, _: u64) -> Reply<()> {
        Reply::Exit
    }
    fn in_port(&mut self, _: u64, _: u16, _: u8) -> Reply<u32> {
        Reply::Exit
    }
    fn out_port(&mut self, _: u64, _: u16, _: u8, _: u32) -> Reply<()> {
        Reply::Exit
    }
    fn rdmsr(&mut self, _: u64, _: u32) -> Reply<u64> {
        Reply::Exit
    }
    fn wrmsr(&mut self, _: u64, _: u32, _: u64) -> Reply<()> {
        Reply::Exit
    }
    fn cpuid(&mut self, _: u32, _: u32, _: CpuidInputs) -> [u32; 4] {
        [0; 4]
    }
    fn tsc(&mut self, now: u64) -> u64 {
        now
    }
    fn cr8(&mut self, _: u64) -> u64 {
        0
    }
    fn set_cr8(&mut self, _: u64, _: u64) {}
    fn poll(&mut self, _: u64, _: Window) -> Poll {
        Poll::Nothing
    }
    fn random(&mut self, _: u64) -> u64 {
        0
    }
}

/// The engine in a machine that is set up for cases.
pub struct Engine {
    cpu: Cpu,
    memory: Arc<PhysMem>,
    ram: *mut u8,
}

impl Engine {
    pub fn new() -> Self {
        let memory = PhysMem::new();
        // SAFETY: the layout is not empty; the memory is freed only after the processor is gone, when `Engine` is dropped, and
        // is only used through `ram`.
        let ram = unsafe {
            let ram = alloc_zeroed(Self::layout());
            assert!(!ram.is_null(), "no memory");
            memory
                .map(0, ram, RAM as u64, true)
                .expect("the map is empty");
            ram
        };
        let mut engine = Self {
            cpu: Cpu::new(memory.clone()),
            memory,
            ram,
        };
        engine.build();
        engine
    }

    fn layout() -> Layout {
        Layout::from_size_align(RAM, PAGE as usize).expect("a page is a power of two")
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= RAM);
        // SAFETY: within RAM, as asserted, and no processor is running.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.add(at as usize), bytes.len()) }
    }

    fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn read_u64(&self, at: u64) -> u64 {
        assert!(at as usize + 8 <= RAM);
        // SAFETY: within RAM, as asserted.
        unsafe { ptr::read_unaligned(self.ram.add(at as usize).cast()) }
    }

    /// Page tables, descriptors and the processor's registers.
    fn build(&mut self) {
        let (code_pd, data_pd) = (CODE >> 21 & 511, DATA >> 21 & 511);
        self.write_u64(PML4, USER_PDPT | P | W | U);
        self.write_u64(USER_PDPT, USER_PD | P | W | U);
        self.write_u64(USER_PD + 8 * code_pd, CODE_PT | P | W | U);
        self.write_u64(USER_PD + 8 * data_pd, DATA_PT | P | W | U);
        self.write_u64(CODE_PT, CODE_PAGE | P | U);
        for page in 0..DATA_LEN as u64 / PAGE {
            let writable = if page * PAGE < DATA_RW as u64 { W } else { 0 };
            self.write_u64(
                DATA_PT + 8 * page,
                (DATA_PAGES + page * PAGE) | P | U | writable | NX,
            );
        }
        self.write_u64(PML4 + 8 * 256, KERNEL_PDPT | P | W);
        self.write_u64(KERNEL_PDPT, KERNEL_PD | P | W);
        self.write_u64(KERNEL_PD, P | W | LARGE);
        for vector in 0..VECTORS {
            let at = KERNEL + HANDLERS + vector;
            let kind = if matches!(vector, 3 | 4) {
                USER_GATE
            } else {
                GATE
            };
            self.write_u64(
                IDT + 16 * vector,
                at & 0xffff | KERNEL_CS << 16 | kind << 40 | (at >> 16 & 0xffff) << 48,
            );
            self.write_u64(IDT + 16 * vector + 8, at >> 32);
            self.write(HANDLERS + vector, &[0xf4]);
        }
        self.write_u64(GDT + KERNEL_CS, 0x00af_9b00_0000_ffff);
        // Linux's for programs: 32-bit code, data, 64-bit code.
        self.write_u64(GDT + 0x20, 0x00cf_fb00_0000_ffff);
        self.write_u64(GDT + 0x28, 0x00cf_f300_0000_ffff);
        self.write_u64(GDT + 0x30, 0x00af_fb00_0000_ffff);
        self.write(TSS + 4, &(KERNEL + STACK_TOP).to_le_bytes());
        // Linux's I/O permission map is outside of the TSS.
        self.write(TSS + 0x66, &u16::MAX.to_le_bytes());
        self.write(CODE_PAGE, &[0xcc; CODE_LEN]);

        let cpu = &mut self.cpu;
        cpu.set(Reg::Cr3, PML4);
        cpu.set(
            Reg::Cr4,
            cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE,
        );
        cpu.set(Reg::Efer, efer::SCE | efer::LME | efer::LMA | efer::NXE);
        cpu.set(
            Reg::Cr0,
            cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
        );
        cpu.set_gdtr(Table {
            base: KERNEL + GDT,
            limit: 0x37,
        });
        cpu.set_idtr(Table {
            base: KERNEL + IDT,
            limit: (16 * VECTORS - 1) as u16,
        });
        cpu.set_segment(
            Seg::Tr,
            Segment {
                selector: 0x40,
                base: KERNEL + TSS,
                limit: 0x67,
                access: 0x8b,
            },
        );
        let null = Segment {
            selector: 0,
            base: 0,
            limit: 0,
            access: Segment::UNUSABLE,
        };
        for seg in [Seg::Fs, Seg::Gs, Seg::Ldtr] {
            cpu.set_segment(seg, null);
        }
        for seg in [Seg::Ds, Seg::Es] {
            cpu.set_segment(seg, USER_DATA);
        }
    }

    /// Runs a case that sets TF to its end: the addresses behind each trap, and how it has ended.
    pub fn step(&mut self, case: &Case) -> (Vec<u64>, Outcome) {
        let mut steps = Vec::new();
        let debug = Traps {
            debug: true,
            ..Traps::default()
        };
        self.cpu.set_traps(debug);
        let outcome = self.run_until(case, |cpu| {
            loop {
                match cpu.run(&mut Nothing, BUDGET) {
                    Exit::Debug { .. } => steps.push(cpu.get(Reg::Rip)),
                    exit => return exit,
                }
            }
        });
        self.cpu.set_traps(Traps::default());
        (steps, outcome)
    }

    /// Runs a case to its end.
    pub fn run(&mut self, case: &Case) -> Outcome {
        self.run_until(case, |cpu| cpu.run(&mut Nothing, BUDGET))
    }

    /// The same in 32-bit code.
    pub fn run_32(&mut self, case: &Case) -> Outcome {
        self.run_until(case, |cpu| {
            let code = Segment {
                selector: 0x23,
                access: 0xc0fb,
                ..USER_DATA
            };
            cpu.set_segment(Seg::Cs, code);
            cpu.run(&mut Nothing, BUDGET)
        })
    }

    fn run_until(&mut self, case: &Case, run: impl FnOnce(&mut Cpu) -> Exit) -> Outcome {
        self.write(CODE_PAGE + case.offset as u64, case.present());
        self.write(DATA_PAGES, &case.data[..]);
        self.memory.mark_written(CODE_PAGE, PAGE);
        let cpu = &mut self.cpu;
        for (reg, value) in Reg::GENERAL.iter().zip(case.regs) {
            cpu.set(*reg, value);
        }
        cpu.set_segment(
            Seg::Cs,
            Segment {
                selector: 0x33,
                base: 0,
                limit: u32::MAX,
                access: 0xa0fb,
            },
        );
        cpu.set_segment(Seg::Ss, USER_DATA);
        cpu.set(Reg::Rip, case.start());
        cpu.set(Reg::Rflags, case.rflags);
        cpu.fpu_mut()
            .fxrstor(&case.fx, Form::Long64)
            .expect("the image's MXCSR is valid");
        let exit = run(cpu);
        let mut fx = [0; 512];
        cpu.fpu().fxsave(&mut fx, Form::Long64);
        let mut regs = Reg::GENERAL.map(|reg| cpu.get(reg));
        let (rip, address) = (cpu.get(Reg::Rip), cpu.get(Reg::Cr2));
        let mut data = Box::new([0; DATA_LEN]);
        // SAFETY: the case's pages are within RAM, and the processor has stopped.
        unsafe {
            ptr::copy_nonoverlapping(
                self.ram.add(DATA_PAGES as usize),
                data.as_mut_ptr(),
                DATA_LEN,
            )
        };
        // Of the next case's code only as much as it has is written.
        self.write(
            CODE_PAGE + case.offset as u64,
            &[0xcc; CODE_LEN][..case.present().len()],
        );

        let vector = rip.wrapping_sub(KERNEL + HANDLERS + 1);
        let depth = (KERNEL + STACK_TOP).wrapping_sub(regs[4]);
        if exit != Exit::Hlt || vector >= VECTORS || !matches!(depth, 40 | 48) {
            // No exception was delivered as it should have been.
            let rflags = self.cpu.get(Reg::Rflags);
            return Outcome {
                vector: u8::MAX,
                error: 0,
                address,
                rip,
                regs,
                rflags,
                fx,
                data,
                note: format!("{exit:?}"),
            };
        }
        regs[4] = self.read_u64(STACK_TOP - 16);
        Outcome {
            vector: vector as u8,
            error: if depth == 48 {
                self.read_u64(STACK_TOP - 48) as u32
            } else {
                0
            },
            address,
            rip: self.read_u64(STACK_TOP - 40),
            regs,
            rflags: self.read_u64(STACK_TOP - 24),
            fx,
            data,
            note: String::new(),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The processor and the map let go of the memory first.
        self.memory.unmap(0, RAM as u64).expect("it was mapped");
        self.cpu = Cpu::new(PhysMem::new());
        // SAFETY: allocated with this layout; nothing refers to it any more.
        unsafe { dealloc(self.ram, Self::layout()) };
    }
}
