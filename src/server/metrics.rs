//! `GET /metrics`, on an address of its own: whoever reaches it asks without a key.
//!
//! One page is made at a time, so that whoever asks in a storm takes no more of the database's readers than one.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use axum_server::Handle;
use http::header::ACCEPT;
use hyper_util::rt::TokioTimer;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use super::{App, StartError, not_ready, plain, typed};
use crate::breaker;
use crate::metrics::{Breaker, Format, Sight, page};

/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(10);

/// An address that is listened on, and not served yet.
#[derive(Debug)]
pub(super) struct Bound {
    addr: SocketAddr,
    socket: TcpListener,
}

/// Where the metrics are served.
#[derive(Debug)]
pub(super) struct Listener {
    addr: SocketAddr,
    handle: Handle<SocketAddr>,
}

/// What a page is made of, and whose turn it is.
struct Source {
    app: Arc<App>,
    turn: Mutex<()>,
}

/// Listens.
///
/// # Errors
/// [`StartError::Metrics`].
pub(super) fn bind(addr: SocketAddr) -> Result<Bound, StartError> {
    let bound = super::bind(addr).and_then(|socket| Ok((socket.local_addr()?, socket)));
    let (addr, socket) = bound.map_err(|source| StartError::Metrics { addr, source })?;
    Ok(Bound { addr, socket })
}

impl Bound {
    /// Serves on a task, until it is stopped.
    pub(super) fn serve(self, app: Arc<App>, tasks: &TaskTracker) -> Listener {
        let Bound { addr, socket } = self;
        let handle = Handle::new();
        tasks.spawn(serve(socket, handle.clone(), app));
        Listener { addr, handle }
    }
}

impl Listener {
    /// `http://ADDR/metrics`
    pub(super) fn url(&self) -> String {
        format!("http://{}/metrics", self.addr)
    }

    /// Stops at once.
    pub(super) fn stop(self) {
        self.handle.shutdown();
    }
}

async fn serve(socket: TcpListener, handle: Handle<SocketAddr>, app: Arc<App>) -> std::io::Result<()> {
    let turn = Mutex::new(());
    let router = Router::new()
        .route("/metrics", get(scrape))
        .with_state(Arc::new(Source { app, turn }));
    let mut server = axum_server::from_tcp(socket)?
        .handle(handle)
        .http1_only()
        .first_request_timeout(HEAD);
    server.http_builder().http1().timer(TokioTimer::new());
    server.serve(router.into_make_service()).await
}

async fn scrape(State(source): State<Arc<Source>>, headers: HeaderMap) -> Response<Body> {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    let _turn = source.turn.lock().await;
    let gateway = &source.app.gateway;
    let (metrics, counts) = (Arc::clone(&gateway.metrics), Arc::clone(gateway.writer.counts()));
    let ready = not_ready(&source.app).is_none();
    let live = gateway.live();
    let breakers = live
        .upstreams
        .iter()
        .map(|upstream| (upstream.name().to_owned(), stands(upstream.breaker_state())));
    let breakers = breakers.collect();
    let written = gateway.store.blocking(move |store| {
        let sight = Sight::of(store, counts, ready, breakers);
        page(&metrics, sight, format)
    });
    match written.await {
        Ok(page) => typed(page.into(), format.media()),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// As it is written.
fn stands(breaker: breaker::State) -> Breaker {
    match breaker {
        breaker::State::Closed => Breaker::Closed,
        breaker::State::HalfOpen => Breaker::HalfOpen,
        breaker::State::Open => Breaker::Open,
    }
}
