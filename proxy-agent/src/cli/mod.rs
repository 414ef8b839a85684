//! The command line: `millrace agent`, and the verbs that query and control a running agent.
//!
//! Every verb makes one document. With `-o json` it is printed as it is, in a form on which scripts rely;
//! otherwise as a table for people. Each verb has a file here: its flags, its actions, its table, and the
//! tests of the table. Logs, progress and errors go to stderr, so that stdout has the document alone.
//!
//! Invariant: the exit status is 0 only if the verb did its work; for `status` this means that the agent is
//! ready.

pub mod agent;
pub mod completions;
pub mod config;
pub mod environment;
pub mod ipam;
pub mod logging;
pub mod man;
pub mod node;
pub mod output;
pub mod pod;
pub mod service;
pub mod status;
pub mod table;
pub mod text;
pub mod trace;
pub mod uninstall;
pub mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::AgentOptions;
use crate::control::Client;
use output::OutputFormat;

/// A Service proxy for Kubernetes nodes on eBPF
#[derive(Debug, Parser)]
#[command(
    name = "millrace",
    version,
    max_term_width = 110,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    global: Global,
}

/// Flags of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every verb")]
pub struct Global {
    /// The output format
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        env = "MILLRACE_OUTPUT"
    )]
    pub output: OutputFormat,
    /// The directory of the agent's control socket
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/millrace",
        env = "MILLRACE_RUN_DIR"
    )]
    pub run_dir: PathBuf,
    /// The directory of the pinned maps, programs and links
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/sys/fs/bpf/millrace",
        env = "MILLRACE_BPF_ROOT"
    )]
    pub bpf_root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent of this node
    Agent(Box<agent::AgentArgs>),
    /// Show the state of the agent; succeed if it is ready
    Status,
    /// The programmed services
    #[command(subcommand)]
    Service(service::ServiceVerb),
    /// The routes to the pods of each node
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// The pods of this node
    #[command(subcommand)]
    Pod(pod::PodVerb),
    /// The addresses of pods
    #[command(subcommand)]
    Ipam(ipam::IpamVerb),
    /// Show where packets would go, without sending any
    Trace(trace::TraceArgs),
    /// Remove all parts of Millrace from this node
    Uninstall(uninstall::UninstallArgs),
    /// The configuration files
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Show the version
    Version,
    /// Print the completions of a shell
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    Man(man::ManArgs),
}

/// Runs the program: reads the command line and runs the verb. `agent` runs the agent until a signal stops
/// it.
pub fn main(agent: fn(AgentOptions) -> anyhow::Result<()>) -> ExitCode {
    let Cli { verb, global } = Cli::parse();
    match run(&global, verb, agent) {
        Ok(code) => code,
        // The reader of stdout, such as `head`, has closed the pipe.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let error = format!("{error:#}");
            // A message may have several lines, each with names that others chose.
            let lines: Vec<_> = error.lines().map(text::line).collect();
            anstream::eprintln!(
                "{}error:{} {}",
                text::BAD.render(),
                text::BAD.render_reset(),
                lines.join("\n")
            );
            ExitCode::FAILURE
        }
    }
}

fn run(
    global: &Global,
    verb: Verb,
    agent: fn(AgentOptions) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let verbosity = if let Verb::Agent(args) = &verb {
        args.verbosity()
    } else {
        0
    };
    logging::start(verbosity)?;
    let client = Client::new(&global.run_dir);
    let succeeded = match verb {
        Verb::Agent(args) => agent(args.options(global)?).map(|()| true),
        Verb::Status => status::run(global.output, &client),
        Verb::Service(verb) => service::run(global.output, &client, &verb),
        Verb::Node(verb) => node::run(global.output, &client, &verb),
        Verb::Pod(verb) => pod::run(global.output, &client, &verb),
        Verb::Ipam(verb) => ipam::run(global, &client, &verb),
        Verb::Trace(args) => return trace::run(global.output, &client, &args),
        Verb::Uninstall(args) => uninstall::run(global, &args),
        Verb::Config(verb) => config::run(global.output, &verb),
        Verb::Version => version::run(global.output),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
    }?;
    Ok(if succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    /// This text clears the screen, and forges a line.
    const HOSTILE: &str = "x\n\u{1b}[2Jfake\u{9b}1m\u{202e}";

    fn with_hostile<T: DeserializeOwned>(mut document: serde_json::Value) -> T {
        fn poison(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::String(text) if text == "?" => HOSTILE.clone_into(text),
                serde_json::Value::Array(items) => items.iter_mut().for_each(poison),
                serde_json::Value::Object(fields) => fields.values_mut().for_each(poison),
                _ => {}
            }
        }
        poison(&mut document);
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn names_that_others_chose_stay_in_their_lines() {
        let entry = json!({
            "namespace": "?", "name": "?", "port": "?", "protocol": "TCP", "kind": "ClusterIP", "address": "10.0.0.1",
            "portNumber": 80, "policy": "Cluster", "affinitySeconds": null,
            "backends": [{"address": "10.0.0.2:80", "node": "?", "state": "active"}],
        });
        let pod = json!({
            "namespace": "?", "name": "?", "containerID": "?", "ifName": "?", "hostInterface": "?", "addresses": [],
            "mac": "02:00:00:00:00:01", "mtu": 1500, "ingressBandwidth": null, "egressBandwidth": null,
            "hostPorts": [],
        });
        let node = json!({
            "name": "?", "addresses": [], "podCIDRs": [], "mode": null, "lastChange": "2026-01-01T00:00:00Z",
        });
        let lease = json!({"address": "10.0.0.2", "containerID": "?", "ifName": "?", "state": "used"});
        let trace = json!({
            "verdict": "drop", "reason": "?", "service": "?", "kind": "ClusterIP", "steps": ["?"],
            "backends": [{"address": "10.0.0.2:80", "node": "?", "samples": 1, "masquerade": false}],
        });
        let mut status = serde_json::to_value(crate::control::Status::without_agent()).unwrap();
        for (key, value) in [
            ("waitingFor", json!(["?"])),
            ("node", json!("?")),
            ("source", json!("?")),
            ("errors", json!([{"object": "?", "message": "?"}])),
        ] {
            status[key] = value;
        }
        let leases = crate::control::Leases {
            dir: HOSTILE.into(),
            leases: vec![with_hostile(lease)],
        };
        let now = jiff::Timestamp::UNIX_EPOCH;
        let texts = [
            (service::render(&[with_hostile(entry)]), 2),
            (pod::render(&[with_hostile(pod)]), 2),
            (node::render(&[with_hostile(node)]), 2),
            (ipam::render(&leases), 2),
            (trace::render(&with_hostile(trace), 1), 7),
            (status::render(&with_hostile(status), now), 7),
        ];
        for (text, lines) in texts {
            let plain = anstream::adapter::strip_str(&text).to_string();
            assert!(plain.contains("x\\n\\u{1b}[2Jfake"), "{plain}");
            let odd = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
            assert_eq!(plain.chars().find(odd), None, "{plain:?}");
            assert_eq!(plain.lines().count(), lines, "{plain}");
        }
    }

    #[test]
    fn the_definitions_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn directories_can_be_named_before_and_after_a_verb() {
        for line in [
            "millrace --run-dir /a -o json service list",
            "millrace service list -o json --run-dir /a",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(
                (cli.global.output, cli.global.run_dir.to_str()),
                (OutputFormat::Json, Some("/a"))
            );
        }
    }
}
