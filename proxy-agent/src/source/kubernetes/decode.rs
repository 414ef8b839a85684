//! Decodes the responses of the API server: lines of a watch, pages of a list.
//!
//! Both are decoded directly into the slim types, and the decoder skips all other fields. Only a line or page
//! that cannot be decoded is decoded into general values, which shows the object with the fault: the others
//! are valid.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use serde_json::Value;

use crate::source::{Kind, Object, Unreadable, wire};

/// A line of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Line<T = Object> {
    Added(T),
    Modified(T),
    Deleted(T),
    Bookmark(Bookmark),
    Error(Status),
    /// An unreadable object, whether it was deleted, and the version that the watch has reached with it.
    #[serde(skip)]
    Unreadable(Unreadable, bool, Option<wire::Text>),
}

/// The progress of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: wire::Text,
    #[serde(default)]
    annotations: Option<BookmarkAnnotations>,
}

#[derive(Debug, Deserialize)]
struct BookmarkAnnotations {
    // KEP-3157: marks the end of the objects at the start of a streaming list.
    #[serde(default, rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<wire::Text>,
}

impl Bookmark {
    /// The version that the watch has reached.
    pub(super) fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// Whether the full list is complete with this bookmark.
    pub(super) fn ends_list(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.initial_events_end.as_deref()) == Some("true")
    }
}

/// A failure, as the server describes it (`k8s.io/apimachinery` meta/v1 Status).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Result<Object, Unreadable>>,
    /// The version of the list.
    pub(super) version: wire::Text,
    /// The token that requests the next page, if there is one.
    pub(super) next: Option<String>,
}

