//! Reading the report of a test program.
//!
//! In libtest's human-readable output a test's name and its outcome are printed separately. Output of a child
//! process can appear between the two. JSON lines are written whole. The format is marked unstable but has
//! been the same for years. [`run`](super::run) asks for it, and only this module knows it. A child's output
//! without a newline may precede a line of JSON, so the parser searches for the start.

use serde::Deserialize;

/// Arguments that make a test program report in JSON.
pub const ARGUMENTS: &[&str] = &["-Z", "unstable-options", "--format", "json"];

/// The variable that lets a test program of a released compiler accept [`ARGUMENTS`].
pub const ENABLED_BY: &str = "RUSTC_BOOTSTRAP";

/// The meaning of a line of a test program's output.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The program will run this many tests.
    Planned(usize),
    Started(String),
    Passed(String),
    /// The test failed, with this output.
    Failed(String, String),
    /// The test was ignored, with the reason in `#[ignore = "…"]`.
    Ignored(String, Option<String>),
    /// No test is left, and the program ends now.
    Finished,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    event: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    stdout: String,
    message: Option<String>,
    #[serde(default)]
    test_count: usize,
}

/// Splits a line into the other output before the event, and the event, if there is one.
pub fn parse(line: &str) -> (&str, Option<Event>) {
    let starts = line.match_indices(r#"{ "type": ""#).map(|(start, _)| start);
    for start in starts {
        if let Some(event) = serde_json::from_str(&line[start..]).ok().and_then(event) {
            return (&line[..start], Some(event));
        }
    }
    (line, None)
}

fn event(line: Line) -> Option<Event> {
    Some(match (line.kind.as_str(), line.event.as_str()) {
        ("suite", "started") => Event::Planned(line.test_count),
        ("suite", _) => Event::Finished,
        ("test", "started") => Event::Started(line.name),
        ("test", "ok") => Event::Passed(line.name),
        // A test may lack its expected panic or have another one. Then `message` holds the complaint.
        ("test", "failed") => Event::Failed(line.name, line.stdout + &line.message.unwrap_or_default()),
        ("test", "ignored") => Event::Ignored(line.name, line.message),
        _ => return None,
    })
}

/// The names in the output of `--list --format terse`.
pub fn listed(answer: &str) -> Vec<String> {
    answer
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Event, listed, parse};

    /// The events of a real program's output.
    #[test]
    fn a_whole_run() {
        let output = r#"
{ "type": "suite", "event": "started", "test_count": 4 }
{ "type": "test", "event": "started", "name": "dies" }
{ "type": "test", "event": "started", "name": "drains" }
{ "type": "test", "name": "drains", "event": "ok", "exec_time": 0.001442574 }
{ "type": "test", "name": "later", "event": "ignored", "message": "needs fq" }
{ "type": "test", "name": "never", "event": "ignored" }
{ "type": "test", "name": "dies", "event": "failed", "stdout": "said\n\"boom\"\n" }
{ "type": "suite", "event": "failed", "passed": 1, "failed": 1, "ignored": 2, "measured": 0, "filtered_out": 0, "exec_time": 0.07 }
"#;
        let events: Vec<_> = output.lines().filter_map(|line| parse(line).1).collect();
        let name = |name: &str| name.to_owned();
        let expected = [
            Event::Planned(4),
            Event::Started(name("dies")),
            Event::Started(name("drains")),
            Event::Passed(name("drains")),
            Event::Ignored(name("later"), Some(name("needs fq"))),
            Event::Ignored(name("never"), None),
            Event::Failed(name("dies"), name("said\n\"boom\"\n")),
            Event::Finished,
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn an_unexpected_panic_is_a_failure_with_its_message() {
        let line = r#"{ "type": "test", "name": "a", "event": "failed", "message": "did not panic" }"#;
        assert_eq!(
            parse(line).1,
            Some(Event::Failed("a".into(), "did not panic".into()))
        );
    }

    #[test]
    fn output_of_children_does_not_hide_an_event() {
        let line = r#"ready { "type": "odd" }{ "type": "test", "name": "a", "event": "ok" }"#;
        assert_eq!(
            parse(line),
            (r#"ready { "type": "odd" }"#, Some(Event::Passed("a".into())))
        );
        assert_eq!(parse("no event here"), ("no event here", None));
        assert_eq!(
            parse(r#"{ "type": "test", "event": "timeout", "name": "slow" }"#).1,
            None
        );
    }

    #[test]
    fn a_list_of_names() {
        assert_eq!(
            listed("a::b: test\nc: benchmark\nd: test\n\n2 tests, 1 benchmark\n"),
            ["a::b", "d"]
        );
    }
}
