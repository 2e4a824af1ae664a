//! How fast a back-end's state goes from a pipe into a snapshot and back, against plain copies between a pipe and a file,
//! in the same run.
//!
//! ```sh
//! cargo run --release -p vm-migration --example state_speed -- [MIB] [DIRECTORY]
//! ```

use std::fs::File;
use std::io::{self, PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::Instant;

use vm_migration::directory::{Error, Reader, Writer};
use vm_migration::manifest::{After, Cpu, Description};
use vm_migration::stream::{Form, Label};

const PIECE: usize = 1 << 20;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mib = arguments.next().map_or(Ok(256), |text| text.parse());
    let mib: usize = mib.map_err(io::Error::other)?;
    let directory = arguments.next().unwrap_or_else(|| "/dev/shm".into());
    let directory = tempfile::tempdir_in(directory)?;
    let plain = directory.path().join("plain");
    let snapshot = directory.path().join("snapshot");
    for _ in 0..5 {
        let plain_save = timed(mib, || plain_save(mib, &plain))?;
        let plain_load = timed(mib, || plain_load(mib, &plain))?;
        let save = timed(mib, || save(mib, &snapshot).map_err(io::Error::other))?;
        let load = timed(mib, || load(mib, &snapshot))?;
        std::fs::remove_file(&plain)?;
        std::fs::remove_dir_all(&snapshot)?;
        println!(
            "{mib} MiB, GiB/s: pipe to file {plain_save:.2}, save {save:.2}; file to pipe {plain_load:.2}, load {load:.2}"
        );
    }
    Ok(())
}

fn timed(mib: usize, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(mib as f64 / 1024.0 / start.elapsed().as_secs_f64())
}

/// A back-end that writes its state.
fn back_end(mib: usize) -> io::Result<PipeReader> {
    let (reader, mut writer) = pipe()?;
    widen(&reader);
    thread::spawn(move || {
        let data = vec![0x5a; PIECE];
        (0..mib).try_for_each(|_| writer.write_all(&data))
    });
    Ok(reader)
}

/// Hands `work` the writing end to a back-end that reads its state, and waits until it has all of it.
fn into_back_end(
    mib: usize,
    work: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let (mut reader, mut writer) = pipe()?;
    widen(&writer);
    let back_end = thread::spawn(move || {
        let (mut total, mut buffer) = (0, vec![0; PIECE]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok::<_, io::Error>(total),
                got => total += got,
            }
        }
    });
    work(&mut writer)?;
    drop(writer);
    let total = back_end.join().map_err(|_| io::ErrorKind::Other)??;
    match total == mib << 20 {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn widen(pipe: &impl AsRawFd) {
    // SAFETY: the call works on an open pipe and has no memory arguments.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, PIECE) };
}

fn copy(input: &mut impl Read, mut output: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            got => output(&buffer[..got])?,
        }
    }
}

fn plain_save(mib: usize, path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    copy(&mut back_end(mib)?, |data| file.write_all(data))?;
    file.sync_all()
}

fn plain_load(mib: usize, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    into_back_end(mib, |pipe| copy(&mut file, |data| pipe.write_all(data)))
}

fn save(mib: usize, path: &Path) -> Result<(), Error> {
    let mut writer = Writer::create(path)?;
    let mut state = writer.begin_state()?;
    let label = Label {
        name: "fs0/back-end".into(),
        form: Form::Chunks,
        schema: "vhost-user".into(),
        version: 1,
    };
    let error = |source| Error::Step {
        step: "save the state in",
        path: path.to_owned(),
        source,
    };
    state
        .save_chunks::<io::Error>(label, u64::MAX, |append| {
            copy(&mut back_end(mib)?, |data| Ok(append(data)?))
        })
        .map_err(error)?;
    writer.finish_state(state)?;
    let description = Description {
        ferry: "0".into(),
        created: String::new(),
        after: After::Stop,
        paused_ms: 0,
        cpu: Cpu::default(),
        devices: Vec::new(),
    };
    writer.publish(description).map(drop)
}

fn load(mib: usize, path: &Path) -> io::Result<()> {
    let reader = Reader::open(path).map_err(io::Error::other)?;
    let mut section = reader.section("fs0/back-end").map_err(io::Error::other)?;
    let section = section.open()?;
    into_back_end(mib, |pipe| {
        let totals = section
            .load_chunks::<io::Error>("vhost-user", u64::MAX, |data| pipe.write_all(data))?;
        assert_eq!(totals.bytes as usize, mib << 20);
        Ok(())
    })
}
