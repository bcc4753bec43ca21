// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the VGA.

use super::*;

fn full() -> Arc<Vga> {
    Arc::new(Vga::new(Extent::Full))
}

fn outb(vga: &Vga, port: u16, value: u8) {
    PortHandler::write(vga, port, 1, value.into());
}

fn inb(vga: &Vga, port: u16) -> u8 {
    PortHandler::read(vga, port, 1) as u8
}

/// Writes a register behind an index, by one access to both ports.
fn set(vga: &Vga, port: u16, index: u8, value: u8) {
    PortHandler::write(vga, port, 2, u32::from(value) << 8 | u32::from(index));
}

fn get(vga: &Vga, port: u16, index: u8) -> u8 {
    outb(vga, port, index);
    inb(vga, port + 1)
}

fn set_attr(vga: &Vga, index: u8, value: u8) {
    inb(vga, 0x3da);
    outb(vga, 0x3c0, index);
    outb(vga, 0x3c0, value);
    outb(vga, 0x3c0, 0x20);
    inb(vga, 0x3da);
}

fn poke(vga: &Vga, gpa: u64, value: u8) {
    MmioHandler::write(vga, gpa - WINDOW, 1, value.into());
}

fn peek(vga: &Vga, gpa: u64) -> u8 {
    MmioHandler::read(vga, gpa - WINDOW, 1) as u8
}

const SEQ: u16 = 0x3c4;
const GFX: u16 = 0x3ce;
const CRTC: u16 = 0x3d4;
const ON: Blink = Blink {
    cursor: true,
    text: true,
};
const OFF: Blink = Blink {
    cursor: false,
    text: false,
};
const GREY: u32 = 0xaa_aaaa;

fn drawn(vga: &Vga, blink: Blink) -> Image {
    let mut image = Image::default();
    vga.chip().draw(blink, &mut image);
    assert_eq!(image.pixels.len(), image.geometry.pixels());
    image
}

/// The dots of a scan line from `x` on, as a number of as many bits: those that are not black.
fn dots(image: &Image, x: usize, y: usize, count: usize) -> u32 {
    let start = y * usize::from(image.geometry.width) + x;
    image.pixels[start..start + count]
        .iter()
        .fold(0, |bits, pixel| bits << 1 | u32::from(*pixel != 0))
}

/// A character of the text at the beginning.
fn put(vga: &Vga, column: u64, character: u8, attribute: u8) {
    poke(vga, bios::TEXT + 2 * column, character);
    poke(vga, bios::TEXT + 2 * column + 1, attribute);
}

/// The parameters of the BIOS's mode 12h, 640x480 in 16 colours, and 13h, 320x200 in 256.
fn set_mode(vga: &Vga, mode: u8) {
    let (misc, seq, crtc, gfx, attr_mode) = match mode {
        0x12 => (
            0xe3,
            [0x03, 0x01, 0x0f, 0x00, 0x06],
            [
                0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0, 0xea,
                0x8c, 0xdf, 0x28, 0, 0xe7, 0x04, 0xe3, 0xff,
            ],
            [0, 0, 0, 0, 0, 0, 0x05, 0x0f, 0xff],
            0x01,
        ),
        _ => (
            0x63,
            [0x03, 0x01, 0x0f, 0x00, 0x0e],
            [
                0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0, 0x9c,
                0x8e, 0x8f, 0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff,
            ],
            [0, 0, 0, 0, 0, 0x40, 0x05, 0x0f, 0xff],
            0x41,
        ),
    };
    outb(vga, 0x3c2, misc);
    (0..)
        .zip(seq)
        .for_each(|(n, value)| set(vga, SEQ, n, value));
    set(vga, CRTC, 0x11, 0);
    (0..)
        .zip(crtc)
        .for_each(|(n, value): (u8, u8)| set(vga, CRTC, n, value));
    (0..)
        .zip(gfx)
        .for_each(|(n, value)| set(vga, GFX, n, value));
    (0..16).for_each(|n| set_attr(vga, n, n));
    set_attr(vga, 0x10, attr_mode);
    set_attr(vga, 0x13, 0);
    // Nothing of the text stays.
    for at in (0..0x1_0000).step_by(8) {
        MmioHandler::write(vga, at, 8, 0);
    }
}

