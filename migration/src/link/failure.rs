//! Why a side gave up, as it tells the other: a chain of errors, in texts of bounded size.

use std::fmt;

use super::error::Violation;
use super::order::Kind;

/// The most texts in a chain.
pub const FAILURE_TEXTS_MOST: usize = 16;
/// The longest text, in bytes.
pub const FAILURE_TEXT_MOST: usize = 1024;
/// The most bytes on the wire.
pub(super) const FAILURE_MOST: usize = FAILURE_TEXTS_MOST * (2 + FAILURE_TEXT_MOST);

/// A chain of reasons, outermost first. It is an error with the next one as its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    text: String,
    source: Option<Box<Failure>>,
}

impl Failure {
    /// Of texts, outermost first; what is too much is cut off.
    pub fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let texts: Vec<String> = texts
            .into_iter()
            .take(FAILURE_TEXTS_MOST)
            .map(|text| cut(text.as_ref()))
            .collect();
        Self::of_bounded(texts)
    }

    /// Of an error and its sources.
    pub fn of(error: &dyn std::error::Error) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        Self::new(chain.map(|error| error.to_string()))
    }

    fn of_bounded(texts: Vec<String>) -> Self {
        let chain = texts.into_iter().rev().fold(None, |source, text| {
            Some(Failure {
                text,
                source: source.map(Box::new),
            })
        });
        chain.unwrap_or_else(|| Failure {
            text: "no reason was given".to_owned(),
            source: None,
        })
    }

    /// The texts, outermost first.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(self), |failure| failure.source.as_deref())
            .map(|failure| failure.text.as_str())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in self.texts() {
            bytes.extend((text.len() as u16).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Violation> {
        let wrong = |reason| Violation::content(Kind::Failed, reason);
        let mut texts = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > FAILURE_TEXT_MOST || texts.len() == FAILURE_TEXTS_MOST {
                return Err(wrong("it has too much text"));
            }
            let (text, rest) = rest
                .split_at_checked(length)
                .ok_or(wrong("a text is cut off"))?;
            let text = std::str::from_utf8(text).map_err(|_| wrong("a text is not UTF-8"))?;
            // It ends up in terminals.
            texts.push(text.replace(|c: char| c.is_control(), " "));
            bytes = rest;
        }
        match bytes.is_empty() {
            true => Ok(Self::of_bounded(texts)),
            false => Err(wrong("a length is cut off")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|failure| failure as _)
    }
}

/// As much of a text as one can have.
fn cut(text: &str) -> String {
    const MORE: &str = " ...";
    match text.len() {
        0..=FAILURE_TEXT_MOST => text.to_owned(),
        _ => text[..text.floor_char_boundary(FAILURE_TEXT_MOST - MORE.len())].to_owned() + MORE,
    }
}
