//! The description of the network for container runtimes, `10-millrace.conflist`.
//!
//! Older runtimes read `cniVersion` and do not know 1.1.0; newer ones choose the newest of `cniVersions` that
//! they know.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::PLUGIN;

/// The file's name. Runtimes take the first file by name.
pub const CONFLIST: &str = "10-millrace.conflist";

/// The network's name.
const NAME: &str = "millrace";
const STATE_DIR: &str = "/var/lib/millrace";
/// The directory in which host-local keeps the leases of a network of this name.
pub const LEASES: &str = "/var/lib/cni/networks/millrace";

/// The contents of the description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The MTU of pods.
    pub mtu: u32,
    /// The directory of the pinned maps and programs.
    pub bpf_root: PathBuf,
    /// The directory of the agent's files that outlive it.
    pub state_dir: PathBuf,
    /// The ranges of pods' addresses, one of each family in use.
    pub pod_cidrs: Vec<IpNet>,
}

/// The name of the directory of leases below a state directory other than the default one.
pub(super) const NETWORKS: &str = "networks";

/// The directory of leases of an agent with this state directory.
pub fn lease_dir(state_dir: &Path) -> PathBuf {
    if state_dir == Path::new(STATE_DIR) {
        LEASES.into()
    } else {
        state_dir.join(NETWORKS).join(NAME)
    }
}

impl Network {
    /// The reason why the plugin cannot assign addresses from these ranges, if there is one.
    pub fn unusable(&self) -> Option<String> {
        // A network needs addresses for itself, a gateway and a pod.
        let small = |range: &&IpNet| range.prefix_len() + 2 > range.max_prefix_len();
        let small = self.pod_cidrs.iter().find(small)?;
        Some(format!("{small} is too small to give pods addresses from"))
    }

    /// The file's content.
    pub fn text(&self) -> String {
        let mut text = format!("{:#}", self.document());
        text.push('\n');
        text
    }

    fn document(&self) -> Value {
        let families = [true, false].map(|v4| {
            let ranges = self.pod_cidrs.iter().filter(|range| range.addr().is_ipv4() == v4);
            ranges.map(|range| json!({"subnet": range})).collect::<Vec<_>>()
        });
        let everywhere = ["0.0.0.0/0", "::/0"];
        let routes = families.iter().zip(everywhere);
        let routes: Vec<_> = routes
            .filter(|(ranges, _)| !ranges.is_empty())
            .map(|(_, everywhere)| json!({"dst": everywhere}))
            .collect();
        let sets: Vec<_> = families.iter().filter(|ranges| !ranges.is_empty()).collect();
        let capabilities = ["portMappings", "bandwidth", "ips", "mac"];
        let capabilities: Map<_, _> = capabilities
            .into_iter()
            .map(|name| (name.to_owned(), json!(true)))
            .collect();
        json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": NAME,
            "plugins": [{
                "type": PLUGIN,
                "mtu": self.mtu,
                "bpfRoot": self.bpf_root,
                "stateDir": self.state_dir,
                "ipam": {
                    "dataDir": lease_dir(&self.state_dir),
                    "ranges": sets,
                    "routes": routes,
                },
                "capabilities": capabilities,
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use cni_plugin::config::NetworkConfig;

    use super::*;

    fn network(pod_cidrs: &[&str]) -> Network {
        Network {
            mtu: 1450,
            bpf_root: "/sys/fs/bpf/millrace".into(),
            state_dir: STATE_DIR.into(),
            pod_cidrs: pod_cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    /// The configuration that a runtime derives from the description for one call of the plugin.
    fn as_executed(network: &Network) -> NetworkConfig {
        let list: Value = serde_json::from_str(&network.text()).unwrap();
        let mut document = list["plugins"][0].clone();
        document["name"] = list["name"].clone();
        document["cniVersion"] = list["cniVersions"][1].clone();
        NetworkConfig::read(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_plugin_reads_what_the_agent_writes() {
        let config = as_executed(&network(&["10.244.1.0/24", "fd00:1::/64", "10.244.9.0/24"]));
        assert_eq!(config.name, "millrace");
        assert_eq!(config.mtu().unwrap(), Some(1450));
        assert_eq!(config.bpf_root, PathBuf::from("/sys/fs/bpf/millrace"));
        assert_eq!(config.state_dir, PathBuf::from(STATE_DIR));
        assert_eq!(config.data_dir, PathBuf::from(LEASES));
        let sets = config.range_sets().unwrap();
        let subnets = |set: usize| -> Vec<String> {
            let ranges = sets[set].ranges.iter();
            ranges.map(|range| range.subnet.to_string()).collect()
        };
        assert_eq!(sets.len(), 2, "one address of each family");
        assert_eq!(subnets(0), ["10.244.1.0/24", "10.244.9.0/24"]);
        assert_eq!(subnets(1), ["fd00:1::/64"]);
        assert_eq!(config.routes().unwrap().unwrap().len(), 2);

        let other = Network {
            state_dir: "/srv/millrace".into(),
            ..network(&["fd00:1::/64"])
        };
        let config = as_executed(&other);
        assert_eq!(config.data_dir, PathBuf::from("/srv/millrace/networks/millrace"));
        assert_eq!(config.range_sets().unwrap().len(), 1);
        let routes = config.routes().unwrap().unwrap();
        assert_eq!(routes[0].dst.to_string(), "::/0");
    }

    #[test]
    fn ranges_that_the_plugin_refuses_are_known() {
        for (cidr, usable) in [
            ("10.0.0.0/30", true),
            ("10.0.0.0/31", false),
            ("fd00::/127", false),
        ] {
            let network = network(&[cidr]);
            assert_eq!(network.unusable().is_none(), usable, "{cidr}");
            assert_eq!(as_executed(&network).range_sets().is_ok(), usable, "{cidr}");
        }
    }
}
