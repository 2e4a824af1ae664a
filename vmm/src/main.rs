//! Ferry.
#![allow(dead_code)]

mod acpi;
mod boot;
mod cpu;
mod layout;

fn main() {}
