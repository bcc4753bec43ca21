// SPDX-License-Identifier: BSD-2-Clause

//! ATA commands (`ahci_handle_cmd` of `usr.sbin/bhyve/pci_ahci.c`). A command that is not here is aborted, as a drive does
//! that does not have it.

use super::drive::{Action, Drive, ERROR_LOG, Fault};
use super::fis::{Answer, Cfis};
use super::identify::{PAGE, checksum, identify};
use super::regs::*;

const DATA_SET_MANAGEMENT: u8 = 0x06;
const DEVICE_RESET: u8 = 0x08;
const READ_SECTORS: u8 = 0x20;
const READ_SECTORS_EXT: u8 = 0x24;
const READ_DMA_EXT: u8 = 0x25;
const READ_MULTIPLE_EXT: u8 = 0x29;
const READ_LOG_EXT: u8 = 0x2f;
const WRITE_SECTORS: u8 = 0x30;
const WRITE_SECTORS_EXT: u8 = 0x34;
const WRITE_DMA_EXT: u8 = 0x35;
const WRITE_MULTIPLE_EXT: u8 = 0x39;
const READ_VERIFY: u8 = 0x40;
const READ_VERIFY_EXT: u8 = 0x42;
const READ_LOG_DMA_EXT: u8 = 0x47;
const READ_FPDMA_QUEUED: u8 = 0x60;
const WRITE_FPDMA_QUEUED: u8 = 0x61;
const SEND_FPDMA_QUEUED: u8 = 0x64;
const EXECUTE_DIAGNOSTIC: u8 = 0x90;
/// The one command that carries a packet.
pub const PACKET: u8 = 0xa0;
const IDENTIFY_PACKET_DEVICE: u8 = 0xa1;
const SMART: u8 = 0xb0;
const READ_MULTIPLE: u8 = 0xc4;
const WRITE_MULTIPLE: u8 = 0xc5;
const SET_MULTIPLE: u8 = 0xc6;
const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const STANDBY_IMMEDIATE: u8 = 0xe0;
const IDLE_IMMEDIATE: u8 = 0xe1;
const STANDBY: u8 = 0xe2;
const IDLE: u8 = 0xe3;
const CHECK_POWER_MODE: u8 = 0xe5;
const SLEEP: u8 = 0xe6;
const FLUSH_CACHE: u8 = 0xe7;
const FLUSH_CACHE_EXT: u8 = 0xea;
const IDENTIFY_DEVICE: u8 = 0xec;
const SET_FEATURES: u8 = 0xef;

/// What CHECK POWER MODE answers.
const POWER_STANDBY: u8 = 0x00;
const POWER_ACTIVE: u8 = 0xff;
/// DATA SET MANAGEMENT's and SEND FPDMA QUEUED's only function here.
const TRIM: u16 = 1;
/// Bytes of one range of a trim, and of all of them.
const TRIM_RANGE: usize = 8;
/// Bytes of the ranges that one command has.
pub const TRIM_PAGE: u64 = PAGE as u64;

/// Whether a command is one of those of which several are under way at once.
pub fn is_queued(command: u8) -> bool {
    matches!(
        command,
        READ_FPDMA_QUEUED | WRITE_FPDMA_QUEUED | SEND_FPDMA_QUEUED
    )
}

fn abort(cfis: &Cfis) -> Action {
    Action::Done(Answer::bad(cfis, Error::ABORT))
}

