//! Requests that cost nothing: passed on to the upstream that they belong to, without a hold and without a receipt.
//!
//! ```text
//! server::passing ─ who is calling? may it go now?          Passing
//!    place ─ whose object is it? who serves the model?      an upstream, or 404
//!    send  ─ our credential, headers from a list            the head of an answer
//!    keep  ─ whose the new object is, durable               only then its id is told
//!    the answer, whole or as it comes
//! ```
//!
//! What makes or deletes an object is a task on the tracker, as an exchange is: whose the object is gets noted although
//! its client has left meanwhile. Everything else ends with its client.
//!
//! An object stays where it was made: upstreams do not share them. What has to be kept nowhere goes to the first upstream
//! that sells OpenAI's models, else to the first of all.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::admission::{self, storage};
use super::health::Turn;
use super::listing;
use super::uploading::{MAX_FILE, Upload};
use super::upstream::{self, Free as Request, NotPassed, returned_headers};
use super::{Gateway, LONGEST_CALL, Live, Permit, Upstream};
use crate::call::{Call, Edits, Endpoint};
use crate::config::Pricing;
use crate::endpoints::{Free, Kind};
use crate::meter::{MAX_ID_BYTES, Meter};
use crate::pricing::ListName;
use crate::refusal::{Refusal, UpstreamFault};
use crate::retry;
use crate::store::keys::Key;
use crate::store::objects;
use crate::store::{ExchangeId, Outcome, StoreError};
use crate::time::now;

/// An upstream's error is read up to here.
const ERROR_BYTES: usize = 1 << 20;

/// A request that costs nothing, with who makes it.
#[derive(Debug)]
pub struct Passing {
    /// The answer's `x-request-id`.
    pub id: ExchangeId,
    /// The settings in force.
    pub live: Arc<Live>,
    /// The key it came with, known to be good.
    pub key: Arc<Key>,
    /// What is asked.
    pub free: Free,
    /// Its method.
    pub method: Method,
    /// Its path below `/v1`.
    pub path: String,
    /// Its query.
    pub query: Option<String>,
    /// The object that its path names.
    pub object: String,
    /// The client's headers; only those on a list go on.
    pub headers: HeaderMap,
    /// What it has taken.
    pub taken: Taken,
}

