// SPDX-License-Identifier: BSD-2-Clause

//! How the lines of the log look (`usr.sbin/bhyve/debug.h`), and the points that an operator traces.

use log::kv::{self, Key, Value, VisitSource};
use std::io::Write;
use std::sync::OnceLock;

pub use vmmapi::report::Reporter;

/// The VM of this process, once it is known.
static VM: OnceLock<String> = OnceLock::new();

/// Lines about a device or a virtual CPU have this VM from now on. A process has one VM.
pub fn set_vm(name: &str) {
    // The first one stays: tests build several.
    let _ = VM.set(name.to_owned());
}

/// Writes a record as a line of its own: `bhyve: `, if it has a field also the VM and that, and what it says. `end` ends the line.
pub fn write_line(out: &mut dyn Write, record: &log::Record<'_>, end: &str) -> std::io::Result<()> {
    struct Fields<'a>(&'a mut dyn Write);
    impl<'kvs> VisitSource<'kvs> for Fields<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            match key.as_str() {
                // By its name alone, as in all other lines.
                "device" => write!(self.0, "{value}: ")?,
                key => write!(self.0, "{key} {value}: ")?,
            }
            Ok(())
        }
    }
    write!(out, "bhyve: ")?;
    if let Some(vm) = VM.get().filter(|_| record.key_values().count() != 0) {
        write!(out, "vm {vm}: ")?;
    }
    record
        .key_values()
        .visit(&mut Fields(out))
        .map_err(std::io::Error::other)?;
    write!(out, "{}{end}", record.args())
}

/// A place that an operator traces, with what is to be shown there. Nothing of it is evaluated unless `BHYVE_LOG` has `point=trace`, or
/// `point::NAME=trace` for one alone. bhyve(8) lists the names.
#[macro_export]
macro_rules! point {
    ($name:ident, $($fields:tt)+) => {
        log::trace!(
            target: concat!("point::", stringify!($name)),
            "{} {}",
            stringify!($name),
            format_args!($($fields)+),
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Arguments;

    #[test]
    fn a_line_says_who_it_is_about() {
        set_vm("vm");
        let line = |reporter: Reporter, what: Arguments<'_>| {
            let record = log::Record::builder()
                .key_values(&reporter)
                .args(what)
                .build();
            let mut out = Vec::new();
            write_line(&mut out, &record, "\r\n").unwrap();
            String::from_utf8(out).unwrap()
        };
        let vm = VM.get().unwrap();
        let device = Reporter::of_device("virtio-blk-3:0");
        assert_eq!(
            line(device, format_args!("queue 0 is empty")),
            format!("bhyve: vm {vm}: virtio-blk-3:0: queue 0 is empty\r\n")
        );
        assert_eq!(
            line(Reporter::of_vcpu(1), format_args!("rdmsr")),
            format!("bhyve: vm {vm}: vcpu 1: rdmsr\r\n")
        );
        let mut out = Vec::new();
        let record = log::Record::builder().args(format_args!("as ever")).build();
        write_line(&mut out, &record, "\n").unwrap();
        assert_eq!(out, b"bhyve: as ever\n");
    }
}
