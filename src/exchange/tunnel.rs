//! A tunnel: the WebSocket of a client goes on as one to an upstream that speaks it (`[[upstream]] websocket`).
//!
//! A client's connection has one, and it is open to one upstream at a time. That one remembers the last response made over
//! it: a create that follows on is sent with what is new alone, any other one whole. The frames of an answer become the
//! events that they are over HTTP, in a response like any other, so that relay, meter and settlement know of no difference;
//! an `error` frame in place of an answer becomes the refusal that it is. An upstream that opens no WebSocket is spoken to
//! over HTTP.
//!
//! What is given up in the middle of an answer takes its WebSocket with it: whatever came next would be of that answer.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, SinkExt, StreamExt, stream};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, StatusCode};
use reqwest::{Body, Client, Response, Upgraded, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::sending::Asked;
use super::upstream::chain;
use crate::call::Call;
use crate::refusal::UpstreamFault;
use crate::sse::MAX_EVENT_BYTES;

/// The dialect that is spoken, as OpenAI names it.
const DIALECT: HeaderValue = HeaderValue::from_static("responses_websockets=2026-02-06");

/// How an upstream says that a WebSocket has been open for long enough.
const TOO_OLD: &str = "websocket_connection_limit_reached";

/// How it says that it does not remember what a create follows on.
const FORGOTTEN: &str = "previous_response_not_found";

/// How long opening one may take at most.
pub(super) const OPENING: Duration = Duration::from_secs(10);

/// What is read at once.
const READ: usize = 16 * 1024;

/// A client's way to upstreams that speak WebSocket.
#[derive(Clone, Debug, Default)]
pub struct Tunnel(Arc<Mutex<Option<Open>>>);

/// An open one.
#[derive(Debug)]
struct Open {
    /// Whose upstream's account it is open for.
    account: Arc<()>,
    socket: WebSocketStream<Upgraded>,
    /// The response that the upstream remembers.
    last: Option<String>,
}

/// A create that came over a WebSocket.
#[derive(Debug)]
pub struct Tunnelled {
    /// The way of its connection.
    pub tunnel: Tunnel,
    /// The response that it follows on, and the call without what that has.
    pub follows: Option<(String, Call)>,
}

/// Where a tunnel leads, and how it is asked for.
pub(super) struct Way<'a> {
    pub(super) client: &'a Client,
    pub(super) url: &'a Url,
    /// Shared by those that lead to one upstream with one credential.
    pub(super) account: &'a Arc<()>,
    pub(super) headers: HeaderMap,
    /// How long opening one may take.
    pub(super) patience: Duration,
}

impl Tunnelled {
    /// The call to send when the upstream remembers this response.
    fn follows(&self, last: Option<&str>) -> Option<&Call> {
        let (after, call) = self.follows.as_ref()?;
        (last == Some(after)).then_some(call)
    }

    /// Sends a call, and waits for the first frame of its answer. `None`: no WebSocket is opened there.
    pub(super) async fn send(
        &self,
        way: Way<'_>,
        asked: &Asked,
        body: impl Fn(Option<&Call>) -> Bytes,
    ) -> Result<Option<Response>, UpstreamFault> {
        let kept = self
            .tunnel
            .take()
            .filter(|open| Arc::ptr_eq(&open.account, way.account))
            .and_then(Open::alive);
        let mut was_kept = kept.is_some();
        let mut open = match kept {
            Some(open) => open,
            None => match Open::to(&way).await? {
                Some(open) => open,
                None => return Ok(None),
            },
        };
        let mut follows = self.follows(open.last.take().as_deref());
        let first = loop {
            asked.now();
            let first = open.ask(&body(follows)).await.map_err(|_| UpstreamFault::Broken)?;
            let Some(refused) = Refused::read(&first) else {
                break first;
            };
            // What is sent once more was not taken.
            match refused.code() {
                Some(TOO_OLD) if was_kept => {
                    open = match Open::to(&way).await? {
                        Some(open) => open,
                        None => return Ok(None),
                    };
                    (was_kept, follows) = (false, None);
                }
                Some(FORGOTTEN) if follows.is_some() => follows = None,
                code => {
                    if code != Some(TOO_OLD) {
                        self.tunnel.keep(open);
                    }
                    return Ok(Some(refused.into_response()));
                }
            }
        };
        let answer = Answer {
            open: Some(open),
            first: Some(first),
            tunnel: self.tunnel.clone(),
        };
        let mut response = http::Response::new(Body::wrap_stream(stream::try_unfold(answer, Answer::next)));
        let kind = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(Some(response.into()))
    }
}

impl Tunnel {
    fn take(&self) -> Option<Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, open: Open) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
    }
}

