//! Says what a file is that is not a kernel.

/// Bytes from the start of the file that [`name`] wants to see.
pub const WANTED: usize = 0x210;

/// The first bytes of files that people take for kernels.
const MAGICS: &[(&[u8], &str)] = &[
    (b"\x1F\x8B", "compressed with gzip (decompress it first)"),
    (b"\xFD7zXZ\0", "compressed with xz (decompress it first)"),
    (
        b"\x28\xB5\x2F\xFD",
        "compressed with zstd (decompress it first)",
    ),
    (
        b"\x02\x21\x4C\x18",
        "compressed with lz4 (decompress it first)",
    ),
    (
        b"\x04\x22\x4D\x18",
        "compressed with lz4 (decompress it first)",
    ),
    (b"BZh", "compressed with bzip2 (decompress it first)"),
    (b"\x5D\0\0", "compressed with lzma (decompress it first)"),
    (b"\x89LZO", "compressed with lzo (decompress it first)"),
    (b"#!", "a script"),
    (b"070701", "a cpio archive (an initramfs?)"),
    (b"070702", "a cpio archive (an initramfs?)"),
    (b"!<arch>\n", "an archive (a Debian package or a library?)"),
    (b"QFI\xFB", "a qcow2 disk image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x27\x05\x19\x56", "a U-Boot image"),
    (b"\xFE\xED\xFA\xCF", "a Mach-O file"),
    (b"\xCF\xFA\xED\xFE", "a Mach-O file"),
    (b"MZ", "an EFI or DOS program"),
];

/// Describes the file by its first [`WANTED`] bytes, or fewer if it is shorter.
pub fn name(head: &[u8]) -> &'static str {
    if head.is_empty() {
        return "empty";
    }
    if head.get(0x38..0x3C) == Some(b"ARM\x64") {
        return "a kernel for 64-bit ARM";
    }
    if let Some((_, is)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return is;
    }
    if head.get(0x1FE..0x200) == Some(b"\x55\xAA") {
        return "a disk or boot sector image";
    }
    if head
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return "a text file";
    }
    "a file of unknown type"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_people_mistake_for_kernels_are_named() {
        for (head, is) in [
            (&b""[..], "empty"),
            (
                b"\x1F\x8B\x08",
                "compressed with gzip (decompress it first)",
            ),
            (b"#!/bin/sh\n", "a script"),
            (b"070701000", "a cpio archive (an initramfs?)"),
            (b"hello, world\n", "a text file"),
            (b"\0\0\0\0", "a file of unknown type"),
            (b"M", "a text file"),
        ] {
            assert_eq!(name(head), is);
        }
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(b"\x55\xAA");
        assert_eq!(name(&sector), "a disk or boot sector image");
    }
}
