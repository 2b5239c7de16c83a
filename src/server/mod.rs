//! The server: settings to a running gateway; its listener, its routes and its graceful stop.

pub mod auth;
mod guard;
pub mod models;
mod offer;
mod payer;
mod proxy;
mod refusal;
mod routes;
mod stall;
mod sweep;
mod touch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use axum_server::Handle;
use http::header::CONTENT_TYPE;
use ipnet::IpNet;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Endpoint;
use crate::config::{Config, Pricing, UpstreamConfig};
use crate::exchange::{Gateway, Upstream, UpstreamError};
use crate::pricing::ListName;
use crate::refusal::Refusal;
use crate::route::{Catalogue, Routes, Served};
use crate::store::{ExchangeId, OpenError, Outcome, ServerLock, Store, StoreError};
use crate::time;
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
    /// An upstream's settings cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
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
    trusted_proxies: Vec<IpNet>,
    max_body: usize,
    body_timeout: Duration,
    body_memory: proxy::BodyMemory,
    stopping: AtomicBool,
    used_keys: touch::UsedKeys,
    turns: payer::Turns,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    app: Arc<App>,
    handle: Handle<SocketAddr>,
    drain_timeout: Duration,
    tasks: TaskTracker,
    background: CancellationToken,
    writer_tasks: TaskTracker,
    serving: JoinHandle<std::io::Result<()>>,
    lock: ServerLock,
}

/// Opens the listener and serves. What a process that died left open is closed first.
pub async fn start(config: Config, store: Store) -> Result<Server, StartError> {
    if config.upstreams.is_empty() {
        return Err(StartError::NoUpstream);
    }
    let upstreams = config.upstreams.iter().map(upstream).collect::<Result<Vec<_>, _>>()?;
    let lock = ServerLock::acquire(store.path())?;
    store.whole()?;
    let writer_tasks = TaskTracker::new();
    let writer = store.start_writer(&writer_tasks, config.disk);
    close_interrupted(&store).await?;
    let listen = |source| StartError::Listen {
        addr: config.server.listen,
        source,
    };
    let listener = bind(config.server.listen).map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    lock.set_note(&format!("http://{addr}"))?;
    let gateway = Arc::new(Gateway {
        routes: Routes::new(config.upstreams.iter().map(served)),
        upstreams,
        store,
        writer,
        billing: config.billing,
        max_response: config.server.max_response,
        tracker: TaskTracker::new(),
        cutoff: CancellationToken::new(),
    });
    let app = Arc::new(App {
        gateway,
        trusted_proxies: config.server.trusted_proxies,
        max_body: config.server.max_body,
        body_timeout: config.server.body_timeout,
        body_memory: proxy::BodyMemory::default(),
        stopping: AtomicBool::new(false),
        used_keys: touch::UsedKeys::default(),
        turns: payer::Turns::default(),
    });
    let handle = Handle::new();
    let (tasks, background) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(touch::flush_regularly(Arc::clone(&app), background.clone()));
    tasks.spawn(sweep::sweep_regularly(Arc::clone(&app), background.clone()));
    let serving = tasks.spawn(serve(
        listener,
        config.server.header_timeout,
        handle.clone(),
        Arc::clone(&app),
    ));
    Ok(Server {
        lock,
        addr,
        app,
        handle,
        drain_timeout: config.server.drain_timeout,
        tasks,
        background,
        writer_tasks,
        serving,
    })
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
    header_timeout: Duration,
    handle: Handle<SocketAddr>,
    app: Arc<App>,
) -> std::io::Result<()> {
    let router = Router::new().fallback(dispatch).with_state(app);
    let mut server = axum_server::from_tcp(listener)?
        .acceptor(stall::Acceptor)
        .handle(handle)
        .http1_only()
        .first_request_timeout(header_timeout);
    server
        .http_builder()
        .http1()
        .header_read_timeout(KEPT_ALIVE.max(header_timeout))
        .max_buf_size(MAX_HEAD_BYTES)
        .timer(hyper_util::rt::TokioTimer::new());
    server
        .serve(router.into_make_service_with_connect_info::<SocketAddr>())
        .await
}

