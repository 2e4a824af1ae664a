//! Guests that move from one Ferry to another while they run: the tiny guest on `/dev/kvm`, real Ferrys on both sides.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod aftermath;
mod cancel;
mod command;
mod common;
mod converge;
mod damage;
mod devices;
mod fifty;
mod hostile;
mod insiders;
mod liar;
mod liars;
mod mixed;
mod moments;
mod peer;
mod plain;
mod proxy;
mod refusals;
mod told;
mod way;
mod ways;
