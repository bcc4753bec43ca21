// SPDX-License-Identifier: BSD-2-Clause

//! What firmware leaves in guest memory: tables, the memory map, and a kernel that is booted directly.

pub mod acpi;
pub mod direct;
pub mod e820;
pub mod mptbl;
pub mod smbiostbl;
