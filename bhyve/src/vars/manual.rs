// SPDX-License-Identifier: BSD-2-Clause

//! The lists of bhyve_config(5) are made of the declarations. The test compares them; with `UPDATE=1` in its environment it
//! writes them.

use super::*;
use crate::config::Business;
use std::path::Path;

const PAGE: &str = "../man/bhyve_config.5";
const BEGIN: &str =
    ".\\\" Made of the declarations in the source, by `UPDATE=1 cargo test -p bhyve manual`.\n";
const END: &str = ".\\\" End of what is made of the declarations.\n";

/// Macros that mdoc(7) would see in the arguments of another one.
const CALLABLE: [&str; 12] = [
    "An", "Ar", "At", "Em", "In", "Li", "No", "Ns", "Op", "Sy", "Va", "Xr",
];

/// Words as arguments of a macro.
fn arguments(text: &str) -> String {
    let word = |word: &str| match CALLABLE.contains(&word) {
        true => format!("\\&{word}"),
        false => word.replace('\u{d7}', "\\(mu").replace('`', ""),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A word of a help text as a macro of its own, if it is one: `literal`, `variable` or page(5).
fn macro_of(word: &str) -> Option<String> {
    let bare = word.trim_end_matches(['.', ',', ';', ':']);
    let punctuation = &word[bare.len()..];
    let text = if let Some(literal) = bare.strip_prefix('`').and_then(|w| w.strip_suffix('`')) {
        let is_number = literal.len() == 1 && literal.bytes().all(|b| b.is_ascii_uppercase());
        let is_variable = all()
            .any(|declared| declared.path() == literal || declared.declaration.name == literal);
        match literal.strip_prefix('-') {
            Some(option) => format!(".Fl {option}"),
            None if is_number || is_variable => format!(".Va {literal}"),
            None => format!(".Ql {literal}"),
        }
    } else {
        let (page, section) = bare.strip_suffix(')')?.split_once('(')?;
        if page.is_empty() {
            return None;
        }
        format!(".Xr {page} {section}")
    };
    let punctuation = punctuation.chars().map(|char| format!(" {char}"));
    Some(text + &punctuation.collect::<String>())
}

/// A help text: a line for each sentence, and for each macro.
pub fn paragraph(help: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in help.split_whitespace() {
        match macro_of(word) {
            Some(text) => {
                lines.extend((!line.is_empty()).then(|| std::mem::take(&mut line)));
                lines.push(text);
            }
            None => {
                line = if line.is_empty() {
                    word.to_owned()
                } else {
                    format!("{line} {word}")
                };
                if word.ends_with('.') {
                    lines.push(std::mem::take(&mut line));
                }
            }
        }
    }
    lines.extend((!line.is_empty()).then_some(line));
    lines.join("\n") + "\n"
}

/// A list of variables; nothing of none.
fn items(declared: &[Declared]) -> String {
    let item = |declared: &Declared| {
        let declaration = declared.declaration;
        let kind = arguments(&declaration.kind.name());
        let default = arguments(declaration.default_text());
        let head = format!(".It Va {} Pq {kind}, {default}\n", declared.path());
        head + &paragraph(declaration.help)
    };
    let items: String = declared.iter().map(item).collect();
    match items.as_str() {
        "" => String::new(),
        items => format!(".Bl -tag -width indent\n{items}.El\n"),
    }
}

fn with_status(wanted: fn(Status) -> bool) -> Vec<Declared> {
    let wanted = |declared: &Declared| wanted(declared.declaration.status);
    all().filter(wanted).collect()
}

/// All sections that list variables.
fn sections() -> String {
    let mut out = String::new();
    let mut chapter = "";
    for (group, mut declared) in by_group() {
        declared.retain(|declared| declared.declaration.status == Status::Built);
        if declared.is_empty() {
            continue;
        }
        let next = match group.at.split('.').next() {
            Some("pci") => "PCI DEVICES",
            Some("lpc") => "THE LPC BUS",
            _ => "",
        };
        if next.is_empty() {
            let _ = writeln!(out, ".Sh {}", group.title.to_uppercase());
        } else {
            if next != chapter {
                let _ = writeln!(out, ".Sh {next}");
            }
            let _ = writeln!(out, ".Ss {}", group.title);
        }
        chapter = next;
        out.push_str(&items(&declared));
    }
    out.push_str(
        ".Sh REFUSED VARIABLES\nWhat these ask for does not exist here; a value other than the default is an error that \
         names them.\n",
    );
    out.push_str(&items(&with_status(|status| {
        matches!(status, Status::NotBuilt(_))
    })));
    out.push_str(
        ".Sh VARIABLES WITHOUT EFFECT\nOptions of\n.Xr bhyve 8\nset these, or configurations of other releases do; they are \
         checked, and nothing reads them.\n",
    );
    out.push_str(&items(&with_status(|status| status == Status::NoEffect)));
    out
}

#[test]
fn bhyve_config_5_lists_what_is_declared() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the mark before the lists");
    let (lists, after) = rest.split_once(END).expect("the mark after the lists");
    let wanted = sections();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    let differs = wanted.lines().zip(lists.lines()).find(|(a, b)| a != b);
    assert!(
        lists == wanted,
        "{PAGE} is not what the declarations say (UPDATE=1 mends it); the first difference: {differs:?}"
    );
}

#[test]
fn help_texts_become_mdoc() {
    assert_eq!(
        paragraph("See bhyve(8). With `-r`: `force`, or `vmm.clock`; then `N`."),
        "See\n.Xr bhyve 8 .\nWith\n.Fl r :\n.Ql force ,\nor\n.Va vmm.clock ;\nthen\n.Va N .\n"
    );
    assert_eq!(arguments("No `word` \u{d7} 1"), "\\&No word \\(mu 1");
}

/// bhyve(8) lists what may be given anew with `-r`: the variables that the guest cannot see, and no others.
#[test]
fn bhyve_8_lists_what_the_guest_cannot_see() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../man/bhyve.8");
    let page = std::fs::read_to_string(path).unwrap();
    let section = page.split("\n.Sh CONTINUING FROM A CHECKPOINT\n").nth(1);
    let list = section.and_then(|rest| rest.split("\n.Bl -bullet\n").nth(1));
    let list = list.and_then(|rest| rest.split("\n.El\n").next()).unwrap();
    let words = list.lines().filter_map(|line| line.strip_prefix(".Va "));
    let listed: Vec<_> = words.filter_map(|rest| rest.split(' ').next()).collect();
    for declared in all().filter(|declared| !declared.is_of_a_device()) {
        let Declaration {
            business, status, ..
        } = declared.declaration;
        let path = declared.path();
        let is_listed = listed.contains(&path.as_str());
        match business {
            // It is an argument there, and not a variable.
            _ if path == "name" => {}
            Business::Guest => assert!(!is_listed, "{path}"),
            Business::Host => assert!(is_listed || *status != Status::Built, "{path}"),
            Business::Run => {}
        }
    }
}
