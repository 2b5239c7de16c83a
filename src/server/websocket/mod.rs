//! Responses over WebSocket: `GET /v1/responses`, translated to the calls that are made over HTTP.
//!
//! ```text
//! handshake   who is calling; 101, and from here on frames
//! Create      a `response.create`, as the body of POST /v1/responses: with what the connection remembers
//!    └▶ proxy::make    one exchange, as for HTTP: key, limits, hold, upstream, settlement
//!         frames       its events as they come; the last one after its charge is durable
//! Thread      input and output of that response, for the next create
//! ```
//!
//! One response at a time: what comes beside it is refused, and the connection goes on. A create that wants no answer
//! (`"generate": false`) is remembered and answered here, and costs nothing. A client that leaves leaves its exchange, which
//! ends as without one. A stop closes connections that wait, and others after their answer.
//!
//! A connection has its place among all of them (`accept`) until it is closed. Bounds: a message is no longer than a body,
//! and comes as fast as one; memory is counted (`memory`); who takes nothing for a minute is gone (`stall`); who asks
//! nothing for [`IDLE`], or with much memory for [`IDLE_WITH_MUCH`], is closed.

mod create;
mod frames;
mod handshake;
mod memory;
mod thread;
mod turn_state;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::Response;
use axum::http::request::Parts;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::create::Create;
use self::memory::{Measured, Memory};
use self::thread::{Ended, Growing, Thread};
use self::turn_state::TurnState;
use super::accept::Stay;
use super::proxy::{self, Made};
use super::refusal::{self, Refused, Words};
use super::{App, Arrival, auth, tags};
use crate::call::{Call, CallError, Endpoint, Problem, Wanted};
use crate::codec::{self, Coding, Decoder};
use crate::exchange::{Answer, Body, BodyMemory, PARSE_INLINE, Piece, Tunnel, Tunnelled};
use crate::limits::Standing;
use crate::origin;
use crate::recording::Recording;
use crate::refusal::{Refusal, UpstreamFault};
use crate::sse::{MAX_EVENT_BYTES, Splitter};
use crate::store::ExchangeId;
use crate::time::now;

/// How long a connection may ask nothing.
const IDLE: Duration = Duration::from_secs(15 * 60);

/// How long one that holds more memory than [`LITTLE`] may: a few such would else have all that there is for WebSockets. Its
/// client opens another and sends the conversation whole.
const IDLE_WITH_MUCH: Duration = Duration::from_secs(60);

/// What any connection may hold while it asks nothing, in bytes.
const LITTLE: usize = 1 << 20;

/// How often a connection shows that it is there, for proxies that close silent ones.
const PING: Duration = Duration::from_secs(30);

/// How long a client has to say that it knows that the connection closes.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is read at once, and kept for it by each connection.
const READ: usize = 16 * 1024;

/// What of the handshake is not of the calls: the name of one, the dialect of the WebSocket, and what Codex says of the turn
/// it was opened in; each frame says that of its own.
const OF_HANDSHAKE: [HeaderName; 3] = [
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("x-codex-turn-metadata"),
];

/// What WebSockets share.
#[derive(Debug)]
pub(super) struct WebSockets {
    memory: Memory,
    tasks: TaskTracker,
    /// Fires when those that wait have to close, and others after their answer.
    leaving: CancellationToken,
    /// Fires when none is waited for any longer.
    torn: CancellationToken,
}

impl WebSockets {
    /// None is open. Their memory is a part of that of bodies.
    pub(super) fn new(bodies: &BodyMemory) -> WebSockets {
        WebSockets {
            memory: Memory::of(bodies),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            torn: CancellationToken::new(),
        }
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.tasks.len()
    }

    /// Has all of them close, those that wait at once.
    pub(super) fn leave(&self) {
        self.leaving.cancel();
        self.tasks.close();
    }

    /// Waits until all are closed.
    pub(super) async fn closed(&self) {
        self.tasks.wait().await;
    }

    /// Closes all that are left without a word.
    pub(super) fn tear(&self) {
        self.torn.cancel();
    }
}

