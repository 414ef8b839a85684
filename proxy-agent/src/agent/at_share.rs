//! Tells of peers that hold their share of a port: in the log, and as an event on the Node.
//!
//! The seats say it once a minute for each peer, so nothing here has to be spaced out.

use tokio::sync::mpsc;

use crate::events::{Event, Recorder};
use crate::http::AtShare;

/// Tells until nothing more can come.
pub async fn tell(mut reached: mpsc::Receiver<AtShare>, node: String, recorder: Recorder) {
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
