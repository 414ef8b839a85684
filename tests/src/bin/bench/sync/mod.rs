//! `sync`: how fast and how small the way from objects to map entries is.
//!
//! The input is N services with one port and two or three endpoints each, alternately. The agent under test runs on
//! one CPU, whatever watches it on another; what it did is read from the kernel's maps, which this process opens by
//! their pins, and not from what the agent says, except for the duration of its first sync.

mod bpf_calls;
mod cold;

mod directory;
mod event;
mod kubernetes;
mod large_service;
mod memory;
mod objects;
mod relay;
mod site;
mod tables;
mod unchanged;

use crate::Quantity;

/// In the order in which they are measured.
pub const QUANTITIES: [Quantity; 6] = [
    Quantity {
        name: "sync.cold",
        measure: cold::measure,
    },
    Quantity {
        name: "sync.event",
        measure: event::measure,
    },
    Quantity {
        name: "sync.large-service",
        measure: large_service::measure,
    },
    Quantity {
        name: "sync.unchanged",
        measure: unchanged::measure,
    },
    Quantity {
        name: "sync.memory",
        measure: memory::measure,
    },
    Quantity {
        name: "sync.kubernetes",
        measure: kubernetes::measure,
    },
];
