//! `handover`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};

/// `handover`.
#[derive(Args, Debug)]
#[command(after_help = "\
The back-ends keep their connections and do not notice. The new process serves the same API socket,\n\
serial port and event monitor from then on, and the old one ends. If anything fails before that, the\n\
guest goes on in the old process, and the new one is ended.")]
pub struct Handover {
    /// The program of the new process, which is started for it
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::ExecutablePath,
          required_unless_present = "to")]
    pub exec: Option<PathBuf>,
    /// Where ferryctl receive waits in the new process: unix:PATH
    #[arg(long, value_name = "URL", conflicts_with = "exec")]
    pub to: Option<String>,
    /// Where the new process's output goes; where ferryctl's does if not said
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "to")]
    pub log: Option<PathBuf>,
    /// The serial port now: null, pty, file=PATH or socket=PATH
    #[arg(long, value_name = "SERIAL", conflicts_with = "to")]
    pub serial: Option<String>,
    /// More of the new process's command line
    #[arg(last = true, value_name = "FLAGS", conflicts_with = "to")]
    pub flags: Vec<OsString>,
}
