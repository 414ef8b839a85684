//! Running pods keep what they have: a task that looks at all of them when something may have gone, and makes it again.
//!
//! The kernel tells of interfaces, routes, neighbours and filters; it does not tell of entries that are removed from maps,
//! so the tables are compared with what stood in them every second, in a few system calls; settings of
//! interfaces are read in turn. A full look reads notes, lists of
//! the kernel and settings, some milliseconds on a full node, on the blocking pool. It happens when the kernel told of
//! something, when the tables or notes are other ones, and now and then for what neither shows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::control::ObjectError;
use crate::pods::owed::{Watched, is_cut_off};
use crate::pods::restore::{Fingerprint, Restored, restore};
use crate::pods::{Places, PodsError};
use crate::trouble::Trouble;

/// How often tables are compared.
const PAUSE: Duration = Duration::from_secs(1);
/// How often everything is looked at although nothing shows.
const FULL: Duration = Duration::from_secs(20);
/// Settings of each interface are looked at once in so many pauses.
const ROUNDS: usize = 2;
/// Between two full looks: what comes together is looked at together.
const BREATH: Duration = Duration::from_millis(200);

/// Wakes the task.
#[derive(Clone)]
pub struct Waker(Arc<Notify>);

impl Waker {
    /// Something of pods may have gone.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Starts the task. What a full look came to is received.
pub fn start(places: Places) -> (Waker, mpsc::Receiver<Restored>) {
    let waker = Waker(Arc::new(Notify::new()));
    let (results, looks) = mpsc::channel(4);
    tokio::spawn(keep(places, waker.clone(), results));
    (waker, looks)
}

async fn keep(places: Places, waker: Waker, results: mpsc::Sender<Restored>) {
    let mut known = Fingerprint::default();
    let mut looked: Option<Instant> = None;
    let mut suspects: Vec<ObjectError> = Vec::new();
    let mut is_undecided = false;
    let mut failed_before = false;
    let mut watched: Arc<Vec<Watched>> = Arc::default();
    let mut turn = 0_usize;
    loop {
        let woken = timeout(PAUSE, waker.0.notified()).await.is_ok();
        let must = woken || is_undecided || looked.is_none_or(|looked| looked.elapsed() >= FULL);
        turn = turn.wrapping_add(1);
        let (at, before, interfaces) = (places.clone(), std::mem::take(&mut known), Arc::clone(&watched));
        let looking = spawn_blocking(move || {
            let mut due = interfaces.iter().skip(turn % ROUNDS).step_by(ROUNDS);
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
        // An interface that goes with its pod is not missed: it is one that stays away.
        let gone = std::mem::take(&mut done.without_interface);
        let stays = gone.iter().filter(|problem| suspects.contains(problem)).cloned();
        done.without_interface = stays.collect();
        // One that failed came upon what was just being removed, as a rule. One that fails again waits its
        // turn.
        let is_new_failure = has_failed && !std::mem::replace(&mut failed_before, has_failed);
        is_undecided = is_new_failure || done.without_interface.len() < gone.len();
        suspects = gone;
        if results.send(done).await.is_err() {
            return;
        }
        sleep(BREATH).await;
    }
}

/// Looks at everything if it must, or if the tables are not as they were `before`; tells how they are afterwards.
fn look(
    places: &Places,
    before: Fingerprint,
    must: bool,
) -> (Option<Result<Restored, PodsError>>, Fingerprint) {
    if !must && Fingerprint::read(places).is_ok_and(|now| now == before) {
        return (None, before);
    }
    let done = restore(places);
    (Some(done), Fingerprint::read(places).unwrap_or_default())
}
