//! Who is let in: connections are counted, in all and by address, and those that are too many are turned away.
//!
//! ```text
//! listener → Doors      a place for it, or none
//!          → Acceptor   TLS if there is a certificate; patience with it
//!          → hyper      heads within their bounds
//!          → Visitor    tells the request who asks, and whether it is too many
//!          → dispatch
//! ```
//!
//! A connection has its place until it is closed, and is never closed for the sake of another one. One that is too many
//! comes into the anteroom: it has two seconds for one request. `/healthz` and `/readyz` are answered there as ever, all
//! else is refused without a look at keys or database. When the anteroom is full, or an address has its share of it, the
//! connection is closed behind an answer that does not depend on what it asks.
//!
//! Each call has two open files, so that fewer connections are let in where the system allows few files.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use axum_server::accept::Accept;
use http::header::UPGRADE;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tower_service::Service;

use super::refusal;
use super::source::Source;
use super::stall::Impatient;
use crate::config::ServerConfig;
use crate::exchange::Gateway;
use crate::metrics::Connected;
use crate::refusal::Refusal;
use crate::time::Stopwatch;

/// Connections that are told that they are too many, at a time.
const ANTEROOM: usize = 512;

/// How many of those one address may have.
const SHARE: usize = 32;

/// How long each has for its handshake, its request and its answer.
const ANTEROOM_TIME: Duration = Duration::from_secs(2);

/// Open files that are not connections: database, log, listener.
const FILES: usize = 128;

/// How often the log says that connections are turned away.
const NOTED: Duration = Duration::from_secs(60);

/// What is read of a connection that is closed at once, so that the answer is not lost to a reset.
const GLANCE: usize = 16 * 1024;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// In all, those in the anteroom apart.
    pub(super) all: usize,
    anteroom: usize,
}

impl Bounds {
    /// Those of the settings, as far as the system lets this process have files.
    pub(super) fn of(config: &ServerConfig) -> Bounds {
        let wanted = 2 * config.max_connections + ANTEROOM + FILES;
        let bounds = Bounds::within(config.max_connections, allowed(wanted));
        if bounds.all < config.max_connections {
            tracing::warn!(
                max_connections = bounds.all,
                set = config.max_connections,
                "the system allows this process too few open files: raise its limit to {wanted} (LimitNOFILE, ulimit -n)"
            );
        }
        bounds
    }

    fn within(all: usize, files: usize) -> Bounds {
        let anteroom = ANTEROOM.min(files / 8);
        let most = files.saturating_sub(anteroom + FILES.min(files / 4)) / 2;
        Bounds {
            all: all.min(most).max(1),
            anteroom,
        }
    }
}

/// How many files this process may open, after its limit was raised to what is wanted, as far as that goes.
fn allowed(wanted: usize) -> usize {
    let size = |limit: Option<u64>| limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = wanted.min(size(maximum));
    if raised <= size(current) {
        return size(current);
    }
    let limit = Rlimit {
        current: u64::try_from(raised).ok(),
        maximum,
    };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => raised,
        Err(_) => size(current),
    }
}

/// Why a connection is too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// There are as many as there may be.
    All,
    /// Its address has as many as it may have.
    OfAddress,
}

impl Excess {
    /// How a request is refused on it.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Excess::All => Refusal::Full,
            Excess::OfAddress => Refusal::Crowded,
        }
    }
}

/// What became of a connection.
#[derive(Debug)]
struct Entry {
    room: Room,
    /// Given back when it is closed.
    _place: Option<Place>,
    /// Counts it as long as it is open.
    _connected: Option<Connected>,
}

/// Where there is room for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Inside,
    Anteroom(Excess),
    Nowhere(Excess),
}

/// Counts connections.
#[derive(Debug)]
pub(super) struct Gate {
    bounds: Bounds,
    /// Locked when a connection comes and when it goes, and for nothing in between.
    open: Mutex<Open>,
    noted: Seldom,
}

