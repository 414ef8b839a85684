//! The sizes of the maps.
//!
//! Maps of the cluster's objects start at a size for most clusters and grow, so they have two sizes. Maps of
//! flows are made once and evict their oldest entries, so they have one. A single number for a map that grows
//! is its first size.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A number of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Entries(u32);

impl Entries {
    /// The most entries of one map. No node has memory for more, so a larger number is a typing error.
    pub const MAX: u32 = 1 << 26;

    /// The number of entries.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Entries {
    type Error = String;

    fn try_from(entries: u64) -> Result<Self, Self::Error> {
        match u32::try_from(entries) {
            Ok(entries) if (1..=Self::MAX).contains(&entries) => Ok(Self(entries)),
            _ => Err(format!("{entries} entries are outside 1-{}", Self::MAX)),
        }
    }
}

/// The sizes of a map that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// The number of entries for which there is space at first.
    pub initial: u32,
    /// The number of entries beyond which it does not grow.
    pub max: u32,
}

/// The sizes of all maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapLimits {
    /// Addresses and ports of frontends.
    pub frontends: Growth,
    /// References from frontends to backends.
    pub slots: Growth,
    /// Backends of frontends.
    pub backends: Growth,
    /// Virtual addresses and addresses of the node.
    pub addresses: Growth,
    /// Flows of the packet path. Flows that begin or have ended have half as much space in addition.
    pub flows: u32,
    /// Clients with session affinity.
    pub affinity: u32,
    /// Peers of unconnected UDP sockets.
    pub socket_peers: u32,
    /// Network namespaces of this node's pods.
    pub pod_namespaces: u32,
}

impl Default for MapLimits {
    fn default() -> Self {
        Self {
            frontends: Growth {
                initial: 65_536,
                max: 4_194_304,
            },
            slots: Growth {
                initial: 262_144,
                max: 16_777_216,
            },
            backends: Growth {
                initial: 131_072,
                max: 8_388_608,
            },
            addresses: Growth {
                initial: 65_536,
                max: 4_194_304,
            },
            flows: 262_144,
            affinity: 65_536,
            socket_peers: 65_536,
            pod_namespaces: 4_096,
        }
    }
}

/// The settings for the size of a map that grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapSizing {
    initial: Option<Entries>,
    max: Option<Entries>,
}

impl MapSizing {
    /// The sizes; fails if they contradict each other.
    pub fn new(initial: Option<Entries>, max: Option<Entries>) -> Result<Self, String> {
        match (initial, max) {
            (Some(initial), Some(max)) if initial > max => Err(format!(
                "initial {} is more than max {}",
                initial.get(),
                max.get()
            )),
            _ => Ok(Self { initial, max }),
        }
    }

    /// Changes `growth`. If only one size is given, the other is adjusted to it.
    fn apply(self, growth: &mut Growth) {
        if let Some(initial) = self.initial {
            growth.initial = initial.get();
            growth.max = growth.max.max(growth.initial);
        }
        if let Some(max) = self.max {
            growth.max = max.get();
            growth.initial = growth.initial.min(growth.max);
        }
    }
}

impl<'de> Deserialize<'de> for MapSizing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Both {
            initial: Option<Entries>,
            max: Option<Entries>,
        }

        struct NumberOrBoth;

        impl<'de> Visitor<'de> for NumberOrBoth {
            type Value = MapSizing;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of entries, or initial and max")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<MapSizing, E> {
                let initial = Entries::try_from(number).map_err(E::custom)?;
                Ok(MapSizing {
                    initial: Some(initial),
                    max: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MapSizing, A::Error> {
                let both = Both::deserialize(MapAccessDeserializer::new(map))?;
                MapSizing::new(both.initial, both.max).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(NumberOrBoth)
    }
}

/// The settings for the sizes of maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct MapSettings {
    frontends: MapSizing,
    slots: MapSizing,
    backends: MapSizing,
    addresses: MapSizing,
    flows: Option<Entries>,
    affinity: Option<Entries>,
    socket_peers: Option<Entries>,
    pod_namespaces: Option<Entries>,
}

impl MapSettings {
    /// Changes the sizes of `limits` that are set.
    pub fn apply(&self, limits: &mut MapLimits) {
        self.frontends.apply(&mut limits.frontends);
        self.slots.apply(&mut limits.slots);
        self.backends.apply(&mut limits.backends);
        self.addresses.apply(&mut limits.addresses);
        for (setting, limit) in [
            (self.flows, &mut limits.flows),
            (self.affinity, &mut limits.affinity),
            (self.socket_peers, &mut limits.socket_peers),
            (self.pod_namespaces, &mut limits.pod_namespaces),
        ] {
            *limit = setting.map_or(*limit, Entries::get);
        }
    }
}

/// Reads the value of the document's key `maps` on one line, for flags and the environment: `{frontends:
/// 1000, slots: {max: 50000}}`.
impl FromStr for MapSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_saphyr::from_str(text).map_err(|error| super::documents::message(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> MapLimits {
        let mut limits = MapLimits::default();
        text.parse::<MapSettings>().unwrap().apply(&mut limits);
        limits
    }

    #[test]
    fn a_number_is_where_a_map_starts() {
        let limits = limits("{frontends: 1000, flows: 5000}");
        assert_eq!(
            limits.frontends,
            Growth {
                initial: 1000,
                max: 4_194_304
            }
        );
        assert_eq!(limits.flows, 5000);
        assert_eq!(limits.slots, MapLimits::default().slots);
    }

    #[test]
    fn the_size_that_is_not_given_gives_way() {
        assert_eq!(
            limits("{frontends: {max: 1000}}").frontends,
            Growth {
                initial: 1000,
                max: 1000
            }
        );
        assert_eq!(
            limits("{frontends: 5000000}").frontends,
            Growth {
                initial: 5_000_000,
                max: 5_000_000
            }
        );
        assert_eq!(
            limits("{slots: {initial: 10, max: 20}}").slots,
            Growth { initial: 10, max: 20 }
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (text, expected) in [
            ("{frontends: 0}", "0 entries are outside 1-67108864"),
            ("{flows: 67108865}", "67108865 entries are outside 1-67108864"),
            ("{slots: {initial: 3, max: 2}}", "initial 3 is more than max 2"),
            ("{slots: {start: 3}}", "unknown field `start`"),
            (
                "{slots: many}",
                "expected a number of entries, or initial and max",
            ),
            ("{flow: 1}", "unknown field `flow`"),
            ("{flows: {initial: 1}}", "expected"),
        ] {
            let error = text.parse::<MapSettings>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
