// SPDX-License-Identifier: BSD-2-Clause

//! The frame buffer of a graphical console (`usr.sbin/bhyve/pci_fbuf.c`): BAR 0 has the mode's registers, BAR 1 is the
//! picture's memory, a device segment of the vmm's that the guest writes without an exit.
//!
//! The picture belongs to the checkpoint, as pages of the device's record; pages of zeroes are left out.
//!
//! Beside it there may be a VGA, whose picture is seen instead while the guest uses it. As upstream, that is from when a
//! mode is set in its graphics controller, or a size of 0 in the registers here, until a size is set here. There is no
//! firmware that sets a mode of VGA's, so with `vga=on` the machine starts in one.

use crate::backends::console::{BootScreen, FrameBuffer, Geometry, Image, Picture, TextScreen};
use crate::backends::rfb::{Endpoint, Server, ServerOptions};
use crate::bus::mem::all_ones;
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::{BarMemory, PciFunc, PciIds};
use crate::bus::pci::{PciDevice, PciModel, Syntax};
use crate::config::{Group, Node, Var, Words, variables};
use crate::device::{BuildCtx, BuildError, Device, Persist, SaveError, SavedLayout, StateError};
use crate::devices::models::{Model, Place};
use crate::devices::vga::{Extent, Vga, VgaState, bios};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use vmmapi::abi::VM_FRAMEBUFFER;
use vmmapi::{DeviceMemory, Vm};
use zerocopy::IntoBytes;

/// The model.
pub const FBUF: Model = Model {
    name: "fbuf",
    usage: "[,option]...",
    help: "A frame buffer, with a VNC server through which up to 16 viewers at a time see the picture and use \
           the guest's keyboard and pointer; at most one in a machine. A kernel that is booted directly is told \
           of the frame buffer, so that Linux draws its console on it with `console=tty0` on its command line.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Named,
        build,
    }),
};

const ADDRESSES: &[&str] = &["rfb", "tcp", "unix"];

variables! {
    static SCREEN;
    const TCP: Option<String> = Var::new("tcp", "Where viewers connect; see bhyve(8).")
        .otherwise("127.0.0.1:5900")
        .instead_of(ADDRESSES)
        .host();
    const RFB: Option<String> =
        Var::new("rfb", "The same by its older name, which is looked at first.")
            .otherwise("what `tcp` says")
            .instead_of(ADDRESSES)
            .host();
    const UNIX: Option<String> = Var::new(
        "unix",
        "The path of the unix(4) socket where viewers connect instead.",
    )
    .instead_of(ADDRESSES)
    .host();
    const WIDTH: u16 = Var::new("w", "Columns of the picture, 640 to 3840.")
        .range(MIN.width as u64, MAX.width as u64)
        .default("1024");
    const HEIGHT: u16 = Var::new("h", "Rows of the picture, 480 to 2160.")
        .range(MIN.height as u64, MAX.height as u64)
        .default("768");
    const VGA: Parts = Var::new(
        "vga",
        "What there is of a VGA: `on`, `io` for the registers without memory and picture, or `off`.",
    )
    .default("io");
    const WAIT: bool = Var::new(
        "wait",
        "The guest does not start before the first viewer is there.",
    )
    .default("false")
    .host();
    const PASSWORD: Option<String> = Var::new(
        "password",
        "What viewers must know. It is written to checkpoints, as all of the configuration is.",
    )
    .host();
    const _: Option<bool> =
        Var::new("vncserver", "Clients set it for historical reasons.").host().no_effect();
}

static VARIABLES: Group = Group {
    title: "fbuf",
    at: "pci.B.S.F",
    needs: None,
    variables: &[SCREEN],
};

/// What there is of a VGA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts(Option<Extent>);

impl Words for Parts {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("on", Self(Some(Extent::Full))),
        ("io", Self(Some(Extent::Registers))),
        ("off", Self(None)),
    ];
}

const IDS: PciIds = PciIds {
    vendor: 0xfb5d,
    device: 0x40fb,
    class: 0x03,
    subclass: 0x00,
    prog_if: 0,
    revision: 0,
    subvendor: 0,
    subdevice: 0,
};
const REGS_BAR: usize = 0;
const MEMORY_BAR: usize = 1;
/// The segment's name, which is the device node's name on FreeBSD.
const SEGMENT: &str = "framebuffer";
/// Bytes of picture memory: enough for the largest mode.
const FB_SIZE: u64 = 32 << 20;
const REGS_SIZE: usize = 128;
const MSI_MESSAGES: u8 = 4;
const PAGE: usize = 4096;
const BYTES_PER_PIXEL: u64 = 4;