/// What a request has taken, until the last of its answer is handed on, or until it has ended without a client.
#[derive(Debug)]
pub struct Taken {
    /// A stop waits for it.
    pub running: TaskTrackerToken,
    /// Its place among all exchanges.
    pub place: OwnedSemaphorePermit,
    /// What it is counted for.
    pub permit: Permit,
    /// The memory of its document.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// The body of a request.
#[derive(Debug)]
pub enum Carried {
    /// None.
    Nothing,
    /// A document.
    Document(Bytes),
    /// A file, on its way.
    File {
        /// It is read as it is sent.
        upload: Upload,
        /// Its length, if the client says.
        length: Option<HeaderValue>,
    },
}

/// An answer to pass on.
#[derive(Debug)]
pub struct Passed {
    /// Its status.
    pub status: StatusCode,
    /// Headers for the client.
    pub headers: HeaderMap,
    /// The body.
    pub body: Coming,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Coming {
    /// All of it.
    Whole(Bytes),
    /// As it comes.
    Still(Box<Rest>),
}

/// What of an answer is still to come.
#[derive(Debug)]
pub struct Rest {
    response: Response,
    idle: Duration,
    /// When it has to be all here.
    until: Instant,
    cutoff: CancellationToken,
    /// The background response whose stream it is: its end waits for the settlement.
    settles: Option<(Arc<Gateway>, ExchangeId)>,
    _taken: Taken,
    /// Its place among the requests under way at the upstream.
    _turn: Option<Turn>,
}

impl Rest {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// It broke off, paused for too long, or was cut off by a stop.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        let chunk = tokio::select! {
            chunk = timeout_at(self.until.min(Instant::now() + self.idle), self.response.chunk()) => chunk,
            () = self.cutoff.cancelled() => return Err(Refusal::ShuttingDown),
        };
        match chunk {
            Err(_) => Err(Refusal::Upstream(UpstreamFault::Timeout)),
            Ok(Err(_)) => Err(Refusal::Upstream(UpstreamFault::Broken)),
            Ok(Ok(None)) => {
                if let Some((gateway, exchange)) = self.settles.take() {
                    gateway.backgrounds.look(exchange).await;
                }
                Ok(None)
            }
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }
}

/// Where a request goes, and what is left of it then.
struct Placed {
    upstream: usize,
    /// The background response it is for, if that is not settled.
    unsettled: Option<ExchangeId>,
    turn: Option<Turn>,
    body: Carried,
}

/// Passes a request on.
///
/// # Errors
/// It is not known to be this user's, no upstream takes it, the upstream did not do its part, or a stop cut it off.
pub async fn pass(gateway: &Arc<Gateway>, passing: Passing, body: Carried) -> Result<Passed, Refusal> {
    if !is_noted(passing.free) {
        return unless_cut(gateway, passing, body).await;
    }
    let (to_client, passed) = oneshot::channel();
    let outliving = Arc::clone(gateway);
    gateway.tracker.spawn(Box::pin(async move {
        let passed = unless_cut(&outliving, passing, body).await;
        // A client that has left misses the answer; what it changed is noted.
        to_client.send(passed).unwrap_or_else(drop);
    }));
    passed.await.unwrap_or(Err(Refusal::Internal))
}

/// Whether it changes what is known here of whose an object is.
fn is_noted(free: Free) -> bool {
    match free {
        Free::Make(_) | Free::Complete | Free::Delete(Kind::Conversation | Kind::File | Kind::Upload) => true,
        Free::Delete(Kind::Response)
        | Free::Moderation
        | Free::Untold
        | Free::Count
        | Free::Read(_)
        | Free::Change(_)
        | Free::Part
        | Free::List(_) => false,
    }
}

async fn unless_cut(gateway: &Arc<Gateway>, passing: Passing, body: Carried) -> Result<Passed, Refusal> {
    tokio::select! {
        passed = timeout(LONGEST_CALL, passed(gateway, passing, body)) =>
            passed.unwrap_or(Err(Refusal::Upstream(UpstreamFault::Timeout))),
        () = gateway.cutoff.cancelled() => Err(Refusal::ShuttingDown),
    }
}

async fn passed(gateway: &Arc<Gateway>, passing: Passing, body: Carried) -> Result<Passed, Refusal> {
    if passing.free == Free::List(Kind::File) {
        return listing::list(gateway, &passing).await;
    }
    let placed = place(gateway, &passing, body).await?;
    if let (Free::Delete(Kind::Response), Some(exchange)) = (passing.free, placed.unsettled) {
        settle_before_deletion(gateway, &passing, exchange).await?;
    }
    let upstream = Arc::clone(&passing.live.upstreams[placed.upstream]);
    let response = send(&passing, &upstream, placed.body).await?;
    let deletes = matches!(passing.free, Free::Delete(kind) if kind != Kind::Response);
    if !response.status().is_success() {
        if deletes && response.status() == StatusCode::NOT_FOUND {
            // It expired, or went by another way: it would count among the user's for ever.
            forget(gateway, &passing, &upstream).await;
        }
        if let Some(exchange) = placed.unsettled.filter(|_| response.status() == StatusCode::NOT_FOUND) {
            gateway.backgrounds.look(exchange).await;
        }
        return refused(&upstream, response).await;
    }
    match (passing.free, placed.unsettled) {
        (Free::Make(_) | Free::Complete, _) => noted(gateway, &passing, &upstream, response).await,
        (Free::Delete(_), _) if deletes => noted(gateway, &passing, &upstream, response).await,
        (Free::Read(Kind::Response) | Free::Change(Kind::Response), Some(exchange)) if !is_stream(&response) => {
            looked_at(gateway, &passing, &upstream, response, exchange).await
        }
        _ => Ok(Passed {
            status: response.status(),
            headers: returned_headers(response.headers()),
            body: Coming::Still(Box::new(Rest {
                response,
                idle: upstream.idle_timeout(),
                until: Instant::now() + LONGEST_CALL,
                cutoff: gateway.cutoff.clone(),
                settles: placed.unsettled.map(|exchange| (Arc::clone(gateway), exchange)),
                _taken: passing.taken,
                _turn: placed.turn,
            })),
        }),
    }
}

fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"))
}

/// A background response as it is now. That it is over is told once it is settled.
async fn looked_at(
    gateway: &Gateway,
    passing: &Passing,
    upstream: &Upstream,
    response: Response,
    exchange: ExchangeId,
) -> Result<Passed, Refusal> {
    let (status, headers) = (response.status(), returned_headers(response.headers()));
    let body = whole(passing, upstream, response).await?;
    let mut meter = Meter::new(Endpoint::Responses, upstream.dialect(Endpoint::Responses));
    meter.observe_body(&body);
    let reading = meter.reading();
    if reading.end.is_some() && reading.response_id.as_ref() == Some(&passing.object) {
        gateway.backgrounds.look(exchange).await;
    }
    Ok(Passed {
        status,
        headers,
        body: Coming::Whole(body),
    })
}

