//! The documents of the CNI specification: versions, results and errors.
//!
//! The types are written by hand, since they are few. A plugin has to reply in the version of the request.
//! That is easier to check where all versions are side by side.

pub mod error;
pub mod result;
pub mod version;

pub use error::{CniError, Code};
pub use result::CniResult;
pub use version::Version;
