//! Lowering: from instructions as iced-x86 decodes them to rows of compact operations.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{FAR_DISP, slot};
use crate::fpu;
use crate::interp::alu::{self, Form};
use crate::interp::string::{self, Kind, rep};
use crate::interp::{atomic, bcd, bit, control, float, misc, mov, muldiv, shift, stack, system};
use crate::op::{Handler, Op, am};

/// Operations (and instructions) in a block at most.
pub(crate) const MAX_OPS: usize = 64;
/// Bytes that a block's code may have.
pub(crate) const MAX_BYTES: usize = MAX_OPS * 15;

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

/// Where the x87, MMX and SSE operations go.
pub(crate) struct Floats<'a> {
    pub list: &'a mut Vec<fpu::Op>,
    /// Added to indices.
    pub base: u64,
}

/// What `lower_block` made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lowered {
    /// Instructions; 0 if not even the first is complete.
    pub n: u32,
    /// Their length in bytes.
    pub bytes: usize,
}

/// Whether more may follow in the block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    More,
    End,
}

/// A comparison that a conditional jump may be fused with.
#[derive(Clone, Copy)]
struct Comparison {
    test: bool,
    immediate: bool,
    size: u8,
}

/// Lowers code up to the end of the block or of `code`, and appends it to `ops`.
pub(crate) fn lower_block(code: &[u8], mode: Mode, ops: &mut Vec<Op>, floats: &mut Floats) -> Lowered {
    let options = DecoderOptions::AMD | DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD;
    let mut decoder = Decoder::with_ip(mode.bitness(), code, 0, options);
    let mut instruction = Instruction::default();
    let most = if mode.is_single() { 1 } else { MAX_OPS as u32 };
    let mut n = 0;
    let mut bytes = 0;
    let mut comparison = None;
    let mut flow = Flow::More;
    while n < most && flow == Flow::More {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let place = Place { mode, off: bytes as u16, n: n as u8 };
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
            break;
        }
        // The decoder gives up after as many bytes as an instruction may have, which the processor calls #GP and not #UD.
        // An instruction of that very length may be invalid for its prefixes, which the decoder can be told to overlook.
        let too_long = instruction.is_invalid() && instruction.len() == MAX_LEN && {
            let from = code.get(bytes.saturating_sub(MAX_LEN)..).unwrap_or_default();
            Decoder::new(mode.bitness(), from, options | DecoderOptions::NO_INVALID_CHECK).decode().is_invalid()
        };
        let lower = Lower { i: &instruction, place, too_long };
        let (op, then) = lower.lower(floats);
        comparison = lower.comparison();
        ops.push(op);
        flow = then;
    }
    // Even behind an operation that ends the block: so no handler's `next` can leave the row.
    if n != 0 {
        let f: Handler = if mode.long() { control::fall_through } else { control::fall_through_legacy };
        ops.push(Op { off: bytes as u16, n: n as u8, ..blank(f) });
    }
    Lowered { n, bytes }
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
    if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) { number | 0x20 } else { number }
}

