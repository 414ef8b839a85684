//! The command line: `millrace agent`, and the verbs by which an operator asks and tells it things.
//!
//! Every verb makes one document. With `-o json` it is printed as it is, a shape that scripts rely on; otherwise as a table
//! that a person likes to read. A verb is a file here: its flags, what it does, how its document looks as a table, and
//! what that looks like exactly (its tests). Logs, progress and errors go to stderr, so that stdout is the document and nothing
//! else.
//!
//! Invariant: the exit status is 0 only if the verb did what it says; `status` says that the agent is ready.

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
    /// How to print
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        env = "MILLRACE_OUTPUT"
    )]
    pub output: OutputFormat,
    /// Holds the control socket of the agent
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/millrace",
        env = "MILLRACE_RUN_DIR"
    )]
    pub run_dir: PathBuf,
    /// Holds the pinned maps, programs and links
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
    /// Say how the agent is doing; succeed if it is ready
    Status,
    /// What is programmed for services
    #[command(subcommand)]
    Service(service::ServiceVerb),
    /// How the pods of each node are reached
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// The pods of this node
    #[command(subcommand)]
    Pod(pod::PodVerb),
    /// Addresses of pods
    #[command(subcommand)]
    Ipam(ipam::IpamVerb),
    /// Say where packets would go, without sending any
    Trace(trace::TraceArgs),
    /// Remove everything of Millrace from this node
    Uninstall(uninstall::UninstallArgs),
    /// What stands in configuration files
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Say which version this is
    Version,
    /// Print the completions of a shell
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    Man(man::ManArgs),
}

/// Runs the program: reads the command line and does what it says. `agent` runs the agent until it is told to stop.
pub fn main(agent: fn(AgentOptions) -> anyhow::Result<()>) -> ExitCode {
    let Cli { verb, global } = Cli::parse();
    match run(&global, verb, agent) {
        Ok(code) => code,
        // Whoever reads us, such as `head`, has had enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!(
                "{}error:{} {error:#}",
                text::BAD.render(),
                text::BAD.render_reset()
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
        Verb::Trace(args) => trace::run(global.output, &client, &args),
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

    use super::*;

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
