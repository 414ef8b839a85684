//! The first stage: where objects come from.
//!
//! A source reads Kubernetes objects, from a directory or from an API server, and says what happened to them as a
//! stream of [`Event`]s over a bounded channel. It keeps no objects, only what it needs to notice a change; the next
//! stage ([`crate::cluster`]) is the one place that holds them.
//!
//! Invariants: a source never deletes an object because it lost sight of it. A full list is bracketed by
//! [`Change::Begin`] and [`Change::End`], and only an `End` says that whatever was not listed is gone.

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

/// The kinds of objects a source delivers. Each is listed and followed on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
    /// `v1` Namespace, for its annotations.
    Namespace,
    /// `v1` Pod, for the annotations of this node's.
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

    /// Whether nothing can be served without the full list of this kind.
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

    /// Whether objects of this kind live in a namespace.
    pub const fn namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice | Self::Pod)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that a source saw happen.
#[derive(Debug)]
pub struct Event {
    /// When the bytes (or the inotify event) that say so arrived, for measuring the way to the maps.
    pub received: Instant,
    /// What happened.
    pub change: Change,
}

impl Event {
    /// An event whose bytes arrived at `received`.
    pub const fn new(received: Instant, change: Change) -> Self {
        Self { received, change }
    }
}

/// What happened to an object, a kind or the input itself.
#[derive(Debug)]
pub enum Change {
    /// A full list of this kind starts. A list that was begun and not ended is forgotten by the next `Begin`.
    Begin(Kind),
    /// This object exists and looks like this.
    Apply(Box<Object>),
    /// This object is gone.
    Delete(Kind, ObjectId),
    /// This object exists and cannot be read. What is known of it stays.
    Unreadable(Unreadable),
    /// The list of this kind is complete: what it did not name is gone.
    End(Kind),
    /// What is wrong with an input that is not an object (a file, a document); an empty list says it is good again.
    Problems {
        /// What the messages are about, as a person would name it: `file services.yaml`.
        subject: String,
        /// One line for each thing that is wrong.
        messages: Vec<String>,
    },
}

/// An object, or what may be one, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its kind.
    pub kind: Kind,
    /// Its identity and its name as a person writes it; nothing if these cannot be read either.
    pub object: Option<(ObjectId, String)>,
    /// Why.
    pub message: String,
}

/// An object as the source read it.
#[derive(Debug)]
pub enum Object {
    /// A Service.
    Service(wire::Service),
    /// An EndpointSlice.
    EndpointSlice(wire::EndpointSlice),
    /// A Node.
    Node(wire::Node),
    /// A ServiceCIDR.
    ServiceCidr(wire::ServiceCidr),
    /// A Namespace.
    Namespace(wire::Namespace),
    /// A Pod.
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

/// The object as a person names it: `Service shop/cart`, `Node worker-1`.
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
