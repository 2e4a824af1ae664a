//! The flags as clap splits them, and clap's errors in Ferry's words.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Parser};

use super::error::{Problem, UsageError};

/// Every flag, its value still as text. The help text is `help.txt`.
#[derive(Debug, Default, Parser)]
#[command(name = "ferry", disable_help_flag = true, disable_version_flag = true)]
pub struct Flags {
    #[arg(long)]
    pub kernel: Option<PathBuf>,
    #[arg(long)]
    pub initramfs: Option<PathBuf>,
    #[arg(long, allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    #[arg(long)]
    pub cpus: Option<String>,
    #[arg(long)]
    pub memory: Option<String>,
    #[arg(long)]
    pub disk: Vec<String>,
    #[arg(long)]
    pub fs: Vec<String>,
    #[arg(long)]
    pub vhost_user: Vec<String>,
    #[arg(long)]
    pub serial: Option<String>,
    #[arg(long)]
    pub console: Option<String>,
    #[arg(long)]
    pub api_socket: Option<String>,
    #[arg(long)]
    pub event_monitor: Option<String>,
    #[arg(long)]
    pub restore: Option<String>,
    #[arg(long)]
    pub restore_socket: Vec<String>,
    #[arg(long, allow_negative_numbers = true)]
    pub connect_timeout: Option<String>,
    #[arg(long, allow_negative_numbers = true)]
    pub request_timeout: Option<String>,
    #[arg(long, allow_negative_numbers = true)]
    pub dead_timeout: Option<String>,
    #[arg(long)]
    pub no_reboot: bool,
    #[arg(short = 'v', action = ArgAction::Count)]
    pub verbose: u8,
    #[arg(long)]
    pub log_file: Option<PathBuf>,
    #[arg(short = 'h', long)]
    pub help: bool,
    #[arg(short = 'V', long)]
    pub version: bool,
}

impl Flags {
    /// Whether any flag says what machine there is to be.
    pub fn describe_a_machine(&self) -> bool {
        self.serial.is_some() || self.describe_another_machine()
    }

    /// The same for what a saved guest cannot have otherwise.
    pub fn describe_another_machine(&self) -> bool {
        let single = [&self.cmdline, &self.cpus, &self.memory, &self.console];
        let devices = [&self.disk, &self.fs, &self.vhost_user];
        self.kernel.is_some()
            || self.initramfs.is_some()
            || single.into_iter().any(Option::is_some)
            || devices.into_iter().any(|flags| !flags.is_empty())
    }
}

/// Splits a whole command line, the program's name first.
pub fn split<I>(arguments: I) -> Result<Flags, UsageError>
where
    I: IntoIterator<Item = OsString>,
{
    Flags::try_parse_from(arguments).map_err(|error| explain(&error))
}

/// Says in Ferry's words what clap did not like.
fn explain(error: &clap::Error) -> UsageError {
    // Clap writes `--disk <DISK>`.
    let flag = context(error, ContextKind::InvalidArg)
        .and_then(|argument| argument.split(' ').next().map(str::to_owned))
        .unwrap_or_else(|| "command line".into());
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    let problem = match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with('-') => "there is no such flag".into(),
        ErrorKind::UnknownArgument => "Ferry takes no arguments other than flags".into(),
        ErrorKind::ArgumentConflict => "is given twice".into(),
        ErrorKind::InvalidValue if value.is_empty() => "has no value".into(),
        ErrorKind::TooManyValues => format!("takes no value, but has `{value}`"),
        ErrorKind::InvalidUtf8 => "holds bytes that are not UTF-8".into(),
        kind => format!("cannot be understood ({kind:?})"),
    };
    let usage = UsageError::new(flag, Problem::Flag(problem));
    match context(error, ContextKind::SuggestedArg) {
        Some(suggestion) => usage.hint(format!("there is {suggestion}")),
        None if error.kind() == ErrorKind::UnknownArgument => {
            usage.hint("ferry --help lists the flags")
        }
        None => usage,
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}
