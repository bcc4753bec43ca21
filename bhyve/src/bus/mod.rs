// SPDX-License-Identifier: BSD-2-Clause

//! The buses that guest accesses arrive on: memory-mapped I/O, I/O ports and PCI.

pub mod inout;
pub mod mem;
pub mod pci;