impl Open {
    /// Opens one. `None`: that did not come about, and the upstream is spoken to over HTTP.
    async fn to(way: &Way<'_>) -> Result<Option<Open>, UpstreamFault> {
        let why = match timeout(way.patience, Open::upgraded(way)).await {
            Ok(Ok(open)) => return Ok(open),
            Ok(Err(error)) if error.is_connect() => {
                tracing::warn!(error = chain(&error.without_url()), "the upstream is not reached");
                return Err(UpstreamFault::Unreachable);
            }
            Ok(Err(error)) => chain(&error.without_url()),
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!(
            why,
            "no WebSocket can be opened to the upstream; it is spoken to over HTTP"
        );
        Ok(None)
    }

    async fn upgraded(way: &Way<'_>) -> reqwest::Result<Option<Open>> {
        let mut headers = way.headers.clone();
        for of_http in [ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE] {
            headers.remove(of_http);
        }
        let key = generate_key();
        let Ok(named) = key.parse() else {
            return Ok(None);
        };
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, named);
        headers.insert(HeaderName::from_static("openai-beta"), DIALECT);
        let answer = way.client.get(way.url.clone()).headers(headers).send().await?;
        let accepted = answer.headers().get(SEC_WEBSOCKET_ACCEPT);
        let is_open = answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && accepted.is_some_and(|accepted| *accepted == *derive_accept_key(key.as_bytes()));
        if !is_open {
            tracing::debug!(status = %answer.status(), "the upstream opens no WebSocket; it is spoken to over HTTP");
            return Ok(None);
        }
        let upgraded = answer.upgrade().await?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(READ)
            .max_message_size(Some(MAX_EVENT_BYTES))
            .max_frame_size(Some(MAX_EVENT_BYTES));
        Ok(Some(Open {
            account: Arc::clone(way.account),
            socket: WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await,
            last: None,
        }))
    }

    /// The same, unless it was closed meanwhile, or something came that nobody asked for.
    fn alive(mut self) -> Option<Open> {
        while let Some(came) = self.socket.next().now_or_never() {
            match came {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
        Some(self)
    }

    /// Sends a call by its body, and waits for the first frame of its answer.
    async fn ask(&mut self, body: &[u8]) -> io::Result<Utf8Bytes> {
        let frame = [&br#"{"type":"response.create","#[..], body.get(1..).unwrap_or_default()].concat();
        let frame = Utf8Bytes::try_from(Bytes::from(frame)).map_err(io::Error::other)?;
        self.socket.send(Message::Text(frame)).await.map_err(io::Error::other)?;
        self.next().await
    }

    /// The next frame.
    async fn next(&mut self) -> io::Result<Utf8Bytes> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_) | Message::Close(_))) | None => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
    }
}

/// An answer on its way.
struct Answer {
    /// Until its end.
    open: Option<Open>,
    first: Option<Utf8Bytes>,
    tunnel: Tunnel,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    response: Option<Named<'a>>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
}

impl Answer {
    async fn next(mut self) -> io::Result<Option<(Bytes, Answer)>> {
        let Some(mut open) = self.open.take() else {
            return Ok(None);
        };
        let frame = match self.first.take() {
            Some(first) => first,
            None => open.next().await?,
        };
        let read = serde_json::from_str::<Frame<'_>>(&frame).ok();
        let kind = read.as_ref().map_or("", |frame| &frame.kind);
        match kind {
            "response.completed" | "response.incomplete" => {
                open.last = read.and_then(|frame| Some(frame.response?.id.into_owned()));
                self.tunnel.keep(open);
            }
            "response.failed" => self.tunnel.keep(open),
            // Behind an `error`, too: `response.failed` with the usage may follow.
            _ => self.open = Some(open),
        }
        Ok(Some((event(&frame), self)))
    }
}

/// A frame as the event that it is over HTTP.
fn event(frame: &str) -> Bytes {
    let mut event = BytesMut::with_capacity(frame.len() + 16);
    for line in frame.split('\n') {
        for part in ["data: ", line, "\n"] {
            event.extend_from_slice(part.as_bytes());
        }
    }
    event.extend_from_slice(b"\n");
    event.freeze()
}

/// A frame that is a refusal.
#[derive(Deserialize)]
struct Refused {
    #[serde(rename = "type")]
    kind: String,
    #[serde(alias = "status_code")]
    status: u16,
    error: Value,
    #[serde(default)]
    headers: Map<String, Value>,
}

impl Refused {
    fn read(frame: &str) -> Option<Refused> {
        let refused: Refused = serde_json::from_str(frame).ok()?;
        (refused.kind == "error" && (400..1_000).contains(&refused.status)).then_some(refused)
    }

    fn code(&self) -> Option<&str> {
        self.error.get("code")?.as_str()
    }

    /// As it is over HTTP.
    fn into_response(self) -> Response {
        let Refused {
            status, error, headers, ..
        } = self;
        let mut response = http::Response::new(Body::from(json!({"error": error}).to_string()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        for (name, value) in &headers {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // The body is ours.
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
                && !name.as_str().starts_with("content-")
            {
                response.headers_mut().insert(name, value);
            }
        }
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response.into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;

    use super::*;

    /// What comes of opening one there.
    async fn opened(at: SocketAddr, patience: Duration) -> Result<bool, UpstreamFault> {
        crate::exchange::upstream::install_crypto();
        let way = Way {
            client: &Client::builder().no_proxy().build().expect("a client"),
            url: &format!("http://{at}").parse().expect("a URL"),
            account: &Arc::default(),
            headers: HeaderMap::new(),
            patience,
        };
        Open::to(&way).await.map(|open| open.is_some())
    }

    #[tokio::test]
    async fn an_upstream_that_ends_the_handshake_is_spoken_to_over_http_and_one_that_is_not_there_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let ends = async {
            loop {
                drop(listener.accept().await);
            }
        };
        let opened_there = tokio::select! {
            opened = opened(at, OPENING) => opened,
            () = ends => Ok(true),
        };
        assert_eq!(opened_there, Ok(false));
        drop(listener);
        assert_eq!(opened(at, OPENING).await, Err(UpstreamFault::Unreachable));
    }

    #[tokio::test]
    async fn an_upstream_that_does_not_answer_the_handshake_is_spoken_to_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        assert_eq!(opened(at, Duration::from_millis(200)).await, Ok(false));
    }
}
