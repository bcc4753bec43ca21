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

/// Offsets of fields in bytes: `VMCB_OFF_*`, and the members of `struct vmcb_ctrl` and `struct vmcb_state` that have no such name.
mod off {
    /// `VMCB_OFF_STATE`: the state save area.
    const fn state(offset: usize) -> usize {
        0x400 + offset
    }

    pub const CR_INTERCEPT: usize = 0x00;
    pub const DR_INTERCEPT: usize = 0x04;
    pub const EXC_INTERCEPT: usize = 0x08;
    pub const INST1_INTERCEPT: usize = 0x0c;
    pub const INST2_INTERCEPT: usize = 0x10;
    pub const PAUSE_FILTHRESH: usize = 0x3c;
    pub const PAUSE_FILCNT: usize = 0x3e;
    pub const TSC_OFFSET: usize = 0x50;
    pub const ASID: usize = 0x58;
    pub const TLB_CTRL: usize = 0x5c;
    pub const VIRQ: usize = 0x60;
    pub const INTR_SHADOW: usize = 0x68;
    pub const EXIT_REASON: usize = 0x70;
    pub const EXITINFO1: usize = 0x78;
    pub const EXITINFO2: usize = 0x80;
    pub const EXITINTINFO: usize = 0x88;
    pub const NP_ENABLE: usize = 0x90;
    pub const AVIC_BAR: usize = 0x98;
    pub const NRIP: usize = 0xc8;
    pub const AVIC_PAGE: usize = 0xe0;
    pub const AVIC_LT: usize = 0xf0;
    pub const AVIC_PT: usize = 0xf8;

