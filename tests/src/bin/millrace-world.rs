//! The parts of a world of namespaces that need a process of their own. `place` creates sockets inside a
//! place, and `run` starts a program there. `serve` is a backend that outlives its test, and `ask` a client
//! in a container. `guard` removes the world when its owner is gone, and `remove` removes a world that was
//! kept. The harness runs all of them but the last; a person may run that.
#![forbid(unsafe_code)]

use std::env;
use std::io::stdin;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Error, anyhow};
use harness::{guard, server, worker};

const USAGE: &str = "usage: millrace-world remove TAG | guard TAG | place NETNS CGROUP | \
                     run NETNS CGROUP PROGRAM [ARGUMENT…] | serve NAME PORT | ask ADDRESS:PORT";

/// The reason for an early end.
enum Failure {
    /// An argument is invalid.
    Argument(Error),
    /// The requested work failed.
    Work(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Work(error)
    }
}

fn main() -> ExitCode {
    // A person reads this: the error is one line, even where backtraces are enabled.
    let (error, status) = match run() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Argument(error)) => (error, 2),
        Err(Failure::Work(error)) => (error, 1),
    };
    eprintln!("millrace-world: {error:#}");
    ExitCode::from(status)
}

fn run() -> Result<(), Failure> {
    let arguments = env::args_os().skip(1).map(|argument| {
        let text = argument.into_string();
        text.map_err(|bytes| Failure::Argument(anyhow!("{} is no text", bytes.display())))
    });
    let arguments: Vec<String> = arguments.collect::<Result<_, _>>()?;
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["remove", tag] => {
            harness::check_tag(tag).map_err(Failure::Argument)?;
            harness::remove(tag)?;
        }
        ["guard", tag] => {
            harness::check_tag(tag).map_err(Failure::Argument)?;
            guard::run(tag)?;
        }
        ["place", namespace, group] => {
            enter(namespace, group)?;
            let pipe = stdin().as_fd().try_clone_to_owned();
            worker::serve(&pipe.context("duplicating stdin")?)?;
        }
        ["run", namespace, group, program, arguments @ ..] => {
            enter(namespace, group)?;
            let error = Command::new(program).args(arguments).exec();
            return Err(Error::new(error).context(format!("running {program}")).into());
        }
        ["ask", to] => {
            let to = to
                .parse::<SocketAddr>()
                .map_err(|_| bad(to, "an address and a port"))?;
            server::ask(to)?;
        }
        ["serve", name, port] => {
            let port = port.parse::<u16>().map_err(|_| bad(port, "a port"))?;
            server::run(name, port)?;
        }
        _ => return Err(Failure::Argument(anyhow!("{USAGE}"))),
    }
    Ok(())
}

fn enter(namespace: &str, group: &str) -> Result<(), Failure> {
    for (path, what) in [(namespace, "a network namespace"), (group, "a cgroup")] {
        if !Path::new(path).exists() {
            return Err(bad(path, what));
        }
    }
    worker::enter(Path::new(namespace), Path::new(group))?;
    Ok(())
}

fn bad(argument: &str, what: &str) -> Failure {
    Failure::Argument(anyhow!("{argument:?} is not {what}"))
}
