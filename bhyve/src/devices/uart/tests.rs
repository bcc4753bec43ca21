// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the serial port.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[derive(Default)]
struct Line(Arc<AtomicBool>);

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        assert_ne!(
            self.0.swap(asserted, Ordering::Relaxed),
            asserted,
            "only changes are passed on"
        );
    }
}

#[derive(Default)]
struct Terminal {
    sent: Mutex<Vec<u8>>,
    wanted: AtomicUsize,
}

impl TtySink for Terminal {
    fn send(&self, byte: u8) {
        self.sent.lock().push(byte);
    }
    fn input_wanted(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }
}

fn port() -> (Uart, Arc<AtomicBool>, Arc<Terminal>) {
    let line = Arc::new(AtomicBool::new(false));
    let uart = Uart::new(Box::new(Line(Arc::clone(&line))));
    let terminal = Arc::new(Terminal::default());
    uart.connect(terminal.clone());
    (uart, line, terminal)
}

#[test]
fn transmits_and_tells_when_empty() {
    let (uart, line, terminal) = port();
    uart.write(REG_IER, Ier::ETXRDY.bits());
    assert!(line.load(Ordering::Relaxed), "empty when enabled");
    assert_eq!(uart.read(REG_IIR), Iir::TxReady.bits());
    assert!(
        !line.load(Ordering::Relaxed),
        "reading the reason takes it away"
    );
    assert_eq!(uart.read(REG_IIR), Iir::NoPending.bits());
    for byte in b"hello" {
        uart.write(REG_DATA, *byte);
    }
    assert!(line.load(Ordering::Relaxed));
    assert_eq!(*terminal.sent.lock(), b"hello");
    assert_eq!(uart.read(REG_LSR), LSR_TX_EMPTY.bits());
    uart.write(REG_IER, 0);
    assert!(!line.load(Ordering::Relaxed));
    // The divisor is not data.
    uart.write(REG_LCR, (Lcr::DLAB | Lcr::LENGTH).bits());
    uart.write(REG_DATA, 1);
    uart.write(REG_IER, 0);
    assert_eq!((uart.read(REG_DATA), uart.read(REG_IER)), (1, 0));
    assert_eq!(terminal.sent.lock().len(), 5);
}

#[test]
fn receives_as_much_as_fits() {
    let (uart, line, terminal) = port();
    assert_eq!(uart.room(), 1);
    uart.write(REG_IIR, Fcr::ENABLE.bits() | 0x80);
    assert_eq!(uart.room(), FIFO_SIZE);
    uart.write(REG_IER, (Ier::ERXRDY | Ier::ERLS).bits());
    let wanted = terminal.wanted.load(Ordering::Relaxed);
    uart.receive(b"1234567");
    assert_eq!(uart.read(REG_IIR), Iir::RxTimeout.bits() | IIR_FIFO_MASK);
    uart.receive(b"8");
    assert_eq!(
        uart.read(REG_IIR),
        Iir::RxReady.bits() | IIR_FIFO_MASK,
        "the trigger is 8"
    );
    uart.receive(b"9abcdefg");
    assert_eq!(uart.room(), 0);
    assert!(line.load(Ordering::Relaxed));
    uart.receive(b"!");
    assert_eq!(uart.read(REG_IIR), Iir::LineStatus.bits() | IIR_FIFO_MASK);
    assert_eq!(
        uart.read(REG_LSR),
        (LSR_TX_EMPTY | Lsr::RXRDY | Lsr::OE).bits()
    );
    let bytes: Vec<_> = (0..FIFO_SIZE).map(|_| uart.read(REG_DATA)).collect();
    assert_eq!(bytes, b"123456789abcdefg");
    assert!(!line.load(Ordering::Relaxed));
    assert_eq!(terminal.wanted.load(Ordering::Relaxed), wanted + FIFO_SIZE);
    uart.pause();
    assert_eq!(uart.room(), 0);
    uart.resume();
    assert_eq!(uart.room(), FIFO_SIZE);
}

