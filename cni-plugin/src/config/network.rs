//! The document on standard input: the plugin's entry of a network, with the values that the runtime added.
//!
//! The document is kept as received, and each verb converts the parts that it uses. So an invalid range makes
//! ADD fail and does not prevent DEL. A part of the wrong type is error code 6, an invalid value is code 7.
//! Unknown keys are left to other plugins.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::args::Args;
use super::environment::{Attachment, is_name_byte};
use super::go::remove_nulls;
use super::requests::{RequestKeys, Requests};
use super::runtime::{Bandwidth, CapabilityArgs, RuntimeConfig};
use crate::ipam::range::{RangeConfig, RangeSet};
use crate::spec::result::Route;
use crate::spec::{CniError, Code, Version};

const BPF_ROOT: &str = "/sys/fs/bpf/millrace";
const STATE_DIR: &str = "/var/lib/millrace";
/// host-local's directory; each network has a subdirectory.
const NETWORKS: &str = "/var/lib/cni/networks";
/// The keys of the attachments that exist, in a document of GC. The second key is that of a draft; libcni
/// writes both.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
/// No interface works with an MTU below 68: IPv4 needs 68 bytes and IPv6 1280 (RFC 791, RFC 8200).
const MTUS: std::ops::RangeInclusive<u64> = 68..=65_535;

/// A network as the runtime describes it.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The version of the specification for the result.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// The directory in which the agent pins programs and maps.
    pub bpf_root: PathBuf,
    /// The directory of the state that outlives the agent.
    pub state_dir: PathBuf,
    /// The directory of the leases.
    pub data_dir: PathBuf,
    /// Whether the document has a key for valid attachments, even one with `null`.
    names_attachments: bool,
    /// The document without keys whose value is `null`.
    document: Map<String, Value>,
}

impl NetworkConfig {
    /// Reads a document and checks the parts that all verbs need.
    pub fn read(bytes: &[u8]) -> Result<Self, CniError> {
        let mut document = match serde_json::from_slice(bytes) {
            Ok(Value::Object(document)) => document,
            Ok(_) => {
                let message = "the configuration on standard input is no JSON object";
                return Err(CniError::new(Code::Decoding, message));
            }
            Err(error) => {
                let message = "the configuration on standard input is no JSON document";
                return Err(CniError::new(Code::Decoding, message).with_details(error.to_string()));
            }
        };
        let names_attachments = VALID_ATTACHMENTS.iter().any(|key| document.contains_key(*key));
        remove_nulls(&mut document);
        // A document without the key has version 0.1.0, whose documents have another form.
        let version: Option<String> = part(&document, &["cniVersion"])?;
        let version = Version::parse(version.as_deref().unwrap_or("0.1.0"))?;
        let name: String = part(&document, &["name"])?.unwrap_or_default();
        let begins_well = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !begins_well || !name.bytes().all(is_name_byte) {
            return Err(invalid("name", &format!("{name:?} is no name of a network")));
        }
        Ok(Self {
            version,
            bpf_root: directory(&document, &["bpfRoot"], BPF_ROOT)?,
            state_dir: directory(&document, &["stateDir"], STATE_DIR)?,
            data_dir: directory(&document, &["ipam", "dataDir"], &format!("{NETWORKS}/{name}"))?,
            name,
            names_attachments,
            document,
        })
    }

