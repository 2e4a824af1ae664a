//! Sizes as people write them.

/// Bytes in "512", "64K", "1M", "4G".
pub fn bytes(text: &str) -> u64 {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .unwrap_or_else(|_| panic!("{text} is not a size"));
    number << shift
}
