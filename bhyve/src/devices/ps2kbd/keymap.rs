// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/ps2kbd.c (BSD-2-Clause)
// Copyright (c) 2015 Tycho Nightingale <tycho.nightingale@pluribusnetworks.com>. All rights reserved.
// Copyright (c) 2015 Nahanni Systems Inc. All rights reserved.

//! Which key of a keyboard a viewer means: X11 keysyms of a keyboard with the US layout, or codes of scan code set 1, as
//! codes of set 2 (the tables of `usr.sbin/bhyve/ps2kbd.c`).

/// A key as its code of scan code set 2; with the prefix E0 that is `0xe0` in the upper byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u16);

const fn e0(code: u8) -> Key {
    Key(0xe000 | code as u16)
}

const fn plain(code: u8) -> Key {
    Key(code as u16)
}

const PRINT_SCREEN: Key = e0(0x7c);
/// It has no code but a sequence of its own; the prefix E1 stands for it here.
const PAUSE: Key = Key(0xe114);

/// The keys of ASCII's printable characters from the space on, with or without shift: the viewer sends the shift key too.
const ASCII: [u8; 95] = [
    0x29, 0x16, 0x52, 0x26, 0x25, 0x2e, 0x3d, 0x52, 0x46, 0x45, 0x3e, 0x55, 0x41, 0x4e, 0x49,
    0x4a, // space to slash
    0x45, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x4c, 0x4c, 0x41, 0x55, 0x49,
    0x4a, // 0 to question mark
    0x1e, 0x1c, 0x32, 0x21, 0x23, 0x24, 0x2b, 0x34, 0x33, 0x43, 0x3b, 0x42, 0x4b, 0x3a, 0x31,
    0x44, // @ to O
    0x4d, 0x15, 0x2d, 0x1b, 0x2c, 0x3c, 0x2a, 0x1d, 0x22, 0x35, 0x1a, 0x54, 0x5d, 0x5b, 0x36,
    0x4e, // P to underscore
    0x0e, 0x1c, 0x32, 0x21, 0x23, 0x24, 0x2b, 0x34, 0x33, 0x43, 0x3b, 0x42, 0x4b, 0x3a, 0x31,
    0x44, // backquote to o
    0x4d, 0x15, 0x2d, 0x1b, 0x2c, 0x3c, 0x2a, 0x1d, 0x22, 0x35, 0x1a, 0x54, 0x5d, 0x5b,
    0x0e, // p to tilde
];

/// F1 to F12.
const FUNCTION_KEYS: [u8; 12] = [
    0x05, 0x06, 0x04, 0x0c, 0x03, 0x0b, 0x83, 0x0a, 0x01, 0x09, 0x78, 0x07,
];
/// The digits of the keypad, from 0.
const KEYPAD: [u8; 10] = [0x70, 0x69, 0x72, 0x7a, 0x6b, 0x73, 0x74, 0x6c, 0x75, 0x7d];

/// The 8042's translation of set 2 to set 1, for codes below 80.
const TO_SET_1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// A byte of set 2 as the 8042 translates it. The prefix of a release, F0, is its caller's business.
pub fn translate(byte: u8) -> u8 {
    match byte {
        0x83 => 0x41,
        0x84 => 0x54,
        other => TO_SET_1.get(usize::from(other)).copied().unwrap_or(other),
    }
}

/// Set in a code of set 1 when the key is let go.
pub const SET_1_RELEASE: u8 = 0x80;

impl Key {
    /// The key that has this keysym.
    pub fn from_keysym(keysym: u32) -> Option<Self> {
        Some(match keysym {
            0x20..=0x7e => plain(*ASCII.get(keysym as usize - 0x20)?),
            0xff08 => plain(0x66),                   // BackSpace
            0xff09 | 0xfe20 => plain(0x0d),          // Tab, ISO_Left_Tab
            0xff0d => plain(0x5a),                   // Return
            0xff13 | 0xff6b => PAUSE,                // Pause, Break
            0xff14 => plain(0x7e),                   // Scroll_Lock
            0xff15 | 0xff61 => PRINT_SCREEN,         // Sys_Req, Print
            0xff1b => plain(0x76),                   // Escape
            0xff50 => e0(0x6c),                      // Home
            0xff51 => e0(0x6b),                      // Left
            0xff52 => e0(0x75),                      // Up
            0xff53 => e0(0x74),                      // Right
            0xff54 => e0(0x72),                      // Down
            0xff55 => e0(0x7d),                      // Page_Up
            0xff56 => e0(0x7a),                      // Page_Down
            0xff57 => e0(0x69),                      // End
            0xff63 => e0(0x70),                      // Insert
            0xff67 => e0(0x2f),                      // Menu
            0xff7f => plain(0x77),                   // Num_Lock
            0xff8d => e0(0x5a),                      // KP_Enter
            0xff95 => plain(0x6c),                   // KP_Home
            0xff96 => plain(0x6b),                   // KP_Left
            0xff97 => plain(0x75),                   // KP_Up
            0xff98 => plain(0x74),                   // KP_Right
            0xff99 => plain(0x72),                   // KP_Down
            0xff9a => plain(0x7d),                   // KP_Page_Up
            0xff9b => plain(0x7a),                   // KP_Page_Down
            0xff9c => plain(0x69),                   // KP_End
            0xff9d => plain(0x73),                   // KP_Begin
            0xff9e => plain(0x70),                   // KP_Insert
            0xff9f | 0xffae | 0xffac => plain(0x71), // KP_Delete, KP_Decimal, KP_Separator
            0xffaa => plain(0x7c),                   // KP_Multiply
            0xffab => plain(0x79),                   // KP_Add
            0xffad => plain(0x7b),                   // KP_Subtract
            0xffaf => e0(0x4a),                      // KP_Divide
            0xffb0..=0xffb9 => plain(*KEYPAD.get(keysym as usize - 0xffb0)?),
            0xffbe..=0xffc9 => plain(*FUNCTION_KEYS.get(keysym as usize - 0xffbe)?),
            0xffe1 => plain(0x12),       // Shift_L
            0xffe2 => plain(0x59),       // Shift_R
            0xffe3 => plain(0x14),       // Control_L
            0xffe4 => e0(0x14),          // Control_R
            0xffe5 => plain(0x58),       // Caps_Lock
            0xffe7 | 0xffeb => e0(0x1f), // Meta_L, Super_L
            0xffe8 | 0xffec => e0(0x27), // Meta_R, Super_R
            0xffe9 => plain(0x11),       // Alt_L
            0xffea | 0xfe03 => e0(0x11), // Alt_R, ISO_Level3_Shift
            0xffff => e0(0x71),          // Delete
            _ => return None,
        })
    }

