//! Power management: the fixed registers of ACPI, the SMI command port and the two reset ports
//! (`usr.sbin/bhyve/amd64/pm.c`).

use crate::bus::inout::{Inout, PortHandler};
use crate::device::{BuildError, Device, SaveError, SavedBytes, SavedState, StateError};
use crate::machine::irqchip::IrqChip;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The system control interrupt.
pub const SCI_IRQ: u8 = 9;
/// PM1a status and enable, 16 bits each.
pub const PM1A_EVT: u16 = 0x400;
/// PM1a control, 16 bits.
pub const PM1A_CNT: u16 = 0x404;
/// The SMI command port.
pub const SMI_CMD: u16 = 0xb2;
/// Written to the SMI command port it turns the fixed registers on.
pub const ACPI_ENABLE: u8 = 0xa0;
/// … and off.
pub const ACPI_DISABLE: u8 = 0xa1;
/// The reset control register of PIIX.
pub const RESET_PORT: u16 = 0xcf9;
/// What resets: "full" and "now".
pub const RESET_VALUE: u8 = 6;
/// The value of SLP_TYP that is \_S5.
pub const SLP_TYP_S5: u16 = 5;

const SYSTEM_CONTROL_PORT: u16 = 0x92;
const PM1_END: u16 = PM1A_CNT + 1;

const PM1_BM_STS: u16 = 1 << 4;
const PM1_GBL_EN: u16 = 1 << 5;
const PM1_PWRBTN: u16 = 1 << 8;
const PM1_SLPBTN_STS: u16 = 1 << 9;
const PM1_RTC: u16 = 1 << 10;
const PM1_WAK_STS: u16 = 1 << 15;
/// Status bits go away when a one is written to them.
const STATUS_CLEARABLE: u16 = PM1_WAK_STS | PM1_RTC | PM1_SLPBTN_STS | PM1_PWRBTN | PM1_BM_STS;
/// The clock's alarm never sets its status bit, but operating systems check that they can enable it.
const ENABLE_WRITABLE: u16 = PM1_PWRBTN | PM1_GBL_EN | PM1_RTC;

const PM1_SCI_EN: u16 = 1 << 0;
const PM1_SLP_TYP_SHIFT: u32 = 10;
const PM1_SLP_TYP: u16 = 7 << PM1_SLP_TYP_SHIFT;
const PM1_SLP_EN: u16 = 1 << 13;
/// BM_RLD and GBL_RLS come and go; SLP_EN reads as zero; SCI_EN is the SMI command's.
const CONTROL_STORED: u16 = PM1_SLP_TYP | 1 << 1;

const RESET_NOW: u8 = 1 << 2;
const FAST_RESET: u8 = 1 << 0;
/// Nothing here wraps addresses at 1 MiB: gate A20 is always open.
const A20: u8 = 1 << 1;

const KIND: &str = "pm";
const VERSION: u32 = 1;

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
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    system_control: u8,
}

/// What a checkpoint keeps.
#[derive(Debug, Serialize, Deserialize)]
struct PmState {
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    system_control: u8,
}

impl Registers {
    fn sci(&self) -> bool {
        self.control & PM1_SCI_EN != 0 && self.status & self.enable & PM1_PWRBTN != 0
    }
}

/// The registers and what they do.
pub struct Pm {
    chip: Arc<dyn IrqChip>,
    power: Arc<dyn Fn(PowerRequest) + Send + Sync>,
    registers: Mutex<Registers>,
}

impl Pm {
    /// Registers as at power-on, or as they were saved.
    pub fn new(
        chip: Arc<dyn IrqChip>,
        power: Arc<dyn Fn(PowerRequest) + Send + Sync>,
        saved: Option<&SavedBytes>,
    ) -> Result<Self, StateError> {
        let registers = match saved {
            // The interrupt controllers have states of their own.
            Some(saved) => restore(saved)?,
            None => {
                chip.isa_level_triggered(SCI_IRQ, true);
                Registers::default()
            }
        };
        Ok(Self {
            chip,
            power,
            registers: Mutex::new(registers),
        })
    }

