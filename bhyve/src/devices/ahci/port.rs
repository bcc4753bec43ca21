// SPDX-License-Identifier: BSD-2-Clause

//! A port of the controller: its registers, the command list and the drive behind it
//! (`struct ahci_port` and `ahci_handle_port` of `usr.sbin/bhyve/pci_ahci.c`).
//!
//! A port is a state machine under the controller's lock. What it wants of the disk it leaves in an outbox, from where the
//! controller takes it when the lock is free again. Commands that are with the disk are `jobs`; a checkpoint waits until there
//! are none, so they are never saved. A command with many pieces of memory is carried out in several requests, one after the other.
//! Differences: a reset waits for the disk instead of leaving it to write into memory that the guest uses for something else by then
//! (what the disk has not begun is dropped), and after an error nothing is answered any more until the guest has stopped the list.

use super::ata::{self, TRIM_PAGE};
use super::command::{Command, Cursor};
use super::drive::{Action, Drive, Fault};
use super::fis::{self, Answer, Cfis};
use super::regs::*;
use crate::backends::block_if::{Op, Request};
use crate::iov;
use std::io;
use vmmapi::{GuestMemory, OutOfRange};

/// By what a finished request finds its way back.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    /// Number of the port.
    pub port: usize,
    slot: u32,
}

/// A command that is with the disk.
#[derive(Debug)]
struct Job {
    command: Command,
    /// Requests that are still out.
    parts: usize,
    fault: Option<Fault>,
    /// Bytes that have moved when it is done.
    bytes: u32,
    /// What no request has asked for yet.
    rest: Option<Rest>,
    /// A flush is to follow.
    durable: bool,
}

/// The rest of a transfer.
#[derive(Debug)]
struct Rest {
    op: Op,
    /// Where it goes on, in bytes of the disk and in the command's table.
    offset: u64,
    cursor: Cursor,
    /// In bytes.
    len: u64,
}

/// The registers of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Address of the command list.
    pub clb: u64,
    /// Address of the received FISes.
    pub fb: u64,
    /// Interrupt causes.
    pub is: PxIx,
    /// Causes that interrupt.
    pub ie: PxIx,
    /// The part of PxCMD that the guest has written.
    pub cmd: PxCmd,
    /// Task file.
    pub tfd: PxTfd,
    /// Signature.
    pub sig: u32,
    /// Link status.
    pub ssts: PxSsts,
    /// Link control.
    pub sctl: PxSctl,
    /// Link errors.
    pub serr: u32,
    /// Queued commands.
    pub sact: u32,
    /// Issued commands.
    pub ci: u32,
}

/// What a checkpoint keeps of a port.
pub(super) struct Parts<'a> {
    pub regs: Registers,
    pub drive: Option<&'a Drive>,
    pub halted: bool,
    pub next: u32,
}

/// A port.
pub struct Port {
    number: usize,
    /// The registers.
    pub regs: Registers,
    /// The drive; a port without one is there, and empty.
    pub drive: Option<Drive>,
    /// An error has stopped the list until ST is cleared.
    pub halted: bool,
    /// Where the search for the next command begins.
    pub next: u32,
    /// Whether trimmed blocks are to be given back without a promise of zeros.
    pub discard: bool,
    jobs: [Option<Job>; MAX_SLOTS as usize],
    /// The jobs belong to a list that was stopped: nobody is told how they end.
    doomed: bool,
    /// The disk has not been told that it need not do them.
    cancels: bool,
    /// The link comes up when the last job has ended.
    link_wanted: bool,
    /// The port is not to begin anything.
    paused: bool,
    /// An enabled or disabled cause came up since the controller last looked.
    raised: bool,
    outbox: Vec<Request<Token>>,
}

impl Port {
    /// A port as after a reset of the controller.
    pub fn new(number: usize, drive: Option<Drive>, discard: bool) -> Self {
        let mut port = Self {
            number,
            regs: Registers::default(),
            drive,
            halted: false,
            next: 0,
            discard,
            jobs: [const { None }; MAX_SLOTS as usize],
            doomed: false,
            cancels: false,
            link_wanted: false,
            paused: false,
            raised: false,
            outbox: Vec::new(),
        };
        port.reset();
        port
    }

