//! The flags that describe the machine itself: kernel, processors, memory, serial port.

use std::fs::{FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ferry_api::config::keys;
use ferry_api::config::text::WrongSerial;
use ferry_api::config::{CpusConfig, MemoryConfig, PayloadConfig, SerialConfig};

use super::error::{Problem, UsageError};
use super::options::Options;

/// `--kernel`, `--initramfs` and `--cmdline`.
pub fn payload(
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    cmdline: Option<String>,
) -> Result<PayloadConfig, UsageError> {
    let Some(kernel) = kernel else {
        let problem = Problem::Flag("is missing: Ferry does not know what to boot".into());
        return Err(UsageError::new("--kernel", problem)
            .hint("ferry --kernel vmlinux …; ferry --help shows examples"));
    };
    readable_file("--kernel", &kernel)?;
    if let Some(initramfs) = &initramfs {
        readable_file("--initramfs", initramfs)?;
    }
    let payload = PayloadConfig {
        kernel,
        initramfs,
        cmdline: cmdline.unwrap_or_default(),
    };
    // The files have been opened: only the command line is left to be wrong.
    payload
        .check()
        .map_err(|fault| UsageError::new("--cmdline", fault.into()))?;
    Ok(payload)
}

/// Checks that `path` is a file with contents that can be read.
pub fn readable_file(flag: &'static str, path: &Path) -> Result<(), UsageError> {
    open_regular(path).map_err(|cause| {
        let path = path.to_owned();
        UsageError::new(flag, Problem::File { path, cause })
    })
}

fn open_regular(path: &Path) -> io::Result<()> {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(io::Error::other("it is empty"));
    }
    Ok(())
}

/// `--cpus`.
pub fn cpus(text: Option<&str>) -> Result<CpusConfig, UsageError> {
    let Some(text) = text else {
        return Ok(CpusConfig {
            boot_vcpus: 1,
            max_vcpus: 1,
        });
    };
    let mut options = Options::parse("--cpus", text, keys::CPUS)
        .map_err(|error| error.hint("for four processors write --cpus boot=4"))?;
    let range = CpusConfig::RANGE;
    let boot_vcpus = options.number("boot", range.clone())?.unwrap_or(1);
    let max_vcpus = options.number("max", range)?.unwrap_or(boot_vcpus);
    let cpus = CpusConfig {
        boot_vcpus,
        max_vcpus,
    };
    // Each is within the range: only their order is left to be wrong. The flag has shorter names for them.
    cpus.check().map_err(|_| {
        let problem = Problem::Conflict(format!("boot={boot_vcpus} is more than max={max_vcpus}"));
        options.error(problem)
    })?;
    Ok(cpus)
}

/// `--memory`.
pub fn memory(text: Option<&str>) -> Result<MemoryConfig, UsageError> {
    let mut memory = MemoryConfig {
        size: 512 << 20,
        shared: true,
        hugepages: false,
        hugepage_size: None,
        prefault: false,
    };
    let Some(text) = text else {
        return Ok(memory);
    };
    let mut options = Options::parse("--memory", text, keys::MEMORY)
        .map_err(|error| error.hint("for one gibibyte write --memory size=1G"))?;
    memory.size = options.size("size")?.unwrap_or(memory.size);
    memory.shared = options.switch("shared")?.unwrap_or(memory.shared);
    memory.hugepages = options.switch("hugepages")?.unwrap_or(memory.hugepages);
    memory.hugepage_size = options.size("hugepage_size")?;
    memory.prefault = options.switch("prefault")?.unwrap_or(memory.prefault);

    memory.check().map_err(|fault| options.fault(fault))?;
    Ok(memory)
}

/// `--serial`.
pub fn serial(text: Option<&str>) -> Result<SerialConfig, UsageError> {
    let flag = "--serial";
    let Some(text) = text else {
        return Ok(SerialConfig::Tty);
    };
    let serial: SerialConfig = text.parse().map_err(|error| match error {
        WrongSerial::Syntax(error) => UsageError::new(flag, error.into()),
        WrongSerial::Other(text) => {
            let problem = Problem::Syntax(format!("there is no `{text}`"));
            UsageError::new(flag, problem).hint(
                "write one of off, null, tty, pty, file=PATH, socket=PATH; a path with a comma in double quotes",
            )
        }
    })?;
    serial
        .check()
        .map_err(|fault| UsageError::new(flag, fault.into()))?;
    match &serial {
        SerialConfig::File(path) => check_place(path, |kind| match kind.is_dir() {
            true => Err(io::ErrorKind::IsADirectory.into()),
            false => Ok(()),
        })?,
        SerialConfig::Socket(path) => check_place(path, |kind| match kind.is_socket() {
            true => Ok(()),
            false => Err(io::Error::other("it is there, and it is not a socket")),
        })?,
        SerialConfig::Off | SerialConfig::Null | SerialConfig::Tty | SerialConfig::Pty => {}
    }
    Ok(serial)
}

/// Checks that the serial port's file can be made at `path`: its directory exists, and what is there
/// already is of the right kind.
fn check_place(
    path: &Path,
    right_kind: impl Fn(FileType) -> io::Result<()>,
) -> Result<(), UsageError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let checked = directory.metadata().and_then(|_| match path.metadata() {
        Ok(metadata) => right_kind(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    });
    checked.map_err(|cause| {
        let path = path.to_owned();
        UsageError::new("--serial", Problem::File { path, cause })
    })
}

/// `--console`: Ferry has no virtio console of its own, so both words mean the same.
pub fn console(text: Option<&str>) -> Result<(), UsageError> {
    match text {
        None | Some("off" | "null") => Ok(()),
        Some(other) => {
            let problem = Problem::Syntax(format!("there is no `{other}`"));
            Err(UsageError::new("--console", problem).hint(
                "Ferry has no virtio console of its own: write off, and use --serial, or --vhost-user with a back-end of device_type=3",
            ))
        }
    }
}
