//! The server: settings to a running gateway; its listener, its routes and its graceful stop.

mod accept;
pub mod auth;
mod failures;
mod guard;
mod http1;
mod metrics;
pub mod models;
mod offer;
mod passing;
mod payer;
mod proxy;
mod rates;
mod refusal;
mod reload;
mod rollup;
mod routes;
mod source;
mod stall;
pub mod status;
mod sweep;
mod tags;
mod tls;
mod touch;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum_server::Handle;
use http::header::{CONNECTION, CONTENT_TYPE};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::accept::{Bounds, Doors, Excess, Gate};
use self::http1::Http1Only;
use self::refusal::Refused;
pub use self::tls::TlsError;
use self::tls::{Certificate, renew_regularly};
use crate::bilingual;
use crate::call::Endpoint;
use crate::config::{Config, UpstreamConfig};
use crate::events::{self, Outbox, Sink, SinkError};
use crate::exchange::{
    Backgrounds, BodyMemory, Gateway, Homes, Kin, Listings, Live, RecordingMemory, Roll, Throttle, Tracer, Upstream,
    UpstreamError,
};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::retry::Budget;
use crate::store::ledger::Swept;
use crate::store::{ExchangeId, OpenError, Outcome, ServerLock, Store, StoreError};
use crate::time;
pub use reload::TakenIn;
use routes::Route;

/// Request heads larger than this are refused (Codex sends some 4 KiB).
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Connections that wait to be accepted. The standard library's 128 overflow when an office's agents start at once, and
/// each that is dropped tries again only after a second.
const BACKLOG: u32 = 4096;

/// How long a connection may idle between two requests; its first head has `header_timeout`.
const KEPT_ALIVE: Duration = Duration::from_secs(75);

/// How long the last answers may take to leave once their exchanges are settled.
const FLUSH: Duration = Duration::from_secs(2);

