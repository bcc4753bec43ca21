// SPDX-License-Identifier: BSD-2-Clause

//! Packet commands of a CD drive (`handle_packet_cmd` and `atapi_*` of `usr.sbin/bhyve/pci_ahci.c`; SPC-3 and MMC-5).
//! A command that is not here is refused with sense "invalid command operation code".

use super::command::Packet;
use super::drive::{Action, Drive, Fault, Sense};
use super::fis::{Answer, Cfis};
use super::regs::{Error, InterruptReason, PacketFeatures};

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const START_STOP_UNIT: u8 = 0x1b;
const PREVENT_ALLOW: u8 = 0x1e;
const READ_CAPACITY: u8 = 0x25;
const READ_10: u8 = 0x28;
const SEEK_10: u8 = 0x2b;
const READ_TOC: u8 = 0x43;
const GET_CONFIGURATION: u8 = 0x46;
const GET_EVENT_STATUS: u8 = 0x4a;
const MODE_SENSE_10: u8 = 0x5a;
const REPORT_LUNS: u8 = 0xa0;
const READ_12: u8 = 0xa8;

/// Bytes of a block of a CD.
pub const BLOCK: u32 = 2048;
/// Frames of a second, and where block 0 is: after two seconds.
const FRAMES: u64 = 75;
const LEAD_IN: u64 = 2 * FRAMES;
/// Number of the track after the last one.
const LEAD_OUT: u8 = 0xaa;
/// A data track that may be copied digitally, with the current position in the sub-channel.
const DATA_TRACK: u8 = 0x14;

const NO_MEDIUM: Sense = sense(0x02, 0x3a);
const READ_ERROR: Sense = sense(0x03, 0x11);
const NO_SUCH_COMMAND: Sense = sense(0x05, 0x20);
const NO_SUCH_BLOCK: Sense = sense(0x05, 0x21);
const BAD_FIELD: Sense = sense(0x05, 0x24);
const NOT_SAVED: Sense = sense(0x05, 0x39);
const CANNOT_EJECT: Sense = sense(0x05, 0x53);

const fn sense(key: u8, asc: u8) -> Sense {
    Sense { key, asc, ascq: 0 }
}

fn be16(packet: &Packet, at: usize) -> usize {
    match packet.get(at..at + 2) {
        Some([a, b]) => usize::from(u16::from_be_bytes([*a, *b])),
        _ => 0,
    }
}

