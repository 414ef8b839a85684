//! The fourth stage: carries out writes, and remembers the programmed state.
//!
//! [`Programmer`] owns the bookkeeping. [`Store`] has all operations of the programmer on the kernel, so that
//! tests can replace it by a table that fails.

mod addresses;
mod claims;
mod found;
mod listing;
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
pub use listing::{Difference, Listed};
pub use programmer::{Limits, Programmer, Progress};
pub use store::Store;
