// SPDX-License-Identifier: BSD-2-Clause

//! The main job on real input: Debian's kernel and busybox.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use vmm_tests::bench::Once;
use vmm_tests::debian::{BOOT, Debian, NO_TIMER_CHECK, no_complaints};
use vmm_tests::host::{ext4, free_port, run};
use vmm_tests::{Bench, Guest, on_each_vmm};

on_each_vmm!(
    boots_with_one_cpu_and_obeys_the_power_button,
    boots_with_two_cpus_and_moves_data,
    boots_with_four_cpus,
    boots_without_acpi,
    virtio_serves_drivers_of_either_interface,
    boots_while_it_is_saved_and_restored_in_place,
    a_suspended_debian_goes_on_in_a_new_process,
);

const LONG: Duration = Duration::from_secs(300);

/// Bytes that no run of zeroes or of equals could be taken for, and their checksum as md5sum(1) prints it.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    std::iter::repeat_with(|| next().to_le_bytes())
        .flatten()
        .take(len)
        .collect()
}

fn suspend(bench: &Bench, guest: &mut Guest, name: &str) {
    let output = bench.ctl(&["--vm=vm", &format!("--suspend={name}")]);
    assert!(
        output.status.success(),
        "{output:?}\n{}\n{}",
        guest.console(),
        guest.errors()
    );
    assert_eq!(guest.wait().code(), Some(0));
}

/// Boots with a disk, a network and an entropy source, and looks at all of them.
fn boots(bench: &Bench, debian: &Debian, cpus: usize) -> Guest {
    let disk = ext4(bench, "disk", 64 << 20);
    let slot = format!("3,virtio-blk,{disk}");
    let mut guest = debian.boot(
        bench,
        cpus,
        &[
            "-s",
            &slot,
            "-s",
            "4,virtio-net,slirp",
            "-s",
            "5,virtio-rnd",
        ],
    );
    assert_eq!(guest.shell("nproc").trim(), cpus.to_string());
    guest.shell("test -b /dev/vda && test -e /sys/class/net/eth0");
    assert!(
        guest
            .shell("cat /sys/class/misc/hw_random/rng_current")
            .contains("virtio")
    );
    guest.shell("head -c 64 /dev/hwrng | wc -c");
    guest.shell("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0");
    guest.shell("ping -c 3 10.0.2.2");
    guest.shell("mount /dev/vda /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=8 && sync && umount /mnt");
    run("e2fsck", &["-f", "-n", &disk]);
    no_complaints(&guest.console());
    guest
}

fn boots_with_one_cpu_and_obeys_the_power_button(bench: &Bench) {
    let Some(debian) = Debian::get() else { return };
    let mut guest = boots(bench, &debian, 1);
    guest.signal(libc::SIGTERM);
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.console());
}

fn boots_with_four_cpus(bench: &Bench) {
    let Some(debian) = Debian::get() else { return };
    let mut guest = boots(bench, &debian, 4);
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1));
}

/// Linux leaves x2APIC mode, in which it was started, since nothing remaps interrupts. A kernel's vmm does not let it.
#[test]
fn boots_out_of_x2apic_mode() {
    let Some(debian) = Debian::get() else { return };
    for cpus in [1, 2] {
        let bench = Bench::once(Once::On("soft"));
        let mut guest = debian.boot(&bench, cpus, &["-x"]);
        assert_eq!(guest.shell("nproc").trim(), cpus.to_string());
        let console = guest.console();
        assert!(console.contains("x2apic disabled"), "{console}");
        guest.shell("sleep 0.1");
        suspend(&bench, &mut guest, "state");
        let mut guest = bench.start(&["-r", "state"]);
        guest.send("\n");
        assert_eq!(guest.shell("nproc").trim(), cpus.to_string());
    }
}

