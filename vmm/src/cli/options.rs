//! The value of a flag such as `--disk`: `key=value,key=value`.
//!
//! - Double quotes take commas and brackets into a value: `socket="/tmp/a,b"`. The quotes
//!   themselves go away.
//! - Brackets make a list: `drain=[0,1]`.
//! - A key stands there once. Which keys there are is known before the text is looked at, so that a
//!   misspelt one is named and not ignored.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ferry_api::config::keys::{self, Key};
use ferry_api::config::text::{Item, size, split, whole_number};
use ferry_api::config::validate::Fault;

use super::error::{Problem, UsageError};

/// The pairs of one flag's value, taken out key by key.
#[derive(Debug)]
pub struct Options {
    flag: &'static str,
    pairs: Vec<Pair>,
}

#[derive(Debug)]
struct Pair {
    key: &'static str,
    value: String,
}

impl Options {
    /// Splits `text`, which may hold each of the keys in `known` once.
    pub fn parse(flag: &'static str, text: &str, known: &[Key]) -> Result<Self, UsageError> {
        let mut options = Self {
            flag,
            pairs: Vec::new(),
        };
        for item in split(text).map_err(|error| options.error(error.into()))? {
            options.add(item, known)?;
        }
        Ok(options)
    }

    /// What a rule of [`ferry_api::config::validate`] has found, in this flag's words.
    pub fn fault(&self, fault: Fault) -> UsageError {
        self.error(fault.into())
    }

    fn add(&mut self, item: Item, known: &[Key]) -> Result<(), UsageError> {
        let known = keys::names(known);
        let Some(&key) = known.iter().find(|known| **known == item.key) else {
            let problem = Problem::UnknownKey {
                key: item.key,
                known: known.join(", "),
            };
            return Err(self.error(problem));
        };
        let Some(value) = item.value else {
            let problem = Problem::Syntax(format!("`{key}` has no value; write {key}=…"));
            return Err(self.error(problem));
        };
        if self.pairs.iter().any(|pair| pair.key == key) {
            return Err(self.error(Problem::RepeatedKey(key)));
        }
        self.pairs.push(Pair { key, value });
        Ok(())
    }

    /// A problem with this flag.
    pub fn error(&self, problem: Problem) -> UsageError {
        UsageError::new(self.flag, problem)
    }

    /// `value` is not one that `key` takes: the reason goes on from "key=value …".
    pub fn bad(
        &self,
        key: &'static str,
        value: impl fmt::Display,
        reason: impl Into<String>,
    ) -> UsageError {
        self.error(Problem::Value {
            key,
            value: value.to_string(),
            reason: reason.into(),
        })
    }

    /// Takes the text of `key`, which is never empty.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, UsageError> {
        let Some(index) = self.pairs.iter().position(|pair| pair.key == key) else {
            return Ok(None);
        };
        let pair = self.pairs.swap_remove(index);
        if pair.value.is_empty() {
            return Err(self.bad(key, "", "has no value"));
        }
        Ok(Some(pair.value))
    }

    /// Takes the text of `key`, which has to be there.
    pub fn required(&mut self, key: &'static str) -> Result<String, UsageError> {
        self.text(key)?
            .ok_or_else(|| self.error(Problem::MissingKey(key)))
    }

    /// Takes `on` or `off` (also `true` or `false`).
    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, UsageError> {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        match value.as_str() {
            "on" | "true" => Ok(Some(true)),
            "off" | "false" => Ok(Some(false)),
            _ => Err(self.bad(key, value, "is neither on nor off")),
        }
    }

    /// Takes a decimal number, or one in base 16 after `0x`.
    pub fn number<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, UsageError>
    where
        T: TryFrom<u64> + PartialOrd + fmt::Display,
    {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        let Some(number) = whole_number(&value) else {
            return Err(self.bad(key, value, "is not a whole number"));
        };
        match T::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let reason = format!("is not within {} and {}", range.start(), range.end());
                Err(self.bad(key, value, reason))
            }
        }
    }

    /// Takes a number of bytes: `512M`, `2G`, `65536`.
    pub fn size(&mut self, key: &'static str) -> Result<Option<u64>, UsageError> {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        match size(&value) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(self.bad(
                key,
                value,
                "is not a size; write bytes, or a whole number with K, M, G or T",
            )),
        }
    }

    /// Takes a list of numbers in brackets; a single number may stand without them.
    pub fn list<T: FromStr>(&mut self, key: &'static str) -> Result<Option<Vec<T>>, UsageError> {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        let inner = match value.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']'),
            None => Some(value.as_str()),
        };
        let numbers: Option<Vec<T>> = match inner.map(str::trim) {
            Some("") => Some(Vec::new()),
            Some(inner) => inner
                .split(',')
                .map(|item| item.trim().parse().ok())
                .collect(),
            None => None,
        };
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.bad(key, value, "is not a list of numbers such as [0,1]")),
        }
    }
}
