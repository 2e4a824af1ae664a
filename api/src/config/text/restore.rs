//! `--restore` and `--restore-socket`: a saved guest, and where its back-ends are now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{SyntaxError, split};
use crate::config::keys::{RESTORE, names};
use crate::config::validate::Fault;
use crate::snapshot::{MemoryMode, RestoreRequest, Start};
use crate::url;

/// A text that does not say how a guest is to be brought back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongRestore {
    /// It is not even `key=value`.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A key that there is not.
    #[error("there is no key `{key}` (keys: {known})", known = names(RESTORE).join(", "))]
    UnknownKey {
        /// What was written.
        key: String,
    },
    /// A key that stands there twice.
    #[error("{0}= is given twice")]
    RepeatedKey(String),
    /// A value that the key does not take, or that breaks a rule.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Not `ID=PATH`.
    #[error("`{0}` is not of the form ID=PATH")]
    Socket(String),
    /// A device whose socket is named twice.
    #[error("the socket of {0} is given twice")]
    RepeatedDevice(String),
}

impl FromStr for RestoreRequest {
    type Err = WrongRestore;

    /// `source_url=file:///D,memory_restore_mode=copy|ondemand|adopt,resume=on|off`, the guest paused if nothing is said.
    /// People type an absolute path for the URL as well. Sockets follow by [`RestoreRequest::add_socket`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut values = BTreeMap::new();
        for item in split(text)? {
            let Some(key) = RESTORE.iter().find(|key| key.name == item.key) else {
                return Err(WrongRestore::UnknownKey { key: item.key });
            };
            let value = item.value.unwrap_or_default();
            if value.is_empty() {
                return Err(Fault::value(key.name, "", "has no value").into());
            }
            if values.insert(key.name, value).is_some() {
                return Err(WrongRestore::RepeatedKey(item.key));
            }
        }
        let value = |key| values.get(key).map(String::as_str);
        // Taken and passed over: see `docs/snapshots.md`.
        switch("prefault", value("prefault"))?;
        Ok(RestoreRequest {
            source: source(value("source_url").ok_or(Fault::Missing("source_url"))?)?,
            memory: match value("memory_restore_mode") {
                None => MemoryMode::default(),
                Some(mode) => mode.parse()?,
            },
            start: match switch("resume", value("resume"))? {
                Some(true) => Start::Running,
                Some(false) => Start::Paused,
                None => Start::default(),
            },
            sockets: BTreeMap::new(),
            serial: None,
        })
    }
}

impl RestoreRequest {
    /// Takes one `ID=PATH`, the value of a `--restore-socket`.
    ///
    /// # Errors
    /// It has another form, its parts break the rules for ids and sockets, or one of them was there before.
    pub fn add_socket(&mut self, text: &str) -> Result<(), WrongRestore> {
        let Some((id, path)) = text.split_once('=') else {
            return Err(WrongRestore::Socket(text.to_owned()));
        };
        if id.is_empty() || path.is_empty() {
            return Err(WrongRestore::Socket(text.to_owned()));
        }
        let mut next = self.clone();
        if next.sockets.insert(id.to_owned(), path.into()).is_some() {
            return Err(WrongRestore::RepeatedDevice(id.to_owned()));
        }
        next.check()?;
        *self = next;
        Ok(())
    }
}

impl FromStr for MemoryMode {
    type Err = Fault;

    /// The API's word for it, also in lower case.
    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "Copy" | "copy" => Ok(MemoryMode::Copy),
            "OnDemand" | "ondemand" => Ok(MemoryMode::OnDemand),
            "Adopt" | "adopt" => Ok(MemoryMode::Adopt),
            other => Err(Fault::value(
                "memory_restore_mode",
                other,
                "is none of copy, ondemand and adopt",
            )),
        }
    }
}

fn source(text: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(text);
    if path.is_absolute() {
        return match text.contains('\0') {
            true => Err(Fault::value("source_url", text, "holds a zero byte")),
            false => Ok(path.to_owned()),
        };
    }
    url::path(text).map_err(|wrong| Fault::value("source_url", text, wrong.to_string()))
}

fn switch(key: &'static str, value: Option<&str>) -> Result<Option<bool>, Fault> {
    match value {
        None => Ok(None),
        Some("on" | "true") => Ok(Some(true)),
        Some("off" | "false") => Ok(Some(false)),
        Some(other) => Err(Fault::value(key, other, "is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(text: &str) -> RestoreRequest {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        text.parse::<RestoreRequest>().unwrap_err().to_string()
    }

    #[test]
    fn a_directory_is_enough() {
        let least = RestoreRequest {
            source: "/snap/a,b".into(),
            memory: MemoryMode::Copy,
            start: Start::Paused,
            sockets: BTreeMap::new(),
            serial: None,
        };
        assert_eq!(restore(r#"source_url="file:///snap/a,b""#), least);
        assert_eq!(restore("source_url=file:///snap/a%2cb"), least);
        assert_eq!(restore(r#"source_url="/snap/a,b""#), least);
        // In a path that is no URL, `%` is nothing special.
        let plain = restore("source_url=/snap/a%2cb");
        assert_eq!(plain.source, Path::new("/snap/a%2cb"));
    }

    #[test]
    fn everything_has_its_key() {
        let all = restore("resume=on,prefault=off,memory_restore_mode=ondemand,source_url=/s");
        assert_eq!(
            (all.memory, all.start),
            (MemoryMode::OnDemand, Start::Running)
        );
        let adopted = restore("source_url=/s,memory_restore_mode=Adopt,resume=off");
        assert_eq!(
            (adopted.memory, adopted.start),
            (MemoryMode::Adopt, Start::Paused)
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("", "the value is empty"),
            ("resume=on", "source_url= is missing"),
            ("source_url", "source_url= has no value"),
            ("source_url=/a,source_url=/b", "source_url= is given twice"),
            (
                "source_url=snap",
                "source_url=snap is no URL; write file:///directory",
            ),
            (
                "source_url=/s,resume=yes",
                "resume=yes is neither on nor off",
            ),
            (
                "source_url=/s,prefault=1",
                "prefault=1 is neither on nor off",
            ),
            (
                "source_url=/s,memory_restore_mode=lazy",
                "memory_restore_mode=lazy is none of copy, ondemand and adopt",
            ),
            (
                "source=/s",
                "there is no key `source` (keys: source_url, memory_restore_mode, resume, prefault)",
            ),
        ] {
            assert_eq!(refused(text), reason, "{text}");
        }
    }

    #[test]
    fn sockets_are_named_one_by_one() {
        let mut request = restore("source_url=/s");
        request.add_socket("fs0=/run/a=b").unwrap();
        request.add_socket("disk0=x.sock").unwrap();
        let before = request.clone();
        assert_eq!(request.sockets["fs0"], Path::new("/run/a=b"));
        let long = format!("d={}", "x".repeat(108));
        for (text, reason) in [
            ("fs1", "`fs1` is not of the form ID=PATH"),
            ("=/run/c", "`=/run/c` is not of the form ID=PATH"),
            ("fs1=", "`fs1=` is not of the form ID=PATH"),
            ("fs0=/run/c", "the socket of fs0 is given twice"),
            (
                "fs1=/run/a=b",
                "socket=/run/a=b is used twice: each device has its own back-end",
            ),
            (
                "a b=/run/c",
                "id=a b may hold letters, digits, `-`, `_`, `.` and `:`",
            ),
        ] {
            assert_eq!(request.add_socket(text).unwrap_err().to_string(), reason);
        }
        assert!(request.add_socket(&long).is_err());
        assert_eq!(request, before);
    }
}
