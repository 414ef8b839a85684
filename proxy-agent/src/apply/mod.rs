//! The fourth stage: carrying out writes, and remembering what is programmed.
//!
//! [`Programmer`] owns the bookkeeping; [`Store`] is all that it may do to the kernel, so that tests can stand in front of
//! it with a table that fails.

mod addresses;
mod claims;
mod found;
mod programmer;
mod quarantine;
pub mod room;
mod store;
mod tables;
mod writer;

#[cfg(test)]
mod tests;

pub use addresses::ANOTHERS;
pub use claims::name;
pub use programmer::{Limits, Programmer, Progress};
pub use store::Store;
