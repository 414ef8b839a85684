//! Detects firewalls of the node that drop packets from or to pods.
//!
//! The packets of pods that the kernel forwards pass every base chain of the hook *forward*. One chain that
//! drops them is enough: an accept in a table of the agent would not overrule it. The agent writes nothing
//! into tables of other programs. It reports the chain, with the commands that mend it.
//!
//! There are also chains at single interfaces (the family *netdev*, and *inet* with the hook *ingress*). A
//! packet from a pod passes those at the pod's interface behind our program. A packet from another machine to
//! a pod passes those at an uplink.
//!
//! The agent reports a chain only if it drops all new packets from pods, or all new packets to pods. A rule
//! accepts them if all its conditions are on pods' addresses, pods' interfaces, the family or a new flow.
//!
//! A rule that looks them up in a set counts as accepting; a rule with any other condition does not. The
//! agent reads the tables of the legacy iptables too ([`legacy`]).

mod hook;
pub mod legacy;
mod packet;
#[cfg(test)]
mod packet_tests;
mod rule;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::net::if_::if_nameindex;

use super::Problem;
use super::nfnetlink::{self, Generations, RuleFamily, attribute, number, text};
use crate::trouble::Trouble;
use hook::{Hook, Passing};
use packet::Packet;
pub use packet::PodInterfaces;
use rule::judge;
use walk::{Chains, Outcome, Read};

/// How many ranges of a family the commands in a message name.
const MOST_RANGES: usize = 4;
/// How often the agent reads the chains again if the rules change meanwhile.
const TRIES: usize = 3;
/// The flags `NFT_TABLE_F_DORMANT` and `NFT_TABLE_F_OWNER`.
const DORMANT: u32 = 1;
const OWNED: u32 = 2;

/// The pods whose packets must pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// The ranges of this node's pods. Each forwarded packet has one of these addresses as its source or
    /// destination.
    pub of_node: Vec<IpNet>,
    /// The ranges that a firewall should accept.
    pub of_cluster: Vec<IpNet>,
    /// The interfaces by which the pods' packets enter and leave.
    pub interfaces: PodInterfaces,
    /// The interfaces that lead to other machines.
    pub uplinks: Vec<String>,
}

/// How often to ask a kernel that has no nftables. Each request starts a program that looks for a module.
const ASK_FOR_NFTABLES: Duration = Duration::from_mins(1);

/// Reads the rules repeatedly, and reports changes.
#[derive(Debug, Default)]
pub struct Watcher {
    generations: Option<Generations>,
    seen: Option<u32>,
    /// When to ask again, if the kernel has no nftables.
    ask: Option<Instant>,
    of_nftables: Vec<Problem>,
    legacy: legacy::Watcher,
    /// The result of the last look.
    known: Option<Vec<Problem>>,
}

impl Watcher {
    /// The present problems, or `None` if they are the same as at the last look. It reads the chains again
    /// after changes, or if `must` is true. The call blocks while the kernel lists all chains, so it must not
    /// run on a thread that others wait for.
    pub fn look(&mut self, pods: &Pods, must: bool) -> io::Result<Option<Vec<Problem>>> {
        self.look_at_nftables(pods, must)?;
        let legacy = self.legacy.look(pods, must)?;
        let now = [self.of_nftables.as_slice(), legacy].concat();
        if self.known.as_ref() == Some(&now) {
            return Ok(None);
        }
        self.known = Some(now.clone());
        Ok(Some(now))
    }

    fn look_at_nftables(&mut self, pods: &Pods, must: bool) -> io::Result<()> {
        if self.ask.is_some_and(|ask| Instant::now() < ask) {
            return Ok(());
        }
        self.ask = None;
        if must {
            self.seen = None;
        }
        let generations = match self.generations.take() {
            Some(generations) => generations,
            None => Generations::open()?,
        };
        let Some(mut now) = generations.current()? else {
            self.seen = None;
            self.of_nftables.clear();
            self.ask = Some(Instant::now() + ASK_FOR_NFTABLES);
            return Ok(());
        };
        for _ in 0..TRIES {
            if self.seen == Some(now) {
                break;
            }
            self.of_nftables = problems(pods)?;
            self.seen = Some(now);
            // If the generation changed, the chains and the rules may be of different generations.
            now = generations.current()?.unwrap_or(now);
        }
        self.generations = Some(generations);
        Ok(())
    }
}

