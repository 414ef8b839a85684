//! The action of a rule on packets of pods. The module runs the rule's expressions over values of which only
//! a part is known.
//!
//! Each expression has a name and attributes of its own (`linux/netfilter/nf_tables.h`). Some load a
//! register, some compare one, and the last may have a verdict. iptables writes some of its own expressions
//! as `match` and `target`. An unknown expression counts as a condition that holds for some packets.

use std::collections::BTreeMap;

use super::packet::{Comparison, Match, NEW, Packet, Value};
use crate::network::nfnetlink::{attribute, attributes, number, text};

/// The action of a rule on the packets that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The packets continue at the next rule.
    Continue,
    /// The packets pass this base chain. A rule that hands the decision to another program counts as this.
    Accept,
    /// The kernel drops the packets.
    Drop,
    /// The packets return to the rule that called the chain.
    Return,
    /// The packets pass through a chain, and then continue at the next rule.
    Jump(String),
    /// The packets pass through a chain, and then return to the caller of this chain.
    Goto(String),
}

/// The attributes `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// The base of the IP header, `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;

/// How many packets a rule matches, and the action on those.
pub fn judge(expressions: &[u8], packet: &Packet<'_>) -> (Match, Action) {
    let mut run = Run {
        packet,
        registers: BTreeMap::new(),
        matched: Match::All,
        action: Action::Continue,
    };
    for (_, expression) in attributes(expressions) {
        let name = attribute(expression, NAME).map(text).unwrap_or_default();
        let data = attribute(expression, DATA).unwrap_or_default();
        // An expression that lacks an attribute counts as an unknown expression.
        if run.step(&name, data).is_none() {
            run.unknown();
        }
        if run.matched == Match::No {
            break;
        }
    }
    (run.matched, run.action)
}

struct Run<'a> {
    packet: &'a Packet<'a>,
    registers: BTreeMap<u32, Value>,
    matched: Match,
    action: Action,
}

/// A number among an expression's attributes.
fn number_of(data: &[u8], kind: u16) -> Option<u32> {
    attribute(data, kind).and_then(number)
}

/// Bytes among an expression's attributes (`NFTA_DATA_VALUE`).
fn bytes_of(data: &[u8], kind: u16) -> Option<&[u8]> {
    attribute(data, kind).and_then(|nested| attribute(nested, 1))
}

