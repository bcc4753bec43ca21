// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the back ends.

use super::*;
use std::io::{BufRead, BufReader};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// A port with a small receiver.
#[derive(Default)]
struct Port {
    room: AtomicUsize,
    got: Mutex<Vec<u8>>,
}

impl TtyClient for Port {
    fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }
    fn receive(&self, bytes: &[u8]) {
        self.room.fetch_sub(bytes.len(), Ordering::Relaxed);
        self.got.lock().extend_from_slice(bytes);
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} does not happen"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn tcp(
    port: &Arc<Port>,
) -> (
    Arc<Tty>,
    SocketAddr,
    Arc<Mevent>,
    std::thread::JoinHandle<()>,
) {
    let mevent = Arc::new(Mevent::new().unwrap());
    let client: Arc<dyn TtyClient> = port.clone();
    let tty = Arc::new_cyclic(|this| Tty {
        name: "tcp".into(),
        report: Reporter::of_device("com1"),
        mevent: Arc::clone(&mevent),
        client: Arc::downgrade(&client),
        this: Weak::clone(this),
        line: Mutex::new(None),
        output: Mutex::new(None),
    });
    let address = tty.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let running = Arc::clone(&mevent);
    let thread = std::thread::spawn(move || running.run().unwrap());
    (tty, address, mevent, thread)
}

#[test]
fn one_connection_at_a_time() {
    let port = Arc::new(Port::default());
    let (tty, address, mevent, thread) = tcp(&port);
    // No client is there: lost.
    tty.send(b'?');
    let mut first = TcpStream::connect(address).unwrap();
    until("the connection", || tty.line.lock().is_some());
    let mut line = String::new();
    BufReader::new(TcpStream::connect(address).unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.as_bytes(), BUSY);

    // Nothing is read beyond what the port takes.
    first.write_all(b"hello").unwrap();
    until("the full port", || {
        tty.line.lock().as_ref().is_some_and(|line| line.stopped)
    });
    port.room.store(3, Ordering::Relaxed);
    tty.input_wanted();
    until("input", || port.got.lock().len() == 3);
    until("the full port", || {
        tty.line.lock().as_ref().is_some_and(|line| line.stopped)
    });
    port.room.store(100, Ordering::Relaxed);
    tty.input_wanted();
    until("the rest", || *port.got.lock() == b"hello");
    tty.send(b'!');
    let mut byte = [0];
    first.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!");

    drop(first);
    until("the hang-up", || tty.line.lock().is_none());
    let mut second = TcpStream::connect(address).unwrap();
    until("the second connection", || tty.line.lock().is_some());
    tty.send(b'2');
    second.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"2");
    mevent.stop();
    thread.join().unwrap();
}

#[test]
fn a_listener_that_does_not_read_costs_nothing_but_output() {
    let port = Arc::new(Port::default());
    let (tty, address, mevent, thread) = tcp(&port);
    let mut peer = TcpStream::connect(address).unwrap();
    until("the connection", || tty.line.lock().is_some());
    // More than any socket buffer and ours hold.
    for n in 0..16 << 20 {
        tty.send(n as u8);
        if tty
            .output
            .lock()
            .as_ref()
            .is_some_and(|output| output.pending.len() == PENDING_LIMIT)
        {
            break;
        }
    }
    assert_eq!(
        tty.output.lock().as_ref().unwrap().pending.len(),
        PENDING_LIMIT
    );
    // What was taken arrives in order once it is read.
    let mut buffer = vec![0; PENDING_LIMIT];
    peer.read_exact(&mut buffer).unwrap();
    assert!(buffer.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    peer.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    while tty
        .output
        .lock()
        .as_ref()
        .is_some_and(|output| !output.pending.is_empty())
    {
        assert!(peer.read(&mut buffer).unwrap() > 0);
    }
    mevent.stop();
    thread.join().unwrap();
}

#[test]
fn what_cannot_be_opened_is_named() {
    let mevent = Arc::new(Mevent::new().unwrap());
    let port: Arc<dyn TtyClient> = Arc::new(Port::default());
    for path in [
        "nonsense",
        "tcp=nonsense",
        "tcp=1.2.3.4",
        "/dev/nonexistent-tty",
    ] {
        let error = Tty::open(path, "com1", &mevent, Arc::downgrade(&port))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(path) && error.contains("com1"), "{error}");
    }
    assert_eq!(tcp_address("[::1]:5000").unwrap().port(), 5000);
}
