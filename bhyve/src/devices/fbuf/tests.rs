// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the frame buffer.

use super::*;
use crate::bus::inout::PortHandler;
use crate::bus::mem::MmioHandler;
use crate::device::{Clock, SavedBytes, SavedState};
use crate::devices::virtio::testing::Bench;

const DEFAULT: Geometry = Geometry {
    width: 1024,
    height: 768,
};

/// Small enough for a thousand checkpoints.
const SMALL: u64 = 64 << 10;

fn device(bench: &Bench, saved: Option<&SavedBytes>) -> (Arc<dyn PciDevice>, Arc<Screen>) {
    device_with(bench, saved, None)
}

fn device_with(
    bench: &Bench,
    saved: Option<&SavedBytes>,
    extent: Option<Extent>,
) -> (Arc<dyn PciDevice>, Arc<Screen>) {
    let vga = extent.map(|extent| Arc::new(Vga::new(extent)));
    let mut screen = None;
    let driver = bench
        .build_with(
            |ctx, func, _| {
                let frame = Arc::new(Frame::new(ctx.vm, SMALL)?);
                let fbuf = assemble(func, frame, vga.clone(), DEFAULT)?;
                screen = Some(Arc::clone(&fbuf.screen));
                Ok(Arc::new(fbuf))
            },
            "fbuf",
            saved,
        )
        .unwrap();
    (driver.device, screen.unwrap())
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Everything that a guest can read.
fn visible(device: &dyn PciDevice, screen: &Screen) -> (Vec<u64>, Vec<u8>, Geometry) {
    let regs = (0..140)
        .map(|at| device.bar_read(REGS_BAR, at, 1))
        .collect();
    let mut memory = vec![0; SMALL as usize];
    screen.frame.memory.read(0, &mut memory).unwrap();
    (regs, memory, screen.geometry())
}

#[test]
fn a_restored_twin_behaves_the_same() {
    let benches = [(); 2].map(|()| Bench::new(Clock::Instructions));
    let (first, screen) = device(&benches[0], None);
    let (twin, twin_screen) = device(&benches[1], None);
    let mut random = 1;
    for round in 0..1000 {
        if round % 50 == 0 {
            first.reset();
        }
        let access = |random: &mut u64, devices: &[(&Arc<dyn PciDevice>, &Screen)]| {
            let (at, value) = (next(random), next(random));
            let size = 1 << (next(random) % 4);
            for (device, screen) in devices {
                if value & 1 == 0 {
                    device.bar_write(REGS_BAR, at % 140, size, value);
                } else {
                    let bytes = if value & 6 == 0 {
                        [0; 8]
                    } else {
                        value.to_le_bytes()
                    };
                    let _ = screen.frame.memory.write(at % SMALL, &bytes);
                }
            }
        };
        for _ in 0..next(&mut random) % 8 {
            access(&mut random, &[(&first, &screen)]);
        }
        let saved = SavedBytes::from(first.save().unwrap());
        twin.restore(&saved).unwrap();
        for _ in 0..4 {
            access(&mut random, &[(&first, &screen), (&twin, &twin_screen)]);
            assert!(
                visible(&*first, &screen) == visible(&*twin, &twin_screen),
                "{round}"
            );
        }
        assert_eq!(first.save().unwrap(), twin.save().unwrap());
    }
}

#[test]
fn whatever_the_guest_sets_is_a_picture() {
    let bench = Bench::new(Clock::Instructions);
    let (device, screen) = device(&bench, None);
    let mut image = Image::default();
    for (width, height, shown) in [
        (0, 0, BLANK),
        (0, 768, BLANK),
        (
            1,
            1,
            Geometry {
                width: 1,
                height: 1,
            },
        ),
        (0xffff, 0xffff, MAX),
    ] {
        device.bar_write(REGS_BAR, 4, 2, width);
        device.bar_write(REGS_BAR, 6, 2, height);
        screen.capture(&mut image);
        assert_eq!(image.geometry, shown);
        assert_eq!(image.pixels.len(), shown.pixels());
    }
    device.reset();
    assert_eq!(device.bar_read(REGS_BAR, 0, 4), FB_SIZE);
    assert_eq!(device.bar_read(REGS_BAR, 4, 4), 768 << 16 | 1024);
    assert_eq!(device.bar_read(REGS_BAR, 8, 2), 32);
    for at in [125, 128, u64::MAX] {
        assert_eq!(device.bar_read(REGS_BAR, at, 8), 0);
        device.bar_write(REGS_BAR, at, 8, u64::MAX);
    }
    assert_eq!(device.bar_read(REGS_BAR, 120, 8), 0);
}

#[test]
fn broken_states_are_refused() {
    let bench = Bench::new(Clock::Instructions);
    let (device, _screen) = device(&bench, None);
    let page = vec![1; PAGE];
    for (regs, pages) in [
        (127, vec![]),
        (128, vec![(16, page.clone())]),
        (128, vec![(0, vec![1; PAGE - 1])]),
        (128, vec![(2, page.clone()), (2, page.clone())]),
        (128, vec![(2, page.clone()), (1, page)]),
    ] {
        let state = FbufState {
            regs: vec![0; regs],
            pages,
            vga: None,
        };
        let saved = SavedState::encode(&state).unwrap();
        assert!(device.restore(&saved.into()).is_err());
    }
}

#[test]
fn the_vga_is_seen_while_it_is_used() {
    let bench = Bench::new(Clock::Instructions);
    let (device, screen) = device_with(&bench, None, Some(Extent::Full));
    let vga = screen.vga.clone().unwrap();
    let mode = |value: u32| PortHandler::write(&*vga, 0x3ce, 2, value << 8 | 5);
    assert!(matches!(
        screen.boot_screen(),
        Some(BootScreen::Text(TextScreen {
            gpa: 0xb_8000,
            columns: 80,
            rows: 25,
            ..
        }))
    ));
    assert_eq!(screen.geometry(), BLANK);
    // A size makes it the linear picture's turn, and half a size nothing.
    device.bar_write(REGS_BAR, 4, 2, 800);
    assert_eq!(screen.geometry().width, 800);
    mode(0x10);
    assert_eq!(screen.geometry(), BLANK);
    device.bar_write(REGS_BAR, 4, 4, 600 << 16 | 800);
    assert_eq!(screen.geometry().height, 600);
    device.bar_write(REGS_BAR, 4, 2, 0);
    assert!(!vga.is_shown());
    device.bar_write(REGS_BAR, 6, 2, 0);
    assert!(vga.is_shown());
    let mut image = Image::default();
    MmioHandler::write(&*vga, 0x1_8000, 2, 0x07db);
    screen.capture(&mut image);
    assert_eq!(image.pixels[0], 0xaa_aaaa);

    let saved = SavedBytes::from(device.save().unwrap());
    let other = Bench::new(Clock::Instructions);
    let (twin, twin_screen) = device_with(&other, Some(&saved), Some(Extent::Full));
    let mut twin_image = Image::default();
    twin_screen.capture(&mut twin_image);
    assert!(image == twin_image);
    device.reset();
    screen.capture(&mut image);
    assert_eq!(image.pixels[0], 0);
    assert_eq!(saved, twin.save().unwrap().into());

    // With registers only, the picture stays the linear one.
    let other = Bench::new(Clock::Instructions);
    let (device, screen) = device_with(&other, None, Some(Extent::Registers));
    let vga = screen.vga.clone().unwrap();
    PortHandler::write(&*vga, 0x3ce, 2, 0x1005);
    assert_eq!(screen.geometry(), DEFAULT);
    assert!(device.restore(&saved).is_err());
    let other = Bench::new(Clock::Instructions);
    let (device, _screen) = self::device(&other, None);
    let error = device.restore(&saved).unwrap_err().to_string();
    assert!(error.contains("vga"), "{error}");
}

#[test]
fn bad_options_are_refused_by_name() {
    for (options, complaint) in [
        ("vga=maybe", "vga: \"maybe\" is not one of on, io, off"),
        ("w=639", "w: \"639\" is not a number from 640 to 3840"),
        ("h=2161", "h: \"2161\" is not a number from 480 to 2160"),
        ("w=wide", "w"),
        ("tcp=host:5900", "\"host:5900\" is not [IP:]PORT"),
        ("tcp=127.0.0.1:", "is not [IP:]PORT"),
        ("tcp=[::1", "is not [IP:]PORT"),
        ("rfb=65536", "\"65536\" is not [IP:]PORT"),
        ("tcp=5901,unix=/tmp/x", "unix: viewers connect there or"),
        ("unix=", "unix: there is no path"),
        ("unix=/nonexistent/vnc", "cannot listen on /nonexistent/vnc"),
        ("wait=perhaps", "wait"),
    ] {
        let bench = Bench::new(Clock::Instructions);
        let error = bench.build(&FBUF, options, None).err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(complaint), "{options}: {text}");
    }
}
