//! The tables of the legacy iptables, which `nft` does not list
//! (`include/uapi/linux/netfilter_ipv4/ip_tables.h`, `…_ipv6/ip6_tables.h`).
//!
//! A table is one block of rules, which refer to each other by their offset from its start. Each rule has
//! conditions on addresses and interfaces, then matches, then a target. A user's chain begins behind a rule
//! with the target `ERROR`. A chain of a hook ends with the rule of its policy.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::hook::Hook;
use super::packet::{Comparison, Match, Packet};
use super::rule::{Action, iptables};
use super::walk::{Chains, Outcome};
use super::{Chain, Pods, dropped_of};
use crate::network::Problem;
use crate::network::nfnetlink::RuleFamily;
use crate::network::sys::{self, LegacyTable};

/// The tables that have a chain `FORWARD` and may drop there.
const TABLES: [&str; 3] = ["mangle", "filter", "security"];
/// The number `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// The kernel reports no changes of these tables, so the agent reads them again. It spends at most one part
/// in `SHARE` of the time on that.
const SHARE: u32 = 100;
/// The shortest time between two reads.
const LOOK: Duration = Duration::from_secs(1);

/// Reads the tables repeatedly, and keeps the last result.
#[derive(Debug, Default)]
pub struct Watcher {
    next: Option<Instant>,
    known: Vec<Problem>,
}

impl Watcher {
    /// The chains that drop packets of pods. It returns the last result if the next read is not yet due and
    /// `must` is false.
    pub fn look(&mut self, pods: &Pods, must: bool) -> io::Result<&[Problem]> {
        let started = Instant::now();
        if must || self.next.is_none_or(|next| next <= started) {
            self.known = problems(pods)?;
            self.next = Some(started + (started.elapsed() * SHARE).max(LOOK));
        }
        Ok(&self.known)
    }
}

fn problems(pods: &Pods) -> io::Result<Vec<Problem>> {
    let mut found = Vec::new();
    for family in [RuleFamily::Ip, RuleFamily::Ip6] {
        for table in TABLES {
            let Some(rules) = read(family, table)? else {
                continue;
            };
            let Some(start) = rules.hooks[FORWARD] else {
                continue;
            };
            let layout = Layout::of(family);
            let mut read = |chain: &str| Ok(layout.chain(&rules.rules, chain.parse().unwrap_or(usize::MAX)));
            let judge = |rule: &[u8], packet: &Packet<'_>| layout.judge(rule, packet);
            let mut chains = Chains::new(&mut read, &judge);
            let chain = Chain {
                family,
                table: table.to_owned(),
                name: "FORWARD".to_owned(),
                is_legacy: true,
            };
            let dropped = dropped_of(pods, family, &Hook::Forward, &BTreeMap::new(), &mut |packet| {
                Ok(chains.outcome(&start.to_string(), packet)? == Outcome::Dropped)
            })?;
            if !dropped.is_empty() {
                found.push(chain.problem(pods, &Hook::Forward, &dropped, false));
            }
        }
    }
    Ok(found)
}

/// The rules of a table; `None` if the table does not exist. A request for a missing table would make the
/// kernel create it, so the code checks first.
pub fn read(family: RuleFamily, table: &str) -> io::Result<Option<LegacyTable>> {
    let v4 = matches!(family, RuleFamily::Ip);
    let list = if v4 { "ip_tables_names" } else { "ip6_tables_names" };
    // A kernel without the legacy tables has no such file.
    let Ok(names) = fs::read_to_string(format!("/proc/thread-self/net/{list}")) else {
        return Ok(None);
    };
    if !names.lines().any(|name| name == table) {
        return Ok(None);
    }
    let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" })?;
    sys::legacy_table(socket.as_fd(), v4, table).map(Some)
}

/// The offsets of the parts of a rule in `struct ipt_entry` or `struct ip6t_entry`, in bytes.
struct Layout {
    is_v4: bool,
    /// The size of an address in bytes.
    address: usize,
    /// The offsets of `proto`, `flags` and `invflags`.
    protocol: usize,
    flags: usize,
    inverted: usize,
    /// Bits of `flags`: a goto to a chain, and a condition on fragments (IPv4) or on a type of service
    /// (IPv6).
    goes: u8,
    asks: u8,
    /// The offset of `target_offset`; `next_offset` follows it.
    target: usize,
    /// The size of the whole head in bytes.
    head: usize,
}

/// `struct xt_entry_match` and `struct xt_entry_target`: a size, a name, a revision, then the data of the
/// module.
const PART_NAME: std::ops::Range<usize> = 2..31;
const PART: usize = 32;
/// The value of `IFNAMSIZ`.
const NAME: usize = 16;

/// The bits of `invflags`.
const INVERTED_IN: u8 = 0x01;
const INVERTED_OUT: u8 = 0x02;
const INVERTED_SOURCE: u8 = 0x08;
const INVERTED_DESTINATION: u8 = 0x10;

impl Layout {
    fn of(family: RuleFamily) -> Self {
        match family {
            RuleFamily::Ip6 => Self {
                is_v4: false,
                address: 16,
                protocol: 128,
                flags: 131,
                inverted: 132,
                goes: 0x04,
                asks: 0x02,
                target: 140,
                head: 168,
            },
            _ => Self {
                is_v4: true,
                address: 4,
                protocol: 80,
                flags: 82,
                inverted: 83,
                goes: 0x02,
                asks: 0x01,
                target: 88,
                head: 112,
            },
        }
    }

