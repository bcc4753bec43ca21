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

/// MiB per second: written, read, sent.
type Rates = [f64; 3];

/// The median of each of the three.
fn medians(runs: &[Rates]) -> Rates {
    [0, 1, 2].map(|n| {
        let mut rates: Vec<f64> = runs.iter().map(|run| run[n]).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    })
}

fn rate(mib: usize, time: Duration) -> f64 {
    mib as f64 / time.as_secs_f64()
}

/// Measured on the host, whatever the guest thinks of time.
fn rates(guest: &mut Guest, node: &str) -> Rates {
    let timed = |guest: &mut Guest, command: &str| {
        let started = Instant::now();
        guest.shell_within(command, LONG);
        rate(DISK, started.elapsed())
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
    guest.shell_within(&send, LONG);
    [written, read, receiver.join().expect("all of it came")]
}

fn ours(debian: &Debian, models: &Models) -> Rates {
    let bench = Bench::new();
    let disk = format!("3,{},{}", models.disk, image(&bench, "disk", IMAGE));
    let nic = format!("4,{},slirp,open", models.nic);
    let mut guest = debian.boot(&bench, 1, &["-s", &disk, "-s", &nic]);
    rates(&mut guest, models.node)
}

fn qemus(debian: &Debian, models: &Models) -> Rates {
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
    rates(&mut guest, models.node)
}

/// Measures and prints.
pub fn throughput() {
    let Some(debian) = Debian::generic() else {
        return;
    };
    println!(
        "throughput, Debian 6.1, 1 vCPU, MiB/s, median of {RUNS} (bhyve's software vmm, QEMU's TCG, the time we take relative to it):"
    );
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
            println!(
                "  {what:<30} {:>7.0} {:>7.0} {:>7.2}",
                ours[n],
                qemu[n],
                qemu[n] / ours[n]
            );
        }
    }
}
