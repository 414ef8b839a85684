//! Configuration files: the documents that one may hold, and the errors in it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::documents::{self, Document, DocumentError, Lenience, LenienceKind};
use super::ignored_fields::ignored_fields;
use super::kube_proxy::KubeProxyConfiguration;
use super::settings::Settings;

/// The only version of our documents so far.
const API_VERSION: &str = "millrace.dev/v1alpha1";
const KIND: &str = "AgentConfiguration";

/// The largest configuration file, in bytes. A file written by hand is smaller.
const MAX_SIZE: u64 = 1 << 20;

/// The kind of the document in a kubeadm cluster.
const KUBE_PROXY_KIND: &str = "KubeProxyConfiguration";
const KUBE_PROXY_GROUP: &str = "kubeproxy.config.k8s.io/";
const KUBE_PROXY_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// The content of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileReport {
    /// The settings for kube-proxy, if the file has such a document without errors.
    pub kube_proxy: Option<Settings>,
    /// The settings for Millrace, under the same condition. They override those for kube-proxy.
    pub own: Option<Settings>,
    /// All errors of the file.
    pub errors: Vec<ConfigError>,
    /// Settings that are valid and most likely not intended.
    pub warnings: Vec<String>,
}

/// One error of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct ConfigError {
    /// The path of the file.
    #[serde(skip)]
    pub file: PathBuf,
    /// The number of the document, counted from 1; `None` for the file as a whole.
    pub document: Option<usize>,
    /// The line of the file, if it is known.
    pub line: Option<u64>,
    /// The path of the field, such as `maps.frontends.max`; empty for the document as a whole.
    pub field: String,
    /// The text of the error.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if let Some(document) = self.document {
            write!(f, "document {document}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// The fields that identify a document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

/// The content of several files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The settings, to be applied in this order: those for kube-proxy, then those for Millrace, each in the
    /// order of the files.
    pub settings: Vec<Settings>,
    /// Settings that are valid and most likely not intended.
    pub warnings: Vec<String>,
}

