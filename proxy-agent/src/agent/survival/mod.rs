//! Survival of the data plane: the agent checks each part that it made, and makes lost parts again. It is not
//! `ready` while a part is lacking.
//!
//! The kernel reports changes of interfaces, addresses, routes, neighbours, qdiscs and filters. For the parts
//! whose loss it does not report (pins, links, settings, entries) there is a slow check every second. It
//! takes some dozens of system calls. After a report or a check the agent calls the functions that made the
//! parts in the first place. This module only notices the losses; it counts, logs and reports the repairs.
//! [`keeper`] watches our pods. [`self_test`] sends crafted packets through the programs.

mod ahead;
mod forwarded;
mod keeper;
mod open;
mod self_test;
mod tables;
mod teller;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

pub use ahead::look as look_ahead;
pub use open::open_datapath;
pub use teller::Teller;

use super::{Agent, own_node};
use crate::bpf::BpfError;
use crate::bpf::links::ahead::{Ahead, Place};
use crate::bpf::pins::Owned;
use crate::control::ObjectError;
use crate::network::netlink::Restored;
use crate::pods::Places;
use crate::pods::restore::Restored as PodsRestored;
use crate::trouble::Trouble;
use keeper::Waker;
use self_test::WrongWays;

/// The interval between two checks.
const LOOK: Duration = Duration::from_secs(1);
/// The number of checks in which the filters of every interface are checked once: the kernel reports their
/// changes.
const ROUNDS: u32 = 16;

/// The state of the checks.
pub struct Survival {
    teller: Teller,
    owned: Owned,
    /// Whether another agent has taken over the bpf root.
    is_taken: bool,
    looks: Interval,
    turn: u32,
    waker: Waker,
    of_pods: mpsc::Receiver<PodsRestored>,
    /// The parts that are lacking, by the check that found them.
    lacking: BTreeMap<&'static str, Vec<ObjectError>>,
    /// Problems that do not keep the node from being ready, by the check that found them.
    odd: BTreeMap<&'static str, Vec<ObjectError>>,
    /// The failures of the last self-test. A part that is being changed may fail one test.
    suspects: Vec<ObjectError>,
    told: Vec<ObjectError>,
    /// The foreign programs last seen before ours.
    ahead: BTreeMap<Place, Vec<Ahead>>,
}

impl Survival {
    /// Starts the checks. Must be called within a tokio runtime.
    pub fn start(places: Places, teller: Teller, owned: Owned) -> Self {
        let (waker, of_pods) = keeper::start(places);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            teller,
            owned,
            is_taken: false,
            looks,
            turn: 0,
            waker,
            of_pods,
            lacking: BTreeMap::new(),
            odd: BTreeMap::new(),
            suspects: Vec::new(),
            told: Vec::new(),
            ahead: BTreeMap::new(),
        }
    }

    /// Waits until a check is due; yields the result of the check of pods, if that is what ended the wait.
    pub async fn due(&mut self) -> Option<PodsRestored> {
        tokio::select! {
            Some(done) = self.of_pods.recv() => Some(done),
            _ = self.looks.tick() => None,
        }
    }

    /// Whether another agent has taken over the bpf root, so that this one would undo its work.
    pub fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// Takes in that a part of a pod may be gone.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// The lacking parts that the agent cannot make again, and the odd findings.
    pub fn problems(&self) -> impl Iterator<Item = &ObjectError> {
        self.lacking.values().chain(self.odd.values()).flatten()
    }

    /// The conditions that `ready` waits for.
    pub fn waiting_for(&self) -> impl Iterator<Item = String> {
        self.lacking
            .iter()
            .filter(|(_, lacking)| !lacking.is_empty())
            .map(|(what, lacking)| match lacking.first() {
                Some(first) if lacking.len() == 1 => format!("{what}: {}", first.object),
                _ => format!("{what} ({} problems, see errors)", lacking.len()),
            })
    }

    fn lacks(&mut self, what: &'static str, lacking: Vec<ObjectError>) {
        for problem in &lacking {
            if !self.told.contains(problem) {
                self.teller.incomplete(problem);
            }
        }
        self.lacking.insert(what, lacking);
        self.told = self.lacking.values().flatten().cloned().collect();
    }

    /// Reports problems that do not keep the node from being ready. It sends no event on the Node, since pods
    /// can cause any number of them.
    fn names(&mut self, what: &'static str, odd: Vec<ObjectError>) {
        let before = self.odd.get(what).map(Vec::as_slice).unwrap_or_default();
        for problem in odd.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(object = problem.object, "{}", problem.message);
        }
        self.odd.insert(what, odd);
    }

    /// Logs contradictions between the Nodes, and sends an event about them.
    pub fn tell_of_node(&self, problem: &ObjectError) {
        self.teller.unknown(problem);
    }

    /// Counts, logs and reports the parts that were made again.
    pub fn restored(&self, restored: &[Restored]) {
        self.teller.restored(restored);
    }
}

/// Runs the checks that are due.
pub async fn look(agent: &mut Agent, of_pods: Option<PodsRestored>) {
    match of_pods {
        Some(done) => {
            agent.survival.restored(&done.restored);
            agent.survival.lacks("pods to be whole", done.problems);
            agent
                .survival
                .names("pods without an interface", done.without_interface);
            agent
                .survival
                .names("what is no lease and no note", done.unreadable);
        }
        None if agent.synced => look_at_node(agent).await,
        None => {}
    }
}