#[test]
fn text_is_seen_as_the_font_has_it() {
    let vga = full();
    let image = drawn(&vga, OFF);
    assert_eq!((image.geometry.width, image.geometry.height), (720, 400));
    assert!(image.pixels.iter().all(|pixel| *pixel == 0));
    put(&vga, 0, b'A', 0x07);
    put(&vga, 81, 0xc4, 0x1e);
    let image = drawn(&vga, OFF);
    let rows: Vec<u32> = (0..16).map(|y| dots(&image, 0, y, 9)).collect();
    let font: Vec<u32> = (0..16)
        .map(|row| u32::from(vga.chip().memory.cells[usize::from(b'A') * 32 + row][2]) << 1)
        .collect();
    assert_eq!(rows, font);
    assert!(image.pixels.contains(&GREY));
    // A line that is drawn goes through to the next character; another character would not. Yellow on blue.
    let at = |x: usize, y: usize| image.pixels[y * 720 + x];
    let line = (16..32).find(|y| at(9, *y) == 0xff_ff55).expect("a line");
    assert_eq!(at(17, line), 0xff_ff55);
    assert_eq!(at(17, 16), 0x00_00aa);
    assert_eq!(at(18, line), 0);
}

#[test]
fn the_cursor_and_what_blinks() {
    let vga = full();
    // At the third character, on the last two lines.
    set(&vga, CRTC, 0x0f, 2);
    set(&vga, CRTC, 0x0a, 14);
    set(&vga, CRTC, 0x0b, 15);
    put(&vga, 5, 0xdb, 0x87);
    let (on, off) = (drawn(&vga, ON), drawn(&vga, OFF));
    assert_eq!(dots(&on, 18, 14, 9), 0x1ff);
    assert_eq!(dots(&on, 18, 13, 9), 0);
    assert_eq!(dots(&off, 18, 14, 9), 0);
    assert_eq!(dots(&on, 45, 3, 9), 0x1ff);
    assert_eq!(dots(&off, 45, 3, 9), 0);
    // Turned off, the cursor is gone; without blinking, the same bit is a bright background.
    set(&vga, CRTC, 0x0a, 0x20);
    set_attr(&vga, 0x10, 0x04);
    put(&vga, 6, b' ', 0x80);
    let image = drawn(&vga, OFF);
    assert_eq!(dots(&image, 18, 14, 9), 0);
    assert_eq!(dots(&image, 45, 3, 9), 0x1ff);
    assert_eq!(image.pixels[54], 0x55_5555);
    // Underlined, where the register says.
    set(&vga, CRTC, 0x14, 12);
    put(&vga, 7, b' ', 0x01);
    assert_eq!(dots(&drawn(&vga, OFF), 63, 12, 8), 0xff);
}

#[test]
fn the_picture_scrolls_pans_and_splits() {
    let vga = full();
    put(&vga, 80, 0xdb, 0x07);
    put(&vga, 1, 0xdd, 0x07);
    // One row up.
    set(&vga, CRTC, 0x0d, 80);
    assert_eq!(dots(&drawn(&vga, OFF), 0, 0, 18), 0x1ff << 9);
    // Three lines further, and three dots to the left.
    set(&vga, CRTC, 0x08, 3);
    set_attr(&vga, 0x13, 2);
    let image = drawn(&vga, OFF);
    assert_eq!(dots(&image, 0, 12, 9), 0x1f8);
    assert_eq!(dots(&image, 0, 13, 9), 0);
    // From line 100 on it begins anew, at address 0 and, as told, without panning.
    set(&vga, CRTC, 0x18, 99);
    set(&vga, CRTC, 0x11, 0);
    set(&vga, CRTC, 0x07, 0x0f);
    set(&vga, CRTC, 0x09, 0x0f);
    assert_eq!(dots(&drawn(&vga, OFF), 0, 100, 18), 0xf00);
    set_attr(&vga, 0x10, 0x2c);
    let image = drawn(&vga, OFF);
    assert_eq!(dots(&image, 9, 100, 9), 0b1_1110_0000);
    assert_eq!(dots(&image, 0, 12, 9), 0x1f8);
}

