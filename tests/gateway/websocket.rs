//! Responses over WebSocket: each create is one exchange, billed as over HTTP, and a connection remembers its last response.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use codex_gateway::config::OnHangup;
use codex_gateway::origin::{Kind, Label};
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Ended, Gate, Playwright, Request, Script, ServedUsage, Step, always};
use codex_gateway::store::usage_log::{Basis, State};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, accept_hdr_async, connect_async};
use tokio_util::task::TaskTracker;

use crate::client::{Client, MODEL, events};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client's connection.
pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// Why there is none: the answer to the handshake.
pub type Refused = http::Response<Option<Vec<u8>>>;

/// Asks for a WebSocket with these headers.
pub async fn connect(base_url: &str, headers: &[(&str, &str)]) -> Result<(Socket, http::HeaderMap), Refused> {
    let url = format!("{}/v1/responses", base_url.replacen("http", "ws", 1));
    let mut request = url.into_client_request().expect("a request");
    for (name, value) in headers {
        let (name, value) = (name.parse::<HeaderName>(), HeaderValue::from_str(value));
        request
            .headers_mut()
            .insert(name.expect("a name"), value.expect("a value"));
    }
    match connect_async(request).await {
        Ok((socket, answer)) => Ok((Socket(socket), answer.headers().clone())),
        Err(tungstenite::Error::Http(answer)) => Err(*answer),
        Err(error) => panic!("{error}"),
    }
}

async fn open(client: &Client) -> Socket {
    let bearer = format!("Bearer {}", client.key);
    let beta = "responses_websockets=2026-02-06";
    let headers = [
        ("authorization", bearer.as_str()),
        ("openai-beta", beta),
        ("thread-id", "t1"),
    ];
    connect(&client.base_url, &headers).await.expect("a WebSocket").0
}

impl Socket {
    /// Sends a message.
    pub async fn say(&mut self, message: impl Into<Message>) {
        self.0.send(message.into()).await.expect("it is sent");
    }

    /// Sends a create with these members, and a model.
    async fn create(&mut self, more: Value) {
        self.say(create(more).to_string()).await;
    }

