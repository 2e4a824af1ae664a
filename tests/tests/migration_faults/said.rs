//! What a guest has said at its serial port, on whatever side it was.
//!
//! It counts. A guest that goes on exactly where it stood, and on one side only, says each number once, and leaves none out.

use std::path::PathBuf;

/// What stands before the numbers that it says, and by how much they grow.
const COUNTS: [(&str, u64); 3] = [("blk written=", 2), ("fuse at=", 1), ("tick n=", 1)];

/// Panics unless a guest that was at these serial ports, one after the other, has been one guest all the time.
pub fn goes_straight_on(serials: &[PathBuf]) {
    let text: String = serials.iter().map(text).collect();
    for (before, step) in COUNTS {
        let numbers = numbers(&text, before);
        for pair in numbers.windows(2) {
            let [number, next] = pair else { continue };
            let report: Vec<String> = serials.iter().map(text_of_end).collect();
            assert_eq!(
                *next,
                number + step,
                "{before}{number} is followed by {next}: {report:#?}"
            );
        }
    }
}

/// Panics if a guest has said anything there.
pub fn nothing_at(serial: &PathBuf) {
    let text = text(serial);
    assert!(text.is_empty(), "the guest was there, too: {text:?}");
}

fn text(serial: &PathBuf) -> String {
    std::fs::read_to_string(serial).unwrap_or_default()
}

fn text_of_end(serial: &PathBuf) -> String {
    let text = text(serial);
    let from = text.char_indices().rev().nth(400).map_or(0, |(at, _)| at);
    format!("{}: …{:?}", serial.display(), &text[from..])
}

/// The numbers behind a word, at the ends of complete lines.
fn numbers(text: &str, before: &str) -> Vec<u64> {
    let rests = text.split(before).skip(1);
    let complete = rests.filter_map(|rest| rest.split_once('\n'));
    complete
        .filter_map(|(number, _)| number.trim().parse().ok())
        .collect()
}
