//! The flags that describe devices: `--disk`, `--fs` and `--vhost-user`.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ferry_api::config::{BackendConfig, DiskConfig, FsConfig, GenericConfig, StateConfig};

use super::error::{Problem, UsageError};
use super::options::Options;

/// What fits into `sockaddr_un`, without the terminating zero byte.
const SOCKET_PATH_MOST: usize = 107;
/// The longest name of a device, in bytes.
const ID_MOST: usize = 64;
/// The longest tag of a shared directory, in bytes (Virtual I/O Device 1.2, 5.11.4).
const TAG_MOST: usize = 36;
/// The largest configuration space, in bytes (vhost-user, "Virtio device config space").
const CONFIG_MOST: usize = 256;
/// The most queues that carry requests.
const QUEUES_MOST: u16 = 256;
/// The most descriptors in a queue.
const QUEUE_SIZE_MOST: u16 = 32768;

/// `--disk`, once.
pub fn disk(text: &str) -> Result<DiskConfig, UsageError> {
    let builtin = text.split(',').any(|item| item.starts_with("path="));
    let known = [
        "vhost_user",
        "socket",
        "id",
        "num_queues",
        "queue_size",
        "readonly",
    ];
    if builtin {
        return Err(no_builtin_disks());
    }
    let mut options = Options::parse("--disk", text, &known)?;
    if options.switch("vhost_user")? != Some(true) {
        return Err(no_builtin_disks());
    }
    let readonly = options.switch("readonly")?.unwrap_or(false);
    let backend = backend(&mut options, 128)?;
    Ok(DiskConfig { backend, readonly })
}

fn no_builtin_disks() -> UsageError {
    let problem = Problem::Conflict(
        "Ferry has no built-in disks: a vhost-user back-end has to serve the disk".into(),
    );
    UsageError::new("--disk", problem).hint(
        "start qemu-storage-daemon on the image and write --disk vhost_user=on,socket=PATH; the README shows how",
    )
}

/// `--fs`, once.
pub fn fs(text: &str) -> Result<FsConfig, UsageError> {
    let known = ["tag", "socket", "id", "num_queues", "queue_size"];
    let mut options = Options::parse("--fs", text, &known)?;
    let tag = options.required("tag")?;
    if tag.len() > TAG_MOST {
        return Err(options.bad("tag", tag, format!("is longer than {TAG_MOST} bytes")));
    }
    let backend = backend(&mut options, 1024)?;
    Ok(FsConfig { backend, tag })
}

/// `--vhost-user`, once.
pub fn generic(text: &str) -> Result<GenericConfig, UsageError> {
    let known = [
        "socket",
        "device_type",
        "id",
        "num_queues",
        "queue_size",
        "state",
        "drain",
        "config",
    ];
    let mut options = Options::parse("--vhost-user", text, &known)?;
    let Some(device_type) = options.number("device_type", 1..=63)? else {
        return Err(options
            .error(Problem::MissingKey("device_type"))
            .hint("1 is net, 3 console, 4 rng, 5 balloon, 8 scsi, 16 gpu, 18 input, 19 vsock, 25 sound, 26 fs"));
    };
    let state = match options.text("state")?.as_deref() {
        None => StateConfig::Unspecified,
        Some("none") => StateConfig::None,
        Some("required") => StateConfig::Required,
        Some(other) => return Err(options.bad("state", other, "is neither none nor required")),
    };
    let drain = options.list::<u16>("drain")?.unwrap_or_default();
    let config = match options.text("config")? {
        Some(value) => Some(config_space(&value, &options)?),
        None => None,
    };
    let backend = backend(&mut options, 128)?;
    check_drain(&drain, backend.num_queues, &options)?;
    Ok(GenericConfig {
        backend,
        device_type,
        state,
        drain,
        config,
    })
}

/// What all three have. An absent id stays empty until [`name`] gives one.
fn backend(options: &mut Options, default_size: u16) -> Result<BackendConfig, UsageError> {
    let socket = options.required("socket")?;
    check_socket_path(&socket).map_err(|reason| options.bad("socket", &socket, reason))?;
    if let Ok(metadata) = fs::metadata(&socket)
        && !metadata.file_type().is_socket()
    {
        return Err(options.bad("socket", &socket, "is a file that is not a socket"));
    }
    let id = options.text("id")?.unwrap_or_default();
    if id.len() > ID_MOST {
        return Err(options.bad("id", id, format!("is longer than {ID_MOST} bytes")));
    }
    if !id.chars().all(is_id_character) {
        return Err(options.bad("id", id, "may hold letters, digits, `-`, `_`, `.` and `:`"));
    }
    let num_queues = options.number("num_queues", 1..=QUEUES_MOST)?.unwrap_or(1);
    let queue_size = options
        .number("queue_size", 2..=QUEUE_SIZE_MOST)?
        .unwrap_or(default_size);
    if !queue_size.is_power_of_two() {
        return Err(options.bad("queue_size", queue_size, "is not a power of two"));
    }
    Ok(BackendConfig {
        id,
        socket: PathBuf::from(socket),
        num_queues,
        queue_size,
    })
}

