//! The bodies of `create`, `add-disk` and `add-fs`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ferry_api::config::keys::{self, Key};
use serde_json::{Map, Value};

use super::arguments::Create;
use super::failure::Failure;
use super::pairs;

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
pub fn disk(text: &str) -> Result<Vec<u8>, Failure> {
    pairs::object("disk", text, keys::DISK).map(to_bytes)
}

/// The body of `vm.add-fs`.
pub fn fs(text: &str) -> Result<Vec<u8>, Failure> {
    pairs::object("share", text, keys::FS).map(to_bytes)
}

fn to_bytes(body: Value) -> Vec<u8> {
    body.to_string().into_bytes()
}

fn from_flags(create: &Create) -> Result<Value, Failure> {
    let Create {
        config: _,
        kernel,
        initramfs,
        cmdline,
        cpus,
        memory,
        disk,
        fs,
        vhost_user,
        serial,
    } = create;
    let mut payload = Map::new();
    for (key, path) in [("kernel", kernel), ("initramfs", initramfs)] {
        if let Some(path) = path {
            payload.insert(key.into(), absolute(key, path)?.into());
        }
    }
    if let Some(cmdline) = cmdline {
        payload.insert("cmdline".into(), cmdline.as_str().into());
    }
    let mut body = Map::from_iter([("payload".to_owned(), payload.into())]);
    if let Some(cpus) = cpus {
        let cpus = pairs::object("--cpus", cpus, keys::CPUS)?;
        body.insert("cpus".into(), cpus);
    }
    if let Some(memory) = memory {
        let memory = pairs::object("--memory", memory, keys::MEMORY)?;
        body.insert("memory".into(), memory);
    }
    if let Some(serial) = serial {
        body.insert("serial".into(), pairs::serial(serial)?);
    }
    for (field, flag, texts, keys) in [
        ("disks", "--disk", disk, keys::DISK),
        ("fs", "--fs", fs, keys::FS),
        ("vhost_user", "--vhost-user", vhost_user, keys::VHOST_USER),
    ] {
        if !texts.is_empty() {
            body.insert(field.into(), devices(flag, texts, keys)?);
        }
    }
    Ok(body.into())
}

fn devices(flag: &str, texts: &[String], keys: &[Key]) -> Result<Value, Failure> {
    texts
        .iter()
        .map(|text| pairs::object(flag, text, keys))
        .collect()
}

fn absolute(key: &str, path: &Path) -> Result<String, Failure> {
    pairs::absolute(path)
        .map_err(|reason| Failure::Usage(format!("--{key}: {} {reason}", path.display())))
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
