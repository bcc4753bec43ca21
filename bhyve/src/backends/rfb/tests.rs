// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the VNC server, with a viewer of their own.

use super::pixel::PixelFormat;
use super::*;
use crate::backends::console::{BootScreen, Geometry, Image, KeyEvent, Keyboard, Picture};
use flate2::{Decompress, FlushDecompress};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

struct Canvas(Mutex<Image>);

impl Picture for Canvas {
    fn geometry(&self) -> Geometry {
        self.0.lock().geometry
    }
    fn capture(&self, image: &mut Image) {
        *image = self.0.lock().clone();
    }
    fn boot_screen(&self) -> Option<BootScreen> {
        None
    }
}

#[derive(Default)]
struct Keys(Mutex<Vec<KeyEvent>>);

impl Keyboard for Keys {
    fn kbd_event(&self, event: KeyEvent) -> bool {
        self.0.lock().push(event);
        true
    }
}

/// A picture with noise, blank space and an edge that is no multiple of a tile.
fn picture(width: u16, height: u16) -> Image {
    let geometry = Geometry { width, height };
    let mut x = 1_u32;
    let pixels = (0..geometry.pixels())
        .map(|at| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if at % usize::from(width) < 70 {
                x >> 8
            } else {
                0x40_80c0
            }
        })
        .collect();
    Image { geometry, pixels }
}

struct Stage {
    canvas: Arc<Canvas>,
    keys: Arc<Keys>,
    address: SocketAddr,
    _server: Server,
}

fn stage(password: Option<&str>) -> Stage {
    let console = Arc::new(Console::new());
    console.resume();
    let canvas = Arc::new(Canvas(Mutex::new(picture(200, 100))));
    let keys = Arc::<Keys>::default();
    let (picture, keyboard) = (Arc::downgrade(&canvas), Arc::downgrade(&keys));
    console.set_picture(picture);
    console.register_keyboard(1, keyboard);
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap();
    let options = ServerOptions {
        endpoint: Endpoint::Tcp(address),
        password: password.map(str::to_owned),
    };
    let _server = Server::start(options, console).unwrap();
    Stage {
        canvas,
        keys,
        address,
        _server,
    }
}

fn take<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A viewer behind the handshake.
struct Peer {
    stream: TcpStream,
    format: PixelFormat,
    encoding: i32,
    inflate: Decompress,
    screen: Vec<u8>,
    geometry: Geometry,
}