/// Without ACPI, Linux has MSIs go to logical destinations. It finds its processors in the MP table.
fn boots_without_acpi(bench: &Bench) {
    let Some(debian) = Debian::generic() else {
        return;
    };
    let (disk, other) = (
        ext4(bench, "disk", 64 << 20),
        ext4(bench, "other", 64 << 20),
    );
    let slots = [format!("3,virtio-blk,{disk}"), format!("4,ahci-hd,{other}")];
    let cmdline = format!("boot.cmdline=console=ttyS0 {NO_TIMER_CHECK}");
    let off = format!("{cmdline} acpi=off");
    for (cmdline, tables) in [(&off, "true"), (&cmdline, "false")] {
        let tables = format!("acpi_tables={tables}");
        let disks = ["-s", &slots[0], "-s", &slots[1]];
        let more = [&disks[..], &["-o", cmdline, "-o", &tables]].concat();
        let mut guest = debian.boot(bench, 2, &more);
        guest.shell("test ! -e /sys/firmware/acpi/tables && dmesg | grep -q 'MPTABLE: OEM ID'");
        assert_eq!(guest.shell("nproc").trim(), "2");
        for device in ["vda", "sda"] {
            guest.shell(&format!(
                "while [ ! -b /dev/{device} ]; do sleep 1; done; mount /dev/{device} /mnt"
            ));
            guest.shell("dd if=/dev/urandom of=/mnt/file bs=1M count=4 && sync && umount /mnt");
        }
        // The only clock that Linux can hold the TSC against is the PIT then, whose reads a busy host delays.
        no_complaints(&guest.console().replace("TSC unstable", ""));
    }
}

/// The driver takes virtio 1.x by itself, and the legacy interface of the very same devices when it is told to.
fn virtio_serves_drivers_of_either_interface(bench: &Bench) {
    const FEATURES: &str = "cut -c 33 /sys/bus/virtio/devices/*/features | sort -u";
    let Some(debian) = Debian::get() else { return };
    let disk = ext4(bench, "disk", 64 << 20);
    let slot = format!("3,virtio-blk,{disk}");
    let more = [
        "-s",
        &slot,
        "-s",
        "4,virtio-net,slirp",
        "-s",
        "5,virtio-rnd",
    ];
    let mut guest = debian.boot(bench, 1, &more);
    let up = "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0";
    for (round, version_1) in ["1", "0"].into_iter().enumerate() {
        assert_eq!(guest.shell(FEATURES).trim(), version_1);
        guest.shell(up);
        guest.shell("mount /dev/vda /mnt");
        guest.shell(&format!(
            "dd if=/dev/urandom of=/mnt/file{round} bs=1M count=4"
        ));
        guest.shell("cat /mnt/file* | md5sum > /tmp/sum; ping -c 2 10.0.2.2");
        let name = format!("state{round}");
        suspend(bench, &mut guest, &name);
        guest = bench.start(&["-r", &name]);
        guest.send("\n");
        guest.expect_within("guest# ", BOOT);
        guest.shell("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/file* | md5sum | cmp - /tmp/sum");
        guest.shell("ping -c 2 10.0.2.2 && head -c 64 /dev/hwrng | wc -c");
        guest.shell("umount /mnt");
        if round == 0 {
            guest.shell("rmmod virtio_pci && insmod /lib/virtio_pci.ko force_legacy=1");
            guest.shell("while [ ! -b /dev/vda ]; do sleep 1; done");
        }
    }
    no_complaints(&guest.shell("dmesg"));
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1));
    run("e2fsck", &["-f", "-n", &disk]);
}

/// The whole state is saved and restored in place some hundreds of times while Linux boots and uses its devices.
fn boots_while_it_is_saved_and_restored_in_place(bench: &Bench) {
    let Some(debian) = Debian::get() else { return };
    let disk = ext4(bench, "disk", 64 << 20);
    let mut args = debian.options(2);
    let slot = format!("3,virtio-blk,{disk}");
    for more in [
        ["-s", &slot],
        ["-s", "4,virtio-net,slirp"],
        ["-s", "5,virtio-rnd"],
        ["-o", "snapshot.pulse=50"],
    ] {
        args.extend(more.map(String::from));
    }
    args.push("vm".into());
    let mut guest = bench.start_telling("info", &args);
    guest.expect_within("guest# ", BOOT);
    guest.shell("mount /dev/vda /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=8 && sync && umount /mnt");
    guest.shell("head -c 64 /dev/hwrng | wc -c");
    guest.shell("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0");
    guest.shell("ping -c 3 10.0.2.2");
    no_complaints(&guest.console());
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    eprintln!("{} pulses", guest.pulses());
    assert!(guest.pulses() >= 100, "{}", guest.errors());
    run("e2fsck", &["-f", "-n", &disk]);
}

