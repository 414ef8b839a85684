//! `null` in documents that programs in Go write.
//!
//! Runtimes and libcni write a nil slice, map or pointer as `null`. Go's decoder leaves a field unchanged
//! where it reads `null` (`encoding/json`, Unmarshal). So a key with `null` means the same as a missing key.
//! In a list `null` is an element: it counts as an empty element.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Removes the keys whose value is `null`, at any depth.
pub fn remove_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
    object.values_mut().for_each(remove_below);
}

fn remove_below(value: &mut Value) {
    match value {
        Value::Object(object) => remove_nulls(object),
        Value::Array(list) => list.iter_mut().for_each(remove_below),
        _ => {}
    }
}

/// Reads an address of Go's type `net.IP`, which writes nil as the empty string.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_with_null_go_and_elements_stay() {
        let mut value = json!({"a": null, "b": {"c": null, "d": [null, {"e": null}, [{"f": null}]]}, "g": 0});
        remove_nulls(value.as_object_mut().unwrap());
        assert_eq!(value, json!({"b": {"d": [null, {}, [{}]]}, "g": 0}));
    }

    #[test]
    fn an_address_of_go_may_be_empty() {
        let read = |value: Value| address(value).ok();
        assert_eq!(read(json!("")), Some(None));
        assert_eq!(read(json!(null)), Some(None));
        assert_eq!(read(json!("fd00::1")), Some("fd00::1".parse().ok()));
        assert_eq!(read(json!("x")), None);
    }
}
