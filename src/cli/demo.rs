//! `gateway demo`: the whole thing with nothing to set up, on a temporary database and a simulated upstream.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::failure::{Exit, Failure};
use super::request::{self, Receipt};
use super::stop::StopSignals;
use super::{Global, actor, block_on, output, runtime};
use crate::admin::{self, KeySpec, UserSpec};
use crate::config::{Config, Sources};
use crate::money::Usd;
use crate::server::{self, Server};
use crate::simulator::playwright::{Pace, standard};
use crate::simulator::{Options, Simulator};
use crate::store::usage_log::ExchangeRow;
use crate::store::{Create, Store};
use crate::time;

/// What the user starts with.
const OPENING: Usd = Usd::from_nanos(5_000_000_000);

/// Who calls.
const USER: &str = "demo";

/// The model that is called: Codex's own default.
const MODEL: &str = "gpt-6.1-sol";

/// Show a plain and a streamed call, their receipts and the balance; nothing to set up, nothing left behind.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Go on serving, for Codex, curl and other clients, until Ctrl-C
    #[arg(long)]
    pub serve: bool,
}

/// Runs the demo.
///
/// # Errors
/// Another demo serves already (6), no temporary directory or port can be had, or a call fails (7).
pub fn run(args: &DemoArgs, global: &Global) -> anyhow::Result<()> {
    if args.serve {
        refuse_second()?;
    }
    block_on(perform(args, global))
}

fn refuse_second() -> Result<(), Failure> {
    let Some(other) = runtime::read() else {
        return Ok(());
    };
    let what = format!("a demo already serves on {} (process {})", other.url, other.pid);
    let failure = Failure::new(Exit::Exists, what).why("gateway codex finds one running demo, not two");
    Err(failure.fix(format!(
        "use that one: {} codex, or stop it: kill {}",
        output::program(),
        other.pid
    )))
}

async fn perform(args: &DemoArgs, global: &Global) -> anyhow::Result<()> {
    let mut signals = StopSignals::watch()?;
    let stopped = || Failure::new(Exit::Failed, "the demo was stopped");
    let stage = tokio::select! {
        stage = Stage::set() => stage?,
        () = signals.any() => return Err(stopped().into()),
    };
    let shown = tokio::select! {
        shown = stage.show() => shown?,
        () = signals.any() => return Err(stopped().into()),
    };
    match args.serve {
        false => print(&shown, None, global)?,
        true => {
            let note = Note::leave(&stage, global)?;
            print(&shown, Some(&stage.invitation()), global)?;
            signals.any().await;
            global.say("stopping: running calls end first; a second signal ends them at once");
            note.remove()?;
        }
    }
    stage.strike(&mut signals).await
}

/// Everything the demo runs on.
struct Stage {
    simulator: Simulator,
    server: Server,
    store: Store,
    key: String,
    http: reqwest::Client,
    /// The last to go.
    dir: TempDir,
}

impl Stage {
    async fn set() -> anyhow::Result<Stage> {
        let dir = tempfile::Builder::new().prefix("codex-gateway-demo-").tempdir();
        let dir = dir.context("no temporary directory could be made")?;
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let simulator = Simulator::start(anywhere, standard(Pace::default()), Options { remember: 0 }).await;
        let simulator = simulator.context("the simulated upstream did not start")?;
        let config = settings(dir.path(), &simulator.base_url())?;
        let store = Store::open(&config.database, Create::IfMissing)?;
        let key = store.blocking(user_and_key).await?;
        let server = server::start(config, store.clone()).await?;
        Ok(Stage {
            simulator,
            server,
            store,
            key,
            http: http()?,
            dir,
        })
    }

    /// One plain and one streamed call through the running gateway.
    async fn show(&self) -> anyhow::Result<Shown> {
        let plain = json!({"model": MODEL, "messages": [{"role": "user", "content": "What is a gateway?"}]});
        let streamed = json!({"model": MODEL, "input": "And what did that cost?", "stream": true});
        let calls = vec![
            self.call("/v1/chat/completions", plain).await?,
            self.call("/v1/responses", streamed).await?,
        ];
        let user = self.store.blocking(|store| admin::user(store, USER)).await;
        let user = user.map_err(Failure::from)?;
        Ok(Shown {
            user: USER,
            opening_balance: OPENING.to_string(),
            calls,
            balance: user.balance.to_string(),
            held: user.held.to_string(),
            next: format!("{} demo --serve", output::program()),
        })
    }

