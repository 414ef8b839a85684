//! `sync`: time and memory of the path from objects to map entries.
//!
//! The input is N services with one port and two or three endpoints each, alternately. The agent under test
//! runs on one CPU, and the processes that watch it on another. The results come from the kernel's maps,
//! which this process opens by their pins. Only the duration of the first sync comes from the agent's own
//! status.

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