#[derive(Debug, Default)]
struct Open {
    inside: usize,
    anteroom: usize,
    /// Each has at least one.
    of_address: HashMap<Source, usize>,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
struct Place {
    gate: Arc<Gate>,
    source: Option<Source>,
    is_inside: bool,
}

impl Gate {
    /// Nobody is in.
    pub(super) fn new(bounds: Bounds) -> Gate {
        Gate {
            bounds,
            open: Mutex::default(),
            noted: Seldom::default(),
        }
    }

    /// A connection comes. Proxies that are trusted have no bound of their own: they speak for many.
    fn enter(self: &Arc<Gate>, peer: SocketAddr, config: &ServerConfig) -> Entry {
        let ip = peer.ip().to_canonical();
        let trusted = config.trusted_proxies.iter().any(|range| range.contains(&ip));
        let source = (!trusted).then(|| Source::of(ip));
        let room = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.count(self.bounds, source, config.max_connections_per_address)
        };
        if let Room::Anteroom(excess) | Room::Nowhere(excess) = room {
            self.note(peer, excess);
        }
        let counted = !matches!(room, Room::Nowhere(_));
        let place = counted.then(|| Place {
            gate: Arc::clone(self),
            source,
            is_inside: room == Room::Inside,
        });
        Entry {
            room,
            _place: place,
            _connected: None,
        }
    }

    fn note(&self, peer: SocketAddr, excess: Excess) {
        let Some(since) = self.noted.once() else { return };
        match excess {
            Excess::OfAddress => tracing::warn!(
                address = %peer.ip(),
                turned_away = since,
                "an address has as many connections as [server] max_connections_per_address allows; if it is a proxy, name it in trusted_proxies"
            ),
            Excess::All => tracing::warn!(
                turned_away = since,
                "there are as many connections as [server] max_connections and the system allow"
            ),
        }
    }
}

impl Open {
    /// Counts one more, unless there is no room for it.
    fn count(&mut self, bounds: Bounds, source: Option<Source>, most: usize) -> Room {
        let of_address = source
            .and_then(|source| self.of_address.get(&source))
            .copied()
            .unwrap_or(0);
        let waits = |excess| match self.anteroom < bounds.anteroom && of_address < most + SHARE {
            true => Room::Anteroom(excess),
            false => Room::Nowhere(excess),
        };
        let room = if of_address >= most {
            waits(Excess::OfAddress)
        } else if self.inside >= bounds.all {
            waits(Excess::All)
        } else {
            Room::Inside
        };
        match room {
            Room::Inside => self.inside += 1,
            Room::Anteroom(_) => self.anteroom += 1,
            Room::Nowhere(_) => return room,
        }
        if let Some(source) = source {
            *self.of_address.entry(source).or_default() += 1;
        }
        room
    }

    fn discount(&mut self, source: Option<Source>, is_inside: bool) {
        let of = if is_inside {
            &mut self.inside
        } else {
            &mut self.anteroom
        };
        *of = of.saturating_sub(1);
        let Some(source) = source else { return };
        if let Some(count) = self.of_address.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&source);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.discount(self.source, self.is_inside);
    }
}

/// What the log says once in a while, however often it happens.
#[derive(Debug)]
pub(super) struct Seldom {
    clock: Stopwatch,
    /// In seconds of the clock.
    next: AtomicU64,
    times: AtomicU64,
}

impl Default for Seldom {
    fn default() -> Seldom {
        Seldom {
            clock: Stopwatch::start(),
            next: AtomicU64::new(0),
            times: AtomicU64::new(0),
        }
    }
}

