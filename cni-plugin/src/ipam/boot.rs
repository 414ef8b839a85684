//! The time of an event, in a form that survives changes of the clock and restarts of the machine.
//!
//! A wall clock may jump by years when a machine without a battery learns the time. So an age is measured by
//! the kernel's time since boot, which is valid only together with the boot's id.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A moment of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootTimestamp {
    /// The kernel's id of the boot; empty where it is not known.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// Milliseconds since that boot, time in suspend included.
    pub since_boot_ms: u64,
    /// Seconds since 1970, for human readers.
    pub unix_time: u64,
}

impl BootTimestamp {
    /// The present moment.
    pub fn now() -> Self {
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            boot_id: fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned(),
            since_boot_ms: since_boot.as_millis() as u64,
            unix_time: since_1970.as_secs(),
        }
    }

    /// Whether the moment was in another boot than `now`. If either boot is not known, they count as the
    /// same.
    pub fn is_of_another_boot(&self, now: &Self) -> bool {
        !self.boot_id.is_empty() && !now.boot_id.is_empty() && self.boot_id != now.boot_id
    }

    /// The time from the moment to `now`; `None` for a moment of another boot.
    pub fn age(&self, now: &Self) -> Option<Duration> {
        let of_this_boot = self.boot_id == now.boot_id;
        of_this_boot.then(|| Duration::from_millis(now.since_boot_ms.saturating_sub(self.since_boot_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_exists_within_one_boot_only() {
        let then = BootTimestamp {
            boot_id: "a".into(),
            since_boot_ms: 1000,
            unix_time: 5,
        };
        let now = BootTimestamp {
            since_boot_ms: 3500,
            ..then.clone()
        };
        assert_eq!(then.age(&now), Some(Duration::from_millis(2500)));
        let later = BootTimestamp {
            boot_id: "b".into(),
            ..now.clone()
        };
        assert!(then.is_of_another_boot(&later) && then.age(&later).is_none());
        let unknown = BootTimestamp {
            boot_id: String::new(),
            ..now
        };
        assert!(!then.is_of_another_boot(&unknown));
        assert!(BootTimestamp::now().since_boot_ms > 0);
    }
}
