//! Serves HTTP on a port.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::limiter::{ConnectionLimiter, Permit, Port};
use super::{Faults, listen};
use crate::trouble::Trouble;

/// A response with its whole body.
pub type Response = http::Response<Full<Bytes>>;

/// The time limit of a request's head. A client has it ready when it connects.
const HEAD: Duration = Duration::from_secs(1);
/// The time limit of one connection, from its first byte to the last of the response.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection without a place may wait until its request arrives.
const PERMIT_WAIT: Duration = Duration::from_millis(50);
/// How often a waiting connection is checked for its request.
const LOOK: Duration = Duration::from_millis(5);
/// How many connections wait at one port; for one more, the first is closed.
const MAX_WAITING: usize = 64;
/// The longest head of a request in bytes; the smallest limit that hyper allows.
const MOST_HEAD: usize = 8192;
/// How long to wait before the next try to open a port.
const RETRY: Duration = Duration::from_secs(1);

/// The places that a server uses.
#[derive(Clone, Debug)]
pub struct Room {
    /// The places of all ports.
    pub limiter: ConnectionLimiter,
    /// The purpose of this port.
    pub name: &'static str,
}

impl Room {
    /// A copy for a port with another purpose.
    #[must_use]
    pub fn called(&self, name: &'static str) -> Self {
        Self { name, ..self.clone() }
    }
}

/// Makes the response to a path.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Makes the response to GET; HEAD gets its head.
    fn handle(&self, path: &str) -> BoxFuture<'static, Response>;
}

impl<F: Fn(&str) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static> Handler for F {
    fn handle(&self, path: &str) -> BoxFuture<'static, Response> {
        self(path)
    }
}

