// SPDX-License-Identifier: BSD-2-Clause

//! The controller as a driver meets it.

mod driver;
mod random;

use super::XHCI;
use super::regs::{OPERATIONAL, RUNTIME, UsbCmd, UsbSts, op, rt};
use super::trb::{Code, Trb, TrbType};
use crate::device::{Clock, SavedBytes};
use crate::devices::virtio::testing::Bench;
use driver::{
    BUFFERS, COMMANDS, Driver, ERST, EVENTS, INPUT, OUTPUT, RING, TABLET_IN, make, slot_command,
};

const SUCCESS: u32 = Code::Success as u32;
/// The first USB 3 and the first USB 2 port.
const PORTS: [(u8, &str); 2] = [(1, "tablet"), (5, "tablet=usb=2")];

fn get_descriptor(kind: u8, index: u8, len: u8) -> [u8; 8] {
    [0x80, 6, index, kind, 0, 0, len, 0]
}

#[test]
fn a_tablet_is_enumerated_and_reports() {
    for (port, options) in PORTS {
        let mut driver = Driver::new(options);
        let events = driver.take_events();
        assert_eq!(events.len(), 1, "the port is connected");
        assert_eq!(events[0].parameter, u64::from(port) << 24);
        let usb3 = port == 1;
        // Connected, powered, changed; a USB 2 port is not enabled before its reset.
        assert_eq!(
            driver.portsc(port) & 0x2_0203,
            0x2_0201 | u32::from(usb3) << 1
        );
        let slot = driver.enumerate(port);
        assert_eq!(driver.portsc(port) & 0x1e3, 3, "enabled and in U0");
        assert_eq!(driver.state(slot), 3);
        let (code, device) = driver.control(slot, get_descriptor(1, 0, 18));
        assert_eq!((code, device.len()), (SUCCESS, 18));
        assert_eq!(device[7], if usb3 { 9 } else { 64 });
        let (code, configuration) = driver.control(slot, get_descriptor(2, 0, 255));
        assert_eq!(code, SUCCESS);
        assert_eq!(configuration.len(), if usb3 { 40 } else { 34 });
        assert_eq!(usize::from(configuration[2]), configuration.len());

        // Nothing yet: the transfer waits.
        let at = driver.queue_report(slot);
        assert!(driver.take_events().is_empty());
        driver.point(2, 1023, 0);
        let events = driver.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(
            (events[0].parameter, events[0].slot(), events[0].endpoint()),
            (at, slot, TABLET_IN)
        );
        assert_eq!(events[0].status, (Code::ShortPacket as u32) << 24 | 2);
        assert_eq!(driver.report(), [4, 0xff, 0x7f, 0, 0, 0]);
        // What came before the transfer is told at once.
        driver.point(0, 0, 767);
        driver.queue_report(slot);
        assert_eq!(driver.take_events().len(), 1);
        assert_eq!(driver.report(), [0, 0, 0, 0xff, 0x7f, 0]);
    }
}

#[test]
fn a_refused_request_halts_the_control_endpoint_until_it_is_reset() {
    let mut driver = Driver::new("tablet");
    let slot = driver.enumerate(1);
    let (code, _) = driver.control(slot, get_descriptor(3, 99, 10));
    assert_eq!(code, Code::Stall as u32);
    assert_eq!(driver.endpoint_state(slot, 1), 2);
    let place = |index: u32| u32::from(slot) << 24 | index << 16;
    let reset = make(TrbType::ResetEndpoint, 0, 0, place(1));
    assert_eq!(driver.command(reset).0, SUCCESS);
    assert_eq!(driver.command(reset).0, Code::ContextState as u32);
    let dequeue = driver.endpoint_ring(slot, 1).dequeue();
    let set = make(TrbType::SetDequeue, dequeue, 0, place(1));
    assert_eq!(driver.command(set).0, SUCCESS);
    let (code, language) = driver.control(slot, get_descriptor(3, 0, 255));
    assert_eq!((code, language), (SUCCESS, vec![4, 3, 9, 4]));
    assert_eq!(driver.endpoint_state(slot, 1), 1);
}

