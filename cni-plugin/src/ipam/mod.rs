//! Who has which address, kept in a directory that host-local could take over, and was perhaps taken over from.
//!
//! ```text
//! DATA_DIR/10.244.1.7             a lease: "<container id>\r\n<interface>", as host-local writes it
//! DATA_DIR/last_reserved_ip.0     the last address that was given from the first set of ranges
//! DATA_DIR/lock                   locked by whoever gives or frees addresses
//! DATA_DIR/millrace/<interface>   our note on an attachment, named like the node's side of it: see [`note`]
//! ```
//!
//! host-local finds a lease by comparing whole files, so nothing may be added to one; what we have to know beside is in the
//! notes. Invariants: a note is there before the first lease of its attachment and until the last one is gone; a lease is
//! never seen half-written; a lease is freed only when nothing in the kernel refers to its address any more, for which
//! whoever calls this module is responsible.

pub mod allocate;
pub mod boot;
pub mod collect;
pub mod error;
pub mod lease;
pub mod note;
pub mod range;
pub mod store;

pub use error::IpamError;
pub use lease::Lease;
pub use note::Note;
pub use range::{Range, RangeSet};
pub use store::{LockedStore, Store, Unreadable};
