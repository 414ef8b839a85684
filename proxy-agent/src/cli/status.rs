//! `millrace status`: the state of the agent.

use std::fmt::Write as _;

use anstyle::Style;
use jiff::Timestamp;

use super::output::{self, OutputFormat};
use super::table::{Align, Cell, Table};
use super::text::{self, BAD, FAINT, GOOD, TITLE, WARNING, styled};
use crate::control::{Client, ClientError, MapUsage, ObjectError, ProgramStatus, Status};
use crate::trouble::Trouble;

/// Prints the status; true if the agent is ready.
pub fn run(format: OutputFormat, client: &Client) -> anyhow::Result<bool> {
    let status = match client.status() {
        Ok(status) => status,
        // The absence of an agent is a valid result of this verb.
        Err(error @ ClientError::NoAgent(_)) => {
            anstream::eprintln!("{error}");
            Status::without_agent()
        }
        Err(error) => return Err(error.into()),
    };
    output::print(format, &status, || render(&status, Timestamp::now()))?;
    Ok(status.ready)
}

/// The status as text for people.
pub fn render(status: &Status, now: Timestamp) -> String {
    let mut text = headline(status);
    let sections = [
        summary(status, now),
        maps(status),
        programs(status),
        shared_addresses(status),
        errors(status),
    ];
    for section in sections.into_iter().filter(|section| !section.is_empty()) {
        text.push('\n');
        text.push_str(&section);
    }
    text
}

fn headline(status: &Status) -> String {
    let node = status
        .node
        .as_ref()
        .map(|node| format!(" on node {}", text::line(node.as_str())))
        .unwrap_or_default();
    if status.ready {
        format!("{}{node}\n", styled(GOOD, "Ready"))
    } else {
        let mut text = format!("{}{node}, waiting for:\n", styled(BAD, "Not ready"));
        for what in &status.waiting_for {
            let _ = writeln!(text, "  - {}", text::line(what.as_str()));
        }
        text
    }
}

fn summary(status: &Status, now: Timestamp) -> String {
    let mut lines = Vec::new();
    if let Some(source) = &status.source {
        lines.push(("Source", source.clone()));
    }
    if let (Some(version), Some(layout)) = (&status.version, status.layout_version) {
        lines.push(("Version", format!("{version} (map layout {layout})")));
    }
    if let Some(then) = status.last_change {
        lines.push(("Last change", text::ago(then, now)));
    }
    if let Some(sync) = status.sync {
        let services = text::count(sync.services, "service", "services");
        let time = text::nanoseconds(sync.micros.saturating_mul(1_000));
        lines.push(("First sync", format!("{services} in {time}")));
    }
    if status.version.is_some() {
        let services = text::count(status.services, "service", "services");
        let endpoints = text::count(status.endpoints, "endpoint", "endpoints");
        lines.push(("Serving", format!("{services} with {endpoints}")));
        let writes = status.writes;
        lines.push((
            "Map writes",
            format!(
                "{} since the start, {} by the last change",
                text::grouped(writes.since_start),
                text::grouped(writes.last_sync)
            ),
        ));
    }
    lines.into_iter().fold(String::new(), |mut text, (title, value)| {
        let _ = writeln!(text, "{FAINT}{title:<11}{FAINT:#}  {}", text::line(value));
        text
    })
}

fn maps(status: &Status) -> String {
    if status.maps.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("MAP", Align::Left),
        ("ENTRIES", Align::Right),
        ("CAPACITY", Align::Right),
        ("PRESSURE", Align::Left),
    ]);
    for (name, &MapUsage { entries, capacity }) in &status.maps {
        let pressure = format!(
            "{} {}",
            text::bar(entries, capacity, 10),
            text::percent(entries, capacity)
        );
        table.row([
            name.as_str().into(),
            text::grouped(entries).into(),
            text::grouped(capacity).into(),
            Cell::styled(alarm(entries, capacity), pressure),
        ]);
    }
    table.to_string()
}

/// A map that is nearly full is about to grow or to evict; a full one refuses entries.
fn alarm(entries: u64, capacity: u64) -> Style {
    if entries >= capacity {
        BAD
    } else if entries >= capacity - capacity / 10 {
        WARNING
    } else {
        Style::new()
    }
}

fn programs(status: &Status) -> String {
    if status.programs.is_empty() {
        return String::new();
    }
    let measured = status
        .programs
        .values()
        .any(|program| program.run_count.is_some());
    let mut columns = vec![("PROGRAM", Align::Left), ("ATTACHED TO", Align::Left)];
    if measured {
        columns.extend([("RUNS", Align::Right), ("EACH", Align::Right)]);
    }
    let mut table = Table::new(&columns);
    for (name, program) in &status.programs {
        let attached = match program.attached_to.as_slice() {
            [] => Cell::styled(FAINT, "nothing"),
            places => text::few(places, 3).into(),
        };
        if measured {
            let (runs, each) = runs(program);
            table.row([name.as_str().into(), attached, runs.into(), each.into()]);
        } else {
            table.row([name.as_str().into(), attached]);
        }
    }
    table.to_string()
}

fn runs(program: &ProgramStatus) -> (String, String) {
    let runs = program.run_count.map(text::grouped);
    let each = program
        .run_time_ns
        .zip(program.run_count)
        .and_then(|(time, count)| time.checked_div(count));
    (
        runs.unwrap_or_default(),
        each.map(text::nanoseconds).unwrap_or_default(),
    )
}

