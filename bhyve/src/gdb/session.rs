// SPDX-License-Identifier: BSD-2-Clause

//! The commands of the remote serial protocol, for one connection (`gdb_command` of `usr.sbin/bhyve/gdb.c`). A processor is a
//! thread; threads count from one.

use super::debugger::{Action, DebugError, Debugger, Reason, Stop};
use super::packet::{self, Decoder, Event, PACKET_SIZE};
use super::registers::{self, GENERAL};
use crate::machine::vcpu::{End, RestError};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use vmmapi::Vcpu;
use vmmapi::abi;

const OK: &str = "OK";
/// gdb makes no difference between numbers.
const ERROR: &str = "E01";
/// How long a debugger may take to read what it is sent.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Open,
    /// The debugger has gone, or is to go.
    Closed,
}

/// A connected debugger.
pub struct Session {
    stream: TcpStream,
    debugger: Arc<Debugger>,
    decoder: Decoder,
    /// Packets are acknowledged.
    acks: bool,
    /// It understands `swbreak`.
    swbreak: bool,
    /// What was sent last, should it be wanted again.
    last: Vec<u8>,
    /// The guest was let go, and a stop is to be told.
    running: bool,
    /// Which processor registers and memory are of.
    general: usize,
    /// Which processor `c` and `s` are for; none means all.
    resumed: Option<usize>,
}

impl Session {
    /// Takes a connection and stops the guest.
    pub fn new(stream: TcpStream, debugger: Arc<Debugger>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        debugger.attach();
        if let Err(error) = debugger.stopped() {
            log::warn!("attaching a debugger: {error}");
        }
        Ok(Self {
            stream,
            debugger,
            decoder: Decoder::default(),
            acks: true,
            swbreak: false,
            last: Vec::new(),
            running: false,
            general: 0,
            resumed: None,
        })
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Takes what the debugger has sent. Waits if that is nothing.
    pub fn receive(&mut self) -> io::Result<Flow> {
        let mut buffer = [0; PACKET_SIZE];
        let length = self.stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(Flow::Closed);
        }
        for byte in buffer.iter().take(length) {
            let flow = match self.decoder.feed(*byte) {
                None => Flow::Open,
                Some(Event::Interrupt) => {
                    self.debugger.interrupt(self.general);
                    self.report()?
                }
                Some(Event::Resend) => {
                    self.stream.write_all(&self.last)?;
                    Flow::Open
                }
                Some(Event::Damaged) => {
                    self.acknowledge(b"-")?;
                    Flow::Open
                }
                Some(Event::Packet(contents)) => {
                    self.acknowledge(b"+")?;
                    self.packet(&contents)?
                }
            };
            if flow == Flow::Closed {
                return Ok(flow);
            }
        }
        Ok(Flow::Open)
    }

    /// Tells the debugger that the guest has stopped, if it has.
    pub fn report(&mut self) -> io::Result<Flow> {
        if !self.running {
            return Ok(Flow::Open);
        }
        let stop = match self.debugger.stopped() {
            Ok(None) => return Ok(Flow::Open),
            Ok(Some(stop)) => stop,
            Err(RestError::Ended) => return Ok(Flow::Closed),
            Err(error) => {
                log::warn!("stopping for the debugger: {error}");
                Stop {
                    vcpu: self.general,
                    reason: Reason::Interrupt,
                }
            }
        };
        self.running = false;
        self.general = stop.vcpu;
        let reply = self.stop_reply(stop);
        self.send(&reply)?;
        Ok(Flow::Open)
    }

    fn stop_reply(&self, stop: Stop) -> String {
        let thread = stop.vcpu + 1;
        match stop.reason {
            // SIGINT and SIGTRAP.
            Reason::Interrupt => format!("T02thread:{thread:x};"),
            Reason::Breakpoint if self.swbreak => format!("T05swbreak:;thread:{thread:x};"),
            Reason::Breakpoint | Reason::Step => format!("T05thread:{thread:x};"),
        }
    }

    fn acknowledge(&mut self, with: &[u8]) -> io::Result<()> {
        if self.acks {
            self.stream.write_all(with)?;
        }
        Ok(())
    }

    fn send(&mut self, contents: &str) -> io::Result<()> {
        self.last = packet::frame(contents);
        self.stream.write_all(&self.last)
    }

