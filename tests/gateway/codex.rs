//! What the Codex CLI sends and is answered: its recorded exchanges, and what only it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use codex_gateway::simulator::{Playwright, Request, Script, Step};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Answer, Client, drain, response};
use crate::harness::Harness;
use crate::price::find_in_catalogue;
use crate::websocket::connect;

/// Gateways at the same time.
const AT_ONCE: usize = 6;

/// Headers of a recorded request that are the connection's or the credential's.
const NOT_SENT: [&str; 5] = [
    "authorization",
    "host",
    "content-length",
    "content-encoding",
    "transfer-encoding",
];

/// What becomes of a recorded answer on its way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// Status, body and events are the upstream's.
    Same,
    /// What the client can do nothing about, and every 5xx: 503 `server_is_overloaded` with our sentence, and none of the
    /// upstream's body.
    Overloaded,
    /// A stream that broke off: all of its events, then `response.failed`.
    Failed,
    /// The gateway answers by itself, and the upstream is not asked.
    Ours(u16),
}

/// The recordings whose answer does not pass as it is; all others do.
const TRANSLATED: [(&str, Becomes); 40] = [
    ("doctor-probe-1", Becomes::Ours(405)),
    ("doctor-probe-2", Becomes::Ours(401)),
    ("error-variant-401-model-not-found", Becomes::Overloaded),
    ("error-variant-401-token-expired", Becomes::Overloaded),
    ("error-variant-402-budget-reached", Becomes::Overloaded),
    ("error-variant-402-x-should-retry-false", Becomes::Overloaded),
    ("error-variant-429-quota-with-retry-after", Becomes::Overloaded),
    ("error-variant-500-code-x", Becomes::Overloaded),
    ("error-variant-503-retry-after-1", Becomes::Overloaded),
    ("error-variant-503-slow-down", Becomes::Overloaded),
    ("error-variant-bal-quota-promo", Becomes::Overloaded),
    ("error-variant-bal-reached-member-code-quota", Becomes::Overloaded),
    ("error-variant-bal-reached-member-type-quota", Becomes::Overloaded),
    ("error-variant-bal-usage-limit-code-quota-promo", Becomes::Overloaded),
    ("http-error-401-invalid-api-key", Becomes::Overloaded),
    ("http-error-402-insufficient-quota", Becomes::Overloaded),
    ("http-error-402-payment-required", Becomes::Overloaded),
    ("http-error-429-credit-balance-exhausted", Becomes::Overloaded),
    ("http-error-429-insufficient-quota", Becomes::Overloaded),
    ("http-error-429-organization-spend-limit-exceeded", Becomes::Overloaded),
    ("http-error-429-organization-usage-limit-exceeded", Becomes::Overloaded),
    ("http-error-429-project-spend-limit-exceeded", Becomes::Overloaded),
    ("http-error-500-once", Becomes::Overloaded),
    ("http-error-500-server-error", Becomes::Overloaded),
    ("http-error-502-html", Becomes::Overloaded),
    ("http-error-502-json", Becomes::Overloaded),
    ("http-error-503-overloaded", Becomes::Overloaded),
    ("http-error-503-plain", Becomes::Overloaded),
    ("http-error-503-retry-after", Becomes::Overloaded),
    ("http-error-504", Becomes::Overloaded),
    ("http-error-529", Becomes::Overloaded),
    ("http-error-drop-connection", Becomes::Overloaded),
    ("idle-idle-comments", Becomes::Failed),
    ("idle-idle-silent", Becomes::Failed),
    ("models-auth-command", Becomes::Ours(200)),
    ("models-catalog", Becomes::Ours(200)),
    ("sse-cut-abort", Becomes::Failed),
    ("sse-cut-after-item-done", Becomes::Failed),
    ("sse-cut-eof", Becomes::Failed),
    ("sse-cut-eof-once", Becomes::Failed),
];

fn folder() -> PathBuf {
    let fixtures = std::env::var_os("GATEWAY_FIXTURES").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    fixtures.unwrap_or_else(default).join("codex")
}

/// A recorded exchange.
struct Recorded {
    name: String,
    request: Value,
    response: Value,
}

