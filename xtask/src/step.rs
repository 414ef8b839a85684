//! One line for each slow step. On a terminal it is a spinner with the latest output while the step runs.
//! Elsewhere it is a plain line, so that a CI log lists the steps of the run. A long step adds a line with
//! its progress there, so that a reader can tell a slow step from a stuck one.

use std::{
    io::IsTerminal as _,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// The interval between two lines of progress where no terminal is. A run says at least once a minute how
/// far it is.
const REPORT: Duration = Duration::from_secs(50);

/// A step that has begun and is shown until it is done or dropped.
pub struct Step {
    display: Display,
    title: String,
    started: Instant,
}

enum Display {
    /// A spinner on a terminal.
    Spinner(ProgressBar),
    /// Plain lines, which a thread prints until the sender is dropped.
    Lines {
        detail: Arc<Mutex<String>>,
        _ends: mpsc::Sender<()>,
    },
}

impl Step {
    pub fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let started = Instant::now();
        let display = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(title.clone());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>4}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            Display::Spinner(bar)
        } else {
            eprintln!("… {title}");
            lines(title.clone(), started, REPORT, |line| eprintln!("{line}"))
        };
        Self {
            display,
            title,
            started,
        }
    }

    /// Notes the progress of the step. A terminal shows it at once.
    pub fn note(&self, progress: &str) {
        match &self.display {
            Display::Spinner(bar) => bar.set_message(format!("{}: {progress}", self.title)),
            Display::Lines { detail, .. } => {
                progress.clone_into(&mut detail.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Ends the step with a line that stays.
    pub fn done(self) {
        let title = self.title.clone();
        self.end('✔', &title);
    }

    /// Ends the step with a mark and an outcome of the caller.
    pub fn end(self, mark: char, outcome: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Display::Spinner(bar) = &self.display {
            bar.finish_and_clear();
        }
        eprintln!("{mark} {outcome} ({seconds:.1} s)");
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Display::Spinner(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

/// Prints the latest progress at each interval, until the display is dropped.
fn lines(
    title: String,
    started: Instant,
    interval: Duration,
    print: impl Fn(&str) + Send + 'static,
) -> Display {
    let detail = Arc::new(Mutex::new(String::new()));
    let (sender, ended) = mpsc::channel::<()>();
    let latest = Arc::clone(&detail);
    thread::spawn(move || {
        while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            let minutes = started.elapsed().as_secs_f64() / 60.0;
            let latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
            let colon = if latest.is_empty() { "" } else { ": " };
            print(&format!("  {title}{colon}{latest} ({minutes:.1} min)"));
        }
    });
    Display::Lines {
        detail,
        _ends: sender,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_terminal_reports_its_latest_progress() {
        let (sender, printed) = mpsc::channel();
        let interval = Duration::from_millis(20);
        let print = move |line: &str| drop(sender.send(line.to_owned()));
        let step = Step {
            display: lines("tests".to_owned(), Instant::now(), interval, print),
            title: "tests".to_owned(),
            started: Instant::now(),
        };
        let next = || printed.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(next(), "  tests (0.0 min)");
        step.note("3/7 a_test");
        assert!((0..10).any(|_| next() == "  tests: 3/7 a_test (0.0 min)"));
        drop(step);
        while printed.recv_timeout(Duration::from_secs(10)).is_ok() {}
        assert_eq!(printed.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
