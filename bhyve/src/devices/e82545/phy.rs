// SPDX-License-Identifier: BSD-2-Clause

//! The Marvell 88E1011 PHY behind MDIC (`e82545_read_mdi` of `usr.sbin/bhyve/pci_e82545.c`, which keeps nothing that is
//! written; IEEE 802.3 clause 22 and `sys/dev/e1000/e1000_phy.h`). Negotiation with the virtual cable takes no time.

use serde::{Deserialize, Serialize};

const REGISTERS: usize = 32;
/// The only address on the bus.
const ADDRESS: u32 = 1;

const MDIC_DATA: u32 = 0xffff;
const MDIC_OP: u32 = 3 << 26;
const MDIC_OP_WRITE: u32 = 1 << 26;
const MDIC_OP_READ: u32 = 2 << 26;
const MDIC_READY: u32 = 1 << 28;
const MDIC_INT_EN: u32 = 1 << 29;
const MDIC_ERROR: u32 = 1 << 30;

// Where the address of the PHY and the register's number are in MDIC.
const MDIC_PHY_SHIFT: u32 = 21;
const MDIC_REG_SHIFT: u32 = 16;
const MDIC_NUMBER: u32 = 0x1f;

const CONTROL: usize = 0;
const STATUS: usize = 1;
const ID1: usize = 2;
const ID2: usize = 3;
const AUTONEG_ADVERTISED: usize = 4;
const AUTONEG_PARTNER: usize = 5;
const AUTONEG_EXPANSION: usize = 6;
const AUTONEG_NEXT_PAGE: usize = 7;
const GIGABIT_CONTROL: usize = 9;
const GIGABIT_STATUS: usize = 10;
const EXTENDED_STATUS: usize = 15;
// Marvell's own.
const SPECIFIC_CONTROL: usize = 16;
const SPECIFIC_STATUS: usize = 17;
const INTERRUPT_ENABLE: usize = 18;
const EXTENDED_CONTROL: usize = 20;
const LED_CONTROL: usize = 24;
const EXTENDED_CONTROL_2: usize = 26;
const PAGE_SELECT: usize = 29;
const PAGE_DATA: usize = 30;

const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_LOOPBACK: u16 = 1 << 14;
const CONTROL_AUTONEG: u16 = 1 << 12;
const CONTROL_RESTART: u16 = 1 << 9;
/// Collision test and reserved bits do not stay.
const CONTROL_KEPT: u16 = 0x7d40;
/// Autonegotiation, full duplex, 1000 Mb/s.
const CONTROL_DEFAULT: u16 = 0x1140;
const STATUS_LINK: u16 = 1 << 2;
const STATUS_AUTONEG_DONE: u16 = 1 << 5;
const SPECIFIC_LINK: u16 = 1 << 10;

/// What the registers hold after a reset: number, value, writable bits.
const DEFAULTS: &[(usize, u16, u16)] = &[
    (CONTROL, CONTROL_DEFAULT, CONTROL_KEPT),
    // 10 and 100 Mb/s, extended status, preamble suppression, able to negotiate, extended registers.
    (STATUS, 0x7949, 0),
    (ID1, 0x0141, 0),
    // 88E1011, revision 4.
    (ID2, 0x0c24, 0),
    (AUTONEG_ADVERTISED, 0x0de1, 0xffff),
    // The partner: 10 and 100 Mb/s, acknowledged, no pause frames.
    (AUTONEG_PARTNER, 0x41e1, 0),
    (AUTONEG_EXPANSION, 0x000f, 0),
    (AUTONEG_NEXT_PAGE, 0x2001, 0xffff),
    (GIGABIT_CONTROL, 0x0e00, 0xff00),
    // The partner: 1000 Mb/s, both receivers fine.
    (GIGABIT_STATUS, 0x3c00, 0),
    (EXTENDED_STATUS, 0x3000, 0),
    (SPECIFIC_CONTROL, 0x0360, 0xffff),
    // 1000 Mb/s, full duplex, resolved.
    (SPECIFIC_STATUS, 0xa800, 0),
    (INTERRUPT_ENABLE, 0, 0xffff),
    (EXTENDED_CONTROL, 0x0d60, 0xffff),
    (LED_CONTROL, 0x4100, 0xffff),
    (EXTENDED_CONTROL_2, 0x000a, 0xffff),
    (PAGE_SELECT, 0, 0x001f),
    (PAGE_DATA, 0, 0xffff),
];

/// What follows an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects {
    /// The access is over and the driver wants to be told.
    pub done: bool,
    /// The link was negotiated anew.
    pub link_changed: bool,
}

/// The PHY and the register that leads to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phy {
    registers: Vec<u16>,
    mdic: u32,
}

