//! ferryctl: what people and their scripts say to a running Ferry.
//!
//! Each command is one request (`events --follow`: one after the other; `snapshot`, `restore`, `migrate` and `receive`
//! ask meanwhile how they stand), and its answer in words, or as JSON for programs. `docs/ferryctl.md` is the user's page.

mod arguments;
mod commands;
mod create;
mod events;
mod failure;
#[cfg(test)]
mod generated;
mod handing;
mod info;
mod migrating;
mod output;
mod pairs;
mod saving;
mod signals;
mod table;
mod text;
mod view;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;
use failure::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match commands::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has seen enough.
        Err(failure) if failure.is_closed_output() => ExitCode::SUCCESS,
        Err(failure) => {
            let report = failure.report(commands::goal(&arguments.command));
            // Nobody is left to be told if this fails.
            let _ = std::io::stderr().write_all(report.as_bytes());
            if let Failure::Interrupted { signal, .. } = failure {
                signals::end_by(signal);
            }
            failure.status()
        }
    }
}
