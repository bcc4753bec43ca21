// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/vmm/intel/vmcs.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.

//! What waits for a processor when it rests, and where each vendor's half of vmm(4) has it (`sys/amd64/vmm/intel/vmx.c`,
//! `amd/svm.c`). FreeBSD's checkpoints do not look there.
//!
//! On Intel's processors VM_RUN prepares the delivery of an event before it finds that the processor is to rest. The event is
//! then in the VMCS alone, where the next VM entry will take it from. A register number that is negative reads a field.

use super::{Event, GuestError};
use crate::amd64::xmsr::Vendor;
use crate::checkpoint::stub::Waiting;
use vmmapi::Vcpu;
use vmmapi::abi::*;

/// Makes a register number of the number of a VMCS field.
const FIELD: u32 = 0x8000_0000;
const ENTRY_INTR_INFO: u32 = 0x4016;
const ENTRY_EXCEPTION_ERROR: u32 = 0x4018;
const ENTRY_INST_LENGTH: u32 = 0x401a;
const ACTIVITY: u32 = 0x4826;
const CR0_MASK: u32 = 0x6000;
const CR4_MASK: u32 = 0x6002;
const CR0_SHADOW: u32 = 0x6004;
const CR4_SHADOW: u32 = 0x6006;
/// [`ACTIVITY`] of a processor that HLT has stopped, if the vmm lets it.
const HALTED: u64 = 1;
/// The exception that ends that state.
const DEBUG_EXCEPTION: u8 = 1;
/// Type bits of an event that an instruction has raised: INT n, INT1, and INT3 or INTO.
const SOFTWARE: [u64; 3] = [0x400, 0x500, 0x600];

/// A processor, before it enters the stub.
pub struct Entry {
    rip: u64,
    /// The event whose delivery was interrupted (`VM_INTINFO_*`).
    interrupted: u64,
    /// The exception that waits, likewise.
    exception: u64,
    /// The event that the next VM entry delivers, likewise, and the length of the instruction that has raised it.
    prepared: (u64, u64),
    /// It would not execute anything.
    halted: bool,
    /// CR0 and CR4 as the guest sees them, if not as the vmm tells.
    control: Option<(u64, u64)>,
}

/// Whether there is an event.
fn is_valid(info: u64) -> bool {
    info & VM_INTINFO_VALID != 0
}

fn field(vcpu: &Vcpu, number: u32) -> Result<u64, vmmapi::Error> {
    vcpu.get_register((FIELD | number) as i32)
}

/// An event as the VMCS has it, in the form of VM_SET_INTINFO: that has the same bits, but for one, and the error code.
fn prepared(vcpu: &Vcpu) -> Result<(u64, u64), vmmapi::Error> {
    let info = field(vcpu, ENTRY_INTR_INFO)?;
    if !is_valid(info) {
        return Ok((0, 0));
    }
    let error = if info & VM_INTINFO_DEL_ERRCODE != 0 {
        field(vcpu, ENTRY_EXCEPTION_ERROR)? << 32
    } else {
        0
    };
    let kept = VM_INTINFO_VALID | VM_INTINFO_DEL_ERRCODE | VM_INTINFO_TYPE | VM_INTINFO_VECTOR;
    let length = if SOFTWARE.contains(&(info & VM_INTINFO_TYPE)) {
        field(vcpu, ENTRY_INST_LENGTH)?
    } else {
        0
    };
    Ok((info & kept | error, length))
}

/// A control register as the guest sees it: of the bits that the vmm owns, what the guest has written.
fn seen(vcpu: &Vcpu, register: i32, mask: u32, shadow: u32) -> Result<u64, vmmapi::Error> {
    let (mask, shadow) = (field(vcpu, mask)?, field(vcpu, shadow)?);
    Ok(vcpu.get_register(register)? & !mask | shadow & mask)
}

