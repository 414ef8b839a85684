//! Runs mutated frames through every packet program. For every frame the verdict is one of the stated ones,
//! and exactly one reason is counted once. The output is the unchanged packet, or one that is completely
//! translated, or a complete reply.
//!
//! `MILLRACE_FUZZ_FRAMES` is the number of frames, `MILLRACE_FUZZ_SEED` selects them. A frame depends on seed
//! and index alone, and a flow depends on the earlier frames of its round. So `MILLRACE_FUZZ_FIRST`, the
//! index of a round's first frame, reproduces a failure within seconds.

mod corpus;
mod entries;
mod judge;
mod layout;
mod mutation;
mod refusal;
mod rewritten;
mod sender;
mod tunnel;
mod world;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use millrace::bpf::HashTable;
use proxy_common::Plain;
use proxy_common::maps::{FirstFragment, Flow, FlowKey, FragmentKey, Reason};

use self::corpus::Corpus;
use self::judge::{Ran, check, is_outside, is_pod, judge, left_alone};
use self::layout::{L3, Layout};
use self::mutation::{Dice, by_own_pod, mutated};
use self::tunnel::ADMITTED;
use self::world::Frontends;
use super::PASS;
use super::live::{Counters, Counts, Program, forgive_refusals, open_map};
use super::node::Node;

/// A program at an interface, and the program whose rules it follows.
struct Entry {
    program: &'static str,
    at: At,
    rules: usize,
}

/// The place where frames enter or leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Uplink,
    OwnPod,
    Tunnel,
}

const ENTRIES: [Entry; 9] = [
    entry("from_pod", At::Uplink, FROM_POD),
    entry("to_pod", At::Uplink, TO_POD),
    entry("from_uplink", At::Uplink, FROM_UPLINK),
    entry("to_uplink", At::Uplink, TO_UPLINK),
    entry("from_host", At::Uplink, FROM_HOST),
    entry("from_loopback", At::Uplink, FROM_LOOPBACK),
    entry("from_own_pod", At::OwnPod, FROM_POD),
    entry("from_uplink", At::Tunnel, FROM_UPLINK),
    entry("to_uplink", At::Tunnel, TO_UPLINK),
];
const FROM_POD: usize = 0;
const TO_POD: usize = 1;
const FROM_UPLINK: usize = 2;
const TO_UPLINK: usize = 3;
const FROM_HOST: usize = 4;
const FROM_LOOPBACK: usize = 5;

const fn entry(program: &'static str, at: At, rules: usize) -> Entry {
    Entry { program, at, rules }
}

/// The notes that may be beside a frame at the tunnel's device.
const NOTES: [u32; 8] = [
    ADMITTED,
    ADMITTED,
    ADMITTED,
    ADMITTED,
    ADMITTED,
    0,
    7,
    ADMITTED ^ 1,
];

/// The destination MAC address of frames.
const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The number of frames of the quick run, and of those that share their flows.
const FRAMES: u64 = 40_000;
const ROUND: u64 = 20_000;
/// The number of runs between resets, smaller than the limit of refusals per second.
const FORGIVE: u64 = 100;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

struct Fuzz {
    node: Node,
    programs: [Program; ENTRIES.len()],
    frontends: Frontends,
    fragments: HashTable<FragmentKey, FirstFragment>,
    refusals: OwnedFd,
    counters: Counters,
    /// The expected values of the counters.
    expected: Counts,
}

impl Fuzz {
    fn new() -> Self {
        let mut node = Node::new();
        node.program(&world::objects());
        let [pod, tunnel] = world::add_links(&node);
        let datapath = node.programmer.store();
        let mut counters = Counters::open(datapath);
        Self {
            programs: ENTRIES.map(|entry| {
                let interface = match entry.at {
                    At::Uplink => node.uplink,
                    At::OwnPod => pod,
                    At::Tunnel => tunnel,
                };
                Program::open(datapath, entry.program, interface)
            }),
            frontends: world::frontends(),
            fragments: HashTable::new(open_map(datapath, "FRAGMENTS")).expect("fragments"),
            refusals: open_map(datapath, "REFUSALS"),
            expected: counters.read(),
            counters,
            node,
        }
    }

    fn corpus(&mut self) -> Corpus {
        let programs = &mut self.programs;
        Corpus::new(&self.frontends, &mut |program, frame| {
            programs[program]
                .run(frame)
                .map_or_else(Vec::new, |(_, out)| out.to_vec())
        })
    }

    /// Fills the tables with the flows of the valid frames, and no others.
    fn start_round(&mut self, corpus: &Corpus) {
        self.clear();
        for (program, frame) in &corpus.primers {
            self.programs[*program].run(frame);
        }
        self.expected = self.counters.read();
    }

    /// Whether this is a pod's packet to a service or a host port, which is translated long before it leaves.
    fn is_translated_before(&self, frame: &[u8]) -> bool {
        Layout::of(frame).is_ok_and(|layout| {
            let [from, to] = layout.ends(frame, L3);
            let is_pods = world::POD
                .iter()
                .any(|pod| from == pod.parse::<IpAddr>().expect("an address"));
            is_pods && self.frontends.keys().any(|(frontend, _)| frontend.ip() == to)
        })
    }

    /// Whether a packet may leave the node unchanged. A packet with a pod's address must not leave the
    /// cluster. The exception is a reply to a packet for the pod itself, which an entry shows.
    fn may_leave(&self, frame: &[u8]) -> bool {
        let Ok(layout) = Layout::of(frame) else {
            return true;
        };
        let [from, to] = layout.sockets(frame, L3);
        if !is_pod(from.ip()) || !is_outside(to.ip()) {
            return true;
        }
        let datapath = self.node.programmer.store();
        let mut is_known = false;
        for table in [&datapath.flows, &datapath.streams, &datapath.new_flows] {
            let of_pair = |key: FlowKey, flow: Flow| {
                is_known |= flow.backend == Flow::DIRECT
                    && IpAddr::from(key.src) == from.ip()
                    && IpAddr::from(key.dst) == to.ip();
            };
            table.for_each(of_pair).expect("a walk");
        }
        is_known
    }

