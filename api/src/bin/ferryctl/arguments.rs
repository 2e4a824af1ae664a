//! The command line, from which the man page and the shells' completions are generated as well (`generated.rs`).

mod handing;
mod migrating;
mod saving;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use ferry_api::config::text;

pub use handing::Handover;
pub use migrating::{About, Migrate, Migration, Receive};
pub use saving::{Look, Restore, Snapshot};

/// What `--help` and the man page say about exit statuses; the same table is in `docs/ferryctl.md`.
pub const EXIT_STATUS: &str = "\
Exit status:
  0    done; also if standard output was closed early, as by `head`
  1    Ferry refused or failed, or a snapshot is damaged; the reasons are on standard error
  2    wrong usage, or a configuration file that cannot be used
  3    Ferry cannot be reached, or ended before it answered
  4    the time is over (--timeout); what was asked for may still happen
  5    an answer that is not Ferry's, or output that cannot be written
  6    the command of --while-paused failed, and the snapshot was given up
  7    the guest was handed over, or may have been, and nobody has said that it runs there";

/// Controls a running Ferry through its API socket.
#[derive(Debug, Parser)]
#[command(name = "ferryctl", version, after_help = EXIT_STATUS, disable_help_subcommand = true)]
pub struct Arguments {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Args, Debug)]
pub struct Global {
    /// The socket on which Ferry listens
    #[arg(long, global = true, value_name = "PATH", env = "FERRY_API_SOCKET",
          hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub api_socket: Option<PathBuf>,
    /// Print JSON: one line for an answer or an event, else nothing
    #[arg(long, global = true)]
    pub json: bool,
    /// Time to wait; default 10, for changes 150, to save or move a day
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask whether Ferry is there, and for its version
    Ping,
    /// Show the VM: its state, its configuration, its devices
    Info,
    /// Define a VM, without starting it
    #[command(group(clap::ArgGroup::new("what").required(true).args(["config", "kernel"])))]
    Create(Box<Create>),
    /// Start the guest
    Boot,
    /// Stop the guest where it stands
    Pause,
    /// Let a paused guest go on
    Resume,
    /// End the guest; the VM stays defined
    Shutdown,
    /// End the guest and start it again
    Reboot,
    /// Press the guest's power button, which asks it to power off
    PowerButton,
    /// End the guest, if any, and forget the VM
    Delete,
    /// Add a disk to a VM that does not run
    AddDisk {
        /// vhost_user=on,socket=PATH,id=NAME,num_queues=N,queue_size=N,readonly=on|off
        #[arg(value_name = "PAIRS")]
        disk: String,
    },
    /// Add a shared directory to a VM that does not run
    AddFs {
        /// tag=NAME,socket=PATH,id=NAME,num_queues=N,queue_size=N
        #[arg(value_name = "PAIRS")]
        fs: String,
    },
    /// Remove a device from a VM that does not run
    RemoveDevice {
        /// The device's name, as info shows it
        #[arg(value_name = "NAME")]
        id: String,
    },
    /// Show the counters of the VM and its devices
    Counters,
    /// Print the metrics in Prometheus' text format, with --json as well
    Metrics,
    /// Show what has happened to the VM
    Events(Events),
    /// Save the guest and what its back-ends hold
    Snapshot(Box<Snapshot>),
    /// Bring a saved guest back, and let it go on
    Restore(Restore),
    /// Show how a snapshot or restore stands, or how the last one has ended
    Progress,
    /// Give up the snapshot or restore that is under way
    Cancel,
    /// Send the guest to another Ferry while it runs
    Migrate(Box<Migrate>),
    /// Put a new process in the place of a running Ferry, with its guest
    Handover(Handover),
    /// Receive a guest from another Ferry
    Receive(Receive),
    /// Show how a migration stands, or how the last one has ended
    Migration(Migration),
    /// End the guest, if any, and then Ferry
    VmmShutdown,
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `create`.
#[derive(Args, Debug)]
#[command(
    after_help = "Keys and values are those of Ferry's own command line; ferry --help explains them."
)]
pub struct Create {
    /// The whole VM as JSON, as the API takes it; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath,
          conflicts_with_all = ["kernel", "initramfs", "cmdline", "cpus", "memory", "disk", "fs", "vhost_user", "serial"])]
    pub config: Option<PathBuf>,
    /// An ELF kernel with a PVH note, or a bzImage
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// The initial RAM file system
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Virtual processors: boot=N,max=N
    #[arg(long, value_name = "PAIRS")]
    pub cpus: Option<String>,
    /// Guest RAM: size=SIZE,shared=on|off,hugepages=on|off,...
    #[arg(long, value_name = "PAIRS")]
    pub memory: Option<String>,
    /// A disk: vhost_user=on,socket=PATH,id=NAME,...; may be repeated
    #[arg(long, value_name = "PAIRS")]
    pub disk: Vec<String>,
    /// A shared directory: tag=NAME,socket=PATH,id=NAME,...; may be repeated
    #[arg(long, value_name = "PAIRS")]
    pub fs: Vec<String>,
    /// Any other device: socket=PATH,device_type=N,...; may be repeated
    #[arg(long, value_name = "PAIRS")]
    pub vhost_user: Vec<String>,
    /// The serial port: off, null, tty, pty, file=PATH or socket=PATH
    #[arg(long, value_name = "PLACE")]
    pub serial: Option<String>,
}

/// `events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Go on with events as they happen, until Ctrl-C or until Ferry ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after the one with this number
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub after: u64,
}

/// The shells for which there are completions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let day = 86400.0;
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= day => Ok(Duration::from_secs_f64(number)),
        _ => Err(format!("not a number of seconds above 0, up to {day}")),
    }
}

fn size(text: &str) -> Result<u64, String> {
    text::size(text)
        .ok_or_else(|| "not a size; write bytes, or a whole number with K, M, G or T".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_is_read_on_any_terminal() {
        let mut whole = Arguments::command();
        whole.build();
        let inner = whole
            .get_subcommands()
            .flat_map(clap::Command::get_subcommands);
        for command in std::iter::once(&whole)
            .chain(whole.get_subcommands())
            .chain(inner)
        {
            for line in command.clone().render_help().to_string().lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
        }
    }

    #[test]
    fn times_are_within_a_day_and_more_than_nothing() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86400)));
        for text in ["0", "-1", "86401", "inf", "NaN", "5s", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
