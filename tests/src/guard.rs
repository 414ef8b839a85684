//! The guard of a world: a child process that holds the reading end of a pipe. The world's owner holds the
//! writing end. The owner closes that end when the world is dropped, and the kernel closes it when the owner
//! is killed. Then the guard removes the world, unless the owner has told it to keep the world.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::binary;
use crate::names::Tag;
use crate::removal;

const KEEP: &[u8] = b"keep";

pub(crate) struct Guard {
    process: Child,
}

impl Guard {
    pub(crate) fn start(tag: &Tag) -> Result<Self> {
        let process = Command::new(binary::world_tool()?)
            .args(["guard", &tag.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A process group of its own: Ctrl-C ends the owner, and must not end the guard with it.
            .process_group(0)
            .spawn()
            .context("starting the guard of a world")?;
        Ok(Self { process })
    }

    /// Tells the guard to leave the world as it is, and waits until the guard has ended.
    pub(crate) fn keep(&mut self) -> Result<()> {
        if let Some(pipe) = &mut self.process.stdin {
            pipe.write_all(KEEP)
                .context("telling the guard to keep the world")?;
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait().context("waiting for the guard of a world")?;
        ensure!(
            status.success(),
            "the guard of a world failed ({status}); its reason stands above"
        );
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        match self.finish() {
            Ok(()) => {}
            // A second panic would abort the run and hide the first.
            Err(error) if std::thread::panicking() => eprintln!("removing a world: {error:#}"),
            Err(error) => panic!("removing a world: {error:#}"),
        }
    }
}

/// The main function of the guard's process.
pub fn run(tag: &str) -> Result<()> {
    let mut order = Vec::new();
    std::io::stdin()
        .read_to_end(&mut order)
        .context("reading the owner's pipe")?;
    if order == KEEP {
        Ok(())
    } else {
        removal::remove(tag)
    }
}
