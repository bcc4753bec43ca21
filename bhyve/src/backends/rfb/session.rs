// SPDX-License-Identifier: BSD-2-Clause

//! One viewer: its connection, and the two threads that serve it.

use super::auth;
use super::encode::{self, DESKTOP_SIZE, EXTENDED_KEYS, Encoder, RAW, Shadow, ZLIB, ZRLE};
use super::message::{self, Message, Rect};
use super::pixel::PixelFormat;
use super::stream::Stream;
use crate::backends::console::{Console, Geometry, Image};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::io::{self, BufReader, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The name of the desktop; upstream's.
const NAME: &[u8] = b"bhyve";
/// How long a viewer may take to say who it is, and to take what it has asked for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the picture: 30 a second, as upstream.
const FRAME: Duration = Duration::from_millis(33);

/// What a viewer has asked for.
#[derive(Clone, Copy)]
struct Wishes {
    format: PixelFormat,
    /// It is to be told of the colour map before it is sent any pixel.
    colour_map: bool,
    encoding: i32,
    desktop_size: bool,
    extended_keys: bool,
    /// What it waits for: everything in there, or what has changed.
    full: Option<Rect>,
    incremental: Option<Rect>,
    gone: bool,
}

struct Shared {
    stream: Stream,
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock()
    }

    /// Ends both threads.
    fn close(&self) {
        self.wishes().gone = true;
        self.changed.notify_all();
        // It may be closed already.
        let _ = self.stream.shutdown();
    }
}

