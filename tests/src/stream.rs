//! A stream of new connections that goes on while a test changes something, and the proof that none of them
//! failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::place::{PATIENCE, Place};
use crate::probe::Probe;
use crate::wait;

/// The outcomes of a stream of connections.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Questions that have ended, with a reply or a failure.
    pub asked: usize,
    /// Answers per backend.
    pub replies: BTreeMap<String, usize>,
    /// Failures: the time and the error.
    pub failures: Vec<String>,
    /// The longest time of a question.
    pub longest_wait: Duration,
}

impl StreamReport {
    /// Panics if a question failed or took this long. A lost SYN is sent again after a second.
    #[track_caller]
    pub fn assert_unnoticed(&self, longest: Duration) {
        assert!(self.failures.is_empty(), "{self:?}");
        let longest = longest * wait::slowness();
        assert!(
            self.longest_wait < longest,
            "a question took {longest:?} or longer: {self:?}"
        );
    }
}

/// Asks again and again, each time by a new socket, until stopped.
pub struct ConnectStream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    report: Arc<Mutex<StreamReport>>,
}

impl ConnectStream {
    /// Starts to ask, with a pause between questions (zero is allowed).
    pub fn start(from: &Place, probe: Probe, to: SocketAddr, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(StreamReport::default()));
        let (place, stopped, shared) = (from.clone(), Arc::clone(&stop), Arc::clone(&report));
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let outcome = place.ask_within(probe, to, PATIENCE);
                let took = asked.elapsed();
                let mut report = shared.lock().unwrap_or_else(PoisonError::into_inner);
                report.asked += 1;
                report.longest_wait = report.longest_wait.max(took);
                match outcome {
                    Ok(reply) => *report.replies.entry(reply.backend).or_default() += 1,
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

    /// The report so far.
    pub fn report(&self) -> StreamReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the stream and returns the report.
    #[track_caller]
    pub fn stop(mut self) -> StreamReport {
        assert!(self.end(), "the thread that asks has panicked");
        self.report()
    }

    /// Whether the stream's thread has ended well; its panic has been printed.
    fn end(&mut self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for ConnectStream {
    fn drop(&mut self) {
        self.end();
    }
}
