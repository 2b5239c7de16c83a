//! Free endpoints: authenticate, count, read what has to be read, and pass on what the upstream says.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};

use super::proxy::{self, Torn};
use super::refusal::Refused;
use super::{App, Arrival, auth, rates};
use crate::endpoints::{Free, Kind};
use crate::exchange::{self, Carried, Coming, MAX_FILE, Passed, Passing, Rest, Taken, Upload};
use crate::refusal::{Refusal, Unreadable};
use crate::store::keys::Key;

/// One request to a free endpoint; `object` is what its path names.
pub(super) async fn pass(
    app: &Arc<App>,
    arrival: &Arrival,
    (free, object): (Free, &str),
    head: Parts,
    body: Body,
) -> Result<Response<Body>, Refused> {
    // From here on a stop waits for this.
    let running = app.gateway.tracker.token();
    if app.stopping.load(Ordering::SeqCst) {
        return Err(Refusal::ShuttingDown.into());
    }
    let place = Arc::clone(&app.exchanges).try_acquire_owned();
    let place = place.map_err(|_| Refusal::Full)?;
    let key = auth::authenticate(app, arrival, &head.headers).await?;
    let of_user = auth::language(&key);
    let (permit, standing) = app.gateway.throttle.admit_free(&arrival.live.config.limits, &key);
    let told = |refusal: Refusal| Refused::to(of_user)(refusal).with(standing);
    if key.user_suspended {
        let user = key.user_name.clone();
        return Err(told(Refusal::Suspended { user }));
    }
    let taken = Taken {
        running,
        place,
        permit: permit.map_err(told)?,
        memory: None,
    };
    let (passing, body) = tokio::select! {
        read = read(app, arrival, (free, object), key, head, body, taken) => read.map_err(told)?,
        () = app.gateway.cutoff.cancelled() => return Err(told(Refusal::ShuttingDown)),
    };
    let passed = exchange::pass(&app.gateway, passing, body).await.map_err(told)?;
    let mut response = respond(passed);
    rates::tell(&standing, response.headers_mut());
    Ok(response)
}

/// The request with its body: a document is read whole, a file goes through as it comes.
async fn read(
    app: &App,
    arrival: &Arrival,
    (free, object): (Free, &str),
    key: Arc<Key>,
    head: Parts,
    body: Body,
    mut taken: Taken,
) -> Result<(Passing, Carried), Refusal> {
    let body = match (free, &head.method) {
        (Free::Make(Kind::File) | Free::Part, _) => {
            if head.headers.contains_key(CONTENT_ENCODING) {
                return Err(Refusal::Coding(Unreadable::Unknown));
            }
            let length = head.headers.get(CONTENT_LENGTH).cloned();
            let told = length
                .as_ref()
                .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
            if told.is_some_and(|length| length > MAX_FILE) {
                return Err(Refusal::TooLarge { limit: MAX_FILE });
            }
            let patience = arrival.live.config.server.body_timeout;
            Carried::File {
                upload: Upload::new(body, patience),
                length,
            }
        }
        (_, method) if *method == Method::POST => {
            let server = &arrival.live.config.server;
            let (document, memory) = proxy::read(&app.body_memory, server, &head.headers, body).await?;
            taken.memory = Some(memory);
            Carried::Document(document)
        }
        _ => Carried::Nothing,
    };
    let path = head.uri.path();
    let passing = Passing {
        id: arrival.id,
        live: Arc::clone(&arrival.live),
        key,
        free,
        // The head of an answer is asked for as the answer is; its body goes nowhere.
        method: match head.method {
            Method::HEAD => Method::GET,
            method => method,
        },
        path: path.strip_prefix("/v1").unwrap_or(path).to_owned(),
        query: head.uri.query().map(str::to_owned),
        object: object.to_owned(),
        headers: head.headers,
        taken,
    };
    Ok((passing, body))
}

fn respond(passed: Passed) -> Response<Body> {
    let body = match passed.body {
        Coming::Whole(bytes) => Body::from(bytes),
        Coming::Still(rest) => Body::from_stream(stream::unfold(Some(rest), next)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = passed.status;
    *response.headers_mut() = passed.headers;
    response
}

type State = Option<Box<Rest>>;

/// The next piece of an answer. One that breaks off, or is cut off by a stop, must not look as if it had ended well.
async fn next(state: State) -> Option<(Result<Bytes, Torn>, State)> {
    let mut rest = state?;
    match rest.next().await {
        Ok(None) => None,
        Ok(Some(bytes)) => Some((Ok(bytes), Some(rest))),
        Err(_) => Some((Err(Torn), None)),
    }
}
