//! Captures of whole frames on one link, and sending of frames that no socket would send. Frames that never
//! left this machine may have an incomplete checksum, which was left to the NIC, and be larger than the MTU
//! (GSO).

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::SocketFilter;
use millrace::bpf::sys;
use nix::libc;
use nix::sys::socket::sockopt::{GetStruct, RcvBufForce};
use nix::sys::socket::{LinkAddr, MsgFlags, bind, getsockopt, recvfrom, send, setsockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::forge::packet::{IPV4, IPV6};
use crate::forge::{SERVICE_VLAN, VLAN, link_address};
use crate::place::Place;

/// `ETH_P_ALL` of `linux/if_ether.h`.
const EVERY_PROTOCOL: u16 = 3;

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// `PACKET_STATISTICS` of `linux/if_packet.h`.
const PACKET_STATISTICS: libc::c_int = 6;

/// The number of frames that a socket was given, and of those that were dropped because its buffer was full.
/// Both count from the last time that they were read: `struct tpacket_stats`.
#[derive(Clone, Copy)]
struct Statistics;

nix::getsockopt_impl!(
    Statistics,
    libc::SOL_PACKET,
    PACKET_STATISTICS,
    [u32; 2],
    GetStruct<[u32; 2]>
);

/// A frame with its Ethernet header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The bytes of the frame, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Whether this namespace sent the frame, rather than received it.
    pub outgoing: bool,
}

impl Frame {
    /// Whether the frame contains these bytes.
    pub fn carries(&self, mark: &[u8]) -> bool {
        self.bytes.windows(mark.len()).any(|bytes| bytes == mark)
    }
}

/// A packet socket (packet(7)) on one link.
pub struct PacketSocket {
    socket: Socket,
}

impl Place {
    /// Opens a packet socket on a link; it receives every frame from now on.
    pub fn packet_socket(&self, link: &str) -> io::Result<PacketSocket> {
        self.packet_socket_of(link, EVERY_PROTOCOL, &[])
    }

    /// Opens a packet socket that receives only frames with a VLAN tag. The kernel keeps a tag beside the
    /// frame, where only a filter sees it, and delivers the frame without it.
    pub fn tagged_socket(&self, link: &str) -> io::Result<PacketSocket> {
        const HALF: u16 = 0x28;
        const BYTE: u16 = 0x30;
        const IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        /// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT` of `linux/filter.h`.
        const HAS_TAG: u32 = (-0x1000_i32 + 48).cast_unsigned();
        let filter = [
            SockFilter::new(BYTE, 0, 0, HAS_TAG),
            SockFilter::new(IF_EQUAL, 4, 0, 1),
            // The kernel leaves an inner tag in the frame.
            SockFilter::new(HALF, 0, 0, 12),
            SockFilter::new(IF_EQUAL, 2, 0, VLAN.into()),
            SockFilter::new(IF_EQUAL, 1, 0, SERVICE_VLAN.into()),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ];
        self.packet_socket_of(link, EVERY_PROTOCOL, &filter)
    }

    /// Opens a packet socket that receives the frames of one `EtherType`, after the programs at the link's
    /// ingress have passed them.
    pub fn protocol_socket(&self, link: &str, ether_type: u16) -> io::Result<PacketSocket> {
        self.packet_socket_of(link, ether_type, &[])
    }

    /// Opens a packet socket that receives only frames whose source is in a world's pod ranges, 10.244.0.0/16
    /// and `fd00:244::/32`. Frames to another hardware address are not among them.
    pub fn pod_sources_socket(&self, link: &str) -> io::Result<PacketSocket> {
        const BYTE: u16 = 0x30;
        const HALF: u16 = 0x28;
        const WORD: u16 = 0x20;
        const IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        /// `SKF_AD_OFF + SKF_AD_PKTTYPE` of `linux/filter.h`.
        const KIND: u32 = (-0x1000_i32 + 4).cast_unsigned();
        /// `PACKET_OTHERHOST` of `linux/if_packet.h`.
        const OTHER_HOST: u32 = 3;
        let filter = [
            SockFilter::new(BYTE, 0, 0, KIND),
            SockFilter::new(IF_EQUAL, 7, 0, OTHER_HOST),
            SockFilter::new(HALF, 0, 0, 12),
            SockFilter::new(IF_EQUAL, 0, 2, IPV4.into()),
            SockFilter::new(HALF, 0, 0, 26),
            SockFilter::new(IF_EQUAL, 4, 3, 0x0af4),
            SockFilter::new(IF_EQUAL, 0, 2, IPV6.into()),
            SockFilter::new(WORD, 0, 0, 22),
            SockFilter::new(IF_EQUAL, 1, 0, 0xfd00_0244),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ];
        self.packet_socket_of(link, EVERY_PROTOCOL, &filter)
    }