impl Run<'_> {
    fn step(&mut self, name: &str, data: &[u8]) -> Option<()> {
        match name {
            // Without a register to load, these expressions write a value.
            "meta" | "ct" | "payload" if attribute(data, 1).is_none() => {}
            "meta" => self.load(number_of(data, 1)?, self.packet.meta(number_of(data, 2)?)),
            "ct" => self.load(number_of(data, 1)?, Packet::conntrack(number_of(data, 2)?)),
            "payload" => {
                let (base, offset, length) = (number_of(data, 2)?, number_of(data, 3)?, number_of(data, 4)?);
                let value = if base == NETWORK_HEADER {
                    self.packet.header(offset, length)
                } else {
                    Value::Other
                };
                self.load(number_of(data, 1)?, value);
            }
            "bitwise" => {
                let value = self.registers.get(&number_of(data, 1)?).cloned()?;
                let is_mask = number_of(data, 6).unwrap_or(0) == 0;
                let value = match (bytes_of(data, 4), bytes_of(data, 5)) {
                    (Some(mask), Some(flip)) if is_mask => value.masked(mask, flip),
                    _ => Value::Other,
                };
                self.load(number_of(data, 2)?, value);
            }
            "cmp" => {
                let value = self.registers.get(&number_of(data, 1)?)?;
                let comparison = Comparison::from_number(number_of(data, 2)?)?;
                let matched = self.packet.compare(value, comparison, bytes_of(data, 3)?);
                self.meet(matched);
            }
            "range" => {
                let value = self.registers.get(&number_of(data, 1)?)?;
                let within = self.packet.lies_in(value, bytes_of(data, 3)?, bytes_of(data, 4)?);
                self.meet(match number_of(data, 2)? {
                    0 => within,
                    _ => within.inverted(),
                });
            }
            "lookup" => self.look_up(number_of(data, 3)),
            "immediate" => match number_of(data, 1)? {
                0 => self.action = verdict(attribute(data, 2)?)?,
                register => self.load(register, Value::Other),
            },
            "reject" => self.action = Action::Drop,
            "queue" => self.action = Action::Accept,
            "match" => {
                let name = attribute(data, 1).map(text)?;
                self.meet(iptables(self.packet, &name, attribute(data, 3)));
            }
            "target" => match attribute(data, 1).map(text)?.as_str() {
                "REJECT" | "DROP" => self.action = Action::Drop,
                "NFQUEUE" => self.action = Action::Accept,
                _ => {}
            },
            "counter" | "log" | "notrack" | "objref" | "last" | "flow_offload" | "dup" => {}
            _ => return None,
        }
        Some(())
    }

    fn load(&mut self, register: u32, value: Value) {
        self.registers.insert(register, value);
    }

    fn meet(&mut self, matched: Match) {
        self.matched = self.matched.min(matched);
    }

    fn unknown(&mut self) {
        // The expression may have loaded any register.
        self.registers.clear();
        self.meet(Match::Part);
    }

    /// Sets and maps are not read. A set of values of the pods' side may contain all of them.
    fn look_up(&mut self, into: Option<u32>) {
        let matched = if self.registers.values().any(Packet::is_of_pods) {
            Match::Unsure
        } else if self.registers.values().any(|value| *value == Value::Mark) {
            self.packet.mark()
        } else {
            Match::Part
        };
        self.meet(matched);
        match into {
            Some(0) if matched == Match::Unsure => self.action = Action::Accept,
            Some(register) if register != 0 => self.load(register, Value::Other),
            _ => {}
        }
    }
}

/// The condition of an iptables match; `info` is the data of its module.
pub fn iptables(packet: &Packet<'_>, name: &str, info: Option<&[u8]>) -> Match {
    match name {
        "comment" => Match::All,
        "conntrack" => info.and_then(state).unwrap_or(Match::Part),
        "set" => Match::Unsure,
        "mark" | "connmark" => packet.mark(),
        _ => Match::Part,
    }
}

/// The condition of `xt_conntrack_mtinfo2` and `xt_conntrack_mtinfo3` on the first packet of a flow.
fn state(info: &[u8]) -> Option<Match> {
    /// The offset in bytes, behind eight addresses, two times, a protocol and four ports.
    const FLAGS: usize = 146;
    const STATE: u16 = 1;
    /// The bit of the same match under the name `state`.
    const ALIAS: u16 = 1 << 13;
    let word = |index: usize| {
        let bytes = info.get(FLAGS + 2 * index..)?.first_chunk()?;
        Some(u16::from_ne_bytes(*bytes))
    };
    let (asked, inverted, states) = (word(0)?, word(1)?, word(2)?);
    if asked & STATE == 0 {
        return None;
    }
    let holds = (states & NEW != 0) != (inverted & STATE != 0);
    Some(match (holds, asked & !(STATE | ALIAS)) {
        (false, _) => Match::No,
        (true, 0) => Match::All,
        (true, _) => Match::Part,
    })
}

/// The verdict in `NFTA_IMMEDIATE_DATA`, which contains `NFTA_DATA_VERDICT`.
fn verdict(data: &[u8]) -> Option<Action> {
    let verdict = attribute(data, 2)?;
    let chain = || attribute(verdict, 2).map(text);
    Some(match number_of(verdict, 1)?.cast_signed() {
        0 => Action::Drop,
        1 => Action::Accept,
        // The codes are `NFT_CONTINUE`, `NFT_JUMP`, `NFT_GOTO` and `NFT_RETURN`.
        -1 => Action::Continue,
        -3 => Action::Jump(chain()?),
        -4 => Action::Goto(chain()?),
        -5 => Action::Return,
        // The packet is queued, and another program decides.
        code if code & 0xff == 3 => Action::Accept,
        _ => return None,
    })
}
