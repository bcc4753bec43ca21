// SPDX-License-Identifier: BSD-2-Clause

//! Tests of what the threads of a disk do and who waits for them.

use super::*;
use parking_lot::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use vmmapi::{Choice, CreateOptions, Vm};

/// A completion that takes as long as the test wants.
struct Slow {
    begun: Sender<()>,
    end: Mutex<Receiver<()>>,
}

impl Completion<()> for Slow {
    fn complete(&self, _request: Request<()>, _result: io::Result<()>, _more: bool) {
        self.begun.send(()).unwrap();
        self.end.lock().recv().unwrap();
    }
}

#[test]
fn who_waits_for_the_last_request_is_told() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let create = CreateOptions {
        backend: Choice::Soft,
        ..CreateOptions::default()
    };
    let vm = Vm::create("block-if-quiesce", &create).unwrap();
    let options = Options {
        path: image.path().to_owned(),
        nocache: false,
        sync: false,
        read_only: false,
        no_delete: false,
        sector_size: None,
        forced: false,
    };
    let disk = BlockIf::open(options, vm.memory(), Clock::Host, "test").unwrap();
    let soon = |milliseconds| Instant::now() + Duration::from_millis(milliseconds);
    assert!(disk.quiesce(soon(0)), "nothing was asked for");
    let (begun, begins) = mpsc::channel();
    let (end, ends) = mpsc::channel();
    let done: Arc<dyn Completion<()>> = Arc::new(Slow {
        begun,
        end: Mutex::new(ends),
    });
    let flush = Request {
        op: Op::Flush,
        offset: 0,
        len: 0,
        segs: Vec::new(),
        token: (),
    };
    disk.submit(&mut vec![flush], &done);
    begins.recv().unwrap();
    // Its completion is not over.
    assert!(!disk.quiesce(soon(20)));
    let deadline = soon(20_000);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| disk.quiesce(deadline));
        std::thread::sleep(Duration::from_millis(20));
        end.send(()).unwrap();
        assert!(waits.join().unwrap());
    });
    assert!(Instant::now() < deadline, "found out, and not told");
    vm.destroy().unwrap();
}
