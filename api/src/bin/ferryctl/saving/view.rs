//! Progress while it goes on: one line that changes on a terminal, else a line now and then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use ferry_api::wire::{Progress, Step};

use super::report;
use crate::failure::Failure;
use crate::output::{self, Form};
use crate::text::shorten;

/// Characters in a line.
const WIDTH: usize = 79;
/// How often there is a line where nothing but numbers has changed.
const SELDOM: Duration = Duration::from_secs(5);

/// Where progress goes.
#[derive(Debug)]
pub struct View {
    place: Place,
    /// What was said last, and when.
    last: Option<(Step, Instant)>,
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

impl View {
    /// A view in this form.
    pub fn new(form: Form) -> Self {
        let place = match form {
            Form::Json => Place::Nowhere,
            Form::Words if io::stderr().is_terminal() => Place::Terminal,
            Form::Words => Place::Lines,
        };
        View { place, last: None }
    }

    /// Shows how it stands.
    pub fn show(&mut self, progress: &Progress) -> Result<(), Failure> {
        let line = report::line(progress);
        match self.place {
            Place::Nowhere => Ok(()),
            Place::Terminal => {
                self.last = Some((progress.step, Instant::now()));
                draw(&format!("\r\x1b[K{}", shorten(&line, WIDTH)));
                Ok(())
            }
            Place::Lines => {
                let known = self
                    .last
                    .is_some_and(|(step, when)| step == progress.step && when.elapsed() < SELDOM);
                if known {
                    return Ok(());
                }
                self.last = Some((progress.step, Instant::now()));
                output::write(&(line + "\n"))
            }
        }
    }

    /// Makes room for other output.
    pub fn clear(&mut self) {
        if self.place == Place::Terminal && self.last.take().is_some() {
            draw("\r\x1b[K");
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Nobody is left to be told if this fails.
fn draw(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
