use super::*;

/// An ELF kernel with a PVH note: a builder for the whole file.
#[derive(Clone)]
pub struct ElfFile {
    /// Address, bytes in the file, size in memory.
    segments: Vec<Segment>,
    note: Vec<u8>,
}

#[derive(Clone)]
struct Segment {
    address: u64,
    bytes: Vec<u8>,
    memory: u64,
}

impl ElfFile {
    /// One segment of code at `entry`.
    pub fn new(entry: u32, code: &[u8]) -> Self {
        Self {
            segments: vec![],
            note: Self::note(entry),
        }
        .segment(entry.into(), code, code.len() as u64)
    }

    pub fn segment(mut self, address: u64, bytes: &[u8], memory: u64) -> Self {
        self.segments.push(Segment {
            address,
            bytes: bytes.to_vec(),
            memory,
        });
        self
    }

    fn note(entry: u32) -> Vec<u8> {
        let mut note = Vec::new();
        // Another note first, with a name and a descriptor that need padding.
        for word in [5u32, 6, 1] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Else\0\0\0\0abcdef\0\0");
        for word in [4u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(entry.to_le_bytes());
        note
    }

    pub fn with_note(mut self, note: &[u8]) -> Self {
        self.note = note.to_vec();
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let count = self.segments.len() + 1;
        let mut data_at = 64 + 56 * count as u64;
        let mut file = Vec::new();
        file.extend(b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, count as u16, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut data: Vec<u8> = Vec::new();
        let mut header = |kind: u32, address: u64, bytes: &[u8], memory: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(0u32.to_le_bytes());
            // Virtual addresses that are no physical ones, as Linux has them.
            for word in [
                data_at,
                address.wrapping_sub(1 << 31),
                address,
                bytes.len() as u64,
                memory,
                1,
            ] {
                file.extend(word.to_le_bytes());
            }
            data.extend(bytes);
            data_at += bytes.len() as u64;
        };
        for segment in &self.segments {
            header(1, segment.address, &segment.bytes, segment.memory);
        }
        header(4, 0, &self.note, self.note.len() as u64);
        file.extend(data);
        file
    }
}

const ENTRY: u32 = 0x10_0000;

fn kernel() -> ElfFile {
    ElfFile::new(ENTRY, b"code").segment(0x20_0000, b"data", 0x3000)
}

fn refused(bytes: &[u8]) -> String {
    message(&open(bytes).unwrap_err())
}

#[test]
fn a_pvh_kernel_finds_everything_through_its_start_info() {
    let kernel = open(&kernel().build()).unwrap();
    let ram = ram(4 * 1024 * MIB);
    let rd = initramfs(&[7; 5000]);
    let entry = kernel
        .load(&ram, &params("console=ttyS0", Some(&rd)))
        .unwrap();
    let EntryPoint::Pvh { entry, start_info } = entry else {
        panic!("{entry:?}")
    };
    assert_eq!(entry.0, u64::from(ENTRY));
    assert_eq!(read(&ram, 0x10_0000, 4), b"code");
    assert_eq!(read(&ram, 0x20_0000, 4), b"data");

    let at = start_info.0;
    assert_eq!((u32_at(&ram, at), u32_at(&ram, at + 4)), (0x336E_C578, 1));
    assert_eq!(u32_at(&ram, at + 12), 1, "modules");
    let module = u64_at(&ram, at + 16);
    assert_eq!(u64_at(&ram, at + 24), layout::CMDLINE.0);
    assert_eq!(cmdline(&ram), "console=ttyS0");
    assert_eq!(u64_at(&ram, at + 32), RSDP.0);

    let (place, size) = (u64_at(&ram, module), u64_at(&ram, module + 8));
    assert_eq!((size, place % 4096), (5000, 0));
    assert!(place + size <= layout::HOLE_START && place + size > layout::HOLE_START - 4096);
    assert_eq!(read(&ram, place, 5000), [7; 5000]);

    let (map, entries) = (u64_at(&ram, at + 40), u32_at(&ram, at + 48));
    let read_entry = |n: u64| {
        let at = map + n * 24;
        (
            u64_at(&ram, at),
            u64_at(&ram, at + 8),
            u32_at(&ram, at + 16),
        )
    };
    let found: Vec<_> = (0..entries.into()).map(read_entry).collect();
    assert_eq!(
        found,
        [
            (0, 0xA_0000, 1),
            (0xA_0000, 0x6_0000, 2),
            (0x10_0000, 0xBFF0_0000, 1),
            (0xE000_0000, 0x10_0000, 2),
            (0xFFFB_C000, 0x4000, 2),
            (0x1_0000_0000, 0x4000_0000, 1),
        ]
    );
}

#[test]
fn without_an_initramfs_there_is_no_module() {
    let ram = ram(64 * MIB);
    open(&kernel().build())
        .unwrap()
        .load(&ram, &params("", None))
        .unwrap();
    assert_eq!(u32_at(&ram, layout::START_INFO.0 + 12), 0);
    assert_eq!(u64_at(&ram, layout::START_INFO.0 + 16), 0);
    assert_eq!(cmdline(&ram), "");
}

#[test]
fn a_guest_that_reboots_finds_the_same_kernel_even_if_its_file_is_gone() {
    let file = TestFile::new(&kernel().build());
    let kernel = Kernel::open(file.path()).unwrap();
    drop(file);
    for _ in 0..2 {
        let ram = ram(64 * MIB);
        kernel.load(&ram, &params("", None)).unwrap();
        let mut expected = b"data".to_vec();
        expected.resize(0x3000, 0);
        assert_eq!(read(&ram, 0x20_0000, 0x3000), expected);
    }
}

#[test]
fn elf_files_of_other_kinds_are_named() {
    let good = kernel().build();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        refused(&bytes)
    };
    assert!(with(4, 1).contains("a 32-bit ELF file"));
    assert!(with(5, 2).contains("a big-endian ELF file"));
    assert!(with(18, 183).contains("for another processor"));
    assert!(with(16, 1).contains("a kernel module"));
    assert!(refused(&kernel().with_note(b"").build()).contains("without a PVH note"));
    // A program like any other.
    let text = message(&Kernel::open(&std::env::current_exe().unwrap()).unwrap_err());
    assert!(text.contains("without a PVH note"), "{text}");
}

