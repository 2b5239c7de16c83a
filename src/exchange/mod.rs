//! One call from admission to settlement.
//!
//! ```text
//! server::proxy ─ who is calling? what is asked?          Request
//!    │    throttle ─ may it go now?                       Permit, kept until the last of the answer goes out
//!    └▶ start     a tracked task, so that it outlives its client
//!         admit    price → hold      transaction 1         Admitted, or a refusal
//!         dispatch to an upstream, or another              its head, or a fault
//!         relay    event → meter → client      loop        Ending
//!         settle   usage → price → charge    transaction 2 Closed; only then the end goes out
//! ```
//!
//! The states are values, each made by the step before it and consumed by the one after. Money is set aside in
//! [`Admitted`] and comes back in `settlement::settle`, whatever happens between: a client that leaves, an upstream
//! that breaks, a stop signal, a panic.

mod admission;
mod background;
mod body;
mod choice;
mod client;
mod counting;
mod dispatch;
mod ending;
mod form;
mod health;
mod homes;
mod kin;
mod listing;
mod live;
mod offer;
mod passage;
mod passing;
mod recent;
mod recorder;
mod relay;
mod roll;
mod sending;
mod settlement;
mod stock;
mod throttle;
mod traces;
mod tunnel;
mod uploading;
mod upstream;

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Call;
use crate::fail_point::{self, Point};
use crate::meter::{End, Meter};
use crate::metrics::Metrics;
use crate::origin::Origin;
use crate::recording::SealingKey;
use crate::refusal::{Refusal, UpstreamFault};
use crate::retry::Budget;
use crate::store::attempts::Outcome;
use crate::store::background::Background;
use crate::store::idempotency::Once;
use crate::store::keys::Key;
use crate::store::ledger::Closed;
use crate::store::usage_log::State;
use crate::store::{ExchangeId, Store, Writer};
use crate::texts::Language;
use crate::time::Stopwatch;

pub use admission::{Admitted, made_before};
use background::Detached;
pub use background::{Backgrounds, MOST as MOST_IN_BACKGROUND, Poller};
pub use body::{BODY_MEMORY, BODY_UNIT, BodyMemory, Incoming, PARSE_INLINE, units};
use client::Client;
use dispatch::Said;
pub use form::{Arriving, Received};
pub(crate) use homes::Homes;
pub(crate) use kin::Kin;
pub(crate) use listing::Listings;
pub use live::Live;
pub use offer::{Offer, offered};
pub use passing::{Carried, Coming, Passed, Passing, Rest, Taken, pass};
use recorder::Recorder;
pub use recorder::{RecordingMemory, Replaying};
use roll::OnRoll;
pub use roll::{Entry, Phase, Roll, Totals};
pub use throttle::{Permit, Throttle, key_rates};
use traces::Parent;
pub use traces::Tracer;
pub use tunnel::{Tunnel, Tunnelled};
pub use uploading::{MAX_FILE, Upload, time_of};
pub use upstream::{Probe, Upstream, UpstreamError};
pub(crate) use upstream::{install_crypto, roots};

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
    /// The settings in force.
    pub settings: ArcSwap<Live>,
    /// What of all limits is taken.
    pub throttle: Arc<Throttle>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Tells a collector of each exchange.
    pub tracer: Tracer,
    /// What recorded answers may take.
    pub recordings: RecordingMemory,
    /// The exchanges that run, for whoever watches.
    pub roll: Roll,
    /// Responses that run on at their upstreams.
    pub backgrounds: Backgrounds,
    /// Calls that may be sent more than once.
    pub retries: Budget,
    /// Which upstreams made what is encrypted, and where threads live that moved.
    pub(crate) homes: Homes,
    /// Of which sessions sub-agents are.
    pub(crate) kin: Kin,
    /// Lists of files that are read.
    pub(crate) listings: Listings,
    /// Counts the exchanges that run.
    pub tracker: TaskTracker,
    /// Fires when running streams have to end: a second stop signal, or the end of the drain.
    pub cutoff: CancellationToken,
}