    /// The version that a document states, even an unsupported one. The error for an unusable document needs
    /// it.
    pub fn stated_version(bytes: &[u8]) -> Option<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Stated {
            cni_version: Option<String>,
        }
        let stated = serde_json::from_slice::<Stated>(bytes).ok()?;
        stated.cni_version
    }

    /// The MTU in bytes, where the network sets one.
    pub fn mtu(&self) -> Result<Option<u32>, CniError> {
        let mtu = part::<u64>(&self.document, &["mtu"])?.filter(|mtu| *mtu != 0);
        match mtu {
            Some(mtu) if !MTUS.contains(&mtu) => {
                Err(invalid("mtu", &format!("{mtu} is not between 68 and 65535")))
            }
            mtu => Ok(mtu.map(|mtu| mtu as u32)),
        }
    }

    /// Whether ADD refuses an address that another host already uses. The key is that of the stock bridge
    /// plugin.
    pub fn refuses_duplicates(&self) -> Result<bool, CniError> {
        Ok(part(&self.document, &["enabledad"])?.unwrap_or_default())
    }

    /// The ranges; an interface gets one address of each set.
    pub fn range_sets(&self) -> Result<Vec<RangeSet>, CniError> {
        let kind: Option<String> = part(&self.document, &["ipam", "type"])?;
        if let Some(kind) = kind.filter(|kind| !matches!(kind.as_str(), "" | "millrace" | "host-local")) {
            let message = format!("ipam.type {kind:?} is not supported");
            return Err(CniError::new(Code::UnsupportedField, message)
                .with_details("this plugin gives addresses itself: leave ipam.type out"));
        }
        let sets: Option<Vec<Option<Vec<RangeConfig>>>> = part(&self.document, &["ipam", "ranges"])?;
        let sets = sets
            .unwrap_or_default()
            .into_iter()
            .map(Option::unwrap_or_default);
        let sets: Vec<_> = sets.collect();
        if sets.is_empty() {
            return Err(invalid("ipam.ranges", "there is none: name at least one subnet"));
        }
        RangeSet::all(&sets).map_err(|why| invalid("ipam.ranges", &why))
    }

    /// The routes of a pod; `None` stands for one default route for each family.
    pub fn routes(&self) -> Result<Option<Vec<Route>>, CniError> {
        let routes: Option<Vec<Route>> = part(&self.document, &["ipam", "routes"])?;
        if let Some(route) = routes.iter().flatten().find(|route| route.gw.is_some()) {
            let message = format!("ipam.routes: the gateway of {} is not supported", route.dst);
            return Err(CniError::new(Code::UnsupportedField, message)
                .with_details("pods have one way out, to their node: leave gw out"));
        }
        Ok(routes.filter(|routes| !routes.is_empty()))
    }

    /// The requests that come by capabilities: host ports, limits and name resolution.
    pub fn capability_args(&self) -> Result<CapabilityArgs, CniError> {
        let mut capability_args = object::<RuntimeConfig>(&self.document, &["runtimeConfig"])?
            .unwrap_or_default()
            .check(&self.bandwidth()?)?;
        if capability_args.dns.is_none() {
            let dns: Option<Map<String, Value>> = part(&self.document, &["dns"])?;
            capability_args.dns = dns.filter(|dns| !dns.is_empty()).map(Value::Object);
        }
        Ok(capability_args)
    }

    /// The limits of every pod of the network, from the keys of the stock bandwidth plugin.
    fn bandwidth(&self) -> Result<Bandwidth, CniError> {
        let of_key = |key: &str| part::<u64>(&self.document, &[key]).map(Option::unwrap_or_default);
        Ok(Bandwidth {
            ingress_rate: of_key("ingressRate")?,
            ingress_burst: of_key("ingressBurst")?,
            egress_rate: of_key("egressRate")?,
            egress_burst: of_key("egressBurst")?,
        })
    }

    /// The requested addresses, including the Ethernet address.
    pub fn requests(&self, args: &Args) -> Result<Requests, CniError> {
        let in_args: Option<RequestKeys> = object(&self.document, &["args", "cni"])?;
        let in_runtime: Option<RequestKeys> = object(&self.document, &["runtimeConfig"])?;
        Requests::gather(
            args,
            &in_args.unwrap_or_default(),
            &in_runtime.unwrap_or_default(),
        )
    }

    /// The result of the earlier plugins of a chain, or of ADD for the other verbs.
    pub fn previous(&self) -> Result<Option<Map<String, Value>>, CniError> {
        part(&self.document, &["prevResult"])
    }

    /// The attachments that exist, for GC. A Go list without elements is `null`: then no attachment exists.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        for key in VALID_ATTACHMENTS {
            if let Some(valid) = part::<Vec<Option<Attachment>>>(&self.document, &[key])? {
                return Ok(valid.into_iter().flatten().collect());
            }
        }
        if self.names_attachments {
            return Ok(Vec::new());
        }
        Err(invalid(
            VALID_ATTACHMENTS[0],
            "it is missing: without it no attachment in use is known",
        ))
    }
}

