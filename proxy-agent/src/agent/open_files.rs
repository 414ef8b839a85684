//! The limit of file descriptors: maps, programs, links and connections each take some, a link for each
//! interface of a node.
//!
//! The soft limit is low (1024) because of `select()`, which the agent does not use. The administrator sets
//! the hard limit.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one.
pub fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            tracing::debug!(before = soft, now = hard, "raised the limit on open files");
        }
        Ok(())
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limits = || getrlimit(Resource::RLIMIT_NOFILE).expect("the limits");
        let (_, hard) = limits();
        setrlimit(Resource::RLIMIT_NOFILE, hard / 2, hard).expect("to lower it");
        raise();
        assert_eq!(limits(), (hard, hard));
    }
}
