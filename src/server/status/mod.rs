//! What the running server does at this moment, for its operator: `GET /status` on a socket of its own beside the
//! database, that only its owner may use. Nothing of it is on the public listener.
//!
//! ```text
//! exchange::Roll        exchanges that run, and counts of those that ended
//!    └▶ rates           the counts of the last minute, from a look each second
//! Writer::load, holds, connections, upstreams
//!    └▶ Status          one JSON document: no key, prompt or answer
//! socket                gateway.db.sock, 0600; the path stands in the lock's note where it is another
//! ```

mod rates;
mod socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State as Shared;
use axum::routing::get;
use axum::{Json, Router};
use axum_server::Handle;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{App, FLUSH};
use crate::exchange::{Entry, Phase};
use crate::money::Usd;
use crate::store::Load;
use crate::time::{Stopwatch, now};
pub use rates::LastMinute;
use rates::Rates;
pub(super) use socket::Socket;

/// Exchanges that are listed one by one, at most: those that run for the longest.
const MOST_LISTED: usize = 1000;

/// How often the counts are looked at.
const SAMPLE: Duration = Duration::from_secs(1);

/// What the running server does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Its process id.
    pub process: u32,
    /// Where it listens: `http://127.0.0.1:8080`.
    pub address: String,
    /// Its database.
    pub database: PathBuf,
    /// When it was started.
    pub started_at: Timestamp,
    /// How long ago that is.
    pub uptime_seconds: u64,
    /// Why it takes no calls, if it takes none: what `/readyz` says.
    pub not_ready: Option<String>,
    /// Open connections of clients.
    pub connections: usize,
    /// Those of them that are WebSockets.
    pub websockets: usize,
    /// Calls that ended within the last minute.
    pub last_minute: LastMinute,
    /// Money set aside; `None`: it cannot be read.
    pub holds: Option<Holds>,
    /// The writer of the books.
    pub writer: Queue,
    /// The upstreams, in the order of the settings.
    pub upstreams: Vec<Upstream>,
    /// How many exchanges run.
    pub running: usize,
    /// Background responses that are not settled; `None`: they cannot be counted.
    pub background: Option<u32>,
    /// Those that run for the longest, at most a thousand.
    pub exchanges: Vec<Exchange>,
}

/// Money set aside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holds {
    /// Holds that are open.
    pub open: u32,
    /// What they hold together.
    pub amount: Usd,
}

/// What waits for the writer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queue {
    /// Operations that wait.
    pub waiting: usize,
    /// The most that may.
    pub most_waiting: usize,
    /// Exchanges with a place for their settlement.
    pub open: usize,
    /// The most there may be.
    pub most_open: usize,
}

/// An upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Its base URL.
    pub base_url: String,
    /// Exchanges that are with it.
    pub in_flight: usize,
    /// Whether calls go there, by the model at which it stands worst: `closed` (they do), `half_open` (a few do to find
    /// out), `open` (they do not).
    #[serde(default)]
    pub breaker: String,
    /// How the last of its calls that ended did end: `completed`, `failed` …
    pub last_result: Option<String>,
    /// When that was.
    pub last_at: Option<Timestamp>,
}

/// An exchange that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchange {
    /// Its id.
    pub id: String,
    /// Who pays.
    pub user: String,
    /// What is shown of the key.
    pub key: String,
    /// The model that was asked for.
    pub model: String,
    /// Where it was sent.
    pub upstream: String,
    /// `waiting` for the head of an answer, `streaming`, `reading` a whole answer, `settling`.
    pub state: String,
    /// Since it was admitted.
    pub age_ms: u64,
    /// Events of its stream so far.
    pub events: u64,
    /// Bytes of its stream so far.
    pub bytes: u64,
}

