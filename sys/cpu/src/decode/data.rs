//! Lowering of moves, arithmetic and logic.

use iced_x86::{Code, Mnemonic, OpKind};

use super::{Flow, Lower};
use crate::interp::alu::{self, Form};
use crate::interp::{atomic, bit, misc, mov, muldiv, shift, system};
use crate::op::{Op, am};

impl Lower<'_> {
    fn two_operand(&self, k: u8) -> Op {
        let s = self.size(0);
        let locked = self.i.has_lock_prefix();
        if self.is_memory(0) {
            if self.is_register(1) {
                let form = if locked { Form::LockedMr } else { Form::Mr };
                return Op {
                    s: self.reg(1),
                    ..self.memory_by(|plain| alu::handler(k, form, plain, s))
                };
            }
            let form = if locked { Form::LockedMi } else { Form::Mi };
            return Op {
                imm: self.imm(1),
                ..self.memory_by(|plain| alu::handler(k, form, plain, s))
            };
        }
        let r = self.reg(0);
        if self.is_memory(1) {
            return Op {
                r,
                ..self.memory_by(|plain| alu::handler(k, Form::Rm, plain, s))
            };
        }
        if self.is_register(1) {
            let other = self.reg(1);
            if k == alu::kind::XOR && r == other {
                return Op {
                    r,
                    ..self.op(alu::clear_handler(s))
                };
            }
            return Op {
                r,
                s: other,
                ..self.op(alu::handler(k, Form::Rr, false, s))
            };
        }
        Op {
            r,
            imm: self.imm(1),
            ..self.op(alu::handler(k, Form::Ri, false, s))
        }
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
        Op {
            imm,
            ..self.destination(0, f, f)
        }
    }

    fn double_shift(&self, left: bool) -> Op {
        let f = shift::double_handler(left, self.is_memory(0), self.size(0));
        let by_cl = self.is_register(2);
        let imm = if by_cl { 0 } else { self.imm(2) };
        Op {
            s: self.reg(1),
            imm,
            x: u8::from(by_cl),
            ..self.destination(0, f, f)
        }
    }

    fn bit(&self, k: u8) -> Op {
        let immediate = !self.is_register(1);
        let f = bit::handler(k, self.is_memory(0), immediate, self.size(0));
        let (s, imm) = if immediate {
            (0, self.imm(1))
        } else {
            (self.reg(1), 0)
        };
        Op {
            s,
            imm,
            x: u8::from(self.i.has_lock_prefix()),
            ..self.destination(0, f, f)
        }
    }

    fn mov(&self) -> (Op, Flow) {
        let i = self.i;
        let (to, from) = (i.op0_register(), i.op1_register());
        if self.is_register(0) && to.is_segment_register() {
            let memory = self.is_memory(1);
            let f = system::mov_to_seg;
            let op = Op {
                r: to.number() as u8,
                x: if memory { 0x80 } else { 0 },
                ..self.source(1, f, f)
            };
            return (op, Flow::End);
        }
        if self.is_register(1) && from.is_segment_register() {
            let f = system::mov_from_seg;
            let x = if self.is_memory(0) {
                0x80
            } else {
                self.size(0)
            };
            return (
                Op {
                    s: from.number() as u8,
                    x,
                    ..self.destination(0, f, f)
                },
                Flow::More,
            );
        }
        if self.is_register(0) && (to.is_cr() || to.is_dr()) {
            let f = if to.is_cr() {
                system::mov_to_cr
            } else {
                system::mov_to_dr
            };
            return (
                Op {
                    r: to.number() as u8,
                    s: self.reg(1),
                    x: self.size(1),
                    ..self.op(f)
                },
                Flow::End,
            );
        }
        if self.is_register(1) && (from.is_cr() || from.is_dr()) {
            let f = if from.is_cr() {
                system::mov_from_cr
            } else {
                system::mov_from_dr
            };
            return (
                Op {
                    r: self.reg(0),
                    s: from.number() as u8,
                    x: self.size(0),
                    ..self.op(f)
                },
                Flow::More,
            );
        }
        if (self.is_register(0) && (to.is_tr())) || self.is_register(1) && from.is_tr() {
            return self.undefined();
        }
        let s = self.size(0);
        let op = match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register) => Op {
                r: self.reg(0),
                s: self.reg(1),
                ..self.op(mov::rr_handler(s))
            },
            (OpKind::Register, OpKind::Memory) if self.absolute64() => {
                let mut op = Op {
                    r: 0,
                    imm: i.memory_displacement64(),
                    ..self.op(mov::absolute_handler(true, s))
                };
                self.segment(&mut op, i.memory_segment());
                op
            }
            (OpKind::Memory, OpKind::Register) if self.absolute64() => {
                let mut op = Op {
                    s: 0,
                    imm: i.memory_displacement64(),
                    ..self.op(mov::absolute_handler(false, s))
                };
                self.segment(&mut op, i.memory_segment());
                op
            }
            (OpKind::Register, OpKind::Memory) => Op {
                r: self.reg(0),
                ..self.memory_by(|plain| mov::rm_handler(plain, s))
            },
            (OpKind::Memory, OpKind::Register) => Op {
                s: self.reg(1),
                ..self.memory_by(|plain| mov::mr_handler(plain, s))
            },
            (OpKind::Memory, _) => Op {
                imm: self.imm(1),
                ..self.memory(self.op(mov::mi_handler(s)))
            },
            _ => Op {
                r: self.reg(0),
                imm: self.imm(1),
                ..self.op(mov::ri_handler(s))
            },
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
        let op = if self.is_memory(1) {
            self.memory_by(|plain| mov::extend_memory_handler(sign, plain, from, to))
        } else {
            Op {
                s: self.reg(1),
                ..self.op(mov::extend_handler(sign, from, to))
            }
        };
        Op {
            r: self.reg(0),
            ..op
        }
    }

    /// Moves, arithmetic and logic.
    pub(super) fn data(&self) -> Option<(Op, Flow)> {
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
                Op {
                    r: self.reg(0),
                    ..self.source(1, f, f)
                }
            }
            M::Popcnt => {
                let f = bit::popcnt_handler(self.is_memory(1), self.size(0));
                Op {
                    r: self.reg(0),
                    ..self.source(1, f, f)
                }
            }
            M::Movzx => self.extend(false),
            M::Movsx => self.extend(true),
            M::Movsxd => {
                if self.size(0) == self.size(1) || self.size(0) == 1 {
                    // Without REX.W it is a plain move.
                    let s = self.size(0);
                    let op = self.source(1, mov::rr_handler(s), mov::rm_handler(false, s));
                    Op {
                        r: self.reg(0),
                        ..op
                    }
                } else {
                    self.extend(true)
                }
            }
            M::Lea => {
                let op = self.memory(self.op(misc::nop));
                let plain = op.am & (am::MASK16 | am::MASK32) == 0;
                Op {
                    f: mov::lea_handler(plain, self.size(0)),
                    r: self.reg(0),
                    ..op
                }
            }
            M::Xchg => {
                let s = self.size(0);
                match (self.is_memory(0), self.is_memory(1)) {
                    (true, _) => Op {
                        s: self.reg(1),
                        ..self.memory(self.op(atomic::xchg_handler(s)))
                    },
                    (_, true) => Op {
                        s: self.reg(0),
                        ..self.memory(self.op(atomic::xchg_handler(s)))
                    },
                    _ => Op {
                        r: self.reg(0),
                        s: self.reg(1),
                        ..self.op(mov::xchg_handler(s))
                    },
                }
            }
            M::Xadd => {
                let f = atomic::xadd_handler(self.is_memory(0), self.size(0));
                Op {
                    s: self.reg(1),
                    ..self.destination(0, f, f)
                }
            }
            M::Cmpxchg => {
                let f = atomic::cmpxchg_handler(self.is_memory(0), self.size(0));
                Op {
                    s: self.reg(1),
                    ..self.destination(0, f, f)
                }
            }
            M::Cmpxchg8b => self.memory(self.op(atomic::cmpxchg8b)),
            M::Cmpxchg16b => self.memory(self.op(atomic::cmpxchg16b)),
            M::Bswap => Op {
                r: self.reg(0),
                ..self.op(mov::bswap_handler(self.size(0)))
            },
            M::Movbe => {
                let load = self.is_memory(1);
                let s = self.size(if load { 0 } else { 1 });
                let op = self.memory(self.op(mov::movbe_handler(load, s)));
                if load {
                    Op {
                        r: self.reg(0),
                        ..op
                    }
                } else {
                    Op {
                        s: self.reg(1),
                        ..op
                    }
                }
            }
            M::Mul => self.wide(muldiv::kind::MUL),
            M::Div => self.wide(muldiv::kind::DIV),
            M::Idiv => self.wide(muldiv::kind::IDIV),
            M::Imul if i.op_count() == 1 => self.wide(muldiv::kind::IMUL),
            M::Imul => {
                let f = muldiv::imul_handler(self.is_memory(1), self.size(0));
                let three = i.op_count() == 3;
                let imm = if three { self.imm(2) } else { 0 };
                Op {
                    r: self.reg(0),
                    imm,
                    x: u8::from(three),
                    ..self.source(1, f, f)
                }
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
            M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg => {
                let f = mov::setcc_handler(self.is_memory(0), c);
                Some(self.destination(0, f, f))
            }
            M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg => {
                let f = mov::cmov_handler(self.is_memory(1), self.size(0), c);
                Some(Op {
                    r: self.reg(0),
                    ..self.source(1, f, f)
                })
            }
            _ => None,
        }
    }
}
