//! A change of the configuration while the agent runs.
//!
//! The agent reads most settings again and again, so they are exchanged. Sizes of maps and addresses of
//! servers are used once, when the agent starts. A change of those waits for the next start, and the agent
//! reports that to the operator.

use serde_json::{Map, Value};

use super::Configuration;

/// The settings that the agent reads only when it starts.
const AT_START: [&str; 5] = [
    "apiServers",
    "maps",
    "healthAddress",
    "metricsAddress",
    "bindAddressHardFail",
];

/// The effect of another configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reload {
    /// The changed settings that are in force now.
    pub applied: Vec<String>,
    /// The changed settings that wait for a restart.
    pub waiting: Vec<String>,
}

impl Configuration {
    /// Takes over all settings that can change while the agent runs.
    pub fn reload(&mut self, wanted: Self) -> Reload {
        let (old, new) = (keys(self), keys(&wanted));
        let differing = new
            .into_iter()
            .filter(|(key, value)| old.get(key) != Some(value))
            .map(|(key, _)| key);
        let (waiting, applied) = differing.partition(|key| AT_START.contains(&key.as_str()));
        *self = Self {
            api_servers: self.api_servers.clone(),
            maps: self.maps.clone(),
            health_address: self.health_address,
            metrics_address: self.metrics_address,
            bind_address_hard_fail: self.bind_address_hard_fail,
            ..wanted
        };
        Reload { applied, waiting }
    }
}

/// The settings in the form of a document.
fn keys(configuration: &Configuration) -> Map<String, Value> {
    match serde_json::to_value(configuration) {
        Ok(Value::Object(keys)) => keys,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, SocketLb};

    #[test]
    fn what_is_used_once_waits_for_a_restart() {
        let mut configuration = Configuration::default();
        let settings = Settings {
            socket_lb: Some(SocketLb::Off),
            masquerade_all: Some(true),
            health_address: Some("127.0.0.1".parse().unwrap()),
            maps: Some("{flows: 7}".parse().unwrap()),
            ..Settings::default()
        };
        let wanted = Configuration::of(&[settings], &Settings::default());
        let reload = configuration.reload(wanted.clone());
        assert_eq!(reload.applied, ["masqueradeAll", "socketLB"]);
        assert_eq!(reload.waiting, ["healthAddress", "maps"]);
        let expected = Configuration {
            socket_lb: SocketLb::Off,
            masquerade_all: true,
            ..Configuration::default()
        };
        assert_eq!(configuration, expected);
        assert!(configuration.reload(wanted).applied.is_empty());
    }
}
