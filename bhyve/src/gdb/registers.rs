// SPDX-License-Identifier: BSD-2-Clause

//! The registers as the debugger numbers them (`gdb_regset` and `amd64.xml` of `usr.sbin/bhyve`).

use std::fmt::Write as _;
use vmmapi::abi;

/// A register of the debugger's.
#[derive(Debug, Clone, Copy)]
pub struct Register {
    /// Its name in gdb.
    name: &'static str,
    /// Width in bits.
    bits: usize,
    /// gdb's name for the type of its value.
    kind: &'static str,
    /// Where the vmm has it, one of `VM_REG_GUEST_*`; nowhere if no request of vmm(4) returns it.
    pub vmm: Option<i32>,
}

impl Register {
    /// Width in bytes.
    pub fn size(&self) -> usize {
        self.bits / 8
    }
}

const fn register(name: &'static str, bits: usize, kind: &'static str, vmm: i32) -> Register {
    Register {
        name,
        bits,
        kind,
        vmm: Some(vmm),
    }
}

/// Those that a `g` packet has: gdb's amd64 numbers 0 to 23.
pub const GENERAL: [Register; 24] = [
    register("rax", 64, "int64", abi::VM_REG_GUEST_RAX),
    register("rbx", 64, "int64", abi::VM_REG_GUEST_RBX),
    register("rcx", 64, "int64", abi::VM_REG_GUEST_RCX),
    register("rdx", 64, "int64", abi::VM_REG_GUEST_RDX),
    register("rsi", 64, "int64", abi::VM_REG_GUEST_RSI),
    register("rdi", 64, "int64", abi::VM_REG_GUEST_RDI),
    register("rbp", 64, "data_ptr", abi::VM_REG_GUEST_RBP),
    register("rsp", 64, "data_ptr", abi::VM_REG_GUEST_RSP),
    register("r8", 64, "int64", abi::VM_REG_GUEST_R8),
    register("r9", 64, "int64", abi::VM_REG_GUEST_R9),
    register("r10", 64, "int64", abi::VM_REG_GUEST_R10),
    register("r11", 64, "int64", abi::VM_REG_GUEST_R11),
    register("r12", 64, "int64", abi::VM_REG_GUEST_R12),
    register("r13", 64, "int64", abi::VM_REG_GUEST_R13),
    register("r14", 64, "int64", abi::VM_REG_GUEST_R14),
    register("r15", 64, "int64", abi::VM_REG_GUEST_R15),
    register("rip", 64, "code_ptr", abi::VM_REG_GUEST_RIP),
    register("eflags", 32, "i386_eflags", abi::VM_REG_GUEST_RFLAGS),
    register("cs", 32, "int32", abi::VM_REG_GUEST_CS),
    register("ss", 32, "int32", abi::VM_REG_GUEST_SS),
    register("ds", 32, "int32", abi::VM_REG_GUEST_DS),
    register("es", 32, "int32", abi::VM_REG_GUEST_ES),
    register("fs", 32, "int32", abi::VM_REG_GUEST_FS),
    register("gs", 32, "int32", abi::VM_REG_GUEST_GS),
];

/// gdb wants the x87's in any description; the vmm does not give them away.
const X87: [&str; 16] = [
    "st0", "st1", "st2", "st3", "st4", "st5", "st6", "st7", "fctrl", "fstat", "ftag", "fiseg",
    "fioff", "foseg", "fooff", "fop",
];

/// The other registers that matter to a kernel; the debugger asks for them one by one only.
const SYSTEM: [Register; 6] = [
    register("cr0", 64, "int64", abi::VM_REG_GUEST_CR0),
    register("cr2", 64, "int64", abi::VM_REG_GUEST_CR2),
    register("cr3", 64, "int64", abi::VM_REG_GUEST_CR3),
    register("cr4", 64, "int64", abi::VM_REG_GUEST_CR4),
    register("efer", 64, "int64", abi::VM_REG_GUEST_EFER),
    register("dr7", 64, "int64", abi::VM_REG_GUEST_DR7),
];

/// EFLAGS' names for gdb, with their bits.
const FLAGS: [(&str, u8); 16] = [
    ("CF", 0),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];

fn x87() -> impl Iterator<Item = Register> {
    X87.into_iter().map(|name| {
        let stack = name.starts_with("st");
        Register {
            name,
            bits: if stack { 80 } else { 32 },
            kind: if stack { "i387_ext" } else { "int" },
            vmm: None,
        }
    })
}

/// The register of that number.
pub fn by_number(number: u64) -> Option<Register> {
    GENERAL
        .into_iter()
        .chain(x87())
        .chain(SYSTEM)
        .nth(usize::try_from(number).ok()?)
}

/// `target.xml`: the description of the registers above, in the order of their numbers.
pub fn description() -> String {
    let mut xml = String::from(concat!(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n",
        "<architecture>i386:x86-64</architecture>\n<feature name=\"org.gnu.gdb.i386.core\">\n",
        "<flags id=\"i386_eflags\" size=\"4\">\n",
    ));
    // Writing to a string does not fail.
    for (name, bit) in FLAGS {
        let _ = writeln!(
            xml,
            "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>"
        );
    }
    xml.push_str("</flags>\n");
    let line = |xml: &mut String, register: Register| {
        let Register {
            name, bits, kind, ..
        } = register;
        let _ = writeln!(
            xml,
            "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>"
        );
    };
    for register in GENERAL.into_iter().chain(x87()) {
        line(&mut xml, register);
    }
    xml.push_str("</feature>\n<feature name=\"bhyve.system\">\n");
    for register in SYSTEM {
        line(&mut xml, register);
    }
    xml.push_str("</feature>\n</target>\n");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_gdbs() {
        let name = |number| by_number(number).map(|register| register.name);
        assert_eq!(name(0), Some("rax"));
        assert_eq!(name(16), Some("rip"));
        assert_eq!(name(23), Some("gs"));
        assert_eq!(name(24), Some("st0"));
        assert_eq!(name(39), Some("fop"));
        assert_eq!(name(40), Some("cr0"));
        assert_eq!(name(46), None);
        assert_eq!(name(u64::MAX), None);
        let size: usize = GENERAL.iter().map(Register::size).sum();
        assert_eq!(size, 17 * 8 + 7 * 4);
        assert_eq!(description().matches("<reg ").count(), 46);
    }
}
