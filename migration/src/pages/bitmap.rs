//! Which pages have changed.

use super::{BLOCK, PAGE};

/// Pages in a word.
const WORD: u64 = u64::BITS as u64;

/// One bit for each 4 KiB page of guest-physical addresses, from 0 up to a given end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    pages: u64,
}

/// A stretch of pages within one block of 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it begins.
    pub gpa: u64,
    /// Its length.
    pub bytes: u64,
}

impl Bitmap {
    /// An empty one, for addresses below `end`.
    pub fn new(end: u64) -> Self {
        let pages = end.div_ceil(PAGE);
        Bitmap {
            words: vec![0; pages.div_ceil(WORD) as usize],
            pages,
        }
    }

    /// Adds 64 pages, from page `64 * index` on, as KVM and vhost-user logs have them: the lowest bit is the first page.
    /// What is behind the end does not count.
    pub fn or_word(&mut self, index: u64, bits: u64) {
        let valid = match self.pages.saturating_sub(index.saturating_mul(WORD)) {
            0 => return,
            left @ 1..WORD => (1 << left) - 1,
            WORD.. => u64::MAX,
        };
        self.words[index as usize] |= bits & valid;
    }

    /// Adds all pages that a range touches, as far as they are before the end.
    pub fn set_range(&mut self, gpa: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let first = gpa / PAGE;
        let end = gpa.saturating_add(bytes).div_ceil(PAGE).min(self.pages);
        let mut page = first;
        while page < end {
            let (index, bit) = (page / WORD, page % WORD);
            let count = (WORD - bit).min(end - page);
            let mask = u64::MAX >> (WORD - count) << bit;
            self.words[index as usize] |= mask;
            page += count;
        }
    }

    /// Adds the pages of another one, as far as they are before the end of this one.
    pub fn add(&mut self, other: &Bitmap) {
        for (index, bits) in other.words.iter().enumerate() {
            self.or_word(index as u64, *bits);
        }
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Leaves it empty.
    pub fn take(&mut self) -> Bitmap {
        let words = vec![0; self.words.len()];
        Bitmap {
            words: std::mem::replace(&mut self.words, words),
            pages: self.pages,
        }
    }

    /// The stretches of its pages, in order, cut at the borders of blocks.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut page = 0;
        std::iter::from_fn(move || {
            let first = self.next(page, 0)?;
            let border = (first + 1).next_multiple_of(BLOCK / PAGE);
            let end = self.next(first, u64::MAX).unwrap_or(self.pages);
            page = end.min(border).min(self.pages);
            Some(Run {
                gpa: first * PAGE,
                bytes: (page - first) * PAGE,
            })
        })
    }

    /// The first page from `from` on whose bit differs from those of `uniform`.
    fn next(&self, from: u64, uniform: u64) -> Option<u64> {
        let mut index = from / WORD;
        let mut mask = u64::MAX.checked_shl((from % WORD) as u32)?;
        while let Some(word) = self.words.get(index as usize) {
            let found = (word ^ uniform) & mask;
            if found != 0 {
                return Some(index * WORD + u64::from(found.trailing_zeros()))
                    .filter(|page| *page < self.pages);
            }
            mask = u64::MAX;
            index += 1;
        }
        None
    }
}
