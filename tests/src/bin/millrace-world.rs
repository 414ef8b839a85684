//! What must happen in a process of its own while a world of namespaces
//! exists: `place` creates sockets inside a place, `run` starts a program
//! there, `serve` is a backend that lives on without its test, `ask` a client
//! in a container, `guard` removes the world when its owner is gone, and
//! `remove` does so for a world that was kept. The harness runs all but the
//! last; a person may run that.
#![forbid(unsafe_code)]

use std::env;
use std::io::stdin;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use harness::{guard, server, worker};

const USAGE: &str = "usage: millrace-world remove TAG
       millrace-world guard TAG
       millrace-world place NETNS CGROUP
       millrace-world run NETNS CGROUP PROGRAM [ARGUMENT…]
       millrace-world serve NAME PORT
       millrace-world ask ADDRESS:PORT";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["remove", tag] => harness::remove(tag),
        ["guard", tag] => guard::run(tag),
        ["place", namespace, group] => {
            worker::enter(Path::new(namespace), Path::new(group))?;
            worker::serve(
                &stdin()
                    .as_fd()
                    .try_clone_to_owned()
                    .context("duplicating stdin")?,
            )
        }
        ["run", namespace, group, program, arguments @ ..] => {
            worker::enter(Path::new(namespace), Path::new(group))?;
            let error = Command::new(program).args(arguments).exec();
            Err(error).with_context(|| format!("running {program}"))
        }
        ["ask", to] => server::ask(to.parse().context("ADDRESS:PORT is none")?),
        ["serve", name, port] => server::run(name, port.parse().context("PORT is not a port")?),
        _ => bail!("{USAGE}"),
    }
}