    async fn call(&self, path: &'static str, body: Value) -> anyhow::Result<Call> {
        let request = self
            .http
            .post(format!("{}{path}", self.server.base_url()))
            .bearer_auth(&self.key);
        let answer = request.json(&body).send().await.context("the gateway did not answer")?;
        let (status, id) = (answer.status(), header(&answer, "x-request-id"));
        let text = answer.text().await.context("the answer broke off")?;
        if !status.is_success() {
            return Err(Failure::new(Exit::Upstream, format!("the gateway answered {status}"))
                .why(text)
                .into());
        }
        // The end of an answer leaves after its charge is durable: the receipt is there.
        let (row, receipt) = self.store.blocking(move |store| receipt(store, &id)).await?;
        Ok(Call {
            method: "POST",
            path,
            streamed: row.streamed,
            answer: said(&text, row.streamed),
            request: body,
            receipt,
            charge: request::charge(&row),
        })
    }

    fn invitation(&self) -> Invitation {
        let (program, url) = (output::program(), self.server.base_url());
        let database = output::shell_word(&self.database().display().to_string());
        let curl = |path: &str, body: &Value| {
            format!(
                "curl{} {url}{path} -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' -d '{body}'",
                past_proxies(),
                self.key
            )
        };
        let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]});
        let stream = json!({"model": MODEL, "input": "Hello", "stream": true});
        Invitation {
            listening: format!("listening on {url}"),
            base_url: format!("{url}/v1"),
            key: self.key.clone(),
            codex: vec![
                format!("{program} codex"),
                format!("{program} codex exec --skip-git-repo-check 'Say hello'"),
            ],
            curl: vec![curl("/v1/chat/completions", &chat), curl("/v1/responses", &stream)],
            look: vec![
                format!("{program} --database {database} request list"),
                format!("{program} --database {database} user show {USER}"),
                format!("{program} --database {database} ledger verify"),
            ],
            url,
        }
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("gateway.db")
    }

    /// Ends everything and removes the directory.
    async fn strike(self, signals: &mut StopSignals) -> anyhow::Result<()> {
        let Stage {
            server,
            simulator,
            store,
            dir,
            ..
        } = self;
        let cutoff = server.cutoff();
        let mut stopping = std::pin::pin!(server.stop());
        let stopped = tokio::select! {
            stopped = &mut stopping => stopped,
            () = signals.any() => {
                cutoff.cancel();
                stopping.await
            }
        };
        simulator.stop().await;
        drop(store);
        let path = dir.path().display().to_string();
        dir.close().with_context(|| format!("{path} could not be removed"))?;
        stopped.map_err(anyhow::Error::msg)
    }
}

/// Settings as a file would give them; the environment and the files of this machine play no part.
fn settings(dir: &Path, upstream: &str) -> anyhow::Result<Config> {
    let table = |pairs: &[(&str, &str)]| -> toml::Table {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), toml::Value::from(*value));
        pairs.iter().map(pair).collect()
    };
    let database = dir.join("gateway.db");
    let database = database
        .to_str()
        .context("the temporary directory's name is not text")?;
    let upstream = table(&[("name", "simulator"), ("base_url", upstream), ("prices", "openai")]);
    let mut document = toml::Table::new();
    document.insert("server".into(), table(&[("listen", "127.0.0.1:0")]).into());
    document.insert(
        "database".into(),
        table(&[("path", database), ("min_free", "0"), ("ballast", "0")]).into(),
    );
    document.insert("upstream".into(), toml::Value::Array(vec![upstream.into()]));
    let sources = Sources {
        file: Some((PathBuf::from("demo"), document.to_string())),
        env: &BTreeMap::new(),
        flags: Vec::new(),
        read: &|path| Err(format!("{} is not read by the demo", path.display())),
    };
    Ok(Config::load(sources)?.complete()?)
}

fn user_and_key(store: &Store) -> anyhow::Result<String> {
    let (by, now) = (actor(), time::now());
    let spec = UserSpec {
        name: USER.into(),
        email: None,
        balance: OPENING,
        credit_line: Usd::ZERO,
    };
    let user = admin::add_user(store, &spec, &by, now).map_err(Failure::from)?;
    let spec = KeySpec {
        name: Some("demo".into()),
        ..KeySpec::default()
    };
    let issued = admin::issue_key(store, &user.name, &spec, &by, now).map_err(Failure::from)?;
    Ok(issued.secret.reveal().to_owned())
}

fn receipt(store: &Store, id: &str) -> anyhow::Result<(ExchangeRow, Receipt)> {
    let row = admin::exchange(store, id).map_err(Failure::from)?;
    Ok((row, Receipt::find(store, id)?))
}

/// A client for this machine: no proxies, and no certificates, for there is no TLS.
fn http() -> anyhow::Result<reqwest::Client> {
    // Whoever was first has installed the same.
    rustls::crypto::ring::default_provider().install_default().unwrap_or(());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build();
    client.context("no HTTP client could be made")
}