    fn packet(&mut self, contents: &[u8]) -> io::Result<Flow> {
        if self.running {
            log::debug!("the debugger gives commands to a guest that runs");
            return Ok(Flow::Open);
        }
        // Nothing that is known has other characters.
        let text = std::str::from_utf8(contents).unwrap_or_default();
        let (command, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
        let answer = match command {
            "D" => {
                self.send(OK)?;
                return Ok(Flow::Closed);
            }
            "k" => {
                let end = End::Suspended(abi::VM_SUSPEND_POWEROFF);
                self.debugger.vcpus().end(end);
                return Ok(Flow::Closed);
            }
            "c" | "s" => {
                let action = if command == "c" {
                    Action::Continue
                } else {
                    Action::Step
                };
                return self.go(rest, action);
            }
            "v" if rest.starts_with("Cont;") => {
                let actions = rest
                    .strip_prefix("Cont;")
                    .and_then(|rest| self.actions(rest));
                return match actions {
                    Some(actions) => self.resume(&actions),
                    None => self.send(ERROR).map(|()| Flow::Open),
                };
            }
            "v" if rest == "Cont?" => Some("vCont;c;C;s;S".to_owned()),
            // As after any attachment.
            "?" => Some(format!("T05thread:{:x};", self.general + 1)),
            "H" => self.select(rest),
            "T" => self.thread(rest).map(|_| OK.to_owned()),
            "g" => self.vcpu().and_then(|vcpu| all_registers(&vcpu)),
            "G" => self.vcpu().and_then(|vcpu| set_all(&vcpu, rest)),
            "p" => self.vcpu().and_then(|vcpu| one_register(&vcpu, rest)),
            "P" => self.vcpu().and_then(|vcpu| set_one(&vcpu, rest)),
            "m" => self.read_memory(rest),
            "M" => self.write_memory(rest),
            "Z" | "z" if rest.starts_with("0,") => self.breakpoint(command == "Z", rest),
            "q" | "Q" => self.query(command, rest),
            // What is not known is answered with nothing.
            _ => Some(String::new()),
        };
        // After the answer to this one, which is still acknowledged.
        self.send(answer.as_deref().unwrap_or(ERROR))?;
        if text == "QStartNoAckMode" {
            self.acks = false;
        }
        Ok(Flow::Open)
    }

    fn vcpu(&self) -> Option<Vcpu> {
        Some(self.debugger.vcpu(self.general))
    }

    /// `c` and `s`, with an address to go on at or without.
    fn go(&mut self, address: &str, action: Action) -> io::Result<Flow> {
        if !address.is_empty() {
            let vcpu = self.debugger.vcpu(self.resumed.unwrap_or(self.general));
            let moved = packet::number(address)
                .is_some_and(|rip| vcpu.set_register(abi::VM_REG_GUEST_RIP, rip).is_ok());
            if !moved {
                self.send(ERROR)?;
                return Ok(Flow::Open);
            }
        }
        let mut actions = vec![Some(Action::Continue); self.debugger.vcpus().count()];
        if action == Action::Step
            && let Some(one) = actions.get_mut(self.resumed.unwrap_or(self.general))
        {
            *one = Some(Action::Step);
        }
        self.resume(&actions)
    }

    fn resume(&mut self, actions: &[Option<Action>]) -> io::Result<Flow> {
        match self.debugger.resume(actions) {
            Ok(()) => self.running = true,
            Err(error) => {
                log::warn!("going on for the debugger: {error}");
                self.send(ERROR)?;
            }
        }
        Ok(Flow::Open)
    }

    /// The actions of `vCont`: for each thread, the first that names it or no thread counts.
    fn actions(&self, text: &str) -> Option<Vec<Option<Action>>> {
        let mut actions = vec![None; self.debugger.vcpus().count()];
        for part in text.split(';') {
            let (what, thread) = part.split_once(':').unwrap_or((part, "-1"));
            // Signals mean nothing to a machine.
            let action = match what.chars().next()? {
                'c' | 'C' => Action::Continue,
                's' | 'S' => Action::Step,
                _ => return None,
            };
            if thread == "-1" {
                for slot in &mut actions {
                    slot.get_or_insert(action);
                }
            } else {
                let id = self.thread(thread)?;
                actions.get_mut(id)?.get_or_insert(action);
            }
        }
        Some(actions)
    }

    /// The processor that a thread's number stands for.
    fn thread(&self, text: &str) -> Option<usize> {
        let id = usize::try_from(packet::number(text)?)
            .ok()?
            .checked_sub(1)?;
        (id < self.debugger.vcpus().count()).then_some(id)
    }

    /// `Hg` and `Hc`.
    fn select(&mut self, rest: &str) -> Option<String> {
        let (which, thread) = rest.split_at_checked(1)?;
        // Any and all.
        let chosen = match thread {
            "0" | "-1" => None,
            thread => Some(self.thread(thread)?),
        };
        match which {
            "g" => self.general = chosen.unwrap_or(self.general),
            "c" => self.resumed = chosen,
            _ => return None,
        }
        Some(OK.to_owned())
    }

    fn read_memory(&self, rest: &str) -> Option<String> {
        let (gla, len) = packet::pair(rest)?;
        let len = usize::try_from(len).ok()?.min(PACKET_SIZE / 2);
        self.done(self.debugger.read(&self.vcpu()?, gla, len))
            .map(|bytes| packet::hex(&bytes))
    }

    fn write_memory(&self, rest: &str) -> Option<String> {
        let (place, data) = rest.split_once(':')?;
        let (gla, len) = packet::pair(place)?;
        let data = packet::unhex(data.as_bytes())?;
        if usize::try_from(len).ok()? != data.len() {
            return None;
        }
        self.done(self.debugger.write(&self.vcpu()?, gla, &data))?;
        Some(OK.to_owned())
    }

    /// `Z0` and `z0`.
    fn breakpoint(&self, set: bool, rest: &str) -> Option<String> {
        let place = rest.strip_prefix("0,")?;
        // Conditions were not offered.
        let (gla, length) = packet::pair(place)?;
        if length != 1 {
            return None;
        }
        self.done(if set {
            self.debugger.insert(&self.vcpu()?, gla)
        } else {
            self.debugger.remove(gla)
        })?;
        Some(OK.to_owned())
    }

    fn done<T>(&self, result: Result<T, DebugError>) -> Option<T> {
        result
            .map_err(|error| log::debug!("for the debugger: {error}"))
            .ok()
    }

    fn query(&mut self, command: &str, rest: &str) -> Option<String> {
        let (name, arguments) = rest.split_at(rest.find([':', ',']).unwrap_or(rest.len()));
        let arguments = arguments.get(1..).unwrap_or_default();
        match (command, name) {
            ("Q", "StartNoAckMode") => Some(OK.to_owned()),
            ("q", "Supported") => {
                self.swbreak = arguments.split(';').any(|feature| feature == "swbreak+");
                Some(format!(
                    "PacketSize={PACKET_SIZE:x};QStartNoAckMode+;vContSupported+;swbreak+;qXfer:features:read+"
                ))
            }
            ("q", "Attached") => Some("1".to_owned()),
            ("q", "C") => Some(format!("QC{:x}", self.general + 1)),
            ("q", "fThreadInfo") => {
                let threads: Vec<_> = (1..=self.debugger.vcpus().count())
                    .map(|thread| format!("{thread:x}"))
                    .collect();
                Some(format!("m{}", threads.join(",")))
            }
            ("q", "sThreadInfo") => Some("l".to_owned()),
            ("q", "ThreadExtraInfo") => {
                let id = self.thread(arguments)?;
                let parked = self.debugger.vcpus().is_parked(id);
                let state = if parked { ", not started" } else { "" };
                Some(packet::hex(format!("vcpu {id}{state}").as_bytes()))
            }
            ("q", "Xfer") => {
                let range = arguments.strip_prefix("features:read:target.xml:")?;
                part(&registers::description(), range)
            }
            _ => Some(String::new()),
        }
    }
}

/// A part of a document, marked as the last one or not.
fn part(document: &str, range: &str) -> Option<String> {
    let (from, len) = packet::pair(range)?;
    let from = usize::try_from(from).ok()?;
    // Escaping takes room; there is nothing to escape in what is sent.
    let len = usize::try_from(len).ok()?.min(PACKET_SIZE - 1);
    let rest = document.get(from..)?;
    let text = rest.get(..len).unwrap_or(rest);
    let mark = if text.len() < rest.len() { 'm' } else { 'l' };
    Some(format!("{mark}{text}"))
}

fn all_registers(vcpu: &Vcpu) -> Option<String> {
    let numbers: Vec<_> = GENERAL.iter().filter_map(|register| register.vmm).collect();
    let values = vcpu.get_registers(&numbers).ok()?;
    let digits = GENERAL.iter().zip(values).map(|(register, value)| {
        let bytes = value.to_le_bytes();
        packet::hex(bytes.get(..register.size()).unwrap_or_default())
    });
    Some(digits.collect())
}

/// A value, least significant byte first.
fn value(bytes: &[u8]) -> Option<u64> {
    let mut value = [0; 8];
    value.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(value))
}