/// What is served, for programs: OpenAPI 3.1.
const OPENAPI: &str = include_str!("openapi.json");

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing to forward to.
    #[error("no upstream is configured")]
    NoUpstream,
    /// The address cannot be had.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address for the metrics cannot be had.
    #[error("cannot listen on {addr} for [metrics]")]
    Metrics {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An upstream's settings cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// A sink's settings cannot be used.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The books cannot be mended.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another server has the books open.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What the routes share.
#[derive(Debug)]
pub(crate) struct App {
    gateway: Arc<Gateway>,
    body_memory: BodyMemory,
    websockets: websocket::WebSockets,
    /// Calls that run, also those whose clients have left: as many as connections.
    exchanges: Arc<Semaphore>,
    failures: failures::Failures,
    stopping: AtomicBool,
    used_keys: touch::UsedKeys,
    turns: payer::Turns,
    tries: payer::Tries,
    tags: tags::Tags,
}

/// A request that came: which, from where, and the settings that it is answered by.
#[derive(Debug)]
pub(crate) struct Arrival {
    id: ExchangeId,
    peer: SocketAddr,
    live: Arc<Live>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    scheme: &'static str,
    app: Arc<App>,
    handle: Handle<SocketAddr>,
    tasks: TaskTracker,
    background: CancellationToken,
    writer_tasks: TaskTracker,
    serving: JoinHandle<std::io::Result<()>>,
    metrics: Option<metrics::Listener>,
    lock: ServerLock,
}

/// Opens the listener and serves. What a process that died left open is closed first.
pub async fn start(config: Config, store: Store) -> Result<Server, StartError> {
    if config.upstreams.is_empty() {
        return Err(StartError::NoUpstream);
    }
    let upstreams = reload::upstreams(&config)?;
    let sinks = config.sinks.iter().map(|sink| Sink::new(sink, store.path()));
    let sinks = sinks.collect::<Result<Vec<_>, _>>()?;
    let certificate = config.server.tls.clone().map(Certificate::read).transpose()?;
    let lock = ServerLock::acquire(store.path())?;
    store.whole()?;
    let names: Vec<&str> = sinks.iter().map(Sink::name).collect();
    store.open_sinks(&names, &config.events)?;
    let writer_tasks = TaskTracker::new();
    let writer = store.start_writer(&writer_tasks, config.disk);
    close_interrupted(&store).await?;
    let (backgrounds, mut poller) = Backgrounds::new();
    poller.take_over(&store, &writer).await?;
    let listen = |source| StartError::Listen {
        addr: config.server.listen,
        source,
    };
    let listener = bind(config.server.listen).map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let metrics = config.metrics.listen.map(metrics::bind).transpose()?;
    let bounds = Bounds::of(&config.server);
    let scheme = config.server.scheme();
    let address = format!("{scheme}://{addr}");
    let socket = status_socket(&store);
    lock.set_note(&address, socket.as_ref().and_then(status::Socket::elsewhere))?;
    let header_timeout = config.server.header_timeout;
    let max_waiting = config.events.max_waiting;
    let gateway = Arc::new(Gateway {
        settings: ArcSwap::from_pointee(Live::new(config, upstreams)),
        store,
        writer,
        throttle: Arc::new(Throttle::default()),
        metrics: Arc::new(Metrics::new(time::now())),
        tracer: Tracer::start(),
        recordings: RecordingMemory::default(),
        roll: Roll::default(),
        backgrounds,
        retries: Budget::default(),
        homes: Homes::default(),
        kin: Kin::default(),
        listings: Listings::default(),
        tracker: TaskTracker::new(),
        cutoff: CancellationToken::new(),
    });
    let body_memory = BodyMemory::default();
    let app = Arc::new(App {
        gateway,
        websockets: websocket::WebSockets::new(&body_memory),
        body_memory,
        exchanges: Arc::new(Semaphore::new(bounds.all)),
        failures: failures::Failures::default(),
        stopping: AtomicBool::new(false),
        used_keys: touch::UsedKeys::default(),
        turns: payer::Turns::default(),
        tries: payer::Tries::default(),
        tags: tags::Tags::default(),
    });
    let handle = Handle::new();
    let (tasks, background) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(touch::flush_regularly(Arc::clone(&app), background.clone()));
    tasks.spawn(sweep::sweep_regularly(Arc::clone(&app), background.clone()));
    tasks.spawn(poller.run(Arc::clone(&app.gateway), background.clone()));
    tasks.spawn(rollup::roll_up_regularly(Arc::clone(&app), background.clone()));
    let watched = status::Watched::new(&app, &handle, address);
    tasks.spawn(status::serve(watched, socket, background.clone()));
    let outbox = Outbox {
        store: app.gateway.store.clone(),
        writer: app.gateway.writer.clone(),
        max_waiting,
    };
    for sink in sinks {
        tasks.spawn(events::deliver(sink, outbox.clone(), background.clone()));
    }
    drop(outbox);
    let metrics = metrics.map(|bound| bound.serve(Arc::clone(&app), &tasks));
    if let Some(certificate) = &certificate {
        tasks.spawn(renew_regularly(certificate.clone(), background.clone()));
    }
    let doors = Doors {
        router: Router::new().fallback(dispatch).with_state(Arc::clone(&app)),
        gate: Arc::new(Gate::new(bounds)),
        gateway: Arc::clone(&app.gateway),
    };
    let serving = tasks.spawn(serve(listener, certificate, header_timeout, handle.clone(), doors));
    Ok(Server {
        lock,
        addr,
        scheme,
        app,
        handle,
        tasks,
        background,
        writer_tasks,
        serving,
        metrics,
    })
}

/// Where the status is asked for; without it the server serves all the same.
fn status_socket(store: &Store) -> Option<status::Socket> {
    let opened = status::Socket::open(store.path());
    opened
        .inspect_err(|error| {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "`gateway status` will not find this server"
            );
        })
        .ok()
}

/// Listens, without blocking.
fn bind(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As the standard library does: a restart may take the port of connections that are still closing.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts connections until the handle says stop.
async fn serve(
    listener: std::net::TcpListener,
    certificate: Option<Certificate>,
    header_timeout: Duration,
    handle: Handle<SocketAddr>,
    doors: Doors,
) -> std::io::Result<()> {
    let noted = accept::Seldom::default();
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle)
        .first_request_timeout(header_timeout)
        .accept_error_handler(move |peer, error| match peer {
            Some(peer) => tracing::debug!(%peer, %error, "a connection is closed"),
            None => {
                if let Some(times) = noted.once() {
                    tracing::warn!(%error, times, "connections cannot be accepted");
                }
            }
        });
    server
        .http_builder()
        .http1()
        .header_read_timeout(KEPT_ALIVE.max(header_timeout))
        .max_buf_size(MAX_HEAD_BYTES)
        .timer(hyper_util::rt::TokioTimer::new());
    match certificate {
        None => server.acceptor(Http1Only(accept::Acceptor)).serve(doors).await,
        Some(certificate) => {
            let acceptor = certificate.acceptor(header_timeout);
            server.acceptor(Http1Only(acceptor)).serve(doors).await
        }
    }
}

