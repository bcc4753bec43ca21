// SPDX-License-Identifier: BSD-2-Clause

//! The test plan of the review that brought save and restore to bhyve (D19495), as one scenario over a machine's devices:
//! the guest pings the host, copies a large file over TCP and another between its disks; it is suspended in the middle of all
//! that and goes on in a new process, with nothing lost, nothing damaged and nothing to complain about. With a display it shows
//! the same picture before and after, and takes keys and the pointer from VNC all along.

use std::fmt;
use std::io::Read;
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::debian::{Debian, NO_TIMER_CHECK, no_complaints};
use crate::host::{ext4, free_port, run};
use crate::netns::Namespace;
use crate::rfb::Viewer;
use crate::{Bench, Guest};

const LONG: Duration = Duration::from_secs(300);
/// Size in bytes of the file that is copied over TCP again and again.
const FILE: usize = 4_000_000;
/// First PCI slot of the disks, the NICs and the CD.
const DISK_SLOT: usize = 3;
const NIC_SLOT: usize = 8;
const CD_SLOT: usize = 12;
/// Slots of the display and of the controller that its tablet is plugged in.
const DISPLAY_SLOT: usize = 29;
const USB_SLOT: usize = 30;

/// A machine of the matrix.
#[derive(Debug, Clone)]
pub struct Case {
    /// Model of its NICs.
    pub nic: &'static str,
    /// How many there are; the load is on the first, the others answer pings.
    pub nics: usize,
    /// Model of its disks.
    pub disk: &'static str,
    /// How many there are, two at least.
    pub disks: usize,
    /// Whether it has a CD, which is read all the time.
    pub cd: bool,
    /// Whether it has a display with a VNC server and a tablet.
    pub display: bool,
    /// Virtual CPUs.
    pub cpus: usize,
    /// Whether the command line that restores names the devices, in another order.
    pub reordered: bool,
    /// How often it is suspended and restored.
    pub rounds: usize,
}

impl Case {
    /// With one NIC and two disks, suspended once.
    pub fn new(nic: &'static str, disk: &'static str, cpus: usize) -> Case {
        Case {
            nic,
            nics: 1,
            disk,
            disks: 2,
            cd: false,
            display: false,
            cpus,
            reordered: false,
            rounds: 1,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |n: usize, model: &str| match n {
            1 => model.to_owned(),
            n => format!("{n} × {model}"),
        };
        write!(
            f,
            "{:<16} {:<14} {:<3} {:<11} {:>5}",
            many(self.nics, self.nic),
            many(self.disks, self.disk),
            if self.cd { "cd" } else { "-" },
            if self.display { "fbuf+tablet" } else { "-" },
            self.cpus
        )?;
        if self.reordered {
            write!(f, " reordered")?;
        }
        Ok(())
    }
}

/// How long the parts of a case took; medians if it has several rounds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the start to the shell.
    pub boot: Duration,
    /// bhyvectl's --suspend, until the files are durable and the VM is gone.
    pub suspend: Duration,
    /// From the start of the new process until the guest has run a command of its shell.
    pub restore: Duration,
}

/// A running case.
struct Run<'a> {
    case: &'a Case,
    bench: &'a Bench,
    namespace: Namespace,
    guest: Guest,
    slots: Vec<String>,
    viewer: Option<Viewer>,
    /// What the guest has sent over TCP, when it is done.
    received: JoinHandle<(Vec<u8>, usize)>,
    nonce: String,
}

/// The options of the devices that change from case to case.
fn slots(case: &Case, bench: &Bench) -> Vec<String> {
    let disk = |n| {
        let path = bench.text(&format!("disk{n}"));
        format!("{},{},{path}", DISK_SLOT + n, case.disk)
    };
    let nic = |n| format!("{},{},tap{n}", NIC_SLOT + n, case.nic);
    let cd = format!("{CD_SLOT},ahci-cd,{}", bench.text("cd"));
    (0..case.disks)
        .map(disk)
        .chain((0..case.nics).map(nic))
        .chain(case.cd.then_some(cd))
        .collect()
}

/// The display's slot, with its server at `port`.
fn display(port: u16) -> String {
    format!("{DISPLAY_SLOT},fbuf,tcp=127.0.0.1:{port},w=640,h=480")
}

