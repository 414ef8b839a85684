//! Queueing disciplines of other programs at our own devices, which may delay and drop packets that leave by
//! them.
//!
//! The agent reports them and leaves them alone, as at interfaces of pods ([`crate::pods::limits`]). Those at
//! uplinks belong to the operator, and the agent ignores them.

use std::fmt::Display;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::error::{NetworkError, Problem};
use super::netlink::Netlink;
use crate::trouble::Trouble;

/// A device by index and name.
pub type Device = (u32, &'static str);

/// The root qdiscs of devices, except those that the kernel chose itself.
pub async fn foreign(netlink: &Netlink, devices: &[Device]) -> Result<Vec<Problem>, NetworkError> {
    let messages = netlink.reading().qdisc().get().execute();
    let messages = messages.try_collect::<Vec<_>>().await;
    let messages = messages.map_err(NetworkError::request("listing queueing disciplines"))?;
    Ok(messages
        .iter()
        .filter_map(|message| problem_of(message, devices))
        .collect())
}

fn problem_of(message: &TcMessage, devices: &[Device]) -> Option<Problem> {
    let header = &message.header;
    // A qdisc that the kernel chose itself has no handle.
    if header.parent != TcHandle::ROOT || header.handle == TcHandle::UNSPEC {
        return None;
    }
    let mut devices = devices.iter();
    let (_, device) = devices.find(|(index, _)| *index == header.index.cast_unsigned())?;
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    let kind = kind.unwrap_or("of an unknown kind,");
    // The notation of `tc`.
    let queue = format!("{kind} {:x}:", header.handle.major);
    Some(Problem {
        code: Trouble::ForeignQueue,
        object: format!("interface {device}"),
        message: name_foreign(&queue, device),
    })
}

/// The message about a foreign qdisc, with the remedy for an operator.
pub fn name_foreign(queue: &impl Display, interface: &str) -> String {
    format!(
        "interface {interface} has the queueing discipline {queue} that is not Millrace's, which may hold up \
         and drop its packets and is left alone: remove it with `tc qdisc del dev {interface} root`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_qdisc_at_our_device_is_reported() {
        let problem_of = |index: i32, parent, major| {
            let mut message = TcMessage::with_index(index);
            message.header.parent = parent;
            message.header.handle = TcHandle { major, minor: 0 };
            message.attributes = vec![TcAttribute::Kind("tbf".to_owned())];
            problem_of(&message, &[(7, "millrace0")])
        };
        let problem = problem_of(7, TcHandle::ROOT, 1).expect("a problem");
        assert_eq!(problem.object, "interface millrace0");
        assert!(
            problem.message.contains("discipline tbf 1: that"),
            "{}",
            problem.message
        );
        assert_eq!(problem_of(7, TcHandle::ROOT, 0), None);
        assert_eq!(problem_of(7, TcHandle::CLSACT, 0xffff), None);
        assert_eq!(problem_of(8, TcHandle::ROOT, 1), None);
    }
}
