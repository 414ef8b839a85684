//! Settings and links of the node that the programs depend on, and whose change the kernel does not report.

use proxy_common::maps::ConfigFlags;

use super::configuration::of_conditions;
use super::{Node, is_host};
use crate::agent::local_ports;
use crate::config::AgentOptions;
use crate::network::Role;
use crate::network::sysctl::is_strict;

/// Settings of the kernel that the programs depend on, and whose change the kernel does not report.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Uplinks with strict reverse-path filtering.
    pub strict_interfaces: Vec<u32>,
    /// Whether sockets of the node get ports of masqueraded flows.
    pub local_ports_overlap: bool,
}

impl Node {
    /// Whether the kernel's settings differ from those that the programs know.
    pub fn has_other_settings(&self, options: &AgentOptions) -> bool {
        self.attached && self.read_settings(options) != self.settings
    }

    /// Reads them from the kernel, which takes microseconds.
    pub fn read_settings(&self, options: &AgentOptions) -> Settings {
        Settings {
            strict_interfaces: self.strict_interfaces(),
            local_ports_overlap: local_ports::overlaps_masquerade(options),
        }
    }

    /// The uplinks with strict reverse-path filtering, if the programs can repeat the kernel's check. They
    /// cannot where a route has next hops on several interfaces, since the kernel accepts any of these.
    fn strict_interfaces(&self) -> Vec<u32> {
        let links = self.monitor.links();
        if links.has_equal_routes() {
            return Vec::new();
        }
        let uplinks = self.roles.of(Role::Uplink);
        let uplinks = uplinks.filter(|uplink| !self.roles.trunks.contains(&uplink.index));
        let strict = uplinks.filter(|uplink| is_strict(&links.name(uplink.index)));
        strict.map(|uplink| uplink.index).collect()
    }

    /// The bits of [`ConfigFlags`] that follow from links and settings. `outside_ranges` is true if virtual
    /// addresses lie outside of all ranges.
    pub fn conditions(&self, outside_ranges: bool) -> u32 {
        let links = self.monitor.links();
        let has_local_ranges = links.local_ranges().any(|range| !is_host(&range));
        let overlap = self.settings.local_ports_overlap;
        of_conditions([
            (outside_ranges, ConfigFlags::VIPS_OUTSIDE_RANGES),
            (has_local_ranges, ConfigFlags::LOCAL_RANGES),
            (overlap, ConfigFlags::LOCAL_PORTS_OVERLAP),
            (self.roles.watch_all(links), ConfigFlags::TUNNEL_SEALED),
        ])
    }
}
