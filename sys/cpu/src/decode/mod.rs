//! Lowering: from instructions as iced-x86 decodes them to rows of compact operations.

mod data;
mod flow;
mod system;

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register,
};

use crate::cpu::{FAR_DISP, slot};
use crate::fpu;
use crate::interp::{alu, control, misc};
use crate::op::{Handler, Op, am};

/// Operations (and instructions) in a block at most.
pub(crate) const MAX_OPS: usize = 64;
/// Conditional branches in a block at most, each of which may leave it: the more there are, the more often code is lowered again
/// because something leads into its middle.
const MAX_BRANCHES: usize = 4;
/// Bytes that a block's code may have.
pub(crate) const MAX_BYTES: usize = MAX_OPS * 15;

/// The decoder knows every extension there is, and names an encoding after the newest one that uses it. Where that is one which
/// CPUID does not show, the encoding is what it was before: a BSF or BSR with a prefix without meaning, WBINVD, or one of the
/// opcodes 0F 0D and 0F 18 to 0F 1F, which were set aside as NOPs so that later extensions (CET, MPX, CLDEMOTE …) could use them as
/// hints.
const OPTIONS: u32 = DecoderOptions::AMD
    | DecoderOptions::FORCE_RESERVED_NOP
    | DecoderOptions::NO_MPFX_0FBC
    | DecoderOptions::NO_MPFX_0FBD
    | DecoderOptions::NO_WBNOINVD;

/// What decoding and execution depend on besides the bytes: code and stack size, whether segmentation is out of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode(u8);

impl Mode {
    /// Code size: 0, 1, 2 for 16, 32, 64 bits.
    pub const SIZE: u64 = 3;
    /// The stack pointer has 32 bits.
    pub const STACK32: u64 = 4;
    /// ES, CS, SS and DS are flat.
    pub const FLAT: u64 = 8;
    /// CPL 3. Blocks do not depend on it, but links do.
    pub const USER: u64 = 0x10;
    /// The block is to have one instruction.
    pub const SINGLE: u64 = 0x20;

    /// The mode in a key.
    pub fn of(key: u64) -> Self {
        Mode((key & (Self::SIZE | Self::STACK32 | Self::FLAT | Self::SINGLE)) as u8)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn long(self) -> bool {
        self.0 & 3 == 2
    }

    pub fn single(self) -> Self {
        Mode(self.0 | Self::SINGLE as u8)
    }

    fn is_single(self) -> bool {
        self.0 & Self::SINGLE as u8 != 0
    }

    fn flat(self) -> bool {
        self.0 & Self::FLAT as u8 != 0
    }

    fn bitness(self) -> u32 {
        16 << (self.0 & 3)
    }
}

/// What `lower_block` made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lowered {
    /// Instructions; 0 if not even the first is complete.
    pub n: u32,
    /// Their length in bytes.
    pub bytes: usize,
    /// Conditional branches by which the block may be left early.
    pub exits: usize,
}

/// Whether more may follow in the block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    More,
    End,
    /// More, where the branch is not taken.
    Branch,
    /// More, and the instruction itself needs no operation.
    Nothing,
}

/// A comparison that a conditional jump may be fused with.
#[derive(Clone, Copy)]
struct Comparison {
    test: bool,
    immediate: bool,
    size: u8,
}