    /// Opens a packet socket that receives only frames that carry a firewall mark.
    pub fn marked_socket(&self, link: &str) -> io::Result<PacketSocket> {
        /// `SKF_AD_OFF + SKF_AD_MARK` of `linux/filter.h`.
        const MARK: u32 = (-0x1000_i32 + 20).cast_unsigned();
        let filter = [
            SockFilter::new(0x20, 0, 0, MARK),
            SockFilter::new(0x15, 0, 1, 0),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        self.packet_socket_of(link, EVERY_PROTOCOL, &filter)
    }

    /// Opens a packet socket that receives only frames that carry a priority (`SO_PRIORITY` of socket(7)). A
    /// classic filter cannot read the priority, so this filter is an eBPF program, pinned in `bpffs` until it
    /// is attached.
    pub fn prioritised_socket(&self, link: &str, bpffs: &Path) -> io::Result<PacketSocket> {
        /// `BPF_PROG_TYPE_SOCKET_FILTER` of `linux/bpf.h`.
        const SOCKET_FILTER: u32 = 1;
        const HAS_PRIORITY: [u64; 4] = [
            0x0000_0000_0020_1061, // r0 = r1->priority
            0x0000_0000_0001_0015, // if r0 == 0 goto exit
            0x7fff_ffff_0000_00b7, // r0 = 0x7fffffff: the whole frame
            0x0000_0000_0000_0095, // exit
        ];
        let loaded = sys::program_load(SOCKET_FILTER, 0, &HAS_PRIORITY)?;
        let pin = bpffs.join(format!("has-priority-{:016x}", fastrand::u64(..)));
        sys::pin(loaded.as_fd(), &pin)?;
        let program = SocketFilter::from_pin(&pin);
        fs::remove_file(&pin)?;
        let program = program.map_err(io::Error::other)?;
        self.packet_socket_with(link, EVERY_PROTOCOL, |socket| {
            program.attach(socket).map_err(io::Error::other)
        })
    }

    fn packet_socket_of(&self, link: &str, protocol: u16, filter: &[SockFilter]) -> io::Result<PacketSocket> {
        self.packet_socket_with(link, protocol, |socket| {
            if filter.is_empty() {
                return Ok(());
            }
            socket.attach_filter(filter)
        })
    }

    fn packet_socket_with(
        &self,
        link: &str,
        protocol: u16,
        attach: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<PacketSocket> {
        let address = self.enter(|| link_address(link))?;
        let protocol = Protocol::from(i32::from(protocol.to_be()));
        let socket = self.socket(Domain::PACKET, Type::RAW, Some(protocol))?;
        attach(&socket)?;
        // The buffer holds a few large transfers, or a hundred thousand small frames.
        setsockopt(&socket, RcvBufForce, &(64 << 20))?;
        // A protocol of 0 in the address keeps the socket's protocol.
        bind(socket.as_raw_fd(), &address)?;
        let capture = PacketSocket { socket };
        // Between its creation and the bind the socket received frames of every link.
        while capture.receive(Duration::ZERO)?.is_some() {}
        Ok(capture)
    }
}

impl PacketSocket {
    /// The next frame, or none within this time.
    pub fn receive(&self, within: Duration) -> io::Result<Option<Frame>> {
        // A timeout of zero would mean no limit.
        self.socket
            .set_read_timeout(Some(within.max(Duration::from_micros(1))))?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                buffer.truncate(length);
                let outgoing = from.is_some_and(|address| address.pkttype() == OUTGOING);
                Ok(Some(Frame {
                    bytes: buffer,
                    outgoing,
                }))
            }
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The next frame that `wanted` accepts, or none within this time.
    pub fn find(&self, within: Duration, wanted: impl Fn(&Frame) -> bool) -> io::Result<Option<Frame>> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Reads frames until one with this mark comes; false if none comes within this time.
    pub fn receive_until(&self, mark: &[u8], within: Duration, before: &mut Vec<Frame>) -> io::Result<bool> {
        let deadline = Instant::now() + within;
        while let Some(frame) = self.receive(deadline.saturating_duration_since(Instant::now()))? {
            if frame.outgoing {
                continue;
            }
            if frame.carries(mark) {
                return Ok(true);
            }
            before.push(frame);
        }
        Ok(false)
    }

    /// The frames that have come so far.
    pub fn so_far(&self) -> io::Result<Vec<Frame>> {
        std::iter::from_fn(|| self.receive(Duration::ZERO).transpose()).collect()
    }

    /// The number of frames that the kernel has dropped since the last call, because the test did not read
    /// them in time.
    pub fn lost(&self) -> io::Result<u32> {
        let [_, dropped] = getsockopt(&self.socket, Statistics)?;
        Ok(dropped)
    }

    /// Sends a frame out of the link.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }
}
