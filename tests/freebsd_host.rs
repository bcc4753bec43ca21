// SPDX-License-Identifier: BSD-2-Clause

//! What only a FreeBSD host can show, through its own vmm(4). `make check-freebsd-host` runs these tests, as root, and
//! docs/freebsd-host.md says what each of them is about. Elsewhere they are compiled for FreeBSD and no more.
#![cfg(target_os = "freebsd")]

use std::process::Command;
use std::time::{Duration, Instant};

use vmm_tests::bench::{Once, SOON, program};
use vmm_tests::{Bench, Guest, guests};

/// What a command prints. It has to succeed.
fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(output.status.success(), "{command} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn sysctl(name: &str) -> u64 {
    run("sysctl", &["-n", name]).parse().unwrap()
}

/// A VM of the kernel's that is destroyed when the test is over, however it ends.
struct Kernel {
    bench: Bench,
    name: String,
}

impl Kernel {
    fn new(test: &str) -> Kernel {
        Kernel {
            bench: Bench::once(Once::On("kernel")),
            name: format!("check-{test}-{}", std::process::id()),
        }
    }

    /// Starts a guest that prints for ever; it has printed a line when this returns.
    fn start(&self, more: &[&str]) -> Guest {
        self.start_program(&guests::nonce(), more)
    }

    fn start_program(&self, program: &[u8], more: &[&str]) -> Guest {
        let fixed = ["-H"];
        let more = [&fixed[..], more, &[&self.name]].concat();
        let args = self.bench.machine(program, &more);
        let mut guest = self.bench.start(&args);
        guest.expect("\n");
        guest
    }

    fn node(&self) -> String {
        format!("/dev/vmm/{}", self.name)
    }

    fn ctl(&self, request: &str) -> std::process::Output {
        self.bench.ctl(&[&format!("--vm={}", self.name), request])
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.ctl("--destroy");
    }
}

#[test]
#[ignore = "needs a FreeBSD host"]
fn the_base_system_has_the_libraries() {
    for name in ["bhyve", "bhyvectl"] {
        let libraries = run(
            "ldd",
            &["-f", "%p\\n", &program(name).display().to_string()],
        );
        // The vDSO, which is no file, is listed in another form.
        for path in libraries
            .split_whitespace()
            .filter(|word| !word.starts_with('('))
        {
            let base =
                path.starts_with("/lib/") || path.starts_with("/usr/lib/") || path == "[vdso]";
            assert!(base, "{name} is linked with {path}");
        }
    }
}

#[test]
#[ignore = "needs root on a FreeBSD host"]
fn the_kernel_runs_a_guest() {
    let vm = Kernel::new("run");
    let mut guest = vm.start(&[]);
    for _ in 0..20 {
        guest.expect("\n");
    }
    assert!(std::fs::exists(vm.node()).unwrap());
    assert!(vm.ctl("--get-stats").status.success());
    assert!(vm.ctl("--destroy").status.success());
    guest.wait();
    assert!(!std::fs::exists(vm.node()).unwrap());
}

/// Whether a checkpoint was made. If not, it must have been refused for the one reason that there may be, in one line.
fn is_done(asked: &std::process::Output) -> bool {
    if asked.status.success() {
        return true;
    }
    let said = String::from_utf8_lossy(&asked.stderr);
    let lacks = said.contains("its configuration lacks \"options BHYVE_SNAPSHOT\"");
    assert!(lacks && said.lines().count() == 1, "{said}");
    println!("refused: {said}");
    false
}

/// With a kernel that has BHYVE_SNAPSHOT the guest goes on in a new process. GENERIC has it not: it is refused, in one line, and
/// the guest goes on as if nothing had been asked.
#[test]
#[ignore = "needs root on a FreeBSD host"]
fn a_guest_is_suspended_or_it_is_refused() {
    let vm = Kernel::new("suspend");
    let mut guest = vm.start(&[]);
    let file = vm.bench.text("state");
    let asked = vm.ctl(&format!("--suspend={file}"));
    if is_done(&asked) {
        assert_eq!(guest.wait().code(), Some(0));
        let mut second = vm.bench.start(&["-r", &file]);
        second.expect("\n");
        second.expect("\n");
        let consoles = [guest.console(), second.console()];
        let [before, after] = consoles.map(|text| guests::lines(&text).pop().expect("a line"));
        assert_eq!(before.0, after.0, "the guest was started anew");
        assert!(before.1 < after.1, "{before:?} {after:?}");
        println!("suspended and restored");
    } else {
        guest.expect("\n");
        guest.expect("\n");
    }
}

/// The kernel's structs have no FPU: the guest's own processor saves and loads it, in VM_RUN. The guest says itself whether it
/// still has its values.
#[test]
#[ignore = "needs root on a FreeBSD host"]
fn the_fpu_survives_a_suspend() {
    let vm = Kernel::new("fpu");
    let mut guest = vm.start_program(&guests::floats(), &[]);
    let [live, file] = ["live", "state"].map(|name| vm.bench.text(name));
    let asked = vm.ctl(&format!("--checkpoint={live}"));
    if !is_done(&asked) {
        return;
    }
    guest.expect("\n");
    guest.expect("\n");
    assert!(vm.ctl(&format!("--suspend={file}")).status.success());
    assert_eq!(guest.wait().code(), Some(0));
    let mut second = vm.bench.start(&["-r", &file]);
    second.expect("\n");
    second.expect("\n");
    for console in [guest.console(), second.console()] {
        assert!(!console.contains('n'), "the FPU is lost: {console}");
    }
    println!("the FPU is what it was");
}

