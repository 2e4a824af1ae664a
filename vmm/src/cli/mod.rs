//! The command line: from words to a configuration that is complete and free of contradictions.
//!
//! [`parse`] looks at everything that can be looked at without starting anything: flags, keys,
//! values, what has to be unique, files that have to exist. Whoever goes on with its result meets
//! only what the outside world may still refuse.

mod devices;
mod error;
mod flags;
mod machine;
mod options;
mod restore;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ferry_api::config::validate::{Misfit, Part};
use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::events::Monitor;
use ferry_api::server::SocketPlace;
use ferry_api::snapshot::RestoreRequest;

pub use error::{Problem, UsageError};
use flags::Flags;

/// What `ferry --help` prints.
pub const HELP: &str = include_str!("help.txt");

/// What the user wants of this process.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a virtual machine.
    Run(Box<Arguments>),
    /// Print this text on standard output and end with status 0.
    Print(String),
}

/// A whole command line, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The machine that is booted at once. Only with an API socket there may be none.
    pub vm: Option<VmConfig>,
    /// The saved guest that is brought back instead.
    pub restore: Option<RestoreRequest>,
    /// Where clients are served.
    pub api_socket: Option<SocketPlace>,
    /// Where events are written.
    pub event_monitor: Option<Monitor>,
    /// How long to wait for back-ends.
    pub timeouts: Timeouts,
    /// Where log messages go.
    pub log: LogConfig,
    /// What a reset by the guest leads to.
    pub on_reset: OnReset,
}

/// Where log messages go, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least important messages that are still written.
    pub level: tracing::Level,
    /// The file they are appended to; standard error if absent.
    pub file: Option<PathBuf>,
}

/// What happens when the guest resets itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReset {
    /// It starts again in this process; its back-ends stay connected.
    Restart,
    /// Ferry ends with a status that tells the kind of reset.
    Exit,
}

/// Reads a command line, the program's name first.
pub fn parse<I>(arguments: I) -> Result<Request, UsageError>
where
    I: IntoIterator<Item = OsString>,
{
    let flags = flags::split(arguments)?;
    if flags.help {
        return Ok(Request::Print(HELP.into()));
    }
    if flags.version {
        return Ok(Request::Print(format!(
            "ferry {}\n",
            env!("CARGO_PKG_VERSION")
        )));
    }
    check(flags).map(|arguments| Request::Run(Box::new(arguments)))
}

fn check(flags: Flags) -> Result<Arguments, UsageError> {
    let timeouts = timeouts(&flags)?;
    let log = LogConfig {
        level: match flags.verbose {
            0 => tracing::Level::WARN,
            1 => tracing::Level::INFO,
            _ => tracing::Level::DEBUG,
        },
        file: flags.log_file.clone(),
    };
    let on_reset = match flags.no_reboot {
        true => OnReset::Exit,
        false => OnReset::Restart,
    };
    let api_socket = place("--api-socket", flags.api_socket.as_deref())?;
    let event_monitor = place("--event-monitor", flags.event_monitor.as_deref())?;
    let restore = restore::request(&flags)?;
    let vm = match (&api_socket, &restore) {
        (_, Some(_)) => None,
        (Some(_), None) if !flags.describe_a_machine() => None,
        _ => Some(vm(flags)?),
    };
    Ok(Arguments {
        vm,
        restore,
        api_socket,
        event_monitor,
        timeouts,
        log,
        on_reset,
    })
}

/// Where something is to be: a path, or a descriptor.
fn place<T>(flag: &'static str, text: Option<&str>) -> Result<Option<T>, UsageError>
where
    T: FromStr<Err: fmt::Display>,
{
    let wrong = |error: T::Err| UsageError::new(flag, Problem::Syntax(error.to_string()));
    text.map(|text| text.parse().map_err(wrong)).transpose()
}

fn vm(flags: Flags) -> Result<VmConfig, UsageError> {
    machine::console(flags.console.as_deref())?;
    let cpus = machine::cpus(flags.cpus.as_deref())?;
    let memory = machine::memory(flags.memory.as_deref())?;
    let serial = machine::serial(flags.serial.as_deref())?;
    let disks = each(&flags.disk, devices::disk)?;
    let fs = each(&flags.fs, devices::fs)?;
    let vhost_user = each(&flags.vhost_user, devices::generic)?;
    let payload = machine::payload(flags.kernel, flags.initramfs, flags.cmdline)?;
    let mut vm = VmConfig {
        payload,
        cpus,
        memory,
        disks,
        fs,
        vhost_user,
        serial,
    };
    vm.complete().map_err(misfit)?;
    Ok(vm)
}

fn misfit(misfit: Misfit) -> UsageError {
    let flag = match misfit.part {
        Part::Memory => "--memory",
        Part::Disk(_) => "--disk",
        Part::Fs(_) => "--fs",
        Part::Generic(_) => "--vhost-user",
    };
    let error = UsageError::new(flag, misfit.fault.into());
    match misfit.part {
        Part::Memory => {
            error.hint("leave shared= away: it is on by default, and every device needs it")
        }
        _ => error,
    }
}

fn each<T>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, UsageError>,
) -> Result<Vec<T>, UsageError> {
    texts.iter().map(|text| parse(text)).collect()
}

fn timeouts(flags: &Flags) -> Result<Timeouts, UsageError> {
    let default = Timeouts::default();
    let connect = seconds("--connect-timeout", flags.connect_timeout.as_deref())?;
    let request = seconds("--request-timeout", flags.request_timeout.as_deref())?;
    let dead = seconds("--dead-timeout", flags.dead_timeout.as_deref())?;
    for (flag, timeout) in [("--request-timeout", request), ("--dead-timeout", dead)] {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            let problem = Problem::Conflict("0 would leave back-ends no time at all".into());
            return Err(UsageError::new(flag, problem));
        }
    }
    let request = request.unwrap_or(default.request);
    // A long request timeout alone is no contradiction: the default gives way.
    let dead = dead.unwrap_or(default.dead.max(request));
    if dead < request {
        let problem = Problem::Conflict(format!(
            "{} s is less than the request timeout, {} s",
            dead.as_secs_f64(),
            request.as_secs_f64()
        ));
        return Err(UsageError::new("--dead-timeout", problem));
    }
    Ok(Timeouts {
        connect: connect.unwrap_or(default.connect),
        request,
        dead,
    })
}

/// Seconds, with or without a fraction, up to a day.
fn seconds(flag: &'static str, text: Option<&str>) -> Result<Option<Duration>, UsageError> {
    const MOST: f64 = 86_400.0;
    let Some(text) = text else {
        return Ok(None);
    };
    let plain = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    match text.parse::<f64>() {
        Ok(seconds) if plain && seconds <= MOST => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => {
            let problem = Problem::Syntax(format!(
                "`{text}` is not a number of seconds from 0 to {MOST}"
            ));
            Err(UsageError::new(flag, problem))
        }
    }
}
