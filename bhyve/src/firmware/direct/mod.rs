// SPDX-License-Identifier: BSD-2-Clause

//! Direct boot: loads a kernel from the host's file system, without firmware. It takes the place of bhyveload(8) and
//! grub2-bhyve for Linux (64-bit boot protocol), PVH and multiboot kernels.
//!
//! Loading is a pure function of the files and of the machine's memory: it gives back what to put where, and the state of the
//! boot processor. A compressed Linux kernel is unpacked on the host; the kernel's own decompressor, which would also
//! randomise the kernel's addresses (KASLR), is not run, so the guest has no KASLR unless the payload's compression is
//! unknown here and the guest has to unpack itself. An ELF kernel may be compressed as a whole, as Debian ships Xen. Memory that is
//! not written is expected to be zero.

mod bytes;
mod decompress;
mod elf;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod linux;
mod multiboot;
mod pvh;
mod state;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;

pub use elf::ElfError;
pub use state::{BootState, SegmentState, TableState};

use crate::backends::console::BootScreen;
use crate::firmware::e820::{E820, MemoryLayout};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// `boot.kernel`.
    pub kernel: PathBuf,
    /// `boot.initrd`.
    pub initrd: Option<PathBuf>,
    /// `boot.cmdline`.
    pub cmdline: String,
}

/// What a kernel is told about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootMachine {
    /// Its memory.
    pub memory: MemoryLayout,
    /// Where the ACPI tables begin, if there are any.
    pub rsdp: Option<u64>,
    /// What it may write on.
    pub screen: Option<BootScreen>,
}

/// Bytes and the guest physical address where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSegment {
    /// Guest physical address.
    pub gpa: u64,
    /// What to write there.
    pub bytes: Vec<u8>,
}

/// Everything that has to be done to the machine before its boot processor starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootImage {
    /// What to write to memory, in any order.
    pub segments: Vec<BootSegment>,
    /// How the boot processor starts.
    pub state: BootState,
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not a kernel at all.
    #[error("{} is not a kernel: neither bzImage, ELF with a PVH note, nor multiboot", .0.display())]
    NotAKernel(PathBuf),
    /// An ELF file, but a bad one.
    #[error("{} cannot be booted: {source}", path.display())]
    Elf {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// A kernel of a kind that is known, but which cannot be used.
    #[error("{} cannot be booted: {reason}", path.display())]
    Kernel {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The command line is too long for the kernel.
    #[error("the kernel's command line has {length} bytes, {} takes {limit}", path.display())]
    CommandLine {
        /// The kernel.
        path: PathBuf,
        /// Of what was given.
        length: usize,
        /// What the kernel says, or what there is room for.
        limit: usize,
    },
    /// The guest is too small, or the kernel wants an address that is no memory.
    #[error("{} needs memory at {:#x}-{:#x}, which this guest does not have", path.display(), range.start, range.end)]
    NoMemory {
        /// The file that goes there.
        path: PathBuf,
        /// Guest physical addresses.
        range: Range<u64>,
    },
    /// The initrd does not fit anywhere.
    #[error("{} ({size} bytes) does not fit into the guest's memory below {limit:#x}", path.display())]
    InitrdTooLarge {
        /// The path of the file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The kernel's or the machine's limit.
        limit: u64,
    },
}

/// Places in low memory of what the loader itself leaves there. A kernel may not be loaded over those that are fixed.
mod place {
    use std::ops::Range;

    /// Words of the BIOS data area: the segment of the extended one, and the KiB of conventional memory below it.
    pub const BDA_EBDA_SEGMENT: u64 = 0x40e;
    pub const BDA_MEMORY_SIZE: u64 = 0x413;
    /// The extended BIOS data area, which is empty.
    pub const EBDA: u64 = 0x9_fc00;
    /// Global descriptor table.
    pub const GDT: u64 = 0x500;
    /// What every kernel has to leave free: interrupt vectors, BIOS data area, the descriptor table.
    pub const FIXED: Range<u64> = 0..0x600;
    /// Start info of PVH, information of multiboot, with what they point to, if the kernel leaves room there.
    pub const INFO: u64 = 0x6000;
    /// Bytes of it.
    pub const INFO_SIZE: u64 = 0x1000;
    /// Linux's boot parameters.
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// Page tables; see `state::page_tables`.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The kernel's command line, if the kernel leaves room there.
    pub const CMDLINE: u64 = 0x2_0000;
    pub const CMDLINE_SIZE: u64 = 0x1_0000;
    /// What a Linux kernel has to leave free.
    pub const LINUX: Range<u64> = 0..CMDLINE + CMDLINE_SIZE;
}

const PAGE: u64 = 0x1000;
/// An initrd never goes below: old kernels unpack themselves from 1 MiB on.
const INITRD_LOWEST: u64 = 0x20_0000;

/// The image as it is put together.
struct Loader<'a> {
    files: &'a BootFiles,
    machine: &'a BootMachine,
    e820: E820,
    segments: Vec<BootSegment>,
    /// What the kernel may not be loaded over.
    fixed: Range<u64>,
    /// What is taken, beyond that.
    taken: Vec<Range<u64>>,
}

