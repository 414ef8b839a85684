//! A netlink socket for requests to one network namespace.
//!
//! The kernel replies to each request of a datagram in turn and goes on after one that it refuses. So a batch
//! is sent as one datagram, all replies are read, and the first refusal counts: the caller undoes the whole
//! batch anyway. The kernel reports each refusal, but success only for the last request. That acknowledgement
//! ends the batch.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::error::NetlinkError;
use super::sys;

/// Size of the receive buffer in bytes. No message is larger, and the kernel fills the buffer with the
/// elements of a list.
const ROOM: usize = 32 << 10;

/// A request, with its purpose for messages.
pub struct Request {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
    may_be_unknown: bool,
}

impl Request {
    /// Makes an object that must not exist yet.
    pub fn make(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes an object, or replaces the existing one.
    pub fn replace(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Changes or removes an object, or asks for one.
    pub fn plain(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, 0)
    }

    /// Asks for all objects of a kind.
    pub fn list(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, NLM_F_DUMP)
    }

    fn new(what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self {
            what: what.into(),
            message,
            flags: NLM_F_REQUEST | flags,
            may_be_unknown: false,
        }
    }

    /// The same request, whose failure is ignored where the kernel does not know the object or its kind
    /// (`ENOENT`).
    #[must_use]
    pub fn if_known(self) -> Self {
        Self {
            may_be_unknown: true,
            ..self
        }
    }
}

/// A netlink socket for requests.
pub struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
}

impl NetlinkSocket {
    /// Opens a socket in the network namespace of this thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::refused("opening a netlink socket"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The cookie of the socket's network namespace, where the kernel gives it (Linux 5.14).
    pub fn netns_cookie(&self) -> Option<u64> {
        sys::netns_cookie(&self.socket).ok()
    }

    /// Sends one request and returns the replies.
    pub fn ask(&mut self, request: Request) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.batch(vec![request])
    }

    /// Sends requests as one datagram and returns the replies to all of them.
    pub fn batch(&mut self, requests: Vec<Request>) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let first = self.sequence + 1;
        let (mut datagram, mut purposes) = (Vec::new(), Vec::new());
        let count = requests.len();
        for request in requests {
            self.sequence += 1;
            let is_last = purposes.len() + 1 == count;
            let mut header = NetlinkHeader::default();
            header.flags = request.flags | if is_last { NLM_F_ACK } else { 0 };
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request.message));
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..]);
            purposes.push((request.what, request.may_be_unknown));
        }
        let purpose = |at: usize| {
            purposes
                .get(at)
                .map_or_else(String::new, |(what, _)| what.clone())
        };
        let may_be_unknown = |at: usize| purposes.get(at).is_some_and(|(_, may_be)| *may_be);
        let mut replies = Vec::new();
        let (mut is_done, mut refused) = (count == 0, None);
        self.socket
            .send(&datagram, 0)
            .map_err(NetlinkError::refused(purpose(0)))?;
        let mut received = Vec::with_capacity(ROOM);
        while !is_done {
            received.clear();
            let length = self.socket.recv(&mut received, libc::MSG_TRUNC);
            let length = length.map_err(NetlinkError::refused(purpose(0)))?;
            if length > ROOM {
                let error = format!("a reply of {length} bytes, of which {ROOM} could be read");
                return Err(NetlinkError::refused(purpose(0))(io::Error::other(error)));
            }
            for bytes in messages(&received) {
                // A message that this code cannot read is no reply to its requests.
                let Ok(reply) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
                    continue;
                };
                let Some(at) = reply.header.sequence_number.checked_sub(first) else {
                    continue;
                };
                match reply.payload {
                    NetlinkPayload::InnerMessage(inner) => replies.push(inner),
                    NetlinkPayload::Error(error) => {
                        let (at, code) = (at as usize, error.raw_code().wrapping_neg());
                        is_done |= at + 1 == count;
                        let is_refused = code != 0 && !(code == libc::ENOENT && may_be_unknown(at));
                        if is_refused && refused.is_none() {
                            refused = Some(NetlinkError::refused(purpose(at))(error.to_io()));
                        }
                    }
                    NetlinkPayload::Done(_) => is_done |= at as usize + 1 == count,
                    _ => {}
                }
            }
        }
        refused.map_or(Ok(replies), Err)
    }
}

/// The messages of a datagram. Each begins with its length; the next one starts at a multiple of four bytes.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.first_chunk().copied()?) as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The kernel's error number, if the kernel refused a request.
pub fn errno(error: &NetlinkError) -> Option<i32> {
    match error {
        NetlinkError::Refused { error, .. } => io::Error::raw_os_error(error),
        _ => None,
    }
}
