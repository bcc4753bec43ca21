// SPDX-License-Identifier: BSD-2-Clause

//! The debug server, with a debugger of our own that speaks as little of the protocol as it needs.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use vmm_tests::bench::{Once, SOON};
use vmm_tests::host::free_port;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    a_guest_is_debugged_from_its_first_instruction_on,
    a_guest_does_not_see_that_it_is_stepped,
    a_stopped_guest_stays_stopped_through_a_checkpoint_that_knows_nothing_of_it,
);

fn args(bench: &Bench, debug: &str, more: &[&str]) -> Vec<String> {
    let more = [&["-G", debug][..], more, &["vm"]].concat();
    bench.machine(&guests::nonce(), &more)
}

fn start(bench: &Bench, debug: &str, more: &[&str]) -> Guest {
    bench.start(&args(bench, debug, more))
}

struct Debugger(TcpStream);

impl Debugger {
    fn attach(port: u16) -> Debugger {
        let end = Instant::now() + SOON;
        let stream = loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                Err(error)
                    if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < end =>
                {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                stream => break stream.unwrap(),
            }
        };
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut debugger = Debugger(stream);
        let features = debugger.ask("qSupported:swbreak+");
        assert!(features.contains("vContSupported+"), "{features}");
        assert_eq!(debugger.ask("QStartNoAckMode"), "OK");
        debugger.0.write_all(b"+").unwrap();
        debugger
    }

    fn send(&mut self, contents: &str) {
        let sum = contents.bytes().fold(0u8, u8::wrapping_add);
        write!(self.0, "${contents}#{sum:02x}").unwrap();
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).expect("an answer");
        byte[0]
    }

    fn answer(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                byte => text.push(byte as char),
            }
        }
        let sum = String::from_utf8(vec![self.byte(), self.byte()]).unwrap();
        assert_eq!(
            u8::from_str_radix(&sum, 16).unwrap(),
            text.bytes().fold(0u8, u8::wrapping_add)
        );
        text
    }

    fn ask(&mut self, contents: &str) -> String {
        self.send(contents);
        self.answer()
    }

    /// A register by the debugger's number, as `g` has it.
    fn general(&mut self, number: usize) -> u64 {
        let all = self.ask("g");
        assert_eq!(all.len(), 2 * (17 * 8 + 7 * 4));
        little(&all[16 * number..][..16])
    }

    fn rip(&mut self) -> u64 {
        self.general(16)
    }
}

/// A number whose least significant byte comes first.
fn little(digits: &str) -> u64 {
    (0..digits.len() / 2).rev().fold(0, |value, i| {
        value << 8 | u64::from_str_radix(&digits[2 * i..][..2], 16).unwrap()
    })
}

/// Where the program has the first of these bytes, from `from` on.
fn find(debugger: &mut Debugger, from: u64, code: &str) -> u64 {
    let memory = debugger.ask(&format!("m{from:x},80"));
    let at = memory
        .find(code)
        .unwrap_or_else(|| panic!("no {code} in {memory}"));
    assert_eq!(at % 2, 0);
    from + at as u64 / 2
}

fn a_guest_is_debugged_from_its_first_instruction_on(bench: &Bench) {
    let port = free_port();
    let mut guest = start(bench, &format!("w127.0.0.1:{port}"), &["-c", "2"]);
    let mut debugger = Debugger::attach(port);
    assert_eq!(debugger.ask("?"), "T05thread:1;");
    assert_eq!(debugger.ask("qfThreadInfo"), "m1,2");
    assert_eq!(
        debugger.ask("qThreadExtraInfo,2"),
        hex("vcpu 1, not started")
    );
    assert!(
        debugger
            .ask("qXfer:features:read:target.xml:0,fff")
            .contains("i386:x86-64")
    );
    assert_eq!(guest.console(), "");

    // `mov esp, imm32` and `rdtsc`.
    let entry = debugger.rip();
    let start = debugger.ask(&format!("m{entry:x},7"));
    assert!(
        start.starts_with("bc") && start.ends_with("0f31"),
        "{start}"
    );
    assert_eq!(debugger.ask("vCont;s:1"), "T05thread:1;");
    assert_eq!(debugger.rip(), entry + 5);
    assert_eq!(debugger.general(7), 0x10_0000);

    // `out dx, al`, which userland completes: a step over it is one instruction, too. The breakpoint is not to be seen.
    let out = find(&mut debugger, entry, "ee49");
    assert_eq!(debugger.ask(&format!("Z0,{out:x},1")), "OK");
    assert_eq!(debugger.ask(&format!("m{out:x},2")), "ee49");
    assert_eq!(debugger.ask("vCont;c"), "T05swbreak:;thread:1;");
    assert_eq!(debugger.rip(), out);
    let letter = debugger.general(0) as u8 as char;
    assert_eq!(guest.console(), "");
    assert_eq!(debugger.ask(&format!("z0,{out:x},1")), "OK");
    assert_eq!(debugger.ask("vCont;s:1;c"), "T05thread:1;");
    assert_eq!(debugger.rip(), out + 1);
    guest.expect(&letter.to_string());

    // A register and memory that it writes show in what the guest does. The second digit of the nonce is written next.
    assert_eq!(
        debugger.ask(&format!("M{:x},4:78563412", guests::WINDOW)),
        "OK"
    );
    assert_eq!(
        debugger.ask(&format!("m{:x},4", guests::WINDOW)),
        "78563412"
    );
    assert_eq!(debugger.ask("P2=0100000000000000"), "OK");
    assert_eq!(debugger.ask("p2"), "0100000000000000");

    // Nonsense is refused, and nothing else happens.
    for nonsense in [
        "mffffffffffffffff,ffffffffffffffff",
        "m",
        "M0,4:00",
        "P2=00",
        "Pffffffff=00",
        "p-1",
        "G00",
        "Hg7f",
        "T0",
        "vCont;c:99",
        "vCont;",
        "Z0,fffffffffffffff0,1",
        "qXfer:features:read:target.xml:fffff,10",
    ] {
        assert_eq!(debugger.ask(nonsense), "E01", "{nonsense}");
    }
    for unknown in ["vMustReplyEmpty", "X", "", "Z1,0,1", "é"] {
        assert_eq!(debugger.ask(unknown), "", "{unknown}");
    }

    debugger.send("vCont;c");
    guest.expect("\n12345678 ");
    debugger.0.write_all(b"\x03").unwrap();
    assert_eq!(debugger.answer(), "T02thread:1;");
    let before = guest.console();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(guest.console(), before, "the guest is not stopped");

    // A second debugger is sent away.
    let mut second = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    second.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap_or(0), 0);

    // A debugger that goes, however it does, leaves nothing behind.
    assert_eq!(debugger.ask(&format!("Z0,{out:x},1")), "OK");
    assert_eq!(debugger.ask("D"), "OK");
    guest.expect("12345678 ");
    guest.expect("\n12345678 ");
    let mut debugger = Debugger::attach(port);
    assert_eq!(debugger.ask(&format!("m{out:x},2")), "ee49");
    assert_eq!(debugger.ask(&format!("Z0,{out:x},1")), "OK");
    drop(debugger);
    guest.expect("\n12345678 ");
    guest.expect("\n12345678 ");
    let mut debugger = Debugger::attach(port);
    debugger.send("k");
    assert_eq!(guest.wait().code(), Some(1));
    assert_eq!(guest.errors(), "");
}

