// SPDX-License-Identifier: BSD-2-Clause

//! Sets of bits that all virtio devices have (virtio 1.2, sections 2.1, 4.1.4.5 and 6; `usr.sbin/bhyve/virtio.h`).

use bitflags::bitflags;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

bitflags! {
    /// The device status register.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Status: u8 {
        const ACKNOWLEDGE = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
        const DRIVER = VIRTIO_CONFIG_S_DRIVER as u8;
        const DRIVER_OK = VIRTIO_CONFIG_S_DRIVER_OK as u8;
        const FEATURES_OK = VIRTIO_CONFIG_S_FEATURES_OK as u8;
        /// The device's own: it has found a fault that only a reset mends.
        const NEEDS_RESET = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        const FAILED = VIRTIO_CONFIG_S_FAILED as u8;
        // A driver reads back what it wrote, whatever it means.
        const _ = !0;
    }
}

bitflags! {
    /// The interrupt status register; a load clears it.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Isr: u8 {
        /// A queue has something for the driver.
        const QUEUE = 1;
        /// The device configuration has changed.
        const CONFIG = 2;
    }
}

bitflags! {
    /// Feature bits that do not depend on the kind of device. The others are the device's own.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Buffers may be cut in any way; goes without saying in virtio 1.x.
        const ANY_LAYOUT = 1 << VIRTIO_F_ANY_LAYOUT;
        /// A descriptor may lead to a table of descriptors.
        const INDIRECT_DESC = 1 << VIRTIO_RING_F_INDIRECT_DESC;
        /// Both sides say from which index on they want to be told.
        const EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX;
        /// The driver speaks virtio 1.x. A legacy driver sees 32 bits of features, so not this one.
        const VERSION_1 = 1 << VIRTIO_F_VERSION_1;
        // The device's own.
        const _ = !0;
    }
}

impl Features {
    /// Those that the registers of the legacy interface have bits for.
    pub const LEGACY: Self = Self::from_bits_retain(u32::MAX as u64);
}
