//! The kinds of problems: the codes that `millrace status` shows, for alerts and scripts.
//!
//! A message is for a person and changes from version to version. A code is for a machine and stays: codes
//! are only added, and none changes its name or its meaning. A kind has a code of its own if the operator's
//! remedy differs from those of other kinds. Every module may name a code, so this module depends on no
//! other.
//!
//! docs/status-codes.md has the same table; a test here compares the two.

use serde::{Deserialize, Serialize};

macro_rules! troubles {
    ($($(#[doc = $doc:literal])+ $variant:ident, $remedy:literal;)+) => {
        /// A kind of problem. The name of the variant is the code.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Trouble {
            $($(#[doc = $doc])+ $variant,)+
            /// This command does not know the code, or the agent is older than codes.
            #[default]
            #[serde(other)]
            Unknown,
        }

        impl Trouble {
            /// All kinds: first those of objects, then those of the configuration, the node and its pods.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+ Self::Unknown];

            /// The code, as it stands in JSON documents.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                    Self::Unknown => "Unknown",
                }
            }

            /// The meaning, for people.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                    Self::Unknown => "This command does not know the code, or the agent is older than codes.",
                }
            }

            /// The remedy, for the operator.
            pub const fn remedy(self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)+
                    Self::Unknown => "Read the message, and use the `millrace` of the agent's version.",
                }
            }
        }
    };
}

