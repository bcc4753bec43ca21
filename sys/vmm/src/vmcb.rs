// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/vmm/amd/vmcb.h (BSD-2-Clause)
// Copyright (c) 2013 Anish Gupta (akgupt3@gmail.com). All rights reserved.

//! `sys/amd64/vmm/amd/vmcb.c`: the virtual machine control block that an AMD host would have.
//!
//! There is none here. Debuggers read it by offset (`VM_GET_REGISTER` with a negative number), and checkpoints hold
//! some of its fields; both get the image that [`image`] draws from the processor.

use vmm_abi::{VM_CAP_HALT_EXIT, VM_CAP_PAUSE_EXIT};
use vmm_cpu::{Reg, Seg, Segment};
use vmm_x86::specialreg::Efer;

use crate::vcpu::Core;

/// Size of the block in bytes.
pub const SIZE: usize = 4096;

/// `VMCB_ACCESS_VALID`: what makes a register number negative.
const ACCESS_VALID: u32 = 0x8000_0000;
/// Offset of the state save area.
const SAVE: usize = 0x400;

/// Intercepts and controls that svm(4) sets for every guest (`vmcb_init`); they mean nothing here, but a checkpoint
/// that is read by a kernel must not hold zeros.
pub mod control {
    use vmm_x86::segments::IDT_MC;

    const VMCB_INTCPT_INTR: u32 = 1 << 0;
    const VMCB_INTCPT_NMI: u32 = 1 << 1;
    const VMCB_INTCPT_SMI: u32 = 1 << 2;
    const VMCB_INTCPT_INIT: u32 = 1 << 3;
    const VMCB_INTCPT_CPUID: u32 = 1 << 18;
    const VMCB_INTCPT_IRET: u32 = 1 << 20;
    const VMCB_INTCPT_INVD: u32 = 1 << 22;
    const VMCB_INTCPT_PAUSE: u32 = 1 << 23;
    const VMCB_INTCPT_HLT: u32 = 1 << 24;
    const VMCB_INTCPT_INVLPGA: u32 = 1 << 26;
    const VMCB_INTCPT_IO: u32 = 1 << 27;
    const VMCB_INTCPT_MSR: u32 = 1 << 28;
    const VMCB_INTCPT_FERR_FREEZE: u32 = 1 << 30;
    const VMCB_INTCPT_SHUTDOWN: u32 = 1 << 31;

    const VMCB_INTCPT_VMRUN: u32 = 1 << 0;
    const VMCB_INTCPT_VMLOAD: u32 = 1 << 2;
    const VMCB_INTCPT_VMSAVE: u32 = 1 << 3;
    const VMCB_INTCPT_STGI: u32 = 1 << 4;
    const VMCB_INTCPT_CLGI: u32 = 1 << 5;
    const VMCB_INTCPT_SKINIT: u32 = 1 << 6;
    const VMCB_INTCPT_ICEBP: u32 = 1 << 8;
    const VMCB_INTCPT_MONITOR: u32 = 1 << 10;
    const VMCB_INTCPT_MWAIT: u32 = 1 << 11;

    const fn read_of(cr: u32) -> u32 {
        1 << cr
    }

    const fn write_of(cr: u32) -> u32 {
        1 << (16 + cr)
    }

    /// Reads and writes of all control registers but CR0, CR2, CR3, CR4 and CR8.
    pub const CR: u32 = !(read_of(0) | read_of(2) | read_of(3) | read_of(4) | read_of(8))
        & !(write_of(0) | write_of(2) | write_of(3) | write_of(4) | write_of(8));
    /// No access of debug registers: they are switched.
    pub const DR: u32 = 0;
    /// #MC, and #PF is the guest's own.
    pub const EXCEPTION: u32 = 1 << IDT_MC;
    /// The first word of instructions and events.
    pub const INST1: u32 = VMCB_INTCPT_INTR
        | VMCB_INTCPT_NMI
        | VMCB_INTCPT_SMI
        | VMCB_INTCPT_INIT
        | VMCB_INTCPT_CPUID
        | VMCB_INTCPT_INVD
        | VMCB_INTCPT_INVLPGA
        | VMCB_INTCPT_IO
        | VMCB_INTCPT_MSR
        | VMCB_INTCPT_FERR_FREEZE
        | VMCB_INTCPT_SHUTDOWN;
    /// IRET, in [`INST1`]: how svm(4) learns that NMIs are no longer blocked.
    pub const INST1_IRET: u32 = VMCB_INTCPT_IRET;
    /// PAUSE, in [`INST1`], where it is asked for.
    pub const INST1_PAUSE: u32 = VMCB_INTCPT_PAUSE;
    /// HLT, in [`INST1`], where it is asked for.
    pub const INST1_HLT: u32 = VMCB_INTCPT_HLT;
    /// The second word of instructions.
    pub const INST2: u32 = VMCB_INTCPT_VMRUN
        | VMCB_INTCPT_VMLOAD
        | VMCB_INTCPT_VMSAVE
        | VMCB_INTCPT_STGI
        | VMCB_INTCPT_CLGI
        | VMCB_INTCPT_SKINIT
        | VMCB_INTCPT_ICEBP
        | VMCB_INTCPT_MONITOR
        | VMCB_INTCPT_MWAIT;
}

const _: () =
    assert!(control::CR == 0xfee2_fee2 && control::INST1 == 0xdc44_000f && control::INST2 == 0xd7d);

