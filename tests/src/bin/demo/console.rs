//! The output of the demo: numbered steps, sentences, bars, and results with a check mark. All of it goes to
//! stdout, with colours where that is a terminal, so that a run can be saved to a file and read.
//!
//! The console also remembers the current step, so that a failure can name it.

use std::fmt::Write as _;
use std::io::{Stdout, Write as _, stdout};
use std::thread;
use std::time::{Duration, Instant};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use anyhow::Error;
use textwrap::Options;

const STRONG: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const BAR: Style = AnsiColor::Cyan.on_default();

/// The width of lines of text, in columns.
const WIDTH: usize = 88;
/// The length of the longest bar, in columns.
const LONGEST_BAR: usize = 40;

/// Whether a person reads along.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Time to read between the parts of a step.
    Readable,
    /// No waiting.
    Fast,
}

/// A bar of a diagram.
pub struct Bar {
    pub label: String,
    pub value: usize,
    /// A text after the number.
    pub note: String,
}

/// The output of the steps.
pub struct Console {
    out: AutoStream<Stdout>,
    pace: Pace,
    started: Instant,
    step: usize,
    checks: usize,
    doing: String,
}

impl Console {
    pub fn new(pace: Pace) -> Self {
        Self {
            out: AutoStream::auto(stdout()),
            pace,
            started: Instant::now(),
            step: 0,
            checks: 0,
            doing: "starting".to_owned(),
        }
    }

    /// Begins the demo.
    pub fn title(&mut self, text: &str) {
        self.line(&format!("\n{STRONG}{text}{STRONG:#}"));
    }

    /// Begins a step: its headline, then in a sentence or two what it shows and why that matters.
    pub fn step(&mut self, headline: &str, text: &str) {
        self.step += 1;
        self.line(&format!("\n{STRONG}{}. {headline}{STRONG:#}", self.step));
        self.paragraph(text);
        self.pause(Duration::from_secs(1));
    }

    /// Prints a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let options = Options::new(WIDTH).initial_indent("   ").subsequent_indent("   ");
        self.line(&textwrap::fill(text, options));
    }

    /// Prints lines as they are, command lines and their output.
    pub fn show(&mut self, text: &str) {
        self.line(&textwrap::indent(text.trim_end(), "     "));
    }

    /// Prints a command line and its output.
    pub fn command(&mut self, line: &str, printed: &str) {
        self.show(&format!("{FAINT}${FAINT:#} {line}\n{printed}"));
        self.pause(Duration::from_millis(600));
    }

    /// Prints numbers as bars.
    pub fn bars(&mut self, bars: &[Bar]) {
        let labels = bars.iter().map(|bar| bar.label.len()).max().unwrap_or(0);
        let most = bars.iter().map(|bar| bar.value).max().unwrap_or(0).max(1);
        let mut text = String::new();
        for Bar { label, value, note } in bars {
            let full = "█".repeat((value * LONGEST_BAR).div_ceil(most));
            let note = if note.is_empty() {
                String::new()
            } else {
                format!(" {FAINT}{note}{FAINT:#}")
            };
            // write! to a String cannot fail.
            let _ = writeln!(text, "{label:labels$}  {BAR}{full}{BAR:#} {value}{note}");
        }
        self.show(&text);
    }

    /// Remembers the current step, in words that complete "failed while …".
    pub fn doing(&mut self, what: impl Into<String>) {
        self.doing = what.into();
    }

    /// Prints a result that has been checked.
    pub fn result(&mut self, text: &str) {
        self.checks += 1;
        let mark = format!("   {GOOD}✔{GOOD:#} ");
        let options = Options::new(WIDTH)
            .initial_indent(&mark)
            .subsequent_indent("     ");
        self.line(&textwrap::fill(text, options));
        self.pause(Duration::from_millis(350));
    }

    /// Prints the end of a demo without failures.
    pub fn finished(&mut self) {
        self.line(&format!(
            "\n{GOOD}✔{GOOD:#} {STRONG}All checks passed{STRONG:#}: {} steps, {} results checked, {:.0} seconds.",
            self.step,
            self.checks,
            self.started.elapsed().as_secs_f64()
        ));
    }

    /// Prints an attachment of a failure: a title line, then lines of another program.
    pub fn attach(&mut self, text: &str) {
        self.line(&format!("\n{FAINT}{text}{FAINT:#}"));
    }

    /// Prints a paragraph after the last step.
    pub fn note(&mut self, text: &str) {
        self.line(&format!("\n{text}"));
    }

    /// Prints a failure, the end of the demo.
    pub fn failed(&mut self, error: &Error) {
        let step = match self.step {
            0 => String::new(),
            step => format!(", step {step}"),
        };
        self.line(&format!(
            "\n{BAD}✘ The demo failed{BAD:#}{step}, while {}:\n{}",
            self.doing,
            textwrap::indent(&format!("{error:#}"), "  ")
        ));
    }

    fn line(&mut self, text: &str) {
        // The reader of stdout, such as `head`, may have closed it. The checks go on all the same.
        let _ = writeln!(self.out, "{text}");
    }

    fn pause(&self, time: Duration) {
        if self.pace == Pace::Readable {
            thread::sleep(time);
        }
    }
}

/// A length of time in words for a person.
pub fn time(time: Duration) -> String {
    match time.as_secs_f64() * 1000.0 {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}