troubles! {
    /// Objects of a kind cannot be listed or followed; what is programmed stays.
    SourceUnreachable, "Check that the API server is reached and allows the agent to list and watch, or that \
        the directory is there and readable.";
    /// A file of the source directory, or something in it, is left out; its last good content stays.
    FileInvalid, "Correct the file where the message says; the agent reads it again at once.";
    /// A Service cannot be read or has a field that is not valid; its last good form or the rest of it is
    /// served.
    ServiceInvalid, "Correct the field that the message names: `kubectl edit service`.";
    /// An EndpointSlice cannot be read or has a field that is not valid, or two disagree about an endpoint.
    EndpointsInvalid, "Correct the slice, or look at the controller that writes it: \
        `kubectl get endpointslices -o yaml`.";
    /// A Node, ServiceCIDR, Namespace or Pod cannot be read, or has a field or an annotation that is not
    /// valid.
    ObjectInvalid, "Correct the field or the annotation that the message names.";
    /// Two Services claim one address and port; the one that is named is not served there.
    AddressHeldTwice, "Give one of the two another address or port.";
    /// An address of a Service is a cluster IP, lies in a range of the cluster, is no host's on a link of
    /// the node, or is an API server's with its port.
    AddressRefused, "Take the address out of `spec.externalIPs`, have the load balancer assign another \
        one, or choose another port.";
    /// Another machine has an address that a Service names; only the ports of the Service are served there.
    AddressOfAnother, "Give the Service another address, unless it is meant to share this one.";
    /// A Service's cluster IP is left to the node, which does not have it; packets to it are dropped.
    LeftToNodeUnheld, "Start the program that holds the address, or remove the annotation `millrace.dev/leave-to-node`.";
    /// There are more service ranges, uplinks or source ranges than there is room for.
    LimitExceeded, "Join ranges, or name the uplinks in use with `--uplink`.";
    /// A client has used up its share of a table.
    ClientShareReached, "Look at what this client sends; raise the setting that the message names if the \
        client needs it.";
    /// A map has no room left; what does not fit is not served.
    MapFull, "Raise the map's limit under `maps` in the configuration, and restart the agent.";
    /// A map uses nine tenths of the most entries that it may have.
    MapNearlyFull, "Raise the map's limit under `maps` before it is full, and restart the agent.";
    /// A map cannot be read or written.
    MapAccessFailed, "The agent tries again; restart it if this stays.";
    /// A configuration file is not valid; the last good configuration stays in force.
    ConfigurationInvalid, "Correct the file, and try it with `millrace config check`.";
    /// A setting has changed that counts from the next start on.
    ConfigurationNeedsRestart, "Restart the agent; traffic goes on meanwhile.";
    /// The agent cannot listen at a port for its health, its metrics or a Service's health check.
    PortUnavailable, "Find what has the port with `ss -ltnp` and stop it, or choose another port.";
    /// No Node has the name that the agent was started with.
    NodeNotFound, "Start the agent with the Node's name as `--node-name`; `kubectl get nodes -o wide` lists \
        them.";
    /// Another Node names an address of this node.
    NodeAddressTwice, "Delete the Node that no machine has any more, or give each node its own address.";
    /// No interface has an address that this node's Node names.
    NodeAddressMissing, "Give the address to an interface, or have the kubelet register another one \
        (`--node-ip`).";
    /// Pods or Services have addresses of a family in which the node has none.
    AddressFamilyMissing, "Give an uplink a global address of this family, and name it in the Node.";
    /// The kernel gives ports to sockets of the node that are node ports, or ports of masqueraded flows.
    LocalPortsOverlap, "Reserve the ports by the `sysctl` command in the message.";
    /// There is no uplink, or one that is named is missing or leads to no other machine.
    UplinkNotFound, "Name the interfaces that lead to other machines with `--uplink`.";
    /// An uplink is switched off or has no carrier; no other machine is reached by it.
    UplinkDown, "Switch it on with `ip link set`, or see to its cable and to the device at the other end.";
    /// The programs cannot read the packets of an uplink; no Service is served there.
    LinkNotServed, "Route the traffic by another interface, or translate it by a rule of your own.";
    /// An uplink is a VRF or a port of one, where the kernel routes by another table than for pods; no
    /// Service
    /// is served there.
    UplinkInVrf, "Take it out with `ip link set NAME nomaster`, or name the uplinks in use with `--uplink`.";
    /// An uplink with addresses is a port of a bridge, bond or team, so the kernel takes no packet for them
    /// there.
    UplinkIsPort, "Move its addresses and routes to the device that it is a port of, or run `ip link set NAME nomaster`.";
    /// An interface that is not Millrace's has the name of one of its own.
    ForeignInterface, "Rename or remove that interface.";
    /// A setting under `/proc/sys/net` cannot be made, or another program sets it back.
    SettingRefused, "Make `/proc/sys/net` writable for the agent, and find what sets it back.";
    /// The kernel refuses what the agent asks of it.
    KernelRefused, "Give the agent the capability or the kernel that the message names.";
    /// A route that is not Millrace's leads the same addresses elsewhere; it is left alone.
    RouteTaken, "Remove that route with `ip route del` to have Millrace route these addresses.";
    /// A firewall drops what pods send or are sent.
    FirewallDrops, "Run the commands in the message, and have the firewall do so when it starts.";
    /// kube-proxy runs on this node, or left its rules behind.
    KubeProxyLeftover, "Stop kube-proxy on this node, then run the command in the message.";
    /// A program is not attached to an interface or a cgroup where it belongs.
    ProgramNotAttached, "See with `tc filter show` and `bpftool net` what is attached there; for socket hooks, \
        see that a cgroup v2 hierarchy is mounted.";
    /// A test packet does not get through a program, or the kernel leads packets past Millrace's routes.
    SelfTestFailed, "For a route see `ip rule` and `ip route get`; for a program, restart the agent if this \
        stays.";
    /// A program of another project runs before Millrace's.
    ForeignProgram, "Remove it or have it run later, unless it is meant to be first.";
    /// A program of an older bpf root runs first, over tables that nothing fills.
    LeftoverProgram, "Detach it with `bpftool link detach`, or see `bpftool net` and `bpftool cgroup tree`.";
    /// Another program attached a queueing discipline to a device of Millrace's, which may hold up and drop
    /// packets.
    ForeignQueue, "Remove it with the `tc` command in the message, unless it is meant to be there.";
    /// Pins are gone, and the agent cannot make them again.
    PinsNotKept, "See that a bpf file system is mounted and writable at `--bpf-root`, then restart the \
        agent.";
    /// A pin below the bpf root is not Millrace's; it is left alone.
    ForeignPin, "Remove the pin, or choose another `--bpf-root`.";
    /// The agent lacks a capability; it loads and attaches nothing new.
    CapabilityMissing, "Start the agent with the capabilities that the message names.";
    /// The kernel does not describe the layout of its packets; where a NIC writes a pod's checksum is not
    /// checked.
    ChecksumsNotChecked, "Run a kernel with BTF (`CONFIG_DEBUG_INFO_BTF`) and without lockdown of confidentiality, or \
        take `CAP_NET_RAW` from pods.";
    /// The network namespaces of pods cannot be found; their sockets are left to the packet path.
    PodNamespacesUnknown, "Start the agent with `CAP_SYS_ADMIN`, or on the kernel that the message names.";
    /// This node has no range to give pods addresses from, or one that is too small.
    PodRangeMissing, "Have a controller assign `spec.podCIDRs` of the Node, or set `podCIDRs` in the \
        configuration.";
    /// Pods of another node are not reached, or two nodes have one range of pods.
    PodsUnreachable, "Correct the addresses and ranges of the Node that the message names.";
    /// Container runtimes do not use Millrace's pod network: another one comes first, or the files cannot be
    /// written.
    PodNetworkNotInstalled, "Remove the other description, or make `--cni-conf-dir` and `--cni-bin-dir` \
        writable.";
    /// A running pod lacks a lease, an entry or a setting that the agent cannot make again.
    PodNotWhole, "Run the command in the message, or delete the pod so that it is made anew.";
    /// A pod runs without its interface.
    PodInterfaceGone, "Delete the pod so that it is made anew.";
    /// Leases, notes and entries of pods cannot be read or freed, or disagree.
    PodRecordsBroken, "Compare them with `millrace ipam check`; free a leaked address with \
        `millrace ipam release`.";
    /// A pod's limits, or its leave to send from any address, are not applied.
    PodSettingNotApplied, "Correct what the message names; the agent tries again by itself.";
}

