// SPDX-License-Identifier: BSD-2-Clause

//! What the stub's memory holds: its code, and the tables that a processor in 64-bit mode needs for it. FreeBSD has nothing
//! of the kind; the shapes are those of `sys/amd64/include/segments.h`, `tss.h` and `pmap.h`.
//!
//! All addresses are guest physical, and virtual ones are the same. The segment lies in one large page, of which nothing else
//! is touched. It is open to every ring, because the processor comes in whichever it was in: on AMD's the ring cannot be set
//! from outside. An INT through a gate that is open to all rings leads to ring 0.

use vmm_x86::segments::IDT_NMI;

/// Size of the segment in bytes.
pub const SIZE: u64 = 0x1_0000;
/// The large page that the segment is at the start of.
pub const LARGE_PAGE: u64 = 0x20_0000;

/// The root of the page tables; the two other levels follow.
pub const PML4: u64 = 0;
const PDPT: u64 = 0x1000;
const PD: u64 = 0x2000;
/// 256 gates of 16 bytes each.
pub const IDT: u64 = 0x3000;
/// What the gates lead to: 16 bytes for each vector.
const VECTORS: u64 = 0x4000;
/// [`CODE`].
pub const CODE_AT: u64 = 0x5000;
/// Segment descriptors.
pub const GDT: u64 = 0x6000;
/// The task's stacks.
pub const TSS: u64 = 0x6100;
/// What the stub has to say.
pub const RESULTS: u64 = 0x6800;
/// The stack of everything but NMIs grows down from here.
const STACK: u64 = 0x7800;
/// The stack of NMIs grows down from here.
const NMI_STACK: u64 = 0x8000;
/// What is saved and loaded.
pub const AREA: u64 = 0x8000;
/// Bytes of [`AREA`]; XSAVE with all that processors have today takes a third.
pub const AREA_SIZE: u64 = SIZE - AREA;

/// Bytes of the results.
pub const RESULTS_SIZE: usize = 0x40;
/// Offsets in the results, each of four bytes unless it says otherwise: whether an NMI came.
pub const NMI: usize = 0x00;
/// Whether an event waited for the processor, and was delivered before the first instruction.
pub const EVENT: usize = 0x04;
/// Its vector; its error code is behind it.
pub const EVENT_VECTOR: usize = 0x08;
/// CPUID leaf 0xd: the state components that XCR0 can have (8 bytes). Zero without XSAVE.
pub const COMPONENTS: usize = 0x10;
/// CPUID leaf 0xd: the size in bytes of an area for all of them.
pub const COMPONENTS_SIZE: usize = 0x18;
/// XCR0 (8 bytes).
pub const XCR0: usize = 0x20;
/// The exception that ended the stub.
pub const FAULT_VECTOR: usize = 0x28;
/// Its error code, if it has one.
pub const FAULT_ERROR: usize = 0x2c;
/// Where it was raised (8 bytes).
pub const FAULT_RIP: usize = 0x30;

/// The stub ends by writing one of these to a port that it was given: all is done.
pub const DONE: u32 = 1;
/// An exception was raised.
pub const FAULTED: u32 = 2;
/// The area is too small for what the processor has.
pub const TOO_LARGE: u32 = 3;

/// Ring 0 code, 64 bits.
pub const KERNEL_CS: u16 = 0x08;
/// Ring 0 data.
pub const KERNEL_SS: u16 = 0x10;
/// The task.
pub const TASK: u16 = 0x18;
/// Bytes of the GDT: the null descriptor, code, data, and the task's, which takes two.
pub const GDT_SIZE: u16 = 5 * 8;
/// Bytes of the task state segment.
pub const TSS_SIZE: u16 = 104;

/// Length of the first instruction.
pub const ENTER_LEN: u64 = 2;
/// Offset in the code of what all vectors but one lead to.
const COMMON: u64 = 0x04;
/// Offset in the code of what an NMI leads to.
const NMI_HANDLER: u64 = 0xd3;

