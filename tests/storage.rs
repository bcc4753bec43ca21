// SPDX-License-Identifier: BSD-2-Clause

//! SATA disks and a CD under Debian's own driver, across a suspension in the middle of a copy.

use std::time::Duration;

use vmm_tests::debian::{BOOT, Debian, no_complaints};
use vmm_tests::host::{ext4, run};
use vmm_tests::{Bench, on_each_vmm};

on_each_vmm!(a_copy_between_sata_disks_goes_on_in_a_new_process);

const LONG: Duration = Duration::from_secs(300);
/// Bytes of the CD: whole blocks.
const CD: usize = 2 << 20;

/// What the SATA layer says when a command was lost or a link was touched.
const SATA_COMPLAINTS: [&str; 6] = [
    "exception Emask",
    "failed command",
    "hard resetting link",
    "qc timeout",
    "link is slow",
    "revalidation failed",
];

fn a_copy_between_sata_disks_goes_on_in_a_new_process(bench: &Bench) {
    let Some(debian) = Debian::generic() else {
        return;
    };
    let disks = ["a", "b"].map(|name| ext4(bench, name, 64 << 20));
    let cd = bench.text("cd");
    let content: Vec<u8> = (0..CD as u32 / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect();
    std::fs::write(&cd, content).expect("make a CD");
    let cd_sum = run("md5sum", &[&cd]);
    let [a, b] = &disks;
    let slots = [format!("3,ahci,hd:{a},hd:{b}"), format!("4,ahci-cd,{cd}")];
    let mut guest = debian.boot(bench, 1, &["-s", &slots[0], "-s", &slots[1]]);
    guest.shell("mkdir /a /b; mount /dev/sda /a && mount /dev/sdb /b");
    guest.shell_within(
        "head -c 8000000 /dev/urandom > /a/f; sync; md5sum < /a/f > /tmp/sum",
        LONG,
    );
    // Both disks and the CD are busy when the guest is stopped.
    guest.send("(while [ ! -e /tmp/stop ]; do cat /a/f > /b/g; sync; echo 3 > /proc/sys/vm/drop_caches; md5sum < /b/g; done > /tmp/sums) &\n");
    guest.send("(while [ ! -e /tmp/stop ]; do md5sum < /dev/sr0; done > /tmp/cds) &\n");
    guest.shell("sleep 2");
    let output = bench.ctl(&["--vm=vm", "--suspend=state"]);
    assert!(output.status.success(), "{output:?}\n{}", guest.console());
    assert_eq!(guest.wait().code(), Some(0));
    no_complaints(&guest.console());

    let mut guest = bench.start(&["-r", "state"]);
    guest.send("\n");
    guest.expect_within("guest# ", BOOT);
    guest.shell_within("sleep 2; touch /tmp/stop; wait", LONG);
    guest.shell("md5sum < /b/g >> /tmp/sums; md5sum < /dev/sr0 >> /tmp/cds");
    guest.shell("test \"$(sort -u /tmp/sums)\" = \"$(cat /tmp/sum)\"");
    let cds = guest.shell("sort -u /tmp/cds");
    assert_eq!(cds.split_whitespace().next(), cd_sum.split(' ').next());
    guest.shell_within("umount /a /b", LONG);
    let dmesg = guest.shell("dmesg");
    no_complaints(&dmesg);
    for line in dmesg.lines() {
        let complaint = SATA_COMPLAINTS.iter().find(|text| line.contains(**text));
        assert!(complaint.is_none(), "the kernel complains: {line}");
    }
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1));
    for disk in &disks {
        run("e2fsck", &["-f", "-n", disk]);
    }
}
