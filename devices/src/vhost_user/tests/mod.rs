//! Scenarios over real sockets: a scripted peer for the wire, and real back-ends.

mod harness;
mod qemu;
mod ring;
