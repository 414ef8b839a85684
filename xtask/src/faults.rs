//! `cargo xtask faults`: a mutation run. It shows that the tests notice small faults of the code.
//!
//! `xtask/faults.yaml` lists the faults. Each replaces a few lines of the source, and names the test that has
//! to fail then. The run puts one fault at a time into a copy of the last commit, and runs that test there.
//! A fault that the test does not notice fails the run, and so does one that does not compile.
//!
//! The copy is a git worktree below `target/faults`, with a build folder of its own. Both stay for the next
//! run, whose builds are incremental. So the run never writes into the user's checkout.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    build, command, paths, setup,
    step::Step,
    test::{
        layer::{self, TestProgram},
        run::Runner,
        summary::Outcome,
    },
};

/// The path of the list in the repository.
const LIST: &str = "xtask/faults.yaml";

/// One fault, and the test that catches it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    /// A short statement of what goes wrong.
    name: String,
    /// The path of the source file in the repository.
    file: PathBuf,
    /// The text that the fault replaces; it occurs once in the file.
    from: String,
    to: String,
    /// The cargo package of the test.
    package: String,
    /// `lib` for the package's unit tests, `test:NAME` for an integration test.
    target: String,
    /// The name of the test, without the modules before it.
    test: String,
}

/// The result for one fault.
enum Verdict {
    Caught,
    NotCaught,
    /// The first error of the compiler.
    NotBuilt(String),
}

/// The numbers of the last line.
#[derive(Default)]
struct Counts {
    caught: usize,
    not_caught: usize,
    not_built: usize,
}

