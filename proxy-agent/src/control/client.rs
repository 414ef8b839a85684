//! The command line's side of the control socket: one request, one reply, then the connection ends.
//!
//! The client blocks and sets time-outs, since a verb has nothing else to do; it needs no runtime. A missing
//! agent is an outcome of its own, because some verbs have a reply of their own to it.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Reply, Request, Response};
use super::run_dir::SOCKET;
use super::{Leases, NodeEntry, PodEntry, ServiceEntry, Status, TraceReply, TraceRequest};

/// How long to wait for the agent to read or to send the next bytes. It is longer than the agent's own
/// deadline.
const TIMEOUT: Duration = Duration::from_secs(35);

/// A client of the agent that runs with one run directory.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No agent listens on the socket in this run directory.
    #[error("no agent replies at {}: start `millrace agent`, or say where it runs with --run-dir", .0.display())]
    NoAgent(PathBuf),
    /// This process has no permission to use the socket at this path.
    #[error("{}: permission denied: run this as root", .0.display())]
    Denied(PathBuf),
    /// The agent refused the request, with this message.
    #[error("{0}")]
    Refused(String),
    /// Reading from or writing to the socket failed.
    #[error("{}: {what}: {source}", socket.display())]
    Io {
        /// The path of the socket.
        socket: PathBuf,
        /// The step that failed.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The reply does not match the request, or is no valid reply.
    #[error("{}: the agent's reply is not understood ({reason}): it may be of another version", socket.display())]
    NotUnderstood {
        /// The path of the socket.
        socket: PathBuf,
        /// Why the reply is not valid.
        reason: String,
    },
}

impl Client {
    /// Makes a client of the agent that runs with this run directory. It does not connect yet.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            socket: run_dir.join(SOCKET),
        }
    }

    /// Asks for the agent's state.
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(self.not_understood(&"the reply is for another request")),
        }
    }

    /// Asks for every frontend with its backends.
    pub fn services(&self) -> Result<Vec<ServiceEntry>, ClientError> {
        match self.ask(&Request::ListServices)? {
            Reply::ListServices(services) => Ok(services),
            _ => Err(self.not_understood(&"the reply is for another request")),
        }
    }

    /// Asks for every node with the route to its pods.
    pub fn nodes(&self) -> Result<Vec<NodeEntry>, ClientError> {
        match self.ask(&Request::ListNodes)? {
            Reply::ListNodes(nodes) => Ok(nodes),
            _ => Err(self.not_understood(&"the reply is for another request")),
        }
    }

    /// Asks for the path that packets would take.
    pub fn trace(&self, request: TraceRequest) -> Result<TraceReply, ClientError> {
        match self.ask(&Request::Trace(request))? {
            Reply::Trace(reply) => Ok(reply),
            _ => Err(self.not_understood(&"the reply is for another request")),
        }
    }

    /// Asks for the pods that the plugin gave an interface to.
    pub fn pods(&self) -> Result<Vec<PodEntry>, ClientError> {
        match self.ask(&Request::ListPods)? {
            Reply::ListPods(pods) => Ok(pods),
            _ => Err(self.not_understood(&"the reply is for another request")),
        }
    }

    /// Asks for the addresses and their holders.
    pub fn leases(&self) -> Result<Leases, ClientError> {
        match self.ask(&Request::ListLeases)? {
            Reply::ListLeases(leases) => Ok(leases),
            _ => Err(self.not_understood(&"the reply is for another request")),
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.not_understood(&error))?;
        line.push(b'\n');
        let mut stream = self.connect()?;
        stream
            .write_all(&line)
            .map_err(self.failed("sending the request"))?;
        line.clear();
        stream
            .read_to_end(&mut line)
            .map_err(self.failed("waiting for the reply"))?;
        if line.is_empty() {
            return Err(self.failed("waiting for the reply")(
                io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        match serde_json::from_slice(&line) {
            Ok(Response::Reply(reply)) => Ok(reply),
            Ok(Response::Error(message)) => Err(ClientError::Refused(message)),
            Err(error) => Err(self.not_understood(&error)),
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let stream = UnixStream::connect(&self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoAgent(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            _ => self.failed("connecting")(error),
        })?;
        stream
            .set_read_timeout(Some(TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(self.failed("setting a time-out"))?;
        Ok(stream)
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> ClientError + use<> {
        let socket = self.socket.clone();
        move |source| {
            // The name of a time-out on a socket depends on the system; Linux says "would block".
            let timed_out = source.kind() == io::ErrorKind::WouldBlock;
            let source = if timed_out {
                io::ErrorKind::TimedOut.into()
            } else {
                source
            };
            ClientError::Io {
                socket: socket.clone(),
                what,
                source,
            }
        }
    }

    fn not_understood(&self, reason: &dyn Display) -> ClientError {
        ClientError::NotUnderstood {
            socket: self.socket.clone(),
            reason: reason.to_string(),
        }
    }
}
