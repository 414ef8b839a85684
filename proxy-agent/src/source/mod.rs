//! The first stage: the sources of objects.
//!
//! A source reads Kubernetes objects, from a directory or from an API server. It sends their changes as a
//! stream of [`Event`]s over a bounded channel. It keeps no objects, only the data that it needs to notice a
//! change. The next stage ([`crate::cluster`]) is the one place that holds them.
//!
//! Invariants: a source never deletes an object because it cannot reach it any more. A full list is between
//! [`Change::Begin`] and [`Change::End`], and only an `End` means that the objects outside the list are
//! deleted.

pub mod directory;
pub mod identity;
pub mod kubernetes;
mod pages;
pub mod state;
pub(crate) mod table;
pub mod wire;

use std::fmt;
use std::time::Instant;

pub use identity::{ObjectId, ObjectIdMap, ObjectIdSet};
pub use state::StateHandle;

/// The kinds of objects that a source delivers. Each is listed and followed on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The kind `v1` Service.
    Service,
    /// The kind `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// The kind `v1` Node.
    Node,
    /// The kind `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
    /// The kind `v1` Namespace, for its annotations.
    Namespace,
    /// The kind `v1` Pod, for the annotations of this node's pods.
    Pod,
}

impl Kind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
        Self::Namespace,
        Self::Pod,
    ];

    /// Whether the agent can serve no service without the full list of this kind.
    pub const fn is_vital(self) -> bool {
        !matches!(self, Self::Namespace | Self::Pod)
    }

    /// The kind as it is written in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
        }
    }

    /// The resource as it is written in a URL.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
            Self::ServiceCidr => "servicecidrs",
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
        }
    }

    /// Whether objects of this kind have a namespace.
    pub const fn namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice | Self::Pod)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One change that a source has seen.
#[derive(Debug)]
pub struct Event {
    /// When the bytes (or the inotify event) with the change arrived, to measure the delay until it is in the
    /// maps.
    pub received: Instant,
    /// The change itself.
    pub change: Change,
}

impl Event {
    /// An event whose bytes arrived at `received`.
    pub const fn new(received: Instant, change: Change) -> Self {
        Self { received, change }
    }
}

/// A change of an object, a kind or the input itself.
#[derive(Debug)]
pub enum Change {
    /// A full list of this kind starts. The next `Begin` discards a list that has no `End`.
    Begin(Kind),
    /// This object exists, with this content.
    Apply(Box<Object>),
    /// This object was deleted.
    Delete(Kind, ObjectId),
    /// This object exists and cannot be read. Its last known content stays.
    Unreadable(Unreadable),
    /// The list of this kind is complete: all objects outside it are deleted.
    End(Kind),
    /// The faults of an input that is not an object (a file, a document); an empty list clears them.
    Problems {
        /// The subject of the messages, in words for an operator: `file services.yaml`.
        subject: String,
        /// One line for each fault.
        messages: Vec<String>,
    },
}

/// An object, or a possible one, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The kind of the object.
    pub kind: Kind,
    /// Its identity and its name in words; `None` if these cannot be read either.
    pub object: Option<(ObjectId, String)>,
    /// Why it cannot be read.
    pub message: String,
}

/// An object as the source read it.
#[derive(Debug)]
pub enum Object {
    /// An object of the kind Service.
    Service(wire::Service),
    /// An object of the kind EndpointSlice.
    EndpointSlice(wire::EndpointSlice),
    /// An object of the kind Node.
    Node(wire::Node),
    /// An object of the kind ServiceCIDR.
    ServiceCidr(wire::ServiceCidr),
    /// An object of the kind Namespace.
    Namespace(wire::Namespace),
    /// An object of the kind Pod.
    Pod(wire::Pod),
}

impl Object {
    /// The object's kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
        }
    }

    /// The object's metadata.
    pub const fn metadata(&self) -> &wire::Metadata {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceCidr(object) => &object.metadata,
            Self::Namespace(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
        }
    }

    /// The object's identity.
    pub fn id(&self) -> ObjectId {
        self.metadata().id(self.kind())
    }
}

/// Writes the object as an operator names it: `Service shop/cart`, `Node worker-1`.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, metadata) = (self.kind(), self.metadata());
        if kind.namespaced() {
            write!(f, "{kind} {}/{}", metadata.namespace(), metadata.name)
        } else {
            write!(f, "{kind} {}", metadata.name)
        }
    }
}
