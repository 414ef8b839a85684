//! The agent's side of the control socket.
//!
//! The agent's state belongs to its one loop, so this task builds no reply itself. It reads a request, hands
//! it to the loop with a channel for the reply, and writes the reply to the client. The loop makes a reply
//! out of values. Another thread turns it into JSON, which takes long for 100 000 services.
//!
//! A clean-up of temporary files may remove the socket, or the run directory with it. So the task compares
//! inodes each second, and binds and locks anew; open connections continue.

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use super::protocol::{MAX_REQUEST, Reply, Request, Response};
use super::run_dir::{RunDir, RunDirError, file_id};

/// A request, and the channel where the agent's loop puts the reply.
pub type PendingRequest = (Request, oneshot::Sender<Result<Reply, String>>);

/// The time limit of one connection, from its request to the last byte of the reply.
const DEADLINE: Duration = Duration::from_secs(30);

/// The time limit of a request. A client writes it as soon as it is connected.
const REQUEST: Duration = Duration::from_secs(5);

/// Connections served at a time. For one more, the task cuts the oldest that has sent no request, else the
/// oldest of all.
const MAX_CONNECTIONS: usize = 128;
/// The age from which a connection without a request can be cut. A client that writes at once has sent its
/// request by then.
const TO_ASK: Duration = Duration::from_millis(100);
/// The age from which a connection with a request can be cut. A client that reads has its reply by then.
const TO_READ: Duration = Duration::from_secs(5);
/// How often to look for a connection that can be cut.
const LOOK: Duration = Duration::from_millis(10);
/// How often to check whether clients still find the socket.
const KEEP: Duration = Duration::from_secs(1);

/// The socket, and the lock on its run directory. Dropping it removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdListener,
    /// The device and inode of the socket.
    bound: (u64, u64),
    run_dir: RunDir,
}

/// Locks the run directory and listens in it.
///
/// Fails if another agent holds the directory. It replaces a socket that an earlier agent left behind.
pub fn bind(run_dir: &Path) -> Result<ControlSocket, RunDirError> {
    let run_dir = RunDir::create(run_dir)?;
    let (listener, bound) = listen(&run_dir)?;
    Ok(ControlSocket {
        listener,
        bound,
        run_dir,
    })
}

/// Listens in a run directory, and replaces the file that has the socket's name.
fn listen(run_dir: &RunDir) -> Result<(StdListener, (u64, u64)), RunDirError> {
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
    // No other user can connect before this: the directory is closed to them, and the agent checks the peer's
    // uid.
    fs::set_permissions(&socket, Permissions::from_mode(0o600))
        .map_err(failed("closing agent.sock to others"))?;
    listener
        .set_nonblocking(true)
        .map_err(failed("listening on agent.sock"))?;
    let bound = file_id(&socket).map_err(failed("listening on agent.sock"))?;
    Ok((listener, bound))
}

impl ControlSocket {
    /// Whether a client that opens the path of the socket finds this socket.
    fn is_found(&self) -> bool {
        self.run_dir.is_there() && self.is_there()
    }

    /// Whether the socket still has its name.
    fn is_there(&self) -> bool {
        file_id(&self.run_dir.socket()).is_ok_and(|there| there == self.bound)
    }

    /// Makes the socket again if clients do not find it. Returns the new listener, `None` if the socket is
    /// still there.
    fn keep(&mut self) -> Result<Option<UnixListener>, RunDirError> {
        if self.is_found() {
            return Ok(None);
        }
        if !self.run_dir.is_there() {
            self.run_dir = RunDir::create(self.run_dir.path())?;
        }
        let (listener, bound) = listen(&self.run_dir)?;
        let accepting = listener.try_clone().and_then(UnixListener::from_std);
        let accepting = accepting.map_err(|source| RunDirError::Io {
            path: self.run_dir.path().to_owned(),
            what: "listening on agent.sock",
            source,
        })?;
        // If a step above fails, the next check finds another inode and tries again.
        (self.listener, self.bound) = (listener, bound);
        Ok(Some(accepting))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // In a directory that was made anew, the socket may be another agent's.
        if self.is_there()
            && let Err(error) = fs::remove_file(self.run_dir.socket())
        {
            debug!("removing {}: {error}", self.run_dir.socket().display());
        }
    }
}

