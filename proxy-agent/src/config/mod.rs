//! How an agent is set up: what it was started with, and how it is configured.
//!
//! The command line, the environment and files of YAML documents all say part of it. Each part becomes [`Settings`], in which
//! everything is optional; applied in the order defaults < files < environment < flags they make a [`Configuration`],
//! in which nothing is. Values are judged where they are read, so that an error can name the file and the field.
//!
//! Invariant: a [`Configuration`] is valid; whoever holds one checks nothing again.

mod configuration;
mod conntrack;
mod documents;
mod duration;
mod file;
mod map_sizes;
mod options;
mod settings;
mod values;

pub use configuration::Configuration;
pub use conntrack::{Conntrack, ConntrackSettings};
pub use duration::GoDuration;
pub use file::{ConfigError, FileReport, read_file, read_files};
pub use map_sizes::{Entries, Growth, MapLimits, MapSettings, MapSizing};
pub use options::{AgentOptions, SourceSpec};
pub use settings::{SettingError, Settings};
pub use values::{Address, Cidr, NodePortAddress, PortRange, SocketLb};
