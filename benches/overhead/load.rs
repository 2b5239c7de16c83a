//! The clients: so many connections, each with one call at a time, all on one thread.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::MODEL;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where.
    pub to: SocketAddr,
    /// With which keys, one connection after the other.
    pub keys: Rc<[String]>,
    /// How many at once.
    pub connections: usize,
    /// What each asks, again and again.
    pub ask: Ask,
    /// Before anything is measured.
    pub warm_up: Duration,
    /// How long is measured.
    pub window: Duration,
}

/// What a call is.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// A chat completion in one piece; the request has about 1 KB.
    Json,
    /// A response in so many chunks.
    Stream {
        /// Deltas.
        chunks: u64,
        /// Between them.
        pause: Duration,
    },
}

/// What came of it within the window.
#[derive(Debug, Default)]
pub struct Seen {
    /// Calls answered whole.
    pub calls: u64,
    /// Chunks of their bodies.
    pub chunks: u64,
    /// Seconds from the request to the end of its answer.
    pub latency: Vec<f64>,
    /// Seconds from the request to the first byte of the body.
    pub first: Vec<f64>,
}

/// Runs the clients; `sample` is asked at both ends of the window.
pub async fn run<S>(load: &Load, mut sample: impl FnMut() -> S) -> (Seen, S, S) {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let (open, over) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let local = LocalSet::new();
    let clients: Vec<_> = (0..load.connections)
        .map(|number| {
            let key = load.keys[number % load.keys.len()].clone();
            let (load, seen, open, over) = (load.clone(), Rc::clone(&seen), Rc::clone(&open), Rc::clone(&over));
            local.spawn_local(async move {
                // Streams do not all begin in the same millisecond.
                if let Ask::Stream { chunks, pause } = load.ask {
                    let whole = pause * u32::try_from(chunks).expect("a small number");
                    let part = u32::try_from(number).expect("a small number");
                    sleep(whole.min(load.warm_up) * part / u32::try_from(load.connections).expect("a small number"))
                        .await;
                }
                let mut client = Client::connect(load.to, &key, load.ask).await;
                while !over.get() {
                    client.call(&seen, &open).await;
                }
            })
        })
        .collect();
    let (before, after) = local
        .run_until(async {
            sleep(load.warm_up).await;
            open.set(true);
            let before = sample();
            sleep(load.window).await;
            open.set(false);
            let after = sample();
            over.set(true);
            for client in clients {
                client.await.expect("no call fails");
            }
            (before, after)
        })
        .await;
    drop(local);
    let seen = Rc::into_inner(seen).expect("the clients have ended").into_inner();
    (seen, before, after)
}

/// One connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    key: String,
    path: &'static str,
    body: Bytes,
}

impl Client {
    /// Connects.
    pub async fn connect(to: SocketAddr, key: &str, ask: Ask) -> Client {
        let connection = TcpStream::connect(to).await.expect("the target listens");
        connection.set_nodelay(true).expect("a TCP connection");
        let (sender, connection) = handshake(TokioIo::new(connection)).await.expect("HTTP");
        tokio::task::spawn_local(async move { connection.await.expect("it lasts") });
        let (path, body) = match ask {
            Ask::Json => ("/v1/chat/completions", chat()),
            Ask::Stream { chunks, pause } => ("/v1/responses", response(chunks, pause)),
        };
        Client {
            sender,
            key: key.to_owned(),
            path,
            body,
        }
    }

    /// With another body.
    pub fn with_body(mut self, body: Bytes) -> Client {
        self.body = body;
        self
    }

    /// One call; what of it falls into the open window is noted.
    pub async fn call(&mut self, seen: &RefCell<Seen>, open: &Cell<bool>) {
        let request = Request::post(self.path)
            .header("host", "bench")
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .header("user-agent", "bench")
            .body(Full::new(self.body.clone()))
            .expect("a request");
        let began = Instant::now();
        self.sender.ready().await.expect("the connection is kept");
        let response = self.sender.send_request(request).await.expect("an answer");
        let (status, mut body) = (response.status(), response.into_body());
        let mut first = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.expect("a whole answer");
            if status != StatusCode::OK {
                panic!("{status}: {frame:?}");
            }
            let chunks = frame.data_ref().map_or(0, |data| count(data));
            first.get_or_insert_with(|| began.elapsed());
            if open.get() {
                seen.borrow_mut().chunks += chunks;
            }
        }
        assert_eq!(status, StatusCode::OK);
        if open.get() {
            let mut seen = seen.borrow_mut();
            seen.calls += 1;
            seen.latency.push(began.elapsed().as_secs_f64());
            seen.first.push(first.expect("a body").as_secs_f64());
        }
    }
}

/// Events in a piece of a stream; a piece of anything else is one.
fn count(data: &[u8]) -> u64 {
    let ends = data.windows(2).filter(|two| two == b"\n\n").count();
    u64::try_from(ends).expect("a small number").max(1)
}

fn chat() -> Bytes {
    let text = "Tell me what the weather will be like in the mountains tomorrow. ".repeat(12);
    format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"system","content":"You answer briefly."}},{{"role":"user","content":"{text}"}}],"temperature":0.2,"max_completion_tokens":1024}}"#
    )
    .into()
}

fn response(chunks: u64, pause: Duration) -> Bytes {
    let text = "Tell me what the weather will be like in the mountains tomorrow. ".repeat(12);
    let pause = pause.as_millis();
    format!(
        r#"{{"model":"{MODEL}","instructions":"You answer briefly.","input":"{text}","stream":true,"store":false,"max_output_tokens":16384,"metadata":{{"chunks":"{chunks}","pause_ms":"{pause}"}}}}"#
    )
    .into()
}

/// A chat request with an image of so many bytes in it.
pub fn large(bytes: usize) -> Bytes {
    let image = "A".repeat(bytes);
    format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":[{{"type":"text","text":"What is this?"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}],"max_completion_tokens":1024}}"#
    )
    .into()
}