/// Lowers code up to the end of the block or of `code`, and appends it to `ops`; x87, MMX and SSE operations go to `floats`.
/// Conditional branches in 64-bit code, which go on to the next operation unless they are taken, get exits from `exits` on.
pub(crate) fn lower_block(
    code: &[u8],
    mode: Mode,
    ops: &mut Vec<Op>,
    floats: &mut Vec<fpu::Op>,
    exits: u32,
) -> Lowered {
    let mut decoder = Decoder::with_ip(mode.bitness(), code, 0, OPTIONS);
    let mut instruction = Instruction::default();
    let most = if mode.is_single() { 1 } else { MAX_OPS as u32 };
    let mut n = 0;
    let mut bytes = 0;
    let mut comparison = None;
    let mut branches = [0; MAX_BRANCHES];
    let mut exits_used = 0;
    let mut flow = Flow::More;
    while n < most && flow != Flow::End {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let place = Place {
            mode,
            off: bytes as u16,
            n: n as u8,
        };
        bytes = decoder.position();
        n += 1;
        if let (Some(c), Some(last)) = (comparison.take(), ops.last_mut())
            && mode.long()
            && let Some(condition) = near_condition(&instruction)
            && instruction.op0_kind() == OpKind::NearBranch64
        {
            let c: Comparison = c;
            last.f = alu::fused_handler(c.test, c.immediate, c.size, condition);
            last.disp = last.imm as i32;
            last.imm = instruction.near_branch64();
            last.len += instruction.len() as u8;
            flow = Flow::Branch;
        } else {
            // The decoder gives up after as many bytes as an instruction may have, which the processor calls #GP and not #UD.
            // An instruction of that very length may be invalid for its prefixes, which the decoder can be told to overlook.
            let too_long = instruction.is_invalid() && instruction.len() == MAX_LEN && {
                let from = code
                    .get(bytes.saturating_sub(MAX_LEN)..)
                    .unwrap_or_default();
                Decoder::new(
                    mode.bitness(),
                    from,
                    OPTIONS | DecoderOptions::NO_INVALID_CHECK,
                )
                .decode()
                .is_invalid()
            };
            let lower = Lower {
                i: &instruction,
                place,
                too_long,
            };
            let (op, then) = lower.lower(floats);
            comparison = lower.comparison();
            if then != Flow::Nothing {
                ops.push(op);
            }
            flow = then;
        }
        if flow == Flow::Branch
            && let Some(branch) = branches.get_mut(exits_used)
            && let Some(op) = ops.last_mut()
        {
            op.set_exit(exits + exits_used as u32);
            // How many have retired when it is taken; see below.
            op.x = n as u8;
            exits_used += 1;
            *branch = ops.len() - 1;
            if exits_used == MAX_BRANCHES {
                flow = Flow::End;
            }
        }
    }
    for &branch in branches.iter().take(exits_used) {
        if let Some(op) = ops.get_mut(branch) {
            op.x = n as u8 - op.x;
        }
    }
    // Even behind an operation that ends the block: so no handler's `next` can leave the row.
    if n != 0 {
        let f: Handler = if mode.long() {
            control::fall_through
        } else {
            control::fall_through_legacy
        };
        ops.push(Op {
            off: bytes as u16,
            n: n as u8,
            ..blank(f)
        });
    }
    Lowered {
        n,
        bytes,
        exits: exits_used,
    }
}

fn blank(f: Handler) -> Op {
    Op {
        f,
        imm: 0,
        disp: 0,
        r: 0,
        s: 0,
        base: slot::ZERO,
        index: slot::ZERO,
        scale: 0,
        seg: slot::ZERO,
        n: 0,
        len: 0,
        off: 0,
        am: 0,
        x: 0,
    }
}

/// The bytes that an instruction may have.
const MAX_LEN: usize = 15;

/// The condition of Jcc.
fn near_condition(i: &Instruction) -> Option<u8> {
    (i.is_jcc_short_or_near()).then(|| (i.condition_code() as u8).wrapping_sub(1))
}

#[derive(Clone, Copy)]
struct Place {
    mode: Mode,
    off: u16,
    n: u8,
}

struct Lower<'a> {
    i: &'a Instruction,
    place: Place,
    /// The instruction has more bytes than one may have.
    too_long: bool,
}

/// The logarithm of a size in bytes.
fn log(size: usize) -> u8 {
    match size {
        1 => 0,
        2 => 1,
        4 => 2,
        _ => 3,
    }
}

/// A general register as `Op::r` wants it.
fn register(r: Register) -> u8 {
    let number = r.full_register().number() as u8 & 15;
    if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
        number | 0x20
    } else {
        number
    }
}

