// SPDX-License-Identifier: BSD-2-Clause

//! Which exception an instruction of the supervisor's raises where: what the sweep of encodings, which is of ring 3, cannot show.
//! The conditions are those of each instruction's page in SDM volume 2 ("Protected Mode Exceptions" and its kin), or of APM volume 3
//! where it says so.

mod machine;

use machine::*;
use vmm_cpu::*;

/// Where it is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// 64-bit code at CPL 0 and 3.
    Long(u16),
    /// 32-bit code without paging, at CPL 0 and 3.
    Protected(u16),
    Real,
    /// Virtual-8086 mode, with IOPL 0.
    V8086,
}

const PLACES: [Place; 6] = [
    Place::Long(0),
    Place::Long(3),
    Place::Protected(0),
    Place::Protected(3),
    Place::Real,
    Place::V8086,
];

/// The vectors, in the order of [`PLACES`].
type Vectors = [Option<u64>; 6];

const OK: Option<u64> = None;
const UD: Option<u64> = Some(6);
const GP: Option<u64> = Some(13);

/// For CPL 0 and real mode only.
const SUPERVISOR: Vectors = [OK, GP, OK, GP, OK, GP];
/// The same, and there is nothing of the kind in the modes without descriptors.
const WITH_DESCRIPTORS: Vectors = [OK, GP, OK, GP, UD, UD];
/// The same at each privilege.
const ANY_WITH_DESCRIPTORS: Vectors = [OK, OK, OK, OK, UD, UD];
const NEVER: Vectors = [UD; 6];

