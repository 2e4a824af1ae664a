//! `key=value,key=value` as on Ferry's own command line, turned into the JSON of the API.
//!
//! Here is only the form, by the tables that Ferry goes by as well. Which values are right is Ferry's to say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ferry_api::config::SerialConfig;
use ferry_api::config::keys::{Key, Kind, names};
use ferry_api::config::text::{self, Item, WrongSerial};
use ferry_api::wire::{Console, RestoreDevice};
use serde_json::{Map, Value, json};

use super::failure::Failure;

/// The most bytes of a device's configuration space.
const CONFIG_MOST: u64 = 256;

/// Makes an object of `text`, which is the value of `flag`.
pub fn object(flag: &str, text: &str, keys: &[Key]) -> Result<Value, Failure> {
    let mut object = Map::new();
    for item in split(flag, text)? {
        let Some(key) = keys.iter().find(|key| key.name == item.key) else {
            let known = names(keys).join(", ");
            let problem = format!("there is no key `{}` (keys: {known})", item.key);
            return Err(wrong(flag, problem));
        };
        let name = key.name;
        let value = match item.value.as_deref() {
            None => {
                return Err(wrong(
                    flag,
                    format!("`{name}` has no value; write {name}=…"),
                ));
            }
            Some("") => return Err(wrong(flag, format!("{name}= has no value"))),
            Some(value) => convert(key.kind, value)
                .map_err(|reason| wrong(flag, format!("{name}={value} {reason}")))?,
        };
        if object.insert(key.field.into(), value).is_some() {
            return Err(wrong(flag, format!("{name}= is given twice")));
        }
    }
    Ok(Value::Object(object))
}

/// `--serial`: a word, or a word with a path.
pub fn serial(text: &str) -> Result<Value, Failure> {
    serde_json::to_value(console(text)?).map_err(|error| wrong("--serial", error.to_string()))
}

/// The same, typed.
pub fn console(text: &str) -> Result<Console, Failure> {
    let serial: SerialConfig = text
        .parse()
        .map_err(|error: WrongSerial| wrong("--serial", error.to_string()))?;
    let mut serial = Console::from(&serial);
    for path in [&mut serial.file, &mut serial.socket].into_iter().flatten() {
        *path = absolute(Path::new(path)).map_err(|it| wrong("--serial", it))?;
    }
    Ok(serial)
}

/// `--socket ID=PATH`, any number of them: devices by name.
pub fn sockets(
    texts: &[String],
) -> Result<Option<BTreeMap<String, Option<RestoreDevice>>>, Failure> {
    let mut devices = BTreeMap::new();
    for text in texts {
        let not = |problem: &str| wrong("--socket", format!("{text} {problem}"));
        let (id, path) = text
            .split_once('=')
            .filter(|(id, path)| !id.is_empty() && !path.is_empty())
            .ok_or_else(|| not("is not of the form ID=PATH"))?;
        // Ferry may run in another directory, so it is told the whole path.
        let socket = absolute(Path::new(path)).map_err(|reason| not(&reason))?;
        let device = RestoreDevice {
            socket: Some(socket),
        };
        if devices.insert(id.to_owned(), Some(device)).is_some() {
            return Err(not("names a device for the second time"));
        }
    }
    Ok((!devices.is_empty()).then_some(devices))
}

/// `path` as Ferry finds it too, or why not. JSON holds no other text than Unicode.
pub fn absolute(path: &Path) -> Result<String, String> {
    let whole = std::path::absolute(path).map_err(|cause| format!("cannot be found: {cause}"))?;
    whole
        .into_os_string()
        .into_string()
        .map_err(|_| "is not UTF-8, which the API needs".to_owned())
}

fn split(flag: &str, text: &str) -> Result<Vec<Item>, Failure> {
    text::split(text).map_err(|error| wrong(flag, error.to_string()))
}

fn wrong(flag: &str, problem: String) -> Failure {
    Failure::Usage(format!("{flag}: {problem}"))
}

