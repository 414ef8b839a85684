//! Answering on a port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Faults, listen};

/// An answer: all of it at once.
pub type Response = http::Response<Full<Bytes>>;

/// How long one connection may take, from its first byte to the last of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Connections served at a time; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a port that cannot be had waits for the next try.
const RETRY: Duration = Duration::from_secs(1);

/// Makes the answer to a path.
pub trait Answer: Clone + Send + Sync + 'static {
    /// The answer to GET; HEAD gets its head.
    fn answer(&self, path: &str) -> BoxFuture<'static, Response>;
}

impl<F: Fn(&str) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static> Answer for F {
    fn answer(&self, path: &str) -> BoxFuture<'static, Response> {
        self(path)
    }
}

/// Listens and serves until this is dropped. While the port cannot be had, `failed` hears of it whenever the reason is news, and
/// `faults` has it by the name of `subject`.
pub async fn keep_serving(
    address: SocketAddr,
    answers: impl Answer,
    faults: Faults,
    subject: String,
    failed: impl Fn(&str) + Send,
) {
    loop {
        match listen(address) {
            Ok(listener) => {
                faults.clear(&subject);
                serve(listener, answers.clone()).await;
            }
            Err(error) => {
                let message = format!("listening at {address}: {error}; tried again every second");
                if faults.set(&subject, message.clone()) {
                    tracing::warn!(subject, "{message}");
                    failed(&message);
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Answers until this is dropped.
pub async fn serve(listener: TcpListener, answers: impl Answer) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(timeout(DEADLINE, converse(stream, answers.clone())));
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting a connection");
                    // Out of descriptors, most likely: trying again at once would only spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
            // Whoever goes away in the middle, or is cut off, knows it.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn converse(stream: TcpStream, answers: impl Answer) {
    let service = service_fn(|request: Request<Incoming>| {
        let answers = answers.clone();
        async move {
            Ok::<_, Infallible>(if matches!(*request.method(), Method::GET | Method::HEAD) {
                answers.answer(request.uri().path()).await
            } else {
                answer(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "text/plain",
                    "only GET and HEAD\n",
                )
            })
        }
    });
    // One request a connection: whoever asks every few seconds loses nothing, and nobody keeps a place that he does not use.
    let connection = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a client of an HTTP port went away");
    }
}

/// An answer that browsers take for what it says it is.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
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

/// The answer where nothing is.
pub fn not_found() -> Response {
    answer(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n")
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

    fn echo(path: &str) -> BoxFuture<'static, Response> {
        std::future::ready(answer(StatusCode::OK, "text/plain", path.to_owned())).boxed()
    }

    #[tokio::test]
    async fn requests_are_answered_one_a_connection() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, echo));
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
        tokio::spawn(keep_serving(to, echo, faults.clone(), "port".to_owned(), failed));
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
}
