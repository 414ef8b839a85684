//! The agent's side of the control socket.
//!
//! The agent's state belongs to its one loop, so this task answers nothing itself: it reads a request, hands it to the
//! loop with a place for the answer, and writes the answer out. The loop makes a reply out of values; turning it into
//! JSON, which takes long for 100 000 services, happens on another thread.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::protocol::{Answer, MAX_REQUEST, Reply, Request};
use super::run_dir::{RunDir, RunDirError};

/// A request, and where the agent's loop puts the answer.
pub type Question = (Request, oneshot::Sender<Result<Reply, String>>);

/// How long one connection may take, from its request to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Connections served at a time; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 8;

/// The socket, and the lock on the run directory that it lies in. Dropping it removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdListener,
    run_dir: RunDir,
}

/// Takes the run directory and listens in it.
///
/// Fails where another agent has the directory; replaces a socket that one left behind.
pub fn bind(run_dir: &Path) -> Result<ControlSocket, RunDirError> {
    let run_dir = RunDir::create(run_dir)?;
    let socket = run_dir.socket();
    let failed = |what| {
        let path = run_dir.path().to_owned();
        move |source| RunDirError::Io { path, what, source }
    };
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing an old control socket")(error));
        }
        _ => {}
    }
    let listener = StdListener::bind(&socket).map_err(failed("listening on agent.sock"))?;
    // Nobody can connect before this: the directory is closed to others, and the peer is asked who it is.
    fs::set_permissions(&socket, Permissions::from_mode(0o600))
        .map_err(failed("closing agent.sock to others"))?;
    listener
        .set_nonblocking(true)
        .map_err(failed("listening on agent.sock"))?;
    Ok(ControlSocket { listener, run_dir })
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock is still held, so this cannot be another agent's socket.
        if let Err(error) = fs::remove_file(self.run_dir.socket()) {
            debug!("removing {}: {error}", self.run_dir.socket().display());
        }
    }
}

/// Passes requests to `questions` until nobody takes them any more.
///
/// Dropping the future ends every connection and removes the socket.
pub async fn serve(socket: ControlSocket, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = questions.closed() => return Ok(()),
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(timeout(DEADLINE, converse(stream, questions.clone())));
                }
                Err(error) => {
                    warn!("control socket: accepting a connection: {error}");
                    // Out of descriptors, most likely: trying again at once would only spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => match ended {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => debug!("control socket: a client went away: {error}"),
                Ok(Err(_)) => warn!("control socket: a client was cut off after {DEADLINE:?}"),
                Err(error) => warn!("control socket: {error}"),
            },
        }
    }
}

async fn converse(mut stream: UnixStream, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let answer = match answer(&mut stream, &questions).await? {
        Ok(reply) => Answer::Reply(reply),
        Err(message) => Answer::Error(message),
    };
    let line = spawn_blocking(move || {
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        io::Result::Ok(line)
    });
    stream.write_all(&line.await??).await?;
    stream.shutdown().await
}

async fn answer(
    stream: &mut UnixStream,
    questions: &mpsc::Sender<Question>,
) -> io::Result<Result<Reply, String>> {
    if stream.peer_cred()?.uid() != 0 {
        return Ok(Err("the agent answers root only: run this as root".into()));
    }
    let mut line = Vec::new();
    BufReader::new(&mut *stream)
        .take(MAX_REQUEST)
        .read_until(b'\n', &mut line)
        .await?;
    if line.last() != Some(&b'\n') {
        return Ok(Err(format!(
            "a request is one line of at most {MAX_REQUEST} bytes"
        )));
    }
    let request = match serde_json::from_slice::<Request>(&line) {
        Ok(Request::Trace(trace)) => trace.validate().map(|()| Request::Trace(trace)),
        Ok(request) => Ok(request),
        Err(error) => Err(format!(
            "this agent (version {}) does not understand the request: {error}",
            env!("CARGO_PKG_VERSION")
        )),
    };
    let request = match request {
        Ok(request) => request,
        Err(message) => return Ok(Err(message)),
    };
    let (reply, replied) = oneshot::channel();
    if questions.send((request, reply)).await.is_err() {
        return Ok(Err("the agent is stopping".into()));
    }
    Ok(replied
        .await
        .unwrap_or_else(|_| Err("the agent is stopping".into())))
}