fn be32(packet: &Packet, at: usize) -> u64 {
    match packet.get(at..at + 4) {
        Some([a, b, c, d]) => u64::from(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => 0,
    }
}

// The guest says how much it has room for.
fn limited(mut bytes: Vec<u8>, room: usize) -> Reply {
    bytes.truncate(room);
    Ok(Some(bytes))
}

/// Data, or nothing but success, or why not.
type Reply = Result<Option<Vec<u8>>, Sense>;

/// Begins a packet command.
pub fn execute(drive: &mut Drive, cfis: &Cfis, packet: &Packet) -> Action {
    let features = PacketFeatures::from_bits_retain(cfis.features());
    let pio = !features.contains(PacketFeatures::DMA);
    let reply = match packet[0] {
        READ_10 => return read(drive, cfis, packet, be16(packet, 7) as u64, pio),
        READ_12 => return read(drive, cfis, packet, be32(packet, 6), pio),
        TEST_UNIT_READY => ready(drive).map(|()| None),
        SEEK_10 => match drive.range(be32(packet, 2), 1) {
            Some(_) => Ok(None),
            None => ready(drive).and(Err(NO_SUCH_BLOCK)),
        },
        REQUEST_SENSE => request_sense(drive, packet),
        INQUIRY => inquiry(packet),
        START_STOP_UNIT => start_stop(packet),
        // Nobody can take the medium out, so there is nothing to prevent.
        PREVENT_ALLOW => Ok(None),
        READ_CAPACITY => ready(drive).map(|()| Some(capacity(drive))),
        READ_TOC => ready(drive).and_then(|()| read_toc(drive, packet)),
        GET_CONFIGURATION => get_configuration(drive, packet),
        GET_EVENT_STATUS => get_event_status(drive, packet),
        MODE_SENSE_10 => mode_sense(packet),
        REPORT_LUNS => {
            // One, number 0.
            let mut luns = vec![0; 16];
            luns[3] = 8;
            limited(luns, be32(packet, 6) as usize)
        }
        _ => Err(NO_SUCH_COMMAND),
    };
    match reply {
        Ok(Some(bytes)) if !bytes.is_empty() => Action::Data { bytes, pio },
        Ok(_) => Action::Done(answer(drive, cfis, Ok(()))),
        Err(sense) => Action::Done(refuse(drive, cfis, sense)),
    }
}

/// Of every command that is done.
const REASON: InterruptReason = InterruptReason::CMD.union(InterruptReason::IN);

fn refuse(drive: &mut Drive, cfis: &Cfis, sense: Sense) -> Answer {
    drive.sense = sense;
    Answer::bad(cfis, Error::sense(sense.key) | Error::ABORT).with_count(REASON.bits())
}

/// How a packet command ends.
pub fn answer(drive: &mut Drive, cfis: &Cfis, result: Result<(), Fault>) -> Answer {
    match result {
        Ok(()) => Answer::good(cfis).with_count(REASON.bits()),
        Err(Fault::Range) => refuse(drive, cfis, NO_SUCH_BLOCK),
        Err(Fault::Invalid) => refuse(drive, cfis, BAD_FIELD),
        Err(Fault::Read | Fault::Write) => refuse(drive, cfis, READ_ERROR),
    }
}

fn ready(drive: &Drive) -> Result<(), Sense> {
    if drive.face.medium {
        Ok(())
    } else {
        Err(NO_MEDIUM)
    }
}

fn read(drive: &mut Drive, cfis: &Cfis, packet: &Packet, blocks: u64, pio: bool) -> Action {
    if let Err(sense) = ready(drive) {
        return Action::Done(refuse(drive, cfis, sense));
    }
    let Some((offset, len)) = drive.range(be32(packet, 2), blocks) else {
        return Action::Done(refuse(drive, cfis, NO_SUCH_BLOCK));
    };
    if len == 0 {
        return Action::Done(answer(drive, cfis, Ok(())));
    }
    if u32::try_from(len).is_err() {
        return Action::Done(refuse(drive, cfis, BAD_FIELD));
    }
    Action::Transfer {
        write: false,
        offset,
        len,
        durable: false,
        pio,
    }
}

// To report the reason of a failure is to forget it.
fn request_sense(drive: &mut Drive, packet: &Packet) -> Reply {
    let Sense { key, asc, ascq } = std::mem::take(&mut drive.sense);
    let mut bytes = vec![0; 18];
    bytes[0] = 0xf0; // valid, of the current command
    bytes[2] = key;
    bytes[7] = 10; // bytes that follow
    (bytes[12], bytes[13]) = (asc, ascq);
    limited(bytes, packet[4].into())
}

fn inquiry(packet: &Packet) -> Reply {
    const VITAL: u8 = 1;
    const CD: u8 = 0x05;
    let bytes = match (packet[1] & VITAL, packet[2]) {
        // The list of pages, which is the only one.
        (VITAL, 0) => vec![CD, 0, 0, 1, 0],
        (VITAL, _) => return Err(BAD_FIELD),
        _ => {
            // Removable, ATAPI, 31 bytes follow.
            let mut bytes = vec![CD, 0x80, 0, 0x21, 31, 0, 0, 0];
            bytes.extend(b"BHYVE   BHYVE DVD-ROM   001 ");
            bytes
        }
    };
    limited(bytes, be16(packet, 3))
}

fn start_stop(packet: &Packet) -> Reply {
    const LOAD_EJECT: u8 = 0b10;
    const START: u8 = 0b01;
    match packet[4] & (LOAD_EJECT | START) {
        LOAD_EJECT => Err(CANNOT_EJECT),
        _ => Ok(None),
    }
}

fn blocks(drive: &Drive) -> u32 {
    u32::try_from(drive.face.blocks).unwrap_or(u32::MAX)
}

fn capacity(drive: &Drive) -> Vec<u8> {
    let last = blocks(drive).saturating_sub(1).to_be_bytes();
    [last, BLOCK.to_be_bytes()].concat()
}

// A place on the medium, as a block number or as minute, second and frame.
fn place(block: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return block.to_be_bytes();
    }
    let frames = u64::from(block) + LEAD_IN;
    let minute = u8::try_from(frames / FRAMES / 60).unwrap_or(u8::MAX);
    [
        0,
        minute,
        (frames / FRAMES % 60) as u8,
        (frames % FRAMES) as u8,
    ]
}

fn read_toc(drive: &Drive, packet: &Packet) -> Reply {
    let msf = packet[1] & 0b10 != 0;
    let end = place(blocks(drive), msf);
    let first = packet[6];
    // MMC has the format in byte 2; drivers of old have it in the upper bits of byte 9.
    let format = match packet[2] & 0xf {
        0 => packet[9] >> 6,
        format => format,
    };
    let mut bytes = vec![0, 0, 1, 1]; // first and last track, or session
    match format {
        0 if first <= 1 || first == LEAD_OUT => {
            if first <= 1 {
                bytes.extend([0, DATA_TRACK, 1, 0]);
                bytes.extend(place(0, msf));
            }
            bytes.extend([0, DATA_TRACK, LEAD_OUT, 0]);
            bytes.extend(end);
        }
        // The first track of the last session.
        1 => {
            bytes.extend([0, DATA_TRACK, 1, 0]);
            bytes.extend(place(0, msf));
        }
        2 => {
            let mut entry = |point: u8, place: [u8; 4]| {
                bytes.extend([1, DATA_TRACK, 0, point, 0, 0, 0]);
                bytes.extend(place);
            };
            entry(0xa0, [0, 1, 0, 0]);
            entry(0xa1, [0, 1, 0, 0]);
            entry(0xa2, end);
            entry(1, place(0, msf));
        }
        _ => return Err(BAD_FIELD),
    }
    let len = (bytes.len() - 2) as u16;
    bytes[..2].copy_from_slice(&len.to_be_bytes());
    limited(bytes, be16(packet, 7))
}

