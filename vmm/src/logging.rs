//! Log messages: one line each, on standard error or at the end of a file.
//!
//! ```text
//! ferry: WARN disk0: the back-end has closed its connection
//! 2026-03-01T12:00:00.123Z WARN disk0: …                                      in a file
//! ```
//!
//! A message's field `device` is the word after the level; an `error` is written with its causes,
//! and every other field as `key=value`. Control characters are escaped: back-ends and guests have a hand in
//! what messages say. A message never makes its thread wait: if nobody reads standard error, lines
//! are dropped and counted.
//!
//! This is a subscriber of Ferry's own: levels and one line are all it needs, and start-up time and memory are not
//! spent on registries and filters.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

pub use ferry_devices::chain;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::cli::{LogConfig, UsageError};

/// The longest line, in bytes. A pipe takes this much at once or says so beforehand (`PIPE_BUF`).
const LINE_MOST: usize = 4096;

/// From now on, messages go where `config` says. Called once, before any thread is started.
pub fn start(config: &LogConfig) -> Result<(), UsageError> {
    let target = match &config.file {
        None => Target::Stderr(io::stderr()),
        Some(path) => Target::File(open(path).map_err(|cause| {
            let path = path.clone();
            UsageError::new("--log-file", crate::cli::Problem::File { path, cause })
        })?),
    };
    let log = Log {
        level: config.level,
        output: Mutex::new(Output { target, dropped: 0 }),
    };
    // A second call finds the first subscriber in place, which then stays.
    let _ = tracing::subscriber::set_global_default(log);
    Ok(())
}

fn open(path: &std::path::Path) -> io::Result<File> {
    // O_NONBLOCK: a FIFO without a reader is an error and not a wait.
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_block_device() {
        return Err(io::Error::other("it is a block device"));
    }
    Ok(file)
}

struct Log {
    level: Level,
    output: Mutex<Output>,
}

struct Output {
    target: Target,
    dropped: u64,
}

enum Target {
    Stderr(io::Stderr),
    File(File),
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let line = fields.line(*event.metadata().level(), &output.target);
        output.write(&line);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Output {
    fn write(&mut self, line: &str) {
        if self.dropped > 0 {
            let notice = format!("ferry: WARN {} log lines were lost\n", self.dropped);
            if !self.target.write(&notice) {
                self.dropped += 1;
                return;
            }
            self.dropped = 0;
        }
        if !self.target.write(line) {
            self.dropped += 1;
        }
    }
}

impl Target {
    /// Writes one line, or says `false` if that would have to wait.
    fn write(&mut self, line: &str) -> bool {
        let written = match self {
            Self::Stderr(stderr) if writable(stderr.as_raw_fd()) => {
                stderr.write_all(line.as_bytes())
            }
            Self::Stderr(_) => return false,
            Self::File(file) => file.write_all(line.as_bytes()),
        };
        // Where standard error is closed or a disk is full, there is nobody left to tell.
        written.is_ok()
    }
}

/// Whether a write of up to [`LINE_MOST`] bytes can be done now.
fn writable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd for the time of the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready != 0
}

/// The parts of a message.
#[derive(Default)]
struct Fields {
    device: String,
    message: String,
    others: String,
}

impl Fields {
    fn line(&self, level: Level, target: &Target) -> String {
        let mut line = match target {
            Target::Stderr(_) => String::from("ferry: "),
            Target::File(_) => format!("{} ", timestamp(SystemTime::now())),
        };
        let _ = write!(line, "{level} ");
        if !self.device.is_empty() {
            push_escaped(&mut line, &self.device);
            line.push_str(": ");
        }
        push_escaped(&mut line, &self.message);
        push_escaped(&mut line, &self.others);
        if line.len() >= LINE_MOST {
            let mut end = LINE_MOST - 4;
            while !line.is_char_boundary(end) {
                end -= 1;
            }
            line.truncate(end);
            line.push('…');
        }
        line.push('\n');
        line
    }

    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => self.message.write_fmt(value),
            "device" => self.device.write_fmt(value),
            "error" => write!(self.others, ": {value}"),
            name => write!(self.others, " {name}={value}"),
        };
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, format_args!("{}", chain(value)));
    }
}

fn push_escaped(line: &mut String, text: &str) {
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
}

/// Universal time, as in RFC 3339.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let Date { year, month, day } = Date::of(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// The date that is `days` after 1970-01-01. The years counted here begin in March, so that a leap day is a year's last.
    fn of(days: u64) -> Self {
        const IN_400_YEARS: u64 = 146_097;
        let days = days + 719_468; // since 0000-03-01
        let era = days / IN_400_YEARS;
        let in_era = days % IN_400_YEARS;
        let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * in_year + 2) / 153;
        let day = in_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Self { year, month, day }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_line_is_one_line_and_of_bounded_length() {
        let fields = Fields {
            device: "disk0".into(),
            message: "bad\n\x1b[31m".into(),
            others: format!(" x={}", "é".repeat(LINE_MOST)),
        };
        let line = fields.line(Level::WARN, &Target::Stderr(io::stderr()));
        assert!(line.starts_with("ferry: WARN disk0: bad\\n\\u{1b}[31m x=é"));
        assert!(line.ends_with("é…\n"));
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.len() <= LINE_MOST);
    }

    #[test]
    fn messages_carry_their_fields() {
        let path = tempfile::tempdir().unwrap();
        let path = path.path().join("log");
        let log = Log {
            level: Level::INFO,
            output: Mutex::new(Output {
                target: Target::File(open(&path).unwrap()),
                dropped: 0,
            }),
        };
        tracing::subscriber::with_default(log, || {
            let problem = crate::cli::Problem::File {
                path: "vmlinux".into(),
                cause: io::Error::other("the cause"),
            };
            let error = UsageError::new("--kernel", problem);
            tracing::warn!(device = "disk0", queue = 3, "gone");
            tracing::info!(error = &error as &dyn Error, "refused");
            tracing::debug!("unseen");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        assert_eq!(
            lines,
            [
                "WARN disk0: gone queue=3",
                "INFO refused: --kernel: cannot use vmlinux: the cause"
            ]
        );
    }
}