/// A chain by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: RuleFamily,
    table: String,
    name: String,
    /// Whether the chain belongs to the legacy iptables.
    is_legacy: bool,
}

/// A base chain that packets of pods may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BaseChain {
    chain: Chain,
    hook: Hook,
    /// Whether the policy drops packets that reach the end of the chain.
    drops: bool,
}

impl BaseChain {
    /// Parses the attributes of a chain.
    fn read(family: RuleFamily, chain: &[u8]) -> Option<Self> {
        // The attributes `NFTA_CHAIN_HOOK`, `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME` and `NFTA_CHAIN_POLICY`.
        let hook = attribute(chain, 4)?;
        Some(Self {
            chain: Chain {
                family,
                table: text(attribute(chain, 1)?),
                name: text(attribute(chain, 3)?),
                is_legacy: false,
            },
            hook: Hook::read(family, hook)?,
            drops: attribute(chain, 5).and_then(number) == Some(0),
        })
    }

    /// The packets that the chain drops, as pairs: whether they are IPv4, and whether pods send them.
    fn dropped(
        &self,
        pods: &Pods,
        names: &BTreeMap<u32, String>,
        read: &mut Read<'_>,
    ) -> io::Result<BTreeSet<(bool, bool)>> {
        let mut chains = Chains::new(read, &judge);
        dropped_of(pods, self.chain.family, &self.hook, names, &mut |packet| {
            let outcome = chains.outcome(&self.chain.name, packet)?;
            Ok(outcome == Outcome::Dropped || (outcome == Outcome::Through && self.drops))
        })
    }
}