    fn clear(&self) {
        let datapath = self.node.programmer.store();
        remove_all(&datapath.flows);
        remove_all(&datapath.streams);
        remove_all(&datapath.shares);
        remove_all(&datapath.unanswered);
        remove_all(&datapath.new_flows);
        remove_all(&datapath.affinity);
        remove_all(&self.fragments);
    }

    /// Runs a program over a frame and compares the outcome with the rules. It reads the counters only if the
    /// outcome does not determine them.
    fn run(&mut self, index: usize, frame: &[u8], note: u32) -> Result<(), String> {
        let Entry { program, at, rules } = ENTRIES[index];
        let Some((verdict, out, left)) = self.programs[index].run_noted(frame, note) else {
            return Ok(());
        };
        let ran = Ran {
            program: rules,
            at,
            frame,
            verdict,
            out,
            note,
            left,
        };
        let leaves = rules == TO_UPLINK && verdict == PASS && out == frame;
        let outcome = match left_alone(&self.frontends, &ran) {
            Some(Reason::NotOurs) => judge(&self.frontends, &ran, None),
            Some(reason) => {
                self.expected.add(reason, 0);
                judge(&self.frontends, &ran, Some((reason, 0)))
            }
            None => {
                let counts = self.counters.read();
                let counted: Vec<_> = counts.since(&self.expected).reasons().collect();
                self.expected = counts;
                match counted[..] {
                    [] => judge(&self.frontends, &ran, None),
                    [(reason, count)] if count.packets == 1 => {
                        judge(&self.frontends, &ran, Some((reason, count.bytes)))
                    }
                    _ => Err("counted more than once, or something before was".to_owned()),
                }
                .map_err(|error| format!("{error}; counted {counted:?}"))
            }
        };
        let outcome = outcome.map_err(|error| {
            let (frame, out) = (hex(frame), hex(out));
            format!(
                "{program} at {at:?} with {note:x}: {error}; verdict {verdict}\n  in  {frame}\n  out {out}"
            )
        });
        outcome?;
        check(!leaves || self.may_leave(frame), || {
            format!("a pod's address leaves\n  in  {}", hex(frame))
        })
    }
}

fn remove_all<K: Plain, V: Plain>(table: &HashTable<K, V>) {
    let mut keys = Vec::new();
    table.for_each(|key, _| keys.push(key)).expect("a walk");
    table.remove_all(&keys).expect("to remove");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The reasons that every run must cover.
const USUAL: [Reason; 28] = [
    Reason::NotBalanced,
    Reason::Malformed,
    Reason::Fragment,
    Reason::NewFlow,
    Reason::Established,
    Reason::Reply,
    Reason::Moved,
    Reason::EchoReply,
    Reason::NoEndpoints,
    Reason::NoLocalEndpoints,
    Reason::NoSuchPort,
    Reason::NoSuchService,
    Reason::NoRoute,
    Reason::RewriteFailed,
    Reason::TtlExceeded,
    Reason::FragmentBeforeFirst,
    Reason::SourceNotAllowed,
    Reason::RelatedError,
    Reason::TooBig,
    Reason::ForgedSource,
    Reason::OtherHost,
    Reason::NotMasqueraded,
    Reason::MappedAddress,
    Reason::LoopbackDestination,
    Reason::SpoofedSource,
    Reason::TunnelPort,
    Reason::TunnelSource,
    Reason::ReversePath,
];

#[test]
fn mutated_frames_get_stated_verdicts_and_are_never_half_rewritten() {
    let frames = setting("MILLRACE_FUZZ_FRAMES", FRAMES);
    let seed = setting("MILLRACE_FUZZ_SEED", 1);
    let first = setting("MILLRACE_FUZZ_FIRST", 0);
    let mut fuzz = Fuzz::new();
    // The second pass is necessary: the programs look for replies everywhere only after the first.
    fuzz.corpus();
    fuzz.clear();
    let corpus = fuzz.corpus();
    let mut wrong = Vec::new();
    for index in first..first + frames {
        if index == first || index % ROUND == 0 {
            fuzz.start_round(&corpus);
        }
        if index % FORGIVE == 0 {
            forgive_refusals(&fuzz.refusals);
        }
        let mut dice = Dice::new(seed, index);
        let frame = mutated(&mut dice, &corpus);
        let sent = by_own_pod(&mut dice, &frame, &corpus);
        let note = dice.of(&NOTES);
        for (number, entry) in ENTRIES.iter().enumerate() {
            if entry.rules == TO_UPLINK && fuzz.is_translated_before(&frame) {
                continue;
            }
            let (frame, note) = match (entry.at, entry.rules) {
                (At::OwnPod, _) => (&sent, 0),
                (At::Tunnel, FROM_UPLINK) => (&frame, note),
                _ => (&frame, 0),
            };
            if let Err(error) = fuzz.run(number, frame, note) {
                let round = index - index % ROUND;
                wrong.push(format!(
                    "frame {index} of seed {seed}, in the round from {round}, {error}"
                ));
            }
        }
        if wrong.len() >= 20 {
            break;
        }
    }
    for (reason, count) in fuzz.counters.read().reasons() {
        println!("{:>12} {}", count.packets, reason.name());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let counts = fuzz.counters.read();
    for reason in USUAL {
        assert!(counts.of(reason) > 0, "{reason:?} never came up");
    }
}
