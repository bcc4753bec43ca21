// SPDX-License-Identifier: BSD-2-Clause

//! Power management: the fixed registers of ACPI, the SMI command port and the two reset ports
//! (`usr.sbin/bhyve/amd64/pm.c`).

use crate::bus::inout::{Inout, PortHandler};
use crate::device::{BuildError, Device, Persist, SaveError, SavedLayout, StateError};
use crate::machine::irqchip::IrqChip;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;
use vmm_x86::acpi::*;

/// What resets at [`IO_RESET`].
pub const RESET_VALUE: ResetControl = ResetControl::SYS.union(ResetControl::CPU);
/// The value of SLP_TYP that is \_S5.
pub const SLP_TYP_S5: u16 = 5;

/// The last byte of PM1a control.
const PM1_END: u16 = PM1A_CNT_ADDR + 1;

/// Status bits go away when a one is written to them.
const STATUS_CLEARABLE: Pm1Events = Pm1Events::WAK
    .union(Pm1Events::RTC)
    .union(Pm1Events::SLPBTN)
    .union(Pm1Events::PWRBTN)
    .union(Pm1Events::BM);
/// The clock's alarm never sets its status bit, but operating systems check that they can enable it.
const ENABLE_WRITABLE: Pm1Events = Pm1Events::PWRBTN
    .union(Pm1Events::GBL)
    .union(Pm1Events::RTC);
/// BM_RLD is kept and GBL_RLS is not; SLP_EN reads as zero; SCI_EN is the SMI command's.
const CONTROL_STORED: Pm1Control = Pm1Control::SLP_TYP.union(Pm1Control::BM_RLD);

/// What the guest asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Start again.
    Reset,
    /// \_S5.
    PowerOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Registers {
    status: Pm1Events,
    enable: Pm1Events,
    control: Pm1Control,
    reset: ResetControl,
    system_control: SystemControl,
}

/// What a checkpoint keeps.
#[derive(Debug, Serialize, Deserialize)]
pub struct PmState {
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    system_control: u8,
}

impl SavedLayout for PmState {
    const KIND: &'static str = "pm";
    const VERSION: u32 = 1;
}

impl Registers {
    fn sci(&self) -> bool {
        self.control.contains(Pm1Control::SCI_EN)
            && (self.status & self.enable).contains(Pm1Events::PWRBTN)
    }
}

/// The registers and what they do.
pub struct Pm {
    chip: Arc<dyn IrqChip>,
    power: Arc<dyn Fn(PowerRequest) + Send + Sync>,
    registers: Mutex<Registers>,
}

impl Pm {
    /// Registers as at power-on.
    pub fn new(chip: Arc<dyn IrqChip>, power: Arc<dyn Fn(PowerRequest) + Send + Sync>) -> Self {
        Self {
            chip,
            power,
            registers: Mutex::default(),
        }
    }

    /// Makes the registers answer at their ports.
    pub fn register(self: &Arc<Self>, inout: &Inout) -> Result<(), BuildError> {
        let ports = [
            PM1A_EVT_ADDR..=PM1_END,
            SMI_CMD..=SMI_CMD,
            IO_RESET..=IO_RESET,
        ];
        for range in ports.into_iter().chain([IO_SYSCTL..=IO_SYSCTL]) {
            inout
                .register(
                    "power management",
                    range,
                    Arc::clone(self) as Arc<dyn PortHandler>,
                )
                .map_err(|conflict| BuildError::Invalid(conflict.to_string()))?;
        }
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock()
    }

