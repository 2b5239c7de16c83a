//! The client of an exchange, as long as it stays: first it waits for a head, then it takes pieces.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Answer, Body, Last, Reply};
use crate::refusal::Refusal;
use crate::store::ledger::Closed;

/// Pieces on their way to a client that reads slowly; beyond, the relay waits and with it the upstream.
const PIECES: usize = 16;

/// A client that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(60);

/// Where an answer goes.
#[derive(Debug)]
pub enum Client {
    /// It waits for the head.
    Waiting(oneshot::Sender<Reply>),
    /// It has the head and takes pieces.
    Streaming(mpsc::Sender<Bytes>),
    /// It is gone.
    Gone,
}

impl Client {
    /// A client that waits for its reply.
    pub(super) fn waiting(reply: oneshot::Sender<Reply>) -> Client {
        Client::Waiting(reply)
    }

    /// Whether nobody is there any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Client::Gone)
    }

    /// Whether the client has left, as far as is known now.
    pub(super) fn has_left(&self) -> bool {
        match self {
            Client::Waiting(reply) => reply.is_closed(),
            Client::Streaming(pieces) => pieces.is_closed(),
            Client::Gone => true,
        }
    }

    /// Resolves once, when the client leaves; from then on it is gone.
    pub(super) async fn left(&mut self) {
        match self {
            Client::Waiting(reply) => reply.closed().await,
            Client::Streaming(pieces) => pieces.closed().await,
            Client::Gone => std::future::pending().await,
        }
        *self = Client::Gone;
    }

    /// Sends the head of a stream.
    pub(super) fn begin(&mut self, status: StatusCode, headers: HeaderMap) {
        let Client::Waiting(reply) = std::mem::replace(self, Client::Gone) else {
            return;
        };
        let (pieces, body) = mpsc::channel(PIECES);
        if reply
            .send(Ok(Answer {
                status,
                headers,
                body: Body::Stream(body),
            }))
            .is_ok()
        {
            *self = Client::Streaming(pieces);
        }
    }

    /// Sends a piece; a client that does not take it in time is gone.
    pub(super) async fn send(&mut self, piece: Bytes) {
        if let Client::Streaming(pieces) = self
            && !matches!(timeout(STALL, pieces.send(piece)).await, Ok(Ok(())))
        {
            *self = Client::Gone;
        }
    }

    /// Sends what is left after the settlement, and with it the end. `broken` is the end of a stream that has none.
    pub(super) async fn finish(mut self, last: Last, broken: Bytes, closed: &Closed) {
        match last {
            Last::Refusal(refusal) => self.fail(refusal, broken).await,
            Last::Answer(mut answer) => {
                add_money(&mut answer.headers, closed);
                if let Client::Waiting(reply) = self {
                    drop(reply.send(Ok(answer)));
                }
            }
            Last::Pieces(pieces) => {
                for piece in pieces {
                    self.send(piece).await;
                }
            }
            Last::Nothing => {}
        }
    }

    /// Refuses a client that waits; a stream is ended as a broken one.
    pub(super) async fn fail(mut self, refusal: Refusal, broken: Bytes) {
        match self {
            Client::Waiting(_) => self.refuse(refusal),
            Client::Streaming(_) => {
                // It may stand inside an event.
                self.send(Bytes::from_static(b"\n\n")).await;
                self.send(broken).await;
            }
            Client::Gone => {}
        }
    }

    /// Refuses, if the head has not left.
    pub(super) fn refuse(self, refusal: Refusal) {
        if let Client::Waiting(reply) = self {
            drop(reply.send(Err(refusal)));
        }
    }
}

/// What a unary answer cost, and what is left.
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