/// Begins a command.
pub fn execute(drive: &mut Drive, cfis: &Cfis) -> Action {
    let good = Action::Done(Answer::good(cfis));
    match cfis.command() {
        IDENTIFY_PACKET_DEVICE if drive.is_packet() => page(identify(drive), true),
        DEVICE_RESET if drive.is_packet() => {
            drive.reset();
            Action::Done(Answer::signature(drive.signature()))
        }
        EXECUTE_DIAGNOSTIC => Action::Done(Answer::signature(drive.signature())),
        SET_FEATURES => set_features(drive, cfis),
        STANDBY | STANDBY_IMMEDIATE | SLEEP => {
            drive.settings.standby = true;
            good
        }
        IDLE | IDLE_IMMEDIATE => {
            drive.settings.standby = false;
            good
        }
        CHECK_POWER_MODE => {
            let mode = if drive.settings.standby {
                POWER_STANDBY
            } else {
                POWER_ACTIVE
            };
            Action::Done(Answer::good(cfis).with_count(mode))
        }
        // What follows is for disks only. By an aborted command the guest learns what the drive is.
        IDENTIFY_DEVICE | READ_SECTORS if drive.is_packet() => {
            Action::Done(Answer::bad(cfis, Error::ABORT).with_signature(SIG_ATAPI))
        }
        _ if drive.is_packet() => abort(cfis),
        IDENTIFY_DEVICE => page(identify(drive), true),
        SET_MULTIPLE => match cfis.count() as u8 {
            count if count == 0 || count.is_power_of_two() => {
                drive.settings.multiple = count;
                good
            }
            _ => abort(cfis),
        },
        READ_LOG_EXT => read_log(drive, cfis, true),
        READ_LOG_DMA_EXT => read_log(drive, cfis, false),
        SMART => smart(drive, cfis),
        FLUSH_CACHE | FLUSH_CACHE_EXT => Action::Flush,
        DATA_SET_MANAGEMENT if cfis.count() == 1 && cfis.features() == TRIM => trim(drive, cfis),
        // The function is in the count's upper half, what it does in the auxiliary register.
        SEND_FPDMA_QUEUED
            if cfis.count() >> 8 & 0x1f == 0
                && cfis.auxiliary() == TRIM
                && cfis.features() == 1 =>
        {
            trim(drive, cfis)
        }
        _ => access(drive, cfis),
    }
}

fn page(page: [u8; PAGE], pio: bool) -> Action {
    let bytes = page.to_vec();
    Action::Data { bytes, pio }
}

// Commands that name blocks.
fn access(drive: &mut Drive, cfis: &Cfis) -> Action {
    let command = cfis.command();
    let queued = is_queued(command);
    let (write, pio) = match command {
        READ_DMA | READ_DMA_EXT | READ_FPDMA_QUEUED | READ_VERIFY | READ_VERIFY_EXT => {
            (false, false)
        }
        READ_SECTORS | READ_SECTORS_EXT | READ_MULTIPLE | READ_MULTIPLE_EXT => (false, true),
        WRITE_DMA | WRITE_DMA_EXT | WRITE_FPDMA_QUEUED => (true, false),
        WRITE_SECTORS | WRITE_SECTORS_EXT | WRITE_MULTIPLE | WRITE_MULTIPLE_EXT => (true, true),
        _ => return abort(cfis),
    };
    let extended = matches!(
        command,
        READ_SECTORS_EXT
            | READ_DMA_EXT
            | READ_MULTIPLE_EXT
            | WRITE_SECTORS_EXT
            | WRITE_DMA_EXT
            | WRITE_MULTIPLE_EXT
            | READ_VERIFY_EXT
    );
    // Cylinders, heads and sectors went out of the standard with ATA-6.
    if !queued && !cfis.device().contains(DeviceReg::LBA) {
        return abort(cfis);
    }
    let (first, blocks) = if queued {
        (cfis.lba48(), or_most(cfis.features(), 1 << 16))
    } else if extended {
        (cfis.lba48(), or_most(cfis.count(), 1 << 16))
    } else {
        (cfis.lba28(), or_most(cfis.count() & 0xff, 1 << 8))
    };
    drive.settings.standby = false;
    let Some((offset, len)) = drive.range(first, blocks) else {
        return Action::Done(drive.answer(cfis, Err(Fault::Range)));
    };
    // Only blocks of a size that no drive has can come to more than PRDBC counts.
    if u32::try_from(len).is_err() {
        return abort(cfis);
    }
    if matches!(command, READ_VERIFY | READ_VERIFY_EXT) {
        return Action::Done(Answer::good(cfis));
    }
    let forced = queued && cfis.device().contains(DeviceReg::FUA);
    Action::Transfer {
        write,
        offset,
        len,
        durable: write && (forced || !drive.settings.write_cache),
        pio,
    }
}

fn or_most(count: u16, most: u64) -> u64 {
    if count == 0 { most } else { count.into() }
}

fn trim(drive: &Drive, cfis: &Cfis) -> Action {
    if drive.face.trim {
        Action::Trim
    } else {
        abort(cfis)
    }
}

