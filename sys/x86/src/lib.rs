// SPDX-License-Identifier: BSD-2-Clause

//! The registers and addresses of x86 and of the PC: what FreeBSD has in `sys/x86/include`, `sys/dev/ic` and the headers of its
//! drivers. The processor, the vmm and userland use the same ones.
//!
//! Each fact has one name. A register whose bits have meanings is a [`bitflags`] type, whose members are called as in FreeBSD
//! without the prefix ([`Cr0::PE`](specialreg::Cr0::PE) is `CR0_PE`); a field with a fixed list of values is an enumeration;
//! numbers of registers, addresses and ports are constants. A type keeps bits that have no name, so that a word that a guest
//! has written survives the way through it.
//!
//! All that is declared is in [`table`], too, from which a test holds it against FreeBSD's headers. Another test demands that
//! each constant is used. The bits of a register and the registers of a device are exempt one by one, because a register
//! map with gaps would be read as if there were nothing at the gap; what is exempt is the map, not a map of which nothing is used.
#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)] // a caller has to know what can happen

#[macro_use]
mod macros;

pub mod acpi;
pub mod apicreg;
pub mod hpet;
pub mod i8042;
pub mod i8253;
pub mod i8259;
pub mod isa;
pub mod ns16550;
pub mod rtc;
pub mod segments;
pub mod specialreg;
pub mod table;
