// SPDX-License-Identifier: BSD-2-Clause

//! String instructions. MOVS and STOS upwards in RAM go by whole page chunks.
//!
//! With a REP prefix, a chunk ends when the count is used up (or the condition met), or when an operand's next element begins in
//! another page, or after each element while something traps there; what is left is executed as the next instruction. Where a
//! chunk ends thus depends on the registers alone.

#![expect(unsafe_code, reason = "guest memory, by address")]

use crate::bus::Reply;
use crate::cpu::Cpu;
use crate::exit::{Exit, StringIo};
use crate::host;
use crate::interp::{by_size, zext};
use crate::ir::{Gpr, StringOp};
use crate::op::{Handler, Op, OpRef, Status, am, next};
use crate::state::{Seg, dr7, flag};
use crate::trap::Trapped;

const RAX: u8 = Gpr::Rax as u8;
const RCX: u8 = Gpr::Rcx as u8;
const RDX: Gpr = Gpr::Rdx;
const RSI: u8 = Gpr::Rsi as u8;
const RDI: u8 = Gpr::Rdi as u8;

/// `Op::x`: no prefix, REP or REPE, REPNE.
pub(crate) mod rep {
    pub const NONE: u8 = 0;
    pub const REP: u8 = 1;
    pub const REPNE: u8 = 2;
}

/// How a chunk ended.
enum Chunk {
    Finished,
    More,
}

impl Cpu {
    /// The address size as a logarithm.
    pub(crate) fn address_log(op: &Op) -> u8 {
        match op.am & (am::MASK16 | am::MASK32) {
            0 => 3,
            am::MASK32 => 2,
            _ => 1,
        }
    }

    pub(crate) fn address_register(&self, op: &Op, r: u8) -> u64 {
        match Self::address_log(op) {
            1 => self.rd::<1>(r),
            2 => self.rd::<2>(r),
            _ => self.rd::<3>(r),
        }
    }

    fn set_address_register(&mut self, op: &Op, r: u8, value: u64) {
        match Self::address_log(op) {
            1 => self.wr::<1>(r, value),
            2 => self.wr::<2>(r, value),
            _ => self.wr::<3>(r, value),
        }
    }

    fn source<const S: u8>(&mut self, op: &Op) -> Result<u64, Trapped> {
        let offset = self.address_register(op, RSI);
        self.operand_linear(op, offset, 1 << S, false)
    }

    fn destination<const S: u8>(&mut self, op: &Op, write: bool) -> Result<u64, Trapped> {
        let offset = self.address_register(op, RDI);
        self.segment_linear(Seg::Es, offset, 1 << S, write)
    }

    fn stride<const S: u8>(&self) -> u64 {
        if self.rflags & flag::DF != 0 {
            (1u64 << S).wrapping_neg()
        } else {
            1 << S
        }
    }

    fn advance(&mut self, op: &Op, r: u8, by: u64) {
        let value = self.address_register(op, r).wrapping_add(by);
        self.set_address_register(op, r, value);
    }

    /// Upwards, and with nobody who wants to see each iteration.
    fn may_go_in_bulk(&self) -> bool {
        self.rflags & (flag::DF | flag::TF) == 0 && self.ctl.dr7 & dr7::ENABLED == 0
    }

    /// Elements that fit between `la` and the end of its page, going upwards, and before the register wraps.
    fn room<const S: u8>(&self, op: &Op, la: u64, r: u8) -> u64 {
        let mut bytes = 0x1000 - (la & 0xfff);
        match Self::address_log(op) {
            1 => bytes = bytes.min(0x1_0000 - self.address_register(op, r)),
            2 => bytes = bytes.min(0x1_0000_0000 - self.address_register(op, r)),
            _ => {}
        }
        bytes >> S
    }
}

