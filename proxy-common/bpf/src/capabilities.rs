//! The capabilities that the kernel side needs and this process lacks (capabilities(7)).
//!
//! The kernel returns EPERM, or its verifier refuses a program for another stated reason. Neither names the
//! missing capability.

use std::fs;

/// The capabilities for loading and attaching, by bit number. `CAP_SYS_ADMIN` replaces the last two.
const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const SYS_ADMIN: u32 = 21;
const FIRST_OF_SYS_ADMIN: u32 = 38;

/// The missing capabilities; none if the kernel does not show them.
pub fn missing() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).map(missing_in).unwrap_or_default()
}

fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn missing_in(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    let lacks = |bit: u32| !has(bit) && (bit < FIRST_OF_SYS_ADMIN || !has(SYS_ADMIN));
    NEEDED
        .iter()
        .filter(|(bit, _)| lacks(*bit))
        .map(|(_, name)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            effective("Name:\tx\nCapEff:\t000001fffeffffff\n"),
            Some(0x1ff_feff_ffff)
        );
        assert_eq!(effective("Name:\tx\n"), None);
        assert_eq!(missing_in(u64::MAX), [""; 0]);
        assert_eq!(
            missing_in(1 << 12 | 1 << 21),
            [""; 0],
            "older kernels have CAP_SYS_ADMIN only"
        );
        assert_eq!(missing_in(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(missing_in(1 << 21), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_in(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    }
}