const MIN: Geometry = Geometry {
    width: 640,
    height: 480,
};
const MAX: Geometry = Geometry {
    width: 3840,
    height: 2160,
};
/// What viewers see, all black, while the guest has set a mode without pixels: the size of VGA's text mode.
const BLANK: Geometry = Geometry {
    width: 720,
    height: 400,
};

// Offsets of registers.
const REG_SIZE: usize = 0;
const REG_WIDTH: usize = 4;
const REG_HEIGHT: usize = 6;
const REG_DEPTH: usize = 8;
const DEPTH: u16 = 32;

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
pub struct FbufState {
    regs: Vec<u8>,
    /// Pages of the picture's memory by number, ascending; those that are missing are zero.
    pages: Vec<(u32, Vec<u8>)>,
    vga: Option<VgaState>,
}

impl SavedLayout for FbufState {
    const KIND: &'static str = "fbuf";
    const VERSION: u32 = 2;
}

/// The picture's memory, and where the guest sees it.
struct Frame {
    vm: Vm,
    memory: DeviceMemory,
    size: u64,
    gpa: Mutex<Option<u64>>,
}

impl Frame {
    /// Makes the segment.
    fn new(vm: &Vm, size: u64) -> Result<Self, BuildError> {
        Ok(Self {
            vm: vm.clone(),
            memory: vm.create_devmem(VM_FRAMEBUFFER, SEGMENT, size)?,
            size,
            gpa: Mutex::default(),
        })
    }

    fn count(&self) -> u32 {
        (self.size / PAGE as u64) as u32 // 8192
    }

    fn gpa(&self) -> MutexGuard<'_, Option<u64>> {
        self.gpa.lock()
    }

    /// Every page that is not all zeroes.
    fn pages(&self) -> Result<Vec<(u32, Vec<u8>)>, SaveError> {
        let mut pages = Vec::new();
        let mut page = [0; PAGE];
        for number in 0..self.count() {
            self.memory
                .read(u64::from(number) * PAGE as u64, &mut page)
                .map_err(|error| SaveError::Unsupported(error.to_string()))?;
            if page != [0; PAGE] {
                pages.push((number, page.to_vec()));
            }
        }
        Ok(pages)
    }

    /// Makes these pages, ascending by number, the whole content.
    fn fill(&self, pages: &[(u32, Vec<u8>)]) -> Result<(), StateError> {
        let broken = || StateError::Invalid("the pages of the picture cannot be".to_owned());
        let ascending = pages.windows(2).all(|pair| match pair {
            [(first, _), (second, _)] => first < second,
            _ => true,
        });
        let fits = |(number, bytes): &(u32, Vec<u8>)| *number < self.count() && bytes.len() == PAGE;
        if !ascending || !pages.iter().all(fits) {
            return Err(broken());
        }
        let mut pages = pages.iter().peekable();
        for number in 0..self.count() {
            let offset = u64::from(number) * PAGE as u64;
            let bytes = pages.next_if(|(next, _)| *next == number);
            self.memory
                .write(offset, bytes.map_or(&[0; PAGE], |(_, bytes)| bytes))
                .map_err(|_| broken())?;
        }
        // A guest may have run what it wrote there.
        if let Some(gpa) = *self.gpa() {
            self.vm.memory_written(gpa, self.size);
        }
        Ok(())
    }
}

impl BarMemory for Frame {
    fn map(&self, gpa: u64) -> Result<(), String> {
        /// `PROT_READ | PROT_WRITE`.
        const PROT: i32 = 3;
        self.vm
            .mmap_memseg(gpa, VM_FRAMEBUFFER, 0, self.size, PROT, 0)
            .map_err(|error| error.to_string())?;
        *self.gpa() = Some(gpa);
        Ok(())
    }

    fn unmap(&self, gpa: u64) {
        if let Err(error) = self.vm.munmap_memseg(gpa, self.size) {
            log::debug!("{error}");
        }
        *self.gpa() = None;
    }
}

/// What viewers look at.
struct Screen {
    frame: Arc<Frame>,
    /// Locked before the VGA's.
    regs: Mutex<[u8; REGS_SIZE]>,
    vga: Option<Arc<Vga>>,
}

