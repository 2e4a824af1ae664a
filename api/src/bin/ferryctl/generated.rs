//! The man page and the shells' completions, which are made of the command line's definitions.
//!
//! They are kept in `resources/`, so that a package needs no build step for them. The test here fails when they are not
//! what the definitions say, and writes them anew if `FERRY_REGENERATE` is set.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Generator, Shell};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::arguments::{Arguments, EXIT_STATUS};

const HOW: &str = "FERRY_REGENERATE=1 cargo test -p ferry-api --bin ferryctl generated";

#[test]
fn generated_files_are_what_the_definitions_say() {
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources");
    let mut differing = Vec::new();
    for (name, text) in files() {
        let path = resources.join(name);
        if fs::read_to_string(&path).unwrap_or_default() == text {
            continue;
        }
        if std::env::var_os("FERRY_REGENERATE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        } else {
            differing.push(name);
        }
    }
    assert!(
        differing.is_empty(),
        "in resources/, {differing:?} differ from the command line's definitions; to write them anew: {HOW}"
    );
}

#[test]
fn the_users_page_tells_the_exit_statuses_and_the_commands() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ferryctl.md");
    let page = fs::read_to_string(page).unwrap();
    for (status, meaning) in exit_statuses() {
        let row = format!("| {status} | {meaning} |");
        assert!(page.contains(&row), "docs/ferryctl.md lacks: {row}");
    }
    for command in commands(&Arguments::command()) {
        let name = command.get_name();
        assert!(
            page.contains(&format!("`{name}")),
            "docs/ferryctl.md: {name}"
        );
    }
}

fn files() -> Vec<(&'static str, String)> {
    vec![
        ("man/ferryctl.1", man()),
        ("completions/ferryctl.bash", completions(Shell::Bash)),
        ("completions/_ferryctl", completions(Shell::Zsh)),
        ("completions/ferryctl.fish", completions(Shell::Fish)),
    ]
}

fn completions(shell: Shell) -> String {
    let mut command = Arguments::command();
    command.set_bin_name("ferryctl");
    command.build();
    let mut bytes = Vec::new();
    shell.generate(&command, &mut bytes);
    lines_without_trailing_spaces(&String::from_utf8(bytes).unwrap())
}

/// One page for all commands, because nobody looks for `ferryctl-add-disk(1)`.
fn man() -> String {
    let mut whole = Arguments::command();
    whole.build();
    let page = Man::new(whole.clone()).section("1").manual("Ferry");
    let mut bytes = Vec::new();
    page.render_title(&mut bytes).unwrap();
    page.render_name_section(&mut bytes).unwrap();
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    synopsis.text([
        bold("ferryctl"),
        roman(" [OPTIONS] COMMAND [COMMAND'S OPTIONS]"),
    ]);
    synopsis.to_writer(&mut bytes).unwrap();
    page.render_options_section(&mut bytes).unwrap();
    let mut rest = Roff::new();
    rest.control("SH", ["COMMANDS"]);
    for command in commands(&whole) {
        describe(&mut rest, command, "");
        for inner in commands(command) {
            describe(&mut rest, inner, command.get_name());
        }
    }
    rest.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in exit_statuses() {
        rest.control("TP", ["5"]);
        rest.text([bold(status)]);
        rest.text([roman(meaning)]);
    }
    rest.control("SH", ["ENVIRONMENT"]);
    rest.control("TP", []);
    rest.text([bold("FERRY_API_SOCKET")]);
    rest.text([
        roman("The socket, if there is no "),
        bold("--api-socket"),
        roman("."),
    ]);
    rest.control("SH", ["EXAMPLES"]);
    rest.control("nf", []);
    for line in [
        "export FERRY_API_SOCKET=/run/ferry.sock",
        "ferry --api-socket $FERRY_API_SOCKET &",
        "ferryctl create --kernel vmlinuz --disk vhost_user=on,socket=/run/disk.sock",
        "ferryctl boot",
        "ferryctl info",
        "ferryctl events --follow",
    ] {
        rest.text([roman(line)]);
    }
    rest.control("fi", []);
    rest.to_writer(&mut bytes).unwrap();
    lines_without_trailing_spaces(&String::from_utf8(bytes).unwrap())
}

/// `outer` is the command that it belongs to, if any.
fn describe(page: &mut Roff, command: &Command, outer: &str) {
    let synopsis = format!("{outer} {}", synopsis(command));
    page.control("SS", [synopsis.trim_start()]);
    page.text([roman(sentence(command.get_about()))]);
    for argument in command.get_arguments() {
        // Global flags stand above, in a section of their own.
        if argument.is_global_set() || argument.get_id() == "help" {
            continue;
        }
        page.control("TP", []);
        if argument.is_positional() {
            let values = argument.get_value_names().unwrap_or_default();
            page.text([italic(values.join(" "))]);
            page.text([roman(sentence(argument.get_help()))]);
            continue;
        }
        let long = format!("--{}", argument.get_long().unwrap_or_default());
        let mut flag = vec![bold(long)];
        if let Some(short) = argument.get_short() {
            flag.splice(0..0, [bold(format!("-{short}")), roman(", ")]);
        }
        if argument.get_action().takes_values() {
            let values = argument.get_value_names().unwrap_or_default();
            flag.extend([roman(" "), italic(values.join(" "))]);
        }
        page.text(flag);
        page.text([roman(sentence(argument.get_help()))]);
    }
    if let Some(rest) = command.get_after_help() {
        page.control("PP", []);
        page.text([roman(rest.to_string())]);
    }
}

fn synopsis(command: &Command) -> String {
    let mut words = vec![command.get_name().to_owned()];
    for argument in command.get_positionals() {
        words.extend(
            argument
                .get_value_names()
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string),
        );
    }
    words.join(" ")
}

fn sentence(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    match text.ends_with('.') {
        true => text,
        false => text + ".",
    }
}

fn commands(whole: &Command) -> impl Iterator<Item = &Command> {
    whole
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
}

/// The rows of [`EXIT_STATUS`].
fn exit_statuses() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = EXIT_STATUS.lines().skip(1);
    rows.map(|row| row.trim().split_once(' ').unwrap())
        .map(|(status, meaning)| (status, meaning.trim()))
}

fn lines_without_trailing_spaces(text: &str) -> String {
    text.lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

// The paths that `commands::completions` includes.
#[test]
fn the_binary_holds_the_generated_completions() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../resources/completions");
    assert_eq!(
        fs::read_to_string(path.join("_ferryctl")).unwrap(),
        super::commands::completions(super::arguments::Shell::Zsh)
    );
}
