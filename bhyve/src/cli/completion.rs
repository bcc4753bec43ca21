// SPDX-License-Identifier: BSD-2-Clause

//! Completion for bash, zsh and fish, made of the table of options. The tests compare the files in share/completion; with
//! `UPDATE=1` in their environment they write them.

use super::Listing;
use super::flags::{Action, FLAGS, Flag};
use crate::vars;
use std::path::{Path, PathBuf};

const MADE_BY: &str = "made of the table of options by `UPDATE=1 cargo test -p bhyve completion`.";
const LICENSE: &str = concat!("# SPDX-License-Identifier: ", env!("CARGO_PKG_LICENSE"));

/// What an argument may be.
enum Candidates {
    /// Only its author knows.
    Unknown,
    /// The name of a file.
    Files,
    /// A word, behind which more may follow after this character.
    Words(Vec<String>, char),
    /// A slot, and one of these words after a comma.
    AfterSlot(Vec<String>),
}

fn candidates(flag: &Flag) -> Candidates {
    let words = |listing: Listing| listing.text().lines().map(str::to_owned).collect();
    match flag.action {
        Action::Restore => Candidates::Files,
        _ if flag.argument == Some("config_file") => Candidates::Files,
        Action::ParseOrList(_, Listing::Variables) => Candidates::Words(vars::names(), '='),
        Action::ParseOrList(_, listing @ Listing::LpcDevices) => {
            Candidates::Words(words(listing), ',')
        }
        Action::ParseOrList(_, listing) => Candidates::AfterSlot(words(listing)),
        _ => Candidates::Unknown,
    }
}

/// The options that are offered, with what is said about them.
fn offered() -> impl Iterator<Item = (&'static Flag, &'static str)> {
    FLAGS.iter().filter_map(|flag| Some((flag, flag.help?)))
}

fn bash() -> String {
    let letters: Vec<_> = offered()
        .map(|(flag, _)| format!("-{}", flag.letter))
        .collect();
    let mut cases = String::new();
    for (flag, _) in offered().filter(|(flag, _)| flag.argument.is_some()) {
        let reply = match candidates(flag) {
            Candidates::Unknown => continue,
            Candidates::Files => "COMPREPLY=($(compgen -f -- \"$cur\"))".to_owned(),
            Candidates::Words(words, next) => format!(
                "compopt -o nospace\n        COMPREPLY=($(compgen -S '{next}' -W '{}' -- \"$cur\"))",
                words.join(" ")
            ),
            Candidates::AfterSlot(words) => format!(
                "local models='{}'\n        [[ $cur == *,* ]] && \
                 COMPREPLY=($(compgen -P \"${{cur%%,*}},\" -W \"$models\" -- \"${{cur#*,}}\"))",
                words.join(" ")
            ),
        };
        cases += &format!(
            "    -{})\n        {reply}\n        return\n        ;;\n",
            flag.letter
        );
    }
    let with_argument: Vec<_> = offered()
        .filter(|(flag, _)| flag.argument.is_some())
        .map(|(flag, _)| format!("-{}", flag.letter))
        .collect();
    format!(
        "{LICENSE}\n# bhyve(8) for bash, {MADE_BY}\n\
         _bhyve()\n{{\n    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}\n    \
         COMPREPLY=()\n    case $prev in\n{cases}    {})\n        return\n        ;;\n    esac\n    \
         COMPREPLY=($(compgen -W '{} --help --version' -- \"$cur\"))\n}}\ncomplete -F _bhyve bhyve\n",
        with_argument.join(" | "),
        letters.join(" "),
    )
}

