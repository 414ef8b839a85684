//! Programs that run before ours. A foreign program is reported by name. A leftover of ours is detached, or
//! keeps the node from being ready.

use super::Agent;
use crate::agent::node::hooks;
use crate::bpf::links::ahead::{AttachPoint, Kind, PrecedingProgram};
use crate::control::ObjectError;
use crate::trouble::Trouble;

const STALE: &str = "older programs to be detached";
const FOREIGN: &str = "programs before ours";

/// Checks the cgroup, the interfaces with bpf links, and the interfaces whose filters are due (`is_due`).
pub fn look(agent: &mut Agent, is_due: impl Fn(u32) -> bool) {
    let cgroup = hooks::cgroup(&agent.options).ok();
    let found = match agent.programmer.store_mut().ahead(cgroup.as_deref(), is_due) {
        Ok(found) => found,
        Err(error) => {
            let problem = ObjectError::new(Trouble::KernelRefused, "programs before ours", &error);
            return agent.survival.report_odd(FOREIGN, vec![problem]);
        }
    };
    let name = |place: AttachPoint| {
        place.map_or_else(
            || "the cgroup".to_owned(),
            |index| agent.node.interface_name(index),
        )
    };
    let of_kind = |place: AttachPoint, ahead: &PrecedingProgram| {
        (format!("{} at {}", ahead.before, name(place)), ahead.clone())
    };
    let detached = found.iter().flat_map(|(place, here)| {
        let detached = here.iter().filter(|ahead| ahead.kind == Kind::Detached);
        detached.map(|ahead| {
            (
                "program",
                format!("{}, without {}", of_kind(*place, ahead).0, ahead.what),
            )
        })
    });
    agent.survival.restored(&detached.collect::<Vec<_>>());
    let is_there = |place: &AttachPoint| place.is_none_or(|index| agent.node.has_interface(index));
    let mut known = std::mem::take(&mut agent.survival.ahead);
    known.extend(found);
    known.retain(|place, here| !here.is_empty() && is_there(place));
    let (mut stale, mut foreign) = (Vec::new(), Vec::new());
    for (place, ahead) in known
        .iter()
        .flat_map(|(place, here)| here.iter().map(move |it| (*place, it)))
    {
        let (object, PrecedingProgram { what, kind, .. }) = of_kind(place, ahead);
        let object = format!("program {object}");
        match kind {
            Kind::Detached | Kind::OtherNode => {}
            Kind::Leftover(link) => stale.push(ObjectError {
                code: Trouble::LeftoverProgram,
                object,
                message: format!(
                    "{what} of an older bpf root runs first, over tables that nothing fills: {}",
                    link.map_or_else(
                        || "detach it, see `bpftool net` and `bpftool cgroup tree`".to_owned(),
                        |id| format!("detach it by `bpftool link detach id {id}`")
                    )
                ),
            }),
            Kind::Foreign => foreign.push(ObjectError {
                code: Trouble::ForeignProgram,
                object,
                message: format!(
                    "{what} runs first, and what it decides is not seen here: remove it, or have it run later, unless it is \
                     meant to"
                ),
            }),
        }
    }
    agent.survival.ahead = known;
    agent.survival.report_missing(STALE, stale);
    agent.survival.report_odd(FOREIGN, foreign);
}
