//! Events on objects: the agent writes its messages to the owner of an object where that owner looks for
//! them.
//!
//! `kubectl describe` shows them; `millrace status` shows the same on the node. [`Recorder::record`] does not
//! block its caller: a task applies the rate limit ([`limit`]) and posts the event ([`post`]).
//!
//! Invariant: events are for people and may be lost. Nothing waits for one, and the agent does not retry an
//! event that the API server refuses. An agent whose objects come from a directory posts no events.

mod limit;
mod post;

use tokio::sync::mpsc;

use crate::source::kubernetes::Servers;

/// Events that wait for the task; the agent loses further ones.
const WAITING: usize = 64;
/// Places of [`WAITING`] that are reserved for events about the Node.
const OF_THE_NODE: usize = 16;

/// An event about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// The type of the event: `Warning` or `Normal`.
    pub type_: &'static str,
    /// The version of the object's kind.
    pub api_version: &'static str,
    /// The object's kind.
    pub kind: &'static str,
    /// The object's namespace; empty where the kind has none.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The reason, as one word that programs compare.
    pub reason: &'static str,
    /// The action that was tried, as one word that programs compare.
    pub action: &'static str,
    /// The text for people.
    pub note: String,
}

impl Event {
    /// Makes a warning about a Node.
    pub fn warning_of_node(name: &str, reason: &'static str, action: &'static str, note: String) -> Self {
        Self::of_node("Warning", name, reason, action, note)
    }

    /// Makes a warning about a Service.
    pub fn warning_of_service(
        namespace: &str,
        name: &str,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self {
            type_: "Warning",
            api_version: "v1",
            kind: "Service",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason,
            action,
            note,
        }
    }
}

impl Event {
    /// Whether the event is about a Node. In that case no tenant of the cluster writes its text.
    fn is_of_node(&self) -> bool {
        self.kind == "Node"
    }

    /// Makes an event about a Node.
    pub fn of_node(
        type_: &'static str,
        name: &str,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self {
            type_,
            api_version: "v1",
            kind: "Node",
            namespace: String::new(),
            name: name.to_owned(),
            reason,
            action,
            note,
        }
    }
}

/// Takes events; all clones pass them to the same task.
#[derive(Clone, Debug)]
pub struct Recorder(Option<mpsc::Sender<Event>>);

impl Recorder {
    /// Makes a recorder that discards its events.
    pub const fn nowhere() -> Self {
        Self(None)
    }

    /// Posts events to an API server, as the agent of `node`. Must be called within a tokio runtime.
    pub fn start(servers: Servers, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let poster = post::Poster::new(servers, node);
        tokio::spawn(poster.run(receiver));
        Self(Some(sender))
    }

    /// Passes an event to the task. The event is lost if the queue is full, or if the recorder discards
    /// events.
    pub fn record(&self, event: Event) {
        if let Some(sender) = &self.0
            && (event.is_of_node() || sender.capacity() > OF_THE_NODE)
            && let Err(error) = sender.try_send(event)
        {
            tracing::debug!(%error, "an event is lost");
        }
    }
}