#[test]
fn broken_elf_files_are_refused_with_a_reason() {
    let good = kernel().build();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file)
    };
    let phdr = 64;
    let max = u64::MAX.to_le_bytes();
    assert!(refused(&good[..40]).contains("ends within the ELF header"));
    assert!(refused(&good[..100]).contains("program header table"));
    assert!(refused(&good[..good.len() - 1]).contains("but the file ends at"));
    assert!(patched(32, &max).contains("program header table"));
    assert!(patched(54, &[57, 0]).contains("57 bytes"));
    assert!(patched(56, &[0xFF, 0xFF]).contains("65535 program headers"));
    assert!(patched(phdr + 8, &max).contains("a segment has 4 bytes"));
    assert!(patched(phdr + 32, &max).contains("a segment has"));
    assert!(patched(phdr + 40, &1u64.to_le_bytes()).contains("larger in the file than in memory"));
    assert!(patched(phdr + 40, &max).contains("beyond the last address"));
    assert!(patched(phdr + 24, &0xF_FFFFu64.to_le_bytes()).contains("below 1 MiB"));
    assert!(patched(phdr + 24, &0x20_0000u64.to_le_bytes()).contains("segments overlap"));
    assert!(
        patched(phdr + 24, &0x30_0000u64.to_le_bytes())
            .contains("entry point 0x100000 is not in a segment")
    );
    let note = [4u32, 2, 18].map(u32::to_le_bytes).concat();
    assert!(
        refused(
            &kernel()
                .with_note(&[&note[..], b"Xen\0ab\0\0"].concat())
                .build()
        )
        .contains("32-bit address")
    );
}

#[test]
fn a_64_bit_note_is_understood_too() {
    let note = [
        &[4u32, 8, 18].map(u32::to_le_bytes).concat()[..],
        b"Xen\0",
        &0x10_0000u64.to_le_bytes(),
    ]
    .concat();
    assert!(open(&kernel().with_note(&note).build()).is_ok());
}

