//! The upkeep of running pods: a task checks all pods when a part of one may be gone, and makes that part
//! again.
//!
//! The kernel reports changes of interfaces, routes, neighbours and filters. It does not report removed
//! entries of maps, so the task compares the tables with their last content every second, in a few system
//! calls. It reads the settings of interfaces in turn. A full check reads notes, the kernel's lists and
//! settings on the blocking pool, and takes some milliseconds on a full node. It runs when the kernel reports
//! a change, when the tables or notes differ, and now and then for losses that neither shows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::control::ObjectError;
use crate::pods::required::{Watched, is_cut_off};
use crate::pods::restore::{Fingerprint, Restored, restore};
use crate::pods::{PluginPaths, PodsError};
use crate::trouble::Trouble;

/// The interval between two comparisons of the tables.
const PAUSE: Duration = Duration::from_secs(1);
/// The interval between two full checks if no change is seen.
const FULL: Duration = Duration::from_secs(20);
/// The number of pauses in which the settings of every interface are checked once.
const ROUNDS: usize = 2;
/// The pause between two full checks: changes that come together are checked together.
const MIN_PAUSE: Duration = Duration::from_millis(200);

/// Wakes the task.
#[derive(Clone)]
pub struct Waker(Arc<Notify>);

impl Waker {
    /// Wakes the task, since a part of a pod may be gone.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Starts the task. The receiver yields the result of each full check.
pub fn start(paths: PluginPaths) -> (Waker, mpsc::Receiver<Restored>) {
    let waker = Waker(Arc::new(Notify::new()));
    let (results, looks) = mpsc::channel(4);
    tokio::spawn(run(paths, waker.clone(), results));
    (waker, looks)
}

async fn run(paths: PluginPaths, waker: Waker, results: mpsc::Sender<Restored>) {
    let mut known = Fingerprint::default();
    let mut looked: Option<Instant> = None;
    let mut suspects: Vec<ObjectError> = Vec::new();
    let mut is_undecided = false;
    let mut failed_before = false;
    let mut watched: Arc<Vec<Watched>> = Arc::default();
    let mut iteration = 0_usize;
    loop {
        let woken = timeout(PAUSE, waker.0.notified()).await.is_ok();
        let must = woken || is_undecided || looked.is_none_or(|looked| looked.elapsed() >= FULL);
        iteration = iteration.wrapping_add(1);
        let (at, before, interfaces) = (paths.clone(), std::mem::take(&mut known), Arc::clone(&watched));
        let looking = spawn_blocking(move || {
            let mut due = interfaces.iter().skip(iteration % ROUNDS).step_by(ROUNDS);
            let must = must || due.any(is_cut_off);
            look(&at, before, must)
        });
        let Ok((found, now)) = looking.await else { continue };
        known = now;
        let Some(found) = found else { continue };
        looked = Some(Instant::now());
        let has_failed = found.is_err();
        let mut done = found.unwrap_or_else(|error| Restored {
            problems: vec![ObjectError::new(Trouble::PodRecordsBroken, "pods", &error)],
            ..Restored::default()
        });
        watched = Arc::new(std::mem::take(&mut done.watched));
        // An interface that goes with its pod is no problem, so only one that stays away for two checks is
        // reported.
        let gone = std::mem::take(&mut done.without_interface);
        let stays = gone.iter().filter(|problem| suspects.contains(problem)).cloned();
        done.without_interface = stays.collect();
        // As a rule a check fails because it read an object that was being removed. After a second failure
        // the task waits for the next full check.
        let is_new_failure = has_failed && !std::mem::replace(&mut failed_before, has_failed);
        is_undecided = is_new_failure || done.without_interface.len() < gone.len();
        suspects = gone;
        if results.send(done).await.is_err() {
            return;
        }
        sleep(MIN_PAUSE).await;
    }
}

/// Makes a full check if it must, or if the tables differ from `before`. Returns the result of the check and
/// the present state of the tables.
fn look(
    paths: &PluginPaths,
    before: Fingerprint,
    must: bool,
) -> (Option<Result<Restored, PodsError>>, Fingerprint) {
    if !must && Fingerprint::read(paths).is_ok_and(|now| now == before) {
        return (None, before);
    }
    let done = restore(paths);
    (Some(done), Fingerprint::read(paths).unwrap_or_default())
}
