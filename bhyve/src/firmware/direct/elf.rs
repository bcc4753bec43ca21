// SPDX-License-Identifier: BSD-2-Clause

//! Reading of ELF executables, 32 and 64 bits, as far as a boot loader needs them: program headers, the entry point and the
//! PVH note. It is the counterpart of `stand/common/load_elf.c`; sections and symbols are left alone.

use super::bytes::{u16_at, u32_at, u64_at};
use std::ops::Range;

pub(super) const PT_LOAD: u32 = 1;
pub(super) const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
pub(super) const EM_X86_64: u16 = 62;
pub(super) const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// What is wrong with a file that begins like an ELF file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Something lies outside of the file.
    #[error("its ELF {0} is cut off")]
    Truncated(&'static str),
    /// For another processor or byte order.
    #[error("it is an ELF file for another machine")]
    Machine,
    /// Numbers that contradict each other.
    #[error("its ELF program header {0} makes no sense")]
    Segment(usize),
    /// There is nothing to load.
    #[error("it is an ELF file without anything to load")]
    Empty,
    /// Control would be handed to nowhere.
    #[error("its entry point {0:#x} is not in what is loaded")]
    Entry(u64),
}

/// A piece of the file and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfSegment {
    /// Bytes of the file.
    pub file: Range<usize>,
    /// The physical address; as much of it as the file does not fill is zero.
    pub memory: Range<u64>,
    virtual_start: u64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Whether it is of 64-bit code.
    pub is64: bool,
    /// The entry point, as a physical address.
    pub entry: u64,
    /// The 32-bit entry point of the PVH boot protocol.
    pub pvh_entry: Option<u32>,
    /// What is to be loaded.
    pub segments: Vec<ElfSegment>,
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

fn program_header(data: &[u8], at: usize, is64: bool) -> Option<ProgramHeader> {
    let word = |offset: usize| u32_at(data, at.checked_add(offset)?).map(u64::from);
    let long = |offset: usize| u64_at(data, at.checked_add(offset)?);
    let kind = u32_at(data, at)?;
    Some(if is64 {
        ProgramHeader {
            kind,
            offset: long(8)?,
            vaddr: long(16)?,
            paddr: long(24)?,
            filesz: long(32)?,
            memsz: long(40)?,
        }
    } else {
        ProgramHeader {
            kind,
            offset: word(4)?,
            vaddr: word(8)?,
            paddr: word(12)?,
            filesz: word(16)?,
            memsz: word(20)?,
        }
    })
}

fn file_range(data: &[u8], offset: u64, size: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= data.len()).then_some(start..end)
}

/// Looks for the PVH entry point among the notes of one segment.
fn pvh_note(mut notes: &[u8]) -> Option<u32> {
    loop {
        let name_size = u32_at(notes, 0)? as usize;
        let desc_size = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let desc_at = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12_usize.checked_add(name_size)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_size)?)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // The address has the machine's word size, but must be below 4 GiB.
            return match desc.len() {
                4 => u32_at(desc, 0),
                8 => u32::try_from(u64_at(desc, 0)?).ok(),
                _ => None,
            };
        }
        notes = notes.get(desc_at.checked_add(desc_size.checked_next_multiple_of(4)?)?..)?;
    }
}

/// Whether `data` begins like an ELF file.
pub fn is_elf(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}

