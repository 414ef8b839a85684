//! The keys of a YAML document with their lines, without the values.
//!
//! The reader knows the path of a key that a type left out, and the outline has its line. A key that is given
//! more than once is in the outline as often, while a type has space for one value.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A node of a document.
#[derive(Debug, Default)]
pub enum Outline {
    /// Keys in their order, with their lines.
    Map(Vec<(String, u64, Outline)>),
    /// The elements of a list.
    List(Vec<Outline>),
    /// A node without keys.
    #[default]
    Scalar,
}

/// A step of the path to a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// To the value of a key.
    Key(String),
    /// To an element of a list.
    Index(usize),
}

impl Step {
    /// The path of a key that a type left out.
    pub fn path(path: &serde_ignored::Path<'_>) -> Vec<Self> {
        use serde_ignored::Path;
        let (parent, step) = match path {
            Path::Root => return Vec::new(),
            Path::Seq { parent, index } => (parent, Some(Self::Index(*index))),
            Path::Map { parent, key } => (parent, Some(Self::Key(key.clone()))),
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                (parent, None)
            }
        };
        let mut steps = Self::path(parent);
        steps.extend(step);
        steps
    }

    /// The path in the form for messages, such as `inner[0].port`.
    pub fn join(steps: &[Self]) -> String {
        steps.iter().fold(String::new(), |path, step| match step {
            Self::Key(key) if path.is_empty() => key.clone(),
            Self::Key(key) => format!("{path}.{key}"),
            Self::Index(index) => format!("{path}[{index}]"),
        })
    }
}

impl Outline {
    /// The line of a key.
    pub fn line(&self, path: &[Step]) -> Option<u64> {
        let (step, rest) = path.split_first()?;
        match (self, step) {
            (Self::Map(keys), Step::Key(wanted)) => {
                let (_, line, below) = keys.iter().rfind(|(key, ..)| key == wanted)?;
                if rest.is_empty() {
                    Some(*line)
                } else {
                    below.line(rest)
                }
            }
            (Self::List(elements), Step::Index(index)) => elements.get(*index)?.line(rest),
            _ => None,
        }
    }

    /// The keys that are given more than once, each with the last of its lines.
    pub fn repeated(&self) -> Vec<(Vec<Step>, u64)> {
        let mut found = Vec::new();
        self.collect_repeated(&mut Vec::new(), &mut found);
        found
    }

    fn collect_repeated(&self, at: &mut Vec<Step>, found: &mut Vec<(Vec<Step>, u64)>) {
        match self {
            Self::Map(keys) => {
                let mut times = HashMap::<&str, u32>::new();
                for (key, ..) in keys {
                    *times.entry(key).or_default() += 1;
                }
                // From the end, since the last key of a name counts.
                for (key, line, below) in keys.iter().rev() {
                    let Some(times) = times.remove(key.as_str()) else {
                        continue;
                    };
                    at.push(Step::Key(key.clone()));
                    if times > 1 {
                        found.push((at.clone(), *line));
                    }
                    below.collect_repeated(at, found);
                    at.pop();
                }
            }
            Self::List(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    at.push(Step::Index(index));
                    element.collect_repeated(at, found);
                    at.pop();
                }
            }
            Self::Scalar => {}
        }
    }
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutlineVisitor)
    }
}

struct OutlineVisitor;

impl<'de> Visitor<'de> for OutlineVisitor {
    type Value = Outline;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
        let mut keys = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            keys.push((key.value, key.referenced.line(), map.next_value()?));
        }
        Ok(Outline::Map(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Outline, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Outline::List(elements))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Outline, D::Error> {
        Outline::deserialize(deserializer)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_none<E>(self) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }
}
