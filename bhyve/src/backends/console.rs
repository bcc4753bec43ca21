// SPDX-License-Identifier: BSD-2-Clause

//! The graphical console: where viewers meet the picture, the keyboard and the pointer (`usr.sbin/bhyve/console.c` and the
//! image of `bhyvegc.c`).
//!
//! One frame buffer shows the picture. Of the keyboards and of the pointers the one with the highest priority gets what a
//! viewer sends, as upstream; one that the guest does not use passes it on to the next, so that a guest without a driver
//! for the tablet still has its mouse.
//!
//! While the machine is at rest no event reaches a device: it waits here, and arrives when the machine goes on. So a device
//! that is paused need not know of viewers, and a key that is let go during a checkpoint is not stuck afterwards.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};

/// The priority of PS/2 keyboards and mice.
pub const PS2_PRIORITY: u8 = 1;
/// The priority of devices that know where the pointer is, instead of how it moves.
pub const TABLET_PRIORITY: u8 = 10;

/// What may wait while the machine is at rest: seconds of typing. More is lost, as in a keyboard's buffer.
const WAITING_LIMIT: usize = 256;

/// A key that is pressed or let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyEvent {
    /// Pressed, or held down long enough to repeat.
    pub down: bool,
    /// What is on the key, as an X11 keysym.
    pub keysym: u32,
    /// Which key it is, as a code of scan code set 1 with bit 7 for the prefix E0; 0 if the viewer does not tell.
    pub keycode: u32,
}

/// Where the pointer is, and what is pressed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtrEvent {
    /// Bit 0 is the left button, 1 the middle and 2 the right one; bits 3 and 4 are steps of the wheel, up and down.
    pub buttons: u8,
    /// Pixels from the left.
    pub x: u16,
    /// Pixels from the top.
    pub y: u16,
}

/// A keyboard of the guest.
pub trait Keyboard: Send + Sync {
    /// Takes a key. False if the guest does not use this keyboard.
    fn kbd_event(&self, event: KeyEvent) -> bool;
}

/// A pointer of the guest.
pub trait Pointer: Send + Sync {
    /// Takes a position. False if the guest does not use this pointer.
    fn ptr_event(&self, event: PtrEvent) -> bool;
}

/// The size of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Geometry {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Geometry {
    /// How many pixels there are.
    pub fn pixels(self) -> usize {
        usize::from(self.width) * usize::from(self.height)
    }
}

/// What a kernel that is booted without firmware finds to write on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootScreen {
    /// Pixels.
    Linear(FrameBuffer),
    /// Text of a VGA's.
    Text(TextScreen),
}

/// Characters and attributes, one byte each, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextScreen {
    /// Guest physical address of the first character.
    pub gpa: u64,
    /// The BIOS's number of the mode.
    pub mode: u8,
    /// Characters of a row.
    pub columns: u8,
    /// Rows.
    pub rows: u8,
    /// Rows of pixels of a character.
    pub points: u8,
}

/// Where a picture's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameBuffer {
    /// Guest physical address of the first pixel; pixels are 0x00RRGGBB, little-endian, rows follow each other.
    pub gpa: u64,
    /// All of the memory in bytes.
    pub size: u64,
    /// The picture.
    pub geometry: Geometry,
}

/// What the guest shows at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Its size.
    pub geometry: Geometry,
    /// Row by row from the top: `width * height` pixels of the form 0x00RRGGBB.
    pub pixels: Vec<u32>,
}

/// What has a picture to show.
pub trait Picture: Send + Sync {
    /// Its present size.
    fn geometry(&self) -> Geometry;
    /// Makes `image` what it shows at present.
    fn capture(&self, image: &mut Image);
    /// Where the guest finds it; `None` while it does not answer or has no pixels.
    fn boot_screen(&self) -> Option<BootScreen>;
}

enum Event {
    Key(KeyEvent),
    Ptr(PtrEvent),
}

