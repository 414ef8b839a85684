//! Events on objects: what the agent has to say to the owner of an object, where he looks for it.
//!
//! `kubectl describe` shows them; `millrace status` shows the same to whoever is on the node. [`Recorder::record`] costs its caller
//! nothing: a task decides ([`limit`]) whether an event is worth a request and posts it ([`post`]).
//!
//! Invariant: events are for people and may be lost. Nothing waits for one, an API server that refuses them is not asked again
//! for each, and an agent whose objects come from a directory has nobody to tell.

mod limit;
mod post;

use tokio::sync::mpsc;

use crate::source::kubernetes::Servers;

/// Events that wait to be posted; more are lost.
const WAITING: usize = 64;
/// Of these places the ones for events about the Node alone.
const OF_THE_NODE: usize = 16;

/// Something to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// `Warning` or `Normal`.
    pub type_: &'static str,
    /// The version of the object's kind.
    pub api_version: &'static str,
    /// The object's kind.
    pub kind: &'static str,
    /// The object's namespace; empty where the kind has none.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Why, as one word that programs compare.
    pub reason: &'static str,
    /// What was tried, likewise.
    pub action: &'static str,
    /// What people read.
    pub note: String,
}

impl Event {
    /// A warning about a Node.
    pub fn warning_of_node(name: &str, reason: &'static str, action: &'static str, note: String) -> Self {
        Self::of_node("Warning", name, reason, action, note)
    }

    /// A warning about a Service.
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
    /// Whether it is about a node: then no tenant of the cluster writes its text.
    fn is_of_node(&self) -> bool {
        self.kind == "Node"
    }

    /// About a node.
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

/// Takes events; clones lead to the same place.
#[derive(Clone, Debug)]
pub struct Recorder(Option<mpsc::Sender<Event>>);

impl Recorder {
    /// Takes events that nobody is told.
    pub const fn nowhere() -> Self {
        Self(None)
    }

    /// Posts events to an API server, in the name of the agent of `node`. Must be called within a tokio runtime.
    pub fn start(servers: Servers, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let poster = post::Poster::new(servers, node);
        tokio::spawn(poster.run(receiver));
        Self(Some(sender))
    }

    /// Tells an event, if somebody wants to hear it.
    pub fn record(&self, event: Event) {
        if let Some(sender) = &self.0
            && (event.is_of_node() || sender.capacity() > OF_THE_NODE)
            && let Err(error) = sender.try_send(event)
        {
            tracing::debug!(%error, "an event is lost");
        }
    }
}
