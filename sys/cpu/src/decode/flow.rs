//! Lowering of branches, stack and string instructions.

use iced_x86::{Code, Mnemonic, OpKind};

use super::{Flow, Lower, log, near_condition};
use crate::interp::string::{self, Kind, rep};
use crate::interp::{control, misc, stack, system};
use crate::op::{Handler, Op, am};

impl Lower<'_> {
    /// Target of a near branch relative to the block, and the mask of the instruction pointer.
    fn near(&self, f: Handler) -> Op {
        let (imm, mask) = match self.i.op0_kind() {
            OpKind::NearBranch16 => (u64::from(self.i.near_branch16()), 0xffff),
            OpKind::NearBranch32 => (u64::from(self.i.near_branch32()), -1),
            _ => (self.i.near_branch64(), -1),
        };
        Op {
            imm,
            disp: mask,
            ..self.op(f)
        }
    }

    /// In 64-bit code with 64-bit operands.
    fn wide_branch(&self) -> bool {
        self.long() && self.i.op0_kind() == OpKind::NearBranch64
    }

    pub(super) fn branch(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        if let Some(c) = near_condition(i) {
            let wide = self.wide_branch();
            let flow = if wide { Flow::Branch } else { Flow::End };
            return Some((self.near(control::jcc_handler(wide, c)), flow));
        }
        let op = match i.mnemonic() {
            M::Jmp if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => {
                self.far(system::jmp_far)
            }
            M::Call if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) => {
                self.far(system::call_far)
            }
            M::Jmp if i.is_jmp_far_indirect() => self.far_memory(system::jmp_far_m),
            M::Call if i.is_call_far_indirect() => self.far_memory(system::call_far_m),
            M::Jmp if i.is_jmp_near_indirect() => Op {
                x: self.size(0),
                ..self.source(0, control::jmp_r, control::jmp_m)
            },
            M::Call if i.is_call_near_indirect() && self.is_register(0) => stacked(Op {
                x: self.size(0),
                ..self.source(0, control::call_r, control::call_m)
            }),
            M::Call if i.is_call_near_indirect() => Op {
                x: self.size(0),
                ..self.source(0, control::call_r, control::call_m)
            },
            M::Jmp => self.near(if self.wide_branch() {
                control::jmp
            } else {
                control::jmp_legacy
            }),
            M::Call if self.wide_branch() => stacked(self.near(control::call)),
            M::Call => Op {
                x: if i.op0_kind() == OpKind::NearBranch16 {
                    1
                } else {
                    2
                },
                ..self.near(control::call_legacy)
            },
            M::Ret => {
                let imm = if i.op_count() == 1 {
                    self.imm(0) & 0xffff
                } else {
                    0
                };
                let x = match i.code() {
                    Code::Retnw | Code::Retnw_imm16 => 1,
                    Code::Retnd | Code::Retnd_imm16 => 2,
                    _ => 3,
                };
                let f = if x == 3 {
                    control::ret
                } else {
                    control::ret_legacy
                };
                stacked(Op {
                    imm,
                    x,
                    ..self.op(f)
                })
            }
            M::Retf => {
                let imm = if i.op_count() == 1 {
                    self.imm(0) & 0xffff
                } else {
                    0
                };
                let x = match i.code() {
                    Code::Retfw | Code::Retfw_imm16 => 1,
                    Code::Retfd | Code::Retfd_imm16 => 2,
                    _ => 3,
                };
                Op {
                    imm,
                    x,
                    ..self.op(system::ret_far)
                }
            }
            M::Loopne | M::Loope | M::Loop | M::Jcxz | M::Jecxz | M::Jrcxz => self.counted(),
            M::Iret => Op {
                x: 1,
                ..self.op(misc::iret)
            },
            M::Iretd => Op {
                x: 2,
                ..self.op(misc::iret)
            },
            M::Iretq => Op {
                x: 3,
                ..self.op(misc::iret)
            },
            M::Int => Op {
                imm: self.imm(0),
                ..self.op(misc::int)
            },
            M::Int3 => self.op(misc::int3),
            M::Int1 => self.op(misc::int1),
            M::Into => return Some(self.plain(misc::into)),
            M::Syscall => self.op(system::syscall),
            M::Sysret => Op {
                x: 2,
                ..self.op(system::sysret)
            },
            M::Sysretq => Op {
                x: 3,
                ..self.op(system::sysret)
            },
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
        Op {
            s,
            x,
            ..self.near(control::counted)
        }
    }

    /// A direct far branch.
    fn far(&self, f: Handler) -> Op {
        let i = self.i;
        let wide = i.op0_kind() == OpKind::FarBranch32;
        let offset = if wide {
            i.far_branch32()
        } else {
            u32::from(i.far_branch16())
        };
        Op {
            imm: u64::from(offset),
            disp: i32::from(i.far_branch_selector()),
            x: if wide { 2 } else { 1 },
            ..self.op(f)
        }
    }

    /// The offset's size of a far pointer in memory.
    pub(super) fn far_size(&self) -> u8 {
        match self.i.memory_size().size() {
            4 => 1,
            6 => 2,
            _ => 3,
        }
    }

    fn far_memory(&self, f: Handler) -> Op {
        Op {
            x: self.far_size(),
            ..self.memory(self.op(f))
        }
    }

    pub(super) fn stack(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let s = log(i.stack_pointer_increment().unsigned_abs() as usize);
        let op = match i.mnemonic() {
            M::Push => {
                if self.is_register(0) && i.op0_register().is_segment_register() {
                    Op {
                        s: i.op0_register().number() as u8,
                        x: s,
                        ..self.op(stack::push_seg)
                    }
                } else if self.is_register(0) {
                    let f = if self.long() && s == 3 {
                        stack::push_r64
                    } else {
                        stack::push_handler(false, false, s)
                    };
                    Op {
                        s: self.reg(0),
                        ..self.op(f)
                    }
                } else if self.is_memory(0) {
                    return Some((
                        self.memory(self.op(stack::push_handler(true, false, s))),
                        Flow::More,
                    ));
                } else {
                    let f = if self.long() && s == 3 {
                        stack::push_i64
                    } else {
                        stack::push_handler(false, true, s)
                    };
                    Op {
                        imm: self.imm(0),
                        ..self.op(f)
                    }
                }
            }
            M::Pop => {
                if self.is_register(0) && i.op0_register().is_segment_register() {
                    let op = Op {
                        r: i.op0_register().number() as u8,
                        x: s,
                        ..self.op(stack::pop_seg)
                    };
                    return Some((stacked(op), Flow::End));
                } else if self.is_register(0) {
                    let f = if self.long() && s == 3 {
                        stack::pop_r64
                    } else {
                        stack::pop_handler(false, s)
                    };
                    Op {
                        r: self.reg(0),
                        ..self.op(f)
                    }
                } else {
                    return Some((
                        self.memory(self.op(stack::pop_handler(true, s))),
                        Flow::More,
                    ));
                }
            }
            M::Pusha => Op {
                x: 1,
                ..self.op(stack::pusha)
            },
            M::Pushad => Op {
                x: 2,
                ..self.op(stack::pusha)
            },
            M::Popa => Op {
                x: 1,
                ..self.op(stack::popa)
            },
            M::Popad => Op {
                x: 2,
                ..self.op(stack::popa)
            },
            M::Pushf | M::Pushfd | M::Pushfq => Op {
                x: s,
                ..self.op(stack::pushf)
            },
            M::Popf | M::Popfd | M::Popfq => {
                return Some((
                    stacked(Op {
                        x: s,
                        ..self.op(stack::popf)
                    }),
                    Flow::End,
                ));
            }
            M::Leave => {
                let x = match i.code() {
                    Code::Leavew => 1,
                    Code::Leaved => 2,
                    _ => 3,
                };
                Op {
                    x,
                    ..self.op(stack::leave)
                }
            }
            M::Enter => {
                let x = match i.code() {
                    Code::Enterw_imm16_imm8 => 1,
                    Code::Enterd_imm16_imm8 => 2,
                    _ => 3,
                };
                Op {
                    x,
                    imm: u64::from(i.immediate16()),
                    disp: i32::from(i.immediate8_2nd()),
                    ..self.op(stack::enter)
                }
            }
            _ => return None,
        };
        Some((stacked(op), Flow::More))
    }

    pub(super) fn string(&self) -> Option<(Op, Flow)> {
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
}

/// An operation whose memory access is that of the stack.
const fn stacked(op: Op) -> Op {
    Op {
        am: op.am | am::STACK,
        ..op
    }
}
