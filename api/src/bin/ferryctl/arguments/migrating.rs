//! `migrate`, `receive` and `migration`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use ferry_api::wire;

use super::{seconds, size};

/// `migrate`.
#[derive(Args, Debug)]
#[command(after_help = "\
URL is unix:PATH, tcp:HOST:PORT or tcp:[ADDRESS]:PORT, where ferryctl receive waits. The guest goes\n\
on here unless it has arrived; --timeout limits how long ferryctl waits, not the migration.")]
pub struct Migrate {
    /// Where the receiver waits
    #[arg(value_name = "URL")]
    pub destination: String,
    /// How many ms the guest may stand still; 300 by default
    #[arg(long, value_name = "MS")]
    pub downtime_ms: Option<u64>,
    /// Seconds in which RAM may be sent before the pause; 3600 by default
    #[arg(long, value_name = "SECONDS")]
    pub time_limit: Option<u64>,
    /// What is done then: cancel, as by default, or ignore
    #[arg(long, value_name = "WHAT", hide_possible_values = true)]
    pub on_timeout: Option<OnTimeout>,
    /// How many connections RAM travels over, up to 16; 2 by default
    #[arg(long, value_name = "NUMBER")]
    pub connections: Option<u32>,
    /// Encrypt tcp, with ca-cert.pem, cert.pem and key.pem in DIR
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_dir: Option<PathBuf>,
    /// Back-ends that cannot log: refuse, the default, or resend all RAM
    #[arg(long, value_name = "WHAT", hide_possible_values = true)]
    pub unlogged: Option<Unlogged>,
    /// Slow the guest down if it dirties RAM faster than it can be sent
    #[arg(long)]
    pub throttle: bool,
    /// Have this Ferry stay, without a VM, when the guest has gone
    #[arg(long)]
    pub keep_source: bool,
    /// The most state that one back-end may have; 16G by default
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub state_limit: Option<u64>,
    /// How long to wait for word from the receiver; 30 by default
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub confirm_limit: Option<Duration>,
}

/// `--on-timeout`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnTimeout {
    /// The migration fails
    Cancel,
    /// The guest is moved, however long it stands still
    Ignore,
}

impl From<OnTimeout> for wire::TimeoutStrategy {
    fn from(strategy: OnTimeout) -> Self {
        match strategy {
            OnTimeout::Cancel => wire::TimeoutStrategy::Cancel,
            OnTimeout::Ignore => wire::TimeoutStrategy::Ignore,
        }
    }
}

/// `--unlogged`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Unlogged {
    /// The migration is refused
    Refuse,
    /// All RAM is sent again while the guest stands still
    Resend,
}

impl From<Unlogged> for wire::Unlogged {
    fn from(unlogged: Unlogged) -> Self {
        match unlogged {
            Unlogged::Refuse => wire::Unlogged::Refuse,
            Unlogged::Resend => wire::Unlogged::Resend,
        }
    }
}

/// `receive`.
#[derive(Args, Debug)]
pub struct Receive {
    /// Where to wait: unix:PATH, tcp:HOST:PORT or tcp:[ADDRESS]:PORT
    #[arg(value_name = "URL")]
    pub receiver: String,
    /// The socket of a device's back-end on this side; may be repeated
    #[arg(long, value_name = "ID=PATH", value_hint = ValueHint::FilePath)]
    pub socket: Vec<String>,
    /// The serial port now: null, tty, pty, file=PATH or socket=PATH
    #[arg(long, value_name = "SERIAL")]
    pub serial: Option<String>,
    /// Encrypt tcp, with ca-cert.pem, cert.pem and key.pem in DIR
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_dir: Option<PathBuf>,
    /// Let anybody send who reaches this address, without encryption
    #[arg(long, conflicts_with = "tls_dir")]
    pub insecure: bool,
    /// The most state that one back-end may have; 16G by default
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub state_limit: Option<u64>,
}

/// `migration`.
#[derive(Args, Debug)]
#[command(disable_help_subcommand = true)]
pub struct Migration {
    /// What to do with it.
    #[command(subcommand)]
    pub what: Option<About>,
}

/// What can be done about a migration.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum About {
    /// Give up the migration that is under way; a guest that was to be sent goes on
    Cancel,
    /// Take back a guest that was handed over and has certainly never run elsewhere
    #[command(after_help = "\
Only after a hand-over that is unconfirmed, and only if the guest has never run at the receiver,\n\
not for a moment, and never will: two that run at once destroy the disks, and so does one that is\n\
older than they are. If it may have run there, delete it here (ferryctl delete).")]
    Reclaim,
}
