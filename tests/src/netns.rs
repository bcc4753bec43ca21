// SPDX-License-Identifier: BSD-2-Clause

//! A network namespace of the test's own, with a tap in it: the other end of a guest's network.

use std::fs::File;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lasts as long as this value and what was started in it.
pub struct Namespace(File);

impl Namespace {
    /// A new one with a tap `tap0` that has `address` (such as `10.9.0.1/24`); none if this user may not.
    pub fn with_tap(address: &str) -> Option<Namespace> {
        Self::with_taps(&[address])
    }

    /// The same with taps `tap0`, `tap1` and so on, one for each address.
    pub fn with_taps<S: AsRef<str> + Sync>(addresses: &[S]) -> Option<Namespace> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let namespace = match made.join().expect("the thread does not panic") {
            Ok(file) => Namespace(file),
            Err(error) => {
                eprintln!("skipped: no network namespace: {error}");
                return None;
            }
        };
        let ip = |args: &[&str]| {
            let path = format!(
                "{}:/sbin:/usr/sbin",
                std::env::var("PATH").unwrap_or_default()
            );
            let output = Command::new("ip")
                .args(args)
                .env("PATH", path)
                .output()
                .expect("run ip");
            if !output.status.success() {
                eprintln!(
                    "skipped: ip {args:?}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            output.status.success()
        };
        // The taps stay when bhyve ends, so that the next one finds them.
        let ready = namespace.run(|| {
            addresses.iter().enumerate().all(|(n, address)| {
                let tap = format!("tap{n}");
                ip(&["tuntap", "add", "dev", &tap, "mode", "tap"])
                    && ip(&["addr", "add", address.as_ref(), "dev", &tap])
                    && ip(&["link", "set", &tap, "up"])
            }) && ip(&["link", "set", "lo", "up"])
        });
        ready.then_some(namespace)
    }

    /// Runs `work` in the namespace. Sockets that it makes and processes that it starts stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter a namespace of our own");
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