impl Screen {
    fn regs(&self) -> MutexGuard<'_, [u8; REGS_SIZE]> {
        self.regs.lock()
    }

    /// The mode that the guest has set, as far as there is memory for it; `None` without pixels.
    fn mode(&self) -> Option<Geometry> {
        let mode = size_of(&self.regs());
        let mode = Geometry {
            width: mode.width.min(MAX.width),
            height: mode.height.min(MAX.height),
        };
        (mode.width != 0 && mode.height != 0).then_some(mode)
    }

    /// The VGA, while it is its picture that is seen.
    fn vga(&self) -> Option<&Vga> {
        self.vga.as_deref().filter(|vga| vga.is_shown())
    }
}

/// What the registers say of the picture's size.
fn size_of(regs: &[u8; REGS_SIZE]) -> Geometry {
    Geometry {
        width: u16_at(regs, REG_WIDTH),
        height: u16_at(regs, REG_HEIGHT),
    }
}

fn u16_at(regs: &[u8; REGS_SIZE], at: usize) -> u16 {
    u16::from_le_bytes([regs[at], regs[at + 1]])
}

impl Picture for Screen {
    fn geometry(&self) -> Geometry {
        match self.vga() {
            Some(vga) => vga.geometry(),
            None => self.mode().unwrap_or(BLANK),
        }
    }

    fn capture(&self, image: &mut Image) {
        if let Some(vga) = self.vga() {
            return vga.capture(image);
        }
        let mode = self.mode();
        image.geometry = mode.unwrap_or(BLANK);
        image.pixels.resize(image.geometry.pixels(), 0);
        let read = mode.map(|_| self.frame.memory.read(0, image.pixels.as_mut_bytes()));
        match read {
            // The upper byte is nobody's.
            Some(Ok(())) => image
                .pixels
                .iter_mut()
                .for_each(|pixel| *pixel &= 0xff_ffff),
            _ => image.pixels.fill(0),
        }
    }

    fn boot_screen(&self) -> Option<BootScreen> {
        if self.vga().is_some() {
            return Some(BootScreen::Text(TextScreen {
                gpa: bios::TEXT,
                mode: bios::MODE,
                columns: bios::COLUMNS,
                rows: bios::ROWS,
                points: bios::POINTS,
            }));
        }
        Some(BootScreen::Linear(FrameBuffer {
            gpa: (*self.frame.gpa())?,
            size: FB_SIZE,
            geometry: self.mode()?,
        }))
    }
}

/// The device.
struct Fbuf {
    func: Arc<PciFunc>,
    screen: Arc<Screen>,
    /// As configured.
    initial: Geometry,
    /// Set when the device is there, and lives as long.
    server: OnceLock<Server>,
}

fn initial_regs(mode: Geometry) -> [u8; REGS_SIZE] {
    let mut regs = [0; REGS_SIZE];
    regs[REG_SIZE..REG_SIZE + 4].copy_from_slice(&(FB_SIZE as u32).to_le_bytes());
    regs[REG_WIDTH..REG_WIDTH + 2].copy_from_slice(&mode.width.to_le_bytes());
    regs[REG_HEIGHT..REG_HEIGHT + 2].copy_from_slice(&mode.height.to_le_bytes());
    regs[REG_DEPTH..REG_DEPTH + 2].copy_from_slice(&DEPTH.to_le_bytes());
    regs
}

fn server_options(node: &Node) -> Result<ServerOptions, BuildError> {
    let (rfb, tcp, unix) = (node.get(&RFB)?, node.get(&TCP)?, node.get(&UNIX)?);
    let endpoint = match (rfb.or(tcp), unix) {
        (Some(_), Some(_)) => {
            let what = "unix: viewers connect there or where tcp says, not both";
            return Err(BuildError::Invalid(what.to_owned()));
        }
        (_, Some(path)) if path.is_empty() => {
            return Err(BuildError::Invalid("unix: there is no path".to_owned()));
        }
        (_, Some(path)) => Endpoint::Unix(path.into()),
        (address, None) => Endpoint::parse_tcp(address.as_deref().unwrap_or_default())
            .map_err(BuildError::Invalid)?,
    };
    Ok(ServerOptions {
        endpoint,
        password: node.get(&PASSWORD)?,
    })
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let Parts(extent) = node.get(&VGA)?;
    let initial = Geometry {
        width: node.get(&WIDTH)?,
        height: node.get(&HEIGHT)?,
    };
    let options = server_options(node)?;
    if ctx.console.has_picture() {
        return Err(BuildError::Invalid(
            "a machine has one frame buffer at most".to_owned(),
        ));
    }
    let frame = Arc::new(Frame::new(ctx.vm, FB_SIZE)?);
    let vga = extent.map(|extent| Arc::new(Vga::new(extent)));
    if let Some(vga) = &vga {
        vga.register(ctx)?;
    }
    let fbuf = assemble(func, frame, vga, initial)?;
    let picture = Arc::downgrade(&fbuf.screen);
    ctx.console.set_picture(picture);
    if node.get(&WAIT)? {
        ctx.console.await_viewer();
    }
    let server = Server::start(options, Arc::clone(ctx.console))?;
    // Nobody else has set it.
    let _ = fbuf.server.set(server);
    Ok(Arc::new(fbuf))
}