/// Reads files, of which later ones override earlier ones. Fails with all errors of all files.
pub fn read_files(paths: &[PathBuf]) -> Result<Read, Vec<ConfigError>> {
    let mut read = Read::default();
    let (mut own, mut errors) = (Vec::new(), Vec::new());
    for report in paths.iter().map(|path| read_file(path)) {
        read.settings.extend(report.kube_proxy);
        own.extend(report.own);
        read.warnings.extend(report.warnings);
        errors.extend(report.errors);
    }
    read.settings.append(&mut own);
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// Reads a file.
pub fn read_file(path: &Path) -> FileReport {
    let fail = |message| {
        let error = ConfigError {
            file: path.to_owned(),
            document: None,
            line: None,
            field: String::new(),
            message,
        };
        FileReport {
            errors: vec![error],
            ..FileReport::default()
        }
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_SIZE => {
            return fail(format!(
                "{} bytes are too much for a configuration file",
                metadata.len()
            ));
        }
        Ok(_) => {}
        Err(error) => return fail(error.to_string()),
    }
    match fs::read_to_string(path) {
        Ok(text) => read_text(path, &text),
        Err(error) => fail(error.to_string()),
    }
}

fn read_text(path: &Path, text: &str) -> FileReport {
    let mut report = FileReport::default();
    for document in documents::split(text) {
        let errors = match read_document(&document) {
            Ok(read) => take(read, &document, path, &mut report),
            Err(error) => vec![error],
        };
        report.errors.extend(
            errors
                .into_iter()
                .map(|DocumentError { line, field, message }| ConfigError {
                    file: path.to_owned(),
                    document: Some(document.number),
                    line,
                    field,
                    message,
                }),
        );
    }
    if report.own.is_none() && report.kube_proxy.is_none() && report.errors.is_empty() {
        report
            .warnings
            .push(format!("{}: no document in it", path.display()));
    }
    report
}

/// The content of a document that could be read.
enum Content {
    Own(Box<Settings>),
    KubeProxy(Box<KubeProxyConfiguration>, Vec<Lenience>),
}

/// Adds the content of a document to the report of its file, or returns the error.
fn take(
    content: Content,
    document: &Document<'_>,
    path: &Path,
    report: &mut FileReport,
) -> Vec<DocumentError> {
    let (kind, settings, place) = match content {
        Content::Own(settings) => (KIND, *settings, &mut report.own),
        Content::KubeProxy(config, lenience) => {
            report
                .warnings
                .extend(lenience.iter().map(|it| warning(path, it)));
            let warnings = ignored_fields(&config).into_iter();
            report
                .warnings
                .extend(warnings.map(|warning| format!("{}: {warning}", path.display())));
            (KUBE_PROXY_KIND, config.settings(), &mut report.kube_proxy)
        }
    };
    if place.is_some() {
        let message = format!("a second {kind} in one file: put its keys into the first");
        return vec![at_start(document, "kind", message)];
    }
    let errors = settings.errors();
    *place = Some(settings);
    let error = |error: super::SettingError| DocumentError {
        line: None,
        field: error.field,
        message: error.message,
    };
    errors.into_iter().map(error).collect()
}

/// The warning for a field that kube-proxy accepts with a warning.
fn warning(path: &Path, lenience: &Lenience) -> String {
    let line = lenience.line.map(|line| format!(":{line}")).unwrap_or_default();
    let what = match lenience.kind {
        LenienceKind::Unknown => "is ignored: kube-proxy has no field of this name, and case counts",
        LenienceKind::Repeated => "is given more than once: the last value counts, as for kube-proxy",
    };
    format!("{}{line}: {} {what}", path.display(), lenience.field)
}

fn read_document(document: &Document<'_>) -> Result<Content, DocumentError> {
    // The kind of the document decides whether a key may be given twice.
    let (header, _): (Header, _) = document.read_leniently()?;
    let unknown_version = |version: &str, known: &str| {
        let message = format!("{version:?} is not known: write {known}");
        Err(at_start(document, "apiVersion", message))
    };
    match (header.api_version.as_str(), header.kind.as_str()) {
        (API_VERSION, KIND) => document.read().map(|read| Content::Own(Box::new(read))),
        (KUBE_PROXY_VERSION, KUBE_PROXY_KIND) => document
            .read_leniently()
            .map(|(read, lenience)| Content::KubeProxy(Box::new(read), lenience)),
        (version, KUBE_PROXY_KIND) if version.starts_with(KUBE_PROXY_GROUP) => {
            unknown_version(version, KUBE_PROXY_VERSION)
        }
        (version, KIND) => unknown_version(version, API_VERSION),
        (_, kind) => Err(at_start(
            document,
            "kind",
            format!(
                "{kind:?} is not known: a document starts with apiVersion: {API_VERSION} and kind: {KIND}, or is a \
                 {KUBE_PROXY_KIND} of {KUBE_PROXY_VERSION}"
            ),
        )),
    }
}

fn at_start(document: &Document<'_>, field: &str, message: String) -> DocumentError {
    DocumentError {
        line: Some(document.first_line),
        field: field.into(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Configuration, SocketLb};

    fn read(text: &str) -> FileReport {
        read_text(Path::new("agent.yaml"), text)
    }

    fn errors(text: &str) -> Vec<String> {
        read(text).errors.iter().map(ToString::to_string).collect()
    }

    const HEADER: &str = "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\n";

    #[test]
    fn every_key_is_read() {
        let report = read(&format!(
            "{HEADER}socketLB: host\nmasqueradePorts: 40000-50000\nserviceCIDRs: [10.96.0.0/16, 'fd00:96::/112']\n\
             clusterCIDRs:\n- 10.244.0.0/16\nnodeAddresses: [192.0.2.1]\nmaps:\n  frontends: {{initial: 10, max: 20}}\n  flows: 30\n"
        ));
        assert_eq!(report.errors, []);
        let mut configuration = Configuration::default();
        configuration.apply(&report.own.unwrap());
        assert_eq!(configuration.socket_lb, SocketLb::Host);
        let json = serde_json::to_value(&configuration).unwrap();
        assert_eq!(json["masqueradePorts"], "40000-50000");
        assert_eq!(
            json["serviceCIDRs"],
            serde_json::json!(["10.96.0.0/16", "fd00:96::/112"])
        );
        assert_eq!(json["clusterCIDRs"], serde_json::json!(["10.244.0.0/16"]));
        assert_eq!(json["nodeAddresses"], serde_json::json!(["192.0.2.1"]));
        assert_eq!(
            json["maps"]["frontends"],
            serde_json::json!({"initial": 10, "max": 20})
        );
        assert_eq!(json["maps"]["flows"], 30);
    }

    #[test]
    fn an_error_names_file_line_document_and_field() {
        for (body, expected) in [
            (
                "socketLb: all\n",
                "agent.yaml:3: document 1: socketLb: unknown field `socketLb`",
            ),
            (
                "socketLB: some\n",
                "agent.yaml:3: document 1: socketLB: unknown variant `some`",
            ),
            (
                "masqueradePorts: 5\n",
                "agent.yaml:3: document 1: masqueradePorts: \"5\" is no range of ports",
            ),
            (
                "clusterCIDRs:\n- 10.0.0.0/8\n- x\n",
                "agent.yaml:5: document 1: clusterCIDRs[1]: \"x\" is no range of addresses",
            ),
            (
                "maps:\n  slots:\n    max: -1\n",
                "agent.yaml:5: document 1: maps.slots.max: ",
            ),
            (
                "maps:\n  frontends: 0\n",
                "agent.yaml:4: document 1: maps.frontends: 0 entries are outside",
            ),
            (
                "nodeAddresses: ['::1']\n",
                "agent.yaml: document 1: nodeAddresses[0]: ::1 cannot be",
            ),
        ] {
            let errors = errors(&format!("{HEADER}{body}"));
            assert!(
                errors.len() == 1 && errors[0].starts_with(expected),
                "{errors:#?}\nexpected {expected}"
            );
        }
    }

    #[test]
    fn other_documents_are_refused_by_name() {
        for (text, expected) in [
            (
                "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n",
                "agent.yaml:1: document 1: apiVersion: \"kubeproxy.config.k8s.io/v1\" is not known: write kubeproxy.config.k8s.io/v1alpha1",
            ),
            (
                "apiVersion: millrace.dev/v2\nkind: AgentConfiguration\n",
                "agent.yaml:1: document 1: apiVersion: \"millrace.dev/v2\" is not known: write millrace.dev/v1alpha1",
            ),
            (
                "socketLB: all\n",
                "agent.yaml:1: document 1: kind: \"\" is not known",
            ),
            ("- a\n- b\n", "agent.yaml:1: document 1: "),
        ] {
            let errors = errors(text);
            assert!(
                errors.len() == 1 && errors[0].starts_with(expected),
                "{errors:#?}\nexpected {expected}"
            );
        }
    }

    #[test]
    fn one_bad_document_does_not_hide_the_next() {
        let errors = errors(&format!(
            "{HEADER}a: 1\n---\nkind: Pod\n---\n{HEADER}---\n{HEADER}"
        ));
        let starts: Vec<_> = errors
            .iter()
            .map(|error| error.split(": ").take(3).collect::<Vec<_>>().join(": "))
            .collect();
        assert_eq!(
            starts,
            [
                "agent.yaml:3: document 1: a",
                "agent.yaml:4: document 2: kind",
                "agent.yaml:9: document 4: kind"
            ]
        );
    }

    #[test]
    fn an_empty_file_gets_a_warning() {
        let report = read("# to do\n");
        assert_eq!(
            (report.errors.len(), report.warnings),
            (0, vec!["agent.yaml: no document in it".to_owned()])
        );
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let path = tempfile::tempdir().unwrap().path().join("missing.yaml");
        let errors = read_files(&[path]).unwrap_err();
        assert!(
            errors[0]
                .to_string()
                .ends_with("missing.yaml: No such file or directory (os error 2)"),
            "{errors:?}"
        );
    }
}