#[test]
fn commands_are_refused_for_what_is_wrong_with_them() {
    let mut driver = Driver::new("tablet,tablet=usb=2");
    let code = |driver: &mut Driver, trb| driver.command(trb).0;
    for refused in [18, 19, 20, 21, 22, 24, 49, 63] {
        let trb = Trb {
            control: refused << 10,
            ..Trb::default()
        };
        assert_eq!(code(&mut driver, trb), Code::Trb as u32);
    }
    assert_eq!(
        code(&mut driver, make(TrbType::NoOpCommand, 0, 0, 0)),
        SUCCESS
    );
    let address = slot_command(TrbType::AddressDevice, 1, 0);
    assert_eq!(code(&mut driver, address), Code::SlotNotEnabled as u32);
    let slot = driver.enumerate(1);
    assert_eq!(code(&mut driver, address), Code::ContextState as u32);
    for _ in 0..7 {
        assert_eq!(
            code(&mut driver, make(TrbType::EnableSlot, 0, 0, 0)),
            SUCCESS
        );
    }
    assert_eq!(
        code(&mut driver, make(TrbType::EnableSlot, 0, 0, 0)),
        Code::NoSlots as u32
    );
    // A port that is another slot's, one without a device, one that is not there, and one that is not enabled.
    let address = slot_command(TrbType::AddressDevice, 2, 0);
    for (port, wanted) in [
        (1, Code::Parameter),
        (2, Code::Transaction),
        (9, Code::Parameter),
        (5, Code::Transaction),
    ] {
        driver.fill_address(2, port);
        assert_eq!(code(&mut driver, address), wanted as u32, "port {port}");
    }
    // Streams, and an endpoint that leads the wrong way.
    let configure = slot_command(TrbType::ConfigureEndpoint, slot, 0);
    for (at, word) in [(0, 1u32 << 10), (4, 3 << 3)] {
        driver.fill_configure(slot, 1 << TABLET_IN);
        let context = INPUT + 32 + 32 * u64::from(TABLET_IN);
        driver.bench.mem.write_obj(context + at, &word).unwrap();
        assert_eq!(code(&mut driver, configure), Code::Parameter as u32);
    }
    // Without address first, then with one.
    driver.set_portsc(5, 1 << 4);
    driver.fill_address(2, 5);
    assert_eq!(
        code(&mut driver, slot_command(TrbType::AddressDevice, 2, 1 << 9)),
        SUCCESS
    );
    assert_eq!(driver.state(2), 1);
    assert_eq!(code(&mut driver, address), SUCCESS);
    assert_eq!(driver.state(2), 2);
    assert_eq!(
        code(&mut driver, slot_command(TrbType::ResetDevice, slot, 0)),
        SUCCESS
    );
    assert_eq!(
        (driver.state(slot), driver.endpoint_state(slot, TABLET_IN)),
        (1, 0)
    );
    assert_eq!(
        code(&mut driver, slot_command(TrbType::DisableSlot, slot, 0)),
        SUCCESS
    );
    assert_eq!(driver.state(slot), 0);
}

#[test]
fn a_stopped_endpoint_says_where_it_was() {
    let mut driver = Driver::new("tablet");
    let slot = driver.enumerate(1);
    let at = driver.queue_report(slot);
    let place = u32::from(slot) << 24 | u32::from(TABLET_IN) << 16;
    let command = driver.give(make(TrbType::StopEndpoint, 0, 0, place));
    let events = driver.take_events();
    assert_eq!(events.len(), 2);
    assert_eq!(
        (events[0].parameter, events[0].status),
        (at, (Code::Stopped as u32) << 24 | 8)
    );
    assert_eq!(
        (events[1].parameter, events[1].status >> 24),
        (command, SUCCESS)
    );
    assert_eq!(driver.endpoint_state(slot, TABLET_IN), 3);
    let dequeue: u64 = driver
        .bench
        .mem
        .read_obj(OUTPUT + u64::from(slot) * 0x400 + 32 * u64::from(TABLET_IN) + 8)
        .unwrap();
    assert_eq!(dequeue, at | 1);
    driver.point(1, 5, 5);
    assert!(driver.take_events().is_empty(), "it is stopped");
    driver.ring(slot, TABLET_IN);
    assert_eq!(driver.take_events().len(), 1);
}