/// Opens a WebSocket, if one is asked for by somebody with a key.
pub(super) async fn open(app: &Arc<App>, arrival: &Arrival, mut head: Parts) -> Result<Response<HttpBody>, Refused> {
    let server = &arrival.live.config.server;
    let accepted = handshake::accept(&head).filter(|_| server.websocket);
    let upgrade = head.extensions.remove::<OnUpgrade>();
    let (Some(mut response), Some(upgrade)) = (accepted, upgrade) else {
        return Err(Refusal::UpgradeRequired.into());
    };
    if app.stopping.load(Ordering::SeqCst) {
        return Err(Refusal::ShuttingDown.into());
    }
    let key = auth::authenticate(app, arrival, &head.headers).await?;
    if head.headers.contains_key(&OF_HANDSHAKE[0]) {
        return Err(Refusal::IdempotencyKey.into());
    }
    if tags::is_codex(&head.headers) {
        tags::tell(app, &key, &arrival.live, response.headers_mut());
    }
    let mut headers = of_its_own(&head.headers);
    OF_HANDSHAKE.iter().for_each(|name| drop(headers.remove(name)));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    let max_message = server.max_body;
    let stay = head.extensions.remove::<Stay>();
    let (app, peer) = (Arc::clone(app), arrival.peer);
    let websockets = &app.websockets;
    let (torn, tasks) = (websockets.torn.clone(), websockets.tasks.clone());
    tasks.spawn(async move {
        // Its place among all connections.
        let _stay = stay;
        let serving = async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let socket = Socket::new(upgraded, &app, max_message).await;
                    Connection::new(app, peer, headers, socket).run().await;
                }
                Err(error) => tracing::debug!(%peer, %error, "a connection was closed before it was a WebSocket"),
            }
        };
        tokio::select! {
            () = serving => {}
            () = torn.cancelled() => {}
        }
    });
    Ok(response)
}

/// The same headers in memory of their own: those that were read are parts of the buffer of the whole head, which a connection
/// would else keep for as long as it is open.
fn of_its_own(headers: &HeaderMap) -> HeaderMap {
    let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    let copies = headers
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), copy(value)?)));
    copies.collect()
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client has left, or cannot be reached.
    Left,
    /// It is told why.
    Close(CloseCode, &'static str),
    /// The same, after a refusal.
    Refused(Refusal, CloseCode),
}

/// Why there is no answer to a create.
enum Stop {
    /// It is told; the connection goes on.
    Refused(Box<Refused>),
    /// The connection ends.
    End(End),
}

impl From<End> for Stop {
    fn from(end: End) -> Stop {
        Stop::End(end)
    }
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Stop {
        Stop::Refused(Box::new(refused))
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Refused::from(refusal).into()
    }
}

/// A message of the client's.
enum Incoming {
    Text(Utf8Bytes),
    Binary,
}

/// A connection's frames.
struct Socket {
    stream: WebSocketStream<Measured<TokioIo<Upgraded>>>,
    ping: Interval,
    /// How long a message may take.
    patience: Duration,
    max_message: usize,
}

impl Socket {
    async fn new(upgraded: Upgraded, app: &App, max_message: usize) -> Socket {
        let measured = Measured::new(TokioIo::new(upgraded), app.websockets.memory.clone(), max_message);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(READ)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        Socket {
            stream: WebSocketStream::from_raw_socket(measured, Role::Server, Some(config)).await,
            ping,
            patience: app.gateway.live().config.server.body_timeout,
            max_message,
        }
    }