/// With the repeatable clock, a boot that was stopped and went on elsewhere equals one that never was, to the last byte.
#[test]
fn a_restored_boot_equals_the_uninterrupted_one() {
    const STOP: u64 = 150_000_000;
    const END: u64 = 500_000_000;
    let Some(debian) = Debian::get() else { return };
    let bench = Bench::once(Once::InstructionClock);
    let disk = ext4(&bench, "disk", 64 << 20);
    let slot = format!("3,virtio-blk,{disk},ro");
    let to = |at: u64, file: &str| {
        [format!("snapshot.at={at}"), format!("snapshot.file={file}")]
            .into_iter()
            .flat_map(|variable| ["-o".into(), variable])
            .collect::<Vec<String>>()
    };
    let run = |mut args: Vec<String>, last: &[&str]| {
        args.extend(last.iter().map(|arg| (*arg).to_owned()));
        let mut guest = bench.start(&args);
        // Nothing to wait for on the console: wherever the guest is then, it stops.
        let end = std::time::Instant::now() + BOOT;
        while guest.is_running() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
        guest.console()
    };
    let cold = |at, file| {
        let mut args = debian.options(2);
        let more = [
            "-s",
            &slot,
            "-s",
            "5,virtio-rnd",
            "-o",
            "vmm.clock=instructions",
        ];
        args.extend(more.map(String::from));
        args.extend(to(at, file));
        run(args, &["vm"])
    };
    let uninterrupted = cold(END, "a");
    let mut console = cold(STOP, "b");
    console.push_str(&run(to(END, "c"), &["-r", "b"]));
    assert!(!uninterrupted.is_empty(), "the guest has said nothing yet");
    assert_eq!(console, uninterrupted);
    for suffix in ["", ".kern", ".dev"] {
        let read = |name: &str| std::fs::read(bench.path(&format!("{name}{suffix}"))).unwrap();
        assert!(read("a") == read("c"), "a{suffix} and c{suffix} differ");
    }
}

/// 64 MiB over TCP each way with slirp, and 256 MiB to a disk.
fn boots_with_two_cpus_and_moves_data(bench: &Bench) {
    let Some(debian) = Debian::get() else { return };
    let disk = ext4(bench, "disk", 400 << 20);
    let port = free_port();
    let slot = format!("3,virtio-blk,{disk}");
    let net = format!("4,virtio-net,slirp,hostfwd=tcp:127.0.0.1:{port}-:7777,open");
    let mut guest = debian.boot(bench, 2, &["-s", &slot, "-s", &net]);
    guest.shell("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2");
    let sent = noise(64 << 20);
    std::fs::write(bench.path("sent"), &sent).unwrap();
    let sum = run("md5sum", &[&bench.text("sent")]);
    let sum = sum.split(' ').next().unwrap();

    guest.send("nc -l -p 7777 > /tmp/got; md5sum /tmp/got; echo received\n");
    std::thread::sleep(Duration::from_secs(1));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let printed = guest.expect_within("/tmp/got\r\n", LONG);
    assert!(printed.contains(sum), "{printed} is not {sum}");
    drop(stream);

    guest.send("nc -l -p 7777 < /tmp/got; echo sent\n");
    std::thread::sleep(Duration::from_secs(1));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut got: Vec<u8> = Vec::new();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    while got.len() < sent.len() {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            n => got.extend(&buffer[..n]),
        }
    }
    drop(stream);
    assert!(
        got == sent,
        "{} bytes came back, not the {} that were sent",
        got.len(),
        sent.len()
    );

    guest.shell_within("mount /dev/vda /mnt", LONG);
    guest.shell_within(
        "for i in 1 2 3 4; do cat /tmp/got; done > /mnt/file && sync && rm /tmp/got",
        LONG,
    );
    let mut expected = Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = expected.stdin.take().unwrap();
    for _ in 0..4 {
        pipe.write_all(&sent).unwrap();
    }
    drop(pipe);
    let expected = String::from_utf8(expected.wait_with_output().unwrap().stdout).unwrap();
    let printed = guest.shell_within("echo 3 > /proc/sys/vm/drop_caches; md5sum /mnt/file", LONG);
    assert!(
        printed.contains(expected.split(' ').next().unwrap()),
        "{printed} is not {expected}"
    );
    guest.shell_within("umount /mnt", LONG);
    no_complaints(&guest.console());
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1));
    run("e2fsck", &["-f", "-n", &disk]);
}