#[test]
fn a_full_event_ring_loses_nothing() {
    let mut driver = Driver::new("tablet");
    driver.take_events();
    let wanted: Vec<u64> = (0..12)
        .map(|_| driver.give(make(TrbType::NoOpCommand, 0, 0, 0)))
        .collect();
    // The ring of commands has room for 15 of them.
    let mut seen = Vec::new();
    let mut given = wanted.clone();
    for _ in 0..3 {
        for _ in 0..2 {
            given.push(driver.give(make(TrbType::NoOpCommand, 0, 0, 0)));
        }
    }
    let mut full = 0;
    loop {
        let events = driver.take_events();
        if events.is_empty() {
            break;
        }
        for event in events {
            match event.kind() {
                Some(TrbType::ControllerEvent) => full += 1,
                _ => seen.push(event.parameter),
            }
        }
        driver.checkpoint();
    }
    assert_eq!(seen, given);
    assert_eq!(full, 1);
    assert_eq!(driver.op(op::USBSTS) & UsbSts::HSE.bits(), 0);
}

#[test]
fn an_event_ring_of_two_segments_is_one_ring() {
    let mut driver = Driver::new("tablet");
    driver.set_op(op::USBCMD, 0);
    let second = EVENTS + 0x1000;
    driver.bench.mem.write_obj(ERST + 16, &second).unwrap();
    driver.bench.mem.write_obj(ERST + 24, &RING).unwrap();
    driver.write(RUNTIME + rt::ERSTSZ, 2);
    driver.set_rt(rt::ERDP_LOW, second + 8 * 16);
    driver.set_rt(rt::ERSTBA_LOW, ERST);
    driver.set_op(op::USBCMD, UsbCmd::RS.bits());
    for _ in 0..14 {
        driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    }
    driver.checkpoint();
    for _ in 0..4 {
        driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    }
    let control = |at: u64| driver.bench.mem.read_obj::<u32>(at + 12).unwrap();
    // The port's event and 18 commands' in 16 and 3 places.
    assert!((0..19).all(|n| {
        let base = if n < 16 { EVENTS } else { second - 16 * 16 };
        control(base + n * 16) & 1 == 1
    }));
    assert_eq!(control(second + 3 * 16), 0);
}

#[test]
fn interrupts_wait_for_the_driver_to_be_done() {
    let mut driver = Driver::new("tablet");
    driver.take_events();
    let pending = |driver: &Driver| {
        (
            driver.read(RUNTIME + rt::IMAN) & 1,
            driver.op(op::USBSTS) >> 3 & 1,
        )
    };
    assert_eq!(pending(&driver), (0, 0));
    driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    assert_eq!(pending(&driver), (1, 1));
    driver.write(RUNTIME + rt::IMAN, 3);
    driver.set_op(op::USBSTS, UsbSts::EINT.bits());
    driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    assert_eq!(pending(&driver), (0, 0), "the driver is still busy");
    driver.set_rt(rt::ERDP_LOW, (EVENTS + 16) | 8);
    assert_eq!(pending(&driver), (1, 1), "it has not seen all");
    driver.take_events();
    assert_eq!(pending(&driver), (0, 0));
}

#[test]
fn a_suspended_tablet_wakes_the_host() {
    for (port, options) in PORTS {
        let mut driver = Driver::new(options);
        let slot = driver.enumerate(port);
        driver.queue_report(slot);
        let link = |driver: &Driver| driver.portsc(port) >> 5 & 0xf;
        let suspend = |driver: &Driver| driver.set_portsc(port, 3 << 5 | 1 << 16);
        suspend(&driver);
        assert_eq!(link(&driver), 3);
        driver.point(1, 9, 9);
        assert!(driver.take_events().is_empty(), "it may not wake the host");
        driver.set_portsc(port, 15 << 5 | 1 << 16);
        driver.set_portsc(port, 1 << 16);
        assert_eq!(link(&driver), 0);
        // A link change and the report that was kept.
        let kinds: Vec<Option<TrbType>> = driver
            .take_events()
            .iter()
            .map(|event| event.kind())
            .collect();
        assert_eq!(
            kinds,
            [Some(TrbType::PortEvent), Some(TrbType::TransferEvent)]
        );
        driver.set_portsc(port, 1 << 22);
        assert_eq!(driver.control(slot, [0, 3, 1, 0, 0, 0, 0, 0]).0, SUCCESS);
        driver.queue_report(slot);
        suspend(&driver);
        driver.checkpoint();
        driver.point(0, 10, 10);
        assert_eq!(link(&driver), 15);
        let events = driver.take_events();
        assert_eq!(
            (events.len(), events[0].kind()),
            (1, Some(TrbType::PortEvent))
        );
        driver.checkpoint();
        driver.set_portsc(port, 1 << 16 | 1 << 22);
        assert!(
            driver
                .take_events()
                .iter()
                .any(|event| event.kind() == Some(TrbType::TransferEvent))
        );
    }
}