const ROWS: &[(&str, &[u8], Vectors)] = &[
    ("HLT", &[0xf4], SUPERVISOR),
    ("CLTS", &[0x0f, 0x06], SUPERVISOR),
    ("INVD", &[0x0f, 0x08], SUPERVISOR),
    ("WBINVD", &[0x0f, 0x09], SUPERVISOR),
    (
        "WBINVD with REP (WBNOINVD)",
        &[0xf3, 0x0f, 0x09],
        SUPERVISOR,
    ),
    ("RDMSR", &[0x0f, 0x32], SUPERVISOR),
    ("WRMSR", &[0x0f, 0x30], SUPERVISOR),
    ("MOV from CR0", &[0x0f, 0x20, 0xc1], SUPERVISOR),
    ("MOV from CR2", &[0x0f, 0x20, 0xd1], SUPERVISOR),
    ("MOV to CR2", &[0x0f, 0x22, 0xd1], SUPERVISOR),
    ("MOV from CR4", &[0x0f, 0x20, 0xe1], SUPERVISOR),
    ("MOV from CR1", &[0x0f, 0x20, 0xc9], NEVER),
    ("MOV to CR5", &[0x0f, 0x22, 0xe9], NEVER),
    ("MOV from CR7", &[0x0f, 0x20, 0xf9], NEVER),
    ("MOV from DR0", &[0x0f, 0x21, 0xc1], SUPERVISOR),
    ("MOV from DR4, as DR6", &[0x0f, 0x21, 0xe1], SUPERVISOR),
    ("MOV to DR6", &[0x0f, 0x23, 0xf1], SUPERVISOR),
    ("LMSW", &[0x0f, 0x01, 0xf0], SUPERVISOR),
    ("SMSW", &[0x0f, 0x01, 0xe0], [OK; 6]),
    ("SGDT", &[0x0f, 0x01, 0x07], [OK; 6]),
    ("SIDT", &[0x0f, 0x01, 0x0f], [OK; 6]),
    ("LGDT with a register", &[0x0f, 0x01, 0xd7], NEVER),
    ("LIDT with a register", &[0x0f, 0x01, 0xdf], NEVER),
    ("INVLPG", &[0x0f, 0x01, 0x3f], SUPERVISOR),
    ("SWAPGS", &[0x0f, 0x01, 0xf8], [OK, GP, UD, UD, UD, UD]),
    ("CLAC", &[0x0f, 0x01, 0xca], [OK, UD, OK, UD, OK, UD]),
    ("STAC", &[0x0f, 0x01, 0xcb], [OK, UD, OK, UD, OK, UD]),
    ("LLDT", &[0x0f, 0x00, 0xd0], WITH_DESCRIPTORS),
    ("SLDT", &[0x0f, 0x00, 0xc0], ANY_WITH_DESCRIPTORS),
    ("STR", &[0x0f, 0x00, 0xc8], ANY_WITH_DESCRIPTORS),
    ("VERR", &[0x0f, 0x00, 0xe0], ANY_WITH_DESCRIPTORS),
    ("VERW", &[0x0f, 0x00, 0xe8], ANY_WITH_DESCRIPTORS),
    ("LAR", &[0x0f, 0x02, 0xc8], ANY_WITH_DESCRIPTORS),
    ("LSL", &[0x0f, 0x03, 0xc8], ANY_WITH_DESCRIPTORS),
    (
        "ARPL, in 64-bit code MOVSXD",
        &[0x63, 0xc1],
        ANY_WITH_DESCRIPTORS,
    ),
    ("0F 00 /6", &[0x0f, 0x00, 0xf0], NEVER),
    ("SYSRET without EFER.SCE", &[0x0f, 0x07], NEVER),
    ("SYSCALL without EFER.SCE", &[0x0f, 0x05], NEVER),
    // APM 3: in long mode there are none. IA32_SYSENTER_CS is zero.
    ("SYSENTER", &[0x0f, 0x34], [UD, UD, GP, GP, GP, GP]),
    ("SYSEXIT", &[0x0f, 0x35], [UD, UD, GP, GP, GP, GP]),
    // SDM 3C, 32.2: outside of system management mode.
    ("RSM", &[0x0f, 0xaa], NEVER),
    ("XGETBV without CR4.OSXSAVE", &[0x0f, 0x01, 0xd0], NEVER),
    ("XSETBV without CR4.OSXSAVE", &[0x0f, 0x01, 0xd1], NEVER),
    ("RDTSC", &[0x0f, 0x31], [OK; 6]),
    ("CPUID", &[0x0f, 0xa2], [OK; 6]),
    ("IN with IOPL 0", &[0xec], SUPERVISOR),
    ("OUT with IOPL 0", &[0xee], SUPERVISOR),
    ("CLI", &[0xfa], SUPERVISOR),
    ("STI", &[0xfb], SUPERVISOR),
    ("PUSHF", &[0x9c], [OK, OK, OK, OK, OK, GP]),
    ("POPF", &[0x9d], [OK, OK, OK, OK, OK, GP]),
    ("UD0", &[0x0f, 0xff, 0xc0], NEVER),
    ("UD1", &[0x0f, 0xb9, 0xc0], NEVER),
    ("UD2", &[0x0f, 0x0b], NEVER),
    // What CPUID does not show.
    ("GETSEC", &[0x0f, 0x37], NEVER),
    ("MONITOR", &[0x0f, 0x01, 0xc8], NEVER),
    ("MWAIT", &[0x0f, 0x01, 0xc9], NEVER),
    ("VMRUN", &[0x0f, 0x01, 0xd8], NEVER),
    ("CLGI", &[0x0f, 0x01, 0xdd], NEVER),
    ("VMXOFF", &[0x0f, 0x01, 0xc4], NEVER),
    ("VMREAD", &[0x0f, 0x78, 0xc1], NEVER),
    ("AESENC", &[0x66, 0x0f, 0x38, 0xdc, 0xc1], NEVER),
    ("SHA1MSG1", &[0x0f, 0x38, 0xc9, 0xc1], NEVER),
    ("PCLMULQDQ", &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0], NEVER),
];

fn flat(selector: u16, access: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    }
}

