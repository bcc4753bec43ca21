// SPDX-License-Identifier: BSD-2-Clause

//! A VM in a process of its own, in a temporary directory with its own rundir.

#![expect(unsafe_code, reason = "kill(2)")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take that should take no time at all, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(60);

/// The kernels that are stood in for, by what bhyve(8) calls them: guests must fare there as on the software vmm.
pub const KERNELS: [&str; 3] = ["standin-14", "standin-15", "standin-16"];

/// Makes tests of functions that take a `&Bench`: each of them runs on the software vmm, and on each of [`KERNELS`].
///
/// `on_each_vmm!(poweroff_is_1)` makes the tests `poweroff_is_1::soft`, `poweroff_is_1::freebsd_14` and so on. An attribute
/// before a name, such as `#[ignore = "…"]`, is that of its tests. What cannot run on each says which [`Once`] it is.
#[macro_export]
macro_rules! on_each_vmm {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            $(#[$attribute])*
            fn soft() {
                super::$name(&$crate::Bench::new());
            }

            #[test]
            $(#[$attribute])*
            fn freebsd_14() {
                super::$name(&$crate::Bench::on($crate::bench::KERNELS[0]));
            }

            #[test]
            $(#[$attribute])*
            fn freebsd_15() {
                super::$name(&$crate::Bench::on($crate::bench::KERNELS[1]));
            }

            #[test]
            $(#[$attribute])*
            fn freebsd_16() {
                super::$name(&$crate::Bench::on($crate::bench::KERNELS[2]));
            }
        }
    )+};
}

/// Why a test does not run on each vmm. There are no other reasons; `tests/layers.rs` holds the tests to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// No guest is started: what is shown is said before there is a VM.
    NoGuest,
    /// `vmm.clock=instructions` is the software vmm's. A kernel's guests run on the host's processor, which cannot be stopped after a
    /// given number of instructions, and by the host's clock.
    InstructionClock,
    /// It is about this very vmm, by what bhyve(8) calls it.
    On(&'static str),
}

/// A temporary directory, and the programs under test.
pub struct Bench {
    dir: TempDir,
    /// What VMs run on.
    vmm: &'static str,
    once: Option<Once>,
    /// Where the programs are, if they are not those that were built with this one.
    programs: Option<PathBuf>,
}

impl Default for Bench {
    fn default() -> Self {
        Bench::new()
    }
}

impl Bench {
    /// A new, empty directory with an empty `run` in it. VMs run on the software vmm, even if there is a kernel's, which has one
    /// VM of a name for all tests.
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("run")).expect("a rundir");
        Bench {
            dir,
            vmm: "soft",
            once: None,
            programs: None,
        }
    }

    /// The same, whose VMs run on `vmm`.
    pub fn on(vmm: &'static str) -> Bench {
        Bench {
            vmm,
            ..Bench::new()
        }
    }

    /// The bench of a test that is not one of [`on_each_vmm`], with the reason.
    pub fn once(why: Once) -> Bench {
        let bench = match why {
            Once::On(vmm) => Bench::on(vmm),
            Once::NoGuest | Once::InstructionClock => Bench::new(),
        };
        Bench {
            once: Some(why),
            ..bench
        }
    }

    /// The same with the programs in this directory.
    pub fn with_programs(self, programs: &Path) -> Bench {
        Bench {
            programs: Some(programs.to_owned()),
            ..self
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        match &self.programs {
            Some(programs) => programs.join(name),
            None => program(name),
        }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name)
            .into_os_string()
            .into_string()
            .expect("temporary directories have plain names")
    }

    /// Writes a guest program to a file and gives its path.
    pub fn kernel(&self, name: &str, program: &[u8]) -> String {
        crate::guests::write(&self.path(name), program);
        self.text(name)
    }

    /// The options of a small machine that runs a guest program, with COM1 on standard input and output, and then `more`.
    pub fn machine(&self, program: &[u8], more: &[&str]) -> Vec<String> {
        let kernel = format!("boot.kernel={}", self.kernel("guest", program));
        let fixed = ["-m", "64M", "-s", "0,hostbridge", "-s", "31,lpc"];
        let given = ["-l", "com1,stdio", "-o", &kernel];
        let all = fixed.into_iter().chain(given);
        all.chain(more.iter().copied()).map(String::from).collect()
    }

    /// `bhyve` with this bench's rundir and the arguments.
    pub fn bhyve<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.program("bhyve"));
        command
            .arg("-o")
            .arg(format!("rundir={}", self.text("run")))
            .arg("-o")
            .arg(format!("vmm={}", self.vmm))
            .args(args.iter().map(AsRef::as_ref))
            .current_dir(self.dir.path());
        command
    }

    /// `bhyvectl` with this bench's rundir and the arguments.
    pub fn bhyvectl<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.program("bhyvectl"));
        command.arg(format!("--rundir={}", self.text("run")));
        command
            .args(args.iter().map(AsRef::as_ref))
            .current_dir(self.dir.path());
        command
    }

    /// Runs `bhyve` to its end.
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Output {
        output(self.bhyve(args))
    }

    /// Runs `bhyvectl` to its end.
    pub fn ctl<S: AsRef<str>>(&self, args: &[S]) -> Output {
        output(self.bhyvectl(args))
    }

    /// Starts a VM whose COM1 is the process's standard input and output, unless the arguments say otherwise.
    pub fn start<S: AsRef<str>>(&self, args: &[S]) -> Guest {
        self.check(args);
        Guest::start(self.bhyve(args))
    }

    /// The same, with bhyve(8) saying as much of what it does as this level of its log.
    pub fn start_telling<S: AsRef<str>>(&self, level: &str, args: &[S]) -> Guest {
        self.start_as(args, |command| {
            command.env("BHYVE_LOG", level);
        })
    }

    /// The same, with the process changed before it is started.
    pub fn start_as<S: AsRef<str>>(&self, args: &[S], change: impl FnOnce(&mut Command)) -> Guest {
        self.check(args);
        let mut command = self.bhyve(args);
        change(&mut command);
        Guest::start(command)
    }

    /// Whether the test is what it says that it is.
    fn check<S: AsRef<str>>(&self, args: &[S]) {
        let has = |wanted| args.iter().any(|arg| arg.as_ref() == wanted);
        let fits = match self.once {
            Some(Once::NoGuest) => false,
            Some(Once::InstructionClock) => has("vmm.clock=instructions") || has("-r"),
            Some(Once::On(_)) | None => true,
        };
        assert!(fits, "it is not {:?}: it is to run on each vmm", self.once);
    }
}

