//! The report of a failure: a code for runtimes and text for human readers.
//!
//! The codes below 100 are the specification's ("Error" in SPEC.md). Only 11 asks the runtime to try again,
//! and only STATUS may return 50 and 51. This plugin's own codes begin at 100 and name the part of the work
//! that failed.

use serde_json::{Value, json};

/// The code of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Code {
    /// This plugin does not support the version of the specification.
    IncompatibleVersion = 1,
    /// The plugin cannot apply a field or value; the message names it.
    UnsupportedField = 2,
    /// The container does not exist, and there is nothing to clean up.
    UnknownContainer = 3,
    /// The environment is incomplete or invalid.
    InvalidEnvironment = 4,
    /// The configuration could not be read.
    Io = 5,
    /// The configuration is no JSON document, or a part has the wrong type.
    Decoding = 6,
    /// The configuration has an invalid value or lacks one.
    InvalidConfig = 7,
    /// A later attempt may succeed.
    TryAgainLater = 11,
    /// ADD would fail.
    NotAvailable = 50,
    /// ADD would fail, and running containers may have no connectivity.
    LimitedConnectivity = 51,
    /// A system call failed.
    System = 100,
    /// No address is left.
    Exhausted = 101,
    /// The requested address is not available.
    AddressUnavailable = 102,
    /// The container has this interface already.
    Duplicate = 103,
    /// The directory of leases cannot be used.
    Ipam = 104,
    /// The kernel refused an interface, address or route.
    Netlink = 105,
    /// The programs could not be attached.
    Datapath = 106,
    /// CHECK found a missing or different object.
    Mismatch = 107,
    /// GC could not free all leaked attachments.
    Incomplete = 108,
    /// The host port is another pod's, or that of the nodes' tunnels.
    PortTaken = 109,
    /// The host port is requested for an address that is not the node's.
    ForeignAddress = 110,
}

/// A failure as the runtime receives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}", if details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct CniError {
    /// The kind of the failure.
    pub code: Code,
    /// The failed operation and its object.
    pub msg: String,
    /// The cause, and advice for the operator.
    pub details: String,
}

impl CniError {
    /// Makes a failure without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// Adds the cause or advice.
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
    fn an_error_has_all_four_keys() {
        let error = CniError::new(Code::InvalidConfig, "ipam.ranges: none").with_details("name one");
        assert_eq!(
            error.document("1.0.0").to_string(),
            r#"{"cniVersion":"1.0.0","code":7,"details":"name one","msg":"ipam.ranges: none"}"#
        );
        assert_eq!(error.to_string(), "ipam.ranges: none: name one");
    }
}