/// Listens and serves until this future is dropped. While the port cannot be opened, `failed` gets each new
/// reason, and `faults` holds it under the name of `subject`.
pub async fn keep_serving(
    address: SocketAddr,
    handler: impl Handler,
    room: Room,
    faults: Faults,
    subject: String,
    failed: impl Fn(&str) + Send,
) {
    loop {
        match listen(address) {
            Ok(listener) => {
                faults.clear(&subject);
                serve(listener, handler.clone(), &room).await;
            }
            Err(error) => {
                let message = format!("listening at {address}: {error}; tried again every second");
                if faults.set(Trouble::PortUnavailable, &subject, message.clone()) {
                    tracing::warn!(subject, "{message}");
                    failed(&message);
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Serves connections until this future is dropped.
pub async fn serve(listener: TcpListener, handler: impl Handler, room: &Room) {
    let number = listener.local_addr().map_or(0, |address| address.port());
    let port = Port {
        name: room.name,
        number,
    };
    let mut connections = JoinSet::new();
    let mut waiting = VecDeque::<WaitingConnection>::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let peer = peer.ip();
                    if let Some(permit) = room.limiter.take(port, peer, has_asked(&stream)) {
                        connections.spawn(serve_one(stream, handler.clone(), permit));
                    } else {
                        waiting.retain(WaitingConnection::waits);
                        if waiting.len() == MAX_WAITING && let Some(first) = waiting.pop_front() {
                            first.task.abort();
                        }
                        let admitted = Arc::new(AtomicBool::new(false));
                        let (handler, limiter) = (handler.clone(), room.limiter.clone());
                        let wait = wait_for_permit(stream, handler, limiter, (port, peer), Arc::clone(&admitted));
                        let task = connections.spawn(wait);
                        waiting.push_back(WaitingConnection { task, admitted });
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting a connection");
                    // The likely reason is a lack of file descriptors, and a retry at once would only spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
            // A client that closes its connection, or whose connection is cut, needs no log message.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Whether the whole head of a request is in the socket's buffer.
fn has_asked(stream: &TcpStream) -> bool {
    let mut head = [0; MOST_HEAD];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let read = recv(stream.as_raw_fd(), &mut head, flags).unwrap_or(0);
    head[..read].windows(4).any(|end| end == b"\r\n\r\n")
}

/// A connection that got no place.
struct WaitingConnection {
    task: AbortHandle,
    admitted: Arc<AtomicBool>,
}

impl WaitingConnection {
    fn waits(&self) -> bool {
        !self.task.is_finished() && !self.admitted.load(Ordering::Relaxed)
    }
}

/// Serves a connection without a place if its request arrives soon.
async fn wait_for_permit(
    stream: TcpStream,
    handler: impl Handler,
    limiter: ConnectionLimiter,
    (port, peer): (Port, IpAddr),
    admitted: Arc<AtomicBool>,
) {
    let closed = Instant::now() + PERMIT_WAIT;
    while Instant::now() < closed {
        sleep(LOOK).await;
        if has_asked(&stream)
            && let Some(permit) = limiter.take(port, peer, true)
        {
            admitted.store(true, Ordering::Relaxed);
            return serve_one(stream, handler, permit).await;
        }
    }
}

/// Serves one connection for as long as it keeps its place.
async fn serve_one(stream: TcpStream, handler: impl Handler, mut permit: Permit) {
    let asked = permit.asked();
    let mut exchange = pin!(serve_http(stream, handler, Arc::clone(&asked)));
    tokio::select! {
        () = &mut exchange => return,
        _ = permit.lost() => return,
        () = sleep(HEAD) => {}
    }
    if asked.load(Ordering::Relaxed) {
        tokio::select! {
            () = &mut exchange => return,
            _ = permit.lost() => return,
            () = sleep(DEADLINE.saturating_sub(HEAD)) => {}
        }
    }
    permit.is_slow();
}

async fn serve_http(stream: TcpStream, handler: impl Handler, asked: Arc<AtomicBool>) {
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let handler = handler.clone();
        async move {
            Ok::<_, Infallible>(if matches!(*request.method(), Method::GET | Method::HEAD) {
                handler.handle(request.uri().path()).await
            } else {
                reply(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "text/plain",
                    "only GET and HEAD\n",
                )
            })
        }
    });
    // A connection carries one request. A client that asks every few seconds loses nothing, and no client
    // keeps an idle place.
    let connection = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a client of an HTTP port went away");
    }
}

/// Makes a response with a content type that browsers do not override.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// The response for an unknown path.
pub fn not_found() -> Response {
    reply(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn exchange(to: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn room() -> Room {
        let (limiter, _) = ConnectionLimiter::new();
        Room {
            limiter,
            name: "test",
        }
    }

    fn echo(path: &str) -> BoxFuture<'static, Response> {
        std::future::ready(reply(StatusCode::OK, "text/plain", path.to_owned())).boxed()
    }

    #[tokio::test]
    async fn each_connection_serves_one_request() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        tokio::spawn(async move { serve(listener, echo, &room()).await });
        let text = exchange(to, "GET /some/path?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        for part in [
            "x-content-type-options: nosniff\r\n",
            "connection: close\r\n",
            "\r\n\r\n/some/path",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = exchange(to, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            text.ends_with("\r\n\r\n") && text.contains("content-length: 1\r\n"),
            "{text}"
        );
        let text = exchange(to, "POST / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 405 "), "{text}");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_tried_again() {
        let taken = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = taken.local_addr().unwrap();
        let faults = Faults::default();
        let (failed, mut failures) = tokio::sync::mpsc::unbounded_channel();
        let failed = move |message: &str| failed.send(message.to_owned()).unwrap();
        tokio::spawn(keep_serving(
            to,
            echo,
            room(),
            faults.clone(),
            "port".to_owned(),
            failed,
        ));
        let message = failures.recv().await.unwrap();
        assert!(
            message.starts_with(&format!("listening at {to}: Address already in use")),
            "{message}"
        );
        assert_eq!(faults.list().len(), 1);
        drop(taken);
        let text = tokio::time::timeout(Duration::from_secs(5), async {
            while !faults.list().is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
            exchange(to, "GET / HTTP/1.0\r\n\r\n").await
        });
        assert!(text.await.unwrap().contains(" 200 OK"));
    }

    /// Opens `count` connections that write `head` and no more.
    async fn silent(to: SocketAddr, count: usize, head: &str) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(to).await.expect("connecting");
            // This write fails on a connection that the server has already cut.
            let _ = stream.write_all(head.as_bytes()).await;
            streams.push(stream);
        }
        streams
    }

    #[tokio::test]
    async fn a_thousand_silent_connections_delay_no_response() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let room = room();
        let server = room.clone();
        tokio::spawn(async move { serve(listener, echo, &server).await });
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
        for head in ["", "G", "GET / HTTP/1.1\r\nHost: a\r\n"] {
            let held = silent(to, 1000, head).await;
            for ip in ["127.0.0.1", "127.0.0.2", "::1"] {
                let to = SocketAddr::new(ip.parse().unwrap(), port);
                let reply = exchange(to, "GET /here HTTP/1.1\r\nHost: a\r\n\r\n");
                let text = tokio::time::timeout(HEAD, reply).await.expect("within a second");
                assert!(text.contains(" 200 OK"), "{ip} beside {head:?}: {text}");
            }
            drop(held);
        }
        let usage = &room.limiter.usage()["test"];
        assert!(usage.cut.values().sum::<u64>() >= 2900, "{usage:?}");
    }

    #[tokio::test]
    async fn a_head_that_comes_byte_by_byte_is_cut_off_after_a_second() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        let room = room();
        let server = room.clone();
        tokio::spawn(async move { serve(listener, echo, &server).await });
        let mut stream = TcpStream::connect(to).await.unwrap();
        let cut = tokio::time::timeout(DEADLINE / 2, async {
            while stream.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        });
        cut.await.expect("cut off long before the deadline of a response");
        assert_eq!(
            room.limiter.usage()["test"].cut[&super::super::limiter::Cut::Slow],
            1
        );
    }
}
