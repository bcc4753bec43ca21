// SPDX-License-Identifier: BSD-2-Clause

//! The processor's outside world: everything that is not guest RAM and not the core's own state goes through [`Bus`].
//!
//! `now` in every call is the number of instructions retired before the one that makes the call (see `Cpu::retired`), so that a
//! clock which advances with retired instructions is exact in the middle of a run.

#![expect(
    unsafe_code,
    reason = "the bus is lent to the processor, by address, while it executes"
)]

/// The answer to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<T> {
    /// Handled; for a read, the value.
    Done(T),
    /// Not handled here: the core leaves `Cpu::run` with the matching exit, no architectural state changed.
    Exit,
    /// The access is illegal: #GP(0). Meaningful for MSRs; for MMIO and ports the core treats it as `Exit`.
    Fault,
}

/// An asynchronous event that the bus hands over for immediate delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A non-maskable interrupt.
    Nmi,
    /// An external interrupt with this vector, already acknowledged at its controller.
    Interrupt(u8),
}

/// What the core could take right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// RFLAGS.IF is set and there is no interrupt shadow.
    pub interrupt: bool,
    /// NMIs are not blocked and there is no `mov ss` shadow.
    pub nmi: bool,
}

/// The answer of [`Bus::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Nothing pending; poll again only after the attention flag was raised.
    Nothing,
    /// Something is pending that the window does not admit; the core polls again when the window opens.
    Blocked,
    /// Take this now. It must be admitted by the window, and it is the bus's no longer.
    Event(Event),
    /// Leave `Cpu::run` with `Exit::Attention`.
    Exit,
}

/// The state that CPUID's answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidInputs {
    /// CR4 (OSXSAVE).
    pub cr4: u64,
    /// XCR0 (size of the XSAVE area).
    pub xcr0: u64,
}

/// What the core needs from the machine around it. One per vCPU.
pub trait Bus {
    /// Reads 1, 2, 4 or 8 bytes of guest-physical space that is not RAM.
    fn mmio_read(&mut self, now: u64, gpa: u64, size: u8) -> Reply<u64>;
    /// Writes 1, 2, 4 or 8 bytes of guest-physical space that is not writable RAM.
    fn mmio_write(&mut self, now: u64, gpa: u64, size: u8, value: u64) -> Reply<()>;
    /// IN of 1, 2 or 4 bytes.
    fn in_port(&mut self, now: u64, port: u16, size: u8) -> Reply<u32>;
    /// OUT of 1, 2 or 4 bytes.
    fn out_port(&mut self, now: u64, port: u16, size: u8, value: u32) -> Reply<()>;
    /// RDMSR of an MSR that the core does not own (see `Reg` for the ones it does).
    fn rdmsr(&mut self, now: u64, index: u32) -> Reply<u64>;
    /// WRMSR of an MSR that the core does not own.
    fn wrmsr(&mut self, now: u64, index: u32, value: u64) -> Reply<()>;
    /// CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(&mut self, leaf: u32, subleaf: u32, inputs: CpuidInputs) -> [u32; 4];
    /// The time stamp counter.
    fn tsc(&mut self, now: u64) -> u64;
    /// CR8, the task priority's upper four bits.
    fn cr8(&mut self, now: u64) -> u64;
    /// Sets CR8 (0..=15).
    fn set_cr8(&mut self, now: u64, value: u64);
    /// Asked at an instruction boundary when the attention flag was raised, or when a window opens after `Poll::Blocked`.
    /// Whenever the answer may have changed, raise the flag with `Signals::notify`.
    fn poll(&mut self, now: u64, window: Window) -> Poll;
    /// A random number for RDRAND and RDSEED.
    fn random(&mut self, now: u64) -> u64;
}

/// Holds the bus that `Cpu::run` was given while it runs.
#[derive(Default)]
pub(crate) struct BusSlot(Option<core::ptr::NonNull<dyn Bus>>);

// SAFETY: `Cpu::run` empties the slot in whatever way it ends, so it never moves between threads with anything in it.
unsafe impl Send for BusSlot {}

impl BusSlot {
    /// Remembers `bus` until [`BusSlot::clear`].
    ///
    /// # Safety
    /// `clear` must be called before the borrow of `bus` ends, and `bus` must not be used otherwise in between.
    pub unsafe fn set(&mut self, bus: &mut dyn Bus) {
        let pointer: *mut (dyn Bus + '_) = bus;
        // SAFETY: only the lifetime in the type changes; the caller sees to it that the pointer does not outlive it.
        self.0 = core::ptr::NonNull::new(unsafe {
            core::mem::transmute::<*mut (dyn Bus + '_), *mut (dyn Bus + 'static)>(pointer)
        });
    }

    pub fn clear(&mut self) {
        self.0 = None;
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The bus.
    pub fn get(&mut self) -> &mut dyn Bus {
        match &mut self.0 {
            // SAFETY: the promise made to `set`.
            Some(bus) => unsafe { bus.as_mut() },
            None => unreachable!("instructions run only within Cpu::run"),
        }
    }
}
