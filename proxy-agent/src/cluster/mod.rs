//! The second stage: the present state of the cluster, in as little memory as possible.
//!
//! [`ClusterState`] takes the events of a source one by one. It keeps the fields of each object that decide
//! where packets go, and reports which services have to be planned again. It holds validated types only, so
//! readers check nothing again.
//!
//! Invariants:
//! - An event that changes no kept field makes nothing dirty.
//! - The cost of an event does not depend on the number of objects. Only the end of a full list looks at all
//!   objects of its kind.
//! - Objects that do not count are not stored.
//! - A bad field is reported, and spoils the part that it stands in, never the rest.

pub mod address;
pub mod bandwidth;
mod cluster_ips;
pub mod endpoint;
pub mod endpoint_slice;
pub mod external;
pub mod interner;
pub mod merge;
pub mod names;
pub mod node;
pub mod pod_choice;
pub mod pods;
pub mod port;
mod problems;
pub mod service;
mod services;
mod small;
pub mod state;

#[cfg(test)]
mod bad_input_tests;
#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod state_tests;

pub use address::{Family, canonical_ip, canonical_net};
pub use bandwidth::Bandwidth;
pub use endpoint::{Conditions, Endpoint, Endpoints};
pub use endpoint_slice::{EndpointPort, EndpointSlice};
pub use external::{External, SourceRanges};
pub use interner::Symbol;
pub use merge::{Merged, MergedEndpoint};
pub use names::{Names, Placement};
pub use node::{Node, ServiceCidr};
pub use pod_choice::PodChoice;
pub use pods::{BandwidthByPod, PodNames};
pub use port::Protocol;
pub use problems::{Problem, Problems};
pub use service::{Service, ServicePort};
pub use state::{Changes, ClusterState};
