// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/x86/include/segments.h (BSD-3-Clause)
// Copyright (c) 1989, 1990 William F. Jolitz. All rights reserved.
// Copyright (c) 1990 The Regents of the University of California. All rights reserved.

//! Descriptor types and exception vectors, of `sys/x86/include/segments.h`.

use crate::table::Group;

values! { TYPES:
/// Types of descriptors, with the bit that tells code and data from the system's.
DescriptorType(u32), "SDT_" {
    Tss16 "SYS286TSS" = 1 => "16-bit TSS, available.",
    Ldt "SYSLDT" = 2 => "LDT.",
    Tss16Busy "SYS286BSY" = 3 => "16-bit TSS, busy.",
    CallGate16 "SYS286CGT" = 4 => "16-bit call gate.",
    TaskGate "SYSTASKGT" = 5 => "Task gate.",
    InterruptGate16 "SYS286IGT" = 6 => "16-bit interrupt gate.",
    TrapGate16 "SYS286TGT" = 7 => "16-bit trap gate.",
    Tss "SYS386TSS" = 9 => "32-bit or 64-bit TSS, available.",
    TssBusy "SYS386BSY" = 11 => "32-bit or 64-bit TSS, busy.",
    CallGate "SYS386CGT" = 12 => "32-bit or 64-bit call gate.",
    InterruptGate "SYS386IGT" = 14 => "32-bit or 64-bit interrupt gate.",
    TrapGate "SYS386TGT" = 15 => "32-bit or 64-bit trap gate.",
    Data "MEMRW" = 18 => "Data, read and write.",
    DataAccessed "MEMRWA" = 19 => "Data, read and write, accessed.",
    Code "MEMER" = 26 => "Code, execute and read.",
    CodeAccessed "MEMERA" = 27 => "Code, execute and read, accessed.",
}}

registers! { VECTORS: u8 {
    IDT_DE = 0 => "#DE, divide error.",
    IDT_DB = 1 => "#DB, debug.",
    IDT_NMI = 2 => "NMI.",
    IDT_BP = 3 => "#BP, breakpoint.",
    IDT_OF = 4 => "#OF, overflow.",
    IDT_BR = 5 => "#BR, bound range.",
    IDT_UD = 6 => "#UD, invalid opcode.",
    IDT_NM = 7 => "#NM, no x87.",
    IDT_DF = 8 => "#DF, double fault.",
    IDT_TS = 10 => "#TS, invalid TSS.",
    IDT_NP = 11 => "#NP, segment not present.",
    IDT_SS = 12 => "#SS, stack fault.",
    IDT_GP = 13 => "#GP, general protection.",
    IDT_PF = 14 => "#PF, page fault.",
    IDT_MF = 16 => "#MF, x87 error.",
    IDT_AC = 17 => "#AC, alignment check.",
    IDT_MC = 18 => "#MC, machine check.",
    IDT_XF = 19 => "#XF, SIMD floating-point exception.",
}}

numbers! { VECTOR_RANGES: u8 {
    NRSVIDT = 32 => "Vectors below this one are exceptions.",
}}

pub(crate) const GROUPS: &[Group] = &[TYPES, VECTORS, VECTOR_RANGES];