#[test]
#[ignore = "needs root on a FreeBSD host"]
fn the_title_is_what_ps_shows() {
    let vm = Kernel::new("title");
    let guest = vm.start(&[]);
    let title = run("ps", &["-o", "command=", "-p", &guest.pid().to_string()]);
    assert_eq!(title, format!("bhyve: {}", vm.name));
}

#[test]
#[ignore = "needs root on a FreeBSD host"]
fn processors_are_pinned() {
    let last = sysctl("hw.ncpu") - 1;
    let vm = Kernel::new("pin");
    let guest = vm.start(&["-p", &format!("0:{last}")]);
    let shown = run("procstat", &["-S", &guest.pid().to_string()]);
    let mask = last.to_string();
    let pinned = shown
        .lines()
        .any(|line| line.split_whitespace().last() == Some(&mask));
    assert!(pinned, "{shown}");
}

#[test]
#[ignore = "needs root on a FreeBSD host"]
fn memory_is_wired_if_asked_for() {
    let vm = Kernel::new("wired");
    let before = sysctl("vm.stats.vm.v_wire_count");
    let _guest = vm.start(&["-S"]);
    let wired = sysctl("vm.stats.vm.v_wire_count").saturating_sub(before);
    // 64 MiB, but for what others have unwired meanwhile.
    assert!(wired >= 15_000, "{wired} pages");
}

/// procstat(1) marks a process in capability mode with C, in the tenth column. Suspending in it is the other test's business.
#[test]
#[ignore = "needs root on a FreeBSD host"]
fn it_runs_in_capability_mode() {
    let vm = Kernel::new("sandbox");
    let mut guest = vm.start(&[]);
    let flags = run("procstat", &["-h", "-s", &guest.pid().to_string()]);
    let flags = flags.split_whitespace().nth(9).unwrap_or_default();
    assert!(flags.starts_with('C'), "{flags:?}");
    guest.expect("\n");
}

/// The name server and the gateway of a guest are in a process of their own.
#[test]
#[ignore = "needs root on a FreeBSD host"]
fn slirp_is_nobody_in_capability_mode() {
    if !std::fs::exists("/usr/local/lib/libslirp.so.0").unwrap() {
        println!("skipped: the package libslirp is not installed");
        return;
    }
    let vm = Kernel::new("slirp");
    let _guest = vm.start(&["-s", "4,virtio-net,slirp"]);
    let helper = run("pgrep", &["-f", "--", "--slirp-helper"]);
    let user = run("ps", &["-o", "user=", "-p", &helper]);
    let flags = run("procstat", &["-h", "-s", &helper]);
    let flags = flags.split_whitespace().nth(9).unwrap_or_default();
    assert!(user == "nobody" && flags.starts_with('C'), "{user} {flags}");
}

/// Paths and most sysctls are out of reach in capability mode, and the VM is destroyed all the same.
#[test]
#[ignore = "needs root on a FreeBSD host"]
fn a_vm_is_destroyed_from_capability_mode() {
    let vm = Kernel::new("destroy");
    let args = vm.bench.machine(&guests::poweroff(), &["-D", &vm.name]);
    let mut guest = vm.bench.start(&args);
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    assert!(!std::fs::exists(vm.node()).unwrap());
}

/// The kernel of FreeBSD 15 leaves the VM behind when the process is killed; newer ones can be asked not to, and on 14 a child of
/// bhyve's destroys it.
#[test]
#[ignore = "needs root on a FreeBSD host"]
fn a_monitors_vm_ends_with_its_process() {
    if (1_500_000..1_600_000).contains(&sysctl("kern.osreldate")) {
        println!("not on this release");
        return;
    }
    let vm = Kernel::new("monitor");
    let mut guest = vm.start(&["-M"]);
    let children = run("pgrep", &["-P", &guest.pid().to_string()]);
    for child in children.lines() {
        run("kill", &["-KILL", child]);
    }
    guest.wait();
    let end = Instant::now() + SOON;
    while std::fs::exists(vm.node()).unwrap() {
        assert!(Instant::now() < end, "{} is still there", vm.node());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A device of the host that is removed when the test is over.
struct Device {
    name: String,
    remove: fn(&str) -> Command,
}

impl Drop for Device {
    fn drop(&mut self) {
        // A failure leaves it behind, which the host's owner sees.
        let _ = (self.remove)(&self.name).status();
    }
}

#[test]
#[ignore = "needs root on a FreeBSD host"]
fn a_disk_may_be_a_device() {
    let device = Device {
        name: run("mdconfig", &["-a", "-t", "swap", "-s", "16m"]),
        remove: |name| {
            let mut command = Command::new("mdconfig");
            command.args(["-d", "-u", name]);
            command
        },
    };
    let vm = Kernel::new("disk");
    let mut guest = vm.start(&["-s", &format!("3,virtio-blk,/dev/{}", device.name)]);
    guest.expect("\n");
    drop(guest);
}

#[test]
#[ignore = "needs root on a FreeBSD host"]
fn a_tap_is_opened() {
    let device = Device {
        name: run("ifconfig", &["tap", "create"]),
        remove: |name| {
            let mut command = Command::new("ifconfig");
            command.args([name, "destroy"]);
            command
        },
    };
    let vm = Kernel::new("tap");
    let guest = vm.start(&["-s", &format!("3,virtio-net,{}", device.name)]);
    let shown = run("ifconfig", &[&device.name]);
    let opened = format!("Opened by PID {}", guest.pid());
    assert!(shown.contains(&opened), "{shown}");
}
