//! The owners of addresses, kept in a directory in the format of host-local, so that either plugin can take
//! over from the other.
//!
//! ```text
//! DATA_DIR/10.244.1.7             a lease: "<container id>\r\n<interface>", as host-local writes it
//! DATA_DIR/last_reserved_ip.0     the last address that was given from the first set of ranges
//! DATA_DIR/lock                   locked by the process that gives or frees addresses
//! DATA_DIR/millrace/<interface>   the note on an attachment, named like the node's side of it: see [`note`]
//! ```
//!
//! host-local finds a lease by comparing whole files, so no byte may be added to one. All further data is in
//! the notes. Invariants:
//!
//! - A note exists before the first lease of its attachment and until the last one is gone.
//! - No reader sees a half-written lease.
//! - A lease is freed only when no object in the kernel refers to its address any more. The caller of this
//!   module ensures this.

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