fn set_all(vcpu: &Vcpu, digits: &str) -> Option<String> {
    let bytes = packet::unhex(digits.as_bytes())?;
    let mut rest = bytes.as_slice();
    let mut values = Vec::new();
    for register in GENERAL {
        let (bytes, tail) = rest.split_at_checked(register.size())?;
        values.push((register.vmm?, value(bytes)?));
        rest = tail;
    }
    vcpu.set_registers(&values).ok()?;
    Some(OK.to_owned())
}

fn one_register(vcpu: &Vcpu, number: &str) -> Option<String> {
    let register = registers::by_number(packet::number(number)?)?;
    let Some(vmm) = register.vmm else {
        // The register exists, but no request of vmm(4) returns its value.
        return Some("xx".repeat(register.size()));
    };
    let bytes = vcpu.get_register(vmm).ok()?.to_le_bytes();
    Some(packet::hex(bytes.get(..register.size())?))
}

fn set_one(vcpu: &Vcpu, rest: &str) -> Option<String> {
    let (number, digits) = rest.split_once('=')?;
    let register = registers::by_number(packet::number(number)?)?;
    let bytes = packet::unhex(digits.as_bytes())?;
    if bytes.len() != register.size() {
        return None;
    }
    vcpu.set_register(register.vmm?, value(&bytes)?).ok()?;
    Some(OK.to_owned())
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.debugger.detach() {
            log::warn!("detaching the debugger: {error}");
        }
    }
}