fn shared_addresses(status: &Status) -> String {
    if status.shared_addresses.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("ADDRESS OF SERVICES", Align::Left), ("ALSO OF", Align::Left)]);
    for shared in &status.shared_addresses {
        table.row([shared.address.to_string().into(), shared.owner.as_str().into()]);
    }
    table.to_string()
}

fn errors(status: &Status) -> String {
    if status.errors.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "{TITLE}{}{TITLE:#}\n",
        text::count(status.errors.len() as u64, "problem", "problems")
    );
    for error in &status.errors {
        let _ = writeln!(
            text,
            "  {} {}",
            styled(BAD, text::line(heading(error))),
            text::line(error.message.as_str())
        );
    }
    text
}

/// The object of an error, and its code, if this command knows the code.
fn heading(error: &ObjectError) -> String {
    let object = &error.object;
    match error.code {
        Trouble::Unknown => format!("{object}:"),
        code => format!("{object} [{}]:", code.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{FirstSync, SharedAddress, Writes};

    fn plain(status: &Status) -> String {
        anstream::adapter::strip_str(&render(status, "2026-03-01T12:00:00Z".parse().unwrap())).to_string()
    }

    fn sample() -> Status {
        let map = |entries, capacity| MapUsage { entries, capacity };
        let program = |places: &[&str]| ProgramStatus {
            attached_to: places.iter().map(ToString::to_string).collect(),
            ..ProgramStatus::default()
        };
        Status {
            ready: true,
            waiting_for: vec![],
            node: Some("worker-1".into()),
            source: Some("dir:/etc/millrace/objects".into()),
            version: Some("0.1.0".into()),
            layout_version: Some(1),
            last_change: Some("2026-03-01T11:58:00Z".parse().unwrap()),
            services: 1,
            endpoints: 2_500,
            errors: vec![],
            maps: [
                ("frontends".into(), map(12_345, 65_536)),
                ("slots".into(), map(250_000, 262_144)),
                ("flows".into(), map(0, 262_144)),
            ]
            .into(),
            programs: [
                ("connect4".into(), program(&["/sys/fs/cgroup"])),
                (
                    "from_pod".into(),
                    program(&["veth1", "veth2", "veth3", "veth4", "veth5"]),
                ),
                ("from_uplink".into(), program(&[])),
            ]
            .into(),
            writes: Writes {
                since_start: 45_678,
                last_sync: 3,
            },
            sync: Some(FirstSync {
                services: 900,
                micros: 12_345,
                ..FirstSync::default()
            }),
            shared_addresses: vec![],
        }
    }

    #[test]
    fn a_ready_agent() {
        assert_eq!(
            plain(&sample()),
            "\
Ready on node worker-1

Source       dir:/etc/millrace/objects
Version      0.1.0 (map layout 1)
Last change  2 minutes ago
First sync   900 services in 12.3 ms
Serving      1 service with 2,500 endpoints
Map writes   45,678 since the start, 3 by the last change

MAP        ENTRIES  CAPACITY  PRESSURE
flows            0   262,144  ░░░░░░░░░░ 0%
frontends   12,345    65,536  ██░░░░░░░░ 18%
slots      250,000   262,144  ██████████ 95%

PROGRAM      ATTACHED TO
connect4     /sys/fs/cgroup
from_pod     veth1, veth2, veth3 and 2 more
from_uplink  nothing
"
        );
    }

    #[test]
    fn an_agent_that_waits_and_has_errors() {
        let status = Status {
            ready: false,
            waiting_for: vec![
                "the first list of Services".into(),
                "the first list of Nodes".into(),
            ],
            maps: [].into(),
            programs: [(
                "connect4".into(),
                ProgramStatus {
                    attached_to: vec!["/cg".into()],
                    run_count: Some(2_000),
                    run_time_ns: Some(820_000),
                },
            )]
            .into(),
            errors: vec![
                ObjectError::new(
                    Trouble::FileInvalid,
                    "file shop.yaml",
                    &"line 3: spec.ports[0].port: 80000 is outside 1-65535",
                ),
                ObjectError::new(Trouble::Unknown, "flux", &"of an agent of another version"),
            ],
            last_change: None,
            sync: None,
            shared_addresses: vec![SharedAddress {
                address: [198, 51, 100, 3].into(),
                owner: "Node worker-2".into(),
            }],
            ..sample()
        };
        assert_eq!(
            plain(&status),
            "\
Not ready on node worker-1, waiting for:
  - the first list of Services
  - the first list of Nodes

Source       dir:/etc/millrace/objects
Version      0.1.0 (map layout 1)
Serving      1 service with 2,500 endpoints
Map writes   45,678 since the start, 3 by the last change

PROGRAM   ATTACHED TO   RUNS    EACH
connect4  /cg          2,000  410 ns

ADDRESS OF SERVICES  ALSO OF
198.51.100.3         Node worker-2

2 problems
  file shop.yaml [FileInvalid]: line 3: spec.ports[0].port: 80000 is outside 1-65535
  flux: of an agent of another version
"
        );
    }

    #[test]
    fn no_agent() {
        assert_eq!(
            plain(&Status::without_agent()),
            "Not ready, waiting for:\n  - agent\n"
        );
    }

    #[test]
    fn pressure_is_coloured() {
        assert_eq!(
            [(0, 10), (89, 100), (90, 100), (100, 100)].map(|(entries, capacity)| alarm(entries, capacity)),
            [Style::new(), Style::new(), WARNING, BAD]
        );
    }
}