impl Peer {
    fn connect(stage: &Stage, version: &[u8; 12], password: Option<&str>) -> Option<Self> {
        let mut stream = TcpStream::connect(stage.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        assert_eq!(&take::<12>(&mut stream), b"RFB 003.008\n");
        stream.write_all(version).unwrap();
        let security = if version[10] == b'3' {
            take::<4>(&mut stream)[3]
        } else {
            let [1, security] = take(&mut stream) else {
                panic!()
            };
            stream.write_all(&[security]).unwrap();
            security
        };
        if security == 2 {
            let challenge = take(&mut stream);
            let response = auth::respond(password.unwrap_or_default(), challenge);
            stream.write_all(&response).unwrap();
        }
        if (security == 2 || version[10] == b'8') && take::<4>(&mut stream) != [0; 4] {
            return None;
        }
        stream.write_all(&[1]).unwrap();
        let [w1, w0, h1, h0] = take(&mut stream);
        let geometry = Geometry {
            width: u16::from_be_bytes([w1, w0]),
            height: u16::from_be_bytes([h1, h0]),
        };
        assert_eq!(take(&mut stream), PixelFormat::NATIVE.to_bytes());
        assert_eq!(&take::<9>(&mut stream), b"\0\0\0\x05bhyve");
        Some(Self {
            stream,
            format: PixelFormat::NATIVE,
            encoding: 0,
            inflate: Decompress::new(true),
            screen: Vec::new(),
            geometry,
        })
    }

    fn encodings(&mut self, encodings: &[i32]) {
        self.encoding = encodings[0];
        let mut message = vec![2, 0, 0, encodings.len() as u8];
        encodings
            .iter()
            .for_each(|encoding| message.extend(encoding.to_be_bytes()));
        self.stream.write_all(&message).unwrap();
    }

    fn format(&mut self, format: PixelFormat) {
        self.format = format;
        self.stream.write_all(&[0, 0, 0, 0]).unwrap();
        self.stream.write_all(&format.to_bytes()).unwrap();
    }

    fn request(&mut self, incremental: bool) {
        let Geometry { width, height } = self.geometry;
        let mut message = vec![3, incremental.into(), 0, 0, 0, 0];
        message.extend(width.to_be_bytes());
        message.extend(height.to_be_bytes());
        self.stream.write_all(&message).unwrap();
    }

    fn pixel(&self, pixel: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.format.put(pixel, &mut bytes);
        bytes
    }

    fn inflated(&mut self) -> Vec<u8> {
        let len = u32::from_be_bytes(take(&mut self.stream));
        let mut packed = vec![0; len as usize];
        self.stream.read_exact(&mut packed).unwrap();
        let mut plain = Vec::with_capacity(1 << 20);
        self.inflate
            .decompress_vec(&packed, &mut plain, FlushDecompress::Sync)
            .unwrap();
        plain
    }

    /// The rectangles of an update; pixels go to the screen. ZRLE's compact pixels are tested in 16 bits, where they are
    /// no others.
    fn update(&mut self) -> Vec<(Geometry, i32)> {
        let [0, _, n1, n0] = take(&mut self.stream) else {
            panic!()
        };
        let mut rects = Vec::new();
        let bytes = self.pixel(0).len();
        for _ in 0..u16::from_be_bytes([n1, n0]) {
            let head: [u8; 8] = take(&mut self.stream);
            let number = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
            let (x, y, width, height) = (number(0), number(2), number(4), number(6));
            let encoding = i32::from_be_bytes(take(&mut self.stream));
            let geometry = Geometry {
                width: width as u16,
                height: height as u16,
            };
            rects.push((geometry, encoding));
            if encoding < 0 {
                continue;
            }
            assert_eq!(encoding, self.encoding);
            let stride = usize::from(self.geometry.width) * bytes;
            self.screen
                .resize(stride * usize::from(self.geometry.height), 0);
            let data = match encoding {
                0 => {
                    let mut data = vec![0; width * height * bytes];
                    self.stream.read_exact(&mut data).unwrap();
                    data
                }
                _ => self.inflated(),
            };
            let mut data = data.as_slice();
            let tile = if encoding == 16 { 64 } else { usize::MAX >> 1 };
            for top in (0..height).step_by(tile) {
                for left in (0..width).step_by(tile) {
                    let (columns, rows) = (tile.min(width - left), tile.min(height - top));
                    let solid = encoding == 16 && {
                        let kind = data[0];
                        data = &data[1..];
                        kind == 1
                    };
                    for row in 0..rows {
                        let at = (y + top + row) * stride + (x + left) * bytes;
                        let to = &mut self.screen[at..at + columns * bytes];
                        if solid {
                            to.chunks_mut(bytes)
                                .for_each(|to| to.copy_from_slice(&data[..bytes]));
                        } else {
                            let (line, rest) = data.split_at(columns * bytes);
                            to.copy_from_slice(line);
                            data = rest;
                        }
                    }
                    if solid {
                        data = &data[bytes..];
                    }
                }
            }
            assert!(data.is_empty());
        }
        rects
    }

    fn shows(&self, image: &Image) -> bool {
        let pixels = image.pixels.iter();
        self.screen
            == pixels
                .flat_map(|pixel| self.pixel(*pixel))
                .collect::<Vec<_>>()
    }
}

const V38: &[u8; 12] = b"RFB 003.008\n";

fn rgb565() -> PixelFormat {
    PixelFormat::parse(&[16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]).unwrap()
}

#[test]
fn every_version_gets_the_picture() {
    let stage = stage(None);
    for version in [V38, b"RFB 003.007\n", b"RFB 003.003\n"] {
        let mut peer = Peer::connect(&stage, version, None).unwrap();
        peer.request(false);
        peer.update();
        assert!(peer.shows(&stage.canvas.0.lock()));
    }
}

#[test]
fn a_socket_in_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vnc");
    let options = || ServerOptions {
        endpoint: Endpoint::Unix(path.clone()),
        password: None,
    };
    let console = Arc::new(Console::new());
    let (came, first) = std::sync::mpsc::channel();
    console.on_viewer(move || came.send(()).unwrap());
    let server = Server::start(options(), Arc::clone(&console)).unwrap();
    assert!(Server::start(options(), Arc::clone(&console)).is_err());
    let mut stream = UnixStream::connect(&path).unwrap();
    let mut version = [0; 12];
    stream.read_exact(&mut version).unwrap();
    stream.write_all(&version).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    assert!(first.try_recv().is_err(), "nobody has got in yet");
    stream.write_all(&[1, 1]).unwrap();
    stream.read_exact(&mut [0; 4 + 24 + 5]).unwrap();
    first.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn encodings_and_formats_show_the_same_to_several_viewers() {
    let stage = stage(None);
    let mut peers = Vec::new();
    for encoding in [0, 6, 16] {
        let mut peer = Peer::connect(&stage, V38, None).unwrap();
        peer.encodings(&[encoding, 0]);
        peer.format(rgb565());
        peer.request(false);
        peer.update();
        assert!(peer.shows(&stage.canvas.0.lock()), "{encoding}");
        // The first look for changes finds them all sent.
        peer.request(true);
        peers.push(peer);
    }
    std::thread::sleep(Duration::from_millis(100));
    stage.canvas.0.lock().pixels[200 * 99 + 199] = 0xff_0000;
    for peer in &mut peers {
        // Of the tiles only the last one has changed.
        let rects = peer.update();
        assert_eq!(rects.len(), 1);
        assert_eq!(
            rects[0].0,
            Geometry {
                width: 8,
                height: 36
            }
        );
        assert!(peer.shows(&stage.canvas.0.lock()));
    }
}

#[test]
fn a_new_size_is_told() {
    let stage = stage(None);
    let mut peer = Peer::connect(&stage, V38, None).unwrap();
    peer.encodings(&[6, -223, -258]);
    peer.request(false);
    assert!(peer.update().iter().any(|(_, encoding)| *encoding == -258));
    *stage.canvas.0.lock() = picture(90, 300);
    peer.request(true);
    let size = Geometry {
        width: 90,
        height: 300,
    };
    assert_eq!(peer.update(), [(size, -223)]);
    peer.geometry = size;
    peer.screen.clear();
    peer.request(true);
    peer.update();
    assert!(peer.shows(&stage.canvas.0.lock()));
}

#[test]
fn a_viewer_that_knows_one_size_only_keeps_it() {
    let stage = stage(None);
    let mut peer = Peer::connect(&stage, V38, None).unwrap();
    peer.request(false);
    peer.update();
    // Wider, and not as high: what is missing is black.
    let other = picture(300, 50);
    *stage.canvas.0.lock() = other.clone();
    peer.request(true);
    peer.update();
    let mut shown = picture(200, 100);
    for (y, row) in shown.pixels.chunks_mut(200).enumerate() {
        match other.pixels.chunks(300).nth(y) {
            Some(from) => row.copy_from_slice(&from[..200]),
            None => row.fill(0),
        }
    }
    assert!(peer.shows(&shown));
}

#[test]
fn a_colour_map_is_told_to_who_wants_one() {
    let stage = stage(None);
    let mapped = PixelFormat::parse(&[8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let mut peer = Peer::connect(&stage, V38, None).unwrap();
    // What it has itself is of no interest.
    peer.stream
        .write_all(&[1, 0, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9])
        .unwrap();
    for _ in 0..2 {
        peer.format(mapped);
        peer.request(false);
        assert_eq!(take(&mut peer.stream), [1, 0, 0, 0, 0, 216]);
        let map: [u8; 216 * 6] = take(&mut peer.stream);
        assert_eq!(map[6..12], [0, 0, 0, 0, 0x33, 0x33]);
        peer.update();
        assert!(peer.shows(&stage.canvas.0.lock()));
    }
    // Once is enough.
    peer.encodings(&[16]);
    peer.request(false);
    peer.screen.clear();
    peer.update();
    assert!(peer.shows(&stage.canvas.0.lock()));
}

#[test]
fn a_password_is_asked_for() {
    let stage = stage(Some("secret"));
    for version in [V38, b"RFB 003.007\n", b"RFB 003.003\n"] {
        assert!(Peer::connect(&stage, version, Some("Secret")).is_none());
        assert!(Peer::connect(&stage, version, Some("secret")).is_some());
    }
}

#[test]
fn keys_arrive() {
    let stage = stage(None);
    let mut peer = Peer::connect(&stage, V38, None).unwrap();
    peer.stream.write_all(&[4, 1, 0, 0, 0, 0, 0, 0x61]).unwrap();
    peer.stream
        .write_all(&[255, 0, 0, 0, 0, 0, 0, 0x61, 0, 0, 0, 0x1e])
        .unwrap();
    // An update is answered after what came before it.
    peer.request(false);
    peer.update();
    let key = |down, keycode| KeyEvent {
        down,
        keysym: 0x61,
        keycode,
    };
    assert_eq!(*stage.keys.0.lock(), [key(true, 0), key(false, 0x1e)]);
}

#[test]
fn messages_of_any_bytes_are_read_or_refused() {
    let mut x = 7_u64;
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..x % 40 + 1 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.push((x >> 56) as u8);
        }
        // Most first bytes are no message.
        bytes[0] = [0, 2, 3, 4, 5, 6, 255, bytes[0]][usize::from(bytes[0] % 8)];
        let mut rest = bytes.as_slice();
        while message::read(&mut rest).is_ok() {}
    }
}

#[test]
fn hostile_viewers_harm_nobody() {
    let stage = stage(None);
    let mut x = 3_u64;
    let mut silent = Vec::new();
    for round in 0..60 {
        if round % 10 == 0 {
            // They connect and say nothing, which is all that they may do for a while.
            silent.push(TcpStream::connect(stage.address).unwrap());
        }
        let Some(mut peer) = Peer::connect(&stage, V38, None) else {
            continue;
        };
        let bytes: Vec<u8> = (0..200)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (x >> 56) as u8 % 8
            })
            .collect();
        // It may have been thrown out in the middle.
        let _ = peer.stream.write_all(&bytes);
    }
    let mut peer = Peer::connect(&stage, V38, None).unwrap();
    peer.request(false);
    peer.update();
    assert!(peer.shows(&stage.canvas.0.lock()));
}
