//! `gateway doctor --client codex`: the installed Codex, driven through a gateway and a simulated upstream of its own, and
//! what its user reads. Nothing of the user's is touched: settings, database and `CODEX_HOME` are temporary.
//!
//! ```text
//! codex exec ──▶ Relay: counts requests ──▶ gateway ──▶ simulator
//!                                           │
//! answer        a user with money           1 request
//! balance out   a user with none            1 request, our sentence
//! rate limit    a limit that is used up     Codex waits as long as it is told, asks again, and has its answer
//! cut stream    the upstream breaks off     at most 6 requests, Codex's sentence
//! ```

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::State;
use crate::cli::codex::access::fetch_models;
use crate::cli::codex::args::{CodexHome, overrides};
use crate::cli::codex::{KEY_VARIABLE, failure, find_program};
use crate::cli::failure::{Exit, Failure};
use crate::cli::stage::Stage;
use crate::cli::stop::StopSignals;
use crate::cli::{Global, language, output};
use crate::language::{Language, Said};
use crate::limits::{AtMost, Rates};
use crate::money::Usd;
use crate::said;

/// How long one run of Codex may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Requests a minute of the user who has used them up: one comes back every ten seconds, by which Codex has begun to ask.
const RPM: u32 = 6;

/// More requests than this for one prompt are what nobody should have to wait for.
const MOST_REQUESTS: u32 = 6;

/// Who has money, who has none, and who has called too often.
const USERS: [&str; 3] = ["doctor", "doctor-poor", "doctor-busy"];

/// What a request for an answer begins with. In a body it cannot stand: JSON writes the end of a line otherwise.
const REQUEST: &[u8] = b"POST /v1/responses HTTP/1.1\r\n";

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Scene {
    Answer,
    BalanceOut,
    RateLimit,
    CutStream,
}

impl Scene {
    const ALL: [Scene; 4] = [Scene::Answer, Scene::BalanceOut, Scene::RateLimit, Scene::CutStream];

    fn prompt(self) -> &'static str {
        match self {
            Scene::CutStream => "sim:break",
            Scene::Answer | Scene::BalanceOut | Scene::RateLimit => "say hello",
        }
    }

    fn name(self, language: Language) -> Said {
        match self {
            Scene::Answer => said!(language, en: "answer", zh: "正常回答"),
            Scene::BalanceOut => said!(language, en: "balance out", zh: "余额用尽"),
            Scene::RateLimit => said!(language, en: "rate limit", zh: "速率限制"),
            Scene::CutStream => said!(language, en: "cut stream", zh: "流中断"),
        }
    }

    /// Whether Codex did what it is known to do. That it does not wait for a rate limit, as before 0.169, is worth a warning.
    fn state(self, run: &Run) -> State {
        let reads = |text: &str| run.reads.iter().any(|line| line.contains(text));
        let answered = run.code == Some(0) && reads("You said");
        let is_as_known = match self {
            Scene::Answer => answered && run.requests == 1,
            Scene::BalanceOut => run.code == Some(1) && run.requests == 1 && reads(USERS[1]),
            Scene::RateLimit => answered && (2..=MOST_REQUESTS).contains(&run.requests),
            Scene::CutStream => run.code == Some(1) && run.requests <= MOST_REQUESTS && reads("stream disconnected"),
        };
        match is_as_known {
            true => State::Ok,
            false if self == Scene::RateLimit && run.requests == 1 && reads("429 Too Many Requests") => State::Warning,
            false => State::Failure,
        }
    }
}

/// What came of a run of Codex.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    requests: u32,
    took: Duration,
    reads: Vec<String>,
}

/// One scene, as it is shown and as it is in the JSON document.
#[derive(Debug, Serialize)]
struct Seen {
    scene: Scene,
    state: State,
    exit_code: Option<i32>,
    requests: u32,
    milliseconds: u64,
    /// What the user reads, line by line.
    reads: Vec<String>,
}

