// SPDX-License-Identifier: BSD-2-Clause

//! A hostile debugger, with a guest that runs.

use super::*;
use crate::amd64::vmexit::VcpuThread;
use crate::fuzz::{Chance, connection};
use crate::machine::fuzz::{MEMORY, Rig};
use crate::machine::vcpu::End;
use std::io::Write;
use std::net::Shutdown;

const CPUS: u16 = 2;
/// `inc eax; jmp` to itself: a guest that never leaves by itself.
const LOOP: [u8; 4] = [0xff, 0xc0, 0xeb, 0xfc];
const ENTRY: u64 = 0x8000;

/// What a debugger sends: packets that are well framed, and anything.
pub fn gdb(input: &[u8]) {
    let mut chance = Chance::new(input);
    let rig = Rig::with_cpus(CPUS);
    rig.vm.memory().write(ENTRY, &LOOP).expect("memory");
    let (first, vcpus) = rig.vcpus(ENTRY);
    vcpus.unpark(1).expect("a processor");
    let debugger = Debugger::new(rig.vm.clone(), Arc::clone(&vcpus)).expect("a debugger");
    let debugger = Arc::new(debugger);
    let threads: Vec<_> = (0..CPUS)
        .map(|id| {
            let thread = VcpuThread {
                vcpu: rig.vm.vcpu(id.into()),
                debugger: Some(Arc::clone(&debugger)),
                ..first.clone()
            };
            std::thread::spawn(move || thread.run())
        })
        .collect();
    let (mut peer, stream) = connection();
    let mut session = Session::new(stream, debugger).expect("a session");
    let mut flow = Flow::Open;
    while flow == Flow::Open && !chance.is_over() {
        let sent = message(&mut chance);
        if sent.is_empty() {
            continue;
        }
        peer.write_all(&sent).expect("room for a packet");
        flow = session.receive().expect("it was sent");
        if flow == Flow::Open && chance.below(4) == 0 {
            // Ctrl-C: whatever was let go stops.
            peer.write_all(&[3]).expect("room for a byte");
            flow = session.receive().expect("it was sent");
        }
    }
    // The answers do not matter, but a peer has to read them.
    peer.shutdown(Shutdown::Write).expect("it is connected");
    drop(session);
    vcpus.end(End::Checkpointed);
    // It may have stopped by itself.
    let _ = rig.vm.suspend(vmmapi::abi::VM_SUSPEND_POWEROFF);
    for thread in threads {
        thread.join().expect("a processor's thread ends");
    }
}

fn message(chance: &mut Chance<'_>) -> Vec<u8> {
    const COMMANDS: [&str; 30] = [
        "?",
        "g",
        "G",
        "p",
        "P",
        "m",
        "M",
        "Z0,",
        "z0,",
        "c",
        "s",
        "Hg",
        "Hc",
        "T",
        "vCont;",
        "vCont;s:1;c",
        "vCont?",
        "qSupported:",
        "qC",
        "qXfer:features:read:target.xml:",
        "qfThreadInfo",
        "qsThreadInfo",
        "qThreadExtraInfo,",
        "qAttached",
        "Qx",
        "QStartNoAckMode",
        "Z1,",
        "D",
        "k",
        "",
    ];
    if chance.below(8) == 0 {
        return chance.some_bytes(64).to_vec();
    }
    let mut text = chance.pick(&COMMANDS).to_owned();
    for n in 0..chance.below(4) {
        if n != 0 {
            text.push(chance.pick(&[',', ':', '=', ';', ' ']));
        }
        match chance.below(4) {
            0 => text.push_str(&format!("{:x}", ENTRY + chance.below(8))),
            1 => text.push_str(&packet::hex(chance.some_bytes(200))),
            2 => text.push_str(&String::from_utf8_lossy(chance.some_bytes(16))),
            _ => text.push_str(&format!("{:x}", chance.value(MEMORY))),
        }
    }
    packet::frame(&text)
}