/// Where a flag of the guest's is what it is stepped by.
fn a_guest_does_not_see_that_it_is_stepped(bench: &Bench) {
    const TF: u64 = 1 << 8;
    let port = free_port();
    let debug = format!("w127.0.0.1:{port}");
    let _guest = bench.start(&bench.machine(&guests::flags(), &["-G", &debug, "vm"]));
    let mut debugger = Debugger::attach(port);
    let mut rip = debugger.rip();
    for length in [5, 1, 1, 1, 1, 1, 1] {
        assert_eq!(debugger.ask("vCont;s:1"), "T05thread:1;");
        rip += length;
        assert_eq!(debugger.rip(), rip);
    }
    // EFLAGS are register 17. RAX and RBX have what the guest saw.
    for flags in [
        debugger.general(0),
        debugger.general(1),
        little(&debugger.ask("p11")),
    ] {
        assert_eq!(flags & TF, 0, "{flags:#x}");
    }
    // It goes on by itself.
    assert_eq!(debugger.ask("vCont;s:1"), "T05thread:1;");
    debugger.send("vCont;c");
    debugger.0.write_all(b"\x03").unwrap();
    assert_eq!(debugger.answer(), "T02thread:1;");
    assert_eq!(debugger.rip(), rip);
    assert_eq!(little(&debugger.ask("p11")) & TF, 0);
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn a_stopped_guest_stays_stopped_through_a_checkpoint_that_knows_nothing_of_it(bench: &Bench) {
    let port = free_port();
    let mut guest = start(bench, &format!("127.0.0.1:{port}"), &[]);
    guest.expect("\n");
    let mut debugger = Debugger::attach(port);
    let rip = debugger.rip();
    // Breakpoints all over the program.
    let start = rip & !0xfff;
    let code = debugger.ask(&format!("m{start:x},c0"));
    for offset in 0x60..0xc0 {
        assert_eq!(debugger.ask(&format!("Z0,{:x},1", start + offset)), "OK");
    }
    let file = bench.text("p");
    let output = bench.ctl(&["--vm=vm", &format!("--checkpoint={file}")]);
    assert!(output.status.success(), "{output:?}");
    let before = guest.console();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(
        guest.console(),
        before,
        "the checkpoint has let the guest go"
    );
    assert_eq!(debugger.rip(), rip);
    assert_eq!(debugger.ask(&format!("m{start:x},c0")), code);

    // What continues from it is not debugged, and meets no breakpoint.
    let mut copy = bench.start(&["-r", &file, "copy"]);
    copy.expect("\n");
    copy.expect("\n");
    drop(debugger);
    guest.expect("\n");
}

#[test]
fn what_cannot_be_served_is_named() {
    let bench = Bench::once(Once::NoGuest);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let place = taken.local_addr().unwrap().to_string();
    for (debug, more, named) in [
        (place.as_str(), &[][..], place.as_str()),
        (
            "1234",
            &["-o", "vmm.clock=instructions"],
            "gdb.port (-G) needs vmm.clock=host",
        ),
        (
            "1234",
            &["-o", "gdb.port=65536"],
            "gdb.port: \"65536\" is not a number",
        ),
    ] {
        let output = bench.run(&args(&bench, debug, more));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{errors}");
        assert!(
            errors.lines().count() == 1 && errors.contains(named),
            "{errors}"
        );
    }
}
