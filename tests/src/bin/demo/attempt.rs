//! Turns the panics of the harness into errors. A failed set-up of a world panics with its whole chain of
//! causes, which suits tests. The demo names the step that failed, and shows the agents' logs, before it
//! ends.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};

/// The message of the main thread's last panic.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps the panic messages of this thread instead of printing them. Those of other threads are still
/// printed.
pub fn catch_panics() {
    let print = panic::take_hook();
    let main = thread::current().id();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().id() == main {
            let message = panic.payload_as_str().unwrap_or("a panic without words");
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_owned());
        } else {
            print(panic);
        }
    }));
}

/// Runs `work`; a panic in it becomes an error.
pub fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // After a panic the demo only reads the agents' logs and drops everything.
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(anyhow!(message.unwrap_or_default()))
    })
}
