//! Writes initramfs archives in cpio's "newc" format (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

/// An archive being written, in memory: the ones made here are a few megabytes.
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// An archive with nothing in it.
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            inode: 1,
        }
    }

    /// Adds a directory. Parents have to be added first.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, 0, &[]);
    }

    /// Adds a file that everyone may read and execute.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, REGULAR | 0o755, 0, content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, 0, target.as_bytes());
    }

    /// Adds `/dev/console`, from which the kernel gives the first process its standard streams.
    pub fn console(&mut self) {
        self.directory("dev");
        const CONSOLE: u32 = (5 << 16) | 1;
        self.entry("dev/console", CHARACTER_DEVICE | 0o600, CONSOLE, &[]);
    }

    /// Ends the archive. Its length is a multiple of 512, so that another one can follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[]);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: u32, content: &[u8]) {
        let (major, minor) = (device >> 16, device & 0xffff);
        let name_size = path.len() + 1;
        let (inode, size) = (self.inode, content.len());
        self.inode += 1;
        // magic, inode, mode, uid, gid, links, mtime, size, dev (2), rdev (2), name size, checksum
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}{minor:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, alignment: usize) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(alignment), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_the_kernel_reads() {
        let mut archive = Archive::new();
        archive.directory("bin");
        archive.file("bin/a", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(&bytes[..6], b"070701");
        // First entry: a 110 byte header, "bin\0", padded to 4.
        assert_eq!(&bytes[110..114], b"bin\0");
        let second = 116;
        assert_eq!(&bytes[second..second + 6], b"070701");
        assert_eq!(&bytes[second + 54..second + 62], b"00000005");
        assert_eq!(&bytes[second + 110..second + 116], b"bin/a\0");
        assert_eq!(&bytes[second + 116..second + 121], b"12345");
        let trailer = (second + 121).next_multiple_of(4);
        assert_eq!(&bytes[trailer + 110..trailer + 121], b"TRAILER!!!\0");
    }
}