fn zsh() -> String {
    let quoted = |text: &str| {
        text.replace('\'', "'\\''")
            .replace('[', "\\[")
            .replace(']', "\\]")
    };
    let mut out = format!("#compdef bhyve\n{LICENSE}\n# bhyve(8) for zsh, {MADE_BY}\n\n");
    out += "_bhyve_words()\n{\n    compadd -q -S $1 -- ${=2}\n}\n\n\
            _bhyve_device()\n{\n    compset -P '*,' && compadd -- ${=1}\n}\n\n_arguments -s -S -A '-*' \\\n";
    for (flag, help) in offered() {
        // Some options add up.
        let star = if flag.argument.is_some() { "*" } else { "" };
        let argument = match (flag.argument, candidates(flag)) {
            (None, _) => String::new(),
            (Some(_), Candidates::Unknown) => ":argument: ".to_owned(),
            (Some(_), Candidates::Files) => ":file:_files".to_owned(),
            (Some(_), Candidates::Words(words, next)) => {
                format!(":argument:_bhyve_words {next} \"{}\"", words.join(" "))
            }
            (Some(_), Candidates::AfterSlot(words)) => {
                format!(":slot,device:_bhyve_device \"{}\"", words.join(" "))
            }
        };
        out += &format!(
            "    '{star}-{}[{}]{argument}' \\\n",
            flag.letter,
            quoted(help)
        );
    }
    out + "    '--help[this help]' \\\n    '--version[the version]' \\\n    ':vmname: '\n"
}

fn fish() -> String {
    let mut out = format!("{LICENSE}\n# bhyve(8) for fish, {MADE_BY}\ncomplete -c bhyve -f\n");
    for (flag, help) in offered() {
        let argument = match (flag.argument, candidates(flag)) {
            (None, _) => String::new(),
            (Some(_), Candidates::Unknown) => " -x".to_owned(),
            (Some(_), Candidates::Files) => " -r -F".to_owned(),
            (Some(_), Candidates::Words(words, next)) => {
                let words: Vec<_> = words.iter().map(|word| format!("{word}{next}")).collect();
                format!(" -x -a '{}'", words.join(" "))
            }
            (Some(_), Candidates::AfterSlot(words)) => format!(
                " -x -a '(string match -r \"^.*,\" -- (commandline -ct)){{{}}}'",
                words.join(",")
            ),
        };
        let help = help.replace('\'', "\\'");
        out += &format!(
            "complete -c bhyve -s {}{argument} -d '{help}'\n",
            flag.letter
        );
    }
    out + "complete -c bhyve -l help -d 'this help'\ncomplete -c bhyve -l version -d 'the version'\n"
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../share/completion")
}

#[test]
fn the_completion_scripts_are_what_the_table_says() {
    for (name, text) in [
        ("bhyve.bash", bash()),
        ("_bhyve", zsh()),
        ("bhyve.fish", fish()),
    ] {
        let path = folder().join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, text).unwrap();
            continue;
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == text,
            "{name} is not what the table says (UPDATE=1 mends it)"
        );
    }
}

/// What bash offers for the last of these words.
fn bash_offers(words: &[&str]) -> Option<Vec<String>> {
    let script = "compopt() { :; }; . \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _bhyve; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut command = std::process::Command::new("bash");
    command
        .args(["-c", script])
        .arg(folder().join("bhyve.bash"));
    let output = command.args(words).output().ok()?;
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes() {
    for (words, wanted) in [
        (&["bhyve", "-o", "memory.s"][..], &["memory.size="][..]),
        (&["bhyve", "-s", "3,virtio-b"], &["3,virtio-blk"]),
        (
            &["bhyve", "-s", "3,ahci"],
            &["3,ahci", "3,ahci-hd", "3,ahci-cd"],
        ),
        (
            &["bhyve", "-l", "com"],
            &["com1,", "com2,", "com3,", "com4,"],
        ),
        (&["bhyve", "-m", "-"], &[""]),
        (&["bhyve", "-A", "-r"], &["-r"]),
        (&["bhyve", "--v"], &["--version"]),
    ] {
        let Some(offered) = bash_offers(words) else {
            eprintln!("skipped: there is no bash");
            return;
        };
        assert_eq!(offered, wanted, "{words:?}");
    }
}
