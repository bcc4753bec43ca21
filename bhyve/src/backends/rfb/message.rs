// SPDX-License-Identifier: BSD-2-Clause

//! What viewers send (RFC 6143, 7.5), with the extended key event of QEMU. Every length is bounded.

use super::pixel::{FORMAT_LEN, PixelFormat};
use crate::backends::console::{KeyEvent, PtrEvent};
use std::io::{self, Read};

const SET_PIXEL_FORMAT: u8 = 0;
/// Viewers of the oldest kind tell what colours they have; the numbers that they get are ours all the same.
const FIX_COLOUR_MAP: u8 = 1;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;
const KEY_EVENT: u8 = 4;
const POINTER_EVENT: u8 = 5;
const CUT_TEXT: u8 = 6;
const QEMU: u8 = 255;
const QEMU_KEY_EVENT: u8 = 0;
/// More text than anybody has in a clipboard by intention, in bytes.
const MOST_TEXT: u32 = 1 << 20;

/// A rectangle of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Pixels from the left.
    pub x: u16,
    /// Pixels from the top.
    pub y: u16,
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Pixels are to have this form from now on.
    PixelFormat(PixelFormat),
    /// The encodings that the viewer knows, the best first.
    Encodings(Vec<i32>),
    /// It wants what is in there; only what has changed, if the flag is set.
    Update(bool, Rect),
    /// A key.
    Key(KeyEvent),
    /// The pointer.
    Ptr(PtrEvent),
    /// Something without use here: text for the clipboard, and colour map entries.
    Nothing,
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn u16_from(from: &mut impl Read) -> io::Result<u16> {
    Ok(u16::from_be_bytes(bytes(from)?))
}

fn u32_from(from: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(bytes(from)?))
}

fn skip(from: &mut impl Read, len: u64) -> io::Result<()> {
    let read = io::copy(&mut from.take(len), &mut io::sink())?;
    if read != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Reads the next message.
pub fn read(from: &mut impl Read) -> io::Result<Message> {
    let [kind] = bytes(from)?;
    Ok(match kind {
        SET_PIXEL_FORMAT => {
            bytes::<3>(from)?;
            let format = bytes::<FORMAT_LEN>(from)?;
            let format = PixelFormat::parse(&format)
                .ok_or_else(|| invalid(format!("pixel format {format:?} is not available")))?;
            Message::PixelFormat(format)
        }
        FIX_COLOUR_MAP => {
            bytes::<3>(from)?;
            let count = u16_from(from)?;
            skip(from, u64::from(count) * 6)?;
            Message::Nothing
        }
        SET_ENCODINGS => {
            bytes::<1>(from)?;
            let count = u16_from(from)?;
            let encodings = (0..count).map(|_| Ok(u32_from(from)? as i32));
            Message::Encodings(encodings.collect::<io::Result<_>>()?)
        }
        UPDATE_REQUEST => {
            let [incremental] = bytes(from)?;
            let rect = Rect {
                x: u16_from(from)?,
                y: u16_from(from)?,
                width: u16_from(from)?,
                height: u16_from(from)?,
            };
            Message::Update(incremental != 0, rect)
        }
        KEY_EVENT => {
            let [down, _, _] = bytes(from)?;
            Message::Key(KeyEvent {
                down: down != 0,
                keysym: u32_from(from)?,
                keycode: 0,
            })
        }
        POINTER_EVENT => {
            let [buttons] = bytes(from)?;
            Message::Ptr(PtrEvent {
                buttons,
                x: u16_from(from)?,
                y: u16_from(from)?,
            })
        }
        CUT_TEXT => {
            bytes::<3>(from)?;
            let len = u32_from(from)?;
            if len > MOST_TEXT {
                return Err(invalid(format!("{len} bytes of text")));
            }
            skip(from, len.into())?;
            Message::Nothing
        }
        QEMU => {
            let [QEMU_KEY_EVENT] = bytes(from)? else {
                return Err(invalid("a message of QEMU's that is not known"));
            };
            Message::Key(KeyEvent {
                down: u16_from(from)? != 0,
                keysym: u32_from(from)?,
                keycode: u32_from(from)?,
            })
        }
        other => return Err(invalid(format!("message type {other} is not known"))),
    })
}