/// Executes `one` until the count in rCX is used up, `done` says so, or an operand enters another page.
fn repeat<const S: u8>(
    cpu: &mut Cpu,
    op: &Op,
    uses: (bool, bool),
    one: impl Fn(&mut Cpu, &Op) -> Result<(), Trapped>,
    done: impl Fn(&Cpu) -> bool,
) -> Result<Chunk, Trapped> {
    if op.x == rep::NONE {
        one(cpu, op)?;
        return Ok(Chunk::Finished);
    }
    // Debug traps come after each iteration.
    let traced = cpu.rflags & flag::TF != 0;
    loop {
        let count = cpu.address_register(op, RCX);
        if count == 0 {
            return Ok(Chunk::Finished);
        }
        let before = (cpu.address_register(op, RSI), cpu.address_register(op, RDI));
        one(cpu, op)?;
        cpu.set_address_register(op, RCX, count - 1);
        if count == 1 || done(cpu) {
            return Ok(Chunk::Finished);
        }
        if traced || cpu.events.data_break != 0 {
            return Ok(Chunk::More);
        }
        let crossed = |old: u64, r: u8| (old ^ cpu.address_register(op, r)) >> 12 != 0;
        if uses.0 && crossed(before.0, RSI) || uses.1 && crossed(before.1, RDI) {
            return Ok(Chunk::More);
        }
    }
}

fn finish(cpu: &mut Cpu, op: OpRef, result: Result<Chunk, Trapped>) -> Status {
    match result {
        Ok(Chunk::Finished) => next(cpu, op),
        Ok(Chunk::More) => cpu.again(&op),
        Err(Trapped) => cpu.trapped(&op),
    }
}

fn movs_one<const S: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let from = cpu.source::<S>(op)?;
    let to = cpu.destination::<S>(op, true)?;
    let value = cpu.load::<S>(from, op)?;
    cpu.store::<S>(to, value, op)?;
    let step = cpu.stride::<S>();
    cpu.advance(op, RSI, step);
    cpu.advance(op, RDI, step);
    Ok(())
}

/// Copies as much as lies in one page of each operand; `None` if the general way has to be gone.
fn movs_bulk<const S: u8>(cpu: &mut Cpu, op: &Op) -> Result<Option<Chunk>, Trapped> {
    let count = cpu.address_register(op, RCX);
    if count < 4 || !cpu.may_go_in_bulk() {
        return Ok(None);
    }
    let from = cpu.source::<S>(op)?;
    let to = cpu.destination::<S>(op, true)?;
    let n = count
        .min(cpu.room::<S>(op, from, RSI))
        .min(cpu.room::<S>(op, to, RDI));
    if n < 2 {
        return Ok(None);
    }
    let bytes = n << S;
    if op.am & am::CHECKED != 0 {
        cpu.operand_linear(op, cpu.address_register(op, RSI), bytes, false)?;
    }
    if !cpu.code64() {
        cpu.segment_linear(Seg::Es, cpu.address_register(op, RDI), bytes, true)?;
    }
    let source = match cpu.read_pointer(from, bytes) {
        Some(p) => p,
        None => match cpu.prepare_read(from, bytes, op)? {
            Some(p) => p,
            None => return Ok(None),
        },
    };
    let (target, meta) = match cpu.write_pointer(to, bytes) {
        Some(p) => (p, None),
        None => match cpu.prepare_write(to, bytes, op)? {
            Some((p, meta)) => (p, Some(meta)),
            None => return Ok(None),
        },
    };
    let distance = (target as usize).wrapping_sub(source as usize);
    if distance < 1 << S && distance != 0 {
        // Overlapping by less than an element: a byte copy would not be the same.
        return Ok(None);
    }
    // SAFETY: both pointers are good for `bytes` bytes within their pages.
    unsafe { host::copy_up(target, source, bytes as usize) };
    if let Some(meta) = meta {
        cpu.spoil(meta);
    }
    cpu.advance(op, RSI, bytes);
    cpu.advance(op, RDI, bytes);
    cpu.set_address_register(op, RCX, count - n);
    Ok(Some(if n == count {
        Chunk::Finished
    } else {
        Chunk::More
    }))
}

