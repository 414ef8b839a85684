//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Tries until it succeeds or `within` has passed; then the last error.
pub(crate) fn poll<T, E>(within: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_micros(500);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Waits until `attempt` succeeds and returns its value; panics with the last
/// error when `within` has passed. `what` completes "waiting for …".
#[track_caller]
pub fn wait_for<T, E: Display>(what: &str, within: Duration, attempt: impl FnMut() -> Result<T, E>) -> T {
    match poll(within, attempt) {
        Ok(value) => value,
        Err(last) => panic!("waited {within:?} for {what}; last: {last}"),
    }
}

/// Waits until `condition` holds; panics when `within` has passed.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, within, || {
        if condition() {
            Ok(())
        } else {
            Err("it does not hold")
        }
    });
}
