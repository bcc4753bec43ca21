// SPDX-License-Identifier: BSD-2-Clause

//! The argument of `-s` and the slots of the configuration (`pci_parse_slot` of `usr.sbin/bhyve/pci_emul.c`).

use super::{Bdf, OptionsError};
use crate::config::{Config, ConfigError, Node, Var, variables};
use crate::devices::models::{self, UnknownModel};
use std::collections::BTreeMap;

variables! {
    /// What every function has.
    pub static VARIABLES;
    pub const DEVICE: Option<String> =
        Var::new("device", "The model. A function without it is not there.");
}

/// Why an argument of `-s` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// No slot, or no model after it.
    #[error("Invalid PCI slot info field \"{0}\"")]
    Malformed(String),
    /// Two devices in one place.
    #[error("pci slot {0} already occupied!")]
    Occupied(Bdf),
    /// No such model. libvirt asks `-s 0,MODEL` and looks for `pci slot 0:0: unknown device "MODEL"`, with the two numbers that
    /// FreeBSD's bhyve printed before it knew buses, so the place has a bus only where one was given.
    #[error("pci slot {0}: {1}")]
    Unknown(String, UnknownModel),
    /// The model does not take these options.
    #[error("pci slot {bdf}: {source}")]
    Options {
        /// The slot and function.
        bdf: Bdf,
        /// What is wrong.
        source: OptionsError,
    },
    /// A conflict with variables that are set already.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// `slot`, `slot:func` or `bus:slot:func`.
pub fn parse_bdf(text: &str) -> Option<Bdf> {
    let parts: Vec<u8> = text.split(':').map(number).collect::<Option<_>>()?;
    let (bus, slot, func) = match *parts.as_slice() {
        [slot] => (0, slot, 0),
        [slot, func] => (0, slot, func),
        [bus, slot, func] => (bus, slot, func),
        _ => return None,
    };
    (slot < 32 && func < 8).then_some(Bdf { bus, slot, func })
}

/// u8's own parser also takes a plus sign.
fn number(text: &str) -> Option<u8> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// The path of a slot's node.
pub fn path(bdf: Bdf) -> String {
    format!("pci.{}.{}.{}", bdf.bus, bdf.slot, bdf.func)
}

/// Takes one `-s slot,model[,options]`.
pub fn parse(config: &Config, argument: &str) -> Result<(), SlotError> {
    let malformed = || SlotError::Malformed(argument.to_owned());
    let (place, rest) = argument.split_once(',').ok_or_else(malformed)?;
    let bdf = parse_bdf(place).ok_or_else(malformed)?;
    let (name, options) = rest.split_once(',').unwrap_or((rest, ""));
    let (model, pci) = models::pci(name).map_err(|error| {
        let Bdf { slot, func, .. } = bdf;
        let has_bus = place.matches(':').count() == 2;
        let place = if has_bus {
            bdf.to_string()
        } else {
            format!("{slot}:{func}")
        };
        SlotError::Unknown(place, error)
    })?;
    let node = config.node(&path(bdf));
    // `-o pci.0.3.0.x=…` may come before; only a device makes the slot occupied.
    if node.is_set(&DEVICE) {
        return Err(SlotError::Occupied(bdf));
    }
    node.set(
        DEVICE.declaration().name,
        pci.alias_of.unwrap_or(model.name),
    )?;
    let parsed = pci.syntax.parse(&node, options);
    parsed.map_err(|source| SlotError::Options { bdf, source })
}

/// The functions of the configuration in bus order.
///
/// # Errors
/// A bus, slot or function that is none.
pub fn configured(config: &Config) -> Result<BTreeMap<Bdf, Node>, ConfigError> {
    let mut functions = BTreeMap::new();
    for (bus, node) in config.node("pci").numbered(0..=255)? {
        for (slot, node) in node.numbered(0..=31)? {
            for (func, node) in node.numbered(0..=7)? {
                let [bus, slot, func] = [bus, slot, func].map(|n| n as u8);
                functions.insert(Bdf { bus, slot, func }, node);
            }
        }
    }
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let bdf = |bus, slot, func| Some(Bdf { bus, slot, func });
        assert_eq!(parse_bdf("3"), bdf(0, 3, 0));
        assert_eq!(parse_bdf("3:7"), bdf(0, 3, 7));
        assert_eq!(parse_bdf("255:31:1"), bdf(255, 31, 1));
        for bad in ["", "32", "1:8", "256:0:0", "1:2:3:4", "a", "+1", "1:", "-1"] {
            assert_eq!(parse_bdf(bad), None, "{bad}");
        }
    }

    #[test]
    fn messages_are_what_clients_look_for() {
        let config = Config::new();
        parse(&config, "0:0,hostbridge").unwrap();
        assert_eq!(
            config.raw("pci.0.0.0.device").as_deref(),
            Some("hostbridge")
        );
        let error = |argument| parse(&config, argument).unwrap_err().to_string();
        assert_eq!(error("0,hostbridge"), "pci slot 0:0:0 already occupied!");
        for (place, shown) in [("0", "0:0"), ("1:2", "1:2"), ("0:1:0", "0:1:0")] {
            let argument = format!("{place},frobnicator");
            assert_eq!(
                parse(&config, &argument).unwrap_err().to_string(),
                format!("pci slot {shown}: unknown device \"frobnicator\"")
            );
        }
        assert_eq!(error("1"), "Invalid PCI slot info field \"1\"");
        assert_eq!(
            error("33,hostbridge"),
            "Invalid PCI slot info field \"33,hostbridge\""
        );
    }

    #[test]
    fn slots_come_in_bus_order() {
        let config = Config::new();
        for place in ["10", "2:1", "2", "1:0:0"] {
            parse(&config, &format!("{place},hostbridge")).unwrap();
        }
        let found: Vec<_> = configured(&config)
            .unwrap()
            .keys()
            .map(Bdf::to_string)
            .collect();
        assert_eq!(found, ["0:2:0", "0:2:1", "0:10:0", "1:0:0"]);
        config.set("pci.0.40.0.device", "hostbridge").unwrap();
        assert!(configured(&config).is_err());
    }
}
