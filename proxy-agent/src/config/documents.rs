//! The documents of a YAML file, read one by one, with the place of an error.
//!
//! A file is cut at its `---` lines, as kubectl does. A line that begins so at the left margin separates
//! documents in any context (YAML 1.2.2, c-forbidden). So an error in one document does not hide those of the
//! next. Every error has the line of the file and the path of the field.
//!
//! A document is read strictly, or leniently as Kubernetes' own decoders can. Leniently, keys that the type
//! does not have are left out. If a key is given more than once, the last value counts. Both are reported.

use std::collections::HashSet;

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter};

use super::outline::{Outline, Step};

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// The document's number, counted from 1; empty documents count too.
    pub number: usize,
    /// The line of the file on which it starts, counted from 1.
    pub first_line: u64,
    text: &'a str,
}

/// An error in a document, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// The line of the file, where it is known.
    pub line: Option<u64>,
    /// The path of the field, such as `maps.frontends.max`; empty for the document as a whole.
    pub field: String,
    /// The text of the error.
    pub message: String,
}

/// A key that was read leniently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lenience {
    /// The line of the file; for a key that is given more than once, the line of the last.
    pub line: Option<u64>,
    /// The path of the field.
    pub field: String,
    /// The kind of the lenience.
    pub kind: LenienceKind,
}

/// The reason why a key was read leniently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LenienceKind {
    /// The type has no such field.
    Unknown,
    /// The key is given more than once.
    Repeated,
}

/// Cuts a file into its documents; empty ones are left out.
pub fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut number, mut first_line, mut start) = (1, 1, 0);
    let mut end = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let separates = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if separates {
            // The text before the first separator is a document only if it is not empty.
            if end > 0 && !is_empty(&text[start..end]) {
                documents.push(Document {
                    number,
                    first_line,
                    text: &text[start..end],
                });
            }
            number += usize::from(end > 0);
            (first_line, start) = (index as u64 + 1, end);
        }
        end += line.len();
    }
    if !is_empty(&text[start..]) {
        documents.push(Document {
            number,
            first_line,
            text: &text[start..],
        });
    }
    documents
}

/// Whether `text` has only comments and a separator.
fn is_empty(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#')
    })
}

impl Document<'_> {
    /// Reads the document strictly.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, DocumentError> {
        self.read_as(DuplicateKeyPolicy::Error, &mut Vec::new())
    }

    /// Reads the document leniently, where the type itself refuses no field.
    pub fn read_leniently<T: DeserializeOwned>(&self) -> Result<(T, Vec<Lenience>), DocumentError> {
        let mut unknown = Vec::new();
        let read = self.read_as(DuplicateKeyPolicy::LastWins, &mut unknown)?;
        let outline = self.outline();
        let found = |path: &[Step], line: Option<u64>, kind| Lenience {
            line: line.map(|line| self.first_line - 1 + line),
            field: Step::join(path),
            kind,
        };
        let unknown: HashSet<Vec<Step>> = unknown.into_iter().collect();
        // An unknown key is left out with all of its content, also with keys in it that are given more than
        // once.
        let is_left_out = |path: &[Step]| (1..=path.len()).any(|length| unknown.contains(&path[..length]));
        let repeated = outline.repeated().into_iter();
        let repeated = repeated
            .filter(|(path, _)| !is_left_out(path))
            .map(|(path, line)| found(&path, Some(line), LenienceKind::Repeated));
        let mut lenience: Vec<_> = repeated.collect();
        let unknown = unknown
            .iter()
            .map(|path| found(path, outline.line(path), LenienceKind::Unknown));
        lenience.extend(unknown);
        lenience.sort_by(|one, other| (one.line, &one.field).cmp(&(other.line, &other.field)));
        Ok((read, lenience))
    }

    /// The document's outline. Every document from which a type could be read has one. Without one the lines
    /// are missing.
    fn outline(&self) -> Outline {
        let options =
            serde_saphyr::options! { with_snippet: false, duplicate_keys: DuplicateKeyPolicy::LastWins };
        let read =
            serde_saphyr::with_deserializer_from_str_with_options(self.text, options, |deserializer| {
                Outline::deserialize(deserializer)
            });
        read.unwrap_or_default()
    }

    fn read_as<T: DeserializeOwned>(
        &self,
        duplicate_keys: DuplicateKeyPolicy,
        unknown: &mut Vec<Vec<Step>>,
    ) -> Result<T, DocumentError> {
        let mut field = String::new();
        let options = serde_saphyr::options! { with_snippet: false, duplicate_keys: duplicate_keys };
        let read =
            serde_saphyr::with_deserializer_from_str_with_options(self.text, options, |deserializer| {
                let mut note = |path: serde_ignored::Path<'_>| unknown.push(Step::path(&path));
                let deserializer = serde_ignored::Deserializer::new(deserializer, &mut note);
                serde_path_to_error::deserialize(deserializer).map_err(|error| {
                    field = error.path().to_string();
                    error.into_inner()
                })
            });
        read.map_err(|error| DocumentError {
            line: error
                .location()
                .map(|location| self.first_line - 1 + location.line()),
            field: if field == "." { String::new() } else { field },
            message: message(&error),
        })
    }
}

