//! RAM files that are cut off under a running guest.

use std::fs::File;

use super::*;

/// Protected mode: reads from each page between 0 and 8 MiB, for ever.
#[rustfmt::skip]
const READS: [u8; 21] = [
    0xbb, 0x00, 0x00, 0x10, 0x00,       // mov ebx, 0x100000
    0x8b, 0x03,                         // mov eax, [ebx]
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, // add ebx, 0x1000
    0x81, 0xe3, 0xff, 0xff, 0x7f, 0x00, // and ebx, 0x7fffff
    0xeb, 0xf0,                         // to the second
];
/// The same, but writes. What it writes on this page is over when it does.
#[rustfmt::skip]
const WRITES: [u8; 21] = [
    0xbb, 0x00, 0x00, 0x10, 0x00,
    0x89, 0x1b,                         // mov [ebx], ebx
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00,
    0x81, 0xe3, 0xff, 0xff, 0x7f, 0x00,
    0xeb, 0xf0,
];

/// A bench whose RAM is a file, and the file, as a back-end would have it.
fn bench() -> (Bench, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(memory().size).unwrap();
    let ram = GuestRam::from_files(&memory(), vec![file.try_clone().unwrap()]);
    (Bench::with_ram(ram.unwrap()), file)
}

fn end_of(bench: &Bench) -> GuestEnd {
    let start = Instant::now();
    loop {
        if let Some(end) = bench.ended.lock().unwrap().first() {
            return end.clone();
        }
        assert!(start.elapsed() < LIMIT, "it runs on without RAM");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_whose_ram_file_is_cut_off_has_crashed_for_that_reason() {
    // The last one goes with its code.
    for (code, left) in [(&READS, 1 << 20), (&WRITES, 1 << 20), (&WRITES, 0)] {
        let (bench, file) = bench();
        guests::place(bench.ram.mapping(), code, &[]);
        let mut machine = bench.machine(1, |_, fd| protected_mode(&bench, fd));
        bench.start(&mut machine);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(*bench.ended.lock().unwrap(), []);
        file.set_len(left).unwrap();
        let end = end_of(&bench);
        let GuestEnd::Crash(text) = end else {
            panic!("{end:?}");
        };
        let expected = format!("the file of its RAM at 0x0 was cut off: {left} of 16777216 bytes");
        assert!(text.starts_with(&expected), "{text}");
        machine.stop();
    }
}