impl Exchange {
    fn of(entry: &Entry) -> Exchange {
        let state = match entry.phase() {
            Phase::Waiting => "waiting",
            Phase::Answering if entry.call.stream => "streaming",
            Phase::Answering => "reading",
            Phase::Settling => "settling",
        };
        Exchange {
            id: entry.id.to_string(),
            user: entry.key.user_name.clone(),
            key: entry.key.prefix.clone(),
            model: entry.call.model.clone(),
            upstream: entry.upstream().to_owned(),
            state: state.to_owned(),
            age_ms: u64::try_from(entry.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            events: entry.events(),
            bytes: entry.bytes(),
        }
    }
}

/// What a look at the server needs.
#[derive(Debug)]
pub(super) struct Watched {
    app: Arc<App>,
    clients: Handle<SocketAddr>,
    address: String,
    started_at: Timestamp,
    since_start: Stopwatch,
    rates: Mutex<Rates>,
}

impl Watched {
    pub(super) fn new(app: &Arc<App>, clients: &Handle<SocketAddr>, address: String) -> Arc<Watched> {
        Arc::new(Watched {
            app: Arc::clone(app),
            clients: clients.clone(),
            address,
            started_at: now(),
            since_start: Stopwatch::start(),
            rates: Mutex::default(),
        })
    }

    /// Looks at the counts once more, for the rates.
    fn sample(&self) -> LastMinute {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.note(self.since_start.elapsed(), self.app.gateway.roll.totals())
    }

    async fn look(&self) -> Status {
        let gateway = &self.app.gateway;
        let mut running = gateway.roll.running();
        // Ids are made in the order of time.
        running.sort_by_key(|entry| entry.id);
        let (holds, background) = gateway
            .store
            .blocking(|store| (store.held_in_all(), store.background_responses_in_all()))
            .await;
        let live = gateway.live();
        let upstreams = live.upstreams.iter().map(|upstream| {
            let last = upstream.last();
            Upstream {
                name: upstream.name().to_owned(),
                base_url: upstream.base_url().to_owned(),
                in_flight: running
                    .iter()
                    .filter(|entry| entry.upstream() == upstream.name())
                    .count(),
                breaker: upstream.breaker_state().name().to_owned(),
                last_result: last.map(|(state, _)| state.name().to_owned()),
                last_at: last.map(|(_, at)| at),
            }
        });
        let load = gateway.writer.load();
        let websockets = self.app.websockets.count();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            address: self.address.clone(),
            database: gateway.store.path().to_owned(),
            started_at: self.started_at,
            uptime_seconds: self.since_start.elapsed().as_secs(),
            not_ready: super::not_ready(&self.app),
            // A connection that has become a WebSocket is none of the listener's any more.
            connections: self.clients.connection_count() + websockets,
            websockets,
            last_minute: self.sample(),
            holds: holds.ok().map(|(open, amount)| Holds { open, amount }),
            writer: Queue {
                waiting: load.waiting,
                most_waiting: Load::MOST.waiting,
                open: load.open,
                most_open: Load::MOST.open,
            },
            upstreams: upstreams.collect(),
            running: running.len(),
            background: background.ok(),
            exchanges: running
                .iter()
                .take(MOST_LISTED)
                .map(|entry| Exchange::of(entry))
                .collect(),
        }
    }
}

/// Looks at the counts each second, and answers on the socket, until the server stops.
pub(super) async fn serve(watched: Arc<Watched>, socket: Option<Socket>, stop: CancellationToken) {
    let sampling = async {
        let mut each = tokio::time::interval(SAMPLE);
        loop {
            each.tick().await;
            watched.sample();
        }
    };
    let Some(mut socket) = socket else {
        tokio::select! {
            () = sampling => {}
            () = stop.cancelled() => {}
        }
        return;
    };
    let look = async |Shared(watched): Shared<Arc<Watched>>| Json(watched.look().await);
    let router = Router::new()
        .route("/status", get(look))
        .with_state(Arc::clone(&watched));
    let handle = Handle::new();
    let answering = socket.answer(router, handle.clone());
    tokio::pin!(answering);
    tokio::select! {
        // It has said why.
        () = &mut answering => return stop.cancelled().await,
        () = sampling => {}
        () = stop.cancelled() => {}
    }
    handle.graceful_shutdown(Some(FLUSH));
    answering.await;
}
