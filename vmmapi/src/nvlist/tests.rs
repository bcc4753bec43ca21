// SPDX-License-Identifier: BSD-2-Clause

//! The wire format byte for byte, and what hostile bytes do.

use super::*;
use proptest::prelude::*;

fn header(bytes: &[u8]) -> Result<Header, NvError> {
    Header::parse(bytes.first_chunk().expect("a header"))
}

fn unpack(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<NvList, NvError> {
    NvList::unpack(header(bytes)?, &bytes[HEADER_SIZE..], descriptors)
}

fn null_device() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("/dev/null").into()
}

/// The checkpoint request as upstream's bhyvectl sends it, laid out by hand.
fn checkpoint_request() -> Vec<u8> {
    let mut body = Vec::new();
    let mut pair = |kind: u8, name: &str, data: &[u8]| {
        body.push(kind);
        body.extend([name.len() as u8 + 1, 0]);
        body.extend([data.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
        body.extend([0; 8]);
        body.extend(name.bytes());
        body.push(0);
        body.extend(data);
    };
    pair(4, "cmd", b"checkpoint\0");
    pair(4, "filename", b"vm.ckp\0");
    pair(2, "suspend", &[1]);
    pair(6, "fddir", &[0; 8]);
    let mut bytes = vec![0x6c, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn pack_makes_upstreams_bytes() {
    let list = NvList::new()
        .with("cmd", Value::String("checkpoint".into()))
        .with("filename", Value::String("vm.ckp".into()))
        .with("suspend", Value::Bool(true))
        .with("fddir", Value::Descriptor(null_device()));
    assert_eq!(list.pack(), checkpoint_request());
    assert_eq!(list.descriptors().len(), 1);
}

#[test]
fn unpack_reads_upstreams_bytes() {
    let mut list = unpack(&checkpoint_request(), vec![null_device()]).expect("a good list");
    assert_eq!(list.string("cmd"), Some("checkpoint"));
    assert_eq!(list.bool("suspend"), Some(true));
    assert_eq!(list.number("suspend"), None);
    assert!(list.take_descriptor("fddir").is_some());
    assert!(list.take_descriptor("fddir").is_none());
}

#[test]
fn big_endian_numbers_are_understood() {
    let mut bytes = vec![0x6c, 0, 0x80];
    bytes.extend(0u64.to_be_bytes());
    bytes.extend((19 + 2 + 8u64).to_be_bytes());
    bytes.extend([3, 0, 2]);
    bytes.extend(8u64.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.extend(*b"n\0");
    bytes.extend(0x0102u64.to_be_bytes());
    assert_eq!(
        unpack(&bytes, vec![]).expect("a good list").number("n"),
        Some(0x0102)
    );
}

#[test]
fn a_descriptor_can_be_claimed_once() {
    let mut bytes = checkpoint_request();
    let at = bytes.len() - 8;
    bytes[at] = 1;
    assert_eq!(
        unpack(&bytes, vec![null_device()]).err(),
        Some(NvError::Value("fddir".into()))
    );
    bytes[at] = 0;
    assert_eq!(unpack(&bytes, vec![]).err(), Some(NvError::Truncated));
}

#[test]
fn sizes_beyond_the_limits_are_refused_before_anything_is_read() {
    let mut bytes = checkpoint_request();
    bytes[11..19].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(header(&bytes), Err(NvError::TooLarge(u64::MAX, 1)));
    let mut bytes = checkpoint_request();
    bytes[3..11].copy_from_slice(&17u64.to_le_bytes());
    assert!(matches!(header(&bytes), Err(NvError::TooLarge(_, 17))));
}

#[test]
fn duplicates_nested_lists_and_bad_strings_are_refused() {
    let one = NvList::new().with("a", Value::String("b".into())).pack();
    let twice = |body: &[u8]| {
        let mut bytes = one[..HEADER_SIZE].to_vec();
        bytes[11..19].copy_from_slice(&(2 * body.len() as u64).to_le_bytes());
        bytes.extend(body.iter().chain(body));
        bytes
    };
    assert_eq!(
        unpack(&twice(&one[HEADER_SIZE..]), vec![]).err(),
        Some(NvError::Duplicate("a".into()))
    );
    let mut nested = one.clone();
    nested[HEADER_SIZE] = 5;
    assert_eq!(
        unpack(&nested, vec![]).err(),
        Some(NvError::Type("a".into(), 5))
    );
    let mut unterminated = one.clone();
    *unterminated.last_mut().expect("bytes") = b'c';
    assert_eq!(
        unpack(&unterminated, vec![]).err(),
        Some(NvError::Value("a".into()))
    );
}

proptest! {
    #[test]
    fn what_was_packed_is_unpacked(number: u64, flag: bool, string in "[^\0]{0,40}", binary in prop::collection::vec(any::<u8>(), 1..99)) {
        let list = NvList::new()
            .with("number", Value::Number(number))
            .with("flag", Value::Bool(flag))
            .with("string", Value::String(string.clone()))
            .with("binary", Value::Binary(binary.clone()))
            .with("null", Value::Null);
        let read = unpack(&list.pack(), vec![]).expect("our own bytes");
        prop_assert_eq!(read.number("number"), Some(number));
        prop_assert_eq!(read.bool("flag"), Some(flag));
        prop_assert_eq!(read.string("string"), Some(string.as_str()));
        prop_assert_eq!(read.binary("binary"), Some(binary.as_slice()));
        prop_assert!(matches!(read.get("null"), Some(Value::Null)));
    }

    #[test]
    fn a_damaged_request_is_refused_or_read_but_never_fatal(at in 0usize..150, value: u8, cut in 0usize..150) {
        let mut bytes = checkpoint_request();
        let len = bytes.len();
        bytes[at % len] = value;
        bytes.truncate((cut % len).max(HEADER_SIZE));
        let descriptors = vec![null_device()];
        let _ = unpack(&bytes, descriptors);
    }

    #[test]
    fn arbitrary_bodies_are_never_fatal(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let header = Header { size: body.len(), descriptors: 0, big_endian: false };
        let _ = NvList::unpack(header, &body, vec![]);
    }
}