    /// The next message. What is lost when this is dropped is nothing.
    async fn next(&mut self) -> Result<Incoming, End> {
        loop {
            let until = self.stream.get_ref().has_until(self.patience);
            let slow = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.stream.next() => {
                    self.came(message.as_ref());
                    match message {
                        Some(Ok(Message::Text(text))) => return Ok(Incoming::Text(text)),
                        Some(Ok(Message::Binary(_))) => return Ok(Incoming::Binary),
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                        Some(Ok(Message::Close(_))) => {
                            // The library has the answer ready.
                            return Err(self.flush().await.err().unwrap_or(End::Left));
                        }
                        Some(Err(error)) => return Err(self.ended_by(&error)),
                        None => return Err(End::Left),
                    }
                }
                _ = self.ping.tick() => {
                    self.stream.send(Message::Ping(Bytes::new())).await.map_err(|_| End::Left)?;
                }
                () = slow => {
                    let until = self.stream.get_ref().has_until(self.patience);
                    if until.is_some_and(|until| until <= Instant::now()) {
                        return Err(End::Refused(Refusal::BodyLost, CloseCode::Policy));
                    }
                }
            }
        }
    }

    /// Whether what has come so far is a message, or something between its fragments.
    fn came(&mut self, message: Option<&tungstenite::Result<Message>>) {
        let measured = self.stream.get_mut();
        match message {
            Some(Ok(Message::Text(_) | Message::Binary(_))) => measured.is_whole(),
            Some(Ok(Message::Ping(payload) | Message::Pong(payload))) => measured.is_beside(payload.len()),
            _ => {}
        }
    }

    fn ended_by(&self, error: &tungstenite::Error) -> End {
        match error {
            tungstenite::Error::Capacity(_) => self.too_large(),
            tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::FileTooLarge => self.too_large(),
            tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {
                End::Refused(Refusal::Busy, CloseCode::Again)
            }
            tungstenite::Error::Utf8(_) => End::Close(CloseCode::Invalid, "a text is no UTF-8"),
            tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => End::Left,
            tungstenite::Error::Protocol(_) => End::Close(CloseCode::Protocol, "that is no frame"),
            _ => End::Left,
        }
    }

    fn too_large(&self) -> End {
        let limit = self.max_message;
        End::Refused(Refusal::TooLarge { limit }, CloseCode::Size)
    }

    /// Sends frames, and returns when they have left.
    async fn send(&mut self, frames: impl IntoIterator<Item = Bytes>) -> Result<(), End> {
        for frame in frames {
            let text = Utf8Bytes::try_from(frame);
            let text = text.map_err(|_| End::Close(CloseCode::Error, "an event is no text"))?;
            self.stream.feed(Message::Text(text)).await.map_err(|_| End::Left)?;
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), End> {
        self.stream.flush().await.map_err(|_| End::Left)
    }

    /// Says why, and waits a moment until that is known.
    async fn close(mut self, code: CloseCode, reason: &'static str) {
        let reason = Utf8Bytes::from_static(reason);
        let farewell = async {
            self.stream.close(Some(CloseFrame { code, reason })).await?;
            loop {
                let message = self.stream.next().await;
                self.came(message.as_ref());
                if message.transpose()?.is_none() {
                    break;
                }
            }
            Ok::<_, tungstenite::Error>(())
        };
        if let Ok(Err(error)) = timeout(FAREWELL, farewell).await {
            tracing::trace!(%error, "a WebSocket was closed without a word");
        }
    }
}

/// One client's connection.
struct Connection {
    app: Arc<App>,
    peer: SocketAddr,
    /// Those of the handshake that are of each call.
    headers: HeaderMap,
    socket: Socket,
    thread: Option<Thread>,
    turn_state: TurnState,
    /// To an upstream that speaks WebSocket, too.
    tunnel: Tunnel,
    /// Since when nothing was asked by somebody with a key.
    since: Instant,
    /// Whether the message at hand got past the key.
    has_asked: bool,
}

impl Connection {
    fn new(app: Arc<App>, peer: SocketAddr, mut headers: HeaderMap, socket: Socket) -> Connection {
        Connection {
            turn_state: TurnState::of_handshake(&mut headers),
            app,
            peer,
            headers,
            socket,
            thread: None,
            tunnel: Tunnel::default(),
            since: Instant::now(),
            has_asked: false,
        }
    }

    async fn run(mut self) {
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        match end {
            End::Left => {}
            End::Close(code, reason) => self.socket.close(code, reason).await,
            End::Refused(refusal, code) => {
                let frame = self.refused(self.new_id(), &refusal.into());
                if self.socket.send([frame]).await.is_ok() {
                    self.socket.close(code, "").await;
                }
            }
        }
    }

    /// The memory that it holds between two messages, in bytes.
    fn held(&self) -> usize {
        let remembered = self.thread.as_ref().map_or(0, |thread| thread.items().len());
        remembered + self.socket.stream.get_ref().held()
    }

    fn new_id(&self) -> ExchangeId {
        ExchangeId(uuid::Uuid::now_v7())
    }

