//! Pods of the CNI plugin: what a lost DEL left behind is removed, limits follow annotations, questions are answered.
//!
//! All of it reads directories and waits for the kernel, so it happens on the blocking pool, one look at a time, and the
//! loop only says what it has heard. The loop has no state of it: the plugin works without an agent, so the truth is where
//! the plugin keeps it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::cluster::BandwidthByPod;
use crate::control::Reply;
use crate::http::Faults;
use crate::pods::collect::Collected;
use crate::pods::{Places, PodsError, collect, limits};

/// How often to look for what was left behind. Nothing younger than a minute is removed anyway.
const INTERVAL: Duration = Duration::from_mins(3);

/// When to look again at a pod that was just being made.
const AGAIN: Duration = Duration::from_secs(1);

/// The pods of this node.
pub struct Bookkeeping {
    places: Places,
    bandwidth: watch::Sender<Option<BandwidthByPod>>,
}

impl Bookkeeping {
    /// Starts to look. What is wrong is noted in `faults`.
    pub fn start(places: Places, faults: Faults) -> Self {
        let (bandwidth, wanted) = watch::channel(None);
        tokio::spawn(collect_for_ever(places.clone(), faults.clone()));
        tokio::spawn(keep_limits(places.clone(), faults, wanted));
        Self { places, bandwidth }
    }

    /// Hears that pods or interfaces may have changed, and which limits pods ask for, if all of them are known by now.
    pub fn look(&self, bandwidth: Option<BandwidthByPod>) {
        let without = |limits: &Option<BandwidthByPod>| limits.as_ref().is_some_and(BTreeMap::is_empty);
        self.bandwidth.send_if_modified(|known| {
            // While nobody asks for anything, only the first look could find something.
            let news = !(without(known) && without(&bandwidth));
            *known = bandwidth;
            news
        });
    }

    /// Answers a question as soon as there is an answer.
    pub fn answer<T: Send + 'static>(
        &self,
        to: oneshot::Sender<Result<Reply, String>>,
        find: fn(&Places) -> Result<T, PodsError>,
        reply: fn(&Places, T) -> Reply,
    ) {
        let places = self.places.clone();
        spawn_blocking(move || {
            let answer = find(&places).map(|found| reply(&places, found));
            // Whoever asked may have gone away by now.
            let _ = to.send(answer.map_err(|error| error.to_string()));
        });
    }
}

/// Removes what was left behind, when the agent starts and every few minutes.
async fn collect_for_ever(places: Places, faults: Faults) {
    const SUBJECT: &str = "leases of pods";
    let mut known: Vec<String> = Vec::new();
    loop {
        let looked = places.clone();
        match spawn_blocking(move || collect(&looked)).await {
            Ok(Ok(collected)) => {
                faults.clear(SUBJECT);
                report(&collected);
                for left in &collected.left {
                    if faults.set(&left.object, left.message.clone()) {
                        tracing::warn!(object = left.object, "{}", left.message);
                    }
                }
                let now: Vec<_> = collected.left.into_iter().map(|left| left.object).collect();
                for gone in known.iter().filter(|object| !now.contains(object)) {
                    faults.clear(gone);
                }
                known = now;
            }
            Ok(Err(error)) => {
                if faults.set(SUBJECT, error.to_string()) {
                    tracing::warn!(%error, "looking for leaked leases failed");
                }
            }
            Err(error) => tracing::warn!(%error, "looking for leaked leases ended early"),
        }
        sleep(INTERVAL).await;
    }
}

fn report(collected: &Collected) {
    if !collected.freed.is_empty() {
        tracing::info!(addresses = ?collected.freed, "freed addresses of pods that are gone");
    }
    if !collected.adopted.is_empty() {
        tracing::info!(addresses = ?collected.adopted, "took over addresses that another plugin gave");
    }
    for removed in &collected.removed {
        tracing::info!("removed what a pod left behind: {removed}");
    }
}

/// Brings limits in line with what pods ask for, whenever something may have changed, and every few minutes for what failed.
async fn keep_limits(places: Places, faults: Faults, mut wanted: watch::Receiver<Option<BandwidthByPod>>) {
    const SUBJECT: &str = "limits of pods";
    let mut early = false;
    loop {
        let patience = if early { AGAIN } else { INTERVAL };
        if let Ok(Err(_)) = timeout(patience, wanted.changed()).await {
            return;
        }
        let Some(bandwidth) = wanted.borrow_and_update().clone() else {
            continue;
        };
        let looked = places.clone();
        match spawn_blocking(move || limits::apply(&looked, &bandwidth)).await {
            Ok(Ok(applied)) => {
                early = applied.early;
                for change in &applied.changes {
                    tracing::info!("{change}");
                }
                if applied.errors.is_empty() {
                    faults.clear(SUBJECT);
                } else if faults.set(SUBJECT, applied.errors.join("; ")) {
                    tracing::warn!("{}", applied.errors.join("; "));
                }
            }
            Ok(Err(error)) => {
                if faults.set(SUBJECT, error.to_string()) {
                    tracing::warn!(%error, "looking at limits failed");
                }
            }
            Err(error) => tracing::warn!(%error, "looking at limits ended early"),
        }
    }
}
