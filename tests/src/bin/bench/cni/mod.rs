//! `cni`: how fast pods get their interface, and how good that is, against the stock chain of plugins.
//!
//! The stock chain is bridge with host-local, portmap and bandwidth as Debian ships them. Both are executed as a container
//! runtime does it, in nodes of one world that share nothing: processes with an environment and a document on standard
//! input, one plugin after the other, each getting the result of the one before. Namespaces are there already, as they are
//! when a runtime calls. All is interleaved, and a ratio is formed within a round. IPv4 alone: with IPv6, bridge waits a
//! second or two for the detection of duplicates.

mod chain;
mod churn;
mod shaped;
mod site;
mod traffic;

use crate::Quantity;

/// In the order in which they are measured.
pub const QUANTITIES: [Quantity; 3] = [
    Quantity {
        name: "cni.churn",
        measure: churn::measure,
    },
    Quantity {
        name: "cni.traffic",
        measure: traffic::measure,
    },
    Quantity {
        name: "cni.shaped",
        measure: shaped::measure,
    },
];
