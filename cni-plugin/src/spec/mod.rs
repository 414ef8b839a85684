//! What the CNI specification says about documents: its versions, its results and its errors.
//!
//! The types are written by hand: they are few, and a plugin answers in the version it was asked in, which is easier to see
//! where all versions are written side by side.

pub mod error;
pub mod result;
pub mod version;

pub use error::{CniError, Code};
pub use result::CniResult;
pub use version::Version;
