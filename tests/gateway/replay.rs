//! Recorded streams: every byte of them reaches the client, in whatever pieces they come, and each is billed as its
//! upstream counted it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codex_gateway::simulator::{Gate, Playwright, Request, Script, Step, always};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::client::{Client, MODEL, drain, exchange_of};
use crate::harness::{Builder, Harness};
use crate::price::{at_hour, expected_charge, fee, find_in_catalogue, reported};

/// Each stream is cut so often, differently each time.
const CUTS: u64 = 50;

/// Exchanges at the same time.
const AT_ONCE: usize = 16;

/// Byte by byte through the real server, up to this size.
const BYTE_BY_BYTE: usize = 4 * 1024;

/// Vendors with a price list of their own, by the beginnings of their recordings' names.
const VENDORS: [&str; 5] = ["xai", "deepseek", "moonshot", "groq", "zai"];

/// Recordings that tell of hosted tools, with the fee and how often it is due.
const TOOLS: [(&str, &str, i128); 4] = [
    ("responses-web-search.sse", "web_search", 1),
    ("responses-shell-container.sse", "container", 1),
    ("responses-file-search.sse", "file_search", 1),
    ("responses-code-interpreter-reasoning-summary.sse", "container", 1),
];

/// Recordings of models that are gone from the catalogue, and one of the same vendor's to bill them as.
const STAND_INS: [(&str, &str); 2] = [
    ("xai-chat.sse", "grok-4.3"),
    ("groq-usage-three-places.sse", "openai/gpt-oss-120b"),
];

/// A recorded stream.
pub struct Recorded {
    /// The file's name.
    pub file: String,
    /// The endpoint, below `/v1`.
    pub path: &'static str,
    /// The stream.
    pub bytes: Bytes,
    /// What to ask for, so that it is billed as what was recorded.
    pub model: String,
    /// The list it is priced by; without one it goes to a free upstream.
    pub list: Option<&'static str>,
    /// What the upstream counted; null when it said nothing.
    usage: Value,
    /// The tier it names.
    pub tier: Option<String>,
    /// How it ended, by its last event.
    state: State,
}

/// How a recording is served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Whole,
    Cut(u64),
    ByteByByte,
    Gzipped,
}

impl Served {
    fn parse(text: &str) -> Served {
        match text {
            "whole" => Served::Whole,
            "bytes" => Served::ByteByByte,
            "gzip" => Served::Gzipped,
            seed => Served::Cut(seed.parse().expect("a seed")),
        }
    }

    fn name(self) -> String {
        match self {
            Served::Whole => "whole".into(),
            Served::ByteByByte => "bytes".into(),
            Served::Gzipped => "gzip".into(),
            Served::Cut(seed) => seed.to_string(),
        }
    }

    /// What the upstream sends.
    fn bytes(self, recorded: &Recorded) -> Bytes {
        match self {
            Served::Gzipped => gzip(&recorded.bytes),
            _ => recorded.bytes.clone(),
        }
    }

    fn script(self, recorded: &Recorded) -> Script {
        let bytes = self.bytes(recorded);
        let cuts = match self {
            Served::Whole | Served::Gzipped => Vec::new(),
            Served::ByteByByte => (1..bytes.len()).collect(),
            Served::Cut(seed) => random_cuts(seed, bytes.len()),
        };
        let mut from = 0;
        let mut steps = Vec::new();
        for to in cuts.into_iter().chain([bytes.len()]) {
            steps.push(Step::send(bytes.slice(from..to)));
            from = to;
        }
        match self {
            Served::Gzipped => Script::sse(steps).header("content-encoding", "gzip"),
            _ => Script::sse(steps),
        }
    }
}

/// Up to twenty places in ascending order, other ones for each seed.
fn random_cuts(seed: u64, length: usize) -> Vec<usize> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 1).expect("64 bits")
    };
    let count = 1 + next() % 20;
    let mut cuts: Vec<usize> = (0..count).map(|_| next() % length).filter(|cut| *cut > 0).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn gzip(bytes: &[u8]) -> Bytes {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory").into()
}