/// What a deleted response cost nobody could tell: it is settled first, and one that runs is not deleted.
async fn settle_before_deletion(gateway: &Gateway, passing: &Passing, exchange: ExchangeId) -> Result<(), Refusal> {
    gateway.backgrounds.look(exchange).await;
    let runs = gateway.store.blocking(move |store| store.runs_in_background(exchange));
    match runs.await {
        Ok(false) => Ok(()),
        Ok(true) => Err(Refusal::StillRuns {
            id: passing.object.clone(),
        }),
        Err(error) => Err(storage(&error)),
    }
}

/// Which upstream, and the body that goes there. A document that leads to objects leads to this user's only.
async fn place(gateway: &Gateway, passing: &Passing, body: Carried) -> Result<Placed, Refusal> {
    let Passing { live, key, .. } = passing;
    let mut unsettled = None;
    let (upstream, turn) = match (passing.free, &body) {
        (Free::Count, Carried::Document(document)) => {
            let call = Call::parse(Endpoint::Responses, document.clone()).map_err(Refusal::Call)?;
            let (target, turn) = admission::without_hold(gateway, live, key, &call).await?;
            let edits = Edits {
                model: target.aliased.then(|| target.model.clone()),
                ..Edits::default()
            };
            return Ok(Placed {
                upstream: target.upstream,
                unsettled: None,
                turn: Some(turn),
                body: Carried::Document(call.upstream_body(&edits)),
            });
        }
        (Free::Moderation, Carried::Document(document)) => (moderator(gateway, passing, document).await?, None),
        (Free::Untold, Carried::Document(document)) => (free_upstream(gateway, passing, document).await?, None),
        (Free::Make(kind), _) => {
            room_for(gateway, passing, kind).await?;
            (home(live), None)
        }
        (Free::Read(kind) | Free::Change(kind) | Free::Delete(kind), _) => {
            let (upstream, runs) = where_is(gateway, passing, kind).await?;
            unsettled = runs;
            (upstream, None)
        }
        (Free::Part, _) => (where_is(gateway, passing, Kind::Upload).await?.0, None),
        (Free::Complete, _) => {
            let (upstream, _) = where_is(gateway, passing, Kind::Upload).await?;
            room_for(gateway, passing, Kind::File).await?;
            (upstream, None)
        }
        _ => return Err(Refusal::Internal),
    };
    if let (Free::Make(_) | Free::Change(_), Carried::Document(document)) = (passing.free, &body)
        && !document.is_empty()
    {
        let wanted = Call::references(document).map_err(Refusal::Call)?;
        let name = live.upstreams[upstream].name();
        admission::kept_at(gateway, key.user_id, name, wanted).await?;
    }
    Ok(Placed {
        upstream,
        unsettled,
        turn,
        body,
    })
}

/// Whether the user may have one more of a kind.
async fn room_for(gateway: &Gateway, passing: &Passing, kind: Kind) -> Result<(), Refusal> {
    let user = passing.key.user_id;
    match gateway.store.blocking(move |store| store.may_keep(user, kind)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refusal::TooManyObjects { most: objects::MOST }),
        Err(error) => Err(storage(&error)),
    }
}

/// The upstream of what is kept nowhere yet: the first of those that sell OpenAI's models, else the first of all.
fn home(live: &Live) -> usize {
    let settings = live.config.upstreams.iter().enumerate();
    let sells_openais = |prices: &Pricing| *prices == Pricing::List(ListName::openai());
    let first = settings.min_by_key(|(_, upstream)| (!sells_openais(&upstream.prices), upstream.priority));
    first.map_or(0, |(upstream, _)| upstream)
}

/// OpenAI moderates by it where a document names no model.
const MODERATOR: &str = "omni-moderation-latest";

/// The upstream that moderates: only where that is known to cost nothing. Under an alias it would be another's model.
async fn moderator(gateway: &Gateway, passing: &Passing, document: &[u8]) -> Result<usize, Refusal> {
    let Passing { live, key, .. } = passing;
    let named = Call::named_model(document).map_err(Refusal::Call)?;
    let costs_nothing = |upstream: &usize| moderates_for_nothing(&live.config.upstreams[*upstream].prices);
    let upstream = match &named {
        None => Some(home(live)).filter(costs_nothing),
        Some(model) => {
            let candidates = live.routes.candidates(model).filter(|candidate| !candidate.aliased);
            let mut upstreams = candidates.map(|candidate| candidate.upstream).filter(costs_nothing);
            upstreams.next().filter(|_| key.may_use(model))
        }
    };
    match upstream {
        Some(upstream) => Ok(upstream),
        None => Err(admission::no_model(gateway, live, key, named.as_deref().unwrap_or(MODERATOR)).await),
    }
}