#[derive(Deserialize)]
struct WirePage<T> {
    metadata: PageMetadata,
    #[serde(default = "Option::default")]
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: wire::Text,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// Decodes a line of a watch of `kind`.
pub(super) fn line(kind: Kind, bytes: &[u8]) -> serde_json::Result<Line> {
    match kind {
        Kind::Service => typed_line(kind, bytes, Object::Service),
        Kind::EndpointSlice => typed_line(kind, bytes, Object::EndpointSlice),
        Kind::Node => typed_line(kind, bytes, Object::Node),
        Kind::ServiceCidr => typed_line(kind, bytes, Object::ServiceCidr),
        Kind::Namespace => typed_line(kind, bytes, Object::Namespace),
        Kind::Pod => typed_line(kind, bytes, Object::Pod),
    }
}

/// Decodes a page of a list of `kind`.
pub(super) fn page(kind: Kind, text: &str) -> serde_json::Result<Page> {
    match kind {
        Kind::Service => typed_page(kind, text, Object::Service),
        Kind::EndpointSlice => typed_page(kind, text, Object::EndpointSlice),
        Kind::Node => typed_page(kind, text, Object::Node),
        Kind::ServiceCidr => typed_page(kind, text, Object::ServiceCidr),
        Kind::Namespace => typed_page(kind, text, Object::Namespace),
        Kind::Pod => typed_page(kind, text, Object::Pod),
    }
}

fn typed_line<T: DeserializeOwned>(
    kind: Kind,
    bytes: &[u8],
    object: fn(T) -> Object,
) -> serde_json::Result<Line> {
    let line = match serde_json::from_slice::<Line<T>>(bytes) {
        Ok(line) => line,
        Err(error) => return salvage::<T>(kind, bytes, error),
    };
    Ok(match line {
        Line::Added(wire) => named(kind, object(wire)).map_or_else(unnamed, Line::Added),
        Line::Modified(wire) => named(kind, object(wire)).map_or_else(unnamed, Line::Modified),
        Line::Deleted(wire) => named(kind, object(wire)).map_or_else(unnamed, Line::Deleted),
        Line::Bookmark(bookmark) => Line::Bookmark(bookmark),
        Line::Error(status) => Line::Error(status),
        Line::Unreadable(what, gone, version) => Line::Unreadable(what, gone, version),
    })
}

fn unnamed(what: Unreadable) -> Line {
    Line::Unreadable(what, false, None)
}

/// Finds the object of a line that cannot be decoded. Fails if the line has no object.
fn salvage<T: DeserializeOwned>(
    kind: Kind,
    bytes: &[u8],
    error: serde_json::Error,
) -> serde_json::Result<Line> {
    let Ok(mut line) = serde_json::from_slice::<Value>(bytes) else {
        let what = Unreadable {
            kind,
            object: None,
            message: error.to_string(),
        };
        return Ok(Line::Unreadable(what, false, None));
    };
    let gone = match line["type"].as_str() {
        Some("BOOKMARK" | "ERROR") => return Err(error),
        what => what == Some("DELETED"),
    };
    let object = line["object"].take();
    let version = object["metadata"]["resourceVersion"].as_str().map(Into::into);
    let message = why::<T>(&object).unwrap_or_else(|| error.to_string());
    Ok(Line::Unreadable(
        unreadable(kind, &object, message),
        gone,
        version,
    ))
}

fn typed_page<T: DeserializeOwned>(
    kind: Kind,
    text: &str,
    object: fn(T) -> Object,
) -> serde_json::Result<Page> {
    let (metadata, items) = if let Ok(page) = serde_json::from_str::<WirePage<T>>(text) {
        let items = page.items.unwrap_or_default().into_iter();
        (
            page.metadata,
            items.map(|item| named(kind, object(item))).collect(),
        )
    } else {
        let page: WirePage<Value> = serde_json::from_str(text)?;
        let items = page.items.unwrap_or_default().into_iter();
        let read = |item: Value| match why::<T>(&item) {
            Some(message) => Err(unreadable(kind, &item, message)),
            None => serde_json::from_value(item)
                .map_err(|error| unreadable(kind, &Value::Null, error.to_string()))
                .and_then(|item| named(kind, object(item))),
        };
        (page.metadata, items.map(read).collect())
    };
    Ok(Page {
        items,
        version: metadata.resource_version,
        next: metadata.next.filter(|next| !next.is_empty()),
    })
}

/// Why a value is no `T`, with the field of the fault; `None` if it is one.
fn why<T: DeserializeOwned>(value: &Value) -> Option<String> {
    let error = serde_path_to_error::deserialize::<_, T>(value).err()?;
    Some(error.to_string())
}

/// Refuses an object without a name, since it cannot be told from another.
fn named(kind: Kind, object: Object) -> Result<Object, Unreadable> {
    if object.metadata().name.is_empty() {
        let message = "metadata.name: missing".to_owned();
        return Err(unreadable(kind, &Value::Null, message));
    }
    Ok(object)
}

fn unreadable(kind: Kind, object: &Value, message: String) -> Unreadable {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().filter(|name| !name.is_empty());
    let object = name.map(|name| {
        let metadata = wire::Metadata {
            name: name.into(),
            namespace: metadata["namespace"].as_str().map(Into::into),
            ..wire::Metadata::default()
        };
        let shown = if kind.namespaced() {
            format!("{kind} {}/{name}", metadata.namespace())
        } else {
            format!("{kind} {name}")
        };
        (metadata.id(kind), shown)
    });
    Unreadable {
        kind,
        object,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ObjectId;

    #[test]
    fn lines_of_a_watch_have_types() {
        let read = |text: &str| line(Kind::Service, text.as_bytes()).expect("good");
        let service = r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"a","resourceVersion":"7","managedFields":[{"x":[{}]}]}}}"#;
        let Line::Added(object) = read(service) else {
            panic!("not added")
        };
        assert_eq!(object.to_string(), "Service default/a");
        assert_eq!(object.metadata().resource_version.as_deref(), Some("7"));
        assert!(matches!(
            read(&service.replace("ADDED", "DELETED")),
            Line::Deleted(_)
        ));
        let Line::Bookmark(bookmark) = read(
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","creationTimestamp":null}}}"#,
        ) else {
            panic!("no bookmark")
        };
        assert!(bookmark.version() == "9" && !bookmark.ends_list());
        let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        assert!(matches!(read(end), Line::Bookmark(bookmark) if bookmark.ends_list()));
        let expired = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}}"#;
        assert!(
            matches!(read(expired), Line::Error(status) if status.code == 410 && status.reason == "Expired")
        );
    }

    #[test]
    fn an_object_that_cannot_be_decoded_is_named() {
        let bad = r#"{"metadata":{"name":"b","namespace":"shop","resourceVersion":"8"},"spec":{"ports":7}}"#;
        let read = |kind, object: &str| {
            let text = format!(r#"{{"type":"{kind}","object":{object}}}"#);
            match line(Kind::Service, text.as_bytes()).expect("a line") {
                Line::Unreadable(what, gone, version) => (what, gone, version.map(String::from)),
                other => panic!("{other:?}"),
            }
        };
        let (what, gone, version) = read("MODIFIED", bad);
        let (id, name) = what.object.expect("its name");
        assert_eq!(id, ObjectId::new(Kind::Service, "shop", "b"));
        assert_eq!(
            (name.as_str(), gone, version.as_deref()),
            ("Service shop/b", false, Some("8"))
        );
        assert!(
            what.message.starts_with("spec.ports: invalid type: integer `7`"),
            "{}",
            what.message
        );
        assert!(read("DELETED", bad).1);
        for nameless in ["7", "{}", r#"{"metadata":{"name":7}}"#, r#"{"metadata":[]}"#] {
            assert_eq!(read("ADDED", nameless).0.object, None, "{nameless}");
        }
        assert_eq!(read("FLOWN", bad).0.object, Some((id, name)));
        assert!(
            matches!(line(Kind::Service, b"no JSON"), Ok(Line::Unreadable(what, ..)) if what.object.is_none())
        );
        assert!(line(Kind::Service, br#"{"type":"BOOKMARK","object":{}}"#).is_err());

        let text = format!(
            r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{{"metadata":{{"name":"a"}}}},{bad},{{}},3,{{"metadata":{{"name":"c"}}}}]}}"#
        );
        let read = page(Kind::Service, &text).expect("a page");
        let items: Vec<_> = read
            .items
            .into_iter()
            .map(|item| match item {
                Ok(object) => object.to_string(),
                Err(what) => what.object.map_or_else(|| "?".to_owned(), |(_, name)| name + "?"),
            })
            .collect();
        assert_eq!(
            items,
            [
                "Service default/a",
                "Service shop/b?",
                "?",
                "?",
                "Service default/c"
            ]
        );
        assert!(page(Kind::Service, r#"{"metadata":7,"items":[]}"#).is_err());
    }

    #[test]
    fn a_page_says_whether_there_is_another() {
        let text = r#"{"kind":"NodeList","metadata":{"resourceVersion":"5","continue":"abc"},"items":[{"metadata":{"name":"n1"}}]}"#;
        let read = page(Kind::Node, text).expect("good");
        assert_eq!(
            (read.items.len(), read.version.as_str(), read.next.as_deref()),
            (1, "5", Some("abc"))
        );
        let last = page(Kind::Node, r#"{"metadata":{"resourceVersion":"5"},"items":null}"#).expect("good");
        assert!(last.items.is_empty() && last.next.is_none());
    }
}
