//! Background responses: the call is answered at once, and settled when its response is over.
//!
//! ```text
//! relay      the upstream says that it runs on, or its stream tells the id
//!   begin    what it will be billed by, durable: transaction 2        only then the id leaves
//!   detach   the exchange ends without a settlement; its permit, its room and its client are let go of
//! Poller     asks the upstream that runs it, with that one's credential: each second at first, later each half minute
//!   settle   usage → price → charge, as any other: transaction 3      which closes the hold and deletes the row
//! ```
//!
//! The hold stays open from beginning to end. So a response is charged once, whatever comes between: a client that leaves, a
//! stream that breaks, a stop, a crash; the next start reads the rows and goes on asking. A stream of a background response
//! is relayed like any other, and settled by its own end when that comes; what would break off another one detaches it.
//!
//! | the upstream says | settled by | state |
//! |---|---|---|
//! | `completed`, `incomplete` | its usage, else an estimate | the same |
//! | `failed` | its usage; else an estimate if there is output, else nothing | `failed` |
//! | `cancelled` | its usage, else an estimate | `cancelled` |
//! | that there is none, three times, each a pause after the one before | an estimate | `broken` |
//! | nothing, or that it runs, for a day | an estimate, after it was told to cancel | `broken` |
//!
//! An estimate is the input, counted when the call was made, and what was seen of the output. It is never more than the hold.
//!
//! Whoever asks for such a response through the gateway and is told that it is over finds its receipt there ([`look`]): its
//! answer waits until the poller has looked. One that runs is not deleted: nobody could tell what it cost.
//!
//! [`look`]: Backgrounds::look

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::admission::storage;
use super::counting::count;
use super::passing::{Carried, is_id};
use super::upstream::{self, Free, Upstream};
use super::{Admitted, Gateway, Watch, relay, settlement};
use crate::call::Endpoint;
use crate::codec::Coding;
use crate::fail_point::{self, Point};
use crate::meter::{Meter, Progress, Reading};
use crate::refusal::Refusal;
use crate::store::background::{Background, Left};
use crate::store::keys::Key;
use crate::store::ledger::Hold;
use crate::store::{ExchangeId, NotClosed, Place, Store, StoreError, Writer};
use crate::time::now;
use crate::tokens::{self, Encoding};
use crate::usage::Tokens;

/// The end of a response is waited for so long: upstreams give a batch a day, the longest research takes an hour, and until
/// then its money is set aside.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Background responses of one user that may run at once: each is asked for again and again.
pub const MOST: u32 = 1_000;

/// Responses that are asked for at the same time.
const AT_ONCE: usize = 16;

/// An upstream that does not tell in this time is asked again later.
const PATIENCE: Duration = Duration::from_secs(30);

/// So often in a row an upstream has to say that there is no such response: some find what was just made a moment later, and
/// a proxy may stand before none of them for a while.
const FORGOTTEN: u8 = 3;

/// So often the gateway itself may fail at what an upstream says of a response, before it is settled without that.
const FAILURES: u8 = 3;

/// A response is asked for again after an eighth of the time that it runs, within these bounds: whoever waits for a short one
/// is served soon, and a long one costs little.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long an answer to whoever asks for a response waits for its settlement. The charge does not depend on it.
const LOOK: Duration = Duration::from_secs(10);

/// A background response that no exchange relays.
#[derive(Debug)]
pub(super) struct Detached {
    pub(super) background: Background,
    pub(super) hold: Hold,
    pub(super) place: Place,
    /// What was seen of its output.
    pub(super) output: Tokens,
    misses: Misses,
    /// How often the gateway failed at what its upstream says.
    failures: u8,
    /// Whether the log says that its upstream is gone.
    is_stranded: bool,
}

impl Detached {
    pub(super) fn new(background: Background, hold: Hold, place: Place, output: Tokens) -> Detached {
        Detached {
            background,
            hold,
            place,
            output,
            misses: Misses::default(),
            failures: 0,
            is_stranded: false,
        }
    }

    fn id(&self) -> ExchangeId {
        self.background.draft.id
    }

