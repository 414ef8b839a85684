//! An API server that lists and watches any objects that a test gives it, even objects that a real one would
//! not store. It speaks plain HTTP on the fabric. It begins watches with lists, or refuses that as older
//! servers do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use harness::{Manifest, Source, World};
use serde_json::{Value, json};

const PORT: u16 = 6443;
const PAUSE: Duration = Duration::from_millis(5);

/// The server. It ends when it is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    kubeconfig: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    streams_lists: bool,
    history: Mutex<History>,
    changed: Condvar,
}

/// All events. The index of an event is its version.
#[derive(Default)]
struct History {
    events: Vec<Event>,
    is_over: bool,
}

struct Event {
    kind: &'static str,
    object: Value,
}

impl ApiServer {
    /// Starts the server in a world's fabric, without objects.
    pub fn start(world: &World, streams_lists: bool) -> Self {
        let fabric = world.fabric();
        let address = SocketAddr::new(fabric.ip().into(), PORT);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "scripted", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "agent", "user": {"token": "none"}}],
            "contexts": [{"name": "scripted", "context": {"cluster": "scripted", "user": "agent"}}],
            "current-context": "scripted",
        });
        let path = world.dir().join("scripted.kubeconfig");
        fs::write(&path, kubeconfig.to_string()).expect("a kubeconfig");
        let listener = fabric.tcp_listen(PORT).expect("a listener");
        listener
            .set_nonblocking(true)
            .expect("a listener that does not wait");
        let shared = Arc::new(Shared {
            streams_lists,
            history: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        Self {
            shared,
            kubeconfig: path,
            accepting: Some(thread::spawn(move || accept(&listener, &own))),
        }
    }

    /// The source for the agents.
    pub fn source(&self) -> Source {
        Source::Kubernetes {
            kubeconfig: self.kubeconfig.clone(),
        }
    }

    /// Adds an object, or replaces the object of the same name.
    pub fn put(&self, object: &impl Manifest) {
        self.happen("ADDED", object.object());
    }

    /// Deletes an object.
    pub fn delete(&self, object: &impl Manifest) {
        self.happen("DELETED", object.object());
    }

    fn happen(&self, kind: &'static str, mut object: Value) {
        let mut history = self.shared.history.lock().expect("no thread panicked");
        let version = history.events.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        history.events.push(Event { kind, object });
        self.shared.changed.notify_all();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Ok(mut history) = self.shared.history.lock() {
            history.is_over = true;
        }
        self.shared.changed.notify_all();
        if let Some(accepting) = self.accepting.take() {
            // The panic of the thread has been printed.
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.history.lock().expect("no thread panicked").is_over {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        let shared = Arc::clone(shared);
        // The server ignores a client that closes its connection.
        thread::spawn(move || shared.handle(&stream).ok());
    }
}

impl Shared {
    /// Responds to one request.
    fn handle(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        let mut reader = BufReader::new(stream);
        let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
        reader.read_line(&mut first)?;
        while reader.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
        }
        reader.take(length).read_to_end(&mut Vec::new())?;
        let (method, target) = first.split_once(' ').unwrap_or_default();
        let target = target.split(' ').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asks = |what: &str| query.split('&').any(|part| part == what);
        if method == "POST" {
            return reply(stream, "201 Created", &json!({}));
        }
        if !asks("watch=true") {
            let (items, version) = self.list(path);
            let version = version.to_string();
            let list = json!({"metadata": {"resourceVersion": version}, "items": items});
            return reply(stream, "200 OK", &list);
        }
        if !asks("sendInitialEvents=true") {
            let version = query
                .split('&')
                .find_map(|part| part.strip_prefix("resourceVersion="));
            let version = version.and_then(|version| version.parse().ok());
            begin(stream)?;
            return self.follow(stream, path, version.unwrap_or(0));
        }
        if !self.streams_lists {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "message": "no streaming lists", "reason": "Invalid", "code": 422});
            return reply(stream, "422 Unprocessable Entity", &status);
        }
        begin(stream)?;
        let (items, version) = self.list(path);
        for object in items {
            writeln!(stream, "{}", json!({"type": "ADDED", "object": object}))?;
        }
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
        let end = json!({"type": "BOOKMARK", "object": {"metadata": metadata}});
        writeln!(stream, "{end}")?;
        self.follow(stream, path, version)
    }

    /// The objects of a collection, in the order of their names, and the version of the list.
    fn list(&self, path: &str) -> (Vec<Value>, usize) {
        let history = self.history.lock().expect("no thread panicked");
        let mut objects = BTreeMap::new();
        for event in history.events.iter().filter(|event| event.is_in(path)) {
            let name = event.object["metadata"]["name"].to_string();
            if event.kind == "DELETED" {
                objects.remove(&name);
            } else {
                objects.insert(name, event.object.clone());
            }
        }
        (objects.into_values().collect(), history.events.len())
    }

    /// Sends the events of a collection after a version, until the server ends.
    fn follow(&self, mut stream: &TcpStream, path: &str, version: usize) -> std::io::Result<()> {
        let mut sent = version;
        let mut history = self.history.lock().expect("no thread panicked");
        while !history.is_over {
            let new = history.events.get(sent..).unwrap_or_default();
            for event in new.iter().filter(|event| event.is_in(path)) {
                writeln!(stream, "{}", json!({"type": event.kind, "object": event.object}))?;
            }
            sent = history.events.len();
            history = self.changed.wait(history).expect("no thread panicked");
        }
        Ok(())
    }
}

impl Event {
    /// Whether the event is about an object of a collection.
    fn is_in(&self, path: &str) -> bool {
        let kind = self.object["kind"].as_str().unwrap_or_default();
        path.ends_with(&format!("/{}s", kind.to_lowercase()))
    }
}

/// Begins a response that goes on until the connection ends.
fn begin(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
}

fn reply(mut stream: &TcpStream, status: &str, body: &Value) -> std::io::Result<()> {
    let (body, kind) = (body.to_string(), "Content-Type: application/json");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
