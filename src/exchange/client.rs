//! The client of an exchange, as long as it stays, and how long the exchange goes on without it.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::recorder::Recorder;
use super::{Answer, Body, DRAIN, Declined, LONGEST_CALL, Last, Piece, Reply};
use crate::refusal::Refusal;
use crate::store::ExchangeId;

/// Pieces on their way to a client that reads slowly; beyond, the relay waits and with it the upstream.
const PIECES: usize = 16;

/// A client that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(60);

/// And so is one that does not take the end of its answer for so long, once everything is to end.
const LAST_STALL: Duration = Duration::from_secs(1);

/// Where an answer goes.
#[derive(Debug)]
enum To {
    /// It waits for the head.
    Waiting(oneshot::Sender<Reply>),
    /// It has the head and takes pieces.
    Streaming(Streaming),
    /// It is gone.
    Gone,
}

/// A client that takes pieces.
struct Streaming {
    pieces: mpsc::Sender<Piece>,
    /// Resolves when it leaves. Made once: to begin to wait anew for every chunk costs more than the wait.
    leaves: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Streaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streaming")
            .field("pieces", &self.pieces)
            .finish_non_exhaustive()
    }
}

impl Streaming {
    fn to(pieces: mpsc::Sender<Piece>) -> Streaming {
        let of_its_own = pieces.clone();
        Streaming {
            pieces,
            leaves: Box::pin(async move { of_its_own.closed().await }),
        }
    }
}

/// Whether the client does its part in time.
async fn in_time(cutoff: &CancellationToken, taking: impl Future<Output = bool>) -> bool {
    tokio::pin!(taking);
    tokio::select! {
        taken = timeout(STALL, &mut taking) => taken == Ok(true),
        () = cutoff.cancelled() => timeout(LAST_STALL, &mut taking).await == Ok(true),
    }
}

/// A whole answer, with the room that its call takes until the last of it is written.
struct Kept<R> {
    bytes: Bytes,
    _room: R,
}

impl<R> AsRef<[u8]> for Kept<R> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The client of one exchange.
#[derive(Debug)]
pub(super) struct Client {
    to: To,
    deadline: Instant,
    cutoff: CancellationToken,
    /// Takes what the client would get, also when it has left.
    recorder: Option<Recorder>,
    /// The id that it is told, where that is not its request's.
    id: Option<HeaderValue>,
}

impl Client {
    /// A client that waits for its reply.
    pub(super) fn waiting(reply: oneshot::Sender<Reply>, cutoff: CancellationToken) -> Client {
        Client {
            to: To::Waiting(reply),
            deadline: Instant::now() + LONGEST_CALL,
            cutoff,
            recorder: None,
            id: None,
        }
    }

    /// Another exchange goes on in the place of the one that it asked for, and is what it is told.
    pub(super) fn is_of(&mut self, exchange: ExchangeId) {
        self.id = exchange.to_string().parse().ok();
    }

    fn identify(&self, headers: &mut HeaderMap) {
        if let Some(id) = &self.id {
            headers.insert("x-request-id", id.clone());
        }
    }

    /// From here on what it gets is recorded.
    pub(super) fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// What was recorded; the rest is not.
    pub(super) fn take_recorder(&mut self) -> Option<Recorder> {
        self.recorder.take()
    }

