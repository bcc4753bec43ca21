// SPDX-License-Identifier: BSD-2-Clause

//! `STRUCT_VMCX` as `svm_vcpu_snapshot` of `sys/amd64/vmm/amd/svm.c` has it: the processor.
//!
//! Intercepts, ASID, AVIC addresses and TLB control are host state. They are written as a kernel expects them, and
//! read without being looked at, but for one: IRET is intercepted while NMIs are blocked, and nothing else says that they are.

use vmm_abi::SegDesc;
use vmm_cpu::{Reg, Seg, Segment, Table, cr0, cr4, efer};

use crate::io::wire::{Reader, StateError, Writer};
use crate::vcpu::Core;
use crate::vcpu_lock::Frozen;
use crate::vmcb::{self, FIELD_INST1, FIELD_STAR, SNAPSHOT_FIELDS, control};
use crate::vmm_msr::{MTRR_BYTES, Mtrr};
use crate::vmm_regs::descriptor;

const VCPU_BYTES: usize = 772;

/// Bytes of a virtual CPU; older kernels end before the MTRRs.
fn vcpu_bytes(mtrrs: bool) -> usize {
    VCPU_BYTES + if mtrrs { MTRR_BYTES } else { 0 }
}

const HEAD: [Reg; 10] = [
    Reg::Cr0,
    Reg::Cr2,
    Reg::Cr3,
    Reg::Cr4,
    Reg::Dr6,
    Reg::Dr7,
    Reg::Rax,
    Reg::Rsp,
    Reg::Rip,
    Reg::Rflags,
];
const SEGMENTS: [Seg; 8] = [
    Seg::Es,
    Seg::Cs,
    Seg::Ss,
    Seg::Ds,
    Seg::Fs,
    Seg::Gs,
    Seg::Tr,
    Seg::Ldtr,
];
/// Registers among the fields of the control block, from `FIELD_STAR` on.
const FIELDS: [Reg; 9] = [
    Reg::Star,
    Reg::Lstar,
    Reg::Cstar,
    Reg::Sfmask,
    Reg::KernelGsBase,
    Reg::SysenterCs,
    Reg::SysenterEsp,
    Reg::SysenterEip,
    Reg::Pat,
];
/// `struct svm_regctx`.
const CONTEXT: [Reg; 18] = [
    Reg::Rbp,
    Reg::Rbx,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rdi,
    Reg::Rsi,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
    Reg::Dr0,
    Reg::Dr1,
    Reg::Dr2,
    Reg::Dr3,
];
/// In EFER of every guest on SVM.
const EFER_SVME: u64 = efer::SVME;

fn put_descriptor(out: &mut Writer, desc: SegDesc) {
    out.u64(desc.base);
    out.u32(desc.limit);
    out.u32(desc.access);
}

fn get_descriptor(reader: &mut Reader<'_>) -> SegDesc {
    SegDesc::new(reader.u64(), reader.u32(), reader.u32())
}

/// All virtual CPUs.
pub fn save(cpus: &[Frozen<'_>], mtrrs: bool) -> Vec<u8> {
    let mut out = Writer::new(cpus.len() * vcpu_bytes(mtrrs));
    cpus.iter().for_each(|core| save_one(core, mtrrs, &mut out));
    out.finish()
}

fn save_one(core: &Core, mtrrs: bool, out: &mut Writer) {
    let cpu = &core.cpu;
    HEAD.iter().for_each(|&reg| out.u64(cpu.get(reg)));
    for seg in SEGMENTS {
        let segment = cpu.segment(seg);
        out.u64(segment.selector.into());
        put_descriptor(out, descriptor(segment));
    }
    out.u64(cpu.get(Reg::Efer) | EFER_SVME);
    for table in [cpu.idtr(), cpu.gdtr()] {
        put_descriptor(out, SegDesc::new(table.base, table.limit.into(), 0));
    }
    out.u64(cpu.interrupt_shadow().into());
    let image = vmcb::image(core);
    for (offset, size) in SNAPSHOT_FIELDS {
        // All offsets lie inside the block.
        out.u64(vmcb::field(&image, offset, size).unwrap_or(0));
    }
    CONTEXT.iter().for_each(|&reg| out.u64(cpu.get(reg)));
    out.u64(core.side.next_rip);
    // The host CPU of the last run, clean bits, nested page table and ASID generations: none.
    out.i32(-1);
    out.u32(0);
    out.i64(0);
    out.u64(0);
    out.u32(0);
    if mtrrs {
        core.side.msrs.mtrr.words().for_each(|word| out.u64(word));
    }
}

struct VcpuState {
    head: [u64; HEAD.len()],
    segments: [Segment; SEGMENTS.len()],
    efer: u64,
    idtr: Table,
    gdtr: Table,
    shadow: bool,
    nmi_blocked: bool,
    fields: [u64; FIELDS.len()],
    context: [u64; CONTEXT.len()],
    next_rip: u64,
    /// None if the struct ends before them: those that there are stay.
    mtrr: Option<Mtrr>,
}

/// Whether every byte of PAT is a memory type.
fn valid_pat(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|&kind| matches!(kind, 0 | 1 | 4..=7))
}

