// SPDX-License-Identifier: BSD-2-Clause

//! The 82545's statistics: registers that stop at their maximum and are cleared by reading (`usr.sbin/bhyve/pci_e82545.c`
//! counts some of them and clears none).

use serde::{Deserialize, Serialize};

macro_rules! statistics {
    (words { $($name:ident = $offset:literal;)* } octets { $($octets:ident = $low:literal, $high:literal;)* }) => {
        /// Everything that is ever counted here; the other statistics read as 0.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
        pub struct Stats {
            $($name: u32,)*
            $($octets: u64,)*
        }

        impl Stats {
            /// The register at `offset`, which is cleared; one of 64 bits when its upper half is read.
            pub fn take(&mut self, offset: u32) -> Option<u32> {
                match offset {
                    $($offset => Some(std::mem::take(&mut self.$name)),)*
                    $($low => Some(self.$octets as u32),
                      $high => Some((std::mem::take(&mut self.$octets) >> 32) as u32),)*
                    _ => None,
                }
            }
        }
    };
}

statistics! {
    words {
    mpc = 0x4010;
    prc64 = 0x405c;
    prc127 = 0x4060;
    prc255 = 0x4064;
    prc511 = 0x4068;
    prc1023 = 0x406c;
    prc1522 = 0x4070;
    gprc = 0x4074;
    bprc = 0x4078;
    mprc = 0x407c;
    gptc = 0x4080;
    roc = 0x40ac;
    tpr = 0x40d0;
    tpt = 0x40d4;
    ptc64 = 0x40d8;
    ptc127 = 0x40dc;
    ptc255 = 0x40e0;
    ptc511 = 0x40e4;
    ptc1023 = 0x40e8;
    ptc1522 = 0x40ec;
    mptc = 0x40f0;
    bptc = 0x40f4;
    tsctc = 0x40f8;
    tsctfc = 0x40fc;
    }
    octets {
    gorc = 0x4088, 0x408c;
    gotc = 0x4090, 0x4094;
    tor = 0x40c0, 0x40c4;
    tot = 0x40c8, 0x40cc;
    }
}

fn count(register: &mut u32) {
    *register = register.saturating_add(1);
}

fn add(register: &mut u64, octets: u64) {
    *register = register.saturating_add(octets);
}

/// Where a frame was sent to.
fn is_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}

fn is_broadcast(frame: &[u8]) -> bool {
    frame.get(..6).is_some_and(|to| to == [0xff; 6])
}

/// The length on the cable, with the checksum.
fn wire_len(frame: &[u8]) -> u64 {
    frame.len() as u64 + 4
}

impl Stats {
    /// A frame came in, whatever becomes of it.
    pub fn arrived(&mut self, frame: &[u8]) {
        count(&mut self.tpr);
        add(&mut self.tor, wire_len(frame));
    }

    /// It was given to the driver.
    pub fn received(&mut self, frame: &[u8]) {
        count(&mut self.gprc);
        add(&mut self.gorc, wire_len(frame));
        count(match wire_len(frame) {
            ..=64 => &mut self.prc64,
            65..=127 => &mut self.prc127,
            128..=255 => &mut self.prc255,
            256..=511 => &mut self.prc511,
            512..=1023 => &mut self.prc1023,
            _ => &mut self.prc1522,
        });
        if is_broadcast(frame) {
            count(&mut self.bprc);
        } else if is_group(frame) {
            count(&mut self.mprc);
        }
    }

    /// There was no room for it.
    pub fn missed(&mut self) {
        count(&mut self.mpc);
    }

    /// It was too long.
    pub fn oversized(&mut self) {
        count(&mut self.roc);
    }

    /// A frame went out.
    pub fn sent(&mut self, frame: &[u8]) {
        count(&mut self.gptc);
        count(&mut self.tpt);
        add(&mut self.gotc, wire_len(frame));
        add(&mut self.tot, wire_len(frame));
        count(match wire_len(frame) {
            ..=64 => &mut self.ptc64,
            65..=127 => &mut self.ptc127,
            128..=255 => &mut self.ptc255,
            256..=511 => &mut self.ptc511,
            512..=1023 => &mut self.ptc1023,
            _ => &mut self.ptc1522,
        });
        if is_broadcast(frame) {
            count(&mut self.bptc);
        } else if is_group(frame) {
            count(&mut self.mptc);
        }
    }

    /// A packet was segmented, or could not be.
    pub fn segmented(&mut self, done: bool) {
        count(if done {
            &mut self.tsctc
        } else {
            &mut self.tsctfc
        });
    }
}
