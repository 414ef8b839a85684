//! The rules and devices that another Service proxy left in this network namespace.
//!
//! kube-proxy's rules stay in force after it stops, and two proxies that translate one packet have effects
//! that are hard to diagnose. The agent looks for the names that kube-proxy uses in each of its modes, and
//! reports each find with the command that removes it. It removes nothing: a kube-proxy that still runs would
//! restore it.

use std::collections::BTreeSet;
use std::io;

use super::Problem;
use super::firewall::legacy;
use super::nfnetlink::{RuleFamily, chain_names, table_names};
use super::sys::LegacyTable;
use crate::trouble::Trouble;

/// kube-proxy's table in mode nftables.
const TABLE: &str = "kube-proxy";
/// The chain that leads to all of its rules in mode iptables, and the tables that it is in.
const CHAIN: &str = "KUBE-SERVICES";
const CHAIN_TABLES: [&str; 2] = ["nat", "filter"];
/// The device that holds virtual addresses in mode ipvs.
const DEVICE: &str = "kube-ipvs0";

/// The remedy that removes rules permanently.
const CLEAN_UP: &str = "stop kube-proxy on this node first, then run `kube-proxy --cleanup`";

/// Looks for kube-proxy's tables, chains and devices. The call blocks while the kernel lists all chains, so
/// it must not run on a thread that others wait for.
pub fn kube_proxy() -> io::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for (family, _) in table_names()?.into_iter().filter(|(_, name)| name == TABLE) {
        let family = family.name();
        problems.push(problem(
            &format!("table {family} {TABLE}"),
            &format!("stop kube-proxy on this node first, then run `nft delete table {family} {TABLE}`"),
        ));
    }
    let mut found = BTreeSet::<RuleFamily>::new();
    chain_names(&mut |family, table, name| {
        if name == CHAIN && CHAIN_TABLES.contains(&table) {
            found.insert(family);
        }
        found.len() < 2
    })?;
    for family in found {
        problems.push(problem(
            &format!("chain {CHAIN} of family {}", family.name()),
            CLEAN_UP,
        ));
    }
    for family in [RuleFamily::Ip, RuleFamily::Ip6] {
        if let Some(table) = legacy_table_of(family)? {
            problems.push(problem(
                &format!(
                    "chain {CHAIN} in the legacy table {table} of family {}",
                    family.name()
                ),
                CLEAN_UP,
            ));
        }
    }
    if nix::net::if_::if_nametoindex(DEVICE).is_ok() {
        problems.push(problem(&format!("device {DEVICE}"), CLEAN_UP));
    }
    Ok(problems)
}

/// The legacy iptables table that has the chain, if there is one. nftables does not list these tables.
fn legacy_table_of(family: RuleFamily) -> io::Result<Option<&'static str>> {
    for table in CHAIN_TABLES {
        let Some(LegacyTable { rules, .. }) = legacy::read(family, table)? else {
            continue;
        };
        let name = format!("{CHAIN}\0");
        if rules.windows(name.len()).any(|bytes| bytes == name.as_bytes()) {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

fn problem(object: &str, advice: &str) -> Problem {
    Problem {
        code: Trouble::KubeProxyLeftover,
        object: format!("kube-proxy's {object}"),
        message: format!(
            "kube-proxy runs here or left it behind, and it translates packets that are ours: {advice}"
        ),
    }
}