/// Converts the part at a path; `None` if it is missing or null.
fn part<T: for<'a> Deserialize<'a>>(
    document: &Map<String, Value>,
    path: &[&str],
) -> Result<Option<T>, CniError> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(None);
    };
    let mut found = document.get(*first);
    for (depth, key) in rest.iter().enumerate() {
        found = match found {
            None | Some(Value::Null) => None,
            Some(Value::Object(object)) => object.get(*key),
            Some(_) => return Err(undecodable(&path[..=depth], "it is no object")),
        };
    }
    let Some(found) = found.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    T::deserialize(found)
        .map(Some)
        .map_err(|error| undecodable(path, &error.to_string()))
}

/// Like [`part`], but refuses a list. serde reads a list as the fields of a type in order.
fn object<T: for<'a> Deserialize<'a>>(
    document: &Map<String, Value>,
    path: &[&str],
) -> Result<Option<T>, CniError> {
    match part::<Map<String, Value>>(document, path)? {
        None => Ok(None),
        Some(_) => part(document, path),
    }
}

fn directory(document: &Map<String, Value>, path: &[&str], default: &str) -> Result<PathBuf, CniError> {
    let text: Option<String> = part(document, path)?;
    let text = text.filter(|text| !text.is_empty());
    let directory = PathBuf::from(text.as_deref().unwrap_or(default));
    if directory.is_absolute() && !directory.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(directory);
    }
    let why = format!("{} is no absolute path", directory.display());
    Err(invalid(&path.join("."), &why))
}

fn undecodable(path: &[&str], why: &str) -> CniError {
    CniError::new(Code::Decoding, format!("{} cannot be read", path.join("."))).with_details(why)
}

