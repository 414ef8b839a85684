//! Waiting for a condition with a deadline; the error is that of the last attempt.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

const PAUSE: Duration = Duration::from_millis(100);

/// Tries until it succeeds; past the deadline, returns the last error.
pub fn wait_for<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > deadline => {
                return Err(error).with_context(|| format!("waiting {} s for {what}", deadline.as_secs()));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