async fn look_at_node(agent: &mut Agent) {
    let turn = agent.survival.turn.wrapping_add(1);
    agent.survival.turn = turn;
    look_at_pins(agent);
    if agent.survival.is_taken {
        return;
    }
    own_node::look_when_due(agent);
    let is_round = turn.is_multiple_of(ROUNDS);
    let is_installed = !is_round || agent.node.is_installed();
    let is_tunnel_whole = !is_round || agent.node.is_tunnel_whole().await;
    if agent.node.has_other_settings(&agent.options) || !is_installed || !is_tunnel_whole {
        agent.refresh_node().await;
    }
    let changed = agent.node.changed_settings();
    if changed.is_empty() {
        agent.survival.lacks("settings of the kernel", Vec::new());
    } else {
        // A setting for all interfaces changes the settings of pods' interfaces as well.
        agent.survival.wake();
        agent.refresh_node().await;
        let still = agent.node.changed_settings();
        let mended = changed.iter().filter(|setting| !still.contains(setting));
        let mended: Vec<_> = mended.map(|setting| ("setting", setting.clone())).collect();
        agent.survival.restored(&mended);
        let lacking = still.into_iter().map(|setting| ObjectError {
            code: Trouble::SettingRefused,
            message: format!("it has another value, and setting it fails: `sysctl -w {setting}=1`"),
            object: setting,
        });
        agent.survival.lacks("settings of the kernel", lacking.collect());
    }
    tables::look(agent);
    let is_due = |index| index % ROUNDS == turn % ROUNDS;
    look_at_programs(agent, is_due).await;
    ahead::look(agent, is_due);
    // The test opens the programs by their pins.
    if !agent.survival.is_lacking(PINS) {
        test(agent).await;
    }
}

fn look_at_pins(agent: &mut Agent) {
    let owned = agent.survival.owned.keep();
    agent.survival.is_taken = matches!(owned, Err(BpfError::Taken(_)));
    let kept = owned.and_then(|()| agent.programmer.store().keep_pinned());
    let lacking = match kept {
        Ok(false) => Vec::new(),
        Ok(true) => {
            let root = agent.options.bpf_root.display().to_string();
            agent.survival.restored(&[("pins", root)]);
            agent.survival.wake();
            Vec::new()
        }
        Err(error) => {
            let object = format!("pins below {}", agent.options.bpf_root.display());
            vec![ObjectError::new(Trouble::PinsNotKept, object, &error)]
        }
    };
    agent.survival.lacks(PINS, lacking);
}

/// Makes sure that the programs are attached where they should be. `is_due` chooses the interfaces whose
/// filters are checked.
pub async fn look_at_programs(agent: &mut Agent, is_due: impl Fn(u32) -> bool) {
    let is_there = |agent: &Agent, (place, _): &(Option<u32>, &'static str)| {
        place.is_none_or(|index| agent.node.has_interface(index))
    };
    let broken = match agent.programmer.store_mut().broken(&is_due) {
        Ok(broken) => broken,
        Err(error) => {
            let problem = ObjectError::new(Trouble::KernelRefused, "programs", &error);
            return agent.survival.lacks(PROGRAMS, vec![problem]);
        }
    };
    if !broken.iter().any(|place| is_there(agent, place)) && !agent.survival.is_lacking(PROGRAMS) {
        return;
    }
    agent.refresh_node().await;
    let still = agent.programmer.store_mut().broken(|_| true).unwrap_or_default();
    let name = |agent: &Agent, place: &(Option<u32>, &'static str)| match place {
        (Some(index), program) => format!("{program} at {}", agent.node.interface_name(*index)),
        (None, program) => format!("{program} at the cgroup"),
    };
    let mended = broken.iter().filter(|place| !still.contains(place));
    let mended: Vec<_> = mended
        .filter(|place| is_there(agent, place))
        .map(|place| ("program", name(agent, place)))
        .collect();
    agent.survival.restored(&mended);
    let lacking = still.iter().filter(|place| is_there(agent, place));
    let lacking = lacking.map(|place| ObjectError {
        code: Trouble::ProgramNotAttached,
        object: format!("program {}", name(agent, place)),
        message: "it does not hang there, and attaching it again fails: see the other errors, and `tc filter show` and \
                  `bpftool net` for what does"
            .to_owned(),
    });
    let lacking = lacking.collect();
    agent.survival.lacks(PROGRAMS, lacking);
}

const PINS: &str = "pins to be kept";
const PROGRAMS: &str = "programs to hang where they should";
const SELF_TEST: &str = "the self-test";

impl Survival {
    fn is_lacking(&self, what: &str) -> bool {
        self.lacking.get(what).is_some_and(|lacking| !lacking.is_empty())
    }
}

async fn test(agent: &mut Agent) {
    let before = std::mem::take(&mut agent.survival.suspects);
    let turn = agent.survival.turn as usize;
    let has_failed = before
        .iter()
        .any(|problem| problem.object.starts_with("program "));
    let mut found = self_test::programs(agent, turn, has_failed);
    let WrongWays { needed, named } = self_test::ways(agent, turn, &before).await;
    found.extend(needed);
    let is_known = |problem: &&ObjectError| before.iter().any(|known| known.object == problem.object);
    let known =
        |found: &[ObjectError]| -> Vec<ObjectError> { found.iter().filter(is_known).cloned().collect() };
    let (lacking, odd) = (known(&found), known(&named));
    found.extend(named);
    agent.survival.suspects = found;
    agent.survival.lacks(SELF_TEST, lacking);
    agent.survival.names(SELF_TEST, odd);
}
