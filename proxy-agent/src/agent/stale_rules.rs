//! Looks for another Service proxy now and then, and reports the remedy.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::http::Faults;
use crate::network::Problem;
use crate::network::stale_rules::kube_proxy;

/// The interval between two checks; another Service proxy may come back.
const INTERVAL: Duration = Duration::from_mins(3);

/// Checks when the agent starts and then every few minutes, and keeps `faults` in step with the results.
pub async fn look_for_stale_rules(faults: Faults) {
    let mut known = BTreeSet::new();
    loop {
        // With ten thousand services kube-proxy has as many chains, and the kernel takes a while to list
        // them.
        match spawn_blocking(kube_proxy).await {
            Ok(Ok(problems)) => keep_in_step(&faults, &mut known, problems),
            Ok(Err(error)) => tracing::debug!(%error, "cannot look for kube-proxy's rules"),
            Err(error) => tracing::debug!(%error, "looking for kube-proxy's rules ended early"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Notes and logs the problems of `found`. Clears those of `known` that it no longer has.
pub fn keep_in_step(faults: &Faults, known: &mut BTreeSet<String>, problems: Vec<Problem>) {
    let mut found = BTreeSet::new();
    for problem in problems {
        if faults.set(problem.code, &problem.object, problem.message.clone()) {
            tracing::warn!(object = problem.object, "{}", problem.message);
        }
        found.insert(problem.object);
    }
    for gone in known.difference(&found) {
        tracing::info!(object = gone, "it is gone");
        faults.clear(gone);
    }
    *known = found;
}
