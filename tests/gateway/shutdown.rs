//! The real program from its start to its end: a clean stop, a stop at once, a kill, and what it says when it cannot start.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Options, Request, Simulator, Step};
use codex_gateway::store::usage_log::{Basis, State};
use codex_gateway::store::users::User;
use codex_gateway::store::{Create, KeyId, Store, UserId};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::books::Books;
use crate::client::{Client, MODEL, chat, drain, events, http, response};
use crate::price::{catalogue, expected_charge};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine with nothing set up.
struct Machine {
    home: TempDir,
}

/// A running `gateway serve`.
pub struct Serving {
    child: Child,
    /// `http://127.0.0.1:40123`
    pub url: String,
    stderr: PathBuf,
}

impl Machine {
    fn new() -> Machine {
        let home = TempDir::new().expect("a folder");
        for folder in ["here", "there"] {
            fs::create_dir(home.path().join(folder)).expect("a folder");
        }
        Machine { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, folder: &str, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("USER", "operator");
        command.current_dir(self.path(folder)).args(line.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, folder: &str, line: &str) -> Output {
        self.command(folder, line).output().expect("the program starts")
    }

    /// The JSON document of a command that succeeds.
    fn json(&self, folder: &str, line: &str) -> Value {
        let ran = self.run(folder, &format!("{line} --json"));
        assert!(ran.status.success(), "{line}: {}", text(&ran.stderr));
        serde_json::from_slice(&ran.stdout).expect("JSON")
    }

    /// Starts a server and waits until it says where it is.
    fn serve(&self, mut command: Command) -> Serving {
        let stderr = self.path(&format!(
            "stderr-{}",
            fs::read_dir(self.home.path()).expect("read").count()
        ));
        command
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file"));
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("text");
        let url = line.trim_end().strip_prefix("listening on ");
        let url = url
            .unwrap_or_else(|| panic!("{line}{}", fs::read_to_string(&stderr).expect("text")))
            .to_owned();
        Serving { child, url, stderr }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A start that fails, and in time: its exit code and what it says, four lines at most and nothing on stdout.
fn failure(command: Command) -> (Option<i32>, String) {
    let ran = assert_cmd::Command::from_std(command).timeout(PATIENCE).output();
    let ran = ran.expect("the program starts");
    let said = text(&ran.stderr);
    assert!(
        ran.stdout.is_empty() && said.starts_with("error: ") && said.lines().count() <= 4,
        "{said}"
    );
    (ran.status.code(), said)
}

/// What `serve` says when it does not start there.
pub fn failure_of(office: &Office) -> (Option<i32>, String) {
    failure(office.machine.command("here", &office.line("serve")))
}

impl Serving {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).expect("text")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("the signal is sent");
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// How it ended; it has to.
    pub async fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops it as a service manager does.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.end().await;
        assert!(status.success(), "{status}: {}", self.said());
    }

    /// Waits until it has said something so many times.
    pub async fn says(&self, what: &str, times: usize) -> String {
        let start = Instant::now();
        loop {
            let said = self.said();
            if said.matches(what).count() >= times {
                return said;
            }
            assert!(start.elapsed() < PATIENCE, "it does not say {what:?}: {said}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nobody listens any more.
    pub async fn deaf(&self) {
        let start = Instant::now();
        while TcpStream::connect(self.address()).await.is_ok() {
            assert!(start.elapsed() < PATIENCE, "still accepting");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("http://").parse().expect("an address")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only a test that failed leaves it running.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().expect("it is ours");
            self.child.wait().expect("it ends");
        }
    }
}

/// A machine with a gateway whose upstream stops in the middle of each answer until the gate lets it go on.
pub struct Office {
    machine: Machine,
    pub simulator: Simulator,
    pub gate: Gate,
}

impl Office {
    pub async fn new(server: &str) -> Office {
        let gate = Gate::closed();
        let (inner, gated) = (standard(Pace::default()), gate.clone());
        let playwright = Arc::new(move |request: &Request| {
            let script = inner(request);
            let pause = Step::Wait(gated.clone());
            if request.streamed() {
                script.at(6, pause)
            } else {
                script.first(pause)
            }
        });
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let simulator = Simulator::start(anywhere, playwright, Options::default())
            .await
            .expect("a port");
        let machine = Machine::new();
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[database]\npath = \"books.db\"\n\
             [[upstream]]\nname = \"first\"\nbase_url = \"{}\"\napi_key = \"sk-upstream\"\nprices = \"openai\"\n",
            simulator.base_url()
        );
        fs::write(machine.path("gateway.toml"), settings).expect("settings written");
        Office {
            machine,
            simulator,
            gate,
        }
    }

    pub fn database(&self) -> PathBuf {
        self.path("books.db")
    }

    /// A file beside the settings.
    pub fn path(&self, name: &str) -> PathBuf {
        self.machine.path(name)
    }

    /// What a command on these settings prints, and says.
    pub fn run(&self, line: &str) -> Output {
        self.machine.run("there", &self.line(line))
    }

    pub fn settings(&self) -> String {
        fs::read_to_string(self.path("gateway.toml")).expect("text")
    }

    /// Writes other settings, as an editor does: a new file in the place of the old one.
    pub fn set(&self, settings: &str) {
        self.put("gateway.toml", settings);
    }

    /// Puts a file in the place of another.
    pub fn put(&self, name: &str, content: &str) {
        fs::write(self.path("new"), content).expect("written");
        fs::rename(self.path("new"), self.path(name)).expect("renamed");
    }

    fn line(&self, line: &str) -> String {
        format!("--config {} {line}", self.machine.path("gateway.toml").display())
    }

    pub fn serve(&self) -> Serving {
        self.serve_with(&[])
    }

    /// A server with variables in its environment.
    pub fn serve_with(&self, variables: &[(&str, &str)]) -> Serving {
        let mut command = self.command("serve");
        command.envs(variables.iter().copied());
        self.machine.serve(command)
    }

    /// A command on these settings.
    pub fn command(&self, line: &str) -> Command {
        self.machine.command("here", &self.line(line))
    }

    fn json(&self, line: &str) -> Value {
        self.machine.json("there", &self.line(line))
    }

    /// Alice, who has $5, with a key.
    pub fn client(&self, serving: &Serving) -> Client {
        let user = self.json("user add alice --balance 5");
        let key = self.json("key issue alice");
        let id = |of: &Value| of["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        Client {
            user: UserId(id(&user)),
            key_id: KeyId(id(&key)),
            key: key["key"].as_str().expect("a key").to_owned(),
            base_url: serving.url.clone(),
            http: http(),
        }
    }

    /// Writes the settings with a part of them replaced.
    pub fn replace(&self, from: &str, to: &str) {
        let settings = self.settings();
        assert!(settings.contains(from), "{settings}");
        self.set(&settings.replace(from, to));
    }

    /// Changes the database by SQL, beside the gateway and its store.
    #[expect(clippy::disallowed_methods, reason = "what the store would not do")]
    pub fn alter(&self, sql: &str) {
        let file = rusqlite::Connection::open(self.database()).expect("the database opens");
        file.execute_batch(sql).expect(sql);
    }

    pub fn alice(&self) -> User {
        let store = Store::open(&self.database(), Create::Never).expect("it opens");
        store.find_user("alice").expect("it is read").expect("she is there")
    }
}

/// A stream that has begun: the answer, with what came of it.
pub async fn begin(client: &Client, path: &str) -> (reqwest::Response, Vec<u8>) {
    let body = match path {
        "/v1/responses" => response("Hello", &json!({"stream": true, "max_output_tokens": 500})),
        "/v1/completions" => json!({"model": MODEL, "prompt": "Hello", "stream": true, "max_tokens": 500}),
        _ => chat("Hello", &json!({"stream": true, "max_completion_tokens": 500})),
    };
    let mut answer = client.send(path, &body).await;
    assert_eq!(answer.status(), 200);
    let first = answer.chunk().await.expect("a piece").expect("not the end");
    (answer, first.to_vec())
}

/// All of a stream; its end has to be a clean one.
pub async fn whole((answer, mut arrived): (reqwest::Response, Vec<u8>)) -> String {
    let (rest, end) = tokio::time::timeout(PATIENCE, drain(answer))
        .await
        .expect("an end in time");
    end.expect("a clean end of the connection");
    arrived.extend(rest);
    text(&arrived)
}

/// What is written on this connection until it is closed.
async fn rest_of(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes)).await;
    read.expect("it is closed in time").unwrap_or(0);
    text(&bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_takes_no_new_calls_and_lets_a_running_stream_finish() {
    let office = Office::new("").await;
    let mut serving = office.serve();
    let client = office.client(&serving);
    let stream = begin(&client, "/v1/chat/completions").await;
    // One client is in the middle of asking, another keeps its connection for later.
    let mut asking = TcpStream::connect(serving.address()).await.expect("a connection");
    asking
        .write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        .await
        .expect("half a head");
    let mut idle = TcpStream::connect(serving.address()).await.expect("a connection");
    idle.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("a request");
    let mut ready = [0; 15];
    idle.read_exact(&mut ready).await.expect("an answer");
    assert_eq!(&ready, b"HTTP/1.1 200 OK");
    client.get("/readyz").await.expect(200);

    serving.signal(Signal::TERM);
    serving.deaf().await;
    let late = format!("authorization: Bearer {}\r\ncontent-length: 2\r\n\r\n{{}}", client.key);
    asking.write_all(late.as_bytes()).await.expect("the other half");
    let refused = rest_of(&mut asking).await;
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("\"shutting_down\""),
        "{refused}"
    );
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    let kept = rest_of(&mut idle).await;
    assert_eq!(
        kept.matches("HTTP/1.1").count(),
        0,
        "closed, so that its client asks elsewhere: {kept}"
    );
    assert!(serving.runs(), "the stream goes on");

    office.gate.open();
    assert!(whole(stream).await.ends_with("data: [DONE]\n\n"));
    let status = serving.end().await;
    assert_eq!(status.code(), Some(0), "{}", serving.said());
    let usage = office.simulator.ended(0).await.usage.expect("a usage");
    let books = Books::checked(&office.database());
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
    assert_eq!(
        books.charged(),
        expected_charge(&usage, &catalogue("openai", MODEL), "1")
    );
    assert!(
        office.json("key list alice")["items"][0]["last_used_at"].is_string(),
        "noted at the latest by the stop"
    );
    assert_eq!(office.simulator.served().len(), 1);
}

/// The ends of streams that a stop cut off: the protocol's own error, never a finished answer.
fn assert_cut(path: &str, arrived: &str) {
    assert!(
        !arrived.contains("[DONE]") && !arrived.contains("response.completed"),
        "{path}: {arrived}"
    );
    let last = events(arrived.as_bytes()).pop().expect("an event");
    let error = match path {
        "/v1/responses" => {
            assert_eq!(
                (&last["type"], &last["response"]["status"]),
                (&json!("response.failed"), &json!("failed"))
            );
            &last["response"]["error"]
        }
        _ => &last["error"],
    };
    assert_eq!(error["code"], "server_error", "{path}: {last}");
    assert!(arrived.ends_with("\n\n"), "{path}: the event is whole");
}

const STREAMS: [&str; 3] = ["/v1/chat/completions", "/v1/responses", "/v1/completions"];

/// Three streams and a plain call that run, cut off by `cut`; checks what their clients and the books say.
async fn cut_off(office: &Office, mut serving: Serving, cut: impl AsyncFnOnce(&Serving)) {
    let client = office.client(&serving);
    let mut streams = Vec::new();
    for path in STREAMS {
        streams.push((path, begin(&client, path).await));
    }
    let plain = tokio_util::task::TaskTracker::new().spawn({
        let client = client.clone();
        async move { client.chat("Hello").await }
    });
    office.simulator.arrived(4).await;
    cut(&serving).await;
    for (path, stream) in streams {
        assert_cut(path, &whole(stream).await);
    }
    let plain = plain.await.expect("it ended").expect(503);
    assert_eq!(plain.json()["error"]["code"], "shutting_down");
    let status = serving.end().await;
    assert_eq!(status.code(), Some(0), "{}", serving.said());

    let books = Books::checked(&office.database());
    assert_eq!(books.exchanges.len(), 4);
    for row in &books.exchanges {
        assert_eq!(row.state, State::Cancelled);
        if row.streamed {
            assert_eq!(row.basis, Basis::Estimated);
            assert!(
                row.usage.input_tokens.get() > 0 && row.usage.output_tokens.get() > 0,
                "what was delivered"
            );
            assert!(row.charge.nanos() > 0 && row.charge <= row.held);
        } else {
            assert_eq!(
                row.charge.nanos(),
                0,
                "nothing was delivered, and the refusal says that nothing is charged"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_outlast_the_drain_end_with_an_error_and_are_settled() {
    let office = Office::new("drain_timeout = \"2s\"").await;
    let serving = office.serve();
    let start = Instant::now();
    cut_off(&office, serving, async |serving| {
        serving.signal(Signal::TERM);
        serving.deaf().await;
    })
    .await;
    assert!(start.elapsed() >= Duration::from_secs(2), "they had their time");
}

/// How many streams of many run when the stop comes, and how many of those still run when their time is over.
const STREAMS_AT_ONCE: usize = 200;
const LATE: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn no_stream_of_many_is_cut_before_its_time_and_no_hold_stays_open() {
    let drain_timeout = Duration::from_secs(6);
    let office = Office::new("drain_timeout = \"6s\"").await;
    let mut serving = office.serve();
    let client = office.client(&serving);
    let mut streams = Vec::new();
    for _ in 0..STREAMS_AT_ONCE {
        streams.push(begin(&client, "/v1/chat/completions").await);
    }
    serving.signal(Signal::TERM);
    let start = Instant::now();
    serving.deaf().await;
    office.gate.let_through(STREAMS_AT_ONCE - LATE);
    let mut ends = Vec::new();
    for stream in streams {
        ends.push(whole(stream).await);
    }
    let (finished, cut): (Vec<_>, Vec<_>) = ends.iter().partition(|arrived| arrived.ends_with("data: [DONE]\n\n"));
    assert_eq!((finished.len(), cut.len()), (STREAMS_AT_ONCE - LATE, LATE));
    for arrived in cut {
        assert_cut("/v1/chat/completions", arrived);
    }
    let status = serving.end().await;
    assert_eq!(status.code(), Some(0), "{}", serving.said());
    // Two seconds more on a machine that is its own; others' work delays what this one counts.
    let took = start.elapsed();
    println!("stopped {took:?} after the signal, of which {drain_timeout:?} were given to its streams");
    assert!(took <= drain_timeout + Duration::from_secs(10), "it took {took:?}");
    let books = Books::checked(&office.database());
    let in_state = |state| books.exchanges.iter().filter(|row| row.state == state).count();
    assert_eq!(
        (in_state(State::Completed), in_state(State::Cancelled)),
        (STREAMS_AT_ONCE - LATE, LATE)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_running_streams_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let office = Office::new("").await;
        let serving = office.serve();
        cut_off(&office, serving, async |serving| {
            serving.signal(Signal::INT);
            serving.deaf().await;
            serving.signal(second);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_gives_the_holds_back_at_its_next_start() {
    let office = Office::new("").await;
    let mut serving = office.serve();
    let client = office.client(&serving);
    let mut streams = Vec::new();
    for path in STREAMS {
        streams.push(begin(&client, path).await);
    }
    let held = office.alice().held;
    assert!(held.nanos() > 0, "the money is set aside");
    serving.signal(Signal::KILL);
    assert_eq!(serving.end().await.code(), None, "it had no time for anything");
    assert_eq!(office.alice().held, held);
    for (answer, _) in streams {
        drain(answer).await.1.expect_err("no client has the end of its answer");
    }
    office.gate.open();

    let serving = office.serve();
    let alice = office.alice();
    assert_eq!(
        (alice.held.nanos(), alice.balance.nanos()),
        (0, 5_000_000_000),
        "all of it is there again"
    );
    assert!(serving.said().contains("interrupted"), "{}", serving.said());
    let client = Client {
        base_url: serving.url.clone(),
        ..client
    };
    client.chat("Hello").await.expect(200);
    serving.stop().await;

    let verified = office.machine.run("here", &office.line("ledger verify"));
    assert_eq!(
        verified.status.code(),
        Some(0),
        "{}{}",
        text(&verified.stdout),
        text(&verified.stderr)
    );
    let books = Books::checked(&office.database());
    let (interrupted, after): (Vec<_>, Vec<_>) =
        books.exchanges.iter().partition(|row| row.state == State::Interrupted);
    assert_eq!((interrupted.len(), after.len()), (3, 1));
    assert!(
        interrupted
            .iter()
            .all(|row| row.charge.nanos() == 0 && row.held.nanos() > 0),
        "what the crash may have cost"
    );
    assert_eq!(
        interrupted.iter().map(|row| row.held.nanos()).sum::<i64>(),
        held.nanos()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_database_names_the_first_and_leaves_it_alone() {
    let office = Office::new("").await;
    let first = office.serve();
    let client = office.client(&first);
    let stream = begin(&client, "/v1/responses").await;
    let (code, said) = failure(office.machine.command("there", &office.line("serve")));
    assert_eq!(code, Some(4), "{said}");
    assert!(
        said.contains(&first.url) && said.contains(&first.pid().to_string()),
        "{said}"
    );
    assert!(office.alice().held.nanos() > 0, "the first one's holds are still open");
    office.gate.open();
    assert!(whole(stream).await.contains("response.completed"));
    first.stop().await;
    assert_eq!(Books::checked(&office.database()).only().state, State::Completed);
}

#[test]
fn with_neither_key_nor_file_it_says_what_to_do() {
    let machine = Machine::new();
    let (code, said) = failure(machine.command("here", "serve"));
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("OPENAI_API_KEY") && said.contains("gateway demo"),
        "{said}"
    );
    let mut empty = machine.command("here", "serve");
    empty.env("OPENAI_API_KEY", " ");
    let (code, _) = failure(empty);
    assert_eq!(code, Some(3), "an empty key is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_alone_it_serves_and_says_what_and_whence_from_any_folder() {
    let machine = Machine::new();
    let added = machine.run("here", "user add alice --balance 5");
    assert!(added.status.success());
    let mut command = machine.command("there", "serve --listen 127.0.0.1:0");
    command
        .env("OPENAI_API_KEY", "sk-not-a-real-one")
        .env("HTTPS_PROXY", "http://127.0.0.1:9");
    let serving = machine.serve(command);
    assert!(serving.address().ip().is_loopback() && serving.address().port() != 0);
    let answer = reqwest::Client::get(&http(), format!("{}/readyz", serving.url))
        .send()
        .await;
    assert_eq!(answer.expect("an answer").status(), 200);
    let key = machine.json("here", "key issue alice")["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    let models = http()
        .get(format!("{}/v1/models", serving.url))
        .bearer_auth(key)
        .send()
        .await;
    assert_eq!(
        models.expect("an answer").status(),
        200,
        "issued in another folder, known here"
    );
    let said = serving.said();
    assert!(
        said.contains("https://api.openai.com/v1") && said.contains("key from OPENAI_API_KEY"),
        "{said}"
    );
    assert!(
        said.contains(
            machine
                .path(".local/share/codex-gateway/gateway.db")
                .to_str()
                .expect("text")
        ),
        "{said}"
    );
    assert!(said.contains("HTTPS_PROXY"), "what is ignored: {said}");
    assert!(!said.contains("not-a-real-one"), "{said}");
    serving.stop().await;
    for folder in ["here", "there"] {
        assert_eq!(
            fs::read_dir(machine.path(folder)).expect("read").count(),
            0,
            "nothing is left in {folder}"
        );
    }
}

#[test]
fn an_address_that_is_taken_is_told_with_what_to_do() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = taken.local_addr().expect("bound");
    let machine = Machine::new();
    let mut command = machine.command("here", &format!("serve --listen {address}"));
    command.env("OPENAI_API_KEY", "sk-x");
    let (code, said) = failure(command);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&address.to_string()) && said.contains("--listen"),
        "{said}"
    );
}
