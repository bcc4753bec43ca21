// SPDX-License-Identifier: BSD-2-Clause

//! Every function's configuration space, held field by field against what upstream's source sets (`pci_set_cfgdata*`,
//! `pci_emul_alloc_bar`, `pci_emul_add_*cap` and `pci_lintr_request` in the file that each row names).

use crate::bus::pci::func::space::reg;
use crate::machine::fuzz::Rig;

/// Capability ids.
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// A BAR as the registers describe it: its low bits, and its size in bytes.
#[derive(Debug, PartialEq, Eq)]
enum Bar {
    Io(u64),
    Mem32(u64),
}
use Bar::{Io, Mem32};

#[derive(Debug, PartialEq, Eq)]
struct Function {
    vendor: u16,
    device: u16,
    /// Class, subclass, programming interface.
    class: [u8; 3],
    revision: u8,
    header: u8,
    subvendor: u16,
    subdevice: u16,
    /// 0 without a pin.
    pin: u8,
    caps: Vec<u8>,
    bars: Vec<(u16, Bar)>,
}

/// What the devices of virtio have beyond upstream's, which are legacy devices: the structures of virtio 1.x in a BAR.
const MODERN: (u16, Bar) = (4, Mem32(0x4000));

/// A device of virtio (`vi_intr_init`, `vi_set_io_bar` of virtio.c): MSI-X with a vector for each queue and one more, one message.
fn virtio(device: u16, class: [u8; 2], kind: u16, io: u64, structures: usize) -> Function {
    let mut caps = vec![MSIX, MSI];
    caps.extend(std::iter::repeat_n(VENDOR, structures));
    Function {
        vendor: 0x1af4,
        device,
        class: [class[0], class[1], 0],
        revision: 0,
        header: 0,
        subvendor: 0x1af4,
        subdevice: kind,
        pin: 1,
        caps,
        bars: vec![(0, Io(io)), (1, Mem32(0x2000)), MODERN],
    }
}

/// Slot, and what upstream makes of the device that [`Rig`] has there.
fn upstream() -> Vec<(u8, &'static str, Function)> {
    let none = || Function {
        vendor: 0,
        device: 0,
        class: [0; 3],
        revision: 0,
        header: 0,
        subvendor: 0,
        subdevice: 0,
        pin: 0,
        caps: Vec::new(),
        bars: Vec::new(),
    };
    vec![
        (
            0,
            "pci_hostbridge.c",
            Function {
                vendor: 0x1275,
                device: 0x1275,
                class: [6, 0, 0],
                caps: vec![EXPRESS],
                ..none()
            },
        ),
        (3, "pci_virtio_block.c", virtio(0x1001, [1, 0], 2, 0x80, 5)),
        (4, "pci_virtio_rnd.c", virtio(0x1005, [0x10, 0], 4, 0x20, 4)),
        (5, "pci_virtio_net.c", virtio(0x1000, [2, 0], 1, 0x40, 5)),
        (
            6,
            "pci_virtio_console.c",
            virtio(0x1003, [7, 0x80], 3, 0x40, 5),
        ),
        (
            7,
            "pci_ahci.c",
            Function {
                vendor: 0x8086,
                device: 0x2821,
                class: [1, 6, 1],
                pin: 1,
                caps: vec![MSI],
                // AHCI_OFFSET + DEF_PORTS * AHCI_STEP
                bars: vec![(5, Mem32(0x400))],
                ..none()
            },
        ),
        (
            8,
            "pci_e82545.c",
            Function {
                vendor: 0x8086,
                device: 0x100f,
                class: [2, 0, 0],
                subvendor: 0x8086,
                subdevice: 0x1008,
                pin: 1,
                bars: vec![(0, Mem32(0x2_0000)), (1, Mem32(0x1_0000)), (2, Io(8))],
                ..none()
            },
        ),
        (
            9,
            "pci_xhci.c",
            Function {
                vendor: 0x8086,
                device: 0x1e31,
                class: [0x0c, 3, 0x30],
                pin: 1,
                caps: vec![MSI],
                bars: vec![(0, Mem32(0x1000))],
                ..none()
            },
        ),
        (
            10,
            "pci_fbuf.c",
            Function {
                vendor: 0xfb5d,
                device: 0x40fb,
                class: [3, 0, 0],
                caps: vec![MSI],
                bars: vec![(0, Mem32(0x80)), (1, Mem32(32 << 20))],
                ..none()
            },
        ),
        (
            31,
            "pci_lpc.c",
            Function {
                vendor: 0x8086,
                device: 0x7000,
                class: [6, 1, 0],
                ..none()
            },
        ),
    ]
}

/// A function as a guest finds it, BARs sized by writing ones.
fn probe(rig: &Rig, slot: u8) -> Function {
    let read = |at: u16, size: u8| rig.pci_read(slot, at, size);
    let byte = |at: u16| read(at, 1) as u8;
    let mut caps = Vec::new();
    let mut at = byte(reg::CAP_POINTER);
    while at != 0 {
        caps.push(byte(at.into()));
        at = byte(u16::from(at) + 1);
    }
    let mut bars = Vec::new();
    for n in 0..6 {
        let at = reg::BAR0 + 4 * n;
        rig.pci_write(slot, at, 4, u32::MAX);
        let ones = read(at, 4);
        if ones != 0 {
            let size = |low: u32| 1 << (ones & !low).trailing_zeros();
            bars.push((
                n,
                if ones & 1 == 1 {
                    Io(size(3))
                } else {
                    Mem32(size(15))
                },
            ));
        }
    }
    Function {
        vendor: read(reg::VENDOR, 2) as u16,
        device: read(reg::DEVICE, 2) as u16,
        class: [byte(reg::CLASS), byte(reg::SUBCLASS), byte(reg::PROG_IF)],
        revision: byte(reg::REVISION),
        header: byte(reg::HEADER_TYPE),
        subvendor: read(reg::SUBVENDOR, 2) as u16,
        subdevice: read(reg::SUBDEVICE, 2) as u16,
        pin: byte(reg::INT_PIN),
        caps,
        bars,
    }
}

#[test]
fn every_function_is_upstreams_field_by_field() {
    let rig = Rig::with_display();
    for (slot, source, expected) in upstream() {
        assert_eq!(probe(&rig, slot), expected, "slot {slot}, {source}");
    }
}

/// What FreeBSD asks before it uses MSI (`pcie_chipset`): a root port.
#[test]
fn the_host_bridge_is_a_root_port() {
    let rig = Rig::new();
    let at = rig.pci_read(0, reg::CAP_POINTER, 1) as u16;
    assert_eq!(rig.pci_read(0, at, 1), u32::from(EXPRESS));
    // PCIEM_FLAGS_TYPE: PCIEM_TYPE_ROOT_PORT; PCIEM_FLAGS_VERSION: 2.
    assert_eq!(rig.pci_read(0, at + 2, 2) & 0xff, 0x42);
    // PCIER_LINK_CAP and PCIER_LINK_STA.
    assert_eq!(rig.pci_read(0, at + 0x0c, 4), 0x411);
    assert_eq!(rig.pci_read(0, at + 0x12, 2), 0x11);
}
