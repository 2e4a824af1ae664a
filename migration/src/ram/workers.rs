//! A few threads that share the blocks of a region.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{BLOCK, Error, Watch};

/// The most threads: more of them gain nothing where memory is the limit.
const THREADS_MOST: usize = 8;
/// Blocks that a thread takes at once.
const BATCH: u64 = 8;

/// A block of a region.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) index: usize,
    /// Bytes from the beginning of the region.
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

/// What a thread works with: a buffer for a block, and what it has learned of holes.
pub(super) struct Worker {
    pub(super) buffer: Vec<u8>,
    /// From the block that was asked for last to here, the file holds nothing.
    pub(super) hole_until: u64,
}

impl Worker {
    fn new() -> Self {
        Worker {
            buffer: vec![0; BLOCK as usize],
            hole_until: 0,
        }
    }
}

/// Does `work` for each block of a region of `bytes` bytes, each thread in rising order. The first error ends it all.
pub(super) fn for_each_block(
    bytes: u64,
    watch: &dyn Watch,
    work: impl Fn(&mut Worker, Block) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let blocks = super::blocks::count(bytes);
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let error = Mutex::new(None);
    let run = || {
        let mut worker = Worker::new();
        while !stop.load(Ordering::Relaxed) {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            if first >= blocks {
                return;
            }
            for index in first..blocks.min(first + BATCH) {
                let offset = index * BLOCK;
                let block = Block {
                    index: index as usize,
                    offset,
                    bytes: BLOCK.min(bytes - offset) as usize,
                };
                let result = match watch.cancelled() {
                    true => Err(Error::Cancelled),
                    false => work(&mut worker, block),
                };
                if let Err(wrong) = result {
                    stop.store(true, Ordering::Relaxed);
                    if let Ok(mut error) = error.lock() {
                        error.get_or_insert(wrong);
                    }
                    return;
                }
                watch.done(block.bytes as u64);
            }
        }
    };
    thread::scope(|scope| {
        for number in 1..threads(blocks) {
            let name = format!("ram-{number}");
            // Without it there is one thread less.
            let _ = thread::Builder::new().name(name).spawn_scoped(scope, run);
        }
        run();
    });
    match error.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

fn threads(blocks: u64) -> u64 {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    (processors.min(THREADS_MOST) as u64).min(blocks.div_ceil(BATCH))
}