/// The code: what each instruction is, and its bytes. What it is given in registers is set by [`super::Session::run`]:
///
/// RSI the results · RDI the area · R10 the port · R11 bytes of the area · R12 XCR0 afterwards · R13 the address that an event
/// returns to which waited for the processor · R14 the address that the first instruction returns to · R15 zero to save
pub const CODE: &[(&str, &[u8])] = &[
    // No device's interrupt has this vector by any convention, and if one had, it would still be told by its return address.
    ("int 0x1f", &[0xcd, 0x1f]),
    ("ud2", &[0x0f, 0x0b]),
    // 0x04, every vector: what is on the stack is the vector, the error code and the address that it returns to.
    ("pop rax", &[0x58]),
    ("pop rcx", &[0x59]),
    ("pop rdx", &[0x5a]),
    ("cmp rdx, r14", &[0x4c, 0x39, 0xf2]),
    ("jne short 0x11", &[0x75, 0x05]),
    ("cmp eax, 0x1f", &[0x83, 0xf8, 0x1f]),
    ("je short 0x27", &[0x74, 0x16]),
    // 0x11, not ours: either it waited, or the stub has done something wrong.
    ("cmp rdx, r13", &[0x4c, 0x39, 0xea]),
    ("jne 0xb9", &[0x0f, 0x85, 0x9f, 0, 0, 0]),
    ("mov dword ptr [rsi+4], 1", &[0xc7, 0x46, 0x04, 1, 0, 0, 0]),
    ("mov [rsi+8], eax", &[0x89, 0x46, 0x08]),
    ("mov [rsi+0xc], ecx", &[0x89, 0x4e, 0x0c]),
    // 0x27, ring 0: is there XSAVE?
    ("mov eax, 1", &[0xb8, 1, 0, 0, 0]),
    ("cpuid", &[0x0f, 0xa2]),
    ("bt ecx, 0x1a", &[0x0f, 0xba, 0xe1, 0x1a]),
    ("jae short 0xa8", &[0x73, 0x74]),
    ("mov rax, cr4", &[0x0f, 0x20, 0xe0]),
    ("bts rax, 0x12", &[0x48, 0x0f, 0xba, 0xe8, 0x12]),
    ("mov cr4, rax", &[0x0f, 0x22, 0xe0]),
    ("mov eax, 0xd", &[0xb8, 0x0d, 0, 0, 0]),
    ("xor ecx, ecx", &[0x31, 0xc9]),
    ("cpuid", &[0x0f, 0xa2]),
    ("mov [rsi+0x10], eax", &[0x89, 0x46, 0x10]),
    ("mov [rsi+0x14], edx", &[0x89, 0x56, 0x14]),
    ("mov [rsi+0x18], ecx", &[0x89, 0x4e, 0x18]),
    ("cmp ecx, r11d", &[0x44, 0x39, 0xd9]),
    ("ja short 0xca", &[0x77, 0x74]),
    ("mov r8d, eax", &[0x41, 0x89, 0xc0]),
    ("mov r9d, edx", &[0x41, 0x89, 0xd1]),
    ("xor ecx, ecx", &[0x31, 0xc9]),
    ("xgetbv", &[0x0f, 0x01, 0xd0]),
    ("mov [rsi+0x20], eax", &[0x89, 0x46, 0x20]),
    ("mov [rsi+0x24], edx", &[0x89, 0x56, 0x24]),
    // Components that XCR0 does not have now keep their contents, and count.
    ("mov eax, r8d", &[0x44, 0x89, 0xc0]),
    ("mov edx, r9d", &[0x44, 0x89, 0xca]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("mov eax, 0xffffffff", &[0xb8, 0xff, 0xff, 0xff, 0xff]),
    ("mov edx, 0xffffffff", &[0xba, 0xff, 0xff, 0xff, 0xff]),
    ("test r15d, r15d", &[0x45, 0x85, 0xff]),
    ("jne short 0x8e", &[0x75, 0x0f]),
    ("xsave64 [rdi]", &[0x48, 0x0f, 0xae, 0x27]),
    ("mov eax, [rsi+0x20]", &[0x8b, 0x46, 0x20]),
    ("mov edx, [rsi+0x24]", &[0x8b, 0x56, 0x24]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("jmp short 0x9f", &[0xeb, 0x11]),
    // 0x8e
    ("xrstor64 [rdi]", &[0x48, 0x0f, 0xae, 0x2f]),
    ("mov eax, r12d", &[0x44, 0x89, 0xe0]),
    ("mov rdx, r12", &[0x4c, 0x89, 0xe2]),
    ("shr rdx, 0x20", &[0x48, 0xc1, 0xea, 0x20]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    // 0x9f
    ("mov eax, 1", &[0xb8, 1, 0, 0, 0]),
    ("mov edx, r10d", &[0x44, 0x89, 0xd2]),
    ("out dx, al", &[0xee]),
    // 0xa8, no XSAVE
    ("test r15d, r15d", &[0x45, 0x85, 0xff]),
    ("jne short 0xb3", &[0x75, 0x06]),
    ("fxsave64 [rdi]", &[0x48, 0x0f, 0xae, 0x07]),
    ("jmp short 0x9f", &[0xeb, 0xec]),
    // 0xb3
    ("fxrstor64 [rdi]", &[0x48, 0x0f, 0xae, 0x0f]),
    ("jmp short 0x9f", &[0xeb, 0xe6]),
    // 0xb9
    ("mov [rsi+0x28], eax", &[0x89, 0x46, 0x28]),
    ("mov [rsi+0x2c], ecx", &[0x89, 0x4e, 0x2c]),
    ("mov [rsi+0x30], rdx", &[0x48, 0x89, 0x56, 0x30]),
    ("mov eax, 2", &[0xb8, 2, 0, 0, 0]),
    ("jmp short 0xcf", &[0xeb, 0x05]),
    // 0xca
    ("mov eax, 3", &[0xb8, 3, 0, 0, 0]),
    // 0xcf
    ("mov edx, r10d", &[0x44, 0x89, 0xd2]),
    ("out dx, al", &[0xee]),
    // 0xd3, an NMI: IRET lets the next one come, as the guest's own handler would have.
    ("mov dword ptr [rsi], 1", &[0xc7, 0x06, 1, 0, 0, 0]),
    ("iretq", &[0x48, 0xcf]),
];

/// Whether the processor pushes an error code with this exception.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The segment up to [`AREA`], for an address at which it will be seen.
pub fn image(gpa: u64) -> Vec<u8> {
    let mut image = vec![0; AREA as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // Present, writable, for every ring, accessed, and (in the last level) dirty and large.
    const TABLE: u64 = 0x27;
    const PAGE: u64 = 0xe7;
    let index = |shift: u32| (gpa >> shift & 0x1ff) * 8;
    put(PML4 + index(39), &((gpa + PDPT) | TABLE).to_le_bytes());
    put(PDPT + index(30), &((gpa + PD) | TABLE).to_le_bytes());
    put(PD + index(21), &(gpa | PAGE).to_le_bytes());

    for vector in 0..=u8::MAX {
        let handler = VECTORS + u64::from(vector) * 16;
        let stack = if vector == IDT_NMI { 2 } else { 1 };
        put(IDT + u64::from(vector) * 16, &gate(gpa + handler, stack));
        put(handler, &vector_code(vector, handler));
    }
    let mut at = CODE_AT;
    for (_, bytes) in CODE {
        put(at, bytes);
        at += bytes.len() as u64;
    }

    let tss = gpa + TSS;
    // Available descriptors would do, but for the task: it is busy.
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8b00_0000_0000
            | u64::from(TSS_SIZE - 1)
            | (tss & 0xff_ffff) << 16
            | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ];
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        put(GDT + index as u64 * 8, &descriptor.to_le_bytes());
    }
    // The stack of ring 0, and the first two of the interrupt stack table.
    for (offset, stack) in [(0x04, STACK), (0x24, STACK), (0x2c, NMI_STACK)] {
        put(TSS + offset, &(gpa + stack).to_le_bytes());
    }
    // No I/O permissions.
    put(TSS + 0x66, &TSS_SIZE.to_le_bytes());
    image
}

/// An interrupt gate to ring 0 that every ring may use.
fn gate(handler: u64, stack: u8) -> [u8; 16] {
    let mut gate = [0; 16];
    gate[0..2].copy_from_slice(&(handler as u16).to_le_bytes());
    gate[2..4].copy_from_slice(&KERNEL_CS.to_le_bytes());
    gate[4] = stack;
    gate[5] = 0xee;
    gate[6..8].copy_from_slice(&((handler >> 16) as u16).to_le_bytes());
    gate[8..12].copy_from_slice(&((handler >> 32) as u32).to_le_bytes());
    gate
}

/// What a gate leads to: `push 0` where there is no error code, `push vector`, and a jump to what they have in common.
fn vector_code(vector: u8, at: u64) -> Vec<u8> {
    let mut code = Vec::with_capacity(16);
    let mut target = CODE_AT + COMMON;
    if vector == IDT_NMI {
        target = CODE_AT + NMI_HANDLER;
    } else {
        if !has_error_code(vector) {
            code.extend([0x6a, 0]);
        }
        code.push(0x68);
        code.extend(u32::from(vector).to_le_bytes());
    }
    code.push(0xe9);
    let next = at + code.len() as u64 + 4;
    code.extend((target.wrapping_sub(next) as u32).to_le_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn formatter() -> IntelFormatter {
        let mut formatter = IntelFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        options.set_branch_leading_zeros(false);
        formatter
    }

    fn text(bytes: &[u8], ip: u64) -> (String, usize) {
        let instruction = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
        let mut text = String::new();
        formatter().format(&instruction, &mut text);
        (text, instruction.len())
    }

    #[test]
    fn the_code_is_what_its_text_says() {
        let mut ip = 0;
        let mut starts = Vec::new();
        for (wanted, bytes) in CODE {
            starts.push(ip);
            assert_eq!(
                text(bytes, ip),
                ((*wanted).to_owned(), bytes.len()),
                "{ip:#x}"
            );
            ip += bytes.len() as u64;
        }
        assert_eq!(starts[1], ENTER_LEN);
        for target in [
            COMMON,
            NMI_HANDLER,
            0x11,
            0x27,
            0x8e,
            0x9f,
            0xa8,
            0xb3,
            0xb9,
            0xca,
            0xcf,
        ] {
            assert!(starts.contains(&target), "{target:#x}");
        }
    }

    #[test]
    fn every_vector_leads_to_the_code() {
        let image = image(0xc000_0000);
        for vector in 0..=u8::MAX {
            let at = VECTORS + u64::from(vector) * 16;
            let mut code = &image[at as usize..at as usize + 16];
            let mut ip = at;
            let mut seen = Vec::new();
            while seen.len() < 4
                && !seen
                    .last()
                    .is_some_and(|last: &String| last.starts_with("jmp"))
            {
                let (text, len) = text(code, ip);
                (code, ip) = (&code[len..], ip + len as u64);
                seen.push(text);
            }
            let wanted = match vector {
                2 => vec!["jmp 0x50d3".to_owned()],
                8 | 10..=14 | 17 | 21 | 29 | 30 => {
                    vec![push(vector), "jmp 0x5004".to_owned()]
                }
                _ => vec!["push 0".to_owned(), push(vector), "jmp 0x5004".to_owned()],
            };
            assert_eq!(seen, wanted);
        }
    }

    fn push(vector: u8) -> String {
        match vector {
            0..=9 => format!("push {vector}"),
            _ => format!("push {vector:#x}"),
        }
    }
}
