//! Set-up that cannot go on ends in a panic that tells the whole chain of
//! causes; this is the one place that turns errors into it.

use anyhow::Result;

/// Unwraps what set-up code returns.
pub(crate) trait OrPanic<T> {
    /// The value, or a panic at the caller's line with every cause.
    #[track_caller]
    fn or_panic(self) -> T;
}

impl<T> OrPanic<T> for Result<T> {
    #[track_caller]
    fn or_panic(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{error:#}"),
        }
    }
}