impl Gateway {
    /// The settings in force, to be taken once by each request.
    pub fn live(&self) -> Arc<Live> {
        self.settings.load_full()
    }
}

/// A call, with who makes it.
#[derive(Debug)]
pub struct Request {
    /// The exchange's id, the answer's `x-request-id`.
    pub id: ExchangeId,
    /// The settings that the exchange begins and ends with.
    pub live: Arc<Live>,
    /// The key it came with, known to be good.
    pub key: Arc<Key>,
    /// What is asked; of a form that is still arriving, as far as it is here.
    pub call: Call,
    /// The rest of it, where it is a form that goes on while it comes.
    pub arriving: Option<Box<Arriving>>,
    /// Who asks, as far as the client says.
    pub origin: Origin,
    /// The name that the client gave it, so that it is one exchange however often it comes.
    pub once: Option<Once>,
    /// Seals the answer, if it is to be recorded.
    pub sealing: Option<SealingKey>,
    /// The client's headers; only those on a list go on.
    pub headers: HeaderMap,
    /// How it goes on to an upstream that speaks WebSocket, if it came over one.
    pub tunnelled: Option<Box<Tunnelled>>,
    /// What the gateway's own words are in, should it have to put any into the stream.
    pub language: Language,
    /// The memory that the body takes, until the last of the answer is handed on.
    pub memory: OwnedSemaphorePermit,
    /// Its place among all exchanges, likewise.
    pub place: OwnedSemaphorePermit,
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
pub type Reply = Result<Answer, Declined>;

/// A refusal in place of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// Why.
    pub refusal: Refusal,
    /// Whether it ends an exchange that was settled, whose line in the log tells it.
    pub settled: bool,
}

/// Of what never became an exchange, or was not settled.
impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Declined {
        Declined {
            refusal,
            settled: false,
        }
    }
}

/// Starts an exchange. It goes on when the receiver is dropped: that is how a client leaves.
pub fn start(gateway: &Arc<Gateway>, request: Request, permit: Permit) -> oneshot::Receiver<Reply> {
    let (to_client, reply) = oneshot::channel();
    let client = Client::waiting(to_client, gateway.cutoff.clone());
    // On the heap at once: as a task it would be moved there in steps, all of it each time.
    gateway
        .tracker
        .spawn(Box::pin(run(Arc::clone(gateway), Box::new(request), permit, client)));
    reply
}

/// All but the relay is boxed, each step for as long as it lasts: a stream is held for minutes, and would be as large as the
/// largest of them for all that time.
async fn run(gateway: Arc<Gateway>, mut request: Box<Request>, mut permit: Permit, mut client: Client) {
    let (sealing, since_parsed) = (request.sealing.take(), Stopwatch::start());
    let mut admitted = match Box::pin(admission::admit(&gateway, request)).await {
        Ok(admitted) => admitted,
        Err(refusal) => {
            gateway.roll.refused();
            permit.has_no_hold();
            drop(permit);
            return client.refuse(refusal.into());
        }
    };
    let on_roll = gateway.roll.enter(&admitted);
    // They are parts of the buffer that the request was read into, and would keep all of it for as long as the answer.
    let headers = std::mem::take(&mut admitted.headers);
    if let Some(key) = sealing {
        client.record(Recorder::new(key, &gateway.recordings));
    }
    let (id, parent) = (admitted.id(), gateway.tracer.parent(&headers));
    let mut watch = Watch::new(&admitted, &on_roll, parent, since_parsed.elapsed());
    let answered = answer(&gateway, &mut admitted, headers, &mut client, &mut watch);
    let ending = AssertUnwindSafe(answered).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(exchange = %admitted.id(), "the exchange panicked; what was delivered is settled by estimate");
        match &watch.background {
            // It gets nothing of the answer, and is told that it costs nothing.
            _ if client.waits() => Ending::failed(Settle::Nothing),
            Some(_) => Ending::later(Last::Abort),
            None if watch.delivered => Ending::failed(Settle::Usage),
            None => Ending::failed(Settle::Nothing),
        }
    });
    gateway.homes.answered(&admitted, watch.meter.reading());
    if let Some(arriving) = admitted.arriving.take() {
        arriving.let_pass(&gateway);
    }
    if ending.settle == Settle::Later
        && let Some(background) = watch.background.take()
    {
        let detaching = detach(&gateway, admitted, *background, &watch, (client, ending.last), permit);
        return Box::pin(detaching).await;
    }
    let (is_whole, room, again) = (ending.is_whole(), admitted.room.take(), admitted.again.take());
    if again.is_some() {
        permit.keep_estimate();
    }
    let settling = settlement::settle(&gateway, admitted, &mut permit, &watch, ending);
    let (closed, last) = Box::pin(settling).await;
    let closed = closed.and_then(|closed| match fail_point::hit(Point::Settled) {
        Ok(()) => Ok(closed),
        Err(_) => Err(Refusal::Unsettled),
    });
    if let (Ok(_), Some(request)) = (&closed, again) {
        client.is_of(request.id);
        drop(on_roll);
        return go_on(Arc::clone(&gateway), request, permit, client).await;
    }
    match closed {
        Ok(closed) => {
            let last = last.priced(&closed);
            if let Some(recorder) = client.take_recorder()
                && is_whole
                && closed.is_charge()
            {
                Box::pin(recorder.keep(&gateway.writer, id, &last)).await;
            }
            Box::pin(client.finish(last, permit, room)).await;
        }
        Err(refusal) => {
            drop(permit);
            client.refuse(refusal.into());
        }
    }
    if let Err(error) = fail_point::hit(Point::AfterEnd) {
        tracing::debug!(%error, "nothing is left to do");
    }
}

