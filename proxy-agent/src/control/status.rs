//! How the agent is doing: the document of `millrace status -o json`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::trouble::Trouble;

/// The answer to `millrace status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether everything that the sources have said is programmed and attached.
    pub ready: bool,
    /// What is missing where it is not, in words: `the first list of EndpointSlices`.
    pub waiting_for: Vec<String>,
    /// The node's name.
    pub node: Option<String>,
    /// Where objects come from, as `--source` writes it.
    pub source: Option<String>,
    /// The running agent's version.
    pub version: Option<String>,
    /// The layout of its maps.
    pub layout_version: Option<u32>,
    /// When an object last changed something in the maps.
    pub last_change: Option<Timestamp>,
    /// Services that are proxied.
    pub services: u64,
    /// Their endpoints.
    pub endpoints: u64,
    /// What is wrong with the input or the node.
    pub errors: Vec<ObjectError>,
    /// How full the maps are, by name.
    pub maps: BTreeMap<String, MapUsage>,
    /// The programs, by name.
    pub programs: BTreeMap<String, ProgramStatus>,
    /// What was written to the maps.
    pub writes: Writes,
    /// How long the first sync took; none before.
    #[serde(default)]
    pub sync: Option<FirstSync>,
    /// Addresses of services that another machine has as well: services have their ports there and nothing
    /// else.
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
    /// The address.
    pub address: IpAddr,
    /// Which machine, in words.
    pub holder: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectError {
    /// Its kind.
    #[serde(default)]
    pub code: Trouble,
    /// What it is about, as a person names it: `Service shop/cart`, `file services.yaml`.
    pub object: String,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl ObjectError {
    /// An error, its kind, and what it is about.
    pub fn new(code: Trouble, object: impl Into<String>, error: &impl ToString) -> Self {
        Self {
            code,
            object: object.into(),
            message: error.to_string(),
        }
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// Entries in use.
    pub entries: u64,
    /// Entries there is room for, before the map grows.
    pub capacity: u64,
}

/// One kernel program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// The interfaces or cgroups that it is attached to.
    pub attached_to: Vec<String>,
    /// How often it ran; unknown unless `kernel.bpf_stats_enabled` is set.
    pub run_count: Option<u64>,
    /// How long it ran altogether, likewise.
    pub run_time_ns: Option<u64>,
}

/// Writes to the maps: stores into mmapped ones and system calls alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// Since the agent started.
    pub since_start: u64,
    /// By the last change that was applied.
    pub last_sync: u64,
}

/// How everything was programmed for the first time since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstSync {
    /// Services that were looked at.
    pub services: u64,
    /// Map elements that were written.
    pub writes: u64,
    /// Microseconds from the first complete list of every kind to complete maps.
    pub micros: u64,
    /// Microseconds from there to everything attached and routed.
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