/// Has the guest copy /tmp/a to its disk over and over, and sum up what it reads back. glibc copies with the FPU's registers.
fn start_copies(guest: &mut Guest) {
    guest.send(
        "(while :; do cat /tmp/a > /mnt/b; sync; md5sum /mnt/b | cut -c 1-32; done > /tmp/sums 2>&1) &\n",
    );
}

/// After the copies were stopped: there were some, all of them right, and so is one more.
fn check_copies(guest: &mut Guest) {
    guest.shell("test \"$(sort -u /tmp/sums | grep -v '^$')\" = \"$(cat /tmp/sum)\"");
    guest.shell("cat /tmp/a > /mnt/b; sync; echo 3 > /proc/sys/vm/drop_caches");
    guest.shell("test $(md5sum /mnt/b | cut -c 1-32) = $(cat /tmp/sum)");
}

fn a_suspended_debian_goes_on_in_a_new_process(bench: &Bench) {
    let Some(debian) = Debian::get() else { return };
    let disk = ext4(bench, "disk", 256 << 20);
    let slot = format!("3,virtio-blk,{disk}");
    let mut guest = debian.boot(bench, 2, &["-s", &slot, "-s", "5,virtio-rnd"]);
    let nonce = guest.shell("cat /tmp/nonce").trim().to_owned();
    guest.shell("mount /dev/vda /mnt");
    guest.shell("head -c 8000000 /dev/urandom > /tmp/a; md5sum /tmp/a | cut -c 1-32 > /tmp/sum");
    guest.shell("dmesg | tail -n 1 > /tmp/dmesg");
    // Both processors are busy, the disk is, and a counter runs; floating point too, whose state the kernel's structs lack.
    start_copies(&mut guest);
    guest.send("(i=0; while :; do i=$((i+1)); echo $i; done > /dev/null) &\n");
    guest.send("awk 'BEGIN{for(;;){x=0;for(i=1;i<20000;i++)x+=1/i;print x}}' > /tmp/floats &\n");
    guest.shell("sleep 1");
    for round in 0..3 {
        let before: f64 = guest
            .shell("cut -d ' ' -f 1 /proc/uptime")
            .trim()
            .parse()
            .unwrap();
        let date: u64 = guest.shell("date +%s").trim().parse().unwrap();
        let name = format!("state{round}");
        suspend(bench, &mut guest, &name);
        no_complaints(&guest.console());
        guest = bench.start(&["-r", &name]);
        guest.send("\n");
        guest.expect_within("guest# ", BOOT);
        assert_eq!(guest.shell("cat /tmp/nonce").trim(), nonce);
        let after: f64 = guest
            .shell("cut -d ' ' -f 1 /proc/uptime")
            .trim()
            .parse()
            .unwrap();
        assert!(
            after >= before && after < before + 60.0,
            "uptime went from {before} to {after}"
        );
        let later: u64 = guest.shell("date +%s").trim().parse().unwrap();
        assert!(later >= date, "the date went from {date} to {later}");
        guest.shell("sleep 1");
    }
    guest.shell("kill %1 %2 %3; wait; sync");
    check_copies(&mut guest);
    // The last line may have been cut short by the kill.
    let different = guest.shell("sed '$d' /tmp/floats | sort -u | wc -l");
    assert_eq!(different.trim(), "1");
    guest.shell("umount /mnt");
    let dmesg = guest.shell("dmesg");
    no_complaints(&dmesg);
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1));
    run("e2fsck", &["-f", "-n", &disk]);
}
