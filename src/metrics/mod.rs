//! Metrics: what an operator watches, counted in atomics as it happens and written out when somebody asks.
//!
//! ```text
//! exchange ── ended, attempted ─┐
//! server ──── refused, connected ├▶ Metrics: counters ─┐
//! store::writer ───────────────── Counts ──────────────┼▶ Page ▶ text
//! the database, the system ────── read when asked ─────┘
//! ```
//!
//! Nothing here waits or allocates on a call's path: a counter is found by the number of its label, or by its name in a
//! table that only grows (`named`). So every label has a bounded set of values: endpoints, states, codes, classes of
//! tokens and outcomes of attempts are closed sets; a model is one that has a price or stands in the settings, and an
//! upstream stands in the settings, and there is a most of either, beyond which they are `other`. Nothing tells of a user,
//! a key or an exchange.
//!
//! Money is counted in nano-dollars, and becomes a floating-point number where Prometheus wants one: the nearest to the
//! exact decimal.

mod named;
mod page;
mod process;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use self::named::Named;
use self::process::Process;
use crate::call::Endpoint;
use crate::code::Code;
use crate::histogram::Histogram;
use crate::money::Usd;
use crate::pricing::{self, Class};
use crate::store::usage_log::State;
use crate::store::{Counts, Store, StoreError};
use crate::usage::Usage;

pub use page::{Format, page};

/// Models with counters of their own; ten times what is used anywhere.
const MODELS: usize = 512;

/// Upstreams with counters of their own, those of earlier settings included.
const UPSTREAMS: usize = 128;

/// Upper bounds of an exchange's time, in microseconds: from an embedding to a long thought.
const DURATIONS: &[u64] = &[
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    40_000_000,
    80_000_000,
    160_000_000,
    320_000_000,
    640_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Upper bounds of the time to the first byte, in microseconds.
const FIRST_BYTES: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    40_000_000,
    80_000_000,
    160_000_000,
    320_000_000,
    640_000_000,
];

/// Upper bounds of the gateway's own time, in microseconds.
const OVERHEADS: &[u64] = &[
    500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 125_000, 250_000, 500_000, 1_000_000, 5_000_000,
];

/// A count that only rises.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How an exchange ended, with one more end than states are written down: those that were not.
const OUTCOMES: usize = State::ALL.len() + 1;

/// That a charge was not written, or that nobody knows whether it was.
const UNSETTLED: &str = "unsettled";

/// What is counted of one model.
#[derive(Debug, Default)]
struct OfModel {
    exchanges: [[Counter; OUTCOMES]; Endpoint::ALL.len()],
    tokens: [Counter; Class::ALL.len()],
}

/// What is counted of one upstream.
#[derive(Debug, Default)]
struct OfUpstream {
    attempts: [Counter; Attempt::ALL.len()],
}

/// What became of one try to send a call, until the head of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It answered with a 2xx.
    Answered,
    /// It refused the call: any other status below 500.
    Refused,
    /// It failed: a status from 500 on.
    Failed,
    /// There was no connection.
    Unreachable,
    /// There was no head in time.
    Timeout,
    /// The connection broke before a head.
    Broken,
    /// The call ended before a head: its client left, or the gateway stopped.
    Abandoned,
}

impl Attempt {
    /// All of them.
    pub const ALL: [Attempt; 7] = [
        Attempt::Answered,
        Attempt::Refused,
        Attempt::Failed,
        Attempt::Unreachable,
        Attempt::Timeout,
        Attempt::Broken,
        Attempt::Abandoned,
    ];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Attempt::Answered => "answered",
            Attempt::Refused => "refused",
            Attempt::Failed => "failed",
            Attempt::Unreachable => "unreachable",
            Attempt::Timeout => "timeout",
            Attempt::Broken => "broken",
            Attempt::Abandoned => "abandoned",
        }
    }
}

/// Whether calls go to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// They do.
    Closed,
    /// A few do, to find out.
    HalfOpen,
    /// They do not.
    Open,
}

/// What is counted of an exchange at its end.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// Which model; `None`: one of those that clients may call as they like.
    pub model: Option<&'a str>,
    /// How it ended.
    pub state: State,
    /// What was used.
    pub usage: &'a Usage,
    /// What was charged.
    pub charged: Usd,
    /// What could not be collected.
    pub uncollected: Usd,
    /// From the hold to the end of the answer.
    pub duration: Duration,
    /// From the hold to the head of the upstream's answer, if there was one.
    pub first_byte: Option<Duration>,
    /// What the gateway itself took before the call left and after the answer was there.
    pub overhead: Duration,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    models: Named<OfModel>,
    upstreams: Named<OfUpstream>,
    refusals: [Counter; Code::ALL.len()],
    /// In nano-dollars.
    charged: Counter,
    /// In nano-dollars.
    uncollected: Counter,
    durations: Histogram,
    first_bytes: Histogram,
    overheads: Histogram,
    connections: AtomicU64,
    started: Timestamp,
}

