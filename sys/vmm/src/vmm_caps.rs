//! `svm_setcap` and `svm_getcap` of `sys/amd64/vmm/amd/svm.c`: optional behaviour of a virtual CPU.

use vmm_abi::*;
use vmm_cpu::{Reg, Traps, flag};

use crate::errno::Errno;
use crate::vcpu::Core;

/// What is set from the start. The kernel has the guest halt inside; that RDTSCP and its kin exist is up to the
/// processor there, and to userland here.
pub const INITIAL: [i32; 4] = [
    VM_CAP_UNRESTRICTED_GUEST,
    VM_CAP_ENABLE_INVPCID,
    VM_CAP_RDPID,
    VM_CAP_RDTSCP,
];

impl Core {
    /// `VM_SET_CAPABILITY`: `EINVAL` for a capability that does not exist, or one that cannot be taken away.
    pub fn set_capability(&mut self, cap: i32, value: bool) -> Result<(), Errno> {
        if cap == VM_CAP_UNRESTRICTED_GUEST && !value {
            return Err(Errno::EINVAL);
        }
        let index = usize::try_from(cap).map_err(|_| Errno::EINVAL)?;
        let old = std::mem::replace(self.side.caps.get_mut(index).ok_or(Errno::EINVAL)?, value);
        if cap == VM_CAP_RFLAGS_TF && old != value {
            self.step_with_tf(value);
        }
        self.apply_caps();
        Ok(())
    }

    /// `VM_GET_CAPABILITY`.
    pub fn capability(&self, cap: i32) -> Result<bool, Errno> {
        let index = usize::try_from(cap).map_err(|_| Errno::EINVAL)?;
        self.side.caps.get(index).copied().ok_or(Errno::EINVAL)
    }

    /// Tells the processor what it has to leave the guest for.
    pub fn apply_caps(&mut self) {
        self.cpu.set_traps(Traps {
            pause: self.side.cap(VM_CAP_PAUSE_EXIT),
            step: self.side.cap(VM_CAP_MTRAP_EXIT) || self.side.cap(VM_CAP_RFLAGS_TF),
            breakpoint: self.side.cap(VM_CAP_BPT_EXIT),
            debug: false,
        });
    }

    fn step_with_tf(&mut self, on: bool) {
        let rflags = self.cpu.get(Reg::Rflags);
        if on {
            self.side.tf_shadow = rflags & flag::TF != 0;
            self.cpu.set(Reg::Rflags, rflags & !flag::TF);
        } else if self.side.tf_shadow {
            self.cpu.set(Reg::Rflags, rflags | flag::TF);
        }
    }
}