    /// As after a reset of the controller. Nothing may be with the disk.
    pub fn reset(&mut self) {
        self.regs = Registers::default();
        (self.halted, self.next) = (false, 0);
        (self.doomed, self.link_wanted, self.raised) = (false, false, false);
        self.link_up(None);
    }

    /// Whether commands are with the disk.
    pub fn is_busy(&self) -> bool {
        self.jobs.iter().any(Option::is_some)
    }

    /// Nobody is to be told how the commands end that are with the disk.
    pub fn doom(&mut self) {
        self.doomed = self.is_busy();
        self.cancels = self.doomed;
        (self.regs.ci, self.regs.sact) = (0, 0);
    }

    /// What is for the disk.
    pub fn take_outbox(&mut self) -> Vec<Request<Token>> {
        std::mem::take(&mut self.outbox)
    }

    /// Whether the disk need not do what it was given.
    pub fn take_cancels(&mut self) -> bool {
        std::mem::take(&mut self.cancels)
    }

    /// Whether the controller has to look at the port's interrupt causes.
    pub fn take_raised(&mut self) -> bool {
        std::mem::take(&mut self.raised)
    }

    /// Stops or lets begin new commands.
    pub fn set_paused(&mut self, paused: bool, mem: &GuestMemory) {
        self.paused = paused;
        self.issue(mem);
    }

    // ---- checkpoints ----