    /// The gateway itself failed at it: it is looked at again later, and everything else goes on.
    pub(super) fn has_failed(&mut self, error: &str) {
        self.failures = self.failures.saturating_add(1);
        tracing::error!(exchange = %self.id(), error, "what became of a background response cannot be told; it is looked at again");
    }

    /// How long it has been running. A clock that was set back makes it young.
    fn age(&self) -> Duration {
        let age = Duration::try_from(now().duration_since(self.background.draft.started_at));
        age.unwrap_or_default()
    }

    /// How long until it is asked for again.
    fn pause(&self) -> Duration {
        pause(self.age(), self.id().0.as_u64_pair().1)
    }
}

/// How often in a row its upstream did not know a response.
#[derive(Debug, Default)]
struct Misses {
    count: u8,
    /// When the next one counts.
    counts_from: Option<Instant>,
}

impl Misses {
    /// One more; whether there are enough. Whoever asks again and again has it looked at as often, and learns it no sooner:
    /// one that comes before so much time has passed is no other than the one before it.
    fn note(&mut self, now: Instant, apart: Duration) -> bool {
        if self.counts_from.is_none_or(|from| from <= now) {
            self.count = self.count.saturating_add(1);
            self.counts_from = Some(now + apart);
        }
        self.count >= FORGOTTEN
    }
}

/// How long to wait with a response of this age; `chance` spreads those that came together over a quarter of that.
fn pause(age: Duration, chance: u64) -> Duration {
    let (least, most) = PAUSE;
    let pause = (age / 8).clamp(least, most);
    pause + pause / 4 * u32::try_from(chance % 256).unwrap_or(0) / 256
}

/// Where background responses are handed on to. What waits here is bounded: by the writer's places, of which each that was
/// detached has one, and by the requests that are under way.
#[derive(Debug)]
pub struct Backgrounds {
    to_poller: mpsc::UnboundedSender<Message>,
}

#[derive(Debug)]
enum Message {
    Detached(Box<Detached>),
    Look {
        exchange: ExchangeId,
        looked: oneshot::Sender<()>,
    },
}

impl Backgrounds {
    /// Both ends.
    pub fn new() -> (Backgrounds, Poller) {
        let (to_poller, messages) = mpsc::unbounded_channel();
        let poller = Poller {
            messages,
            waiting: HashMap::new(),
            due: BTreeSet::new(),
            asked: HashMap::new(),
        };
        (Backgrounds { to_poller }, poller)
    }

    /// A response runs on without its exchange. After the poller's end the row is all there is of it.
    pub(super) fn detach(&self, detached: Detached) {
        let id = detached.id();
        if self.to_poller.send(Message::Detached(Box::new(detached))).is_err() {
            tracing::info!(exchange = %id, "the background response is asked for after the next start");
        }
    }

    /// Has a response looked at now, and waits until it was: then it is settled, if its upstream says that it is over. One
    /// that an exchange relays is settled by that.
    pub(super) async fn look(&self, exchange: ExchangeId) {
        let (looked, waits) = oneshot::channel();
        if self.to_poller.send(Message::Look { exchange, looked }).is_ok() && timeout(LOOK, waits).await.is_err() {
            tracing::warn!(%exchange, "the background response is settled later");
        }
    }
}

/// Whether the user may have one more that runs.
pub(super) async fn may_begin(gateway: &Gateway, key: &Key) -> Result<(), Refusal> {
    let user = key.user_id;
    let run = gateway.store.blocking(move |store| store.background_responses_of(user));
    match run.await {
        Ok(run) if run < MOST => Ok(()),
        Ok(_) => Err(Refusal::TooManyInBackground { most: MOST }),
        Err(error) => Err(storage(&error)),
    }
}

