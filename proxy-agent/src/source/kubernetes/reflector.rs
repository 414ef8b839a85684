//! Follows the objects of one kind: a full list, then every change after it, for as long as the agent runs.
//!
//! The list comes as the beginning of the watch if the server supports that (KEP-3157, streaming lists), else
//! page by page. Each line carries the version that the watch has reached, and a new watch continues from
//! there when one ends. Only if the server has forgotten that version (410) is a new full list necessary.
//!
//! The reflector sends requests for hours to a server that is away. It passes nothing to the next stage
//! meanwhile, so the served state stays.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use kube::Client;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::decode::{self, Line};
use super::lines::Lines;
use super::{Servers, is_no_response, status_code};
use crate::source::{Change, Event, Kind, Unreadable, wire};

/// Excludes the objects that no proxy, or another one, serves, so that they do not cross the network
/// (kube-proxy's selector).
const OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
/// The number of objects on a page of a list. At 2 KB each, a page takes about a megabyte.
const PAGE: u32 = 500;
/// The server ends a watch after at most this many seconds.
const WATCH_SECONDS: u64 = 290;
/// The longest silence of a healthy watch: the server sends a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(100);
/// A watch that ends sooner counts as failed.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// How long the server may take to begin its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);
/// How often to check whether the server now knows a kind that it did not know.
const ABSENT: Duration = Duration::from_mins(1);

/// Follows the objects of one kind.
pub(super) struct Reflector {
    pub(super) kind: Kind,
    pub(super) node_name: String,
    pub(super) servers: Servers,
    pub(super) events: mpsc::Sender<Event>,
}

/// Why an attempt ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The receiver of the events was dropped.
    #[error("closed")]
    Closed,
    /// The server has forgotten the version to continue from.
    #[error("the watch expired")]
    Expired,
    /// The server cannot begin a watch with a list.
    #[error("no streaming lists")]
    NoStreaming,
    /// The server does not know the kind.
    #[error("the server does not have this kind")]
    Absent,
    /// The server ended the watch normally.
    #[error("the watch ended")]
    Over,
    /// The server does not respond, or its response is not that of an API server.
    #[error("{0}")]
    Lost(String),
    /// The server refused the request.
    #[error("{0}")]
    Refused(String),
}

/// The progress of the watch.
struct Progress {
    /// The version to continue from; `None` before a full list is complete.
    version: Option<wire::Text>,
    /// Whether the server begins watches with lists.
    streaming: bool,
    /// Whether there was a change whose object only a new list can show.
    relist: bool,
    backoff: Backoff,
}

impl Progress {
    /// Notes the version that the watch has reached, if it has begun.
    fn reach(&mut self, version: Option<&wire::Text>) {
        if let (Some(reached), Some(new)) = (&mut self.version, version) {
            reached.clone_from(new);
            self.backoff.reset();
        }
    }
}