/// Devices of one kind, the one with the highest priority first.
struct Ranked<T: ?Sized>(Vec<(u8, Weak<T>)>);

impl<T: ?Sized> Default for Ranked<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: ?Sized> Ranked<T> {
    /// Of equal priorities the first stays first.
    fn insert(&mut self, priority: u8, device: Weak<T>) {
        let at = self.0.partition_point(|(other, _)| *other >= priority);
        self.0.insert(at, (priority, device));
    }

    /// Offers something to each in turn until one takes it.
    fn offer(&self, take: impl Fn(&T) -> bool) {
        let mut devices = self.0.iter().filter_map(|(_, device)| device.upgrade());
        devices.any(|device| take(&device));
    }
}

struct Input {
    keyboards: Ranked<dyn Keyboard>,
    pointers: Ranked<dyn Pointer>,
    /// What came while the machine was at rest; `None` while it runs.
    waiting: Option<VecDeque<Event>>,
}

impl Input {
    fn deliver(&self, event: &Event) {
        match event {
            Event::Key(key) => self.keyboards.offer(|device| device.kbd_event(*key)),
            Event::Ptr(ptr) => self.pointers.offer(|device| device.ptr_event(*ptr)),
        }
    }
}

/// Whether a viewer has come.
#[derive(Default)]
struct FirstViewer {
    /// The guest is not to start before.
    awaited: bool,
    came: bool,
    /// What is to be done then.
    action: Option<Box<dyn FnOnce() + Send>>,
}

/// The console of a machine.
pub struct Console {
    picture: OnceLock<Weak<dyn Picture>>,
    viewer: Mutex<FirstViewer>,
    /// Held while a device takes an event; devices register before they take their own locks.
    input: Mutex<Input>,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A console without anything, at rest as a machine is that has just been built.
    pub fn new() -> Self {
        Self {
            picture: OnceLock::new(),
            viewer: Mutex::default(),
            input: Mutex::new(Input {
                keyboards: Ranked::default(),
                pointers: Ranked::default(),
                waiting: Some(VecDeque::new()),
            }),
        }
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock()
    }