impl Entry {
    /// What there is of `vcpu`, which rests.
    pub fn of(vcpu: &Vcpu, vendor: Vendor) -> Result<Self, GuestError> {
        let (interrupted, exception) = vcpu.get_intinfo()?;
        let (prepared, activity, control) = match vendor {
            Vendor::Amd => ((0, 0), 0, None),
            Vendor::Intel => {
                let cr0 = seen(vcpu, VM_REG_GUEST_CR0, CR0_MASK, CR0_SHADOW)?;
                let cr4 = seen(vcpu, VM_REG_GUEST_CR4, CR4_MASK, CR4_SHADOW)?;
                (prepared(vcpu)?, field(vcpu, ACTIVITY)?, Some((cr0, cr4)))
            }
        };
        let comes_out = is_valid(exception) || is_valid(prepared.0);
        Ok(Self {
            halted: activity == HALTED && !comes_out,
            rip: vcpu.get_register(VM_REG_GUEST_RIP)?,
            interrupted,
            exception,
            prepared,
            control,
        })
    }

    /// Makes the processor ready for the stub: nothing waits but what the stub can tell.
    pub fn leave(&self, vcpu: &Vcpu) -> Result<(), GuestError> {
        vcpu.set_intinfo(0)?;
        if self.halted {
            // The stub takes it; `vmcx` has the processor halted again.
            vcpu.inject_exception(DEBUG_EXCEPTION.into(), None, false)?;
        }
        Ok(())
    }

    /// What the stub has to know.
    pub fn waiting(&self) -> Waiting {
        let (info, length) = self.prepared;
        Waiting {
            interrupt: is_valid(info) && info & VM_INTINFO_TYPE == VM_INTINFO_HWINTR,
            length,
        }
    }

    /// Whether an event of this vector may be delivered into the stub.
    pub fn expects(&self, vector: u8) -> bool {
        let mut known = [self.exception, self.prepared.0].into_iter();
        known.any(|info| is_valid(info) && info & VM_INTINFO_VECTOR == u64::from(vector))
            || self.halted && vector == DEBUG_EXCEPTION
    }

    /// What waits beside what [`Entry::put_back`] sees to.
    pub fn event(&self, nmi: bool) -> Event {
        let error = |info: u64| (info & VM_INTINFO_DEL_ERRCODE != 0).then_some((info >> 32) as u32);
        let exception = is_valid(self.exception).then(|| {
            (
                (self.exception & VM_INTINFO_VECTOR) as u8,
                error(self.exception),
            )
        });
        Event {
            nmi,
            exception,
            control: self.control,
        }
    }

