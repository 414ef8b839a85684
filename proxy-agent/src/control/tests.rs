//! Tests of both sides of the socket against each other.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use tokio::sync::{mpsc, oneshot};

use super::*;

/// A served socket whose agent replies to every request with `response`.
struct Served {
    root: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Served {
    fn start(response: fn(Request) -> Result<Reply, String>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let socket = bind(&root.path().join("run")).unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async move {
                let (sender, mut requests) = mpsc::channel::<PendingRequest>(1);
                let mut serving = Box::pin(serve(socket, sender, |_| {}));
                loop {
                    tokio::select! {
                        ended = &mut serving => return ended,
                        _ = &mut stopped => return Ok(()),
                        Some((request, reply)) = requests.recv() => {
                            // A client may have closed the connection, which the agent ignores.
                            let _ = reply.send(response(request));
                        }
                    }
                }
            })
        });
        Self {
            root,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.root.path().join("run")
    }

    fn exchange(&self, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.run_dir().join(SOCKET)).unwrap();
        stream.write_all(line).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join().unwrap();
        ended.unwrap();
        assert!(
            !self.run_dir().join(SOCKET).exists(),
            "the socket goes with its agent"
        );
    }
}

fn one_of_each(request: Request) -> Result<Reply, String> {
    match request {
        Request::Status => Ok(Reply::Status(Box::new(Status {
            ready: true,
            ..Status::default()
        }))),
        Request::ListServices => Ok(Reply::ListServices(vec![])),
        Request::ListNodes => Ok(Reply::ListNodes(vec![])),
        Request::Trace(_) => Err("tracing: no such program".into()),
        Request::ListPods => Ok(Reply::ListPods(vec![])),
        Request::ListLeases => Ok(Reply::ListLeases(Leases {
            dir: "/leases".into(),
            leases: vec![],
        })),
    }
}

#[test]
fn requests_get_replies() {
    let served = Served::start(one_of_each);
    let client = Client::new(&served.run_dir());
    assert!(client.status().unwrap().ready);
    assert_eq!(client.services().unwrap(), []);
    assert_eq!(client.pods().unwrap(), []);
    assert_eq!(client.leases().unwrap().dir.to_str(), Some("/leases"));
    let trace = TraceRequest {
        from: "10.0.0.1".parse().unwrap(),
        to: "10.96.0.1:80".parse().unwrap(),
        protocol: Protocol::Udp,
        source_port: None,
        samples: 1,
        entry: Some(Entry::Uplink),
    };
    assert_eq!(
        client.trace(trace).unwrap_err().to_string(),
        "tracing: no such program"
    );
    let refused = client.trace(TraceRequest { samples: 0, ..trace }).unwrap_err();
    assert!(refused.to_string().contains("--samples 0"), "{refused}");
}

#[test]
fn only_the_owner_can_open_the_socket() {
    let served = Served::start(one_of_each);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&served.run_dir()), mode(&served.run_dir().join(SOCKET))),
        (0o700, 0o600)
    );
}

/// Sends requests until an agent replies.
fn await_response(client: &Client) {
    let asked = Instant::now();
    while client.status().is_err() {
        assert!(asked.elapsed() < Duration::from_secs(10), "an agent replies");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_socket_that_is_removed_or_replaced_is_made_again() {
    let served = Served::start(one_of_each);
    let client = Client::new(&served.run_dir());
    let socket = served.run_dir().join(SOCKET);
    fs::remove_file(&socket).unwrap();
    await_response(&client);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    await_response(&client);
    assert!(matches!(bind(&served.run_dir()), Err(RunDirError::Taken(_))));
}

#[test]
fn a_run_directory_that_is_removed_is_made_and_locked_again() {
    let served = Served::start(one_of_each);
    fs::remove_dir_all(served.run_dir()).unwrap();
    await_response(&Client::new(&served.run_dir()));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&served.run_dir()), mode(&served.run_dir().join(SOCKET))),
        (0o700, 0o600)
    );
    assert!(matches!(bind(&served.run_dir()), Err(RunDirError::Taken(_))));
}

#[test]
fn a_run_directory_that_another_agent_has_made_anew_is_left_to_it() {
    let served = Served::start(one_of_each);
    fs::remove_dir_all(served.run_dir()).unwrap();
    let Ok(other) = bind(&served.run_dir()) else {
        // The first agent made the directory again before this one could bind.
        return;
    };
    thread::sleep(Duration::from_millis(1500));
    assert!(matches!(bind(&served.run_dir()), Err(RunDirError::Taken(_))));
    drop(other);
    await_response(&Client::new(&served.run_dir()));
}

#[test]
fn bad_requests_differ_and_are_bounded() {
    let served = Served::start(one_of_each);
    for (line, expected) in [
        (
            &b"{\"request\":\"fly\"}\n"[..],
            "does not understand the request: unknown variant `fly`",
        ),
        (b"\xff\xfe\n", "does not understand the request"),
        (&[b' '; 5000], "one line of at most 4096 bytes"),
    ] {
        let response = served.exchange(line);
        assert!(response.contains(expected), "{response}");
        assert!(
            response.starts_with("{\"error\":") && response.ends_with("}\n"),
            "{response}"
        );
    }
}

#[test]
fn a_silent_client_delays_no_other_client() {
    let served = Served::start(one_of_each);
    let silent = UnixStream::connect(served.run_dir().join(SOCKET)).unwrap();
    assert!(Client::new(&served.run_dir()).status().is_ok());
    drop(silent);
}

#[test]
fn any_number_of_silent_clients_delays_no_other_client() {
    let served = Served::start(one_of_each);
    let path = served.run_dir().join(SOCKET);
    let silent: Vec<_> = (0..300).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let asked = Instant::now();
    assert!(Client::new(&served.run_dir()).status().is_ok());
    // The agent cuts the silent connections after five seconds; the request did not wait for that.
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    drop(silent);
}

#[test]
fn more_clients_than_connections_are_all_served() {
    let served = Served::start(one_of_each);
    thread::scope(|scope| {
        for _ in 0..300 {
            scope.spawn(|| assert!(Client::new(&served.run_dir()).status().is_ok()));
        }
    });
}

#[test]
fn no_agent_is_an_outcome_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let client = Client::new(root.path());
    assert!(matches!(client.status(), Err(ClientError::NoAgent(_))));
    // A killed agent leaves a socket file behind that no process listens on.
    drop(UnixListener::bind(root.path().join(SOCKET)).unwrap());
    assert!(matches!(client.status(), Err(ClientError::NoAgent(_))));
    drop(bind(root.path()).unwrap());
    assert!(!root.path().join(SOCKET).exists());
}

#[test]
fn a_second_agent_is_refused() {
    let served = Served::start(one_of_each);
    let error = bind(&served.run_dir()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("another agent is running with --run-dir"),
        "{error}"
    );
    assert!(
        Client::new(&served.run_dir()).status().is_ok(),
        "the first one goes on"
    );
}
