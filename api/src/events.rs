//! What happens to a virtual machine, as events for those who watch it.
//!
//! One [`EventLog`] takes events from whoever has some, without ever waiting: it keeps the last few for clients that ask
//! for them, and hands each to a thread of its own that writes them to the event monitor, one JSON object per line. A
//! monitor that does not read loses events, and is told how many.

use std::collections::BTreeMap;

/// What an event tells beyond its name.
pub type Properties = BTreeMap<String, String>;
