//! The options and the configuration of an agent.
//!
//! The command line, the environment and files of YAML documents each give a part of it. Each part becomes
//! [`Settings`], in which every field is optional. Applied in the order defaults < files < environment <
//! flags, they make a [`Configuration`], in which no setting is missing. A file may have been written for
//! kube-proxy: its fields with a meaning here are used. Values are validated where they are read, so that an
//! error can name the file and the field.
//!
//! Invariant: a [`Configuration`] is valid, so its readers check nothing again.

mod configuration;
mod conntrack;
mod documents;
mod duration;
mod file;
mod follow;
mod ignored_fields;
mod kube_proxy;
#[cfg(test)]
mod kube_proxy_tests;
mod listen;
mod map_sizes;
mod options;
mod outline;
mod pod_network;
mod port_conflicts;
mod reload;
mod settings;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use configuration::Configuration;
pub use conntrack::{Conntrack, ConntrackSettings};
pub use duration::GoDuration;
pub use file::{ConfigError, FileReport, Read, read_file, read_files};
pub use follow::{Reading, follow};
pub use listen::ListenAddress;
pub use map_sizes::{Entries, Growth, MapLimits, MapSettings, MapSizing};
pub use options::{AgentOptions, NamePattern, SourceSpec};
pub use pod_network::{RoutingMode, Vxlan, VxlanId, VxlanSettings};
pub use reload::Reload;
pub use settings::{SettingError, Settings};
pub use values::{Address, ApiServer, Cidr, HostRouting, NodePortAddress, PortRange, SocketLb};

/// The port of kube-proxy's health, so that its clients find ours.
pub const HEALTH_PORT: u16 = 10256;
/// The port of kube-proxy's metrics.
pub const METRICS_PORT: u16 = 10249;
/// All addresses, since load balancers on other machines ask for health.
pub const HEALTH_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), HEALTH_PORT);
/// The loopback: by default only this machine reads the metrics.
pub const METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), METRICS_PORT);
