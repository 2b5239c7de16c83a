//! Billed endpoints: authenticate, read, parse, start the exchange, and pass on what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::{App, auth};
use crate::call::{Call, Endpoint};
use crate::codec::{self, Coding, DecodeError};
use crate::exchange::{self, Answer, Piece};
use crate::fail_point::{self, Point};
use crate::refusal::Refusal;
use crate::store::ExchangeId;

/// Bodies above this are parsed off the async threads.
const PARSE_INLINE: usize = 256 * 1024;

/// Request bodies held in memory by all calls together: a few small compressed ones unfold to as much.
const BODY_MEMORY: usize = 512 * 1024 * 1024;

/// What a permit stands for.
const BODY_UNIT: usize = 4096;

/// How long a body waits for the memory to unfold in.
const MEMORY_WAIT: Duration = Duration::from_secs(5);

/// The memory that request bodies may take, from the first byte to the settlement.
#[derive(Debug)]
pub(super) struct BodyMemory(Arc<Semaphore>);

impl Default for BodyMemory {
    fn default() -> BodyMemory {
        BodyMemory(Arc::new(Semaphore::new(BODY_MEMORY / BODY_UNIT)))
    }
}

impl BodyMemory {
    /// Takes room for so many bytes, if it is there.
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.0)
            .try_acquire_many_owned(units(bytes))
            .map_err(|_| Refusal::Busy)
    }

    /// Waits a little for room for so many bytes.
    async fn wait(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let taking = Arc::clone(&self.0).acquire_many_owned(units(bytes.min(BODY_MEMORY)));
        timeout(MEMORY_WAIT, taking)
            .await
            .map_err(|_| Refusal::Busy)?
            .map_err(|_| Refusal::ShuttingDown)
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BODY_UNIT).max(1)).unwrap_or(u32::MAX)
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
        return Err(Refusal::Suspended {
            user: key.user_name.clone(),
        });
    }
    fail_point::hit(Point::Authenticated).map_err(|_| Refusal::Internal)?;
    let (body, memory) = tokio::select! {
        read = timeout(app.body_timeout, read(app, &headers, body)) => read.map_err(|_| Refusal::BodyLost)??,
        () = app.gateway.cutoff.cancelled() => return Err(Refusal::ShuttingDown),
    };
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
        // The exchange itself died, with or without a charge.
        Err(_) => Err(Refusal::Unsettled),
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
    let (bytes, memory) = collect(&app.body_memory, body, limit).await?;
    if coding == Coding::Identity {
        return Ok((bytes, memory));
    }
    let mut unfolded = app.body_memory.wait(limit).await?;
    let plain = decode(coding, bytes, limit).await?;
    // What was set aside for the most it could have been goes back.
    let rest = unfolded
        .num_permits()
        .saturating_sub(usize::try_from(units(plain.len())).unwrap_or(usize::MAX));
    drop(unfolded.split(rest));
    Ok((plain, unfolded))
}

/// The body as it comes, and the memory that it takes by and by.
async fn collect(memory: &BodyMemory, mut body: Body, limit: usize) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let (mut taken, mut frames, mut length) = (memory.take(1)?, Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyLost)?.into_data() else {
            continue;
        };
        length += data.len();
        if length > limit {
            return Err(Refusal::TooLarge { limit });
        }
        let missing = usize::try_from(units(length))
            .unwrap_or(usize::MAX)
            .saturating_sub(taken.num_permits());
        if missing > 0 {
            taken.merge(memory.take(missing * BODY_UNIT)?);
        }
        frames.push(data);
    }
    // Copied once, also when it is one frame: that is a part of a larger buffer, which it would keep.
    Ok((frames.concat().into(), taken))
}

async fn decode(coding: Coding, bytes: Bytes, limit: usize) -> Result<Bytes, Refusal> {
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
        exchange::Body::Stream(pieces) => Body::from_stream(stream::unfold(Some(pieces), next_piece)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// A stream that stops without its end must not look as if it had ended well: its connection is torn down.
#[derive(Debug, thiserror::Error)]
#[error("the stream was torn")]
struct Torn;

async fn next_piece(
    pieces: Option<mpsc::Receiver<Piece>>,
) -> Option<(Result<Bytes, Torn>, Option<mpsc::Receiver<Piece>>)> {
    let mut pieces = pieces?;
    match pieces.recv().await {
        Some(Piece::Bytes(bytes)) => Some((Ok(bytes), Some(pieces))),
        Some(Piece::End) => None,
        None => Some((Err(Torn), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_bodies_leave_room_and_a_large_one_waits_or_is_told_to_come_again() {
        let memory = BodyMemory::default();
        let small: Vec<_> = (0..10_000)
            .map(|_| memory.take(2_000))
            .collect::<Result<_, _>>()
            .expect("room");
        let large = memory.take(400 * 1024 * 1024).expect("room");
        assert_eq!(memory.take(200 * 1024 * 1024).err(), Some(Refusal::Busy));
        drop(large);
        let waited = memory
            .wait(BODY_MEMORY - 10_000 * BODY_UNIT)
            .await
            .expect("it is given back");
        assert!(waited.num_permits() > 0);
        assert_eq!(small.len(), 10_000);
    }

    #[tokio::test]
    async fn a_body_takes_the_memory_that_has_come_of_it() {
        let memory = BodyMemory::default();
        let (bytes, taken) = collect(&memory, Body::from(vec![b' '; 10_000]), 10_000)
            .await
            .expect("it fits");
        assert_eq!((bytes.len(), taken.num_permits()), (10_000, 3));
        let refused = collect(&memory, Body::from(vec![b' '; 10_001]), 10_000).await;
        assert_eq!(refused.err(), Some(Refusal::TooLarge { limit: 10_000 }));
    }

    #[tokio::test]
    async fn a_stream_that_stops_without_its_end_is_torn() {
        let (sender, pieces) = mpsc::channel(2);
        sender.send(Piece::Bytes("data".into())).await.expect("room");
        drop(sender);
        let (first, pieces) = next_piece(Some(pieces)).await.expect("bytes");
        assert_eq!(first.expect("bytes"), "data");
        let (second, rest) = next_piece(pieces).await.expect("an error");
        assert!(second.is_err() && rest.is_none());
        let (sender, pieces) = mpsc::channel(1);
        sender.send(Piece::End).await.expect("room");
        assert!(next_piece(Some(pieces)).await.is_none());
    }
}
