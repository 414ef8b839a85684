//! The agent's state: the document of `millrace status -o json`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::trouble::Trouble;

/// The reply to `millrace status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether all objects that the sources have sent are programmed and all programs are attached.
    pub ready: bool,
    /// The missing steps while the agent is not ready, in words: `the first list of EndpointSlices`.
    pub waiting_for: Vec<String>,
    /// The node's name.
    pub node: Option<String>,
    /// The source of objects, as `--source` writes it.
    pub source: Option<String>,
    /// The running agent's version.
    pub version: Option<String>,
    /// The version of the layout of its maps.
    pub layout_version: Option<u32>,
    /// When an object last caused a change in the maps.
    pub last_change: Option<Timestamp>,
    /// The number of services that the node proxies.
    pub services: u64,
    /// The number of their endpoints.
    pub endpoints: u64,
    /// The errors of the input and of the node.
    pub errors: Vec<ObjectError>,
    /// The usage of each map, by name.
    pub maps: BTreeMap<String, MapUsage>,
    /// The kernel programs, by name.
    pub programs: BTreeMap<String, ProgramStatus>,
    /// The writes to the maps.
    pub writes: Writes,
    /// The duration of the first sync; null before it is complete.
    #[serde(default)]
    pub sync: Option<FirstSync>,
    /// Addresses of services that another machine has as well. The node serves only the services' ports on
    /// such an address.
    #[serde(default)]
    pub shared_addresses: Vec<SharedAddress>,
}

impl Status {
    /// The status of a node where no agent runs.
    pub fn without_agent() -> Self {
        Self {
            waiting_for: vec!["agent".into()],
            ..Self::default()
        }
    }
}

/// An address of services that another machine has as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedAddress {
    /// The shared address.
    pub address: IpAddr,
    /// The other machine, in words.
    #[serde(rename = "holder")]
    pub owner: String,
}

/// One error of the input or of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectError {
    /// The kind of the error.
    #[serde(default)]
    pub code: Trouble,
    /// The object of the error, in words for an operator: `Service shop/cart`, `file services.yaml`.
    pub object: String,
    /// The error, its place, and the remedy.
    pub message: String,
}

impl ObjectError {
    /// Makes an error of a kind about an object.
    pub fn new(code: Trouble, object: impl Into<String>, error: &impl ToString) -> Self {
        Self {
            code,
            object: object.into(),
            message: error.to_string(),
        }
    }
}

/// The usage of one map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// The number of entries in use.
    pub entries: u64,
    /// The number of entries that fit before the map grows.
    pub capacity: u64,
}

/// One kernel program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// The interfaces or cgroups that it is attached to.
    pub attached_to: Vec<String>,
    /// How often the program ran; unknown unless `kernel.bpf_stats_enabled` is set.
    pub run_count: Option<u64>,
    /// The total run time in nanoseconds; unknown unless `kernel.bpf_stats_enabled` is set.
    pub run_time_ns: Option<u64>,
}

/// The writes to the maps: stores into mmapped maps and system calls alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// The number of writes since the agent started.
    pub since_start: u64,
    /// The number of writes of the last applied change.
    pub last_sync: u64,
}

/// The first complete sync since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstSync {
    /// The number of services that the sync read.
    pub services: u64,
    /// The number of map elements that the sync wrote.
    pub writes: u64,
    /// Microseconds from the first complete list of every kind to complete maps.
    pub micros: u64,
    /// Microseconds from complete maps until all programs are attached and all routes are set.
    pub attach_micros: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_keys_that_are_promised() {
        let status = Status {
            last_change: Some("2026-03-01T12:00:00Z".parse().unwrap()),
            programs: [("connect4".into(), ProgramStatus::default())].into(),
            maps: [(
                "frontends".into(),
                MapUsage {
                    entries: 1,
                    capacity: 2,
                },
            )]
            .into(),
            errors: vec![ObjectError::new(Trouble::ServiceInvalid, "Service a/b", &"bad")],
            ..Status::without_agent()
        };
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            concat!(
                r#"{"ready":false,"waitingFor":["agent"],"node":null,"source":null,"version":null,"layoutVersion":null,"#,
                r#""lastChange":"2026-03-01T12:00:00Z","services":0,"endpoints":0,"#,
                r#""errors":[{"code":"ServiceInvalid","object":"Service a/b","message":"bad"}],"#,
                r#""maps":{"frontends":{"entries":1,"capacity":2}},"#,
                r#""programs":{"connect4":{"attachedTo":[],"runCount":null,"runTimeNs":null}},"#,
                r#""writes":{"sinceStart":0,"lastSync":0},"sync":null,"sharedAddresses":[]}"#,
            )
        );
    }

    #[test]
    fn a_code_that_is_missing_or_new_is_unknown() {
        for text in [
            r#"{"object":"Service a/b","message":"bad"}"#,
            r#"{"code":"OfAnotherVersion","object":"Service a/b","message":"bad"}"#,
        ] {
            let error: ObjectError = serde_json::from_str(text).unwrap();
            assert_eq!(error, ObjectError::new(Trouble::Unknown, "Service a/b", &"bad"));
        }
    }
}
