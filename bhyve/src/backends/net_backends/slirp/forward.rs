// SPDX-License-Identifier: BSD-2-Clause

//! `hostfwd=proto:haddr:hport-gaddr:gport[;...]`: ports of the host that lead to the guest.

use std::net::Ipv4Addr;

/// One forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// UDP rather than TCP.
    pub udp: bool,
    /// Where the host listens; 0.0.0.0 is everywhere.
    pub host: (Ipv4Addr, u16),
    /// Where the guest does; 0.0.0.0 is the first address that DHCP gives.
    pub guest: (Ipv4Addr, u16),
}

/// Parses the list. The error is the entry that is wrong.
pub fn parse(list: &str) -> Result<Vec<Forward>, String> {
    list.split(';')
        .filter(|entry| !entry.is_empty())
        .map(|entry| parse_one(entry).ok_or_else(|| entry.to_owned()))
        .collect()
}

fn parse_one(entry: &str) -> Option<Forward> {
    let (protocol, rest) = entry.split_once(':')?;
    let udp = match protocol {
        "tcp" => false,
        "udp" => true,
        _ => return None,
    };
    let (host, guest) = rest.split_once('-')?;
    let (host, guest) = (parse_end(host)?, parse_end(guest)?);
    // The host can choose a port, the guest cannot.
    (guest.1 != 0).then_some(Forward { udp, host, guest })
}

fn parse_end(text: &str) -> Option<(Ipv4Addr, u16)> {
    let (address, port) = text.split_once(':')?;
    let address = if address.is_empty() {
        Ipv4Addr::UNSPECIFIED
    } else {
        address.parse().ok()?
    };
    let port = if port.is_empty() {
        0
    } else {
        port.parse().ok()?
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_parsed() {
        let list = parse("tcp:127.0.0.1:2222-:22;udp::5353-10.0.2.15:53").unwrap();
        assert_eq!(
            list,
            [
                Forward {
                    udp: false,
                    host: (Ipv4Addr::LOCALHOST, 2222),
                    guest: (Ipv4Addr::UNSPECIFIED, 22)
                },
                Forward {
                    udp: true,
                    host: (Ipv4Addr::UNSPECIFIED, 5353),
                    guest: (Ipv4Addr::new(10, 0, 2, 15), 53)
                },
            ]
        );
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn a_wrong_entry_is_named() {
        for wrong in [
            "tcp",
            "sctp::1-:2",
            "tcp::1",
            "tcp:1-:2",
            "tcp::65536-:1",
            "tcp:x:1-:2",
            "tcp::1-:2-",
            "tcp::1-:",
        ] {
            assert_eq!(parse(&format!("tcp::1-:2;{wrong}")), Err(wrong.to_owned()));
        }
    }
}
