// SPDX-License-Identifier: BSD-2-Clause

//! A guest with a USB controller, before a suspend and after the restore.

use vmm_tests::debian::{Debian, no_complaints};
use vmm_tests::{Bench, on_each_vmm};

on_each_vmm!(tablets_in_both_kinds_of_ports_survive_a_restore);

/// Lines that the kernel writes when a device goes away, comes back or does not answer.
const TROUBLE: &str = "dmesg | grep -c -E 'usb.*(disconnect|reset|not accepting|error)|xhci_hcd.*(WARN|ERROR|HC died|[Tt]imeout|reset)'";

/// The tablets' input devices, in the order of their numbers.
const TABLETS: &str = "grep -l 'HID Tablet' /sys/class/input/event*/device/name";

fn tablets_in_both_kinds_of_ports_survive_a_restore(bench: &Bench) {
    let Some(debian) = Debian::generic() else {
        return;
    };
    let slot = "5,xhci,tablet,tablet=usb=2";
    let mut guest = debian.boot(bench, 1, &["-s", slot]);
    let up = format!("while [ $({TABLETS} | wc -l) != 2 ]; do usleep 100000; done");
    guest.shell(&up);
    let speeds = guest.shell("dmesg | grep -o 'new [a-zA-Z-]* USB device'");
    assert!(speeds.contains("new SuperSpeed USB device"), "{speeds}");
    assert!(speeds.contains("new high-speed USB device"), "{speeds}");
    // An open device has a transfer that waits for the pointer to move.
    guest.shell(&format!(
        "for f in $({TABLETS}); do cat /dev/input/$(echo $f | cut -d/ -f5) > /dev/null & done"
    ));
    let before = guest.shell(TABLETS);
    let output = bench.ctl(&["--vm=vm", "--suspend=p"]);
    assert!(output.status.success(), "{output:?}\n{}", guest.errors());
    assert_eq!(guest.wait().code(), Some(0));
    no_complaints(&guest.console());

    let mut guest = bench.start(&["-r", "p", "-s", slot, "vm"]);
    assert_eq!(guest.shell(TABLETS), before);
    // The devices answer and take commands: their transfers are cancelled, and their drivers find them again.
    guest.shell("kill $(pidof cat)");
    guest.shell("cd /sys/bus/usb/drivers/usb && for d in 1-1 2-1; do echo $d > unbind; echo $d > bind; done");
    guest.shell(&up);
    guest.shell("test $(grep -l fb5d /sys/bus/usb/devices/*/idVendor | wc -l) = 2");
    assert_eq!(guest.shell(&format!("{TROUBLE} || true")).trim(), "0");
    no_complaints(&guest.console());
    guest.send("poweroff -f\n");
    assert_eq!(guest.wait().code(), Some(1));
}
