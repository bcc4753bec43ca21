// SPDX-License-Identifier: BSD-2-Clause

//! The oracle: runs a case on the host's processor.
//!
//! The case's pages are mapped at their fixed addresses in this process. A trampoline loads all registers and jumps; whatever
//! exception ends the case arrives as a signal, whose handler copies the interrupted context and sends the thread back to
//! where the trampoline was called. One thread at a time may do this.

#![expect(
    unsafe_code,
    reason = "executes generated instructions in a child process"
)]

use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::mem::{offset_of, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::case::{CODE, CODE_LEN, Case, DATA, DATA_LEN, DATA_RW, Outcome};

#[repr(C, align(64))]
struct Context {
    fx: [u8; 512],
    regs: [u64; 16],
    rflags: u64,
    target: u64,
    cs: u64,
    host_rsp: u64,
    vector: u64,
    error: u64,
    address: u64,
}

/// What the trampoline loads and the handler fills.
static mut CONTEXT: Context = Context {
    fx: [0; 512],
    regs: [0; 16],
    rflags: 0,
    target: 0,
    cs: 0,
    host_rsp: 0,
    vector: 0,
    error: 0,
    address: 0,
};
/// Whether a case is running: any other signal is this process's own fault.
static RUNNING: AtomicBool = AtomicBool::new(false);
/// Counts cases, and the count at the last tick of the watchdog.
static CASES: AtomicU64 = AtomicU64::new(0);
static CASES_BEFORE: AtomicU64 = AtomicU64::new(0);
static ONLY_ONE: Mutex<()> = Mutex::new(());

/// The most traps of a case that is stepped.
const MAX_STEPS: usize = 256;
/// Where #DB has stopped a case that is stepped, and how often it has; no steps are taken while STEPPING is not set.
static STEPPING: AtomicBool = AtomicBool::new(false);
static STEPS: AtomicUsize = AtomicUsize::new(0);
static STEPPED: [AtomicU64; MAX_STEPS] = [const { AtomicU64::new(0) }; MAX_STEPS];
/// The vector of #DB.
const DEBUG: i64 = 1;

/// Linux's selectors for programs.
const USER_CODE: u64 = 0x33;
const USER_CODE_32: u64 = 0x23;
const USER_DATA: u64 = 0x2b;

/// How often the watchdog looks whether the case is still the same, in nanoseconds of the thread's time.
const WATCHDOG: libc::c_long = 50_000_000;
/// [`Outcome::vector`] of a case that does not end.
pub const ENDLESS: u8 = 0xfe;

const ALT_STACK: usize = 0x2_0000;
const SIGNALS: [c_int; 6] = [
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGVTALRM,
];
/// The general registers in the order of their encoding.
const GREGS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The host's processor, with the case's pages mapped.
pub struct Native {
    /// The code page, where it can be written.
    code: *mut u8,
    data: *mut u8,
    watchdog: libc::timer_t,
    _alt_stack: Vec<u8>,
    _guard: MutexGuard<'static, ()>,
}

impl Native {
    pub fn new() -> Self {
        let guard = ONLY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alt_stack = vec![0; ALT_STACK];
        // SAFETY: plain system calls. The fixed mappings replace nothing but those of an earlier `Native`, which is gone; the
        // alternate stack lives as long as `Self`, which stays on its thread.
        unsafe {
            let stack = libc::stack_t {
                ss_sp: alt_stack.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: ALT_STACK,
            };
            assert_eq!(
                libc::sigaltstack(&raw const stack, ptr::null_mut()),
                0,
                "sigaltstack"
            );
            for signal in SIGNALS {
                let mut action: libc::sigaction = zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigfillset(&raw mut action.sa_mask);
                assert_eq!(
                    libc::sigaction(signal, &raw const action, ptr::null_mut()),
                    0,
                    "sigaction"
                );
            }
            // A process's timer could interrupt any thread; this one is the thread's own.
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGVTALRM;
            event.sigev_notify_thread_id = libc::gettid();
            let mut watchdog = ptr::null_mut();
            assert_eq!(
                libc::timer_create(
                    libc::CLOCK_THREAD_CPUTIME_ID,
                    &raw mut event,
                    &raw mut watchdog
                ),
                0,
                "timer_create"
            );
            let tick = libc::timespec {
                tv_sec: 0,
                tv_nsec: WATCHDOG,
            };
            let times = libc::itimerspec {
                it_interval: tick,
                it_value: tick,
            };
            assert_eq!(
                libc::timer_settime(watchdog, 0, &raw const times, ptr::null_mut()),
                0,
                "timer_settime"
            );
            let file = libc::memfd_create(c"differential".as_ptr(), 0);
            assert!(file >= 0, "memfd_create");
            assert_eq!(
                libc::ftruncate(file, (CODE_LEN + DATA_LEN) as libc::off_t),
                0,
                "ftruncate"
            );
            let map = |address: u64, len: usize, prot, offset: usize| {
                let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
                // Populated: the error code of a page that is there, but was never touched, would say that it is not.
                let flags = libc::MAP_SHARED | libc::MAP_POPULATE | fixed;
                let at = libc::mmap(
                    address as *mut c_void,
                    len,
                    prot,
                    flags,
                    file,
                    offset as libc::off_t,
                );
                assert_ne!(at, libc::MAP_FAILED, "mmap");
                at.cast::<u8>()
            };
            let code = map(
                0,
                CODE_LEN + DATA_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                0,
            );
            map(CODE, CODE_LEN, libc::PROT_READ | libc::PROT_EXEC, 0);
            map(DATA, DATA_RW, libc::PROT_READ | libc::PROT_WRITE, CODE_LEN);
            map(
                DATA + DATA_RW as u64,
                DATA_LEN - DATA_RW,
                libc::PROT_READ,
                CODE_LEN + DATA_RW,
            );
            libc::close(file);
            ptr::write_bytes(code, 0xcc, CODE_LEN);
            Self {
                code,
                data: code.add(CODE_LEN),
                watchdog,
                _alt_stack: alt_stack,
                _guard: guard,
            }
        }
    }

    /// Runs a case that sets TF to its end: the addresses behind each trap, and how it has ended.
    pub fn step(&mut self, case: &Case) -> (Vec<u64>, Outcome) {
        STEPS.store(0, Ordering::SeqCst);
        STEPPING.store(true, Ordering::SeqCst);
        let outcome = self.run(case);
        STEPPING.store(false, Ordering::SeqCst);
        let count = STEPS.load(Ordering::SeqCst).min(MAX_STEPS);
        let steps = STEPPED[..count].iter();
        (
            steps.map(|step| step.load(Ordering::SeqCst)).collect(),
            outcome,
        )
    }

    /// Runs a case to its end.
    pub fn run(&mut self, case: &Case) -> Outcome {
        self.run_as(case, USER_CODE)
    }

    /// The same in 32-bit code.
    pub fn run_32(&mut self, case: &Case) -> Outcome {
        self.run_as(case, USER_CODE_32)
    }

    fn run_as(&mut self, case: &Case, cs: u64) -> Outcome {
        // SAFETY: the mappings are as long as what is copied, the case's code is shorter than its page, and nothing else
        // uses CONTEXT while `_guard` is held. The case's code can only reach memory through its own registers, which are
        // set up so that it finds its own pages or nothing: this process has no other mapping within reach of them.
        unsafe {
            let (code, at) = (case.present(), self.code.add(case.offset));
            ptr::copy_nonoverlapping(code.as_ptr(), at, code.len());
            ptr::copy_nonoverlapping(case.data.as_ptr(), self.data, DATA_LEN);
            let context = &raw mut CONTEXT;
            (*context).fx = case.fx;
            (*context).regs = case.regs;
            (*context).rflags = case.rflags;
            (*context).target = case.start();
            (*context).cs = cs;
            CASES.fetch_add(1, Ordering::SeqCst);
            RUNNING.store(true, Ordering::SeqCst);
            enter();
            RUNNING.store(false, Ordering::SeqCst);
            ptr::write_bytes(at, 0xcc, code.len());
            let mut data = Box::<[u8; DATA_LEN]>::new_uninit();
            ptr::copy_nonoverlapping(self.data, data.as_mut_ptr().cast::<u8>(), DATA_LEN);
            Outcome {
                vector: (*context).vector as u8,
                error: (*context).error as u32,
                address: (*context).address,
                rip: (*context).target,
                regs: (*context).regs,
                rflags: (*context).rflags,
                fx: (*context).fx,
                data: data.assume_init(),
                note: String::new(),
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's own. The mappings stay, for the next `Native` to replace.
        unsafe { libc::timer_delete(self.watchdog) };
    }
}

/// Loads CONTEXT and jumps to its target. Returns when [`handler`] sends the thread to [`leave`].
#[unsafe(naked)]
extern "C" fn enter() {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {context} + {host_rsp}], rsp",
        "fxrstor64 [rip + {context} + {fx}]",
        // In 64-bit code these two mean nothing.
        "mov eax, {data}",
        "mov ds, eax",
        "mov es, eax",
        "push {data}",
        "push qword ptr [rip + {context} + {regs} + 32]",
        "push qword ptr [rip + {context} + {rflags}]",
        "push qword ptr [rip + {context} + {cs}]",
        "push qword ptr [rip + {context} + {target}]",
        "mov rax, [rip + {context} + {regs}]",
        "mov rcx, [rip + {context} + {regs} + 8]",
        "mov rdx, [rip + {context} + {regs} + 16]",
        "mov rbx, [rip + {context} + {regs} + 24]",
        "mov rbp, [rip + {context} + {regs} + 40]",
        "mov rsi, [rip + {context} + {regs} + 48]",
        "mov rdi, [rip + {context} + {regs} + 56]",
        "mov r8, [rip + {context} + {regs} + 64]",
        "mov r9, [rip + {context} + {regs} + 72]",
        "mov r10, [rip + {context} + {regs} + 80]",
        "mov r11, [rip + {context} + {regs} + 88]",
        "mov r12, [rip + {context} + {regs} + 96]",
        "mov r13, [rip + {context} + {regs} + 104]",
        "mov r14, [rip + {context} + {regs} + 112]",
        "mov r15, [rip + {context} + {regs} + 120]",
        // With TF, the trap comes behind the first instruction of the case.
        "iretq",
        data = const USER_DATA,
        cs = const offset_of!(Context, cs),
        context = sym CONTEXT,
        host_rsp = const offset_of!(Context, host_rsp),
        fx = const offset_of!(Context, fx),
        rflags = const offset_of!(Context, rflags),
        regs = const offset_of!(Context, regs),
        target = const offset_of!(Context, target),
    )
}

/// The end of [`enter`].
#[unsafe(naked)]
extern "C" fn leave() {
    naked_asm!(
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret"
    )
}

/// Copies the interrupted case's context, and makes the thread return from [`enter`] with units in their usual state.
extern "C" fn handler(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    if signal == libc::SIGVTALRM {
        let case = CASES.load(Ordering::SeqCst);
        if CASES_BEFORE.swap(case, Ordering::SeqCst) != case || !RUNNING.load(Ordering::SeqCst) {
            return;
        }
    } else if !RUNNING.load(Ordering::SeqCst) {
        // SAFETY: the default action ends the process when the instruction is repeated.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel hands over a valid context with floating point state; the thread is in a case, so that nothing else
    // uses CONTEXT, and `host_rsp` is where `enter` left its stack.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let gregs = &mut machine.gregs;
        if STEPPING.load(Ordering::SeqCst) && gregs[libc::REG_TRAPNO as usize] == DEBUG {
            let count = STEPS.fetch_add(1, Ordering::SeqCst);
            if let Some(step) = STEPPED.get(count) {
                step.store(gregs[libc::REG_RIP as usize] as u64, Ordering::SeqCst);
                // On with it: the context that the kernel goes back to has TF still set.
                return;
            }
        }
        let out = &raw mut CONTEXT;
        for (reg, from) in GREGS.iter().enumerate() {
            (*out).regs[reg] = gregs[*from as usize] as u64;
        }
        (*out).target = gregs[libc::REG_RIP as usize] as u64;
        (*out).rflags = gregs[libc::REG_EFL as usize] as u64;
        (*out).vector = gregs[libc::REG_TRAPNO as usize] as u64;
        if signal == libc::SIGVTALRM {
            (*out).vector = ENDLESS.into();
        }
        (*out).error = gregs[libc::REG_ERR as usize] as u64;
        (*out).address = gregs[libc::REG_CR2 as usize] as u64;
        let fx = machine.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(fx, (&raw mut (*out).fx).cast(), 512);
        let mut clean = [0_u8; 32];
        clean[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        clean[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        clean[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        ptr::copy_nonoverlapping(clean.as_ptr(), fx, clean.len());
        // A case in 32-bit code has left its own selector there.
        let segments = gregs[libc::REG_CSGSFS as usize] as u64 & 0x0000_ffff_ffff_0000;
        gregs[libc::REG_CSGSFS as usize] = (segments | USER_CODE | USER_DATA << 48) as i64;
        gregs[libc::REG_EFL as usize] = 0x202;
        gregs[libc::REG_RSP as usize] = (*out).host_rsp as i64;
        gregs[libc::REG_RIP as usize] = leave as *const () as i64;
    }
}