    fn with<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut registers = self.registers();
        let before = registers.sci();
        let result = change(&mut registers);
        let after = registers.sci();
        // Under the lock, so that the controllers see changes in their order.
        match (before, after) {
            (false, true) => self.chip.isa_assert(SCI_INT, Some(SCI_INT)),
            (true, false) => self.chip.isa_deassert(SCI_INT, Some(SCI_INT)),
            _ => {}
        }
        result
    }

    /// Presses the power button. False if the guest has not turned ACPI on and will not notice.
    pub fn power_button(&self) -> bool {
        self.with(|registers| {
            registers.status |= Pm1Events::PWRBTN;
            registers.control.contains(Pm1Control::SCI_EN)
        })
    }

    fn read8(&self, port: u16) -> u8 {
        let registers = self.registers();
        match Port::of(port) {
            Some(Port::Status(half)) => registers.status.bits().to_le_bytes()[half],
            Some(Port::Enable(half)) => registers.enable.bits().to_le_bytes()[half],
            Some(Port::Control(half)) => registers.control.bits().to_le_bytes()[half],
            Some(Port::Reset) => registers.reset.bits(),
            // Nothing here wraps addresses at 1 MiB: gate A20 is always open.
            Some(Port::System) => (registers.system_control | SystemControl::A20).bits(),
            // The SMI command port reads as zero.
            Some(Port::Smi) => 0,
            None => 0xff,
        }
    }

    fn write8(&self, port: u16, value: u8) {
        let request = self.with(|registers| {
            // A byte of a register of 16 bits: its bits, and which they are.
            let word = |half: usize| (u16::from(value) << (8 * half), 0xff << (8 * half));
            match Port::of(port) {
                Some(Port::Status(half)) => {
                    let bits = Pm1Events::from_bits_retain(word(half).0);
                    registers.status.remove(bits & STATUS_CLEARABLE);
                }
                Some(Port::Enable(half)) => {
                    let (bits, mask) = word(half);
                    registers.enable.remove(Pm1Events::from_bits_retain(mask));
                    registers.enable |= Pm1Events::from_bits_retain(bits) & ENABLE_WRITABLE;
                }
                Some(Port::Control(half)) => {
                    let (bits, mask) = word(half);
                    let bits = Pm1Control::from_bits_retain(bits);
                    let mask = Pm1Control::from_bits_retain(mask) & CONTROL_STORED;
                    registers.control.remove(mask);
                    registers.control |= bits & mask;
                    let sleep =
                        (registers.control & Pm1Control::SLP_TYP).bits() >> PM1_SLP_TYP_SHIFT;
                    if bits.contains(Pm1Control::SLP_EN) && sleep == SLP_TYP_S5 {
                        return Some(PowerRequest::PowerOff);
                    }
                }
                Some(Port::Smi) => match value {
                    BHYVE_ACPI_ENABLE => registers.control |= Pm1Control::SCI_EN,
                    BHYVE_ACPI_DISABLE => registers.control.remove(Pm1Control::SCI_EN),
                    _ => {}
                },
                Some(Port::Reset) => {
                    let value = ResetControl::from_bits_retain(value);
                    registers.reset = value - ResetControl::CPU;
                    return value
                        .contains(ResetControl::CPU)
                        .then_some(PowerRequest::Reset);
                }
                Some(Port::System) => {
                    let value = SystemControl::from_bits_retain(value);
                    let old = std::mem::replace(&mut registers.system_control, value);
                    return (value - old)
                        .contains(SystemControl::FAST_RESET)
                        .then_some(PowerRequest::Reset);
                }
                None => {}
            }
            None
        });
        if let Some(request) = request {
            (self.power)(request);
        }
    }
}

/// What is at a port; a register of 16 bits has a byte at each of two.
#[derive(Debug, Clone, Copy)]
enum Port {
    Status(usize),
    Enable(usize),
    Control(usize),
    Smi,
    Reset,
    System,
}

impl Port {
    fn of(port: u16) -> Option<Self> {
        const STATUS_END: u16 = PM1A_EVT_ADDR + 1;
        const ENABLE_END: u16 = PM1A_EN_ADDR + 1;
        let half = usize::from(port & 1);
        Some(match port {
            PM1A_EVT_ADDR..=STATUS_END => Self::Status(half),
            PM1A_EN_ADDR..=ENABLE_END => Self::Enable(half),
            PM1A_CNT_ADDR..=PM1_END => Self::Control(half),
            SMI_CMD => Self::Smi,
            IO_RESET => Self::Reset,
            IO_SYSCTL => Self::System,
            _ => return None,
        })
    }
}

