//! Slots and backend ids that readers may still use.
//!
//! The grace period of a number begins after the last pointer to it was removed. Once it has ended, the
//! number goes back to the allocator.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::bpf::grace::GracePeriods;
use crate::plan::Allocator;

/// The time that a full table waits for numbers in quarantine before it counts as full.
const PATIENCE: Duration = Duration::from_millis(500);

/// The numbers that wait for a grace period.
pub struct Quarantine {
    periods: GracePeriods,
    waiting: VecDeque<Batch>,
}

/// Numbers with the same grace period.
struct Batch {
    epoch: u64,
    slots: Vec<(u32, u32)>,
    backends: Vec<u32>,
}

impl Quarantine {
    /// An empty quarantine.
    pub fn new() -> Self {
        Self {
            periods: GracePeriods::start(),
            waiting: VecDeque::new(),
        }
    }

    /// Puts slots (start and count) and backend ids into quarantine. No element of the tables may point to
    /// them any more.
    pub fn put(&mut self, slots: Vec<(u32, u32)>, backends: Vec<u32>) {
        if !slots.is_empty() || !backends.is_empty() {
            let epoch = self.periods.begin();
            self.waiting.push_back(Batch {
                epoch,
                slots,
                backends,
            });
        }
    }

    /// Returns the numbers whose grace period has ended to the allocator.
    pub fn release(&mut self, allocator: &mut Allocator) {
        if self.waiting.is_empty() {
            return;
        }
        let finished = self.periods.finished();
        while self.waiting.front().is_some_and(|batch| batch.epoch <= finished) {
            let Some(batch) = self.waiting.pop_front() else {
                return;
            };
            for (start, count) in batch.slots {
                allocator.free_slots(start, count);
            }
            for id in batch.backends {
                allocator.free_backend(id);
            }
        }
    }

    /// Waits until all numbers are free, for a limited time; true if any number came free.
    pub fn drain(&mut self, allocator: &mut Allocator) -> bool {
        let before = self.waiting.len();
        let deadline = Instant::now() + PATIENCE;
        while !self.waiting.is_empty() && Instant::now() < deadline {
            self.release(allocator);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waiting.len() < before
    }
}