#[test]
fn a_checkpoint_between_asking_and_moving_loses_nothing() {
    for (port, options) in PORTS {
        let mut driver = Driver::new(options);
        let slot = driver.enumerate(port);
        for n in 1..20u16 {
            driver.queue_report(slot);
            driver.checkpoint();
            driver.point(1, n * 10, 0);
            assert_eq!(driver.take_events().len(), 1);
            driver.point(0, n * 10, 0);
            driver.checkpoint();
            driver.queue_report(slot);
            assert_eq!((driver.take_events().len(), driver.report()[0]), (1, 0));
        }
    }
}

#[test]
fn doorbells_of_a_resting_controller_are_answered_later() {
    let mut driver = Driver::new("tablet");
    let slot = driver.enumerate(1);
    driver.point(1, 1, 1);
    driver.device.pause();
    driver.queue_report(slot);
    driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    assert!(driver.take_events().is_empty());
    driver.checkpoint();
    assert_eq!(driver.take_events().len(), 2);
}

#[test]
fn the_guest_saves_and_restores_the_controller() {
    let mut driver = Driver::new("tablet");
    let slot = driver.enumerate(1);
    driver.set_portsc(1, 0xfe << 16);
    driver.set_op(op::USBCMD, 0);
    driver.set_op(op::USBCMD, UsbCmd::CSS.bits());
    driver.checkpoint();
    // As Linux resumes: the registers as they were, which starts the event ring afresh, and then the controller's own.
    let at = driver.events.base + driver.events.index * 16;
    driver.set_rt(rt::ERSTBA_LOW, ERST);
    driver.set_rt(rt::ERDP_LOW, at);
    let commands = driver.commands.dequeue();
    driver
        .device
        .bar_write(0, OPERATIONAL + op::CRCR_LOW, 8, commands & !0x3f | 1);
    driver.set_op(op::USBCMD, UsbCmd::CRS.bits());
    assert_eq!(driver.op(op::USBSTS), UsbSts::HCH.bits());
    driver.set_op(op::USBCMD, UsbCmd::RS.bits());
    driver.queue_report(slot);
    driver.point(1, 3, 3);
    assert_eq!(driver.take_events().len(), 1);
    driver.set_op(op::USBCMD, UsbCmd::HCRST.bits());
    driver.set_op(op::USBCMD, UsbCmd::CRS.bits());
    assert_eq!(driver.op(op::USBSTS), (UsbSts::HCH | UsbSts::SRE).bits());
}

#[test]
fn the_command_ring_can_be_stopped() {
    let mut driver = Driver::new("tablet");
    driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    driver.take_events();
    assert_eq!(driver.op(op::CRCR_LOW), 8);
    driver.set_op(op::CRCR_LOW, 4);
    assert_eq!(driver.op(op::CRCR_LOW), 0);
    let events = driver.take_events();
    assert_eq!(events[0].status >> 24, Code::CommandRingStopped as u32);
    assert_eq!(events[0].parameter, COMMANDS + 16);
    driver.give(make(TrbType::NoOpCommand, 0, 0, 0));
    assert_eq!(driver.take_events().len(), 1);
}

#[test]
fn event_data_and_immediate_data() {
    let mut driver = Driver::new("tablet");
    let slot = driver.enumerate(1);
    // Six bytes in two buffers, the event from an Event Data TRB.
    let ring = usize::from(slot % 4) * 8 + usize::from(TABLET_IN);
    for trb in [
        make(TrbType::Normal, BUFFERS, 3, 1 << 4),
        make(TrbType::Normal, BUFFERS + 16, 3, 1 << 4),
        make(TrbType::EventData, 0xfeed, 0, 1 << 5),
    ] {
        driver.rings[ring].push(&driver.bench, trb);
    }
    driver.ring(slot, TABLET_IN);
    driver.point(1, 1023, 767);
    let events = driver.take_events();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].parameter, events[0].status),
        (0xfeed, SUCCESS << 24 | 6)
    );
    assert_eq!(driver.bench.mem.read_obj(BUFFERS), Ok([1u8, 0xff, 0x7f]));
    assert_eq!(
        driver.bench.mem.read_obj(BUFFERS + 16),
        Ok([0xffu8, 0x7f, 0])
    );
    // SET_SEL sends six bytes, here with the TRB.
    let ring = usize::from(slot % 4) * 8 + 1;
    let setup = u64::from_le_bytes([0, 48, 0, 0, 0, 0, 6, 0]);
    for trb in [
        make(TrbType::Setup, setup, 8, 1 << 6),
        make(TrbType::Data, 0x1234, 6, 1 << 6),
        make(TrbType::Status, 0, 0, 1 << 5 | 1 << 16),
    ] {
        driver.rings[ring].push(&driver.bench, trb);
    }
    driver.ring(slot, 1);
    assert_eq!(driver.take_events()[0].status >> 24, SUCCESS);
}

