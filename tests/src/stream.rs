//! A stream of new connections that goes on while a test does something, and
//! the proof that none of them failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::place::{PATIENCE, Place};
use crate::probe::Probe;
use crate::wait;

/// What became of a stream of connections.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Questions asked and ended, one way or the other.
    pub asked: usize,
    /// Answers per backend.
    pub answers: BTreeMap<String, usize>,
    /// Failures: when, how.
    pub failures: Vec<String>,
}

/// Asks again and again, each time by a new socket, until stopped.
pub struct ConnectStream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    report: Arc<Mutex<StreamReport>>,
}

impl ConnectStream {
    /// Starts asking, pausing in between (zero is allowed).
    pub fn start(from: &Place, probe: Probe, to: SocketAddr, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(StreamReport::default()));
        let (place, stopped, shared) = (from.clone(), Arc::clone(&stop), Arc::clone(&report));
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let outcome = place.ask_within(probe, to, PATIENCE);
                let mut report = shared.lock().unwrap_or_else(PoisonError::into_inner);
                report.asked += 1;
                match outcome {
                    Ok(answer) => *report.answers.entry(answer.backend).or_default() += 1,
                    Err(error) => report
                        .failures
                        .push(format!("after {:.3?}: {error}", started.elapsed())),
                }
                drop(report);
                std::thread::sleep(pause);
            }
        });
        Self {
            stop,
            thread: Some(thread),
            report,
        }
    }

    /// Waits until `count` more questions have been asked and ended.
    #[track_caller]
    pub fn wait_more(&self, count: usize, within: Duration) {
        let goal = self.report().asked + count;
        wait::eventually("more connections", within, || self.report().asked >= goal);
    }

    /// What happened so far.
    pub fn report(&self) -> StreamReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it and says what happened.
    pub fn stop(mut self) -> StreamReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed; the questions that are missing show it.
            let _ = thread.join();
        }
    }
}

impl Drop for ConnectStream {
    fn drop(&mut self) {
        self.end();
    }
}
