//! Tests of the reflector with good and bad responses of a server. The server follows a script; time is
//! simulated.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::sync::mpsc::{self, Receiver};

use super::Servers;
use super::reflector::Reflector;
use crate::source::{Change, Event, Kind, StateHandle};

/// An expected request (parts of its address), and the response to it.
type Step = (&'static [&'static str], u16, String);

const LISTING: &[&str] = &[
    "watch=true",
    "sendInitialEvents=true",
    "resourceVersionMatch=NotOlderThan",
];

/// The responses that are left.
type Script = Arc<Mutex<VecDeque<Step>>>;

/// Starts a reflector against a server that responds by `script` and then no more.
fn start(kind: Kind, script: Vec<Step>) -> (StateHandle, Receiver<Event>) {
    start_at(kind, vec![script])
}

/// As [`start`], and also returns the rest of the script.
fn start_counted(kind: Kind, script: Vec<Step>) -> (StateHandle, Receiver<Event>, Script) {
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let (state, events) = start_with(kind, [serve(Arc::clone(&script))]);
    (state, events, script)
}

/// As [`start`], against a server with several addresses that each have a script of their own.
fn start_at(kind: Kind, scripts: Vec<Vec<Step>>) -> (StateHandle, Receiver<Event>) {
    let scripts = scripts.into_iter().map(VecDeque::from);
    start_with(kind, scripts.map(|script| serve(Arc::new(Mutex::new(script)))))
}

fn start_with(kind: Kind, clients: impl IntoIterator<Item = Client>) -> (StateHandle, Receiver<Event>) {
    let (events, receiver) = mpsc::channel(64);
    let servers = Servers::of_clients(clients);
    let state = servers.state().clone();
    tokio::spawn(
        Reflector {
            kind,
            node_name: "n1".to_owned(),
            servers,
            events,
        }
        .run(),
    );
    (state, receiver)
}

fn serve(script: Script) -> Client {
    let server = tower::service_fn(move |request: Request<Body>| {
        let step = script.lock().expect("no thread panicked").pop_front();
        async move {
            let Some((expected, code, body)) = step else {
                return std::future::pending().await;
            };
            let address = request.uri().to_string();
            for part in expected {
                let (part, wanted) = part.strip_prefix('!').map_or((*part, true), |part| (part, false));
                assert_eq!(address.contains(part), wanted, "{part} in {address}");
            }
            let response = Response::builder()
                .status(code)
                .body(Body::from(body.into_bytes()));
            Ok::<_, Infallible>(response.expect("a good response"))
        }
    });
    Client::new(server, "default")
}

async fn expect(events: &mut Receiver<Event>, expected: &[&str]) {
    for wanted in expected {
        let event = tokio::time::timeout(Duration::from_mins(2), events.recv()).await;
        let event = event.unwrap_or_else(|_| panic!("no event where {wanted} was due"));
        let found = match event.expect("the reflector goes on").change {
            Change::Apply(object) => object.metadata().name.to_string(),
            Change::Delete(..) => "delete".to_owned(),
            Change::Begin(_) => "begin".to_owned(),
            Change::End(_) => "end".to_owned(),
            Change::Unreadable(what) => what.object.map_or_else(|| "?".to_owned(), |(_, name)| name),
            other @ Change::Problems { .. } => panic!("{other:?}"),
        };
        assert_eq!(found, *wanted);
    }
}

async fn expect_silence(events: &mut Receiver<Event>, time: Duration) {
    let event = tokio::time::timeout(time, events.recv()).await;
    assert!(event.is_err(), "{event:?}");
}

fn line(what: &str, name: &str, version: u32) -> String {
    format!(
        "{{\"type\":\"{what}\",\"object\":{{\"metadata\":{{\"name\":\"{name}\",\"resourceVersion\":\"{version}\"}}}}}}\n"
    )
}

fn end_of_list(version: u32) -> String {
    let annotations = r#"{"k8s.io/initial-events-end":"true"}"#;
    format!(
        "{{\"type\":\"BOOKMARK\",\"object\":{{\"metadata\":{{\"resourceVersion\":\"{version}\",\"annotations\":{annotations}}}}}}}\n"
    )
}

fn bookmark(version: u32) -> String {
    format!("{{\"type\":\"BOOKMARK\",\"object\":{{\"metadata\":{{\"resourceVersion\":\"{version}\"}}}}}}\n")
}

