//! The flags that describe devices: `--disk`, `--fs` and `--vhost-user`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ferry_api::config::keys;
use ferry_api::config::text::hex;
use ferry_api::config::{BackendConfig, DiskConfig, FsConfig, GenericConfig, StateConfig};

use super::error::{Problem, UsageError};
use super::options::Options;

/// `--disk`, once.
pub fn disk(text: &str) -> Result<DiskConfig, UsageError> {
    let builtin = text.split(',').any(|item| item.starts_with("path="));
    if builtin {
        return Err(no_builtin_disks());
    }
    let mut options = Options::parse("--disk", text, keys::DISK)?;
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
    let mut options = Options::parse("--fs", text, keys::FS)?;
    let tag = options.required("tag")?;
    let backend = backend(&mut options, 1024)?;
    let fs = FsConfig { backend, tag };
    fs.check().map_err(|fault| options.fault(fault))?;
    Ok(fs)
}

/// `--vhost-user`, once.
pub fn generic(text: &str) -> Result<GenericConfig, UsageError> {
    let mut options = Options::parse("--vhost-user", text, keys::VHOST_USER)?;
    let Some(device_type) = options.number("device_type", GenericConfig::DEVICE_TYPES)? else {
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
    let generic = GenericConfig {
        backend,
        device_type,
        state,
        drain,
        config,
    };
    generic.check().map_err(|fault| options.fault(fault))?;
    Ok(generic)
}

/// What all three have. An absent id stays empty until the machine is complete.
fn backend(options: &mut Options, default_size: u16) -> Result<BackendConfig, UsageError> {
    let socket = options.required("socket")?;
    let id = options.text("id")?.unwrap_or_default();
    let num_queues = options
        .number("num_queues", BackendConfig::QUEUES)?
        .unwrap_or(1);
    let queue_size = options
        .number("queue_size", BackendConfig::QUEUE_SIZES)?
        .unwrap_or(default_size);
    let backend = BackendConfig {
        id,
        socket: PathBuf::from(&socket),
        num_queues,
        queue_size,
    };
    backend.check().map_err(|fault| options.fault(fault))?;
    if let Ok(metadata) = fs::metadata(&socket)
        && !metadata.file_type().is_socket()
    {
        return Err(options.bad("socket", &socket, "is a file that is not a socket"));
    }
    Ok(backend)
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
        1..=GenericConfig::CONFIG_MOST => Ok(bytes),
        _ => Err(options.bad(
            "config",
            value,
            format!("holds more than {} bytes", GenericConfig::CONFIG_MOST),
        )),
    }
}

fn config_file(path: &Path) -> Result<Vec<u8>, UsageError> {
    super::machine::readable_file("--vhost-user", path)?;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| {
            file.take(GenericConfig::CONFIG_MOST as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|cause| {
            let path = path.to_owned();
            UsageError::new("--vhost-user", Problem::File { path, cause })
        })?;
    Ok(bytes)
}
