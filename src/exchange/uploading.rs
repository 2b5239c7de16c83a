//! A file on its way through, and who is waited for: it may be long, so that no one time holds for all of it.
//!
//! ```text
//! Upstream ─ it connects, and takes what it is handed       `idle_timeout` for each piece
//! Client   ─ the next piece has not come                    `body_timeout` in all, and more for what has come
//! Head     ─ all of it is handed on                         `first_byte_timeout` until the head of the answer
//! ```
//!
//! A client does not pay for an upstream that reads slowly, nor an upstream for a client that sends slowly.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyDataStream, BodyExt, Limited};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::upstream::NotPassed;
use crate::refusal::UpstreamFault;

/// The largest file: OpenAI's own bound.
pub const MAX_FILE: usize = 512 * 1024 * 1024;

/// How much longer a body may take for each MiB of it that has come: some 100 KiB a second.
const TIME_OF_MIB: Duration = Duration::from_secs(10);

/// The time that bytes of a body have.
pub fn time_of(bytes: usize) -> Duration {
    let kibs = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    TIME_OF_MIB * kibs / 1024
}

/// A file of at most [`MAX_FILE`] bytes: it is read as it is sent.
#[derive(Debug)]
pub struct Upload {
    body: BodyDataStream<Limited<Body>>,
    progress: Arc<watch::Sender<Progress>>,
    /// `[server] body_timeout`.
    patience: Duration,
}

/// Whom it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Upstream,
    Client,
    Head,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
struct Progress {
    awaited: Awaited,
    since: Instant,
    /// Bytes that have come.
    length: usize,
    /// How long its client was waited for before.
    waited: Duration,
}

impl Progress {
    /// Someone else is waited for from now on.
    fn turns_to(&mut self, awaited: Awaited, now: Instant) {
        if self.awaited == Awaited::Client {
            self.waited += now.saturating_duration_since(self.since);
        }
        (self.awaited, self.since) = (awaited, now);
    }
}

impl Upload {
    /// A file whose client is waited for so long, and longer for what has come.
    pub fn new(body: Body, patience: Duration) -> Upload {
        let progress = Progress {
            awaited: Awaited::Upstream,
            since: Instant::now(),
            length: 0,
            waited: Duration::ZERO,
        };
        Upload {
            body: Limited::new(body, MAX_FILE).into_data_stream(),
            progress: Arc::new(watch::Sender::new(progress)),
            patience,
        }
    }

    /// What watches over it while it is sent.
    pub(super) fn guard(&self, idle: Duration, head: Duration) -> Guard {
        Guard {
            progress: Arc::clone(&self.progress),
            client: self.patience,
            idle,
            head,
        }
    }
}

impl Stream for Upload {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = Pin::new(&mut self.body).poll_next(context);
        self.progress.send_if_modified(|progress| {
            let awaited = match &piece {
                Poll::Pending => Awaited::Client,
                Poll::Ready(Some(_)) => Awaited::Upstream,
                Poll::Ready(None) => Awaited::Head,
            };
            if let Poll::Ready(Some(Ok(bytes))) = &piece {
                progress.length += bytes.len();
            }
            // Its client is waited for since it was asked first.
            let is_new = awaited != Awaited::Client || progress.awaited != awaited;
            if is_new {
                progress.turns_to(awaited, Instant::now());
            }
            is_new
        });
        piece
    }
}

/// Watches over a file that is sent.
#[derive(Debug)]
pub(super) struct Guard {
    progress: Arc<watch::Sender<Progress>>,
    client: Duration,
    idle: Duration,
    head: Duration,
}

impl Guard {
    /// What comes of the sending, unless someone is waited for in vain.
    pub(super) async fn watch<T>(&self, sending: impl Future<Output = T>) -> Result<T, NotPassed> {
        let (mut sending, mut moves) = (pin!(sending), self.progress.subscribe());
        loop {
            let (until, in_vain) = self.until(*moves.borrow_and_update());
            tokio::select! {
                biased;
                sent = &mut sending => return Ok(sent),
                // The sender lives in `self`.
                moved = moves.changed() => moved.unwrap_or(()),
                () = sleep_until(until) => return Err(in_vain),
            }
        }
    }

