//! The API server's answers: lines of a watch, pages of a list.
//!
//! Both are decoded straight into the slim types; what they do not name is skipped unread.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::source::{Kind, Object, wire};

/// A line of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Line<T = Object> {
    Added(T),
    Modified(T),
    Deleted(T),
    Bookmark(Bookmark),
    Error(Status),
}

/// How far a watch has come.
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
    // KEP-3157: ends the objects that a streaming list begins with.
    #[serde(default, rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<wire::Text>,
}

impl Bookmark {
    /// The version that the watch has reached.
    pub(super) fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// Whether the full list is complete with this.
    pub(super) fn ends_list(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.initial_events_end.as_deref()) == Some("true")
    }
}

/// What went wrong, as the server says it (`k8s.io/apimachinery` meta/v1 Status).
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
    pub(super) items: Vec<Object>,
    /// The version that the list is of.
    pub(super) version: wire::Text,
    /// Asks for the next page, if there is one.
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
        Kind::Service => typed_line(bytes, Object::Service),
        Kind::EndpointSlice => typed_line(bytes, Object::EndpointSlice),
        Kind::Node => typed_line(bytes, Object::Node),
        Kind::ServiceCidr => typed_line(bytes, Object::ServiceCidr),
        Kind::Namespace => typed_line(bytes, Object::Namespace),
        Kind::Pod => typed_line(bytes, Object::Pod),
    }
}

/// Decodes a page of a list of `kind`.
pub(super) fn page(kind: Kind, text: &str) -> serde_json::Result<Page> {
    match kind {
        Kind::Service => typed_page(text, Object::Service),
        Kind::EndpointSlice => typed_page(text, Object::EndpointSlice),
        Kind::Node => typed_page(text, Object::Node),
        Kind::ServiceCidr => typed_page(text, Object::ServiceCidr),
        Kind::Namespace => typed_page(text, Object::Namespace),
        Kind::Pod => typed_page(text, Object::Pod),
    }
}

fn typed_line<T: DeserializeOwned>(bytes: &[u8], object: fn(T) -> Object) -> serde_json::Result<Line> {
    Ok(match serde_json::from_slice::<Line<T>>(bytes)? {
        Line::Added(wire) => Line::Added(object(wire)),
        Line::Modified(wire) => Line::Modified(object(wire)),
        Line::Deleted(wire) => Line::Deleted(object(wire)),
        Line::Bookmark(bookmark) => Line::Bookmark(bookmark),
        Line::Error(status) => Line::Error(status),
    })
}

fn typed_page<T: DeserializeOwned>(text: &str, object: fn(T) -> Object) -> serde_json::Result<Page> {
    let page: WirePage<T> = serde_json::from_str(text)?;
    Ok(Page {
        items: page.items.unwrap_or_default().into_iter().map(object).collect(),
        version: page.metadata.resource_version,
        next: page.metadata.next.filter(|next| !next.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_watch_are_told_apart() {
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
        assert!(
            line(Kind::Service, b"{\"type\":\"ADDED\",\"obj")
                .expect_err("cut off")
                .is_eof()
        );
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
