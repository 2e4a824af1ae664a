//! `file:` URLs (RFC 8089), by which clients name the directories of snapshots.
//!
//! Only `%` is special in the path: other monitors take `?` and `#` as they stand, and so do their scripts.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A URL that names no directory here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongUrl {
    /// It is a path, or nothing at all.
    #[error("is no URL; write file:///directory")]
    NoUrl,
    /// Another kind of URL.
    #[error("is not a file: URL, and snapshots are kept in directories; write file:///directory")]
    Scheme,
    /// It names another host.
    #[error("names a host; write file:///directory, with three slashes")]
    Host,
    /// There is no path, or a relative one.
    #[error("holds no absolute path; write file:///directory")]
    Relative,
    /// What follows a `%` is not what should.
    #[error("holds a `%` without two hexadecimal digits after it; a `%` itself is written %25")]
    Escape,
    /// The path could not be given to the system.
    #[error("holds a zero byte")]
    Zero,
}

/// The path in a `file:` URL: `file:///dir`, `file://localhost/dir`, `file:/dir`.
///
/// # Errors
/// It is none of these.
pub fn path(url: &str) -> Result<PathBuf, WrongUrl> {
    let (scheme, rest) = url.split_once(':').ok_or(WrongUrl::NoUrl)?;
    if scheme.is_empty() || scheme.contains('/') {
        return Err(WrongUrl::NoUrl);
    }
    if !scheme.eq_ignore_ascii_case("file") {
        return Err(WrongUrl::Scheme);
    }
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => match rest.find('/').map(|at| rest.split_at(at)) {
            Some(("", path)) => path,
            Some((host, path)) if host.eq_ignore_ascii_case("localhost") => path,
            None if rest.is_empty() => rest,
            _ => return Err(WrongUrl::Host),
        },
    };
    if !path.starts_with('/') {
        return Err(WrongUrl::Relative);
    }
    let bytes = decode(path).ok_or(WrongUrl::Escape)?;
    match bytes.contains(&0) {
        true => Err(WrongUrl::Zero),
        false => Ok(OsString::from_vec(bytes).into()),
    }
}

/// The URL of an absolute path. [`path`] makes the same path of it, also of one that is not UTF-8.
pub fn of(path: &Path) -> String {
    let mut url = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                url.push(char::from(*byte));
            }
            _ => url += &format!("%{byte:02X}"),
        }
    }
    url
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => u8::try_from(digit(rest.next())? << 4 | digit(rest.next())?).ok()?,
            byte => byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn directories_are_named_in_several_ways() {
        for (url, directory) in [
            ("file:///dir", "/dir"),
            ("file://localhost/dir/", "/dir/"),
            ("FILE://LOCALHOST/dir", "/dir"),
            ("file:/dir", "/dir"),
            ("file:///a%20b%25c%2fd", "/a b%c/d"),
            ("file:///é?x#y+z", "/é?x#y+z"),
            ("file:///C:/dir", "/C:/dir"),
        ] {
            assert_eq!(path(url), Ok(directory.into()), "{url}");
        }
    }

    #[test]
    fn what_names_no_directory_is_told_why() {
        for (url, reason) in [
            ("", WrongUrl::NoUrl),
            ("/dir", WrongUrl::NoUrl),
            ("dir", WrongUrl::NoUrl),
            ("/a:b", WrongUrl::NoUrl),
            ("://x", WrongUrl::NoUrl),
            ("http://localhost/dir", WrongUrl::Scheme),
            ("unix:/dir", WrongUrl::Scheme),
            ("file://dir", WrongUrl::Host),
            ("file://dir/dir", WrongUrl::Host),
            ("file:", WrongUrl::Relative),
            ("file://", WrongUrl::Relative),
            ("file:dir", WrongUrl::Relative),
            ("file:///%", WrongUrl::Escape),
            ("file:///%4", WrongUrl::Escape),
            ("file:///%+4", WrongUrl::Escape),
            ("file:///a%00", WrongUrl::Zero),
        ] {
            assert_eq!(path(url), Err(reason), "{url}");
        }
    }

    proptest! {
        #[test]
        fn every_path_comes_back(name in prop::collection::vec(1_u8.., 0..40)) {
            let whole: PathBuf = OsString::from_vec([b"/", &name[..]].concat()).into();
            let url = of(&whole);
            prop_assert!(url.is_ascii());
            prop_assert_eq!(path(&url), Ok(whole));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(file:(//)?)?.*") {
            if let Ok(path) = path(&text) {
                prop_assert!(path.is_absolute());
            }
        }
    }
}