fn movs<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    if op.x != rep::NONE {
        match movs_bulk::<S>(cpu, &op) {
            Ok(Some(chunk)) => return finish(cpu, op, Ok(chunk)),
            Ok(None) => {}
            // Where exactly the general way stops is for it to say.
            Err(Trapped) => {}
        }
    }
    let result = repeat::<S>(cpu, &op, (true, true), movs_one::<S>, |_| false);
    finish(cpu, op, result)
}

fn stos_one<const S: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let to = cpu.destination::<S>(op, true)?;
    let value = cpu.rd::<S>(RAX);
    cpu.store::<S>(to, value, op)?;
    let step = cpu.stride::<S>();
    cpu.advance(op, RDI, step);
    Ok(())
}

fn stos_bulk<const S: u8>(cpu: &mut Cpu, op: &Op) -> Result<Option<Chunk>, Trapped> {
    let count = cpu.address_register(op, RCX);
    if count < 4 || !cpu.may_go_in_bulk() {
        return Ok(None);
    }
    let to = cpu.destination::<S>(op, true)?;
    let n = count.min(cpu.room::<S>(op, to, RDI));
    if n < 2 {
        return Ok(None);
    }
    let bytes = n << S;
    if !cpu.code64() {
        cpu.segment_linear(Seg::Es, cpu.address_register(op, RDI), bytes, true)?;
    }
    let (target, meta) = match cpu.write_pointer(to, bytes) {
        Some(p) => (p, None),
        None => match cpu.prepare_write(to, bytes, op)? {
            Some((p, meta)) => (p, Some(meta)),
            None => return Ok(None),
        },
    };
    let value = zext::<S>(cpu.regs[Gpr::Rax]);
    let pattern = match S {
        0 => value * 0x0101_0101_0101_0101,
        1 => value * 0x0001_0001_0001_0001,
        2 => value | value << 32,
        _ => value,
    };
    // SAFETY: `target` is good for `bytes` bytes within its page.
    unsafe {
        host::fill_up(target, pattern, (bytes / 8) as usize);
        let mut at = bytes & !7;
        while at < bytes {
            host::store::<S>(target.wrapping_add(at as usize), value);
            at += 1 << S;
        }
    }
    if let Some(meta) = meta {
        cpu.spoil(meta);
    }
    cpu.advance(op, RDI, bytes);
    cpu.set_address_register(op, RCX, count - n);
    Ok(Some(if n == count {
        Chunk::Finished
    } else {
        Chunk::More
    }))
}

fn stos<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    if op.x != rep::NONE
        && let Ok(Some(chunk)) = stos_bulk::<S>(cpu, &op)
    {
        return finish(cpu, op, Ok(chunk));
    }
    let result = repeat::<S>(cpu, &op, (false, true), stos_one::<S>, |_| false);
    finish(cpu, op, result)
}

fn lods<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let one = |cpu: &mut Cpu, op: &Op| {
        let from = cpu.source::<S>(op)?;
        let value = cpu.load::<S>(from, op)?;
        cpu.wr::<S>(RAX, value);
        let step = cpu.stride::<S>();
        cpu.advance(op, RSI, step);
        Ok(())
    };
    let result = repeat::<S>(cpu, &op, (true, false), one, |_| false);
    finish(cpu, op, result)
}

fn condition_met(cpu: &Cpu, op: &Op) -> bool {
    cpu.flags.zf() == (op.x == rep::REPNE)
}

fn scas<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let one = |cpu: &mut Cpu, op: &Op| {
        let at = cpu.destination::<S>(op, false)?;
        let value = cpu.load::<S>(at, op)?;
        cpu.alu::<7, S>(cpu.rd::<S>(RAX), value);
        let step = cpu.stride::<S>();
        cpu.advance(op, RDI, step);
        Ok(())
    };
    let result = repeat::<S>(cpu, &op, (false, true), one, |cpu| condition_met(cpu, &op));
    finish(cpu, op, result)
}