    /// The rules of the chain that begins at an offset. Eight bytes with the rule's own offset precede each
    /// rule.
    fn chain(&self, table: &[u8], start: usize) -> Vec<Vec<u8>> {
        let mut rules = Vec::new();
        let mut at = start;
        while let Some(rule) = table.get(at..).and_then(|rest| self.rule(rest)) {
            // The next chain begins with this rule.
            if self.target(rule).is_some_and(|(name, _)| name == "ERROR") {
                break;
            }
            rules.push([&(at as u64).to_ne_bytes(), rule].concat());
            at += rule.len();
        }
        rules
    }

    /// The rule at the start of some bytes.
    fn rule<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let size = usize::from(half(bytes, self.target + 2)?);
        (size >= self.head).then(|| bytes.get(..size))?
    }

    /// The name of a rule's target, and the data of the target.
    fn target<'a>(&self, rule: &'a [u8]) -> Option<(String, &'a [u8])> {
        part(rule.get(usize::from(half(rule, self.target)?)..)?)
    }

    /// How many packets a rule of [`Self::chain`] matches, and the action on those.
    fn judge(&self, rule: &[u8], packet: &Packet<'_>) -> (Match, Action) {
        let judged = || {
            let (offset, rule) = rule.split_first_chunk()?;
            let action = self.action(u64::from_ne_bytes(*offset) as usize, rule)?;
            Some((self.matched(rule, packet)?, action))
        };
        judged().unwrap_or((Match::Part, Action::Continue))
    }

    fn action(&self, offset: usize, rule: &[u8]) -> Option<Action> {
        let (name, data) = self.target(rule)?;
        Some(match name.as_str() {
            "" => match i32::from_ne_bytes(*data.first_chunk()?) {
                // The values are `-NF_DROP - 1` and `XT_RETURN`. The packet passes at every other negative
                // verdict.
                -1 => Action::Drop,
                -5 => Action::Return,
                verdict if verdict < 0 => Action::Accept,
                // The offset of the next rule.
                verdict if usize::try_from(verdict) == Ok(offset + rule.len()) => Action::Continue,
                verdict if rule.get(self.flags)? & self.goes != 0 => Action::Goto(verdict.to_string()),
                verdict => Action::Jump(verdict.to_string()),
            },
            "REJECT" => Action::Drop,
            "NFQUEUE" => Action::Accept,
            _ => Action::Continue,
        })
    }

    fn matched(&self, rule: &[u8], packet: &Packet<'_>) -> Option<Match> {
        let inverted = *rule.get(self.inverted)?;
        let mut matched = Match::All;
        let mut meet = |met: Match, is_inverted: bool| {
            matched = matched.min(if is_inverted { met.inverted() } else { met });
        };
        let size = self.address;
        let addresses = [(0, INVERTED_SOURCE), (1, INVERTED_DESTINATION)];
        for (index, flag) in addresses {
            let (address, mask) = (
                bytes(rule, index * size, size)?,
                bytes(rule, (index + 2) * size, size)?,
            );
            if mask.iter().any(|byte| *byte != 0) {
                let first = if self.is_v4 { 12 } else { 8 };
                let value = packet.header((first + index * size) as u32, size as u32);
                let value = value.masked(mask, &vec![0; size]);
                meet(
                    packet.compare(&value, Comparison::Is, address),
                    inverted & flag != 0,
                );
            }
        }
        // The keys are `NFT_META_IIFNAME` and `NFT_META_OIFNAME`.
        for (index, (flag, key)) in [(INVERTED_IN, 6), (INVERTED_OUT, 7)].into_iter().enumerate() {
            let at = 4 * size + index * NAME;
            let (name, mask) = (bytes(rule, at, NAME)?, bytes(rule, at + 2 * NAME, NAME)?);
            let asked = mask.iter().take_while(|byte| **byte != 0).count();
            if asked != 0 {
                meet(
                    packet.compare(&packet.meta(key), Comparison::Is, &name[..asked]),
                    inverted & flag != 0,
                );
            }
        }
        if half(rule, self.protocol)? != 0 || rule.get(self.flags)? & self.asks != 0 {
            meet(Match::Part, false);
        }
        let mut rest = rule.get(self.head..usize::from(half(rule, self.target)?))?;
        while !rest.is_empty() {
            let size = usize::from(half(rest, 0)?);
            let (name, data) = part(rest)?;
            meet(iptables(packet, &name, Some(data)), false);
            rest = rest.get(size.max(PART)..)?;
        }
        Some(matched)
    }
}

fn bytes(rule: &[u8], at: usize, size: usize) -> Option<&[u8]> {
    rule.get(at..at + size)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The name of a match or a target, and the data of its module.
fn part(bytes: &[u8]) -> Option<(String, &[u8])> {
    let size = usize::from(half(bytes, 0)?);
    let name = bytes.get(PART_NAME)?.split(|byte| *byte == 0).next()?;
    Some((String::from_utf8_lossy(name).into_owned(), bytes.get(PART..size)?))
}
