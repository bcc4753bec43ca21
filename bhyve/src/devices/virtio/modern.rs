// SPDX-License-Identifier: BSD-2-Clause

//! The register layout of virtio 1.x over PCI: four structures in a memory BAR that vendor capabilities point to, and a fifth
//! capability through which they can be reached from the configuration space. Upstream's devices have nothing like it; the
//! driver's side is `sys/dev/virtio/pci/virtio_pci_modern.c`.
//!
//! A register must be accessed as wide as it is, a 64-bit one also in halves: other loads read as ones, other stores are lost.

use super::VirtioDevice;
use super::bits::{Features, Status};
use super::queue::Placement;
use super::transport::Transport;
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::PciFunc;
use crate::device::BuildError;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

/// The BAR; 0 is that of [`super::legacy`], 1 has the MSI-X table.
pub const BAR: usize = 4;
/// Each structure has a page of the BAR.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
const BAR_SIZE: u64 = 4 * PAGE;
/// Bytes between the notification registers of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// PCI's vendor-specific capability.
const CAP_VENDOR: u8 = 0x09;
// struct virtio_pci_cap: cfg_type.
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;
/// Bytes of struct virtio_pci_cap, and of one with a word after it.
const CAP_LEN: u8 = 16;
const LONG_CAP_LEN: u8 = 20;

// struct virtio_pci_common_cfg.
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const NUM_QUEUES: u64 = 18;
const STATUS: u64 = 20;
const GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFF: u64 = 30;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;
const COMMON_LEN: u64 = QUEUE_DEVICE + 8;

/// What the 1.x interface has beyond what both have.
pub struct Modern {
    /// Where the capability is that leads from the configuration space into the BAR.
    window_at: u16,
    registers: Mutex<Registers>,
}

#[derive(Clone, Copy, Default)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    // As written; they count from FEATURES_OK on.
    driver_features: Features,
    window: Window,
}

/// The writable part of struct virtio_pci_cfg_cap.
#[derive(Clone, Copy, Default)]
struct Window {
    bar: u8,
    offset: u32,
    length: u32,
}

/// The same in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModernState {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    window_bar: u8,
    window_offset: u32,
    window_length: u32,
}

