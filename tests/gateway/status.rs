//! `gateway status` and `gateway top`: what the running program does, asked beside its database, and nothing secret in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use codex_gateway::money::Usd;
use rustix::fs::OFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::books::Books;
use crate::client::{MODEL, chat, exchange_of};
use crate::shutdown::{Office, begin, whole};

/// What a test's prompt says; no status may.
const PROMPT: &str = "what nobody else may read";

fn status(office: &Office) -> Value {
    let ran = office.run("status --json");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).expect("JSON")
}

/// The status, once it is as it should be.
async fn until(office: &Office, is: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let status = status(office);
        if is(&status) {
            return status;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{status:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn usd(value: &Value) -> Usd {
    value.as_str().and_then(|text| text.parse().ok()).expect("an amount")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_what_runs_now_and_tells_no_secret() {
    let office = Office::new("").await;
    let mut serving = office.serve();
    let client = office.client(&serving);
    let stream = begin(&client, "/v1/chat/completions").await;
    let tasks = TaskTracker::new();
    let plain = tasks.spawn({
        let client = client.clone();
        async move {
            client
                .post("/v1/chat/completions", &chat(PROMPT, &json!({"max_tokens": 50})))
                .await
        }
    });
    office.simulator.arrived(2).await;

    let seen = until(&office, |status| status["running"] == 2).await;
    let [streaming, waiting] = seen["exchanges"].as_array().expect("a list").as_slice() else {
        panic!("{seen:#}");
    };
    for (exchange, state) in [(streaming, "streaming"), (waiting, "waiting")] {
        for (name, value) in [
            ("user", "alice"),
            ("model", MODEL),
            ("upstream", "first"),
            ("state", state),
        ] {
            assert_eq!(exchange[name], value, "{seen:#}");
        }
        let prefix = exchange["key"].as_str().expect("text");
        assert!(client.key.starts_with(prefix) && prefix.len() < 16, "{prefix}");
    }
    let id = exchange_of(&stream.0);
    assert_eq!(streaming["id"], id);
    assert!(
        streaming["events"].as_u64() > Some(0) && streaming["bytes"].as_u64() > Some(0),
        "{seen:#}"
    );
    assert_eq!((&waiting["events"], &waiting["bytes"]), (&json!(0), &json!(0)));
    assert_eq!(seen["holds"]["open"], 2);
    assert!(usd(&seen["holds"]["amount"]).nanos() > 0);
    assert_eq!(
        (&seen["upstreams"][0]["name"], &seen["upstreams"][0]["in_flight"]),
        (&json!("first"), &json!(2))
    );
    assert_eq!(seen["upstreams"][0]["last_result"], Value::Null);
    assert_eq!((&seen["writer"]["open"], &seen["not_ready"]), (&json!(2), &Value::Null));
    assert!(seen["connections"].as_u64() >= Some(2), "{seen:#}");
    assert_eq!(
        (&seen["address"], &seen["version"]),
        (&json!(serving.url), &json!(env!("CARGO_PKG_VERSION")))
    );
    let text = String::from_utf8(office.run("status").stdout).expect("text");
    assert!(text.contains("streaming") && text.contains("2 open, $"), "{text}");
    for secret in [client.key.as_str(), "sk-upstream", PROMPT] {
        assert!(!text.contains(secret) && !seen.to_string().contains(secret), "{secret}");
    }

    let socket = office.path("books.db.sock");
    let meta = fs::metadata(&socket).expect("it is there");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o777, 0o600);
    client.get("/status").await.expect(404);

    // While a stop waits for the stream, it can be seen what for.
    serving.signal(Signal::TERM);
    serving.deaf().await;
    let stopping = status(&office);
    assert_eq!(
        (&stopping["not_ready"], &stopping["running"]),
        (&json!("the server is stopping"), &json!(2))
    );
    office.gate.open();
    assert!(whole(stream).await.ends_with("data: [DONE]\n\n"));
    plain.await.expect("it ended").expect(200);
    let ended = serving.end().await;
    assert!(ended.success(), "{}", serving.said());
    assert!(!socket.exists(), "it goes with the server");
    Books::checked(&office.database());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_counted_and_what_was_refused_too() {
    let office = Office::new("").await;
    office.gate.open();
    let serving = office.serve();
    let client = office.client(&serving);
    client.chat("Hello").await.expect(200);
    let dear =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "n": 100, "max_tokens": 100_000});
    client.post("/v1/chat/completions", &dear).await.expect(429);
    let seen = until(&office, |status| {
        status["running"] == 0 && status["last_minute"]["calls"] == 1
    })
    .await;
    let usage = office.simulator.ended(0).await.usage.expect("a usage");
    assert_eq!(seen["last_minute"]["tokens"], usage.input + usage.output);
    assert_eq!(
        (&seen["last_minute"]["refused"], &seen["last_minute"]["failed"]),
        (&json!(1), &json!(0))
    );
    let upstream = &seen["upstreams"][0];
    assert_eq!(
        (&upstream["in_flight"], &upstream["last_result"]),
        (&json!(0), &json!("completed"))
    );
    assert!(upstream["last_at"].is_string(), "{seen:#}");
    assert_eq!(
        (&seen["holds"]["open"], &seen["holds"]["amount"]),
        (&json!(0), &json!("0"))
    );
    serving.stop().await;
    Books::checked(&office.database());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_there_is_no_status() {
    let office = Office::new("").await;
    for line in ["status", "top", "top --json"] {
        let ran = office.run(line);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(7), "{said}");
        assert!(
            said.starts_with("error: no gateway serves ") && said.contains("gateway serve"),
            "{said}"
        );
        assert!(ran.stdout.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_path_is_too_long_for_a_socket_has_one_elsewhere() {
    let office = Office::new("").await;
    let folder = "x".repeat(120);
    fs::create_dir(office.path(&folder)).expect("a folder");
    office.set(&office.settings().replace("books.db", &format!("{folder}/books.db")));
    let serving = office.serve();
    let seen = status(&office);
    assert_eq!((&seen["address"], &seen["running"]), (&json!(serving.url), &json!(0)));
    // Whoever reads the note for the address still finds it.
    let healthy = office.run("healthcheck");
    assert!(healthy.status.success(), "{}", String::from_utf8_lossy(&healthy.stderr));
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_prints_one_document_after_the_other_where_there_is_no_terminal() {
    let office = Office::new("").await;
    let serving = office.serve();
    let mut top = office
        .command("top --json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(top.stdout.take().expect("a pipe")).lines();
    let ended = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            let line = lines.next().expect("a line").expect("text");
            let status: Value = serde_json::from_str(&line).expect("a document");
            assert_eq!(status["running"], 0);
        }
        drop(lines);
        top.wait()
    });
    let status = ended.await.expect("it ends").expect("a child");
    assert!(status.success(), "whoever closed the pipe has seen enough: {status}");
    serving.stop().await;
}

/// A terminal: its end for us, and the one for a program.
fn terminal() -> (File, OwnedFd) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    fcntl_setfd(&terminal, FdFlags::CLOEXEC).expect("the program does not get it");
    grantpt(&terminal)
        .and_then(|()| unlockpt(&terminal))
        .expect("a terminal");
    let name = ptsname(&terminal, Vec::new()).expect("a name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let screen = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).expect("it opens");
    (terminal.into(), screen)
}

fn top_on(office: &Office, screen: &OwnedFd) -> Child {
    let copy = || Stdio::from(screen.try_clone().expect("a copy"));
    let mut command = office.command("top");
    command.stdin(copy()).stdout(copy());
    command.spawn().expect("it starts")
}

/// What it shows, once that is the whole status.
fn shown_on(mut terminal: File) -> (File, String) {
    let (mut shown, mut bytes) = (String::new(), [0; 4096]);
    while !shown.contains("connections") {
        let count = terminal.read(&mut bytes).expect("it is written to");
        shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    (terminal, shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ends_at_a_key_also_while_the_server_does_not_answer() {
    let office = Office::new("").await;
    let serving = office.serve();
    let (terminal, screen) = terminal();
    let mut top = top_on(&office, &screen);
    let socket = office.path("books.db.sock");
    let ended = tokio::task::spawn_blocking(move || {
        let (mut terminal, _) = shown_on(terminal);
        fs::remove_file(&socket).expect("it is there");
        let silent = UnixListener::bind(&socket).expect("a socket");
        let asked = silent.accept().expect("it asks");
        terminal.write_all(b"q").expect("a key is pressed");
        let status = top.wait().expect("a child");
        drop(asked);
        status
    });
    let status = tokio::time::timeout(Duration::from_secs(20), ended).await;
    let status = status.expect("it ends").expect("it was waited for");
    assert!(status.success(), "{status}");
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_takes_the_screen_and_gives_it_back() {
    let office = Office::new("").await;
    let serving = office.serve();
    for key in [b"q", b"\x03"] {
        let (terminal, screen) = terminal();
        let before = tcgetattr(&screen).expect("a terminal").local_modes;
        let mut top = top_on(&office, &screen);
        let shown = tokio::task::spawn_blocking(move || {
            let (mut terminal, mut shown) = shown_on(terminal);
            terminal.write_all(key).expect("a key is pressed");
            let status = top.wait().expect("a child");
            assert!(status.success(), "{status}");
            let mut bytes = [0; 4096];
            let count = terminal.read(&mut bytes).expect("it is written to");
            shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
            // Without it the terminal is gone.
            (terminal, shown)
        });
        let shown = tokio::time::timeout(Duration::from_secs(20), shown).await;
        let (_terminal, shown) = shown.expect("it ends").expect("it was read");
        assert!(shown.starts_with("\x1b[?1049h"), "{shown:?}");
        assert!(shown.ends_with("\x1b[?25h\x1b[?1049l"), "{shown:?}");
        assert_eq!(tcgetattr(&screen).expect("a terminal").local_modes, before);
    }
    serving.stop().await;
}
