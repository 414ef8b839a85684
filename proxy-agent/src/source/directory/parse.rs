//! Parses a document's text into objects.
//!
//! The type to decode into is in the document itself (`apiVersion`, `kind`). In block style these are lines
//! that start in the first column, where no nested key can be. So they are read without parsing; any other
//! document is decoded twice. A [`List`](parse) is always decoded twice: first the kinds of its items, then
//! each item into the type of its kind. The module decodes nothing into a general value in between, which
//! would cost several times the text.

use std::marker::PhantomData;

use serde::Deserialize;

use super::decode::{ListSeed, Malformed, ObjectSeed, decode};
use super::documents::Document;
use crate::source::{Kind, Object, wire};

/// The content of a document.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) objects: Vec<Object>,
    /// The objects that were left out, and the reasons.
    pub(super) warnings: Vec<String>,
}

/// Parses a document. `json` says that the file can only be JSON.
pub(super) fn parse(document: Document<'_>, json: bool) -> Result<Content, Malformed> {
    let head = match head_by_lines(document.text) {
        Some(head) => head,
        None => decode(document, json, PhantomData::<Head>)?,
    };
    let mut content = Content::default();
    match Meaning::of(&head) {
        Meaning::Object(kind) => {
            let object = decode(document, json, ObjectSeed(kind))?;
            check_name(&object, document, "metadata.name")?;
            content.objects.push(object);
        }
        Meaning::List => parse_list(document, json, &mut content)?,
        Meaning::Unknown if head.kind.is_empty() || head.api_version.is_empty() => {
            let missing = if head.kind.is_empty() {
                "kind"
            } else {
                "apiVersion"
            };
            return Err(Malformed {
                line: document.first_line(),
                field: Some(missing.to_owned()),
                message: "missing".to_owned(),
            });
        }
        Meaning::Unknown => {
            let line = document.first_line();
            content
                .warnings
                .push(format!("line {line}: {} is left out", unknown(&head)));
        }
    }
    Ok(content)
}

fn parse_list(document: Document<'_>, json: bool, content: &mut Content) -> Result<(), Malformed> {
    let heads = decode(document, json, PhantomData::<ListHead>)?
        .items
        .unwrap_or_default();
    let mut kinds = Vec::with_capacity(heads.len());
    for (i, head) in heads.iter().enumerate() {
        kinds.push(match Meaning::of(head) {
            Meaning::Object(kind) => Some(kind),
            Meaning::List | Meaning::Unknown => {
                let line = document.first_line();
                content
                    .warnings
                    .push(format!("line {line}: items[{i}]: {} is left out", unknown(head)));
                None
            }
        });
    }
    content.objects = decode(document, json, ListSeed(&kinds))?;
    let places = (0..)
        .zip(&kinds)
        .filter(|(_, kind)| kind.is_some())
        .map(|(i, _)| i);
    for (object, i) in content.objects.iter().zip(places) {
        check_name(object, document, &format!("items[{i}].metadata.name"))?;
    }
    Ok(())
}

fn check_name(object: &Object, document: Document<'_>, field: &str) -> Result<(), Malformed> {
    if !object.metadata().name.is_empty() {
        return Ok(());
    }
    Err(Malformed {
        line: document.first_line(),
        field: Some(field.to_owned()),
        message: format!("missing in this {}", object.kind()),
    })
}

fn unknown(head: &Head) -> String {
    let known = "Service, Node, Namespace and List of v1, EndpointSlice of discovery.k8s.io/v1, ServiceCIDR of networking.k8s.io/v1";
    format!(
        "{} of {} is none of the kinds read here ({known}); it",
        head.kind, head.api_version
    )
}

/// The kind of a document or an item.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    api_version: wire::Text,
    kind: wire::Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListHead {
    items: Option<Vec<Head>>,
}

#[derive(Clone, Copy, Debug)]
enum Meaning {
    Object(Kind),
    List,
    Unknown,
}

impl Meaning {
    fn of(head: &Head) -> Self {
        match (head.api_version.as_str(), head.kind.as_str()) {
            ("v1", "Service") => Self::Object(Kind::Service),
            ("v1", "Node") => Self::Object(Kind::Node),
            ("v1", "Namespace") => Self::Object(Kind::Namespace),
            ("v1", "Pod") => Self::Object(Kind::Pod),

            ("v1", "List") => Self::List,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::Object(Kind::EndpointSlice),
            ("networking.k8s.io/v1", "ServiceCIDR") => Self::Object(Kind::ServiceCidr),
            _ => Self::Unknown,
        }
    }
}

