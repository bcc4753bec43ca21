//! The man pages name each option that is really there, and no other.

use std::collections::BTreeSet;
use std::path::Path;

use vmm_tests::Bench;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../man").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What follows `start` in the page's lines, up to the next space.
fn items(page: &str, start: &str) -> BTreeSet<String> {
    let rest = page.lines().filter_map(|line| line.strip_prefix(start));
    rest.map(|rest| rest.split(' ').next().unwrap_or_default().to_owned()).collect()
}

fn compare(page: &str, documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let invented: Vec<_> = documented.difference(real).collect();
    assert!(missing.is_empty(), "{page} lacks {missing:?}");
    assert!(invented.is_empty(), "{page} has {invented:?}, which are not there");
    assert!(!real.is_empty());
}

#[test]
fn bhyvectl_8() {
    let output = Bench::new().ctl::<&str>(&[]);
    assert_eq!(output.status.code(), Some(1));
    let usage = String::from_utf8(output.stderr).unwrap();
    let options = usage.lines().filter_map(|line| line.split("--").nth(1));
    let mut real: BTreeSet<_> =
        options.map(|o| o.split(['=', ']']).next().unwrap_or_default().to_owned()).collect();
    real.insert("help".into());
    compare("bhyvectl.8", &items(&page("bhyvectl.8"), ".It Fl -"), &real);
}

#[test]
fn bhyve_8() {
    let output = Bench::new().run(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    let usage = String::from_utf8(output.stderr).unwrap();
    let real = usage.lines().filter_map(|l| l.trim_start().strip_prefix('-')).filter_map(|l| l.split_once(':'));
    let real: BTreeSet<_> = real.map(|(option, _)| option.to_owned()).collect();
    compare("bhyve.8", &items(&page("bhyve.8"), ".It Fl "), &real);
}

#[test]
fn devices_are_in_bhyve_8() {
    for (option, list) in [("-s", "Device"), ("-l", "Lpc")] {
        let output = Bench::new().run(&[option, "help"]);
        assert_eq!(output.status.code(), Some(0), "{option}");
        let real: BTreeSet<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        let page = page("bhyve.8");
        let documented = items(&page, if list == "Device" { ".It Cm " } else { ".It Li " });
        compare("bhyve.8", &documented, &real);
    }
}
