//! The frames of a migration, made right as far as that is possible: without it, no input gets past the first checksum.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64, xxh3_64_with_seed};

/// The attempt that everything is about.
pub const ATTEMPT: [u8; 16] = [0x5a; 16];
const HEADER: usize = 16;
const END: u8 = 9;

/// Who sends.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each target needs one of them")]
pub enum Side {
    Sender = 0,
    Receiver = 1,
}

/// Makes flags, lengths, checksums and the tally of an `End` right.
pub fn repair(bytes: &mut [u8], index: u16, from: Side) {
    let origin = [&ATTEMPT[..], &index.to_be_bytes(), &[from as u8]].concat();
    let mut seed = xxh3_64(&origin);
    let mut digest = Xxh3Default::new();
    let (mut at, mut frames) = (0, 0u64);
    while at + HEADER <= bytes.len() {
        let (header, rest) = bytes[at..].split_at_mut(HEADER);
        header[0] = 0;
        header[2..4].fill(0);
        header[4] = 0;
        header[5] &= 0x1f;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let length = length.min(rest.len());
        header[4..8].copy_from_slice(&(length as u32).to_be_bytes());
        let body = &mut rest[..length];
        if header[1] == END && length >= 16 {
            body[..8].copy_from_slice(&frames.to_be_bytes());
            body[8..16].copy_from_slice(&digest.digest().to_be_bytes());
        }
        let head = match header[1] {
            1 | 2 | 7 => length.min(8),
            _ => 0,
        };
        let rest = xxh3_64_with_seed(&[&header[..8], &body[..head]].concat(), seed);
        let checksum = xxh3_64_with_seed(&body[head..], rest);
        header[8..].copy_from_slice(&checksum.to_be_bytes());
        if header[1] != END {
            digest.update(header);
            frames += 1;
        }
        seed = seed.wrapping_add(1);
        at += HEADER + length;
    }
}

/// The 48 bytes that each side begins with: four numbers, the attempt, and a checksum.
pub fn introduction(numbers: [u16; 4]) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..8].copy_from_slice(b"\x89FLINK\r\n");
    for (place, number) in bytes[8..16].chunks_exact_mut(2).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    bytes[16..32].copy_from_slice(&ATTEMPT);
    let checksum = xxh3_64(&bytes[..40]);
    bytes[40..].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A new path for a socket of this process.
pub fn socket_path() -> std::path::PathBuf {
    let name = format!("ferry-fuzz-link-{}", std::process::id());
    std::env::temp_dir().join(name)
}
