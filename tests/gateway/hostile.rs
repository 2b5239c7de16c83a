//! Hostile requests and answers cost bounded memory, no money for what was not delivered, and nobody else's call.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::books::Books;
use crate::cli::ended;
use crate::client::{Answer, Client, MODEL, chat, exchange_of, http};
use crate::harness::Harness;

const MIB: usize = 1 << 20;

/// What eight hostile answers may make of the process, in KiB.
const MOST_KIB: u64 = 512 * 1024;

/// A client gives up on an answer that is longer than this.
const READ_AT_MOST: usize = 64 * MIB;

/// Long enough for an answer of this machine, however busy it is.
const PATIENCE: Duration = Duration::from_secs(120);

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut coder = GzEncoder::new(Vec::new(), Compression::default());
    coder.write_all(plain).expect("memory");
    coder.finish().expect("memory")
}

fn zeros(count: usize) -> Vec<u8> {
    vec![b'0'; count]
}

/// Posts a body with headers of its own.
async fn post(harness: &Harness, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let mut request = harness.client.request(reqwest::Method::POST, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request.body(body).send().await.expect("an answer")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_unfold_to_more_than_the_limit_are_refused_before_they_do() {
    let harness = Harness::start().await;
    // Members of a MiB each: together they unfold to a hundred.
    let gzip_bomb = gzip(&zeros(MIB)).repeat(100);
    let zstd_bomb = zstd::encode_all(&zeros(100 * MIB)[..], 1).expect("memory");
    let mut br_bomb = Vec::new();
    let quick = brotli::enc::BrotliEncoderParams {
        quality: 1,
        ..Default::default()
    };
    brotli::BrotliCompress(&mut &zeros(80 * MIB)[..], &mut br_bomb, &quick).expect("memory");
    for (coding, bomb) in [("gzip", gzip_bomb), ("zstd", zstd_bomb), ("br", br_bomb)] {
        assert!(bomb.len() < MIB, "{coding}: it travels small");
        for (path, status, code) in [
            ("/v1/chat/completions", 413, "request_too_large"),
            ("/v1/responses", 400, "invalid_prompt"),
        ] {
            let answer = post(&harness, path, &[("content-encoding", coding)], bomb.clone())
                .await
                .expect(status);
            let error = &answer.json()["error"];
            assert_eq!(
                (&error["code"], &error["gateway"]["code"]),
                (&json!(code), &json!("request_too_large")),
                "{coding}"
            );
            assert!(
                error["message"]
                    .as_str()
                    .is_some_and(|message| message.contains("max_body")),
                "{error}"
            );
        }
    }
    assert_nothing_came_of_it(harness).await;
}

async fn assert_nothing_came_of_it(harness: Harness) {
    assert_eq!(harness.served().len(), 0, "nothing was sent upstream");
    assert_eq!(harness.finish().await.exchanges.len(), 0, "nothing was held");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_whose_coding_is_broken_or_unknown_are_refused() {
    let harness = Harness::start().await;
    let plain = chat("Hello", &json!({})).to_string().into_bytes();
    let whole = gzip(&plain);
    let cut = whole[..whole.len() - 9].to_vec();
    for (coding, body) in [
        ("gzip", plain.clone()),
        ("gzip", cut),
        ("zstd", plain.clone()),
        ("br", plain.clone()),
        ("deflate", plain.clone()),
        ("bananas", plain.clone()),
        ("gzip, gzip", gzip(&whole)),
    ] {
        let answer = post(&harness, "/v1/chat/completions", &[("content-encoding", coding)], body)
            .await
            .expect(400);
        assert_eq!(answer.json()["error"]["code"], "unsupported_encoding", "{coding}");
    }
    assert_nothing_came_of_it(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_upstreams_might_read_otherwise_are_refused() {
    let harness = Harness::start().await;
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(200_000), close.repeat(200_000));
        format!("{{\"model\":\"{MODEL}\",\"messages\":{open}{close}}}")
    };
    let messages = r#""messages":[{"role":"user","content":"Hello"}]"#;
    for (body, param) in [
        (
            format!(r#"{{"model":"{MODEL}","model":"gpt-5.5",{messages}}}"#),
            "model",
        ),
        (
            format!(r#"{{"model":"{MODEL}","Model":"gpt-5.5",{messages}}}"#),
            "Model",
        ),
        (
            format!(r#"{{"model":"{MODEL}","mod\u0065l":"gpt-5.5",{messages}}}"#),
            "model",
        ),
        (
            format!(r#"{{"model":"{MODEL}","max_tokens":1,"max_tokens":100000,{messages}}}"#),
            "max_tokens",
        ),
        (format!(r#"{{"model":"{MODEL}","n":1,"N":100,{messages}}}"#), "N"),
        (
            format!(r#"{{"model":"{MODEL}","max_tokens":"9",{messages}}}"#),
            "max_tokens",
        ),
        (format!(r#"{{"model":"{MODEL}","stream":"true",{messages}}}"#), "stream"),
    ] {
        let answer = post(&harness, "/v1/chat/completions", &[], body.clone().into_bytes())
            .await
            .expect(400);
        let error = answer.json()["error"].clone();
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.to_lowercase().contains(&param.to_lowercase()),
            "{body}: {message}"
        );
        assert_eq!(error["type"], "invalid_request_error");
    }
    for body in [
        deep("[", "]"),
        deep("{\"a\":", "1}"),
        "[".repeat(200_000),
        "{\"model\":".into(),
        "\u{0}".into(),
        "[]".into(),
    ] {
        for path in ["/v1/chat/completions", "/v1/responses"] {
            let answer = post(&harness, path, &[], body.clone().into_bytes()).await;
            assert_eq!(
                answer.status,
                StatusCode::BAD_REQUEST,
                "{path}: {}",
                &body[..body.len().min(40)]
            );
        }
    }
    assert_nothing_came_of_it(harness).await;
}

/// What the gateway answers while, or before, it is sent the rest of a request; the connection may be closed then.
async fn answer_to(harness: &Harness, head: &str, pieces: usize, piece: &[u8]) -> String {
    let address = harness.base_url().trim_start_matches("http://").to_owned();
    let mut socket = TcpStream::connect(&address).await.expect("a connection");
    let head = format!(
        "{head}\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\r\n",
        harness.client.key
    );
    socket.write_all(head.as_bytes()).await.expect("a head");
    let (mut reader, mut writer) = socket.split();
    let write = async {
        for _ in 0..pieces {
            if writer.write_all(piece).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 4_096];
    tokio::select! {
        () = write => unreachable!(),
        read = timeout(PATIENCE, reader.read(&mut answer)) => {
            let read = read.expect("an answer in time").expect("an answer");
            String::from_utf8_lossy(&answer[..read]).into_owned()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_larger_than_the_limit_are_refused_whether_they_say_so_or_not() {
    let harness = Harness::start().await;
    for (path, expected) in [
        ("/v1/chat/completions", "HTTP/1.1 413 "),
        ("/v1/responses", "HTTP/1.1 400 "),
    ] {
        let told = format!("POST {path} HTTP/1.1\r\ncontent-length: {}", 64 * MIB + 1);
        let answer = answer_to(&harness, &told, 0, b"").await;
        assert!(answer.starts_with(expected), "before a byte of it is read: {answer}");
        let untold = format!("POST {path} HTTP/1.1\r\ntransfer-encoding: chunked");
        let mut piece = format!("{MIB:x}\r\n").into_bytes();
        piece.extend(zeros(MIB));
        piece.extend(b"\r\n");
        let answer = answer_to(&harness, &untold, 66, &piece).await;
        assert!(answer.starts_with(expected), "{answer}");
    }
    assert_nothing_came_of_it(harness).await;
}

/// A server that answers each prompt `play NAME` as nobody should.
struct Hostile(SocketAddr);

impl Hostile {
    async fn start() -> Hostile {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tasks.spawn(answer(socket));
            }
        });
        Hostile(address)
    }
}

/// Reads a request, and plays; a gateway that has heard enough closes the connection, which ends it.
async fn answer(mut socket: TcpStream) {
    let mut request = Vec::new();
    let play = loop {
        let text = String::from_utf8_lossy(&request);
        let told = text.split_once("play ").and_then(|(_, rest)| rest.split_once('"'));
        if let Some((play, _)) = told {
            break play.to_owned();
        }
        if !socket.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
            return;
        }
    };
    play_on(&mut socket, &play).await.unwrap_or(());
    socket.shutdown().await.unwrap_or(());
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
const UNARY: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";

async fn play_on(socket: &mut TcpStream, play: &str) -> std::io::Result<()> {
    let repeat = async |socket: &mut TcpStream, head: String, piece: Vec<u8>, times: usize| {
        socket.write_all(head.as_bytes()).await?;
        for _ in 0..times {
            socket.write_all(&piece).await?;
        }
        std::io::Result::Ok(())
    };
    let word = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" and\"}}]}\n\n";
    match play {
        "endless-body" => repeat(socket, format!("{UNARY}\r\n{{\"a\":\""), zeros(MIB), usize::MAX).await,
        "endless-line" => repeat(socket, format!("{STREAM}\r\ndata: {{\"a\":\""), zeros(MIB), usize::MAX).await,
        "endless-lines" => repeat(socket, format!("{STREAM}\r\n"), b"data: 0\n".repeat(8_192), usize::MAX).await,
        "huge-event" => {
            repeat(socket, format!("{STREAM}\r\ndata: {{\"a\":\""), zeros(MIB), 32).await?;
            socket.write_all(b"\"}\n\ndata: [DONE]\n\n").await
        }
        "gzip-body" => {
            repeat(
                socket,
                format!("{UNARY}content-encoding: gzip\r\n\r\n"),
                gzip(&zeros(MIB)),
                10_000,
            )
            .await
        }
        "gzip-stream" => {
            let event = [b"data: ".to_vec(), zeros(MIB), b"\n\n".to_vec()].concat();
            repeat(
                socket,
                format!("{STREAM}content-encoding: gzip\r\n\r\n"),
                gzip(&event).repeat(4),
                100,
            )
            .await
        }
        "endless-head" => {
            repeat(
                socket,
                "HTTP/1.1 200 OK\r\n".into(),
                b"x-a: 0123456789abcdef\r\n".to_vec(),
                usize::MAX,
            )
            .await
        }
        "slow-head" => {
            socket.write_all(b"HTTP/1.1 200 OK\r\nx-slow: ").await?;
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                socket.write_all(b"a").await?;
            }
        }
        "unknown-coding" => {
            repeat(
                socket,
                format!("{UNARY}content-encoding: bananas\r\n\r\n"),
                zeros(10),
                1,
            )
            .await
        }
        "redirect" => {
            let head = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
            socket.write_all(head.as_bytes()).await
        }
        "crumbs" => {
            socket
                .write_all(format!("{STREAM}transfer-encoding: chunked\r\n\r\n").as_bytes())
                .await?;
            let crumbs: String = word.bytes().fold(String::new(), |mut crumbs, byte| {
                write!(crumbs, "1\r\n{}\r\n", char::from(byte)).expect("memory");
                crumbs
            });
            repeat(socket, String::new(), crumbs.into_bytes(), usize::MAX).await
        }
        _ => {
            let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
            let message = json!({"role": "assistant", "content": "Hello"});
            let body = json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage});
            let body = body.to_string();
            socket
                .write_all(format!("{UNARY}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
                .await
        }
    }
}

/// The real program as a process of its own, whose memory can be measured.
struct Process {
    child: Child,
    base_url: String,
    home: tempfile::TempDir,
}

impl Process {
    async fn start(upstream: SocketAddr) -> Process {
        let home = tempfile::tempdir().expect("a directory");
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[database]\npath = \"gateway.db\"\n[billing]\non_hangup = \"cancel\"\n\
             [[upstream]]\nname = \"hostile\"\nbase_url = \"http://{upstream}/v1\"\napi_key = \"sk-upstream\"\n\
             prices = \"openai\"\nfirst_byte_timeout = \"3s\"\nidle_timeout = \"30s\"\n"
        );
        std::fs::write(home.path().join("gateway.toml"), settings).expect("settings");
        let mut child = command(home.path(), &["serve"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let first = timeout(PATIENCE, lines.next_line())
            .await
            .expect("it starts")
            .expect("a line");
        let first = first.expect("a line");
        let base_url = first
            .strip_prefix("listening on ")
            .expect("where it listens")
            .to_owned();
        Process { child, base_url, home }
    }

    /// A user with a key.
    async fn client(&self, name: &str, balance: &str) -> Client {
        let user = self.json(&["user", "add", name, "--balance", balance, "--json"]).await;
        let key = self.json(&["key", "issue", name, "--json"]).await;
        let id = |value: &Value| value.as_str().and_then(|id| id.parse().ok()).expect("an id");
        Client {
            user: codex_gateway::store::UserId(id(&user["id"])),
            key_id: codex_gateway::store::KeyId(id(&key["id"])),
            key: key["key"].as_str().expect("a key").to_owned(),
            base_url: self.base_url.clone(),
            http: http(),
        }
    }

    async fn json(&self, args: &[&str]) -> Value {
        let output = command(self.home.path(), args)
            .output()
            .await
            .expect("the program runs");
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The most memory it has had at once, in KiB.
    fn peak_kib(&self) -> u64 {
        let id = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .expect("a high-water mark");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Stops it as an operator does; the books it leaves.
    async fn stop(mut self) -> Books {
        ended(&mut self.child, PATIENCE).await;
        Books::checked(&self.home.path().join("gateway.db"))
    }
}

fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command
        .env_clear()
        .env("HOME", home)
        .env("USER", "tester")
        .current_dir(home)
        .args(args)
        .stdin(Stdio::null());
    command.stderr(Stdio::null());
    command
}

/// Asks for a play; reads its answer up to a bound and leaves.
async fn ask(client: &Client, play: &str, streamed: bool) -> (String, StatusCode, Bytes) {
    let body = chat(
        &format!("play {play}"),
        &json!({"stream": streamed, "max_completion_tokens": 100}),
    );
    let mut answer = client.send("/v1/chat/completions", &body).await;
    let id = exchange_of(&answer);
    let (status, mut arrived, mut length) = (answer.status(), Vec::new(), 0);
    while let Ok(Some(piece)) = answer.chunk().await {
        length += piece.len();
        if arrived.len() < MIB {
            arrived.extend_from_slice(&piece);
        }
        if length > READ_AT_MOST {
            break;
        }
    }
    (id, status, arrived.into())
}

/// The plays; whether each is asked for as a stream, its status, and how it is settled.
const PLAYS: [(&str, bool, u16, State); 11] = [
    ("endless-body", false, 502, State::Broken),
    ("endless-line", true, 200, State::Left),
    ("endless-lines", true, 200, State::Left),
    ("huge-event", true, 200, State::Completed),
    ("gzip-body", false, 502, State::Failed),
    ("gzip-stream", true, 200, State::Broken),
    ("endless-head", false, 502, State::Failed),
    ("slow-head", false, 504, State::Failed),
    ("unknown-coding", false, 502, State::Failed),
    ("redirect", false, 502, State::Refused),
    ("crumbs", true, 200, State::Limited),
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_at_once_stay_within_bounds_and_disturb_nobody() {
    let hostile = Hostile::start().await;
    let process = Process::start(hostile.0).await;
    let (mallory, bob) = (process.client("mallory", "5").await, process.client("bob", "5").await);
    let attacks = join_all(PLAYS.map(|(play, streamed, _, _)| ask(&mallory, play, streamed)));
    let others = async {
        for _ in 0..20 {
            let (_, status, _) = timeout(Duration::from_secs(20), ask(&bob, "fair", false))
                .await
                .expect("bob is served");
            assert_eq!(status, StatusCode::OK);
        }
    };
    let (answers, ()) = timeout(PATIENCE, futures_util::future::join(attacks, others))
        .await
        .expect("all of it ends");
    let peak = process.peak_kib();
    println!("{} hostile answers at once: {peak} KiB at most", PLAYS.len());
    assert!(peak < MOST_KIB, "{peak} KiB");
    let books = process.stop().await;
    for ((id, status, arrived), (play, streamed, expected, state)) in answers.iter().zip(PLAYS) {
        let row = books.exchange(id);
        assert_eq!(
            (status.as_u16(), row.state),
            (expected, state),
            "{play}: {}",
            String::from_utf8_lossy(&arrived[..arrived.len().min(300)])
        );
        assert_paid_as_delivered(row, play, streamed);
    }
    let bobs = books.exchanges.iter().filter(|row| row.user == bob.user);
    let charges: Vec<i64> = bobs.map(|row| row.charge.nanos()).collect();
    // 10 × $2 + 5 × $10 per million, twenty times.
    assert_eq!(charges, [70_000; 20]);
}

/// Unary answers that did not arrive cost nothing; of streams what was visible counts, and the rest does not.
fn assert_paid_as_delivered(row: &ExchangeRow, play: &str, streamed: bool) {
    if !streamed {
        assert_eq!(row.charge.nanos(), 0, "{play}");
        return;
    }
    if play == "gzip-stream" {
        // Not one event came of it.
        assert_eq!((row.basis, row.charge.nanos()), (Basis::Reported, 0), "{play}");
        return;
    }
    assert_eq!(row.basis, Basis::Estimated, "{play}");
    let visible = if play == "crumbs" { 164 } else { 0 };
    assert_eq!(row.usage.output_tokens.get(), visible, "{play}");
    assert!(row.charge <= row.held || row.uncollected.nanos() > 0, "{play}");
}
