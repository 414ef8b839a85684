//! Decodes a document's text, and reports its faults.
//!
//! A document that begins with `{` is tried as JSON first. JSON is the larger part of YAML's flow style and
//! ten times as fast. Any other document is tried as plain block style (`block.rs`), which programs write. If
//! a document cannot be decoded, a second pass finds the field: tracking it in the first pass would slow down
//! every valid document.

use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::block;
use super::documents::Document;
use crate::source::{Kind, Object, wire};

/// Why a document cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) struct Malformed {
    pub(super) line: usize,
    pub(super) field: Option<String>,
    pub(super) message: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(field) = &self.field {
            write!(f, ", field {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Decodes a document as JSON or YAML. `json` says that the file can only be JSON.
pub(super) fn decode<'de, S>(document: Document<'de>, json: bool, seed: S) -> Result<S::Value, Malformed>
where
    S: DeserializeSeed<'de> + Copy,
{
    let text = document.text;
    if text.trim_start().starts_with('{') || json {
        let mut decoder = serde_json::Deserializer::from_str(text);
        match seed
            .deserialize(&mut decoder)
            .and_then(|value| decoder.end().map(|()| value))
        {
            Ok(value) => return Ok(value),
            Err(error) if json => return Err(malformed_json(document, seed, &error)),
            // The document may be YAML flow style that is not JSON.
            Err(_) => {}
        }
    } else if let Some(value) = block::decode(text, seed) {
        return Ok(value);
    }
    let decoded = serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |yaml| {
        seed.deserialize(yaml)
    });
    decoded.map_err(|error| malformed_yaml(document, seed, &error))
}

fn yaml_options() -> serde_saphyr::Options {
    // A List may have any length. Depth, which costs stack, and aliases, which multiply, stay limited.
    let budget = serde_saphyr::budget! {
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
    };
    serde_saphyr::options! { budget: budget, with_snippet: false }
}

fn malformed_json<'de, S>(document: Document<'de>, seed: S, error: &serde_json::Error) -> Malformed
where
    S: DeserializeSeed<'de>,
{
    let mut track = serde_path_to_error::Track::new();
    let mut decoder = serde_json::Deserializer::from_str(document.text);
    let failed = seed
        .deserialize(serde_path_to_error::Deserializer::new(&mut decoder, &mut track))
        .is_err();
    let position = format!(" at line {} column {}", error.line(), error.column());
    Malformed {
        line: document.line + error.line().saturating_sub(1),
        field: if failed { field(&track.path()) } else { None },
        message: error.to_string().replace(&position, ""),
    }
}

fn malformed_yaml<'de, S>(document: Document<'de>, seed: S, error: &serde_saphyr::Error) -> Malformed
where
    S: DeserializeSeed<'de>,
{
    let mut track = serde_path_to_error::Track::new();
    let again =
        serde_saphyr::with_deserializer_from_str_with_options(document.text, yaml_options(), |yaml| {
            seed.deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
                .map(drop)
        });
    let location = error.location();
    let (line, column) = location.map_or((1, 0), |location| (location.line() as usize, location.column()));
    let position = format!(" at line {line}, column {column}");
    Malformed {
        line: document.line + line.saturating_sub(1),
        field: if again.is_err() {
            field(&track.path())
        } else {
            None
        },
        message: error.without_snippet().to_string().replace(&position, ""),
    }
}

/// The path of the field in the object; `None` at the top or if it is unknown.
fn field(path: &serde_path_to_error::Path) -> Option<String> {
    let path = path.to_string();
    let path = path.trim_end_matches(".?").trim_matches(['.', '?']);
    (!path.is_empty()).then(|| path.to_owned())
}

/// Decodes an object of a known kind.
#[derive(Clone, Copy)]
pub(super) struct ObjectSeed(pub(super) Kind);

impl<'de> DeserializeSeed<'de> for ObjectSeed {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<Object, D::Error> {
        match self.0 {
            Kind::Service => wire::Service::deserialize(decoder).map(Object::Service),
            Kind::EndpointSlice => wire::EndpointSlice::deserialize(decoder).map(Object::EndpointSlice),
            Kind::Node => wire::Node::deserialize(decoder).map(Object::Node),
            Kind::ServiceCidr => wire::ServiceCidr::deserialize(decoder).map(Object::ServiceCidr),
            Kind::Namespace => wire::Namespace::deserialize(decoder).map(Object::Namespace),
            Kind::Pod => wire::Pod::deserialize(decoder).map(Object::Pod),
        }
    }
}

/// Decodes the items of a List with known kinds, and leaves out those without a kind.
#[derive(Clone, Copy)]
pub(super) struct ListSeed<'a>(pub(super) &'a [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for ListSeed<'_> {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<Vec<Object>, D::Error> {
        decoder.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ListSeed<'_> {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a List")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Object>, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<wire::Text>()? {
            if key == "items" && !self.0.is_empty() {
                objects = map.next_value_seed(ItemsSeed(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(objects)
    }
}

#[derive(Clone, Copy)]
struct ItemsSeed<'a>(&'a [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<Vec<Object>, D::Error> {
        decoder.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Object>, A::Error> {
        let mut objects = Vec::with_capacity(self.0.len());
        for kind in self.0 {
            match kind {
                Some(kind) => objects.extend(items.next_element_seed(ObjectSeed(*kind))?),
                None => drop(items.next_element::<IgnoredAny>()?),
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(objects)
    }
}
