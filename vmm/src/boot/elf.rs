//! ELF kernels with a PVH note (Xen's "x86/HVM direct boot ABI").
//!
//! The headers are checked in full when the file is opened; loading is then reading segments to where they belong.

use std::mem::size_of;
use std::ops::Range;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr,
    PT_LOAD, PT_NOTE,
};
use vm_memory::{ByteValued, GuestAddress};

use super::Error;
use super::file::{BootFile, Span};
use crate::layout;

/// Most program headers looked at. Linux has 5.
const MOST_HEADERS: u16 = 64;
/// Most bytes of a note segment looked at. Linux has about 500.
const MOST_NOTES: u64 = 64 << 10;
/// ELF types: an executable, or a position-independent one.
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
/// Note of the owner "Xen" whose descriptor is the physical address of the 32-bit entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const XEN: &[u8] = b"Xen\0";

/// A part of the kernel and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What the file has of it.
    pub span: Span,
    /// Where it goes. What exceeds `span.len` is zero.
    pub to: Range<u64>,
}

/// A kernel that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PvhImage {
    /// In ascending order of address, without overlaps, all at or above [`layout::HIGH_MEMORY`]; never empty.
    pub segments: Vec<Segment>,
    /// The 32-bit entry point, in one of the segments.
    pub entry: GuestAddress,
}

impl PvhImage {
    /// Addresses from the first segment's start to the last one's end.
    pub fn extent(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |first| first.to.start);
        let end = self.segments.last().map_or(0, |last| last.to.end);
        start..end
    }
}

/// Whether the file begins like any ELF file.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7FELF")
}

/// Parses and checks the headers of an ELF file.
///
/// # Errors
/// [`Error::NotAKernel`] for an ELF file of another kind, [`Error::Damaged`] for one that contradicts itself.
pub fn parse(file: &BootFile) -> Result<PvhImage, Error> {
    let ehdr = header(file)?;
    let phdrs = program_headers(file, &ehdr)?;

    let notes = phdrs.iter().filter(|phdr| phdr.p_type == PT_NOTE);
    let mut entry = None;
    for phdr in notes {
        let len = phdr.p_filesz.min(MOST_NOTES);
        check_span(
            file,
            Span {
                offset: phdr.p_offset,
                len,
            },
            "a note segment",
        )?;
        let bytes = file.read(phdr.p_offset, len as usize, "a note segment")?;
        entry = entry.or(find_entry(&bytes).map_err(|why| file.damaged(why))?);
    }
    let Some(entry) = entry else {
        return Err(file.not_a_kernel(
            "an ELF file without a PVH note (a program, or a kernel built without CONFIG_PVH)",
        ));
    };

    let mut segments = Vec::new();
    for phdr in phdrs
        .iter()
        .filter(|phdr| phdr.p_type == PT_LOAD && phdr.p_memsz > 0)
    {
        segments.push(segment(file, phdr)?);
    }
    segments.sort_by_key(|segment: &Segment| segment.to.start);
    for pair in segments.windows(2) {
        if pair[0].to.end > pair[1].to.start {
            return Err(file.damaged(format!("segments overlap at {:#x}", pair[1].to.start)));
        }
    }
    if !segments.iter().any(|segment| segment.to.contains(&entry)) {
        return Err(file.damaged(format!("the entry point {entry:#x} is not in a segment")));
    }
    Ok(PvhImage {
        segments,
        entry: GuestAddress(entry),
    })
}

fn header(file: &BootFile) -> Result<Elf64_Ehdr, Error> {
    let len = size_of::<Elf64_Ehdr>();
    let head = file.head(len)?;
    if head.get(EI_CLASS).is_some_and(|class| *class != ELFCLASS64) {
        return Err(file.not_a_kernel("a 32-bit ELF file"));
    }
    if head.get(EI_DATA).is_some_and(|data| *data != ELFDATA2LSB) {
        return Err(file.not_a_kernel("a big-endian ELF file"));
    }
    let Some(ehdr) = object::<Elf64_Ehdr>(&head, 0) else {
        return Err(file.damaged("it ends within the ELF header"));
    };
    if ehdr.e_machine != EM_X86_64 {
        return Err(file.not_a_kernel("an ELF file for another processor"));
    }
    if ehdr.e_type != ET_EXEC && ehdr.e_type != ET_DYN {
        return Err(file.not_a_kernel("an ELF object file, a kernel module or a core dump"));
    }
    Ok(ehdr)
}

