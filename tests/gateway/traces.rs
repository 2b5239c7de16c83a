//! A span for each exchange: it says what the receipt says, hangs on the client's, and delays nobody.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use codex_gateway::store::usage_log::ExchangeRow;
use codex_gateway::store::{Create, Store};
use http::{HeaderMap, Uri};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Answer, Client, MODEL, chat};
use crate::shutdown::Office;

/// Longer than any call here takes.
const PATIENCE: Duration = Duration::from_secs(20);

const CHAT: &str = "/v1/chat/completions";

const PROMPT: &str = "what-nobody-else-may-read";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

const PARENT: &str = "b7ad6b7169203331";

/// A field of a protobuf message, by its wire type.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Field::Bytes(bytes) => bytes,
            Field::Number(number) => panic!("{number} is no bytes"),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Field::Number(number) => *number,
            Field::Bytes(bytes) => panic!("{bytes:?} is no number"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("text")
    }

    fn hex(&self) -> String {
        self.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The fields of a message, with their numbers.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn take<'a>(message: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = message.split_at(count);
        *message = rest;
        taken
    }
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = take(message, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => Field::Number(u64::from_le_bytes(take(&mut message, 8).try_into().expect("8 bytes"))),
            2 => {
                let length = usize::try_from(varint(&mut message)).expect("a length");
                Field::Bytes(take(&mut message, length))
            }
            5 => Field::Number(u32::from_le_bytes(take(&mut message, 4).try_into().expect("4 bytes")).into()),
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, field));
    }
    found
}

/// All fields of a message with a number.
fn all(message: &[u8], number: u64) -> impl Iterator<Item = Field<'_>> {
    let of = move |(found, field)| (found == number).then_some(field);
    fields(message).into_iter().filter_map(of)
}

fn one(message: &[u8], number: u64) -> Field<'_> {
    all(message, number)
        .next()
        .unwrap_or_else(|| panic!("no field {number}"))
}

/// `KeyValue`s.
fn attributes(message: &[u8], number: u64) -> BTreeMap<String, Value> {
    let value = |value: &[u8]| match fields(value).into_iter().next().expect("a value") {
        (1, text) => json!(text.text()),
        (2, truth) => json!(truth.number() == 1),
        (3, number) => json!(number.number()),
        (other, _) => panic!("a value of kind {other}"),
    };
    let of = |field: Field<'_>| (one(field.bytes(), 1).text(), value(one(field.bytes(), 2).bytes()));
    all(message, number).map(of).collect()
}

/// A span as OTLP writes it, and the resource it is of.
#[derive(Debug)]
struct Span {
    trace: String,
    parent: String,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, Value>,
    is_error: bool,
    resource: BTreeMap<String, Value>,
}

impl Span {
    fn read(span: &[u8], resource: &BTreeMap<String, Value>) -> Span {
        Span {
            trace: one(span, 1).hex(),
            parent: all(span, 4).map(|parent| parent.hex()).collect(),
            name: one(span, 5).text(),
            kind: one(span, 6).number(),
            start: one(span, 7).number(),
            end: one(span, 8).number(),
            attributes: attributes(span, 9),
            is_error: all(span, 15).any(|status| all(status.bytes(), 3).any(|code| code.number() == 2)),
            resource: resource.clone(),
        }
    }

    fn all_of(request: &[u8]) -> Vec<Span> {
        let mut spans = Vec::new();
        for resource_spans in all(request, 1) {
            let resource = attributes(one(resource_spans.bytes(), 1).bytes(), 1);
            for scope in all(resource_spans.bytes(), 2) {
                spans.extend(all(scope.bytes(), 2).map(|span| Span::read(span.bytes(), &resource)));
            }
        }
        spans
    }
}

type Posted = (Uri, HeaderMap, Bytes);

/// A collector of OTLP over HTTP.
struct Collector {
    url: String,
    posted: watch::Sender<Vec<Posted>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Collector {
    async fn start() -> Collector {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let posted = watch::Sender::new(Vec::new());
        let router = Router::new().fallback(take).with_state(posted.clone());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                served = async { axum::serve(listener, router).await } => served.expect("it serves"),
            }
        });
        Collector {
            url,
            posted,
            stop,
            tasks,
        }
    }

    /// What came until now.
    async fn end(self) -> Vec<Posted> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.posted.borrow().clone()
    }
}

async fn take(State(posted): State<watch::Sender<Vec<Posted>>>, uri: Uri, headers: HeaderMap, body: Bytes) {
    posted.send_modify(|posted| posted.push((uri, headers, body)));
}

async fn call(client: &Client, body: &Value, traceparent: &str) -> Answer {
    let request = client.request(reqwest::Method::POST, CHAT).json(body);
    let sent = request.header("traceparent", traceparent).send().await;
    Answer::of(sent.expect("an answer")).await
}

