//! `snapshot` and `restore`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use ferry_api::wire;

use super::{seconds, size};

/// `snapshot`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    after_help = "\
A directory that is called inspect or verify is written ./inspect. Disks and shares are not in\n\
a snapshot; --while-paused is for copying them."
)]
pub struct Snapshot {
    /// What to do with a snapshot that is there.
    #[command(subcommand)]
    pub look: Option<Look>,
    /// Where to: a directory that does not exist, or an empty one
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    pub directory: Option<PathBuf>,
    /// Have Ferry pause the guest, as is the default
    #[arg(long)]
    pub pause: bool,
    /// Save a guest that is paused already
    #[arg(long, conflicts_with_all = ["pause", "prepare"])]
    pub no_pause: bool,
    /// What becomes of the guest: resume, stop or pause; by default as before
    #[arg(long, value_name = "WHAT", hide_possible_values = true)]
    pub after: Option<After>,
    /// Run this with sh while the guest stands still and its disks rest
    #[arg(long, value_name = "CMD", allow_hyphen_values = true, value_hint = ValueHint::CommandString)]
    pub while_paused: Option<OsString>,
    /// How long CMD may hold the guest; 60 by default
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "while_paused")]
    pub hold_limit: Option<Duration>,
    /// How many ms back-ends may prepare before the pause; 500 by default
    #[arg(long, value_name = "MS")]
    pub prepare: Option<u64>,
    /// The most state that one back-end may have; 16G by default
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub state_limit: Option<u64>,
}

/// What needs no Ferry.
#[derive(Debug, Subcommand)]
pub enum Look {
    /// Show what is in a snapshot, without a Ferry
    Inspect {
        /// The snapshot
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    /// Check every byte of a snapshot, without a Ferry; status 1 if it is damaged
    Verify {
        /// The snapshot
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

/// `--after`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum After {
    /// It runs
    Resume,
    /// It is shut down
    Stop,
    /// It is paused
    Pause,
}

impl From<After> for wire::After {
    fn from(after: After) -> Self {
        match after {
            After::Resume => wire::After::Resume,
            After::Stop => wire::After::Stop,
            After::Pause => wire::After::Pause,
        }
    }
}

/// `restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// The snapshot
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// How RAM is made of its files: copy, as by default, ondemand or adopt
    #[arg(long, value_name = "MODE", hide_possible_values = true)]
    pub memory: Option<Memory>,
    /// Leave the guest paused
    #[arg(long)]
    pub paused: bool,
    /// The socket of a device whose back-end is elsewhere now; may be repeated
    #[arg(long, value_name = "ID=PATH", value_hint = ValueHint::FilePath)]
    pub socket: Vec<String>,
    /// Where the serial port leads now: null, tty, pty, file=PATH or socket=PATH
    #[arg(long, value_name = "SERIAL")]
    pub serial: Option<String>,
}

/// `--memory`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Memory {
    /// RAM is copied and checked
    Copy,
    /// A clone of the files becomes RAM
    #[value(name = "ondemand")]
    OnDemand,
    /// The files become RAM, and the snapshot is used up
    Adopt,
}

impl From<Memory> for wire::MemoryMode {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Copy => wire::MemoryMode::Copy,
            Memory::OnDemand => wire::MemoryMode::OnDemand,
            Memory::Adopt => wire::MemoryMode::Adopt,
        }
    }
}