fn recordings() -> Vec<Recorded> {
    let Ok(files) = std::fs::read_dir(folder()) else {
        return Vec::new();
    };
    let paths = files.map(|file| file.expect("an entry").path());
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a file");
        let mut whole: Value = serde_json::from_str(&text).expect("JSON");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let (request, response) = (whole["request"].take(), whole["response"].take());
        Recorded {
            name,
            request,
            response,
        }
    };
    let mut found: Vec<Recorded> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(read)
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Recorded {
    /// A connection that becomes a WebSocket has frames, not an answer.
    fn is_websocket(&self) -> bool {
        self.name.starts_with("websocket-") && self.request["method"] == "GET"
    }

    fn headers(&self) -> HeaderMap {
        let listed = self.request["headers"].as_array().expect("headers").iter();
        let named = listed.map(|pair| (pair[0].as_str().expect("a name"), pair[1].as_str().expect("a value")));
        named
            .filter(|(name, _)| !NOT_SENT.contains(&name.to_lowercase().as_str()))
            .map(|(name, value)| {
                (
                    name.parse::<HeaderName>().expect("a name"),
                    HeaderValue::from_str(value).expect("a value"),
                )
            })
            .collect()
    }

    /// The body as it was sent; recorded is what it says.
    fn body(&self) -> Vec<u8> {
        let text = match &self.request["body"] {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        match self.request["content_encoding"].as_str() {
            Some("zstd") => zstd::encode_all(text.as_bytes(), 3).expect("memory"),
            _ => text.into_bytes(),
        }
    }

    /// The answer's bytes.
    fn sent(&self) -> String {
        if let Some(chunks) = self.response["sse"].as_array() {
            return chunks.iter().map(|chunk| chunk.as_str().expect("text")).collect();
        }
        match &self.response["body"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            body => body.to_string(),
        }
    }

    /// The upstream as it was recorded.
    fn script(&self) -> Script {
        let Some(status) = self.response["status"].as_u64() else {
            return Script::refuse();
        };
        let status = StatusCode::from_u16(u16::try_from(status).expect("a status")).expect("a status");
        let headers: BTreeMap<String, String> =
            serde_json::from_value(self.response["headers"].clone()).unwrap_or_default();
        let mut script = match self.response["sse"].as_array() {
            Some(chunks) => Script::sse(
                chunks
                    .iter()
                    .map(|chunk| Step::send(chunk.as_str().expect("text").to_owned()))
                    .collect(),
            ),
            None => {
                let media = headers.get("content-type").map_or("application/json", String::as_str);
                Script::body(status, media, Bytes::from(self.sent()))
            }
        };
        for (name, value) in &headers {
            if ![
                "content-type",
                "content-length",
                "cache-control",
                "connection",
                "transfer-encoding",
            ]
            .contains(&name.as_str())
            {
                script = script.header(name, value);
            }
        }
        if self.response["note"]
            .as_str()
            .is_some_and(|note| note.contains("aborted"))
        {
            script.steps.push(Step::Reset);
        }
        script
    }
}

/// What came back.
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: String,
    asked_upstream: bool,
}

