//! Reads the log lines of programs that were built with the feature `log`, and logs one text for each
//! decision.
//!
//! A thread reads as long as the process lives. Each load of the programs makes a ring buffer of its own.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use proxy_common::maps::Reason;

/// The interval between two reads.
const INTERVAL: Duration = Duration::from_millis(20);
/// The entries by number, see `Entry` in `proxy_common::decide`.
const ENTRIES: [&str; 5] = ["pod", "uplink", "host", "loopback", "egress"];
/// The verdicts by number, see `Verdict` in `log.rs` of `proxy-ebpf`.
const VERDICTS: [&str; 5] = ["pass", "drop", "deliver", "echo", "translate"];

/// Starts to read the lines of an object that was just loaded.
pub fn follow(object: &mut Ebpf) {
    let mut lines = match EbpfLogger::init_with_logger(object, Decisions) {
        Ok(lines) => lines,
        Err(error) => {
            tracing::warn!(%error, "the programs' log cannot be read");
            return;
        }
    };
    std::thread::spawn(move || {
        loop {
            lines.flush();
            std::thread::sleep(INTERVAL);
        }
    });
}

struct Decisions;

impl Log for Decisions {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        let text = text(&line).unwrap_or(line);
        tracing::info!(target: "decisions", "{text}");
    }

    fn flush(&self) {}
}

/// The text of a line; `None` if the line is none of ours.
fn text(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let mut number = || words.next()?.parse::<u32>().ok();
    let entry = ENTRIES.get(number()? as usize)?;
    let verdict = VERDICTS.get(number()? as usize)?;
    let reason = Reason::from_number(number()?)?.name();
    let protocol = number()?;
    let mut end = || {
        let address: Ipv6Addr = words.next()?.parse().ok()?;
        let address = IpAddr::V6(address).to_canonical();
        Some(SocketAddr::new(address, words.next()?.parse().ok()?))
    };
    let (from, to) = (end()?, end()?);
    Some(format!(
        "{entry}: {verdict} {reason}, protocol {protocol}, {from} -> {to}"
    ))
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn a_line_of_numbers_becomes_text() {
        assert_eq!(
            text("1 1 38 17 ::ffff:192.168.50.12 30080 fd00:50::11 7").as_deref(),
            Some("uplink: drop reply_loop, protocol 17, 192.168.50.12:30080 -> [fd00:50::11]:7")
        );
        assert_eq!(text("1 1 4000 17 :: 1 :: 1"), None);
        assert_eq!(text("hello"), None);
    }
}