/// The upstream: which recording, and how it is served, stands in a header that passes the gateway.
fn playwright(recordings: &Arc<Vec<Recorded>>) -> Playwright {
    let recordings = Arc::clone(recordings);
    Arc::new(move |request: &Request| {
        let id = request.headers["x-client-request-id"].to_str().expect("text");
        let (number, served) = id.split_once('/').expect("a recording and how it is served");
        let recorded = &recordings[number.parse::<usize>().expect("a number")];
        assert!(request.path.ends_with(recorded.path), "{}", request.path);
        Served::parse(served).script(recorded)
    })
}

/// Whether the client asks for the usage event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Usage {
    Asked,
    NotAsked,
}

/// One replay, and what came of it.
struct Replayed {
    number: usize,
    served: Served,
    exchange: String,
}

/// Calls, reads to the end, and compares every byte.
async fn replay(client: &Client, number: usize, recorded: &Recorded, served: Served, usage: Usage) -> Replayed {
    let mut body = json!({"model": recorded.model, "stream": true});
    let input = if recorded.path == "/responses" {
        "input"
    } else {
        "prompt"
    };
    match recorded.path {
        "/chat/completions" => body["messages"] = json!([{"role": "user", "content": "Hello"}]),
        _ => body[input] = json!("Hello"),
    }
    if usage == Usage::Asked && recorded.path != "/responses" {
        body["stream_options"] = json!({"include_usage": true});
    }
    let request = client.request(reqwest::Method::POST, &format!("/v1{}", recorded.path));
    let id = format!("{number}/{}", served.name());
    let request = request.header("x-client-request-id", id).body(body.to_string());
    let answer = request.send().await.expect("the gateway answers");
    let what = format!("{} {}", recorded.file, served.name());
    assert_eq!(answer.status(), 200, "{what}");
    let exchange = exchange_of(&answer);
    let (arrived, end) = drain(answer).await;
    end.unwrap_or_else(|error| panic!("{what}: {error}"));
    if served == Served::Gzipped {
        assert!(
            arrived == served.bytes(recorded),
            "{what}: the compressed bytes pass as they are"
        );
    } else {
        let sent = std::str::from_utf8(&recorded.bytes).expect("text");
        let expected = match usage {
            Usage::NotAsked if recorded.path != "/responses" => without_usage(sent),
            _ => sent.to_owned(),
        };
        assert_eq!(String::from_utf8_lossy(&arrived), expected, "{what}");
    }
    Replayed {
        number,
        served,
        exchange,
    }
}

/// The stream without the one event that `include_usage` causes.
fn without_usage(stream: &str) -> String {
    let blanks = ["\r\n\r\n", "\r\r", "\n\n"];
    let blank = blanks.into_iter().find(|blank| stream.contains(blank));
    let blank = blank.expect("the end of an event");
    let is_usage = |event: &&str| {
        let lines = event.split(['\r', '\n']);
        let data: String = lines.filter_map(|line| line.strip_prefix("data:")).collect();
        let chunk = serde_json::from_str::<Value>(&data).unwrap_or_default();
        chunk["choices"].as_array().is_some_and(Vec::is_empty) && !chunk["usage"].is_null()
    };
    assert!(stream.split_inclusive(blank).filter(is_usage).count() <= 1);
    stream.split_inclusive(blank).filter(|event| !is_usage(event)).collect()
}

/// Every recording, whole, compressed and in 50 cuts; clients that ask for usage and such that do not take turns.
async fn replay_all(harness: &Harness, recordings: &Arc<Vec<Recorded>>) -> Vec<Replayed> {
    let mut plays = Vec::new();
    for (number, recorded) in recordings.iter().enumerate() {
        let both = [Usage::Asked, Usage::NotAsked];
        plays.extend(both.map(|usage| (number, Served::Whole, usage)));
        plays.push((number, Served::Gzipped, Usage::NotAsked));
        if recorded.bytes.len() <= BYTE_BY_BYTE {
            plays.push((number, Served::ByteByByte, Usage::NotAsked));
        }
        let asked = |seed: u64| {
            if seed.is_multiple_of(2) {
                Usage::Asked
            } else {
                Usage::NotAsked
            }
        };
        plays.extend((1..=CUTS).map(|seed| (number, Served::Cut(seed), asked(seed))));
    }
    let replays = plays.into_iter().map(|(number, served, usage)| {
        let (client, recordings) = (harness.client.clone(), Arc::clone(recordings));
        async move { replay(&client, number, &recordings[number], served, usage).await }
    });
    stream::iter(replays).buffer_unordered(AT_ONCE).collect().await
}