impl Seen {
    fn of(scene: Scene, run: Run) -> Seen {
        Seen {
            scene,
            state: scene.state(&run),
            exit_code: run.code,
            requests: run.requests,
            milliseconds: u64::try_from(run.took.as_millis()).unwrap_or(u64::MAX),
            reads: run.reads,
        }
    }

    fn shown(&self, language: Language) -> String {
        let (state, name) = (self.state.name(language), self.scene.name(language));
        let (requests, took) = (self.requests, Duration::from_millis(self.milliseconds / 100 * 100));
        let what = said!(language, en: "requests: {requests}, {took:?}", zh: "请求数：{requests}，用时 {took:?}");
        let mut text = format!("{state}  {name}  {what}\n");
        for line in &self.reads {
            text.push_str(&format!("    | {}\n", output::plain(line)));
        }
        text
    }
}

/// `doctor --client codex --json`
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of the scenes.
    state: State,
    language: &'static str,
    program: String,
    version: String,
    scenes: Vec<Seen>,
}

/// Runs all scenes with `program`, or the `codex` on the PATH; 1 when Codex did not do what it is known to do.
pub(super) async fn codex(program: Option<&Path>, global: &Global) -> anyhow::Result<u8> {
    let program = program.map_or_else(
        || find_program("codex", std::env::var_os("PATH").as_deref()).ok_or_else(not_installed),
        |file| Ok(file.to_owned()),
    )?;
    let version = version(&program).await?;
    let (shown, named) = (program.display(), output::plain(&version));
    global.say(&said!(
        language(),
        en: "{shown} ({named}), through a gateway and an upstream made for this; what its user reads stands behind |",
        zh: "{shown}（{named}），经由为此创建的网关和上游；用户读到的内容在 | 之后",
    ));
    let mut signals = StopSignals::watch()?;
    let stage = Stage::set("codex-gateway-doctor-").await?;
    let examined = tokio::select! {
        scenes = examine(&program, &stage, global) => scenes,
        () = signals.any() => Err(stopped().into()),
    };
    stage.strike(signals.any()).await?;
    let scenes = examined?;
    let language = language();
    let state = scenes.iter().map(|seen| seen.state).max().unwrap_or(State::Ok);
    if global.json {
        output::json(&Report {
            state,
            language: language.name(),
            program: program.display().to_string(),
            version,
            scenes,
        })?;
    } else {
        output::print(&scenes.iter().map(|seen| seen.shown(language)).collect::<String>())?;
    }
    Ok(u8::from(state == State::Failure))
}

