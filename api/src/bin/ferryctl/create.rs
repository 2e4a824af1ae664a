//! The bodies of `create`, `add-disk` and `add-fs`.
//!
//! What is right and wrong in them is Ferry's to say. Only paths need care here: Ferry may run in another directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::arguments::{AddDisk, AddFs, Backend, Create};
use super::failure::Failure;

/// The longest request that Ferry takes, in bytes.
const CONFIG_MOST: u64 = 4 << 20;

/// The body of `vm.create`.
pub fn vm(create: &Create) -> Result<Vec<u8>, Failure> {
    match &create.config {
        Some(path) => file(path),
        None => from_flags(create).map(to_bytes),
    }
}

/// The body of `vm.add-disk`.
pub fn disk(disk: &AddDisk) -> Result<Vec<u8>, Failure> {
    let mut body = backend(&disk.backend, "vhost_socket")?;
    body.insert("vhost_user".into(), true.into());
    body.insert("readonly".into(), disk.readonly.into());
    Ok(to_bytes(body))
}

/// The body of `vm.add-fs`.
pub fn fs(fs: &AddFs) -> Result<Vec<u8>, Failure> {
    let mut body = backend(&fs.backend, "socket")?;
    body.insert("tag".into(), fs.tag.as_str().into());
    Ok(to_bytes(body))
}

fn to_bytes(body: Map<String, Value>) -> Vec<u8> {
    Value::Object(body).to_string().into_bytes()
}

fn from_flags(create: &Create) -> Result<Map<String, Value>, Failure> {
    let mut payload = Map::new();
    for (key, path) in [("kernel", &create.kernel), ("initramfs", &create.initramfs)] {
        if let Some(path) = path {
            payload.insert(key.into(), absolute(path)?.into());
        }
    }
    if let Some(cmdline) = &create.cmdline {
        payload.insert("cmdline".into(), cmdline.as_str().into());
    }
    let mut body = Map::from_iter([("payload".to_owned(), payload.into())]);
    if let Some(cpus) = create.cpus {
        let cpus = json!({"boot_vcpus": cpus, "max_vcpus": cpus});
        body.insert("cpus".into(), cpus);
    }
    if let Some(size) = create.memory {
        body.insert("memory".into(), json!({"size": size, "shared": true}));
    }
    Ok(body)
}

fn backend(backend: &Backend, socket: &str) -> Result<Map<String, Value>, Failure> {
    let mut body = Map::from_iter([(socket.to_owned(), absolute(&backend.socket)?.into())]);
    let Backend {
        socket: _,
        id,
        num_queues,
        queue_size,
    } = backend;
    for (key, value) in [
        ("id", id.as_deref().map(Value::from)),
        ("num_queues", num_queues.map(Value::from)),
        ("queue_size", queue_size.map(Value::from)),
    ] {
        if let Some(value) = value {
            body.insert(key.into(), value);
        }
    }
    Ok(body)
}

/// `path` as Ferry finds it too. JSON holds no other text than Unicode.
fn absolute(path: &Path) -> Result<String, Failure> {
    let whole = std::path::absolute(path).map_err(|cause| Failure::Read {
        path: path.to_owned(),
        cause,
    })?;
    whole.into_os_string().into_string().map_err(|path| {
        let path = path.display();
        Failure::Usage(format!("{path} is not UTF-8, which the API needs"))
    })
}

/// A configuration as it stands in a file, or comes on standard input.
fn file(path: &Path) -> Result<Vec<u8>, Failure> {
    let (input, path): (Box<dyn Read>, PathBuf) = match path == Path::new("-") {
        true => (Box::new(io::stdin()), "standard input".into()),
        false => {
            let path = path.to_owned();
            match File::open(&path) {
                Ok(file) => (Box::new(file), path),
                Err(cause) => return Err(Failure::Read { path, cause }),
            }
        }
    };
    let mut bytes = Vec::new();
    if let Err(cause) = input.take(CONFIG_MOST + 1).read_to_end(&mut bytes) {
        return Err(Failure::Read { path, cause });
    }
    if bytes.len() as u64 > CONFIG_MOST {
        let path = path.display();
        let problem = format!("{path} has more than the {CONFIG_MOST} bytes that Ferry takes");
        return Err(Failure::Usage(problem));
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(cause) => Err(Failure::Json { path, cause }),
    }
}