async fn replayed(recorded: &Arc<Recorded>) -> Seen {
    let of_upstream = Arc::clone(recorded);
    let playwright: Playwright = Arc::new(move |request: &Request| {
        assert_eq!(request.path, "/v1/responses", "{}", of_upstream.name);
        of_upstream.script()
    });
    let model = recorded.request["body"]["model"]
        .as_str()
        .unwrap_or("gpt-5.5")
        .to_owned();
    let mut builder = Harness::builder().balance("1000").playwright(playwright);
    if find_in_catalogue("openai", &model).is_none() {
        builder = builder.vendor("free", &[model.as_str()]);
    }
    let harness = builder.start().await;
    let method =
        Method::from_bytes(recorded.request["method"].as_str().expect("a method").as_bytes()).expect("a method");
    let query = recorded.request["query"].as_str().filter(|query| !query.is_empty());
    let path = recorded.request["path"].as_str().expect("a path");
    let url = format!(
        "{}{path}{}",
        harness.base_url(),
        query.map(|query| format!("?{query}")).unwrap_or_default()
    );
    let mut request = harness.client.http.request(method, url).headers(recorded.headers());
    let had_key = recorded.request["headers"]
        .to_string()
        .to_lowercase()
        .contains("authorization");
    if had_key {
        request = request.bearer_auth(&harness.client.key);
    }
    if let Some(coding) = recorded.request["content_encoding"].as_str() {
        request = request.header("content-encoding", coding);
    }
    let answer = request.body(recorded.body()).send().await.expect("the gateway answers");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let (body, end) = drain(answer).await;
    end.unwrap_or_else(|error| panic!("{}: {error}", recorded.name));
    let served = harness.served();
    let said = recorded.request["body"].to_string();
    for call in &served {
        let got = String::from_utf8_lossy(&call.body);
        assert!(got == said, "{}: the upstream gets what Codex says", recorded.name);
    }
    let asked_upstream = !served.is_empty();
    harness.finish().await;
    Seen {
        status,
        headers,
        body: String::from_utf8(body).expect("text"),
        asked_upstream,
    }
}

