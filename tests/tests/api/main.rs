//! Ferry controlled from outside, with the tiny guest on `/dev/kvm`.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod controlled;
mod devices;
mod events;
mod hostile;
mod hung;
mod life_cycle;
mod model;
mod pause;
