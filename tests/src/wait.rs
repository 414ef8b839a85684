//! Waits for a condition with a deadline, instead of a fixed sleep.
//!
//! The deadlines fit a real processor. On an emulated one, `MILLRACE_SLOWNESS` is the factor by which they
//! are extended.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Tries until the attempt succeeds or `within` has passed; then returns the last error.
pub(crate) fn poll<T, E>(within: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + within * slowness();
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

/// The factor by which all times are longer here than on a real processor.
pub fn slowness() -> u32 {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let given = std::env::var("MILLRACE_SLOWNESS");
        given.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
    });
    *SLOWNESS
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
