//! Lowering of system instructions, of x87, MMX and SSE, and of what fits nowhere else.

use iced_x86::{Code, Mnemonic, OpKind};

use super::{Flow, Lower};
use crate::fpu;
use crate::interp::{bcd, float, misc, mov, system};
use crate::op::{Handler, Op};

impl Lower<'_> {
    /// Flags, decimal arithmetic, and what else fits nowhere.
    pub(super) fn other(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let op = match i.mnemonic() {
            // AMD's PREFETCH and PREFETCHW have no form with a register.
            M::Reservednop if self.is_prefetch() && self.is_register(0) => {
                return Some(self.undefined());
            }
            M::Nop
            | M::Reservednop
            // Loads are in order among themselves, and so are stores, by what memory is here: there is nothing to wait for.
            | M::Lfence
            | M::Sfence => return Some((self.op(misc::nop), Flow::Nothing)),
            M::Mfence => self.op(misc::fence),
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
            M::Stac => Op {
                x: 1,
                ..self.op(misc::set_ac)
            },
            M::Lahf => self.op(misc::lahf),
            M::Sahf => self.op(misc::sahf),
            M::Salc => self.op(misc::salc),
            M::Daa => self.op(bcd::daa),
            M::Das => self.op(bcd::das),
            M::Aaa => self.op(bcd::aaa),
            M::Aas => self.op(bcd::aas),
            M::Aam => Op {
                imm: self.imm(0),
                ..self.op(bcd::aam)
            },
            M::Aad => Op {
                imm: self.imm(0),
                ..self.op(bcd::aad)
            },
            M::Bound => Op {
                r: self.reg(0),
                x: self.size(0),
                ..self.memory(self.op(misc::bound))
            },
            M::Xlatb => {
                let mut op = self.op(mov::xlat);
                self.segment(&mut op, i.memory_segment());
                Self::address_size(&mut op, i.memory_base().size());
                op
            }
            M::Clflush | M::Clflushopt => self.memory(self.op(system::clflush)),
            M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => {
                let s = match i.mnemonic() {
                    M::Les => 0,
                    M::Lss => 2,
                    M::Lds => 3,
                    M::Lfs => 4,
                    _ => 5,
                };
                let op = Op {
                    r: self.reg(0),
                    s,
                    x: self.far_size(),
                    ..self.memory(self.op(system::load_far_pointer))
                };
                return Some((op, Flow::End));
            }
            _ => return None,
        };
        Some((op, Flow::More))
    }

    fn is_prefetch(&self) -> bool {
        matches!(
            self.i.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        )
    }

    /// A 16-bit operand: in `s`, or memory with bit 7 of `x` set.
    fn selector_source(&self, operand: u32, f: Handler, x: u8) -> Op {
        let x = if self.is_memory(operand) { x | 0x80 } else { x };
        Op {
            x,
            ..self.source(operand, f, f)
        }
    }

    fn selector_destination(&self, f: Handler) -> Op {
        let x = if self.is_memory(0) {
            0x80
        } else {
            self.size(0)
        };
        Op {
            x,
            ..self.destination(0, f, f)
        }
    }

    fn table(&self, f: Handler) -> Op {
        // With 16-bit operands the base has 24 bits.
        let x = match self.i.code() {
            _ if self.long() => 3,
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 1,
            _ => 2,
        };
        Op {
            x,
            ..self.memory(self.op(f))
        }
    }

    fn port(&self, f: Handler, port_operand: u32, size_operand: u32) -> Op {
        let size = self.size(size_operand);
        if self.is_register(port_operand) {
            Op {
                x: size | 0x80,
                ..self.op(f)
            }
        } else {
            Op {
                imm: self.imm(port_operand) & 0xff,
                x: size,
                ..self.op(f)
            }
        }
    }

    pub(super) fn system(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let op = match i.mnemonic() {
            M::Cpuid => self.op(system::cpuid),
            M::Rdmsr => self.op(system::rdmsr),
            M::Wrmsr => return Some(self.ending(system::wrmsr)),
            M::Rdtsc => self.op(system::rdtsc),
            M::Rdtscp => Op {
                x: 1,
                ..self.op(system::rdtsc)
            },
            M::Rdpid => Op {
                r: self.reg(0),
                ..self.op(system::rdpid)
            },
            M::Rdpmc => self.op(misc::forbidden),
            M::Rdrand | M::Rdseed => Op {
                r: self.reg(0),
                x: self.size(0),
                ..self.op(system::rdrand)
            },
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
            M::Lar => Op {
                r: self.reg(0),
                ..self.selector_source(1, system::lar, self.size(0))
            },
            M::Lsl => Op {
                r: self.reg(0),
                ..self.selector_source(1, system::lsl, self.size(0))
            },
            M::Verr => self.selector_source(0, system::verr, 0),
            M::Verw => self.selector_source(0, system::verr, 0x40),
            M::Arpl => {
                let x = if self.is_memory(0) { 0x80 } else { 0 };
                Op {
                    s: self.reg(1),
                    x,
                    ..self.destination(0, system::arpl, system::arpl)
                }
            }
            M::Clts => return Some(self.ending(system::clts)),
            M::Invlpg => return Some((self.memory(self.op(system::invlpg)), Flow::End)),
            M::Invpcid => {
                return Some((
                    Op {
                        r: self.reg(0),
                        ..self.memory(self.op(system::invpcid))
                    },
                    Flow::End,
                ));
            }
            M::Wbinvd | M::Invd => self.op(system::privileged_nop),
            M::Swapgs => self.op(system::swapgs),
            M::Xgetbv => self.op(system::xgetbv),
            M::Xsetbv => return Some(self.ending(system::xsetbv)),
            M::Rdfsbase => Op {
                r: self.reg(0),
                x: self.size(0),
                imm: 4,
                ..self.op(system::rdbase)
            },
            M::Rdgsbase => Op {
                r: self.reg(0),
                x: self.size(0),
                imm: 5,
                ..self.op(system::rdbase)
            },
            M::Wrfsbase => Op {
                s: self.reg(0),
                x: self.size(0),
                imm: 4,
                ..self.op(system::wrbase)
            },
            M::Wrgsbase => Op {
                s: self.reg(0),
                x: self.size(0),
                imm: 5,
                ..self.op(system::wrbase)
            },
            _ => return None,
        };
        Some((op, Flow::More))
    }

    /// FXSAVE and its kin, and the SSE moves with handlers of their own.
    pub(super) fn vector(&self) -> Option<(Op, Flow)> {
        use Mnemonic as M;
        let i = self.i;
        let saving = |f: Handler, wide: bool| {
            let x = match (self.long(), wide) {
                (false, _) => float::form::LEGACY,
                (true, false) => float::form::LONG32,
                (true, true) => float::form::LONG64,
            };
            Op {
                x,
                ..self.memory(self.op(f))
            }
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
                    M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq => {
                        true
                    }
                    M::Pxor | M::Xorps | M::Xorpd
                        if self.is_register(0)
                            && i.op0_register().is_xmm()
                            && self.is_register(1) =>
                    {
                        let op = Op {
                            r: i.op0_register().number() as u8,
                            s: i.op1_register().number() as u8,
                            ..self.op(float::xor_xmm)
                        };
                        return Some((op, Flow::More));
                    }
                    _ => return None,
                };
                let x = u8::from(aligned);
                match (self.is_register(0), self.is_register(1)) {
                    (true, true) => Op {
                        r: i.op0_register().number() as u8,
                        s: i.op1_register().number() as u8,
                        ..self.op(float::move_xmm)
                    },
                    (true, false) => Op {
                        r: i.op0_register().number() as u8,
                        x,
                        ..self.memory(self.op(float::load_xmm))
                    },
                    _ => Op {
                        s: i.op1_register().number() as u8,
                        x,
                        ..self.memory(self.op(float::store_xmm))
                    },
                }
            }
        };
        Some((op, Flow::More))
    }

    pub(super) fn float(&self, operation: fpu::Op, floats: &mut Vec<fpu::Op>) -> (Op, Flow) {
        let imm = floats.len() as u64;
        floats.push(operation);
        let i = self.i;
        let flags = i.rflags_read() | i.rflags_modified() != 0;
        let f = float::handler(operation.access() != fpu::Access::None, flags);
        if operation.access() == fpu::Access::None {
            return (Op { imm, ..self.op(f) }, Flow::More);
        }
        let explicit = (0..i.op_count()).any(|operand| self.is_memory(operand));
        if explicit {
            return (
                Op {
                    imm,
                    ..self.memory(self.op(f))
                },
                Flow::More,
            );
        }
        let mut op = Op {
            imm,
            x: 1,
            ..self.op(f)
        };
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