fn builder(recordings: &Arc<Vec<Recorded>>) -> Builder {
    let builder = Harness::builder().balance("1000000").playwright(playwright(recordings));
    with_vendors(builder)
}

/// The upstreams that recordings are of, all of them the same simulator.
pub fn with_vendors(builder: Builder) -> Builder {
    builder
        .vendor("xai", &["grok-*"])
        .vendor("deepseek", &["deepseek-*"])
        .vendor("moonshot", &["kimi-*"])
        .vendor("groq", &["openai/gpt-oss-*"])
        .vendor("zai", &["glm-*"])
        .vendor("free", &["free-*"])
}

fn folder() -> PathBuf {
    let fixtures = std::env::var_os("GATEWAY_FIXTURES").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    fixtures.unwrap_or_else(default).join("wire")
}

/// The recorded streams of endpoints that are billed here; none where the fixtures are absent.
pub fn recordings() -> Vec<Recorded> {
    let Ok(index) = std::fs::read_to_string(folder().join("index.json")) else {
        return Vec::new();
    };
    let index: Value = serde_json::from_str(&index).expect("JSON");
    let entries = index.as_array().expect("a list");
    entries.iter().filter_map(recording).collect()
}

/// The recording of an entry, if it is a stream of an endpoint that is billed here.
fn recording(entry: &Value) -> Option<Recorded> {
    let file = entry["file"].as_str()?.to_owned();
    let endpoint = entry["endpoint"].as_str()?.split('?').next()?;
    let path = match endpoint {
        _ if !file.ends_with(".sse") => return None,
        _ if endpoint.ends_with("/chat/completions") => "/chat/completions",
        _ if endpoint.ends_with("/completions") => "/completions",
        _ if endpoint.contains("/responses") => "/responses",
        _ => return None,
    };
    let vendor = VENDORS.into_iter().find(|vendor| file.starts_with(vendor));
    let list = vendor.unwrap_or("openai");
    let names = [&entry["model"], &entry["request_flags"]["model"]];
    let priced = names.iter().find_map(|name| {
        let name = name.as_str()?;
        find_in_catalogue(list, name).map(|_| name.to_owned())
    });
    // Gone from the catalogue: billed as one of the vendor's that is in it.
    let like = STAND_INS.iter().find(|(of, _)| *of == file);
    let priced = priced.or_else(|| like.map(|(_, model)| (*model).to_owned()));
    Some(Recorded {
        path,
        bytes: std::fs::read(folder().join(&file)).expect("a listed file").into(),
        list: priced.is_some().then_some(list),
        model: priced.unwrap_or_else(|| format!("free-{file}")),
        usage: entry["final_usage"].clone(),
        tier: entry["service_tier_final"].as_str().map(str::to_owned),
        state: match entry["last_event"].as_str() {
            _ if file.contains("error-midstream") => State::Failed,
            Some("response.incomplete") => State::Incomplete,
            _ => State::Completed,
        },
        file,
    })
}