/// The text of an error, without its place. It may quote the file, so control characters are replaced before
/// they reach a terminal.
pub fn message(error: &Error) -> String {
    let message = DefaultMessageFormatter.format_message(error.without_snippet());
    let plain = |character: char| {
        if character.is_control() {
            '\u{fffd}'
        } else {
            character
        }
    };
    message.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        port: u16,
    }

    #[test]
    fn documents_are_counted_as_a_reader_counts_them() {
        let places = |text| {
            split(text)
                .iter()
                .map(|document| (document.number, document.first_line))
                .collect::<Vec<_>>()
        };
        assert_eq!(places(""), []);
        assert_eq!(places("# nothing\n---\n"), []);
        assert_eq!(places("a: 1"), [(1, 1)]);
        assert_eq!(places("---\na: 1\n"), [(1, 1)]);
        assert_eq!(
            places("a: 1\n---\nb: 2\n--- # third\nc: 3\n"),
            [(1, 1), (2, 2), (3, 4)]
        );
        assert_eq!(places("# a comment\n---\na: 1\n"), [(2, 2)]);
        assert_eq!(places("a: |\n  ---\n----\n"), [(1, 1)]);
        assert_eq!(places("---\r\na: 1\r\n---\r\nb: 2\r\n"), [(1, 1), (2, 3)]);
    }

    #[test]
    fn errors_have_a_line_and_a_field() {
        let text = "inner: []\n---\ninner:\n- port: 80\n- port: 80000\n---\ninner:\n- port: 1\n  prot: 2\n---\nouter: 1\n";
        let errors: Vec<_> = split(text)
            .iter()
            .filter_map(|document| document.read::<Outer>().err())
            .collect();
        let places: Vec<_> = errors
            .iter()
            .map(|error| (error.line, error.field.as_str()))
            .collect();
        assert_eq!(
            places,
            [
                (Some(5), "inner[1].port"),
                (Some(9), "inner[0].prot"),
                (Some(11), "outer")
            ],
            "{errors:?}"
        );
        assert!(
            errors[1].message.starts_with("unknown field `prot`"),
            "{errors:?}"
        );
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Lenient {
        name: Option<String>,
        inner: Vec<Lenient>,
    }

    #[test]
    fn lenience_has_a_line_and_a_field() {
        let text = "# first\nname: a\n---\nother: {x: 1, x: 2}\nname: a\ninner:\n- name: b\n  more:\n  - y: 1\n- Name: c\n\
                    other: 1\nname: null\nname: d\n";
        let (read, lenience) = split(text)[1].read_leniently::<Lenient>().unwrap();
        assert_eq!((read.name.as_deref(), read.inner.len()), (Some("d"), 2));
        let found: Vec<_> = lenience
            .iter()
            .map(|found| (found.line, found.field.as_str(), found.kind))
            .collect();
        assert_eq!(
            found,
            [
                (Some(8), "inner[0].more", LenienceKind::Unknown),
                (Some(10), "inner[1].Name", LenienceKind::Unknown),
                (Some(11), "other", LenienceKind::Unknown),
                (Some(13), "name", LenienceKind::Repeated),
            ]
        );
        let error = split("name: [1]\nother: 1\n")[0]
            .read_leniently::<Lenient>()
            .unwrap_err();
        assert_eq!((error.line, error.field.as_str()), (Some(1), "name"));
    }

    #[test]
    fn broken_syntax_has_a_line() {
        let error = split("---\na: 1\n---\nb: [\n")[1].read::<Outer>().unwrap_err();
        assert!(error.line >= Some(4), "{error:?}");
    }
}