/// The value as JSON; or why not, as the rest of a sentence that begins with it.
fn convert(kind: Kind, value: &str) -> Result<Value, String> {
    let not = |what: &str| format!("is not {what}");
    match kind {
        Kind::Text => Ok(value.into()),
        // Ferry may run in another directory, so it is told the whole path.
        Kind::Path => absolute(Path::new(value)).map(Value::from),
        Kind::Number => text::whole_number(value)
            .map(Value::from)
            .ok_or_else(|| not("a whole number")),
        Kind::Size => text::size(value)
            .map(Value::from)
            .ok_or_else(|| not("a size; write bytes, or a whole number with K, M, G or T")),
        Kind::Switch => match value {
            "on" | "true" => Ok(true.into()),
            "off" | "false" => Ok(false.into()),
            _ => Err("is neither on nor off".into()),
        },
        Kind::Numbers => numbers(value).ok_or_else(|| not("a list of numbers such as [0,1]")),
        Kind::Bytes => match value.strip_prefix('@') {
            Some(path) => bytes_of(Path::new(path)).map(Value::from),
            None => Ok(value.into()),
        },
    }
}

fn numbers(text: &str) -> Option<Value> {
    let inner = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => text,
    };
    if inner.trim().is_empty() {
        return Some(json!([]));
    }
    let numbers: Option<Vec<u64>> = inner
        .split(',')
        .map(|number| text::whole_number(number.trim()))
        .collect();
    numbers.map(Value::from)
}

/// The bytes of a file in base 16.
fn bytes_of(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CONFIG_MOST + 1).read_to_end(&mut bytes))
        .map_err(|cause| format!("cannot be read: {cause}"))?;
    match bytes.len() as u64 {
        ..=CONFIG_MOST => Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => Err(format!("has more than {CONFIG_MOST} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use ferry_api::config::keys::{CPUS, DISK, FS, MEMORY, VHOST_USER};

    use super::*;

    fn refused(flag: &str, text: &str, keys: &[Key]) -> String {
        object(flag, text, keys).unwrap_err().to_string()
    }

    #[test]
    fn keys_become_the_apis_fields() {
        assert_eq!(
            object(
                "--disk",
                r#"vhost_user=on,socket="/tmp/a,b",queue_size=0x80"#,
                DISK
            )
            .unwrap(),
            json!({"vhost_user": true, "vhost_socket": "/tmp/a,b", "queue_size": 128})
        );
        assert_eq!(
            object(
                "--vhost-user",
                "drain=[0, 1],config=0300,state=none",
                VHOST_USER
            )
            .unwrap(),
            json!({"drain": [0, 1], "config": "0300", "state": "none"})
        );
        assert_eq!(
            object("--memory", "size=1G,prefault=off", MEMORY).unwrap(),
            json!({"size": 1_u64 << 30, "prefault": false})
        );
    }

    #[test]
    fn ferry_is_told_whole_paths() {
        let here = std::env::current_dir().unwrap();
        let there = here.join("x.sock");
        let fs = object("--fs", "socket=x.sock", FS).unwrap();
        assert_eq!(fs, json!({ "socket": there }));
        let serial = serial("socket=x.sock").unwrap();
        assert_eq!(serial, json!({ "mode": "Socket", "socket": there }));
    }

    #[test]
    fn what_has_not_the_form_is_refused_here() {
        assert_eq!(
            refused("--cpus", "boots=1", CPUS),
            "--cpus: there is no key `boots` (keys: boot, max)"
        );
        assert_eq!(
            refused("--cpus", "4", CPUS),
            "--cpus: there is no key `4` (keys: boot, max)"
        );
        assert_eq!(
            refused("--cpus", "boot=1,boot=1", CPUS),
            "--cpus: boot= is given twice"
        );
        assert_eq!(
            refused("--cpus", "boot=x", CPUS),
            "--cpus: boot=x is not a whole number"
        );
        assert_eq!(
            refused("--memory", "shared=yes", MEMORY),
            "--memory: shared=yes is neither on nor off"
        );
        assert_eq!(
            refused("--disk", "socket=\"/a", DISK),
            "--disk: a double quote is not closed"
        );
        for text in ["stdio", "file=", "tty=1", "", "off,null"] {
            assert!(serial(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_configuration_space_may_come_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let flag = format!("config=@{}", path.display());
        std::fs::write(&path, [3, 0, 255]).unwrap();
        assert_eq!(
            object("--vhost-user", &flag, VHOST_USER).unwrap(),
            json!({"config": "0300ff"})
        );
        std::fs::write(&path, [0; 257]).unwrap();
        assert!(refused("--vhost-user", &flag, VHOST_USER).ends_with("has more than 256 bytes"));
    }
}
