//! Settings of the pod network: how packets reach the pods of other nodes, and the tunnel for them.

use std::fmt;
use std::num::NonZeroU16;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How packets reach the pods of another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RoutingMode {
    /// Directly to nodes on a link of this one, through a tunnel to all others.
    #[default]
    Auto,
    /// Directly to nodes on a link of this one; the routes to the others belong to the network between the
    /// nodes.
    Direct,
    /// Through a tunnel to all other nodes.
    Vxlan,
}

/// The identifier of a VXLAN segment, of 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct VxlanId(u32);

impl VxlanId {
    /// The number of the segment.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for VxlanId {
    type Error = String;

    fn try_from(id: u64) -> Result<Self, Self::Error> {
        match u32::try_from(id) {
            Ok(id) if (1..1 << 24).contains(&id) => Ok(Self(id)),
            _ => Err(format!("{id} is no identifier of a VXLAN: write 1-16777215")),
        }
    }
}

impl fmt::Display for VxlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The tunnel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// The UDP port of the tunnel on every node.
    pub port: u16,
    /// The identifier of the segment.
    pub id: VxlanId,
}

impl Default for Vxlan {
    /// The values of flannel, so that an operator can move nodes from flannel one by one.
    fn default() -> Self {
        Self {
            port: 8472,
            id: VxlanId(1),
        }
    }
}

/// The settings of the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VxlanSettings {
    port: Option<NonZeroU16>,
    id: Option<VxlanId>,
}

impl VxlanSettings {
    /// Applies the settings that are given.
    pub fn apply(&self, vxlan: &mut Vxlan) {
        if let Some(port) = self.port {
            vxlan.port = port.get();
        }
        if let Some(id) = self.id {
            vxlan.id = id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_has_a_port_and_a_segment() {
        let mut vxlan = Vxlan::default();
        let settings: VxlanSettings = serde_saphyr::from_str("{id: 4096}").unwrap();
        settings.apply(&mut vxlan);
        assert_eq!((vxlan.port, vxlan.id.get()), (8472, 4096));
        for bad in ["{port: 0}", "{id: 0}", "{id: 16777216}", "{group: 239.1.1.1}"] {
            assert!(serde_saphyr::from_str::<VxlanSettings>(bad).is_err(), "{bad}");
        }
    }
}