fn program_headers(file: &BootFile, ehdr: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, Error> {
    let size = size_of::<Elf64_Phdr>();
    if usize::from(ehdr.e_phentsize) != size {
        return Err(file.damaged(format!(
            "program headers have {} bytes and not {size}",
            ehdr.e_phentsize
        )));
    }
    if ehdr.e_phnum > MOST_HEADERS {
        return Err(file.damaged(format!(
            "{} program headers, of which {MOST_HEADERS} are allowed",
            ehdr.e_phnum
        )));
    }
    let len = usize::from(ehdr.e_phnum) * size;
    check_span(
        file,
        Span {
            offset: ehdr.e_phoff,
            len: len as u64,
        },
        "the program header table",
    )?;
    let bytes = file.read(ehdr.e_phoff, len, "the program headers")?;
    Ok(bytes
        .chunks_exact(size)
        .filter_map(|chunk| object(chunk, 0))
        .collect())
}

fn segment(file: &BootFile, phdr: &Elf64_Phdr) -> Result<Segment, Error> {
    let span = Span {
        offset: phdr.p_offset,
        len: phdr.p_filesz,
    };
    check_span(file, span, "a segment")?;
    let start = phdr.p_paddr;
    if phdr.p_filesz > phdr.p_memsz {
        return Err(file.damaged(format!(
            "the segment at {start:#x} is larger in the file than in memory"
        )));
    }
    let Some(end) = start.checked_add(phdr.p_memsz) else {
        return Err(file.damaged(format!(
            "the segment at {start:#x} ends beyond the last address"
        )));
    };
    if start < layout::HIGH_MEMORY {
        return Err(file.damaged(format!(
            "the segment at {start:#x} lies below 1 MiB, which is taken"
        )));
    }
    Ok(Segment {
        span,
        to: start..end,
    })
}

/// Refuses a part that reaches beyond the end of the file.
fn check_span(file: &BootFile, span: Span, what: &str) -> Result<(), Error> {
    if span
        .offset
        .checked_add(span.len)
        .is_some_and(|end| end <= file.size())
    {
        return Ok(());
    }
    Err(file.damaged(format!(
        "{what} has {} bytes at {:#x}, but the file ends at {:#x}",
        span.len,
        span.offset,
        file.size()
    )))
}

/// Looks for the PVH entry point among the notes of one segment. Names and descriptors are padded to 4 bytes.
fn find_entry(notes: &[u8]) -> Result<Option<u64>, &'static str> {
    let mut at = 0;
    // Every turn goes on by a header at least, so that this ends.
    while let Some(note) = object::<Elf64_Nhdr>(notes, at) {
        let name = at + size_of::<Elf64_Nhdr>();
        let descriptor = name + (note.n_namesz as usize).next_multiple_of(4);
        let next = descriptor + (note.n_descsz as usize).next_multiple_of(4);
        let is_xen = notes.get(name..).is_some_and(|rest| rest.starts_with(XEN))
            && note.n_namesz as usize == XEN.len();
        if is_xen && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY {
            // 4 bytes from an assembler's .long, 8 from a .quad.
            return match (note.n_descsz, notes.get(descriptor..)) {
                (4, Some([a, b, c, d, ..])) => {
                    Ok(Some(u32::from_le_bytes([*a, *b, *c, *d]).into()))
                }
                (8, Some([a, b, c, d, 0, 0, 0, 0, ..])) => {
                    Ok(Some(u32::from_le_bytes([*a, *b, *c, *d]).into()))
                }
                _ => Err("its PVH note does not hold a 32-bit address"),
            };
        }
        at = next;
    }
    Ok(None)
}

/// The object at a byte offset, if all of it is there.
fn object<T: ByteValued + Default>(bytes: &[u8], at: usize) -> Option<T> {
    let mut object = T::default();
    let source = bytes.get(at..at.checked_add(size_of::<T>())?)?;
    object.as_mut_slice().copy_from_slice(source);
    Some(object)
}
