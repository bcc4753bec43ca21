//! `sys/amd64/vmm/vmm_stat.c`: what is counted for every virtual CPU.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($name:ident $text:literal,)*) => {
        /// A counter. Its number is what `VM_STAT_DESC` is asked with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Stat {
            $(#[doc = $text] $name,)*
        }

        const DESCRIPTIONS: &[&str] = &[$($text,)*];
    };
}

stats! {
    Exits "total number of vm exits",
    Hlt "number of times hlt was intercepted",
    Rdmsr "number of times rdmsr was intercepted",
    Wrmsr "number of times wrmsr was intercepted",
    Mtrap "number of monitor trap exits",
    Pause "number of times pause was intercepted",
    InOut "number of times in/out was intercepted",
    Cpuid "number of times cpuid was intercepted",
    NestedFault "vm exits due to nested page fault",
    InstEmul "vm exits for instruction emulation",
    ReqIdle "number of times idle requested at exit",
    Userspace "number of vm exits handled in userspace",
    Exception "number of vm exits due to exceptions",
    Runtime "vcpu total runtime",
    IdleTicks "number of ticks vcpu was idle",
    Nmi "number of NMIs delivered to vcpu",
    ExtInt "number of ExtINTs delivered to vcpu",
    Resident "Resident memory",
    Wired "Wired memory",
}

/// Number of counters.
pub const COUNT: usize = DESCRIPTIONS.len();

/// The description of a counter by its number.
pub fn describe(index: i32) -> Option<&'static str> {
    DESCRIPTIONS.get(usize::try_from(index).ok()?).copied()
}

/// The counters of one virtual CPU.
#[derive(Debug)]
pub struct Stats([AtomicU64; COUNT]);

impl Default for Stats {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Stats {
    /// Counts one.
    pub fn count(&self, stat: Stat) {
        self.add(stat, 1);
    }

    /// Counts several.
    pub fn add(&self, stat: Stat, amount: u64) {
        if let Some(counter) = self.0.get(stat as usize) {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Stores a value that is measured, not counted.
    pub fn set(&self, stat: Stat, value: u64) {
        if let Some(counter) = self.0.get(stat as usize) {
            counter.store(value, Ordering::Relaxed);
        }
    }

    /// All counters in order.
    pub fn values(&self) -> [u64; COUNT] {
        std::array::from_fn(|n| self.0[n].load(Ordering::Relaxed))
    }
}
