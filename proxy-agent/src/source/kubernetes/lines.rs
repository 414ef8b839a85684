//! The lines of a streamed response, each with the time of its arrival.

use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::io::{AsyncBufRead, AsyncBufReadExt as _};

/// The capacity in bytes above which a buffer is freed, after it grew for one large object.
const KEPT: usize = 256 * 1024;

/// Reads lines from a stream.
pub(super) struct Lines {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    /// The number of bytes of the current chunk that were not consumed yet.
    left: usize,
    received: Instant,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(reader: impl AsyncBufRead + Send + 'static) -> Self {
        Self {
            reader: Box::pin(reader),
            left: 0,
            received: Instant::now(),
            line: Vec::new(),
        }
    }

    /// The next line with the arrival time of its last byte; `None` at the end. Fails if no byte arrives for
    /// `patience`.
    pub(super) async fn next(&mut self, patience: Duration) -> io::Result<Option<(&[u8], Instant)>> {
        self.line.clear();
        if self.line.capacity() > KEPT {
            self.line.shrink_to(0);
        }
        loop {
            let fill = tokio::time::timeout(patience, self.reader.fill_buf());
            let chunk = fill
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if self.left == 0 {
                self.received = Instant::now();
                self.left = chunk.len();
            }
            if chunk.is_empty() {
                // A truncated line is sent again after the last complete one.
                return Ok(None);
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            self.line.extend_from_slice(&chunk[..taken]);
            self.reader.consume_unpin(taken);
            self.left -= taken;
            if end.is_some() {
                return Ok(Some((&self.line, self.received)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn lines_are_put_together_from_chunks_and_a_cut_one_is_dropped() {
        let chunks = ["one\ntw", "o", "\nthree\n\nfour\ncut"].map(io::Result::Ok);
        let mut lines = Lines::new(stream::iter(chunks).into_async_read());
        let mut read = Vec::new();
        while let Some((line, _)) = lines.next(Duration::from_secs(9)).await.expect("no error") {
            read.push(String::from_utf8_lossy(line).into_owned());
        }
        assert_eq!(read, ["one\n", "two\n", "three\n", "\n", "four\n"]);
    }

    #[tokio::test]
    async fn silence_is_an_error() {
        let silent = stream::pending::<io::Result<Vec<u8>>>().into_async_read();
        let error = Lines::new(silent)
            .next(Duration::from_millis(1))
            .await
            .expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