/// The upstream of what tells no cost: only one at which nothing costs anything, and of a model that is named one that serves
/// it.
async fn free_upstream(gateway: &Gateway, passing: &Passing, document: &[u8]) -> Result<usize, Refusal> {
    let Passing { live, key, .. } = passing;
    let named = Call::named_model(document).map_err(Refusal::Call)?;
    let is_free = |upstream: &usize| live.config.upstreams[*upstream].prices == Pricing::Free;
    let upstream = match &named {
        None => {
            let free = (0..live.config.upstreams.len()).filter(is_free);
            free.min_by_key(|upstream| live.config.upstreams[*upstream].priority)
        }
        Some(model) if !key.may_use(model) => return Err(admission::no_model(gateway, live, key, model).await),
        Some(model) => {
            let candidates = live.routes.candidates(model).filter(|candidate| !candidate.aliased);
            candidates.map(|candidate| candidate.upstream).find(is_free)
        }
    };
    upstream.ok_or_else(|| Refusal::NotSupported {
        endpoint: format!("{} /v1{}", passing.method, passing.path),
    })
}

/// Other vendors bill what OpenAI gives away.
fn moderates_for_nothing(prices: &Pricing) -> bool {
    match prices {
        Pricing::Free => true,
        Pricing::List(list) => *list == ListName::openai(),
    }
}

/// The upstream that keeps the object, if it is this user's and the upstream is still there; and its exchange, if that is a
/// background response that is not settled.
async fn where_is(gateway: &Gateway, passing: &Passing, kind: Kind) -> Result<(usize, Option<ExchangeId>), Refusal> {
    let (user, id) = (passing.key.user_id, passing.object.clone());
    let found = gateway
        .store
        .blocking(move |store| store.where_is(user, kind, &id))
        .await;
    let found = found.map_err(|error: StoreError| storage(&error))?;
    let place = found.and_then(|found| {
        let mut upstreams = passing.live.upstreams.iter();
        let upstream = upstreams.position(|upstream| upstream.name() == found.upstream)?;
        Some((upstream, found.unsettled))
    });
    place.ok_or_else(|| Refusal::NoObject {
        id: passing.object.clone(),
    })
}

async fn send(passing: &Passing, upstream: &Upstream, body: Carried) -> Result<Response, Refusal> {
    let request = Request {
        id: passing.id,
        method: &passing.method,
        path: &passing.path,
        query: passing.query.as_deref(),
        headers: &passing.headers,
    };
    upstream.pass(request, body).await.map_err(|error| match error {
        NotPassed::Upstream(fault) => Refusal::Upstream(fault),
        NotPassed::TooLong => Refusal::TooLarge { limit: MAX_FILE },
        NotPassed::BodyLost => Refusal::BodyLost,
    })
}

/// The upstream's own words, but for what a client can do nothing about.
async fn refused(upstream: &Upstream, mut response: Response) -> Result<Passed, Refusal> {
    let (status, headers) = (response.status(), returned_headers(response.headers()));
    let retry_after = retry::retry_after(response.headers(), now());
    let read = upstream::read_whole(&mut response, ERROR_BYTES, upstream.idle_timeout()).await;
    let body = read.map_err(Refusal::Upstream)?;
    match upstream.fault(status, retry_after, &body) {
        Some(fault) => Err(Refusal::Upstream(fault)),
        None => Ok(Passed {
            status,
            headers,
            body: Coming::Whole(body),
        }),
    }
}

/// An answer that has to be read here. It was asked for as it is.
pub(super) async fn whole(passing: &Passing, upstream: &Upstream, mut response: Response) -> Result<Bytes, Refusal> {
    if response.headers().contains_key(CONTENT_ENCODING) {
        return Err(Refusal::Upstream(UpstreamFault::Undecodable));
    }
    let most = passing.live.config.server.max_response;
    let read = upstream::read_whole(&mut response, most, upstream.idle_timeout()).await;
    read.map_err(Refusal::Upstream)
}

