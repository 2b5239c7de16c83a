//! Billed endpoints: authenticate, read, parse, start the exchange, and pass on what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::{BodyExt, Limited};
use tokio::sync::mpsc;

use super::{App, auth};
use crate::call::{Call, Endpoint};
use crate::codec::{self, Coding, DecodeError};
use crate::exchange::{self, Aborted, Answer};
use crate::refusal::Refusal;
use crate::store::ExchangeId;

/// Bodies above this are parsed off the async threads.
const PARSE_INLINE: usize = 256 * 1024;

/// One call to a billed endpoint.
pub(super) async fn call(
    app: &Arc<App>,
    id: ExchangeId,
    endpoint: Endpoint,
    peer: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    if app.stopping.load(Ordering::SeqCst) {
        return Err(Refusal::ShuttingDown);
    }
    let (head, body) = request.into_parts();
    let key = auth::authenticate(app, peer, &head.headers).await?;
    if key.user_suspended {
        return Err(Refusal::Suspended { user: key.user_name });
    }
    let body = read(app, &head.headers, body).await?;
    let call = parse(endpoint, body).await?;
    let request = exchange::Request {
        id,
        key,
        call,
        headers: head.headers,
    };
    match exchange::start(&app.gateway, request).await {
        Ok(reply) => Ok(respond(reply?)),
        Err(_) => Err(Refusal::Internal),
    }
}

/// The body, decompressed, within the limit and the time.
async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let limit = app.max_body;
    let too_large = || Refusal::TooLarge { limit };
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(app.body_timeout, Limited::new(body, limit).collect()).await;
    let bytes = match collected {
        Err(_) => return Err(Refusal::BodyLost),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => return Err(Refusal::BodyLost),
        Ok(Ok(collected)) => collected.to_bytes(),
    };
    let coding = match headers.get(CONTENT_ENCODING).map(|value| value.to_str()) {
        None => Coding::Identity,
        Some(Ok(name)) => Coding::parse(name).map_err(|error| Refusal::Coding(error.to_string()))?,
        Some(Err(_)) => return Err(Refusal::Coding("Content-Encoding is not readable".into())),
    };
    if coding == Coding::Identity {
        return Ok(bytes);
    }
    let decoded = tokio::task::spawn_blocking(move || codec::decode(coding, bytes, limit)).await;
    decoded.map_err(|_| Refusal::Internal)?.map_err(|error| match error {
        DecodeError::TooLarge => too_large(),
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
