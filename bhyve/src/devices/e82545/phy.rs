// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/e1000/e1000_defines.h (BSD-3-Clause)
// Copyright (c) 2001-2014, Intel Corporation. All rights reserved.

//! The Marvell 88E1011 PHY behind MDIC (`e82545_read_mdi` of `usr.sbin/bhyve/pci_e82545.c`, which keeps nothing that is
//! written; IEEE 802.3 clause 22 and `sys/dev/e1000/e1000_phy.h`). Negotiation with the virtual cable takes no time.

use super::regs::{field, in_field, register};
use bitflags::bitflags;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const REGISTERS: usize = 32;
/// The only address on the bus.
const ADDRESS: u32 = 1;

register! {
    /// MDI control: one access to a register of a PHY.
    Mdic: u32 {
        const DATA = 0xffff;
        /// The register's number.
        const REG = 0x1f << 16;
        /// The PHY's address.
        const PHY = 0x1f << 21;
        /// The operation.
        const OP = 3 << 26;
        const OP_WRITE = 1 << 26;
        const OP_READ = 2 << 26;
        const READY = 1 << 28;
        const INT_EN = 1 << 29;
        const ERROR = 1 << 30;
        const _ = !0;
    }
}

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

bitflags! {
    /// CONTROL (`MII_CR_*`).
    #[derive(Clone, Copy)]
    struct MiiCr: u16 {
        const SPEED_SELECT_MSB = 1 << 6;
        const FULL_DUPLEX = 1 << 8;
        const RESTART_AUTO_NEG = 1 << 9;
        const ISOLATE = 1 << 10;
        const POWER_DOWN = 1 << 11;
        const AUTO_NEG_EN = 1 << 12;
        const SPEED_SELECT_LSB = 1 << 13;
        const LOOPBACK = 1 << 14;
        const RESET = 1 << 15;
    }

    /// STATUS (`MII_SR_*`).
    #[derive(Clone, Copy)]
    struct MiiSr: u16 {
        const EXTENDED_CAPS = 1 << 0;
        const LINK_STATUS = 1 << 2;
        const AUTONEG_CAPS = 1 << 3;
        const AUTONEG_COMPLETE = 1 << 5;
        const PREAMBLE_SUPPRESS = 1 << 6;
        const EXTENDED_STATUS = 1 << 8;
        const T10_HD_CAPS = 1 << 11;
        const T10_FD_CAPS = 1 << 12;
        const X100_HD_CAPS = 1 << 13;
        const X100_FD_CAPS = 1 << 14;
    }

    /// AUTONEG_ADVERTISED and AUTONEG_PARTNER (`NWAY_AR_*` and `NWAY_LPAR_*`).
    #[derive(Clone, Copy)]
    struct Nway: u16 {
        /// IEEE 802.3.
        const SELECTOR_FIELD = 1 << 0;
        const T10_HD_CAPS = 1 << 5;
        const T10_FD_CAPS = 1 << 6;
        const TX100_HD_CAPS = 1 << 7;
        const TX100_FD_CAPS = 1 << 8;
        const PAUSE = 1 << 10;
        const ASM_DIR = 1 << 11;
        const ACKNOWLEDGE = 1 << 14;
    }

    /// AUTONEG_EXPANSION (`NWAY_ER_*`).
    #[derive(Clone, Copy)]
    struct NwayEr: u16 {
        const LP_NWAY_CAPS = 1 << 0;
        const PAGE_RXD = 1 << 1;
        const NEXT_PAGE_CAPS = 1 << 2;
        const LP_NEXT_PAGE_CAPS = 1 << 3;
    }

    /// AUTONEG_NEXT_PAGE (IEEE 802.3, 28C).
    #[derive(Clone, Copy)]
    struct NextPage: u16 {
        const NULL_MESSAGE = 1 << 0;
        const MESSAGE_PAGE = 1 << 13;
    }

    /// GIGABIT_CONTROL (`CR_1000T_*`).
    #[derive(Clone, Copy)]
    struct Cr1000t: u16 {
        const HD_CAPS = 1 << 8;
        const FD_CAPS = 1 << 9;
        const REPEATER_DTE = 1 << 10;
        const MS_VALUE = 1 << 11;
        const MS_ENABLE = 1 << 12;
        const TEST_MODE = 7 << 13;
    }

    /// GIGABIT_STATUS (`SR_1000T_*`).
    #[derive(Clone, Copy)]
    struct Sr1000t: u16 {
        const LP_HD_CAPS = 1 << 10;
        const LP_FD_CAPS = 1 << 11;
        const REMOTE_RX_STATUS = 1 << 12;
        const LOCAL_RX_STATUS = 1 << 13;
    }

    /// EXTENDED_STATUS (`IEEE_ESR_*`).
    #[derive(Clone, Copy)]
    struct Esr: u16 {
        const T1000_HD_CAPS = 1 << 12;
        const T1000_FD_CAPS = 1 << 13;
    }

    /// SPECIFIC_STATUS (`M88E1000_PSSR_*`).
    #[derive(Clone, Copy)]
    struct Pssr: u16 {
        const LINK = 1 << 10;
        const SPD_DPLX_RESOLVED = 1 << 11;
        const DPLX = 1 << 13;
        const MBS_1000 = 2 << 14;
    }
}

