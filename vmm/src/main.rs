//! Ferry.

mod cli;
mod logging;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(cli::Request::Print(text)) => {
            // Whoever closed standard output does not want the text.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(cli::Request::Run(arguments)) => match logging::start(&arguments.log) {
            Ok(()) => {
                eprintln!("ferry: not yet");
                ExitCode::FAILURE
            }
            Err(error) => wrong(&error),
        },
        Err(error) => wrong(&error),
    }
}

fn wrong(error: &cli::UsageError) -> ExitCode {
    eprintln!("{}", error.report());
    ExitCode::from(2)
}