    /// The key that has this code of set 1, with bit 7 for the prefix E0.
    pub fn from_set_1(keycode: u32) -> Option<Self> {
        match keycode {
            // F7 and Alt-SysRq are the two above 7F.
            0x41 => Some(plain(0x83)),
            0x54 => Some(plain(0x84)),
            0xb7 => Some(PRINT_SCREEN),
            0xc6 => Some(PAUSE),
            1..=0xff => {
                let code = TO_SET_1
                    .iter()
                    .position(|set_1| u32::from(*set_1) == keycode & 0x7f)?
                    as u8;
                Some(if keycode & 0x80 == 0 {
                    plain(code)
                } else {
                    e0(code)
                })
            }
            _ => None,
        }
    }

    /// What a keyboard sends in set 2.
    pub fn set_2(self, down: bool) -> Vec<u8> {
        let [prefix, code] = self.0.to_be_bytes();
        match (self, down) {
            (PAUSE, true) => vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            (PAUSE, false) => Vec::new(),
            (PRINT_SCREEN, true) => vec![0xe0, 0x12, 0xe0, 0x7c],
            (PRINT_SCREEN, false) => vec![0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
            _ => {
                let prefix = (prefix != 0).then_some(prefix);
                let release = (!down).then_some(0xf0);
                prefix.into_iter().chain(release).chain([code]).collect()
            }
        }
    }

    /// What a keyboard sends in set 1.
    pub fn set_1(self, down: bool) -> Vec<u8> {
        let mut release = 0;
        let mut bytes = Vec::new();
        for byte in self.set_2(down) {
            if byte == 0xf0 {
                release = SET_1_RELEASE;
            } else {
                bytes.push(translate(byte) | std::mem::take(&mut release));
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_sets() {
        let key = |keysym| Key::from_keysym(keysym).unwrap();
        assert_eq!(key('a'.into()).set_2(true), [0x1c]);
        assert_eq!(key('A'.into()).set_2(false), [0xf0, 0x1c]);
        assert_eq!(key('a'.into()).set_1(false), [0x9e]);
        assert_eq!(key('~'.into()).set_1(true), [0x29]);
        assert_eq!(key(0xff0d).set_1(true), [0x1c]);
        assert_eq!(key(0xff54).set_2(false), [0xe0, 0xf0, 0x72]);
        assert_eq!(key(0xff54).set_1(false), [0xe0, 0xd0]);
        assert_eq!(key(0xffc4).set_1(false), [0xc1]);
        assert_eq!(
            key(0xff13).set_1(true),
            [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]
        );
        assert_eq!(key(0xff61).set_1(true), [0xe0, 0x2a, 0xe0, 0x37]);
        assert_eq!(Key::from_keysym(0x20ac), None);
        assert_eq!(Key::from_keysym(0), None);
    }

    /// A viewer that tells the key's code means the same key as one that tells the keysym.
    #[test]
    fn both_ways_to_name_a_key_agree() {
        let pairs = [
            (0x1e, 'a'.into()),
            (0x39, ' '.into()),
            (0x1c, 0xff0d),
            (0x9c, 0xff8d),
            (0xc8, 0xff52),
            (0xd3, 0xffff),
            (0x41, 0xffc1 + 3),
            (0x58, 0xffc9),
            (0xb8, 0xffea),
            (0xdb, 0xffeb),
            (0xc6, 0xff13),
            (0xb7, 0xff61),
        ];
        for (keycode, keysym) in pairs {
            assert_eq!(
                Key::from_set_1(keycode),
                Key::from_keysym(keysym),
                "{keycode:#x}"
            );
        }
        assert_eq!(Key::from_set_1(0), None);
        assert_eq!(Key::from_set_1(0x100), None);
    }
}
