//! One call from admission to settlement.
//!
//! ```text
//! server::proxy ─ who is calling? what is asked?          Request
//!    └▶ start     a tracked task, so that it outlives its client
//!         admit    price → hold      transaction 1         Admitted, or a refusal
//!         send     to the upstream                         its head, or a fault
//!         relay    event → meter → client      loop        Ending
//!         settle   usage → price → charge    transaction 2 Closed; only then the end goes out
//! ```
//!
//! The states are values, each made by the step before it and consumed by the one after. Money is set aside in
//! [`Admitted`] and comes back in `settlement::settle`, whatever happens between: a client that leaves, an upstream
//! that breaks, a stop signal, a panic.

mod admission;
mod client;
mod ending;
mod offer;
mod passage;
mod relay;
mod sending;
mod settlement;
mod upstream;

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Call;
use crate::config::{BillingConfig, OnHangup};
use crate::fail_point::{self, Point};
use crate::meter::{End, Meter};
use crate::refusal::{Refusal, UpstreamFault};
use crate::route::Routes;
use crate::store::keys::Key;
use crate::store::usage_log::State;
use crate::store::{ExchangeId, Store, Writer};
use crate::time::Stopwatch;

pub use admission::Admitted;
use client::Client;
pub use offer::{Offer, offered};
pub use upstream::{Upstream, UpstreamError};

/// No answer is passed on for longer, in all; the longest seen of reasoning models took an hour.
pub const LONGEST_CALL: Duration = Duration::from_secs(4 * 3600);

/// How long an answer without a client is read on, to learn what it cost.
const DRAIN: Duration = Duration::from_secs(120);

/// What all exchanges share.
#[derive(Debug)]
pub struct Gateway {
    /// Reads.
    pub store: Store,
    /// Writes.
    pub writer: Writer,
    /// Which upstream serves a model.
    pub routes: Routes,
    /// The upstreams, in the order of the settings.
    pub upstreams: Vec<Upstream>,
    /// `[billing]`
    pub billing: BillingConfig,
    /// The largest unary answer, in bytes.
    pub max_response: usize,
    /// Counts the exchanges that run.
    pub tracker: TaskTracker,
    /// Fires when running streams have to end: a second stop signal, or the end of the drain.
    pub cutoff: CancellationToken,
}

/// A call, with who makes it.
#[derive(Debug)]
pub struct Request {
    /// The exchange's id, the answer's `x-request-id`.
    pub id: ExchangeId,
    /// The key it came with, known to be good.
    pub key: Arc<Key>,
    /// What is asked.
    pub call: Call,
    /// The client's headers; only those on a list go on.
    pub headers: HeaderMap,
    /// The memory that the body takes, until the exchange ends.
    pub memory: OwnedSemaphorePermit,
}

/// An answer to pass on.
#[derive(Debug)]
pub struct Answer {
    /// The upstream's status.
    pub status: StatusCode,
    /// Headers for the client.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it, after its charge is durable.
    Whole(Bytes),
    /// Piece by piece; it ends after its charge is durable.
    Stream(mpsc::Receiver<Piece>),
}

/// What a stream is handed on in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes for the client.
    Bytes(Bytes),
    /// The end. A stream that stops without it was torn, and must not look as if it had ended well.
    End,
}

/// What a client gets.
pub type Reply = Result<Answer, Refusal>;

/// Starts an exchange. It goes on when the receiver is dropped: that is how a client leaves.
pub fn start(gateway: &Arc<Gateway>, request: Request) -> oneshot::Receiver<Reply> {
    let (to_client, reply) = oneshot::channel();
    let client = Client::waiting(to_client, gateway.cutoff.clone());
    // On the heap at once: as a task it would be moved there in steps, five kilobytes each.
    gateway
        .tracker
        .spawn(Box::pin(run(Arc::clone(gateway), request, client)));
    reply
}

async fn run(gateway: Arc<Gateway>, request: Request, mut client: Client) {
    let mut admitted = match admission::admit(&gateway, request).await {
        Ok(admitted) => admitted,
        Err(refusal) => return client.refuse(refusal),
    };
    // They are parts of the buffer that the request was read into, and would keep all of it for as long as the answer.
    let headers = std::mem::take(&mut admitted.headers);
    let mut watch = Watch::new(&admitted);
    let answered = answer(&gateway, &admitted, headers, &mut client, &mut watch);
    let ending = AssertUnwindSafe(answered).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(exchange = %admitted.id(), "the exchange panicked; what was delivered is settled by estimate");
        Ending::failed(if watch.delivered {
            Settle::Usage
        } else {
            Settle::Nothing
        })
    });
    let (closed, last) = settlement::settle(&gateway, admitted, &watch, ending).await;
    let closed = closed.and_then(|closed| match fail_point::hit(Point::Settled) {
        Ok(()) => Ok(closed),
        Err(_) => Err(Refusal::Unsettled),
    });
    match closed {
        Ok(closed) => client.finish(last, &closed).await,
        Err(refusal) => client.refuse(refusal),
    }
    if let Err(error) = fail_point::hit(Point::AfterEnd) {
        tracing::debug!(%error, "nothing is left to do");
    }
}

/// What is seen of an answer while it passes; it outlives a panic of what passes it on.
#[derive(Debug)]
pub(crate) struct Watch {
    meter: Meter,
    /// Events seen of a stream.
    events: u64,
    /// Whether something visible has left for the client.
    delivered: bool,
    /// Bytes of visible output that an estimate counts, where that is not all that was seen.
    counted_bytes: Option<u64>,
    attempts: u32,
    status: Option<StatusCode>,
    upstream_request_id: Option<String>,
    since_start: Stopwatch,
    first_byte: Option<Duration>,
}

