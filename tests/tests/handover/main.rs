//! Guests that are handed from one Ferry process to another with their RAM and the live connections of their devices: the tiny guest on
//! `/dev/kvm`, real Ferrys on both sides.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod command;
mod common;
mod many;
mod mixed;
mod moments;
mod outside;
mod place;
mod plain;
mod silence;