impl MiiCr {
    /// What stays: not the collision test, nor reserved bits, nor what is over at once.
    const KEPT: Self = Self::all()
        .difference(Self::RESET)
        .difference(Self::RESTART_AUTO_NEG);
    const DEFAULT: Self = Self::AUTO_NEG_EN
        .union(Self::FULL_DUPLEX)
        .union(Self::SPEED_SELECT_MSB);
}

impl MiiSr {
    const DEFAULT: Self = Self::X100_FD_CAPS
        .union(Self::X100_HD_CAPS)
        .union(Self::T10_FD_CAPS)
        .union(Self::T10_HD_CAPS)
        .union(Self::EXTENDED_STATUS)
        .union(Self::PREAMBLE_SUPPRESS)
        .union(Self::AUTONEG_CAPS)
        .union(Self::EXTENDED_CAPS);
}

impl Nway {
    const SPEEDS: Self = Self::T10_HD_CAPS
        .union(Self::T10_FD_CAPS)
        .union(Self::TX100_HD_CAPS)
        .union(Self::TX100_FD_CAPS)
        .union(Self::SELECTOR_FIELD);
    const ADVERTISED: Self = Self::SPEEDS.union(Self::PAUSE).union(Self::ASM_DIR);
    /// No pause frames.
    const PARTNER: Self = Self::SPEEDS.union(Self::ACKNOWLEDGE);
}

const NEXT_PAGE: NextPage = NextPage::MESSAGE_PAGE.union(NextPage::NULL_MESSAGE);
const GIGABIT: Cr1000t = Cr1000t::FD_CAPS
    .union(Cr1000t::REPEATER_DTE)
    .union(Cr1000t::MS_VALUE);
const GIGABIT_PARTNER: Sr1000t = Sr1000t::all();
const RESOLVED: Pssr = Pssr::MBS_1000
    .union(Pssr::DPLX)
    .union(Pssr::SPD_DPLX_RESOLVED);

