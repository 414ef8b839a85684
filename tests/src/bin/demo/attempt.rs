//! Turns the panics of the harness into errors. Setting up a world panics with its whole cause, which suits tests; the demo
//! wants to say which act that was, and to show the agents' logs, before it ends.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};

/// What the main thread's last panic said.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps what panics of this thread say instead of printing it. Those of other threads are printed as ever.
pub fn catch_panics() {
    let print = panic::take_hook();
    let main = thread::current().id();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().id() == main {
            let said = panic.payload_as_str().unwrap_or("a panic without words");
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.to_owned());
        } else {
            print(panic);
        }
    }));
}

/// Does something; a panic in it is an error like any other.
pub fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // After a panic only the agents' logs are read and everything is dropped.
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let said = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(anyhow!(said.unwrap_or_default()))
    })
}
