//! Upkeep of the CNI plugin's pods: removes the remains of a lost DEL, applies limits from annotations, and
//! replies to requests about pods.
//!
//! All of it reads directories and waits for the kernel. So it runs on the blocking pool, one task at a time,
//! and the loop only passes on the news. The loop keeps no state of it: the plugin works without an agent, so
//! the plugin's own files hold the truth.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::survival::Notifier;
use crate::cluster::{Bandwidth, BandwidthByPod, PodNames};
use crate::control::Reply;
use crate::http::Faults;
use crate::pods::collect::Collected;
use crate::pods::{PluginPaths, PodsError, any_source, collect, limits};
use crate::trouble::Trouble;

/// The interval between two searches for remains. Nothing younger than a minute is removed.
const INTERVAL: Duration = Duration::from_mins(3);

/// The interval between two checks of limits, while a pod has one. Usually the kernel reports their removal
/// earlier.
const LIMITS: Duration = Duration::from_secs(20);

/// The delay before the next try, for a pod that was still being made, or a limit that could not be set.
const AGAIN: Duration = Duration::from_secs(1);

/// The settings that apply to the pods of this node.
#[derive(Clone, Debug, Default)]
pub struct PodSettings {
    /// From the pods' annotations: how much each receives and sends.
    pub bandwidth: BandwidthByPod,
    /// From the operator: the pods that may send from any address.
    pub any_source: PodNames,
}

/// The pods of this node.
pub struct PodGarbageCollection {
    paths: PluginPaths,
    settings: watch::Sender<Option<PodSettings>>,
}

impl PodGarbageCollection {
    /// Starts the tasks. They note problems in `faults`.
    pub fn start(paths: PluginPaths, faults: Faults, notifier: Notifier) -> Self {
        let (settings, wanted) = watch::channel(None);
        tokio::spawn(collect_periodically(paths.clone(), faults.clone()));
        tokio::spawn(apply_settings(paths.clone(), faults, notifier, wanted));
        Self { paths, settings }
    }

    /// Takes in that pods or interfaces may have changed. `settings` are the pods' settings, once all pods
    /// are known.
    pub fn look(&self, settings: Option<PodSettings>) {
        let none = |settings: &PodSettings| settings.bandwidth.is_empty() && settings.any_source.is_empty();
        self.settings.send_if_modified(|known| {
            // While no pod has a setting, only the first check could find something.
            let is_new = !(known.as_ref().is_some_and(none) && settings.as_ref().is_some_and(none));
            *known = settings;
            is_new
        });
    }

    /// Takes in that a limit of a pod may be gone.
    pub fn look_again(&self) {
        self.settings.send_modify(|_| {});
    }

    /// Replies to a request as soon as the result is there.
    pub fn reply<T: Send + 'static>(
        &self,
        to: oneshot::Sender<Result<Reply, String>>,
        find: fn(&PluginPaths) -> Result<T, PodsError>,
        reply: fn(&PluginPaths, T) -> Reply,
    ) {
        let paths = self.paths.clone();
        spawn_blocking(move || {
            let reply = find(&paths).map(|found| reply(&paths, found));
            // The client may have closed its connection by now.
            let _ = to.send(reply.map_err(|error| error.to_string()));
        });
    }
}

/// Removes remains of lost DELs when the agent starts, and then every few minutes.
async fn collect_periodically(paths: PluginPaths, faults: Faults) {
    const SUBJECT: &str = "leases of pods";
    let mut known: Vec<String> = Vec::new();
    loop {
        let looked = paths.clone();
        match spawn_blocking(move || collect(&looked)).await {
            Ok(Ok(collected)) => {
                faults.clear(SUBJECT);
                report(&collected);
                for left in &collected.left {
                    if faults.set(Trouble::PodRecordsBroken, &left.object, left.message.clone()) {
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
                if faults.set(Trouble::PodRecordsBroken, SUBJECT, error.to_string()) {
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

/// Brings limits and exemptions in line with the settings whenever something may have changed. It repeats
/// this now and then, for changes that failed and changes that the kernel did not report.
async fn apply_settings(
    paths: PluginPaths,
    faults: Faults,
    notifier: Notifier,
    mut wanted: watch::Receiver<Option<PodSettings>>,
) {
    let mut known = limits::Known::default();
    let mut again = false;
    loop {
        let is_limited = known.values().any(|limits| *limits != Bandwidth::default());
        let pause = match (again, is_limited) {
            (true, _) => AGAIN,
            (_, true) => LIMITS,
            _ => INTERVAL,
        };
        if let Ok(Err(_)) = timeout(pause, wanted.changed()).await {
            return;
        }
        let Some(settings) = wanted.borrow_and_update().clone() else {
            continue;
        };
        let (looked, before) = (paths.clone(), known.clone());
        let limited = {
            let bandwidth = settings.bandwidth;
            spawn_blocking(move || limits::apply(&looked, &bandwidth, &before)).await
        };
        let limited = limited.map(|looked| {
            looked.map(|applied| {
                known = applied.known;
                let restored = applied.restored.into_iter().map(|limit| ("limit", limit));
                notifier.restored(&restored.collect::<Vec<_>>());
                let again = applied.early || !applied.errors.is_empty();
                let reported = [applied.errors, applied.named].concat();
                (applied.changes, reported, again)
            })
        });
        again = note(&faults, "limits of pods", limited);
        let looked = paths.clone();
        let exempted = spawn_blocking(move || {
            let exempted = any_source::apply(&looked, &settings.any_source)?;
            Ok((exempted.changes, Vec::new(), exempted.early))
        });
        again |= note(&faults, "podsWithAnySource", exempted.await);
    }
}

/// The changes, the failures, and whether to try again soon.
type Done = (Vec<String>, Vec<String>, bool);

/// Logs the changes, notes the failures, and returns whether to try again soon.
fn note(faults: &Faults, subject: &str, done: Result<Result<Done, PodsError>, JoinError>) -> bool {
    match done {
        Ok(Ok((changes, errors, again))) => {
            for change in &changes {
                tracing::info!("{change}");
            }
            if errors.is_empty() {
                faults.clear(subject);
            } else if faults.set(Trouble::PodSettingNotApplied, subject, errors.join("; ")) {
                tracing::warn!("{}", errors.join("; "));
            }
            return again;
        }
        Ok(Err(error)) => {
            if faults.set(Trouble::PodRecordsBroken, subject, error.to_string()) {
                tracing::warn!(%error, "looking at {subject} failed");
            }
        }
        Err(error) => tracing::warn!(%error, "looking at {subject} ended early"),
    }
    false
}