/// An upstream as it is configured, with the connections of the same one before it, if they lead the same way.
///
/// # Errors
/// Its `ca_file`, its proxy or its credential cannot be used.
pub fn upstream(config: &UpstreamConfig, before: Option<&Upstream>) -> Result<Upstream, UpstreamError> {
    let ca = match &config.ca_file {
        None => None,
        Some(path) => Some(std::fs::read(path).map_err(|error| {
            let path = path.display();
            UpstreamError {
                name: config.name.clone(),
                what: bilingual!(en: "ca_file {path} cannot be read: {error}", zh: "无法读取 ca_file {path}：{error}"),
            }
        })?),
    };
    Upstream::new(config, ca, before)
}

/// Releases the holds of a process that died: their clients cannot have had the end of an answer.
async fn close_interrupted(store: &Store) -> Result<(), StoreError> {
    match store.blocking(|store| store.release_interrupted(time::now())).await {
        Outcome::Refused(()) => Ok(()),
        Outcome::Committed(Swept { released: count, stuck }) => {
            if count > 0 {
                tracing::warn!(
                    count,
                    "calls were interrupted when the server died; their holds are released"
                );
            }
            sweep::tell_of_stuck(&stuck);
            Ok(())
        }
        Outcome::NotCommitted(error) | Outcome::Unknown(error) => Err(error),
    }
}

impl Server {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://ADDR`, or `https://ADDR`
    pub fn base_url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Reads and writes the books beside the calls.
    pub fn store(&self) -> &Store {
        &self.app.gateway.store
    }

    /// Where the metrics are, if they are anywhere: `http://ADDR/metrics`
    pub fn metrics_url(&self) -> Option<String> {
        self.metrics.as_ref().map(metrics::Listener::url)
    }

    /// Waits until no exchange runs.
    pub async fn idle(&self) {
        let tracker = &self.app.gateway.tracker;
        tracker.close();
        tracker.wait().await;
        tracker.reopen();
    }

    /// Ends running streams when it is cancelled, also while [`Server::stop`] runs.
    pub fn cutoff(&self) -> CancellationToken {
        self.app.gateway.cutoff.clone()
    }

    /// Ends running streams at once: they are settled by estimate. [`Server::stop`] then ends soon.
    pub fn cut_off(&self) {
        self.app.gateway.cutoff.cancel();
    }

    /// Resolves when the books' outcome is unknown: the process has to stop.
    pub async fn failed(&self) -> String {
        let error = self.app.gateway.writer.failed().await;
        format!("the books may not be as they seem: {error}")
    }

    /// Stops accepting, lets running calls finish up to `drain_timeout`, settles all.
    ///
    /// # Errors
    /// Why the books may not be as they seem.
    pub async fn stop(self) -> Result<(), String> {
        let failure = self.app.gateway.writer.failure();
        self.app.stopping.store(true, Ordering::SeqCst);
        let tracker = &self.app.gateway.tracker;
        tracker.close();
        let websockets = &self.app.websockets;
        websockets.leave();
        self.handle.graceful_shutdown(None);
        let cutoff = &self.app.gateway.cutoff;
        let drain_timeout = self.app.gateway.live().config.server.drain_timeout;
        tokio::select! {
            () = tracker.wait() => {}
            () = tokio::time::sleep(drain_timeout) => cutoff.cancel(),
            () = cutoff.cancelled() => {}
        }
        self.app.gateway.writer.stop_retrying();
        tracker.wait().await;
        let leaving = async { tokio::join!(self.serving, websockets.closed()) };
        let flushing = tokio::time::timeout(FLUSH, leaving);
        let (flushed, ()) = tokio::join!(flushing, self.app.gateway.tracer.stop());
        if flushed.is_err() {
            self.handle.shutdown();
            websockets.tear();
            websockets.closed().await;
        }
        self.background.cancel();
        if let Some(metrics) = self.metrics {
            metrics.stop();
        }
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.app);
        self.writer_tasks.close();
        self.writer_tasks.wait().await;
        drop(self.lock);
        failure.why().map_or(Ok(()), Err)
    }
}