impl Elf {
    /// Reads an executable for x86.
    pub fn parse(data: &[u8]) -> Result<Self, ElfError> {
        const HEADER: ElfError = ElfError::Truncated("header");
        let is64 = match (data.get(4), data.get(5)) {
            (Some(1), Some(1)) => false,
            (Some(2), Some(1)) => true,
            (Some(_), Some(_)) => return Err(ElfError::Machine),
            _ => return Err(HEADER),
        };
        let machine = u16_at(data, 18).ok_or(HEADER)?;
        if machine != if is64 { EM_X86_64 } else { EM_386 } {
            return Err(ElfError::Machine);
        }
        let (entry, phoff, phentsize_at) = if is64 {
            (
                u64_at(data, 24).ok_or(HEADER)?,
                u64_at(data, 32).ok_or(HEADER)?,
                54,
            )
        } else {
            (
                u32_at(data, 24).ok_or(HEADER)?.into(),
                u32_at(data, 28).ok_or(HEADER)?.into(),
                42,
            )
        };
        let phentsize = u16_at(data, phentsize_at).ok_or(HEADER)?;
        let phnum = u16_at(data, phentsize_at + 2).ok_or(HEADER)?;

        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for index in 0..usize::from(phnum) {
            let at = index
                .checked_mul(phentsize.into())
                .and_then(|offset| usize::try_from(phoff).ok()?.checked_add(offset))
                .ok_or(ElfError::Segment(index))?;
            let header =
                program_header(data, at, is64).ok_or(ElfError::Truncated("program header"))?;
            match header.kind {
                PT_LOAD if header.memsz != 0 => {
                    let file = file_range(data, header.offset, header.filesz)
                        .ok_or(ElfError::Truncated("segment"))?;
                    let end = header
                        .paddr
                        .checked_add(header.memsz)
                        .ok_or(ElfError::Segment(index))?;
                    if header.filesz > header.memsz {
                        return Err(ElfError::Segment(index));
                    }
                    segments.push(ElfSegment {
                        file,
                        memory: header.paddr..end,
                        virtual_start: header.vaddr,
                    });
                }
                PT_NOTE => {
                    let file = file_range(data, header.offset, header.filesz)
                        .ok_or(ElfError::Truncated("note"))?;
                    pvh_entry = pvh_entry.or_else(|| pvh_note(data.get(file)?));
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(ElfError::Empty);
        }
        let entry = physical_entry(&segments, entry).ok_or(ElfError::Entry(entry))?;
        if let Some(pvh) = pvh_entry
            && !segments
                .iter()
                .any(|segment| segment.memory.contains(&pvh.into()))
        {
            return Err(ElfError::Entry(pvh.into()));
        }
        Ok(Self {
            is64,
            entry,
            pvh_entry,
            segments,
        })
    }
}

/// The entry point is a physical address in Linux and most multiboot kernels, a virtual one elsewhere.
fn physical_entry(segments: &[ElfSegment], entry: u64) -> Option<u64> {
    if segments
        .iter()
        .any(|segment| segment.memory.contains(&entry))
    {
        return Some(entry);
    }
    segments.iter().find_map(|segment| {
        let offset = entry.checked_sub(segment.virtual_start)?;
        let address = segment.memory.start.checked_add(offset)?;
        segment.memory.contains(&address).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::elf as synthetic;
    use super::*;

    #[test]
    fn reads_what_is_there() {
        let file = synthetic(0x10_0000, b"code", 0x1000, Some(0x10_0001));
        let elf = Elf::parse(&file).unwrap();
        assert!(elf.is64);
        assert_eq!(elf.entry, 0x10_0000);
        assert_eq!(elf.pvh_entry, Some(0x10_0001));
        assert_eq!(elf.segments.len(), 1);
        assert_eq!(&file[elf.segments[0].file.clone()], b"code");
        assert_eq!(elf.segments[0].memory, 0x10_0000..0x10_1000);
    }

    #[test]
    fn virtual_entry_points_are_translated() {
        let mut file = synthetic(0x10_0000, b"code", 0x1000, None);
        file[24..32].copy_from_slice(&0xffff_8000_0010_0002_u64.to_le_bytes());
        assert_eq!(Elf::parse(&file).unwrap().entry, 0x10_0002);
        file[24..32].copy_from_slice(&5_u64.to_le_bytes());
        assert_eq!(Elf::parse(&file), Err(ElfError::Entry(5)));
    }

    #[test]
    fn damage_is_refused_and_never_fatal() {
        let file = synthetic(0x10_0000, b"code", 0x1000, Some(0x10_0000));
        for cut in 0..file.len() - 1 {
            assert!(Elf::parse(&file[..cut]).is_err(), "cut at {cut}");
        }
        // Every byte set to its extremes: whatever comes out, nothing may panic.
        for at in 0..file.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut bad = file.clone();
                bad[at] = value;
                let _ = Elf::parse(&bad);
            }
        }
        let bigger_in_file = synthetic(0x10_0000, b"code", 3, None);
        assert_eq!(Elf::parse(&bigger_in_file), Err(ElfError::Segment(0)));
    }
}