/// What became of it, looked at without knowing what should.
fn became(recorded: &Recorded, seen: &Seen) -> Result<Becomes, String> {
    let Seen { status, body, .. } = seen;
    let of_upstream = recorded.response["status"].as_u64().unwrap_or(0);
    if !seen.asked_upstream {
        return Ok(Becomes::Ours(*status));
    }
    for secret in [
        "openai-model",
        "set-cookie",
        "openai-organization",
        "x-codex-primary-used-percent",
    ] {
        if seen.headers.contains_key(secret) {
            return Err(format!("{secret} reached the client"));
        }
    }
    if *body == recorded.sent() && u64::from(*status) == of_upstream {
        return Ok(Becomes::Same);
    }
    let error: Value = serde_json::from_str(body).unwrap_or_default();
    if *status == 503 && error["error"]["code"] == "server_is_overloaded" && error["error"]["gateway"].is_object() {
        return Ok(Becomes::Overloaded);
    }
    let more = body
        .strip_prefix(&recorded.sent())
        .filter(|_| u64::from(*status) == of_upstream);
    match more.map(|more| more.trim_start().starts_with("event: response.failed\n")) {
        Some(true) => Ok(Becomes::Failed),
        _ => Err(format!("{status}: {body}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_exchanges_of_codex_reach_it_as_they_were_but_for_what_is_listed() {
    let recordings: Vec<Arc<Recorded>> = recordings().into_iter().map(Arc::new).collect();
    if recordings.is_empty() {
        println!("fixtures absent: {}", folder().display());
        return;
    }
    let plays = recordings.iter().filter(|recorded| !recorded.is_websocket()).cloned();
    let replays = plays.map(|recorded| async move {
        let seen = replayed(&recorded).await;
        let became = became(&recorded, &seen);
        (recorded.name.clone(), became)
    });
    let became: BTreeMap<String, Result<Becomes, String>> =
        stream::iter(replays).buffer_unordered(AT_ONCE).collect().await;
    let listed: BTreeMap<&str, Becomes> = TRANSLATED.into_iter().collect();
    let wrong: Vec<String> = became
        .iter()
        .filter_map(|(name, became)| {
            let wanted = listed.get(name.as_str()).copied().unwrap_or(Becomes::Same);
            (*became != Ok(wanted)).then(|| format!("{name}: wanted {wanted:?}, found {became:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unknown: BTreeSet<&&str> = listed.keys().filter(|name| !became.contains_key(**name)).collect();
    assert!(unknown.is_empty(), "no such recordings: {unknown:?}");
    println!("replayed {} exchanges of Codex", became.len());
}

/// A create that was recorded over a WebSocket, and the frames that came of it.
struct Turn {
    create: Value,
    frames: Vec<Value>,
}

impl Turn {
    /// Codex only warms the connection up; the gateway answers that by itself.
    fn is_prewarm(&self) -> bool {
        self.create["generate"] == false
    }

    /// As the upstream tells it over HTTP.
    fn script(&self) -> Script {
        let first = &self.frames[0];
        match first["status"].as_u64() {
            Some(status) => {
                let status = StatusCode::from_u16(u16::try_from(status).expect("a status")).expect("a status");
                Script::json(status, &json!({"error": first["error"]}))
            }
            None => {
                let event = |frame: &Value| Step::send(format!("data: {frame}\n\n"));
                Script::sse(self.frames.iter().map(event).collect())
            }
        }
    }
}

impl Recorded {
    fn turns(&self) -> Vec<Turn> {
        let mut turns = Vec::<Turn>::new();
        for frame in self.response["frames"].as_array().into_iter().flatten() {
            let data = frame["data"].clone();
            match frame["from"].as_str() {
                Some("client") => turns.push(Turn {
                    create: data,
                    frames: Vec::new(),
                }),
                Some(_) => turns.last_mut().expect("a create").frames.push(data),
                None => {}
            }
        }
        turns
    }

    /// The headers of its handshake, with the key of a client; what is the library's own to say is left out.
    async fn opened(&self, client: &Client) -> Result<crate::websocket::Socket, u16> {
        let bearer = format!("Bearer {}", client.key);
        let of_library = ["connection", "upgrade", "sec-websocket-version", "sec-websocket-key"];
        let recorded = self.headers();
        let of_codex = recorded.iter().filter(|(name, _)| !of_library.contains(&name.as_str()));
        let mut headers: Vec<(&str, &str)> = of_codex
            .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
            .collect();
        headers.push(("authorization", &bearer));
        let opened = connect(&client.base_url, &headers).await;
        opened
            .map(|(socket, _)| socket)
            .map_err(|refused| refused.status().as_u16())
    }
}

/// Plays what Codex sent over a WebSocket, the upstream's frames as its answers over HTTP; what came back, turn by turn.
async fn replayed_over_websocket(recorded: &Recorded, harness: &Harness, turns: Vec<Turn>) -> Vec<(Turn, Vec<Value>)> {
    let mut socket = recorded.opened(&harness.client).await.expect("a WebSocket");
    let mut renamed = BTreeMap::<String, Value>::new();
    let mut seen = Vec::new();
    for mut turn in turns {
        if let Some(ours) = turn.create["previous_response_id"]
            .as_str()
            .and_then(|id| renamed.get(id))
        {
            turn.create["previous_response_id"] = ours.clone();
        }
        socket.say(turn.create.to_string()).await;
        let frames = socket.answer().await;
        let id = |frames: &[Value]| frames.last().expect("a frame")["response"]["id"].clone();
        if let Some(theirs) = id(&turn.frames).as_str() {
            renamed.insert(theirs.to_owned(), id(&frames));
        }
        seen.push((turn, frames));
    }
    seen
}

/// An upstream that answers as these turns were, one after the other.
fn of_turns<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> Playwright {
    let scripts: Vec<Script> = turns.into_iter().map(Turn::script).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    Arc::new(move |_: &Request| scripts[next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_websockets_of_codex_are_answered_as_they_were() {
    let recordings: Vec<Recorded> = recordings().into_iter().filter(Recorded::is_websocket).collect();
    if recordings.is_empty() {
        println!("fixtures absent: {}", folder().display());
        return;
    }
    for recorded in &recordings {
        let mut turns = recorded.turns();
        match recorded.name.as_str() {
            "websocket-plain" | "websocket-tool" => {
                let upstream = of_turns(turns.iter().filter(|turn| !turn.is_prewarm()));
                let harness = Harness::builder().balance("1000").playwright(upstream).start().await;
                let seen = replayed_over_websocket(recorded, &harness, turns).await;
                let (mut calls, mut whole) = (harness.served().into_iter(), 0);
                for (turn, frames) in &seen {
                    whole += turn.create["input"].as_array().expect("a list").len();
                    if turn.is_prewarm() {
                        let kinds: Vec<&Value> = frames.iter().map(|frame| &frame["type"]).collect();
                        assert_eq!(kinds, ["response.created", "response.completed"], "{}", recorded.name);
                        continue;
                    }
                    assert_eq!(*frames, turn.frames, "{}", recorded.name);
                    // What the model reads is the whole conversation.
                    let call = calls.next().expect("a call of the upstream");
                    let body: Value = serde_json::from_slice(&call.body).expect("JSON");
                    assert_eq!(body["input"].as_array().map(Vec::len), Some(whole), "{}", recorded.name);
                    let items = frames
                        .iter()
                        .filter(|frame| frame["type"] == "response.output_item.done");
                    whole += items.count();
                }
                assert_eq!(calls.count(), 0);
                harness.finish().await;
            }
            // Recorded as answers to the prewarm, to which the gateway has no such answer.
            "websocket-failed-quota" | "websocket-err-quota" => {
                turns[0].create.as_object_mut().expect("an object").remove("generate");
                let harness = Harness::builder()
                    .balance("1000")
                    .playwright(of_turns(&turns))
                    .start()
                    .await;
                let seen = replayed_over_websocket(recorded, &harness, turns).await;
                let (turn, frames) = &seen[0];
                match recorded.name.ends_with("err-quota") {
                    false => assert_eq!(*frames, turn.frames, "{}", recorded.name),
                    // The upstream's account is the operator's.
                    true => assert_eq!(
                        (&frames[0]["type"], &frames[0]["status"], &frames[0]["error"]["code"]),
                        (&json!("error"), &json!(503), &json!("server_is_overloaded"))
                    ),
                }
                harness.finish().await;
            }
            // The gateway's own words: so they were recorded, and so they are.
            "websocket-err-ul" => {
                turns[0].create.as_object_mut().expect("an object").remove("generate");
                let harness = Harness::builder().balance("0").start().await;
                let seen = replayed_over_websocket(recorded, &harness, turns).await;
                let (turn, frames) = &seen[0];
                let (wanted, got) = (&turn.frames[0], &frames[0]);
                for pointer in ["/type", "/status", "/error/type", "/error/code"] {
                    assert_eq!(got.pointer(pointer), wanted.pointer(pointer), "{pointer}: {got}");
                }
                assert!(got["headers"]["x-codex-promo-message"].is_string(), "{got}");
                assert!(harness.served().is_empty());
                harness.finish().await;
            }
            "websocket-refused-426-1" => {
                let harness = Harness::builder().settings("[server]\nwebsocket = false").start().await;
                assert_eq!(recorded.opened(&harness.client).await.err(), Some(426));
                harness.finish().await;
            }
            other => panic!("what becomes of {other}?"),
        }
    }
    println!("replayed {} WebSockets of Codex", recordings.len());
}

/// The list of models as Codex asks for it.
async fn catalogue(client: &Client) -> Answer {
    client.get("/v1/models?client_version=0.169.0").await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_has_a_tag_for_each_key_that_follows_models_and_prices_and_not_the_balance() {
    let harness = Harness::builder().balance("5").start().await;
    let first = catalogue(&harness.client).await;
    let tag = first.header("etag").to_owned();
    let entry = &first.json()["models"][0];
    let text = entry["description"].as_str().expect("text").to_owned();
    assert!(text.starts_with("Balance $5.00 · $"), "{text}");
    assert_eq!(
        (&entry["use_responses_lite"], &entry["tool_mode"]),
        (&json!(false), &Value::Null)
    );
    let strong = format!("\"another\", {}", tag.trim_start_matches("W/"));
    for (known, status) in [(tag.as_str(), 304), (&strong, 304), ("*", 304), ("\"another\"", 200)] {
        let request = harness.client.request(Method::GET, "/v1/models");
        let again = request.header("if-none-match", known).send().await.expect("an answer");
        assert_eq!(again.status(), status, "{known}");
    }
    let narrow = harness.issue("--model gpt-5.5");
    assert_ne!(catalogue(&narrow).await.header("etag"), tag);

    harness.client.respond("Hello").await.expect(200);
    let spent = catalogue(&harness.client).await;
    assert_ne!(spent.json()["models"][0]["description"], text, "the balance is another");
    assert_eq!(spent.header("etag"), tag);

    // A running server knows within a second; Codex is told with its next answer, and asks.
    let told = async |client: &Client| {
        let call = client
            .request(Method::POST, "/v1/responses")
            .header("x-codex-window-id", "w:0");
        let answer = call.body(response("Hello", &json!({})).to_string()).send().await;
        let answer = Answer::of(answer.expect("an answer")).await;
        answer
            .headers
            .get("x-models-etag")
            .map(|tag| tag.to_str().expect("text").to_owned())
    };
    assert_eq!(told(&harness.client).await.as_deref(), Some(tag.as_str()));
    harness.operate("price set gpt-5.5 --list openai --like gpt-5.5 --input 7");
    let mut tries = 0;
    while told(&harness.client).await.as_deref() == Some(tag.as_str()) {
        tries += 1;
        assert!(tries < 100, "the tag stays");
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
    }
    let now = catalogue(&harness.client).await;
    assert_eq!(told(&harness.client).await.as_deref(), Some(now.header("etag")));
    let stranger = harness.issue("");
    assert_eq!(told(&stranger).await, None, "whoever has no copy is told of none");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_codex_s_doctor_asks_is_answered_and_large_metadata_passes() {
    let harness = Harness::start().await;
    let ask = async |method: Method, path: &str| {
        let request = harness
            .client
            .http
            .request(method, format!("{}{path}", harness.base_url()));
        request.send().await.expect("an answer").status().as_u16()
    };
    for (path, head, get) in [
        ("/v1/responses", 405, 426),
        ("/v1/models", 401, 401),
        ("/models", 401, 401),
    ] {
        assert_eq!(ask(Method::HEAD, path).await, head, "HEAD {path}");
        assert_eq!(ask(Method::GET, path).await, get, "GET {path}");
    }
    let head = harness
        .client
        .request(Method::HEAD, "/v1/models")
        .send()
        .await
        .expect("an answer");
    assert_eq!(head.status(), 200);
    let large = "m".repeat(40 * 1024);
    let call = harness
        .client
        .request(Method::POST, "/responses")
        .header("x-codex-turn-metadata", large);
    let answer = call
        .body(response("Hello", &json!({})).to_string())
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200, "the path without /v1, with 40 KiB of metadata");
    harness.finish().await;
}

/// The text of a file of the project.
fn project(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether a test of this name is there: `module::test` of this crate, else a check of the real clients.
fn is_a_test(name: &str) -> bool {
    if let Some((module, test)) = name.split_once("::") {
        return project(&format!("tests/gateway/{module}.rs")).contains(&format!("fn {test}("));
    }
    // Of one list of checks, driven by each version: `codex VERSION: check`.
    if let Some((version, check)) = name.strip_prefix("codex ").and_then(|rest| rest.split_once(": ")) {
        let versions = project("tests/clients/test_versions.py");
        let (version, _) = version.split_once(' ').unwrap_or((version, ""));
        let of_version = versions.split(&format!("\"{version}\": [")).nth(1).unwrap_or_default();
        return of_version
            .split(']')
            .next()
            .is_some_and(|list| list.contains(&format!("(\"{check}\", ")));
    }
    let checks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut files = std::fs::read_dir(checks).expect("a folder");
    files.any(|file| {
        let path = file.expect("an entry").path();
        let is_python = path.extension().is_some_and(|end| end == "py");
        is_python
            && std::fs::read_to_string(path)
                .expect("a file")
                .contains(&format!("\"{name}\""))
    })
}

#[test]
fn the_table_of_what_works_names_tests_that_are_there() {
    let page = project("docs/codex.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .skip_while(|line| !line.starts_with("| feature"))
        .skip(2)
        .take_while(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let mut named = 0;
    for row in &rows {
        let cell = row.last().expect("a cell");
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "a row without a test: {row:?}");
        for test in tests {
            assert!(is_a_test(test), "{test} is no test");
            named += 1;
        }
    }
    assert!(named > 10, "only {named} tests are named");
    for none in [
        "codex: none such",
        "codex::none_such",
        "codex 0.144.3: none such",
        "codex 0.1.0: prompt",
    ] {
        assert!(!is_a_test(none), "{none}");
    }
}