/// Passes requests to `requests` as long as the loop receives them. `restored` gets the path of a socket
/// that was missing and that this task made again.
///
/// Dropping the future ends every connection and removes the socket.
pub async fn serve(
    mut socket: ControlSocket,
    requests: mpsc::Sender<PendingRequest>,
    restored: impl Fn(PathBuf),
) -> io::Result<()> {
    let mut listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let mut looks = interval(KEEP);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logged = None;
    let mut connections = JoinSet::new();
    let mut open = VecDeque::<OpenConnection>::new();
    loop {
        tokio::select! {
            () = requests.closed() => return Ok(()),
            _ = looks.tick() => match socket.keep() {
                Ok(None) => logged = None,
                Ok(Some(new)) => {
                    listener = new;
                    restored(socket.run_dir.socket());
                }
                Err(error) => {
                    let message = error.to_string();
                    if logged.as_ref() != Some(&message) {
                        warn!("control socket: it is gone, and making it again fails: {message}");
                        logged = Some(message);
                    }
                }
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    make_room(&mut open).await;
                    let asked = Arc::new(AtomicBool::new(false));
                    let connection = serve_connection(stream, requests.clone(), Arc::clone(&asked));
                    let task = connections.spawn(timeout(DEADLINE, connection));
                    let since = Instant::now();
                    open.push_back(OpenConnection { task, since, asked });
                }
                Err(error) => {
                    warn!("control socket: accepting a connection: {error}");
                    // The likely reason is a lack of file descriptors, and a retry at once would only spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => match ended {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => debug!("control socket: a client went away: {error}"),
                Ok(Err(_)) => warn!("control socket: a client was cut off after {DEADLINE:?}"),
                Err(error) if error.is_cancelled() => warn!("control socket: a client was cut off for another"),
                Err(error) => warn!("control socket: {error}"),
            },
        }
    }
}

/// An open connection.
struct OpenConnection {
    task: AbortHandle,
    since: Instant,
    asked: Arc<AtomicBool>,
}

/// Waits until there is a free place, and cuts a connection for it if necessary.
async fn make_room(open: &mut VecDeque<OpenConnection>) {
    loop {
        open.retain(|connection| !connection.task.is_finished());
        if open.len() < MAX_CONNECTIONS {
            return;
        }
        let oldest = |asked: bool, age| {
            open.iter().position(|connection| {
                connection.asked.load(Ordering::Relaxed) == asked && connection.since.elapsed() >= age
            })
        };
        let place = oldest(false, TO_ASK).or_else(|| oldest(true, TO_READ));
        if let Some(connection) = place.and_then(|place| open.remove(place)) {
            connection.task.abort();
            return;
        }
        sleep(LOOK).await;
    }
}

async fn serve_connection(
    mut stream: UnixStream,
    requests: mpsc::Sender<PendingRequest>,
    asked: Arc<AtomicBool>,
) -> io::Result<()> {
    let read = timeout(REQUEST, read(&mut stream)).await;
    asked.store(true, Ordering::Relaxed);
    let request = read.unwrap_or_else(|_| Ok(Err(format!("no request came within {REQUEST:?}"))))?;
    let response = match request {
        Ok(request) => ask(request, &requests).await,
        Err(message) => Err(message),
    };
    let response = match response {
        Ok(reply) => Response::Reply(reply),
        Err(message) => Response::Error(message),
    };
    let line = spawn_blocking(move || {
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        io::Result::Ok(line)
    });
    stream.write_all(&line.await??).await?;
    stream.shutdown().await
}

/// Reads a request. An error in it is sent to the client.
async fn read(stream: &mut UnixStream) -> io::Result<Result<Request, String>> {
    if stream.peer_cred()?.uid() != 0 {
        return Ok(Err("the agent serves root only: run this as root".into()));
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
    Ok(match serde_json::from_slice::<Request>(&line) {
        Ok(Request::Trace(trace)) => trace.validate().map(|()| Request::Trace(trace)),
        Ok(request) => Ok(request),
        Err(error) => Err(format!(
            "this agent (version {}) does not understand the request: {error}",
            env!("CARGO_PKG_VERSION")
        )),
    })
}

/// Hands a request to the loop, and waits for the reply.
async fn ask(request: Request, requests: &mpsc::Sender<PendingRequest>) -> Result<Reply, String> {
    let stopping = || "the agent is stopping".to_owned();
    let (reply, replied) = oneshot::channel();
    if requests.send((request, reply)).await.is_err() {
        return Err(stopping());
    }
    replied.await.unwrap_or_else(|_| Err(stopping()))
}
