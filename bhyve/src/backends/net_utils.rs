// SPDX-License-Identifier: BSD-2-Clause

//! Ethernet addresses (`usr.sbin/bhyve/net_utils.c`).

use crate::bus::pci::Bdf;
use crate::config::{Kind, Value};
use md5::{Digest, Md5};
use std::fmt;
use std::str::FromStr;

/// The FreeBSD Foundation's OUI, bhyve's part of it.
const OUI: [u8; 3] = [0x58, 0x9c, 0xfc];

/// A station's Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddr(pub [u8; 6]);

/// A text that is not the address of one station.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address \"{0}\"")]
pub struct InvalidMac(String);

impl MacAddr {
    /// The address of a function for which none is configured: always the same for a machine's name and a slot.
    pub fn generate(bdf: Bdf, vm_name: &str) -> Self {
        let [a, b, c, ..] =
            <[u8; 16]>::from(Md5::digest(format!("{}-{}-{vm_name}", bdf.slot, bdf.func)));
        let [x, y, z] = OUI;
        Self([x, y, z, a, b, c])
    }
}

impl Value for MacAddr {
    const KIND: Kind = Kind::Other("the Ethernet address of one station");

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        text.parse().ok()
    }
}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    /// Six hexadecimal numbers; neither the address of a group nor all zeros.
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut parts = text.split(':');
        let mut address = [0; 6];
        for byte in &mut address {
            let part = parts
                .next()
                .filter(|part| (1..=2).contains(&part.len()))
                .ok_or_else(invalid)?;
            // A sign would be taken by the parser.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        let group = address.first().is_some_and(|first| first & 1 != 0);
        if parts.next().is_some() || group || address == [0; 6] {
            Err(invalid())
        } else {
            Ok(Self(address))
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_stations_only() {
        assert_eq!(
            "58:9c:fc:0:A:ff".parse(),
            Ok(MacAddr([0x58, 0x9c, 0xfc, 0, 10, 255]))
        );
        for wrong in [
            "",
            "1:2:3:4:5",
            "2:2:3:4:5:6:7",
            "01:2:3:4:5:6",
            "0:0:0:0:0:0",
            "100:2:3:4:5:6",
            "+2:2:3:4:5:6",
            "x",
        ] {
            assert!(wrong.parse::<MacAddr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn generated_addresses_depend_on_slot_and_name() {
        let at = |slot, func| Bdf { bus: 0, slot, func };
        let one = MacAddr::generate(at(3, 0), "vm");
        // The first bytes of md5("3-0-vm").
        assert_eq!(one.to_string(), "58:9c:fc:04:74:5a");
        assert_ne!(one, MacAddr::generate(at(3, 1), "vm"));
        assert_ne!(one, MacAddr::generate(at(3, 0), "vn"));
    }
}
