// SPDX-License-Identifier: BSD-2-Clause

//! The variables of checkpoints that are not about one device: what `-r` makes of a checkpoint, and what a suspension leaves behind.
//! Upstream has none of them.

use crate::config::{Config, ConfigError, Kind, Value, Var, Words, variables};

variables! {
    /// What is made of a checkpoint.
    pub static VARIABLES;
    pub const STALE: Stale = Var::new(
        "snapshot.stale",
        "What `-r` makes of a checkpoint that is past: because a disk is not as the checkpoint left it, or because a guest has gone \
         on from it with a disk that is a device. `refuse` ends bhyve(8) with status 4. `boot` starts the guest as without `-r`, and \
         says so; a checkpoint that was continued with `boot` is past from then on, whatever the disks are.",
    )
    .default("refuse")
    .run();
    pub const TRUST: bool = Var::new(
        "snapshot.trust",
        "With `-r`: continue a checkpoint whose files are another user's, or can be written by every user, with the files and devices \
         of the host that it names. Otherwise it is refused, and the error lists them.",
    )
    .default("false")
    .run();
    pub const RTC: Rtc = Var::new(
        "snapshot.rtc",
        "What the RTC of a guest shows that goes on from a checkpoint: `host`, later by the time that has passed meanwhile, or `saved`, \
         what it showed when the guest stopped, as it is with `vmm.clock=instructions` in any case.",
    )
    .default("host")
    .host();
    const EXIT_STATUS: ExitStatus = Var::new(
        "snapshot.exit_status",
        "What bhyve(8) ends with when its guest was suspended, 0 to 255; 0 is the status of a reboot, too.",
    )
    .default("0")
    .host();
}

/// What is made of a checkpoint that is past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// It is refused. One without writable disks can be continued as often as one likes.
    Refuse,
    /// The guest is started without it. Each checkpoint is continued once.
    Boot,
}

impl Words for Stale {
    const WORDS: &'static [(&'static str, Self)] =
        &[("refuse", Self::Refuse), ("boot", Self::Boot)];
}

/// What the RTC shows after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rtc {
    /// The time that has passed is added.
    Host,
    /// What it showed when the guest stopped.
    Saved,
}

impl Words for Rtc {
    const WORDS: &'static [(&'static str, Self)] = &[("host", Self::Host), ("saved", Self::Saved)];
}

/// A process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExitStatus(u8);

impl Value for ExitStatus {
    const KIND: Kind = Kind::Number { min: 0, max: 255 };

    fn read(text: &str, kind: &Kind) -> Option<Self> {
        u16::read(text, kind)?.try_into().ok().map(Self)
    }
}

/// What the process ends with when its guest was suspended.
pub fn exit_status(config: &Config) -> Result<u8, ConfigError> {
    config.get(&EXIT_STATUS).map(|status| status.0)
}