fn cmps<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let one = |cpu: &mut Cpu, op: &Op| {
        let first = cpu.source::<S>(op)?;
        let second = cpu.destination::<S>(op, false)?;
        let a = cpu.load::<S>(first, op)?;
        let b = cpu.load::<S>(second, op)?;
        cpu.alu::<7, S>(a, b);
        let step = cpu.stride::<S>();
        cpu.advance(op, RSI, step);
        cpu.advance(op, RDI, step);
        Ok(())
    };
    let result = repeat::<S>(cpu, &op, (true, true), one, |cpu| condition_met(cpu, &op));
    finish(cpu, op, result)
}

fn string_exit<const S: u8>(cpu: &mut Cpu, op: &Op, input: bool) -> Trapped {
    let seg = if input {
        Seg::Es
    } else {
        Seg::from_index(op.s)
    };
    let rep = op.x != rep::NONE;
    let exit = StringIo {
        port: cpu.regs[RDX] as u16,
        size: 1 << S,
        input,
        rep,
        addr_size: 1 << Cpu::address_log(op),
        index: cpu.address_register(op, if input { RDI } else { RSI }),
        count: if rep {
            cpu.address_register(op, RCX)
        } else {
            1
        },
        seg,
        segment: cpu.segs[seg as usize],
        len: op.len,
    };
    cpu.leave(Exit::StringIo(exit))
}

fn ins<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let one = |cpu: &mut Cpu, op: &Op| {
        cpu.check_port(cpu.regs[RDX] as u16, 1 << S)?;
        cpu.watch_port(cpu.regs[RDX] as u16, 1 << S);
        let to = cpu.destination::<S>(op, true)?;
        // The device must not be read if the element cannot be stored.
        if cpu.write_pointer(to, 1 << S).is_none() {
            cpu.prepare_write(to, 1 << S, op)?;
        }
        cpu.end_block_after(op);
        let now = cpu.now(op);
        let port = cpu.regs[RDX] as u16;
        match cpu.bus().in_port(now, port, 1 << S) {
            Reply::Done(value) => cpu.store::<S>(to, u64::from(value), op)?,
            Reply::Exit | Reply::Fault => return Err(string_exit::<S>(cpu, op, true)),
        }
        let step = cpu.stride::<S>();
        cpu.advance(op, RDI, step);
        Ok(())
    };
    let result = repeat::<S>(cpu, &op, (false, true), one, |_| false);
    finish(cpu, op, result)
}

fn outs<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let one = |cpu: &mut Cpu, op: &Op| {
        cpu.check_port(cpu.regs[RDX] as u16, 1 << S)?;
        cpu.watch_port(cpu.regs[RDX] as u16, 1 << S);
        let from = cpu.source::<S>(op)?;
        let value = cpu.load::<S>(from, op)?;
        cpu.end_block_after(op);
        let now = cpu.now(op);
        let port = cpu.regs[RDX] as u16;
        match cpu.bus().out_port(now, port, 1 << S, value as u32) {
            Reply::Done(()) => {}
            Reply::Exit | Reply::Fault => return Err(string_exit::<S>(cpu, op, false)),
        }
        let step = cpu.stride::<S>();
        cpu.advance(op, RSI, step);
        Ok(())
    };
    let result = repeat::<S>(cpu, &op, (true, false), one, |_| false);
    finish(cpu, op, result)
}

pub(crate) fn handler(kind: StringOp, s: u8) -> Handler {
    match kind {
        StringOp::Movs => by_size!(s, movs),
        StringOp::Stos => by_size!(s, stos),
        StringOp::Lods => by_size!(s, lods),
        StringOp::Scas => by_size!(s, scas),
        StringOp::Cmps => by_size!(s, cmps),
        StringOp::Ins => by_size!(s, ins),
        StringOp::Outs => by_size!(s, outs),
    }
}
