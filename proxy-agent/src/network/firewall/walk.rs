//! The path of a packet through the chains of a table, as far as it is the same for all packets of pods.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use super::packet::{Match, Packet};
use super::rule::Action;

/// The depth of chain calls; the kernel allows no more (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// The limit of rules that are evaluated for one packet.
const RULES: usize = 20_000;

/// The outcome of a chain for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The packets pass, or no rule shows that they do not.
    Accepted,
    /// The chain drops or rejects the packets.
    Dropped,
    /// The packets reach the end of the chain.
    Through,
}

/// Reads the rules of a chain.
pub type Read<'a> = dyn FnMut(&str) -> io::Result<Vec<Vec<u8>>> + 'a;

/// Computes how many packets a rule matches, and the action on those.
pub type Judge<'a> = dyn Fn(&[u8], &Packet<'_>) -> (Match, Action) + 'a;

/// The chains of one table, read when a packet reaches them.
pub struct Chains<'a> {
    read: &'a mut Read<'a>,
    judge: &'a Judge<'a>,
    known: BTreeMap<String, Rc<[Vec<u8>]>>,
}

impl<'a> Chains<'a> {
    /// Makes the chains of a table: `read` reads their rules, and `judge` evaluates each rule.
    pub fn new(read: &'a mut Read<'a>, judge: &'a Judge<'a>) -> Self {
        Self {
            read,
            judge,
            known: BTreeMap::new(),
        }
    }

    /// The outcome of a chain for packets. If the evaluation reaches a limit, the packets count as accepted.
    pub fn outcome(&mut self, chain: &str, packet: &Packet<'_>) -> io::Result<Outcome> {
        self.pass(chain, packet, DEPTH, &mut { RULES })
    }

    fn rules(&mut self, chain: &str) -> io::Result<Rc<[Vec<u8>]>> {
        if let Some(rules) = self.known.get(chain) {
            return Ok(Rc::clone(rules));
        }
        let rules: Rc<[_]> = (self.read)(chain)?.into();
        self.known.insert(chain.to_owned(), Rc::clone(&rules));
        Ok(rules)
    }

    fn pass(
        &mut self,
        chain: &str,
        packet: &Packet<'_>,
        depth: usize,
        left: &mut usize,
    ) -> io::Result<Outcome> {
        let Some(deeper) = depth.checked_sub(1) else {
            return Ok(Outcome::Accepted);
        };
        for rule in self.rules(chain)?.iter() {
            let Some(fewer) = left.checked_sub(1) else {
                return Ok(Outcome::Accepted);
            };
            *left = fewer;
            let (matched, action) = (self.judge)(rule, packet);
            if matched < Match::Unsure {
                continue;
            }
            let outcome = match &action {
                Action::Continue => continue,
                Action::Accept => Outcome::Accepted,
                Action::Drop => Outcome::Dropped,
                Action::Return => Outcome::Through,
                Action::Jump(chain) | Action::Goto(chain) => self.pass(chain, packet, deeper, left)?,
            };
            match outcome {
                Outcome::Accepted => return Ok(outcome),
                Outcome::Dropped if matched == Match::All => return Ok(outcome),
                Outcome::Through if matched == Match::All && !matches!(action, Action::Jump(_)) => {
                    return Ok(outcome);
                }
                Outcome::Dropped | Outcome::Through => {}
            }
        }
        Ok(Outcome::Through)
    }
}