/// Writes down a response whose upstream has told its id and not its end. When this returns it is durable, and the id may
/// leave.
///
/// # Errors
/// It is not written down: nobody may learn of the response.
pub(super) async fn begin(gateway: &Gateway, admitted: &Admitted, watch: &mut Watch) -> Result<(), Refusal> {
    let reading = watch.meter.reading();
    if !admitted.sent.background || watch.background.is_some() || reading.end.is_some() {
        return Ok(());
    }
    // What has no id, or one that is no part of a path, cannot be asked for: a stream tells its end by itself, and no other
    // answer leaves.
    let Some(response) = reading.response_id.clone().filter(|id| is_id(id)) else {
        return Ok(());
    };
    // Few calls come here, and all streams would keep room for it.
    Box::pin(write_down(gateway, admitted, watch, response)).await
}

async fn write_down(
    gateway: &Gateway,
    admitted: &Admitted,
    watch: &mut Watch,
    response: String,
) -> Result<(), Refusal> {
    let (call, encoding) = (Arc::clone(&admitted.sent), Encoding::of(&admitted.target.model).0);
    let guess = || tokens::guess_by_bytes(&admitted.sent.input);
    let input = count(move || tokens::estimate_input(&call, encoding), guess).await;
    let background = Background {
        draft: settlement::draft(admitted, watch),
        response,
        priced: admitted.priced.clone(),
        tier: admitted.sent.tier,
        cache_ttl: admitted.sent.cache_ttl,
        input,
        attempts: settlement::attempts(admitted, watch),
        deadline: admitted.started_at + LONGEST,
    };
    match gateway.writer.begin(background.clone()).await {
        Ok(()) => {
            watch.background = Some(Box::new(background));
            fail_point::hit(Point::Begun).map_err(|_| Refusal::Internal)
        }
        Err(failed) => {
            tracing::error!(exchange = %admitted.id(), error = &failed as &dyn std::error::Error, "a background response is not written down, and its id does not leave");
            Err(match failed {
                NotClosed::Unknown(_) => Refusal::Unsettled,
                NotClosed::NotWritten(_) => Refusal::Storage,
            })
        }
    }
}

/// Asks for the ends of responses that no exchange relays.
#[derive(Debug)]
pub struct Poller {
    messages: mpsc::UnboundedReceiver<Message>,
    waiting: HashMap<ExchangeId, Waiting>,
    /// The same by when they are asked for.
    due: BTreeSet<(Instant, ExchangeId)>,
    /// Those that are asked for now, each with who wants it to be looked at once more.
    asked: HashMap<ExchangeId, Vec<oneshot::Sender<()>>>,
}

/// A response between two questions.
#[derive(Debug)]
struct Waiting {
    detached: Detached,
    at: Instant,
    looked: Vec<oneshot::Sender<()>>,
}

/// A response that was asked for.
struct Looked {
    exchange: ExchangeId,
    /// It runs on; `None`: it is settled.
    detached: Option<Detached>,
    told: Vec<oneshot::Sender<()>>,
}

