//! Configuration as text: `key=value,key=value`.
//!
//! - Double quotes take commas and brackets into a value: `socket="/tmp/a,b"`. The quotes themselves go away.
//! - Brackets make a list: `drain=[0,1]`.

mod restore;

use std::str::FromStr;

pub use restore::WrongRestore;

use super::SerialConfig;

/// A text that is not of the form `key=value,key=value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SyntaxError(&'static str);

/// One `key=value`, still without meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// What stands before the first `=`.
    pub key: String,
    /// What stands after it, without quotes; absent if there is no `=`.
    pub value: Option<String>,
}

impl Item {
    fn push(&mut self, character: char) {
        match &mut self.value {
            Some(value) => value.push(character),
            None => self.key.push(character),
        }
    }
}

/// Splits at the commas that stand outside of quotes and brackets.
pub fn split(text: &str) -> Result<Vec<Item>, SyntaxError> {
    let mut items = Vec::new();
    let mut item = Item::default();
    let mut quoted = false;
    let mut depth = 0_u32;
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted && depth == 0 => items.push(std::mem::take(&mut item)),
            '=' if !quoted && item.value.is_none() => item.value = Some(String::new()),
            _ => {
                if !quoted && character == '[' {
                    depth += 1;
                } else if !quoted && character == ']' {
                    depth = depth
                        .checked_sub(1)
                        .ok_or(SyntaxError("a `]` has no `[` before it"))?;
                }
                item.push(character);
            }
        }
    }
    items.push(item);
    if quoted {
        return Err(SyntaxError("a double quote is not closed"));
    }
    if depth > 0 {
        return Err(SyntaxError("a `[` is not closed"));
    }
    if items.iter().any(|item| item.key.is_empty()) {
        return Err(SyntaxError(match text {
            "" => "the value is empty",
            _ => "a key is missing before `=`, or between two commas, or after the last one",
        }));
    }
    Ok(items)
}

/// A text that names no place for a serial port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongSerial {
    /// It is not even `key=value`.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// It is none of the forms.
    #[error("there is no `{0}`; write one of off, null, tty, pty, file=PATH, socket=PATH")]
    Other(String),
}

impl FromStr for SerialConfig {
    type Err = WrongSerial;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut items = split(text)?;
        let item = items.pop().unwrap_or_default();
        let serial = match (item.key.as_str(), item.value) {
            _ if !items.is_empty() => None,
            ("off", None) => Some(SerialConfig::Off),
            ("null", None) => Some(SerialConfig::Null),
            ("tty", None) => Some(SerialConfig::Tty),
            ("pty", None) => Some(SerialConfig::Pty),
            ("file", Some(path)) if !path.is_empty() => Some(SerialConfig::File(path.into())),
            ("socket", Some(path)) if !path.is_empty() => Some(SerialConfig::Socket(path.into())),
            _ => None,
        };
        serial.ok_or_else(|| WrongSerial::Other(text.to_owned()))
    }
}

/// A number without sign, decimal or in base 16 after `0x`.
pub fn whole_number(text: &str) -> Option<u64> {
    let (digits, base) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    u64::from_str_radix(digits, base).ok()
}

/// A number of bytes, with the suffix K, M, G or T (powers of 1024, also in lower case).
pub fn size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    whole_number(digits)?.checked_mul(1 << shift)
}

/// Bytes from pairs of hexadecimal digits.
pub fn hex(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::try_from(nibble(pair[0])? << 4 | nibble(pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_port_is_a_word_or_a_word_with_a_path() {
        assert_eq!("off".parse(), Ok(SerialConfig::Off));
        assert_eq!("null".parse(), Ok(SerialConfig::Null));
        assert_eq!("tty".parse(), Ok(SerialConfig::Tty));
        assert_eq!("pty".parse(), Ok(SerialConfig::Pty));
        assert_eq!("file=/a".parse(), Ok(SerialConfig::File("/a".into())));
        let quoted = r#"socket="/a,b""#.parse();
        assert_eq!(quoted, Ok(SerialConfig::Socket("/a,b".into())));
        for wrong in [
            "", "stdio", "tty=1", "file", "file=", "socket=", "off,null", "\"off",
        ] {
            assert!(wrong.parse::<SerialConfig>().is_err(), "{wrong}");
        }
    }
}
