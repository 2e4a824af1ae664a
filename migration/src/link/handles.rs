//! Descriptors on their way between two processes of one host, beside the bytes (SCM_RIGHTS).
//!
//! They go with the first byte of a frame, but the kernel may hand them over with bytes before that. So what has come is kept until a
//! frame says how many are meant.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::Socket;

use super::connection::Link;
use super::error::{Error, Violation};
use super::message::Message;
use super::order::Kind;
use super::{HANDLES_MOST, Purpose};
use crate::watch::Watch;

/// Bytes of control data.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(HANDLES_MOST));

/// Descriptors that have come, and that are to go.
#[derive(Default)]
pub(super) struct Handles {
    there: VecDeque<OwnedFd>,
    due: Vec<OwnedFd>,
}

impl Handles {
    pub(super) fn give(&mut self, handles: Vec<OwnedFd>) {
        self.due = handles;
    }

    pub(super) fn take(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (count <= self.there.len()).then(|| self.there.drain(..count).collect())
    }

    pub(super) fn send(&mut self, socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let fds: Vec<BorrowedFd<'_>> = self.due.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); CONTROL];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("too many descriptors for one frame"));
        }
        let sent = sendmsg(socket, slices, &mut control, SendFlags::NOSIGNAL)?;
        // With the first byte, all of them.
        self.due.clear();
        Ok(sent)
    }

    pub(super) fn receive(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); CONTROL];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let received = recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.there.extend(fds);
            }
        }
        // The next frame may have begun before these are taken.
        if received.flags.contains(ReturnFlags::CTRUNC) || self.there.len() > 2 * HANDLES_MOST {
            return Err(io::Error::other(
                "more descriptors have come than a frame can have",
            ));
        }
        Ok(received.bytes)
    }
}

impl Link {
    /// Sends descriptors of this process's, at most [`HANDLES_MOST`], which stay open here.
    ///
    /// # Errors
    /// As [`Link::send`]; or this is no hand-over, or they cannot be copied.
    pub fn send_handles(&mut self, fds: &[BorrowedFd<'_>], watch: &dyn Watch) -> Result<(), Error> {
        let count = fds.len();
        if self.purpose != Purpose::HandOver || count > HANDLES_MOST {
            let reason = "descriptors go over a hand-over's connection, 64 at a time";
            return Err(self.io(io::Error::other(reason)));
        }
        let copies = fds.iter().map(|fd| fd.try_clone_to_owned());
        let copies = copies.collect::<io::Result<Vec<OwnedFd>>>();
        let copies = copies.map_err(|error| self.io(error))?;
        // A rest of a frame before would take them along.
        self.flush(watch)?;
        self.transport.give(copies);
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        self.send(&Message::Handles { count }, watch)
    }

    /// Takes the descriptors that a [`Message::Handles`] has announced.
    ///
    /// # Errors
    /// They have not come with it.
    pub fn take_handles(&mut self, count: u16) -> Result<Vec<OwnedFd>, Error> {
        let taken = self.transport.take_handles(count.into());
        taken.ok_or_else(|| {
            let reason = "it came without the descriptors that it announces";
            self.reject(Violation::content(Kind::Handles, reason))
        })
    }
}
