//! A failed set-up ends in a panic that shows the whole chain of causes. Only this file turns errors into
//! panics.

use anyhow::Result;

/// Unwraps the results of set-up code.
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