impl Seldom {
    /// It happened once more; how often since it was last said, when it is to be said again.
    pub(super) fn once(&self) -> Option<u64> {
        self.times.fetch_add(1, Ordering::Relaxed);
        let (now, next) = (self.clock.elapsed().as_secs(), self.next.load(Ordering::Relaxed));
        let due = now >= next
            && self
                .next
                .compare_exchange(next, now + NOTED.as_secs(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        due.then(|| self.times.swap(0, Ordering::Relaxed))
    }
}

/// Gives each connection its place.
#[derive(Clone)]
pub(super) struct Doors {
    pub(super) router: Router,
    pub(super) gate: Arc<Gate>,
    /// For the settings of the time.
    pub(super) gateway: Arc<Gateway>,
}

impl Service<SocketAddr> for Doors {
    type Response = Visitor;
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Visitor, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, peer: SocketAddr) -> Self::Future {
        let entry = self.gate.enter(peer, &self.gateway.settings.load().config.server);
        let entry = Entry {
            _connected: Some(self.gateway.metrics.connected()),
            ..entry
        };
        ready(Ok(Visitor {
            router: self.router.clone(),
            peer,
            entry: Arc::new(entry),
        }))
    }
}

/// A connection's place, for what goes on with it when HTTP has ended there.
#[derive(Clone, Debug)]
pub(super) struct Stay {
    _entry: Arc<Entry>,
}

/// What serves one connection.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    router: Router,
    peer: SocketAddr,
    /// Its place is given back with the last clone, when the connection is closed.
    entry: Arc<Entry>,
}

impl<B> Service<Request<B>> for Visitor
where
    Router: Service<Request<B>>,
{
    type Response = <Router as Service<Request<B>>>::Response;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.router.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        if let Room::Anteroom(excess) = self.entry.room {
            request.extensions_mut().insert(excess);
        }
        if request.method() == Method::GET && request.headers().contains_key(UPGRADE) {
            let stay = Stay {
                _entry: Arc::clone(&self.entry),
            };
            request.extensions_mut().insert(stay);
        }
        self.router.call(request)
    }
}

impl Visitor {
    /// How long it may stay, if it may not.
    pub(super) fn time(&self) -> Option<Duration> {
        matches!(self.entry.room, Room::Anteroom(_)).then_some(ANTEROOM_TIME)
    }

    /// A new connection as a stream with patience, if it has a place; one that has none is answered and closed.
    pub(super) fn greet(&self, stream: TcpStream, in_the_clear: bool) -> io::Result<Impatient<TcpStream>> {
        let stream = match self.entry.room {
            Room::Inside => Impatient::new(stream),
            Room::Anteroom(_) => Impatient::for_at_most(stream, ANTEROOM_TIME),
            Room::Nowhere(excess) => {
                if in_the_clear {
                    last_word(&stream, &refusal::raw(&excess.refusal()));
                }
                return Err(io::Error::other("there is no place for it"));
            }
        };
        stream.get_ref().set_nodelay(true)?;
        Ok(stream)
    }
}

/// Says so much of an answer as goes without waiting, before the connection is closed.
pub(super) fn last_word(stream: &TcpStream, answer: &[u8]) {
    // What was not read when a connection is closed resets it, and the answer may be lost.
    let mut request = [0; GLANCE];
    let told = stream.try_write(answer).and_then(|_| stream.try_read(&mut request));
    if let Err(error) = told {
        tracing::trace!(%error, "a connection was closed without a word");
    }
}

/// Accepts connections in plain HTTP: small writes leave at once, and stalled ones do not wait for ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acceptor;

impl Accept<TcpStream, Visitor> for Acceptor {
    type Stream = Impatient<TcpStream>;
    type Service = Visitor;
    type Future = Ready<io::Result<(Impatient<TcpStream>, Visitor)>>;