/// The packets that pass a hook and are dropped there, as pairs: whether they are IPv4, and whether pods send
/// them.
fn dropped_of(
    pods: &Pods,
    family: RuleFamily,
    hook: &Hook,
    names: &BTreeMap<u32, String>,
    is_dropped: &mut dyn FnMut(&Packet<'_>) -> io::Result<bool>,
) -> io::Result<BTreeSet<(bool, bool)>> {
    let mut dropped = BTreeSet::new();
    let passing = hook.passing(pods);
    for range in &pods.of_node {
        let is_v4 = range.addr().is_ipv4();
        if family == (if is_v4 { RuleFamily::Ip6 } else { RuleFamily::Ip }) {
            continue;
        }
        for Passing {
            from_pods,
            interfaces,
            ..
        } in &passing
        {
            let from_pods = *from_pods;
            let packet = Packet {
                range: range.trunc(),
                from_pods,
                interfaces,
                names,
            };
            if is_dropped(&packet)? {
                dropped.insert((is_v4, from_pods));
            }
        }
    }
    Ok(dropped)
}

impl Chain {
    fn problem(&self, pods: &Pods, hook: &Hook, dropped: &BTreeSet<(bool, bool)>, is_owned: bool) -> Problem {
        let directions: BTreeSet<_> = dropped.iter().map(|(_, from_pods)| *from_pods).collect();
        let what = match (directions.contains(&true), directions.contains(&false)) {
            (true, false) => "what pods send",
            (false, true) => "what pods are sent",
            _ => "what pods send and are sent",
        };
        let passing = hook.passing(pods);
        let at = passing
            .iter()
            .filter(|passing| directions.contains(&passing.from_pods));
        let at: Vec<_> = at
            .flat_map(|passing| passing.devices.iter().map(String::as_str))
            .collect();
        let at = match at.len() {
            0 => String::new(),
            1 => format!(" at interface {}", at[0]),
            _ => format!(" at interfaces {}", at.join(", ")),
        };
        let mut commands = Vec::new();
        let mut are_all = true;
        // IPv4 comes first, and within a family the packets that pods send.
        for (is_v4, from_pods) in dropped.iter().rev() {
            let ranges = pods.of_cluster.iter();
            let mut ranges = ranges.filter(|range| range.addr().is_ipv4() == *is_v4);
            let named = ranges.by_ref().take(MOST_RANGES);
            commands.extend(named.map(|range| self.command(range, *from_pods)));
            are_all &= ranges.next().is_none();
        }
        let remedy = if is_owned {
            "the program that made it has to accept both directions of the pods' ranges".to_owned()
        } else {
            let rest = if are_all {
                ""
            } else {
                ", and so on for the other ranges of pods"
            };
            format!(
                "run {}{rest}, and let the firewall do so when it starts",
                commands.join(" and ")
            )
        };
        let kind = if self.is_legacy { " (legacy iptables)" } else { "" };
        Problem {
            code: Trouble::FirewallDrops,
            object: format!("chain {} {} {}{kind}", self.family.name(), self.table, self.name),
            message: format!("this firewall drops {what}{at}: {remedy}"),
        }
    }

    /// A command that inserts a rule in front, which accepts a range.
    fn command(&self, range: &IpNet, from_pods: bool) -> String {
        let is_v4 = range.addr().is_ipv4();
        let (table, chain) = (&self.table, &self.name);
        let is_iptables = matches!(self.family, RuleFamily::Ip | RuleFamily::Ip6);
        let program = if is_v4 { "iptables" } else { "ip6tables" };
        let side = if from_pods { "-s" } else { "-d" };
        if self.is_legacy {
            return format!("`{program}-legacy -t {table} -I {chain} {side} {range} -j ACCEPT`");
        }
        if is_iptables && table == "filter" && chain == "FORWARD" {
            return format!("`{program} -I FORWARD {side} {range} -j ACCEPT`");
        }
        let family = self.family.name();
        let ip = if is_v4 { "ip" } else { "ip6" };
        let side = if from_pods { "saddr" } else { "daddr" };
        format!("`nft insert rule {family} {table} {chain} {ip} {side} {range} accept`")
    }
}

/// The nftables chains that drop packets of pods.
fn problems(pods: &Pods) -> io::Result<Vec<Problem>> {
    let mut found = Vec::new();
    if pods.of_node.is_empty() {
        return Ok(found);
    }
    let mut chains = Vec::new();
    nfnetlink::chains(&mut |family, attributes| {
        let chain = BaseChain::read(family, attributes);
        chains.extend(chain.filter(|chain| !chain.hook.passing(pods).is_empty()));
        true
    })?;
    if chains.is_empty() {
        return Ok(found);
    }
    let names = interface_names();
    for chain in chains {
        let BaseChain {
            chain: by_name, hook, ..
        } = &chain;
        let mut read = |name: &str| nfnetlink::rules(by_name.family, &by_name.table, name);
        let dropped = chain.dropped(pods, &names, &mut read)?;
        if dropped.is_empty() {
            continue;
        }
        let flags = flags(by_name.family, &by_name.table)?;
        if flags & DORMANT == 0 {
            found.push(by_name.problem(pods, hook, &dropped, flags & OWNED != 0));
        }
    }
    Ok(found)
}

/// Reads `NFTA_TABLE_FLAGS` of a table.
fn flags(family: RuleFamily, table: &str) -> io::Result<u32> {
    let mut flags = 0;
    nfnetlink::tables(&mut |found, attributes| {
        if found == family && attribute(attributes, 1).map(text).as_deref() == Some(table) {
            flags = attribute(attributes, 2).and_then(number).unwrap_or(0);
        }
        true
    })?;
    Ok(flags)
}

fn interface_names() -> BTreeMap<u32, String> {
    let interfaces = if_nameindex();
    let interfaces = interfaces.iter().flatten();
    interfaces
        .map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned()))
        .collect()
}
