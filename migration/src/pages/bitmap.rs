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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bitmap_ends_where_it_ends() {
        let mut bitmap = Bitmap::new(70 * 4096 - 1);
        bitmap.or_word(0, 1 << 63 | 1);
        bitmap.or_word(1, u64::MAX);
        bitmap.or_word(2, u64::MAX);
        bitmap.or_word(u64::MAX, u64::MAX);
        bitmap.set_range(u64::MAX - 10, u64::MAX);
        bitmap.set_range(5 * 4096, 0);
        assert_eq!(bitmap.count(), 8);
        let run = |page: u64, pages: u64| Run {
            gpa: page * 4096,
            bytes: pages * 4096,
        };
        assert_eq!(bitmap.runs().collect::<Vec<_>>(), [run(0, 1), run(63, 7)]);
        let taken = bitmap.take();
        assert_eq!(taken.count(), 8);
        assert!(bitmap.is_empty() && !taken.is_empty());
        bitmap.add(&taken);
        assert_eq!(bitmap, taken);
        assert_eq!(Bitmap::new(0).runs().count(), 0);
    }

    proptest! {
        #[test]
        fn a_bitmap_has_the_pages_that_were_put_in(
            end in 1u64..2000,
            ranges in prop::collection::vec((0u64..2100, 0u64..700), 0..8),
            words in prop::collection::vec((0u64..40, any::<u64>()), 0..8),
        ) {
            let mut bitmap = Bitmap::new(end * 4096);
            let mut pages = BTreeSet::new();
            for (page, count) in ranges {
                bitmap.set_range(page * 4096 + page % 4096, count * 4096);
                // A range that begins within a page touches one more.
                let touched = count + u64::from(count != 0 && page % 4096 != 0);
                pages.extend(page..page + touched);
            }
            for (index, word) in words {
                bitmap.or_word(index, word);
                pages.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| index * 64 + bit));
            }
            pages.retain(|page| *page < end);
            prop_assert_eq!(bitmap.count(), pages.len() as u64);
            let mut found = Vec::new();
            let mut before = None;
            for run in bitmap.runs() {
                let last = run.gpa + run.bytes - 1;
                prop_assert!(run.bytes != 0 && run.gpa / BLOCK == last / BLOCK);
                // Not cut without need.
                prop_assert!(before != Some(run.gpa) || run.gpa % BLOCK == 0);
                before = Some(run.gpa + run.bytes);
                found.extend(run.gpa / 4096..=last / 4096);
            }
            prop_assert_eq!(found, pages.into_iter().collect::<Vec<_>>());
        }
    }
}
