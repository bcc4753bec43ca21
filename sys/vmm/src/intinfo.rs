// SPDX-License-Identifier: BSD-2-Clause

//! Events on their way into the guest: `VM_INTINFO_*` and the rules for two at once (`vm_entry_intinfo` of
//! `sys/amd64/vmm/vmm.c`).

use vmm_abi::*;
use vmm_cpu::Pending;
use vmm_x86::segments::{IDT_DE, IDT_DF, IDT_GP, IDT_NMI, IDT_NP, IDT_PF, IDT_SS, IDT_TS, NRSVIDT};

use crate::errno::Errno;
use crate::vcpu::{Core, Exception};

/// An event in the ABI's form; 0 if there is none.
pub fn encode(event: Option<Pending>) -> u64 {
    let (kind, vector, error) = match event {
        None => return 0,
        Some(Pending::Exception { vector, error }) => (VM_INTINFO_HWEXCEPTION, vector, error),
        Some(Pending::Interrupt(vector)) => (VM_INTINFO_HWINTR, vector, None),
        Some(Pending::Nmi) => (VM_INTINFO_NMI, IDT_NMI, None),
        Some(Pending::Software { vector, .. }) => (VM_INTINFO_SWINTR, vector, None),
    };
    let error = error.map_or(0, |error| VM_INTINFO_DEL_ERRCODE | u64::from(error) << 32);
    VM_INTINFO_VALID | kind | u64::from(vector) | error
}

/// The event that an ABI word describes; `EINVAL` as `vm_exit_intinfo`.
pub fn decode(info: u64) -> Result<Option<Pending>, Errno> {
    if info & VM_INTINFO_VALID == 0 {
        return Ok(None);
    }
    if info & VM_INTINFO_RSVD != 0 {
        return Err(Errno::EINVAL);
    }
    let vector = (info & VM_INTINFO_VECTOR) as u8;
    let error = (info & VM_INTINFO_DEL_ERRCODE != 0).then_some((info >> 32) as u32);
    match info & VM_INTINFO_TYPE {
        VM_INTINFO_NMI if vector == IDT_NMI => Ok(Some(Pending::Nmi)),
        VM_INTINFO_HWEXCEPTION if vector < NRSVIDT => {
            Ok(Some(Pending::Exception { vector, error }))
        }
        VM_INTINFO_HWINTR => Ok(Some(Pending::Interrupt(vector))),
        // The instruction is still at RIP, and is executed again rather than skipped.
        VM_INTINFO_SWINTR => Ok(Some(Pending::Software { vector, len: 0 })),
        _ => Err(Errno::EINVAL),
    }
}

fn contributory(vector: u8) -> bool {
    matches!(vector, IDT_DE | IDT_TS | IDT_NP | IDT_SS | IDT_GP)
}

/// What an exception becomes while another event is being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nested {
    /// This is delivered.
    Deliver(Pending),
    /// The processor shuts down.
    TripleFault,
}

/// `nested_fault`: `first` was being delivered when `second` was raised.
pub fn nested(first: Option<Pending>, second: Exception) -> Nested {
    let Exception { vector, error } = second;
    if let Some(Pending::Exception { vector: first, .. }) = first {
        if first == IDT_DF {
            return Nested::TripleFault;
        }
        let benign = !contributory(vector) && vector != IDT_PF;
        if contributory(first) && contributory(vector) || first == IDT_PF && !benign {
            return Nested::Deliver(Pending::Exception {
                vector: IDT_DF,
                error: Some(0),
            });
        }
    }
    // Whatever was being delivered is raised again by the instruction or the controller it came from.
    Nested::Deliver(Pending::Exception { vector, error })
}

impl Core {
    /// `VM_GET_INTINFO`: the event whose delivery was interrupted, and the exception that is pending.
    pub fn intinfo(&self) -> (u64, u64) {
        let first = match self.side.exit_intinfo {
            0 => encode(self.cpu.pending()),
            info => info,
        };
        let second = self
            .side
            .exception
            .map(|Exception { vector, error }| Pending::Exception { vector, error });
        (first, encode(second))
    }

