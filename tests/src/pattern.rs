//! Contents that name themselves, as the tiny guest writes them (`guest/pattern.c`).

const MAGIC: u32 = 0x5952_5246;

/// A numbered, checksummed block of `bytes` bytes.
pub fn block(bytes: usize, seed: u32, number: u32) -> Vec<u8> {
    let next = seed
        .wrapping_mul(0x85eb_ca6b)
        .wrapping_add(number.wrapping_mul(0x9e37_79b9));
    let count = bytes / 4;
    let mut words = vec![MAGIC, seed, number];
    words.extend((3..count as u32 - 1).map(|i| mix(next.wrapping_add(i))));
    let sum = words.iter().fold(0, |sum, word| fold(sum, *word));
    words.push(sum);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Blocks number 0 to `count` - 1, one behind the other.
pub fn blocks(bytes: usize, seed: u32, count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|number| block(bytes, seed, number))
        .collect()
}

fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^ (x >> 15)
}

fn fold(sum: u32, word: u32) -> u32 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b1)
}
