//! The simulator: an upstream on this machine that plays scripts, and keeps a log of what it served.
//!
//! `gateway demo` and `gateway upstream simulate` run it with the [default playwright](playwright::standard); tests
//! write their own. Its counts come from its own tokenizer calls, never from the gateway's usage, meter or pricing:
//! what a test expects a call to cost is computed from the log kept here.

pub mod answer;
mod connection;
mod form;
mod media;
pub mod playwright;
mod request;
mod script;
mod shelf;

pub use request::{Request, Wire};
pub use script::{Gate, Script, ServedUsage, Step};

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use connection::{Connection, Listener};

/// Writes the script for a request. Called off the async threads, so it may count tokens.
pub type Playwright = Arc<dyn Fn(&Request) -> Script + Send + Sync>;

/// The largest request body it reads: what the gateway itself accepts.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// How much of a sent body the log keeps, in bytes: whole ordinary answers, not the endless ones.
const MAX_SENT: usize = 1024 * 1024;

/// How the simulator runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many exchanges the log remembers, the oldest going first. Bodies are kept with them.
    pub remember: usize,
}

impl Default for Options {
    /// For tests and the demo: far more than either makes.
    fn default() -> Options {
        Options { remember: 10_000 }
    }
}

/// How an exchange ended, seen from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The script was played to its end.
    Completed,
    /// The script reset or broke off the connection.
    Reset,
    /// The script hung up before the head.
    Refused,
    /// The client closed the connection first.
    ClientGone,
    /// The simulator was stopped.
    Stopped,
}

/// What the simulator saw and did in one exchange.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its number: 0, 1, 2 … in the order of arrival.
    pub id: u64,
    /// When the request had arrived whole.
    pub at: Timestamp,
    /// The request's method.
    pub method: Method,
    /// The request's path, with its query.
    pub path: String,
    /// The model it names; empty without one.
    pub model: String,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's body.
    pub body: Bytes,
    /// The status of the answer, once its head was given out.
    pub status: Option<StatusCode>,
    /// What the script says the answer uses.
    pub usage: Option<ServedUsage>,
    /// The id the answer carries.
    pub response_id: Option<String>,
    /// Steps of the script that the socket took.
    pub events_sent: u64,
    /// Bytes of the body that the socket took.
    pub bytes_sent: u64,
    /// These bytes, the first MiB of them.
    pub sent: Vec<u8>,
    /// Tokens of visible output that the socket took.
    pub output_sent: u64,
    /// How it ended; `None` while it runs.
    pub ended: Option<Ended>,
    /// When its connection was closed; `None` while it is open.
    pub closed_at: Option<Timestamp>,
}

/// A running simulator. It stops when [`Simulator::stop`] is called; a dropped one stops accepting.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    stage: Stage,
}