fn header(answer: &reqwest::Response, name: &str) -> String {
    let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// The text of an answer: of a chat completion, or of the events of a response.
fn said(text: &str, streamed: bool) -> String {
    if !streamed {
        let answer: Value = serde_json::from_str(text).unwrap_or_default();
        return answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    events
        .filter_map(|event| event["delta"].as_str().map(str::to_owned))
        .collect()
}

/// What the demo shows; with `--json` it is the document.
#[derive(Serialize)]
struct Shown {
    user: &'static str,
    opening_balance: String,
    calls: Vec<Call>,
    balance: String,
    held: String,
    /// The command that goes on.
    next: String,
}

/// One call.
#[derive(Serialize)]
struct Call {
    method: &'static str,
    path: &'static str,
    streamed: bool,
    request: Value,
    answer: String,
    receipt: Receipt,
    #[serde(skip)]
    charge: Usd,
}

/// How clients connect while it serves.
#[derive(Serialize)]
struct Invitation {
    #[serde(skip)]
    listening: String,
    url: String,
    base_url: String,
    key: String,
    codex: Vec<String>,
    curl: Vec<String>,
    look: Vec<String>,
}

fn print(shown: &Shown, invitation: Option<&Invitation>, global: &Global) -> anyhow::Result<()> {
    if !global.json {
        let text = text(shown, invitation)?;
        return output::print(&text).map(drop);
    }
    let mut document = serde_json::to_value(shown)?;
    if let (Some(invitation), Some(fields)) = (invitation, document.as_object_mut()) {
        fields.remove("next");
        fields.insert("serving".into(), serde_json::to_value(invitation)?);
    }
    output::json(&document)
}

fn text(shown: &Shown, invitation: Option<&Invitation>) -> anyhow::Result<String> {
    let mut text = String::new();
    let opening: Usd = shown.opening_balance.parse()?;
    writeln!(
        text,
        "A gateway on a temporary database, a simulated upstream, and the user '{USER}' with {opening:#}."
    )?;
    let mut sum = format!("{opening:#}");
    for call in &shown.calls {
        let how = if call.streamed { "streamed" } else { "plain" };
        writeln!(
            text,
            "\n{} {}, {how}\n  {}\n",
            call.method,
            call.path,
            output::plain(&call.answer)
        )?;
        text.push_str(&call.receipt.text());
        write!(sum, " − {:#}", call.charge)?;
    }
    let balance: Usd = shown.balance.parse()?;
    writeln!(text, "\nBalance  {sum} = {balance:#}\n")?;
    let Some(invitation) = invitation else {
        writeln!(
            text,
            "Go on with it: it serves, for Codex and any OpenAI client\n  {}",
            shown.next
        )?;
        return Ok(text);
    };
    writeln!(text, "{}\n", invitation.listening)?;
    let parts = [
        (
            "Codex through it (needs the codex CLI; no file is changed)",
            &invitation.codex,
        ),
        ("Any client: the base URL and the key are in these", &invitation.curl),
        ("What it wrote", &invitation.look),
    ];
    for (title, commands) in parts {
        writeln!(text, "{title}\n  {}\n", commands.join("\n  "))?;
    }
    writeln!(text, "Ctrl-C stops it and removes the database.")?;
    Ok(text)
}

/// The note by which `gateway codex` finds this demo.
struct Note;

impl Note {
    fn leave(stage: &Stage, global: &Global) -> anyhow::Result<Note> {
        let running = runtime::Running {
            url: stage.server.base_url(),
            key: stage.key.clone(),
            pid: std::process::id(),
        };
        let place = runtime::path();
        runtime::write(&running).with_context(|| format!("{} could not be written", place.display()))?;
        global.say(&format!("its address and key are in {}", place.display()));
        Ok(Note)
    }

    /// Takes the note away; one that is gone, or another's, is left alone.
    fn remove(self) -> anyhow::Result<()> {
        match runtime::read() {
            Some(running) if running.pid == std::process::id() => {}
            _ => return Ok(()),
        }
        runtime::remove().with_context(|| format!("{} could not be removed", runtime::path().display()))
    }
}

/// What curl needs to reach this machine when the environment names a proxy.
fn past_proxies() -> &'static str {
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let any = ["http_proxy", "all_proxy", "ALL_PROXY"].iter().any(set);
    if any { " --noproxy '*'" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_from_either_form() {
        let plain = r#"{"choices":[{"message":{"content":"Hello there"}}]}"#;
        assert_eq!(said(plain, false), "Hello there");
        let stream = "event: x\ndata: {\"delta\":\"Hello \"}\n\ndata: {\"delta\":\"there\"}\n\ndata: {}\n\n";
        assert_eq!(said(stream, true), "Hello there");
    }

    #[test]
    fn the_settings_are_the_defaults_but_for_where() {
        let config = settings(Path::new("/tmp/a \"quoted\" dir"), "http://127.0.0.1:9/v1").expect("settings");
        assert_eq!(config.database, Path::new("/tmp/a \"quoted\" dir/gateway.db"));
        assert_eq!((config.server.listen.port(), config.upstreams.len()), (0, 1));
        assert_eq!(config.upstreams[0].base_url, "http://127.0.0.1:9/v1");
    }
}