impl PortHandler for Pm {
    fn read(&self, port: u16, size: u8) -> u32 {
        (0..u16::from(size)).fold(0, |value, n| {
            value | u32::from(self.read8(port.wrapping_add(n))) << (n * 8)
        })
    }
    fn write(&self, port: u16, size: u8, value: u32) {
        for n in 0..u16::from(size) {
            let port = port.wrapping_add(n);
            // The sleep bit is in the upper half, so that it comes after the type in one access; a dword at the reset
            // port is the configuration mechanism's business.
            if n == 0 || (PM1A_EVT_ADDR..=PM1_END).contains(&port) {
                self.write8(port, (value >> (n * 8)) as u8);
            }
        }
    }
}

impl Device for Pm {
    fn name(&self) -> &str {
        "pm"
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {
        self.chip.isa_level_triggered(SCI_INT, true);
        self.with(|registers| *registers = Registers::default());
    }
}

impl Persist for Pm {
    type State = PmState;

    fn capture(&self) -> Result<PmState, SaveError> {
        let Self {
            chip: _,
            power: _,
            registers,
        } = self;
        let Registers {
            status,
            enable,
            control,
            reset,
            system_control,
        } = *registers.lock();
        Ok(PmState {
            status: status.bits(),
            enable: enable.bits(),
            control: control.bits(),
            reset: reset.bits(),
            system_control: system_control.bits(),
        })
    }

    fn apply(&self, state: PmState) -> Result<(), StateError> {
        let PmState {
            status,
            enable,
            control,
            reset,
            system_control,
        } = state;
        let registers = Registers {
            status: Pm1Events::from_bits_retain(status),
            enable: Pm1Events::from_bits_retain(enable),
            control: Pm1Control::from_bits_retain(control),
            reset: ResetControl::from_bits_retain(reset),
            system_control: SystemControl::from_bits_retain(system_control),
        };
        let possible = STATUS_CLEARABLE.contains(registers.status)
            && ENABLE_WRITABLE.contains(registers.enable)
            && (CONTROL_STORED | Pm1Control::SCI_EN).contains(registers.control)
            && !registers.reset.contains(ResetControl::CPU);
        if !possible {
            return Err(StateError::Invalid(
                "the power management registers cannot be in the saved state".into(),
            ));
        }
        *self.registers() = registers;
        Ok(())
    }
}

/// Ports that guests write to for the delay, or to show their progress to an engineer: nothing happens there.
pub struct NullPort;

impl NullPort {
    const PORTS: [u16; 3] = [0x80, 0x84, 0xed];

    /// Makes them answer.
    pub fn register(inout: &Inout) -> Result<(), BuildError> {
        let handler: Arc<dyn PortHandler> = Arc::new(Self);
        Self::PORTS.into_iter().try_for_each(|port| {
            inout
                .register("post", port..=port, Arc::clone(&handler))
                .map_err(|conflict| BuildError::Invalid(conflict.to_string()))
        })
    }
}

impl PortHandler for NullPort {
    fn read(&self, _port: u16, size: u8) -> u32 {
        crate::bus::inout::all_ones(size)
    }
    fn write(&self, _port: u16, _size: u8, _value: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Checkpointed, SavedBytes};
    use crate::machine::irqchip::mock::MockChip;
    use proptest::prelude::*;

    type Requests = Arc<Mutex<Vec<PowerRequest>>>;

    fn pm() -> (Arc<Pm>, Arc<MockChip>, Requests) {
        let chip = Arc::new(MockChip::default());
        let requests = Requests::default();
        let log = Arc::clone(&requests);
        let power = Arc::new(move |request| log.lock().push(request));
        (Arc::new(Pm::new(chip.clone(), power)), chip, requests)
    }

