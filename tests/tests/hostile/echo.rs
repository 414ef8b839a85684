//! A server that replies to each datagram with the same content, and its clients.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use harness::{Place, Service};

use crate::topology::SECOND;

/// The content of the loop's datagrams.
pub const LOOPING: &[u8] = b"round and round";
/// So many datagrams are a loop, and the server stops to spare the machine.
pub const ENOUGH: usize = 1000;

/// A server that replies to each datagram with the same content.
pub struct Echo {
    looping: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn start(place: &Place, port: u16) -> Self {
        let (looping, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = place.addresses().iter().map(|address| {
            let socket = place.udp_bind(SocketAddr::new(*address, port)).expect("a socket");
            let (looping, end) = (Arc::clone(&looping), Arc::clone(&end));
            std::thread::spawn(move || reply(&socket, &looping, &end))
        });
        let threads = threads.collect();
        Self {
            looping,
            end,
            threads,
        }
    }

    pub fn looping(&self) -> usize {
        self.looping.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // The panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

fn reply(socket: &UdpSocket, looping: &AtomicUsize, end: &AtomicBool) {
    let mut buffer = [0; 512];
    socket.set_read_timeout(Some(SECOND / 20)).expect("a deadline");
    while !end.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let text = &buffer[..length];
        if text.starts_with(LOOPING) && looping.fetch_add(1, Ordering::Relaxed) >= ENOUGH {
            continue;
        }
        let _ = socket.send_to(text, from);
    }
}

/// Waits until an echo server replies at `to`.
#[track_caller]
pub fn wait_echoed(client: &Place, to: SocketAddr) {
    harness::eventually(&format!("{to} to be served"), 10 * SECOND, || {
        let socket = client.udp_socket_for(to).expect("a socket");
        socket.set_read_timeout(Some(SECOND / 4)).expect("a deadline");
        let _ = socket.send_to(b"?", to);
        socket.recv_from(&mut [0; 8]).is_ok()
    });
}

/// Sends a hundred honest datagrams to an echo server through a service, one after the other. That takes
/// longer than a loop needs to show.
#[track_caller]
pub fn a_hundred_questions(client: &Place, to: SocketAddr) {
    let socket = client.udp_socket_for(to).expect("a socket");
    for number in 0..100 {
        let question = format!("question {number}");
        socket.send_to(question.as_bytes(), to).expect("to send");
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).expect("a reply");
        assert_eq!((&buffer[..length], from), (question.as_bytes(), to));
    }
}

/// A service whose port 7 leads to an echoing server.
pub fn echo_service(name: &str, number: u8) -> Service {
    Service::new(name)
        .cluster_ip(&format!("10.96.1.{number}"))
        .cluster_ip(&format!("fd00:96::1:{number}"))
        .udp("echo", 7, 7007)
        .node_port("echo", 30_000 + u16::from(number))
        .load_balancer_ip(&format!("203.0.113.{number}"))
        .load_balancer_ip(&format!("2001:db8:7::{number}"))
}
