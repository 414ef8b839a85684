//! The time that a change takes to show. A client goes on asking while the change is made. Outcomes that the
//! change should end are counted until they stop.

use std::io;
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use harness::{Place, Probe, Reply};

use crate::console::time;
use crate::topology::{self, HTTP};

/// The time limit of a change.
const A_SECOND: Duration = Duration::from_secs(1);

/// So many requests in a row without an unwanted outcome show that the change has settled. Where one request
/// in five has such an outcome, chance does not reach this number.
const CALM: usize = 300;

/// The unwanted outcomes after the change.
pub struct Settled {
    unwanted: usize,
    last: Duration,
}

/// Makes a change while `client` asks the Service. `unwanted` is true for an outcome that the change should
/// end.
pub fn settle(
    client: &Place,
    change: impl FnOnce() -> Result<()>,
    unwanted: impl Fn(&io::Result<Reply>) -> bool + Send,
) -> Result<Settled> {
    let (begun, changed) = (Barrier::new(2), OnceLock::new());
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask_on(client, &begun, &changed, unwanted));
        begun.wait();
        changed.get_or_init(Instant::now);
        change()?;
        asking
            .join()
            .map_err(|_| anyhow!("the client thread ended in the panic above"))?
    })
}

fn ask_on(
    client: &Place,
    begun: &Barrier,
    changed: &OnceLock<Instant>,
    unwanted: impl Fn(&io::Result<Reply>) -> bool,
) -> Result<Settled> {
    let to = topology::address(HTTP)?;
    let mut settled = Settled {
        unwanted: 0,
        last: Duration::ZERO,
    };
    let mut calm = 0;
    begun.wait();
    while calm < CALM {
        let outcome = client.ask(Probe::Tcp, to);
        let since = changed.get().map(Instant::elapsed).unwrap_or_default();
        calm += 1;
        if unwanted(&outcome) {
            (settled.unwanted, settled.last, calm) = (settled.unwanted + 1, since, 0);
            if since > A_SECOND {
                bail!("it still happens {} after the change: {outcome:?}", time(since));
            }
        } else if let Err(error) = outcome {
            return Err(error.into());
        }
    }
    Ok(settled)
}

impl Settled {
    /// `2 further failures, the last one 0.81 ms later`; the words complete "1 further …" and "2 further …".
    pub fn describe(&self, one: &str, many: &str) -> String {
        let last = time(self.last);
        match self.unwanted {
            0 => format!("no further {one}"),
            1 => format!("1 further {one}, {last} later"),
            more => format!("{more} further {many}, the last one {last} later"),
        }
    }
}