/// Reads what a guest sends, as fast as it comes: the first copy of the file, which all others must equal, and how many came.
fn receive(listener: TcpListener) -> (Vec<u8>, usize) {
    let (mut stream, _) = listener.accept().expect("the guest's connection");
    let mut read = || {
        let mut copy = Vec::with_capacity(FILE);
        stream
            .by_ref()
            .take(FILE as u64)
            .read_to_end(&mut copy)
            .expect("read what the guest sends");
        copy
    };
    let first = read();
    assert_eq!(first.len(), FILE, "of the first copy");
    for count in 1.. {
        let next = read();
        if next.is_empty() {
            return (first, count);
        }
        assert!(next == first, "TCP copy {count} is damaged");
    }
    unreachable!("the guest comes to an end")
}

impl<'a> Run<'a> {
    /// Boots it and puts it to work.
    fn start(case: &'a Case, bench: &'a Bench, debian: &Debian, namespace: Namespace) -> Run<'a> {
        for n in 0..case.disks {
            ext4(bench, &format!("disk{n}"), 64 << 20);
        }
        if case.cd {
            // Any bytes will do: the guest reads the device.
            let noise: Vec<u8> = (0..2u32 << 20)
                .flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes())
                .collect();
            std::fs::write(bench.path("cd"), noise).expect("make a CD");
        }
        let slots = slots(case, bench);
        let mut all = slots.clone();
        let port = free_port();
        if case.display {
            all.extend([display(port), format!("{USB_SLOT},xhci,tablet")]);
        }
        let cmdline = format!(
            "boot.cmdline=console=tty0 console=ttyS0 vt.global_cursor_default=0 consoleblank=0 {NO_TIMER_CHECK}"
        );
        let mut more: Vec<&str> = all.iter().flat_map(|slot| ["-s", slot]).collect();
        if case.display {
            // The screen shows what the kernel says; the shell is on the serial port.
            more.extend(["-o", &cmdline]);
        }
        let guest = namespace.run(|| debian.boot(bench, case.cpus, &more));
        let viewer = case
            .display
            .then(|| namespace.run(|| Viewer::connect(port)));
        let listener = namespace
            .run(|| TcpListener::bind("10.9.0.1:7777"))
            .expect("listen on the tap");
        let mut this = Run {
            case,
            bench,
            namespace,
            guest,
            slots,
            viewer,
            received: std::thread::spawn(move || receive(listener)),
            nonce: String::new(),
        };
        this.prepare();
        this
    }

    fn prepare(&mut self) {
        let guest = &mut self.guest;
        self.nonce = guest.shell("cat /tmp/nonce").trim().to_owned();
        let letter = if self.case.disk == "virtio-blk" {
            "vd"
        } else {
            "sd"
        };
        for (n, name) in ('a'..).take(self.case.disks).enumerate() {
            guest.shell(&format!(
                "mkdir -p /mnt/{n}; mount /dev/{letter}{name} /mnt/{n}"
            ));
        }
        for n in 0..self.case.nics {
            guest.shell(&format!(
                "ip link set eth{n} up && ip addr add 10.9.{n}.2/24 dev eth{n}"
            ));
        }
        for n in 0..self.case.nics {
            guest.shell(&format!("ping -c 2 10.9.{n}.1"));
        }
        guest.shell(&format!(
            "head -c {FILE} /dev/urandom > /tmp/a; cp /tmp/a /mnt/0/a; md5sum /tmp/a | cut -c 1-32 > /tmp/sum"
        ));
    }

    /// Everything that goes on while the guest is suspended and restored.
    fn load(&mut self) {
        let last = self.case.disks - 1;
        let copy: String = (0..last)
            .map(|n| format!("cat /mnt/{n}/a > /mnt/{}/a; sync; ", n + 1))
            .collect();
        let sum = format!("md5sum /mnt/{last}/a | cut -c 1-32;");
        let guest = &mut self.guest;
        // Jobs 1 to 4, and 5 if there is a CD.
        guest.send(
            "(while [ ! -e /tmp/stop ]; do cat /tmp/a; usleep 300000; done | nc 10.9.0.1 7777) &\n",
        );
        guest.send("ping 10.9.0.1 > /tmp/pings 2>&1 &\n");
        guest.send(&format!(
            "(while [ ! -e /tmp/stop ]; do {copy} {sum} done > /tmp/sums 2>&1) &\n"
        ));
        guest.send("(while [ ! -e /tmp/stop ]; do :; done) &\n");
        // Linux tells of every drop of its caches unless it is told not to.
        guest.shell("echo 4 > /proc/sys/vm/drop_caches");
        if self.case.cd {
            guest.send("(while [ ! -e /tmp/stop ]; do echo 1 > /proc/sys/vm/drop_caches; md5sum < /dev/sr0; done > /tmp/cd 2>&1) &\n");
        }
        if self.case.display {
            // What keyboard and tablet say is kept, and counted later.
            for (name, file) in [("keyboard", "keys"), ("Tablet", "pointer")] {
                guest.shell(&format!(
                    "device=$(grep -l {name} /sys/class/input/event*/device/name | cut -d / -f 5); \
                     test -n \"$device\" && (cat /dev/input/$device > /tmp/{file} &)"
                ));
            }
        }
        guest.shell("sleep 1; dmesg > /tmp/dmesg");
        self.play_with_it();
    }

    /// Moves the pointer and types; both have to arrive.
    fn play_with_it(&mut self) {
        let Some(viewer) = &mut self.viewer else {
            return;
        };
        const SIZES: &str = "wc -c < /tmp/keys; wc -c < /tmp/pointer";
        let sizes = |guest: &mut Guest| -> Vec<u64> {
            let printed = guest.shell(SIZES);
            printed
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect()
        };
        let before = sizes(&mut self.guest);
        for n in 0..10 {
            viewer.pointer(0, 10 + n * 40, 20 + n * 30);
            viewer.key(u32::from(b'a'));
        }
        let end = Instant::now() + LONG;
        loop {
            let after = sizes(&mut self.guest);
            if before.len() == 2
                && after
                    .iter()
                    .zip(&before)
                    .all(|(after, before)| after > before)
            {
                return;
            }
            assert!(
                Instant::now() < end,
                "keys and pointer: {before:?}, then {after:?}"
            );
        }
    }

    fn number(&mut self, command: &str) -> f64 {
        let printed = self.guest.shell(command);
        printed
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("{command}: {printed}"))
    }

    /// Suspends it and lets it go on in a new process.
    fn round(&mut self) -> (Duration, Duration) {
        const UPTIME: &str = "cut -d ' ' -f 1 /proc/uptime";
        let (uptime, date) = (self.number(UPTIME), self.number("date +%s"));
        let picture = self.viewer.as_mut().map(Viewer::screen);
        let started = Instant::now();
        let output = self.bench.ctl(&["--vm=vm", "--suspend=state"]);
        let suspended = started.elapsed();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(self.guest.wait().code(), Some(0));
        let mut args = vec!["-r", "state"];
        if self.case.reordered {
            args.extend(self.slots.iter().rev().flat_map(|slot| ["-s", slot]));
        }
        let port = free_port();
        let display = display(port);
        if self.case.display {
            args.extend(["-s", &display]);
        }
        let started = Instant::now();
        self.guest = self.namespace.run(|| self.bench.start(&args));
        let nonce = self.guest.shell("cat /tmp/nonce");
        let restored = started.elapsed();
        assert_eq!(nonce.trim(), self.nonce);
        if let Some(picture) = picture {
            assert!(picture.lit() > 1000, "the screen shows nothing");
            let mut viewer = self.namespace.run(|| Viewer::connect(port));
            assert_eq!(viewer.screen().differences(&picture), 0, "the picture");
            self.viewer = Some(viewer);
            self.play_with_it();
        }
        let (later, date_later) = (self.number(UPTIME), self.number("date +%s"));
        assert!(
            (uptime..uptime + 60.0).contains(&later),
            "uptime went from {uptime} to {later}"
        );
        assert!(
            date_later >= date,
            "the date went from {date} to {date_later}"
        );
        (suspended, restored)
    }

    /// Ends the work and looks at what has come of it.
    fn finish(mut self) {
        let guest = &mut self.guest;
        guest.shell("sleep 2; touch /tmp/stop; killall ping; wait; sync");
        for n in 0..self.case.nics {
            guest.shell(&format!("ping -c 2 10.9.{n}.1"));
        }
        let sum = guest.shell("cat /tmp/sum").trim().to_owned();
        let (copy, count) = self.received.join().expect("the copy ends well");
        eprintln!("{count} copies came over TCP");
        std::fs::write(self.bench.path("copy"), copy).expect("write a copy down");
        let of_copy = run("md5sum", &[&self.bench.text("copy")]);
        assert!(of_copy.starts_with(&sum), "the TCP copies are damaged");
        let last = self.case.disks - 1;
        let sums = guest.shell("sort -u /tmp/sums | grep -v '^$'");
        assert_eq!(sums.trim(), sum, "copies between disks");
        let copy = format!(
            "cat /mnt/0/a > /mnt/{last}/a; sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /mnt/{last}/a"
        );
        assert!(guest.shell(&copy).starts_with(&sum), "one more copy");
        if self.case.cd {
            let expected = run("md5sum", &[&self.bench.text("cd")]);
            let sums = guest.shell("md5sum < /dev/sr0 >> /tmp/cd; sort -u /tmp/cd | cut -c 1-32");
            assert_eq!(sums.trim(), &expected[..32], "the CD");
        }
        // Every sequence number at most once and in order; as on a real network one may be lost at each suspension.
        let pings = guest.shell_within("cat /tmp/pings", LONG);
        let seqs: Vec<u64> = pings
            .lines()
            .filter_map(|l| l.split("seq=").nth(1)?.split(' ').next()?.parse().ok())
            .collect();
        assert!(seqs.windows(2).all(|w| w[0] < w[1]), "{seqs:?}");
        let (last, got) = (seqs.last().copied().unwrap_or(0), seqs.len() as u64);
        assert!(
            got > 0 && last + 1 - got <= self.case.rounds as u64,
            "{got} of {last} pings came back"
        );
        // The kernel has had no reason to say anything: no link resets, no I/O errors, no lockups.
        let said = guest.shell("dmesg | tail -n +$(($(wc -l < /tmp/dmesg) + 1))");
        assert_eq!(
            said.trim(),
            "",
            "the kernel's messages since the load began"
        );
        no_complaints(&guest.console());
        for n in 0..self.case.disks {
            guest.shell(&format!("umount /mnt/{n}"));
        }
        guest.send("poweroff -f\n");
        assert_eq!(guest.wait().code(), Some(1));
        for n in 0..self.case.disks {
            run(
                "e2fsck",
                &["-f", "-n", &self.bench.text(&format!("disk{n}"))],
            );
        }
    }
}

