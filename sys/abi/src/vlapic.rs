// SPDX-License-Identifier: BSD-2-Clause
//
// The numbers are those of this file of FreeBSD:
//
// sys/amd64/vmm/io/vlapic.c (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.
// Copyright (c) 2019 Joyent, Inc. All rights reserved.

//! What `STRUCT_VLAPIC` of a snapshot request carries (`vlapic_snapshot` of `sys/amd64/vmm/io/vlapic.c`). No header describes it: no table holds these
//! numbers against FreeBSD's.

/// Bytes of each local APIC: the page of registers, and what the kernel keeps beside it.
pub const VLAPIC_BYTES: usize = 4169;
/// Where the timer's count is in them: behind all else, 32 bits.
pub const VLAPIC_CCR: usize = VLAPIC_BYTES - 4;
