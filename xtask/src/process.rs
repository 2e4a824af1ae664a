//! Child processes that never outlive us.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A child process, ended when dropped, or when this thread ends, however it ends.
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts a command whose streams are set up already.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        die_with_parent(command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: None,
        })
    }

    /// Starts a server whose output goes to `NAME.log` in `dir`, and waits until its socket is there.
    ///
    /// # Errors
    /// It cannot be started, ends, or makes no socket in time.
    pub fn serve(name: &str, command: &mut Command, socket: &Path, dir: &Path) -> Result<Self> {
        const LIMIT: Duration = Duration::from_secs(60);
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let mut process = Self::start(name, command)?;
        process.log = Some(log);
        let deadline = Instant::now() + LIMIT;
        while !socket.exists() {
            if let Some(status) = process.ended()? {
                bail!("{name} ended at its start ({status}):\n{}", process.log());
            }
            if Instant::now() > deadline {
                bail!("{name} made no socket within {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(process)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if that is a pipe; once.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let bytes = self.log.as_ref().and_then(|log| std::fs::read(log).ok());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }
}

/// Lets a child be killed when the thread that starts it ends, however it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure only makes one system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