fn upstream(config: &UpstreamConfig) -> Result<Upstream, UpstreamError> {
    let ca = match &config.ca_file {
        None => None,
        Some(path) => Some(std::fs::read(path).map_err(|error| UpstreamError {
            name: config.name.clone(),
            what: format!("ca_file {} cannot be read: {error}", path.display()),
        })?),
    };
    Upstream::new(config, ca.as_deref())
}

fn served(config: &UpstreamConfig) -> Served {
    let openai = config.prices == Pricing::List(ListName::openai());
    Served {
        models: config.models.clone(),
        aliases: config.aliases.clone(),
        catalogue: if openai { Catalogue::OpenAi } else { Catalogue::Other },
    }
}

/// Releases the holds of a process that died: their clients cannot have had the end of an answer.
async fn close_interrupted(store: &Store) -> Result<(), StoreError> {
    match store.blocking(|store| store.release_interrupted(time::now())).await {
        Outcome::Committed(0) | Outcome::Refused(()) => Ok(()),
        Outcome::Committed(count) => {
            tracing::warn!(
                count,
                "calls were interrupted when the server died; their holds are released"
            );
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

    /// `http://ADDR`
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
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
        self.handle.graceful_shutdown(None);
        let cutoff = &self.app.gateway.cutoff;
        tokio::select! {
            () = tracker.wait() => {}
            () = tokio::time::sleep(self.drain_timeout) => cutoff.cancel(),
            () = cutoff.cancelled() => {}
        }
        self.app.gateway.writer.stop_retrying();
        tracker.wait().await;
        let flushed = tokio::time::timeout(FLUSH, self.serving).await;
        if flushed.is_err() {
            self.handle.shutdown();
        }
        self.background.cancel();
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
    if let Err(refusal) = guard::check(&head) {
        return identified(refusal::respond(&refusal, None, id), id);
    }
    let path = head.uri.path().to_owned();
    let below = path
        .strip_prefix("/v1")
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(&path);
    // Codex reads what comes from below /responses, too.
    let told_as =
        Endpoint::from_path(below).or_else(|| below.starts_with("/responses/").then_some(Endpoint::Responses));
    let answered = match routes::find(&head.method, below) {
        Ok(Some((route, part))) => answer(&app, id, peer, route, part, head, body).await,
        Ok(None) => Err(unknown(&head.method, &path, below)),
        Err(refusal) => Err(refusal),
    };
    identified(
        answered.unwrap_or_else(|refusal| refusal::respond(&refusal, told_as, id)),
        id,
    )
}

async fn answer(
    app: &Arc<App>,
    id: ExchangeId,
    peer: SocketAddr,
    route: Route,
    part: &str,
    head: Parts,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    match route {
        Route::Health => Ok(plain(StatusCode::OK, "ok\n")),
        Route::Ready => Ok(ready(app)),
        Route::OpenApi => Ok(typed(OPENAPI.into(), "application/json")),
        Route::Call(endpoint) => proxy::call(app, id, endpoint, peer, head.headers, body).await,
        Route::Upgrade => Err(Refusal::UpgradeRequired),
        Route::Models => offer::list(app, peer, &head.headers).await,
        Route::Model => offer::show(app, peer, &head.headers, part).await,
        Route::Payer(view) => payer::answer(app, view, peer, &head, part).await,
    }
}

fn identified(mut response: Response<Body>, id: ExchangeId) -> Response<Body> {
    if let Ok(id) = id.to_string().parse() {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// OpenAI's other endpoints: what they cost cannot be metered here.
const NOT_METERED: [&str; 24] = [
    "agents",
    "assistants",
    "audio",
    "batches",
    "chat",
    "containers",
    "conversations",
    "decisions",
    "embeddings",
    "evals",
    "files",
    "fine_tuning",
    "images",
    "live",
    "moderations",
    "organization",
    "realtime",
    "responses",
    "skills",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
    "completions",
];

fn unknown(method: &Method, path: &str, below: &str) -> Refusal {
    let endpoint = format!("{method} {path}");
    let first = below.trim_start_matches('/').split('/').next().unwrap_or("");
    if NOT_METERED.contains(&first) {
        Refusal::NotSupported { endpoint }
    } else {
        Refusal::NoRoute { endpoint }
    }
}

fn ready(app: &App) -> Response<Body> {
    if app.stopping.load(Ordering::SeqCst) {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "not ready: the server is stopping\n");
    }
    match app.gateway.writer.problem() {
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        None => plain(StatusCode::OK, "ready\n"),
    }
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
