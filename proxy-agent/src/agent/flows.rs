//! Passes over the flows and checks of clients' shares: their schedule, and the report of their results.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::reporter::Reporter;
use crate::bpf::Datapath;
use crate::events::Event;
use crate::flows::{AtShare, Collected, ShareKind, Tables, look, pass};
use crate::trouble::Trouble;

/// The interval between two checks of shares. Every second check also walks over the flows.
const INTERVAL: Duration = Duration::from_secs(5);
/// The most clients that a message names.
const NAMED: usize = 5;
const SUBJECT: &str = "flows";

/// The result of a pass, or the error that ended it.
pub type Outcome = std::io::Result<Collected>;

/// Passes over the flows, one at a time.
pub struct Passes {
    outcomes: mpsc::Sender<Outcome>,
    is_under_way: bool,
    /// Whether the last pass walked over the flows.
    has_walked: bool,
    known: BTreeSet<AtShare>,
}

impl Passes {
    /// No pass yet. The receiver yields the outcomes, and the timer fires when a pass is due.
    pub fn new() -> (Self, mpsc::Receiver<Outcome>, Interval) {
        let (outcomes, receiver) = mpsc::channel(1);
        let mut timer = interval(INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let passes = Self {
            outcomes,
            is_under_way: false,
            has_walked: false,
            known: BTreeSet::new(),
        };
        (passes, receiver, timer)
    }

    /// Begins a pass, unless the last one still runs.
    pub fn begin(&mut self, datapath: &Datapath) {
        if self.is_under_way {
            return;
        }
        let tables = match tables(datapath) {
            Ok(tables) => tables,
            Err(error) => return tracing::warn!(%error, "walking the tables of flows"),
        };
        self.is_under_way = true;
        let is_pass = !self.has_walked;
        self.has_walked = is_pass;
        let outcomes = self.outcomes.clone();
        spawn_blocking(move || {
            // The loop may have ended.
            let _ = outcomes.try_send(if is_pass { pass(&tables) } else { look(&tables) });
        });
    }

    /// Reports the result of a pass.
    pub fn end(&mut self, outcome: Outcome, reporter: &Reporter, node: &str) {
        self.is_under_way = false;
        let faults = reporter.faults();
        let collected = match outcome {
            Ok(collected) => collected,
            Err(error) => {
                let message = format!("walking the tables of flows: {error}; what has expired stays for now");
                if faults.set(Trouble::MapAccessFailed, SUBJECT, message.clone()) {
                    tracing::warn!("{message}");
                }
                return;
            }
        };
        faults.clear(SUBJECT);
        reporter.metrics.own.expired(collected.expired);
        let now: BTreeSet<_> = collected.at_share.into_iter().collect();
        for kind in ShareKind::ALL {
            let clients: Vec<_> = now.iter().filter(|at| at.kind == kind).collect();
            reporter.metrics.own.at_share(kind.name(), clients.len());
            let subject = format!("share of {}", kind.name());
            if clients.is_empty() {
                faults.clear(&subject);
                continue;
            }
            let message = message(kind, &clients);
            faults.set(Trouble::ClientShareReached, &subject, message.clone());
            if clients.iter().any(|at| !self.known.contains(at)) {
                tracing::warn!("{message}");
                reporter.record(Event::warning_of_node(
                    node,
                    "ClientShareReached",
                    "Protect",
                    message,
                ));
            }
        }
        self.known = now;
    }
}

fn tables(datapath: &Datapath) -> std::io::Result<Tables> {
    Ok(Tables {
        flows: datapath.flows.try_clone()?,
        streams: datapath.streams.try_clone()?,
        shares: datapath.shares.try_clone()?,
        unanswered: datapath.unanswered.try_clone()?,
        neighbours: datapath.neighbours.try_clone()?,
        host_ports: datapath.host_ports.try_clone()?,
        pods: datapath.pods.try_clone()?,
        config: datapath.config.get(0).unwrap_or_default(),
    })
}

fn message(kind: ShareKind, clients: &[&AtShare]) -> String {
    let names: Vec<_> = clients
        .iter()
        .take(NAMED)
        .map(|at| at.client.to_string())
        .collect();
    let more = match clients.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let share = clients.first().map_or(0, |at| at.share);
    format!(
        "{}{more}: the share of {share} {} is used up; {}",
        names.join(", "),
        kind.name().replace('_', " "),
        kind.consequence()
    )
}
