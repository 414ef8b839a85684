//! The hook of a chain, and the packets of pods that pass there.
//!
//! At an interface our ingress program runs before the chains of *ingress* (`__netif_receive_skb_core` of
//! `net/core/dev.c`). Our egress program runs after those of *egress* (`__dev_queue_xmit`). So a chain at an
//! uplink sees the pods' own addresses in both directions.

use super::Pods;
use super::packet::PodInterfaces;
use crate::bpf::links::OWN_POD;
use crate::network::nfnetlink::{RuleFamily, attribute, attributes, number, text};

/// The numbers `NF_INET_FORWARD` and `NF_INET_INGRESS`.
const FORWARD: u32 = 2;
const INET_INGRESS: u32 = 5;
/// The numbers `NF_NETDEV_INGRESS` and `NF_NETDEV_EGRESS`.
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;
/// The attributes of a hook: its number, its one device, all its devices; and the name of each device.
const NUMBER: u16 = 1;
const DEVICE: u16 = 3;
const DEVICES: u16 = 4;
const NAME: u16 = 1;

/// The hook at which the kernel runs a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The chain sees the packets that the node forwards.
    Forward,
    /// The chain sees the packets that enter by these interfaces.
    Ingress(Vec<String>),
    /// The chain sees the packets that leave by these interfaces.
    Egress(Vec<String>),
}

/// Packets of pods that pass a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passing {
    /// Whether pods send the packets; if not, pods receive them.
    pub from_pods: bool,
    /// The interfaces of pods by which the packets enter or leave.
    pub interfaces: PodInterfaces,
    /// The devices of the hook where the packets pass; empty for a hook without devices.
    pub devices: Vec<String>,
}

impl Hook {
    /// Parses the attributes of a chain's hook. Returns `None` for a hook that packets of pods do not pass.
    pub fn read(family: RuleFamily, hook: &[u8]) -> Option<Self> {
        let number = number(attribute(hook, NUMBER)?)?;
        Some(match (family, number) {
            (RuleFamily::Netdev, INGRESS) | (RuleFamily::Inet, INET_INGRESS) => Self::Ingress(devices(hook)),
            (RuleFamily::Netdev, EGRESS) => Self::Egress(devices(hook)),
            (RuleFamily::Netdev, _) => return None,
            (_, FORWARD) => Self::Forward,
            _ => return None,
        })
    }

    /// The packets of pods that pass this hook.
    pub fn passing(&self, pods: &Pods) -> Vec<Passing> {
        let (devices, is_ingress) = match self {
            Self::Forward => {
                let both = [true, false].map(|from_pods| Passing {
                    from_pods,
                    interfaces: pods.interfaces.clone(),
                    devices: Vec::new(),
                });
                return both.into();
            }
            Self::Ingress(devices) => (devices, true),
            Self::Egress(devices) => (devices, false),
        };
        let chosen = |is_chosen: &dyn Fn(&String) -> bool| -> Vec<String> {
            devices
                .iter()
                .filter(|device| is_chosen(device))
                .cloned()
                .collect()
        };
        let of_pods = chosen(&|device| match &pods.interfaces {
            PodInterfaces::Own => device.starts_with(OWN_POD),
            PodInterfaces::Named(names) => names.contains(device),
        });
        let uplinks = chosen(&|device| pods.uplinks.contains(device));
        let at = |devices: Vec<String>, from_pods, interfaces| Passing {
            from_pods,
            interfaces,
            devices,
        };
        // At an uplink the interface of the pod is unknown.
        let both = [
            at(of_pods.clone(), is_ingress, PodInterfaces::Named(of_pods)),
            at(uplinks, !is_ingress, PodInterfaces::Named(Vec::new())),
        ];
        let both = both.into_iter().filter(|passing| !passing.devices.is_empty());
        both.collect()
    }
}

fn devices(hook: &[u8]) -> Vec<String> {
    let one = attribute(hook, DEVICE).map(text);
    let all = attributes(attribute(hook, DEVICES).unwrap_or_default());
    let all = all.filter(|(kind, _)| *kind == NAME).map(|(_, name)| text(name));
    let mut devices: Vec<_> = one.into_iter().chain(all).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}