/// What `codex --version` says.
async fn version(program: &Path) -> Result<String, Failure> {
    let run = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = run.await.map_err(|error| {
        let program = program.display();
        let what = said!(language(), en: "{program} could not be run", zh: "无法运行 {program}");
        failure(
            Exit::NotFound,
            what,
            Said::verbatim(error.to_string()),
            "npm install -g @openai/codex",
        )
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn not_installed() -> Failure {
    failure(
        Exit::NotFound,
        said!(language(), en: "Codex was not driven", zh: "没有驱动 Codex"),
        said!(language(), en: "there is no `codex` on the PATH", zh: "PATH 中没有 `codex`"),
        "npm install -g @openai/codex   (or: gateway doctor --client codex --program FILE)",
    )
}

fn stopped() -> Failure {
    Failure::new(
        Exit::Failed,
        said!(language(), en: "the examination was stopped", zh: "检查已停止"),
    )
}

async fn examine(program: &Path, stage: &Stage, global: &Global) -> anyhow::Result<Vec<Seen>> {
    let limited = Rates {
        rpm: AtMost::new(RPM),
        ..Rates::default()
    };
    let [rich, poor, busy] = USERS;
    let rich = stage
        .user(rich, Usd::from_nanos(100_000_000_000), Rates::default())
        .await?;
    let poor = stage.user(poor, Usd::from_nanos(1), Rates::default()).await?;
    let busy = stage.user(busy, Usd::from_nanos(100_000_000_000), limited).await?;
    let relay = Relay::start(&stage.server.addr().to_string()).await?;
    let url = relay.url();
    let mut seen = Vec::new();
    for scene in Scene::ALL {
        let key = match scene {
            Scene::Answer | Scene::CutStream => &rich,
            Scene::BalanceOut => &poor,
            Scene::RateLimit => &busy,
        };
        let language = language();
        let name = scene.name(language);
        global.say(&said!(language, en: "running Codex: {name} …", zh: "正在运行 Codex：{name} …"));
        let codex = Codex::prepare(program, &url, key, stage.dir()).await?;
        if scene == Scene::RateLimit {
            use_up(&url, key).await?;
        }
        let before = relay.count();
        let begun = Instant::now();
        let output = codex.run(scene.prompt()).await?;
        seen.push(Seen::of(
            scene,
            Run {
                code: output.status.code(),
                requests: relay.count() - before,
                took: begun.elapsed(),
                reads: reads(&output),
            },
        ));
    }
    Ok(seen)
}

/// Takes what there is of the limit, until a call is refused.
async fn use_up(url: &str, key: &str) -> anyhow::Result<()> {
    let http = crate::cli::codex::access::http_client(url)?;
    let body = json!({"model": "text-embedding-3-small", "input": "a"});
    for _ in 0..RPM * 2 {
        let call = http.post(format!("{url}/v1/embeddings")).bearer_auth(key).json(&body);
        let answer = call.send().await;
        let answer = answer.context(said!(language(), en: "the gateway did not answer", zh: "网关没有回答"))?;
        if answer.status() == http::StatusCode::TOO_MANY_REQUESTS {
            return Ok(());
        }
    }
    Ok(())
}

/// What `codex exec` prints for its user: the answer and errors; not what it repeats of the prompt, nor what it says of the
/// machine.
fn reads(output: &Output) -> Vec<String> {
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let told = stderr.lines().filter(|line| line.starts_with("ERROR"));
    let mut lines: Vec<String> = stdout.lines().chain(told).map(str::to_owned).collect();
    lines.dedup();
    lines
}

/// Codex, ready to be asked.
struct Codex {
    command: Command,
}

impl Codex {
    /// With a home of its own below `dir`, the overrides of `gateway codex`, and the key in its environment.
    async fn prepare(program: &Path, url: &str, key: &str, dir: &Path) -> anyhow::Result<Codex> {
        let list = fetch_models(url, key).await?;
        let (home, work) = (dir.join("codex"), dir.join("work"));
        for dir in [&home, &work] {
            std::fs::create_dir_all(dir)
                .context(said!(language(), en: "no temporary directory could be made", zh: "无法创建临时文件夹"))?;
        }
        let mut command = Command::new(program);
        command
            .args(overrides(url, &CodexHome::default(), &list, None))
            .args(["exec", "--skip-git-repo-check", "--sandbox", "read-only"])
            .current_dir(work)
            .env("HOME", dir)
            .env("CODEX_HOME", home)
            .env(KEY_VARIABLE, key)
            .envs(["NO_PROXY", "no_proxy"].map(|name| (name, "127.0.0.1,localhost,::1")))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(Codex { command })
    }

    async fn run(mut self, prompt: &str) -> anyhow::Result<Output> {
        let output = tokio::time::timeout(PATIENCE, self.command.arg(prompt).output()).await;
        let output = output.map_err(|_| {
            let seconds = PATIENCE.as_secs();
            let what =
                said!(language(), en: "Codex did not end within {seconds} s", zh: "Codex 在 {seconds} 秒内没有结束");
            Failure::new(Exit::Failed, what)
        })?;
        output.context(said!(language(), en: "Codex could not be started", zh: "无法启动 Codex"))
    }
}

/// Passes bytes on to the gateway and counts the requests for an answer among them.
struct Relay {
    addr: std::net::SocketAddr,
    count: Arc<AtomicU32>,
    /// Ends its tasks when it goes.
    _stop: DropGuard,
}

impl Relay {
    async fn start(target: &str) -> anyhow::Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (addr, count) = (listener.local_addr()?, Arc::new(AtomicU32::new(0)));
        let (counter, target) = (Arc::clone(&count), target.to_owned());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (of_tasks, of_stop) = (tasks.clone(), stop.clone());
        tasks.spawn(async move {
            while let Some(Ok((client, _))) = of_stop.run_until_cancelled(listener.accept()).await {
                let passing = pass(client, target.clone(), Arc::clone(&counter));
                let stop = of_stop.clone();
                of_tasks.spawn(async move { stop.run_until_cancelled(passing).await });
            }
        });
        Ok(Relay {
            addr,
            count,
            _stop: stop.drop_guard(),
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }
}

/// One connection. When either side is gone, so is the other.
async fn pass(client: TcpStream, target: String, count: Arc<AtomicU32>) -> std::io::Result<()> {
    let server = TcpStream::connect(target).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asking = async {
        let mut heads = Heads::default();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let read = from_client.read(&mut bytes).await?;
            if read == 0 {
                return to_server.shutdown().await;
            }
            count.fetch_add(heads.count(&bytes[..read]), Ordering::SeqCst);
            to_server.write_all(&bytes[..read]).await?;
        }
    };
    let answering = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(asking, answering).map(drop)
}

/// Finds the heads of requests, in whatever pieces they come.
#[derive(Default)]
struct Heads(Vec<u8>);

impl Heads {
    /// How many more there are with these bytes.
    fn count(&mut self, bytes: &[u8]) -> u32 {
        self.0.extend_from_slice(bytes);
        let found = self
            .0
            .windows(REQUEST.len())
            .filter(|window| *window == REQUEST)
            .count();
        let kept = self.0.len().min(REQUEST.len() - 1);
        self.0.drain(..self.0.len() - kept);
        u32::try_from(found).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: i32, requests: u32, reads: &str) -> Run {
        Run {
            code: Some(code),
            requests,
            took: Duration::from_millis(1_234),
            reads: vec![reads.to_owned()],
        }
    }

    #[test]
    fn requests_are_counted_in_whatever_pieces_they_come() {
        let stream = [REQUEST, b"host: x\r\n\r\n{\"POST /v1/responses HTTP/1.1\":1}", REQUEST].concat();
        for size in 1..stream.len() {
            let mut heads = Heads::default();
            let count: u32 = stream.chunks(size).map(|piece| heads.count(piece)).sum();
            assert_eq!(count, 2, "in pieces of {size}");
        }
    }

    #[test]
    fn what_codex_is_known_to_do_is_ok_and_all_else_is_not() {
        let poor = "ERROR: You have hit your usage limit. The balance of doctor-poor …";
        let cut = "ERROR: stream disconnected before completion";
        let limited = "ERROR: exceeded retry limit, last status: 429 Too Many Requests";
        for (scene, seen, state) in [
            (Scene::BalanceOut, run(1, 1, poor), State::Ok),
            (Scene::BalanceOut, run(1, 2, poor), State::Failure),
            (Scene::BalanceOut, run(1, 1, "ERROR: Quota exceeded."), State::Failure),
            (Scene::RateLimit, run(0, 2, "You said: say hello"), State::Ok),
            (Scene::RateLimit, run(0, 1, "You said: say hello"), State::Failure),
            (Scene::RateLimit, run(1, 1, limited), State::Warning),
            (Scene::RateLimit, run(1, 6, limited), State::Failure),
            (Scene::CutStream, run(1, 6, cut), State::Ok),
            (Scene::CutStream, run(1, 30, cut), State::Failure),
        ] {
            assert_eq!(scene.state(&seen), state, "{scene:?} {seen:?}");
        }
    }

    #[test]
    fn a_scene_is_shown_with_what_its_user_reads() {
        let seen = Seen::of(Scene::Answer, run(0, 1, "You said: \"hi\""));
        let shown = seen.shown(Language::English);
        assert_eq!(shown, "ok  answer  requests: 1, 1.2s\n    | You said: \"hi\"\n");
    }
}
