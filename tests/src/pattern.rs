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

/// A part of an endless stream of bytes, from byte `offset` of it on: what a back-end's state consists of in tests.
/// Two seeds' streams differ everywhere, and so do two places of one.
pub fn stream(seed: u32, offset: u64, part: &mut [u8]) {
    let mut at = offset;
    let mut rest = part;
    while !rest.is_empty() {
        let word = word_of_stream(seed, at / 8).to_le_bytes();
        let word = &word[(at % 8) as usize..];
        let count = word.len().min(rest.len());
        let (head, tail) = rest.split_at_mut(count);
        head.copy_from_slice(&word[..count]);
        at += count as u64;
        rest = tail;
    }
}

fn word_of_stream(seed: u32, number: u64) -> u64 {
    let x = (number ^ u64::from(seed) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_stream_fit_together_at_any_seam() {
        let mut whole = vec![0; 4099];
        stream(7, 0, &mut whole);
        for cut in [0, 1, 7, 8, 9, 4096, 4098] {
            let mut end = vec![0; whole.len() - cut];
            stream(7, cut as u64, &mut end);
            assert_eq!(end, whole[cut..], "from {cut}");
        }
        let mut other = vec![0; 4099];
        stream(8, 0, &mut other);
        assert_ne!(other[..16], whole[..16]);
    }
}
