//! For benchmarks: `state-back-end serve SIZE` is the back-end of a disk and has so much state of its own; it prints its
//! socket, and serves until its standard input ends. `state-back-end pipe SIZE` writes the same state to standard output,
//! in pieces of the same size.

use std::io::{Read, Write};

use ferry_tests::backend::{Backend, DeviceState};
use ferry_tests::{pattern, units};

const SEED: u32 = 1;
/// What the back-end moves at once.
const PIECE: usize = 64 << 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", size] => serve(size),
        ["pipe", size] => pipe(units::bytes(size)),
        _ => panic!("state-back-end serve SIZE, or state-back-end pipe SIZE"),
    }
}

fn serve(size: &str) {
    let backend = Backend::blk("1M")
        .with_state(DeviceState::new(size, SEED))
        .start();
    println!("{}", backend.socket().display());
    let mut nothing = Vec::new();
    std::io::stdin()
        .read_to_end(&mut nothing)
        .expect("standard input");
}

fn pipe(bytes: u64) {
    let mut output = std::io::stdout().lock();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < bytes {
        let count = PIECE.min((bytes - at) as usize);
        pattern::stream(SEED, at, &mut piece[..count]);
        output.write_all(&piece[..count]).expect("a reader");
        at += count as u64;
    }
}