/// All that a span may say, as the receipt has it.
fn expected(row: &ExchangeRow, client: &Client, port: u16, error: Option<&str>) -> BTreeMap<String, Value> {
    let told = [
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.provider.name", json!("openai")),
        ("gen_ai.request.model", json!(row.priced_model)),
        ("gen_ai.request.stream", row.streamed.then_some(true).into()),
        ("gen_ai.response.id", row.response_id.clone().into()),
        ("gen_ai.response.model", row.answered_model.clone().into()),
        ("gen_ai.usage.input_tokens", json!(row.usage.input_tokens.get())),
        ("gen_ai.usage.output_tokens", json!(row.usage.output_tokens.get())),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(port)),
        ("http.response.status_code", row.upstream_status.into()),
        ("error.type", error.into()),
        ("gateway.exchange", json!(row.id.to_string())),
        ("gateway.endpoint", json!("/chat/completions")),
        ("gateway.model", json!(MODEL)),
        ("gateway.state", json!(row.state.name())),
        ("gateway.upstream", json!("first")),
        ("gateway.attempts", json!(row.attempts)),
        ("gateway.charge_usd", json!(row.charge.to_string())),
        ("gateway.user", json!("alice")),
        ("gateway.key", json!(prefix(client))),
    ];
    let there = told.into_iter().filter(|(_, value)| !value.is_null());
    there.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What is shown of a key.
fn prefix(client: &Client) -> String {
    let shown = codex_gateway::key::GatewayKey::parse(&client.key);
    shown.expect("a key").prefix().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_exchange_is_a_span_that_says_what_its_receipt_says() {
    let (collector, office) = (Collector::start().await, Office::new("").await);
    office.gate.open();
    let serving = office.serve_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours"),
    ]);
    let client = office.client(&serving);
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let plain = call(&client, &chat(PROMPT, &json!({})), &parent).await.expect(200);
    let streamed = chat(PROMPT, &json!({"stream": true}));
    let streamed = call(&client, &streamed, "00-not-valid-01").await.expect(200);
    let refused = call(&client, &chat("sim:400", &json!({})), "").await.expect(400);
    let failed = call(&client, &chat("sim:500", &json!({})), "").await.expect(502);
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    call(&client, &chat(PROMPT, &json!({})), &unsampled).await.expect(200);
    serving.stop().await;

    let posted = collector.end().await;
    let mut spans = BTreeMap::new();
    for (uri, headers, body) in &posted {
        assert_eq!(
            (uri.path(), &headers["x-tenant"]),
            ("/v1/traces", &"ours".parse().expect("a value"))
        );
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let text = String::from_utf8_lossy(body);
        for secret in [PROMPT, &client.key, "sk-upstream", "choices"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        for span in Span::all_of(body) {
            let id = span.attributes["gateway.exchange"].as_str().expect("an id").to_owned();
            assert!(spans.insert(id, span).is_none(), "one span each");
        }
    }
    assert_eq!(
        spans.len(),
        4,
        "one that the client's trace leaves out is left out: {spans:#?}"
    );
    let store = Store::open(&office.database(), Create::Never).expect("it opens");
    let port = office.simulator.address().port();
    for (answer, error) in [
        (&plain, None),
        (&streamed, None),
        (&refused, Some("400")),
        (&failed, Some("upstream_error")),
    ] {
        let row = store
            .find_exchange(answer.exchange())
            .expect("it is read")
            .expect("it is there");
        let span = &spans[answer.exchange()];
        assert_eq!(span.attributes, expected(&row, &client, port, error));
        assert_eq!(
            (span.name.as_str(), span.kind),
            (format!("chat {MODEL}").as_str(), 3),
            "a client's"
        );
        assert_eq!(span.is_error, error.is_some());
        let micros = u64::try_from(row.started_at.as_microsecond()).expect("after 1970");
        assert_eq!(span.start / 1000, micros);
        assert_eq!(u128::from(span.end - span.start) / 1000, row.duration.as_micros());
        assert_eq!(span.resource["service.name"], "codex-gateway");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        if answer.exchange() == plain.exchange() {
            assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, PARENT));
        } else {
            assert_ne!(span.trace, TRACE);
            assert_eq!(span.parent, "", "it begins a trace of its own");
        }
    }
    assert_eq!(
        spans[plain.exchange()].attributes["gateway.charge_usd"],
        plain.header("x-gateway-cost")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_delays_no_call_and_is_not_waited_for() {
    // Connections come about, and nobody ever takes them.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", deaf.local_addr().expect("an address"));
    let office = Office::new("").await;
    office.gate.open();
    let serving = office.serve_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
    ]);
    let client = office.client(&serving);
    for _ in 0..10 {
        let answered = timeout(PATIENCE, client.chat("Hello")).await;
        answered.expect("an answer in time").expect(200);
    }
    let said = serving.says("SpanDroppingStarted", 1).await;
    assert!(!said.contains("panicked"), "{said}");
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_named_wrongly_or_turned_off_gets_nothing_and_calls_go_on() {
    let (collector, office) = (Collector::start().await, Office::new("").await);
    office.gate.open();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let serving = office.serve_with(&[endpoint, ("OTEL_SDK_DISABLED", "true")]);
    let client = office.client(&serving);
    client.chat("Hello").await.expect(200);
    serving.stop().await;
    let serving = office.serve_with(&[endpoint, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "no url")]);
    let base_url = serving.url.clone();
    let client = Client { base_url, ..client };
    client.chat("Hello").await.expect(200);
    serving.says("no traces are sent", 1).await;
    serving.stop().await;
    assert_eq!(collector.end().await, []);
}
