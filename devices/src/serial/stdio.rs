//! Standard input and output as the far end.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::SerialError;
use super::escape::Escape;
use super::sink::{Excess, Failure, Line, duplicate};

#[derive(Clone, Copy)]
enum Direction {
    Input,
    Output,
}

/// Opens both.
pub fn open() -> Result<Line, SerialError> {
    open_on(io::stdin().as_fd(), io::stdout().as_fd()).map_err(|cause| SerialError::Setup {
        what: "standard input and output",
        cause,
    })
}

/// Opens what `input` and `output` refer to; both stay as they are.
pub fn open_on(input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> io::Result<Line> {
    let terminal = input.is_terminal();
    let input = nonblocking(input, Direction::Input)?;
    let output = nonblocking(output, Direction::Output)?;
    let mut line = Line::new(match output.metadata()?.is_file() {
        true => Failure::Loses,
        false => Failure::Ends,
    });
    if terminal {
        line.excess = Excess::IsRead;
    }
    line.input = Some(input);
    line.output = Some(output);
    line.escape = Some(Escape::default());
    Ok(line)
}

/// A descriptor on which reads and writes do not wait.
///
/// O_NONBLOCK cannot be set on standard input and output as they are: the shell, and whatever else
/// has inherited them, would find it set. A terminal or pipe can be opened anew through /proc. Where that is
/// refused, a blocking descriptor has to do: the serial thread asks before it reads or
/// writes, and writes no more than a pipe takes at once.
fn nonblocking(fd: BorrowedFd<'_>, direction: Direction) -> io::Result<File> {
    let copy = duplicate(fd)?;
    let fifo = copy
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_fifo());
    if !fifo && !fd.is_terminal() {
        return Ok(copy);
    }
    let anew = OpenOptions::new()
        .read(matches!(direction, Direction::Input))
        .write(matches!(direction, Direction::Output))
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok(anew.unwrap_or(copy))
}
