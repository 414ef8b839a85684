//! VERSION: the supported versions of the specification.

use serde_json::{Value, json};

use crate::config::NetworkConfig;
use crate::spec::{CniError, Version};

/// Lists the versions. The reply repeats the version of the request, even an unsupported one.
pub fn version(input: &[u8]) -> Result<Value, CniError> {
    let asked = NetworkConfig::stated_version(input);
    Ok(json!({
        "cniVersion": asked.unwrap_or_else(|| Version::NEWEST.to_string()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_versions_are_listed_for_any_input() {
        for input in ["", "{", r#"{"cniVersion": "0.1.0"}"#] {
            let reply = version(input.as_bytes()).unwrap();
            assert_eq!(reply["supportedVersions"][4], "1.1.0");
        }
        assert_eq!(
            version(br#"{"cniVersion": "0.1.0"}"#).unwrap()["cniVersion"],
            "0.1.0"
        );
    }
}
