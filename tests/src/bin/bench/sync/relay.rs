//! A relay between the agent and the API server: it sees every byte and notes the time of each event.
//!
//! The relay speaks plain HTTP to the agent and TLS to the server. Otherwise it passes bytes on as they come.
//! An event counts as delivered when the write that completes its line begins. Events carry a number in an
//! annotation, which tells them apart. The relay can also play a server that has forgotten the past, so that
//! the agent has to list everything again.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use harness::Place;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// The annotation that numbers an event.
pub const ANNOTATION: &str = "bench.millrace.dev/event";

/// The port that the relay listens on.
pub const PORT: u16 = 7443;

const BUFFER: usize = 64 * 1024;

/// A running relay. Its connections end when it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    // Its tasks end with the runtime.
    _runtime: Runtime,
}

struct Shared {
    fabric: Place,
    server: SocketAddr,
    tls: TlsConnector,
    connections: Mutex<Vec<AbortHandle>>,
    forgetful: AtomicBool,
    lists: AtomicU64,
    events: Mutex<Option<Sender<(u64, Instant)>>>,
}

impl Relay {
    /// Listens in the fabric for agents of its world; trusts the certificates in the file `authority`.
    pub fn start(fabric: &Place, server: SocketAddr, authority: &Path) -> Result<Self> {
        let listener = fabric.tcp_listen(PORT).context("listening for the agent")?;
        let shared = Arc::new(Shared {
            fabric: fabric.clone(),
            server,
            tls: connector(authority)?,
            connections: Mutex::default(),
            forgetful: AtomicBool::new(false),
            lists: AtomicU64::new(0),
            events: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting a runtime")?;
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            _runtime: runtime,
        })
    }

    /// From now on sends the time of each numbered event to `events`.
    pub fn send_times(&self, events: Option<Sender<(u64, Instant)>>) {
        *lock(&self.shared.events) = events;
    }

    /// Breaks all connections and lets no watch be resumed, until [`Relay::remember`].
    pub fn forget(&self) {
        self.shared.forgetful.store(true, Ordering::SeqCst);
        for connection in lock(&self.shared.connections).drain(..) {
            connection.abort();
        }
    }

    /// Lets watches be resumed again.
    pub fn remember(&self) {
        self.shared.forgetful.store(false, Ordering::SeqCst);
    }

    /// The number of full lists that agents have asked for so far.
    pub fn lists(&self) -> u64 {
        self.shared.lists.load(Ordering::SeqCst)
    }
}

fn connector(authority: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(authority)
        .with_context(|| format!("reading {}", authority.display()))?;
    for certificate in certificates {
        let certificate = certificate.with_context(|| format!("reading {}", authority.display()))?;
        roots.add(certificate).context("trusting the API server")?;
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (agent, _) = listener.accept().await?;
        agent.set_nodelay(true)?;
        let connection = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            // An error at one end closes both connections, so each end sees it.
            let _ = connect(agent, &connection).await;
        });
        lock(&shared.connections).push(task.abort_handle());
    }
}

/// Serves one connection of the agent.
async fn connect(mut agent: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let request = first_request(&mut agent).await?;
    let resumes = is_resumed_watch(&request);
    if !resumes {
        shared.lists.fetch_add(1, Ordering::SeqCst);
    } else if shared.forgetful.load(Ordering::SeqCst) {
        return agent.write_all(gone().as_bytes()).await;
    }
    let (fabric, address) = (shared.fabric.clone(), shared.server);
    let stream = tokio::task::spawn_blocking(move || fabric.tcp_connect(address)).await??;
    stream.set_nonblocking(true)?;
    let server = TcpStream::from_std(stream)?;
    let mut server = shared.tls.connect(address.ip().into(), server).await?;
    server.write_all(&request).await?;
    let (mut from_agent, mut to_agent) = agent.into_split();
    let (from_server, mut to_server) = tokio::io::split(server);
    // The end of one direction ends both.
    tokio::select! {
        ended = tokio::io::copy(&mut from_agent, &mut to_server) => ended.map(drop),
        ended = replies(from_server, &mut to_agent, shared) => ended,
    }
}

/// The head of a connection's first request. Requests of the agent have no body.
async fn first_request(agent: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if agent.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(request)
}

/// Whether the request is a watch that goes on from a version. A list, and a watch that begins with one, are
/// not.
fn is_resumed_watch(request: &[u8]) -> bool {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    line.contains("watch=true") && !line.contains("sendInitialEvents=true")
}

/// A server's response to a watch from a version that it has forgotten.
fn gone() -> String {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    let status = status.to_string();
    let head = "HTTP/1.1 410 Gone\r\nContent-Type: application/json\r\nConnection: close\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{status}", status.len())
}

/// Passes on the server's responses.
async fn replies(
    mut server: impl AsyncRead + Unpin,
    agent: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut lines = Lines::default();
    loop {
        let length = server.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let bytes = &buffer[..length];
        let written = Instant::now();
        agent.write_all(bytes).await?;
        if let Some(events) = &*lock(&shared.events) {
            lines.take(bytes, |line| {
                if let Some(event) = event_of(line) {
                    // The receiver may be gone.
                    let _ = events.send((event, written));
                }
            });
        }
    }
}

/// The lines of a chunked response (RFC 9112 §7.1): a chunk may end, and the next one begin, in the middle of
/// a line. The lines that frame chunks end with CR LF, the lines of a watch with LF.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    piece: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.piece.extend_from_slice(part);
            if !part.ends_with(b"\n") {
                continue;
            }
            match self.piece.strip_suffix(b"\r\n") {
                Some(size) if !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit) => {}
                Some(data) => self.line.extend_from_slice(data),
                None => {
                    self.line.extend_from_slice(&self.piece);
                    each(&self.line);
                    self.line.clear();
                }
            }
            self.piece.clear();
        }
    }
}

/// The number in a line of a watch.
fn event_of(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?;
    let (_, rest) = line.split_once(&format!("\"{ANNOTATION}\":\""))?;
    rest.split_once('"')?.0.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded value is replaced as a whole, so a panic leaves no half-done state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_chunks_end() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for bytes in [&b"6\r\none\ntw\r\n"[..], b"3\r\no\n{\r", b"\na\r\n3}\n\r\n"] {
            lines.take(bytes, |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        assert_eq!(seen, ["one\n", "two\n", "{3}\n"]);
    }

    #[test]
    fn events_and_requests_are_recognised() {
        let line =
            br#"{"type":"MODIFIED","object":{"metadata":{"annotations":{"bench.millrace.dev/event":"42"}}}}"#;
        assert_eq!(event_of(line), Some(42));
        assert_eq!(event_of(b"4d2\r\n"), None);
        assert!(is_resumed_watch(
            b"GET /api/v1/services?watch=true&resourceVersion=7 HTTP/1.1\r\n\r\n"
        ));
        assert!(!is_resumed_watch(
            b"GET /api/v1/services?watch=true&sendInitialEvents=true HTTP/1.1\r\n\r\n"
        ));
    }
}