impl Poller {
    /// Takes in what an earlier process left, before the server listens.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn take_over(&mut self, store: &Store, writer: &Writer) -> Result<(), StoreError> {
        let Left { responses, unreadable } = store.blocking(Store::background_responses).await?;
        for (exchange, error) in unreadable {
            tracing::error!(%exchange, error, "a background response cannot be read, and its money stays set aside: see `gateway ledger verify`");
        }
        if !responses.is_empty() {
            tracing::info!(count = responses.len(), "background responses are asked for again");
        }
        for (background, hold) in responses {
            // There are no more of them than there were places when they were made.
            let Some(place) = writer.place() else {
                tracing::error!(exchange = %background.draft.id, "too many background responses; it is asked for after the next start");
                continue;
            };
            self.wait(
                Detached::new(background, hold, place, Tokens::ZERO),
                Instant::now(),
                Vec::new(),
            );
        }
        Ok(())
    }

    /// Works until it is told to stop. What is being settled by then is settled; all else is in the database.
    pub async fn run(mut self, gateway: Arc<Gateway>, stop: CancellationToken) {
        let mut asking: FuturesUnordered<BoxFuture<'_, Looked>> = FuturesUnordered::new();
        loop {
            while asking.len() < AT_ONCE
                && let Some(Waiting { detached, looked, .. }) = self.next_due()
            {
                self.asked.insert(detached.id(), Vec::new());
                asking.push(Box::pin(look(&gateway, detached, looked, &stop)));
            }
            let next = self.due.first().map(|(at, _)| *at).filter(|_| asking.len() < AT_ONCE);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(looked) = asking.next(), if !asking.is_empty() => self.looked(looked),
                Some(message) = self.messages.recv() => self.take(message),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
        while asking.next().await.is_some() {}
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Detached(detached) => {
                let at = Instant::now() + detached.pause();
                self.wait(*detached, at, Vec::new());
            }
            Message::Look { exchange, looked } => {
                if let Some(again) = self.asked.get_mut(&exchange) {
                    // It may have ended since it was asked.
                    again.push(looked);
                } else if let Some(waiting) = self.waiting.get_mut(&exchange) {
                    self.due.remove(&(waiting.at, exchange));
                    waiting.at = Instant::now();
                    waiting.looked.push(looked);
                    self.due.insert((waiting.at, exchange));
                }
                // Else it is settled, or relayed: whoever waits is let go of.
            }
        }
    }

    fn wait(&mut self, detached: Detached, at: Instant, looked: Vec<oneshot::Sender<()>>) {
        let id = detached.id();
        self.due.insert((at, id));
        self.waiting.insert(id, Waiting { detached, at, looked });
    }

    fn next_due(&mut self) -> Option<Waiting> {
        let (at, id) = self.due.first().copied()?;
        if at > Instant::now() {
            return None;
        }
        self.due.pop_first();
        self.waiting.remove(&id)
    }

    fn looked(&mut self, looked: Looked) {
        looked.told.into_iter().for_each(tell);
        let again = self.asked.remove(&looked.exchange).unwrap_or_default();
        match looked.detached {
            None => again.into_iter().for_each(tell),
            Some(detached) => {
                let pause = if again.is_empty() {
                    detached.pause()
                } else {
                    Duration::ZERO
                };
                self.wait(detached, Instant::now() + pause, again);
            }
        }
    }
}

fn tell(looked: oneshot::Sender<()>) {
    if looked.send(()).is_err() {
        tracing::debug!("nobody waits for a background response any more");
    }
}

/// What an upstream says of a response.
enum Said {
    /// It waits or runs.
    Runs,
    /// It is over.
    Over(Box<Reading>),
    /// There is none.
    Missing,
    /// Nothing of use.
    Nothing,
}

/// Asks for a response, and settles it if it is over.
async fn look(
    gateway: &Gateway,
    mut detached: Detached,
    told: Vec<oneshot::Sender<()>>,
    stop: &CancellationToken,
) -> Looked {
    let exchange = detached.id();
    let ended = match detached.failures >= FAILURES {
        true => Some(None),
        false => {
            // A panic would end what asks for everybody's.
            let asking = AssertUnwindSafe(end_of(gateway, &mut detached)).catch_unwind();
            let asked = tokio::select! {
                asked = asking => asked,
                () = stop.cancelled() => Ok(None),
            };
            asked.unwrap_or_else(|_| {
                detached.has_failed("it panicked");
                None
            })
        }
    };
    let detached = match ended {
        None => Some(detached),
        Some(said) => settlement::settle_background(gateway, detached, said.as_deref()).await,
    };
    Looked {
        exchange,
        detached,
        told,
    }
}

/// What is to be settled by: what the upstream says, or `Some(None)` where it cannot say any more. `None`: it runs on.
async fn end_of(gateway: &Gateway, detached: &mut Detached) -> Option<Option<Box<Reading>>> {
    let said = ask(gateway, detached, Method::GET, "").await;
    let is_forgotten = match said {
        Said::Missing => {
            let apart = pause(detached.age(), 0);
            detached.misses.note(Instant::now(), apart)
        }
        Said::Runs | Said::Over(_) => {
            detached.misses = Misses::default();
            false
        }
        Said::Nothing => false,
    };
    let is_late = detached.background.deadline <= now();
    match said {
        Said::Over(reading) => return Some(Some(reading)),
        Said::Missing if is_forgotten => {}
        Said::Runs if is_late => {
            if let Said::Over(reading) = ask(gateway, detached, Method::POST, "/cancel").await {
                return Some(Some(reading));
            }
        }
        _ if is_late => {}
        Said::Runs | Said::Missing | Said::Nothing => return None,
    }
    tracing::warn!(
        exchange = %detached.id(),
        upstream = detached.background.draft.upstream,
        "what became of a background response is not known; it is settled by estimate"
    );
    Some(None)
}

