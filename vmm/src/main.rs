//! Ferry.
fn main() {}