/// Runs a case on a bench; none if this machine has no Debian guest, or its user no network namespaces. Panics with what went wrong.
pub fn play(bench: &Bench, case: &Case) -> Option<Times> {
    let debian = Debian::generic()?;
    let addresses: Vec<String> = (0..case.nics).map(|n| format!("10.9.{n}.1/24")).collect();
    let namespace = Namespace::with_taps(&addresses)?;
    let started = Instant::now();
    let mut run = Run::start(case, bench, &debian, namespace);
    let boot = started.elapsed();
    run.load();
    let (mut suspends, mut restores): (Vec<_>, Vec<_>) =
        (0..case.rounds).map(|_| run.round()).unzip();
    run.finish();
    suspends.sort();
    restores.sort();
    let median = |times: &[Duration]| times.get(times.len() / 2).copied().unwrap_or_default();
    Some(Times {
        boot,
        suspend: median(&suspends),
        restore: median(&restores),
    })
}

/// The whole matrix, and after it what has many of one model.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for nic in ["virtio-net", "e1000"] {
        for disk in ["virtio-blk", "ahci-hd"] {
            for display in [false, true] {
                for cpus in [1, 2, 4] {
                    cases.push(Case {
                        display,
                        ..Case::new(nic, disk, cpus)
                    });
                }
            }
        }
    }
    for (nic, disk) in [("virtio-net", "virtio-blk"), ("e1000", "ahci-hd")] {
        cases.push(Case {
            nics: 2,
            disks: 3,
            cd: true,
            display: true,
            reordered: true,
            ..Case::new(nic, disk, 2)
        });
    }
    cases
}