    fn accept(&self, stream: TcpStream, visitor: Visitor) -> Self::Future {
        ready(visitor.greet(stream, true).map(|stream| (stream, visitor)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Config, Sources};

    const BOUNDS: Bounds = Bounds { all: 50, anteroom: 40 };

    /// A gate, and what connections come through it by: ten of one address, but of proxies as many as there may be.
    fn gate() -> (Arc<Gate>, impl Fn(SocketAddr) -> Entry) {
        let gate = Arc::new(Gate::new(BOUNDS));
        let sources = Sources {
            file: Some((
                "gateway.toml".into(),
                "[server]\nmax_connections_per_address = 10\ntrusted_proxies = [\"10.0.0.0/8\"]".into(),
            )),
            env: &BTreeMap::from([("HOME".to_owned(), "/home/me".to_owned())]),
            flags: Vec::new(),
            read: &|path| Err(crate::bilingual!(en: "{path:?} is not read", zh: "不读取 {path:?}")),
        };
        let config = Config::load(sources).expect("settings").config.server;
        let through = Arc::clone(&gate);
        (gate, move |peer| through.enter(peer, &config))
    }

    fn from(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), 1)
    }

    fn inside(entries: &[Entry]) -> usize {
        entries.iter().filter(|entry| entry.room == Room::Inside).count()
    }

    fn excess(entries: &[Entry]) -> Vec<Excess> {
        let of = |entry: &Entry| match entry.room {
            Room::Anteroom(excess) => Some(excess),
            Room::Inside | Room::Nowhere(_) => None,
        };
        entries.iter().filter_map(of).collect()
    }

    #[test]
    fn one_address_takes_its_share_and_no_more_however_often_it_comes() {
        let (gate, enter) = gate();
        let one: Vec<Entry> = (0..100).map(|_| enter(from("192.0.2.1"))).collect();
        assert_eq!((inside(&one), excess(&one)), (10, vec![Excess::OfAddress; SHARE]));
        let mapped = enter(from("::ffff:192.0.2.1"));
        assert_eq!(mapped.room, Room::Nowhere(Excess::OfAddress), "it is the same");
        let network: Vec<Entry> = (0..20).map(|n| enter(from(&format!("2001:db8::{n:x}")))).collect();
        assert_eq!(inside(&network), 10, "so is a network of IPv6");
        let proxy: Vec<Entry> = (0..20).map(|_| enter(from("10.0.0.1"))).collect();
        assert_eq!(inside(&proxy), 20, "a proxy that is trusted speaks for many");
        drop((one, mapped, network, proxy));
        let open = gate.open.lock().expect("nobody panicked");
        assert_eq!((open.inside, open.anteroom, open.of_address.len()), (0, 0, 0));
    }

    #[test]
    fn beyond_all_there_is_the_anteroom_and_beyond_that_nothing() {
        let (gate, enter) = gate();
        let mut all: Vec<Entry> = (0..100).map(|n| enter(from(&format!("192.0.2.{n}")))).collect();
        assert_eq!((inside(&all), excess(&all)), (50, vec![Excess::All; 40]));
        assert_eq!(all.last().map(|entry| entry.room), Some(Room::Nowhere(Excess::All)));
        all.remove(0);
        let next = enter(from("198.51.100.1"));
        assert_eq!(next.room, Room::Inside, "who leaves makes room");
        drop((all, next));
        let open = gate.open.lock().expect("nobody panicked");
        assert_eq!((open.inside, open.anteroom, open.of_address.len()), (0, 0, 0));
    }

    #[test]
    fn each_connection_has_two_files_and_some_are_left() {
        let all = |most, files| {
            let bounds = Bounds::within(most, files);
            assert!(2 * bounds.all + bounds.anteroom <= files, "{bounds:?}");
            (bounds.all, bounds.anteroom)
        };
        assert_eq!(all(10_000, 1_000_000), (10_000, 512));
        assert_eq!(all(10_000, 20_000), (9_680, 512));
        assert_eq!(all(10_000, 1_024), (384, 128));
        assert_eq!(all(10_000, 256), (80, 32));
        assert_eq!(all(50, 1_024), (50, 128));
    }
}
