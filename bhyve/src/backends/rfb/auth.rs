// SPDX-License-Identifier: BSD-2-Clause

//! The handshake: version, security type and VNC authentication (RFC 6143, 7.1 and 7.2).

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use std::fs::File;
use std::io::{self, Read, Write};

const OUR_VERSION: &[u8; VERSION_LEN] = b"RFB 003.008\n";
const VERSION_LEN: usize = 12;
const SECURITY_NONE: u8 = 1;
const SECURITY_VNC: u8 = 2;
const CHALLENGE_LEN: usize = 16;
const RANDOM: &str = "/dev/random";

/// What the viewer speaks. Those of other versions are taken for 3.3, as the RFC says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V33,
    V37,
    V38,
}

/// Goes through the handshake up to the viewer's ClientInit. A viewer that does not know the password gets an error.
pub fn handshake(stream: &mut (impl Read + Write), password: Option<&str>) -> io::Result<()> {
    stream.write_all(OUR_VERSION)?;
    let mut version = [0; VERSION_LEN];
    stream.read_exact(&mut version)?;
    let version = match &version {
        b"RFB 003.008\n" => Version::V38,
        b"RFB 003.007\n" => Version::V37,
        other if other.starts_with(b"RFB ") => Version::V33,
        _ => return Err(refused("it does not speak RFB")),
    };
    let security = if password.is_some() {
        SECURITY_VNC
    } else {
        SECURITY_NONE
    };
    if version == Version::V33 {
        stream.write_all(&u32::from(security).to_be_bytes())?;
    } else {
        stream.write_all(&[1, security])?;
        let mut chosen = [0];
        stream.read_exact(&mut chosen)?;
        if chosen[0] != security {
            return refuse(stream, version, "no such security type");
        }
    }
    if let Some(password) = password {
        let mut challenge = [0; CHALLENGE_LEN];
        File::open(RANDOM)?.read_exact(&mut challenge)?;
        stream.write_all(&challenge)?;
        let mut response = [0; CHALLENGE_LEN];
        stream.read_exact(&mut response)?;
        let wrong = respond(password, challenge)
            .iter()
            .zip(response)
            .fold(0, |wrong, (expected, given)| wrong | (expected ^ given));
        if wrong != 0 {
            return refuse(stream, version, "wrong password");
        }
    }
    // Before 3.8 the result is told only where there was something to fail.
    if version == Version::V38 || password.is_some() {
        stream.write_all(&0_u32.to_be_bytes())?;
    }
    // Whether it wants to be alone: everybody is welcome here.
    stream.read_exact(&mut [0])
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

fn refuse(stream: &mut impl Write, version: Version, why: &str) -> io::Result<()> {
    stream.write_all(&1_u32.to_be_bytes())?;
    if version == Version::V38 {
        stream.write_all(&(why.len() as u32).to_be_bytes())?;
        stream.write_all(why.as_bytes())?;
    }
    Err(refused(why))
}

/// What a viewer that knows the password answers: the challenge encrypted with DES. The key is the password, cut or
/// filled up with zeroes to eight bytes, with the bits of each byte in reverse.
pub fn respond(password: &str, challenge: [u8; CHALLENGE_LEN]) -> [u8; CHALLENGE_LEN] {
    let mut key = [0_u8; 8];
    for (to, from) in key.iter_mut().zip(password.bytes()) {
        *to = from.reverse_bits();
    }
    let des = Des::new(&key.into());
    let mut response = challenge;
    for block in response.chunks_exact_mut(8) {
        if let Ok(block) = block.try_into() {
            des.encrypt_block(block);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The DES test vector of a key of zeroes, and a key whose bits are reversed.
    #[test]
    fn known_answers() {
        let block = [0x8c, 0xa6, 0x4d, 0xe9, 0xc1, 0xb1, 0x23, 0xa7];
        let answer = respond("", [0; CHALLENGE_LEN]);
        assert_eq!(answer[..8], block);
        assert_eq!(answer[8..], block);
        assert_eq!(respond("12345678", [7; 16]), respond("123456789", [7; 16]));
        assert_ne!(respond("12345678", [7; 16]), respond("1234567", [7; 16]));
    }
}
