//! RCU grace periods; a thread of their own waits for them.
//!
//! A slice or backend id that was removed from the tables must not be used again at once: running programs
//! may still use it. The system call membarrier(2) waits until these have ended, 10 ms and more, so a thread
//! of its own calls it. A request to the thread is an epoch number, and the reply is the epoch that has
//! ended. Requests that pile up share one wait.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::sys;

/// Requests grace periods, and receives their ends.
pub struct GracePeriods {
    ask: Sender<u64>,
    ended: Receiver<u64>,
    asked: u64,
    finished: u64,
}

impl GracePeriods {
    /// Starts the waiting thread.
    pub fn start() -> Self {
        let (ask, asked) = channel();
        let (end, ended) = channel();
        thread::spawn(move || wait(&asked, &end));
        Self {
            ask,
            ended,
            asked: 0,
            finished: 0,
        }
    }

    /// Begins an epoch: numbers that were removed from the tables before this call are free once the epoch
    /// has ended.
    pub fn begin(&mut self) -> u64 {
        self.asked += 1;
        if self.ask.send(self.asked).is_err() {
            tracing::error!("the thread that waits for grace periods is gone: freed ids stay in quarantine");
        }
        self.asked
    }

    /// The newest epoch that has ended.
    pub fn finished(&mut self) -> u64 {
        while let Ok(epoch) = self.ended.try_recv() {
            self.finished = epoch;
        }
        self.finished
    }
}

fn wait(asked: &Receiver<u64>, end: &Sender<u64>) {
    while let Ok(mut epoch) = asked.recv() {
        while let Ok(later) = asked.try_recv() {
            epoch = later;
        }
        if let Err(error) = sys::wait_for_grace_period() {
            tracing::error!(%error, "membarrier(2) failed: freed ids stay in quarantine until the agent restarts");
            return;
        }
        if end.send(epoch).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn an_epoch_ends() {
        let mut periods = GracePeriods::start();
        let first = periods.begin();
        let second = periods.begin();
        let deadline = Instant::now() + Duration::from_secs(10);
        while periods.finished() < second {
            assert!(
                Instant::now() < deadline,
                "epoch {second} after {first} did not end"
            );
            thread::yield_now();
        }
    }
}
