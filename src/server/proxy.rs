//! Billed endpoints: authenticate, read, parse, start the exchange, and pass on what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::{BodyExt, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::{App, auth};
use crate::call::{Call, Endpoint};
use crate::codec::{self, Coding, DecodeError};
use crate::exchange::{self, Aborted, Answer};
use crate::refusal::Refusal;
use crate::store::ExchangeId;

/// Bodies above this are parsed off the async threads.
const PARSE_INLINE: usize = 256 * 1024;

/// Request bodies held in memory by all calls together, in MiB: a few small compressed ones unfold to as much.
const BODY_MEMORY_MIB: usize = 512;

const MIB: usize = 1024 * 1024;

/// The memory that request bodies may take, from the first byte to the settlement.
#[derive(Debug)]
pub(super) struct BodyMemory(Arc<Semaphore>);

impl Default for BodyMemory {
    fn default() -> BodyMemory {
        BodyMemory(Arc::new(Semaphore::new(BODY_MEMORY_MIB)))
    }
}

impl BodyMemory {
    /// Waits for room for a body of at most so many bytes.
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let permits = u32::try_from(mib(bytes).min(BODY_MEMORY_MIB)).unwrap_or(u32::MAX);
        Arc::clone(&self.0)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| Refusal::ShuttingDown)
    }
}

fn mib(bytes: usize) -> usize {
    bytes.div_ceil(MIB).max(1)
}

/// One call to a billed endpoint.
pub(super) async fn call(
    app: &Arc<App>,
    id: ExchangeId,
    endpoint: Endpoint,
    peer: SocketAddr,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    // From here on a stop waits for this call.
    let _running = app.gateway.tracker.token();
    if app.stopping.load(Ordering::SeqCst) {
        return Err(Refusal::ShuttingDown);
    }
    let key = auth::authenticate(app, peer, &headers).await?;
    if key.user_suspended {
        return Err(Refusal::Suspended { user: key.user_name });
    }
    let (body, memory) = timeout(app.body_timeout, read(app, &headers, body))
        .await
        .map_err(|_| Refusal::BodyLost)??;
    let call = parse(endpoint, body).await?;
    let request = exchange::Request {
        id,
        key,
        call,
        headers,
        memory,
    };
    match exchange::start(&app.gateway, request).await {
        Ok(reply) => Ok(respond(reply?)),
        Err(_) => Err(Refusal::Internal),
    }
}

/// The body, decompressed, within the limit; and the memory it takes.
async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let limit = app.max_body;
    let coding = match headers.get(CONTENT_ENCODING).map(|value| value.to_str()) {
        None => Coding::Identity,
        Some(Ok(name)) => Coding::parse(name).map_err(|error| Refusal::Coding(error.to_string()))?,
        Some(Err(_)) => return Err(Refusal::Coding("Content-Encoding is not readable".into())),
    };
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(Refusal::TooLarge { limit });
    }
    let most = length.filter(|_| coding == Coding::Identity).unwrap_or(limit);
    let mut memory = app.body_memory.take(most).await?;
    let bytes = match Limited::new(body, limit).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(Refusal::TooLarge { limit }),
        Err(_) => return Err(Refusal::BodyLost),
    };
    let plain = decode(coding, bytes, limit).await?;
    // What was set aside for the most it could have been goes back.
    drop(memory.split(memory.num_permits().saturating_sub(mib(plain.len()))));
    Ok((plain, memory))
}

async fn decode(coding: Coding, bytes: Bytes, limit: usize) -> Result<Bytes, Refusal> {
    if coding == Coding::Identity {
        return Ok(bytes);
    }
    let decoded = tokio::task::spawn_blocking(move || codec::decode(coding, bytes, limit)).await;
    decoded.map_err(|_| Refusal::Internal)?.map_err(|error| match error {
        DecodeError::TooLarge => Refusal::TooLarge { limit },
        DecodeError::Broken => Refusal::Coding(error.to_string()),
    })
}

async fn parse(endpoint: Endpoint, body: Bytes) -> Result<Call, Refusal> {
    if body.len() <= PARSE_INLINE {
        return Call::parse(endpoint, body).map_err(Refusal::Call);
    }
    let parsed = tokio::task::spawn_blocking(move || Call::parse(endpoint, body)).await;
    parsed.map_err(|_| Refusal::Internal)?.map_err(Refusal::Call)
}

fn respond(answer: Answer) -> Response<Body> {
    let body = match answer.body {
        exchange::Body::Whole(bytes) => Body::from(bytes),
        exchange::Body::Stream(pieces) => Body::from_stream(stream::unfold(pieces, next_piece)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

type Piece = Result<Bytes, Aborted>;

async fn next_piece(mut pieces: mpsc::Receiver<Piece>) -> Option<(Piece, mpsc::Receiver<Piece>)> {
    pieces.recv().await.map(|piece| (piece, pieces))
}
