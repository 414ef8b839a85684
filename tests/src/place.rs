//! A place in a world where sockets can be opened and programs run: a node, a pod, a client, the fabric. A
//! socket made here belongs to the place's network namespace and cgroup. Otherwise it is an ordinary socket
//! of the test.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use socket2::{Domain, Protocol, Socket, Type};

use crate::failure::OrPanic;
use crate::netns::Netns;
use crate::worker::{self, Request};
use crate::{binary, cgroup};

/// The time limit of connecting, asking and reading. Only the verdict "no answer" waits for it.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Pending connections a listener takes; the default of `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A handle to a place; clones lead to the same place.
#[derive(Clone)]
pub struct Place(Arc<Inner>);

struct Inner {
    name: String,
    netns: Netns,
    cgroup: PathBuf,
    addresses: Vec<IpAddr>,
    control: Mutex<OwnedFd>,
    process: Mutex<Child>,
}

impl Place {
    /// Starts the process of a place whose namespace is ready.
    pub(crate) fn start(name: &str, netns: Netns, cgroup: PathBuf, addresses: Vec<IpAddr>) -> Result<Self> {
        cgroup::create(&cgroup)?;
        let (control, workers_end) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("making a socket pair")?;
        let process = Command::new(binary::world_tool()?)
            .arg("place")
            .args([netns.path(), &cgroup])
            .stdin(workers_end)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting the process of {name}"))?;
        let (control, process, shown) = (Mutex::new(control), Mutex::new(process), name.to_owned());
        let place = Self(Arc::new(Inner {
            name: shown,
            netns,
            cgroup,
            addresses,
            control,
            process,
        }));
        worker::wait_ready(&*lock(&place.0.control))
            .with_context(|| format!("starting the process of {name}"))?;
        Ok(place)
    }

    /// The name of the place: `n1`, `web-1`, `c1`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The IPv4 address of the place.
    pub fn ip(&self) -> Ipv4Addr {
        let found = self
            .0
            .addresses
            .iter()
            .find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
        found.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The IPv6 address of the place.
    pub fn ip6(&self) -> Ipv6Addr {
        let found = self
            .0
            .addresses
            .iter()
            .find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None });
        found.unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// The addresses of the place, of both families.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// The directory of the place's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// The file that names the place's network namespace.
    pub fn netns_path(&self) -> &Path {
        self.0.netns.path()
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// Makes `count` sockets of any kind, unbound.
    pub fn sockets(
        &self,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
        count: usize,
    ) -> io::Result<Vec<Socket>> {
        worker::request(
            &*lock(&self.0.control),
            Request {
                domain,
                kind,
                protocol,
                count,
            },
        )
    }

    /// Makes one socket of any kind, unbound.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let mut made = self.sockets(domain, kind, protocol, 1)?;
        made.pop()
            .ok_or_else(|| io::Error::other("asked for a socket, got none"))
    }

    /// Opens a TCP connection within [`PATIENCE`].
    pub fn tcp_connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.tcp_connect_within(to, PATIENCE)
    }

    /// Opens a TCP connection; `TimedOut` if there is no reply in time. Reads from it time out after
    /// [`PATIENCE`].
    pub fn tcp_connect_within(&self, to: SocketAddr, within: Duration) -> io::Result<TcpStream> {
        connect(
            self.socket(Domain::for_address(to), Type::STREAM, None)?,
            to,
            within,
        )
    }

    /// Opens a TCP connection from a given local address and port.
    pub fn tcp_connect_from(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        connect(socket, to, PATIENCE)
    }

    /// Listens on a port of all addresses, IPv4 and IPv6.
    pub fn tcp_listen(&self, port: u16) -> io::Result<TcpListener> {
        let socket = self.socket(Domain::IPV6, Type::STREAM, None)?;
        listen(socket, port)
    }

    /// A UDP socket bound to an address, `0.0.0.0:0` and `[::]:0` included.
    /// Reads from it time out after [`PATIENCE`].
    pub fn udp_bind(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(Domain::for_address(to), Type::DGRAM, None)?;
        socket.bind(&to.into())?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// An unconnected UDP socket on a random port, able to send to `peer`'s family.
    pub fn udp_socket_for(&self, peer: SocketAddr) -> io::Result<UdpSocket> {
        self.udp_bind(unspecified_like(peer))
    }

    /// A command that runs a program in this network namespace and cgroup.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(binary::world_tool().or_panic());
        command
            .arg("run")
            .args([self.netns_path(), self.cgroup(), program.as_ref()]);
        command
    }

    /// Runs `ip` inside with the words of a line, for settings without a function here.
    #[track_caller]
    pub fn run_ip(&self, line: &str) {
        let output = self.command("ip").args(line.split(' ')).output();
        let output = output.with_context(|| format!("running ip {line}")).or_panic();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: ip {line}: {error}", self.name());
    }

    /// Runs a closure on a thread of this network namespace (not of the cgroup).
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns().enter(work).or_panic()
    }

    /// Sets a kernel setting of this namespace, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.netns().sysctl(key, value).or_panic();
    }

    /// Adds an address to a link of this namespace.
    pub fn add_address(&self, link: &str, address: IpNet) {
        self.netns()
            .rtnl()
            .add_address(link, address.addr(), address.prefix_len())
            .or_panic();
    }

    /// Adds or replaces a route out of a link of this namespace, `via` a gateway or directly.
    pub fn add_route(&self, to: IpNet, via: Option<IpAddr>, link: &str) {
        self.netns().rtnl().add_route(to, via, link).or_panic();
    }

    /// Takes a link down or up again.
    pub fn set_link(&self, link: &str, up: bool) {
        let rtnl = self.netns().rtnl();
        if up {
            rtnl.set_up(link)
        } else {
            rtnl.set_down(link)
        }
        .or_panic();
    }

    /// The index of a link in this namespace.
    pub fn link_index(&self, link: &str) -> u32 {
        self.netns().rtnl().index(link).or_panic()
    }

    /// Ends the place's process.
    pub(crate) fn stop(&self) {
        let mut process = lock(&self.0.process);
        // The guard may have ended the process, or it may have ended by itself.
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// An address and a port, such as `10.96.0.10:80` or `[fd00:96::10]:80`.
#[track_caller]
pub fn address(text: &str) -> SocketAddr {
    text.parse().with_context(|| format!("reading {text}")).or_panic()
}

/// The IPv4-mapped IPv6 form of an address: sockets that reach it are IPv6 sockets.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

/// The wildcard address of `peer`'s family; the kernel chooses the port.
pub(crate) fn unspecified_like(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

pub(crate) fn connect(socket: Socket, to: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    socket.connect_timeout(&to.into(), within)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

pub(crate) fn listen(socket: Socket, port: u16) -> io::Result<TcpListener> {
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked with the lock held left no half-done state: the worker completes each request.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