#[test]
fn rings_outside_memory_stop_the_controller_or_the_endpoint() {
    let mut driver = Driver::new("tablet");
    let slot = driver.enumerate(1);
    let place = u32::from(slot) << 24 | u32::from(TABLET_IN) << 16;
    assert_eq!(
        driver.command(make(TrbType::StopEndpoint, 0, 0, place)).0,
        SUCCESS
    );
    assert_eq!(
        driver
            .command(make(TrbType::SetDequeue, u64::MAX - 15, 0, place))
            .0,
        SUCCESS
    );
    driver.ring(slot, TABLET_IN);
    assert_eq!(driver.take_events()[0].status >> 24, Code::Trb as u32);
    assert_eq!(driver.endpoint_state(slot, TABLET_IN), 4);
    // A link to itself.
    let ring = usize::from(slot % 4) * 8 + usize::from(TABLET_IN);
    let base = driver.rings[ring].base;
    assert_eq!(
        driver
            .command(make(TrbType::SetDequeue, base | 1, 0, place))
            .0,
        SUCCESS
    );
    make(TrbType::Link, base, 0, 1)
        .write(&driver.bench.mem, base)
        .unwrap();
    driver.ring(slot, TABLET_IN);
    assert_eq!(driver.take_events()[0].status >> 24, Code::Trb as u32);
    driver.give(make(TrbType::Link, u64::MAX - 15, 0, 0));
    assert_eq!(
        driver.op(op::USBSTS) & (UsbSts::HCH | UsbSts::HSE).bits(),
        (UsbSts::HCH | UsbSts::HSE).bits()
    );
    driver.start();
    driver.enumerate(1);
}

#[test]
fn registers_read_by_byte_and_word() {
    let driver = Driver::new("");
    let read = |offset, size| driver.device.bar_read(0, offset, size);
    assert_eq!(
        (read(0, 1), read(2, 2), read(0, 4)),
        (0x20, 0x100, 0x100_0020)
    );
    assert_eq!(read(0x14, 8), 0xcc0_0000_04a0);
    assert_eq!(driver.device.cfg_read(0x60, 1), Some(0x30));
    assert_eq!(driver.portsc(1) & 1, 0);
}

#[test]
fn bad_options_are_named() {
    let bench = Bench::new(Clock::Instructions);
    for (options, wanted) in [
        ("mouse", "pci.0.3.0.slot.1: unknown device \"mouse\""),
        (
            "tablet,tablet=usb=4",
            "pci.0.3.0.slot.2.usb: \"4\" is not a number from 2 to 3",
        ),
        (
            "tablet=fast",
            "pci.0.3.0.slot.1: device \"tablet\" has no option \"fast\"",
        ),
        (
            "tablet,tablet,tablet,tablet,tablet",
            "pci.0.3.0.slot.5: there are only 4 ports of that kind",
        ),
    ] {
        let error = bench.build(&XHCI, options, None).err().expect(options);
        assert_eq!(error.to_string(), wanted);
    }
    assert!(bench.build(&XHCI, ",tablet,,tablet=usb=0x2", None).is_ok());
}

#[test]
fn a_state_of_something_else_is_refused() {
    let mut driver = Driver::new("tablet");
    driver.enumerate(1);
    driver.device.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    for other in ["", "tablet=usb=2", "tablet,tablet"] {
        let error = driver
            .bench
            .build(&XHCI, other, Some(&saved))
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("port "), "{error}");
    }
    // Whatever is in the bytes, nothing panics.
    for at in 0..saved.bytes.len() {
        for bit in 0..8 {
            let mut broken = saved.clone();
            broken.bytes[at] ^= 1 << bit;
            if let Ok(other) = driver.bench.build(&XHCI, "tablet", Some(&broken)) {
                other.device.resume();
            }
        }
    }
}