/// The device without its viewers.
fn assemble(
    func: Arc<PciFunc>,
    frame: Arc<Frame>,
    vga: Option<Arc<Vga>>,
    initial: Geometry,
) -> Result<Fbuf, BuildError> {
    func.set_ids(IDS);
    func.add_bar(REGS_BAR, BarType::Mem32, REGS_SIZE as u64)?;
    func.add_memory_bar(MEMORY_BAR, frame.size, frame.clone())?;
    func.add_msi(MSI_MESSAGES)?;
    let screen = Arc::new(Screen {
        frame,
        regs: Mutex::new(initial_regs(initial)),
        vga,
    });
    Ok(Fbuf {
        func,
        screen,
        initial,
        server: OnceLock::new(),
    })
}

impl Device for Fbuf {
    fn name(&self) -> &str {
        self.func.name()
    }
    // Viewers only look; what they type is the console's business.
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {
        *self.screen.regs() = initial_regs(self.initial);
        if let Err(error) = self.screen.frame.fill(&[]) {
            log::debug!("{}: {error}", self.name());
        }
        if let Some(vga) = &self.screen.vga {
            vga.reset();
        }
    }
}

impl Persist for Fbuf {
    type State = FbufState;

    fn capture(&self) -> Result<FbufState, SaveError> {
        let Self {
            func: _,
            screen,
            initial: _,
            server: _,
        } = self;
        let Screen { frame, regs, vga } = &**screen;
        Ok(FbufState {
            regs: regs.lock().to_vec(),
            pages: frame.pages()?,
            vga: vga.as_deref().map(Vga::state),
        })
    }

    fn apply(&self, state: FbufState) -> Result<(), StateError> {
        let FbufState { regs, pages, vga } = state;
        let screen = &*self.screen;
        let regs = regs
            .try_into()
            .map_err(|_| StateError::Invalid("the registers have another size".to_owned()))?;
        match (&screen.vga, vga) {
            (Some(vga), Some(state)) => vga.apply(state)?,
            (None, None) => {}
            (Some(_), None) => {
                let what = "it was saved with vga=off";
                return Err(StateError::Invalid(what.to_owned()));
            }
            (None, Some(_)) => {
                let what = "it was saved with another vga than off";
                return Err(StateError::Invalid(what.to_owned()));
            }
        }
        screen.frame.fill(&pages)?;
        *screen.regs() = regs;
        Ok(())
    }
}

impl PciDevice for Fbuf {
    fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        let regs = self.screen.regs();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = at
            .checked_add(size.into())
            .and_then(|end| regs.get(at..end))
            .filter(|_| bar == REGS_BAR);
        // As upstream: what is not there reads as 0.
        bytes.map_or(0, |bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        })
    }

    fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
        let mut regs = self.screen.regs();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(end) = at.checked_add(size.into()) else {
            return;
        };
        let Some(bytes) = regs.get_mut(at..end).filter(|_| bar == REGS_BAR) else {
            return;
        };
        let value = (value & all_ones(size)).to_le_bytes();
        bytes
            .iter_mut()
            .zip(value)
            .for_each(|(to, from)| *to = from);
        if let Some(vga) = &self.screen.vga {
            match size_of(&regs) {
                Geometry {
                    width: 0,
                    height: 0,
                } => vga.show(true),
                Geometry { width, height } if width != 0 && height != 0 => vga.show(false),
                // A size of which one half is there.
                _ => {}
            }
        }
    }
}

/// The largest mode fits into the memory.
const _: () = assert!(MAX.width as u64 * MAX.height as u64 * BYTES_PER_PIXEL <= FB_SIZE);

#[cfg(test)]
mod tests;