impl Default for Phy {
    fn default() -> Self {
        let mut registers = vec![0; REGISTERS];
        for (at, value, _) in DEFAULTS {
            if let Some(register) = registers.get_mut(*at) {
                *register = *value;
            }
        }
        Self {
            registers,
            mdic: MDIC_READY,
        }
    }
}

impl Phy {
    /// Hardware reset by CTRL.
    pub fn reset(&mut self) {
        *self = Self {
            mdic: self.mdic,
            ..Self::default()
        };
    }

    pub fn read_mdic(&self) -> u32 {
        self.mdic
    }

    /// One access to a register of the PHY.
    pub fn write_mdic(&mut self, value: u32, link_up: bool) -> Effects {
        let mut effects = Effects::default();
        let number = (value >> MDIC_REG_SHIFT & MDIC_NUMBER) as usize;
        let mut done = value & !(MDIC_ERROR | MDIC_READY);
        match value & MDIC_OP {
            _ if value >> MDIC_PHY_SHIFT & MDIC_NUMBER != ADDRESS => done |= MDIC_ERROR,
            MDIC_OP_READ => done = done & !MDIC_DATA | u32::from(self.read(number, link_up)),
            MDIC_OP_WRITE => effects.link_changed = link_up && self.write(number, value as u16),
            _ => done |= MDIC_ERROR,
        }
        self.mdic = done | MDIC_READY;
        effects.done = value & MDIC_INT_EN != 0;
        effects
    }

    fn register(&self, number: usize) -> u16 {
        self.registers.get(number).copied().unwrap_or(0)
    }

    fn read(&self, number: usize, link_up: bool) -> u16 {
        let value = self.register(number);
        match number {
            STATUS if link_up && self.register(CONTROL) & CONTROL_AUTONEG != 0 => {
                value | STATUS_LINK | STATUS_AUTONEG_DONE
            }
            STATUS if link_up => value | STATUS_LINK,
            SPECIFIC_STATUS if link_up => value | SPECIFIC_LINK,
            _ => value,
        }
    }

    // True if that begins a negotiation.
    fn write(&mut self, number: usize, value: u16) -> bool {
        let writable = DEFAULTS
            .iter()
            .find(|(at, ..)| *at == number)
            .map_or(0, |(.., writable)| *writable);
        if let Some(register) = self.registers.get_mut(number) {
            *register = *register & !writable | value & writable;
        }
        number == CONTROL && value & (CONTROL_RESET | CONTROL_RESTART) != 0
    }

    /// Whether what is sent comes back.
    pub fn loops_back(&self) -> bool {
        self.register(CONTROL) & CONTROL_LOOPBACK != 0
    }

    /// Whether a saved PHY can be.
    pub fn is_valid(&self) -> bool {
        let Self { registers, mdic: _ } = self;
        let fresh = Self::default();
        registers.len() == REGISTERS
            && registers
                .iter()
                .zip(&fresh.registers)
                .enumerate()
                .all(|(n, (saved, fresh))| {
                    let writable = DEFAULTS
                        .iter()
                        .find(|(at, ..)| *at == n)
                        .map_or(0, |(.., w)| *w);
                    saved & !writable == fresh & !writable
                })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(phy: &mut Phy, number: u32, link: bool) -> u32 {
        phy.write_mdic(MDIC_OP_READ | ADDRESS << 21 | number << 16, link);
        assert_eq!(phy.read_mdic() & (MDIC_READY | MDIC_ERROR), MDIC_READY);
        phy.read_mdic() & MDIC_DATA
    }

    #[test]
    fn drivers_find_the_marvell_and_its_link() {
        let mut phy = Phy::default();
        assert_eq!(
            (read(&mut phy, 2, true), read(&mut phy, 3, true) & !0xf),
            (0x141, 0xc20)
        );
        assert_eq!(read(&mut phy, 1, true) & 0x24, 0x24);
        assert_eq!(read(&mut phy, 1, false) & 0x24, 0);
        assert_eq!(read(&mut phy, 17, true) & 0xac00, 0xac00);
        phy.write_mdic(MDIC_OP_READ, true);
        assert_ne!(phy.read_mdic() & MDIC_ERROR, 0, "nothing at address 0");
        let write = MDIC_OP_WRITE | ADDRESS << 21;
        let effects = phy.write_mdic(write | MDIC_INT_EN | 0x9340, true);
        assert_eq!((effects.done, effects.link_changed), (true, true));
        // Reset and restart are over at once, loopback is not on.
        assert_eq!(read(&mut phy, 0, true), 0x1140);
        phy.write_mdic(write | 0x4140, true);
        assert!(phy.loops_back() && phy.is_valid());
        phy.reset();
        assert!(!phy.loops_back());
    }
}