#[test]
fn other_geometries() {
    let vga = full();
    // 80x50: characters of eight rows.
    set(&vga, CRTC, 0x09, 0x47);
    put(&vga, 80, 0xdb, 0x07);
    assert_eq!(dots(&drawn(&vga, OFF), 0, 8, 9), 0x1ff);
    // 40 columns at half the clock, of eight dots: as wide.
    set(&vga, CRTC, 0x11, 0x0e);
    set(&vga, CRTC, 0x01, 39);
    set(&vga, CRTC, 0x13, 20);
    set(&vga, SEQ, 1, 0x09);
    set_attr(&vga, 0x13, 0);
    let image = drawn(&vga, OFF);
    assert_eq!((image.geometry.width, image.geometry.height), (640, 400));
    put(&vga, 1, 0xdd, 0x07);
    assert_eq!(dots(&drawn(&vga, OFF), 16, 0, 16), 0xff00);
    // Whatever the registers say, it is a picture.
    for value in [0, 0xff] {
        (0..25).for_each(|n| set(&vga, CRTC, n, value));
        drawn(&vga, ON);
    }
}

#[test]
fn a_dark_screen_keeps_its_size() {
    let dark: [fn(&Vga); 4] = [
        |vga| set(vga, SEQ, 1, 0x20),
        |vga| set(vga, SEQ, 0, 1),
        |vga| set(vga, CRTC, 0x17, 0x23),
        |vga| outb(vga, 0x3c0, 0),
    ];
    for darken in dark {
        let vga = full();
        put(&vga, 0, 0xdb, 0x07);
        darken(&vga);
        let image = drawn(&vga, ON);
        assert_eq!(image.geometry.width, 720);
        assert!(image.pixels.iter().all(|pixel| *pixel == 0));
    }
}

#[test]
fn sixteen_colours_in_planes() {
    let vga = full();
    set_mode(&vga, 0x12);
    let geometry = vga.geometry();
    assert_eq!((geometry.width, geometry.height), (640, 480));
    // Colour 9 for two pixels in the middle of a byte, by the bit mask.
    set(&vga, GFX, 0, 9);
    set(&vga, GFX, 1, 0x0f);
    set(&vga, GFX, 8, 0x18);
    peek(&vga, 0xa_0000 + 80);
    poke(&vga, 0xa_0000 + 80, 0);
    let image = drawn(&vga, OFF);
    assert_eq!(dots(&image, 0, 1, 8), 0x18);
    assert_eq!(image.pixels[640 + 3], 0x00_00ff);
    // The palette of this mode is the identity, the DAC's is the power-on's.
    outb(&vga, 0x3c8, 9);
    for part in [0x3f, 0, 0x20] {
        outb(&vga, 0x3c9, part);
    }
    assert_eq!(drawn(&vga, OFF).pixels[640 + 3], 0xff_0082);
    // Which planes matter.
    set_attr(&vga, 0x12, 0x06);
    assert_eq!(drawn(&vga, OFF).pixels[640 + 3], 0);
}

#[test]
fn two_hundred_and_fifty_six_colours() {
    let vga = full();
    set_mode(&vga, 0x13);
    outb(&vga, 0x3c8, 0);
    for number in 0..=255 {
        for part in [number & 0x3f, number >> 2, 0] {
            outb(&vga, 0x3c9, part);
        }
    }
    for x in 0..320 {
        poke(&vga, 0xa_0000 + 320 + x, x as u8);
    }
    assert_eq!(peek(&vga, 0xa_0000 + 320 + 77), 77);
    let image = drawn(&vga, OFF);
    assert_eq!((image.geometry.width, image.geometry.height), (640, 400));
    let level = |six: u32| six << 2 | six >> 4;
    for x in 0..320_usize {
        let number = (x & 0xff) as u32;
        let colour = level(number & 0x3f) << 16 | level(number >> 2) << 8;
        for copy in [2 * 640 + 2 * x, 2 * 640 + 2 * x + 1, 3 * 640 + 2 * x] {
            assert_eq!(image.pixels[copy], colour, "{x}");
        }
    }
    assert_eq!(image.pixels[4 * 640 + 5], 0);
}