    /// Makes the registers answer at their ports.
    pub fn register(self: &Arc<Self>, inout: &Inout) -> Result<(), BuildError> {
        let ports = [
            PM1A_EVT..=PM1_END,
            SMI_CMD..=SMI_CMD,
            RESET_PORT..=RESET_PORT,
        ];
        for range in ports
            .into_iter()
            .chain([SYSTEM_CONTROL_PORT..=SYSTEM_CONTROL_PORT])
        {
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
            (false, true) => self.chip.isa_assert(SCI_IRQ, Some(SCI_IRQ)),
            (true, false) => self.chip.isa_deassert(SCI_IRQ, Some(SCI_IRQ)),
            _ => {}
        }
        result
    }

    /// Presses the power button. False if the guest has not turned ACPI on and will not notice.
    pub fn power_button(&self) -> bool {
        self.with(|registers| {
            registers.status |= PM1_PWRBTN;
            registers.control & PM1_SCI_EN != 0
        })
    }

    fn read8(&self, port: u16) -> u8 {
        let registers = self.registers();
        let half = |value: u16| {
            if port & 1 == 0 {
                value as u8
            } else {
                (value >> 8) as u8
            }
        };
        match port {
            0x400 | 0x401 => half(registers.status),
            0x402 | 0x403 => half(registers.enable),
            0x404 | 0x405 => half(registers.control),
            RESET_PORT => registers.reset,
            SYSTEM_CONTROL_PORT => registers.system_control | A20,
            // The SMI command port reads as zero.
            SMI_CMD => 0,
            _ => 0xff,
        }
    }

    fn write8(&self, port: u16, value: u8) {
        let request = self.with(|registers| {
            let shift = (port & 1) * 8;
            let (bits, mask) = (u16::from(value) << shift, 0xff << shift);
            match port {
                0x400 | 0x401 => registers.status &= !(bits & STATUS_CLEARABLE),
                0x402 | 0x403 => {
                    registers.enable = registers.enable & !mask | bits & ENABLE_WRITABLE
                }
                0x404 | 0x405 => {
                    let mask = mask & CONTROL_STORED;
                    registers.control = registers.control & !mask | bits & mask;
                    let sleep = (registers.control & PM1_SLP_TYP) >> PM1_SLP_TYP_SHIFT;
                    if bits & PM1_SLP_EN != 0 && sleep == SLP_TYP_S5 {
                        return Some(PowerRequest::PowerOff);
                    }
                }
                SMI_CMD if value == ACPI_ENABLE => registers.control |= PM1_SCI_EN,
                SMI_CMD if value == ACPI_DISABLE => registers.control &= !PM1_SCI_EN,
                RESET_PORT => {
                    registers.reset = value & !RESET_NOW;
                    return (value & RESET_NOW != 0).then_some(PowerRequest::Reset);
                }
                SYSTEM_CONTROL_PORT => {
                    let old = std::mem::replace(&mut registers.system_control, value);
                    return (!old & value & FAST_RESET != 0).then_some(PowerRequest::Reset);
                }
                _ => {}
            }
            None
        });
        if let Some(request) = request {
            (self.power)(request);
        }
    }
}

