// SPDX-License-Identifier: BSD-2-Clause

//! Guests that end, and machines that are brought to rest, while their processors are started and their memory is moved: on
//! threads, in as many orders as there is time for. `vmm_vm/tests.rs` tries all orders, of less.

use parking_lot::{Mutex, MutexGuard};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use vmm_x86::apicreg::DeliveryMode;

use super::*;

const CLOCKS: [Clock; 2] = [Clock::Host, Clock::Instructions];
const DISTURBANCES: [Disturbance; 2] = [Disturbance::Start, Disturbance::Move];
const CPUS: i32 = 3;
const SECOND: VmActivateCpu = VmActivateCpu { vcpuid: 1 };
const ALL: VmActivateCpu = VmActivateCpu { vcpuid: -1 };
/// Where the processor begins that is started over and over,
const STARTED: u64 = 0x9000;
/// and the one that ends the guest, or does not.
const THIRD: u64 = 0xa000;
/// A counter of the first processor's.
const COUNTER: u32 = 0x500;
/// The port at which memory is moved.
const MOVE: i32 = 0x90;
/// Where it is moved to and fro.
const PLACES: [u64; 2] = [0xc000_0000, 0xc010_0000];
const SEGMENT_BYTES: u64 = 0x1000;
/// How long anything may take that should take no time at all, on a host that is busy with other tests.
const SOON: Duration = Duration::from_secs(60);
/// Guests of each kind.
const ROUNDS: u16 = 12;
const MANY_ROUNDS: u16 = 3000;

/// Why the VM is suspended, or why VM_RUN or another request has failed.
type Told = Result<i32, Errno>;

/// What processor 0 does without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// Sends INIT and STARTUP to processor 1.
    Start,
    /// Has memory moved, for which all processors are needed.
    Move,
}

/// 32-bit code that disturbs the others for ever.
fn disturbing(clock: Clock, disturbance: Disturbance) -> Vec<u8> {
    // In a turn of 20,000 instructions all the others wait while userland completes what is asked for.
    let pause = if clock == Clock::Host { 1 } else { 1000 };
    assemble(32, |a| {
        let mut again = a.create_label();
        let mut wait = a.create_label();
        a.set_label(&mut again)?;
        match disturbance {
            Disturbance::Start => {
                for icr in [0x4500, 0x4600 | (STARTED >> 12) as i32] {
                    a.mov(dword_ptr(0xfee0_0310u32), 1 << 24)?;
                    a.mov(dword_ptr(0xfee0_0300u32), icr)?;
                }
            }
            Disturbance::Move => a.out(MOVE, al)?,
        }
        a.inc(dword_ptr(COUNTER))?;
        a.mov(ecx, pause)?;
        a.set_label(&mut wait)?;
        a.dec(ecx)?;
        a.jnz(wait)?;
        a.jmp(again)
    })
}

/// Counts so far and then faults without an interrupt table; or counts for ever.
fn third(count: Option<u16>) -> Vec<u8> {
    assemble(16, |a| {
        let mut again = a.create_label();
        a.mov(ecx, u32::from(count.unwrap_or(1)))?;
        a.set_label(&mut again)?;
        if count.is_some() {
            a.dec(ecx)?;
        }
        a.jnz(again)?;
        a.ud2()
    })
}

fn place(gpa: u64) -> VmMemmap {
    VmMemmap {
        gpa,
        segid: VM_BOOTROM,
        len: SEGMENT_BYTES,
        prot: VM_PROT_ALL,
        ..Default::default()
    }
}

/// What userland knows of the processors.
#[derive(Default)]
struct Userland {
    /// All are held.
    holding: bool,
    /// The second has not been started by the guest.
    parked: bool,
    /// VM_RUN has said that they are held.
    resting: [bool; CPUS as usize],
    /// They have been let go, and VM_RUN is to say so again before they rest.
    let_go: [bool; CPUS as usize],
}