/// The usage row says what the recording's index says, and the charge is its usage at the catalogue's rates.
fn check_bill(recorded: &Recorded, served: Served, row: &ExchangeRow) {
    let file = format!("{} {}", recorded.file, served.name());
    // Failed before anything of an answer had left: nothing is charged.
    let nothing_left = recorded.file == "responses-error-midstream.sse";
    let basis = match recorded.usage.is_null() && !nothing_left {
        true => Basis::Estimated,
        false => Basis::Reported,
    };
    assert_eq!((row.state, row.basis), (recorded.state, basis), "{file}");
    let mut usage = reported(
        &recorded.usage,
        recorded.tier.as_deref(),
        recorded.file == "xai-chat.sse",
    );
    if basis == Basis::Estimated {
        let counted = count(recorded);
        usage.input = row.usage.input_tokens.get();
        usage.output = row.usage.output_tokens.get();
        assert!(
            usage.input > 0 && usage.output >= counted,
            "{file}: {counted} counted, {row:?}"
        );
    }
    let tokens = (
        row.usage.input_tokens.get(),
        row.usage.cached_tokens.get(),
        row.usage.output_tokens.get(),
    );
    assert_eq!(tokens, (usage.input, usage.cached, usage.output), "{file}");
    let expected = recorded.list.map_or(0, |list| {
        let price = at_hour(
            find_in_catalogue(list, &recorded.model).expect("priced"),
            row.started_at,
        );
        let tool = TOOLS.iter().find(|(of, ..)| *of == recorded.file);
        let fees = tool.map_or(0, |(_, tool, calls)| fee(&price, tool, *calls));
        expected_charge(&usage, &price, "1") + fees
    });
    assert_eq!(i128::from(row.charge.nanos()), expected, "{file}");
}

/// Tokens of the text a client sees of a chat or completions stream.
fn count(recorded: &Recorded) -> u64 {
    let stream = String::from_utf8_lossy(&recorded.bytes);
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let text: String = chunks
        .filter_map(|chunk| {
            let choice = &chunk["choices"][0];
            let shown = [&choice["delta"]["content"], &choice["text"]];
            shown.iter().find_map(|text| text.as_str().map(str::to_owned))
        })
        .collect();
    let tokens = tiktoken_rs::o200k_base_singleton().encode_ordinary(&text).len();
    u64::try_from(tokens).expect("64 bits")
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_streams_arrive_as_they_were_and_are_billed_as_counted() {
    let recordings = Arc::new(recordings());
    if recordings.is_empty() {
        println!("fixtures absent: {}", folder().display());
        return;
    }
    let harness = builder(&recordings).start().await;
    let replayed = replay_all(&harness, &recordings).await;
    let books = harness.finish().await;
    assert_eq!(books.exchanges.len(), replayed.len());
    for replayed in &replayed {
        check_bill(
            &recordings[replayed.number],
            replayed.served,
            books.exchange(&replayed.exchange),
        );
    }
    let priced = recordings.iter().filter(|recorded| recorded.list.is_some()).count();
    println!(
        "replayed {} files through the server, each whole, compressed and in {CUTS} cuts; {priced} of them priced",
        recordings.len()
    );
}

/// Streams of our own: odd line ends, usage in odd places, ends without `[DONE]`.
pub fn of_our_own() -> Vec<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = std::fs::read_dir(folder)
        .expect("the folder")
        .map(|file| file.expect("an entry").path());
    let streams = files.filter(|file| file.extension().is_some_and(|kind| kind == "sse"));
    let read = |file: PathBuf| {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        Recorded {
            path: match name.split(['-', '.']).next() {
                Some("responses") => "/responses",
                Some("completions") => "/completions",
                _ => "/chat/completions",
            },
            bytes: std::fs::read(&file).expect("a listed file").into(),
            model: MODEL.to_owned(),
            list: Some("openai"),
            usage: Value::Null,
            tier: None,
            state: State::Completed,
            file: name,
        }
    };
    streams.map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_with_odd_ends_and_odd_usage_arrive_as_they_were() {
    let recordings = Arc::new(of_our_own());
    let harness = builder(&recordings).start().await;
    let replayed = replay_all(&harness, &recordings).await;
    let books = harness.finish().await;
    for (number, recorded) in recordings.iter().enumerate() {
        let of_this = replayed.iter().filter(|replayed| replayed.number == number);
        let rows = of_this.map(|replayed| (replayed.served, books.exchange(&replayed.exchange)));
        let bills: Vec<_> = rows.map(|(_, row)| (row.state, row.basis, row.charge)).collect();
        assert!(
            bills.iter().all(|bill| *bill == bills[0]),
            "{}: {bills:?}",
            recorded.file
        );
    }
    println!("replayed {} streams of our own", recordings.len());
}

/// Each part compressed on its own, so that a client can decode it when it comes; one stream together.
fn gzip_in_parts(parts: &[String]) -> Vec<Bytes> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut coded = Vec::new();
    for part in parts {
        encoder.write_all(part.as_bytes()).expect("memory");
        encoder.flush().expect("memory");
        coded.push(std::mem::take(encoder.get_mut()).into());
    }
    coded.push(encoder.finish().expect("memory").into());
    coded
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_of_a_compressed_stream_is_read_also_after_its_limit() {
    let chunk = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}});
    let parts = [
        format!("data: {}\n\n", chunk(&"word ".repeat(500))),
        format!("data: {usage}\n\n"),
    ];
    let steps: Vec<Step> = gzip_in_parts(&parts).into_iter().map(Step::send).collect();
    let script = Script::sse(steps).header("content-encoding", "gzip");
    let harness = Harness::builder().playwright(always(script)).start().await;
    let body = json!({"model": MODEL, "messages": [], "stream": true, "max_tokens": 16});
    let (_, end) = drain(harness.client.send("/v1/chat/completions", &body).await).await;
    end.expect_err("nothing of ours can end it");
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Limited, Basis::Reported));
    assert_eq!((row.usage.input_tokens.get(), row.usage.output_tokens.get()), (3, 16));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_event_without_its_blank_line_leaves_before_our_own_end() {
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";
    let delta = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}";
    let script = Script::sse(vec![Step::send(created), Step::send(delta)]);
    let harness = Harness::builder().playwright(always(script)).start().await;
    let body = json!({"model": MODEL, "input": "Hello", "stream": true});
    let (arrived, end) = drain(harness.client.send("/v1/responses", &body).await).await;
    end.expect("a clean end");
    let arrived = String::from_utf8(arrived).expect("text");
    let ours = arrived
        .strip_prefix(&format!("{created}{delta}\n\n"))
        .expect("all of the upstream's");
    assert!(ours.starts_with("event: response.failed\n"), "{ours}");
    let books = harness.finish().await;
    assert_eq!(
        (books.only().state, books.only().basis),
        (State::Broken, Basis::Estimated)
    );
}