    pub const ES: usize = state(0x00);
    pub const CS: usize = state(0x10);
    pub const SS: usize = state(0x20);
    pub const DS: usize = state(0x30);
    pub const FS: usize = state(0x40);
    pub const GS: usize = state(0x50);
    pub const GDT: usize = state(0x60);
    pub const LDT: usize = state(0x70);
    pub const IDT: usize = state(0x80);
    pub const TR: usize = state(0x90);
    pub const CPL: usize = state(0xcb);
    pub const EFER: usize = state(0xd0);
    pub const CR4: usize = state(0x148);
    pub const CR3: usize = state(0x150);
    pub const CR0: usize = state(0x158);
    pub const DR7: usize = state(0x160);
    pub const DR6: usize = state(0x168);
    pub const RFLAGS: usize = state(0x170);
    pub const RIP: usize = state(0x178);
    pub const RSP: usize = state(0x1d8);
    pub const RAX: usize = state(0x1f8);
    pub const STAR: usize = state(0x200);
    pub const LSTAR: usize = state(0x208);
    pub const CSTAR: usize = state(0x210);
    pub const SFMASK: usize = state(0x218);
    pub const KERNELGBASE: usize = state(0x220);
    pub const SYSENTER_CS: usize = state(0x228);
    pub const SYSENTER_ESP: usize = state(0x230);
    pub const SYSENTER_EIP: usize = state(0x238);
    pub const CR2: usize = state(0x240);
    pub const GUEST_PAT: usize = state(0x268);
    pub const DBGCTL: usize = state(0x270);
    pub const BR_FROM: usize = state(0x278);
    pub const BR_TO: usize = state(0x280);
    pub const INT_FROM: usize = state(0x288);
    pub const INT_TO: usize = state(0x290);
}

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
    (off::CR_INTERCEPT, 4),
    (off::DR_INTERCEPT, 4),
    (off::EXC_INTERCEPT, 4),
    (off::INST1_INTERCEPT, 4),
    (off::INST2_INTERCEPT, 4),
    (off::PAUSE_FILTHRESH, 2),
    (off::PAUSE_FILCNT, 2),
    (off::ASID, 4),
    (off::TLB_CTRL, 4),
    (off::VIRQ, 4),
    (off::EXIT_REASON, 8),
    (off::EXITINFO1, 8),
    (off::EXITINFO2, 8),
    (off::EXITINTINFO, 8),
    (off::NP_ENABLE, 8),
    (off::AVIC_BAR, 8),
    (off::AVIC_PAGE, 8),
    (off::AVIC_LT, 8),
    (off::AVIC_PT, 8),
    (off::CPL, 1),
    (off::STAR, 8),
    (off::LSTAR, 8),
    (off::CSTAR, 8),
    (off::SFMASK, 8),
    (off::KERNELGBASE, 8),
    (off::SYSENTER_CS, 8),
    (off::SYSENTER_ESP, 8),
    (off::SYSENTER_EIP, 8),
    (off::GUEST_PAT, 8),
    (off::DBGCTL, 8),
    (off::BR_FROM, 8),
    (off::BR_TO, 8),
    (off::INT_FROM, 8),
    (off::INT_TO, 8),
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
        self.limit_and_base(offset, segment.limit, segment.base);
    }

    // The rest of `struct vmcb_segment`, all that a descriptor table has.
    fn limit_and_base(&mut self, offset: usize, limit: u32, base: u64) {
        self.put32(offset + 4, limit);
        self.put64(offset + 8, base);
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
        (off::CR_INTERCEPT, control::CR),
        (off::DR_INTERCEPT, control::DR),
        (off::EXC_INTERCEPT, control::EXCEPTION),
        (off::INST1_INTERCEPT, inst1),
        (off::INST2_INTERCEPT, control::INST2),
    ] {
        image.put32(offset, value);
    }
    // An ASID of 0 would be the host's.
    image.put32(off::ASID, 1);
    image.put64(off::TSC_OFFSET, core.side.tsc_offset);
    image.put64(off::INTR_SHADOW, u64::from(cpu.interrupt_shadow()));
    image.put64(off::EXITINTINFO, core.side.exit_intinfo);
    // Nested paging is on.
    image.put64(off::NP_ENABLE, 1);
    image.put64(off::NRIP, core.side.next_rip);
    let segments = [
        (off::ES, Seg::Es),
        (off::CS, Seg::Cs),
        (off::SS, Seg::Ss),
        (off::DS, Seg::Ds),
        (off::FS, Seg::Fs),
        (off::GS, Seg::Gs),
        (off::LDT, Seg::Ldtr),
        (off::TR, Seg::Tr),
    ];
    for (offset, seg) in segments {
        image.segment(offset, cpu.segment(seg));
    }
    for (offset, table) in [(off::GDT, cpu.gdtr()), (off::IDT, cpu.idtr())] {
        image.limit_and_base(offset, table.limit.into(), table.base);
    }
    image.put(off::CPL, &[cpu.cpl()]);
    // SVM itself must be enabled in EFER while a guest runs.
    image.put64(off::EFER, cpu.get(Reg::Efer) | Efer::SVM.bits());
    let registers = [
        (off::CR4, Reg::Cr4),
        (off::CR3, Reg::Cr3),
        (off::CR0, Reg::Cr0),
        (off::DR7, Reg::Dr7),
        (off::DR6, Reg::Dr6),
        (off::RFLAGS, Reg::Rflags),
        (off::RIP, Reg::Rip),
        (off::RSP, Reg::Rsp),
        (off::RAX, Reg::Rax),
        (off::STAR, Reg::Star),
        (off::LSTAR, Reg::Lstar),
        (off::CSTAR, Reg::Cstar),
        (off::SFMASK, Reg::Sfmask),
        (off::KERNELGBASE, Reg::KernelGsBase),
        (off::SYSENTER_CS, Reg::SysenterCs),
        (off::SYSENTER_ESP, Reg::SysenterEsp),
        (off::SYSENTER_EIP, Reg::SysenterEip),
        (off::CR2, Reg::Cr2),
        (off::GUEST_PAT, Reg::Pat),
    ];
    for (offset, reg) in registers {
        image.put64(offset, cpu.get(reg));
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