    /// The next frame; none, when it is closed.
    async fn frame(&mut self) -> Result<Value, Option<CloseCode>> {
        loop {
            let message = timeout(PATIENCE, self.0.next()).await.expect("a frame in time");
            match message {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(close))) => return Err(close.map(|close| close.code)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// All frames to the end of an answer.
    pub async fn answer(&mut self) -> Vec<Value> {
        let mut frames = Vec::new();
        loop {
            let frame = self
                .frame()
                .await
                .unwrap_or_else(|code| panic!("closed ({code:?}) after {frames:?}"));
            let kind = frame["type"].as_str().expect("a type").to_owned();
            frames.push(frame);
            let ends = ["response.completed", "response.incomplete", "response.failed", "error"];
            if ends.contains(&kind.as_str()) {
                return frames;
            }
        }
    }

    /// The last frame of an answer.
    async fn end(&mut self) -> Value {
        self.answer().await.pop().expect("a frame")
    }

    /// A response of the prompt, which has to be completed; its id.
    async fn turn(&mut self, more: Value) -> String {
        self.create(more).await;
        let end = self.end().await;
        assert_eq!(end["type"], "response.completed", "{end}");
        end["response"]["id"].as_str().expect("an id").to_owned()
    }
}

fn create(more: Value) -> Value {
    let mut create = json!({"type": "response.create", "model": MODEL, "store": false});
    create
        .as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    create
}

fn says(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

/// What the upstream's calls have to cost together.
fn expected(served: &[codex_gateway::simulator::Served]) -> i128 {
    let price = catalogue("openai", MODEL);
    let usages = served.iter().filter_map(|served| served.usage.as_ref());
    usages.map(|usage| expected_charge(usage, &price, "1")).sum()
}

/// Status and code of a refusal.
fn refusal(frame: &Value) -> (u64, &str) {
    assert_eq!(frame["type"], "error", "{frame}");
    let code = frame["error"]["code"].as_str().unwrap_or_else(|| panic!("{frame}"));
    (frame["status"].as_u64().expect("a status"), code)
}

/// A playwright whose answers wait before each event but the first.
fn gated() -> (Gate, Playwright) {
    let (gate, inner) = (Gate::closed(), standard(Pace::default()));
    let wait = Step::Wait(gate.clone());
    (gate, Arc::new(move |request: &Request| inner(request).between(&wait)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_frames_are_the_events_of_the_upstream_and_their_end_comes_after_the_charge() {
    // So much that no limit is written into the call.
    let harness = Harness::builder().balance("50").start().await;
    let mut socket = open(&harness.client).await;
    let before = harness.user().balance;
    socket
        .create(json!({"input": "Hello sim:words-20", "stream": false}))
        .await;
    let frames = socket.answer().await;
    let charged = before.nanos() - harness.user().balance.nanos();
    let served = harness.served().pop().expect("a call upstream");
    assert_eq!(frames, events(&served.sent));
    assert_eq!(
        i128::from(charged),
        expected(&harness.served()),
        "it is durable before the end"
    );
    assert_eq!(
        (served.method.as_str(), served.path.as_str()),
        ("POST", "/v1/responses")
    );
    let body: Value = serde_json::from_slice(&served.body).expect("JSON");
    assert_eq!(
        body,
        json!({"model": MODEL, "store": false, "input": "Hello sim:words-20", "stream": true})
    );
    for (name, value) in [
        ("accept", Some("text/event-stream")),
        ("thread-id", Some("t1")),
        ("openai-beta", None),
    ] {
        let sent = served.headers.get(name).map(|value| value.to_str().expect("text"));
        assert_eq!(sent, value, "{name}");
    }
    let books = harness.finish().await;
    assert_eq!(
        (books.only().state, books.only().basis),
        (State::Completed, Basis::Reported)
    );
    assert_eq!(socket.frame().await, Err(Some(CloseCode::Away)), "a stop closes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prewarm_costs_nothing_and_later_creates_need_only_what_is_new() {
    let harness = Harness::start().await;
    let mut socket = open(&harness.client).await;
    socket.create(json!({"generate": false, "input": [says("one")]})).await;
    let frames = socket.answer().await;
    let kinds: Vec<&Value> = frames.iter().map(|frame| &frame["type"]).collect();
    assert_eq!(kinds, ["response.created", "response.completed"]);
    assert_eq!(frames[1]["response"]["usage"]["total_tokens"], 0);
    assert!(harness.served().is_empty(), "nothing goes upstream");
    let mut last = frames[0]["response"]["id"].clone();
    assert_eq!(frames[1]["response"]["id"], last);

    for prompt in ["two", "three"] {
        last = socket
            .turn(json!({"previous_response_id": last, "input": [says(prompt)]}))
            .await
            .into();
    }
    let served = harness.served();
    let inputs: Vec<Value> = served
        .iter()
        .map(|served| serde_json::from_slice::<Value>(&served.body).expect("JSON")["input"].clone())
        .collect();
    let first_output = events(&served[0].sent)
        .into_iter()
        .find(|event| event["type"] == "response.output_item.done");
    let answer = first_output.expect("an item")["item"].clone();
    assert_eq!(answer["role"], "assistant");
    assert_eq!(
        inputs,
        [
            json!([says("one"), says("two")]),
            json!([says("one"), says("two"), answer, says("three")]),
        ]
    );
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (2, expected(&served)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_create_is_of_the_turn_that_it_names_and_never_of_the_handshakes() {
    let harness = Harness::start().await;
    let metadata = |kind: &str, turn: &str| {
        json!({"session_id": "s", "thread_id": "s", "turn_id": turn, "request_kind": kind}).to_string()
    };
    let (bearer, first) = (format!("Bearer {}", harness.client.key), metadata("prewarm", ""));
    let headers = [
        ("authorization", bearer.as_str()),
        ("openai-beta", "responses_websockets=2026-02-06"),
        ("session-id", "s"),
        ("x-codex-turn-metadata", first.as_str()),
    ];
    let mut socket = connect(&harness.client.base_url, &headers)
        .await
        .expect("a WebSocket")
        .0;
    let said = json!({"x-codex-turn-metadata": metadata("turn", "t")});
    socket
        .turn(json!({"input": [says("one")], "client_metadata": said}))
        .await;
    socket.turn(json!({"input": [says("two")]})).await;
    let books = harness.finish().await;
    let label = |label: &Option<Label>| label.as_ref().map(Label::to_string);
    let told: Vec<_> = books
        .exchanges
        .iter()
        .map(|row| (label(&row.origin.session), label(&row.origin.turn), row.origin.kind))
        .collect();
    let (session, turn) = (Some("s".to_owned()), Some("t".to_owned()));
    assert_eq!(told, [(session.clone(), turn, Some(Kind::Turn)), (session, None, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_wants_to_be_told_again_in_a_turn_it_is_told_in_that_turn() {
    let answers = standard(Pace::default());
    let stateful: Playwright = Arc::new(move |request: &Request| {
        let number = request.id.to_string();
        answers(request).header("x-codex-turn-state", &number)
    });
    let harness = Harness::builder().playwright(stateful).start().await;
    let mut socket = open(&harness.client).await;
    for turn in ["a", "a", "a", "b", "b"] {
        let said = json!({"x-codex-turn-metadata": json!({"turn_id": turn}).to_string()});
        socket
            .turn(json!({"input": [says("Hello")], "client_metadata": said}))
            .await;
    }
    let told = harness.served();
    let told: Vec<_> = told
        .iter()
        .map(|served| served.headers.get("x-codex-turn-state"))
        .collect();
    assert_eq!(told[..1], [None]);
    assert!(told[1].is_some() && told[1] == told[2], "{told:?}");
    assert_eq!(told[3], None, "another turn has none of it");
    assert!(told[4].is_some() && told[4] != told[2], "{told:?}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_not_remembered_is_not_found_and_the_whole_conversation_may_be_sent() {
    let harness = Harness::start().await;
    let mut first = open(&harness.client).await;
    let one = first.turn(json!({"input": "Hello"})).await;
    let mut second = open(&harness.client).await;
    second
        .create(json!({"previous_response_id": one, "input": "Hello"}))
        .await;
    let end = second.end().await;
    assert_eq!(refusal(&end), (400, "previous_response_not_found"), "{end}");
    assert_eq!(end["error"]["param"], "previous_response_id");
    second
        .create(json!({"previous_response_id": "resp_of_nobody", "store": true, "input": "Hello"}))
        .await;
    assert_eq!(refusal(&second.end().await), (400, "previous_response_not_found"));
    let two = second.turn(json!({"input": "Hello"})).await;
    // An answer that failed leaves what is remembered.
    second
        .create(json!({"previous_response_id": two, "input": "sim:400"}))
        .await;
    assert_eq!(second.end().await["status"], 400);
    second
        .turn(json!({"previous_response_id": two, "input": "Hello"}))
        .await;
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (4, expected(&served)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_response_at_a_time_and_what_comes_beside_it_is_refused() {
    let (gate, playwright) = gated();
    let harness = Harness::builder().playwright(playwright).start().await;
    let mut socket = open(&harness.client).await;
    socket.create(json!({"input": "Hello"})).await;
    gate.let_through(2);
    for _ in 0..3 {
        assert_ne!(socket.frame().await.expect("an event")["type"], "error");
    }
    socket.create(json!({"input": "Hello"})).await;
    socket.say("no JSON").await;
    for _ in 0..2 {
        let frame = socket.frame().await.expect("a refusal");
        assert_eq!(refusal(&frame), (400, "response_in_progress"), "{frame}");
    }
    gate.open();
    assert_eq!(socket.end().await["type"], "response.completed");
    socket.turn(json!({"input": "Hello"})).await;
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (2, expected(&served)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_asked_for_at_the_door_and_again_for_each_create() {
    let harness = Harness::start().await;
    let url = harness.base_url();
    for headers in [&[][..], &[("authorization", "Bearer sk-gw-nobody")]] {
        let answer = connect(&url, headers).await.err().expect("no WebSocket");
        assert_eq!(answer.status(), 401, "{headers:?}");
        let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).expect("JSON");
        assert_eq!(body["error"]["code"], "invalid_api_key");
    }
    // As OpenAI's clients in a browser send it.
    let protocols = format!("realtime, openai-insecure-api-key.{}", harness.client.key);
    let opened = connect(&url, &[("sec-websocket-protocol", &protocols)]).await;
    let (mut socket, answer) = opened.expect("a WebSocket");
    assert_eq!(answer["sec-websocket-protocol"], "realtime");
    socket.turn(json!({"input": "Hello"})).await;
    harness.operate(&format!("key revoke {}", harness.client.key_id.0));
    // Before the server has seen it, the hold refuses the call, and the connection stays.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = async {
        loop {
            socket.create(json!({"input": "Hello"})).await;
            let end = socket.end().await;
            // The server sees within a second what another process has written.
            if end["type"] == "error" {
                return end;
            }
        }
    };
    let end = timeout(PATIENCE, ended).await.expect("it is seen");
    assert_eq!(refusal(&end), (401, "invalid_api_key"));
    assert_eq!(
        socket.frame().await,
        Err(Some(CloseCode::Policy)),
        "and has no connection"
    );
    let named = [("authorization", "Bearer x"), ("idempotency-key", "one")];
    assert_eq!(connect(&url, &named).await.err().expect("no WebSocket").status(), 401);
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!(books.charged(), expected(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn codex_is_told_its_catalogue_at_the_handshake() {
    let harness = Harness::start().await;
    let models = harness.client.request(Method::GET, "/v1/models?client_version=0.169.0");
    let models = models.send().await.expect("an answer");
    let bearer = format!("Bearer {}", harness.client.key);
    let of_key = ("authorization", bearer.as_str());
    let told = async |headers: &[(&str, &str)]| {
        let (_, answer) = connect(&harness.base_url(), headers).await.expect("a WebSocket");
        answer.get("x-models-etag").cloned()
    };
    let tag = told(&[of_key, ("x-codex-window-id", "w:0")]).await;
    assert_eq!(tag.as_ref(), Some(&models.headers()["etag"]));
    assert_eq!(told(&[of_key]).await, None, "nobody else is");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_as_over_http_with_their_headers_and_the_connection_goes_on() {
    let harness = Harness::start().await;
    let poor = harness.add_client("bob", "0");
    let mut socket = open(&poor).await;
    socket.create(json!({"generate": false, "input": "Hello"})).await;
    assert_eq!(socket.end().await["type"], "response.completed", "it costs nothing");
    socket.create(json!({"input": "Hello"})).await;
    let end = socket.end().await;
    assert_eq!(refusal(&end), (429, "insufficient_quota"));
    assert_eq!(end["error"]["type"], "usage_limit_reached");
    assert_eq!(end["headers"]["x-should-retry"], "false");
    let promo = end["headers"]["x-codex-promo-message"].as_str().expect("a promo");
    assert!(promo.contains("bob"), "{promo}");
    assert_eq!(end["headers"]["x-request-id"], end["error"]["gateway"]["exchange"]);

    let limited = harness.issue("--rpm 1");
    let mut socket = open(&limited).await;
    socket.turn(json!({"input": "Hello"})).await;
    socket.create(json!({"input": "Hello"})).await;
    let end = socket.end().await;
    assert_eq!(refusal(&end), (429, "rate_limit_exceeded"));
    assert!(
        end["headers"]["retry-after"].is_string() && end["headers"]["x-ratelimit-limit-requests"] == "1",
        "{end}"
    );

    let mut socket = open(&harness.client).await;
    for (message, status, code, param) in [
        (
            Message::text(r#"{"type":"response.steer"}"#),
            400,
            "invalid_value",
            "type",
        ),
        (
            Message::text(r#"{"type":"response.create","stream_id":"a"}"#),
            400,
            "unsupported_parameter",
            "stream_id",
        ),
        (Message::text("{"), 400, "invalid_json", ""),
        (Message::binary("{}"), 400, "invalid_type", "type"),
        (
            Message::text(create(json!({"model": "nobody's"})).to_string()),
            404,
            "model_not_found",
            "model",
        ),
        (
            Message::text(create(json!({"background": true})).to_string()),
            400,
            "unsupported_parameter",
            "background",
        ),
        (
            Message::text(create(json!({"generate": false, "Model": "x"})).to_string()),
            400,
            "unknown_parameter",
            "model",
        ),
    ] {
        socket.say(message).await;
        let end = socket.end().await;
        assert_eq!(refusal(&end), (status, code), "{end}");
        assert_eq!(end["error"]["param"].as_str().unwrap_or(""), param, "{end}");
    }
    socket.turn(json!({"input": "Hello"})).await;
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!((served.len(), books.charged()), (2, expected(&served)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_refuses_or_breaks_off_is_told_in_the_protocols_words() {
    let harness = Harness::start().await;
    let mut socket = open(&harness.client).await;
    socket.create(json!({"input": "sim:400"})).await;
    let end = socket.end().await;
    assert_eq!((&end["type"], &end["status"]), (&json!("error"), &json!(400)));
    let sent: Value = serde_json::from_slice(&harness.simulator.ended(0).await.sent).expect("JSON");
    assert_eq!(end["error"], sent["error"], "the upstream's own");
    socket.create(json!({"input": "sim:quota"})).await;
    assert_eq!(
        refusal(&socket.end().await),
        (503, "server_is_overloaded"),
        "the operator's quota is no user's"
    );
    for play in ["cut", "break", "eof"] {
        socket.create(json!({"input": format!("Hello sim:{play}")})).await;
        let frames = socket.answer().await;
        let end = frames.last().expect("a frame");
        assert_eq!(end["type"], "response.failed", "{play}");
        assert_eq!(end["response"]["error"]["code"], "server_error");
        assert!(frames.len() > 2, "{play}: what came was passed on");
    }
    // An error of no response is passed on; that nothing follows is told by the end of the connection.
    socket.create(json!({"input": "Hello sim:error"})).await;
    assert_eq!(socket.end().await["type"], "error");
    assert_eq!(socket.frame().await, Err(Some(CloseCode::Error)));
    let books = harness.finish().await;
    let states: Vec<State> = books.exchanges.iter().map(|row| row.state).collect();
    let wanted = [
        State::Refused,
        State::Refused,
        State::Broken,
        State::Broken,
        State::Broken,
        State::Failed,
    ];
    assert_eq!(states, wanted);
    let charges: Vec<bool> = books.exchanges.iter().map(|row| row.charge.nanos() > 0).collect();
    assert_eq!(charges, [false, false, true, true, true, true], "what was delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_pays_for_what_it_used() {
    for on_hangup in [OnHangup::Drain, OnHangup::Cancel] {
        let (gate, playwright) = gated();
        let harness = Harness::builder()
            .playwright(playwright)
            .on_hangup(on_hangup)
            .start()
            .await;
        let mut socket = open(&harness.client).await;
        socket.create(json!({"input": "Hello sim:words-20"})).await;
        gate.let_through(8);
        for _ in 0..8 {
            socket.frame().await.expect("an event");
        }
        drop(socket);
        if on_hangup == OnHangup::Drain {
            gate.open();
        }
        let served = timeout(PATIENCE, harness.simulator.ended(0)).await.expect("an end");
        let drained = harness.served();
        let books = harness.finish().await;
        match on_hangup {
            OnHangup::Drain => {
                assert_eq!(served.ended, Some(Ended::Completed));
                assert_eq!(
                    (books.only().basis, books.charged()),
                    (Basis::Reported, expected(&drained))
                );
            }
            OnHangup::Cancel => {
                assert_eq!(served.ended, Some(Ended::ClientGone));
                assert_eq!(
                    (books.only().state, books.only().basis),
                    (State::Left, Basis::Estimated)
                );
                assert!(books.charged() > 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_answers_end_and_closes_what_waits() {
    for patient in [true, false] {
        let (gate, playwright) = gated();
        let drain = if patient { PATIENCE } else { Duration::from_millis(200) };
        let tweak = move |config: &mut codex_gateway::config::Config| config.server.drain_timeout = drain;
        let mut harness = Harness::builder().playwright(playwright).tweak(tweak).start().await;
        let mut waits = open(&harness.client).await;
        let mut runs = open(&harness.client).await;
        runs.create(json!({"input": "Hello"})).await;
        gate.let_through(1);
        runs.frame().await.expect("an event");
        let seen = async {
            assert_eq!(waits.frame().await, Err(Some(CloseCode::Away)));
            if patient {
                gate.open();
            }
            let end = runs.end().await;
            assert_eq!(runs.frame().await, Err(Some(CloseCode::Away)));
            end
        };
        let ((), end) = tokio::join!(harness.stop(), seen);
        let (kind, state) = match patient {
            true => ("response.completed", State::Completed),
            false => ("response.failed", State::Cancelled),
        };
        assert_eq!(end["type"], kind);
        let served = harness.served();
        let books = harness.finish().await;
        assert_eq!(books.only().state, state);
        if patient {
            assert_eq!(books.charged(), expected(&served));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_with_a_name_is_one_exchange_however_often_it_comes() {
    for records in [false, true] {
        let settings = format!("[billing]\nrecord_answers = {records}");
        let harness = Harness::builder().settings(&settings).start().await;
        let named = || json!({"input": "Hello", "client_metadata": {"ws_request_header_idempotency_key": "one"}});
        let mut socket = open(&harness.client).await;
        socket.create(named()).await;
        let first = socket.answer().await;
        assert_eq!(first.last().expect("a frame")["type"], "response.completed");
        let mut again = open(&harness.client).await;
        again.create(named()).await;
        let second = again.answer().await;
        match records {
            true => assert_eq!(second, first),
            false => {
                assert_eq!(refusal(&second[0]), (400, "invalid_prompt"));
                assert_eq!(second[0]["error"]["gateway"]["code"], "already_done");
            }
        }
        let at_the_door = [
            ("authorization", harness.client.key.as_str()),
            ("idempotency-key", "one"),
        ];
        let bearer = format!("Bearer {}", at_the_door[0].1);
        let at_the_door = [("authorization", bearer.as_str()), at_the_door[1]];
        let answer = connect(&harness.base_url(), &at_the_door)
            .await
            .err()
            .expect("no WebSocket");
        assert_eq!(answer.status(), 400, "it would be the name of all creates");
        let served = harness.served();
        let books = harness.finish().await;
        assert_eq!((served.len(), books.charged()), (1, expected(&served)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_no_longer_than_bodies() {
    let harness = Harness::builder()
        .settings("[server]\nmax_body = \"16KiB\"")
        .start()
        .await;
    let mut socket = open(&harness.client).await;
    let mut last = Value::Null;
    // Each message is short; what is remembered is counted with it.
    for round in 0..3 {
        socket
            .create(json!({"generate": false, "previous_response_id": last, "input": ["x".repeat(7_000)]}))
            .await;
        let end = socket.end().await;
        match round {
            2 => assert_eq!(end["error"]["gateway"]["code"], "request_too_large"),
            _ => last = end["response"]["id"].clone(),
        }
    }
    socket.create(json!({"input": "x".repeat(17_000)})).await;
    let end = socket.end().await;
    assert_eq!(refusal(&end), (400, "invalid_prompt"));
    assert_eq!(end["error"]["gateway"]["code"], "request_too_large");
    assert_eq!(socket.frame().await, Err(Some(CloseCode::Size)));
    assert!(harness.finish().await.exchanges.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_and_one_that_comes_whole_are_frames_all_the_same() {
    let item = json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]});
    let usage = json!({"input_tokens": 9, "output_tokens": 1, "total_tokens": 10});
    let response = json!({"id": "resp_9", "object": "response", "status": "completed", "model": MODEL, "output": [item], "usage": usage});
    let stream = format!(
        "data: {}\n\n",
        json!({"type": "response.completed", "response": response})
    );
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(stream.as_bytes()).expect("bytes");
    let packed = packed.finish().expect("bytes");
    let used = ServedUsage {
        input: 9,
        output: 1,
        ..ServedUsage::default()
    };
    let scripts = [
        Script::sse(vec![Step::send(packed)]).header("content-encoding", "gzip"),
        Script::json(StatusCode::OK, &response),
    ];
    for script in scripts {
        let harness = Harness::builder()
            .playwright(always(script.using(used.clone())))
            .start()
            .await;
        let mut socket = open(&harness.client).await;
        let id = socket.turn(json!({"input": "Hello"})).await;
        assert_eq!(id, "resp_9");
        socket
            .turn(json!({"previous_response_id": id, "input": [says("more")]}))
            .await;
        let served = harness.served();
        let body: Value = serde_json::from_slice(&served[1].body).expect("JSON");
        assert_eq!(body["input"][1], item);
        let books = harness.finish().await;
        assert_eq!(books.charged(), expected(&served));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_websocket_is_opened_where_it_is_switched_off() {
    let harness = Harness::builder().settings("[server]\nwebsocket = false").start().await;
    let bearer = format!("Bearer {}", harness.client.key);
    let answer = connect(&harness.base_url(), &[("authorization", &bearer)])
        .await
        .err()
        .expect("no WebSocket");
    assert_eq!(answer.status(), 426);
    let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).expect("JSON");
    assert_eq!(body["error"]["code"], "upgrade_required");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_counts_as_a_connection_for_as_long_as_it_is_open() {
    let harness = Harness::builder()
        .settings("[server]\nmax_connections_per_address = 3")
        .start()
        .await;
    let mut open_ones = Vec::new();
    for _ in 0..3 {
        let mut socket = open(&harness.client).await;
        socket.create(json!({"generate": false})).await;
        socket.end().await;
        open_ones.push(socket);
    }
    let bearer = format!("Bearer {}", harness.client.key);
    let headers = [("authorization", bearer.as_str())];
    let answer = connect(&harness.base_url(), &headers)
        .await
        .err()
        .expect("no WebSocket");
    assert_eq!(answer.status(), 429);
    open_ones.pop().expect("one").0.close(None).await.expect("it is closed");
    let opened = async {
        while connect(&harness.base_url(), &headers).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, opened).await.expect("there is room again");
    harness.finish().await;
}

/// An upstream that speaks Responses over WebSocket, and what it was asked: by connection the headers, and each frame.
struct Speaking {
    url: String,
    asked: Arc<Mutex<Vec<(usize, Value)>>>,
    headers: Arc<Mutex<Vec<http::HeaderMap>>>,
}

/// What each of its answers uses.
fn used() -> ServedUsage {
    ServedUsage {
        input: 100,
        cached: 40,
        output: 7,
        ..ServedUsage::default()
    }
}

impl Speaking {
    async fn start() -> Speaking {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let (asked, headers) = (Arc::default(), Arc::default());
        let (all, to) = (Arc::clone(&headers), Arc::clone(&asked));
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tasks.spawn(Speaking::serve(stream, Arc::clone(&all), Arc::clone(&to)));
            }
        });
        Speaking { url, asked, headers }
    }

    async fn serve(stream: TcpStream, all: Arc<Mutex<Vec<http::HeaderMap>>>, asked: Arc<Mutex<Vec<(usize, Value)>>>) {
        let mut number = 0;
        #[expect(clippy::result_large_err, reason = "the library's answer")]
        let note = |request: &server::Request, answer: server::Response| -> Result<_, server::ErrorResponse> {
            let mut all = all.lock().expect("nobody panicked");
            all.push(request.headers().clone());
            number = all.len();
            Ok(answer)
        };
        let mut socket = accept_hdr_async(stream, note).await.expect("a handshake");
        while let Some(Ok(Message::Text(text))) = socket.next().await {
            let create: Value = serde_json::from_str(&text).expect("JSON");
            let count = {
                let mut asked = asked.lock().expect("nobody panicked");
                asked.push((number, create.clone()));
                asked.len()
            };
            let account = all.lock().expect("nobody panicked")[number - 1]["authorization"].clone();
            if text.contains("busy") && account == "Bearer sk-a" {
                let busy = json!({"type": "error", "status": 429, "error": {"code": "rate_limit_exceeded", "message": "no"}, "headers": {"retry-after": "10"}});
                socket.send(Message::text(busy.to_string())).await.unwrap_or(());
                continue;
            }
            let is_first = asked
                .lock()
                .expect("nobody panicked")
                .iter()
                .filter(|(at, _)| *at == number)
                .count()
                == 1;
            let follows = create["previous_response_id"].is_string();
            let refusal = if text.contains("expire") && !is_first {
                Some("websocket_connection_limit_reached")
            } else {
                (text.contains("forget") && follows).then_some("previous_response_not_found")
            };
            if let Some(code) = refusal {
                let refusal = json!({"type": "error", "status": 400, "error": {"code": code, "message": "no"}});
                socket.send(Message::text(refusal.to_string())).await.unwrap_or(());
                continue;
            }
            for mut frame in frames_of(count) {
                if text.contains("fail") && frame["type"] == "response.completed" {
                    let error = json!({"type": "error", "error": {"code": "server_error", "message": "no"}});
                    socket.send(Message::text(error.to_string())).await.unwrap_or(());
                    frame["type"] = "response.failed".into();
                    frame["response"]["status"] = "failed".into();
                }
                if text.contains("refuse") {
                    let refusal =
                        json!({"type": "error", "status": 400, "error": {"code": "invalid_prompt", "message": "no"}});
                    socket.send(Message::text(refusal.to_string())).await.unwrap_or(());
                    break;
                }
                if text.contains("break") && frame["type"] == "response.completed" {
                    return;
                }
                socket.send(Message::text(frame.to_string())).await.unwrap_or(());
            }
        }
    }

    fn asked(&self) -> Vec<(usize, Value)> {
        self.asked.lock().expect("nobody panicked").clone()
    }

    /// A gateway before it.
    async fn gateway(&self) -> Harness {
        let upstream = format!(
            "[[upstream]]\nname = \"speaking\"\nbase_url = \"{}\"\napi_key = \"sk-up\"\nprices = \"openai\"\nwebsocket = true\n",
            self.url
        );
        Harness::builder().settings(&upstream).balance("50").start().await
    }
}

/// Its answer to the nth create.
fn frames_of(count: usize) -> [Value; 3] {
    let id = format!("resp_{count}");
    let item = json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": format!("answer {count}")}]});
    let usage = json!({"input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 7, "total_tokens": 107});
    [
        json!({"type": "response.created", "response": {"id": id, "status": "in_progress"}}),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item}),
        json!({"type": "response.completed", "response": {"id": id, "status": "completed", "model": MODEL, "output": [item], "usage": usage}}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_speaks_websocket_is_sent_what_is_new_and_each_create_is_billed() {
    let upstream = Speaking::start().await;
    let harness = upstream.gateway().await;
    let mut socket = open(&harness.client).await;
    socket.create(json!({"generate": false, "input": [says("zero")]})).await;
    let warm = socket.end().await["response"]["id"].clone();
    assert!(upstream.asked().is_empty());
    socket
        .create(json!({"previous_response_id": warm, "input": [says("one")]}))
        .await;
    assert_eq!(socket.answer().await, frames_of(1), "its frames as they are");
    socket
        .turn(json!({"previous_response_id": "resp_1", "input": [says("two")]}))
        .await;
    let answer = |count| frames_of(count)[1]["item"].clone();
    let whole = create(json!({"input": [says("zero"), says("one")], "stream": true}));
    let new = create(json!({"previous_response_id": "resp_1", "input": [says("two")], "stream": true}));
    assert_eq!(upstream.asked(), [(1, whole), (1, new)]);

    // What was refused is remembered by nobody there; here the response before it is.
    socket
        .create(json!({"previous_response_id": "resp_2", "input": [says("refuse")]}))
        .await;
    let end = socket.end().await;
    assert_eq!(
        (refusal(&end), &end["error"]["message"]),
        ((400, "invalid_prompt"), &json!("no"))
    );
    socket
        .turn(json!({"previous_response_id": "resp_2", "input": [says("three")]}))
        .await;
    let (connection, asked) = upstream.asked()[3].clone();
    let told = json!([
        says("zero"),
        says("one"),
        answer(1),
        says("two"),
        answer(2),
        says("three")
    ]);
    assert_eq!((connection, &asked["input"]), (1, &told));

    // Nor is what broke off, and with it the connection.
    socket
        .create(json!({"previous_response_id": "resp_4", "input": [says("break")]}))
        .await;
    assert_eq!(socket.end().await["type"], "response.failed");
    socket
        .turn(json!({"previous_response_id": "resp_4", "input": [says("four")]}))
        .await;
    let (connection, asked) = upstream.asked()[5].clone();
    assert_eq!((connection, asked["input"].as_array().map(Vec::len)), (2, Some(8)));

    let headers = upstream.headers.lock().expect("nobody panicked").clone();
    for headers in &headers {
        assert_eq!(headers["authorization"], "Bearer sk-up");
        assert_eq!(headers["openai-beta"], "responses_websockets=2026-02-06");
        let text = format!("{headers:?}");
        assert!(!text.contains(&harness.client.key), "{text}");
    }
    let price = catalogue("openai", MODEL);
    let books = harness.finish().await;
    let states: Vec<State> = books.exchanges.iter().map(|row| row.state).collect();
    let done = State::Completed;
    assert_eq!(states, [done, done, State::Refused, done, State::Broken, done]);
    for row in books.exchanges.iter().filter(|row| row.state == done) {
        assert_eq!(i128::from(row.charge.nanos()), expected_charge(&used(), &price, "1"));
        assert_eq!(row.basis, Basis::Reported);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_forgot_or_closed_is_sent_whole_once_more_and_billed_once() {
    let upstream = Speaking::start().await;
    let harness = upstream.gateway().await;
    let mut socket = open(&harness.client).await;
    let mut last = socket.turn(json!({"input": [says("one")]})).await;
    let mut items = 1;
    for (word, connection) in [("forget", 1), ("expire", 2), ("go on", 2)] {
        last = socket
            .turn(json!({"previous_response_id": last, "input": [says(word)]}))
            .await;
        items += 2;
        let (at, asked) = upstream.asked().pop().expect("a create");
        let sent = if word == "go on" { 1 } else { items };
        assert_eq!(
            (at, asked["input"].as_array().map(Vec::len)),
            (connection, Some(sent)),
            "{word}"
        );
        if word == "expire" {
            // It would be said of each that has the word in it.
            last = socket.turn(json!({"input": [says("anew")]})).await;
            items = 1;
        }
    }
    assert_eq!(upstream.asked().len(), 7);
    let books = harness.finish().await;
    let charge = expected_charge(&used(), &catalogue("openai", MODEL), "1");
    assert_eq!((books.exchanges.len(), books.charged()), (5, 5 * charge));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_behind_an_error_of_an_upstream_over_websocket_is_billed() {
    let upstream = Speaking::start().await;
    let harness = upstream.gateway().await;
    let mut socket = open(&harness.client).await;
    socket.create(json!({"input": [says("fail")]})).await;
    assert_eq!(socket.end().await["type"], "error");
    assert_eq!(socket.end().await["type"], "response.failed");
    socket.turn(json!({"input": [says("again")]})).await;
    let connections: Vec<usize> = upstream.asked().iter().map(|(at, _)| *at).collect();
    assert_eq!(connections, [1, 1], "it ended as it should");
    let books = harness.finish().await;
    let charge = expected_charge(&used(), &catalogue("openai", MODEL), "1");
    assert_eq!((books.exchanges.len(), books.charged()), (2, 2 * charge));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_goes_over_no_websocket_of_another_account_at_the_same_place() {
    let upstream = Speaking::start().await;
    let of = |name: &str, priority: u8| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nbase_url = \"{}\"\napi_key = \"sk-{name}\"\nprices = \"openai\"\nwebsocket = true\npriority = {priority}\n",
            upstream.url
        )
    };
    let settings = format!("{}{}", of("a", 0), of("b", 1));
    let harness = Harness::builder()
        .settings(&settings)
        .upstream("priority = 2")
        .start()
        .await;
    let mut socket = open(&harness.client).await;
    let one = socket.turn(json!({"input": [says("one")]})).await;
    socket
        .turn(json!({"previous_response_id": one, "input": [says("busy")]}))
        .await;
    let asked = upstream.asked();
    let connections: Vec<usize> = asked.iter().map(|(connection, _)| *connection).collect();
    assert_eq!(connections, [1, 1, 2]);
    assert_eq!(asked[2].1["input"].as_array().map(Vec::len), Some(3), "all of it");
    let accounts: Vec<_> = {
        let headers = upstream.headers.lock().expect("nobody panicked");
        headers.iter().map(|headers| headers["authorization"].clone()).collect()
    };
    assert_eq!(accounts, ["Bearer sk-a", "Bearer sk-b"]);
    let books = harness.finish().await;
    let charge = expected_charge(&used(), &catalogue("openai", MODEL), "1");
    assert_eq!((books.exchanges.len(), books.charged()), (2, 2 * charge));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_opens_no_websocket_is_spoken_to_over_http() {
    let harness = Harness::builder().upstream("websocket = true").start().await;
    let mut socket = open(&harness.client).await;
    let one = socket.turn(json!({"input": [says("one")]})).await;
    socket
        .turn(json!({"previous_response_id": one, "input": [says("two")]}))
        .await;
    harness.client.respond("Hello").await.expect(200);
    let served = harness.served();
    let posts: Vec<_> = served
        .iter()
        .filter(|served| served.method == Method::POST)
        .cloned()
        .collect();
    let second: Value = serde_json::from_slice(&posts[1].body).expect("JSON");
    assert_eq!(second["input"].as_array().map(Vec::len), Some(3));
    let books = harness.finish().await;
    assert_eq!(
        (posts.len(), books.exchanges.len(), books.charged()),
        (3, 3, expected(&posts))
    );
}