/// An open connection of a client, as long as it lives.
#[derive(Debug)]
pub struct Connected(Arc<Metrics>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Nothing yet, in a process that started just before.
    pub fn new(started: Timestamp) -> Metrics {
        Metrics {
            models: Named::with_room(MODELS),
            upstreams: Named::with_room(UPSTREAMS),
            refusals: std::array::from_fn(|_| Counter::default()),
            charged: Counter::default(),
            uncollected: Counter::default(),
            durations: Histogram::new(DURATIONS),
            first_bytes: Histogram::new(FIRST_BYTES),
            overheads: Histogram::new(OVERHEADS),
            connections: AtomicU64::new(0),
            started,
        }
    }

    /// An exchange is settled.
    pub fn ended(&self, ended: &Ended<'_>) {
        let model = self.model(ended.model);
        model.exchanges[ended.endpoint as usize][ended.state as usize].add(1);
        for (class, count) in pricing::tokens(ended.usage) {
            model.tokens[class as usize].add(count);
        }
        self.charged.add(nanos(ended.charged));
        self.uncollected.add(nanos(ended.uncollected));
        self.durations.observe_time(ended.duration);
        self.overheads.observe_time(ended.overhead);
        if let Some(first_byte) = ended.first_byte {
            self.first_bytes.observe_time(first_byte);
        }
    }

    /// An exchange ended, and its settlement is not written, or nobody knows whether it is.
    pub fn unsettled(&self, endpoint: Endpoint, model: Option<&str>) {
        self.model(model).exchanges[endpoint as usize][OUTCOMES - 1].add(1);
    }

    /// A call was sent to an upstream so many times with this outcome.
    pub fn attempted(&self, upstream: &str, outcome: Attempt, times: u32) {
        self.upstreams.of(upstream).attempts[outcome as usize].add(u64::from(times));
    }

    /// The gateway answered by itself, in place of an upstream.
    pub fn refused(&self, code: Code) {
        self.refusals[code as usize].add(1);
    }

    /// A client connected.
    pub fn connected(self: &Arc<Metrics>) -> Connected {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self))
    }

    fn model(&self, model: Option<&str>) -> &OfModel {
        model.map_or(self.models.rest(), |model| self.models.of(model))
    }
}

fn nanos(amount: Usd) -> u64 {
    u64::try_from(amount.nanos()).unwrap_or(0)
}

/// What is not counted but looked at, when somebody asks.
#[derive(Debug)]
pub struct Sight {
    /// How many holds are open, and what they hold; `None`: the database cannot be read.
    open: Option<(u32, Usd)>,
    /// How many of them are of background responses.
    background: Option<u32>,
    process: Process,
    /// Whether calls are accepted.
    ready: bool,
    /// Each upstream of the settings.
    breakers: Vec<(String, Breaker)>,
    counts: Arc<Counts>,
}

impl Sight {
    /// Looks at the database and the system; it blocks.
    pub fn of(store: &Store, counts: Arc<Counts>, ready: bool, breakers: Vec<(String, Breaker)>) -> Sight {
        let tell = |error: &StoreError| {
            tracing::warn!(error = error as &dyn std::error::Error, "open holds are not told");
        };
        let open = store.held_in_all().inspect_err(tell).ok();
        Sight {
            // Of what could not be read no more is asked.
            background: open.and_then(|_| store.background_responses_in_all().inspect_err(tell).ok()),
            open,
            process: Process::now(),
            ready,
            breakers,
            counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_labels_are_places_in_their_lists() {
        assert!(
            Endpoint::ALL
                .iter()
                .enumerate()
                .all(|(place, of)| *of as usize == place)
        );
        assert!(State::ALL.iter().enumerate().all(|(place, of)| *of as usize == place));
        assert!(Class::ALL.iter().enumerate().all(|(place, of)| *of as usize == place));
        assert!(Code::ALL.iter().enumerate().all(|(place, of)| *of as usize == place));
        assert!(Attempt::ALL.iter().enumerate().all(|(place, of)| *of as usize == place));
    }
}
