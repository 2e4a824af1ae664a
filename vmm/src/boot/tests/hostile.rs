//! Files made to do harm. What they may do is be refused, or be loaded within their own places.

use proptest::prelude::*;

use super::elf::ElfFile;
use super::*;

/// Bytes around what a kernel may write.
const RAM: u64 = 64 * MIB;

/// Opens a file and, if it is taken for a kernel, loads it, twice.
fn try_boot(bytes: &[u8], ram: &GuestMemoryMmap) {
    let Ok(kernel) = open(bytes) else { return };
    let checked = kernel.check(RAM, None, "").is_ok();
    let loaded = kernel.load(ram, &params("", None));
    assert_eq!(checked, loaded.is_ok(), "{loaded:?}");
    let again = kernel.load(ram, &params("", None));
    assert_eq!(loaded.ok(), again.ok());
}

fn elf() -> Vec<u8> {
    ElfFile::new(0x10_0000, b"code")
        .segment(0x20_0000, b"data", 0x3000)
        .build()
}

/// A file with some of its bytes changed, the interesting values more often than others.
fn mutated(file: Vec<u8>, headers: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(0u8),
        Just(1),
        Just(0x7F),
        Just(0x80),
        Just(0xFF),
        any::<u8>()
    ];
    let change = (headers, prop::collection::vec(byte, 1..9));
    (
        prop::collection::vec(change, 1..6),
        0..file.len(),
        any::<prop::sample::Index>(),
    )
        .prop_map(move |(changes, cut, whether)| {
            let mut file = file.clone();
            for (at, bytes) in changes {
                for (to, from) in file[at..].iter_mut().zip(bytes) {
                    *to = from;
                }
            }
            if whether.index(4) == 0 {
                file.truncate(cut);
            }
            file
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn elf_headers_at_random_do_no_harm(file in mutated(elf(), 4..elf().len())) {
        try_boot(&file, &ram(RAM));
    }

    #[test]
    fn bzimage_headers_at_random_do_no_harm(file in mutated(bzimage::file(b"code"), 0x1F1..0x270)) {
        try_boot(&file, &ram(RAM));
    }

    #[test]
    fn bytes_at_random_do_no_harm(tail in prop::collection::vec(any::<u8>(), 0..700), magic in 0..3usize) {
        let magic = [&b""[..], b"\x7FELF\x02\x01\x01", b"MZ"][magic];
        try_boot(&[magic, &tail].concat(), &ram(RAM));
    }

    #[test]
    fn notes_at_random_do_no_harm(note in prop::collection::vec(prop_oneof![0..24u32, any::<u32>()], 0..40)) {
        let note: Vec<u8> = note.into_iter().flat_map(u32::to_le_bytes).collect();
        let kernel = ElfFile::new(0x10_0000, b"code").with_note(&note);
        try_boot(&kernel.build(), &ram(RAM));
    }
}

#[test]
fn a_huge_sparse_file_costs_neither_time_nor_memory() {
    // Notes of nothing but zeros, as long as the file: 1 TiB.
    let size = 1u64 << 40;
    let mut bytes = elf();
    let note = 64 + 2 * 56;
    bytes[note + 8..note + 16].copy_from_slice(&4096u64.to_le_bytes());
    bytes[note + 32..note + 40].copy_from_slice(&(size - 4096).to_le_bytes());
    let file = TestFile::new(&bytes);
    std::fs::File::options()
        .write(true)
        .open(file.path())
        .unwrap()
        .set_len(size)
        .unwrap();
    let error = Kernel::open(file.path()).unwrap_err();
    assert!(message(&error).contains("without a PVH note"), "{error}");
}
