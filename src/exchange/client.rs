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

    /// Sends what is left after the settlement, and with it the end.
    pub(super) async fn finish(mut self, last: Last, closed: &Closed) {
        match (last, self) {
            (Last::Answer(mut answer), Client::Waiting(reply)) => {
                add_money(&mut answer.headers, closed);
                drop(reply.send(Ok(answer)));
            }
            (Last::Refusal(refusal), client) => client.refuse(refusal),
            (Last::Pieces(pieces), client @ Client::Streaming(_)) => {
                self = client;
                for piece in pieces {
                    self.send(piece).await;
                }
            }
            (Last::Answer(_) | Last::Pieces(_) | Last::Nothing, _) => {}
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
        ("x-gateway-balance", closed.balance),
    ] {
        if let Ok(value) = amount.to_string().parse() {
            headers.insert(name, value);
        }
    }
}