/// Answers by the table of routes: with `/v1` and without.
async fn dispatch(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request<Body>,
) -> Response<Body> {
    let id = ExchangeId(uuid::Uuid::now_v7());
    let (head, body) = request.into_parts();
    let accepted = refusal::accepted(&head.headers);
    if let Err(refusal) = guard::check(&head) {
        return identified(
            refusal::respond(&app.gateway.metrics, &refusal.into(), accepted, None, id),
            id,
        );
    }
    let path = head.uri.path().to_owned();
    let below = path
        .strip_prefix("/v1")
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(&path);
    // Codex reads what comes from below /responses, too.
    let told_as =
        Endpoint::from_path(below).or_else(|| below.starts_with("/responses/").then_some(Endpoint::Responses));
    let arrival = Arrival {
        id,
        peer,
        live: app.gateway.live(),
    };
    let excess = head.extensions.get::<Excess>().copied();
    let answered = match (routes::find(&head.method, below), excess) {
        (Ok(Some((route @ (Route::Health | Route::Ready), part))), _) | (Ok(Some((route, part))), None) => {
            answer(&app, &arrival, route, part, head, body).await
        }
        (_, Some(excess)) => Err(excess.refusal().into()),
        (Ok(None), None) => Err(Refusal::NoRoute {
            endpoint: format!("{} {path}", head.method),
        }
        .into()),
        (Err(refusal), None) => Err(refusal.into()),
    };
    let mut response =
        answered.unwrap_or_else(|refused| refusal::respond(&app.gateway.metrics, &refused, accepted, told_as, id));
    if excess.is_some() {
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    identified(response, id)
}

async fn answer(
    app: &Arc<App>,
    arrival: &Arrival,
    route: Route,
    part: &str,
    head: Parts,
    body: Body,
) -> Result<Response<Body>, Refused> {
    match route {
        Route::Health => Ok(plain(StatusCode::OK, "ok\n")),
        Route::Ready => Ok(ready(app)),
        Route::OpenApi => Ok(typed(OPENAPI.into(), "application/json")),
        Route::Call(endpoint) => proxy::call(app, arrival, endpoint, head.headers, body).await,
        Route::Upgrade => websocket::open(app, arrival, head).await,
        Route::Models => offer::list(app, arrival, &head.headers).await,
        Route::Model => offer::show(app, arrival, &head.headers, part).await,
        Route::Payer(view) => payer::answer(app, view, arrival, &head, part).await,
        Route::Redeem => payer::redeem(app, arrival, &head, body).await,
        Route::Free(free) => passing::pass(app, arrival, (free, part), head, body).await,
        Route::Refused => Err(Refusal::NotSupported {
            endpoint: format!("{} {}", head.method, head.uri.path()),
        }
        .into()),
    }
}

fn identified(mut response: Response<Body>, id: ExchangeId) -> Response<Body> {
    // An answer that is given once more has that of its exchange.
    if let Ok(id) = id.to_string().parse() {
        response.headers_mut().entry("x-request-id").or_insert(id);
    }
    response
}

fn ready(app: &App) -> Response<Body> {
    match not_ready(app) {
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        None => plain(StatusCode::OK, "ready\n"),
    }
}

/// Why no calls are taken, if they are not.
fn not_ready(app: &App) -> Option<String> {
    if app.stopping.load(Ordering::SeqCst) {
        return Some("the server is stopping".to_owned());
    }
    app.gateway
        .writer
        .problem()
        .or_else(|| no_upstream(&app.gateway.live()))
}

/// That there is no upstream to be had, if so. One that is to be tried again counts as there: without calls nobody would
/// learn that it is.
fn no_upstream(live: &Live) -> Option<String> {
    let upstreams = &live.upstreams;
    let names = || upstreams.iter().map(|upstream| upstream.name()).collect::<Vec<_>>();
    let are_down = upstreams.iter().all(|upstream| upstream.is_down());
    are_down.then(|| format!("no upstream answers: {}", names().join(", ")))
}

fn typed(body: Body, media: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn plain(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = typed(text.into(), "text/plain; charset=utf-8");
    *response.status_mut() = status;
    response
}
