//! `cni`: how fast pods get their interface and how fast that interface is, against the stock chain of
//! plugins.
//!
//! The stock chain is bridge with host-local, portmap and bandwidth as Debian ships them. Both chains are
//! executed as a container runtime does it, in nodes of one world that share nothing. Each plugin is a
//! process with an environment and a document on standard input, and gets the result of the plugin before it.
//! The namespaces exist already, as they do when a runtime calls. All measurements are interleaved, and a
//! ratio is formed within a round. The benchmark uses IPv4 only: with IPv6, bridge waits a second or two for
//! the detection of duplicates.

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
