//! The client of an exchange, as long as it stays, and how long the exchange goes on without it.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Answer, Body, DRAIN, LONGEST_CALL, Last, Piece, Reply};
use crate::refusal::Refusal;
use crate::store::ledger::Closed;

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

/// The client of one exchange.
#[derive(Debug)]
pub(super) struct Client {
    to: To,
    deadline: Instant,
    cutoff: CancellationToken,
}

impl Client {
    /// A client that waits for its reply.
    pub(super) fn waiting(reply: oneshot::Sender<Reply>, cutoff: CancellationToken) -> Client {
        Client {
            to: To::Waiting(reply),
            deadline: Instant::now() + LONGEST_CALL,
            cutoff,
        }
    }

    /// Whether nobody is there any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.to, To::Gone)
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
    pub(super) fn begin(&mut self, status: StatusCode, headers: HeaderMap) {
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
        let sent = {
            let sending = pieces.send(piece);
            tokio::pin!(sending);
            tokio::select! {
                sent = timeout(STALL, &mut sending) => matches!(sent, Ok(Ok(()))),
                () = self.cutoff.cancelled() => matches!(timeout(LAST_STALL, &mut sending).await, Ok(Ok(()))),
            }
        };
        if !sent {
            self.leave();
        }
    }

    /// Sends what is left after the settlement, and with it the end.
    pub(super) async fn finish(mut self, last: Last, closed: &Closed) {
        match last {
            Last::Refusal(refusal) => self.refuse(refusal),
            Last::Abort => self.refuse(Refusal::Internal),
            Last::Answer(mut answer) => {
                add_money(&mut answer.headers, closed);
                if let To::Waiting(reply) = self.to {
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
    pub(super) fn refuse(self, refusal: Refusal) {
        if let To::Waiting(reply) = self.to {
            drop(reply.send(Err(refusal)));
        }
    }
}

/// What a unary answer cost, and what is available after it.
fn add_money(headers: &mut HeaderMap, closed: &Closed) {
    for (name, amount) in [
        ("x-gateway-cost", closed.charged),
        ("x-gateway-balance", closed.available),
    ] {
        if let Ok(value) = amount.to_string().parse() {
            headers.insert(name, value);
        }
    }
}