    /// `VM_SET_INTINFO`.
    pub fn set_intinfo(&mut self, info: u64) -> Result<(), Errno> {
        decode(info)?;
        self.side.exit_intinfo = if info & VM_INTINFO_VALID != 0 {
            info
        } else {
            0
        };
        self.cpu.set_pending(None);
        Ok(())
    }

    /// `svm_save_intinfo`: a nested page fault has interrupted the delivery of an event, which is to be repeated. svm(4) forgets
    /// how long the instruction was that raised it, so that it will return to that instruction and not behind it.
    pub fn save_intinfo(&mut self) {
        let event = self.cpu.pending();
        if event.is_some() {
            self.side.exit_intinfo = encode(event);
            self.cpu.set_pending(None);
        }
    }

    /// Hands what waits to the processor; it is delivered before the next instruction. False for a triple fault.
    #[must_use]
    pub fn enter_events(&mut self) -> bool {
        let info = std::mem::take(&mut self.side.exit_intinfo);
        // What is stored was checked when it was set.
        let first = decode(info).unwrap_or(None).or(self.cpu.pending());
        let event = match self.side.exception.take() {
            None => first,
            Some(exception) => match nested(first, exception) {
                Nested::Deliver(event) => Some(event),
                Nested::TripleFault => return false,
            },
        };
        self.cpu.set_pending(event);
        true
    }

    /// `vm_inject_exception`.
    pub fn inject_exception(
        &mut self,
        vector: i32,
        error: Option<u32>,
        restart: bool,
    ) -> Result<(), Errno> {
        let vector = u8::try_from(vector).map_err(|_| Errno::EINVAL)?;
        if vector >= NRSVIDT || vector == IDT_DF {
            return Err(Errno::EINVAL);
        }
        if self.side.exception.is_some() {
            return Err(Errno::EBUSY);
        }
        let protected = self.cpu.get(vmm_cpu::Reg::Cr0) & vmm_cpu::cr0::PE != 0;
        self.side.exception = Some(Exception {
            vector,
            error: error.filter(|_| protected),
        });
        // The exception ends an interrupt shadow, as the hardware would have done.
        self.cpu.set_interrupt_shadow(false);
        if restart {
            self.restart_instruction();
        }
        Ok(())
    }

    /// `vm_restart_instruction`: the guest goes on with the instruction that it is at.
    pub fn restart_instruction(&mut self) {
        self.side.next_rip = self.cpu.get(vmm_cpu::Reg::Rip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(vector: u8, error: Option<u32>) -> Option<Pending> {
        Some(Pending::Exception { vector, error })
    }

    #[test]
    fn words_and_events() {
        for event in [
            exception(14, Some(3)),
            exception(3, None),
            Some(Pending::Nmi),
            Some(Pending::Interrupt(0xec)),
        ] {
            assert_eq!(decode(encode(event)), Ok(event));
        }
        assert_eq!(
            decode(VM_INTINFO_VALID | VM_INTINFO_NMI | 3),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            decode(VM_INTINFO_VALID | VM_INTINFO_HWEXCEPTION | 32),
            Err(Errno::EINVAL)
        );
        assert_eq!(decode(VM_INTINFO_VALID | 0x1000), Err(Errno::EINVAL));
        assert_eq!(decode(0x20), Ok(None));
    }

    #[test]
    fn nested_exceptions() {
        let gp = Exception {
            vector: 13,
            error: Some(0),
        };
        let pf = Exception {
            vector: 14,
            error: Some(2),
        };
        let db = Exception {
            vector: 1,
            error: None,
        };
        let double = Nested::Deliver(Pending::Exception {
            vector: 8,
            error: Some(0),
        });
        assert_eq!(nested(exception(13, Some(0)), gp), double);
        assert_eq!(nested(exception(14, Some(0)), pf), double);
        assert_eq!(nested(exception(14, Some(0)), gp), double);
        assert_eq!(
            nested(exception(13, Some(0)), pf),
            Nested::Deliver(exception(14, Some(2)).unwrap())
        );
        assert_eq!(
            nested(exception(14, Some(0)), db),
            Nested::Deliver(exception(1, None).unwrap())
        );
        assert_eq!(nested(exception(8, Some(0)), db), Nested::TripleFault);
        assert_eq!(
            nested(Some(Pending::Interrupt(32)), pf),
            Nested::Deliver(exception(14, Some(2)).unwrap())
        );
    }
}
