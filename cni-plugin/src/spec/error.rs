//! How a failure is told: a code that runtimes act on, and text for people.
//!
//! The codes below 100 are the specification's ("Error" in SPEC.md); only 11 asks the runtime to try again, and 50 and 51
//! only STATUS may answer. Ours begin at 100 and say which part of the work failed.

use serde_json::{Value, json};

/// The number of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Code {
    /// The version of the specification is not spoken here.
    IncompatibleVersion = 1,
    /// A field or value that cannot be heeded; the message names it.
    UnsupportedField = 2,
    /// The container is not there, and nothing has to be cleaned up.
    UnknownContainer = 3,
    /// The environment is incomplete or wrong.
    InvalidEnvironment = 4,
    /// The configuration could not be read.
    Io = 5,
    /// The configuration is no such document.
    Decoding = 6,
    /// The configuration contradicts itself or lacks something.
    InvalidConfig = 7,
    /// Later it may work.
    TryAgainLater = 11,
    /// ADD would fail.
    NotAvailable = 50,
    /// ADD would fail, and running containers may be cut off.
    LimitedConnectivity = 51,
    /// A system call failed.
    System = 100,
    /// No address is left.
    Exhausted = 101,
    /// The address that was asked for cannot be had.
    AddressUnavailable = 102,
    /// The container has this interface already.
    Duplicate = 103,
    /// The directory of leases cannot be used.
    Ipam = 104,
    /// The kernel refused an interface, address or route.
    Netlink = 105,
    /// The programs could not be attached.
    Datapath = 106,
    /// CHECK found something missing or different.
    Mismatch = 107,
    /// GC could not free everything.
    Incomplete = 108,
    /// A host port is another pod's, or that of the nodes' tunnels.
    PortTaken = 109,
    /// A host port is asked for at an address that is not the node's.
    ForeignAddress = 110,
}

/// A failure as the runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}", if details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct CniError {
    /// What kind of failure it is.
    pub code: Code,
    /// What failed, on what.
    pub msg: String,
    /// Why, and what to do.
    pub details: String,
}

impl CniError {
    /// A failure without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// Adds why, or what to do.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self {
            details: details.into(),
            ..self
        }
    }

    /// The document for standard output.
    pub fn document(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.msg,
            "details": self.details,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_all_four_keys() {
        let error = CniError::new(Code::InvalidConfig, "ipam.ranges: none").with_details("name one");
        assert_eq!(
            error.document("1.0.0").to_string(),
            r#"{"cniVersion":"1.0.0","code":7,"details":"name one","msg":"ipam.ranges: none"}"#
        );
        assert_eq!(error.to_string(), "ipam.ranges: none: name one");
    }
}
