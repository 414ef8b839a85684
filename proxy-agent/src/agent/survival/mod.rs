//! Survival of the data plane: the agent checks each part that it made, and makes lost parts again. It is not
//! `ready` while a part is lacking.
//!
//! The kernel reports changes of interfaces, addresses, routes, neighbours, qdiscs and filters. For the parts
//! whose loss it does not report (pins, links, settings, entries) there is a slow check every second. It
//! takes some dozens of system calls. After a report or a check the agent calls the functions that made the
//! parts in the first place. This module only notices the losses; it counts, logs and reports the repairs.
//! [`pod_checks`] watches our pods. [`self_test`] sends crafted packets through the programs.

mod ahead;
mod forwarded;
mod notifier;
mod open;
mod pod_checks;
mod self_test;
mod tables;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

pub use ahead::look as look_ahead;
pub use notifier::Notifier;
pub use open::open_datapath;

use super::{Agent, own_node};
use crate::bpf::BpfError;
use crate::bpf::links::ahead::{AttachPoint, PrecedingProgram};
use crate::bpf::pins::Owned;
use crate::control::ObjectError;
use crate::network::netlink::Restored;
use crate::pods::PluginPaths;
use crate::pods::restore::Restored as PodsRestored;
use crate::trouble::Trouble;
use pod_checks::Waker;
use self_test::WrongRoutes;

/// The interval between two checks.
const LOOK: Duration = Duration::from_secs(1);
/// The number of checks in which the filters of every interface are checked once: the kernel reports their
/// changes.
const ROUNDS: u32 = 16;

/// The state of the checks.
pub struct Survival {
    notifier: Notifier,
    owned: Owned,
    /// Whether another agent has taken over the bpf root.
    is_taken: bool,
    looks: Interval,
    iteration: u32,
    waker: Waker,
    of_pods: mpsc::Receiver<PodsRestored>,
    /// The parts that are lacking, by the check that found them.
    missing: BTreeMap<&'static str, Vec<ObjectError>>,
    /// Problems that do not keep the node from being ready, by the check that found them.
    odd: BTreeMap<&'static str, Vec<ObjectError>>,
    /// The failures of the last self-test. A part that is being changed may fail one test.
    suspects: Vec<ObjectError>,
    notified: Vec<ObjectError>,
    /// The foreign programs last seen before ours.
    ahead: BTreeMap<AttachPoint, Vec<PrecedingProgram>>,
}

impl Survival {
    /// Starts the checks. Must be called within a tokio runtime.
    pub fn start(paths: PluginPaths, notifier: Notifier, owned: Owned) -> Self {
        let (waker, of_pods) = pod_checks::start(paths);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            notifier,
            owned,
            is_taken: false,
            looks,
            iteration: 0,
            waker,
            of_pods,
            missing: BTreeMap::new(),
            odd: BTreeMap::new(),
            suspects: Vec::new(),
            notified: Vec::new(),
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
        self.missing.values().chain(self.odd.values()).flatten()
    }

    /// The conditions that `ready` waits for.
    pub fn waiting_for(&self) -> impl Iterator<Item = String> {
        self.missing
            .iter()
            .filter(|(_, missing)| !missing.is_empty())
            .map(|(what, missing)| match missing.first() {
                Some(first) if missing.len() == 1 => format!("{what}: {}", first.object),
                _ => format!("{what} ({} problems, see errors)", missing.len()),
            })
    }

    fn report_missing(&mut self, what: &'static str, missing: Vec<ObjectError>) {
        for problem in &missing {
            if !self.notified.contains(problem) {
                self.notifier.incomplete(problem);
            }
        }
        self.missing.insert(what, missing);
        self.notified = self.missing.values().flatten().cloned().collect();
    }

    /// Reports problems that do not keep the node from being ready. It sends no event on the Node, since pods
    /// can cause any number of them.
    fn report_odd(&mut self, what: &'static str, odd: Vec<ObjectError>) {
        let before = self.odd.get(what).map(Vec::as_slice).unwrap_or_default();
        for problem in odd.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(object = problem.object, "{}", problem.message);
        }
        self.odd.insert(what, odd);
    }

    /// Logs contradictions between the Nodes, and sends an event about them.
    pub fn notify_of_node(&self, problem: &ObjectError) {
        self.notifier.unknown(problem);
    }

    /// Counts, logs and reports the parts that were made again.
    pub fn restored(&self, restored: &[Restored]) {
        self.notifier.restored(restored);
    }
}

/// Runs the checks that are due.
pub async fn look(agent: &mut Agent, of_pods: Option<PodsRestored>) {
    match of_pods {
        Some(done) => {
            agent.survival.restored(&done.restored);
            agent
                .survival
                .report_missing("pods to be complete", done.problems);
            agent
                .survival
                .report_odd("pods without an interface", done.without_interface);
            agent
                .survival
                .report_odd("files that are neither lease nor note", done.unreadable);
        }
        None if agent.synced => look_at_node(agent).await,
        None => {}
    }
}

