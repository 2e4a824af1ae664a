//! Snapshots and restores, with the tiny guest on `/dev/kvm`: the real Ferry, killed in between, and fresh back-ends
//! elsewhere.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod common;
mod controls;
mod damage;
mod differences;
mod faults_on_load;
mod faults_on_save;
mod generations;
mod moments;
mod plain;
mod ram_modes;
mod refusals;
mod storage;
mod vectors;
