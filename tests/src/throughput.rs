// SPDX-License-Identifier: BSD-2-Clause

//! How fast a guest moves data, beside QEMU's TCG with the same guest and the same models.

use std::io::Read;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::RUNS;
use vmm_tests::debian::{BOOT, Debian};
use vmm_tests::host::image;
use vmm_tests::{Bench, Guest};

const MIB: usize = 1 << 20;
/// MiB that are written to the disk and read from it again.
const DISK: usize = 128;
/// MiB that are sent over TCP.
const STREAM: usize = 64;
/// Bytes of the disk.
const IMAGE: u64 = (2 * DISK * MIB) as u64;
/// The unit of processor times in proc(5): on x86 they are hundredths of a second whatever the kernel counts in.
const USER_HZ: f64 = 100.0;
const LONG: Duration = Duration::from_secs(300);

/// The models of a machine as either program calls them, and what Linux calls the disk.
struct Models {
    disk: &'static str,
    nic: &'static str,
    qemu_disk: &'static str,
    qemu_nic: &'static str,
    node: &'static str,
}

const MODELS: [Models; 2] = [
    Models {
        disk: "virtio-blk",
        nic: "virtio-net",
        qemu_disk: "virtio-blk-pci,drive=disk",
        qemu_nic: "virtio-net-pci,netdev=net",
        node: "/dev/vda",
    },
    Models {
        disk: "ahci-hd",
        nic: "e1000",
        qemu_disk: "ich9-ahci,id=ahci -device ide-hd,drive=disk,bus=ahci.0",
        qemu_nic: "e1000,netdev=net",
        node: "/dev/sda",
    },
];

/// One transfer.
#[derive(Clone, Copy)]
struct Transfer {
    /// MiB per second.
    rate: f64,
    /// Seconds that processors worked for it in the program, all threads together: what other work on the host does not change.
    worked: f64,
}

/// Written, read, sent.
type Transfers = [Transfer; 3];

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn medians(runs: &[Transfers]) -> Transfers {
    [0, 1, 2].map(|n| Transfer {
        rate: median(runs.iter().map(|run| run[n].rate)),
        worked: median(runs.iter().map(|run| run[n].worked)),
    })
}

/// Processor time of a program so far, in seconds, as proc(5) has it.
fn worked(guest: &Guest) -> f64 {
    let path = format!("/proc/{}/stat", guest.pid());
    let stat = std::fs::read_to_string(path).expect("proc(5)");
    // Fields 14 and 15, counted from behind the name, which may contain anything.
    let (_, fields) = stat.rsplit_once(')').expect("the name");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = ticks.map(|n| n.parse::<f64>().expect("a number")).sum();
    ticks / USER_HZ
}

fn rate(mib: usize, time: Duration) -> f64 {
    mib as f64 / time.as_secs_f64()
}

/// Measured on the host, whatever the guest thinks of time.
fn transfers(guest: &mut Guest, node: &str) -> Transfers {
    let timed = |guest: &mut Guest, command: &str| {
        let (started, before) = (Instant::now(), worked(guest));
        guest.shell_within(command, LONG);
        Transfer {
            rate: rate(DISK, started.elapsed()),
            worked: worked(guest) - before,
        }
    };
    let write = format!("dd if=/dev/zero of={node} bs=1M count={DISK} conv=fsync");
    let read = format!("dd if={node} of=/dev/null bs=1M count={DISK}");
    let written = timed(guest, &write);
    guest.shell("echo 3 > /proc/sys/vm/drop_caches");
    let read = timed(guest, &read);

    guest.shell("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ping -c 1 10.0.2.2");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest's connection");
        let started = Instant::now();
        let mut buffer = vec![0; 1 << 16];
        let mut received = 0;
        while received < STREAM * MIB {
            match stream.read(&mut buffer).expect("read what the guest sends") {
                0 => panic!("the stream ended after {received} bytes"),
                n => received += n,
            }
        }
        rate(STREAM, started.elapsed())
    });
    let send = format!(
        "dd if=/dev/zero bs=64k count={} | nc 10.0.2.2 {port}",
        STREAM * 16
    );
    let before = worked(guest);
    guest.shell_within(&send, LONG);
    let sent = Transfer {
        rate: receiver.join().expect("all of it came"),
        worked: worked(guest) - before,
    };
    [written, read, sent]
}

fn ours(debian: &Debian, models: &Models) -> Transfers {
    let bench = Bench::new();
    let disk = format!("3,{},{}", models.disk, image(&bench, "disk", IMAGE));
    let nic = format!("4,{},slirp,open", models.nic);
    let mut guest = debian.boot(&bench, 1, &["-s", &disk, "-s", &nic]);
    transfers(&mut guest, models.node)
}

fn qemus(debian: &Debian, models: &Models) -> Transfers {
    let bench = Bench::new();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "512", "-nographic", "-no-reboot"])
        .args(["-append", "console=ttyS0", "-netdev", "user,id=net"])
        .args(["-device", models.qemu_nic])
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=none,id=disk",
            image(&bench, "disk", IMAGE)
        ))
        .arg("-device")
        .args(models.qemu_disk.split(' '))
        .arg("-kernel")
        .arg(&debian.kernel)
        .arg("-initrd")
        .arg(&debian.initrd);
    let mut guest = Guest::start(qemu);
    guest.expect_within("guest is up: nonce ", BOOT);
    guest.expect_within("guest# ", BOOT);
    transfers(&mut guest, models.node)
}

/// Measures and prints.
pub fn throughput() {
    let Some(debian) = Debian::generic() else {
        return;
    };
    println!(
        "throughput, Debian 6.1, 1 vCPU, median of {RUNS} (bhyve's software vmm, QEMU's TCG, ours relative to it):"
    );
    println!("{:36} MiB/s, time taken{:8} s of processor time", "", "");
    for models in MODELS {
        // In turn, so that whatever else the host does falls on both.
        let runs = (0..RUNS).map(|_| (ours(&debian, &models), qemus(&debian, &models)));
        let (ours, qemu): (Vec<_>, Vec<_>) = runs.unzip();
        let (ours, qemu) = (medians(&ours), medians(&qemu));
        let disk = models.disk;
        for (what, n) in [
            (format!("{disk}, sequential writes"), 0),
            (format!("{disk}, sequential reads"), 1),
            (format!("{}, TCP from the guest", models.nic), 2),
        ] {
            let (ours, qemu) = (ours[n], qemu[n]);
            println!(
                "  {what:<30} {:>7.0} {:>7.0} {:>7.2} {:>8.2} {:>7.2} {:>7.2}",
                ours.rate,
                qemu.rate,
                qemu.rate / ours.rate,
                ours.worked,
                qemu.worked,
                ours.worked / qemu.worked
            );
        }
    }
}