    #[test]
    fn power_button() {
        let (pm, chip, _) = pm();
        pm.reset();
        assert_eq!(*chip.level.lock(), [SCI_INT]);
        assert!(!pm.power_button(), "ACPI is off");
        pm.write(PM1A_EVT_ADDR, 2, 0xffff);
        pm.write(SMI_CMD, 1, BHYVE_ACPI_ENABLE.into());
        assert_eq!(pm.read(PM1A_CNT_ADDR, 2), 1);
        pm.write(PM1A_EVT_ADDR + 2, 2, 0xffff);
        assert_eq!(
            pm.read(PM1A_EVT_ADDR + 2, 2),
            u32::from(ENABLE_WRITABLE.bits())
        );
        assert!(pm.power_button());
        assert!(pm.power_button());
        assert_eq!(
            (chip.isa_count(SCI_INT), chip.ioapic_count(SCI_INT)),
            (1, 1)
        );
        assert_eq!(
            pm.read(PM1A_EVT_ADDR, 4),
            u32::from(ENABLE_WRITABLE.bits()) << 16 | 0x100
        );
        pm.write(PM1A_EVT_ADDR, 2, 0x100);
        assert_eq!((chip.isa_count(SCI_INT), pm.read(PM1A_EVT_ADDR, 2)), (0, 0));
    }

    #[test]
    fn sleep_and_reset() {
        let (pm, _, requests) = pm();
        pm.write(PM1A_CNT_ADDR, 2, 4 << 10 | 1 << 13);
        assert!(requests.lock().is_empty(), "S4 is not there");
        pm.write(PM1A_CNT_ADDR, 2, 5 << 10);
        assert!(requests.lock().is_empty(), "not yet");
        pm.write(PM1A_CNT_ADDR, 2, 5 << 10 | 1 << 13);
        assert_eq!(requests.lock().pop(), Some(PowerRequest::PowerOff));
        assert_eq!(
            pm.read(PM1A_CNT_ADDR, 2),
            5 << 10,
            "neither SLP_EN nor SCI_EN are stored"
        );
        pm.write(IO_RESET, 1, 2);
        assert!(requests.lock().is_empty());
        pm.write(IO_RESET, 1, RESET_VALUE.bits().into());
        assert_eq!(requests.lock().pop(), Some(PowerRequest::Reset));
        assert_eq!(pm.read(0x92, 1), 2);
        pm.write(0x92, 1, 2);
        assert!(requests.lock().is_empty());
        pm.write(0x92, 1, 3);
        pm.write(0x92, 1, 3);
        assert_eq!(
            *requests.lock(),
            [PowerRequest::Reset],
            "only the edge resets"
        );
    }

    proptest! {
        #[test]
        fn a_restored_twin_behaves_the_same(
            before in proptest::collection::vec((0..16_usize, any::<u16>()), 0..40),
            after in proptest::collection::vec((0..16_usize, any::<u16>()), 0..40),
        ) {
            const PORTS: [(u16, u8); 8] =
                [(0x400, 2), (0x402, 2), (0x404, 2), (0x405, 1), (0xb2, 1), (0xcf9, 1), (0x92, 1), (0x401, 1)];
            let apply = |pm: &Pm, (n, value): (usize, u16)| {
                let (port, size) = PORTS[n % 8];
                match n {
                    0..8 => pm.write(port, size, value.into()),
                    8 => pm.write(SMI_CMD, 1, u32::from(BHYVE_ACPI_ENABLE) + u32::from(value & 1)),
                    9 => return pm.power_button().into(),
                    _ => return pm.read(port, size),
                }
                0
            };
            let (first, chip, requests) = pm();
            for access in before {
                apply(&first, access);
            }
            let saved = SavedBytes::from(first.save().unwrap());
            let (twin, twin_chip, twin_requests) = pm();
            twin.restore(&saved).unwrap();
            prop_assert!(twin_chip.level.lock().is_empty());
            let offset = chip.isa_count(SCI_INT);
            requests.lock().clear();
            for access in after {
                prop_assert_eq!(apply(&first, access), apply(&twin, access));
                prop_assert_eq!(chip.isa_count(SCI_INT), twin_chip.isa_count(SCI_INT) + offset);
            }
            prop_assert_eq!(&*requests.lock(), &*twin_requests.lock());
            prop_assert_eq!(first.save().unwrap(), twin.save().unwrap());
        }
    }

    #[test]
    fn impossible_states_are_refused() {
        let bad = PmState {
            status: 1,
            enable: 0,
            control: 0,
            reset: 0,
            system_control: 0,
        };
        assert!(pm().0.apply(bad).is_err());
    }
}