fn get_configuration(drive: &Drive, packet: &Packet) -> Reply {
    const CD_ROM: u16 = 0x0008;
    const DVD_ROM: u16 = 0x0010;
    /// Blocks of the largest CD, 80 minutes.
    const LARGEST_CD: u64 = 80 * 60 * FRAMES;
    let profile = match drive.face.blocks {
        _ if !drive.face.medium => 0,
        ..=LARGEST_CD => CD_ROM,
        _ => DVD_ROM,
    };
    let current = |on: bool| u8::from(on);
    let [dvd, cd] = [DVD_ROM, CD_ROM].map(u16::to_be_bytes);
    let block = BLOCK.to_be_bytes();
    let medium = drive.face.medium;
    // Number, version with "persistent" and "current", length, and what belongs to it.
    let features: [(u16, u8, Vec<u8>); 4] = [
        (
            0x0000, // the list of profiles
            0b11,
            vec![
                dvd[0],
                dvd[1],
                current(profile == DVD_ROM),
                0,
                cd[0],
                cd[1],
                current(profile == CD_ROM),
                0,
            ],
        ),
        (0x0001, 0b11, vec![0, 0, 0, 2, 0, 0, 0, 0]), // core: ATAPI
        (0x0003, 0b11, vec![0x20, 0, 0, 0]),          // removable medium in a tray
        (
            0x0010, // blocks can be read in any order, one at a time
            current(medium),
            [&block[..], &[0, 1, 0, 0]].concat(),
        ),
    ];
    let (wanted, from) = (packet[1] & 0b11, be16(packet, 2));
    let mut bytes = vec![0; 6];
    bytes.extend(profile.to_be_bytes());
    for (number, version, data) in features {
        let asked = match wanted {
            0 => usize::from(number) >= from,
            1 => usize::from(number) >= from && version & 1 != 0,
            2 => usize::from(number) == from,
            _ => return Err(BAD_FIELD),
        };
        if asked {
            bytes.extend(number.to_be_bytes());
            bytes.extend([version, data.len() as u8]);
            bytes.extend(data);
        }
    }
    let len = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    limited(bytes, be16(packet, 7))
}

fn get_event_status(drive: &Drive, packet: &Packet) -> Reply {
    const POLLED: u8 = 1;
    const MEDIA: u8 = 1 << 4;
    const NONE: u8 = 1 << 7;
    if packet[1] & POLLED == 0 {
        return Err(BAD_FIELD);
    }
    let bytes = if packet[4] & MEDIA != 0 {
        // Class 4, media: no event; whether there is a medium.
        vec![0, 6, 4, MEDIA, 0, u8::from(drive.face.medium) << 1, 0, 0]
    } else {
        vec![0, 2, NONE, MEDIA]
    };
    limited(bytes, be16(packet, 7))
}

fn mode_sense(packet: &Packet) -> Reply {
    const ERROR_RECOVERY: u8 = 0x01;
    const CAPABILITIES: u8 = 0x2a;
    const ALL: u8 = 0x3f;
    // Current, changeable, default or saved values.
    match packet[2] >> 6 {
        0 | 2 => {}
        3 => return Err(NOT_SAVED),
        _ => return Err(BAD_FIELD),
    }
    let code = packet[2] & 0x3f;
    let mut bytes = vec![0, 0, 0x70, 0, 0, 0, 0, 0]; // medium: a door without a disc, as upstream
    if matches!(code, ERROR_RECOVERY | ALL) {
        bytes.extend([ERROR_RECOVERY, 6, 0, 5, 0, 0, 0, 0]); // five tries
    }
    if matches!(code, CAPABILITIES | ALL) {
        let mut page = [0; 22];
        page[0] = CAPABILITIES;
        page[1] = 20;
        page[2] = 0x08; // reads DVD-ROM
        page[4] = 0x71; // mode 2 in both forms, several sessions, audio
        page[11] = 2; // levels of volume
        page[12] = 2; // 512 KiB of buffer
        bytes.extend(page);
    }
    if bytes.len() == 8 {
        return Err(BAD_FIELD);
    }
    let len = (bytes.len() - 2) as u16;
    bytes[..2].copy_from_slice(&len.to_be_bytes());
    limited(bytes, be16(packet, 7))
}
