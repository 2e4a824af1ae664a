//! The versions of the protocol, and which of them this build speaks.

use std::fmt;

/// The oldest version of the protocol that is spoken.
pub const OLDEST: u16 = 1;
/// The newest version of the protocol that is spoken.
pub const NEWEST: u16 = 1;

/// The versions from one to another, as in "speaks …".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) oldest: u16,
    pub(super) newest: u16,
}

impl Versions {
    /// Those of this build. One that is made for tests can be told to be another one, as `FERRY_TEST_PROTOCOL=1-2`; it speaks the
    /// same under all numbers.
    pub(super) fn known() -> Self {
        #[cfg(debug_assertions)]
        if let Some(told) = std::env::var("FERRY_TEST_PROTOCOL")
            .ok()
            .and_then(|text| Self::parse(&text))
        {
            return told;
        }
        Versions {
            oldest: OLDEST,
            newest: NEWEST,
        }
    }

    #[cfg(debug_assertions)]
    fn parse(text: &str) -> Option<Self> {
        let (oldest, newest) = text.split_once('-')?;
        Some(Versions {
            oldest: oldest.parse().ok()?,
            newest: newest.parse().ok()?,
        })
    }

    /// The newest one that both have.
    pub(super) fn common(self, other: Versions) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    pub(super) fn contains(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "version {}", self.newest),
            false => write!(f, "versions {} to {}", self.oldest, self.newest),
        }
    }
}