impl Modern {
    /// Gives `func` the BAR and the capabilities.
    pub fn new(func: &PciFunc, queues: usize, config_len: usize) -> Result<Self, BuildError> {
        func.add_bar(BAR, BarType::Mem32, BAR_SIZE)?;
        let cap = |kind, offset: u64, length: u64| capability(CAP_LEN, kind, offset, length);
        func.add_capability(&cap(TYPE_COMMON, COMMON, COMMON_LEN))?;
        func.add_capability(&cap(TYPE_ISR, ISR, 1))?;
        if config_len > 0 {
            // The whole page: what a driver reads beyond the configuration's end is zero, not its own mistake.
            func.add_capability(&cap(TYPE_DEVICE, DEVICE, PAGE))?;
        }
        let length = queues as u64 * u64::from(NOTIFY_MULTIPLIER);
        let mut notify = capability(LONG_CAP_LEN, TYPE_NOTIFY, NOTIFY, length);
        notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
        func.add_capability(&notify)?;
        let mut window = vec![CAP_VENDOR, 0, LONG_CAP_LEN, TYPE_PCI];
        window.resize(LONG_CAP_LEN.into(), 0);
        Ok(Self {
            window_at: func.add_capability(&window)?.into(),
            registers: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock()
    }

    /// Forgets the driver. The window is PCI's, and stays.
    pub fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers {
            window: registers.window,
            ..Registers::default()
        };
    }

    /// Puts every register to its value at power-on.
    pub fn close_window(&self) {
        self.lock().window = Window::default();
    }

    /// For a checkpoint.
    pub fn capture(&self) -> ModernState {
        let Self {
            window_at: _, // where the device was built
            registers,
        } = self;
        let Registers {
            device_feature_select,
            driver_feature_select,
            driver_features,
            window:
                Window {
                    bar,
                    offset,
                    length,
                },
        } = *registers.lock();
        ModernState {
            device_feature_select,
            driver_feature_select,
            driver_features: driver_features.bits(),
            window_bar: bar,
            window_offset: offset,
            window_length: length,
        }
    }

    /// From a checkpoint. A driver can have written anything into any of these, so there is nothing to refuse.
    pub fn apply(&self, state: ModernState) {
        let ModernState {
            device_feature_select,
            driver_feature_select,
            driver_features,
            window_bar: bar,
            window_offset: offset,
            window_length: length,
        } = state;
        *self.lock() = Registers {
            device_feature_select,
            driver_feature_select,
            driver_features: Features::from_bits_retain(driver_features),
            window: Window {
                bar,
                offset,
                length,
            },
        };
    }
}

// struct virtio_pci_cap; both numbers are within the BAR.
fn capability(len: u8, kind: u8, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![CAP_VENDOR, 0, len, kind, BAR as u8, 0, 0, 0];
    bytes.extend((offset as u32).to_le_bytes());
    bytes.extend((length as u32).to_le_bytes());
    bytes
}

/// A 32-bit word of a 64-bit register.
fn word(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

/// `value` with a word of it, or at `size` 8 all of it, replaced.
fn with_word(value: u64, select: u32, size: u8, new: u64) -> u64 {
    match (size, select) {
        (8, _) => new,
        (_, 0) => value & !0xffff_ffff | new & 0xffff_ffff,
        _ => value & 0xffff_ffff | new << 32,
    }
}

/// Which half of a 64-bit register an offset is in.
fn half(offset: u64) -> u32 {
    (offset % 8 / 4) as u32
}

/// The address that one of the last three registers shows.
fn address(placement: &mut Placement, offset: u64) -> &mut u64 {
    match offset / 8 * 8 {
        QUEUE_DESC => &mut placement.desc,
        QUEUE_DRIVER => &mut placement.avail,
        _ => &mut placement.used,
    }
}

/// A load from the BAR.
pub fn read<D: VirtioDevice>(device: &D, offset: u64, size: u8) -> u64 {
    let transport = device.transport();
    match offset / PAGE * PAGE {
        COMMON if (offset, size) == (STATUS, 1) => super::status(device).bits().into(),
        COMMON => read_common(transport, offset, size).unwrap_or(u64::MAX),
        ISR if (offset, size) == (ISR, 1) => transport.take_isr().bits().into(),
        DEVICE => {
            let mut bytes = [0; 8];
            device.read_config(
                config_offset(offset),
                bytes.get_mut(..size.into()).unwrap_or_default(),
            );
            u64::from_le_bytes(bytes)
        }
        NOTIFY => 0,
        _ => u64::MAX,
    }
}

/// A store to the BAR.
pub fn write<D: VirtioDevice>(device: &D, offset: u64, size: u8, value: u64) {
    match offset / PAGE * PAGE {
        // The most frequent one first. The register says which queue it is; the value only repeats it.
        NOTIFY if matches!(size, 2 | 4) => {
            let at = offset - NOTIFY;
            if at.is_multiple_of(NOTIFY_MULTIPLIER.into()) {
                let index = at / u64::from(NOTIFY_MULTIPLIER);
                device.transport().kick(device, index as usize); // less than a page
            }
        }
        COMMON => write_common(device, offset, size, value),
        DEVICE => device.write_config(
            config_offset(offset),
            value.to_le_bytes().get(..size.into()).unwrap_or_default(),
        ),
        _ => {}
    }
}

fn config_offset(offset: u64) -> usize {
    (offset % PAGE) as usize
}

fn read_common(transport: &Transport, offset: u64, size: u8) -> Option<u64> {
    let registers = *transport.modern().lock();
    let selected = transport.selected();
    let value = match (offset, size) {
        (DEVICE_FEATURE_SELECT, 4) => registers.device_feature_select.into(),
        (DEVICE_FEATURE, 4) => word(
            transport.offered_modern().bits(),
            registers.device_feature_select,
        ),
        (DRIVER_FEATURE_SELECT, 4) => registers.driver_feature_select.into(),
        (DRIVER_FEATURE, 4) => word(
            registers.driver_features.bits(),
            registers.driver_feature_select,
        ),
        (CONFIG_VECTOR, 2) => transport.config_vector().into(),
        (NUM_QUEUES, 2) => transport.queue_count() as u64,
        (GENERATION, 1) => transport.generation().into(),
        (QUEUE_SELECT, 2) => selected as u64,
        (QUEUE_VECTOR, 2) => transport.queue_vector(selected).into(),
        _ => {
            let Some(queue) = transport.queue(selected) else {
                // A queue that does not exist has size 0.
                return (QUEUE_SIZE..COMMON_LEN).contains(&offset).then_some(0);
            };
            match (offset, size) {
                (QUEUE_SIZE, 2) => queue.size().into(),
                (QUEUE_ENABLE, 2) => queue.is_enabled().into(),
                (QUEUE_NOTIFY_OFF, 2) => selected as u64,
                (QUEUE_DESC..COMMON_LEN, 4 | 8) if offset.is_multiple_of(size.into()) => {
                    let address = *address(&mut queue.placement(), offset);
                    if size == 8 {
                        address
                    } else {
                        word(address, half(offset))
                    }
                }
                _ => return None,
            }
        }
    };
    Some(value)
}

fn write_common<D: VirtioDevice>(device: &D, offset: u64, size: u8, value: u64) {
    let transport = device.transport();
    let modern = transport.modern();
    match (offset, size) {
        (DEVICE_FEATURE_SELECT, 4) => modern.lock().device_feature_select = value as u32,
        (DRIVER_FEATURE_SELECT, 4) => modern.lock().driver_feature_select = value as u32,
        (DRIVER_FEATURE, 4) => {
            // What has been agreed on stays until a reset.
            if !transport.status().contains(Status::FEATURES_OK) {
                let mut registers = modern.lock();
                let select = registers.driver_feature_select;
                if select < 2 {
                    let old = registers.driver_features.bits();
                    registers.driver_features =
                        Features::from_bits_retain(with_word(old, select, size, value));
                }
            }
        }
        (CONFIG_VECTOR, 2) => transport.set_config_vector(value as u16),
        (STATUS, 1) if value as u8 == 0 => super::reset(device),
        (STATUS, 1) => write_status(device, Status::from_bits_retain(value as u8)),
        (QUEUE_SELECT, 2) => transport.select(value as u16),
        (QUEUE_VECTOR, 2) => transport.set_queue_vector(transport.selected(), value as u16),
        _ => write_queue(transport, offset, size, value),
    }
}

fn write_queue(transport: &Transport, offset: u64, size: u8, value: u64) {
    let index = transport.selected();
    let Some(mut queue) = transport.queue(index) else {
        return;
    };
    match (offset, size) {
        (QUEUE_SIZE, 2) => queue.resize(value as u16),
        (QUEUE_ENABLE, 2) if value as u16 == 1 => {
            let result = queue.enable(transport.mem());
            drop(queue);
            if let Err(error) = result {
                transport.fail(index, &error);
            }
        }
        (QUEUE_DESC..COMMON_LEN, 4 | 8) if offset.is_multiple_of(size.into()) => {
            queue.announce(|placement| {
                let address = address(placement, offset);
                *address = with_word(*address, half(offset), size, value);
            });
        }
        _ => {}
    }
}

fn write_status<D: VirtioDevice>(device: &D, mut status: Status) {
    let transport = device.transport();
    let risen = status - transport.status();
    if risen.contains(Status::FEATURES_OK) {
        let wanted = transport.modern().lock().driver_features;
        // The bit stays clear if the device cannot do what the driver wants; and who does not want 1.x has legacy registers.
        if wanted.contains(Features::VERSION_1) && transport.offered_modern().contains(wanted) {
            transport.set_features(wanted);
        } else {
            status -= Status::FEATURES_OK;
        }
    }
    transport.set_status(status);
    if risen.contains(Status::DRIVER_OK) {
        transport.kick_remembered(device);
    }
}

// ---- the way through the configuration space ----

/// What an access is to: an offset in the capability, at or after the byte `bar`.
fn in_window(modern: &Modern, offset: u16, size: u8) -> Option<u16> {
    let at = offset
        .checked_sub(modern.window_at)
        .filter(|at| (4..LONG_CAP_LEN.into()).contains(at))?;
    at.is_multiple_of(u16::from(size.max(1))).then_some(at)
}

impl Window {
    fn bytes(&self) -> [u8; 12] {
        let [o0, o1, o2, o3] = self.offset.to_le_bytes();
        let [l0, l1, l2, l3] = self.length.to_le_bytes();
        [self.bar, 0, 0, 0, o0, o1, o2, o3, l0, l1, l2, l3]
    }

    fn from_bytes(bytes: [u8; 12]) -> Self {
        let [bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3] = bytes;
        Self {
            bar,
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
        }
    }

    /// Offset and size of the access to the BAR, if the driver has asked for one that can be.
    fn target(&self) -> Option<(u64, u8)> {
        let size = u8::try_from(self.length)
            .ok()
            .filter(|size| matches!(size, 1 | 2 | 4))?;
        let inside = u64::from(self.offset) + u64::from(size) <= BAR_SIZE;
        (usize::from(self.bar) == BAR && inside && self.offset.is_multiple_of(self.length))
            .then_some((self.offset.into(), size))
    }
}

/// A load from the configuration space; `None` if it has nothing to do with virtio.
pub fn cfg_read<D: VirtioDevice>(device: &D, offset: u16, size: u8) -> Option<u32> {
    let modern = device.transport().modern();
    let at = in_window(modern, offset, size)?;
    let window = modern.lock().window;
    let fields = window.bytes();
    let field = usize::from(at - 4);
    if field < fields.len() {
        return Some((0..usize::from(size)).rev().fold(0, |value, n| {
            value << 8 | u32::from(fields.get(field + n).copied().unwrap_or(0))
        }));
    }
    let value = match window.target() {
        // Only a load of the first byte is an access to the BAR.
        Some((offset, size)) if field == fields.len() => {
            read(device, offset, size) & (u64::MAX >> (64 - 8 * u32::from(size)))
        }
        _ => u64::MAX,
    };
    Some(value as u32)
}

/// A store to the configuration space; false if it has nothing to do with virtio.
pub fn cfg_write<D: VirtioDevice>(device: &D, offset: u16, size: u8, value: u32) -> bool {
    let modern = device.transport().modern();
    let Some(at) = in_window(modern, offset, size) else {
        return false;
    };
    let field = usize::from(at - 4);
    let mut registers = modern.lock();
    let mut fields = registers.window.bytes();
    if field < fields.len() {
        for (n, byte) in value.to_le_bytes().iter().take(size.into()).enumerate() {
            if let Some(slot) = fields.get_mut(field + n) {
                *slot = *byte;
            }
        }
        registers.window = Window::from_bytes(fields);
        return true;
    }
    let window = registers.window;
    drop(registers);
    if let Some((offset, width)) = window.target()
        && field == fields.len()
        && size >= width
    {
        let mask = u64::MAX >> (64 - 8 * u32::from(width));
        write(device, offset, width, u64::from(value) & mask);
    }
    true
}

#[cfg(test)]
mod tests;
