// SPDX-License-Identifier: BSD-2-Clause

//! A Debian guest: a kernel, busybox, and the drivers as modules, made by tests/guests/debian.sh.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Bench, Guest};

/// A boot takes a few seconds; more on a machine that does other things.
pub const BOOT: Duration = Duration::from_secs(180);

/// What Linux is told everywhere: when it boots it counts interrupts of the timer for a moment, and panics if there were few. On a host
/// that is busy with other tests a processor may be kept waiting for that long.
pub const NO_TIMER_CHECK: &str = "no_timer_check";

/// The guest's files.
pub struct Debian {
    /// Linux's bzImage, as Debian ships it.
    pub kernel: PathBuf,
    /// busybox and the modules.
    pub initrd: PathBuf,
}

impl Debian {
    /// The cloud kernel, which boots fast and knows virtio devices only. The files are made if they are not there yet;
    /// none where Debian's packages cannot be fetched.
    pub fn get() -> Option<Debian> {
        Self::make("cloud", "")
    }

    /// The kernel for real machines: it has a driver for every device.
    pub fn generic() -> Option<Debian> {
        Self::make("generic", "generic")
    }

    fn make(flavour: &str, under: &str) -> Option<Debian> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tests
            .parent()
            .expect("a workspace")
            .join("target/guest")
            .join(under);
        let status = Command::new(tests.join("guests/debian.sh"))
            .arg(&dir)
            .arg(flavour)
            .status()
            .expect("run debian.sh");
        if status.code() == Some(3) {
            eprintln!("skipped: there is no Debian guest on this machine");
            return None;
        }
        assert!(status.success(), "debian.sh: {status}");
        Some(Debian {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd.img"),
        })
    }

    /// The options that boot it, with COM1 on standard input and output.
    pub fn options(&self, cpus: usize) -> Vec<String> {
        let cpus = cpus.to_string();
        let kernel = format!("boot.kernel={}", self.kernel.display());
        let initrd = format!("boot.initrd={}", self.initrd.display());
        let cmdline = format!("boot.cmdline=console=ttyS0 {NO_TIMER_CHECK}");
        [
            "-c",
            &cpus,
            "-m",
            "512M",
            "-s",
            "0,hostbridge",
            "-s",
            "31,lpc",
            "-l",
            "com1,stdio",
        ]
        .into_iter()
        .chain(["-o", &kernel, "-o", &initrd, "-o", &cmdline])
        .map(String::from)
        .collect()
    }

    /// Boots it to its shell as VM `vm`, with more options.
    pub fn boot(&self, bench: &Bench, cpus: usize, more: &[&str]) -> Guest {
        let mut args = self.options(cpus);
        args.extend(more.iter().map(|s| s.to_string()));
        args.push("vm".into());
        let mut guest = bench.start(&args);
        guest.expect_within("guest is up: nonce ", BOOT);
        guest.expect_within("guest# ", BOOT);
        guest
    }
}

/// What Linux must never have said.
pub const COMPLAINTS: [&str; 14] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "soft lockup",
    "hard LOCKUP",
    "rcu_sched self-detected",
    "rcu_preempt",
    "detected stalls",
    "I/O error",
    "Kernel panic",
    "Call Trace",
    "unstable",
    "tx hang",
    "NETDEV WATCHDOG",
];

/// Fails if the kernel has complained.
pub fn no_complaints(console: &str) {
    for line in console.lines() {
        for complaint in COMPLAINTS {
            assert!(!line.contains(complaint), "the kernel complains: {line}");
        }
    }
}
