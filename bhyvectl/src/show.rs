// SPDX-License-Identifier: BSD-2-Clause

//! What the options do to a VM, and how it is printed: byte for byte as upstream, since tools parse it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use vmmapi::abi::*;
use vmmapi::control::{client_rundir, running};
use vmmapi::{CpuSet, Errno, Vcpu, Vm, capability_name, capability_type};

use crate::opts::{Arguments, number};
use crate::vendor::{Field, Format};

/// The names of the VMs that have a control socket, one on each line.
pub fn list(rundir: Option<&Path>) -> anyhow::Result<()> {
    for name in running(&client_rundir(rundir)?)? {
        // It would look like two.
        if name.contains('\n') {
            log::warn!("left out: {name:?}");
        } else {
            outln!("{name}");
        }
    }
    Ok(())
}

/// What the options are about.
pub struct Target<'a> {
    /// The VM of `--vm`.
    pub vm: Vm,
    /// The vCPU of `--cpu`.
    pub vcpu: Vcpu,
    /// All options.
    pub arguments: &'a Arguments,
}

/// What an option does.
pub enum Action {
    /// Nothing by itself; others use its value.
    Parameter,
    /// Sets a register to the option's value.
    SetRegister(i32),
    /// Sets a descriptor to what the parameters say.
    SetDescriptor(i32),
    /// Shows a register in 16 digits.
    Register { name: &'static str, register: i32 },
    /// Shows a selector in 4 digits.
    Selector { name: &'static str, register: i32 },
    /// Shows a descriptor.
    Descriptor { name: &'static str, register: i32 },
    /// Shows fields of the processor's control structure.
    Fields(&'static [Field]),
    /// Anything else; it is given the option's value.
    Step(fn(&Target, &str) -> anyhow::Result<()>),
}

impl Action {
    /// Does it. `value` is the option's, empty if it takes none.
    pub fn run(&self, target: &Target, value: &str) -> anyhow::Result<()> {
        let (vcpu, cpu) = (&target.vcpu, target.vcpu.id());
        match *self {
            Action::Parameter => (),
            Action::SetRegister(register) => vcpu.set_register(register, number(value)?)?,
            Action::SetDescriptor(register) => {
                vcpu.set_desc(register, descriptor(target, register)?)?
            }
            Action::Register { name, register } => {
                outln!("{name}[{cpu}]\t\t0x{:016x}", vcpu.get_register(register)?);
            }
            Action::Selector { name, register } => {
                outln!("{name}[{cpu}]\t\t0x{:04x}", vcpu.get_register(register)?)
            }
            Action::Descriptor { name, register } => {
                let SegDesc {
                    base,
                    limit,
                    access,
                } = vcpu.get_desc(register)?;
                match register {
                    VM_REG_GUEST_GDTR | VM_REG_GUEST_IDTR => {
                        outln!("{name}[{cpu}]\t\t0x{base:016x}/0x{limit:08x}")
                    }
                    _ => outln!("{name} desc[{cpu}]\t0x{base:016x}/0x{limit:08x}/0x{access:08x}"),
                }
            }
            Action::Fields(fields) => {
                for Field {
                    register,
                    label,
                    tabs,
                    format,
                } in fields
                {
                    let value = vcpu.get_register(*register)?;
                    outln!("{label}[{cpu}]{tabs}{}", in_format(value, *format));
                }
            }
            Action::Step(step) => step(target, value)?,
        }
        Ok(())
    }
}

fn in_format(value: u64, format: Format) -> String {
    match format {
        Format::Long => format!("0x{value:016x}"),
        Format::Int => format!("0x{:08x}", value as u32),
        Format::Short => format!("0x{value:04x}"),
        Format::Alternate => alternate(value),
    }
}

/// `%#lx`.
fn alternate(value: u64) -> String {
    if value == 0 {
        "0".into()
    } else {
        format!("{value:#x}")
    }
}

fn descriptor(target: &Target, register: i32) -> anyhow::Result<SegDesc> {
    let parameter = |name| Ok::<_, anyhow::Error>(target.arguments.number(name)?.unwrap_or(0));
    let word = |name| {
        let value = parameter(name)?;
        u32::try_from(value).map_err(|_| anyhow!("--{name}: {value:#x} has more than 32 bits"))
    };
    let access = match register {
        VM_REG_GUEST_GDTR | VM_REG_GUEST_IDTR => 0,
        _ => word("desc-access")?,
    };
    Ok(SegDesc {
        base: parameter("desc-base")?,
        limit: word("desc-limit")?,
        access,
    })
}

/// `number` as an `int`.
fn int(text: &str) -> anyhow::Result<i32> {
    i32::try_from(number(text)?).map_err(|_| anyhow!("{text} is out of range"))
}

pub fn set_mem(target: &Target, value: &str) -> anyhow::Result<()> {
    let bytes = number(value)?
        .checked_mul(1 << 20)
        .and_then(|b| b.checked_next_multiple_of(2 << 20));
    Ok(target
        .vm
        .setup_memory(bytes.with_context(|| format!("--set-mem: {value} is out of range"))?)?)
}

/// humanize_number(3) for a buffer of 8 characters, with the suffix `B` and no space.
fn humanized(bytes: u64) -> String {
    let mut quotient = bytes;
    let mut remainder = 0;
    let mut prefix = 0;
    while quotient >= 100_000 || (quotient == 99_999 && remainder >= 950) {
        remainder = quotient % 1024;
        quotient /= 1024;
        prefix += 1;
    }
    let rounded = quotient + (remainder + 512) / 1024;
    format!("{rounded}{}B", ["", "K", "M", "G", "T", "P", "E"][prefix])
}

fn segment_name(name: &str) -> &str {
    if name.is_empty() { "sysmem" } else { name }
}

pub fn memseg(target: &Target, _: &str) -> anyhow::Result<()> {
    outln!("ID  Length      Name");
    for segid in 0..VM_MAX_MEMSEGS {
        match target.vm.get_memseg(segid) {
            Ok((0, _)) => (),
            Ok((len, name)) => outln!("{segid:<4}{:<12}{}", humanized(len), segment_name(&name)),
            // FreeBSD 14 lacks some numbers in between.
            Err(error) if error.errno == Errno::EINVAL => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub fn memmap(target: &Target, _: &str) -> anyhow::Result<()> {
    outln!("Address     Length      Segment     Offset      Prot  Flags");
    for map in target.vm.mappings()? {
        let (_, name) = target.vm.get_memseg(map.segid)?;
        let letter = |bit, letter| if map.prot & bit != 0 { letter } else { '-' };
        let (r, w, x) = (
            letter(VM_PROT_READ, 'R'),
            letter(VM_PROT_WRITE, 'W'),
            letter(VM_PROT_EXECUTE, 'X'),
        );
        let flags: Vec<_> = [(VM_MEMMAP_F_WIRED, "wired"), (VM_MEMMAP_F_IOMMU, "iommu")]
            .into_iter()
            .filter_map(|(bit, name)| (map.flags & bit != 0).then_some(name))
            .collect();
        // Upstream's separator before the first flag is a NUL character, which it prints.
        let flags = if flags.is_empty() {
            String::new()
        } else {
            format!("\0{}", flags.join("/"))
        };
        let (length, segment) = (humanized(map.len), segment_name(&name));
        outln!(
            "{:<12X}{length:<12}{segment:<12}{:<12X}{r}{w}{x}   {flags}",
            map.gpa,
            map.segoff
        );
    }
    Ok(())
}

pub fn set_x2apic_state(target: &Target, value: &str) -> anyhow::Result<()> {
    Ok(target.vcpu.set_x2apic_state(int(value)?)?)
}

pub fn x2apic_state(target: &Target, _: &str) -> anyhow::Result<()> {
    outln!(
        "x2apic_state[{}]\t{}",
        target.vcpu.id(),
        target.vcpu.get_x2apic_state()?
    );
    Ok(())
}

pub fn unassign_pptdev(target: &Target, value: &str) -> anyhow::Result<()> {
    let numbers: Option<Vec<i32>> = value.split('/').map(|n| n.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[bus, slot, func]) => Ok(target.vm.unassign_pptdev(bus, slot, func)?),
        _ => bail!("--unassign-pptdev: {value:?} is not bus/slot/func"),
    }
}

pub fn inject_nmi(target: &Target, _: &str) -> anyhow::Result<()> {
    Ok(target.vcpu.inject_nmi()?)
}

pub fn assert_lapic_lvt(target: &Target, value: &str) -> anyhow::Result<()> {
    Ok(target.vcpu.lapic_local_irq(int(value)?)?)
}

pub fn msr_bitmap(target: &Target, _: &str) -> anyhow::Result<()> {
    bail!(
        "--get-msr-bitmap: the MSR permission map of {} is not in memory that can be read here",
        target.vm.name()
    )
}

pub fn gpa_pmap(target: &Target, value: &str) -> anyhow::Result<()> {
    let gpa = number(value)?;
    let entries: String = target
        .vm
        .get_gpa_pmap(gpa)?
        .into_iter()
        .map(|pte| format!(" {}", alternate(pte)))
        .collect();
    outln!("gpa {}:{entries}", alternate(gpa));
    Ok(())
}

fn nvram_offset(target: &Target) -> anyhow::Result<i32> {
    target
        .arguments
        .value("rtc-nvram-offset")
        .map_or(Ok(0), int)
}

pub fn set_rtc_nvram(target: &Target, value: &str) -> anyhow::Result<()> {
    let byte = u8::try_from(number(value)?)
        .map_err(|_| anyhow!("--set-rtc-nvram: {value} is more than a byte"))?;
    Ok(target.vm.rtc_write(nvram_offset(target)?, byte)?)
}

pub fn rtc_nvram(target: &Target, _: &str) -> anyhow::Result<()> {
    let offset = nvram_offset(target)?;
    outln!(
        "rtc nvram[{offset:03}]: 0x{:02x}",
        target.vm.rtc_read(offset)?
    );
    Ok(())
}

pub fn set_rtc_time(target: &Target, value: &str) -> anyhow::Result<()> {
    let secs = i64::try_from(number(value)?)
        .map_err(|_| anyhow!("--set-rtc-time: {value} is out of range"))?;
    Ok(target.vm.rtc_settime(secs)?)
}

pub fn rtc_time(target: &Target, _: &str) -> anyhow::Result<()> {
    let secs = target.vm.rtc_gettime()?;
    outln!("rtc time {}: {}", alternate(secs as u64), date(secs));
    Ok(())
}

/// `Mon Nov 23 07:03:18 2026`, in UTC.
fn date(secs: i64) -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (days, time) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let is_leap = |y: i64| y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    // Whole cycles of 400 years first, then at most 400 steps of a year.
    let mut year = 1970 + days.div_euclid(146_097) * 400;
    let mut day = days.rem_euclid(146_097);
    while day >= 365 + i64::from(is_leap(year)) {
        day -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + i64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    // The epoch was a Thursday.
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!(
        "{weekday} {} {:02} {hour:02}:{minute:02}:{second:02} {year}",
        MONTHS[month],
        day + 1
    )
}

pub fn intinfo(target: &Target, _: &str) -> anyhow::Result<()> {
    let (pending, current) = target.vcpu.get_intinfo()?;
    outln!("pending:\t{}", event(pending));
    outln!("current:\t{}", event(current));
    Ok(())
}

fn event(info: u64) -> String {
    if info & VM_INTINFO_VALID == 0 {
        return "n/a".into();
    }
    let kind = match info & VM_INTINFO_TYPE {
        VM_INTINFO_HWINTR => "extint",
        VM_INTINFO_NMI => "nmi",
        VM_INTINFO_SWINTR => "swint",
        _ => "exception",
    };
    let mut text = format!("{kind} vector {}", info & VM_INTINFO_VECTOR);
    if info & VM_INTINFO_DEL_ERRCODE != 0 {
        text.push_str(&format!(" errcode {}", alternate(info >> 32)));
    }
    text
}

pub fn setcap(target: &Target, value: &str) -> anyhow::Result<()> {
    let name = target
        .arguments
        .value("capname")
        .context("--setcap: which? give --capname")?;
    let captype = capability_type(name)
        .with_context(|| format!("--capname: there is no capability {name:?}"))?;
    match target.vcpu.set_capability(captype, int(value)?) {
        Err(error) if error.errno == Errno::ENOENT => {
            outln!("Capability \"{name}\" is not available");
            Err(error.into())
        }
        result => Ok(result?),
    }
}

pub fn getcap(target: &Target, _: &str) -> anyhow::Result<()> {
    let asked = target
        .arguments
        .value("getcap")
        .and(target.arguments.value("capname"));
    let only = asked
        .map(|name| {
            capability_type(name)
                .with_context(|| format!("--capname: there is no capability {name:?}"))
        })
        .transpose()?;
    for captype in (0..VM_CAP_MAX).filter(|&c| only.is_none_or(|only| only == c)) {
        let name = capability_name(captype).unwrap_or_default();
        match target.vcpu.get_capability(captype) {
            Ok(value) => {
                let is = if value != 0 { "set" } else { "not set" };
                outln!("Capability \"{name}\" is {is} on vcpu {}", target.vcpu.id());
            }
            Err(error) if error.errno == Errno::ENOENT => {
                outln!("Capability \"{name}\" is not available")
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn print_cpus(banner: &str, cpus: &CpuSet) {
    let numbers: Vec<_> = cpus.iter().map(|cpu| cpu.to_string()).collect();
    let list = if numbers.is_empty() {
        "(none)".into()
    } else {
        numbers.join(", ")
    };
    outln!("{banner}:\t {list}");
}

pub fn active_cpus(target: &Target, _: &str) -> anyhow::Result<()> {
    print_cpus("active cpus", &target.vm.active_cpus()?);
    Ok(())
}

pub fn debug_cpus(target: &Target, _: &str) -> anyhow::Result<()> {
    print_cpus("debug cpus", &target.vm.debug_cpus()?);
    Ok(())
}

pub fn suspended_cpus(target: &Target, _: &str) -> anyhow::Result<()> {
    print_cpus("suspended cpus", &target.vm.suspended_cpus()?);
    Ok(())
}

pub fn stats(target: &Target, _: &str) -> anyhow::Result<()> {
    let stats = target.vcpu.named_stats()?;
    outln!("vcpu{} stats:", target.vcpu.id());
    for (name, value) in stats {
        outln!("{name:<40}\t{}", value as i64);
    }
    Ok(())
}

pub fn cpu_topology(target: &Target, _: &str) -> anyhow::Result<()> {
    let VmCpuTopology {
        sockets,
        cores,
        threads,
        maxcpus,
    } = target.vm.get_topology()?;
    outln!("cpu_topology:\tsockets={sockets}, cores={cores}, threads={threads}, maxcpus={maxcpus}");
    Ok(())
}

pub fn run(target: &Target, _: &str) -> anyhow::Result<()> {
    let mut exit = VmExit::default();
    target.vcpu.run(&mut exit, &mut CpuSet::default())?;
    outln!("vm exit[{}]", target.vcpu.id());
    outln!("\trip\t\t0x{:016x}", exit.rip);
    outln!("\tinst_length\t{}", exit.inst_length);
    match exit.exitcode {
        VM_EXITCODE_INOUT => {
            let inout = exit.u.get::<VmInout>();
            outln!("\treason\t\tINOUT");
            outln!("\tdirection\t{}", if inout.is_in() { "IN" } else { "OUT" });
            outln!("\tbytes\t\t{}", inout.bytes());
            let flag = |is, name| if is { name } else { "" };
            outln!(
                "\tflags\t\t{}{}",
                flag(inout.is_string(), "STRING "),
                flag(inout.is_rep(), "REP ")
            );
            outln!("\tport\t\t0x{:04x}", inout.port);
            outln!("\teax\t\t0x{:08x}", inout.eax);
        }
        code => outln!("*** unknown vm run exitcode {code}"),
    }
    Ok(())
}

pub fn force_reset(target: &Target, _: &str) -> anyhow::Result<()> {
    Ok(target.vm.suspend(VM_SUSPEND_RESET)?)
}

pub fn force_poweroff(target: &Target, _: &str) -> anyhow::Result<()> {
    Ok(target.vm.suspend(VM_SUSPEND_POWEROFF)?)
}

pub fn destroy(target: &Target, _: &str) -> anyhow::Result<()> {
    Ok(target.vm.destroy()?)
}

/// How long ago the epoch's second `secs` was, for people.
pub fn ago(secs: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    match now.as_secs().saturating_sub(secs) {
        s @ 0..120 => format!("{s} seconds ago"),
        s @ 120..7_200 => format!("{} minutes ago", s / 60),
        s @ 7_200..172_800 => format!("{} hours ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// [`date`] for other modules.
pub fn date_of(secs: u64) -> String {
    date(i64::try_from(secs).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_humanized_as_libutil_does() {
        for (bytes, text) in [
            (0, "0B"),
            (99_999, "99999B"),
            (100_352, "98KB"),
            (16 << 20, "16384KB"),
            (512 << 20, "512MB"),
            (3 << 30, "3072MB"),
            (1 << 40, "1024GB"),
        ] {
            assert_eq!(humanized(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn dates_are_gregorian() {
        for (secs, text) in [
            (0, "Thu Jan 01 00:00:00 1970"),
            (951_782_400, "Tue Feb 29 00:00:00 2000"),
            (1_795_420_998, "Mon Nov 23 08:03:18 2026"),
            (4_107_542_399, "Sun Feb 28 23:59:59 2100"),
            (-1, "Wed Dec 31 23:59:59 1969"),
        ] {
            assert_eq!(date(secs), text, "{secs}");
        }
    }

    #[test]
    fn events_are_named() {
        assert_eq!(event(0), "n/a");
        assert_eq!(
            event(VM_INTINFO_VALID | VM_INTINFO_HWINTR | 0x30),
            "extint vector 48"
        );
        let fault =
            VM_INTINFO_VALID | VM_INTINFO_HWEXCEPTION | VM_INTINFO_DEL_ERRCODE | 14 | 2 << 32;
        assert_eq!(event(fault), "exception vector 14 errcode 0x2");
    }
}
