//! Progress while it goes on: one line that changes on a terminal, else a line now and then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::output::{self, Form};
use crate::text::shorten;

/// Characters in a line.
const WIDTH: usize = 79;
/// How often there is a line where nothing but numbers has changed.
const SELDOM: Duration = Duration::from_secs(5);

/// Where progress goes. It is in parts of the kind `P`, of which each gets a line.
#[derive(Debug)]
pub struct View<P> {
    place: Place,
    /// What was said last, and when.
    last: Option<(P, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Standard error, line over line.
    Terminal,
    /// Standard output, line by line.
    Lines,
    /// Programs get it in the end.
    Nowhere,
}

impl<P: PartialEq> View<P> {
    /// A view in this form.
    pub fn new(form: Form) -> Self {
        let place = match form {
            Form::Json => Place::Nowhere,
            Form::Words if io::stderr().is_terminal() => Place::Terminal,
            Form::Words => Place::Lines,
        };
        View { place, last: None }
    }

    /// Shows how it stands, in one line.
    pub fn show(&mut self, part: P, line: &str) -> Result<(), Failure> {
        match self.place {
            Place::Nowhere => Ok(()),
            Place::Terminal => {
                self.last = Some((part, Instant::now()));
                draw(&format!("\r\x1b[K{}", shorten(line, WIDTH)));
                Ok(())
            }
            Place::Lines => {
                let known = self
                    .last
                    .as_ref()
                    .is_some_and(|(last, when)| *last == part && when.elapsed() < SELDOM);
                if known {
                    return Ok(());
                }
                self.last = Some((part, Instant::now()));
                output::write(&format!("{line}\n"))
            }
        }
    }
}

impl<P> View<P> {
    /// Makes room for other output.
    pub fn clear(&mut self) {
        if self.place == Place::Terminal && self.last.take().is_some() {
            draw("\r\x1b[K");
        }
    }
}

impl<P> Drop for View<P> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Nobody is left to be told if this fails.
fn draw(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
