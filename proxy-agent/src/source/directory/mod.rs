//! Directory source, under construction.

use std::io;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::{Event, StateHandle};

/// Follows the directory until the receiver of `events` goes.
pub fn start(path: PathBuf, events: mpsc::Sender<Event>) -> io::Result<StateHandle> {
    drop(events);
    Ok(StateHandle::new(path.display().to_string()))
}