#[test]
fn write_modes_and_read_modes() {
    let vga = full();
    set_mode(&vga, 0x12);
    let at = 0xa_0123;
    let cell = || vga.chip().memory.cells[0x123];
    poke(&vga, at, 0x5a);
    assert_eq!(cell(), [0x5a; 4]);
    // Only some planes.
    set(&vga, SEQ, 2, 0b0101);
    poke(&vga, at, 0xff);
    assert_eq!(cell(), [0xff, 0x5a, 0xff, 0x5a]);
    set(&vga, GFX, 4, 1);
    assert_eq!(peek(&vga, at), 0x5a);
    set(&vga, GFX, 4, 2);
    assert_eq!(peek(&vga, at), 0xff);
    set(&vga, SEQ, 2, 0x0f);
    // Rotated, and combined with the latches.
    for (function, expected) in [
        (0x00, [0xc0; 4]),
        (0x08, [0xc0, 0x40, 0xc0, 0x40]),
        (0x10, [0xff, 0xda, 0xff, 0xda]),
        (0x18, [0x3f, 0x9a, 0x3f, 0x9a]),
    ] {
        set(&vga, GFX, 3, function | 1);
        let before = cell();
        peek(&vga, at);
        poke(&vga, at, 0x81);
        assert_eq!(cell(), expected, "{function:#x}");
        // Mode 1 puts the latches back.
        set(&vga, GFX, 5, 1);
        poke(&vga, at, 0);
        assert_eq!(cell(), before);
        set(&vga, GFX, 5, 0);
    }
    set(&vga, GFX, 3, 0);
    // Mode 2: a colour for the bits of the mask.
    set(&vga, GFX, 5, 2);
    set(&vga, GFX, 8, 0x0f);
    peek(&vga, at);
    poke(&vga, at, 0b0110);
    assert_eq!(cell(), [0xf0, 0x5f, 0xff, 0x50]);
    // Mode 3: set/reset for the bits of data and mask.
    set(&vga, GFX, 5, 3);
    set(&vga, GFX, 0, 0b1000);
    peek(&vga, at);
    poke(&vga, at, 0x3c);
    assert_eq!(cell(), [0xf0, 0x53, 0xf3, 0x5c]);
    // Read mode 1: where the colour is, of those planes that matter.
    set(&vga, GFX, 5, 8);
    set(&vga, GFX, 2, 0b0101);
    set(&vga, GFX, 7, 0b0101);
    assert_eq!(peek(&vga, at), 0xf0 & 0xf3);
    set(&vga, GFX, 7, 0);
    assert_eq!(peek(&vga, at), 0xff);
}

#[test]
fn pairs_of_planes_take_turns_in_text() {
    let vga = full();
    MmioHandler::write(&*vga, bios::TEXT - WINDOW + 2, 4, 0x1e42_1f41);
    let cells = vga.chip().memory.cells[..6].to_vec();
    assert_eq!((cells[2][0], cells[2][1]), (0x41, 0x1f));
    assert_eq!((cells[4][0], cells[4][1]), (0x42, 0x1e));
    assert_eq!((cells[3][0], cells[3][1]), (0, 0), "odd cells stay");
    assert_eq!(
        MmioHandler::read(&*vga, bios::TEXT - WINDOW + 2, 4),
        0x1e42_1f41
    );
    // The window is where the graphics controller has it, and nowhere without the memory's bit.
    assert_eq!(peek(&vga, 0xa_0000), 0xff);
    assert_eq!(peek(&vga, 0xb_0000), 0xff);
    outb(&vga, 0x3c2, 0x65);
    assert_eq!(peek(&vga, bios::TEXT + 2), 0xff);
}