fn restore(saved: &SavedBytes) -> Result<Registers, StateError> {
    let PmState {
        status,
        enable,
        control,
        reset,
        system_control,
    } = saved.decode(KIND, VERSION)?;
    let sane = status & !STATUS_CLEARABLE == 0
        && enable & !ENABLE_WRITABLE == 0
        && control & !(CONTROL_STORED | PM1_SCI_EN) == 0
        && reset & RESET_NOW == 0;
    if sane {
        Ok(Registers {
            status,
            enable,
            control,
            reset,
            system_control,
        })
    } else {
        Err(StateError::Invalid(
            "the power management registers cannot be in the saved state".into(),
        ))
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
            if n == 0 || (PM1A_EVT..=PM1_END).contains(&port) {
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
    fn quiesced(&self) -> bool {
        true
    }
    fn save(&self) -> Result<SavedState, SaveError> {
        let Registers {
            status,
            enable,
            control,
            reset,
            system_control,
        } = *self.registers();
        SavedState::encode(
            KIND,
            VERSION,
            &PmState {
                status,
                enable,
                control,
                reset,
                system_control,
            },
        )
    }
    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        *self.registers() = restore(saved)?;
        Ok(())
    }
    fn resume(&self) {}
    fn reset(&self) {
        self.with(|registers| *registers = Registers::default());
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
    use crate::machine::irqchip::mock::MockChip;
    use proptest::prelude::*;

    type Requests = Arc<Mutex<Vec<PowerRequest>>>;

    fn pm(saved: Option<&SavedBytes>) -> (Arc<Pm>, Arc<MockChip>, Requests) {
        let chip = Arc::new(MockChip::default());
        let requests = Requests::default();
        let log = Arc::clone(&requests);
        let power = Arc::new(move |request| log.lock().push(request));
        (
            Arc::new(Pm::new(chip.clone(), power, saved).unwrap()),
            chip,
            requests,
        )
    }

    #[test]
    fn power_button() {
        let (pm, chip, _) = pm(None);
        assert_eq!(*chip.level.lock(), [SCI_IRQ]);
        assert!(!pm.power_button(), "ACPI is off");
        pm.write(PM1A_EVT, 2, 0xffff);
        pm.write(SMI_CMD, 1, ACPI_ENABLE.into());
        assert_eq!(pm.read(PM1A_CNT, 2), 1);
        pm.write(PM1A_EVT + 2, 2, 0xffff);
        assert_eq!(pm.read(PM1A_EVT + 2, 2), u32::from(ENABLE_WRITABLE));
        assert!(pm.power_button());
        assert!(pm.power_button());
        assert_eq!(
            (chip.isa_count(SCI_IRQ), chip.ioapic_count(SCI_IRQ)),
            (1, 1)
        );
        assert_eq!(
            pm.read(PM1A_EVT, 4),
            u32::from(ENABLE_WRITABLE) << 16 | 0x100
        );
        pm.write(PM1A_EVT, 2, 0x100);
        assert_eq!((chip.isa_count(SCI_IRQ), pm.read(PM1A_EVT, 2)), (0, 0));
    }

    #[test]
    fn sleep_and_reset() {
        let (pm, _, requests) = pm(None);
        pm.write(PM1A_CNT, 2, 4 << 10 | 1 << 13);
        assert!(requests.lock().is_empty(), "S4 is not there");
        pm.write(PM1A_CNT, 2, 5 << 10);
        assert!(requests.lock().is_empty(), "not yet");
        pm.write(PM1A_CNT, 2, 5 << 10 | 1 << 13);
        assert_eq!(requests.lock().pop(), Some(PowerRequest::PowerOff));
        assert_eq!(
            pm.read(PM1A_CNT, 2),
            5 << 10,
            "neither SLP_EN nor SCI_EN are stored"
        );
        pm.write(RESET_PORT, 1, 2);
        assert!(requests.lock().is_empty());
        pm.write(RESET_PORT, 1, RESET_VALUE.into());
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
                    8 => pm.write(SMI_CMD, 1, u32::from(ACPI_ENABLE) + u32::from(value & 1)),
                    9 => return pm.power_button().into(),
                    _ => return pm.read(port, size),
                }
                0
            };
            let (first, chip, requests) = pm(None);
            for access in before {
                apply(&first, access);
            }
            let saved = SavedBytes::from(first.save().unwrap());
            let (twin, twin_chip, twin_requests) = pm(Some(&saved));
            let offset = chip.isa_count(SCI_IRQ);
            requests.lock().clear();
            for access in after {
                prop_assert_eq!(apply(&first, access), apply(&twin, access));
                prop_assert_eq!(chip.isa_count(SCI_IRQ), twin_chip.isa_count(SCI_IRQ) + offset);
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
        let bad = SavedBytes::from(SavedState::encode(KIND, VERSION, &bad).unwrap());
        assert!(restore(&bad).is_err());
    }
}
