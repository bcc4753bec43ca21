// SPDX-License-Identifier: BSD-2-Clause

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

/// What svm(4) does not know, although the software vmm does.
const NOT_OF_SVM: [i32; 4] = [
    VM_CAP_MTRAP_EXIT,
    VM_CAP_ENABLE_INVPCID,
    VM_CAP_RDPID,
    VM_CAP_RDTSCP,
];

/// `ENOENT` for a capability that is not there, if there is an [`Options::as_kernel`](crate::Options::as_kernel).
pub fn check(cap: i32, as_kernel: bool) -> Result<(), Errno> {
    if as_kernel && NOT_OF_SVM.contains(&cap) {
        return Err(Errno::ENOENT);
    }
    Ok(())
}

/// PUSHF and POPF are intercepted while RFLAGS.TF steps a virtual CPU, since they show it and change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// PUSHF: the image on the stack has the bit that is not the guest's.
    Pushf,
    /// POPF: the bit is the guest's now.
    Popf,
    /// Anything else.
    Other,
}

impl Core {
    /// `VM_SET_CAPABILITY`: `EINVAL` for a capability that does not exist, or one that cannot be taken away.
    pub fn set_capability(&mut self, cap: i32, value: bool) -> Result<(), Errno> {
        if cap == VM_CAP_UNRESTRICTED_GUEST && !value {
            return Err(Errno::EINVAL);
        }
        let index = usize::try_from(cap).map_err(|_| Errno::EINVAL)?;
        let old = std::mem::replace(self.side.caps.get_mut(index).ok_or(Errno::EINVAL)?, value);
        if cap == VM_CAP_RFLAGS_TF {
            self.step_with_tf(old, value);
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
            step: self.side.cap(VM_CAP_MTRAP_EXIT),
            breakpoint: self.side.cap(VM_CAP_BPT_EXIT),
            debug: self.side.cap(VM_CAP_RFLAGS_TF),
        });
    }

    /// The bit is set behind the guest's back. As in the kernel, it is taken for the guest's when it is asked for twice.
    fn step_with_tf(&mut self, old: bool, on: bool) {
        let rflags = self.cpu.get(Reg::Rflags);
        if on {
            self.side.tf_shadow = rflags & flag::TF != 0;
            self.cpu.set(Reg::Rflags, rflags | flag::TF);
        } else if old {
            let own = if std::mem::take(&mut self.side.tf_shadow) {
                flag::TF
            } else {
                0
            };
            self.cpu.set(Reg::Rflags, rflags & !flag::TF | own);
        }
    }

    /// Which instruction was at `before`, if the one behind it is next.
    pub fn stepped(&mut self, before: u64) -> Stepped {
        const PUSHF: u8 = 0x9c;
        const POPF: u8 = 0x9d;
        let len = self.cpu.get(Reg::Rip).wrapping_sub(before);
        let mut bytes = [0; 3];
        let Some(bytes) = usize::try_from(len)
            .ok()
            .and_then(|len| bytes.get_mut(..len))
        else {
            return Stepped::Other;
        };
        self.cpu.read_code(before, bytes);
        let Some((opcode, prefixes)) = bytes.split_last() else {
            return Stepped::Other;
        };
        // The operand size, and REX.
        let plain = prefixes
            .iter()
            .all(|byte| matches!(byte, 0x66 | 0x40..=0x4f));
        match *opcode {
            PUSHF if plain => Stepped::Pushf,
            POPF if plain => Stepped::Popf,
            _ => Stepped::Other,
        }
    }
}