impl Watch {
    fn new(admitted: &Admitted) -> Watch {
        Watch {
            meter: Meter::new(admitted.call.endpoint, admitted.dialect).with_cache_ttl(admitted.call.cache_ttl),
            events: 0,
            delivered: false,
            counted_bytes: None,
            attempts: 0,
            status: None,
            upstream_request_id: None,
            since_start: admitted.since_start,
            first_byte: None,
        }
    }

    fn first_byte_now(&mut self) {
        self.first_byte.get_or_insert_with(|| self.since_start.elapsed());
    }
}

/// How an answer ended, and what is still to be sent once that is paid for.
#[derive(Debug)]
struct Ending {
    state: State,
    settle: Settle,
    last: Last,
}

/// What an ending is settled by: completed, incomplete, left → `Usage`; failed, broken, cancelled → `UsageOfDelivered`;
/// limited → `Capped`; refused, and whatever ended before a stream began → `Nothing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settle {
    /// The usage; without one an estimate: counted input and visible output.
    Usage,
    /// The usage; without one an estimate if something was delivered, else nothing.
    UsageOfDelivered,
    /// The usage, else an estimate; never more than the hold.
    Capped,
    /// Nothing: the hold is released.
    Nothing,
}

/// What leaves after the settlement.
#[derive(Debug)]
pub(crate) enum Last {
    /// A whole answer.
    Answer(Answer),
    /// The end of a stream.
    Pieces(Vec<Bytes>),
    /// A refusal in place of an answer; a stream is torn down.
    Refusal(Refusal),
    /// Neither an answer nor an end: what has begun is torn down.
    Abort,
    /// Nothing, or nobody to send it to.
    Nothing,
}

/// Sends the call and passes the answer on, until only its end is left.
async fn answer(
    gateway: &Gateway,
    admitted: &Admitted,
    headers: HeaderMap,
    client: &mut Client,
    watch: &mut Watch,
) -> Ending {
    if client.has_left() {
        // Nothing was sent, so nothing can cost.
        return Ending::left(Settle::Nothing);
    }
    if fail_point::hit(Point::Held).is_err() {
        return Ending::failed(Settle::Nothing);
    }
    let sending = gateway.upstreams[admitted.target.upstream].send(admitted, headers, watch);
    match while_wanted(gateway, admitted, client, sending).await {
        Ok(Ok(_)) if fail_point::hit(Point::Head).is_err() => Ending::fault(UpstreamFault::Broken),
        Ok(Ok(response)) => relay::relay(gateway, admitted, response, client, watch).await,
        Ok(Err(fault)) => Ending::fault(fault),
        Err(ending) => ending,
    }
}

/// Waits for something of the upstream's, as long as the client, the clock and a stop signal let it.
async fn while_wanted<T>(
    gateway: &Gateway,
    admitted: &Admitted,
    client: &mut Client,
    wanted: impl Future<Output = T>,
) -> Result<T, Ending> {
    let mut wanted = std::pin::pin!(wanted);
    // What is there already needs no waiting for anything else.
    if let Poll::Ready(done) = poll_fn(|context| Poll::Ready(wanted.as_mut().poll(context))).await {
        return Ok(done);
    }
    loop {
        let deadline = client.deadline();
        tokio::select! {
            biased;
            () = gateway.cutoff.cancelled() => return Err(Ending::cut_before_anything(Refusal::ShuttingDown)),
            () = client.until_it_leaves() => if admitted.on_hangup == OnHangup::Cancel {
                return Err(Ending::left(Settle::Usage));
            },
            () = sleep_until(deadline) => return Err(match client.is_gone() {
                true => Ending::left(Settle::Usage),
                false => Ending::fault(UpstreamFault::Timeout),
            }),
            done = &mut wanted => return Ok(done),
        }
    }
}

impl Ending {
    /// The gateway itself failed; what has begun is torn down.
    fn failed(settle: Settle) -> Ending {
        Ending {
            state: State::Failed,
            settle,
            last: Last::Abort,
        }
    }

    /// The upstream did not do its part before anything was delivered: released.
    fn fault(fault: UpstreamFault) -> Ending {
        Ending {
            state: State::Failed,
            settle: Settle::Nothing,
            last: Last::Refusal(Refusal::Upstream(fault)),
        }
    }

    /// A stop signal ended it before anything was delivered: released, as the refusal says.
    fn cut_before_anything(refusal: Refusal) -> Ending {
        Ending {
            state: State::Cancelled,
            settle: Settle::Nothing,
            last: Last::Refusal(refusal),
        }
    }

    /// The client left.
    fn left(settle: Settle) -> Ending {
        Ending {
            state: State::Left,
            settle,
            last: Last::Nothing,
        }
    }

    /// The answer came whole, but its client has left.
    fn unread(end: End) -> Ending {
        Ending {
            state: State::Left,
            ..Ending::of(end, Last::Nothing)
        }
    }

    /// The answer came whole, as its own bytes say.
    fn of(end: End, last: Last) -> Ending {
        let (state, settle) = match end {
            End::Completed => (State::Completed, Settle::Usage),
            End::Incomplete => (State::Incomplete, Settle::Usage),
            End::Failed => (State::Failed, Settle::UsageOfDelivered),
        };
        Ending { state, settle, last }
    }
}