    /// Waits for a message, and answers it.
    async fn turn(&mut self) -> Result<(), End> {
        let leaving = self.app.websockets.leaving.clone();
        let until = self.since + patience(self.held());
        let incoming = tokio::select! {
            biased;
            () = leaving.cancelled() => return Err(End::Close(CloseCode::Away, "the server stops")),
            incoming = self.socket.next() => incoming?,
            () = sleep_until(until) => return Err(End::Close(CloseCode::Away, "nothing was asked for a while")),
        };
        let id = self.new_id();
        let answered = match incoming {
            // Boxed: a connection is silent most of the time, and would have room for an answer all along.
            Incoming::Text(frame) => Box::pin(self.answer(id, frame)).await,
            Incoming::Binary => Err(not_text().into()),
        };
        if std::mem::take(&mut self.has_asked) {
            self.since = Instant::now();
        }
        match answered {
            Ok(()) => Ok(()),
            Err(Stop::End(end)) => Err(end),
            Err(Stop::Refused(refused)) => {
                let frame = self.refused(id, &refused);
                self.socket.send([frame]).await
            }
        }
    }

    /// The frame of a refusal.
    fn refused(&self, id: ExchangeId, refused: &Refused) -> Bytes {
        let accepted = refusal::accepted(&self.headers);
        let told_as = Some(Endpoint::Responses);
        let words = refusal::words(&self.app.gateway.metrics, refused, accepted, told_as, id);
        let Words { status, headers, body } = words;
        frames::refused(status, &identified(headers, id), body)
    }

    /// Answers a create.
    async fn answer(&mut self, id: ExchangeId, frame: Utf8Bytes) -> Result<(), Stop> {
        let arrival = Arrival {
            id,
            peer: self.peer,
            live: self.app.gateway.live(),
        };
        let mut create = self.read(frame).await?;
        let limit = arrival.live.config.server.max_body;
        let length = create.body.len();
        if length > limit {
            return Err(Refusal::TooLarge { limit }.into());
        }
        let app = Arc::clone(&self.app);
        let memory = app.body_memory.take(length)?;
        let mut headers = self.headers.clone();
        // What the handshake says of its turn is of no other.
        headers.remove(origin::TURN_METADATA);
        create.put_headers(&mut headers);
        self.turn_state.put(origin::turn(&headers).as_ref(), &mut headers);
        let asked = proxy::ask(&app, &arrival, Endpoint::Responses, headers).await;
        let asked = asked.map_err(without_key)?;
        self.has_asked = true;
        let of_user = asked.of_user();
        let to_user = Refused::to(of_user);
        let name = asked.named().map_err(&to_user)?;
        if !create.generates {
            return self.remember(id, &create).await.map_err(|stop| match stop {
                Ok(refusal) => to_user(refusal).into(),
                Err(end) => Stop::End(end),
            });
        }
        let mut standing = Standing::default();
        let tunnels = arrival
            .live
            .upstreams
            .iter()
            .any(|upstream| upstream.speaks_websocket());
        let follows = create.follows.take().filter(|_| tunnels);
        let tunnelled = match tunnels {
            false => None,
            true => Some(tunnelled(self.tunnel.clone(), follows).await.map_err(&to_user)?),
        };
        let making = proxy::make(&app, asked, name, create.body.clone(), memory, tunnelled, &mut standing);
        let made = match Box::pin(self.beside(making)).await? {
            Ok(made) => made,
            Err(mut declined) => {
                // As a connection tells it, so that its client sends all of the conversation.
                if let Refusal::NotYours {
                    param: "previous_response_id",
                    id,
                } = declined.refusal
                {
                    declined.refusal = Refusal::NoPrevious { id };
                }
                return Err(Refused::by(declined, of_user).with(standing).into());
            }
        };
        if let Made::Answer(answer) = &made {
            self.turn_state.keep(&answer.headers);
        }
        let growing = Growing::new(create.is_kept_here_only, limit);
        let growing = self.pass(id, made, growing).await?;
        if growing.ended == Some(Ended::Answered) {
            // What it takes may be needed for the next.
            self.thread = None;
            self.thread = growing.remember(&create.items(), &app.websockets.memory);
        }
        Ok(())
    }

    /// Reads a frame; a long one off the async threads.
    async fn read(&mut self, frame: Utf8Bytes) -> Result<Create, Refusal> {
        let known = self.thread.as_ref().map_or(0, |thread| thread.items().len());
        if frame.len() + known <= PARSE_INLINE {
            return Create::read(&frame, self.thread.as_ref());
        }
        let thread = self.thread.take();
        let reading = tokio::task::spawn_blocking(move || (Create::read(&frame, thread.as_ref()), thread));
        let (read, thread) = reading.await.map_err(|_| Refusal::Internal)?;
        self.thread = thread;
        read
    }

