// SPDX-License-Identifier: BSD-2-Clause

//! Hostile viewers, several at a time, while the picture changes.

use super::auth;
use super::pixel::FORMAT_LEN;
use super::session::Viewer;
use super::stream::Stream;
use crate::backends::console::{
    BootScreen, Console, Geometry, Image, KeyEvent, Keyboard, Picture, Pointer, PtrEvent,
};
use crate::fuzz::Chance;
use parking_lot::Mutex;
use std::io;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A picture that is as large as it is told to be, a keyboard and a pointer.
struct Screen(Mutex<Geometry>);

impl Picture for Screen {
    fn geometry(&self) -> Geometry {
        *self.0.lock()
    }

    fn capture(&self, image: &mut Image) {
        let geometry = self.geometry();
        let pixels = (0..geometry.pixels() as u32).map(|at| at.wrapping_mul(at >> 5) & 0xff_ffff);
        image.geometry = geometry;
        image.pixels = pixels.collect();
    }

    fn boot_screen(&self) -> Option<BootScreen> {
        None
    }
}

impl Keyboard for Screen {
    fn kbd_event(&self, event: KeyEvent) -> bool {
        event.down
    }
}

impl Pointer for Screen {
    fn ptr_event(&self, event: PtrEvent) -> bool {
        event.buttons == 0
    }
}

struct Peer {
    stream: UnixStream,
    viewer: Viewer,
}

const PASSWORD: &str = "secret";

fn size(chance: &mut Chance<'_>) -> Geometry {
    Geometry {
        width: chance.below(200) as u16,
        height: chance.below(100) as u16,
    }
}

/// What viewers send: those that know the protocol, and those that do not.
pub fn vnc(input: &[u8]) {
    let mut chance = Chance::new(input);
    let password = (chance.below(4) == 0).then(|| Arc::from(PASSWORD));
    let console = Arc::new(Console::new());
    let screen = Arc::new(Screen(Mutex::new(size(&mut chance))));
    console.set_picture(Arc::downgrade(&screen) as _);
    console.register_keyboard(1, Arc::downgrade(&screen) as _);
    console.register_pointer(1, Arc::downgrade(&screen) as _);
    console.resume();
    let mut peers: Vec<Peer> = (0..1 + chance.below(3))
        .map(|_| {
            let (stream, served) = UnixStream::pair().expect("a connection");
            let viewer =
                Viewer::start(Stream::Unix(served), Arc::clone(&console), password.clone())
                    .expect("a viewer's thread");
            let mut peer = Peer { stream, viewer };
            if chance.below(8) != 0 {
                // One that is turned away has nothing to hear.
                let _ = peer.enter(password.is_some(), &mut chance);
            }
            peer
        })
        .collect();
    while !chance.is_over() {
        match chance.below(16) {
            0 => *screen.0.lock() = size(&mut chance),
            1 => console.pause(),
            2 => console.resume(),
            _ => {
                let n = chance.below(peers.len() as u64) as usize;
                let sent = message(&mut chance);
                // It may have been turned away.
                let _ = peers[n].stream.write_all(&sent);
            }
        }
    }
    for Peer { mut stream, viewer } in peers {
        // Everything that was sent is read before the end of it is seen.
        let _ = stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        drop(viewer);
    }
}

impl Peer {
    /// Goes through the handshake as one who knows the password.
    fn enter(&mut self, password: bool, chance: &mut Chance<'_>) -> io::Result<()> {
        let version = chance.pick(&[b"RFB 003.008\n", b"RFB 003.007\n", b"RFB 003.003\n"]);
        self.stream.read_exact(&mut [0; 12])?;
        self.stream.write_all(version)?;
        if version[10] == b'3' {
            self.stream.read_exact(&mut [0; 4])?;
        } else {
            let mut types = [0; 2];
            self.stream.read_exact(&mut types)?;
            self.stream.write_all(&types[1..])?;
        }
        if password {
            let mut challenge = [0; 16];
            self.stream.read_exact(&mut challenge)?;
            self.stream.write_all(&auth::respond(PASSWORD, challenge))?;
        }
        if password || version[10] == b'8' {
            self.stream.read_exact(&mut [0; 4])?;
        }
        self.stream.write_all(&[1])?;
        self.stream.read_exact(&mut [0; 24 + 5])
    }
}

/// A message of a known kind with anything in it, or anything.
fn message(chance: &mut Chance<'_>) -> Vec<u8> {
    const ENCODINGS: [i32; 6] = [0, 6, 16, -223, -258, 5];
    let mut sent = Vec::new();
    match chance.below(8) {
        0 => {
            sent.extend([0; 4]);
            let mut format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
            format[0] = chance.pick(&[8, 16, 32, 24]);
            for _ in 0..chance.below(4) {
                format[chance.below(FORMAT_LEN as u64) as usize] = chance.below(256) as u8;
            }
            sent.extend(format);
        }
        1 => {
            let encodings: Vec<i32> = (0..chance.below(6))
                .map(|_| chance.pick(&ENCODINGS))
                .collect();
            sent.extend([2, 0]);
            sent.extend((encodings.len() as u16).to_be_bytes());
            sent.extend(encodings.into_iter().flat_map(i32::to_be_bytes));
        }
        2 | 3 => {
            sent.extend([3, chance.below(2) as u8]);
            for _ in 0..4 {
                let edge = chance.pick(&[0, 1, 63, 64, 200, u16::MAX]);
                sent.extend(edge.to_be_bytes());
            }
        }
        4 => {
            sent.extend([4, chance.below(2) as u8, 0, 0]);
            sent.extend((chance.value(1 << 20) as u32).to_be_bytes());
        }
        5 => {
            sent.push(5);
            sent.extend(chance.bytes(5));
        }
        6 => {
            sent.extend([255, 0]);
            sent.extend(chance.bytes(10));
        }
        _ => sent.extend(chance.some_bytes(64)),
    }
    sent
}
