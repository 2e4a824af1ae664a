//! Ferry: a virtual machine monitor for KVM whose devices are vhost-user back-ends.
//!
//! A newcomer's way through: [`cli`] reads the command line, [`lifecycle`] owns the virtual machine
//! from start to end, [`machine`] assembles what a guest runs on, [`boot`] loads it, and
//! [`cpu::vcpu`] runs it. Devices are in the crate `ferry-devices`.

mod acpi;
mod backends;
mod boot;
mod cli;
mod console;
mod cpu;
mod events;
mod generation;
mod hypervisor;
mod io_space;
mod layout;
mod lifecycle;
mod logging;
mod machine;
mod memory;
mod migration;
mod payload;
mod progress;
mod snapshot;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use ferry_devices::power::ResetSource;

use cli::{Arguments, Request, UsageError};
use lifecycle::{Ending, First, Plan};

/// Exit statuses; the README lists them for users.
mod exit {
    pub const DONE: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const ACPI_RESET: u8 = 10;
    pub const OTHER_RESET: u8 = 11;
    pub const TRIPLE_FAULT: u8 = 12;
}

fn main() -> ExitCode {
    share_heap();
    raise_file_limit();
    ignore_file_sizes();
    let status = match cli::parse(std::env::args_os()) {
        Ok(Request::Print(text)) => {
            // Whoever closed standard output does not want the text.
            let _ = std::io::stdout().write_all(text.as_bytes());
            exit::DONE
        }
        Ok(Request::Run(arguments)) => run(*arguments),
        Err(error) => wrong_usage(&error),
    };
    ExitCode::from(status)
}

/// One heap for all threads: glibc would reserve address space and touch pages for one each, while Ferry's
/// threads hardly allocate once the guest runs.
fn share_heap() {
    // SAFETY: called before any other thread is started; a refusal changes nothing.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// A file that may not grow any further (`RLIMIT_FSIZE`, which guest RAM counts against) is an error that is reported, and not the end.
fn ignore_file_sizes() {
    // SAFETY: called before any other thread is started; the call has no memory arguments, and a refusal changes nothing.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// As many file descriptors as the administrator allows: every queue of every device takes two, and the customary soft
/// limit of 1024 is for programs that use select().
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls work on this process and on `limit`, which is valid. A refusal changes nothing.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn wrong_usage(error: &UsageError) -> u8 {
    complain(&error.report());
    exit::USAGE
}

/// To standard error. One that takes nothing (a full disk, a closed pipe) must not change the exit status.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn run(arguments: Arguments) -> u8 {
    if let Err(error) = logging::start(&arguments.log) {
        return wrong_usage(&error);
    }
    let Arguments {
        vm,
        restore,
        api_socket,
        event_monitor,
        timeouts,
        log: _,
        on_reset,
    } = arguments;
    let plan = Plan {
        first: restore.map(First::Restore).or(vm.map(First::Boot)),
        api_socket,
        event_monitor,
        timeouts,
        on_reset,
    };
    let ending = lifecycle::run(plan);
    // A boot's thread may hold the console still.
    terminal::restore();
    match ending {
        Ok(Ending::PowerOff | Ending::Quit | Ending::Migrated) => exit::DONE,
        Ok(Ending::Lost) => exit::FAILED,
        Ok(Ending::Reset(ResetSource::Acpi)) => exit::ACPI_RESET,
        Ok(Ending::Reset(ResetSource::I8042 | ResetSource::Cf9)) => exit::OTHER_RESET,
        Ok(Ending::TripleFault) => exit::TRIPLE_FAULT,
        Err(error) => {
            complain(&format!("ferry: {}", logging::chain(&error)));
            match error.is_usage() {
                true => exit::USAGE,
                false => exit::FAILED,
            }
        }
    }
}
