//! What the operator types at Ferry instead of the guest: Ctrl-A x.
//!
//! ```text
//!            Ctrl-A                x: quit
//!   Plain ───────────▶ Escaped ───────────────▶ Plain
//!     ▲                   │  Ctrl-A: one Ctrl-A to the guest
//!     └───────────────────┘  else: Ctrl-A and the key to the guest
//! ```

const CTRL_A: u8 = 1;

/// Where in the sequence the operator is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escape {
    /// Keys go to the guest.
    #[default]
    Plain,
    /// The last key was Ctrl-A.
    Escaped,
}

/// What came out of a piece of input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// What the guest is to see.
    pub bytes: Vec<u8>,
    /// Whether Ctrl-A x was among it.
    pub quit: bool,
}

impl Escape {
    /// Goes through `input`, which may end in the middle of a sequence.
    pub fn feed(&mut self, input: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &key in input {
            match (*self, key) {
                (Self::Plain, CTRL_A) => *self = Self::Escaped,
                (Self::Plain, _) => typed.bytes.push(key),
                (Self::Escaped, _) => {
                    *self = Self::Plain;
                    match key {
                        b'x' | b'X' => typed.quit = true,
                        CTRL_A => typed.bytes.push(CTRL_A),
                        _ => typed.bytes.extend([CTRL_A, key]),
                    }
                }
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `pieces` one after the other.
    fn typed(pieces: &[&[u8]]) -> Typed {
        let mut escape = Escape::default();
        let mut all = Typed::default();
        for piece in pieces {
            let typed = escape.feed(piece);
            all.bytes.extend(typed.bytes);
            all.quit |= typed.quit;
        }
        all
    }

    fn bytes(bytes: &[u8]) -> Typed {
        Typed {
            bytes: bytes.into(),
            quit: false,
        }
    }

    #[test]
    fn ctrl_a_x_quits_and_everything_else_reaches_the_guest() {
        assert_eq!(typed(&[b"axa"]), bytes(b"axa"));
        assert_eq!(typed(&[b"a\x01\x01x"]), bytes(b"a\x01x"));
        assert_eq!(typed(&[b"a\x01", b"\x01b"]), bytes(b"a\x01b"));
        assert_eq!(typed(&[b"\x01c"]), bytes(b"\x01c"));
        for pieces in [&[b"\x01x".as_slice()][..], &[b"\x01", b"x"], &[b"\x01X"]] {
            let quit = Typed {
                bytes: Vec::new(),
                quit: true,
            };
            assert_eq!(typed(pieces), quit);
        }
    }
}
