//! How an agent is set up: what it was started with, and how it is configured.
//!
//! The command line, the environment and files of YAML documents all say part of it. Each part becomes [`Settings`], in which
//! everything is optional; applied in the order defaults < files < environment < flags they make a [`Configuration`],
//! in which nothing is. A file may have been written for kube-proxy: what has a meaning here is taken from it. Values are judged where they are read, so that an error can name the file and the field.
//!
//! Invariant: a [`Configuration`] is valid; whoever holds one checks nothing again.

mod configuration;
mod conntrack;
mod documents;
mod duration;
mod file;
mod follow;
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
mod unheeded;
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

/// Where kube-proxy tells its health, and whoever asks kube-proxy asks us.
pub const HEALTH_PORT: u16 = 10256;
/// Where kube-proxy shows its metrics.
pub const METRICS_PORT: u16 = 10249;
/// Health is asked for by balancers on other machines.
pub const HEALTH_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), HEALTH_PORT);
/// Metrics are for this machine unless somebody says otherwise.
pub const METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), METRICS_PORT);
