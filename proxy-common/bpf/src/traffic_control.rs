//! Qdiscs and filters by rtnetlink, as far as attaching programs to an interface needs them.
//!
//! The requests are few and the kernel replies at once, as to bpf(2) calls, so the socket is a blocking one.
//! A message that this code cannot read is about an object of others. It is kept as such and never skipped,
//! since a qdisc with any filter may not be removed.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption, TcU32OptionFlags,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// `ETH_P_ALL`, in the byte order of `tcm_info`.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;
/// The qdisc on which both directions have filters.
const CLSACT: &str = "clsact";

/// The direction of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the node.
    Ingress,
    /// Out of it.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle {
            major: TcHandle::CLSACT.major,
            minor,
        }
    }
}

/// The position of a filter among the others of its interface and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The kernel runs lower priorities first.
    pub priority: u16,
    /// The handle, which tells filters of the same priority apart.
    pub handle: u32,
}

/// A program to attach to an interface.
pub struct NewFilter<'a> {
    /// The direction of the packets that it sees.
    pub direction: Direction,
    /// Its position among other filters.
    pub position: Position,
    /// The name of its filter.
    pub name: String,
    /// The program.
    pub program: BorrowedFd<'a>,
}

impl NewFilter<'_> {
    fn filter(&self, interface: u32) -> TcMessage {
        let mut message = filter(interface, self.direction, self.position);
        let options = [
            TcFilterBpfOption::ProgFd(self.program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(self.name.clone()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
            TcFilterBpfOption::FlagsGeneric(TcU32OptionFlags::SkipHw),
        ];
        message
            .attributes
            .push(TcAttribute::Options(options.map(TcOption::Bpf).into()));
        message
    }
}

/// A filter of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Its kind, `bpf` for programs; empty where it cannot be read.
    pub kind: String,
    /// The position of the filter.
    pub position: Position,
    /// The filter's name; empty for another kind of filter.
    pub name: String,
    /// The program's id.
    pub program: u32,
}

/// The qdisc at an interface's place for clsact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qdisc {
    /// There is none.
    None,
    /// A qdisc that has filters for both directions.
    Clsact,
    /// A qdisc that has filters for the ingress direction only.
    Ingress,
}

/// A netlink socket for requests, in the network namespace of the thread that opened it.
pub struct TrafficControl {
    socket: Socket,
    sequence: u32,
}

