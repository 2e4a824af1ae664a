use std::io::{Read, Write};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

const ID: StreamId = StreamId(*b"0123456789abcdef");

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ClockStateV1 {
    ticks: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ClockState {
    ticks: u64,
    hertz: u32,
}

impl Saved for ClockStateV1 {
    const SCHEMA: &'static str = "clock";
    const VERSION: u16 = 1;
    const MOST: usize = 10;
}

impl Saved for ClockState {
    const SCHEMA: &'static str = "clock";
    const VERSION: u16 = 2;

    fn read(version: u16, bytes: &[u8]) -> Result<Self, DecodeError> {
        match version {
            2 => decode(bytes),
            1 => decode(bytes).map(|old: ClockStateV1| ClockState {
                ticks: old.ticks,
                hertz: 1000,
            }),
            _ => Err(DecodeError::Version {
                found: version,
                newest: Self::VERSION,
            }),
        }
    }
}

fn clock(ticks: u64) -> ClockState {
    ClockState { ticks, hertz: 7 }
}

fn label(name: &str, form: Form) -> Label {
    Label {
        name: name.into(),
        form,
        schema: "test".into(),
        version: 3,
    }
}

fn writer() -> StreamWriter<Vec<u8>> {
    StreamWriter::new(Vec::new(), ID).unwrap()
}

fn end(writer: StreamWriter<Vec<u8>>) -> Vec<u8> {
    let (bytes, summary) = writer.finish().unwrap();
    assert_eq!(summary.bytes, bytes.len() as u64);
    bytes
}

/// Two values and the state of a back-end between them.
fn sample() -> Vec<u8> {
    let mut stream = writer();
    stream.save("__clock", &clock(1)).unwrap();
    let totals = stream
        .save_chunks::<Error>(label("fs0/back-end", Form::Chunks), 100, |append| {
            append(b"inodes")?;
            append(b" and handles")
        })
        .unwrap();
    assert_eq!(totals.bytes, 18);
    stream.save("fs0", &clock(2)).unwrap();
    end(stream)
}

/// Reads what [`sample`] writes.
fn read_sample(bytes: &[u8]) -> Result<StreamSummary, Error> {
    let mut stream = StreamReader::new(bytes)?;
    assert_eq!(stream.id(), ID);
    assert_eq!(stream.load::<ClockState>("__clock")?, clock(1));
    let mut state = Vec::new();
    stream
        .section("fs0/back-end")?
        .load_chunks::<Error>("test", 100, |data| {
            state.extend_from_slice(data);
            Ok(())
        })?;
    assert_eq!(state, b"inodes and handles");
    assert_eq!(stream.load::<ClockState>("fs0")?, clock(2));
    let (rest, summary) = stream.finish()?;
    assert!(rest.is_empty());
    Ok(summary)
}

/// What `verify` does.
fn skip_all(bytes: &[u8]) -> Result<StreamSummary, Error> {
    let mut stream = StreamReader::new(bytes)?;
    while let Some(section) = stream.next_section()? {
        section.skip()?;
    }
    Ok(stream.finish()?.1)
}

fn place(error: &Error) -> String {
    error.place.to_string()
}

#[test]
fn what_was_written_is_read() {
    let bytes = sample();
    let summary = read_sample(&bytes).unwrap();
    assert_eq!(summary, skip_all(&bytes).unwrap());
    let names: Vec<_> = summary.sections.iter().map(|s| &s.label.name).collect();
    assert_eq!(names, ["__clock", "fs0/back-end", "fs0"]);
    assert_eq!(summary.bytes, bytes.len() as u64);
    for section in &summary.sections {
        assert_eq!(bytes[section.offset as usize..][..4], *b"SECT");
    }
}

#[test]
fn a_stream_cut_off_anywhere_is_refused_with_the_place() {
    let bytes = sample();
    let whole = read_sample(&bytes).unwrap();
    for length in 0..bytes.len() {
        let error = read_sample(&bytes[..length]).unwrap_err();
        assert!(skip_all(&bytes[..length]).is_err());
        let section = whole
            .sections
            .iter()
            .rev()
            .find(|section| section.offset <= length as u64);
        let name = section.map_or("header", |section| section.label.name.as_str());
        assert!(
            place(&error).contains(name),
            "{length}: {error}, not {name}"
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let mut bytes = sample();
    for at in 0..bytes.len() * 8 {
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(read_sample(&bytes).is_err(), "bit {at}");
        let error = skip_all(&bytes).unwrap_err();
        assert!(place(&error).contains("saved state"), "bit {at}: {error}");
        bytes[at / 8] ^= 1 << (at % 8);
    }
    read_sample(&bytes).unwrap();
}

#[test]
fn sections_that_do_not_fit_are_named() {
    let read = |bytes: &[u8], name: &str| {
        let mut stream = StreamReader::new(bytes).unwrap();
        stream.load::<ClockState>(name).map(drop).unwrap_err()
    };
    let error = read(&sample(), "__irqchip");
    assert!(place(&error).contains("__irqchip"));
    assert!(matches!(error.cause, Cause::OutOfOrder { found } if found == "__clock"));

    let error = read(&end(writer()), "__clock");
    assert!(place(&error).contains("__clock"));
    assert!(matches!(error.cause, Cause::Missing));

    let bytes = sample();
    let mut stream = StreamReader::new(&bytes[..]).unwrap();
    stream.load::<ClockState>("__clock").unwrap();
    let error = stream.finish().map(drop).unwrap_err();
    assert!(place(&error).contains("fs0/back-end"));
    assert!(matches!(error.cause, Cause::Unknown));
}

#[test]
fn a_second_section_of_a_name_is_neither_written_nor_read() {
    let mut stream = writer();
    stream.save("fs0", &clock(1)).unwrap();
    let error = stream.save("fs0", &clock(2)).unwrap_err();
    assert!(place(&error).contains("fs0"));
    assert!(matches!(error.cause, Cause::Duplicate));
    assert!(stream.finish().is_err());

    // The same section again, by hand.
    let mut stream = writer();
    stream.save("fs0", &clock(1)).unwrap();
    let (mut bytes, summary) = stream.finish().unwrap();
    bytes.truncate(bytes.len() - format::END);
    let again = bytes[summary.sections[0].offset as usize..].to_vec();
    bytes.extend(again);
    let error = skip_all(&bytes).unwrap_err();
    assert!(place(&error).contains("fs0"));
    assert!(matches!(error.cause, Cause::Duplicate));
}

#[test]
fn versions_n_and_n_minus_1_are_read_and_no_others() {
    let saved = |state: &dyn Fn(&mut StreamWriter<Vec<u8>>)| {
        let mut stream = writer();
        state(&mut stream);
        end(stream)
    };
    let old = saved(&|stream| stream.save("c", &ClockStateV1 { ticks: 4 }).unwrap());
    let mut stream = StreamReader::new(&old[..]).unwrap();
    let state = stream.load::<ClockState>("c").unwrap();
    assert_eq!(
        state,
        ClockState {
            ticks: 4,
            hertz: 1000
        }
    );

    let new = saved(&|stream| stream.save("c", &clock(4)).unwrap());
    let mut stream = StreamReader::new(&new[..]).unwrap();
    let error = stream.load::<ClockStateV1>("c").unwrap_err();
    let version = DecodeError::Version {
        found: 2,
        newest: 1,
    };
    assert!(
        matches!(&error.cause, Cause::Decode(cause) if cause.to_string() == version.to_string())
    );
}

#[test]
fn a_value_of_another_kind_or_size_is_refused() {
    let with = |schema: &str, data: &[u8]| {
        let mut stream = writer();
        let mut section = stream
            .begin(Label {
                schema: schema.into(),
                version: 1,
                ..label("c", Form::Value)
            })
            .unwrap();
        section.append(data).unwrap();
        section.finish().unwrap();
        let bytes = end(stream);
        let mut stream = StreamReader::new(&bytes[..]).unwrap();
        stream
            .load::<ClockStateV1>("c")
            .map_err(|error| error.cause)
    };
    assert!(with("clock", b"\x05").is_ok());
    assert!(matches!(with("cloak", b"\x05"), Err(Cause::Schema { .. })));
    assert!(matches!(
        with("clock", b"\x05\0"),
        Err(Cause::Decode(DecodeError::LeftOver(1)))
    ));
    assert!(matches!(
        with("clock", b""),
        Err(Cause::Decode(DecodeError::Value(_)))
    ));
    assert!(matches!(
        with("clock", &[1; 11]),
        Err(Cause::TooLong { most: 10 })
    ));
}

#[test]
fn lengths_that_lie_do_not_cost_memory() {
    let mut stream = writer();
    let mut section = stream.begin(label("fs0/back-end", Form::Blocks)).unwrap();
    section.append(b"data").unwrap();
    section.finish().unwrap();
    let bytes = end(stream);
    let frame = format::HEADER + format::SECTION_FIXED + "fs0/back-endtest".len() + 8;
    assert_eq!(bytes[frame..frame + 4], 4u32.to_be_bytes());
    for lie in [FRAME_MOST as u32, FRAME_MOST as u32 + 1, u32::MAX] {
        let mut bytes = bytes.clone();
        bytes[frame..frame + 4].copy_from_slice(&lie.to_be_bytes());
        let mut stream = StreamReader::new(&bytes[..]).unwrap();
        let error = stream.next_section().unwrap().unwrap().skip().unwrap_err();
        assert!(place(&error).contains("fs0/back-end"), "{error}");
        assert!(
            stream.room.capacity() <= 16 << 10,
            "{}",
            stream.room.capacity()
        );
    }
}

#[test]
fn a_section_that_was_given_up_ends_the_stream() {
    let mut stream = writer();
    drop(stream.begin(label("fs0", Form::Value)).unwrap());
    assert!(matches!(
        stream.save("fs1", &clock(1)).unwrap_err().cause,
        Cause::Failed
    ));
    assert!(matches!(
        stream.finish().map(drop).unwrap_err().cause,
        Cause::Failed
    ));

    let bytes = sample();
    let mut stream = StreamReader::new(&bytes[..]).unwrap();
    let mut section = stream.section("__clock").unwrap();
    section.data().unwrap();
    assert!(matches!(
        section.finish().unwrap_err().cause,
        Cause::LeftOver
    ));
    assert!(matches!(stream.peek().unwrap_err().cause, Cause::Failed));
    assert!(stream.finish().is_err());
}

#[test]
fn a_back_end_that_fails_leaves_a_stream_without_an_end() {
    let mut bytes = Vec::new();
    let mut stream = StreamWriter::new(&mut bytes, ID).unwrap();
    let result = stream.save_chunks(label("fs0/back-end", Form::Chunks), 100, |append| {
        append(b"half a state").unwrap();
        Err(std::io::Error::other("the back-end died"))
    });
    assert_eq!(result.unwrap_err().to_string(), "the back-end died");
    assert!(stream.finish().is_err());
    assert!(matches!(
        skip_all(&bytes).unwrap_err().cause,
        Cause::Truncated | Cause::Chunks(_)
    ));
}

#[test]
fn chunks_that_do_not_end_in_their_section_are_found_by_skipping() {
    let mut stream = writer();
    let mut section = stream.begin(label("fs0/back-end", Form::Chunks)).unwrap();
    section.write_all(b"\0\0\0\x04data").unwrap();
    section.finish().unwrap();
    let error = skip_all(&end(stream)).unwrap_err();
    assert!(place(&error).contains("fs0/back-end"));
    assert!(matches!(error.cause, Cause::Chunks(_)));
}

#[test]
fn a_stream_of_another_version_says_so() {
    let mut bytes = sample();
    bytes[9] = 2;
    let error = StreamReader::new(&bytes[..]).map(drop).unwrap_err();
    assert!(matches!(error.cause, Cause::Format { found: 2 }));
    assert!(error.cause.to_string().contains("version 1"));
}

#[test]
fn a_large_section_comes_in_frames() {
    let data: Vec<u8> = (0..5_000_001u32)
        .map(|i| (i >> 8) as u8 ^ i as u8)
        .collect();
    let mut stream = writer();
    let mut section = stream.begin(label("big", Form::Blocks)).unwrap();
    for part in data.chunks(777_777) {
        section.append(part).unwrap();
    }
    section.finish().unwrap();
    let bytes = end(stream);
    let mut stream = StreamReader::new(&bytes[..]).unwrap();
    let mut section = stream.section("big").unwrap();
    let mut back = Vec::new();
    section.read_to_end(&mut back).unwrap();
    assert!(back == data);
    assert_eq!(section.finish().unwrap().bytes, data.len() as u64);
    assert!(stream.room.capacity() <= 2 * FRAME_MOST);
    stream.finish().unwrap();
}

proptest! {
    #[test]
    fn any_sections_come_back(parts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..200_000), 1usize..90_000), 0..6)) {
        let mut stream = writer();
        for (index, (data, step)) in parts.iter().enumerate() {
            let mut section = stream.begin(label(&format!("s{index}"), Form::Blocks)).unwrap();
            for part in data.chunks(*step) {
                section.append(part).unwrap();
            }
            section.finish().unwrap();
        }
        let (bytes, written) = stream.finish().unwrap();
        let mut stream = StreamReader::new(&bytes[..]).unwrap();
        for (index, (data, _)) in parts.iter().enumerate() {
            let mut section = stream.section(&format!("s{index}")).unwrap();
            prop_assert!(section.read_all(200_000).unwrap() == *data);
            section.finish().unwrap();
        }
        prop_assert_eq!(stream.finish().unwrap().1, written);
    }

    #[test]
    fn made_up_bytes_never_panic(bytes: Vec<u8>) {
        let mut stream = format::header(ID).to_vec();
        stream.extend(bytes);
        prop_assert!(skip_all(&stream).is_err());
    }
}