    /// After the registers are back: where VM_RUN goes on, and with what. That is in `vm` from now on.
    pub fn put_back(&self, vcpu: &Vcpu) -> Result<(), GuestError> {
        vcpu.set_register(VM_REG_GUEST_RIP, self.rip)?;
        // One that an instruction has raised need not come back: the instruction is executed again.
        let (info, length) = self.prepared;
        let info = if is_valid(info) && length == 0 {
            info
        } else {
            self.interrupted
        };
        vcpu.set_intinfo(info)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::collections::HashMap;
    use std::ops::Range;
    use std::sync::Arc;
    use vmmapi::backend::{Backend, HostMapping, Kind};
    use vmmapi::{Errno, Vm};
    use zerocopy::FromBytes;

    /// A kernel on an Intel host whose processor is at rest with these registers and VMCS fields.
    #[derive(Default)]
    struct Intel {
        registers: HashMap<i32, u64>,
        exception: u64,
        said: Arc<Mutex<Vec<String>>>,
    }

    impl Backend for Intel {
        fn kind(&self) -> Kind {
            Kind::Kernel
        }
        fn ioctl(&self, request: u64, arg: &mut [u8], _: &mut [&mut [u8]]) -> Result<(), Errno> {
            let say = |text| self.said.lock().push(text);
            match request {
                VM_GET_REGISTER => {
                    let register = VmRegister::mut_from_bytes(arg).unwrap();
                    let value = self.registers.get(&register.regnum).copied();
                    register.regval = value.unwrap_or(0);
                }
                VM_GET_INTINFO => {
                    VmIntinfo::mut_from_bytes(arg).unwrap().info2 = self.exception;
                }
                VM_SET_INTINFO => {
                    let info = VmIntinfo::read_from_bytes(arg).unwrap();
                    say(format!("info {:#x}", info.info1));
                }
                VM_INJECT_EXCEPTION => {
                    let exception = VmException::read_from_bytes(arg).unwrap();
                    say(format!("exception {}", exception.vector));
                }
                VM_SET_REGISTER => {
                    let register = VmRegister::read_from_bytes(arg).unwrap();
                    say(format!(
                        "register {} {:#x}",
                        register.regnum, register.regval
                    ));
                }
                _ => return Err(Errno::ENOTTY),
            }
            Ok(())
        }
        fn map_sysmem(&self, _: u64, _: u64) -> Result<HostMapping, Errno> {
            Err(Errno::EINVAL)
        }
        fn map_devmem(&self, _: &str, _: u64) -> Result<HostMapping, Errno> {
            Err(Errno::EINVAL)
        }
        fn memory_written(&self, _: u64, _: u64) {}
        fn populated(&self, _: u64, _: u64) -> Result<Vec<Range<u64>>, Errno> {
            Err(Errno::EINVAL)
        }
        fn tsc_hz(&self) -> Option<u64> {
            None
        }
        fn destroy(&self) -> Result<(), Errno> {
            Ok(())
        }
    }

    /// What such a processor has, and what is said to the vmm before and after the stub.
    fn at_rest(fields: &[(u32, u64)], exception: u64) -> (Entry, Vec<String>) {
        let mut registers = HashMap::from([
            (VM_REG_GUEST_RIP, 0x1000),
            (VM_REG_GUEST_CR0, 0x8005_0031),
            (VM_REG_GUEST_CR4, 0x2020),
        ]);
        registers.extend(
            fields
                .iter()
                .map(|(number, value)| ((FIELD | number) as i32, *value)),
        );
        let said = Arc::<Mutex<Vec<String>>>::default();
        let backend = Intel {
            registers,
            exception,
            said: Arc::clone(&said),
        };
        let vcpu = Vm::with_backend("intel", Arc::new(backend)).vcpu(0);
        let entry = Entry::of(&vcpu, Vendor::Intel).unwrap();
        entry.leave(&vcpu).unwrap();
        entry.put_back(&vcpu).unwrap();
        let said = said.lock().clone();
        (entry, said)
    }

    #[test]
    fn what_the_vmcs_delivers_next_is_kept() {
        // An interrupt that has been accepted can only be delivered with interrupts enabled.
        let (entry, said) = at_rest(&[(ENTRY_INTR_INFO, 0x8000_00ec)], 0);
        assert!(entry.waiting().interrupt && entry.expects(0xec) && !entry.expects(1));
        assert_eq!(said, ["info 0x0", "register 20 0x1000", "info 0x800000ec"]);
        // An exception with an error code. The bit that says that an IRET was interrupted is not one of VM_SET_INTINFO's.
        let fields = [(ENTRY_INTR_INFO, 0x8000_1b0e), (ENTRY_EXCEPTION_ERROR, 5)];
        let (entry, said) = at_rest(&fields, 0);
        assert!(!entry.waiting().interrupt && entry.expects(14));
        assert_eq!(said[2], "info 0x580000b0e");
        // INT 0x80 is executed again.
        let fields = [(ENTRY_INTR_INFO, 0x8000_0480), (ENTRY_INST_LENGTH, 2)];
        let (entry, said) = at_rest(&fields, 0);
        assert_eq!(
            entry.waiting(),
            Waiting {
                interrupt: false,
                length: 2
            }
        );
        assert!(entry.expects(0x80));
        assert_eq!(said[2], "info 0x0");
    }

    #[test]
    fn a_halted_processor_is_woken() {
        let (entry, said) = at_rest(&[(ACTIVITY, HALTED)], 0);
        assert!(entry.expects(DEBUG_EXCEPTION) && entry.event(false).exception.is_none());
        assert_eq!(said[1], "exception 1");
        // Not if it wakes by itself.
        let (entry, said) = at_rest(&[(ACTIVITY, HALTED)], 0x8000_030d | VM_INTINFO_DEL_ERRCODE);
        assert!(!entry.expects(DEBUG_EXCEPTION));
        assert_eq!(entry.event(true).exception, Some((13, Some(0))));
        assert!(!said.iter().any(|text| text.starts_with("exception")));
    }

    #[test]
    fn the_guests_view_of_control_registers_is_kept() {
        // VMXE is the host's; the guest has turned caches off.
        let fields = [
            (CR0_MASK, 0x6000_0020),
            (CR0_SHADOW, 0x6000_0000),
            (CR4_MASK, 0x2000),
        ];
        let (entry, _) = at_rest(&fields, 0);
        assert_eq!(entry.event(false).control, Some((0xe005_0011, 0x20)));
    }
}
