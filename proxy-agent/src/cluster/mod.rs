//! The second stage: what the cluster looks like now, in as little memory as it takes.
//!
//! [`ClusterState`] takes the events of a source one by one, keeps of each object what decides where packets go, and says which
//! services have to be planned again. It holds validated types only: whoever reads from it checks nothing again.
//!
//! Invariants: an event that changes nothing that matters makes nothing dirty; an event costs the same however many
//! objects there are (only the end of a full list looks at all objects of its kind); objects that do not count are not
//! there; a bad field is reported and spoils the place it stands in, never the rest.

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