/// The same once more, as an exchange of its own.
fn go_on(
    gateway: Arc<Gateway>,
    request: Box<Request>,
    permit: Permit,
    client: Client,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(run(gateway, request, permit, client))
}

/// The response runs on at its upstream, and is settled when it is over; the call has ended.
async fn detach(
    gateway: &Gateway,
    mut admitted: Admitted,
    background: Background,
    watch: &Watch,
    (client, last): (Client, Last),
    mut permit: Permit,
) {
    permit.keep_estimate();
    tracing::info!(
        exchange = %admitted.id(),
        upstream = background.draft.upstream,
        response = background.response,
        "runs in the background"
    );
    let output = settlement::shown(watch.meter.reading(), &admitted.target.model).await;
    let room = admitted.room.take();
    let detached = Detached::new(background, admitted.hold, admitted.place, output);
    gateway.backgrounds.detach(detached);
    client.finish(last, permit, room).await;
}

/// What is seen of an answer while it passes; it outlives a panic of what passes it on.
#[derive(Debug)]
pub(crate) struct Watch {
    meter: Meter,
    /// What others see of it.
    entry: Arc<Entry>,
    /// Events seen of a stream.
    events: u64,
    /// Whether something visible has left for the client.
    delivered: bool,
    /// What is written down of a response that runs in the background.
    background: Option<Box<Background>>,
    /// Bytes of visible output that an estimate counts, where that is not all that was seen.
    counted_bytes: Option<u64>,
    /// Where it was sent before, without being taken.
    earlier: Vec<Try>,
    /// Where it was sent last.
    last: Option<Try>,
    upstream_request_id: Option<String>,
    /// The client's span.
    parent: Parent,
    /// How long the call took from its parsed body to its hold.
    admission: Duration,
    since_start: Stopwatch,
    first_byte: Option<Duration>,
}

/// A call that was sent, and what became of it.
#[derive(Clone, Copy, Debug)]
struct Try {
    /// Index into the upstreams.
    upstream: usize,
    outcome: Outcome,
    status: Option<StatusCode>,
    began: Duration,
    took: Duration,
}

impl Watch {
    fn new(admitted: &Admitted, on_roll: &OnRoll<'_>, parent: Parent, admission: Duration) -> Watch {
        Watch {
            meter: Meter::new(admitted.sent.endpoint, admitted.dialect).with_cache_ttl(admitted.sent.cache_ttl),
            entry: Arc::clone(&on_roll.entry),
            events: 0,
            delivered: false,
            background: None,
            counted_bytes: None,
            earlier: Vec::new(),
            last: None,
            upstream_request_id: None,
            parent,
            admission,
            since_start: admitted.since_start,
            first_byte: None,
        }
    }