/// What the registers hold after a reset: number, value, writable bits.
const DEFAULTS: &[(usize, u16, u16)] = &[
    (CONTROL, MiiCr::DEFAULT.bits(), MiiCr::KEPT.bits()),
    (STATUS, MiiSr::DEFAULT.bits(), 0),
    (ID1, 0x0141, 0),
    // 88E1011, revision 4.
    (ID2, 0x0c24, 0),
    (AUTONEG_ADVERTISED, Nway::ADVERTISED.bits(), 0xffff),
    (AUTONEG_PARTNER, Nway::PARTNER.bits(), 0),
    (AUTONEG_EXPANSION, NwayEr::all().bits(), 0),
    (AUTONEG_NEXT_PAGE, NEXT_PAGE.bits(), 0xffff),
    (GIGABIT_CONTROL, GIGABIT.bits(), Cr1000t::all().bits()),
    (GIGABIT_STATUS, GIGABIT_PARTNER.bits(), 0),
    (EXTENDED_STATUS, Esr::all().bits(), 0),
    (SPECIFIC_CONTROL, 0x0360, 0xffff),
    (SPECIFIC_STATUS, RESOLVED.bits(), 0),
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
    mdic: Mdic,
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
            mdic: Mdic::READY,
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

    pub fn read_mdic(&self) -> Mdic {
        self.mdic
    }

    /// One access to a register of the PHY.
    pub fn write_mdic(&mut self, value: Mdic, link_up: bool) -> Effects {
        let mut effects = Effects::default();
        let number = field(value, Mdic::REG) as usize;
        let mut done = value - (Mdic::ERROR | Mdic::READY);
        match value & Mdic::OP {
            _ if field(value, Mdic::PHY) != ADDRESS => done |= Mdic::ERROR,
            Mdic::OP_READ => {
                let data = self.read(number, link_up);
                done = (done - Mdic::DATA) | in_field(data.into(), Mdic::DATA);
            }
            Mdic::OP_WRITE => {
                let data = field(value, Mdic::DATA) as u16;
                effects.link_changed = link_up && self.write(number, data);
            }
            _ => done |= Mdic::ERROR,
        }
        self.mdic = done | Mdic::READY;
        effects.done = value.contains(Mdic::INT_EN);
        effects
    }

    fn register(&self, number: usize) -> u16 {
        self.registers.get(number).copied().unwrap_or(0)
    }

    fn control(&self) -> MiiCr {
        MiiCr::from_bits_retain(self.register(CONTROL))
    }

    fn read(&self, number: usize, link_up: bool) -> u16 {
        let link = match number {
            STATUS if link_up && self.control().contains(MiiCr::AUTO_NEG_EN) => {
                (MiiSr::LINK_STATUS | MiiSr::AUTONEG_COMPLETE).bits()
            }
            STATUS if link_up => MiiSr::LINK_STATUS.bits(),
            SPECIFIC_STATUS if link_up => Pssr::LINK.bits(),
            _ => 0,
        };
        self.register(number) | link
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
        number == CONTROL
            && MiiCr::from_bits_retain(value).intersects(MiiCr::RESET | MiiCr::RESTART_AUTO_NEG)
    }

    /// Whether what is sent comes back.
    pub fn loops_back(&self) -> bool {
        self.control().contains(MiiCr::LOOPBACK)
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
        let access = Mdic::OP_READ | in_field(ADDRESS, Mdic::PHY) | in_field(number, Mdic::REG);
        phy.write_mdic(access, link);
        let done = phy.read_mdic();
        assert!(done.contains(Mdic::READY) && !done.contains(Mdic::ERROR));
        field(done, Mdic::DATA)
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
        phy.write_mdic(Mdic::OP_READ, true);
        assert!(
            phy.read_mdic().contains(Mdic::ERROR),
            "nothing at address 0"
        );
        let write = Mdic::OP_WRITE | in_field(ADDRESS, Mdic::PHY);
        let effects = phy.write_mdic(write | Mdic::INT_EN | in_field(0x9340, Mdic::DATA), true);
        assert_eq!((effects.done, effects.link_changed), (true, true));
        // Reset and restart are over at once, loopback is not on.
        assert_eq!(read(&mut phy, 0, true), 0x1140);
        phy.write_mdic(write | in_field(0x4140, Mdic::DATA), true);
        assert!(phy.loops_back() && phy.is_valid());
        phy.reset();
        assert!(!phy.loops_back());
    }
}