/// The offsets of the 34 fields that a checkpoint holds, and their sizes in bytes, in its order.
pub const SNAPSHOT_FIELDS: [(usize, usize); 34] = [
    (0x000, 4),
    (0x004, 4),
    (0x008, 4),
    (0x00c, 4),
    (0x010, 4),
    (0x03c, 2),
    (0x03e, 2),
    (0x058, 4),
    (0x05c, 4),
    (0x060, 4),
    (0x070, 8),
    (0x078, 8),
    (0x080, 8),
    (0x088, 8),
    (0x090, 8),
    (0x098, 8),
    (0x0e0, 8),
    (0x0f0, 8),
    (0x0f8, 8),
    (SAVE + 0x0cb, 1),
    (SAVE + 0x200, 8),
    (SAVE + 0x208, 8),
    (SAVE + 0x210, 8),
    (SAVE + 0x218, 8),
    (SAVE + 0x220, 8),
    (SAVE + 0x228, 8),
    (SAVE + 0x230, 8),
    (SAVE + 0x238, 8),
    (SAVE + 0x268, 8),
    (SAVE + 0x270, 8),
    (SAVE + 0x278, 8),
    (SAVE + 0x280, 8),
    (SAVE + 0x288, 8),
    (SAVE + 0x290, 8),
];

/// The position in [`SNAPSHOT_FIELDS`] of the intercepts among which is IRET's.
pub const FIELD_INST1: usize = 3;
/// The position in [`SNAPSHOT_FIELDS`] of the registers that are restored from there.
pub const FIELD_STAR: usize = 20;

struct Image(Box<[u8; SIZE]>);

impl Image {
    fn put(&mut self, offset: usize, value: &[u8]) {
        if let Some(place) = self.0.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    fn put64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }

    fn segment(&mut self, offset: usize, segment: Segment) {
        // The block keeps access rights without the four reserved bits in the middle.
        let attributes = (segment.access & 0xff | (segment.access >> 4) & 0xf00) as u16;
        self.put(offset, &segment.selector.to_le_bytes());
        self.put(offset + 2, &attributes.to_le_bytes());
        self.put32(offset + 4, segment.limit);
        self.put64(offset + 8, segment.base);
    }
}

/// The block as it would be for this virtual CPU.
pub fn image(core: &Core) -> Box<[u8; SIZE]> {
    let cpu = &core.cpu;
    let inst1 = [
        (cpu.nmi_blocked(), control::INST1_IRET),
        (core.side.cap(VM_CAP_PAUSE_EXIT), control::INST1_PAUSE),
        (core.side.cap(VM_CAP_HALT_EXIT), control::INST1_HLT),
    ];
    let inst1 = inst1.iter().filter(|(on, _)| *on);
    let inst1 = inst1.fold(control::INST1, |all, (_, bit)| all | bit);
    let mut image = Image(Box::new([0; SIZE]));
    for (offset, value) in [
        (0, control::CR),
        (4, control::DR),
        (8, control::EXCEPTION),
        (0xc, inst1),
        (0x10, control::INST2),
    ] {
        image.put32(offset, value);
    }
    // An ASID of 0 would be the host's.
    image.put32(0x58, 1);
    image.put64(0x50, core.side.tsc_offset);
    image.put64(0x68, u64::from(cpu.interrupt_shadow()));
    image.put64(0x88, core.side.exit_intinfo);
    // Nested paging is on.
    image.put64(0x90, 1);
    image.put64(0xc8, core.side.next_rip);
    let segments = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];
    for (index, seg) in segments.into_iter().enumerate() {
        image.segment(SAVE + index * 16, cpu.segment(seg));
    }
    image.segment(SAVE + 0x70, cpu.segment(Seg::Ldtr));
    image.segment(SAVE + 0x90, cpu.segment(Seg::Tr));
    for (offset, table) in [(0x60, cpu.gdtr()), (0x80, cpu.idtr())] {
        image.put32(SAVE + offset + 4, u32::from(table.limit));
        image.put64(SAVE + offset + 8, table.base);
    }
    image.put(SAVE + 0xcb, &[cpu.cpl()]);
    // SVM itself must be enabled in EFER while a guest runs.
    image.put64(SAVE + 0xd0, cpu.get(Reg::Efer) | Efer::SVM.bits());
    let registers = [
        (0x148, Reg::Cr4),
        (0x150, Reg::Cr3),
        (0x158, Reg::Cr0),
        (0x160, Reg::Dr7),
        (0x168, Reg::Dr6),
        (0x170, Reg::Rflags),
        (0x178, Reg::Rip),
        (0x1d8, Reg::Rsp),
        (0x1f8, Reg::Rax),
        (0x200, Reg::Star),
        (0x208, Reg::Lstar),
        (0x210, Reg::Cstar),
        (0x218, Reg::Sfmask),
        (0x220, Reg::KernelGsBase),
        (0x228, Reg::SysenterCs),
        (0x230, Reg::SysenterEsp),
        (0x238, Reg::SysenterEip),
        (0x240, Reg::Cr2),
        (0x268, Reg::Pat),
    ];
    for (offset, reg) in registers {
        image.put64(SAVE + offset, cpu.get(reg));
    }
    image.0
}

/// Reads `size` bytes of a block, zero-extended.
pub fn field(image: &[u8; SIZE], offset: usize, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes
        .get_mut(..size)?
        .copy_from_slice(image.get(offset..offset.checked_add(size)?)?);
    Some(u64::from_le_bytes(bytes))
}

/// `vmcb_access`: a register number that is `ACCESS_VALID`, width in bytes and offset.
pub fn read(core: &Core, regnum: i32) -> Option<u64> {
    let regnum = regnum as u32;
    let width = (regnum >> 16 & 0xf) as usize;
    if regnum & ACCESS_VALID == 0 || ![1, 2, 4, 8].contains(&width) {
        return None;
    }
    field(&image(core), (regnum & 0xffff) as usize, width)
}