impl TrafficControl {
    /// Opens the netlink socket.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The interfaces that have a qdisc with filters for ingress or egress.
    pub fn interfaces(&mut self) -> io::Result<Vec<u32>> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let responses = self.request(request, NLM_F_DUMP)?;
        let with_filters = responses.iter().filter_map(|response| match response {
            Some(RouteNetlinkMessage::NewQueueDiscipline(message)) if is_clsact(message) => {
                Some(message.header.index.cast_unsigned())
            }
            _ => None,
        });
        Ok(with_filters.collect())
    }

    /// The qdisc at an interface's place for clsact.
    pub fn qdisc(&mut self, interface: u32) -> io::Result<Qdisc> {
        let mut message = TcMessage::with_index(interface.cast_signed());
        message.header.parent = TcHandle::CLSACT;
        // The reply is a notification, which the kernel sends to this socket only on request (echo).
        let responses = match self.request(RouteNetlinkMessage::GetQueueDiscipline(message), NLM_F_ECHO) {
            // Older kernels return ENOENT if there never was a qdisc, and EINVAL after one was removed.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Vec::new(),
            responses => responses?,
        };
        let found = responses.iter().find_map(|response| match response {
            Some(RouteNetlinkMessage::NewQueueDiscipline(message)) => kind(message),
            _ => None,
        });
        Ok(match found {
            None => Qdisc::None,
            Some(CLSACT) => Qdisc::Clsact,
            Some(_) => Qdisc::Ingress,
        })
    }

    /// Gives an interface a clsact qdisc. An existing one is an error.
    pub fn add_clsact(&mut self, interface: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(interface));
        self.request(message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Removes an interface's clsact qdisc with all its filters.
    pub fn remove_clsact(&mut self, interface: u32) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelQueueDiscipline(clsact(interface)), 0)
            .map(drop)
    }

    /// The filters for one direction, including those of others. There must be a qdisc for them.
    pub fn filters(&mut self, interface: u32, direction: Direction) -> io::Result<Vec<Filter>> {
        let mut message = TcMessage::with_index(interface.cast_signed());
        message.header.parent = direction.parent();
        let responses = self.request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)?;
        Ok(responses
            .iter()
            .filter_map(|response| read_filter(response.as_ref()))
            .collect())
    }

    /// Attaches a program, or exchanges the attached one in one step.
    pub fn set_filter(&mut self, interface: u32, program: &NewFilter<'_>) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewTrafficFilter(program.filter(interface));
        self.request(message, NLM_F_CREATE).map(drop)
    }

    /// Gives a new interface a clsact qdisc and attaches programs to it, all in one datagram. An existing
    /// qdisc is an error.
    pub fn add_clsact_with_filters(&mut self, interface: u32, programs: &[NewFilter<'_>]) -> io::Result<()> {
        let qdisc = RouteNetlinkMessage::NewQueueDiscipline(clsact(interface));
        let filters = programs
            .iter()
            .map(|program| RouteNetlinkMessage::NewTrafficFilter(program.filter(interface)));
        let requests = [qdisc].into_iter().chain(filters);
        let requests = requests.map(|request| (request, NLM_F_CREATE | NLM_F_EXCL));
        self.requests(requests.collect()).map(drop)
    }

    /// Detaches a program.
    pub fn remove_filter(
        &mut self,
        interface: u32,
        direction: Direction,
        position: Position,
    ) -> io::Result<()> {
        let message = filter(interface, direction, position);
        self.request(RouteNetlinkMessage::DelTrafficFilter(message), 0)
            .map(drop)
    }

    /// Sends a request and returns the replies; `None` for each reply that this code cannot read.
    fn request(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<Option<RouteNetlinkMessage>>> {
        self.requests(vec![(request, flags)])
    }

    /// Sends requests with their flags as one datagram. The kernel reports each failed request, and the
    /// success of the last one. This function returns the first error.
    fn requests(
        &mut self,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> io::Result<Vec<Option<RouteNetlinkMessage>>> {
        let first = self.sequence + 1;
        let last = self.sequence + u32::try_from(requests.len()).map_err(io::Error::other)?;
        let mut datagram = Vec::new();
        for (request, flags) in requests {
            self.sequence += 1;
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | flags;
            if self.sequence == last {
                header.flags |= NLM_F_ACK;
            }
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..]);
        }
        self.socket.send(&datagram, 0)?;
        let (mut responses, mut refused) = (Vec::new(), None);
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for bytes in messages(&datagram) {
                let Ok(response) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
                    responses.push(None);
                    continue;
                };
                let sequence = response.header.sequence_number;
                match response.payload {
                    // A reply to an earlier request that was given up.
                    _ if !(first..=last).contains(&sequence) => {}
                    NetlinkPayload::InnerMessage(inner) => responses.push(Some(inner)),
                    NetlinkPayload::Error(error) => {
                        if error.code.is_some() && refused.is_none() {
                            refused = Some(error.to_io());
                        }
                        if sequence == last {
                            return refused.map_or(Ok(responses), Err);
                        }
                    }
                    NetlinkPayload::Done(_) if sequence == last => {
                        return refused.map_or(Ok(responses), Err);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram. Each begins with its length, and the next one starts at a multiple of four.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length: [u8; 4] = rest.first_chunk().copied()?;
        let length = u32::from_ne_bytes(length) as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn clsact(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    message
}

fn filter(interface: u32, direction: Direction, position: Position) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = direction.parent();
    message.header.handle = position.handle.into();
    message.header.info = u32::from(position.priority) << 16 | ALL_PROTOCOLS;
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

fn is_clsact(message: &TcMessage) -> bool {
    message.header.parent == TcHandle::CLSACT
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// The dump contains a message without a handle for each priority, which carries no filter.
fn read_filter(response: Option<&RouteNetlinkMessage>) -> Option<Filter> {
    let foreign = |position| Filter {
        kind: String::new(),
        position,
        name: String::new(),
        program: 0,
    };
    let message = match response {
        Some(RouteNetlinkMessage::NewTrafficFilter(message)) => message,
        Some(_) => return None,
        None => {
            let position = Position {
                priority: 0,
                handle: 0,
            };
            return Some(foreign(position));
        }
    };
    let handle = u32::from(message.header.handle);
    if handle == 0 {
        return None;
    }
    let mut filter = foreign(Position {
        priority: (message.header.info >> 16) as u16,
        handle,
    });
    kind(message).unwrap_or_default().clone_into(&mut filter.kind);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else {
            continue;
        };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = *id,
                _ => {}
            }
        }
    }
    Some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_taken_apart() {
        let mut datagram = vec![0_u8; 40];
        datagram[0] = 18;
        datagram[20] = 20;
        let lengths: Vec<_> = messages(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [18, 20]);
        datagram[20] = 21;
        assert_eq!(
            messages(&datagram).count(),
            1,
            "a message that is cut off is none"
        );
        datagram[0] = 3;
        assert_eq!(
            messages(&datagram).count(),
            0,
            "a message without a header is none"
        );
    }

    #[test]
    fn what_cannot_be_read_counts_as_foreign() {
        let found = read_filter(None).expect("a filter");
        assert_eq!((found.name.as_str(), found.program), ("", 0));
        let header_only = filter(
            1,
            Direction::Egress,
            Position {
                priority: 7,
                handle: 0,
            },
        );
        assert_eq!(
            read_filter(Some(&RouteNetlinkMessage::NewTrafficFilter(header_only))),
            None
        );
    }
}