/// Reads the head of a document in block style; `None` if the lines alone do not determine it.
fn head_by_lines(text: &str) -> Option<Head> {
    let value = |key: &str| {
        let mut values = text
            .lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let value = values
            .next()?
            .split(" #")
            .next()?
            .trim()
            .trim_matches(['"', '\'']);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./-".contains(&byte);
        (values.next().is_none() && !value.is_empty() && value.bytes().all(plain)).then(|| value.into())
    };
    Some(Head {
        api_version: value("apiVersion")?,
        kind: value("kind")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::documents::documents;
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let content =
            parse(documents(text).next().expect("a document"), false).map_err(|error| error.to_string())?;
        let names = content.objects.iter().map(ToString::to_string);
        Ok(names.chain(content.warnings).collect())
    }

    const SERVICE: &str = "# a comment\napiVersion: v1\nkind: Service # ours\nmetadata:\n  name: cart\nspec:\n  ports:\n  - port: 80\n";

    #[test]
    fn a_document_is_read_in_any_style() {
        for text in [
            SERVICE,
            "{apiVersion: v1, kind: Service, metadata: {name: cart}}",
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "x": [1, {}]}}"#,
            "kind: 'Service'\r\napiVersion: \"v1\"\r\nmetadata: {name: cart}\r\n",
            "kind: !!str Service\napiVersion: &v v1\nmetadata: {name: cart, namespace: default}",
            "kind: Service\napiVersion: v1\nmetadata:\n  name: cart\n  annotations:\n    x: |\n      kind: Node\nspec:\nstatus: ~\n",
        ] {
            assert_eq!(
                read(text).as_deref(),
                Ok(&["Service default/cart".to_owned()][..]),
                "{text}"
            );
        }
    }

    #[test]
    fn a_list_holds_objects_of_several_kinds() {
        let yaml = "apiVersion: v1\nkind: List\nmetadata: {}\nitems:\n\
            - {apiVersion: v1, kind: Service, metadata: {name: a}}\n\
            - {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}, spec: {ports: x}}\n\
            - {apiVersion: v1, kind: Namespace, metadata: {name: c}}\n\
            - {kind: Node, metadata: {name: d}, apiVersion: v1}\n";
        let json = r#"{"items": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}},
            {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"ports": "x"}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}},
            {"kind": "Node", "metadata": {"name": "d"}, "apiVersion": "v1"}], "kind": "List", "apiVersion": "v1"}"#;
        for text in [yaml, json] {
            let names = read(text).expect("good");
            assert_eq!(
                names[..3],
                ["Service default/a", "Namespace c", "Node d"],
                "{text}"
            );
            assert!(
                names[3].starts_with("line 1: items[1]: Deployment of apps/v1 is none"),
                "{names:?}"
            );
        }
        assert_eq!(read("apiVersion: v1\nkind: List\nitems:\n"), Ok(vec![]));
    }

    #[test]
    fn unknown_kinds_are_named() {
        let warnings = read("\n\nkind: Serivce\napiVersion: v1\nmetadata: {name: a}\n").expect("not fatal");
        assert!(
            warnings[0].starts_with("line 3: Serivce of v1 is none of the kinds"),
            "{warnings:?}"
        );
    }

    #[test]
    fn what_is_malformed_is_named_by_line_and_field() {
        for (text, error) in [
            (SERVICE.replace("80", "http"), "line 8, field spec.ports[0].port: invalid i64"),
            (SERVICE.replace("  - port: 80", "    port: 80"), "line 8, field spec.ports: expected sequence start"),
            (SERVICE.replace("spec:", "spec"), "line 6, field metadata: "),
            (SERVICE.replace("name: cart", "x: y"), "line 2, field metadata.name: missing in this Service"),
            (SERVICE.replace("kind: Service # ours", ""), "line 2, field kind: missing"),
            ("a: [1\n".to_owned(), "line 1"),
            ("just words".to_owned(), "line 1: expected mapping start"),
            (
                "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: 1}\n  spec: {ports: 1}".to_owned(),
                "line 7, field items[0].spec.ports: expected sequence start",
            ),
        ] {
            let found = read(&text).expect_err(&text);
            assert!(found.starts_with(error), "{found} for\n{text}");
        }
    }

    #[test]
    fn malformed_json_is_named_by_line_and_field() {
        let text = "{\n\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\"spec\": {\"ports\": [{\"port\": \"http\"}]}}";
        let error = parse(Document { line: 1, text }, true)
            .expect_err("port is a string")
            .to_string();
        assert_eq!(
            error,
            "line 3, field spec.ports[0].port: invalid type: string \"http\", expected i64"
        );
        let error = parse(
            Document {
                line: 1,
                text: "{\"kind\": ",
            },
            true,
        )
        .expect_err("cut off")
        .to_string();
        assert!(error.starts_with("line 1") && error.contains("EOF"), "{error}");
    }

    #[test]
    fn a_document_cannot_exhaust_the_stack_or_the_memory() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
        let deep = 100_000;
        let aliases = (1..30)
            .map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1))
            .collect::<Vec<_>>()
            .concat();
        for text in [
            format!("{service}x: {}", "[".repeat(deep)),
            format!("{service}x: {}{}", "{a: ".repeat(deep), "}".repeat(deep)),
            format!("{service}x: {}", "- ".repeat(deep)),
            format!("{{\"a\": {}", "[".repeat(deep)),
            format!("{service}a0: &a0 [x]\n{aliases}"),
        ] {
            assert!(read(&text).is_err());
        }
    }

    #[test]
    fn a_list_may_be_long() {
        let items: Vec<String> = (0..30_000)
            .map(|i| format!("- {{apiVersion: v1, kind: Node, metadata: {{name: n{i}}}}}\n"))
            .collect();
        assert_eq!(
            read(&format!("apiVersion: v1\nkind: List\nitems:\n{}", items.concat())).map(|names| names.len()),
            Ok(30_000)
        );
    }
}