impl Lower<'_> {
    fn op(&self, f: Handler) -> Op {
        Op { n: self.place.n, len: self.i.len() as u8, off: self.place.off, ..blank(f) }
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
        if self.is_register(operand) { log(self.i.op_register(operand).size()) } else { log(self.i.memory_size().size()) }
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
            } else if matches!(self.i.memory_base(), Register::RSP | Register::ESP | Register::RBP | Register::EBP) {
                // The other prefixes mean nothing, not even for which exception an address that is none calls.
                op.am |= am::STACK;
            }
            return;
        }
        if !self.place.mode.flat() || matches!(segment, Register::FS | Register::GS | Register::CS) {
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
            let displacement = if base == Register::EIP { i64::from(displacement as i32) } else { displacement };
            match i32::try_from(displacement) {
                Ok(disp) => op.disp = disp,
                Err(_) => {
                    let (slot, by) = if displacement > 0 { (slot::PLUS, FAR_DISP) } else { (slot::MINUS, -FAR_DISP) };
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

    /// An operand that is a register (into `s`) or memory (`f_memory` then).
    fn source(&self, operand: u32, f_register: Handler, f_memory: Handler) -> Op {
        if self.is_memory(operand) {
            self.memory(self.op(f_memory))
        } else {
            Op { s: self.reg(operand), ..self.op(f_register) }
        }
    }

    /// The same, into `r`.
    fn destination(&self, operand: u32, f_register: Handler, f_memory: Handler) -> Op {
        if self.is_memory(operand) {
            self.memory(self.op(f_memory))
        } else {
            Op { r: self.reg(operand), ..self.op(f_register) }
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
        Some(Comparison { test, immediate, size: self.size(0) })
    }

    fn lower(&self, floats: &mut Floats) -> (Op, Flow) {
        if self.i.code() == Code::INVALID {
            return if self.too_long { (self.op(misc::forbidden), Flow::End) } else { self.undefined() };
        }
        if let Some(done) = self.data().or_else(|| self.branch()).or_else(|| self.stack()).or_else(|| self.string()) {
            return done;
        }
        if let Some(done) = self.other().or_else(|| self.system()).or_else(|| self.vector()) {
            return done;
        }
        if let Some(operation) = fpu::lower(self.i) {
            return self.float(operation, floats);
        }
        self.undefined()
    }

    fn two_operand(&self, k: u8) -> Op {
        let s = self.size(0);
        let locked = self.i.has_lock_prefix();
        if self.is_memory(0) {
            if self.is_register(1) {
                let form = if locked { Form::LockedMr } else { Form::Mr };
                return Op { s: self.reg(1), ..self.memory(self.op(alu::handler(k, form, s))) };
            }
            let form = if locked { Form::LockedMi } else { Form::Mi };
            return Op { imm: self.imm(1), ..self.memory(self.op(alu::handler(k, form, s))) };
        }
        let r = self.reg(0);
        if self.is_memory(1) {
            return Op { r, ..self.memory(self.op(alu::handler(k, Form::Rm, s))) };
        }
        if self.is_register(1) {
            let other = self.reg(1);
            if k == alu::kind::XOR && r == other {
                return Op { r, ..self.op(alu::clear_handler(s)) };
            }
            return Op { r, s: other, ..self.op(alu::handler(k, Form::Rr, s)) };
        }
        Op { r, imm: self.imm(1), ..self.op(alu::handler(k, Form::Ri, s)) }
    }

    fn one_operand(&self, k: u8) -> Op {
        let s = self.size(0);
        let f = alu::unary_handler(k, self.is_memory(0), self.i.has_lock_prefix(), s);
        self.destination(0, f, f)
    }

    fn shift(&self, k: u8) -> Op {
        let s = self.size(0);
        let by_cl = self.is_register(1);
        let f = shift::handler(k, self.is_memory(0), by_cl, s);
        let imm = if by_cl { 0 } else { self.imm(1) };
        Op { imm, ..self.destination(0, f, f) }
    }

    fn double_shift(&self, left: bool) -> Op {
        let f = shift::double_handler(left, self.is_memory(0), self.size(0));
        let by_cl = self.is_register(2);
        let imm = if by_cl { 0 } else { self.imm(2) };
        Op { s: self.reg(1), imm, x: u8::from(by_cl), ..self.destination(0, f, f) }
    }

    fn bit(&self, k: u8) -> Op {
        let immediate = !self.is_register(1);
        let f = bit::handler(k, self.is_memory(0), immediate, self.size(0));
        let (s, imm) = if immediate { (0, self.imm(1)) } else { (self.reg(1), 0) };
        Op { s, imm, x: u8::from(self.i.has_lock_prefix()), ..self.destination(0, f, f) }
    }

    fn mov(&self) -> (Op, Flow) {
        let i = self.i;
        let (to, from) = (i.op0_register(), i.op1_register());
        if self.is_register(0) && to.is_segment_register() {
            let memory = self.is_memory(1);
            let f = system::mov_to_seg;
            let op = Op { r: to.number() as u8, x: if memory { 0x80 } else { 0 }, ..self.source(1, f, f) };
            return (op, Flow::End);
        }
        if self.is_register(1) && from.is_segment_register() {
            let f = system::mov_from_seg;
            let x = if self.is_memory(0) { 0x80 } else { self.size(0) };
            return (Op { s: from.number() as u8, x, ..self.destination(0, f, f) }, Flow::More);
        }
        if self.is_register(0) && (to.is_cr() || to.is_dr()) {
            let f = if to.is_cr() { system::mov_to_cr } else { system::mov_to_dr };
            return (Op { r: to.number() as u8, s: self.reg(1), x: self.size(1), ..self.op(f) }, Flow::End);
        }
        if self.is_register(1) && (from.is_cr() || from.is_dr()) {
            let f = if from.is_cr() { system::mov_from_cr } else { system::mov_from_dr };
            return (Op { r: self.reg(0), s: from.number() as u8, x: self.size(0), ..self.op(f) }, Flow::More);
        }
        if (self.is_register(0) && (to.is_tr())) || self.is_register(1) && from.is_tr() {
            return self.undefined();
        }
        let s = self.size(0);
        let op = match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register) => Op { r: self.reg(0), s: self.reg(1), ..self.op(mov::rr_handler(s)) },
            (OpKind::Register, OpKind::Memory) if self.absolute64() => {
                let mut op = Op { r: 0, imm: i.memory_displacement64(), ..self.op(mov::absolute_handler(true, s)) };
                self.segment(&mut op, i.memory_segment());
                op
            }
            (OpKind::Memory, OpKind::Register) if self.absolute64() => {
                let mut op = Op { s: 0, imm: i.memory_displacement64(), ..self.op(mov::absolute_handler(false, s)) };
                self.segment(&mut op, i.memory_segment());
                op
            }
            (OpKind::Register, OpKind::Memory) => Op { r: self.reg(0), ..self.memory(self.op(mov::rm_handler(s))) },
            (OpKind::Memory, OpKind::Register) => Op { s: self.reg(1), ..self.memory(self.op(mov::mr_handler(s))) },
            (OpKind::Memory, _) => Op { imm: self.imm(1), ..self.memory(self.op(mov::mi_handler(s))) },
            _ => Op { r: self.reg(0), imm: self.imm(1), ..self.op(mov::ri_handler(s)) },
        };
        (op, Flow::More)
    }

    /// MOV between the accumulator and a 64-bit absolute address.
    fn absolute64(&self) -> bool {
        matches!(
            self.i.code(),
            Code::Mov_AL_moffs8
                | Code::Mov_AX_moffs16
                | Code::Mov_EAX_moffs32
                | Code::Mov_RAX_moffs64
                | Code::Mov_moffs8_AL
                | Code::Mov_moffs16_AX
                | Code::Mov_moffs32_EAX
                | Code::Mov_moffs64_RAX
        ) && self.i.memory_displ_size() == 8
    }

    fn extend(&self, sign: bool) -> Op {
        let (from, to) = (self.size(1), self.size(0));
        let f = mov::extend_handler(sign, self.is_memory(1), from, to);
        Op { r: self.reg(0), ..self.source(1, f, f) }
    }

    /// Moves, arithmetic and logic.
    fn data(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let op = match i.mnemonic() {
            M::Mov => return Some(self.mov()),
            M::Add => self.two_operand(alu::kind::ADD),
            M::Or => self.two_operand(alu::kind::OR),
            M::Adc => self.two_operand(alu::kind::ADC),
            M::Sbb => self.two_operand(alu::kind::SBB),
            M::And => self.two_operand(alu::kind::AND),
            M::Sub => self.two_operand(alu::kind::SUB),
            M::Xor => self.two_operand(alu::kind::XOR),
            M::Cmp => self.two_operand(alu::kind::CMP),
            M::Test => self.two_operand(alu::kind::TEST),
            M::Inc => self.one_operand(alu::unary::INC),
            M::Dec => self.one_operand(alu::unary::DEC),
            M::Neg => self.one_operand(alu::unary::NEG),
            M::Not => self.one_operand(alu::unary::NOT),
            M::Rol => self.shift(shift::kind::ROL),
            M::Ror => self.shift(shift::kind::ROR),
            M::Rcl => self.shift(shift::kind::RCL),
            M::Rcr => self.shift(shift::kind::RCR),
            M::Shl | M::Sal => self.shift(shift::kind::SHL),
            M::Shr => self.shift(shift::kind::SHR),
            M::Sar => self.shift(shift::kind::SAR),
            M::Shld => self.double_shift(true),
            M::Shrd => self.double_shift(false),
            M::Bt => self.bit(bit::kind::BT),
            M::Bts => self.bit(bit::kind::BTS),
            M::Btr => self.bit(bit::kind::BTR),
            M::Btc => self.bit(bit::kind::BTC),
            M::Bsf | M::Bsr => {
                let f = bit::scan_handler(i.mnemonic() == M::Bsr, self.is_memory(1), self.size(0));
                Op { r: self.reg(0), ..self.source(1, f, f) }
            }
            M::Popcnt => {
                let f = bit::popcnt_handler(self.is_memory(1), self.size(0));
                Op { r: self.reg(0), ..self.source(1, f, f) }
            }
            M::Movzx => self.extend(false),
            M::Movsx => self.extend(true),
            M::Movsxd => {
                if self.size(0) == self.size(1) || self.size(0) == 1 {
                    // Without REX.W it is a plain move.
                    let s = self.size(0);
                    let op = self.source(1, mov::rr_handler(s), mov::rm_handler(s));
                    Op { r: self.reg(0), ..op }
                } else {
                    self.extend(true)
                }
            }
            M::Lea => {
                let op = self.memory(self.op(misc::nop));
                let plain = op.am & (am::MASK16 | am::MASK32) == 0;
                Op { f: mov::lea_handler(plain, self.size(0)), r: self.reg(0), ..op }
            }
            M::Xchg => {
                let s = self.size(0);
                match (self.is_memory(0), self.is_memory(1)) {
                    (true, _) => Op { s: self.reg(1), ..self.memory(self.op(atomic::xchg_handler(s))) },
                    (_, true) => Op { s: self.reg(0), ..self.memory(self.op(atomic::xchg_handler(s))) },
                    _ => Op { r: self.reg(0), s: self.reg(1), ..self.op(mov::xchg_handler(s)) },
                }
            }
            M::Xadd => {
                let f = atomic::xadd_handler(self.is_memory(0), self.size(0));
                Op { s: self.reg(1), ..self.destination(0, f, f) }
            }
            M::Cmpxchg => {
                let f = atomic::cmpxchg_handler(self.is_memory(0), self.size(0));
                Op { s: self.reg(1), ..self.destination(0, f, f) }
            }
            M::Cmpxchg8b => self.memory(self.op(atomic::cmpxchg8b)),
            M::Cmpxchg16b => self.memory(self.op(atomic::cmpxchg16b)),
            M::Bswap => Op { r: self.reg(0), ..self.op(mov::bswap_handler(self.size(0))) },
            M::Movbe => {
                let load = self.is_memory(1);
                let s = self.size(if load { 0 } else { 1 });
                let op = self.memory(self.op(mov::movbe_handler(load, s)));
                if load { Op { r: self.reg(0), ..op } } else { Op { s: self.reg(1), ..op } }
            }
            M::Mul => self.wide(muldiv::kind::MUL),
            M::Div => self.wide(muldiv::kind::DIV),
            M::Idiv => self.wide(muldiv::kind::IDIV),
            M::Imul if i.op_count() == 1 => self.wide(muldiv::kind::IMUL),
            M::Imul => {
                let f = muldiv::imul_handler(self.is_memory(1), self.size(0));
                let three = i.op_count() == 3;
                let imm = if three { self.imm(2) } else { 0 };
                Op { r: self.reg(0), imm, x: u8::from(three), ..self.source(1, f, f) }
            }
            M::Cbw => self.op(mov::widen_handler(1)),
            M::Cwde => self.op(mov::widen_handler(2)),
            M::Cdqe => self.op(mov::widen_handler(3)),
            M::Cwd => self.op(mov::sign_handler(1)),
            M::Cdq => self.op(mov::sign_handler(2)),
            M::Cqo => self.op(mov::sign_handler(3)),
            _ => return self.conditional().map(|op| (op, Flow::More)),
        };
        Some((op, Flow::More))
    }

    fn wide(&self, k: u8) -> Op {
        let f = muldiv::wide_handler(k, self.is_memory(0), self.size(0));
        self.source(0, f, f)
    }

    /// SETcc and CMOVcc.
    fn conditional(&self) -> Option<Op> {
        let i = self.i;
        if i.is_jcc_short_or_near() || i.is_loop() || i.is_loopcc() {
            return None;
        }
        let c = (i.condition_code() as u8).checked_sub(1)?;
        use Mnemonic as M;
        match i.mnemonic() {
            M::Seto | M::Setno | M::Setb | M::Setae | M::Sete | M::Setne | M::Setbe | M::Seta | M::Sets | M::Setns | M::Setp | M::Setnp
            | M::Setl | M::Setge | M::Setle | M::Setg => {
                let f = mov::setcc_handler(self.is_memory(0), c);
                Some(self.destination(0, f, f))
            }
            M::Cmovo | M::Cmovno | M::Cmovb | M::Cmovae | M::Cmove | M::Cmovne | M::Cmovbe | M::Cmova | M::Cmovs | M::Cmovns | M::Cmovp
            | M::Cmovnp | M::Cmovl | M::Cmovge | M::Cmovle | M::Cmovg => {
                let f = mov::cmov_handler(self.is_memory(1), self.size(0), c);
                Some(Op { r: self.reg(0), ..self.source(1, f, f) })
            }
            _ => None,
        }
    }

    /// Target of a near branch relative to the block, and the mask of the instruction pointer.
    fn near(&self, f: Handler) -> Op {
        let (imm, mask) = match self.i.op0_kind() {
            OpKind::NearBranch16 => (u64::from(self.i.near_branch16()), 0xffff),
            OpKind::NearBranch32 => (u64::from(self.i.near_branch32()), -1),
            _ => (self.i.near_branch64(), -1),
        };
        Op { imm, disp: mask, ..self.op(f) }
    }

    /// In 64-bit code with 64-bit operands.
    fn wide_branch(&self) -> bool {
        self.long() && self.i.op0_kind() == OpKind::NearBranch64
    }

    fn branch(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        if let Some(c) = near_condition(i) {
            return Some((self.near(control::jcc_handler(self.wide_branch(), c)), Flow::End));
        }
        let op = match i.mnemonic() {
            M::Jmp if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => self.far(system::jmp_far),
            M::Call if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => self.far(system::call_far),
            M::Jmp if i.is_jmp_far_indirect() => self.far_memory(system::jmp_far_m),
            M::Call if i.is_call_far_indirect() => self.far_memory(system::call_far_m),
            M::Jmp if i.is_jmp_near_indirect() => Op { x: self.size(0), ..self.source(0, control::jmp_r, control::jmp_m) },
            M::Call if i.is_call_near_indirect() && self.is_register(0) => {
                stacked(Op { x: self.size(0), ..self.source(0, control::call_r, control::call_m) })
            }
            M::Call if i.is_call_near_indirect() => Op { x: self.size(0), ..self.source(0, control::call_r, control::call_m) },
            M::Jmp => self.near(if self.wide_branch() { control::jmp } else { control::jmp_legacy }),
            M::Call if self.wide_branch() => stacked(self.near(control::call)),
            M::Call => Op { x: if i.op0_kind() == OpKind::NearBranch16 { 1 } else { 2 }, ..self.near(control::call_legacy) },
            M::Ret => {
                let imm = if i.op_count() == 1 { self.imm(0) & 0xffff } else { 0 };
                let x = match i.code() {
                    Code::Retnw | Code::Retnw_imm16 => 1,
                    Code::Retnd | Code::Retnd_imm16 => 2,
                    _ => 3,
                };
                let f = if x == 3 { control::ret } else { control::ret_legacy };
                stacked(Op { imm, x, ..self.op(f) })
            }
            M::Retf => {
                let imm = if i.op_count() == 1 { self.imm(0) & 0xffff } else { 0 };
                let x = match i.code() {
                    Code::Retfw | Code::Retfw_imm16 => 1,
                    Code::Retfd | Code::Retfd_imm16 => 2,
                    _ => 3,
                };
                Op { imm, x, ..self.op(system::ret_far) }
            }
            M::Loopne | M::Loope | M::Loop | M::Jcxz | M::Jecxz | M::Jrcxz => self.counted(),
            M::Iret => Op { x: 1, ..self.op(misc::iret) },
            M::Iretd => Op { x: 2, ..self.op(misc::iret) },
            M::Iretq => Op { x: 3, ..self.op(misc::iret) },
            M::Int => Op { imm: self.imm(0), ..self.op(misc::int) },
            M::Int3 => self.op(misc::int3),
            M::Int1 => self.op(misc::int1),
            M::Into => return Some(self.plain(misc::into)),
            M::Syscall => self.op(system::syscall),
            M::Sysret => Op { x: 2, ..self.op(system::sysret) },
            M::Sysretq => Op { x: 3, ..self.op(system::sysret) },
            M::Sysenter => self.op(system::sysenter),
            M::Sysexit => self.op(system::sysexit),
            M::Ud0 | M::Ud1 | M::Ud2 => return Some(self.undefined()),
            _ => return None,
        };
        Some((op, Flow::End))
    }

    fn counted(&self) -> Op {
        let i = self.i;
        let s = match i.mnemonic() {
            Mnemonic::Loopne => 0,
            Mnemonic::Loope => 1,
            Mnemonic::Loop => 2,
            _ => 3,
        };
        let x = match i.code() {
            Code::Loopne_rel8_16_CX
            | Code::Loopne_rel8_32_CX
            | Code::Loope_rel8_16_CX
            | Code::Loope_rel8_32_CX
            | Code::Loop_rel8_16_CX
            | Code::Loop_rel8_32_CX
            | Code::Jcxz_rel8_16
            | Code::Jcxz_rel8_32 => 1,
            Code::Loopne_rel8_16_RCX
            | Code::Loopne_rel8_64_RCX
            | Code::Loope_rel8_16_RCX
            | Code::Loope_rel8_64_RCX
            | Code::Loop_rel8_16_RCX
            | Code::Loop_rel8_64_RCX
            | Code::Jrcxz_rel8_16
            | Code::Jrcxz_rel8_64 => 3,
            _ => 2,
        };
        Op { s, x, ..self.near(control::counted) }
    }

    /// A direct far branch.
    fn far(&self, f: Handler) -> Op {
        let i = self.i;
        let wide = i.op0_kind() == OpKind::FarBranch32;
        let offset = if wide { i.far_branch32() } else { u32::from(i.far_branch16()) };
        Op { imm: u64::from(offset), disp: i32::from(i.far_branch_selector()), x: if wide { 2 } else { 1 }, ..self.op(f) }
    }

    /// The offset's size of a far pointer in memory.
    fn far_size(&self) -> u8 {
        match self.i.memory_size().size() {
            4 => 1,
            6 => 2,
            _ => 3,
        }
    }

    fn far_memory(&self, f: Handler) -> Op {
        Op { x: self.far_size(), ..self.memory(self.op(f)) }
    }

    fn stack(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let s = log(i.stack_pointer_increment().unsigned_abs() as usize);
        let op = match i.mnemonic() {
            M::Push => {
                if self.is_register(0) && i.op0_register().is_segment_register() {
                    Op { s: i.op0_register().number() as u8, x: s, ..self.op(stack::push_seg) }
                } else if self.is_register(0) {
                    let f = if self.long() && s == 3 { stack::push_r64 } else { stack::push_handler(false, false, s) };
                    Op { s: self.reg(0), ..self.op(f) }
                } else if self.is_memory(0) {
                    return Some((self.memory(self.op(stack::push_handler(true, false, s))), Flow::More));
                } else {
                    let f = if self.long() && s == 3 { stack::push_i64 } else { stack::push_handler(false, true, s) };
                    Op { imm: self.imm(0), ..self.op(f) }
                }
            }
            M::Pop => {
                if self.is_register(0) && i.op0_register().is_segment_register() {
                    let op = Op { r: i.op0_register().number() as u8, x: s, ..self.op(stack::pop_seg) };
                    return Some((stacked(op), Flow::End));
                } else if self.is_register(0) {
                    let f = if self.long() && s == 3 { stack::pop_r64 } else { stack::pop_handler(false, s) };
                    Op { r: self.reg(0), ..self.op(f) }
                } else {
                    return Some((self.memory(self.op(stack::pop_handler(true, s))), Flow::More));
                }
            }
            M::Pusha => Op { x: 1, ..self.op(stack::pusha) },
            M::Pushad => Op { x: 2, ..self.op(stack::pusha) },
            M::Popa => Op { x: 1, ..self.op(stack::popa) },
            M::Popad => Op { x: 2, ..self.op(stack::popa) },
            M::Pushf | M::Pushfd | M::Pushfq => Op { x: s, ..self.op(stack::pushf) },
            M::Popf | M::Popfd | M::Popfq => {
                return Some((stacked(Op { x: s, ..self.op(stack::popf) }), Flow::End));
            }
            M::Leave => {
                let x = match i.code() {
                    Code::Leavew => 1,
                    Code::Leaved => 2,
                    _ => 3,
                };
                Op { x, ..self.op(stack::leave) }
            }
            M::Enter => {
                let x = match i.code() {
                    Code::Enterw_imm16_imm8 => 1,
                    Code::Enterd_imm16_imm8 => 2,
                    _ => 3,
                };
                Op { x, imm: u64::from(i.immediate16()), disp: i32::from(i.immediate8_2nd()), ..self.op(stack::enter) }
            }
            _ => return None,
        };
        Some((stacked(op), Flow::More))
    }

    fn string(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        if !i.is_string_instruction() {
            return None;
        }
        let (kind, s) = match i.mnemonic() {
            M::Movsb => (Kind::Movs, 0),
            M::Movsw => (Kind::Movs, 1),
            M::Movsd => (Kind::Movs, 2),
            M::Movsq => (Kind::Movs, 3),
            M::Stosb => (Kind::Stos, 0),
            M::Stosw => (Kind::Stos, 1),
            M::Stosd => (Kind::Stos, 2),
            M::Stosq => (Kind::Stos, 3),
            M::Lodsb => (Kind::Lods, 0),
            M::Lodsw => (Kind::Lods, 1),
            M::Lodsd => (Kind::Lods, 2),
            M::Lodsq => (Kind::Lods, 3),
            M::Scasb => (Kind::Scas, 0),
            M::Scasw => (Kind::Scas, 1),
            M::Scasd => (Kind::Scas, 2),
            M::Scasq => (Kind::Scas, 3),
            M::Cmpsb => (Kind::Cmps, 0),
            M::Cmpsw => (Kind::Cmps, 1),
            M::Cmpsd => (Kind::Cmps, 2),
            M::Cmpsq => (Kind::Cmps, 3),
            M::Insb => (Kind::Ins, 0),
            M::Insw => (Kind::Ins, 1),
            M::Insd => (Kind::Ins, 2),
            M::Outsb => (Kind::Outs, 0),
            M::Outsw => (Kind::Outs, 1),
            M::Outsd => (Kind::Outs, 2),
            _ => return None,
        };
        let mut op = self.op(string::handler(kind, s));
        for operand in 0..i.op_count() {
            let bytes = match i.op_kind(operand) {
                OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
                OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
                _ => continue,
            };
            op.am = 0;
            Self::address_size(&mut op, bytes);
        }
        if matches!(kind, Kind::Movs | Kind::Lods | Kind::Cmps | Kind::Outs) {
            self.segment(&mut op, i.memory_segment());
            op.s = i.memory_segment().number() as u8;
        }
        op.x = if i.has_repne_prefix() {
            rep::REPNE
        } else if i.has_rep_prefix() {
            rep::REP
        } else {
            rep::NONE
        };
        Some((op, Flow::More))
    }

    /// Flags, decimal arithmetic, and what else fits nowhere.
    fn other(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let op = match i.mnemonic() {
            M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 | M::Prefetch | M::Prefetchw | M::Prefetchwt1 | M::Prefetchnta | M::Prefetcht0
            | M::Prefetcht1 | M::Prefetcht2 => self.op(misc::nop),
            M::Mfence | M::Lfence | M::Sfence | M::Serialize => self.op(misc::fence),
            M::Pause => self.op(misc::pause),
            M::Hlt => return Some(self.ending(misc::hlt)),
            M::Clc => self.op(misc::clc),
            M::Stc => self.op(misc::stc),
            M::Cmc => self.op(misc::cmc),
            M::Cld => self.op(misc::cld),
            M::Std => self.op(misc::std),
            M::Cli => self.op(misc::cli),
            M::Sti => return Some(self.ending(misc::sti)),
            M::Clac => self.op(misc::set_ac),
            M::Stac => Op { x: 1, ..self.op(misc::set_ac) },
            M::Lahf => self.op(misc::lahf),
            M::Sahf => self.op(misc::sahf),
            M::Salc => self.op(misc::salc),
            M::Daa => self.op(bcd::daa),
            M::Das => self.op(bcd::das),
            M::Aaa => self.op(bcd::aaa),
            M::Aas => self.op(bcd::aas),
            M::Aam => Op { imm: self.imm(0), ..self.op(bcd::aam) },
            M::Aad => Op { imm: self.imm(0), ..self.op(bcd::aad) },
            M::Bound => Op { r: self.reg(0), x: self.size(0), ..self.memory(self.op(misc::bound)) },
            M::Xlatb => {
                let mut op = self.op(mov::xlat);
                self.segment(&mut op, i.memory_segment());
                Self::address_size(&mut op, i.memory_base().size());
                op
            }
            M::Clflush | M::Clflushopt | M::Clwb => self.memory(self.op(system::clflush)),
            M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => {
                let s = match i.mnemonic() {
                    M::Les => 0,
                    M::Lss => 2,
                    M::Lds => 3,
                    M::Lfs => 4,
                    _ => 5,
                };
                let op = Op { r: self.reg(0), s, x: self.far_size(), ..self.memory(self.op(system::load_far_pointer)) };
                return Some((op, Flow::End));
            }
            _ => return None,
        };
        Some((op, Flow::More))
    }

    /// A 16-bit operand: in `s`, or memory with bit 7 of `x` set.
    fn selector_source(&self, operand: u32, f: Handler, x: u8) -> Op {
        let x = if self.is_memory(operand) { x | 0x80 } else { x };
        Op { x, ..self.source(operand, f, f) }
    }

    fn selector_destination(&self, f: Handler) -> Op {
        let x = if self.is_memory(0) { 0x80 } else { self.size(0) };
        Op { x, ..self.destination(0, f, f) }
    }

    fn table(&self, f: Handler) -> Op {
        // With 16-bit operands the base has 24 bits.
        let x = match self.i.code() {
            _ if self.long() => 3,
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 1,
            _ => 2,
        };
        Op { x, ..self.memory(self.op(f)) }
    }

    fn port(&self, f: Handler, port_operand: u32, size_operand: u32) -> Op {
        let size = self.size(size_operand);
        if self.is_register(port_operand) {
            Op { x: size | 0x80, ..self.op(f) }
        } else {
            Op { imm: self.imm(port_operand) & 0xff, x: size, ..self.op(f) }
        }
    }

    fn system(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let op = match i.mnemonic() {
            M::Cpuid => self.op(system::cpuid),
            M::Rdmsr => self.op(system::rdmsr),
            M::Wrmsr => return Some(self.ending(system::wrmsr)),
            M::Rdtsc => self.op(system::rdtsc),
            M::Rdtscp => Op { x: 1, ..self.op(system::rdtsc) },
            M::Rdpmc => self.op(misc::forbidden),
            M::Rdrand | M::Rdseed => Op { r: self.reg(0), x: self.size(0), ..self.op(system::rdrand) },
            // What a device does in answer must be seen to before the next instruction.
            M::In => return Some((self.port(system::r#in, 1, 0), Flow::End)),
            M::Out => return Some((self.port(system::out, 0, 1), Flow::End)),
            M::Lgdt => self.table(system::lgdt),
            M::Lidt => self.table(system::lidt),
            M::Sgdt => self.table(system::sgdt),
            M::Sidt => self.table(system::sidt),
            M::Lldt => self.selector_source(0, system::lldt, 0),
            M::Ltr => self.selector_source(0, system::ltr, 0),
            M::Sldt => self.selector_destination(system::sldt),
            M::Str => self.selector_destination(system::str),
            M::Smsw => self.selector_destination(system::smsw),
            M::Lmsw => return Some((self.selector_source(0, system::lmsw, 0), Flow::End)),
            M::Lar => Op { r: self.reg(0), ..self.selector_source(1, system::lar, self.size(0)) },
            M::Lsl => Op { r: self.reg(0), ..self.selector_source(1, system::lsl, self.size(0)) },
            M::Verr => self.selector_source(0, system::verr, 0),
            M::Verw => self.selector_source(0, system::verr, 0x40),
            M::Arpl => {
                let x = if self.is_memory(0) { 0x80 } else { 0 };
                Op { s: self.reg(1), x, ..self.destination(0, system::arpl, system::arpl) }
            }
            M::Clts => return Some(self.ending(system::clts)),
            M::Invlpg => return Some((self.memory(self.op(system::invlpg)), Flow::End)),
            M::Invpcid => return Some((Op { r: self.reg(0), ..self.memory(self.op(system::invpcid)) }, Flow::End)),
            M::Wbinvd | M::Invd | M::Wbnoinvd => self.op(system::privileged_nop),
            M::Swapgs => self.op(system::swapgs),
            M::Xgetbv => self.op(system::xgetbv),
            M::Xsetbv => return Some(self.ending(system::xsetbv)),
            M::Rdfsbase => Op { r: self.reg(0), x: self.size(0), imm: 4, ..self.op(system::rdbase) },
            M::Rdgsbase => Op { r: self.reg(0), x: self.size(0), imm: 5, ..self.op(system::rdbase) },
            M::Wrfsbase => Op { s: self.reg(0), x: self.size(0), imm: 4, ..self.op(system::wrbase) },
            M::Wrgsbase => Op { s: self.reg(0), x: self.size(0), imm: 5, ..self.op(system::wrbase) },
            _ => return None,
        };
        Some((op, Flow::More))
    }

    /// FXSAVE and its kin, and the SSE moves with handlers of their own.
    fn vector(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let saving = |f: Handler, wide: bool| {
            let x = match (self.long(), wide) {
                (false, _) => float::form::LEGACY,
                (true, false) => float::form::LONG32,
                (true, true) => float::form::LONG64,
            };
            Op { x, ..self.memory(self.op(f)) }
        };
        let op = match i.code() {
            Code::Fxsave_m512byte => saving(float::fxsave, false),
            Code::Fxsave64_m512byte => saving(float::fxsave, true),
            Code::Fxrstor_m512byte => saving(float::fxrstor, false),
            Code::Fxrstor64_m512byte => saving(float::fxrstor, true),
            Code::Xsave_mem | Code::Xsaveopt_mem => saving(float::xsave, false),
            Code::Xsave64_mem | Code::Xsaveopt64_mem => saving(float::xsave, true),
            Code::Xrstor_mem => saving(float::xrstor, false),
            Code::Xrstor64_mem => saving(float::xrstor, true),
            _ => {
                let aligned = match i.mnemonic() {
                    M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
                    M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq => true,
                    M::Pxor | M::Xorps | M::Xorpd if self.is_register(0) && i.op0_register().is_xmm() && self.is_register(1) => {
                        let op = Op { r: i.op0_register().number() as u8, s: i.op1_register().number() as u8, ..self.op(float::xor_xmm) };
                        return Some((op, Flow::More));
                    }
                    _ => return None,
                };
                let x = u8::from(aligned);
                match (self.is_register(0), self.is_register(1)) {
                    (true, true) => {
                        Op { r: i.op0_register().number() as u8, s: i.op1_register().number() as u8, ..self.op(float::move_xmm) }
                    }
                    (true, false) => Op { r: i.op0_register().number() as u8, x, ..self.memory(self.op(float::load_xmm)) },
                    _ => Op { s: i.op1_register().number() as u8, x, ..self.memory(self.op(float::store_xmm)) },
                }
            }
        };
        Some((op, Flow::More))
    }

    fn float(&self, operation: fpu::Op, floats: &mut Floats) -> (Op, Flow) {
        let imm = floats.base + floats.list.len() as u64;
        floats.list.push(operation);
        let i = self.i;
        let flags = i.rflags_read() | i.rflags_modified() != 0;
        let f = float::handler(operation.access() != fpu::Access::None, flags);
        if operation.access() == fpu::Access::None {
            return (Op { imm, ..self.op(f) }, Flow::More);
        }
        let explicit = (0..i.op_count()).any(|operand| self.is_memory(operand));
        if explicit {
            return (Op { imm, ..self.memory(self.op(f)) }, Flow::More);
        }
        let mut op = Op { imm, x: 1, ..self.op(f) };
        for operand in 0..i.op_count() {
            match i.op_kind(operand) {
                OpKind::MemorySegDI => Self::address_size(&mut op, 2),
                OpKind::MemorySegEDI => Self::address_size(&mut op, 4),
                _ => {}
            }
        }
        self.segment(&mut op, i.memory_segment());
        (op, Flow::More)
    }
}

/// An operation whose memory access is that of the stack.
const fn stacked(op: Op) -> Op {
    Op { am: op.am | am::STACK, ..op }
}
