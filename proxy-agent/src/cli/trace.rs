//! `millrace trace`: the destination of given packets, and the reason.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anstyle::Style;
use anyhow::bail;
use clap::Args;

use super::output::{self, OutputFormat};
use super::table::{Align, Cell, Table};
use super::text::{self, BAD, FAINT, GOOD, WARNING, styled};
use crate::control::{Client, Entry, Protocol, TraceReply, TraceRequest, Verdict};

/// `millrace trace`
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The client's address; it need not exist
    #[arg(long, value_name = "IP")]
    from: IpAddr,
    /// The destination of the client's packets (an IPv6 address in brackets); it need not exist
    #[arg(long, value_name = "IP:PORT")]
    to: SocketAddr,
    /// The transport protocol
    #[arg(long, value_name = "PROTOCOL", ignore_case = true)]
    proto: Protocol,
    /// The source port, or the first of them
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// How many source ports to try, counting up
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: u32,
    /// The place where the packets enter this node [default: pod if the source lies in a pod range, node if
    /// it is this node's address, else uplink]
    #[arg(long, value_name = "WHERE")]
    entry: Option<Entry>,
    /// Exit with 3 if the verdict is drop or reject; without this flag each verdict exits with 0, since the
    /// trace itself succeeded
    #[arg(long)]
    exit_code: bool,
}

/// The exit status with [`TraceArgs::exit_code`]. 1 stands for a failed trace, 2 for a wrong command line.
const REFUSED: u8 = 3;

/// Asks the agent and prints its reply.
pub fn run(format: OutputFormat, client: &Client, args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let &TraceArgs {
        from,
        to,
        proto,
        sport,
        samples,
        entry,
        exit_code,
    } = args;
    let request = TraceRequest {
        from,
        to,
        protocol: proto,
        source_port: sport,
        samples,
        entry,
    };
    if let Err(message) = request.validate() {
        bail!(message);
    }
    let reply = client.trace(request)?;
    output::print(format, &reply, || render(&reply, samples))?;
    Ok(ExitCode::from(status(exit_code, reply.verdict)))
}

fn status(is_asked: bool, verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Drop | Verdict::Reject if is_asked => REFUSED,
        _ => 0,
    }
}

/// The reply as text for people.
pub fn render(reply: &TraceReply, samples: u32) -> String {
    let mut text = styled(style(reply.verdict), reply.verdict.to_string().to_uppercase());
    if let Some(service) = &reply.service {
        let _ = write!(text, "  {}", text::line(service.as_str()));
        if let Some(kind) = reply.kind {
            let _ = write!(text, " ({kind})");
        }
    }
    let _ = writeln!(text, "  {}", text::line(reply.reason.as_str()));
    if !reply.backends.is_empty() {
        let _ = write!(text, "\n{}", backends(reply, samples));
    }
    if !reply.steps.is_empty() {
        let _ = writeln!(text, "\n{FAINT}STEPS{FAINT:#}");
        for (index, step) in reply.steps.iter().enumerate() {
            let _ = writeln!(text, "{:>3}. {}", index + 1, text::line(step.as_str()));
        }
    }
    text
}

fn backends(reply: &TraceReply, samples: u32) -> Table {
    let mut table = Table::new(&[
        ("BACKEND", Align::Left),
        ("NODE", Align::Left),
        ("SAMPLES", Align::Right),
        ("", Align::Left),
        ("SOURCE ADDRESS", Align::Left),
    ]);
    for backend in &reply.backends {
        let (part, whole) = (backend.samples.into(), samples.into());
        table.row([
            backend.address.to_string().into(),
            backend
                .node
                .as_deref()
                .map_or_else(|| Cell::styled(FAINT, "-"), Cell::from),
            text::grouped(part).into(),
            format!("{} {}", text::bar(part, whole, 20), text::percent(part, whole)).into(),
            if backend.masquerade { "the node's" } else { "kept" }.into(),
        ]);
    }
    table
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Forward => GOOD,
        Verdict::Pass => WARNING,
        Verdict::Reject | Verdict::Drop => BAD,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::control::{ServiceKind, TraceBackend};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TraceArgs,
    }

    #[test]
    fn flags_are_read() {
        let line =
            "trace --from fd00::1 --to [fd00:96::a]:80 --proto UDP --sport 7 --samples 9 --entry uplink";
        let args = Line::try_parse_from(line.split(' ')).unwrap().args;
        assert_eq!(
            (args.to.port(), args.proto, args.entry),
            (80, Protocol::Udp, Some(Entry::Uplink))
        );
        assert_eq!((args.sport, args.samples), (Some(7), 9));
        assert!(
            Line::try_parse_from("trace --from 10.0.0.1 --to 10.0.0.2:80 --proto icmp".split(' ')).is_err()
        );
    }

    #[test]
    fn a_verdict_is_an_exit_status_only_if_that_is_asked_for() {
        for (verdict, asked) in [
            (Verdict::Forward, 0),
            (Verdict::Pass, 0),
            (Verdict::Drop, 3),
            (Verdict::Reject, 3),
        ] {
            assert_eq!(
                (status(false, verdict), status(true, verdict)),
                (0, asked),
                "{verdict}"
            );
        }
    }

    #[test]
    fn a_forwarded_flow() {
        let backend = |address: &str, node: Option<&str>, samples, masquerade| TraceBackend {
            address: address.parse().unwrap(),
            node: node.map(Into::into),
            samples,
            masquerade,
        };
        let reply = TraceReply {
            verdict: Verdict::Forward,
            reason: "a new flow was given a backend".into(),
            service: Some("shop/cart:http".into()),
            kind: Some(ServiceKind::ClusterIp),
            backends: vec![
                backend("10.244.1.5:8080", Some("worker-1"), 49, false),
                backend("10.244.2.7:8080", None, 51, true),
            ],
            steps: vec![
                "10.96.0.10:80 is a frontend".into(),
                "2 backends, chosen by hash".into(),
            ],
        };
        assert_eq!(
            anstream::adapter::strip_str(&render(&reply, 100)).to_string(),
            "\
FORWARD  shop/cart:http (ClusterIP)  a new flow was given a backend

BACKEND          NODE      SAMPLES                            SOURCE ADDRESS
10.244.1.5:8080  worker-1       49  ██████████░░░░░░░░░░ 49%  kept
10.244.2.7:8080  -              51  ███████████░░░░░░░░░ 51%  the node's

STEPS
  1. 10.96.0.10:80 is a frontend
  2. 2 backends, chosen by hash
"
        );
    }

    #[test]
    fn a_packet_that_is_not_ours() {
        let reply = TraceReply {
            verdict: Verdict::Pass,
            reason: "not addressed to a service".into(),
            service: None,
            kind: None,
            backends: vec![],
            steps: vec![],
        };
        let text = anstream::adapter::strip_str(&render(&reply, 1)).to_string();
        assert_eq!(text, "PASS  not addressed to a service\n");
    }
}
