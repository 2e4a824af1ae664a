use std::cmp::min;

use proptest::prelude::*;

use super::*;

const NO_CAP: u64 = u64::MAX;

fn written(parts: &[&[u8]]) -> Finished<Vec<u8>> {
    let mut writer = ChunkWriter::new(Vec::new(), NO_CAP);
    for part in parts {
        writer.append(part).unwrap();
    }
    writer.finish().unwrap()
}

fn read_back(bytes: &[u8]) -> Result<(Vec<u8>, Totals), Error> {
    let mut reader = ChunkReader::new(bytes, NO_CAP);
    let mut buffer = vec![0; 70_000];
    let mut state = Vec::new();
    while let Some(data) = reader.next(&mut buffer)? {
        state.extend_from_slice(data);
    }
    let end = reader.finish()?;
    assert!(end.inner.is_empty());
    Ok((state, end.totals))
}

/// Gives and takes one to three bytes at a time and is interrupted before each.
struct Bumpy<T> {
    inner: T,
    step: usize,
}

impl<T> Bumpy<T> {
    fn step(&mut self, length: usize) -> io::Result<usize> {
        self.step += 1;
        match self.step % 2 {
            1 => Err(ErrorKind::Interrupted.into()),
            _ => Ok(min(length, 1 + self.step % 3)),
        }
    }
}

impl<R: Read> Read for Bumpy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.step(buffer.len())?;
        self.inner.read(&mut buffer[..length])
    }
}

impl<W: Write> Write for Bumpy<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = self.step(data.len())?;
        self.inner.write(&data[..length])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[test]
fn states_of_all_sizes_come_back_whole() {
    for size in [
        0,
        1,
        CHUNK_MOST - 1,
        CHUNK_MOST,
        CHUNK_MOST + 1,
        3 * CHUNK_MOST,
    ] {
        let state: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
        let end = written(&[&state]);
        assert_eq!(
            end.inner.len(),
            size + 4 * size.div_ceil(CHUNK_MOST) + 4,
            "{size} bytes"
        );
        let (back, totals) = read_back(&end.inner).unwrap();
        assert!(back == state, "{size} bytes");
        assert_eq!(totals, end.totals);
        assert_eq!(totals.bytes, size as u64);
    }
}

#[test]
fn an_empty_state_is_four_zero_bytes() {
    assert_eq!(written(&[]).inner, [0; 4]);
    assert_eq!(written(&[b"", b""]).inner, [0; 4]);
    assert_eq!(
        written(&[b"ab", b"", b"c"]).inner,
        *b"\0\0\0\x02ab\0\0\0\x01c\0\0\0\0"
    );
}

#[test]
fn a_state_without_its_end_is_an_error_however_often_one_asks() {
    let bytes = written(&[b"some state", b"and more"]).inner;
    for length in 0..bytes.len() {
        let mut reader = ChunkReader::new(&bytes[..length], NO_CAP);
        let mut buffer = [0; 64];
        let error = loop {
            match reader.next(&mut buffer) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{length} bytes of {} are a whole state", bytes.len()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Truncated { .. }), "{error}");
        assert!(matches!(reader.next(&mut buffer), Err(Error::Failed)));
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
        assert!(matches!(reader.finish(), Err(Error::Failed)));
    }
}

#[test]
fn an_error_of_the_input_is_not_the_end() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::TimedOut.into())
        }
    }
    let bytes = written(&[b"state"]).inner;
    for good in 0..bytes.len() {
        let mut state = Vec::new();
        let error = ChunkReader::new(bytes[..good].chain(Broken), NO_CAP)
            .read_to_end(&mut state)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "after {good} bytes");
    }
}

#[test]
fn a_chunk_that_is_too_long_is_refused_by_its_length() {
    for length in [CHUNK_MOST as u32 + 1, u32::MAX] {
        let bytes = length.to_be_bytes();
        let mut reader = ChunkReader::new(&bytes[..], NO_CAP);
        let error = reader.next(&mut [0; 8]).unwrap_err();
        assert!(matches!(error, Error::ChunkTooLong { length: l } if l == length));
    }
}

#[test]
fn the_cap_holds_on_both_sides() {
    let mut writer = ChunkWriter::new(Vec::new(), 4);
    writer.append(b"abcd").unwrap();
    assert!(matches!(
        writer.append(b"e"),
        Err(Error::TooMuch { most: 4 })
    ));
    assert!(matches!(writer.finish(), Err(Error::Failed)));

    let bytes = written(&[b"abcd", b"e"]).inner;
    let mut reader = ChunkReader::new(&bytes[..], 4);
    let mut buffer = [0; 64];
    assert_eq!(reader.next(&mut buffer).unwrap(), Some(&b"abcd"[..]));
    assert!(matches!(
        reader.next(&mut buffer),
        Err(Error::TooMuch { most: 4 })
    ));
}

#[test]
fn a_state_whose_output_failed_cannot_be_ended() {
    let mut short = [0; 6];
    let mut writer = ChunkWriter::new(&mut short[..], NO_CAP);
    assert!(matches!(
        writer.append(b"state"),
        Err(Error::Write { after: 0, .. })
    ));
    assert!(matches!(writer.append(b""), Err(Error::Failed)));
    assert!(matches!(writer.finish(), Err(Error::Failed)));
}

#[test]
fn a_state_that_was_not_read_to_its_end_has_no_totals() {
    let bytes = written(&[b"state"]).inner;
    let mut reader = ChunkReader::new(&bytes[..], NO_CAP);
    reader.next(&mut [0; 64]).unwrap();
    assert!(matches!(reader.finish(), Err(Error::NotAtEnd { after: 5 })));
}

proptest! {
    #[test]
    fn what_was_written_is_read_through_a_bumpy_channel(parts: Vec<Vec<u8>>, buffer in 1usize..50) {
        let mut writer = ChunkWriter::new(Bumpy { inner: Vec::new(), step: 0 }, NO_CAP);
        for part in &parts {
            writer.append(part).unwrap();
        }
        let written = writer.finish().unwrap();
        let mut reader = ChunkReader::new(Bumpy { inner: &written.inner.inner[..], step: 0 }, NO_CAP);
        let mut state = Vec::new();
        let mut buffer = vec![0; buffer];
        while let Some(data) = reader.next(&mut buffer).unwrap() {
            prop_assert!(!data.is_empty());
            state.extend_from_slice(data);
        }
        prop_assert_eq!(&state, &parts.concat());
        let read = reader.finish().unwrap();
        prop_assert_eq!(read.totals, written.totals);
        prop_assert!(read.inner.inner.is_empty());
    }

    #[test]
    fn made_up_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok((state, totals)) = read_back_any(&bytes) {
            prop_assert_eq!(state.len() as u64, totals.bytes);
        }
    }
}

fn read_back_any(bytes: &[u8]) -> Result<(Vec<u8>, Totals), Error> {
    let mut reader = ChunkReader::new(bytes, NO_CAP);
    let mut state = Vec::new();
    let mut buffer = [0; 16];
    while let Some(data) = reader.next(&mut buffer)? {
        state.extend_from_slice(data);
    }
    Ok((state, reader.finish()?.totals))
}