/// A VM of three processors: the first disturbs, the second is started, the third may end the guest.
struct Disturbed {
    bench: Bench,
    userland: Mutex<Userland>,
}

impl Disturbed {
    fn new(clock: Clock, disturbance: Disturbance, count: Option<u16>) -> Arc<Self> {
        let bench = Bench::with_program(clock, CPUS, &disturbing(clock, disturbance));
        let mut segment = VmMemseg {
            segid: VM_BOOTROM,
            len: SEGMENT_BYTES,
            ..Default::default()
        };
        segment.name[..4].copy_from_slice(b"here");
        bench.set(VM_ALLOC_MEMSEG, segment).unwrap();
        bench.set(VM_MMAP_MEMSEG, place(PLACES[0])).unwrap();
        // jmp $
        bench.write(STARTED, &[0xeb, 0xfe]);
        bench.write(THIRD, &third(count));
        let all = Self {
            bench,
            userland: Mutex::default(),
        };
        all.begin();
        Arc::new(all)
    }

    /// The processors as they are at the start.
    fn begin(&self) {
        let bench = &self.bench;
        let describe = |cpuid, regnum, desc| {
            let arg = VmSegDesc {
                cpuid,
                regnum,
                desc,
            };
            bench.set(VM_SET_SEGMENT_DESCRIPTOR, arg).unwrap();
        };
        bench.start_at(0, 0, ENTRY);
        bench.set_reg(0, VM_REG_GUEST_CR0, 0x21);
        for (regnum, access) in [
            (VM_REG_GUEST_CS, 0xc09b),
            (VM_REG_GUEST_DS, 0xc093),
            (VM_REG_GUEST_ES, 0xc093),
            (VM_REG_GUEST_SS, 0xc093),
        ] {
            describe(0, regnum, SegDesc::new(0, u32::MAX, access));
        }
        // The local APIC has to be switched on before it sends anything.
        let svr = VmReadwriteKernemuDevice {
            vcpuid: 0,
            access_width: 2,
            gpa: 0xfee0_00f0,
            value: 0x1ff,
        };
        bench.set(VM_SET_KERNEMU_DEV, svr).unwrap();
        bench.start_at(2, THIRD >> 4, 0);
        describe(2, VM_REG_GUEST_IDTR, SegDesc::default());
        self.park().unwrap();
    }

