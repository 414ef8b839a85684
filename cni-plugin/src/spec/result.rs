//! The result of ADD, which later calls receive as `prevResult`.
//!
//! The versions of results differ in few keys. Up to 0.4.0 an address names its family, and 1.1.0 adds the
//! MTU of an interface. The result of an earlier plugin of a chain is passed on whole, unknown keys included.
//! So only the parts that this plugin adds have a type.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{CniError, Code};
use super::version::Version;
use crate::config::go;

/// An interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// The name of the interface.
    pub name: String,
    /// The Ethernet address in hexadecimal.
    #[serde(default)]
    pub mac: String,
    /// The MTU in bytes, since 1.1.0.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The path of the interface's network namespace; empty on the node.
    #[serde(default)]
    pub sandbox: String,
}

/// An address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// The index of its interface in the result.
    #[serde(default)]
    pub interface: Option<usize>,
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway of the address.
    #[serde(default, deserialize_with = "go::address")]
    pub gateway: Option<IpAddr>,
}

/// A route of a result, and of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// The destination prefix.
    pub dst: IpNet,
    /// The next hop.
    #[serde(default, deserialize_with = "go::address")]
    pub gw: Option<IpAddr>,
    /// The MTU of the route in bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The largest TCP segment on the route (MSS) in bytes.
    #[serde(default)]
    pub advmss: Option<u32>,
    /// The priority; the lowest one is preferred.
    #[serde(default)]
    pub priority: Option<u32>,
    /// The number of the routing table.
    #[serde(default)]
    pub table: Option<u32>,
    /// The scope: `RT_SCOPE_…` of include/uapi/linux/rtnetlink.h.
    #[serde(default)]
    pub scope: Option<u8>,
}

/// The parts of a result that this plugin adds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// The interfaces; addresses refer to them by index.
    pub interfaces: Vec<Interface>,
    /// The addresses of the pod.
    pub ips: Vec<Address>,
    /// The routes of the pod.
    pub routes: Vec<Route>,
    /// The settings of name resolution, as configured.
    pub dns: Option<Value>,
}

impl CniResult {
    /// The document in one version, added to the results of the earlier plugins of the chain.
    pub fn document(&self, version: Version, previous: Option<&Map<String, Value>>) -> Value {
        let mut document = previous.cloned().unwrap_or_default();
        let before = document
            .get("interfaces")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        document.insert("cniVersion".into(), version.as_str().into());
        convert_previous(&mut document, version);
        append(
            &mut document,
            "interfaces",
            self.interfaces.iter().map(|it| interface(it, version)),
        );
        append(
            &mut document,
            "ips",
            self.ips.iter().map(|it| address(it, version, before)),
        );
        append(
            &mut document,
            "routes",
            self.routes.iter().map(|it| route(it, version)),
        );
        match &self.dns {
            Some(dns) => drop(document.insert("dns".into(), dns.clone())),
            None => drop(document.entry("dns").or_insert_with(|| json!({}))),
        }
        Value::Object(document)
    }

    /// Reads the parts that CHECK compares from a `prevResult` of any version.
    pub fn read(document: &Map<String, Value>) -> Result<Self, CniError> {
        Ok(Self {
            // Addresses refer to interfaces by index, so a `null` interface keeps its index.
            interfaces: list(document, "interfaces")?
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect(),
            ips: list(document, "ips")?.into_iter().flatten().collect(),
            routes: list(document, "routes")?.into_iter().flatten().collect(),
            dns: document.get("dns").cloned(),
        })
    }
}

fn list<T: for<'a> Deserialize<'a>>(
    document: &Map<String, Value>,
    key: &str,
) -> Result<Vec<Option<T>>, CniError> {
    let found = document.get(key).filter(|value| !value.is_null());
    let Some(found) = found else { return Ok(Vec::new()) };
    Vec::deserialize(found).map_err(|error| {
        CniError::new(Code::Decoding, format!("prevResult.{key} cannot be read"))
            .with_details(error.to_string())
    })
}

