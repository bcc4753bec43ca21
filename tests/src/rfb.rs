// SPDX-License-Identifier: BSD-2-Clause

//! A viewer: a small client of the remote framebuffer protocol 3.8 (RFC 6143), for tests of the picture.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a server may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Two pictures this far apart that are the same are one that does not change.
const STILL: Duration = Duration::from_secs(2);

/// Keysym of the return key.
pub const RETURN: u32 = 0xff0d;

/// A picture: its size in pixels, and rows of 0x00RRGGBB from the top.
#[derive(Clone, PartialEq, Eq)]
pub struct Screen {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
    /// The pixels.
    pub pixels: Vec<u32>,
}

impl Screen {
    /// How many pixels are not black.
    pub fn lit(&self) -> usize {
        self.pixels.iter().filter(|pixel| **pixel != 0).count()
    }

    /// How many pixels differ from the other one's, which has the same size.
    pub fn differences(&self, other: &Screen) -> usize {
        assert_eq!((self.width, self.height), (other.width, other.height));
        let pairs = self.pixels.iter().zip(&other.pixels);
        pairs.filter(|(one, other)| one != other).count()
    }

    /// Writes it to a PNG file.
    pub fn write_png(&self, path: &Path) -> io::Result<()> {
        let file = std::fs::File::create(path)?;
        let mut encoder = png::Encoder::new(file, self.width.into(), self.height.into());
        encoder.set_color(png::ColorType::Rgb);
        let bytes: Vec<u8> = self
            .pixels
            .iter()
            .flat_map(|pixel| pixel.to_be_bytes().into_iter().skip(1))
            .collect();
        encoder.write_header()?.write_image_data(&bytes)?;
        Ok(())
    }
}

/// A connection without a password.
pub struct Viewer {
    stream: Box<dyn Stream>,
    screen: Screen,
}

trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// Connects as soon as there is a listener.
fn patiently<T>(connect: impl Fn() -> io::Result<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match connect() {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > end => panic!("nobody listens: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Viewer {
    /// Connects to a port of this host, as soon as there is a listener.
    pub fn connect(port: u16) -> Viewer {
        let stream = patiently(|| TcpStream::connect(("127.0.0.1", port)));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self::enter(Box::new(stream))
    }

    /// The same with a socket in the file system.
    pub fn connect_unix(path: &Path) -> Viewer {
        let stream = patiently(|| UnixStream::connect(path));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self::enter(Box::new(stream))
    }

    fn enter(stream: Box<dyn Stream>) -> Viewer {
        let screen = Screen {
            width: 0,
            height: 0,
            pixels: Vec::new(),
        };
        let mut viewer = Viewer { stream, screen };
        assert_eq!(&viewer.take::<12>(), b"RFB 003.008\n");
        viewer.send(b"RFB 003.008\n");
        assert_eq!(viewer.take(), [1, 1], "one security type: none");
        viewer.send(&[1]);
        assert_eq!(viewer.take(), [0; 4], "let in");
        viewer.send(&[1]);
        viewer.screen.width = u16::from_be_bytes(viewer.take());
        viewer.screen.height = u16::from_be_bytes(viewer.take());
        // 32 bits, 24 of them used, little-endian, true colour.
        assert_eq!(viewer.take::<16>()[..4], [32, 24, 0, 1]);
        let name = u32::from_be_bytes(viewer.take());
        for _ in 0..name {
            viewer.take::<1>();
        }
        viewer
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("an answer");
        bytes
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server listens");
    }

    /// All of the picture as it is now.
    pub fn screen(&mut self) -> Screen {
        let (width, height) = (self.screen.width, self.screen.height);
        let mut request = vec![3, 0, 0, 0, 0, 0];
        request.extend(width.to_be_bytes());
        request.extend(height.to_be_bytes());
        self.send(&request);
        // One raw rectangle: nothing else was asked for.
        assert_eq!(self.take::<4>()[2..], [0, 1]);
        assert_eq!(self.take(), [0; 4]);
        assert_eq!(self.take(), width.to_be_bytes());
        assert_eq!(self.take(), height.to_be_bytes());
        assert_eq!(self.take(), [0; 4]);
        let mut bytes = vec![0; usize::from(width) * usize::from(height) * 4];
        self.stream.read_exact(&mut bytes).expect("pixels");
        let (pixels, _) = bytes.as_chunks();
        self.screen.pixels = pixels
            .iter()
            .map(|pixel| u32::from_le_bytes(*pixel))
            .collect();
        self.screen.clone()
    }

    /// The first picture that `wanted` accepts and that does not change any more; it must come in time.
    pub fn wait_for(&mut self, within: Duration, wanted: impl Fn(&Screen) -> bool) -> Screen {
        let end = Instant::now() + within;
        let mut last = self.screen();
        loop {
            std::thread::sleep(STILL);
            let screen = self.screen();
            if screen == last && wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "the picture does not come");
            last = screen;
        }
    }

    /// Presses a key and lets it go.
    pub fn key(&mut self, keysym: u32) {
        for down in [1, 0] {
            let mut event = vec![4, down, 0, 0];
            event.extend(keysym.to_be_bytes());
            self.send(&event);
        }
    }

    /// Types characters that need no shift key; a line feed is the return key.
    pub fn type_text(&mut self, text: &str) {
        for character in text.chars() {
            self.key(match character {
                '\n' => RETURN,
                character => character.into(),
            });
        }
    }

    /// Moves the pointer, with these buttons pressed.
    pub fn pointer(&mut self, buttons: u8, x: u16, y: u16) {
        let mut event = vec![5, buttons];
        event.extend(x.to_be_bytes());
        event.extend(y.to_be_bytes());
        self.send(&event);
    }
}
