//! Slots and backend ids that readers may still hold.
//!
//! They come back to the allocator when the grace period has ended that began after the last pointer to them was removed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::bpf::grace::GracePeriods;
use crate::plan::Allocator;

/// How long a full table waits for what is in quarantine before it is called full.
const PATIENCE: Duration = Duration::from_millis(500);

/// What waits for a grace period.
pub struct Quarantine {
    periods: GracePeriods,
    waiting: VecDeque<Batch>,
}

/// What was put away together.
struct Batch {
    epoch: u64,
    slots: Vec<(u32, u32)>,
    backends: Vec<u32>,
}

impl Quarantine {
    /// Nothing waits.
    pub fn new() -> Self {
        Self {
            periods: GracePeriods::start(),
            waiting: VecDeque::new(),
        }
    }

    /// Puts slots (start and count) and backend ids away; nothing in the tables points at them any more.
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

    /// Gives back what is free by now.
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

    /// Waits until everything is free, within reason; whether anything came free.
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