#[derive(Deserialize)]
pub(super) struct Identified<'a> {
    #[serde(borrow)]
    pub(super) id: std::borrow::Cow<'a, str>,
}

/// An upload that is complete.
#[derive(Deserialize)]
struct Complete<'a> {
    #[serde(borrow)]
    file: Identified<'a>,
}

/// Whose an object is becomes durable; then the answer that made it, or deleted it, leaves.
async fn noted(
    gateway: &Gateway,
    passing: &Passing,
    upstream: &Upstream,
    response: Response,
) -> Result<Passed, Refusal> {
    let (status, headers) = (response.status(), returned_headers(response.headers()));
    let body = whole(passing, upstream, response).await?;
    match passing.free {
        Free::Make(kind) => {
            let id = serde_json::from_slice::<Identified<'_>>(&body).map(|object| object.id.into_owned());
            keep(gateway, passing, kind, upstream, id.ok()).await?;
        }
        Free::Complete => {
            let id = serde_json::from_slice::<Complete<'_>>(&body).map(|upload| upload.file.id.into_owned());
            keep(gateway, passing, Kind::File, upstream, id.ok()).await?;
            forget(gateway, passing, upstream).await;
        }
        _ => forget(gateway, passing, upstream).await,
    }
    Ok(Passed {
        status,
        headers,
        body: Coming::Whole(body),
    })
}

/// Notes that an object is this user's.
async fn keep(
    gateway: &Gateway,
    passing: &Passing,
    kind: Kind,
    upstream: &Upstream,
    id: Option<String>,
) -> Result<(), Refusal> {
    let id = id.filter(|id| is_id(id)).ok_or_else(|| {
        tracing::warn!(
            upstream = upstream.name(),
            kind = kind.name(),
            "what was made has no id"
        );
        Refusal::Upstream(UpstreamFault::Undecodable)
    })?;
    let (user, name, made) = (passing.key.user_id, upstream.name().to_owned(), id.clone());
    let kept = gateway
        .store
        .blocking(move |store| store.keep_object((user, kind), (&name, &made), now()));
    let refusal = match kept.await {
        Outcome::Committed(()) => return Ok(()),
        // It may be this user's.
        Outcome::Unknown(error) => return Err(storage(&error)),
        Outcome::Refused(objects::TooMany) => Refusal::TooManyObjects { most: objects::MOST },
        Outcome::NotCommitted(error) => storage(&error),
    };
    unmake(passing, kind, upstream, &id).await;
    Err(refusal)
}

/// What is nobody's is deleted again: no request would ever reach it.
async fn unmake(passing: &Passing, kind: Kind, upstream: &Upstream, id: &str) {
    let (method, path) = match kind {
        Kind::Upload => (Method::POST, format!("/uploads/{id}/cancel")),
        Kind::File => (Method::DELETE, format!("/files/{id}")),
        Kind::Conversation => (Method::DELETE, format!("/conversations/{id}")),
        Kind::Response => (Method::DELETE, format!("/responses/{id}")),
    };
    let request = Request {
        id: passing.id,
        method: &method,
        path: &path,
        query: None,
        headers: &passing.headers,
    };
    let answer = upstream.pass(request, Carried::Nothing).await;
    if !answer.is_ok_and(|answer| answer.status().is_success()) {
        tracing::warn!(
            upstream = upstream.name(),
            kind = kind.name(),
            object = id,
            "what was made is noted as nobody's and could not be deleted again; it stays upstream"
        );
    }
}

/// Whether it can be a part of a path, and of nothing else.
pub(super) fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b':' | b'~');
    (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(fits) && text != "." && text != ".."
}

/// An object is the user's no more.
async fn forget(gateway: &Gateway, passing: &Passing, upstream: &Upstream) {
    let (user, name, id) = (passing.key.user_id, upstream.name().to_owned(), passing.object.clone());
    let forgotten = gateway
        .store
        .blocking(move |store| store.forget_object(user, (&name, &id)));
    if let Outcome::NotCommitted(error) | Outcome::Unknown(error) = forgotten.await {
        // It is gone all the same: the upstream says so of itself.
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "a deleted object is not forgotten"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_part_of_a_path() {
        for id in ["file-abc_1", "conv_6543", "resp_a.b"] {
            assert!(is_id(id), "{id}");
        }
        let long = "a".repeat(MAX_ID_BYTES + 1);
        for id in ["", ".", "..", "a/b", "a?b", "a#b", "a%2Fb", "a b", "a\n", "é", &long] {
            assert!(!is_id(id), "{id}");
        }
    }
}