    /// Remembers the input of a create that wants no answer.
    async fn remember(&mut self, id: ExchangeId, create: &Create) -> Result<(), Result<Refusal, End>> {
        let call = check(create.body.clone()).await.map_err(Ok)?;
        let response = format!("resp_{}", id.0.simple());
        let items = create.items().into_owned();
        self.thread = None;
        self.thread = Thread::remember(&response, items, &self.app.websockets.memory);
        let frames = frames::remembered(&response, &call.model, now().as_second());
        self.socket.send(frames).await.map_err(Err)
    }

    /// Waits for something while the client may say that it leaves; what else it says is refused.
    async fn beside<T>(&mut self, wanted: impl Future<Output = T>) -> Result<T, End> {
        let mut wanted = pin!(wanted);
        loop {
            tokio::select! {
                done = &mut wanted => return Ok(done),
                incoming = self.socket.next() => {
                    let refusal = match incoming? {
                        Incoming::Text(_) => Refusal::OneAtATime,
                        Incoming::Binary => not_text(),
                    };
                    let frame = self.refused(self.new_id(), &refusal.into());
                    self.socket.send([frame]).await?;
                }
            }
        }
    }

    /// Passes an answer on, and gives what became of it.
    async fn pass(&mut self, id: ExchangeId, made: Made, growing: Growing) -> Result<Growing, Stop> {
        let (status, headers, body, _room) = match made {
            Made::Answer(Answer { status, headers, body }) => (status, headers, body, None),
            Made::Again(Recording { status, headers, body }, room) => (status, headers, Body::Whole(body), Some(room)),
        };
        let headers = identified(headers, id);
        let coding = coding(&headers)?;
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let streams = kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with(b"text/event-stream"));
        match body {
            Body::Whole(bytes) if streams => self.stream(Pieces::Whole(Some(bytes)), coding, growing).await,
            Body::Whole(bytes) => self.whole(status, &headers, bytes, coding, growing).await,
            Body::Stream(pieces) => self.stream(Pieces::Coming(pieces), coding, growing).await,
        }
    }

    /// A stream, event by event.
    async fn stream(&mut self, mut pieces: Pieces, coding: Coding, mut growing: Growing) -> Result<Growing, Stop> {
        let mut splitter = Splitter::new();
        let mut decoder = (coding != Coding::Identity).then(|| Decoder::new(coding, MAX_EVENT_BYTES));
        loop {
            // After its end the client may ask for the next.
            let piece = match growing.ended {
                Some(_) => pieces.next().await,
                None => self.beside(pieces.next()).await?,
            };
            let rest = match piece {
                Some(Piece::Bytes(bytes)) => {
                    let plain = decoder.as_mut().map(|decoder| decoder.push(&bytes));
                    splitter.push(plain.unwrap_or(Ok(bytes)).map_err(|_| broken())?);
                    false
                }
                Some(Piece::End) => true,
                None => return Err(broken().into()),
            };
            let mut next = || if rest { splitter.finish() } else { splitter.next_piece() };
            let mut ready = Vec::new();
            while let Some(piece) = next() {
                let Some(event) = piece.event else { continue };
                if event.oversized {
                    return Err(End::Close(CloseCode::Size, "an event is too long for a frame").into());
                }
                ready.extend(frames::of_event(event).inspect(|frame| growing.see(frame)));
            }
            self.socket.send(ready).await?;
            if rest {
                return match growing.ended {
                    Some(Ended::Answered | Ended::Failed) => Ok(growing),
                    // Codex overlooks an error that is no response's, and would wait for more.
                    Some(Ended::Error) | None => Err(broken().into()),
                };
            }
        }
    }

    /// An answer that came whole: what the upstream refused, or what it should have streamed.
    async fn whole(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        bytes: Bytes,
        coding: Coding,
        mut growing: Growing,
    ) -> Result<Growing, Stop> {
        let limit = MAX_EVENT_BYTES;
        let decoding = tokio::task::spawn_blocking(move || codec::decode(coding, bytes, limit));
        let plain = decoding.await.ok().and_then(Result::ok).unwrap_or_default();
        let response = status.is_success().then(|| frames::of_whole(&plain)).flatten();
        let frames = match response {
            Some(frames) => frames,
            None => {
                let status = if status.is_success() {
                    StatusCode::BAD_GATEWAY
                } else {
                    status
                };
                let body = serde_json::from_slice(&plain).unwrap_or_default();
                vec![frames::refused(status, headers, body)]
            }
        };
        frames.iter().for_each(|frame| growing.see(frame));
        self.socket.send(frames).await?;
        Ok(growing)
    }
}