#[test]
fn a_font_is_loaded_as_kernels_do() {
    let vga = full();
    set(&vga, SEQ, 2, 0x04);
    set(&vga, SEQ, 4, 0x07);
    set(&vga, GFX, 4, 2);
    set(&vga, GFX, 5, 0);
    set(&vga, GFX, 6, 0);
    for row in 0..16 {
        poke(&vga, 0xa_0000 + 0x4000 + u64::from(b'x') * 32 + row, 0x81);
    }
    assert_eq!(peek(&vga, 0xa_4000 + u64::from(b'x') * 32), 0x81);
    set(&vga, SEQ, 2, 0x03);
    set(&vga, SEQ, 4, 0x03);
    set(&vga, GFX, 4, 0);
    set(&vga, GFX, 5, 0x10);
    set(&vga, GFX, 6, 0x0e);
    // The second font for characters with bit 3 of the attribute.
    set(&vga, SEQ, 3, 0x04);
    put(&vga, 0, b'x', 0x0f);
    put(&vga, 1, b'x', 0x07);
    let image = drawn(&vga, OFF);
    assert_eq!(dots(&image, 0, 0, 9), 0x102);
    assert_eq!(dots(&image, 9, 0, 9), 0);
}

#[test]
fn registers_keep_what_they_have() {
    let vga = full();
    for (port, count, bits) in [(SEQ, 5, &regs::SEQ_BITS[..]), (GFX, 9, &regs::GFX_BITS[..])] {
        for index in 0..count {
            set(&vga, port, index, 0xff);
            assert_eq!(get(&vga, port, index), bits[usize::from(index)]);
        }
        assert_eq!(get(&vga, port, count), 0);
    }
    // The first registers of the CRTC are protected, but for a bit.
    set(&vga, CRTC, 0, 0x11);
    assert_eq!(get(&vga, CRTC, 0), 0x5f);
    set(&vga, CRTC, 7, 0);
    assert_eq!(get(&vga, CRTC, 7), 0x0f);
    set(&vga, CRTC, 0x11, 0x0e);
    set(&vga, CRTC, 0, 0x11);
    assert_eq!(get(&vga, CRTC, 0), 0x11);
    assert_eq!(get(&vga, CRTC, 0x19), 0);
    // Index and data of the attribute controller take turns at one port.
    inb(&vga, 0x3da);
    outb(&vga, 0x3c0, 0x33);
    outb(&vga, 0x3c0, 0x05);
    assert_eq!((inb(&vga, 0x3c0), inb(&vga, 0x3c1)), (0x33, 0x05));
    outb(&vga, 0x3c0, 0x34);
    inb(&vga, 0x3da);
    outb(&vga, 0x3c0, 0x13);
    assert_eq!(inb(&vga, 0x3c1), 0x05);
    // The status says one thing and the other.
    assert_ne!(inb(&vga, 0x3da) & 8, inb(&vga, 0x3da) & 8);
    // The palette counts on by itself.
    outb(&vga, 0x3c8, 255);
    (1..=6).for_each(|part| outb(&vga, 0x3c9, part));
    outb(&vga, 0x3c7, 255);
    assert_eq!(inb(&vga, 0x3c7), 3);
    let parts: Vec<u8> = (0..6).map(|_| inb(&vga, 0x3c9)).collect();
    assert_eq!(parts, [1, 2, 3, 4, 5, 6]);
    // A monochrome adapter has its CRTC elsewhere.
    assert_eq!(inb(&vga, 0x3b5), 0xff);
    outb(&vga, 0x3c2, 0x66);
    assert_eq!(get(&vga, 0x3b4, 0), 0x11);
    assert_eq!(inb(&vga, 0x3d5), 0xff);
    assert_eq!(inb(&vga, 0x3cc), 0x66);
}

