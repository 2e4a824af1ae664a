//! Watching work that takes long, and ending it.

/// Is told how far the work is, by several threads at once, and may end it.
pub trait Watch: Sync {
    /// Another `bytes` bytes are done; of RAM, holes included.
    fn done(&self, bytes: u64);

    /// Whether the work is to end as cancelled. Asked for every block, and while something is waited for.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing and never cancels.
pub struct Unwatched;

impl Watch for Unwatched {
    fn done(&self, _: u64) {}
}