    /// What a checkpoint keeps. No command may be with the disk.
    pub(super) fn parts(&self) -> Parts<'_> {
        let Self {
            number: _,
            regs,
            drive,
            halted,
            next,
            discard: _,
            jobs: _,        // there are none
            doomed: _,      // only while there are some
            cancels: _,     // the disk has been told
            link_wanted: _, // likewise
            paused: _,
            raised: _, // the controller has looked
            outbox: _, // was passed on
        } = self;
        Parts {
            regs: *regs,
            drive: drive.as_ref(),
            halted: *halted,
            next: *next,
        }
    }

    /// Takes over what was kept, checked.
    pub(super) fn set(&mut self, regs: Registers, halted: bool, next: u32, drive: Option<Drive>) {
        (self.regs, self.halted, self.next, self.drive) = (regs, halted, next, drive);
        (self.doomed, self.link_wanted, self.raised) = (false, false, false);
    }

    // ---- registers ----

    /// A load of a register.
    pub fn read(&self, offset: u64) -> u32 {
        let regs = &self.regs;
        match offset {
            P_CLB => regs.clb as u32,
            P_CLBU => (regs.clb >> 32) as u32,
            P_FB => regs.fb as u32,
            P_FBU => (regs.fb >> 32) as u32,
            P_IS => regs.is.bits(),
            P_IE => regs.ie.bits(),
            P_CMD => self.cmd().bits(),
            P_TFD => regs.tfd.bits().into(),
            P_SIG => regs.sig,
            P_SSTS => regs.ssts.bits(),
            P_SCTL => regs.sctl.bits(),
            P_SERR => regs.serr,
            P_SACT => regs.sact,
            P_CI => regs.ci,
            _ => 0,
        }
    }

    // What the guest has written, and what follows from it.
    fn cmd(&self) -> PxCmd {
        let cmd = self.regs.cmd;
        let started = cmd.contains(PxCmd::ST);
        let mut value = cmd | PxCmd::SUD | PxCmd::POD;
        if started || self.doomed {
            value |= PxCmd::CR;
        }
        if started {
            value |= PxCmd::current(self.next.wrapping_sub(1) % MAX_SLOTS);
        }
        if cmd.contains(PxCmd::FRE) {
            value |= PxCmd::FR;
        }
        value
    }

    /// A store to a register.
    pub fn write(&mut self, offset: u64, value: u32, mem: &GuestMemory) {
        let upper = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let lower = |old: u64, align: u64| (old >> 32 << 32 | u64::from(value)) & !(align - 1);
        let regs = &mut self.regs;
        match offset {
            P_CLB => regs.clb = lower(regs.clb, CLB_ALIGN),
            P_CLBU => regs.clb = upper(regs.clb),
            P_FB => regs.fb = lower(regs.fb, FB_ALIGN),
            P_FBU => regs.fb = upper(regs.fb),
            P_IS => {
                regs.is.remove(PxIx::from_bits_retain(value));
                self.raised = true;
            }
            P_IE => {
                regs.ie = PxIx::from_bits_truncate(value);
                self.raised = true;
            }
            P_CMD => self.write_cmd(PxCmd::from_bits_retain(value), mem),
            P_SCTL => self.write_sctl(PxSctl::from_bits_truncate(value), mem),
            P_SERR => regs.serr &= !value,
            P_SACT => regs.sact |= value,
            P_CI => {
                regs.ci |= value;
                self.issue(mem);
            }
            _ => {}
        }
    }

    fn write_cmd(&mut self, value: PxCmd, mem: &GuestMemory) {
        let was = self.regs.cmd;
        self.regs.cmd = value & PxCmd::WRITABLE;
        if value.contains(PxCmd::CLO) {
            self.regs.tfd.status.remove(Status::BUSY | Status::DRQ);
        }
        if was.contains(PxCmd::ST) && !value.contains(PxCmd::ST) {
            self.doom();
            (self.halted, self.next) = (false, 0);
        }
        self.issue(mem);
    }

    fn write_sctl(&mut self, value: PxSctl, mem: &GuestMemory) {
        let was = std::mem::replace(&mut self.regs.sctl, value).detection();
        // The link may only be touched while the list is stopped.
        if self.drive.is_none() || self.regs.cmd.contains(PxCmd::ST) {
            return;
        }
        match value.detection() {
            Detection::Reset => self.link_down(PxSsts::NO_DEVICE),
            Detection::Disable => self.link_down(PxSsts::DET_PHY_OFFLINE),
            Detection::Idle if was != Detection::Idle => {
                self.regs.tfd = PxTfd::of_status(Status::BUSY);
                self.link_wanted = true;
                self.settle(mem);
            }
            Detection::Idle | Detection::Reserved => {}
        }
    }

    fn link_down(&mut self, ssts: PxSsts) {
        self.regs.ssts = ssts;
        (self.regs.sig, self.regs.tfd) = (SIG_NONE, PxTfd::NO_DEVICE);
        self.link_wanted = false;
        self.doom();
    }

    // The link is there, and the drive says what it is. Without memory to write to, only registers change.
    fn link_up(&mut self, mem: Option<&GuestMemory>) {
        let Some(drive) = &mut self.drive else {
            self.regs.ssts = PxSsts::NO_DEVICE;
            (self.regs.sig, self.regs.tfd) = (SIG_NONE, PxTfd::NO_DEVICE);
            return;
        };
        drive.reset();
        let speed = self.regs.sctl.limit().unwrap_or(Speed::Gen3);
        self.regs.ssts = PxSsts::up(speed);
        self.regs.serr = 0;
        self.signature(mem);
    }

    fn signature(&mut self, mem: Option<&GuestMemory>) {
        let Some(drive) = &self.drive else { return };
        self.regs.sig = drive.signature();
        let answer = Answer::signature(self.regs.sig);
        self.regs.tfd = answer.tfd();
        if let Some(mem) = mem {
            self.receive(mem, RFIS_D2H, &answer.d2h(false), PxIx::empty());
        }
    }

    // The last job may have ended.
    fn settle(&mut self, mem: &GuestMemory) {
        if self.is_busy() {
            return;
        }
        self.doomed = false;
        if std::mem::take(&mut self.link_wanted) {
            self.link_up(Some(mem));
        }
    }

    // ---- what the drive sends ----

    fn raise(&mut self, causes: PxIx) {
        if !self.regs.is.contains(causes) {
            self.regs.is |= causes;
            self.raised = true;
        }
    }

    fn receive(&mut self, mem: &GuestMemory, place: u64, bytes: &[u8], causes: PxIx) {
        if self.regs.cmd.contains(PxCmd::FRE)
            && mem.write(self.regs.fb.wrapping_add(place), bytes).is_err()
        {
            self.bus_error();
            return;
        }
        self.raise(causes);
    }

    fn bus_error(&mut self) {
        self.halted = true;
        self.raise(PxIx::HBF);
    }

    // ---- commands ----

    /// Begins the commands that can begin.
    pub fn issue(&mut self, mem: &GuestMemory) {
        while let Some(slot) = self.next_slot() {
            let Ok(command) = Command::fetch(mem, self.regs.clb, slot) else {
                self.bus_error();
                return;
            };
            let queued = ata::is_queued(command.cfis.command()) && command.cfis.is_command();
            // Only queued commands go together.
            let waits = |job: &Job| !(queued && ata::is_queued(job.command.cfis.command()));
            if self.jobs.iter().flatten().any(waits) {
                return;
            }
            self.next = (slot + 1) % MAX_SLOTS;
            if self.begin(slot, command, mem).is_err() {
                self.bus_error();
            }
        }
    }

    fn next_slot(&self) -> Option<u32> {
        let able = self.regs.cmd.contains(PxCmd::ST | PxCmd::FRE)
            && self.regs.ssts.contains(PxSsts::UP)
            && !(self.regs.tfd.status).intersects(Status::BUSY | Status::DRQ);
        if !able || self.paused || self.halted || self.doomed {
            return None;
        }
        let waiting = |slot: &u32| {
            self.regs.ci & 1 << slot != 0
                && self.jobs.get(*slot as usize).is_some_and(Option::is_none)
        };
        (0..MAX_SLOTS)
            .map(|n| (self.next + n) % MAX_SLOTS)
            .find(waiting)
    }

    fn begin(&mut self, slot: u32, command: Command, mem: &GuestMemory) -> Result<(), OutOfRange> {
        let cfis = command.cfis;
        if !cfis.is_register_fis() {
            self.halted = true;
            self.raise(PxIx::IF);
            return Ok(());
        }
        if !cfis.is_command() {
            self.control(slot, &cfis, mem);
            return Ok(());
        }
        let Some(drive) = &mut self.drive else {
            return Ok(());
        };
        let queued = ata::is_queued(cfis.command());
        let action = drive.execute(&cfis, &command.packet);
        if queued && !matches!(action, Action::Done(_)) {
            // The device takes the command in, and the slot's interface is free for the next one.
            let answer = Answer::good(&Cfis(Default::default()));
            self.regs.ci &= !(1 << slot);
            self.regs.tfd = answer.tfd();
            self.receive(mem, RFIS_D2H, &answer.d2h(false), PxIx::empty());
        } else {
            self.regs.tfd.status |= Status::BUSY;
        }
        match action {
            Action::Done(answer) => {
                command.set_moved(mem, 0)?;
                self.finish(slot, &cfis, answer, mem);
            }
            Action::Data { bytes, pio } => self.answer_with(slot, &command, &bytes, pio, mem)?,
            Action::Transfer {
                write,
                offset,
                len,
                durable,
                pio,
            } => {
                let room = command.room(mem, len)?;
                if write && room < len {
                    return self.fail(slot, &command, mem);
                }
                if room < len {
                    self.raise(PxIx::OF);
                }
                if pio {
                    self.pio_setup(&cfis, !write, len, mem);
                }
                let mut job = Job {
                    command,
                    parts: 1,
                    fault: None,
                    bytes: room as u32,
                    rest: Some(Rest {
                        op: if write { Op::Write } else { Op::Read },
                        offset,
                        cursor: Cursor::default(),
                        len: room,
                    }),
                    durable,
                };
                if let Some(request) = self.go_on(slot, &mut job, mem)? {
                    self.start(slot, job, vec![request]);
                }
            }
            Action::Flush => {
                let job = Job {
                    command,
                    parts: 1,
                    fault: None,
                    bytes: 0,
                    rest: None,
                    durable: false,
                };
                let request = self.request(slot, Op::Flush, 0, 0, Vec::new());
                self.start(slot, job, vec![request]);
            }
            Action::Trim => self.trim(slot, command, mem)?,
        }
        Ok(())
    }

    fn request(
        &self,
        slot: u32,
        op: Op,
        offset: u64,
        len: u64,
        segs: Vec<iov::Seg>,
    ) -> Request<Token> {
        let port = self.number;
        Request {
            op,
            offset,
            len,
            segs,
            token: Token { port, slot },
        }
    }

    /// The next request of a transfer, if there is something left of it.
    fn go_on(
        &self,
        slot: u32,
        job: &mut Job,
        mem: &GuestMemory,
    ) -> Result<Option<Request<Token>>, OutOfRange> {
        let Some(rest) = &mut job.rest else {
            return Ok(None);
        };
        let block = self.drive.as_ref().map_or(1, |drive| drive.face.block);
        let segs = (job.command).next_part(mem, &mut rest.cursor, rest.len, block.into())?;
        let (op, offset, len) = (rest.op, rest.offset, iov::total(&segs));
        (rest.offset, rest.len) = (offset.saturating_add(len), rest.len.saturating_sub(len));
        // A guest that makes a table shorter which it has given away gets less.
        if rest.len == 0 || len == 0 {
            job.rest = None;
        }
        Ok(Some(self.request(slot, op, offset, len, segs)))
    }

    fn start(&mut self, slot: u32, job: Job, requests: Vec<Request<Token>>) {
        if let Some(place) = self.jobs.get_mut(slot as usize) {
            *place = Some(job);
            self.outbox.extend(requests);
        }
    }

    // A write to the control register: the two halves of a software reset.
    fn control(&mut self, slot: u32, cfis: &Cfis, mem: &GuestMemory) {
        self.regs.ci &= !(1 << slot);
        let Some(drive) = &mut self.drive else { return };
        if cfis.soft_reset() {
            drive.soft_reset = true;
        } else if drive.soft_reset {
            drive.reset();
            self.signature(Some(mem));
        }
    }

    fn pio_setup(&mut self, cfis: &Cfis, to_host: bool, len: u64, mem: &GuestMemory) {
        let fis = fis::pio_setup(&Answer::good(cfis), to_host, len);
        self.receive(mem, RFIS_PIO_SETUP, &fis, PxIx::empty());
    }

    fn answer_with(
        &mut self,
        slot: u32,
        command: &Command,
        bytes: &[u8],
        pio: bool,
        mem: &GuestMemory,
    ) -> Result<(), OutOfRange> {
        let cfis = &command.cfis;
        let (segs, room) = command.buffers(mem, bytes.len() as u64)?;
        if pio {
            self.pio_setup(cfis, true, bytes.len() as u64, mem);
        }
        let fits = usize::try_from(room).unwrap_or(0).min(bytes.len());
        if fits < bytes.len() {
            self.raise(PxIx::OF);
        }
        // The pieces were found to be memory a moment ago, and memory does not go away.
        let _ = iov::scatter(mem, &segs, 0, bytes.get(..fits).unwrap_or_default());
        command.set_moved(mem, fits as u32)?;
        let Some(drive) = &mut self.drive else {
            return Ok(());
        };
        let answer = drive.answer(cfis, Ok(()));
        self.finish(slot, cfis, answer, mem);
        Ok(())
    }

    fn fail(&mut self, slot: u32, command: &Command, mem: &GuestMemory) -> Result<(), OutOfRange> {
        command.set_moved(mem, 0)?;
        let Some(drive) = &mut self.drive else {
            return Ok(());
        };
        let answer = drive.answer(&command.cfis, Err(Fault::Invalid));
        self.finish(slot, &command.cfis, answer, mem);
        Ok(())
    }

    fn trim(&mut self, slot: u32, command: Command, mem: &GuestMemory) -> Result<(), OutOfRange> {
        let (segs, room) = command.buffers(mem, TRIM_PAGE)?;
        let mut page = [0; TRIM_PAGE as usize];
        let whole = room == TRIM_PAGE && iov::gather(mem, &segs, 0, &mut page).is_ok();
        let Some(drive) = self.drive.as_mut().filter(|_| whole) else {
            return self.fail(slot, &command, mem);
        };
        let ranges = match ata::trim_ranges(drive, &page) {
            Ok(ranges) if !ranges.is_empty() => ranges,
            result => {
                let answer = drive.answer(&command.cfis, result.map(drop));
                command.set_moved(mem, TRIM_PAGE as u32)?;
                self.finish(slot, &command.cfis, answer, mem);
                return Ok(());
            }
        };
        let op = if self.discard {
            Op::Discard
        } else {
            Op::WriteZeroes { unmap: true }
        };
        let requests: Vec<_> = ranges
            .into_iter()
            .map(|(offset, len)| self.request(slot, op, offset, len, Vec::new()))
            .collect();
        let job = Job {
            command,
            parts: requests.len(),
            fault: None,
            bytes: TRIM_PAGE as u32,
            rest: None,
            durable: false,
        };
        self.start(slot, job, requests);
        Ok(())
    }

    /// A request has come back from the disk.
    pub fn complete(
        &mut self,
        request: &Request<Token>,
        result: io::Result<()>,
        mem: &GuestMemory,
    ) {
        let slot = request.token.slot;
        let Some(place) = self.jobs.get_mut(slot as usize) else {
            return;
        };
        let Some(job) = place else { return };
        job.parts = job.parts.saturating_sub(1);
        if result.is_err() {
            job.fault = Some(match request.op {
                Op::Read => Fault::Read,
                _ => Fault::Write,
            });
        }
        if job.parts > 0 {
            return;
        }
        let Some(mut job) = place.take() else { return };
        if job.fault.is_none() && !self.doomed {
            let next = match self.go_on(slot, &mut job, mem) {
                Ok(None) if job.durable => {
                    job.durable = false;
                    Ok(Some(self.request(slot, Op::Flush, 0, 0, Vec::new())))
                }
                next => next,
            };
            match next {
                Ok(Some(request)) => {
                    job.parts = 1;
                    return self.start(slot, job, vec![request]);
                }
                Ok(None) => {}
                Err(OutOfRange { .. }) => self.bus_error(),
            }
        }
        if !self.doomed && !self.halted {
            self.end(slot, &job, mem);
        }
        self.settle(mem);
        self.issue(mem);
    }

    fn end(&mut self, slot: u32, job: &Job, mem: &GuestMemory) {
        let bytes = if job.fault.is_none() { job.bytes } else { 0 };
        if job.command.set_moved(mem, bytes).is_err() {
            self.bus_error();
            return;
        }
        let Some(drive) = &mut self.drive else { return };
        let answer = drive.answer(&job.command.cfis, job.fault.map_or(Ok(()), Err));
        self.finish(slot, &job.command.cfis, answer, mem);
    }

    // Tells the guest that a command has ended.
    fn finish(&mut self, slot: u32, cfis: &Cfis, answer: Answer, mem: &GuestMemory) {
        let queued = ata::is_queued(cfis.command());
        let failed = answer.failed();
        if failed && let Some(drive) = &mut self.drive {
            drive.log_error(cfis, &answer, queued.then_some(slot));
        }
        // A failed command stays in its register, by which the guest knows which it was.
        let done = if failed { 0 } else { 1 << slot };
        let cause = if failed { PxIx::TFE } else { PxIx::empty() };
        self.halted |= failed;
        self.regs.tfd = answer.tfd();
        if queued {
            self.regs.ci &= !(1 << slot);
            self.regs.sact &= !done;
            let fis = fis::set_device_bits(&answer, done);
            self.receive(mem, RFIS_SDB, &fis, PxIx::SDB | cause);
        } else {
            self.regs.ci &= !done;
            self.receive(mem, RFIS_D2H, &answer.d2h(true), PxIx::DHR | cause);
        }
    }
}
