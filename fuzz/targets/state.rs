//! The container of saved state.
//!
//! Whatever the bytes are, reading them ends without a panic; what is taken as a whole stream can be written and read
//! again. So that the fuzzer gets past the checksums, the bytes are tried as they are, and again with
//! checksums and digests made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_migration::ram::BlockSums;
use vm_migration::stream::{Error, Form, Label, StreamReader, StreamSummary, StreamWriter};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let _ = read(&bytes);
    repair(&mut bytes);
    if let Ok((summary, sections)) = read(&bytes) {
        // Frames may end elsewhere.
        let (_, again) = read(&write(&summary, &sections)).expect("it was written");
        assert_eq!(again, sections);
    }
    read_values(&bytes);
});

/// A section and its data.
#[derive(Debug, PartialEq)]
struct Section {
    label: Label,
    data: Vec<u8>,
}

fn read(bytes: &[u8]) -> Result<(StreamSummary, Vec<Section>), Error> {
    let mut stream = StreamReader::new(bytes)?;
    let mut sections = Vec::new();
    while let Some(mut section) = stream.next_section()? {
        let label = section.label().clone();
        let data = section.read_all(bytes.len())?;
        assert_eq!(section.finish()?.bytes, data.len() as u64);
        sections.push(Section { label, data });
    }
    let (rest, summary) = stream.finish()?;
    assert_eq!(summary.bytes as usize, bytes.len() - rest.len());
    Ok((summary, sections))
}

fn write(summary: &StreamSummary, sections: &[Section]) -> Vec<u8> {
    let mut stream = StreamWriter::new(Vec::new(), summary.id).expect("a Vec takes all");
    for section in sections {
        let mut writer = stream.begin(section.label.clone()).expect("it was read");
        writer.append(&section.data).expect("a Vec takes all");
        writer.finish().expect("a Vec takes all");
    }
    stream.finish().expect("a Vec takes all").0
}

/// Reads the sections as what they say to hold.
fn read_values(bytes: &[u8]) {
    let Ok(mut stream) = StreamReader::new(bytes) else {
        return;
    };
    while let Ok(Some(section)) = stream.next_section() {
        let read = match section.label().form {
            Form::Blocks => BlockSums::read(section, 3 << 20).map(drop),
            _ => section.skip().map(drop),
        };
        if read.is_err() {
            return;
        }
    }
}

/// Makes every checksum and digest right that can be reached.
fn repair(bytes: &mut [u8]) -> Option<()> {
    let put = |bytes: &mut [u8], at: usize, value: u64| {
        let place = bytes.get_mut(at..at + 8)?;
        place.copy_from_slice(&value.to_be_bytes());
        Some(())
    };
    let header = xxh3_64(bytes.get(..32)?);
    put(bytes, 32, header)?;
    let mut whole = Xxh3Default::new();
    whole.update(&bytes[..40]);
    let (mut at, mut sections) = (40, 0u32);
    while bytes.get(at..at + 4)? == b"SECT" {
        let head = at;
        let texts = usize::from(*bytes.get(at + 5)?) + usize::from(*bytes.get(at + 6)?);
        at += 12 + texts;
        let checksum = xxh3_64(bytes.get(head..at)?);
        put(bytes, at, checksum)?;
        at += 8;
        let mut digest = Xxh3Default::new();
        digest.update(&bytes[head..at]);
        let mut total = 0u64;
        loop {
            let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
            if length == 0 {
                break;
            }
            let end = at + 12 + length as usize;
            let checksum = xxh3_64(bytes.get(at + 12..end)?);
            put(bytes, at + 4, checksum)?;
            digest.update(&bytes[at..at + 12]);
            total += u64::from(length);
            at = end;
        }
        digest.update(&total.to_be_bytes());
        put(bytes, at + 4, total)?;
        put(bytes, at + 12, digest.digest())?;
        whole.update(&digest.digest().to_be_bytes());
        at += 20;
        sections += 1;
    }
    whole.update(&sections.to_be_bytes());
    whole.update(&(at as u64).to_be_bytes());
    bytes
        .get_mut(at + 4..at + 8)?
        .copy_from_slice(&sections.to_be_bytes());
    put(bytes, at + 8, at as u64)?;
    put(bytes, at + 16, whole.digest())
}