fn status(code: u16, reason: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"because","reason":"{reason}","code":{code}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn a_watch_is_taken_up_where_it_ended_and_listed_again_where_it_expired() {
    let first =
        line("ADDED", "a", 5) + &end_of_list(7) + &line("MODIFIED", "a", 8) + &line("DELETED", "a", 9);
    let cut = line("ADDED", "b", 12) + "{\"type\":\"ADDED\",\"obj";
    let expired = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status(410, "Expired"));
    let again = line("ADDED", "b", 12) + &end_of_list(20);
    let (state, mut events) = start(
        Kind::Service,
        vec![
            (LISTING, 200, first),
            (
                &["watch=true", "resourceVersion=9", "!sendInitialEvents"],
                200,
                cut,
            ),
            (&["watch=true", "resourceVersion=12"], 200, expired),
            (LISTING, 200, again),
            (&["watch=true", "resourceVersion=20"], 410, status(410, "Expired")),
            (LISTING, 200, end_of_list(30)),
        ],
    );
    expect(&mut events, &["begin", "a", "end", "a", "delete", "b"]).await;
    expect(&mut events, &["begin", "b", "end", "begin", "end"]).await;
    assert!(state.errors().is_empty());
    expect_silence(&mut events, Duration::from_secs(30)).await;
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_moves_the_watch_and_ends_no_list() {
    let listed =
        line("ADDED", "a", 5) + &bookmark(6) + &line("ADDED", "b", 4) + &end_of_list(7) + &bookmark(40);
    let (state, mut events) = start(
        Kind::Service,
        vec![
            (LISTING, 200, listed),
            (
                &["resourceVersion=40", "!sendInitialEvents"],
                200,
                line("ADDED", "c", 41),
            ),
        ],
    );
    expect(&mut events, &["begin", "a", "b", "end", "c"]).await;
    assert!(state.errors().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_it_was_after_other_errors() {
    let broken = format!(
        "{{\"type\":\"ERROR\",\"object\":{}}}\n",
        status(500, "InternalError")
    );
    let again: &[&str] = &["resourceVersion=7", "!sendInitialEvents"];
    let (_state, mut events) = start(
        Kind::Service,
        vec![
            (LISTING, 200, end_of_list(7) + &broken),
            (again, 429, status(429, "TooManyRequests")),
            (again, 401, status(401, "Unauthorized")),
            (again, 200, line("ADDED", "a", 8)),
        ],
    );
    expect(&mut events, &["begin", "end", "a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_is_begun_again() {
    let (state, mut events) = start(
        Kind::Node,
        vec![
            (LISTING, 200, line("ADDED", "a", 5)),
            (LISTING, 200, line("ADDED", "a", 5) + &end_of_list(7)),
        ],
    );
    expect(&mut events, &["begin", "a"]).await;
    expect(&mut events, &["begin", "a", "end"]).await;
    assert!(state.errors().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_listed_page_by_page() {
    let page = |name: &str, next: &str| {
        format!(
            r#"{{"metadata":{{"resourceVersion":"40","continue":"{next}"}},"items":[{{"metadata":{{"name":"{name}"}}}}]}}"#
        )
    };
    let (_, mut events) = start(
        Kind::EndpointSlice,
        vec![
            (LISTING, 422, status(422, "Invalid")),
            (
                &["limit=500", "labelSelector=%21service.kubernetes.io%2Fheadless"],
                200,
                page("a", "token"),
            ),
            (&["limit=500", "continue=token"], 200, page("b", "")),
            (
                &["watch=true", "resourceVersion=40", "!sendInitialEvents"],
                200,
                line("DELETED", "a", 41),
            ),
            (&["watch=true", "resourceVersion=41"], 410, status(410, "Expired")),
            (&["limit=500", "!watch"], 200, page("b", "token")),
            (&["continue=token"], 410, status(410, "Expired")),
            (&["limit=500", "!continue"], 200, page("b", "")),
        ],
    );
    expect(&mut events, &["begin", "a", "b", "end", "delete"]).await;
    expect(&mut events, &["begin", "b", "begin", "b", "end"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_the_server_does_not_have_is_an_empty_list() {
    let found = line("ADDED", "kubernetes", 5);
    let (state, mut events) = start(
        Kind::ServiceCidr,
        vec![
            (LISTING, 404, status(404, "NotFound")),
            (&["limit=500"], 404, status(404, "NotFound")),
            (
                &["limit=500"],
                200,
                r#"{"metadata":{"resourceVersion":"4"},"items":[]}"#.to_owned(),
            ),
            (&["resourceVersion=4"], 200, found),
        ],
    );
    expect(&mut events, &["begin", "end"]).await;
    expect_silence(&mut events, Duration::from_secs(20)).await;
    assert!(state.errors().is_empty());
    expect(&mut events, &["begin", "end", "kubernetes"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_is_asked_again_and_nothing_is_said_meanwhile() {
    let mut script: Vec<Step> = (0..20)
        .map(|_| (LISTING, 500, status(500, "InternalError")))
        .collect();
    script.push((LISTING, 403, status(403, "Forbidden")));
    let (state, mut events) = start(Kind::Service, script);
    expect_silence(&mut events, Duration::from_mins(3)).await;
    let waiting = state.waiting_for(&[Kind::Service]);
    assert_eq!(
        waiting,
        ["list of services from https://api-0.example: the server does not reply"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_refusal_is_shown() {
    const REFUSALS: usize = 1000;
    let script = (0..REFUSALS)
        .map(|_| (LISTING, 403, status(403, "Forbidden")))
        .collect();
    let (state, mut events, left) = start_counted(Kind::Service, script);
    expect_silence(&mut events, Duration::from_secs(30)).await;
    // The waits grow from half a second to five seconds.
    let asked = REFUSALS - left.lock().expect("no thread panicked").len();
    assert!((5..=30).contains(&asked), "{asked} requests in 30 seconds");
    assert_eq!(
        state.waiting_for(&[Kind::Service]),
        ["list of services from https://api-0.example: because (403 Forbidden)"]
    );
    assert_eq!(state.errors().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_no_response_the_watch_goes_on_at_the_next_address() {
    let first: Vec<Step> = vec![
        (LISTING, 200, line("ADDED", "a", 5) + &end_of_list(7)),
        (&["resourceVersion=7"], 503, status(503, "ServiceUnavailable")),
        (&["resourceVersion=9"], 200, line("ADDED", "c", 10)),
    ];
    // The server responds once, and then no more.
    let second: Vec<Step> = vec![(&["resourceVersion=7"], 200, line("ADDED", "b", 9))];
    let (state, mut events) = start_at(Kind::Service, vec![first, second]);
    expect(&mut events, &["begin", "a", "end", "b", "c"]).await;
    assert_eq!(state.origin(), "https://api-0.example");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_response_and_keeps_the_address() {
    let forbidden = || -> Step { (LISTING, 403, status(403, "Forbidden")) };
    let first = (0..3)
        .map(|_| forbidden())
        .chain([(LISTING, 200, end_of_list(7))]);
    let (state, mut events) = start_at(Kind::Service, vec![first.collect(), vec![]]);
    expect(&mut events, &["begin", "end"]).await;
    assert_eq!(state.origin(), "https://api-0.example");
}

fn bad_line(what: &str, name: &str, version: u32) -> String {
    line(what, name, version).replace("}}}", r#"},"spec":"text"}}"#)
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_does_not_stop_its_kind() {
    let listed =
        line("ADDED", "a", 5) + &bad_line("ADDED", "b", 6) + &line("ADDED", "c", 7) + &end_of_list(7);
    let watched = bad_line("MODIFIED", "a", 8) + &line("MODIFIED", "b", 9) + &bad_line("DELETED", "a", 10);
    let (state, mut events) = start(
        Kind::Service,
        vec![
            (LISTING, 200, listed + &watched),
            (&["resourceVersion=10"], 200, bad_line("ADDED", "d", 11)),
            (&["resourceVersion=11"], 200, line("ADDED", "e", 12)),
        ],
    );
    expect(&mut events, &["begin", "a", "Service default/b", "c", "end"]).await;
    expect(&mut events, &["Service default/a", "b", "delete"]).await;
    expect(&mut events, &["Service default/d", "e"]).await;
    assert!(state.errors().is_empty(), "{:?}", state.errors());
}

#[tokio::test(start_paused = true)]
async fn a_page_with_an_object_that_cannot_be_read_is_a_page() {
    let page = r#"{"metadata":{"resourceVersion":"40"},"items":[
        {"metadata":{"name":"a"},"addressType":7},{"metadata":{"name":"b"}}]}"#;
    let (state, mut events) = start(
        Kind::EndpointSlice,
        vec![
            (LISTING, 422, status(422, "Invalid")),
            (&["limit=500"], 200, page.to_owned()),
            (&["resourceVersion=40"], 200, line("MODIFIED", "a", 41)),
        ],
    );
    expect(
        &mut events,
        &["begin", "EndpointSlice default/a", "b", "end", "a"],
    )
    .await;
    assert!(state.errors().is_empty(), "{:?}", state.errors());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_names_no_object_is_passed_and_listed_again_later() {
    let listed = line("ADDED", "a", 5) + &end_of_list(7);
    let (state, mut events) = start(
        Kind::Service,
        vec![
            (
                LISTING,
                200,
                listed.clone() + "{nonsense}\n" + &line("ADDED", "b", 8),
            ),
            (LISTING, 200, listed),
        ],
    );
    expect(&mut events, &["begin", "a", "end", "?", "b"]).await;
    expect(&mut events, &["begin", "a", "end"]).await;
    assert!(state.errors().is_empty(), "{:?}", state.errors());
}
