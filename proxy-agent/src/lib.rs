//! Placeholder, replaced in the next commit.
#![deny(unsafe_code)]

pub mod bpf;
pub mod cluster;
pub mod source;
