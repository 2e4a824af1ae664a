//! What moving RAM costs a program that does it plainly, with a thread on each side: so many bytes from one memfd through a unix socket into another one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::MIB;
use crate::bench::memory::{fill, memfd};

/// How much is moved at once. Of the sizes from 64 KiB to 1 MiB, this one is the fastest.
const PIECE: usize = 256 << 10;
/// What the socket may hold, as between two Ferrys.
const BUFFER: libc::c_int = 1 << 20;

/// What the destination is when the copy begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Without any page.
    Cold,
    /// With all of them.
    Prefaulted,
}

/// A memfd full of data, to be copied.
pub struct Source {
    file: File,
    bytes: u64,
}

impl Source {
    /// One of `mib` MiB.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(mib: u64) -> Result<Self> {
        let file = memfd()?;
        fill(&file, mib, 0x5a)?;
        let bytes = mib * MIB;
        Ok(Self { file, bytes })
    }

    /// How large it is, in MiB.
    pub fn mib(&self) -> u64 {
        self.bytes / MIB
    }

    /// Copies it into a new memfd; returns how long that took.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn copy(&self, destination: Destination) -> Result<Duration> {
        let target = memfd()?;
        target.set_len(self.bytes)?;
        if destination == Destination::Prefaulted {
            fill(&target, self.bytes / MIB, 0)?;
        }
        let (sending, receiving) = UnixStream::pair().context("cannot make a pair of sockets")?;
        widen(&sending, libc::SO_SNDBUF)?;
        widen(&receiving, libc::SO_RCVBUF)?;
        let begun = Instant::now();
        thread::scope(|scope| {
            let sender = scope.spawn(move || self.send(sending));
            receive(receiving, &target)?;
            sender
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(begun.elapsed())
    }

    fn send(&self, mut socket: UnixStream) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        for at in (0..self.bytes).step_by(PIECE) {
            self.file.read_exact_at(&mut buffer, at)?;
            socket.write_all(&buffer)?;
        }
        Ok(())
    }
}

fn receive(mut socket: UnixStream, target: &File) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        target.write_all_at(&buffer[..count], at)?;
        at += count as u64;
    }
}

fn widen(socket: &UnixStream, option: libc::c_int) -> Result<()> {
    let bytes = BUFFER;
    // SAFETY: the value is an integer that outlives the call, and its size is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("cannot widen a socket"),
    }
}