    fn userland(&self) -> MutexGuard<'_, Userland> {
        self.userland.lock()
    }

    fn park(&self) -> Result<(), Errno> {
        let mut userland = self.userland();
        userland.parked = true;
        self.bench.set(VM_SUSPEND_CPU, SECOND)
    }

    fn unpark(&self) -> Result<(), Errno> {
        let mut userland = self.userland();
        userland.parked = false;
        if userland.holding {
            return Ok(());
        }
        self.resume(&mut userland, 1)
    }

    fn resume(&self, userland: &mut Userland, cpu: usize) -> Result<(), Errno> {
        userland.let_go[cpu] = true;
        userland.resting[cpu] = false;
        let vcpuid = cpu as i32;
        match self.bench.set(VM_RESUME_CPU, VmActivateCpu { vcpuid }) {
            // It was not held.
            Err(Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    fn hold(&self) {
        let mut userland = self.userland();
        userland.holding = true;
        self.bench.set(VM_SUSPEND_CPU, ALL).unwrap();
    }

    fn release(&self) {
        let mut userland = self.userland();
        userland.holding = false;
        let parked = userland.parked;
        for cpu in (0..CPUS as usize).filter(|&cpu| cpu != 1 || !parked) {
            self.resume(&mut userland, cpu).unwrap();
        }
    }

    /// Called by a processor's thread when VM_RUN says that it is held.
    fn rest(&self, cpu: usize) {
        let mut userland = self.userland();
        while !std::mem::take(&mut userland.let_go[cpu]) && !self.bench.vm.is_destroyed() {
            userland.resting[cpu] = true;
            let held = userland.holding;
            drop(userland);
            thread::sleep(Duration::from_micros(50));
            userland = self.userland();
            if !held && !userland.holding {
                // The guest has not started it: it looks in now and then.
                break;
            }
        }
        userland.resting[cpu] = false;
    }

    /// A processor's thread as userland has them. Gives why the VM is suspended, as VM_RUN says it.
    fn serve(&self, cpu: i32) -> Told {
        let bench = &self.bench;
        loop {
            let (exit, targets) = bench.run_with_targets(cpu)?;
            match (exit.exitcode, DeliveryMode::from_bits(exit.ipi().mode)) {
                (VM_EXITCODE_SUSPENDED, _) => return Ok(exit.suspended().how),
                (VM_EXITCODE_DEBUG, _) => self.rest(cpu as usize),
                (VM_EXITCODE_REQIDLE, _) => {}
                (VM_EXITCODE_INOUT, _) => self.move_memory()?,
                (VM_EXITCODE_IPI, Some(DeliveryMode::Init)) => {
                    assert_eq!(targets[0], 0b10, "{exit:?}");
                    self.park()?;
                }
                (VM_EXITCODE_IPI, Some(DeliveryMode::Startup)) => {
                    bench.try_start_at(1, STARTED >> 4, 0)?;
                    self.unpark()?;
                }
                _ => panic!("vcpu {cpu}: {exit:?}"),
            }
        }
    }

    fn move_memory(&self) -> Result<(), Errno> {
        let at = VmMemmap {
            gpa: PLACES[0],
            ..Default::default()
        };
        let at = self.bench.get(VM_MMAP_GETNEXT, at)?.gpa;
        let to = PLACES[usize::from(at == PLACES[0])];
        let len = SEGMENT_BYTES;
        self.bench
            .set(VM_MUNMAP_MEMSEG, VmMunmap { gpa: at, len })?;
        self.bench.set(VM_MMAP_MEMSEG, place(to))
    }

    /// Starts the processors' threads.
    fn start(self: &Arc<Self>) -> mpsc::Receiver<Told> {
        let (sender, told) = mpsc::channel();
        for cpu in 0..CPUS {
            let (all, sender) = (Arc::clone(self), sender.clone());
            thread::spawn(move || sender.send(all.serve(cpu)));
        }
        told
    }

    /// Waits for the end of the processors' threads, and gives what VM_RUN has told each.
    fn ends(&self, told: &mpsc::Receiver<Told>) -> Vec<Told> {
        let deadline = Instant::now() + SOON;
        let one = |_| {
            let left = deadline.saturating_duration_since(Instant::now());
            told.recv_timeout(left)
                .unwrap_or_else(|_| self.hangs("the guest does not end"))
        };
        (0..CPUS).map(one).collect()
    }

    /// Lets the threads go before the test fails.
    fn hangs(&self, what: &str) -> ! {
        let states = self.bench.vm.look(|states| format!("{states:?}"));
        let _ = crate::destroy(self.bench.vm.name());
        panic!("{what}: {states}")
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        while !done() {
            if Instant::now() > deadline {
                self.hangs(what);
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn counter(&self) -> Vec<u8> {
        self.bench.read(COUNTER.into(), 4)
    }
}

fn all_told(told: &[Told], how: i32) {
    assert_eq!(told, [Ok(how); CPUS as usize]);
}

/// Calls it for each clock and disturbance, with a number that is another each time.
fn each(rounds: u16, test: impl Fn(Clock, Disturbance, u16)) {
    for n in 0..rounds {
        for clock in CLOCKS {
            for disturbance in DISTURBANCES {
                test(clock, disturbance, n.wrapping_mul(997));
            }
        }
    }
}

fn triple_fault(rounds: u16) {
    each(rounds, |clock, disturbance, n| {
        let guest = Disturbed::new(clock, disturbance, Some(n.saturating_add(1)));
        let told = guest.start();
        all_told(&guest.ends(&told), VM_SUSPEND_TRIPLEFAULT);
    });
}

#[test]
fn a_guest_ends_in_the_middle_of_everything() {
    triple_fault(ROUNDS);
}

#[test]
#[ignore = "a long run: make soak"]
fn many_guests_end_in_the_middle_of_everything() {
    triple_fault(MANY_ROUNDS);
}

fn suspended(rounds: u16) {
    each(rounds, |clock, disturbance, n| {
        let guest = Disturbed::new(clock, disturbance, None);
        let told = guest.start();
        thread::sleep(Duration::from_micros(n.into()));
        assert_eq!(guest.bench.suspend(VM_SUSPEND_POWEROFF), Ok(()));
        all_told(&guest.ends(&told), VM_SUSPEND_POWEROFF);
        // All have been told, so it can be made anew.
        assert_eq!(guest.bench.set(VM_REINIT, [0u8; 0]), Ok(()));
        for vcpuid in 0..CPUS {
            let activate = VmActivateCpu { vcpuid };
            assert_eq!(guest.bench.set(VM_ACTIVATE_CPU, activate), Ok(()));
            guest.bench.set_cap(vcpuid, VM_CAP_IPI_EXIT, 1);
        }
        guest.bench.set(VM_MMAP_MEMSEG, place(PLACES[0])).unwrap();
        guest.begin();
        let before = guest.counter();
        let told = guest.start();
        guest.wait("the guest does not run again", || guest.counter() != before);
        assert_eq!(guest.bench.suspend(VM_SUSPEND_RESET), Ok(()));
        all_told(&guest.ends(&told), VM_SUSPEND_RESET);
    });
}

#[test]
fn a_guest_is_suspended_in_the_middle_of_everything() {
    suspended(ROUNDS);
}

#[test]
#[ignore = "a long run: make soak"]
fn many_guests_are_suspended_in_the_middle_of_everything() {
    suspended(MANY_ROUNDS);
}

fn destroyed(rounds: u16) {
    each(rounds, |clock, disturbance, n| {
        let guest = Disturbed::new(clock, disturbance, None);
        let told = guest.start();
        thread::sleep(Duration::from_micros(n.into()));
        crate::destroy(guest.bench.vm.name()).unwrap();
        for told in guest.ends(&told) {
            assert!(
                told == Ok(VM_SUSPEND_DESTROY) || told == Err(Errno::ENXIO),
                "{told:?}"
            );
        }
    });
}

#[test]
fn a_vm_is_destroyed_in_the_middle_of_everything() {
    destroyed(ROUNDS);
}

#[test]
#[ignore = "a long run: make soak"]
fn many_vms_are_destroyed_in_the_middle_of_everything() {
    destroyed(MANY_ROUNDS);
}

/// A machine is brought to rest and goes on, over and over, and then ends.
fn held(rounds: u16) {
    for (clock, disturbance) in CLOCKS
        .into_iter()
        .flat_map(|clock| DISTURBANCES.map(|d| (clock, d)))
    {
        let guest = Disturbed::new(clock, disturbance, None);
        let told = guest.start();
        for n in 0..rounds {
            guest.hold();
            let at_rest = || guest.userland().resting == [true; CPUS as usize];
            guest.wait("the processors do not stop", at_rest);
            let (time, counter) = (guest.bench.vm.now(), guest.counter());
            thread::sleep(Duration::from_micros(u64::from(n % 8) * 100));
            assert_eq!(
                (guest.bench.vm.now(), guest.counter()),
                (time, counter.clone())
            );
            guest.release();
            guest.wait("the guest does not go on", || guest.counter() != counter);
        }
        assert_eq!(guest.bench.suspend(VM_SUSPEND_HALT), Ok(()));
        all_told(&guest.ends(&told), VM_SUSPEND_HALT);
    }
}

#[test]
fn a_machine_comes_to_rest_in_the_middle_of_everything() {
    held(4 * ROUNDS);
}

#[test]
#[ignore = "a long run: make soak"]
fn a_machine_comes_to_rest_many_times_in_the_middle_of_everything() {
    held(4 * MANY_ROUNDS);
}
