// SPDX-License-Identifier: BSD-2-Clause

//! Debian's text console on a VGA, and its installer on the frame buffer, driven through VNC, before a suspend and after the
//! restore. The console of an ordinary guest on the frame buffer is the matrix's business.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vmm_tests::debian::{Debian, NO_TIMER_CHECK, no_complaints};
use vmm_tests::host::free_port;
use vmm_tests::rfb::{RETURN, Screen, Viewer};
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    a_text_console_survives_a_restore,
    a_guest_waits_for_a_viewer,
);
on_each_vmm!(
    #[ignore = "a long run, of an installer that is fetched: make soak"]
    the_installer_survives_a_restore,
);

/// For what takes seconds on an idle machine.
const LONG: Duration = Duration::from_secs(300);
/// Of an installer, which unpacks and probes a lot.
const VERY_LONG: Duration = Duration::from_secs(1200);

fn suspend(bench: &Bench, guest: &mut Guest) {
    let output = bench.ctl(&["--vm=vm", "--suspend=p"]);
    assert!(output.status.success(), "{output:?}\n{}", guest.errors());
    assert_eq!(guest.wait().code(), Some(0));
}

/// Continues, with a server on another port than before and these options.
fn restore(bench: &Bench, slot: &str, options: &str) -> (Guest, Viewer) {
    let port = free_port();
    let slot = format!("{slot},fbuf,tcp=127.0.0.1:{port}{options}");
    let guest = bench.start(&["-r", "p", "-s", &slot, "vm"]);
    (guest, Viewer::connect(port))
}

/// Keeps the pictures if somebody wants to see them.
fn keep(screen: &Screen, name: &str) {
    if let Ok(dir) = std::env::var("SCREENS") {
        let path = Path::new(&dir).join(name);
        screen.write_png(&path).expect("a picture to keep");
    }
}

/// Debian's installer: its own kernel and initrd, as its package has them. None where there is no apt.
fn installer(bench: &Bench) -> Option<(PathBuf, PathBuf)> {
    let script = "apt-get -qq -o APT::Sandbox::User=root download debian-installer-12-netboot-amd64 \
                  && dpkg-deb -x debian-installer-12-netboot-amd64_*.deb installer";
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(bench.path("."))
        .status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no Debian installer on this machine");
        return None;
    }
    let files = bench
        .path("installer/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64");
    Some((files.join("linux"), files.join("initrd.gz")))
}

/// Waits until the machine's control socket answers.
fn until_it_answers(bench: &Bench) -> String {
    let end = Instant::now() + LONG;
    loop {
        let output = bench.ctl(&["--vm=vm", "--get-rip"]);
        if output.status.success() {
            return String::from_utf8(output.stdout).expect("a number");
        }
        assert!(Instant::now() < end, "{output:?}");
    }
}

