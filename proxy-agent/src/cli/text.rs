//! Texts for people: numbers and times, names that others chose, and the colours.

use std::fmt::Display;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

/// The colour of a good state.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// The colour of a state that will need attention.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// The colour of an error.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// The style of titles.
pub const TITLE: Style = Style::new().bold();
/// The style of minor text.
pub const FAINT: Style = Style::new().dimmed();

/// Text that others wrote, for a place in one of our lines.
///
/// Names and messages come from objects, runtimes and files. Characters that would end the line, control the
/// terminal or change the direction of writing become escape sequences in Rust's syntax.
pub fn line(text: impl Into<String>) -> String {
    let text = text.into();
    let is_plain = |c: char| c.is_ascii_graphic() || c == ' ';
    if text.chars().all(is_plain) {
        return text;
    }
    text.chars()
        .fold(String::with_capacity(text.len() + 8), |mut line, c| {
            if is_plain(c) {
                line.push(c);
            } else {
                line.extend(c.escape_debug());
            }
            line
        })
}

/// Text in a colour.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A number with its digits in groups of three: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of objects: `1 service`, `2 services`, `no services`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    match number {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        _ => format!("{} {many}", grouped(number)),
    }
}

/// A share in per cent, never 0% for a part above zero and never 100% for less than all.
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0%".into();
    }
    let percent = u128::from(part) * 100 / u128::from(whole);
    if percent == 0 {
        "<1%".into()
    } else {
        format!("{percent}%")
    }
}

/// A share as a bar of `width` characters; a part above zero has at least one mark.
pub fn bar(part: u64, whole: u64, width: usize) -> String {
    let (part, whole) = (u128::from(part.min(whole)), u128::from(whole.max(1)));
    let full = (part * width as u128).div_ceil(whole) as usize;
    "█".repeat(full) + &"░".repeat(width - full)
}

/// A length of time in its two largest units: `3 hours`, `1 minute 30 seconds`.
pub fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let Some(largest) = UNITS.iter().position(|(length, _)| seconds >= *length) else {
        return "0 seconds".into();
    };
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, name) in UNITS.iter().skip(largest).take(2) {
        match rest / length {
            0 => {}
            1 => parts.push(format!("1 {name}")),
            number => parts.push(format!("{number} {name}s")),
        }
        rest %= length;
    }
    parts.join(" ")
}

/// The time since `then`, in its largest unit: `3 minutes ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second());
    let largest = |length: i64, name: &str| match seconds / length {
        1 => format!("1 {name} ago"),
        number => format!("{number} {name}s ago"),
    };
    match seconds {
        ..1 => "just now".into(),
        1..60 => largest(1, "second"),
        60..3_600 => largest(60, "minute"),
        3_600..86_400 => largest(3_600, "hour"),
        _ => largest(86_400, "day"),
    }
}

/// A length of time with the unit that suits it: `410 ns`, `1.2 µs`.
pub fn nanoseconds(number: u64) -> String {
    let in_units = |unit: u64, name: &str| {
        let tenths = number.div_euclid(unit / 10);
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    };
    match number {
        0..1_000 => format!("{number} ns"),
        1_000..1_000_000 => in_units(1_000, "µs"),
        1_000_000..1_000_000_000 => in_units(1_000_000, "ms"),
        _ => in_units(1_000_000_000, "s"),
    }
}

/// A rate with the unit that suits it: `10 Mbit/s`, `1.5 Gbit/s`.
pub fn bit_rate(bits_per_second: u64) -> String {
    const UNITS: [(u64, &str); 5] = [
        (1_000_000_000_000_000, "Pbit/s"),
        (1_000_000_000_000, "Tbit/s"),
        (1_000_000_000, "Gbit/s"),
        (1_000_000, "Mbit/s"),
        (1_000, "kbit/s"),
    ];
    let Some((unit, name)) = UNITS.iter().find(|(unit, _)| bits_per_second >= *unit) else {
        return format!("{bits_per_second} bit/s");
    };
    match (bits_per_second / unit, bits_per_second % unit * 10 / unit) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, tenths) => format!("{whole}.{tenths} {name}"),
    }
}

/// The first few of many: `a, b, c and 7 more`.
pub fn few<T: Display>(items: &[T], most: usize) -> String {
    let shown: Vec<_> = items.iter().take(most).map(ToString::to_string).collect();
    let shown = shown.join(", ");
    match items.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {} more", grouped(more as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_in_its_line() {
        for (text, shown) in [
            ("shop/cart: \"a\\b\"", "shop/cart: \"a\\b\""),
            ("größer → █", "größer → █"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\0"),
            ("\u{1b}[31mred\u{9b}2J\u{7f}", "\\u{1b}[31mred\\u{9b}2J\\u{7f}"),
            ("\u{202e}eman\u{2028}", "\\u{202e}eman\\u{2028}"),
        ] {
            assert_eq!(line(text), shown);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        let texts = [0, 999, 1_000, 65_536, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "65,536", "1,234,567"]);
        let counts = [0, 1, 2_000].map(|number| count(number, "service", "services"));
        assert_eq!(counts, ["no services", "1 service", "2,000 services"]);
    }

    #[test]
    fn shares_are_not_rounded_to_nothing_or_everything() {
        let shares = [
            (0, 10),
            (1, 1000),
            (1, 10),
            (999, 1000),
            (10, 10),
            (0, 0),
            (u64::MAX, u64::MAX),
        ];
        assert_eq!(
            shares.map(|(part, whole)| percent(part, whole)),
            ["0%", "<1%", "10%", "99%", "100%", "0%", "100%"]
        );
        assert_eq!(
            shares.map(|(part, whole)| bar(part, whole, 4)),
            ["░░░░", "█░░░", "█░░░", "████", "████", "░░░░", "████"]
        );
    }

    #[test]
    fn times_are_in_words() {
        let durations = [0, 1, 90, 3_600, 10_800, 86_461, 180_000].map(duration);
        assert_eq!(
            durations,
            [
                "0 seconds",
                "1 second",
                "1 minute 30 seconds",
                "1 hour",
                "3 hours",
                "1 day",
                "2 days 2 hours"
            ]
        );
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let agos = [
            "2026-03-01T12:00:05Z",
            "2026-03-01T11:59:59.9Z",
            "2026-03-01T11:58:01Z",
            "2026-02-28T12:00:00Z",
        ]
        .map(|then| ago(then.parse().unwrap(), now));
        assert_eq!(agos, ["just now", "1 second ago", "1 minute ago", "1 day ago"]);
        let short = [0, 999, 1_000, 1_250, 12_345_678, 2_000_000_000].map(nanoseconds);
        assert_eq!(short, ["0 ns", "999 ns", "1.0 µs", "1.2 µs", "12.3 ms", "2.0 s"]);
    }

    #[test]
    fn rates_have_the_unit_that_suits_them() {
        let rates = [
            999,
            1_000,
            1_500_000,
            10_000_000,
            2_000_000_000,
            1_000_000_000_000_000,
        ]
        .map(bit_rate);
        assert_eq!(
            rates,
            [
                "999 bit/s",
                "1 kbit/s",
                "1.5 Mbit/s",
                "10 Mbit/s",
                "2 Gbit/s",
                "1 Pbit/s"
            ]
        );
    }

    #[test]
    fn many_are_not_listed() {
        assert_eq!(few(&["a", "b"], 2), "a, b");
        assert_eq!(few(&["a", "b", "c", "d"], 2), "a, b and 2 more");
        assert_eq!(few::<&str>(&[], 2), "");
    }
}