fn output(mut command: Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// The program of that name, built with the same profile as this one.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a program has a path");
    // Tests are in target/PROFILE/deps, programs in target/PROFILE.
    let found = this.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    found
        .into_iter()
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is not built: use `make test`, or `cargo build` first"))
}

/// A running bhyve(8).
pub struct Guest {
    child: Child,
    console: Option<ChildStdin>,
    output: Arc<Captured>,
    errors: Arc<Captured>,
    /// How much of the console has been waited for.
    seen: usize,
}

/// What a process has written so far.
#[derive(Default)]
struct Captured {
    bytes: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Captured {
    fn follow(mut pipe: impl Read + Send + 'static) -> Arc<Captured> {
        let captured = Arc::new(Captured::default());
        let writer = captured.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let n = pipe.read(&mut buffer).unwrap_or(0);
                let mut bytes = writer.bytes.lock().unwrap();
                bytes.0.extend(&buffer[..n]);
                bytes.1 = n == 0;
                writer.more.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        captured
    }

    /// Waits until all writers are gone, or it takes too long.
    fn wait_for_end(&self) {
        let bytes = self.bytes.lock().unwrap();
        drop(
            self.more
                .wait_timeout_while(bytes, SOON, |bytes| !bytes.1)
                .unwrap(),
        );
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap().0).into_owned()
    }
}

impl Guest {
    /// Starts `command` with its streams in the test's hands.
    pub fn start(mut command: Command) -> Guest {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Guest {
            console: child.stdin.take(),
            output: Captured::follow(child.stdout.take().expect("piped")),
            errors: Captured::follow(child.stderr.take().expect("piped")),
            child,
            seen: 0,
        }
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the console, from where the last wait ended, contains `text`; what came up to and with it.
    pub fn expect_within(&mut self, text: &str, within: Duration) -> String {
        let end = Instant::now() + within;
        let mut bytes = self.output.bytes.lock().unwrap();
        loop {
            let new = &bytes.0[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let found = String::from_utf8_lossy(&new[..at + text.len()]).into_owned();
                self.seen += at + text.len();
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || bytes.1 {
                let console = String::from_utf8_lossy(&bytes.0).into_owned();
                drop(bytes);
                panic!(
                    "no {text:?} on the console:\n{console}\n--- stderr:\n{}",
                    self.errors.text()
                );
            }
            bytes = self.output.more.wait_timeout(bytes, left).unwrap().0;
        }
    }

    /// [`Guest::expect_within`] a reasonable time.
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_within(text, SOON)
    }

    /// Types `text` on the console.
    pub fn send(&mut self, text: &str) {
        let console = self.console.as_mut().expect("the console is open");
        console
            .write_all(text.as_bytes())
            .and_then(|()| console.flush())
            .expect("write to the console");
    }

    /// Runs a shell command in a Debian guest and gives what it printed. It must succeed.
    pub fn shell_within(&mut self, command: &str, within: Duration) -> String {
        // The shell echoes the line as it is typed, in pieces; the markers are spelled so that no echo contains them.
        self.send(&format!(
            "echo --be\"\"gin; {command}; echo --do\"\"ne-$?-\n"
        ));
        self.expect_within("--begin\r\n", within);
        let printed = self.expect_within("--done-", within);
        let status = self.expect_within("-", within);
        assert_eq!(status, "0-", "`{command}` failed:\n{printed}");
        printed
            .strip_suffix("--done-")
            .expect("just found")
            .to_owned()
    }

    /// [`Guest::shell_within`] a reasonable time.
    pub fn shell(&mut self, command: &str) -> String {
        self.shell_within(command, SOON)
    }

    /// All of the console so far.
    pub fn console(&self) -> String {
        self.output.text()
    }

    /// All of standard error so far.
    pub fn errors(&self) -> String {
        self.errors.text()
    }

    /// How often the guest was saved and restored in place, as bhyve(8) says at its end if `BHYVE_LOG` lets it.
    pub fn pulses(&self) -> u64 {
        let errors = self.errors();
        let line = errors.lines().find_map(|line| line.strip_suffix(" pulses"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no number of pulses: {errors}"))
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process ID");
        // SAFETY: kill(2) takes two integers; the process is a child of ours that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill {pid}");
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for bhyve").is_none()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for bhyve") {
                // What it wrote last may still be in the pipes.
                self.output.wait_for_end();
                self.errors.wait_for_end();
                return status;
            }
            if Instant::now() > end {
                panic!(
                    "bhyve goes on:\n{}\n--- stderr:\n{}",
                    self.console(),
                    self.errors()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nothing is left running when a test fails. It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