    /// When the waiting is over, and who is to blame then.
    fn until(&self, progress: Progress) -> (Instant, NotPassed) {
        let Progress {
            since, length, waited, ..
        } = progress;
        match progress.awaited {
            Awaited::Upstream => (since + self.idle, NotPassed::Upstream(UpstreamFault::Timeout)),
            Awaited::Head => (since + self.head, NotPassed::Upstream(UpstreamFault::Timeout)),
            Awaited::Client => {
                let left = (self.client + time_of(length)).saturating_sub(waited);
                (since + left, NotPassed::BodyLost)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};
    use tokio::sync::mpsc;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(3600);

    type Pieces = mpsc::Sender<Result<Bytes, std::io::Error>>;

    /// A file whose pieces are sent by hand.
    fn upload(patience: Duration) -> (Pieces, Upload) {
        let (pieces, coming) = mpsc::channel(1);
        let coming = stream::unfold(coming, async |mut coming: mpsc::Receiver<_>| {
            let piece = coming.recv().await?;
            Some((piece, coming))
        });
        (pieces, Upload::new(Body::from_stream(coming), patience))
    }

    async fn send(pieces: &Pieces) {
        let piece = Ok(Bytes::from_static(b"piece"));
        pieces.send(piece).await.expect("there is room");
    }

    #[tokio::test]
    async fn one_of_client_and_upstream_is_waited_for_and_then_the_head() {
        let (pieces, mut upload) = upload(LONG);
        let awaited = |upload: &Upload| upload.progress.borrow().awaited;
        assert_eq!(awaited(&upload), Awaited::Upstream);
        assert!(upload.next().now_or_never().is_none());
        assert_eq!(awaited(&upload), Awaited::Client);
        send(&pieces).await;
        assert!(upload.next().now_or_never().is_some());
        assert_eq!(
            (awaited(&upload), upload.progress.borrow().length),
            (Awaited::Upstream, 5)
        );
        drop(pieces);
        assert!(upload.next().await.is_none());
        assert_eq!(awaited(&upload), Awaited::Head);
    }

    #[test]
    fn each_has_a_time_of_its_own_and_a_client_more_for_what_has_come() {
        let (_, upload) = upload(SECOND * 60);
        let guard = upload.guard(SECOND * 300, SECOND * 100);
        let mut progress = *upload.progress.borrow();
        let began = progress.since;
        let timeout = NotPassed::Upstream(UpstreamFault::Timeout);
        assert_eq!(guard.until(progress), (began + SECOND * 300, timeout));
        progress.turns_to(Awaited::Client, began + SECOND * 200);
        assert_eq!(guard.until(progress), (began + SECOND * 260, NotPassed::BodyLost));
        progress.turns_to(Awaited::Upstream, began + SECOND * 250);
        progress.length = 3 << 20;
        assert_eq!(guard.until(progress), (began + SECOND * 550, timeout));
        // It has used up 50 of its 60 seconds, and what has come gives it 30.
        progress.turns_to(Awaited::Client, began + SECOND * 400);
        assert_eq!(guard.until(progress), (began + SECOND * 440, NotPassed::BodyLost));
        progress.turns_to(Awaited::Head, began + SECOND * 420);
        assert_eq!(
            guard.until(progress),
            (began + SECOND * 520, timeout),
            "since all of it is handed on"
        );
    }

    /// What comes of a file that an upstream reads to its end, and then does not answer.
    async fn unanswered(mut upload: Upload, guard: Guard) -> Result<(), NotPassed> {
        let sending = async {
            while upload.next().await.is_some() {}
            std::future::pending().await
        };
        guard.watch(sending).await
    }

    #[tokio::test]
    async fn who_is_waited_for_in_vain_is_to_blame() {
        // The client does not go on: neither of the upstream's times is over.
        let (pieces, one) = upload(Duration::ZERO);
        send(&pieces).await;
        let guard = one.guard(LONG, LONG);
        assert_eq!(unanswered(one, guard).await, Err(NotPassed::BodyLost));
        // All of it has come, and no head.
        let (pieces, one) = upload(LONG);
        send(&pieces).await;
        drop(pieces);
        let guard = one.guard(LONG, Duration::ZERO);
        let timeout = Err(NotPassed::Upstream(UpstreamFault::Timeout));
        assert_eq!(unanswered(one, guard).await, timeout);
        // The upstream takes nothing of it.
        let (_pieces, one) = upload(LONG);
        let guard = one.guard(Duration::ZERO, LONG);
        assert_eq!(guard.watch(std::future::pending::<()>()).await, timeout);
    }

    #[tokio::test]
    async fn a_file_that_is_taken_is_sent_whole() {
        let (pieces, upload) = upload(LONG);
        let guard = upload.guard(LONG, LONG);
        let taken = upload.map(|piece| piece.map_or(0, |piece| piece.len()));
        let client = async move {
            for _ in 0..100 {
                send(&pieces).await;
            }
        };
        let (sent, ()) = tokio::join!(guard.watch(taken.fold(0, async |sum, length| sum + length)), client);
        assert_eq!(sent, Ok(500));
    }

    #[test]
    fn a_long_body_has_more_time() {
        assert_eq!(time_of(3 << 20), Duration::from_secs(30));
    }
}