/// Asks the upstream that runs a response.
async fn ask(gateway: &Gateway, detached: &mut Detached, method: Method, what: &str) -> Said {
    let background = &detached.background;
    let live = gateway.live();
    let Some(upstream) = live.upstream(&background.draft.upstream) else {
        if !std::mem::replace(&mut detached.is_stranded, true) {
            tracing::warn!(
                exchange = %background.draft.id,
                upstream = background.draft.upstream,
                until = %background.deadline,
                "the upstream of a background response is not in the settings any more; its end cannot be asked for"
            );
        }
        return Said::Nothing;
    };
    let most = live.config.server.max_response;
    let asking = read(upstream, background, (&method, what), most);
    timeout(PATIENCE, asking).await.unwrap_or(Said::Nothing)
}

async fn read(upstream: &Upstream, background: &Background, (method, what): (&Method, &str), most: usize) -> Said {
    let path = format!("/responses/{}{what}", background.response);
    let request = Free {
        id: background.draft.id,
        method,
        path: &path,
        query: None,
        headers: &HeaderMap::new(),
    };
    let Ok(mut response) = upstream.pass(request, Carried::Nothing).await else {
        return Said::Nothing;
    };
    match response.status() {
        StatusCode::NOT_FOUND => return Said::Missing,
        status if !status.is_success() => {
            tracing::warn!(
                exchange = %background.draft.id,
                upstream = upstream.name(),
                status = status.as_u16(),
                "the upstream does not tell of a background response"
            );
            return Said::Nothing;
        }
        _ => {}
    }
    let coding = response.headers().get(CONTENT_ENCODING).map(|coding| coding.to_str());
    let coding = match coding {
        None => Coding::Identity,
        Some(coding) => match coding.ok().and_then(|coding| Coding::parse(coding).ok()) {
            Some(coding) => coding,
            None => return Said::Nothing,
        },
    };
    let body = upstream::read_whole(&mut response, most, upstream.idle_timeout()).await;
    let Ok(plain) = relay::decoded(coding, body.unwrap_or_default(), most).await else {
        return Said::Nothing;
    };
    let mut meter =
        Meter::new(Endpoint::Responses, upstream.dialect(Endpoint::Responses)).with_cache_ttl(background.cache_ttl);
    meter.observe_body(&plain);
    let reading = meter.into_reading();
    match (
        reading.response_id.as_deref() == Some(&background.response),
        reading.progress,
        reading.end,
    ) {
        (true, Progress::Running, _) => Said::Runs,
        (true, _, Some(_)) => Said::Over(Box::new(reading)),
        _ => {
            tracing::warn!(
                exchange = %background.draft.id,
                upstream = upstream.name(),
                "the upstream tells of something else than the background response"
            );
            Said::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_asked_for_soon_at_first_and_seldom_later() {
        let seconds = |age| pause(Duration::from_secs(age), 0).as_millis();
        assert_eq!(
            [0, 8, 16, 80, 240, 86_400].map(seconds),
            [1_000, 1_000, 2_000, 10_000, 30_000, 30_000]
        );
        let latest = pause(Duration::from_secs(86_400), u64::MAX);
        assert!(latest > PAUSE.1 && latest < PAUSE.1 * 5 / 4, "{latest:?}");
    }

    #[tokio::test]
    async fn an_upstream_has_forgotten_a_response_when_it_has_said_so_often_enough_over_some_time() {
        let (mut misses, start) = (Misses::default(), Instant::now());
        let mut note = |seconds| misses.note(start + Duration::from_secs(seconds), Duration::from_secs(5));
        let noted = [0, 1, 2, 4, 5, 6, 9, 10, 10].map(&mut note);
        assert_eq!(noted, [false, false, false, false, false, false, false, true, true]);
    }
}