/// The ranges of a trim, in bytes; none of them is empty.
pub fn trim_ranges(drive: &Drive, page: &[u8]) -> Result<Vec<(u64, u64)>, Fault> {
    let (entries, _) = page.as_chunks::<TRIM_RANGE>();
    entries
        .iter()
        .map(|[a, b, c, d, e, f, g, h]| {
            let first = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, 0, 0]);
            (first, u64::from(u16::from_le_bytes([*g, *h])))
        })
        .filter(|(_, blocks)| *blocks > 0)
        .map(|(first, blocks)| drive.range(first, blocks).ok_or(Fault::Range))
        .collect()
}

fn set_features(drive: &mut Drive, cfis: &Cfis) -> Action {
    const WRITE_CACHE_ON: u16 = 0x02;
    const TRANSFER_MODE: u16 = 0x03;
    const LOOK_AHEAD_OFF: u16 = 0x55;
    const WRITE_CACHE_OFF: u16 = 0x82;
    const LOOK_AHEAD_ON: u16 = 0xaa;
    let settings = &mut drive.settings;
    let disk = drive.face.kind == super::drive::Kind::Hd;
    match cfis.features() & 0xff {
        TRANSFER_MODE => {
            let mode = cfis.count() as u8;
            match (mode & MODE_FAMILY, mode & MODE_NUMBER) {
                (MODE_PIO_DEFAULT | MODE_PIO, _) => {}
                (MODE_MULTIWORD_DMA, ..=2) | (MODE_ULTRA_DMA, ..=6) => {
                    settings.transfer_mode = mode;
                }
                _ => return abort(cfis),
            }
        }
        WRITE_CACHE_ON if disk => settings.write_cache = true,
        WRITE_CACHE_OFF if disk => {
            settings.write_cache = false;
            // What the cache has must not stay there.
            return Action::Flush;
        }
        LOOK_AHEAD_ON if disk => settings.look_ahead = true,
        LOOK_AHEAD_OFF if disk => settings.look_ahead = false,
        _ => return abort(cfis),
    }
    Action::Done(Answer::good(cfis))
}

fn read_log(drive: &Drive, cfis: &Cfis, pio: bool) -> Action {
    const DIRECTORY: u64 = 0x00;
    const QUEUED_ERROR: u64 = 0x10;
    const SEND_AND_RECEIVE: u64 = 0x13;
    let lba = cfis.lba48();
    // One page, the first one, of the log that the lowest byte names.
    if cfis.count() != 1 || lba >> 8 & 0xff != 0 || lba >> 32 & 0xff != 0 {
        return abort(cfis);
    }
    let mut bytes = [0; PAGE];
    match lba & 0xff {
        DIRECTORY => {
            bytes[0] = 1; // version
            bytes[2 * QUEUED_ERROR as usize] = 1; // pages of each
            bytes[2 * SEND_AND_RECEIVE as usize] = 1;
        }
        QUEUED_ERROR => {
            bytes[..ERROR_LOG].copy_from_slice(&drive.error_log);
            checksum(&mut bytes);
        }
        SEND_AND_RECEIVE => {
            // DATA SET MANAGEMENT can be queued, and with it a trim.
            bytes[0] = u8::from(drive.face.trim);
            bytes[4] = u8::from(drive.face.trim);
        }
        _ => return abort(cfis),
    }
    page(bytes, pio)
}

fn smart(drive: &mut Drive, cfis: &Cfis) -> Action {
    const READ_DATA: u16 = 0xd0;
    const READ_THRESHOLDS: u16 = 0xd1;
    const AUTOSAVE: u16 = 0xd2;
    const ENABLE: u16 = 0xd8;
    const DISABLE: u16 = 0xd9;
    const RETURN_STATUS: u16 = 0xda;
    /// Against accidents.
    const KEY: (u8, u8) = (0x4f, 0xc2);
    let [mid, high] = [cfis.0[5], cfis.0[6]];
    let function = cfis.features() & 0xff;
    if (mid, high) != KEY || !drive.settings.smart && function != ENABLE {
        return abort(cfis);
    }
    match function {
        ENABLE => drive.settings.smart = true,
        DISABLE => drive.settings.smart = false,
        // No attribute ever changes, so there is nothing to save. That the key comes back means: no threshold exceeded.
        AUTOSAVE | RETURN_STATUS => {}
        READ_DATA | READ_THRESHOLDS => {
            let mut bytes = [0; PAGE];
            bytes[0] = 0x10; // revision; a drive without attributes
            checksum(&mut bytes);
            return page(bytes, true);
        }
        _ => return abort(cfis),
    }
    Action::Done(Answer::good(cfis))
}