/// An answer that fails after a word: the words of both events that say so; the second one brings the usage.
fn failing() -> (String, String) {
    let delta =
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n";
    let error =
        json!({"type": "error", "error": {"type": "server_error", "code": "server_error", "message": "Broken"}});
    let usage = json!({"input_tokens": 3, "output_tokens": 16, "total_tokens": 19});
    let failed = json!({"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "usage": usage}});
    let first = format!("{delta}event: error\ndata: {error}\n\n");
    (first, format!("event: response.failed\ndata: {failed}\n\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_follows_a_terminal_one_slowly_is_waited_for() {
    let (first, second) = failing();
    let (begun, rest) = second.split_at(20);
    let slowly = Step::Pause(Duration::from_millis(600));
    let steps = vec![
        Step::send(format!("{first}{begun}")),
        slowly,
        Step::send(rest.to_owned()),
    ];
    let harness = Harness::builder().playwright(always(Script::sse(steps))).start().await;
    let body = json!({"model": MODEL, "input": "Hello", "stream": true});
    let (arrived, end) = drain(harness.client.send("/v1/responses", &body).await).await;
    end.expect("a clean end");
    assert_eq!(String::from_utf8(arrived).expect("text"), format!("{first}{second}"));
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Failed, Basis::Reported));
    assert_eq!((row.usage.input_tokens.get(), row.usage.output_tokens.get()), (3, 16));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_follows_a_terminal_one_and_does_not_end_keeps_nobody_waiting() {
    let (first, second) = failing();
    let gate = Gate::closed();
    let steps = vec![
        Step::send(format!("{first}{}", &second[..20])),
        Step::Wait(gate.clone()),
    ];
    let harness = Harness::builder().playwright(always(Script::sse(steps))).start().await;
    let body = json!({"model": MODEL, "input": "Hello", "stream": true});
    let (arrived, end) = drain(harness.client.send("/v1/responses", &body).await).await;
    end.expect("a clean end");
    assert_eq!(String::from_utf8(arrived).expect("text"), first);
    gate.open();
    let books = harness.finish().await;
    assert_eq!(
        (books.only().state, books.only().basis),
        (State::Failed, Basis::Estimated)
    );
}