impl Loader<'_> {
    fn bad_kernel(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Kernel {
            path: self.files.kernel.clone(),
            reason: reason.into(),
        }
    }

    /// Puts bytes where the loader itself wants them.
    fn put(&mut self, gpa: u64, bytes: Vec<u8>) {
        self.segments.push(BootSegment { gpa, bytes });
    }

    /// Keeps memory for the kernel.
    fn claim(&mut self, range: Range<u64>) -> Result<(), LoadError> {
        let error = || LoadError::NoMemory {
            path: self.files.kernel.clone(),
            range: range.clone(),
        };
        if range.start > range.end || !self.e820.is_memory(&range) {
            return Err(error());
        }
        if overlaps(&range, &self.fixed) {
            return Err(self.bad_kernel(format!(
                "it wants to be loaded at {:#x}, where the boot information has to be",
                range.start
            )));
        }
        self.taken.push(range);
        Ok(())
    }

    /// Puts the segments of an executable into memory.
    fn load_elf(&mut self, elf: &elf::Elf, data: &[u8]) -> Result<(), LoadError> {
        for segment in &elf.segments {
            self.claim(segment.memory.clone())?;
            // The range was checked when the file was read.
            self.put(
                segment.memory.start,
                data.get(segment.file.clone()).unwrap_or_default().to_vec(),
            );
        }
        Ok(())
    }

    /// Takes `size` bytes of conventional memory for the loader itself: at `usual`, or else as high as the kernel leaves room.
    fn place(&mut self, usual: u64, size: u64) -> Result<u64, LoadError> {
        let pages = place::FIXED.end.div_ceil(PAGE)..(place::EBDA - size) / PAGE + 1;
        let below = pages.rev().map(|page| page * PAGE);
        let is_free = |at: &u64| {
            let range = *at..*at + size;
            self.e820.is_memory(&range) && !self.taken.iter().any(|taken| overlaps(taken, &range))
        };
        let found = std::iter::once(usual).chain(below).find(is_free);
        let at = found.ok_or_else(|| {
            self.bad_kernel("it leaves no room below 640 KiB for the boot information")
        })?;
        self.taken.push(at..at + size);
        Ok(at)
    }

    /// Puts the command line into memory, and answers with its address.
    fn load_cmdline(&mut self, limit: usize) -> Result<u64, LoadError> {
        let limit = limit.min(place::CMDLINE_SIZE as usize - 1);
        let mut line = self.files.cmdline.clone().into_bytes();
        if line.len() > limit || line.contains(&0) {
            return Err(LoadError::CommandLine {
                path: self.files.kernel.clone(),
                length: line.len(),
                limit,
            });
        }
        line.push(0);
        let at = self.place(place::CMDLINE, line.len() as u64)?;
        self.put(at, line);
        Ok(at)
    }

    /// Puts the initrd as high as it may be in low memory, clear of the kernel. `limit` is the first address that it may
    /// not reach.
    fn load_initrd(&mut self, limit: u64) -> Result<Option<Range<u64>>, LoadError> {
        let Some(path) = &self.files.initrd else {
            return Ok(None);
        };
        let bytes = read_file(path)?;
        let limit = limit.min(self.machine.memory.lowmem);
        let size = bytes.len() as u64;
        let mut end = limit;
        let start = loop {
            let start = end
                .checked_sub(size)
                .map(|start| start & !(PAGE - 1))
                .filter(|start| *start >= INITRD_LOWEST);
            let Some(start) = start else {
                return Err(LoadError::InitrdTooLarge {
                    path: path.clone(),
                    size,
                    limit,
                });
            };
            // Each round goes below one more of the kernel's ranges.
            match self
                .taken
                .iter()
                .filter(|taken| overlaps(taken, &(start..start + size)))
                .map(|r| r.start)
                .min()
            {
                Some(below) => end = below,
                None => break start,
            }
        };
        self.put(start, bytes);
        self.taken.push(start..start + size);
        Ok(Some(start..start + size))
    }
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn read_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a kernel; one that is packed as a whole is unpacked.
fn read_kernel(path: &Path) -> Result<Vec<u8>, LoadError> {
    let kernel = read_file(path)?;
    if linux::SetupHeader::find(&kernel).is_some() || elf::is_elf(&kernel) {
        return Ok(kernel);
    }
    match decompress::unpack(&kernel) {
        Ok(unpacked) => Ok(unpacked),
        Err(decompress::UnpackError::Unknown) => Err(LoadError::NotAKernel(path.to_owned())),
        Err(error) => Err(LoadError::Kernel {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
    }
}

/// Reads the files and says what to do to the machine.
pub fn prepare(files: &BootFiles, machine: &BootMachine) -> Result<BootImage, LoadError> {
    let kernel = read_kernel(&files.kernel)?;
    let mut loader = Loader {
        files,
        machine,
        e820: E820::new(machine.memory),
        segments: Vec::new(),
        fixed: place::LINUX,
        taken: Vec::new(),
    };
    loader.put(
        place::BDA_EBDA_SEGMENT,
        ((place::EBDA >> 4) as u16).to_le_bytes().into(),
    );
    loader.put(
        place::BDA_MEMORY_SIZE,
        ((place::EBDA >> 10) as u16).to_le_bytes().into(),
    );
    let state = if let Some(header) = linux::SetupHeader::find(&kernel) {
        linux::load_bzimage(&mut loader, &header, &kernel)?
    } else if elf::is_elf(&kernel) {
        let elf = elf::Elf::parse(&kernel).map_err(|source| LoadError::Elf {
            path: files.kernel.clone(),
            source,
        })?;
        match elf.pvh_entry {
            Some(entry) => pvh::load(&mut loader, &elf, entry, &kernel)?,
            None if multiboot::has_header(&kernel) => multiboot::load(&mut loader, &elf, &kernel)?,
            None if elf.is64 => linux::load_vmlinux(&mut loader, &elf, &kernel)?,
            None => return Err(LoadError::NotAKernel(files.kernel.clone())),
        }
    } else {
        return Err(LoadError::NotAKernel(files.kernel.clone()));
    };
    Ok(BootImage {
        segments: loader.segments,
        state,
    })
}

#[cfg(test)]
mod tests;
