use super::*;

/// Setup sectors beside the boot sector.
const SETUP_SECTORS: u8 = 3;
const PAYLOAD_AT: usize = (SETUP_SECTORS as usize + 1) * 512;

/// A bzImage with `code` at its 64-bit entry point.
pub fn file(code: &[u8]) -> Vec<u8> {
    let mut payload = vec![0xCC; 0x200];
    payload.extend(code);
    let mut file = vec![0; PAYLOAD_AT];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[SETUP_SECTORS]);
    put(0x1F4, &(payload.len().div_ceil(16) as u32).to_le_bytes());
    put(0x1FE, b"\x55\xAA");
    // A jump to behind the header of protocol 2.12 (which ends at 0x268).
    put(0x200, &[0xEB, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020Cu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x200_0000u32.to_le_bytes());
    file.extend(payload);
    file
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file(b"code");
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn refused(bytes: &[u8]) -> String {
    message(&open(bytes).unwrap_err())
}

#[test]
fn a_bzimage_finds_everything_through_its_zero_page() {
    let kernel = open(&file(b"code")).unwrap();
    let ram = ram(4 * 1024 * MIB);
    let rd = initramfs(&[7; 5000]);
    let entry = kernel.load(&ram, &params("quiet", Some(&rd))).unwrap();
    let EntryPoint::Linux64 { entry, zero_page } = entry else {
        panic!("{entry:?}")
    };
    assert_eq!(entry.0, 0x100_0200);
    assert_eq!(read(&ram, entry.0, 4), b"code");

    let at = zero_page.0;
    assert_eq!(u64_at(&ram, at + 0x70), RSDP.0);
    assert_eq!(read(&ram, at + 0x202, 4), b"HdrS");
    assert_eq!(read(&ram, at + 0x210, 1), [0xFF], "type_of_loader");
    assert_eq!(u32_at(&ram, at + 0x214), 0x100_0000, "code32_start");
    assert_eq!(u64::from(u32_at(&ram, at + 0x228)), layout::CMDLINE.0);
    assert_eq!(cmdline(&ram), "quiet");
    // What the file has behind its header is not header.
    assert_eq!(u32_at(&ram, at + 0x268), 0);
    assert_eq!(read(&ram, at + 0x1EF, 1), [0], "sentinel");

    let (place, size) = (u32_at(&ram, at + 0x218), u32_at(&ram, at + 0x21C));
    assert_eq!((place, size), (0x7FFF_E000, 5000), "below initrd_addr_max");
    assert_eq!(read(&ram, place.into(), 5000), [7; 5000]);

    assert_eq!(read(&ram, at + 0x1E8, 1), [6]);
    let first = (
        u64_at(&ram, at + 0x2D0),
        u64_at(&ram, at + 0x2D8),
        u32_at(&ram, at + 0x2E0),
    );
    assert_eq!(first, (0, 0xA_0000, 1));
    let last = at + 0x2D0 + 5 * 20;
    assert_eq!(
        (u64_at(&ram, last), u64_at(&ram, last + 8)),
        (1 << 32, 1 << 30)
    );
}

#[test]
fn page_tables_map_the_first_4_gib_onto_themselves() {
    let ram = ram(64 * MIB);
    open(&file(b"code"))
        .unwrap()
        .load(&ram, &params("", None))
        .unwrap();
    let translate = |address: u64| {
        let index = |shift: u32| (address >> shift & 511) * 8;
        let level3 = u64_at(&ram, layout::PAGE_TABLES.0 + index(39));
        let level2 = u64_at(&ram, (level3 & !0xFFF) + index(30));
        let page = u64_at(&ram, (level2 & !0xFFF) + index(21));
        assert_eq!((level3 & 0xFFF, level2 & 0xFFF, page & 0xFFF), (3, 3, 0x83));
        (page & !0xFFF) + (address & 0x1F_FFFF)
    };
    for address in [
        0,
        0x3000,
        0x1_2345,
        0x100_0200,
        0xBFFF_FFFF,
        0xFEE0_0000,
        0xFFFF_FFFF,
    ] {
        assert_eq!(translate(address), address);
    }
}

#[test]
fn linux_kernels_without_64_bit_entry_are_named() {
    assert!(refused(&patched(0x236, &[0])).contains("a 32-bit bzImage"));
    assert!(refused(&patched(0x206, &0x020Au16.to_le_bytes())).contains("older than Linux 3.8"));
    assert!(refused(&patched(0x211, &[0])).contains("a zImage"));
}

#[test]
fn broken_bzimages_are_refused_with_a_reason() {
    let good = file(b"code");
    assert!(refused(&good[..0x210]).contains("ends within the setup header"));
    assert!(refused(&good[..0x250]).contains("ends within the setup header"));
    assert!(refused(&good[..PAYLOAD_AT + 0x100]).contains("but the file ends at"));
    assert!(refused(&patched(0x1F1, &[255])).contains("but the file ends at"));
    assert!(refused(&patched(0x1F4, &u32::MAX.to_le_bytes())).contains("but the file ends at"));
    assert!(refused(&patched(0x1F4, &[0; 4])).contains("no size"));
    assert!(refused(&patched(0x258, &[0; 8])).contains("loaded at 0x0"));
    assert!(
        refused(&patched(0x258, &u64::MAX.to_le_bytes())).contains("loaded at 0xffffffffffffffff")
    );
}

#[test]
fn it_needs_room_to_unpack_itself() {
    let kernel = open(&file(b"code")).unwrap();
    kernel.check(64 * MIB, None, "").unwrap();
    let larger = open(&patched(0x260, &0x300_0001u32.to_le_bytes())).unwrap();
    let text = message(&larger.check(64 * MIB, None, "").unwrap_err());
    assert!(text.contains("0x1000000-0x4000000 (49 MiB)"), "{text}");
    let rd = initramfs(&vec![1; 17 << 20]);
    // 16 MiB above it, 15 MiB below.
    assert!(matches!(
        kernel.check(64 * MIB, Some(&rd), ""),
        Err(Error::InitramfsTooLarge { .. })
    ));
    // A limit below the kernel leaves no room at all.
    let low = open(&patched(0x22C, &0u32.to_le_bytes())).unwrap();
    assert!(matches!(
        low.check(64 * MIB, Some(&rd), ""),
        Err(Error::InitramfsTooLarge { room: 0, .. })
    ));
}

#[test]
fn the_kernel_says_how_long_its_command_line_may_be() {
    let kernel = open(&patched(0x238, &100u32.to_le_bytes())).unwrap();
    kernel.check(64 * MIB, None, &"x".repeat(100)).unwrap();
    assert!(matches!(
        kernel.check(64 * MIB, None, &"x".repeat(101)),
        Err(Error::CmdlineTooLong {
            len: 101,
            limit: 100,
            ..
        })
    ));
    let kernel = open(&patched(0x238, &u32::MAX.to_le_bytes())).unwrap();
    assert!(kernel.check(64 * MIB, None, &"x".repeat(1 << 16)).is_err());
}
