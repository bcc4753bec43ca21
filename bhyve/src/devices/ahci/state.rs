// SPDX-License-Identifier: BSD-2-Clause

//! What a checkpoint keeps of a controller. Nothing of it is trusted.

use super::controller::HbaState;
use super::drive::{Drive, ERROR_LOG, IdentifyData, Sense, Settings};
use super::port::{Parts, Port, Registers, Token};
use super::regs::*;
use crate::backends::block_if::BlockIf;
use crate::device::{SavedLayout, StateError};
use crate::external::{External, Identity};
use serde::{Deserialize, Serialize};

/// The controller.
#[derive(Debug, Serialize, Deserialize)]
pub struct AhciState {
    interrupts: bool,
    is: u32,
    ports: Vec<PortState>,
}

impl SavedLayout for AhciState {
    const KIND: &'static str = "ahci";
    const VERSION: u32 = 1;
}

/// [`Registers`] as numbers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct RegisterState {
    clb: u64,
    fb: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    tfd: u16,
    sig: u32,
    ssts: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortState {
    regs: RegisterState,
    halted: bool,
    next: u32,
    drive: Option<DriveState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DriveState {
    face: IdentifyData,
    settings: Settings,
    error_log: [u8; ERROR_LOG],
    sense: Sense,
    soft_reset: bool,
    /// None of a drive without a medium.
    identity: Option<Identity>,
}

fn invalid(what: impl Into<String>) -> StateError {
    StateError::Invalid(what.into())
}

impl AhciState {
    /// Takes the state down. No command may be with a disk.
    pub(super) fn of(state: &HbaState, identities: Vec<Option<Identity>>) -> Self {
        let HbaState {
            interrupts,
            is,
            resetting: _, // only while a command is with a disk
            ports,
        } = state;
        let ports = ports.iter().zip(identities).map(|(port, identity)| {
            let Parts {
                regs,
                drive,
                halted,
                next,
            } = port.parts();
            PortState {
                regs: RegisterState::of(regs),
                halted,
                next,
                drive: drive.map(|drive| {
                    let Drive {
                        face,
                        settings,
                        error_log,
                        sense,
                        soft_reset,
                    } = drive.clone();
                    DriveState {
                        face,
                        settings,
                        error_log,
                        sense,
                        soft_reset,
                        identity,
                    }
                }),
            }
        });
        Self {
            interrupts: *interrupts,
            is: *is,
            ports: ports.collect(),
        }
    }

    /// Puts the state in place, if it is one of these ports and their disks are what they were.
    pub(super) fn apply(
        self,
        state: &mut HbaState,
        disks: &[Option<BlockIf<Token>>],
    ) -> Result<(), StateError> {
        let Self {
            interrupts,
            is,
            ports,
        } = self;
        if ports.len() != state.ports.len() {
            return Err(StateError::Invalid(format!(
                "the controller has {} ports, the saved one {}",
                state.ports.len(),
                ports.len()
            )));
        }
        for (n, ((port, saved), disk)) in state.ports.iter_mut().zip(ports).zip(disks).enumerate() {
            saved
                .apply(port, disk.as_ref())
                .map_err(|error| error.of(&format!("port {n}")))?;
        }
        let existing = state.ports.len() as u32;
        if u64::from(is) >> existing != 0 {
            return Err(StateError::Invalid(
                "an interrupt of a port that is not there".to_owned(),
            ));
        }
        (state.interrupts, state.is, state.resetting) = (interrupts, is, false);
        Ok(())
    }
}

impl RegisterState {
    fn of(regs: Registers) -> Self {
        let Registers {
            clb,
            fb,
            is,
            ie,
            cmd,
            tfd,
            sig,
            ssts,
            sctl,
            serr,
            sact,
            ci,
        } = regs;
        Self {
            clb,
            fb,
            is: is.bits(),
            ie: ie.bits(),
            cmd: cmd.bits(),
            tfd: tfd.bits(),
            sig,
            ssts: ssts.bits(),
            sctl: sctl.bits(),
            serr,
            sact,
            ci,
        }
    }

    // With all bits, for the check.
    fn registers(self) -> Registers {
        let Self {
            clb,
            fb,
            is,
            ie,
            cmd,
            tfd,
            sig,
            ssts,
            sctl,
            serr,
            sact,
            ci,
        } = self;
        Registers {
            clb,
            fb,
            is: PxIx::from_bits_retain(is),
            ie: PxIx::from_bits_retain(ie),
            cmd: PxCmd::from_bits_retain(cmd),
            tfd: PxTfd::from_bits(tfd),
            sig,
            ssts: PxSsts::from_bits_retain(ssts),
            sctl: PxSctl::from_bits_retain(sctl),
            serr,
            sact,
            ci,
        }
    }
}

impl PortState {
    fn apply(self, port: &mut Port, disk: Option<&BlockIf<Token>>) -> Result<(), StateError> {
        let Self {
            regs,
            halted,
            next,
            drive,
        } = self;
        let drive = match (drive, &port.drive) {
            (None, None) => None,
            (Some(saved), Some(drive)) => Some(saved.drive(drive, disk)?),
            (None, Some(_)) => return Err(invalid("there was no drive")),
            (Some(_), None) => return Err(invalid("there was a drive")),
        };
        let regs = regs.registers();
        let possible = regs.clb.is_multiple_of(CLB_ALIGN)
            && regs.fb.is_multiple_of(FB_ALIGN)
            && PxIx::all().contains(regs.ie)
            && PxCmd::WRITABLE.contains(regs.cmd)
            && PxSctl::all().contains(regs.sctl)
            && next < MAX_SLOTS
            && (regs.ssts == PxSsts::NO_DEVICE
                || drive.is_some()
                    && (regs.ssts == PxSsts::DET_PHY_OFFLINE
                        || Speed::ALL.map(PxSsts::up).contains(&regs.ssts)));
        if !possible {
            return Err(invalid("the saved registers cannot be"));
        }
        port.set(regs, halted, next, drive);
        Ok(())
    }
}

impl DriveState {
    /// The drive in this state, if `drive` and its disk are those that it was saved of.
    fn drive(self, drive: &Drive, disk: Option<&BlockIf<Token>>) -> Result<Drive, StateError> {
        let Self {
            face,
            settings,
            error_log,
            sense,
            soft_reset,
            identity,
        } = self;
        let here = &drive.face;
        if face.kind != here.kind {
            return Err(invalid("the drive was of another kind"));
        }
        if face.medium != here.medium {
            let had = if face.medium { "a" } else { "no" };
            return Err(invalid(format!("the drive had {had} medium")));
        }
        // An image may have grown; the guest goes on with what it knows.
        if face.blocks > here.blocks || face.block != here.block {
            return Err(invalid(
                "the disk is smaller, or has another sector size, than the guest knows",
            ));
        }
        match (&identity, disk) {
            (Some(saved), Some(disk)) => disk.accept(saved, &disk.here()?)?,
            (None, None) => {}
            _ => return Err(invalid("the drive's medium was not told")),
        }
        let multiple = settings.multiple;
        let possible = face.model.len() == IdentifyData::MODEL_LEN
            && face.physical >= face.block
            && face.physical.is_power_of_two()
            && (multiple == 0 || multiple.is_power_of_two());
        if !possible {
            return Err(invalid("the saved drive cannot be"));
        }
        Ok(Drive {
            face,
            settings,
            error_log,
            sense,
            soft_reset,
        })
    }
}