/// What every exchange needs.
#[derive(Clone)]
struct Stage {
    playwright: Playwright,
    log: Arc<Log>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Simulator {
    /// Listens and serves until it is stopped.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr, playwright: Playwright, options: Options) -> io::Result<Simulator> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let stage = Stage {
            playwright,
            log: Arc::new(Log::new(options.remember)),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        let service = Router::new()
            .fallback(serve_one)
            .with_state(stage.clone())
            .into_make_service_with_connect_info::<Connection>();
        let stopping = stage.stop.clone().cancelled_owned();
        let serving = axum::serve(Listener(listener), service).with_graceful_shutdown(stopping);
        stage.tracker.spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the simulator failed");
            }
        });
        Ok(Simulator { address, stage })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients take as base URL: `http://ADDR/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What it served and is serving, in the order of arrival.
    pub fn served(&self) -> Vec<Served> {
        self.stage.log.snapshot()
    }

    /// Waits until the log satisfies `condition`, and returns it.
    pub async fn until(&self, mut condition: impl FnMut(&[Served]) -> bool) -> Vec<Served> {
        let mut changes = self.stage.log.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let served = self.served();
            // The sender lives in `self`: waiting for a change cannot fail.
            if condition(&served) || changes.changed().await.is_err() {
                return served;
            }
        }
    }

    /// Waits until `count` requests have arrived.
    pub async fn arrived(&self, count: usize) -> Vec<Served> {
        self.until(|served| served.len() >= count).await
    }

    /// Waits until the exchange of this number has ended.
    pub async fn ended(&self, id: u64) -> Served {
        let is_it = |served: &&Served| served.id == id && served.ended.is_some();
        loop {
            let log = self.until(|served| served.iter().any(|s| is_it(&s))).await;
            if let Some(served) = log.iter().find(is_it) {
                return served.clone();
            }
        }
    }

    /// Waits until the connection of the exchange of this number is closed.
    pub async fn closed(&self, id: u64) -> Served {
        if let Some(connection) = self.stage.log.connection(id) {
            connection.closed.cancelled().await;
        }
        self.ended(id).await
    }

    /// Stops accepting, resets what is running, and waits until all of it has ended.
    pub async fn stop(self) {
        self.stage.stop.cancel();
        self.stage.tracker.close();
        self.stage.tracker.wait().await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stage.stop.cancel();
    }
}

/// The log: what was served, and who waits for it to change.
#[derive(Debug)]
struct Log {
    remember: usize,
    entries: std::sync::Mutex<Entries>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    kept: VecDeque<(Served, Connection)>,
}

impl Log {
    fn new(remember: usize) -> Log {
        Log {
            remember,
            entries: std::sync::Mutex::default(),
            changes: watch::Sender::new(()),
        }
    }

    fn change<T>(&self, edit: impl FnOnce(&mut Entries) -> T) -> T {
        let mut entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = edit(&mut entries);
        drop(entries);
        self.changes.send_replace(());
        result
    }

    fn snapshot(&self) -> Vec<Served> {
        let entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let with_end = |(served, connection): &(Served, Connection)| Served {
            closed_at: connection.closed_at(),
            ..served.clone()
        };
        entries.kept.iter().map(with_end).collect()
    }

    fn connection(&self, id: u64) -> Option<Connection> {
        let entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = entries.kept.iter().find(|(served, _)| served.id == id);
        found.map(|(_, connection)| connection.clone())
    }

    /// Takes the next number and remembers the request under it.
    fn arrive(&self, mut request: Request, connection: &Connection) -> Request {
        self.change(|entries| {
            request.id = entries.next;
            entries.next += 1;
            entries.kept.push_back((Served::of(&request), connection.clone()));
            while entries.kept.len() > self.remember {
                entries.kept.pop_front();
            }
        });
        request
    }

    fn edit(&self, id: u64, edit: impl FnOnce(&mut Served)) {
        self.change(|entries| {
            // It is among the newest; a forgotten one is not edited.
            if let Some((served, _)) = entries.kept.iter_mut().rev().find(|(served, _)| served.id == id) {
                edit(served);
            }
        });
    }
}

impl Served {
    fn of(request: &Request) -> Served {
        Served {
            id: request.id,
            at: request.at,
            method: request.method.clone(),
            path: request.path.clone(),
            model: request.model.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            status: None,
            usage: None,
            response_id: None,
            events_sent: 0,
            bytes_sent: 0,
            sent: Vec::new(),
            output_sent: 0,
            ended: None,
            closed_at: None,
        }
    }

    fn note_sent(&mut self, bytes: &[u8], output_tokens: u64) {
        self.events_sent += 1;
        self.bytes_sent += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.output_sent += output_tokens;
        let room = MAX_SENT.saturating_sub(self.sent.len()).min(bytes.len());
        self.sent.extend_from_slice(&bytes[..room]);
    }
}

/// A piece of the body on its way to hyper, with where to say how often the socket had been flushed at that moment.
type Piece = Result<(Bytes, oneshot::Sender<u64>), io::Error>;

/// Answers one request: the script is written, then played by a task of its own that outlives a dropped handler.
async fn serve_one(
    State(stage): State<Stage>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: axum::extract::Request,
) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(Body::new(body), MAX_BODY).await else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let request = stage.log.arrive(Request::new(head, body), &connection);
    let (head_to_handler, head) = oneshot::channel();
    let player = Player::new(stage.clone(), connection, request.id, head_to_handler);
    stage.tracker.spawn(player.perform(request));
    head.await.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR))
}

fn plain(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Plays one script on one connection.
struct Player {
    stage: Stage,
    connection: Connection,
    id: u64,
    head: Option<oneshot::Sender<Response>>,
    body: Option<mpsc::Sender<Piece>>,
    breaking_off: bool,
}

impl Player {
    fn new(stage: Stage, connection: Connection, id: u64, head: oneshot::Sender<Response>) -> Player {
        Player {
            stage,
            connection,
            id,
            head: Some(head),
            body: None,
            breaking_off: false,
        }
    }

    async fn perform(mut self, request: Request) {
        let playwright = self.stage.playwright.clone();
        let written = tokio::task::spawn_blocking(move || playwright(&request)).await;
        let (stop, closed) = (self.stage.stop.clone(), self.connection.closed.clone());
        let ended = match written {
            Err(_) => self.hang_up(Ended::Refused),
            Ok(script) => tokio::select! {
                ended = self.play(script) => ended,
                () = closed.cancelled() => if self.breaking_off { Ended::Reset } else { Ended::ClientGone },
                () = stop.cancelled() => self.hang_up(Ended::Stopped),
            },
        };
        let log = self.stage.log.clone();
        let id = self.id;
        // The body ends before the log says so: who reads `ended` may rely on it.
        drop(self);
        log.edit(id, |served| served.ended = Some(ended));
    }

    async fn play(&mut self, script: Script) -> Ended {
        let Script { before, steps, .. } = &script;
        self.stage.log.edit(self.id, |served| {
            served.usage = script.usage.clone();
            served.response_id = script.response_id.clone();
        });
        for step in before {
            if self.step(step).await.is_err() {
                return self.hang_up(Ended::Refused);
            }
        }
        self.send_head(&script);
        for step in steps {
            if let Err(cut) = self.step(step).await {
                return self.cut_off(cut).await;
            }
        }
        Ended::Completed
    }

    fn send_head(&mut self, script: &Script) {
        let (body, pieces) = mpsc::channel::<Piece>(1);
        let mut response = Response::new(body_of(pieces, self.connection.clone()));
        *response.status_mut() = script.status;
        for (name, value) in &script.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value)) {
                response.headers_mut().append(name, value);
            }
        }
        self.body = Some(body);
        self.stage
            .log
            .edit(self.id, |served| served.status = Some(script.status));
        self.give_head(response);
    }

    fn give_head(&mut self, response: Response) {
        if let Some(head) = self.head.take() {
            // A handler that was dropped has lost its client; the closed connection ends this task.
            head.send(response).unwrap_or_else(drop);
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), Cut> {
        match step {
            Step::Send { bytes, output_tokens } => self.send(bytes, *output_tokens).await,
            Step::Repeat { bytes, times } => {
                for _ in 0..*times {
                    self.send(bytes, 0).await;
                }
            }
            Step::Pause(duration) => tokio::time::sleep(*duration).await,
            Step::Wait(gate) => gate.pass().await,
            Step::Reset => return Err(Cut::Reset),
            Step::Break => return Err(Cut::Break),
        }
        Ok(())
    }

    /// Writes a piece and waits until the socket has it. When the client is gone it waits for ever, and the closed
    /// connection ends the task.
    async fn send(&mut self, bytes: &Bytes, output_tokens: u64) {
        let Some(body) = &self.body else { return };
        if bytes.is_empty() {
            return;
        }
        let (taken_at, taken) = oneshot::channel();
        if body.send(Ok((bytes.clone(), taken_at))).await.is_ok()
            && let Ok(flushes) = taken.await
        {
            self.connection.flushed_since(flushes).await;
            let note = |served: &mut Served| served.note_sent(bytes, output_tokens);
            return self.stage.log.edit(self.id, note);
        }
        std::future::pending().await
    }

    /// Ends a connection before its head.
    fn hang_up(&mut self, ended: Ended) -> Ended {
        self.connection.reset();
        self.give_head(plain(StatusCode::SERVICE_UNAVAILABLE));
        ended
    }

    /// Ends a connection in the middle of its body; all that was sent before has been written.
    async fn cut_off(&mut self, cut: Cut) -> Ended {
        self.breaking_off = true;
        if matches!(cut, Cut::Reset) {
            self.connection.reset();
        }
        if let Some(body) = self.body.take() {
            let broken = io::Error::from(io::ErrorKind::ConnectionAborted);
            if body.send(Err(broken)).await.is_ok() {
                self.connection.closed.cancelled().await;
            }
        }
        Ended::Reset
    }
}

/// How a script breaks off.
enum Cut {
    Reset,
    Break,
}

/// The body that hyper reads: it notes, on hyper's own thread, after how many flushes a piece was taken.
fn body_of(pieces: mpsc::Receiver<Piece>, connection: Connection) -> Body {
    let stream = futures_util::stream::unfold((pieces, connection), |(mut pieces, connection)| async move {
        let frame = match pieces.recv().await? {
            Err(error) => Err(error),
            Ok((bytes, taken)) => {
                taken.send(connection.flushes()).unwrap_or_else(drop);
                Ok(Frame::data(bytes))
            }
        };
        Some((frame, (pieces, connection)))
    });
    Body::new(StreamBody::new(stream))
}

/// A playwright that plays the same script for everybody.
pub fn always(script: Script) -> Playwright {
    Arc::new(move |_| script.clone())
}

#[cfg(test)]
mod tests {
    use super::playwright::{Pace, standard};
    use super::*;
    use futures_util::StreamExt;
    use serde_json::{Value, json};
    use std::time::Duration;

    const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    async fn simulator(playwright: Playwright) -> Simulator {
        let options = Options::default();
        Simulator::start(ANYWHERE, playwright, options)
            .await
            .expect("a free port on loopback")
    }

    fn client() -> reqwest::Client {
        // Another test may have been first.
        rustls::crypto::ring::default_provider().install_default().unwrap_or(());
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        client.build().expect("a client without TLS roots")
    }

    async fn post(simulator: &Simulator, path: &str, body: &Value) -> reqwest::Response {
        let request = client().post(format!("{}{path}", simulator.base_url()));
        let request = request
            .header("content-type", "application/json")
            .body(body.to_string());
        request.send().await.expect("the simulator answers")
    }

    async fn text(simulator: &Simulator, path: &str, body: &Value) -> String {
        post(simulator, path, body).await.text().await.expect("a whole body")
    }

    async fn json(simulator: &Simulator, path: &str, body: &Value) -> Value {
        serde_json::from_str(&text(simulator, path, body).await).expect("JSON")
    }

    fn data_of(stream: &str) -> Vec<Value> {
        let lines = stream.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.filter_map(|data| serde_json::from_str(data).ok()).collect()
    }

    fn hello(more: &Value) -> Value {
        let mut body = json!({"model": "gpt-6.1-sol", "messages": [{"role": "user", "content": "Hello"}]});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        body
    }

    #[tokio::test]
    async fn a_plain_answer_reports_what_the_log_holds() {
        let simulator = simulator(standard(Pace::default())).await;
        let answer = json(&simulator, "/chat/completions", &hello(&json!({}))).await;
        let served = simulator.ended(0).await;
        let usage = served.usage.clone().expect("a usage");
        // One token of text, four for the message, two for the conversation.
        assert_eq!(answer["usage"]["prompt_tokens"], 7);
        assert_eq!((usage.input, usage.cached, usage.reasoning), (7, 0, 0));
        assert_eq!(answer["usage"]["completion_tokens"], usage.output);
        assert_eq!(answer["id"].as_str(), served.response_id.as_deref());
        assert_eq!(answer["service_tier"], "default");
        assert_eq!(served.sent, answer.to_string().as_bytes());
        assert_eq!(
            (served.ended, served.model.as_str()),
            (Some(Ended::Completed), "gpt-6.1-sol")
        );
        let said = answer["choices"][0]["message"]["content"].as_str().expect("a text");
        assert_eq!(said, "This is a simulated answer by gpt-6.1-sol. You said: \"Hello\"");
    }

    #[tokio::test]
    async fn a_stream_says_the_same_in_a_token_each_and_its_usage_only_when_asked() {
        let simulator = simulator(standard(Pace::default())).await;
        let silent = text(&simulator, "/chat/completions", &hello(&json!({"stream": true}))).await;
        assert!(
            !silent.contains("usage") && silent.ends_with("data: [DONE]\n\n"),
            "{silent}"
        );
        let asked = hello(&json!({"stream": true, "stream_options": {"include_usage": true}}));
        let told = data_of(&text(&simulator, "/chat/completions", &asked).await);
        let said: String = told
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(said, "This is a simulated answer by gpt-6.1-sol. You said: \"Hello\"");
        let served = simulator.ended(1).await;
        let usage = served.usage.expect("a usage");
        assert_eq!(told.last().expect("events")["usage"]["completion_tokens"], usage.output);
        assert_eq!(served.output_sent, usage.output);
        assert!(told[..told.len() - 1].iter().all(|event| event["usage"].is_null()));
    }

    #[tokio::test]
    async fn a_response_stream_has_its_events_in_order_and_numbered() {
        let simulator = simulator(standard(Pace {
            chunks: Some(3),
            ..Pace::default()
        }))
        .await;
        let body = json!({"model": "sim-reasoning", "input": "Hello", "stream": true, "service_tier": "fast"});
        let events = data_of(&text(&simulator, "/responses", &body).await);
        let names: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        let expected = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.reasoning_summary_part.added",
            "response.reasoning_summary_text.delta",
            "response.reasoning_summary_text.delta",
            "response.reasoning_summary_text.delta",
            "response.reasoning_summary_text.done",
            "response.reasoning_summary_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ];
        assert_eq!(names, expected);
        assert!(
            events
                .iter()
                .enumerate()
                .all(|(number, event)| event["sequence_number"] == number)
        );
        let end = &events[18]["response"];
        assert_eq!(end["usage"]["output_tokens_details"]["reasoning_tokens"], 64);
        assert_eq!(
            (&end["service_tier"], &events[0]["response"]["service_tier"]),
            (&json!("priority"), &json!("auto"))
        );
        let usage = simulator.ended(0).await.usage.expect("a usage");
        assert_eq!((usage.reasoning, usage.tier.as_deref()), (64, Some("priority")));
        assert_eq!(end["usage"]["output_tokens"], usage.output);
    }

    #[tokio::test]
    async fn a_limit_cuts_and_the_answer_says_so() {
        let simulator = simulator(standard(Pace::default())).await;
        let body = json!({"model": "sim-words-100", "messages": [], "max_tokens": 9, "n": 2});
        let chat = json(&simulator, "/chat/completions", &body).await;
        assert_eq!(chat["choices"][1]["finish_reason"], "length");
        assert_eq!(chat["choices"][1]["message"]["content"], " and".repeat(9));
        assert_eq!(chat["usage"]["completion_tokens"], 18);
        let body = json!({"model": "sim-words-100", "input": "", "max_output_tokens": 16});
        let response = json(&simulator, "/responses", &body).await;
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(response["usage"]["output_tokens"], 16);
        let body = json!({"model": "sim-overrun", "input": "", "max_output_tokens": 16});
        assert_eq!(
            json(&simulator, "/responses", &body).await["usage"]["output_tokens"],
            32
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cut_answer_arrives_up_to_the_cut_and_then_fails() {
        let events = (0..8).map(|number| Step::data(&json!({"number": number}), 1)).collect();
        let simulator = simulator(always(Script::sse(events).cut(5, Step::Reset))).await;
        let mut body = post(&simulator, "/chat/completions", &json!({})).await.bytes_stream();
        let mut arrived = Vec::new();
        let mut failed = false;
        while let Some(piece) = body.next().await {
            match piece {
                Ok(bytes) => arrived.extend_from_slice(&bytes),
                Err(_) => failed = true,
            }
        }
        let served = simulator.closed(0).await;
        assert!(failed);
        assert_eq!(
            (served.ended, served.events_sent, served.output_sent),
            (Some(Ended::Reset), 5, 5)
        );
        assert_eq!(arrived, served.sent);
        assert!(served.closed_at.is_some());
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_at_once_and_counted_to_the_event() {
        let gate = Gate::closed();
        let events = (0..8).map(|number| Step::data(&json!({"number": number}), 1)).collect();
        let simulator = simulator(always(Script::sse(events).between(&Step::Wait(gate.clone())))).await;
        let mut answer = post(&simulator, "/chat/completions", &json!({})).await;
        gate.let_through(2);
        for number in 0..3 {
            let event = answer.chunk().await.expect("an event").expect("not the end");
            assert_eq!(event, format!("data: {{\"number\":{number}}}\n\n"));
        }
        drop(answer);
        let served = tokio::time::timeout(Duration::from_secs(1), simulator.closed(0))
            .await
            .expect("at once");
        assert_eq!((served.ended, served.events_sent), (Some(Ended::ClientGone), 3));
    }

    #[tokio::test]
    async fn a_refused_call_gets_no_head_and_a_hanging_one_ends_with_the_simulator() {
        let simulator = simulator(standard(Pace::default())).await;
        let url = format!("{}/chat/completions", simulator.base_url());
        let refused = client().post(&url).body(r#"{"model":"sim-refuse"}"#).send().await;
        assert!(refused.is_err());
        assert_eq!(simulator.ended(0).await.ended, Some(Ended::Refused));
        let hanging = client().post(&url).body(r#"{"model":"sim-hang"}"#).send();
        let both = async {
            simulator.arrived(2).await;
            simulator.stop().await;
        };
        let (hung, ()) = futures_util::join!(hanging, both);
        assert!(hung.is_err());
    }

    #[tokio::test]
    async fn an_agent_runs_a_tool_and_its_output_is_answered() {
        let simulator = simulator(standard(Pace::default())).await;
        let user =
            json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Run a tool"}]});
        let tools = json!([
            {"type": "function", "name": "exec_command", "parameters": {"type": "object"}},
            {"type": "custom", "name": "apply_patch"},
        ]);
        let mut body = json!({"model": "gpt-5.5", "input": [user], "tools": tools});
        let asked = json(&simulator, "/responses", &body).await;
        let call = asked["output"][0].clone();
        assert_eq!(
            (&call["type"], &call["name"]),
            (&json!("function_call"), &json!("exec_command"))
        );
        assert_eq!(call["arguments"], r#"{"cmd":"echo hi-from-tool"}"#);
        let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "hi-from-tool\n"});
        body["input"] = json!([body["input"][0], call, output]);
        let done = json(&simulator, "/responses", &body).await;
        assert_eq!(
            done["output"][0]["content"][0]["text"],
            "Done. The tool said: \"hi-from-tool\""
        );
    }

    #[tokio::test]
    async fn a_patch_is_made_with_the_tool_that_is_declared() {
        let simulator = simulator(standard(Pace::default())).await;
        let patch = "*** Begin Patch\n*** Add File: notes.txt\n+one two\n*** End Patch\n";
        let custom = json!([{"type": "custom", "name": "apply_patch"}]);
        let code_mode =
            json!([{"type": "namespace", "name": "functions", "tools": [{"type": "custom", "name": "exec"}]}]);
        let prompt = "Create notes.txt with apply_patch, containing `one two`";
        let body = json!({"model": "gpt-5.5", "input": prompt, "tools": custom});
        assert_eq!(json(&simulator, "/responses", &body).await["output"][0]["input"], patch);
        let lite = json!({"type": "additional_tools", "role": "developer", "tools": code_mode});
        let body = json!({"model": "gpt-6.1-sol", "input": [lite, {"role": "user", "content": prompt}]});
        let call = json(&simulator, "/responses", &body).await["output"][0].clone();
        let script = format!("const r = await tools.apply_patch({});\ntext(r);", json!(patch));
        assert_eq!((&call["name"], &call["input"]), (&json!("exec"), &json!(script)));
    }

    #[tokio::test]
    async fn a_schema_is_answered_with_an_instance_of_it() {
        let simulator = simulator(standard(Pace::default())).await;
        let schema = json!({"type": "object", "properties": {"name": {"type": "string"}, "days": {
            "type": "array", "items": {"enum": ["Mon", "Tue"]}}}});
        let format = json!({"type": "json_schema", "json_schema": {"name": "event", "schema": schema}});
        let answer = json(
            &simulator,
            "/chat/completions",
            &hello(&json!({"response_format": format})),
        )
        .await;
        let said = answer["choices"][0]["message"]["content"].as_str().expect("a text");
        let said: Value = serde_json::from_str(said).expect("JSON");
        assert_eq!(said, json!({"name": "simulated", "days": ["Mon"]}));
    }

    #[tokio::test]
    async fn a_repeated_conversation_is_read_from_the_cache_in_whole_blocks() {
        let simulator = simulator(standard(Pace::default())).await;
        let long = " and".repeat(1500);
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages = json!([turn("user", &long), turn("assistant", "Yes"), turn("user", "And now?")]);
        let body = json!({"model": "gpt-5.5", "messages": messages});
        let usage = json(&simulator, "/chat/completions", &body).await["usage"].clone();
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 1408);
    }

    #[tokio::test]
    async fn every_play_that_is_listed_plays_in_both_formats() {
        let simulator = simulator(standard(Pace::default())).await;
        let listed = client()
            .get(format!("{}/models", simulator.base_url()))
            .send()
            .await
            .expect("an answer");
        let listed: Value = listed.json().await.expect("JSON");
        let names = listed["data"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|model| model["id"].as_str());
        let ends = |name: &str| !["sim-hang", "sim-stall", "sim-slow"].contains(&name);
        for name in names.filter(|name| ends(name)) {
            for (path, stream) in [
                ("/chat/completions", false),
                ("/chat/completions", true),
                ("/responses", true),
            ] {
                let body = json!({"model": name, "messages": [], "input": "", "stream": stream});
                let sent = client()
                    .post(format!("{}{path}", simulator.base_url()))
                    .body(body.to_string())
                    .send()
                    .await;
                let whole = match sent {
                    Ok(answer) => answer.bytes().await.is_ok(),
                    Err(_) => false,
                };
                let broken = ["sim-refuse", "sim-cut", "sim-break"].contains(&name);
                assert_eq!(whole, !broken, "{name} {path} {stream}");
            }
        }
    }
}