/// Says why `path` cannot be the address of a unix socket, if it cannot.
pub fn check_socket_path(path: &str) -> Result<(), String> {
    match path.len() {
        ..=SOCKET_PATH_MOST => Ok(()),
        length => Err(format!(
            "is {length} bytes long; a socket's path has at most {SOCKET_PATH_MOST}"
        )),
    }
}

fn is_id_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | ':')
}

fn check_drain(drain: &[u16], num_queues: u16, options: &Options) -> Result<(), UsageError> {
    for (position, queue) in drain.iter().enumerate() {
        let reason = if *queue >= num_queues {
            format!("names a queue that is not there: num_queues={num_queues}, counted from 0")
        } else if drain[..position].contains(queue) {
            "names a queue twice".into()
        } else {
            continue;
        };
        return Err(options.bad("drain", queue, reason));
    }
    Ok(())
}

/// Bytes in base 16, or the contents of a file after `@`.
fn config_space(value: &str, options: &Options) -> Result<Vec<u8>, UsageError> {
    let bytes = match value.strip_prefix('@') {
        Some(path) => config_file(Path::new(path))?,
        None => hex(value).ok_or_else(|| {
            let reason = "is neither pairs of hexadecimal digits nor @FILE";
            options.bad("config", value, reason)
        })?,
    };
    match bytes.len() {
        0 => Err(options.bad("config", value, "holds no bytes")),
        1..=CONFIG_MOST => Ok(bytes),
        _ => Err(options.bad(
            "config",
            value,
            format!("holds more than {CONFIG_MOST} bytes"),
        )),
    }
}

fn config_file(path: &Path) -> Result<Vec<u8>, UsageError> {
    super::machine::readable_file("--vhost-user", path)?;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(CONFIG_MOST as u64 + 1).read_to_end(&mut bytes))
        .map_err(|cause| {
            let path = path.to_owned();
            UsageError::new("--vhost-user", Problem::File { path, cause })
        })?;
    Ok(bytes)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect();
    let digits = digits?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// Gives a name to each device without one, and checks what has to be unique among all of them.
pub fn name(
    disks: &mut [DiskConfig],
    fs: &mut [FsConfig],
    generic: &mut [GenericConfig],
) -> Result<(), UsageError> {
    let mut tags = HashMap::new();
    for device in fs.iter() {
        if tags.insert(&device.tag, ()).is_some() {
            let problem = Problem::Conflict(format!("tag={} is used twice", device.tag));
            return Err(UsageError::new("--fs", problem));
        }
    }

    let mut devices: Vec<Named<'_>> = Vec::new();
    devices.extend(
        disks
            .iter_mut()
            .map(|it| Named::new("--disk", "disk", &mut it.backend)),
    );
    devices.extend(
        fs.iter_mut()
            .map(|it| Named::new("--fs", "fs", &mut it.backend)),
    );
    devices.extend(
        generic
            .iter_mut()
            .map(|it| Named::new("--vhost-user", "vhost-user", &mut it.backend)),
    );
    check_unique(&devices)?;
    for index in 0..devices.len() {
        if devices[index].backend.id.is_empty() {
            devices[index].backend.id = free_id(devices[index].prefix, &devices);
        }
    }
    Ok(())
}

/// A device with the flag it came from and the beginning of the name it is given.
struct Named<'a> {
    flag: &'static str,
    prefix: &'static str,
    backend: &'a mut BackendConfig,
}

impl<'a> Named<'a> {
    fn new(flag: &'static str, prefix: &'static str, backend: &'a mut BackendConfig) -> Self {
        Self {
            flag,
            prefix,
            backend,
        }
    }
}

fn check_unique(devices: &[Named<'_>]) -> Result<(), UsageError> {
    for (position, device) in devices.iter().enumerate() {
        for earlier in &devices[..position] {
            let problem =
                if !device.backend.id.is_empty() && device.backend.id == earlier.backend.id {
                    format!("id={} is used twice", device.backend.id)
                } else if device.backend.socket == earlier.backend.socket {
                    let path = device.backend.socket.display();
                    format!("socket={path} is used twice: each device has its own back-end")
                } else {
                    continue;
                };
            return Err(UsageError::new(device.flag, Problem::Conflict(problem)));
        }
    }
    Ok(())
}

fn free_id(prefix: &str, devices: &[Named<'_>]) -> String {
    let mut number = 0;
    loop {
        let id = format!("{prefix}{number}");
        if devices.iter().all(|device| device.backend.id != id) {
            return id;
        }
        number += 1;
    }
}