    /// It is sent to an upstream. What another one said before is forgotten, but for the attempt.
    fn begin(&mut self, upstream: usize) {
        self.entry.is_sent_to(upstream);
        self.first_byte = None;
        self.upstream_request_id = None;
        self.earlier.extend(self.last.replace(Try {
            upstream,
            outcome: dispatch::outcome(None),
            status: None,
            began: self.since_start.elapsed(),
            took: Duration::ZERO,
        }));
    }

    /// What the upstream said to it; `None`: nobody waited for that.
    fn head(&mut self, said: Option<&Said>) {
        let now = self.since_start.elapsed();
        if let Some(last) = &mut self.last {
            last.outcome = dispatch::outcome(said);
            last.took = now.saturating_sub(last.began);
        }
        let Some(Ok(response)) = said else {
            return;
        };
        self.entry.is(Phase::Answering);
        self.first_byte = Some(now);
        if let Some(last) = &mut self.last {
            last.status = Some(response.status());
        }
        let id = response.headers().get("x-request-id");
        self.upstream_request_id = id.and_then(|value| value.to_str().ok()).map(str::to_owned);
    }

    /// How often it was sent.
    fn attempts(&self) -> u32 {
        let attempts = self.earlier.len() + usize::from(self.last.is_some());
        u32::try_from(attempts).unwrap_or(u32::MAX)
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
/// limited → `Capped`; what runs on in the background → `Later`; refused, and whatever ended before a stream began → `Nothing`.
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
    /// Not now: the response runs on in the background, and its state is told when it is over.
    Later,
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

impl Last {
    /// With what a unary answer cost, and what is available after it.
    fn priced(mut self, closed: &Closed) -> Last {
        if let Last::Answer(Answer { headers, .. }) = &mut self {
            for (name, amount) in [
                ("x-gateway-cost", closed.charged),
                ("x-gateway-balance", closed.available),
            ] {
                if let Ok(value) = amount.to_string().parse() {
                    headers.insert(name, value);
                }
            }
        }
        self
    }
}

/// Sends the call and passes the answer on, until only its end is left.
async fn answer(
    gateway: &Gateway,
    admitted: &mut Admitted,
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
    let sent = Box::pin(dispatch::dispatch(gateway, admitted, headers, client, watch)).await;
    // What was only of use until an upstream took it.
    admitted.tunnelled = None;
    match sent {
        Ok(_) if fail_point::hit(Point::Head).is_err() => Ending::fault(UpstreamFault::Broken),
        Ok(response) => {
            let translation = admitted.translation.take();
            relay::relay(gateway, admitted, response, translation, client, watch).await
        }
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
            () = client.until_it_leaves() => if admitted.ends_with_its_client() {
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

    /// The exchange ends, its response runs on in the background.
    fn later(last: Last) -> Ending {
        Ending {
            state: State::Left,
            settle: Settle::Later,
            last,
        }
    }

    /// The client's body did not come whole: nothing of it was taken.
    fn lost(refusal: Refusal) -> Ending {
        Ending {
            last: Last::Refusal(refusal),
            ..Ending::left(Settle::Nothing)
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

    /// The answer came whole, but its client has left: only a recording of it leaves.
    fn unread(end: End, last: Last) -> Ending {
        Ending {
            state: State::Left,
            ..Ending::of(end, last)
        }
    }

    /// Whether the answer came to an end of its own, so that it may be given once more.
    fn is_whole(&self) -> bool {
        let ends = matches!(self.last, Last::Answer(_) | Last::Pieces(_));
        ends && !matches!(self.state, State::Refused | State::Broken | State::Cancelled)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// In bytes: a class of the allocator's sizes.
    const MOST: usize = 5 * 1024;

    #[test]
    fn an_exchange_is_no_larger_than_its_relay_needs() {
        fn of_future<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let size = of_future(run);
        assert!(size <= MOST, "{size} bytes");
    }
}
