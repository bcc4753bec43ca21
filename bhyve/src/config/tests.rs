// SPDX-License-Identifier: BSD-2-Clause

//! The tree of variables: replacement, references, kinds of values and what was never read.

use super::*;
use proptest::prelude::*;

fn text(name: &'static str) -> Var<Option<String>> {
    Var::new(name, "A text.")
}

#[test]
fn a_later_value_replaces_and_conflicts_are_errors() {
    let config = Config::new();
    config.set("memory.size", "1G").unwrap();
    config.set("memory.size", "2G").unwrap();
    assert_eq!(config.raw("memory.size").as_deref(), Some("2G"));
    assert_eq!(
        config.set("memory", "x"),
        Err(ConfigError::IsNode("memory".into()))
    );
    assert_eq!(
        config.set("memory.size.x", "x"),
        Err(ConfigError::IsLeaf("memory.size".into()))
    );
    assert_eq!(
        config.set("a..b", "x"),
        Err(ConfigError::Name("a..b".into()))
    );
    // The failed attempt below the leaf has not disturbed it.
    assert_eq!(config.raw("memory.size").as_deref(), Some("2G"));
}

#[test]
fn the_vmm_has_a_value_and_variables() {
    for order in [["vmm", "vmm.clock"], ["vmm.clock", "vmm"]] {
        let config = Config::new();
        for path in order {
            config.set(path, path).unwrap();
        }
        for path in order {
            assert_eq!(config.raw(path).as_deref(), Some(path));
        }
        let again = Config::new();
        again.load(&config.dump()).unwrap();
        assert_eq!(again.dump(), "vmm=vmm\nvmm.clock=vmm.clock\n");
    }
}

#[test]
fn what_is_not_read_is_known() {
    let config = Config::new();
    config
        .load("pci.0.3.0.device=e1000\npci.0.3.0.speling=1\npci.0.3.0.path=%(disk)\nother=1\ndisk=d\n")
        .unwrap();
    let node = config.node("pci.0.3.0");
    node.get(&text("device")).unwrap();
    assert_eq!(
        config.unread(),
        ["disk", "other", "pci.0.3.0.path", "pci.0.3.0.speling"]
    );
    node.get(&text("path")).unwrap();
    assert_eq!(config.unread(), ["other", "pci.0.3.0.speling"]);
}

#[test]
fn references_expand() {
    let config = Config::new();
    config
        .load("name=vm\n# comment\n\nroot=/zroot/%(name)\ndisk=%(root)/disk0.img\nrate=100%%\nodd=5%x\n")
        .unwrap();
    assert_eq!(
        config.get(&text("disk")).unwrap().as_deref(),
        Some("/zroot/vm/disk0.img")
    );
    assert_eq!(config.get(&text("rate")).unwrap().as_deref(), Some("100%"));
    assert_eq!(config.get(&text("odd")).unwrap().as_deref(), Some("5%x"));
    config.load("a=%(b)\nb=%(a)\nc=%(nowhere)\nd=%(x").unwrap();
    assert!(matches!(config.get(&text("a")), Err(ConfigError::Depth(_))));
    assert!(matches!(
        config.get(&text("c")),
        Err(ConfigError::Reference { .. })
    ));
    assert!(matches!(
        config.get(&text("d")),
        Err(ConfigError::Unfinished(_))
    ));
}

#[test]
fn values_are_of_their_kind() {
    let config = Config::new();
    config
        .load("b=Yes\nn=0x10\no=010\nh=10\nbad=perhaps\nsigned=0x+5")
        .unwrap();
    let flag = |name| config.get(&Var::<bool>::new(name, "").default("true"));
    assert_eq!((flag("b"), flag("missing")), (Ok(true), Ok(true)));
    let number = |name| config.get(&Var::<Option<u16>>::new(name, "").range(1, 16));
    assert_eq!((number("n"), number("o")), (Ok(Some(16)), Ok(Some(8))));
    assert_eq!(number("missing"), Ok(None));
    let hexadecimal = |name| config.get(&Var::<Hex<u8>>::new(name, "").default("ff"));
    assert_eq!(hexadecimal("h"), Ok(Hex(0x10)));
    assert_eq!(hexadecimal("missing"), Ok(Hex(0xff)));
    for (error, wanted) in [
        (flag("bad").err(), "bad: \"perhaps\" is not a boolean"),
        (
            number("signed").err(),
            "signed: \"0x+5\" is not a number from 1 to 16",
        ),
        (
            config.get(&Var::<String>::new("missing", "")).err(),
            "missing is not set",
        ),
    ] {
        assert_eq!(error.unwrap().to_string(), wanted);
    }
    assert!(config.assign("x=").is_err());
    assert!(config.assign("=x").is_err());
    assert!(config.assign("x").is_err());
}

#[test]
fn a_name_that_no_program_could_read_is_refused_with_its_line() {
    for (file, wanted) in [
        (
            "a=1\ncpus = 2",
            "line 2: invalid configuration variable name \"cpus \"",
        ),
        (
            "\u{feff}cpus=2",
            "line 1: invalid configuration variable name \"\\u{feff}cpus\"",
        ),
        (
            "# \n\n\tcpus=2",
            "line 3: invalid configuration variable name \"\\tcpus\"",
        ),
        ("cpus", "line 1: \"cpus\" is not of the form variable=value"),
    ] {
        let error = Config::new().load(file).unwrap_err();
        assert_eq!(format!("{error}: {}", error.source), wanted);
    }
}

#[test]
fn numbered_nodes_have_one_form() {
    let config = Config::new();
    config
        .load("port.10.a=1\nport.2.a=1\nport.enable=1")
        .unwrap();
    let numbers = |config: &Config| {
        let nodes = config.node("port").numbered(1..=32);
        nodes.map(|nodes| nodes.into_keys().collect::<Vec<_>>())
    };
    assert_eq!(numbers(&config), Ok(vec![2, 10]));
    for bad in ["01", "+1", "0", "33", "x"] {
        let config = Config::new();
        config.set(&format!("port.{bad}.a"), "1").unwrap();
        let wanted = format!("port.{bad} is not a number from 1 to 32");
        assert_eq!(numbers(&config).unwrap_err().to_string(), wanted);
    }
}

proptest! {
    #[test]
    fn dump_round_trips(pairs in prop::collection::vec(("[a-c]{1,2}(\\.[a-c0-9]{1,2}){0,3}", "[ -~]{1,12}"), 0..24)) {
        let config = Config::new();
        for (path, value) in &pairs {
            // Conflicts between nodes and values are refused and leave the tree as it was.
            let _ = config.set(path, value);
        }
        let again = Config::new();
        again.load(&config.dump()).unwrap();
        prop_assert_eq!(config.dump(), again.dump());
    }
}
