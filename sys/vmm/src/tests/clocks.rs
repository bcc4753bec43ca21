// SPDX-License-Identifier: BSD-2-Clause

//! How far the guest's clocks are apart when it reads one after the other, as FreeBSD does to learn the rate of one from another
//! (`clockcalib`): on a host that is busy, something else may have run between the two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iced_x86::code_asm::{al, cx, di, dword_ptr, dx, eax, ebx, edx, esi};
use vmm_x86::acpi::IO_PMTMR;
use vmm_x86::apicreg::DEFAULT_APIC_BASE;
use vmm_x86::hpet::VHPET_BASE;

use super::*;

/// Readings in a run of the guest, each of four clocks in 32 bits. The buffer is one real-mode segment.
const READINGS: usize = 4000;
const BUFFER: u64 = 0x10_0000;
const RUNS: usize = 50;
/// Threads that keep the host busy.
const LOAD: usize = 8;

/// Each reading: TSC, ACPI timer, HPET, what is left of the local APIC's timer.
fn readings(runs: usize) -> Vec<[u32; 4]> {
    let hpet = VHPET_BASE as u32;
    let lapic = DEFAULT_APIC_BASE as u32;
    let program = assemble(16, |a| {
        let mut again = a.create_label();
        a.mov(ebx, hpet)?;
        a.mov(esi, lapic)?;
        a.mov(dword_ptr(ebx + 0x10), 1)?;
        a.mov(dword_ptr(esi + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(esi + 0x3e0), 0xb)?;
        a.mov(dword_ptr(esi + 0x380), -1)?;
        a.mov(di, 0)?;
        a.mov(cx, READINGS as u32)?;
        a.mov(dx, u32::from(IO_PMTMR))?;
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.mov(dword_ptr(di).es(), eax)?;
        a.mov(edx, u32::from(IO_PMTMR))?;
        a.in_(eax, dx)?;
        a.mov(dword_ptr(di + 4).es(), eax)?;
        a.mov(eax, dword_ptr(ebx + 0xf0))?;
        a.mov(dword_ptr(di + 8).es(), eax)?;
        a.mov(eax, dword_ptr(esi + 0x390))?;
        a.mov(dword_ptr(di + 12).es(), eax)?;
        a.add(di, 16)?;
        a.dec(cx)?;
        a.jnz(again)?;
        a.out(0x80, al)
    });
    let bench = Bench::with_program(Clock::Host, 1, &program);
    let mut all = Vec::new();
    for _ in 0..runs {
        bench.start_at(0, 0, ENTRY);
        for (regnum, base, limit) in [
            (VM_REG_GUEST_DS, 0, u32::MAX),
            (VM_REG_GUEST_ES, BUFFER, 0xffff),
        ] {
            let desc = SegDesc::new(base, limit, 0x93);
            let arg = VmSegDesc {
                cpuid: 0,
                regnum,
                desc,
            };
            bench.set(VM_SET_SEGMENT_DESCRIPTOR, arg).unwrap();
        }
        assert_eq!(bench.next_out(0).0, 0x80);
        let bytes = bench.read(BUFFER, READINGS * 16);
        all.extend(bytes.as_chunks::<16>().0.iter().map(|reading| {
            let word = |at: usize| {
                u32::from_le_bytes([
                    reading[at],
                    reading[at + 1],
                    reading[at + 2],
                    reading[at + 3],
                ])
            };
            [word(0), word(4), word(8), word(12)]
        }));
    }
    all
}

/// Nanoseconds by which a clock is ahead of the TSC at each reading, less what it usually is in that run of the guest, in ascending
/// order.
fn scatter(readings: &[[u32; 4]], clock: usize, nanoseconds: f64, down: bool) -> Vec<f64> {
    let ahead_in = |run: &[[u32; 4]]| {
        let start = run[0];
        let ahead = run.iter().map(|now| {
            let tsc = f64::from(now[0].wrapping_sub(start[0]));
            let ticks = match down {
                true => start[clock].wrapping_sub(now[clock]),
                false => now[clock].wrapping_sub(start[clock]),
            };
            f64::from(ticks) * nanoseconds - tsc
        });
        let mut ahead: Vec<f64> = ahead.collect();
        ahead.sort_by(f64::total_cmp);
        let usual = ahead[ahead.len() / 2];
        ahead.iter_mut().for_each(|time| *time -= usual);
        ahead
    };
    let mut ahead: Vec<f64> = readings.chunks(READINGS).flat_map(ahead_in).collect();
    ahead.sort_by(f64::total_cmp);
    ahead
}

/// In nanoseconds: between such readings, half of all lie, however busy the host is.
const NEAR: f64 = 5000.0;

#[test]
#[ignore = "a measurement: make soak"]
fn clocks_that_are_read_one_after_the_other_agree() {
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..LOAD {
            scope.spawn(|| {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        let all = readings(RUNS);
        busy.store(false, Ordering::Relaxed);
        const SECOND: f64 = (1_u64 << 32) as f64;
        for (name, clock, units, down) in [
            ("ACPI timer", 1, 1199.0, false),
            ("HPET", 2, 256.0, false),
            ("local APIC", 3, 32.0, true),
        ] {
            let ahead = scatter(&all, clock, units / SECOND * 1e9, down);
            let at = |part: f64| ahead[((ahead.len() - 1) as f64 * part) as usize];
            let far = ahead.iter().filter(|time| time.abs() > NEAR).count();
            println!(
                "{name}: 1 % {:.0}, 99 % {:.0}, least {:.0}, most {:.0} ns; {far} of {} off by more than {NEAR} ns",
                at(0.01),
                at(0.99),
                at(0.0),
                at(1.0),
                ahead.len()
            );
            assert!(at(0.25) > -NEAR && at(0.75) < NEAR, "{name}");
        }
    });
}
