//! Billed endpoints: authenticate, read, parse, start the exchange, and pass on what it says.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::refusal::{self, Refused};
use super::{App, Arrival, auth, rates, tags};
use crate::call::{Call, Endpoint};
use crate::codec::{self, Coding, DecodeError};
use crate::config::ServerConfig;
use crate::exchange::{
    self, Answer, Arriving, BodyMemory, Declined, Incoming, Live, PARSE_INLINE, Piece, Received, Replaying, Tunnelled,
    units,
};
use crate::fail_point::{self, Point};
use crate::key::GatewayKey;
use crate::limits::Standing;
use crate::origin::Origin;
use crate::recording::{Recording, SealingKey};
use crate::refusal::{Refusal, Unreadable};
use crate::store::idempotency::Once;
use crate::store::keys::Key;
use crate::store::{ExchangeId, StoreError};
use crate::texts::Language;
use crate::time::now;

/// The name that a client gives to a call, so that it is one exchange however often it comes.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest name that a client may give to a call, in characters.
const MAX_NAME: usize = 255;

/// One call to a billed endpoint.
pub(super) async fn call(
    app: &Arc<App>,
    arrival: &Arrival,
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refused> {
    let asked = ask(app, arrival, endpoint, headers).await?;
    let of_user = asked.of_user();
    let codex = tags::is_codex(&asked.headers).then(|| Arc::clone(&asked.key));
    let mut standing = Standing::default();
    match of_key(app, asked, body, &mut standing).await {
        Ok(made) => {
            let mut response = respond(made);
            rates::tell(&standing, response.headers_mut());
            if let Some(key) = codex {
                tags::tell(app, &key, &arrival.live, response.headers_mut());
            }
            Ok(response)
        }
        Err(declined) => Err(Refused::by(declined, of_user).with(standing)),
    }
}

/// A call whose key is known to be good, and whose body is still to come.
pub(super) struct Asked {
    id: ExchangeId,
    live: Arc<Live>,
    endpoint: Endpoint,
    key: Arc<Key>,
    headers: HeaderMap,
    language: Language,
    place: OwnedSemaphorePermit,
    /// A stop waits for it.
    _running: TaskTrackerToken,
}

/// Who is calling, and whether there is a place for one more call.
pub(super) async fn ask(
    app: &Arc<App>,
    arrival: &Arrival,
    endpoint: Endpoint,
    headers: HeaderMap,
) -> Result<Asked, Refusal> {
    let running = app.gateway.tracker.token();
    if app.stopping.load(Ordering::SeqCst) {
        return Err(Refusal::ShuttingDown);
    }
    let place = Arc::clone(&app.exchanges).try_acquire_owned();
    let place = place.map_err(|_| Refusal::Full)?;
    let key = auth::authenticate(app, arrival, &headers).await?;
    Ok(Asked {
        id: arrival.id,
        live: Arc::clone(&arrival.live),
        endpoint,
        language: Language::choose(auth::language(&key), refusal::accepted(&headers)),
        key,
        headers,
        place,
        _running: running,
    })
}

impl Asked {
    /// The language that its user has set.
    pub(super) fn of_user(&self) -> Option<Language> {
        auth::language(&self.key)
    }

    /// The name that its client gives it. Who comes with one may have made the call before, and is told first what became
    /// of it; else a suspended user is refused here.
    pub(super) fn named(&self) -> Result<Option<String>, Refusal> {
        let name = name(&self.headers)?;
        if self.key.user_suspended && name.is_none() {
            let user = self.key.user_name.clone();
            return Err(Refusal::Suspended { user });
        }
        fail_point::hit(Point::Authenticated).map_err(|_| Refusal::Internal)?;
        Ok(name)
    }
}

/// What a call was answered by.
pub(super) enum Made {
    /// Its exchange.
    Answer(Answer),
    /// What was recorded of the exchange before it that has its name, and the memory that takes.
    Again(Recording, Replaying),
}

/// The answer; and what is left of the rate limits, once that is known.
async fn of_key(app: &Arc<App>, asked: Asked, body: Body, standing: &mut Standing) -> Result<Made, Declined> {
    let name = asked.named()?;
    let received = tokio::select! {
        received = receive(app, &asked, name.as_deref(), body) => received?,
        () = app.gateway.cutoff.cancelled() => return Err(Refusal::ShuttingDown.into()),
    };
    match received {
        Received::Whole(body, memory) => make(app, asked, name, body, memory, None, standing).await,
        Received::Begun(call, mut arriving) => {
            let parsed = Parsed {
                memory: arriving.no_memory().ok_or(Refusal::Internal)?,
                call: *call,
                once: None,
                secret: None,
                arriving: Some(arriving),
                tunnelled: None,
            };
            start(app, asked, parsed, standing).await
        }
    }
}

/// The body; of a form no more than is before its first file, where that says enough. What has a name is compared by all of
/// it with what came before under that name.
async fn receive(app: &App, asked: &Asked, name: Option<&str>, body: Body) -> Result<Received, Refusal> {
    let (server, headers) = (&asked.live.config.server, &asked.headers);
    let (form, length) = (form(asked.endpoint, headers), length(headers));
    if let (Some(form), Some(length), None) = (form, length, name)
        && length <= server.max_body
        && !headers.contains_key(CONTENT_ENCODING)
    {
        let incoming = Incoming::new(&app.body_memory, body, server.max_body, server.body_timeout)?;
        return Arriving::receive(incoming, asked.endpoint, &form, length).await;
    }
    let (body, memory) = read(&app.body_memory, server, headers, body).await?;
    Ok(Received::Whole(body, memory))
}

/// The length of a body, if it is told.
fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The answer to a call that is here.
pub(super) async fn make(
    app: &Arc<App>,
    asked: Asked,
    name: Option<String>,
    body: Bytes,
    memory: OwnedSemaphorePermit,
    tunnelled: Option<Tunnelled>,
    standing: &mut Standing,
) -> Result<Made, Declined> {
    let records = name.is_some() && asked.live.config.billing.record_answers;
    let secret = records.then(|| auth::presented(&asked.headers)).transpose()?;
    let form = form(asked.endpoint, &asked.headers);
    let (call, once) = parse(asked.endpoint, form, body, name).await?;
    let parsed = Parsed {
        call,
        once,
        secret,
        memory,
        arriving: None,
        tunnelled,
    };
    start(app, asked, parsed, standing).await
}

/// A call, and what it comes with.
struct Parsed {
    call: Call,
    once: Option<Once>,
    /// Its key, if its answer is to be recorded.
    secret: Option<GatewayKey>,
    memory: OwnedSemaphorePermit,
    /// The rest of it, should it not be all here.
    arriving: Option<Box<Arriving>>,
    tunnelled: Option<Tunnelled>,
}

/// Takes what it needs of the rate limits, starts its exchange, and waits for the head of the answer.
async fn start(app: &Arc<App>, asked: Asked, parsed: Parsed, standing: &mut Standing) -> Result<Made, Declined> {
    let Asked {
        id,
        live,
        endpoint: _,
        key,
        headers,
        language,
        place,
        _running,
    } = asked;
    let Parsed {
        call,
        once,
        secret,
        memory,
        arriving,
        tunnelled,
    } = parsed;
    let gateway = &app.gateway;
    let (permit, left) = gateway.throttle.admit(&live.config.limits, &key, &call);
    *standing = left;
    let permit = match permit {
        Ok(permit) => permit,
        Err(refusal) => {
            if let Some(arriving) = arriving {
                arriving.let_pass(gateway);
            }
            // Who comes with a name is told first what became of the call that had it.
            let before = exchange::made_before(gateway, &key, once).await;
            let refusal = before.unwrap_or(refusal);
            return replay(app, secret, &refusal).await.ok_or(refusal.into());
        }
    };
    let request = exchange::Request {
        id,
        live,
        key,
        origin: Origin::of_request(&headers, &call),
        call,
        arriving,
        once,
        sealing: secret.as_ref().and_then(|secret| SealingKey::of(secret, id.0)),
        headers,
        tunnelled: tunnelled.map(Box::new),
        language,
        memory,
        place,
    };
    match exchange::start(gateway, request, permit).await {
        Ok(Ok(answer)) => Ok(Made::Answer(answer)),
        Ok(Err(declined)) => replay(app, secret, &declined.refusal).await.ok_or(declined),
        // The exchange itself died, with or without a charge.
        Err(_) => Err(Refusal::Unsettled.into()),
    }
}

/// The body, decompressed, within the limit; and the memory it takes.
pub(super) async fn read(
    room: &BodyMemory,
    server: &ServerConfig,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let limit = server.max_body;
    let coding = match headers.get(CONTENT_ENCODING).map(|value| value.to_str()) {
        None => Coding::Identity,
        Some(Ok(name)) => Coding::parse(name).map_err(|error| Refusal::Coding(error.into()))?,
        Some(Err(_)) => return Err(Refusal::Coding(Unreadable::Header)),
    };
    if length(headers).is_some_and(|length| length > limit) {
        return Err(Refusal::TooLarge { limit });
    }
    let incoming = Incoming::new(room, body, limit, server.body_timeout)?;
    let (bytes, memory) = incoming.rest(Vec::new()).await?;
    if coding == Coding::Identity {
        return Ok((bytes, memory));
    }
    let mut unfolded = room.wait(limit).await?;
    let plain = decode(coding, bytes, limit).await?;
    // What was set aside for the most it could have been goes back.
    let rest = unfolded
        .num_permits()
        .saturating_sub(usize::try_from(units(plain.len())).unwrap_or(usize::MAX));
    drop(unfolded.split(rest));
    Ok((plain, unfolded))
}

async fn decode(coding: Coding, bytes: Bytes, limit: usize) -> Result<Bytes, Refusal> {
    let decoded = tokio::task::spawn_blocking(move || codec::decode(coding, bytes, limit)).await;
    decoded.map_err(|_| Refusal::Internal)?.map_err(|error| match error {
        DecodeError::TooLarge => Refusal::TooLarge { limit },
        DecodeError::Broken => Refusal::Coding(Unreadable::Broken),
    })
}

/// The name that the client gives to the call.
fn name(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (Some(value), others) = (values.next(), values.next()) else {
        return Ok(None);
    };
    let name = value.to_str().unwrap_or_default();
    let printable = name.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    match others {
        None if printable && (1..=MAX_NAME).contains(&name.len()) => Ok(Some(name.to_owned())),
        _ => Err(Refusal::IdempotencyKey),
    }
}

/// The content type of a call that comes as a form.
fn form(endpoint: Endpoint, headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let is_form = kind
        .get(..19)
        .is_some_and(|start| start.eq_ignore_ascii_case("multipart/form-data"));
    (endpoint.takes_forms() && is_form).then(|| kind.to_owned())
}

/// The call, and what it is when it has a name.
async fn parse(
    endpoint: Endpoint,
    form: Option<String>,
    body: Bytes,
    name: Option<String>,
) -> Result<(Call, Option<Once>), Refusal> {
    let inline = body.len() <= PARSE_INLINE;
    let parse = move || {
        let once = name.map(|name| Once::new(&name, endpoint, &body));
        let call = match form {
            Some(content_type) => Call::parse_form(endpoint, &content_type, body),
            None => Call::parse(endpoint, body),
        };
        Ok((call.map_err(Refusal::Call)?, once))
    };
    if inline {
        return parse();
    }
    tokio::task::spawn_blocking(parse)
        .await
        .map_err(|_| Refusal::Internal)?
}

/// The answer of the exchange that has the call's name, if it was recorded.
async fn replay(app: &App, secret: Option<GatewayKey>, refusal: &Refusal) -> Option<Made> {
    let (Some(secret), Refusal::AlreadyDone { exchange, .. }) = (secret, refusal) else {
        return None;
    };
    let exchange = *exchange;
    let Some(mut room) = app.gateway.recordings.room() else {
        tracing::debug!(%exchange, "there is no memory to give the answer again");
        return None;
    };
    let opened = app.gateway.store.blocking(move |store| {
        let sealed = store.recording(ExchangeId(exchange), now())?;
        Ok(sealed.map(|sealed| SealingKey::of(&secret, exchange).and_then(|key| key.open(sealed))))
    });
    let mut recording: Recording = match opened.await {
        Ok(Some(Some(recording))) => recording,
        Ok(None) => return None,
        Ok(Some(None)) => {
            tracing::error!(%exchange, "the recording of the answer cannot be opened");
            return None;
        }
        Err(error) => {
            let error: StoreError = error;
            tracing::error!(%exchange, error = &error as &dyn std::error::Error, "the recording of the answer cannot be read");
            return None;
        }
    };
    room.shrink(recording.body.len());
    let headers = &mut recording.headers;
    headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    headers.insert("x-request-id", exchange.to_string().parse().ok()?);
    Some(Made::Again(recording, room))
}

/// An answer that is given again, with the memory it takes until its client has it.
struct Replay {
    whole: Full<Bytes>,
    _room: Replaying,
}

impl http_body::Body for Replay {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.whole).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.whole.size_hint()
    }
}

fn respond(made: Made) -> Response<Body> {
    let (status, headers, body) = match made {
        Made::Answer(Answer { status, headers, body }) => {
            let body = match body {
                exchange::Body::Whole(bytes) => Body::from(bytes),
                exchange::Body::Stream(pieces) => Body::from_stream(stream::unfold(Some(pieces), next_piece)),
            };
            (status, headers, body)
        }
        Made::Again(Recording { status, headers, body }, room) => {
            let whole = Full::new(body);
            (status, headers, Body::new(Replay { whole, _room: room }))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// A stream that stops without its end must not look as if it had ended well: its connection is torn down.
#[derive(Debug, thiserror::Error)]
#[error("the stream was torn")]
pub(super) struct Torn;

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
