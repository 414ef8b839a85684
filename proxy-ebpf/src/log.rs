//! A log line for each decision, in builds with the feature `log` only. A line costs instructions, so the
//! programs of a release have none.
//!
//! A line has numbers for the entry, the verdict and the reason: a table of texts would need relocations
//! between data sections, which BPF objects do not have. The reader in the agent translates them.

use aya_ebpf::programs::TcContext;
use proxy_common::decide::packet::{Decision, Entry};
use proxy_common::maps::Reason;

use crate::kernel;

/// Logs a decision about the packet in the packet context.
#[inline(always)]
pub fn decided(context: &TcContext, entry: Entry, decision: Decision) {
    let (verdict, reason) = match decision {
        Decision::Pass(reason) => (Verdict::Pass, reason),
        Decision::Drop(reason) => (Verdict::Drop, reason),
        Decision::Deliver => (Verdict::Deliver, Reason::NotOurs),
        Decision::Echo => (Verdict::Echo, Reason::EchoReply),
        Decision::Translate(reason) => (Verdict::Translate, reason),
        Decision::TranslateError => (Verdict::Translate, Reason::RelatedError),
    };
    write(context, entry as u32, verdict as u32, reason as u32);
}

/// The numbers of verdicts in a line; `bpf/log.rs` of the agent has their texts.
#[derive(Clone, Copy)]
enum Verdict {
    Pass = 0,
    Drop = 1,
    Deliver = 2,
    Echo = 3,
    Translate = 4,
}

/// The kernel gets this as a function of its own: its stack does not add to that of a program.
#[inline(never)]
fn write(context: &TcContext, entry: u32, verdict: u32, reason: u32) {
    let Some(ctx) = kernel::packet_context() else {
        return;
    };
    let headers = &ctx.headers;
    let (from, to) = (headers.src.octets(), headers.dst.octets());
    let ports = [headers.sport.number(), headers.dport.number()];
    aya_log_ebpf::info!(
        context,
        "{} {} {} {} {:i} {} {:i} {}",
        entry,
        verdict,
        reason,
        headers.protocol,
        from,
        ports[0],
        to,
        ports[1],
    );
}