#[test]
fn without_memory_there_are_registers_only() {
    let vga = Vga::new(Extent::Registers);
    assert!(!vga.is_shown());
    set(&vga, GFX, 5, 0x10);
    assert!(!vga.is_shown());
    poke(&vga, bios::TEXT, 1);
    assert_eq!(peek(&vga, bios::TEXT), 0xff);
    let twin = Vga::new(Extent::Registers);
    twin.apply(vga.state()).unwrap();
    let with_memory = full().state();
    assert!(twin.apply(with_memory).is_err());
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Something that a driver does; what it has read.
fn act(chance: &mut Chance, vgas: &[&Vga]) -> Vec<u64> {
    let (kind, a, b) = (chance.below(16), chance.next(), chance.next());
    let one = |vga: &Vga| -> u64 {
        let byte = b as u8;
        match kind {
            0 => {
                let port = 0x3b0 + (a % 0x30) as u16;
                PortHandler::write(vga, port, [1, 2, 4][(a >> 8) as usize % 3], b as u32);
            }
            1 => {
                let port = 0x3b0 + (a % 0x30) as u16;
                return PortHandler::read(vga, port, [1, 2, 4][(a >> 8) as usize % 3]).into();
            }
            2 => set(
                vga,
                SEQ,
                (a % 6) as u8,
                if a >> 8 & 7 == 0 { byte } else { byte | 3 },
            ),
            3 => set(vga, GFX, (a % 10) as u8, byte),
            4 => set(vga, CRTC, (a % 26) as u8, byte),
            5 => set_attr(vga, (a % 22) as u8, byte),
            6 => {
                outb(vga, 0x3c8, a as u8);
                (0..1 + a % 5).for_each(|n| outb(vga, 0x3c9, (b >> (8 * n)) as u8));
            }
            7 => {
                outb(vga, 0x3c7, a as u8);
                return (0..1 + b % 5).fold(0, |sum, _| sum << 8 | u64::from(inb(vga, 0x3c9)));
            }
            8 => return get(vga, [SEQ, GFX, CRTC][(a % 3) as usize], (b % 26) as u8).into(),
            9 if a % 8 == 0 => set_mode(vga, [0x12, 0x13][(b % 2) as usize]),
            9 => outb(vga, 0x3c2, byte | 3),
            10 | 11 => {
                let size = [1, 2, 4, 8][(a >> 20) as usize % 4];
                return MmioHandler::read(vga, a % WINDOW_SIZE, size);
            }
            12 if a % 4 == 0 => {
                let start = a >> 4;
                for n in 0..b % 300 {
                    MmioHandler::write(vga, (start + n) % WINDOW_SIZE, 1, b >> (n % 50));
                }
            }
            _ => {
                let size = [1, 2, 4, 8][(a >> 20) as usize % 4];
                MmioHandler::write(vga, a % WINDOW_SIZE, size, b & all_ones(size));
            }
        }
        0
    };
    vgas.iter().map(|vga| one(vga)).collect()
}

fn all_ones(size: u8) -> u64 {
    crate::bus::mem::all_ones(size)
}

/// As it goes through a checkpoint.
fn copied(state: &VgaState) -> VgaState {
    postcard::from_bytes(&postcard::to_stdvec(state).unwrap()).unwrap()
}

#[test]
fn a_restored_twin_behaves_the_same() {
    let mut chance = Chance(1);
    let (vga, twin) = (full(), full());
    for round in 0..1500 {
        if round % 50 == 0 {
            vga.reset();
        }
        for _ in 0..chance.below(30) {
            act(&mut chance, &[&vga]);
        }
        twin.apply(copied(&vga.state())).unwrap();
        for _ in 0..chance.below(30) {
            let read = act(&mut chance, &[&vga, &twin]);
            assert_eq!(read[0], read[1], "round {round}");
        }
        assert!(vga.chip().memory == twin.chip().memory, "round {round}");
        assert_eq!(vga.is_shown(), twin.is_shown());
        if round % 25 == 0 {
            assert!(drawn(&vga, ON) == drawn(&twin, ON), "round {round}");
        }
    }
}

#[test]
fn broken_states_are_refused() {
    let good = full().state();
    type Break = fn(&mut VgaState);
    let breaks: [(&str, Break); 10] = [
        ("registers", |state| state.seq.1[1] = 0x40),
        ("registers", |state| state.gfx.0 = 0x10),
        ("registers", |state| state.attr.1[0] = 0x40),
        ("registers", |state| state.crtc.0 = 0x20),
        ("registers", |state| state.general.feature = 4),
        ("registers", |state| state.dac.part = 3),
        ("registers", |state| state.dac.colours[7][1] = 0x40),
        ("palette", |state| state.dac.colours.truncate(255)),
        ("memory", |state| state.pages[1].0 = state.pages[0].0),
        ("memory", |state| state.pages[0].1.truncate(1023)),
    ];
    let vga = full();
    for (what, break_it) in breaks {
        let mut state = copied(&good);
        break_it(&mut state);
        let error = vga.apply(state).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let mut state = copied(&good);
    state.pages.last_mut().unwrap().0 = 64;
    assert!(vga.apply(state).is_err());
    vga.apply(good).unwrap();
}
