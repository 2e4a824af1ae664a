//! The disk: virtio-blk requests on a vector of bytes (Virtual I/O Device 1.2, 5.2).

use super::memory::Memory;
use super::ring::{Chain, Piece};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// `struct virtio_blk_config` up to write-zeroes, in bytes.
pub const CONFIG_SIZE: usize = 60;

/// The configuration space.
pub fn config(sectors: u64, queues: u16) -> [u8; CONFIG_SIZE] {
    let mut config = [0; CONFIG_SIZE];
    config[0..8].copy_from_slice(&sectors.to_le_bytes());
    config[12..16].copy_from_slice(&126u32.to_le_bytes()); // seg_max
    config[20..24].copy_from_slice(&512u32.to_le_bytes()); // blk_size
    config[34..36].copy_from_slice(&queues.to_le_bytes());
    config
}

/// Does what a chain asks for; returns how many bytes of it were written.
pub fn serve(memory: &Memory, disk: &mut [u8], chain: &Chain) -> u32 {
    let (readable, writable): (Vec<Piece>, Vec<Piece>) =
        chain.pieces.iter().partition(|piece| !piece.writable);
    let Some((status, writable)) = writable.split_last() else {
        return 0;
    };
    let Some((header, readable)) = readable.split_first() else {
        return 0;
    };
    let (kind, sector) = (
        memory.read_u32(header.address),
        memory.read_u64(header.address + 8),
    );
    let (outcome, written) = match kind {
        IN => transfer(sector, writable, disk, |piece, part| {
            memory.write(piece.address, part)
        }),
        OUT => {
            let outcome = transfer(sector, readable, disk, |piece, part| {
                memory.read(piece.address, part)
            });
            (outcome.0, 0)
        }
        FLUSH => (OK, 0),
        GET_ID => (OK, identify(memory, writable)),
        _ => (UNSUPPORTED, 0),
    };
    memory.write(status.address, &[outcome]);
    written + 1
}

fn transfer(
    sector: u64,
    pieces: &[Piece],
    disk: &mut [u8],
    mut copy: impl FnMut(&Piece, &mut [u8]),
) -> (u8, u32) {
    let mut at = sector.saturating_mul(SECTOR) as usize;
    let mut total = 0;
    for piece in pieces {
        let end = at.saturating_add(piece.length as usize);
        let Some(part) = disk.get_mut(at..end) else {
            return (IOERR, total);
        };
        copy(piece, part);
        at = end;
        total += piece.length;
    }
    (OK, total)
}

fn identify(memory: &Memory, pieces: &[Piece]) -> u32 {
    let Some(piece) = pieces.first() else {
        return 0;
    };
    let name = b"test back-end\0\0\0\0\0\0\0";
    let length = (piece.length as usize).min(name.len());
    memory.write(piece.address, &name[..length]);
    length as u32
}