/// The pieces of an answer.
enum Pieces {
    Coming(tokio::sync::mpsc::Receiver<Piece>),
    Whole(Option<Bytes>),
}

impl Pieces {
    async fn next(&mut self) -> Option<Piece> {
        match self {
            Pieces::Coming(pieces) => pieces.recv().await,
            Pieces::Whole(bytes) => Some(bytes.take().map_or(Piece::End, Piece::Bytes)),
        }
    }
}

/// With the exchange's id, as every answer over HTTP has it.
fn identified(mut headers: HeaderMap, id: ExchangeId) -> HeaderMap {
    if let Ok(id) = id.to_string().parse() {
        headers.entry("x-request-id").or_insert(id);
    }
    headers
}

/// The coding of an answer, which a frame cannot have.
fn coding(headers: &HeaderMap) -> Result<Coding, Refusal> {
    let Some(coding) = headers.get(CONTENT_ENCODING) else {
        return Ok(Coding::Identity);
    };
    let known = coding.to_str().ok().and_then(|coding| Coding::parse(coding).ok());
    known.ok_or(Refusal::Upstream(UpstreamFault::Undecodable))
}

/// How long a connection that holds so many bytes may ask nothing.
fn patience(held: usize) -> Duration {
    if held > LITTLE { IDLE_WITH_MUCH } else { IDLE }
}

/// Whoever has no key any more has no connection either.
fn without_key(refusal: Refusal) -> Stop {
    match refusal {
        Refusal::BadKey | Refusal::ForeignKey(_) | Refusal::Ip | Refusal::TooManyFailures { .. } => {
            End::Refused(refusal, CloseCode::Policy).into()
        }
        refusal => refusal.into(),
    }
}

/// An answer stopped without its end.
fn broken() -> End {
    End::Close(CloseCode::Error, "the answer broke off")
}

/// Frames are texts.
fn not_text() -> Refusal {
    let name = "type".to_owned();
    let problem = Problem::Type(Wanted::Text);
    Refusal::Call(CallError::Param { name, problem })
}

/// Whether a call could be made of it.
async fn check(body: Bytes) -> Result<Call, Refusal> {
    if body.len() <= PARSE_INLINE {
        return Call::parse(Endpoint::Responses, body).map_err(Refusal::Call);
    }
    let parsing = tokio::task::spawn_blocking(|| Call::parse(Endpoint::Responses, body));
    parsing.await.map_err(|_| Refusal::Internal)?.map_err(Refusal::Call)
}

/// How a create goes on to an upstream that speaks WebSocket.
async fn tunnelled(tunnel: Tunnel, follows: Option<(String, Bytes)>) -> Result<Tunnelled, Refusal> {
    let follows = match follows {
        Some((after, body)) => Some((after, check(body).await?)),
        None => None,
    };
    Ok(Tunnelled { tunnel, follows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_keeps_its_headers_and_not_the_buffer_that_they_were_read_into() {
        let head = Bytes::from_static(b"Bearer sk-gw-1 and what else was read");
        let mut read = HeaderMap::new();
        for value in [head.slice(..14), head.slice(15..18)] {
            let value = HeaderValue::from_maybe_shared(value).expect("a value");
            read.append("authorization", value);
        }
        let own = of_its_own(&read);
        assert_eq!(own, read);
        let within = head.as_ptr_range();
        assert!(read.values().all(|value| within.contains(&value.as_bytes().as_ptr())));
        assert!(!own.values().any(|value| within.contains(&value.as_bytes().as_ptr())));
    }

    #[test]
    fn who_holds_much_memory_may_ask_nothing_for_a_minute_alone() {
        assert_eq!([0, LITTLE, LITTLE + 1].map(patience), [IDLE, IDLE, IDLE_WITH_MUCH]);
    }
}