/// One problem. The caller knows the object that it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The kind of the problem.
    pub code: Trouble,
    /// The problem, its place and the remedy.
    pub message: String,
}

impl Remark {
    /// Makes a remark of its parts.
    pub fn new(code: Trouble, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/status-codes.md");
    const HEAD: &str = "| Code | What is wrong | What to do |\n|---|---|---|\n";

    /// The codes of all versions. Alerts and scripts name them, so codes are only ever added here.
    const CODES: [&str; 51] = [
        "SourceUnreachable",
        "FileInvalid",
        "ServiceInvalid",
        "EndpointsInvalid",
        "ObjectInvalid",
        "AddressHeldTwice",
        "AddressRefused",
        "AddressOfAnother",
        "LeftToNodeUnheld",
        "LimitExceeded",
        "ClientShareReached",
        "MapFull",
        "MapNearlyFull",
        "MapAccessFailed",
        "ConfigurationInvalid",
        "ConfigurationNeedsRestart",
        "PortUnavailable",
        "NodeNotFound",
        "NodeAddressTwice",
        "NodeAddressMissing",
        "AddressFamilyMissing",
        "LocalPortsOverlap",
        "UplinkNotFound",
        "UplinkDown",
        "LinkNotServed",
        "UplinkInVrf",
        "UplinkIsPort",
        "ForeignInterface",
        "SettingRefused",
        "KernelRefused",
        "RouteTaken",
        "FirewallDrops",
        "KubeProxyLeftover",
        "ProgramNotAttached",
        "SelfTestFailed",
        "ForeignProgram",
        "LeftoverProgram",
        "ForeignQueue",
        "PinsNotKept",
        "ForeignPin",
        "CapabilityMissing",
        "ChecksumsNotChecked",
        "PodNamespacesUnknown",
        "PodRangeMissing",
        "PodsUnreachable",
        "PodNetworkNotInstalled",
        "PodNotWhole",
        "PodInterfaceGone",
        "PodRecordsBroken",
        "PodSettingNotApplied",
        "Unknown",
    ];

    #[test]
    fn codes_are_only_ever_added() {
        let names: Vec<_> = Trouble::ALL.iter().map(|trouble| trouble.name()).collect();
        for code in CODES {
            assert!(names.contains(&code), "{code} is gone, and alerts name it");
        }
        for name in names {
            assert!(CODES.contains(&name), "add {name} to the list of codes");
        }
    }

    #[test]
    fn the_page_has_every_code() {
        let row = |trouble: &Trouble| {
            let (name, meaning, remedy) = (trouble.name(), trouble.meaning(), trouble.remedy());
            format!("| `{name}` | {meaning} | {remedy} |\n")
        };
        let rows: String = Trouble::ALL.iter().map(row).collect();
        let table = format!("{HEAD}{rows}");
        let start = PAGE.find(HEAD).unwrap_or(PAGE.len());
        assert!(
            PAGE.get(start..) == Some(table.as_str()),
            "docs/status-codes.md has another table at its end; paste this one:\n\n{table}"
        );
    }

    #[test]
    fn a_code_is_its_name() {
        for trouble in Trouble::ALL {
            let json = serde_json::to_string(trouble).unwrap();
            assert_eq!(json, format!("\"{}\"", trouble.name()));
            assert_eq!(serde_json::from_str::<Trouble>(&json).unwrap(), *trouble);
        }
    }

    #[test]
    fn a_cell_of_the_table_is_a_sentence() {
        for trouble in Trouble::ALL {
            for text in [trouble.meaning(), trouble.remedy()] {
                let is_clean = !text.contains(['|', '\n']) && !text.contains("  ") && text.ends_with('.');
                assert!(is_clean, "{}: {text:?}", trouble.name());
            }
        }
    }
}