/// Executes `code` there, with a HLT, or at CPL 3 a CLI, behind it: the vector of the exception, if that was the instruction's own.
fn vector(place: Place, code: &[u8]) -> Option<u64> {
    let mut m = match place {
        Place::Long(_) => Machine::long(),
        Place::Protected(_) | Place::V8086 => Machine::protected(),
        Place::Real => Machine::new(),
    };
    m.cpu.set(Reg::Efer, m.cpu.get(Reg::Efer) & !efer::SCE);
    m.cpu.set(Reg::Rflags, 2);
    m.bus.ports = true;
    m.ram.write(TSS + 4, &0x8_0000_u32.to_le_bytes());
    m.ram.write(TSS + 8, &16_u32.to_le_bytes());
    // The I/O permission map is outside of the TSS, which a 64-bit one has at the same place.
    m.ram.write(TSS + 0x66, &u16::MAX.to_le_bytes());
    if matches!(place, Place::Long(_)) {
        m.ram.write64(TSS + 4, 0x8_0000);
    }
    m.cpu.set_segment(
        Seg::Tr,
        Segment {
            limit: 0x67,
            base: TSS,
            ..flat(48, 0x8b)
        },
    );
    let mut start = CODE;
    match place {
        Place::Long(3) => {
            m.cpu.set_segment(Seg::Cs, flat(0x2b, 0xa0fb));
            m.cpu.set_segment(Seg::Ss, flat(0x23, 0xc0f3));
        }
        Place::Protected(3) => {
            m.cpu.set_segment(Seg::Cs, flat(0x1b, 0xc0fb));
            for seg in [Seg::Ss, Seg::Ds, Seg::Es] {
                m.cpu.set_segment(seg, flat(0x23, 0xc0f3));
            }
        }
        Place::Long(_) | Place::Protected(_) => {}
        Place::Real | Place::V8086 => {
            start = 0x100;
            let v8086 = place == Place::V8086;
            if v8086 {
                m.cpu.set(Reg::Rflags, 2 | 1 << 17);
            }
            for seg in [Seg::Cs, Seg::Ss, Seg::Ds, Seg::Es] {
                let segment = Segment {
                    selector: 0x2000,
                    base: 0x2_0000,
                    limit: 0xffff,
                    access: if v8086 { 0xf3 } else { 0x93 },
                };
                let code = Segment {
                    access: if v8086 { 0xf3 } else { 0x9b },
                    ..segment
                };
                m.cpu
                    .set_segment(seg, if seg == Seg::Cs { code } else { segment });
            }
            for vector in 0..32_u16 {
                let handler = HANDLERS as u16 + 16 * vector;
                m.ram.write(u64::from(vector) * 4, &handler.to_le_bytes());
                m.ram.write(u64::from(vector) * 4 + 2, &[0, 0]);
                if !v8086 {
                    // MOV AX, vector; HLT.
                    m.ram.write(
                        HANDLERS + 16 * u64::from(vector),
                        &[0xb8, vector as u8, 0, 0xf4],
                    );
                }
            }
        }
    }
    let base = m.cpu.segment(Seg::Cs).base;
    m.ram.write(base + start, code);
    let behind = start + code.len() as u64;
    m.ram.write(base + behind, &[0xf4]);
    m.cpu.set(Reg::Rip, start);
    m.cpu.set(Reg::Rsp, 0x8000);
    for (reg, value) in [
        (Reg::Rax, 0),
        (Reg::Rbx, 0x9000),
        // MSR_PAT, whose value RDX:RAX is good.
        (Reg::Rcx, 0x277),
        (Reg::Rdx, 0),
        (Reg::Rsi, 0x9000),
        (Reg::Rdi, 0x9000),
    ] {
        m.cpu.set(reg, value);
    }
    // The value of a control register that is good, too; LMSW must not clear PE, and does not.
    let exit = m.cpu.run(&mut m.bus, 1);
    if exit == Exit::Hlt || m.cpu.get(Reg::Rip) == behind {
        return None;
    }
    let exit = match exit {
        Exit::Limit => m.run(),
        exit => exit,
    };
    assert_eq!(exit, Exit::Hlt, "{place:?} {code:02x?}");
    (m.cpu.get(Reg::Rip) != behind + 1).then(|| m.cpu.get(Reg::Rax))
}

#[test]
fn each_place_has_its_exceptions() {
    let mut wrong = String::new();
    for (name, code, expected) in ROWS {
        for (place, expected) in PLACES.into_iter().zip(expected) {
            let seen = vector(place, code);
            if seen != *expected {
                wrong += &format!("{name}, {place:?}: {seen:?} and not {expected:?}\n");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
