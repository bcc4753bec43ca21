// SPDX-License-Identifier: BSD-2-Clause

//! The command line: order, bundles, errors, help and the table of options itself.

use super::flags::FLAGS;
use super::*;

fn run(line: &str) -> Result<Invocation, OptError> {
    match parse(line.split_whitespace().map(OsString::from))? {
        Request::Run(invocation) => Ok(invocation),
        other => panic!("{line}: {other:?}"),
    }
}

fn get(invocation: &Invocation, path: &str) -> Option<String> {
    invocation.config.raw(path)
}

#[test]
fn flags_bundle_and_the_name_is_last() {
    let run = run("-AHPw -c 2 -m512 -s 0,hostbridge -uU b6c6 vm0").unwrap();
    assert_eq!(get(&run, "x86.vmexit_on_hlt").as_deref(), Some("true"));
    assert_eq!(get(&run, "x86.strictmsr").as_deref(), Some("false"));
    assert_eq!(get(&run, "rtc.use_localtime").as_deref(), Some("false"));
    assert_eq!(get(&run, "memory.size").as_deref(), Some("512"));
    assert_eq!(get(&run, "uuid").as_deref(), Some("b6c6"));
    assert_eq!(get(&run, "name").as_deref(), Some("vm0"));
}

#[test]
fn a_name_is_needed_once_unless_it_comes_from_elsewhere() {
    assert_eq!(run("-c 1").unwrap_err().status(), 1);
    assert_eq!(run("a b").unwrap_err().status(), 1);
    // Options end at the name, as getopt(3) has it.
    assert_eq!(run("a -m 1G").unwrap_err().status(), 1);
    assert!(run("-o name=a").is_ok());
    let restored = run("-r /tmp/x").unwrap();
    assert_eq!(
        restored.restore.as_deref(),
        Some(std::path::Path::new("/tmp/x"))
    );
    assert_eq!(get(&restored, "name"), None);
}

#[test]
fn statuses() {
    assert_eq!(run("-z vm").unwrap_err().status(), 1);
    assert_eq!(run("--zzz vm").unwrap_err().status(), 1);
    assert_eq!(run("-o x= vm").unwrap_err().status(), 64);
    assert_eq!(run("-o x vm").unwrap_err().status(), 64);
    assert_eq!(run("-c x vm").unwrap_err().status(), 64);
    assert_eq!(run("-s 0,nothing vm").unwrap_err().status(), 4);
    assert_eq!(run("-p 0 vm").unwrap_err().status(), 4);
    assert_eq!(run("-k /nonexistent/file vm").unwrap_err().status(), 4);
    assert_eq!(run("-o a.b=1 -o a=1 vm").unwrap_err().status(), 4);
}

#[test]
fn help_lists() {
    assert!(matches!(parse(["-h".into()]), Ok(Request::Help)));
    for help in ["help", "h", "hel"] {
        let Ok(Request::List(list)) = parse(["-s".into(), help.into()]) else {
            panic!("{help}")
        };
        assert!(list.lines().any(|line| line == "hostbridge"));
    }
    let Ok(Request::List(list)) = parse(["-l".into(), "help".into()]) else {
        panic!("-l help")
    };
    assert!(list.lines().any(|line| line == "com1"));
}

#[test]
fn pins_add_up_and_debug_ports_split() {
    let run1 = run("-p 0:1 -p 0:3 -p 1:2 -G w[::1]:1234 vm").unwrap();
    assert_eq!(get(&run1, "vcpu.0.cpuset").as_deref(), Some("1,3"));
    assert_eq!(get(&run1, "vcpu.1.cpuset").as_deref(), Some("2"));
    assert_eq!(get(&run1, "gdb.wait").as_deref(), Some("true"));
    assert_eq!(get(&run1, "gdb.address").as_deref(), Some("::1"));
    assert_eq!(get(&run1, "gdb.port").as_deref(), Some("1234"));
    assert!(run("-G x vm").is_err());
}

#[test]
fn numa_domains() {
    let run1 = run("-n id=0,size=107,cpus=0-3 -n id=1,size=107,cpus=4,5 vm").unwrap();
    assert_eq!(get(&run1, "domains.0.cpus").as_deref(), Some("0-3"));
    assert_eq!(get(&run1, "domains.1.cpus").as_deref(), Some("4,5"));
    for bad in ["size=1,cpus=0", "id=8,cpus=0", "id=0,what=1", "id=0,5"] {
        assert!(run(&format!("-n {bad} vm")).is_err(), "{bad}");
    }
}

#[test]
fn the_usage_offers_every_option_and_breaks_no_line_of_the_synopsis() {
    for option in "AaCDeHhIMPSuWwxYcfGKklmnoprsU".chars() {
        let line = format!("       -{option}: ");
        assert!(usage().lines().any(|l| l.starts_with(&line)), "-{option}");
    }
    // What clients look for: libvirt takes this for a bhyve that knows no topology.
    assert!(!usage().contains("-c vcpus"));
    assert!(
        usage().starts_with("Usage: bhyve [-AaCDeHhIMPSuWwxY]\n             [-c [[cpus=]numcpus]")
    );
    assert!(usage().lines().all(|line| line.len() < 80));
}

#[test]
fn every_option_is_there_once_and_sets_variables_that_are_declared() {
    let mut letters: Vec<_> = FLAGS.iter().map(|flag| flag.letter).collect();
    letters.sort();
    letters.dedup();
    assert_eq!(letters.len(), FLAGS.len());
    for flag in FLAGS {
        let (variable, value) = match flag.action {
            Action::Set(variable, value) => (variable, Some(value)),
            Action::Take(variable) => (variable, None),
            _ => continue,
        };
        let declared = crate::vars::find(&Config::new(), variable).expect(variable);
        assert!(
            value.is_none_or(|value| declared.declaration.is_valid(value)),
            "{variable}"
        );
        assert_eq!(flag.argument.is_some(), value.is_none(), "-{}", flag.letter);
    }
    for line in [
        "-c 2,sockets=2 -G w[::1]:1 -n id=0,cpus=1,size=2,domain_policy=x -p 0:1 vm",
        "-l com1,stdio -l bootrom,a,b,fwcfg=qemu -l tpm,a,b,version=2,intf=c -l pc-testdev vm",
    ] {
        let config = run(line).unwrap().config;
        for (path, _) in config.settings() {
            assert!(
                crate::vars::find(&config, &path).is_some(),
                "{line}: {path}"
            );
        }
    }
}

#[test]
fn what_needs_no_name() {
    let list = |argument: &str| match parse(["-o".into(), argument.into()]) {
        Ok(Request::List(list)) => list,
        other => panic!("{other:?}"),
    };
    let list = list("help");
    for line in [
        "memory.size (size, 256M): Guest memory",
        "pci.B.S.F.path (path, none): ",
    ] {
        assert!(
            list.lines().any(|found| found.starts_with(line)),
            "{line}: {list}"
        );
    }
    assert!(matches!(parse(["--help".into()]), Ok(Request::Help)));
    let Ok(Request::List(version)) = parse(["--version".into()]) else {
        panic!("--version")
    };
    assert_eq!(version, format!("bhyve {}\n", env!("CARGO_PKG_VERSION")));
    // What came before decides.
    assert!(matches!(
        parse(["-h".into(), "-z".into()]),
        Ok(Request::Help)
    ));
}