    fn viewer(&self) -> MutexGuard<'_, FirstViewer> {
        self.viewer.lock()
    }

    /// The guest is not to start before a viewer has come.
    pub fn await_viewer(&self) {
        self.viewer().awaited = true;
    }

    /// Whether the guest is not to start before a viewer has come.
    pub fn awaits_viewer(&self) -> bool {
        self.viewer().awaited
    }

    /// A viewer has got in.
    pub fn viewer_came(&self) {
        let action = {
            let mut viewer = self.viewer();
            viewer.came = true;
            viewer.action.take()
        };
        if let Some(action) = action {
            action();
        }
    }

    /// Has `action` called once a viewer has come, at once if one has.
    pub fn on_viewer(&self, action: impl FnOnce() + Send + 'static) {
        let came = {
            let mut viewer = self.viewer();
            viewer.action = Some(Box::new(action));
            viewer.came
        };
        if came {
            self.viewer_came();
        }
    }

    /// Makes `picture` what viewers see, if nothing is yet.
    pub fn set_picture(&self, picture: Weak<dyn Picture>) {
        // The builder of a picture has asked whether there is one.
        let _ = self.picture.set(picture);
    }

    /// Whether there is something to see.
    pub fn has_picture(&self) -> bool {
        self.picture.get().is_some()
    }

    /// What a kernel finds to write on.
    pub fn boot_screen(&self) -> Option<BootScreen> {
        self.picture()?.boot_screen()
    }

    fn picture(&self) -> Option<Arc<dyn Picture>> {
        self.picture.get().and_then(Weak::upgrade)
    }

    /// The size of the picture; nothing without a frame buffer. May be called from within an event.
    pub fn geometry(&self) -> Geometry {
        self.picture()
            .map_or_else(Geometry::default, |picture| picture.geometry())
    }

    /// Makes `image` what the guest shows at present.
    pub fn capture(&self, image: &mut Image) {
        match self.picture() {
            Some(picture) => picture.capture(image),
            None => *image = Image::default(),
        }
    }

    /// Lets a keyboard have keys.
    pub fn register_keyboard(&self, priority: u8, keyboard: Weak<dyn Keyboard>) {
        self.input().keyboards.insert(priority, keyboard);
    }

    /// Lets a pointer have positions.
    pub fn register_pointer(&self, priority: u8, pointer: Weak<dyn Pointer>) {
        self.input().pointers.insert(priority, pointer);
    }

    /// A viewer presses a key or lets it go.
    pub fn kbd_event(&self, event: KeyEvent) {
        self.event(Event::Key(event));
    }

    /// A viewer moves the pointer or presses a button.
    pub fn ptr_event(&self, event: PtrEvent) {
        self.event(Event::Ptr(event));
    }

    fn event(&self, event: Event) {
        let mut input = self.input();
        match input.waiting.as_mut() {
            Some(waiting) if waiting.len() < WAITING_LIMIT => waiting.push_back(event),
            Some(_) => {}
            None => input.deliver(&event),
        }
    }

    /// Keeps events from the devices from now on; none is on its way any more when this returns.
    pub fn pause(&self) {
        self.input().waiting.get_or_insert_default();
    }

    /// Lets events through, those that have waited first.
    pub fn resume(&self) {
        let mut input = self.input();
        for event in input.waiting.take().into_iter().flatten() {
            input.deliver(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder {
        deaf: bool,
        keys: Mutex<Vec<u32>>,
        positions: Mutex<Vec<u16>>,
    }

    impl Keyboard for Recorder {
        fn kbd_event(&self, event: KeyEvent) -> bool {
            self.keys.lock().push(event.keysym);
            !self.deaf
        }
    }

    impl Pointer for Recorder {
        fn ptr_event(&self, event: PtrEvent) -> bool {
            self.positions.lock().push(event.x);
            !self.deaf
        }
    }

    fn key(keysym: u32) -> KeyEvent {
        KeyEvent {
            down: true,
            keysym,
            keycode: 0,
        }
    }

    fn at(x: u16) -> PtrEvent {
        PtrEvent {
            buttons: 0,
            x,
            y: 0,
        }
    }

    fn weak<T>(device: &Arc<T>) -> Weak<T> {
        Arc::downgrade(device)
    }

    #[test]
    fn the_highest_priority_that_listens_gets_it() {
        let console = Console::new();
        let [ps2, tablet, gone] = [(); 3].map(|()| Arc::new(Recorder::default()));
        let deaf = Arc::new(Recorder {
            deaf: true,
            ..Recorder::default()
        });
        console.register_pointer(PS2_PRIORITY, weak(&ps2) as _);
        console.register_pointer(TABLET_PRIORITY + 1, weak(&gone) as _);
        console.register_pointer(TABLET_PRIORITY, weak(&deaf) as _);
        console.resume();
        drop(gone);
        console.ptr_event(at(1));
        console.register_pointer(TABLET_PRIORITY, weak(&tablet) as _);
        console.ptr_event(at(2));
        assert_eq!(*deaf.positions.lock(), [1, 2]);
        assert_eq!(*tablet.positions.lock(), [2]);
        assert_eq!(*ps2.positions.lock(), [1]);
    }

    #[test]
    fn events_wait_while_the_machine_rests() {
        let console = Console::new();
        let kbd = Arc::new(Recorder::default());
        console.register_keyboard(PS2_PRIORITY, weak(&kbd) as _);
        console.kbd_event(key(1));
        assert!(kbd.keys.lock().is_empty());
        console.resume();
        console.kbd_event(key(2));
        console.pause();
        (3..1000).for_each(|keysym| console.kbd_event(key(keysym)));
        assert_eq!(*kbd.keys.lock(), [1, 2]);
        console.resume();
        assert_eq!(kbd.keys.lock().len(), 2 + WAITING_LIMIT);
    }
}