/// Converts the addresses of an earlier plugin, whose result may have another version than the requested one.
fn convert_previous(document: &mut Map<String, Value>, version: Version) {
    let Some(Value::Array(ips)) = document.get_mut("ips") else {
        return;
    };
    for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
        if version >= Version::V1_0_0 {
            ip.remove("version");
        } else if !ip.contains_key("version") {
            let is_v6 = ip
                .get("address")
                .and_then(Value::as_str)
                .is_some_and(|address| address.contains(':'));
            ip.insert("version".into(), if is_v6 { "6" } else { "4" }.into());
        }
    }
}

fn append(document: &mut Map<String, Value>, key: &str, new: impl Iterator<Item = Value>) {
    let list = document.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    if let Value::Array(list) = list {
        list.extend(new);
    }
}

fn interface(interface: &Interface, version: Version) -> Value {
    let mut value = json!({ "name": interface.name, "mac": interface.mac });
    if !interface.sandbox.is_empty() {
        value["sandbox"] = interface.sandbox.clone().into();
    }
    if let (Some(mtu), true) = (interface.mtu, version >= Version::V1_1_0) {
        value["mtu"] = mtu.into();
    }
    value
}

fn address(address: &Address, version: Version, before: usize) -> Value {
    let mut value = json!({ "address": address.address.to_string() });
    if version < Version::V1_0_0 {
        let is_v6 = matches!(address.address, IpNet::V6(_));
        value["version"] = if is_v6 { "6" } else { "4" }.into();
    }
    if let Some(index) = address.interface {
        value["interface"] = (before + index).into();
    }
    if let Some(gateway) = address.gateway {
        value["gateway"] = gateway.to_string().into();
    }
    value
}

fn route(route: &Route, version: Version) -> Value {
    let mut value = json!({ "dst": route.dst.to_string() });
    if let Some(gateway) = route.gw {
        value["gw"] = gateway.to_string().into();
    }
    if version >= Version::V1_1_0 {
        let numbers = [
            ("mtu", route.mtu),
            ("advmss", route.advmss),
            ("priority", route.priority),
            ("table", route.table),
            ("scope", route.scope.map(u32::from)),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                value[key] = number.into();
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/x".into(),
            }],
            ips: vec![Address {
                interface: Some(0),
                address: "fd00::5/128".parse().unwrap(),
                gateway: Some("fe80::1".parse().unwrap()),
            }],
            routes: Vec::new(),
            dns: None,
        }
    }

    #[test]
    fn a_result_has_the_keys_of_its_version() {
        let old = ours().document(Version::V0_4_0, None);
        assert_eq!(
            old["ips"][0],
            json!({"version": "6", "address": "fd00::5/128", "interface": 0, "gateway": "fe80::1"})
        );
        assert_eq!(old["interfaces"][0].get("mtu"), None);
        let new = ours().document(Version::V1_1_0, None);
        assert_eq!(new["ips"][0].get("version"), None);
        assert_eq!(new["interfaces"][0]["mtu"], 1450);
        assert_eq!(new["dns"], json!({}));
    }

    #[test]
    fn pointers_of_go_may_be_null() {
        let previous = json!({
            "interfaces": [null, {"name": "eth0"}], "routes": [null, {"dst": "::/0", "gw": ""}],
            "ips": [null, {"address": "10.1.0.2/32", "gateway": "", "interface": 1}],
        });
        let read = CniResult::read(previous.as_object().unwrap()).unwrap();
        assert_eq!(read.interfaces[1].name, "eth0");
        assert_eq!(
            (read.ips.len(), read.ips[0].gateway, read.ips[0].interface),
            (1, None, Some(1))
        );
        assert_eq!((read.routes.len(), read.routes[0].gw), (1, None));
    }

    #[test]
    fn the_previous_result_is_passed_on() {
        let previous = json!({
            "cniVersion": "0.4.0", "custom": true, "dns": {"nameservers": ["192.0.2.53"]},
            "interfaces": [{"name": "lo"}], "ips": [{"version": "4", "address": "127.0.0.1/8", "interface": 0}],
        });
        let document = ours().document(Version::V1_1_0, previous.as_object());
        assert_eq!(document["custom"], true);
        assert_eq!(document["cniVersion"], "1.1.0");
        assert_eq!(document["dns"], previous["dns"]);
        assert_eq!(document["ips"][0].get("version"), None);
        assert_eq!(document["ips"][1]["interface"], 1);
        let read = CniResult::read(document.as_object().unwrap()).unwrap();
        assert_eq!(read.interfaces[1], ours().interfaces[0]);
    }
}
