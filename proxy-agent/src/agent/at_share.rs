//! Reports peers that have used up their share of the connections to a port: in the log, and as an event on
//! the Node.
//!
//! The limiter reports each peer once a minute, so this module limits no rate.

use tokio::sync::mpsc;

use crate::events::{Event, Recorder};
use crate::http::AtShare;

/// Reports until the sender of `reached` is gone.
pub async fn report(mut reached: mpsc::Receiver<AtShare>, node: String, recorder: Recorder) {
    while let Some(AtShare { peer, port }) = reached.recv().await {
        let message = format!(
            "{peer} holds its share of connections to a {port} port: older ones of it are cut for new ones; other \
             clients are served as before"
        );
        tracing::warn!("{message}");
        recorder.record(Event::warning_of_node(
            &node,
            "TooManyConnections",
            "Serve",
            message,
        ));
    }
}
