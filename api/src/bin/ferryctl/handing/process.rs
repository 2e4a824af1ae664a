//! The new process, in a directory of its own until it has the guest.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ferry_api::client::{Client, Limits};
use ferry_api::wire::Ping;

use crate::arguments::Handover;
use crate::failure::Failure;
use crate::signals::{self, Signals, Whole};

/// How long it may take until its API answers.
const START: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(5);
/// The end of its log that is shown, in bytes and in lines.
const TAIL: u64 = 4096;
const TAIL_LINES: usize = 8;

/// A directory for the user alone, with whatever is in it. Dropped, it is removed.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes it where sockets of this user belong.
    pub fn make() -> Result<Self, Failure> {
        let place = ["XDG_RUNTIME_DIR", "TMPDIR"].into_iter().find_map(|name| {
            let place = std::env::var_os(name).map(PathBuf::from)?;
            (place.is_absolute() && place.is_dir()).then_some(place)
        });
        let template = place.unwrap_or_else(|| "/tmp".into()).join("ferry-XXXXXX");
        let failed = |cause| Failure::Directory {
            path: template.clone(),
            cause,
        };
        let text = CString::new(template.as_os_str().as_bytes())
            .map_err(|error| failed(io::Error::other(error)))?;
        let text = text.into_raw();
        // SAFETY: it is a string that ends with a zero, and the call changes its letters in place.
        let made = unsafe { libc::mkdtemp(text) };
        let cause = io::Error::last_os_error();
        // SAFETY: it comes from `into_raw`, and its length is what it was.
        let text = unsafe { CString::from_raw(text) };
        match made.is_null() {
            true => Err(failed(cause)),
            false => Ok(Directory(
                std::ffi::OsString::from_vec(text.into_bytes()).into(),
            )),
        }
    }

    /// Leaves it to a process that may live.
    pub fn leave(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }

    /// Something in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // What is left in it is nobody's.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A process that was started here. Dropped, it is ended, unless it has been let go.
#[derive(Debug)]
pub struct Successor {
    child: Child,
    /// Of the Ferry in it, once that has answered.
    pid: Option<u32>,
    program: PathBuf,
    log: Option<Log>,
    socket: PathBuf,
    keep: Keep,
}

/// Where it writes to.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    /// Where its own lines begin.
    start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    No,
    Yes,
}

impl Successor {
    /// Starts it, in a session of its own: what is typed at this terminal is not for it.
    pub fn start(handover: &Handover, program: &Path, socket: PathBuf) -> Result<Self, Failure> {
        let failed = |cause| Failure::Start {
            program: program.to_owned(),
            cause,
        };
        let mut command = Command::new(program);
        command
            .arg("--api-socket")
            .arg(&socket)
            .args(&handover.flags)
            .stdin(Stdio::null());
        let log = handover.log.as_deref().map(Log::open).transpose()?;
        if let Some(log) = &log {
            let copy = || log.file.try_clone().map_err(failed);
            command.stdout(copy()?).stderr(copy()?);
        }
        // SAFETY: between fork and exec it makes one call that touches no memory.
        unsafe {
            command.pre_exec(|| match libc::setsid() {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        Ok(Successor {
            child: command.spawn().map_err(failed)?,
            program: program.to_owned(),
            log,
            socket,
            pid: None,
            keep: Keep::No,
        })
    }

    /// The number of the Ferry that answers: what was started may be a script around it.
    pub fn pid(&self) -> u32 {
        self.pid.unwrap_or_else(|| self.child.id())
    }

    /// Waits until its API answers.
    pub fn wait_until_it_answers(&mut self, signals: &Signals) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        let limits = Limits {
            total: Duration::from_secs(1),
            ..Limits::default()
        };
        let client = Client::new(&self.socket, limits);
        loop {
            if self.socket.exists()
                && let Ok(reply) = client.get("vmm.ping")
            {
                let ping = serde_json::from_slice::<Ping>(&reply.body);
                self.pid = ping.ok().map(|ping| ping.pid);
                return Ok(());
            }
            self.check()?;
            if signals.noted().is_some() {
                return Err(Failure::interrupted(signals));
            }
            if Instant::now() >= deadline {
                return Err(Failure::Mute {
                    program: self.program.clone(),
                    limit: START,
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.ended(status)),
            // It cannot be anybody else's child.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn ended(&self, status: ExitStatus) -> Failure {
        Failure::Ended {
            program: self.program.clone(),
            status,
            lines: self.log.as_ref().map(Log::last_lines).unwrap_or_default(),
        }
    }

    /// It has the guest.
    pub fn let_go(mut self) {
        self.keep = Keep::Yes;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.keep == Keep::Yes {
            return;
        }
        // With what it has started: it leads a session of its own.
        signals::send(self.child.id(), Whole::Group, libc::SIGTERM);
        let deadline = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                signals::send(self.child.id(), Whole::Group, libc::SIGKILL);
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Log {
    fn open(path: &Path) -> Result<Self, Failure> {
        let open = || {
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            let start = file.metadata()?.len();
            let path = path.to_owned();
            io::Result::Ok(Log { path, file, start })
        };
        open().map_err(|cause| Failure::Directory {
            path: path.to_owned(),
            cause,
        })
    }

    fn last_lines(&self) -> Vec<String> {
        let bytes = self.tail().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        let last = &lines[first..];
        last.iter().map(|line| (*line).to_owned()).collect()
    }

    fn tail(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Of a FIFO or a terminal, nothing can be read back.
        if self.file.metadata()?.is_file() {
            let mut file = File::open(&self.path)?;
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(end.saturating_sub(TAIL).max(self.start)))?;
            file.take(TAIL).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}