impl Lower<'_> {
    fn op(&self, f: Handler) -> Op {
        Op {
            n: self.place.n,
            len: self.i.len() as u8,
            off: self.place.off,
            ..blank(f)
        }
    }

    fn long(&self) -> bool {
        self.place.mode.long()
    }

    fn is_memory(&self, operand: u32) -> bool {
        self.i.op_kind(operand) == OpKind::Memory
    }

    fn is_register(&self, operand: u32) -> bool {
        self.i.op_kind(operand) == OpKind::Register
    }

    /// Size of an operand as a logarithm.
    fn size(&self, operand: u32) -> u8 {
        if self.is_register(operand) {
            log(self.i.op_register(operand).size())
        } else {
            log(self.i.memory_size().size())
        }
    }

    fn reg(&self, operand: u32) -> u8 {
        register(self.i.op_register(operand))
    }

    fn imm(&self, operand: u32) -> u64 {
        self.i.immediate(operand)
    }

    /// Fills in a segment: slot, and whether it needs checks.
    fn segment(&self, op: &mut Op, segment: Register) {
        let number = segment.number() as u8;
        let slot = slot::SEG_BASE + number;
        if self.long() {
            if matches!(segment, Register::FS | Register::GS) {
                op.seg = slot;
            } else if matches!(
                self.i.memory_base(),
                Register::RSP | Register::ESP | Register::RBP | Register::EBP
            ) {
                // The other prefixes mean nothing, not even for which exception an address that is none calls.
                op.am |= am::STACK;
            }
            return;
        }
        if !self.place.mode.flat() || matches!(segment, Register::FS | Register::GS | Register::CS)
        {
            op.seg = slot;
            op.am |= am::CHECKED;
        }
        if segment == Register::SS {
            op.am |= am::STACK;
        }
    }

    fn address_size(op: &mut Op, bytes: usize) {
        op.am |= match bytes {
            2 => am::MASK16,
            4 => am::MASK32,
            _ => 0,
        };
    }

    /// Fills in the memory operand.
    fn memory(&self, mut op: Op) -> Op {
        let i = self.i;
        let base = i.memory_base();
        let index = i.memory_index();
        self.segment(&mut op, i.memory_segment());
        let displacement = i.memory_displacement64() as i64;
        if i.is_ip_rel_memory_operand() {
            // Relative to the block's start, where decoding began with address 0.
            op.base = slot::BLOCK;
            if base == Register::EIP {
                op.am |= am::MASK32;
            }
            let displacement = if base == Register::EIP {
                i64::from(displacement as i32)
            } else {
                displacement
            };
            match i32::try_from(displacement) {
                Ok(disp) => op.disp = disp,
                Err(_) => {
                    let (slot, by) = if displacement > 0 {
                        (slot::PLUS, FAR_DISP)
                    } else {
                        (slot::MINUS, -FAR_DISP)
                    };
                    op.index = slot;
                    op.disp = (displacement - by) as i32;
                }
            }
            return op;
        }
        let mut size = i.memory_displ_size() as usize;
        if index != Register::None {
            op.index = register(index);
            op.scale = i.memory_index_scale().trailing_zeros() as u8;
            size = index.size();
        }
        if base != Register::None {
            op.base = register(base);
            size = base.size();
        }
        Self::address_size(&mut op, size);
        op.disp = displacement as i32;
        op
    }

    /// [`Lower::memory`] with the handler that is made for whether the operand is plain.
    fn memory_by(&self, f: impl Fn(bool) -> Handler) -> Op {
        let op = self.memory(self.op(f(false)));
        Op {
            f: f(op.is_plain()),
            ..op
        }
    }

    /// An operand that is a register (into `s`) or memory (`f_memory` then).
    fn source(&self, operand: u32, f_register: Handler, f_memory: Handler) -> Op {
        if self.is_memory(operand) {
            self.memory(self.op(f_memory))
        } else {
            Op {
                s: self.reg(operand),
                ..self.op(f_register)
            }
        }
    }

    /// The same, into `r`.
    fn destination(&self, operand: u32, f_register: Handler, f_memory: Handler) -> Op {
        if self.is_memory(operand) {
            self.memory(self.op(f_memory))
        } else {
            Op {
                r: self.reg(operand),
                ..self.op(f_register)
            }
        }
    }

    fn undefined(&self) -> (Op, Flow) {
        (self.op(misc::undefined), Flow::End)
    }

    fn plain(&self, f: Handler) -> (Op, Flow) {
        (self.op(f), Flow::More)
    }

    fn ending(&self, f: Handler) -> (Op, Flow) {
        (self.op(f), Flow::End)
    }

    /// Whether this is a comparison that the next instruction may be fused with.
    fn comparison(&self) -> Option<Comparison> {
        let i = self.i;
        let test = match i.mnemonic() {
            Mnemonic::Cmp => false,
            Mnemonic::Test => true,
            _ => return None,
        };
        let immediate = match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register) => false,
            (OpKind::Register, OpKind::Memory) | (OpKind::Memory, _) => return None,
            _ => true,
        };
        Some(Comparison {
            test,
            immediate,
            size: self.size(0),
        })
    }

    fn lower(&self, floats: &mut Vec<fpu::Op>) -> (Op, Flow) {
        if self.i.code() == Code::INVALID {
            return if self.too_long {
                (self.op(misc::forbidden), Flow::End)
            } else {
                self.undefined()
            };
        }
        if let Some(done) = self
            .data()
            .or_else(|| self.branch())
            .or_else(|| self.stack())
            .or_else(|| self.string())
        {
            return done;
        }
        if let Some(done) = self
            .other()
            .or_else(|| self.system())
            .or_else(|| self.vector())
        {
            return done;
        }
        if let Some(operation) = fpu::lower(self.i) {
            return self.float(operation, floats);
        }
        self.undefined()
    }
}
