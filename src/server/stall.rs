//! Connections whose clients take nothing: they are closed, whatever waits to be sent to them.
//!
//! hyper has a time for a head and none for an answer, so that a client which asks for a large one and reads none of
//! it would keep its memory and its connection for as long as it liked.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a client may take nothing of what is written to it; streams wait as long for theirs.
const STALL: Duration = Duration::from_secs(60);

/// A stream whose writes fail once its other end has taken nothing for a while.
#[derive(Debug)]
pub(super) struct Impatient<S> {
    stream: S,
    patience: Duration,
    /// Since a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Until then there is something to read.
    closing: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    /// For a client that may stay.
    pub(super) fn new(stream: S) -> Impatient<S> {
        Impatient::with(stream, STALL)
    }

    /// For one that has to be done with what it asks and with taking the answer in this time each.
    pub(super) fn for_at_most(stream: S, time: Duration) -> Impatient<S> {
        Impatient {
            closing: Some(Box::pin(sleep(time))),
            ..Impatient::with(stream, time)
        }
    }

    fn with(stream: S, patience: Duration) -> Impatient<S> {
        Impatient {
            stream,
            patience,
            waiting: None,
            closing: None,
        }
    }

    /// The stream itself.
    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// What came of a write; a failure when it has waited for too long.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        let over = |()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"));
        waiting.as_mut().poll(context).map(over)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        match &mut self.closing {
            Some(closing) if read.is_pending() => {
                let over = |()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client asks nothing"));
                closing.as_mut().poll(context).map(over)
            }
            _ => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_not_waited_for() {
        let (ours, theirs) = duplex(1_000);
        let mut impatient = Impatient::with(ours, Duration::from_millis(50));
        let written = timeout(Duration::from_secs(20), impatient.write_all(&[b'x'; 5_000])).await;
        let error = written.expect("it is not waited for").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn one_that_may_not_stay_is_closed_when_it_asks_nothing() {
        let (ours, mut theirs) = duplex(1_000);
        let mut guest = Impatient::for_at_most(ours, Duration::from_millis(50));
        theirs.write_all(b"half").await.expect("it is written");
        assert_eq!(guest.read(&mut [0; 10]).await.expect("bytes"), 4);
        let read = timeout(Duration::from_secs(20), guest.read(&mut [0; 10])).await;
        let error = read.expect("it is not waited for").expect_err("it is closed");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn a_client_that_takes_little_is_waited_for() {
        let (ours, mut theirs) = duplex(1_000);
        let patience = Duration::from_millis(1_500);
        let mut impatient = Impatient::with(ours, patience);
        let slow = async {
            let mut taken = 0;
            while taken < 9_000 {
                sleep(patience / 5).await;
                taken += theirs.read(&mut [0; 1_000]).await.expect("bytes");
            }
        };
        // Longer in all than the patience, never between two reads.
        let both = async { tokio::join!(impatient.write_all(&[b'x'; 9_000]), slow) };
        let (written, ()) = timeout(Duration::from_secs(20), both).await.expect("in time");
        written.expect("it is taken in the end");
    }
}