/// Carries out `cargo xtask faults`.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    let mut faults = list()?;
    faults.retain(|fault| filter.is_none_or(|filter| fault.matches(filter)));
    ensure!(!faults.is_empty(), "no fault of {LIST} matches the filter");
    setup::run()?;
    let copy = Worktree::prepare()?;
    for fault in &faults {
        fault.put_into(&fault.source(&copy.tree)?)?;
    }
    check_without_fault(&copy, &faults)?;
    let mut counts = Counts::default();
    for fault in &faults {
        let step = Step::start(format!("fault: {}", fault.name));
        match copy.verdict(fault, &step)? {
            Verdict::Caught => {
                counts.caught += 1;
                step.end('✔', &format!("caught by {}: {}", fault.test, fault.name));
            }
            Verdict::NotCaught => {
                counts.not_caught += 1;
                step.end('✘', &format!("not caught by {}: {}", fault.test, fault.name));
            }
            Verdict::NotBuilt(error) => {
                counts.not_built += 1;
                step.end('✘', &format!("not built: {}: {error}", fault.name));
            }
        }
    }
    let Counts {
        caught,
        not_caught,
        not_built,
    } = counts;
    println!("{caught} caught, {not_caught} not caught, {not_built} not built");
    Ok(if not_caught + not_built == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The faults of the list.
fn list() -> Result<Vec<Fault>> {
    let path = paths::repository()?.join(LIST);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

impl Fault {
    fn matches(&self, filter: &str) -> bool {
        let file = self.file.to_string_lossy();
        self.name.contains(filter) || file.contains(filter) || self.test.contains(filter)
    }

    /// The sound source, below the root of a checkout.
    fn source(&self, root: &Path) -> Result<String> {
        let path = root.join(&self.file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// The source with the fault in it.
    fn put_into(&self, source: &str) -> Result<String> {
        let count = source.matches(&self.from).count();
        ensure!(
            count == 1,
            "{}: the text of the fault \"{}\" occurs {count} times and not once:\n{}",
            self.file.display(),
            self.name,
            self.from
        );
        Ok(source.replacen(&self.from, &self.to, 1))
    }

    /// The arguments by which cargo chooses the test's target.
    fn target(&self) -> Result<Vec<&str>> {
        Ok(match self.target.split_once(':') {
            None if self.target == "lib" => vec!["--lib"],
            Some(("test", name)) => vec!["--test", name],
            _ => bail!(
                "the fault \"{}\" has the target {:?}: write lib or test:NAME",
                self.name,
                self.target
            ),
        })
    }

    /// Whether this is the path of the fault's test in its program.
    fn is_test(&self, path: &str) -> bool {
        path.rsplit("::").next() == Some(self.test.as_str())
    }
}

/// Runs the tests of all faults in the sound copy, program by program. A test that fails there would catch
/// every fault.
fn check_without_fault(copy: &Worktree, faults: &[Fault]) -> Result<()> {
    let mut targets = BTreeMap::<_, Vec<&Fault>>::new();
    for fault in faults {
        targets
            .entry((&fault.package, &fault.target))
            .or_default()
            .push(fault);
    }
    for ((package, target), faults) in targets {
        let title = format!("without a fault: {package} {target}");
        let step = Step::start(title.clone());
        let program = copy.build(faults[0], &step)?;
        let names: BTreeSet<&str> = faults.iter().map(|fault| fault.test.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let outcomes = runner(&program)?.outcomes(&program, &names, names.len(), &step)?;
        for fault in faults {
            let found = outcomes.iter().find(|(path, _)| fault.is_test(path));
            match found {
                Some((_, Outcome::Passed)) => {}
                Some((_, Outcome::Failed(output))) => {
                    bail!(
                        "{title}: {} fails before any fault is there:\n{output}",
                        fault.test
                    )
                }
                Some((_, Outcome::Skipped(reason))) => {
                    bail!("{title}: {} does not run here: {reason}", fault.test)
                }
                _ => bail!("{title}: there is no test {}", fault.test),
            }
        }
        step.done();
    }
    Ok(())
}

/// The copy of the last commit that gets the faults.
struct Worktree {
    /// The root of the worktree.
    tree: PathBuf,
    /// Cargo's build folder for the worktree.
    build: PathBuf,
}

impl Worktree {
    /// Makes the worktree, or brings the one of an earlier run to the last commit.
    fn prepare() -> Result<Self> {
        let repository = paths::repository()?;
        let folder = repository.join("target/faults");
        let copy = Self {
            tree: folder.join("tree"),
            build: folder.join("build"),
        };
        let commit = command::output(git(repository).args(["rev-parse", "HEAD"]))?;
        let commit = commit.trim();
        // A run that was killed leaves its fault in the worktree.
        let mut renew = git(&copy.tree);
        renew.args(["checkout", "--quiet", "--force", "--detach", commit]);
        if copy.tree.join(".git").exists() && command::output(&mut renew).is_ok() {
            return Ok(copy);
        }
        if copy.tree.exists() {
            fs::remove_dir_all(&copy.tree).with_context(|| format!("removing {}", copy.tree.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        command::output(git(repository).args(["worktree", "prune"]))?;
        let mut add = git(repository);
        add.args(["worktree", "add", "--quiet", "--detach"])
            .arg(&copy.tree)
            .arg(commit);
        command::output(&mut add)?;
        Ok(copy)
    }

    /// Runs a fault's test with the fault in the copy.
    fn verdict(&self, fault: &Fault, step: &Step) -> Result<Verdict> {
        let _faulty = Faulty::write(&self.tree, fault)?;
        let program = match self.build(fault, step) {
            Ok(program) => program,
            Err(error) => return Ok(Verdict::NotBuilt(first_error(&format!("{error:#}")).to_owned())),
        };
        let outcomes = runner(&program)?.outcomes(&program, &[fault.test.as_str()], 1, step)?;
        let outcome = outcomes.iter().find(|(path, _)| fault.is_test(path));
        match outcome {
            Some((_, Outcome::Failed(_))) => Ok(Verdict::Caught),
            Some(_) => Ok(Verdict::NotCaught),
            None => bail!("with the fault \"{}\", no test {} ran", fault.name, fault.test),
        }
    }

    /// Builds the program of a fault's test.
    fn build(&self, fault: &Fault, step: &Step) -> Result<TestProgram> {
        let cargo = || -> Result<Command> {
            let mut cargo = command::cargo()?;
            cargo
                .current_dir(&self.tree)
                .env("CARGO_TARGET_DIR", &self.build)
                .args(["test", "--no-run", "--package", fault.package.as_str()])
                .args(fault.target()?);
            Ok(cargo)
        };
        command::run_in(step, &mut cargo()?)?;
        // The program exists by now; this asks for its path.
        let text = command::output(cargo()?.arg("--message-format=json"))?;
        let artifacts = build::read_artifacts(&text)?;
        artifacts
            .into_iter()
            .find_map(layer::test_program)
            .with_context(|| format!("cargo built no tests {} of {}", fault.target, fault.package))
    }
}

/// The environment that `cargo xtask test` gives to tests. The agent lies above the folder of test programs.
fn runner(program: &TestProgram) -> Result<Runner> {
    let folder = program.executable.ancestors().nth(2);
    let folder = folder.with_context(|| format!("{} lies in no folder", program.executable.display()))?;
    Ok(Runner::new(folder.join("millrace"), false))
}

/// The git of a folder, also where another user owns it.
fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "-C"]).arg(folder);
    git
}

/// A source file with a fault in it. When this is dropped, the file is as before.
struct Faulty {
    path: PathBuf,
    sound: String,
}

impl Faulty {
    fn write(tree: &Path, fault: &Fault) -> Result<Self> {
        let path = tree.join(&fault.file);
        let sound = fault.source(tree)?;
        let faulty = fault.put_into(&sound)?;
        fs::write(&path, faulty).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path, sound })
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.sound) {
            // The next run brings the worktree back to the commit.
            eprintln!("error: the fault stays in {}: {error}", self.path.display());
        }
    }
}

/// The first error that a compiler reports, else the first line that reports one.
fn first_error(output: &str) -> &str {
    let lines = || output.lines().map(str::trim);
    lines()
        .find(|line| line.starts_with("error["))
        .or_else(|| lines().find(|line| line.starts_with("error")))
        .or_else(|| lines().next())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::{Fault, first_error, list};
    use crate::paths;

    const LEAST: usize = 50;

    /// All sources below a folder, in one text.
    fn sources(folder: &Path) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                text += &sources(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(&path).unwrap();
            }
        }
        text
    }

    #[test]
    fn each_fault_fits_the_source_and_names_a_test() {
        let repository = paths::repository().unwrap();
        let faults = list().unwrap();
        assert!(faults.len() >= LEAST, "{} faults", faults.len());
        let mut names = BTreeSet::new();
        let mut tests = std::collections::BTreeMap::new();
        for fault in &faults {
            let Fault { name, package, .. } = fault;
            assert!(names.insert(name), "two faults have the name {name:?}");
            let source = fault.source(repository).unwrap();
            let changed = fault.put_into(&source).unwrap();
            assert_ne!(changed, source, "{name} changes nothing");
            assert!(fault.target().is_ok(), "{name}");
            let folder = repository.join(package);
            let of_package = tests.entry(package).or_insert_with(|| sources(&folder));
            let is_there = of_package.contains(&format!("fn {}(", fault.test));
            assert!(is_there, "{name}: {package} has no test {}", fault.test);
        }
    }

    #[test]
    fn the_error_of_the_compiler_comes_before_that_of_cargo() {
        let output = "`cargo test` failed with exit status 101:\n\
                      error: failed to run custom build command for `proxy-agent`\n\
                      \x20 error[E0308]: mismatched types\n\
                      error: could not compile `proxy-ebpf`";
        assert_eq!(first_error(output), "error[E0308]: mismatched types");
        assert_eq!(
            first_error("x:\nerror: expected expression"),
            "error: expected expression"
        );
        assert_eq!(first_error("cannot start `cargo`"), "cannot start `cargo`");
    }
}
