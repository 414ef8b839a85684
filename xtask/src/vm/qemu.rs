//! One guest from power on to power off, and its reports.
//!
//! The guest has no network device: packets of the tests stay in its kernel. It is emulated unless KVM is
//! asked for, since a machine that is a guest itself may have a /dev/kvm that hangs. Its console goes to a
//! file, whose end is shown when the guest dies. Its reports come by qemu's standard output.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Options,
    initramfs::{Guest, ROOT_TAG},
    kernels::Kernel,
    report::Line,
};
use crate::{
    command,
    step::Step,
    test::summary::{Counts, Outcome, Summary},
};

const PROGRAM: &str = "qemu-system-x86_64";
const MEMORY: &str = "4G";

/// A guest without a report for this long hangs. A live guest reports every half minute.
const SILENCE: Duration = Duration::from_mins(5);

/// The number of lines of a dead guest's console in an error.
const LINES_OF_CONSOLE: usize = 30;

/// Boots a guest and adds its reports to the summary as they arrive. A kernel that dies before the guest is
/// up boots once more. The reason is that emulated processors sometimes execute code that another processor
/// is patching.
pub fn run(kernel: &Kernel, guest: &Guest, options: &Options, summary: &mut Summary) -> Result<()> {
    let mut is_up = false;
    let first = boot(kernel, guest, options, summary, &mut is_up);
    if first.is_ok() || is_up {
        return first;
    }
    eprintln!("  Linux {} died during its boot, it starts again", kernel.name);
    boot(kernel, guest, options, summary, &mut is_up)
}

/// Boots a guest once; sets `is_up` when the guest has booted.
fn boot(
    kernel: &Kernel,
    guest: &Guest,
    options: &Options,
    summary: &mut Summary,
    is_up: &mut bool,
) -> Result<()> {
    let step = Step::start(format!("Linux {}", kernel.name));
    let errors = guest.console.with_extension("qemu");
    let log = File::create(&errors).with_context(|| format!("creating {}", errors.display()))?;
    let mut qemu = command(guest, options.kvm);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let child = qemu
        .spawn()
        .with_context(|| format!("cannot start `{}`", command::describe(&qemu)))?;
    let mut running = Running(child);
    let mut counts = Counts::default();
    let lines = lines_of(&mut running.0);
    let result = listen(kernel, &lines, &step, &mut counts, summary, is_up);
    if options.verbose {
        eprintln!("{}", tail(&guest.console, usize::MAX));
    }
    let mark = if result.is_ok() && counts.failed == 0 {
        '✔'
    } else {
        '✘'
    };
    step.end(mark, &format!("Linux {}: {counts}", kernel.name));
    result.with_context(|| {
        format!(
            "{}the end of {}:\n{}",
            tail(&errors, LINES_OF_CONSOLE),
            guest.console.display(),
            tail(&guest.console, LINES_OF_CONSOLE)
        )
    })
}

fn listen(
    kernel: &Kernel,
    lines: &Receiver<String>,
    step: &Step,
    counts: &mut Counts,
    summary: &mut Summary,
    is_up: &mut bool,
) -> Result<()> {
    let mut at = "booting".to_owned();
    loop {
        let line = match lines.recv_timeout(SILENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the guest sent nothing for {} minutes while {at}",
                    SILENCE.as_secs() / 60
                )
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the guest died while {at}"),
        };
        match Line::decode(&line) {
            None => {}
            Some(Line::Booted(release)) => {
                *is_up = true;
                eprintln!("  Linux {release} is up");
            }
            Some(Line::Running(program)) => {
                step.note(&program);
                at = format!("running {program}");
            }
            Some(Line::Ended {
                program,
                test,
                outcome,
            }) => {
                counts.add(&outcome);
                show(kernel, &program, &test, &outcome);
                summary.add(format!("{} {program}", kernel.name), test, outcome);
            }
            Some(Line::End(None)) => return Ok(()),
            Some(Line::End(Some(error))) => bail!("in the guest, {at}: {error}"),
        }
    }
}

fn show(kernel: &Kernel, program: &str, test: &str, outcome: &Outcome) {
    let name = format!("{} {program}: {test}", kernel.name);
    match outcome {
        Outcome::Passed | Outcome::PassedAgain => eprintln!("  ✔ {name}"),
        Outcome::Failed(output) => eprintln!("  ✘ {name}\n{}\n", output.trim_end()),
        Outcome::Skipped(reason) => eprintln!("  – {name}: {reason}"),
    }
}

fn command(guest: &Guest, kvm: bool) -> Command {
    let cpus = thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4));
    // The kernel ends qemu with its parent, however the parent ends.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", PROGRAM])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", "q35", "-cpu", "max"])
        .args(["-accel", if kvm { "kvm" } else { "tcg,thread=multi" }])
        .args(["-m", MEMORY, "-smp", &cpus.to_string(), "-nic", "none"])
        .args(["-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off"])
        .args(["-chardev", "stdio,id=report,signal=off"])
        .arg("-serial")
        .arg(format!("file:{}", guest.console.display()))
        .args(["-serial", "chardev:report"])
        .arg("-virtfs")
        .arg(format!(
            "local,path=/,mount_tag={ROOT_TAG},security_model=none,readonly=on,multidevs=remap"
        ))
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initramfs);
    qemu
}

/// A guest that ends when its owner drops it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A guest that has powered off needs neither call.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines_of(qemu: &mut Child) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = qemu.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

/// The last lines of a file.
fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().map(str::trim_end).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