impl Reflector {
    /// Runs until the receiver of the events is dropped.
    pub(super) async fn run(self) {
        let mut progress = Progress {
            version: None,
            streaming: true,
            relist: false,
            backoff: Backoff::new(),
        };
        loop {
            let started = Instant::now();
            let (choice, client) = self.servers.choose();
            let end = tokio::select! {
                end = self.attempt(client, &mut progress) => end,
                () = self.events.closed() => return,
            };
            let wait = match end {
                // A wait, so that a server that ends every watch at once does not get requests in a tight
                // loop.
                Ok(()) | Err(End::Over) if started.elapsed() < SHORTEST_WATCH => progress.backoff.wait(),
                Ok(()) | Err(End::Over) => Duration::ZERO,
                Err(End::Closed) => return,
                Err(End::Expired) => {
                    tracing::info!(kind = %self.kind, "the server forgot where the watch was; listing again");
                    if progress.version.take().is_some() {
                        // The server is healthy; only a list that expires again and again needs a wait.
                        progress.backoff.reset();
                    }
                    progress.backoff.wait()
                }
                Err(End::NoStreaming) => {
                    progress.streaming = false;
                    Duration::ZERO
                }
                Err(End::Absent) => progress.backoff.jitter(ABSENT),
                Err(end @ (End::Lost(_) | End::Refused(_))) => {
                    if matches!(end, End::Lost(_)) {
                        self.servers.failed(choice);
                    }
                    let error = end.to_string();
                    if self.servers.state().set_failing(self.kind, &error) {
                        tracing::warn!(kind = %self.kind, error, "cannot follow objects; what is programmed stays");
                    }
                    progress.backoff.wait()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Lists if necessary, and watches until the watch ends.
    async fn attempt(&self, client: &Client, progress: &mut Progress) -> Result<(), End> {
        if std::mem::take(&mut progress.relist) {
            progress.version = None;
        }
        if progress.version.is_none() && !progress.streaming {
            self.list(client, progress).await?;
        }
        let with_list = progress.version.is_none();
        let seconds = progress
            .backoff
            .jitter(Duration::from_secs(WATCH_SECONDS))
            .as_secs();
        let parameters = WatchParams {
            label_selector: self.selector(),
            field_selector: self.field_selector(),
            timeout: Some(seconds as u32),
            bookmarks: true,
            send_initial_events: with_list,
        };
        let version = progress.version.as_deref().unwrap_or_default();
        let request = Request::new(path(self.kind)).watch(&parameters, version);
        let request = request.map_err(|error| End::Refused(error.to_string()))?;
        let response = self.ask(client.request_stream(request)).await?;
        let mut lines = Lines::new(response.map_err(|error| self.refused(&error, with_list))?);
        if with_list {
            self.send(Instant::now(), Change::Begin(self.kind)).await?;
        } else {
            self.servers.state().set_following(self.kind);
        }
        loop {
            match lines.next(SILENCE).await {
                Ok(Some((line, received))) => self.take(line, received, progress).await?,
                Ok(None) if progress.version.is_some() => return Err(End::Over),
                Ok(None) => return Err(End::Lost("the list broke off".to_owned())),
                Err(error) => return Err(End::Lost(describe(&error))),
            }
        }
    }

    /// Processes a line of a watch.
    async fn take(&self, line: &[u8], received: Instant, progress: &mut Progress) -> Result<(), End> {
        let (object, gone) = match decode::line(self.kind, line) {
            Ok(Line::Added(object) | Line::Modified(object)) => (object, false),
            Ok(Line::Deleted(object)) => (object, true),
            Ok(Line::Bookmark(bookmark)) => {
                if progress.version.is_none() && !bookmark.ends_list() {
                    return Ok(());
                }
                if progress.version.is_none() {
                    self.complete(received).await?;
                }
                progress.version = Some(bookmark.version().into());
                progress.backoff.reset();
                return Ok(());
            }
            Ok(Line::Error(status)) if status.code == 410 || status.reason == "Expired" => {
                return Err(End::Expired);
            }
            Ok(Line::Error(status)) => return Err(End::Refused(status.message)),
            Ok(Line::Unreadable(what, gone, version)) => {
                return self
                    .take_unreadable(what, gone, version, received, progress)
                    .await;
            }
            Err(error) => {
                return Err(End::Refused(format!(
                    "a line of the watch cannot be read: {error}"
                )));
            }
        };
        progress.reach(object.metadata().resource_version.as_ref());
        let change = if gone {
            Change::Delete(self.kind, object.id())
        } else {
            Change::Apply(Box::new(object))
        };
        self.send(received, change).await
    }

    /// Processes a line that cannot be read. The watch continues: the fault stops one object, not its kind.
    async fn take_unreadable(
        &self,
        what: Unreadable,
        gone: bool,
        version: Option<wire::Text>,
        received: Instant,
        progress: &mut Progress,
    ) -> Result<(), End> {
        progress.reach(version.as_ref());
        let change = match &what.object {
            Some((id, _)) if gone => Change::Delete(self.kind, *id),
            known => {
                // Only a new list shows the state of an object without a name.
                progress.relist |= known.is_none();
                self.report_unreadable(&what);
                Change::Unreadable(what)
            }
        };
        self.send(received, change).await
    }

    fn report_unreadable(&self, what: &Unreadable) {
        let object = what.object.as_ref().map_or("?", |(_, name)| name);
        let error = &what.message;
        tracing::warn!(kind = %self.kind, object, error, "an object cannot be read; all others are served");
    }

    /// Lists page by page.
    async fn list(&self, client: &Client, progress: &mut Progress) -> Result<(), End> {
        self.send(Instant::now(), Change::Begin(self.kind)).await?;
        let mut parameters = ListParams {
            label_selector: self.selector(),
            field_selector: self.field_selector(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let request = Request::new(path(self.kind)).list(&parameters);
            let request = request.map_err(|error| End::Refused(error.to_string()))?;
            let text = match self.ask(client.request_text(request)).await? {
                Ok(text) => text,
                Err(error) => return self.not_listed(&error).await,
            };
            let received = Instant::now();
            let page = decode::page(self.kind, &text);
            drop(text);
            let page = page.map_err(|error| End::Refused(format!("a list cannot be read: {error}")))?;
            for item in page.items {
                let change = match item {
                    Ok(object) => Change::Apply(Box::new(object)),
                    Err(what) => {
                        progress.relist |= what.object.is_none();
                        self.report_unreadable(&what);
                        Change::Unreadable(what)
                    }
                };
                self.send(received, change).await?;
            }
            parameters.continue_token = page.next;
            if parameters.continue_token.is_none() {
                self.complete(received).await?;
                progress.version = Some(page.version);
                progress.backoff.reset();
                return Ok(());
            }
        }
    }

    /// Waits for a response, and counts the request.
    async fn ask<T>(
        &self,
        response: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<Result<T, kube::Error>, End> {
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, response).await;
        let code = response
            .as_ref()
            .ok()
            .and_then(|response| status_code(response, 200));
        self.servers.state().count_request("GET", code);
        response.map_err(|_| End::Lost("the server does not reply".to_owned()))
    }

    async fn not_listed(&self, error: &kube::Error) -> Result<(), End> {
        let end = self.refused(error, false);
        if matches!(end, End::Absent) {
            // The server has no objects of this kind, and that is certain.
            self.complete(Instant::now()).await?;
        }
        Err(end)
    }

    /// Notes that the full list is complete.
    async fn complete(&self, received: Instant) -> Result<(), End> {
        self.servers.state().set_following(self.kind);
        self.send(received, Change::End(self.kind)).await
    }

    /// The meaning of a refused request.
    fn refused(&self, error: &kube::Error, streaming: bool) -> End {
        match error {
            kube::Error::Api(status) => match status.code {
                410 => End::Expired,
                // The request is invalid before Kubernetes 1.27, or if the feature gate WatchList is off. The
                // list request shows whether the kind is missing.
                400 | 404 | 422 if streaming => End::NoStreaming,
                404 if self.kind == Kind::ServiceCidr => End::Absent,
                code => {
                    let message = format!("{} ({code} {})", status.message, status.reason);
                    if is_no_response(error) {
                        End::Lost(message)
                    } else {
                        End::Refused(message)
                    }
                }
            },
            other => End::Lost(describe(other)),
        }
    }

    /// Selects the pods of this node.
    fn field_selector(&self) -> Option<String> {
        matches!(self.kind, Kind::Pod).then(|| format!("spec.nodeName={}", self.node_name))
    }

    fn selector(&self) -> Option<String> {
        matches!(self.kind, Kind::Service | Kind::EndpointSlice).then(|| OURS.to_owned())
    }

    async fn send(&self, received: Instant, change: Change) -> Result<(), End> {
        self.events
            .send(Event::new(received, change))
            .await
            .map_err(|_| End::Closed)
    }
}

/// The path of a kind's objects on the server.
const fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "/api/v1/services",
        Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        Kind::Node => "/api/v1/nodes",
        Kind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs",
        Kind::Namespace => "/api/v1/namespaces",
        Kind::Pod => "/api/v1/pods",
    }
}

/// The innermost cause, which says more than the layers above it.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut bottom = error;
    while let Some(cause) = bottom.source() {
        bottom = cause;
    }
    match bottom.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(ErrorKind::UnexpectedEof) => "the server cut the connection".to_owned(),
        Some(ErrorKind::TimedOut) => "the server is silent".to_owned(),
        _ => bottom.to_string(),
    }
}