async fn look_at_node(agent: &mut Agent) {
    let iteration = agent.survival.iteration.wrapping_add(1);
    agent.survival.iteration = iteration;
    look_at_pins(agent);
    if agent.survival.is_taken {
        return;
    }
    own_node::look_when_due(agent);
    let is_round = iteration.is_multiple_of(ROUNDS);
    let is_installed = !is_round || agent.node.is_installed();
    let is_tunnel_whole = !is_round || agent.node.is_tunnel_whole().await;
    if agent.node.has_other_settings(&agent.options) || !is_installed || !is_tunnel_whole {
        agent.refresh_node().await;
    }
    let changed = agent.node.changed_settings();
    if changed.is_empty() {
        agent
            .survival
            .report_missing("settings of the kernel", Vec::new());
    } else {
        // A setting for all interfaces changes the settings of pods' interfaces as well.
        agent.survival.wake();
        agent.refresh_node().await;
        let still = agent.node.changed_settings();
        let repaired = changed.iter().filter(|setting| !still.contains(setting));
        let repaired: Vec<_> = repaired.map(|setting| ("setting", setting.clone())).collect();
        agent.survival.restored(&repaired);
        let missing = still.into_iter().map(|setting| ObjectError {
            code: Trouble::SettingRefused,
            message: format!("it has another value, and setting it fails: `sysctl -w {setting}=1`"),
            object: setting,
        });
        agent
            .survival
            .report_missing("settings of the kernel", missing.collect());
    }
    tables::look(agent);
    let is_due = |index| index % ROUNDS == iteration % ROUNDS;
    look_at_programs(agent, is_due).await;
    ahead::look(agent, is_due);
    // The test opens the programs by their pins.
    if !agent.survival.is_missing(PINS) {
        test(agent).await;
    }
}

fn look_at_pins(agent: &mut Agent) {
    let owned = agent.survival.owned.keep();
    agent.survival.is_taken = matches!(owned, Err(BpfError::Taken(_)));
    let kept = owned.and_then(|()| agent.programmer.store().keep_pinned());
    let missing = match kept {
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
    agent.survival.report_missing(PINS, missing);
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
            return agent.survival.report_missing(PROGRAMS, vec![problem]);
        }
    };
    if !broken.iter().any(|place| is_there(agent, place)) && !agent.survival.is_missing(PROGRAMS) {
        return;
    }
    agent.refresh_node().await;
    let still = agent.programmer.store_mut().broken(|_| true).unwrap_or_default();
    let name = |agent: &Agent, place: &(Option<u32>, &'static str)| match place {
        (Some(index), program) => format!("{program} at {}", agent.node.interface_name(*index)),
        (None, program) => format!("{program} at the cgroup"),
    };
    let repaired = broken.iter().filter(|place| !still.contains(place));
    let repaired: Vec<_> = repaired
        .filter(|place| is_there(agent, place))
        .map(|place| ("program", name(agent, place)))
        .collect();
    agent.survival.restored(&repaired);
    let missing = still.iter().filter(|place| is_there(agent, place));
    let missing = missing.map(|place| ObjectError {
        code: Trouble::ProgramNotAttached,
        object: format!("program {}", name(agent, place)),
        message: "it is not attached, and attaching it again fails: see the other errors, `tc filter show` and `bpftool net`"
            .to_owned(),
    });
    let missing = missing.collect();
    agent.survival.report_missing(PROGRAMS, missing);
}

const PINS: &str = "pins to be kept";
const PROGRAMS: &str = "programs to be attached";
const SELF_TEST: &str = "the self-test";

impl Survival {
    fn is_missing(&self, what: &str) -> bool {
        self.missing.get(what).is_some_and(|missing| !missing.is_empty())
    }
}

async fn test(agent: &mut Agent) {
    let before = std::mem::take(&mut agent.survival.suspects);
    let iteration = agent.survival.iteration as usize;
    let has_failed = before
        .iter()
        .any(|problem| problem.object.starts_with("program "));
    let mut found = self_test::programs(agent, iteration, has_failed);
    let WrongRoutes { needed, named } = self_test::routes(agent, iteration, &before).await;
    found.extend(needed);
    let is_known = |problem: &&ObjectError| before.iter().any(|known| known.object == problem.object);
    let known =
        |found: &[ObjectError]| -> Vec<ObjectError> { found.iter().filter(is_known).cloned().collect() };
    let (missing, odd) = (known(&found), known(&named));
    found.extend(named);
    agent.survival.suspects = found;
    agent.survival.report_missing(SELF_TEST, missing);
    agent.survival.report_odd(SELF_TEST, odd);
}