fn parse(reader: &mut Reader<'_>, mtrrs: bool) -> Result<VcpuState, StateError> {
    let head: [u64; HEAD.len()] = std::array::from_fn(|_| reader.u64());
    let [cr0, _, _, cr4, ..] = head;
    reader.check(
        cr0 >> 32 == 0 && (cr0 & cr0::PG == 0 || cr0 & cr0::PE != 0),
        "CR0",
    )?;
    reader.check(cr4 & !cr4::ALL == 0, "CR4")?;
    let mut segments = [Segment::default(); SEGMENTS.len()];
    for segment in &mut segments {
        let selector = u16::try_from(reader.u64()).map_err(|_| reader.bad("segment selector"))?;
        let SegDesc {
            base,
            limit,
            access,
        } = get_descriptor(reader);
        *segment = Segment {
            selector,
            base,
            limit,
            access: access & 0x1_f0ff,
        };
    }
    let efer = reader.u64() & !EFER_SVME;
    reader.check(efer & !efer::ALL == 0, "EFER")?;
    let long = efer & efer::LMA != 0;
    reader.check(
        long == (efer & efer::LME != 0 && cr0 & cr0::PG != 0) && (!long || cr4 & cr4::PAE != 0),
        "EFER",
    )?;
    let mut tables = [Table::default(); 2];
    for table in &mut tables {
        let desc = get_descriptor(reader);
        *table = Table {
            base: desc.base,
            limit: (desc.limit & 0xffff) as u16,
        };
    }
    let shadow = reader.u64() & 1 != 0;
    let all: [u64; SNAPSHOT_FIELDS.len()] = std::array::from_fn(|_| reader.u64());
    let nmi_blocked = all[FIELD_INST1] & u64::from(control::INST1_IRET) != 0;
    let mut fields = [0; FIELDS.len()];
    fields.copy_from_slice(&all[FIELD_STAR..FIELD_STAR + FIELDS.len()]);
    reader.check(valid_pat(fields[FIELDS.len() - 1]), "PAT")?;
    let context = std::array::from_fn(|_| reader.u64());
    let next_rip = reader.u64();
    let _host: ([u8; 16], [u8; 12]) = (reader.array(), reader.array());
    let mtrr = if mtrrs {
        Some(Mtrr::from_words(|| Some(reader.u64())).ok_or(reader.bad("MTRR"))?)
    } else {
        None
    };
    let [idtr, gdtr] = tables;
    Ok(VcpuState {
        head,
        segments,
        efer,
        idtr,
        gdtr,
        shadow,
        nmi_blocked,
        fields,
        context,
        next_rip,
        mtrr,
    })
}

const _: () = assert!(MTRR_BYTES == 256);

/// All virtual CPUs, or none.
pub fn restore(cpus: &mut [Frozen<'_>], bytes: &[u8], mtrrs: bool) -> Result<(), StateError> {
    let mut reader = Reader::new("vmcx", bytes, cpus.len() * vcpu_bytes(mtrrs))?;
    let states: Vec<VcpuState> = cpus
        .iter()
        .map(|_| parse(&mut reader, mtrrs))
        .collect::<Result<_, _>>()?;
    for (core, state) in cpus.iter_mut().zip(states) {
        apply(core, state);
    }
    Ok(())
}

fn apply(core: &mut Core, state: VcpuState) {
    let VcpuState {
        head,
        segments,
        efer,
        idtr,
        gdtr,
        shadow,
        nmi_blocked,
        fields,
        context,
        next_rip,
        mtrr,
    } = state;
    let cpu = &mut core.cpu;
    cpu.set(Reg::Efer, efer);
    for (&reg, value) in HEAD
        .iter()
        .zip(head)
        .chain(FIELDS.iter().zip(fields))
        .chain(CONTEXT.iter().zip(context))
    {
        cpu.set(reg, value);
    }
    for (&seg, segment) in SEGMENTS.iter().zip(segments) {
        cpu.set_segment(seg, segment);
    }
    cpu.set_idtr(idtr);
    cpu.set_gdtr(gdtr);
    cpu.set_interrupt_shadow(shadow);
    cpu.set_nmi_blocked(nmi_blocked);
    cpu.flush_tlb();
    core.side.next_rip = next_rip;
    if let Some(mtrr) = mtrr {
        core.side.msrs.mtrr = mtrr;
    }
}
