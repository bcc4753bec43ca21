// SPDX-License-Identifier: BSD-2-Clause

//! The table of models, and the lists of bhyve(8) that are made of it: with `UPDATE=1` in its environment a test writes them.

mod upstream;

use super::*;
use crate::config::Config;
use crate::vars::manual::paragraph;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

const PAGE: &str = "../man/bhyve.8";
const MADE_OF: &str =
    "Made of the table of models in the source, by `UPDATE=1 cargo test -p bhyve models`.";
const END: &str = ".\\\" End of what is made of the table.\n";

/// A usage as mdoc(7) has it: `,path[,options]` becomes `, Ns Ar path Ns Oo , Ns Ar options Oc`.
fn mdoc(usage: &str) -> String {
    let mut out = String::new();
    let mut rest = usage;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            'a'..='z' => rest
                .find(|char: char| !char.is_ascii_lowercase())
                .unwrap_or(rest.len()),
            '.' => rest.len(),
            _ => 1,
        };
        let (token, after) = rest.split_at(len);
        rest = after;
        let text = match token {
            "[" => "Ns Oo".to_owned(),
            "]" => "Oc".to_owned(),
            "," => ",".to_owned(),
            _ if first.is_ascii_lowercase() => format!("Ns Ar {token}"),
            _ => format!("Ns {token}"),
        };
        let _ = write!(out, " {text}");
    }
    out
}

fn items<'a>(command: &str, models: impl Iterator<Item = &'a Model>) -> String {
    let mut out = ".Bl -tag -width indent\n".to_owned();
    let mut models = models.peekable();
    while let Some(model) = models.next() {
        let _ = writeln!(out, ".It {command} {}{}", model.name, mdoc(model.usage));
        // Models that are alike are said of once.
        if models.peek().is_none_or(|next| next.help != model.help) {
            out.push_str(&paragraph(model.help));
        }
    }
    out + ".El\n"
}

fn lists() -> [(&'static str, String); 3] {
    let usb = |model: &&Model| matches!(model.place, Place::Usb(_));
    let refused = MODELS.iter().filter_map(|model| match model.place {
        Place::NotBuilt(instead) => Some(format!(
            ".It Ic {}\n{}{}.\n",
            model.name,
            paragraph(model.help),
            instead.replace('\u{2026}', "...").replacen(
                &instead[..1],
                &instead[..1].to_uppercase(),
                1
            )
        )),
        _ => None,
    });
    let refused: String = refused.collect();
    [
        (
            "devices of -s",
            format!(
                "{}.Pp\nWhat can be plugged into\n.Cm xhci :\n{}",
                items("Cm", pci_models()),
                items("Ic", MODELS.iter().filter(usb))
            ),
        ),
        ("devices of -l", items("Li", lpc_models())),
        (
            "devices that are not built",
            format!(".Bl -tag -width indent\n{refused}.El\n"),
        ),
    ]
}

#[test]
fn bhyve_8_lists_the_models() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let mut page = std::fs::read_to_string(&path).unwrap();
    for (what, wanted) in lists() {
        let begin = format!(".\\\" The {what}. {MADE_OF}\n");
        let (before, rest) = page.split_once(&begin).expect(&begin);
        let (list, after) = rest.split_once(END).expect(END);
        if std::env::var_os("UPDATE").is_some() {
            page = format!("{before}{begin}{wanted}{END}{after}");
            continue;
        }
        let differs = wanted.lines().zip(list.lines()).find(|(a, b)| a != b);
        assert!(
            list == wanted,
            "{PAGE}: the {what} are not what the table says (UPDATE=1 mends it); the first difference: {differs:?}"
        );
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, page).unwrap();
    }
}

#[test]
fn usages_become_mdoc() {
    assert_eq!(mdoc(""), "");
    assert_eq!(
        mdoc(",path[,options]"),
        " , Ns Ar path Ns Oo , Ns Ar options Oc"
    );
    assert_eq!(
        mdoc("[,port=path]..."),
        " Ns Oo , Ns Ar port Ns = Ns Ar path Oc Ns ..."
    );
}

#[test]
fn a_name_is_that_of_one_model_and_its_texts_are_sentences() {
    let mut names = BTreeSet::new();
    for model in MODELS {
        assert!(names.insert(model.name), "{} is there twice", model.name);
        assert!(model.help.ends_with('.'), "{}: {}", model.name, model.help);
        if let Place::Pci(PciModel {
            alias_of: Some(real),
            ..
        }) = &model.place
        {
            let (_, real) = pci(real).unwrap();
            assert!(real.alias_of.is_none(), "{}", model.name);
        }
    }
}

/// A model is refused wherever it is not to be put, and one that is not built says what to use.
#[test]
fn models_are_found_where_they_are_put() {
    for model in MODELS {
        let found = [
            pci(model.name).is_ok(),
            lpc(model.name).is_ok(),
            usb(model.name).is_ok(),
        ];
        let wanted = match &model.place {
            Place::Pci(_) => [true, false, false],
            Place::Lpc(_) => [false, true, false],
            Place::Usb(_) => [false, false, true],
            Place::NotBuilt(_) => [false; 3],
        };
        assert_eq!(found, wanted, "{}", model.name);
        if let Place::NotBuilt(instead) = model.place {
            let error = crate::bus::pci::slot::parse(&Config::new(), &format!("3,{}", model.name));
            let wanted = format!(
                "pci slot 3:0: unknown device \"{}\", which is not built here: {instead}",
                model.name
            );
            assert_eq!(error.unwrap_err().to_string(), wanted);
        }
    }
}
