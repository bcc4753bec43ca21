// SPDX-License-Identifier: BSD-2-Clause

//! Unpacking of a Linux kernel's payload on the host. A guest would do the same, one emulated instruction at a time.
//!
//! No counterpart in FreeBSD: bhyve(8) boots Linux through firmware or grub2-bhyve.

use flate2::read::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use std::io::Read;

/// No kernel is larger, whatever its packed form claims.
const MAX_UNPACKED: u64 = 512 << 20;
/// The dictionary that xz and lzma may ask for, in KiB.
const MAX_DICTIONARY_KIB: u32 = 256 << 10;
/// The size of a block of lz4's legacy frame.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;

/// Why a payload stays packed.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// No compression that is known here, such as bzip2 or lzo.
    #[error("the compression of its payload is not known")]
    Unknown,
    /// The payload is damaged, or larger than any kernel.
    #[error("its {0} payload is damaged")]
    Damaged(&'static str),
}

fn read_all(format: &'static str, reader: impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut out = Vec::new();
    reader
        .take(MAX_UNPACKED + 1)
        .read_to_end(&mut out)
        .map_err(|_| UnpackError::Damaged(format))?;
    if out.len() as u64 > MAX_UNPACKED {
        Err(UnpackError::Damaged(format))
    } else {
        Ok(out)
    }
}

/// lz4 -l: a magic number, then blocks, each preceded by its packed size. The kernel's build appends the unpacked size,
/// which looks like the beginning of another block and is what `size` is compared with.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    const DAMAGED: UnpackError = UnpackError::Damaged("lz4");
    let (body, size) = payload.split_last_chunk::<4>().ok_or(DAMAGED)?;
    let size = u32::from_le_bytes(*size) as usize;
    if size as u64 > MAX_UNPACKED {
        return Err(DAMAGED);
    }
    let mut rest = body.get(4..).ok_or(DAMAGED)?;
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((packed, tail)) = rest.split_first_chunk::<4>() {
        let packed = u32::from_le_bytes(*packed);
        if packed == LZ4_LEGACY_MAGIC {
            // A frame may follow a frame.
            rest = tail;
            continue;
        }
        let (packed, tail) = tail.split_at_checked(packed as usize).ok_or(DAMAGED)?;
        let length = lz4_flex::block::decompress_into(packed, &mut block).map_err(|_| DAMAGED)?;
        out.extend_from_slice(&block[..length]);
        if out.len() > size {
            return Err(DAMAGED);
        }
        rest = tail;
    }
    if out.len() == size && rest.is_empty() {
        Ok(out)
    } else {
        Err(DAMAGED)
    }
}

/// Unpacks a payload as it lies in a bzImage, its unpacked size in the last four bytes.
pub fn unpack(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    match payload {
        [0x1f, 0x8b, ..] => read_all("gzip", GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let reader = XzReader::new_mem_limit(payload, false, MAX_DICTIONARY_KIB);
            read_all("xz", reader)
        }
        [0x5d, 0, 0, ..] => {
            let reader = LzmaReader::new_mem_limit(payload, MAX_DICTIONARY_KIB, None)
                .map_err(|_| UnpackError::Damaged("lzma"))?;
            read_all("lzma", reader)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let reader = ruzstd::decoding::StreamingDecoder::new(payload)
                .map_err(|_| UnpackError::Damaged("zstd"))?;
            read_all("zstd", reader)
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(payload),
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        _ => Err(UnpackError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sample() -> Vec<u8> {
        (0..200_000_u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect()
    }

    #[test]
    fn gzip() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&sample()).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(unpack(&packed).unwrap(), sample());
        assert!(matches!(
            unpack(&packed[..packed.len() / 2]),
            Err(UnpackError::Damaged("gzip"))
        ));
    }

    #[test]
    fn lz4() {
        let mut packed = LZ4_LEGACY_MAGIC.to_le_bytes().to_vec();
        let sample = sample();
        for chunk in sample.chunks(300_000) {
            let block = lz4_flex::block::compress(chunk);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend((sample.len() as u32).to_le_bytes());
        assert_eq!(unpack(&packed).unwrap(), sample);
        for cut in [5, 9, packed.len() / 2, packed.len() - 1] {
            assert!(unpack(&packed[..cut]).is_err(), "cut at {cut}");
        }
        let last = packed.len() - 4;
        packed[last..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpack(&packed).is_err());
    }

    /// Nothing, in an xz file that asks for a dictionary of this size.
    fn empty_xz(dictionary: u8) -> Vec<u8> {
        let mut file = Vec::new();
        // Each part is followed by its checksum, but for the footer, which follows it.
        let mut put = |magic: &[u8], part: &[u8]| {
            file.extend(magic);
            file.extend(part);
            file.extend(crc32fast::hash(part).to_le_bytes());
        };
        put(b"\xfd7zXZ\0", &[0, 1]);
        put(b"", &[2, 0, 0x21, 1, dictionary, 0, 0, 0]);
        // The end of LZMA2's data, padding, the checksum of nothing; then the index.
        put(&[0; 8], &[0, 1, 17, 0]);
        let footer = [1, 0, 0, 0, 0, 1];
        file.extend(crc32fast::hash(&footer).to_le_bytes());
        file.extend(footer);
        file.extend(b"YZ");
        file
    }

    #[test]
    fn xz_and_its_dictionary() {
        // 64 KiB, and 4 GiB.
        assert_eq!(unpack(&empty_xz(8)).unwrap(), b"");
        assert!(matches!(
            unpack(&empty_xz(40)),
            Err(UnpackError::Damaged("xz"))
        ));
    }

    #[test]
    fn the_rest() {
        assert!(matches!(unpack(b"BZh91AY"), Err(UnpackError::Unknown)));
        assert!(matches!(unpack(b""), Err(UnpackError::Unknown)));
        for head in [
            &b"\xfd7zXZ\0garbage"[..],
            b"\x5d\0\0garbage and more",
            b"\x28\xb5\x2f\xfdgarbage",
        ] {
            assert!(matches!(unpack(head), Err(UnpackError::Damaged(_))));
        }
    }
}