/// A viewer. It is disconnected when this is dropped.
pub struct Viewer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Viewer {
    /// Serves a viewer.
    pub fn start(
        stream: Stream,
        console: Arc<Console>,
        password: Option<Arc<str>>,
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let shared = Arc::new(Shared {
            stream,
            wishes: Mutex::new(Wishes {
                format: PixelFormat::NATIVE,
                colour_map: false,
                encoding: RAW,
                desktop_size: false,
                extended_keys: false,
                full: None,
                incremental: None,
                gone: false,
            }),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("rfb viewer".to_owned())
            .spawn(move || {
                let result = serve(&serving, &console, password.as_deref());
                serving.close();
                if let Err(error) = result {
                    log::debug!("a viewer's connection: {error}");
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Whether it has left.
    pub fn is_gone(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic ends the process");
        }
    }
}

/// The handshake, then what the viewer sends until it leaves.
fn serve(shared: &Arc<Shared>, console: &Arc<Console>, password: Option<&str>) -> io::Result<()> {
    let mut stream = &shared.stream;
    auth::handshake(&mut stream, password)?;
    let geometry = console.geometry();
    let mut init = Vec::new();
    init.extend(geometry.width.to_be_bytes());
    init.extend(geometry.height.to_be_bytes());
    init.extend(PixelFormat::NATIVE.to_bytes());
    init.extend((NAME.len() as u32).to_be_bytes());
    init.extend(NAME);
    stream.write_all(&init)?;
    console.viewer_came();
    // From here on it may be silent for as long as it likes.
    stream.set_read_timeout(None)?;
    let sender = {
        let (shared, console) = (Arc::clone(shared), Arc::clone(console));
        std::thread::Builder::new()
            .name("rfb sender".to_owned())
            .spawn(move || {
                if let Err(error) = send(&shared, &console, geometry) {
                    log::debug!("a viewer's connection: {error}");
                }
                shared.close();
            })?
    };
    let result = receive(shared, console, &mut BufReader::new(stream));
    shared.close();
    sender.join().expect("a panic ends the process");
    result
}

fn receive(shared: &Shared, console: &Console, from: &mut impl io::Read) -> io::Result<()> {
    loop {
        match message::read(from)? {
            Message::PixelFormat(format) => {
                let mut wishes = shared.wishes();
                wishes.format = format;
                wishes.colour_map = format.is_mapped();
            }
            Message::Encodings(encodings) => {
                let known = |encoding: &&i32| matches!(**encoding, RAW | ZLIB | ZRLE);
                let mut wishes = shared.wishes();
                wishes.encoding = encodings.iter().find(known).copied().unwrap_or(RAW);
                wishes.desktop_size = encodings.contains(&DESKTOP_SIZE);
                wishes.extended_keys = encodings.contains(&EXTENDED_KEYS);
            }
            Message::Update(incremental, rect) => {
                let mut wishes = shared.wishes();
                let wish = if incremental {
                    &mut wishes.incremental
                } else {
                    &mut wishes.full
                };
                *wish = Some(wish.map_or(rect, |old| old.hull(rect)));
                shared.changed.notify_all();
            }
            Message::Key(event) => console.kbd_event(event),
            Message::Ptr(event) => console.ptr_event(event),
            Message::Nothing => {}
        }
    }
}

impl Rect {
    /// The smallest rectangle around both.
    fn hull(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = self
            .x
            .saturating_add(self.width)
            .max(other.x.saturating_add(other.width));
        let bottom = self
            .y
            .saturating_add(self.height)
            .max(other.y.saturating_add(other.height));
        Self {
            x,
            y,
            width: right - x,
            height: bottom - y,
        }
    }
}

/// Sends what is asked for when there is something to send, until the viewer leaves.
fn send(shared: &Shared, console: &Console, geometry: Geometry) -> io::Result<()> {
    let mut stream = &shared.stream;
    let mut sender = Sender {
        shadow: Shadow::new(geometry),
        image: Image::default(),
        encoder: Encoder::default(),
        keys_announced: false,
    };
    let mut out = Vec::new();
    loop {
        let wishes = {
            let idle = |wishes: &mut Wishes| {
                !wishes.gone && wishes.full.is_none() && wishes.incremental.is_none()
            };
            let mut wishes = shared.wishes();
            shared.changed.wait_while(&mut wishes, idle);
            let asked = *wishes;
            // One update answers all that was asked for so far.
            (wishes.full, wishes.incremental) = (None, None);
            wishes.colour_map = false;
            asked
        };
        if wishes.gone {
            return Ok(());
        }
        out.clear();
        if wishes.colour_map {
            encode::put_colour_map(&mut out);
        }
        if sender.update(console, &wishes, &mut out)? {
            stream.write_all(&out)?;
        } else if let Some(area) = wishes.incremental {
            stream.write_all(&out)?;
            let mut now = shared.wishes();
            now.incremental = Some(now.incremental.map_or(area, |new| new.hull(area)));
        }
        let mut wishes = shared.wishes();
        shared
            .changed
            .wait_while_for(&mut wishes, |wishes| !wishes.gone, FRAME);
    }
}

struct Sender {
    /// What the viewer has.
    shadow: Shadow,
    /// What there is.
    image: Image,
    encoder: Encoder,
    keys_announced: bool,
}

impl Sender {
    /// Writes an update down. False if there is nothing to tell.
    fn update(
        &mut self,
        console: &Console,
        wishes: &Wishes,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        console.capture(&mut self.image);
        let geometry = self.image.geometry;
        let told = self.shadow.geometry();
        if geometry != told && wishes.desktop_size {
            self.shadow = Shadow::new(geometry);
            encode::put_header(1, out);
            encode::put_rect(size_of(geometry), DESKTOP_SIZE, out);
            return Ok(true);
        }
        encode::fit(&mut self.image, told);
        let mut rects = Vec::new();
        if let Some(full) = wishes.full {
            rects.push(self.shadow.clip(full));
        } else if let Some(area) = wishes.incremental {
            rects = self.shadow.changes(&self.image, area);
        }
        let announce = wishes.extended_keys && !self.keys_announced;
        if rects.is_empty() && !announce {
            return Ok(false);
        }
        encode::put_header(rects.len() + usize::from(announce), out);
        if announce {
            self.keys_announced = true;
            encode::put_rect(size_of(told), EXTENDED_KEYS, out);
        }
        for rect in rects {
            self.encoder
                .put(&self.image, rect, wishes.encoding, wishes.format, out)?;
            self.shadow.sent(&self.image, rect);
        }
        Ok(true)
    }
}

fn size_of(geometry: Geometry) -> Rect {
    Rect {
        x: 0,
        y: 0,
        width: geometry.width,
        height: geometry.height,
    }
}
