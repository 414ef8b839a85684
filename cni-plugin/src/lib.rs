//! The CNI plugin of Millrace. A container runtime executes it to give a pod its interface and to remove the
//! interface.
//!
//! ```text
//! environment, standard input → config → verbs → ipam, netlink, datapath → spec (result or error) → standard output
//! ```
//!
//! The process lives for a millisecond or two and starts no other process. It needs no running agent, only
//! the programs that an agent has pinned. It finds all of its objects again from the names of container and
//! interface, so DEL works after any crash. The agent uses this library for leases: it lists them and
//! collects the leaked ones.

#![deny(unsafe_code)]

pub mod attachment;
pub mod config;
pub mod datapath;
pub mod ipam;
pub mod netlink;
pub mod spec;
pub mod verbs;

use std::ffi::OsString;
use std::io::Read;

use serde_json::Value;

use config::{Environment, NetworkConfig};
use spec::{CniError, Code, Version};

/// Far more than the list of attachments of the largest node.
const LARGEST_INPUT: u64 = 16 << 20;

/// The document for standard output, and the success of the call.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The document, if there is one.
    pub document: Option<Value>,
    /// Whether the document is a result and not an error.
    pub success: bool,
}

/// Carries out a call: reads its environment through `variable` and its configuration from `input`.
pub fn call(variable: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Output {
    let mut bytes = Vec::new();
    let read = read(input, &mut bytes);
    let done = Environment::read(variable).and_then(|environment| {
        read?;
        verbs::run(&environment, &bytes)
    });
    match done {
        Ok(document) => Output {
            document,
            success: true,
        },
        Err(error) => {
            let stated = NetworkConfig::stated_version(&bytes);
            let known = stated.filter(|version| Version::parse(version).is_ok());
            let version = known.unwrap_or_else(|| Version::NEWEST.to_string());
            Output {
                document: Some(error.document(&version)),
                success: false,
            }
        }
    }
}

fn read(input: impl Read, bytes: &mut Vec<u8>) -> Result<(), CniError> {
    let read = input.take(LARGEST_INPUT + 1).read_to_end(bytes);
    let length = read.map_err(|error| {
        CniError::new(Code::Io, "reading the configuration from standard input failed")
            .with_details(error.to_string())
    })?;
    if length as u64 > LARGEST_INPUT {
        let message = "the configuration on standard input is longer than 16 MiB";
        return Err(CniError::new(Code::Decoding, message));
    }
    Ok(())
}