fn invalid(key: &str, why: &str) -> CniError {
    CniError::new(Code::InvalidConfig, format!("{key} is invalid")).with_details(why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "callers make the value in place")]
    fn read(changes: Value) -> Result<NetworkConfig, CniError> {
        let mut document = json!({"cniVersion": "1.1.0", "name": "millrace", "type": "millrace-cni"});
        let changes = changes.as_object().unwrap().clone();
        document.as_object_mut().unwrap().extend(changes);
        NetworkConfig::read(document.to_string().as_bytes())
    }

    #[test]
    fn missing_keys_have_defaults() {
        let config = read(json!({"ipam": null})).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/var/lib/cni/networks/millrace"));
        assert_eq!(config.bpf_root, PathBuf::from("/sys/fs/bpf/millrace"));
        assert_eq!(config.mtu().unwrap(), None);
        assert_eq!(config.routes().unwrap(), None);
        assert!(!config.refuses_duplicates().unwrap());
        assert_eq!(config.capability_args().unwrap(), CapabilityArgs::default());
        assert_eq!(config.range_sets().unwrap_err().code, Code::InvalidConfig);
        assert_eq!(config.valid_attachments().unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn a_document_of_the_wrong_shape_is_code_6() {
        for bytes in ["", "{", "[]", "1", "{\"cniVersion\": 1}", "\u{0}"] {
            assert_eq!(
                NetworkConfig::read(bytes.as_bytes()).unwrap_err().code,
                Code::Decoding,
                "{bytes}"
            );
        }
        for bad in [
            json!({"ipam": []}),
            json!({"bpfRoot": 1}),
            json!({"ipam": {"dataDir": {}}}),
        ] {
            assert_eq!(read(bad).unwrap_err().code, Code::Decoding);
        }
        let wrong = json!({"mtu": "x", "enabledad": 1, "runtimeConfig": [], "args": 1, "prevResult": 1});
        let config = read(wrong).unwrap();
        assert_eq!(config.refuses_duplicates().unwrap_err().code, Code::Decoding);
        assert_eq!(config.mtu().unwrap_err().code, Code::Decoding);
        assert_eq!(config.capability_args().unwrap_err().code, Code::Decoding);
        assert_eq!(config.previous().unwrap_err().code, Code::Decoding);
        assert_eq!(
            config.requests(&Args::default()).unwrap_err().code,
            Code::Decoding
        );
    }

    #[test]
    fn invalid_values_are_code_7() {
        for bad in [
            json!({"name": ""}),
            json!({"name": "a/b"}),
            json!({"bpfRoot": "relative"}),
        ] {
            assert_eq!(read(bad).unwrap_err().code, Code::InvalidConfig);
        }
        assert_eq!(
            read(json!({"mtu": 67})).unwrap().mtu().unwrap_err().code,
            Code::InvalidConfig
        );
        assert_eq!(
            read(json!({"cniVersion": "2.0.0"})).unwrap_err().code,
            Code::IncompatibleVersion
        );
        assert_eq!(
            read(json!({"cniVersion": null})).unwrap_err().code,
            Code::IncompatibleVersion
        );
    }

    #[test]
    fn unsupported_values_are_code_2() {
        let other = read(json!({"ipam": {"type": "dhcp", "ranges": [[{"subnet": "10.1.0.0/24"}]]}})).unwrap();
        assert_eq!(other.range_sets().unwrap_err().code, Code::UnsupportedField);
        let routes = json!({"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]}});
        assert_eq!(
            read(routes).unwrap().routes().unwrap_err().code,
            Code::UnsupportedField
        );
    }

    #[test]
    fn both_keys_name_the_attachments_that_exist() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let config = read(json!({key: [{"containerID": "a", "ifname": "eth0"}]})).unwrap();
            assert_eq!(config.valid_attachments().unwrap()[0].if_name, "eth0");
        }
    }

    #[test]
    fn a_list_of_attachments_that_is_null_names_none() {
        let valid = |changes| read(changes).unwrap().valid_attachments();
        let [first, second] = VALID_ATTACHMENTS;
        assert_eq!(valid(json!({first: null, second: null})), Ok(Vec::new()));
        assert_eq!(valid(json!({first: null})), Ok(Vec::new()));
        assert_eq!(valid(json!({second: null})), Ok(Vec::new()));
        assert_eq!(valid(json!({first: [null]})), Ok(Vec::new()));
        let one = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert_eq!(valid(json!({first: null, second: one})).unwrap().len(), 1);
        for bad in [
            json!({first: {}}),
            json!({first: [{"containerID": "a", "ifname": null}]}),
        ] {
            assert_eq!(valid(bad).unwrap_err().code, Code::Decoding);
        }
    }

    #[test]
    fn null_equals_a_missing_key() {
        let ranges =
            json!([[{"subnet": "10.1.0.0/24", "rangeStart": null, "rangeEnd": "", "gateway": null}]]);
        let config = read(json!({
            "bpfRoot": null, "stateDir": null, "mtu": null, "enabledad": null, "dns": null, "capabilities": null,
            "ingressRate": null, "ingressBurst": null, "egressRate": null, "egressBurst": null,
            "ipam": {"type": null, "dataDir": null, "ranges": ranges, "routes": [{"dst": "0.0.0.0/0", "gw": null, "mtu": null}]},
            "args": {"cni": {"ips": null, "mac": null}},
            "prevResult": {"interfaces": null, "ips": null, "routes": null, "dns": null},
            "runtimeConfig": {
                "ips": null, "mac": null, "dns": {"servers": null, "searches": null, "options": null},
                "bandwidth": {"ingressRate": null, "ingressBurst": null, "egressRate": null, "egressBurst": null},
                "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": null, "hostIP": null}, {"hostPort": null}],
            },
        }))
        .unwrap();
        assert_eq!(config.range_sets().unwrap().len(), 1);
        assert_eq!(config.routes().unwrap().unwrap().len(), 1);
        assert_eq!((config.mtu(), config.refuses_duplicates()), (Ok(None), Ok(false)));
        let capability_args = config.capability_args().unwrap();
        assert_eq!(
            (
                capability_args.host_ports.len(),
                capability_args.ingress,
                capability_args.egress
            ),
            (1, None, None)
        );
        assert_eq!(config.requests(&Args::default()), Ok(Requests::default()));
        assert_eq!(config.previous(), Ok(Some(Map::new())));
        for nothing in [
            json!({"args": null}),
            json!({"args": {"cni": null}, "runtimeConfig": null}),
        ] {
            let config = read(nothing).unwrap();
            assert_eq!(config.requests(&Args::default()), Ok(Requests::default()));
            assert_eq!(config.capability_args(), Ok(CapabilityArgs::default()));
        }
        let whole = read(json!({
            "runtimeConfig": {"portMappings": null, "bandwidth": null, "dns": null}, "prevResult": null,
            "ipam": {"ranges": [null], "routes": null},
        }));
        let whole = whole.unwrap();
        assert_eq!(whole.capability_args(), Ok(CapabilityArgs::default()));
        assert_eq!((whole.previous(), whole.routes()), (Ok(None), Ok(None)));
        assert_eq!(
            whole.range_sets().unwrap_err().code,
            Code::InvalidConfig,
            "a set without ranges"
        );
    }
}