fn a_guest_waits_for_a_viewer(bench: &Bench) {
    let socket = bench.path("vnc");
    let slot = format!("29,fbuf,unix={},wait", bench.text("vnc"));
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &["-s", &slot, "vm"]));
    let rip = until_it_answers(bench);
    let output = bench.ctl(&["--vm=vm", "--suspend=p"]);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("waits for a viewer"), "{errors}");
    assert_eq!(until_it_answers(bench), rip, "nothing has been executed");
    let _viewer = Viewer::connect_unix(&socket);
    guest.expect("\n");
    suspend(bench, &mut guest);
    assert!(!socket.exists());

    // It waits again when it goes on, and can be ended meanwhile.
    let mut guest = bench.start(&["-r", "p", "vm"]);
    let rip = until_it_answers(bench);
    assert_eq!(until_it_answers(bench), rip);
    let output = bench.ctl(&["--vm=vm", "--force-poweroff"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(guest.wait().code(), Some(1));
    let mut guest = bench.start(&["-r", "p", "vm"]);
    let _viewer = Viewer::connect_unix(&socket);
    guest.expect("\n");
}

/// Types a command into the shell on the screen, and waits for the line that it prints.
fn command(guest: &mut Guest, viewer: &mut Viewer, command: &str, prints: &str) -> Screen {
    let before = viewer.screen();
    viewer.type_text(command);
    viewer.type_text("\n");
    let after = viewer.wait_for(LONG, |screen| screen.differences(&before) > 100);
    // The kernel's own view of its screen.
    let text = guest.shell("fold -w 80 /dev/vcs1");
    let line = |line: &str| line.trim() == prints;
    assert!(text.lines().any(line), "{text}");
    after
}

fn a_text_console_survives_a_restore(bench: &Bench) {
    let Some(debian) = Debian::generic() else {
        return;
    };
    let port = free_port();
    let slot = format!("29,fbuf,tcp=127.0.0.1:{port},vga=on");
    let cmdline = format!(
        "boot.cmdline=console=tty0 console=ttyS0 vt.global_cursor_default=0 consoleblank=0 {NO_TIMER_CHECK}"
    );
    let mut guest = debian.boot(bench, 1, &["-s", &slot, "-o", &cmdline]);
    guest.shell("(setsid sh < /dev/tty1 > /dev/tty1 2>&1 &)");
    let mut viewer = Viewer::connect(port);
    let screen = viewer.wait_for(LONG, |screen| screen.lit() > 1000);
    assert_eq!((screen.width, screen.height), (720, 400));
    let before = command(&mut guest, &mut viewer, "uname", "Linux");
    keep(&before, "vga-1.png");
    suspend(bench, &mut guest);

    let (mut guest, mut viewer) = restore(bench, "29", ",vga=on");
    let after = viewer.screen();
    keep(&after, "vga-2.png");
    assert_eq!(after.differences(&before), 0);
    let last = command(&mut guest, &mut viewer, "uname -m", "x86_64");
    keep(&last, "vga-3.png");
    no_complaints(&guest.console());
}

fn the_installer_survives_a_restore(bench: &Bench) {
    let Some((kernel, initrd)) = installer(bench) else {
        return;
    };
    let port = free_port();
    let slot = format!("29,fbuf,tcp=127.0.0.1:{port},w=800,h=600");
    let kernel = format!("boot.kernel={}", kernel.display());
    let initrd = format!("boot.initrd={}", initrd.display());
    let cmdline = "boot.cmdline=console=ttyS0 console=tty0 vga=788 vt.global_cursor_default=0";
    let fixed = ["-m", "1G", "-s", "0,hostbridge", "-s", "31,lpc"];
    let given = [
        "-l",
        "com1,stdio",
        "-s",
        &slot,
        "-o",
        &kernel,
        "-o",
        &initrd,
    ];
    let args = [&fixed[..], &given, &["-o", cmdline, "vm"]].concat();
    let mut guest = bench.start(&args);
    let mut viewer = Viewer::connect(port);
    // A dialogue is a grey box over a third of the screen and more, where the kernel's messages are grey on black.
    let grey = |screen: &Screen| {
        screen
            .pixels
            .iter()
            .filter(|p| **p & 0xff_ffff == 0xaa_aaaa)
            .count()
    };
    let dialogue = |screen: &Screen| grey(screen) > screen.pixels.len() / 4;
    let first = viewer.wait_for(VERY_LONG, dialogue);
    keep(&first, "installer-1.png");
    // The language; then the country.
    viewer.key(RETURN);
    let second = viewer.wait_for(LONG, |screen| {
        dialogue(screen) && screen.differences(&first) > 1000
    });
    keep(&second, "installer-2.png");
    suspend(bench, &mut guest);

    let (_guest, mut viewer) = restore(bench, "29", "");
    let after = viewer.screen();
    keep(&after, "installer-2-after.png");
    assert_eq!(after.differences(&second), 0);
    viewer.key(RETURN);
    let third = viewer.wait_for(LONG, |screen| {
        dialogue(screen) && screen.differences(&second) > 1000
    });
    keep(&third, "installer-3.png");
}
