//! Scenarios over real sockets: a scripted peer for what no honest back-end does, and real back-ends.

mod channel;
mod harness;
mod hostile;
mod negotiation;
mod peer;
mod qemu;
mod ring;
mod slow;
mod suspend;
mod virtiofsd;
mod wire;