#[test]
fn a_kernel_that_is_too_large_for_ram_is_refused_with_sizes() {
    let kernel = open(&kernel().segment(0x100_0000, b"more", 80 * MIB).build()).unwrap();
    let error = kernel.check(64 * MIB, None, "").unwrap_err();
    assert!(
        message(&error).contains("0x100000-0x5ffffff (95 MiB)"),
        "{}",
        message(&error)
    );
    assert!(matches!(
        kernel.load(&ram(64 * MIB), &params("", None)),
        Err(Error::DoesNotFit { .. })
    ));
    kernel.check(96 * MIB, None, "").unwrap();
    // RAM above the hole is no help.
    let high = open(
        &ElfFile::new(ENTRY, b"code")
            .segment(1 << 32, b"x", 1)
            .build(),
    )
    .unwrap();
    assert!(matches!(
        high.check(8 << 30, None, ""),
        Err(Error::DoesNotFit { .. })
    ));
}

/// An initramfs of any size that takes no place on disk.
fn sparse(bytes: u64) -> Initramfs {
    let file = TestFile::new(b"x");
    let options = std::fs::File::options().write(true).open(file.path());
    options.unwrap().set_len(bytes).unwrap();
    Initramfs::open(file.path()).unwrap()
}

#[test]
fn an_initramfs_that_is_too_large_is_refused_with_sizes() {
    // From 1 MiB up to 1 MiB below the end of RAM.
    let kernel = open(&kernel().segment(0x300_0000, b"", 0xF0_0000).build()).unwrap();
    kernel.check(64 * MIB, Some(&sparse(MIB)), "").unwrap();
    let error = kernel
        .check(64 * MIB, Some(&sparse(MIB + 1)), "")
        .unwrap_err();
    let text = message(&error);
    assert!(
        text.contains("has 1048577 bytes, but beside the kernel there is room for 1048576"),
        "{text}"
    );
    assert!(kernel.check(64 * MIB, Some(&sparse(1 << 40)), "").is_err());
}

#[test]
fn an_initramfs_goes_below_the_kernel_if_there_is_no_room_above() {
    // As Linux: from 16 MiB on, in a guest that it nearly fills.
    let kernel = ElfFile::new(0x100_0000, b"code").segment(0x200_0000, b"", 30 * MIB);
    let kernel = open(&kernel.build()).unwrap();
    let ram = ram(64 * MIB);
    let place = |size| {
        kernel.load(&ram, &params("", Some(&sparse(size)))).unwrap();
        u64_at(&ram, layout::MODULE_LIST.0)
    };
    assert_eq!(place(2 * MIB), 62 * MIB);
    assert_eq!(place(2 * MIB + 1), 14 * MIB - 4096);
    assert_eq!(place(15 * MIB), MIB);
    let error = kernel.check(64 * MIB, Some(&sparse(15 * MIB + 1)), "");
    assert!(matches!(error, Err(Error::InitramfsTooLarge { room, .. }) if room == 15 * MIB));
}

#[test]
fn a_command_line_that_linux_would_cut_off_is_refused() {
    let kernel = open(&kernel().build()).unwrap();
    kernel.check(64 * MIB, None, &"x".repeat(2047)).unwrap();
    let error = kernel.check(64 * MIB, None, &"x".repeat(2048)).unwrap_err();
    assert!(message(&error).contains("has 2048 bytes") && message(&error).contains("at most 2047"));
    assert!(matches!(
        kernel.check(64 * MIB, None, "a\0b"),
        Err(Error::CmdlineNul)
    ));
}

#[test]
fn a_kernel_file_that_shrinks_is_an_error_when_loaded() {
    let file = TestFile::new(&kernel().build());
    let kernel = Kernel::open(file.path()).unwrap();
    std::fs::File::options()
        .write(true)
        .open(file.path())
        .unwrap()
        .set_len(100)
        .unwrap();
    let error = kernel.load(&ram(64 * MIB), &params("", None)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Read {
                what: "a segment",
                ..
            }
        ),
        "{error:?}"
    );
}