#[test]
fn loopback_is_what_drivers_probe() {
    let (uart, _, terminal) = port();
    assert_eq!(uart.read(REG_MSR), (Msr::DCD | Msr::DSR | Msr::CTS).bits());
    // Linux's test for a 16550.
    uart.write(REG_MCR, (Mcr::LOOPBACK | Mcr::OUT2 | Mcr::RTS).bits());
    assert_eq!(uart.read(REG_MSR) & 0xf0, 0x90);
    assert_eq!(uart.room(), 0);
    uart.write(REG_DATA, b'x');
    assert!(terminal.sent.lock().is_empty());
    assert_eq!(uart.read(REG_LSR) & Lsr::RXRDY.bits(), Lsr::RXRDY.bits());
    assert_eq!(uart.read(REG_DATA), b'x');
    uart.write(REG_MCR, (Mcr::LOOPBACK | Mcr::OUT1).bits());
    uart.read(REG_MSR);
    uart.write(REG_IER, Ier::EMSC.bits());
    uart.write(REG_MCR, Mcr::LOOPBACK.bits());
    assert_eq!(uart.read(REG_IIR), Iir::ModemStatus.bits());
    assert_eq!(uart.read(REG_MSR), Msr::TERI.bits());
    let wanted = terminal.wanted.load(Ordering::Relaxed);
    uart.write(REG_MCR, 0);
    assert_eq!(
        terminal.wanted.load(Ordering::Relaxed),
        wanted + 1,
        "the line is back"
    );
    uart.write(REG_SCR, 0xa5);
    assert_eq!(uart.read(REG_SCR), 0xa5);
}

#[derive(Debug, Clone)]
enum Access {
    Read(u8),
    Write(u8, u8),
    Receive(u8),
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        (0..8_u8).prop_map(Access::Read),
        (0..8_u8, any::<u8>()).prop_map(|(reg, value)| Access::Write(reg, value)),
        any::<u8>().prop_map(Access::Receive),
    ]
}

fn apply(uart: &Uart, access: &Access) -> Option<u8> {
    match access {
        Access::Read(reg) => return Some(uart.read(*reg)),
        Access::Write(reg, value) => uart.write(*reg, *value),
        Access::Receive(byte) => uart.receive(&[*byte]),
    }
    None
}

proptest! {
    #[test]
    fn a_restored_twin_behaves_the_same(
        before in proptest::collection::vec(access(), 0..100),
        after in proptest::collection::vec(access(), 0..100),
    ) {
        let (uart, line, terminal) = port();
        for access in &before {
            apply(&uart, access);
        }
        let state = uart.capture();
        let twin_line = Arc::new(AtomicBool::new(line.load(Ordering::Relaxed)));
        let twin = Uart::new(Box::new(Line(Arc::clone(&twin_line))));
        twin.apply(state).unwrap();
        let twin_terminal = Arc::new(Terminal::default());
        twin.connect(twin_terminal.clone());
        terminal.sent.lock().clear();
        for access in &after {
            prop_assert_eq!(apply(&uart, access), apply(&twin, access));
            prop_assert_eq!(line.load(Ordering::Relaxed), twin_line.load(Ordering::Relaxed));
            prop_assert_eq!(uart.room(), twin.room());
        }
        prop_assert_eq!(&*terminal.sent.lock(), &*twin_terminal.sent.lock());
        prop_assert_eq!(uart.capture(), twin.capture());
    }
}

#[test]
fn impossible_states_are_refused() {
    let good = port().0.capture();
    let with = |change: fn(&mut UartState)| {
        let mut state = good.clone();
        change(&mut state);
        Uart::new(Box::new(Line::default())).apply(state).is_ok()
    };
    assert!(with(|_| {}));
    assert!(!with(|state| state.ier = 0x10));
    assert!(!with(|state| state.fcr = 0x40));
    assert!(!with(|state| state.mcr = 0x20));
    assert!(!with(|state| state.msr = 0));
    assert!(!with(|state| state.lsr = 1));
    assert!(!with(|state| state.rx = vec![0; 2]));
}
