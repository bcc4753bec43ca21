// SPDX-License-Identifier: BSD-2-Clause

//! Numbers as the command lines of bhyve(8) and bhyvectl(8) take them: strtoul(3) and `expand_number` of libutil(3).
//!
//! Unlike those functions, a text with anything else in it is no number: no sign, no space, nothing behind the digits.

/// The number that `text` is in `radix`, of digits only.
pub fn digits(text: &str, radix: u32) -> Option<u64> {
    // The parser of the standard library also takes a plus sign.
    let all_digits = text.chars().all(|digit| digit.is_digit(radix));
    all_digits
        .then(|| u64::from_str_radix(text, radix).ok())
        .flatten()
}

/// `text` without the `0x` of a hexadecimal number, if it begins with that.
fn without_0x(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

/// A number as strtoul(3) reads it with base 0: decimal, hexadecimal with `0x`, or octal with `0`.
pub fn parse(text: &str) -> Option<u64> {
    match (without_0x(text), text.strip_prefix('0')) {
        (Some(hex), _) => digits(hex, 16),
        (None, Some(octal)) if !octal.is_empty() => digits(octal, 8),
        _ => digits(text, 10),
    }
}

/// A number as strtoul(3) reads it with base 16: hexadecimal, with `0x` or without.
pub fn parse_hex(text: &str) -> Option<u64> {
    digits(without_0x(text).unwrap_or(text), 16)
}

/// A number of bytes as `expand_number` reads it: a number with an optional suffix K, M, G, T, P or E, and an optional B.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix(['b', 'B']).unwrap_or(text);
    let shift = match text.chars().last()?.to_ascii_lowercase() {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        'e' => 60,
        _ => 0,
    };
    let number = match shift {
        0 => text,
        _ => text.get(..text.len() - 1)?,
    };
    parse(number)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_strtoul_reads_them() {
        for (text, value) in [
            ("0", 0),
            ("10", 10),
            ("010", 8),
            ("0x10", 16),
            ("0XfF", 255),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for text in [
            "",
            "x",
            "0x",
            "09",
            "-1",
            "+1",
            "1 ",
            " 1",
            "0x+5",
            "0+5",
            "0x-5",
            "0x0x5",
            "1K",
            "18446744073709551616",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse_hex("1022"), Some(0x1022));
        assert_eq!(parse_hex("0x1022"), Some(0x1022));
        for text in ["", "0x", "+5", "0x+5", "host"] {
            assert_eq!(parse_hex(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_suffixes() {
        for (text, value) in [
            ("0", 0),
            ("4k", 4096),
            ("0x10K", 16 << 10),
            ("2GB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Some(value), "{text}");
        }
        for text in ["", "K", "B", "4kk", "+4k", "99999999999E", "1\u{e9}"] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }
}