    /// Whether nobody is there any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.to, To::Gone)
    }

    /// Whether it has been told nothing yet.
    pub(super) fn waits(&self) -> bool {
        matches!(self.to, To::Waiting(_))
    }

    /// Whether it takes pieces.
    pub(super) fn is_streaming(&self) -> bool {
        matches!(self.to, To::Streaming(_))
    }

    /// When the exchange has to end: the longest time for any call, or the time to drain it.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the client has left, as far as is known now.
    pub(super) fn has_left(&self) -> bool {
        match &self.to {
            To::Waiting(reply) => reply.is_closed(),
            To::Streaming(client) => client.pieces.is_closed(),
            To::Gone => true,
        }
    }

    /// Resolves once, when the client leaves; from then on it is gone.
    pub(super) async fn until_it_leaves(&mut self) {
        match &mut self.to {
            To::Waiting(reply) => reply.closed().await,
            To::Streaming(client) => (&mut client.leaves).await,
            To::Gone => std::future::pending().await,
        }
        self.leave();
    }

    fn leave(&mut self) {
        self.to = To::Gone;
        self.deadline = self.deadline.min(Instant::now() + DRAIN);
    }

    /// Sends the head of a stream.
    pub(super) fn begin(&mut self, status: StatusCode, mut headers: HeaderMap) {
        self.identify(&mut headers);
        if let Some(recorder) = &mut self.recorder {
            recorder.begin(status, &headers);
        }
        let To::Waiting(reply) = std::mem::replace(&mut self.to, To::Gone) else {
            return self.leave();
        };
        let (pieces, body) = mpsc::channel(PIECES);
        match reply.send(Ok(Answer {
            status,
            headers,
            body: Body::Stream(body),
        })) {
            Ok(()) => self.to = To::Streaming(Streaming::to(pieces)),
            Err(_) => self.leave(),
        }
    }

    /// Sends bytes; a client that does not take them in time is gone.
    pub(super) async fn send(&mut self, bytes: Bytes) {
        if let Some(recorder) = &mut self.recorder {
            recorder.take(&bytes);
        }
        self.hand_on(Piece::Bytes(bytes)).await;
    }

    async fn hand_on(&mut self, piece: Piece) {
        let To::Streaming(Streaming { pieces, .. }) = &self.to else {
            return;
        };
        let piece = match pieces.try_send(piece) {
            Ok(()) => return,
            Err(TrySendError::Closed(_)) => return self.leave(),
            Err(TrySendError::Full(piece)) => piece,
        };
        // Boxed: clients that are behind are few, and all streams would have room for the wait.
        let sending = async { pieces.send(piece).await.is_ok() };
        if !Box::pin(in_time(&self.cutoff, sending)).await {
            self.leave();
        }
    }

    /// Waits until everything so far is taken; a client that does not take it in time is gone.
    async fn catch_up(&mut self) {
        let To::Streaming(Streaming { pieces, .. }) = &self.to else {
            return;
        };
        if pieces.try_reserve_many(PIECES).is_ok() {
            return;
        }
        let taking = async { pieces.reserve_many(PIECES).await.is_ok() };
        if !in_time(&self.cutoff, taking).await {
            self.leave();
        }
    }

    /// Sends what is left after the settlement, and with it the end. The permit goes back when the end is all that the
    /// client still lacks: so who makes one call after the other makes one at once, and who does not take its answer goes on
    /// making it. The room goes back when all of the answer is handed on.
    pub(super) async fn finish<R: Send + 'static>(mut self, last: Last, permit: impl Send, room: R) {
        self.catch_up().await;
        drop(permit);
        match last {
            Last::Refusal(refusal) => self.refuse(Declined { refusal, settled: true }),
            Last::Abort => self.refuse(Declined {
                refusal: Refusal::Internal,
                settled: true,
            }),
            Last::Answer(mut answer) => {
                self.identify(&mut answer.headers);
                if let To::Waiting(reply) = self.to {
                    if let Body::Whole(bytes) = &mut answer.body {
                        *bytes = Bytes::from_owner(Kept {
                            bytes: std::mem::take(bytes),
                            _room: room,
                        });
                    }
                    drop(reply.send(Ok(answer)));
                }
            }
            Last::Pieces(pieces) => {
                for piece in pieces {
                    self.send(piece).await;
                }
                self.hand_on(Piece::End).await;
            }
            Last::Nothing => {}
        }
    }

    /// Refuses a client that waits for its head. A stream is torn, because it stops without its end.
    pub(super) fn refuse(self, refusal: Declined) {
        if let To::Waiting(reply) = self.to {
            drop(reply.send(Err(refusal)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn waiting() -> (Client, oneshot::Receiver<Reply>) {
        let (to_client, reply) = oneshot::channel();
        (Client::waiting(to_client, CancellationToken::new()), reply)
    }

    #[tokio::test]
    async fn a_permit_is_kept_until_all_but_the_end_is_taken_and_not_longer() {
        let (mut client, reply) = waiting();
        client.begin(StatusCode::OK, HeaderMap::new());
        let Ok(Ok(Answer {
            body: Body::Stream(mut pieces),
            ..
        })) = reply.await
        else {
            panic!("a stream");
        };
        for text in ["one", "two"] {
            client.send(text.into()).await;
        }
        let (permit, room) = (Arc::new(()), Arc::new(()));
        let last = Last::Pieces(vec!["end".into()]);
        let mut finishing = Box::pin(client.finish(last, Arc::clone(&permit), Arc::clone(&room)));
        let is_kept = || (Arc::strong_count(&permit) == 2, Arc::strong_count(&room) == 2);
        for text in ["one", "two"] {
            assert!(futures_util::poll!(&mut finishing).is_pending());
            assert_eq!(is_kept(), (true, true));
            assert_eq!(pieces.recv().await, Some(Piece::Bytes(text.into())));
        }
        finishing.await;
        assert_eq!(is_kept(), (false, false), "before the client has the end");
        assert_eq!(pieces.recv().await, Some(Piece::Bytes("end".into())));
        assert_eq!(pieces.recv().await, Some(Piece::End));
    }

    #[tokio::test]
    async fn a_whole_answer_keeps_its_calls_room_until_it_is_written() {
        let (client, reply) = waiting();
        let answer = Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Body::Whole("all of it".into()),
        };
        let (permit, room) = (Arc::new(()), Arc::new(()));
        client
            .finish(Last::Answer(answer), Arc::clone(&permit), Arc::clone(&room))
            .await;
        assert_eq!(Arc::strong_count(&permit), 1, "the client may call again");
        let Ok(Ok(Answer {
            body: Body::Whole(bytes),
            ..
        })) = reply.await
        else {
            panic!("a whole answer");
        };
        assert_eq!((&*bytes, Arc::strong_count(&room)), (&b"all of it"[..], 2));
        drop(bytes);
        assert_eq!(Arc::strong_count(&room), 1);
    }
}
