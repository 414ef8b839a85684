//! The counters of reasons, and the limit of what is sent to peers whose packets are refused.

use proxy_common::Ip;
use proxy_common::maps::{Counter, Reason, Refusals};

use crate::kernel::{self, array_element};
use crate::maps::{CONFIG, COUNTERS, REFUSALS};

/// Whether one more refusal may be sent to a sender now.
#[inline(always)]
pub fn may_refuse(sender: &Ip) -> bool {
    let Some(config) = CONFIG.get_ptr(0).map(array_element) else {
        return false;
    };
    let now = (kernel::clock() >> 30) as u32;
    let another = |group: u32, most: u32| {
        let refusals = REFUSALS.get_ptr_mut(group);
        refusals.is_some_and(|refusals| kernel::another_refusal(refusals, now, most))
    };
    let is_own_pod = config.is_own_pod_address(sender);
    another(Refusals::group(sender, is_own_pod), Refusals::MOST)
        && (is_own_pod || another(Refusals::ALL_OTHERS, Refusals::MOST_OF_OTHERS))
}

/// Counts a packet, or a socket call (0 bytes).
#[inline(always)]
pub fn count(reason: Reason, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        kernel::add(
            counter,
            Counter {
                packets: 1,
                bytes: u64::from(bytes),
            },
        );
    }
}
