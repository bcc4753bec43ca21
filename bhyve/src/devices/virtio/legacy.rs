// SPDX-License-Identifier: BSD-2-Clause

//! The register layout of legacy virtio (0.9.5) in an I/O BAR (`vi_pci_read` and `vi_pci_write` of
//! `usr.sbin/bhyve/virtio.c`). Only this file knows it; [`super::modern`] is the other
//! layout over the same [`Transport`].

use super::VirtioDevice;
use super::bits::{Features, Status};
use super::queue::Placement;
use super::transport::Transport;

/// The BAR.
pub const BAR: usize = 0;
/// Where the device configuration begins while MSI-X is off and on.
const CONFIG: usize = 20;
/// See [`CONFIG`].
pub const CONFIG_MSIX: usize = 24;

const HOST_FEATURES: u64 = 0;
const GUEST_FEATURES: u64 = 4;
const QUEUE_PFN: u64 = 8;
const QUEUE_SIZE: u64 = 12;
const QUEUE_SELECT: u64 = 14;
const QUEUE_NOTIFY: u64 = 16;
const STATUS: u64 = 18;
const ISR: u64 = 19;
const CONFIG_VECTOR: u64 = 20;
const QUEUE_VECTOR: u64 = 22;

fn config_offset(transport: &Transport, offset: u64) -> Option<usize> {
    let base = if transport.func().msix_enabled() {
        CONFIG_MSIX
    } else {
        CONFIG
    };
    usize::try_from(offset).ok()?.checked_sub(base)
}

/// A load from the BAR. A register that is not there, or not of this size, reads as all ones.
pub fn read<D: VirtioDevice>(device: &D, offset: u64, size: u8) -> u64 {
    let transport = device.transport();
    if let Some(at) = config_offset(transport, offset) {
        let mut bytes = [0; 8];
        device.read_config(at, bytes.get_mut(..size.into()).unwrap_or_default());
        return u64::from_le_bytes(bytes);
    }
    match (offset, size) {
        (HOST_FEATURES, 4) => transport.offered_legacy().bits(),
        (GUEST_FEATURES, 4) => (transport.features() & Features::LEGACY).bits(),
        (QUEUE_PFN, 4) => transport
            .queue(transport.selected())
            .map_or(0, |queue| queue.pfn().into()),
        (QUEUE_SIZE, 2) => transport
            .queue(transport.selected())
            .map_or(0, |queue| queue.size().into()),
        (QUEUE_SELECT, 2) => transport.selected() as u64,
        (QUEUE_NOTIFY, 2) => 0,
        (STATUS, 1) => super::status(device).bits().into(),
        (ISR, 1) => transport.take_isr().bits().into(),
        (CONFIG_VECTOR, 2) => transport.config_vector().into(),
        (QUEUE_VECTOR, 2) => transport.queue_vector(transport.selected()).into(),
        _ => u64::MAX,
    }
}

/// A store to the BAR.
pub fn write<D: VirtioDevice>(device: &D, offset: u64, size: u8, value: u64) {
    let transport = device.transport();
    if let Some(at) = config_offset(transport, offset) {
        device.write_config(
            at,
            value.to_le_bytes().get(..size.into()).unwrap_or_default(),
        );
        return;
    }
    match (offset, size) {
        // The most frequent one first. A queue number beyond 16 bits does not exist, and some drivers write 32.
        (QUEUE_NOTIFY, 2 | 4) => {
            if let Ok(index) = usize::try_from(value) {
                transport.kick(device, index);
            }
        }
        (GUEST_FEATURES, 4) => {
            transport.set_features(Features::from_bits_retain(value) & transport.offered_legacy());
        }
        (QUEUE_PFN, 4) => place(device, value as u32),
        (QUEUE_SELECT, 2) => transport.select(value as u16),
        (STATUS, 1) if value == 0 => {
            super::reset(device);
        }
        (STATUS, 1) => transport.set_status(Status::from_bits_retain(value as u8)),
        (CONFIG_VECTOR, 2) => transport.set_config_vector(value as u16),
        (QUEUE_VECTOR, 2) => transport.set_queue_vector(transport.selected(), value as u16),
        _ => {}
    }
}

fn place<D: VirtioDevice>(device: &D, pfn: u32) {
    let transport = device.transport();
    let index = transport.selected();
    let Some(mut queue) = transport.queue(index) else {
        return;
    };
    if pfn == 0 {
        queue.reset();
        queue.set_event_idx(transport.event_idx());
        drop(queue);
        device.close_queue(index);
        return;
    }
    let placement = Placement::legacy(pfn, queue.size());
    let result = queue.place(transport.mem(), placement);
    drop(queue);
    if let Err(error) = result {
        transport.fail(index, &error);
    }
}
