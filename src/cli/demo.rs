//! `gateway demo`: the whole thing with nothing to set up, on a temporary database and a simulated upstream.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::request::{self, Receipt};
use super::stage::Stage;
use super::stop::StopSignals;
use super::{Global, block_on, language, output, runtime};
use crate::admin;
use crate::language::Said;
use crate::limits::Rates;
use crate::money::Usd;
use crate::said;
use crate::store::Store;
use crate::store::usage_log::ExchangeRow;

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
    let (language, program, url, pid) = (language(), output::program(), other.url, other.pid);
    let what = said!(
        language,
        en: "a demo already serves on {url} (process {pid})",
        zh: "已有演示在 {url} 提供服务（进程 {pid}）",
    );
    let failure = Failure::new(Exit::Exists, what).why(said!(
        language,
        en: "gateway codex finds one running demo, not two",
        zh: "gateway codex 只能找到一个运行中的演示，不能有两个",
    ));
    Err(failure.fix(said!(
        language,
        en: "use that one: {program} codex, or stop it: kill {pid}",
        zh: "使用那一个：{program} codex，或停止它：kill {pid}",
    )))
}

async fn perform(args: &DemoArgs, global: &Global) -> anyhow::Result<()> {
    let mut signals = StopSignals::watch()?;
    let stopped = || {
        Failure::new(
            Exit::Failed,
            said!(language(), en: "the demo was stopped", zh: "演示已停止"),
        )
    };
    let demo = tokio::select! {
        begun = Demo::begin() => begun?,
        () = signals.any() => return Err(stopped().into()),
    };
    let shown = tokio::select! {
        shown = demo.show() => shown?,
        () = signals.any() => return Err(stopped().into()),
    };
    match args.serve {
        false => print(&shown, None, global)?,
        true => {
            let note = Note::leave(&demo, global)?;
            print(&shown, Some(&demo.invitation()), global)?;
            signals.any().await;
            global.say(&said!(
                language(),
                en: "stopping: running calls end first; a second signal ends them at once",
                zh: "正在停止：先等进行中的调用结束；再发一次信号会立即结束它们",
            ));
            note.remove()?;
        }
    }
    demo.stage.strike(signals.any()).await
}

/// The gateway, and who calls it.
struct Demo {
    stage: Stage,
    key: String,
    http: reqwest::Client,
}

impl Demo {
    async fn begin() -> anyhow::Result<Demo> {
        let stage = Stage::set("codex-gateway-demo-").await?;
        Ok(Demo {
            key: stage.user(USER, OPENING, Rates::default()).await?,
            stage,
            http: http()?,
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
        let user = self.stage.store.blocking(|store| admin::user(store, USER)).await;
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
            .post(format!("{}{path}", self.stage.server.base_url()))
            .bearer_auth(&self.key);
        let answer = request.json(&body).send().await;
        let answer = answer.context(said!(language(), en: "the gateway did not answer", zh: "网关没有回答"))?;
        let (status, id) = (answer.status(), header(&answer, "x-request-id"));
        let text = answer
            .text()
            .await
            .context(said!(language(), en: "the answer broke off", zh: "回答中断"))?;
        if !status.is_success() {
            let what = said!(language(), en: "the gateway answered {status}", zh: "网关返回 {status}");
            return Err(Failure::new(Exit::Upstream, what).why(Said::verbatim(text)).into());
        }
        // The end of an answer leaves after its charge is durable: the receipt is there.
        let (row, receipt) = self.stage.store.blocking(move |store| receipt(store, &id)).await?;
        Ok(Call {
            method: "POST",
            path,
            streamed: row.streamed,
            answer: answered(&text, row.streamed),
            request: body,
            receipt,
            charge: request::charge(&row),
        })
    }

    fn invitation(&self) -> Invitation {
        let (program, url) = (output::program(), self.stage.server.base_url());
        let database = output::shell_word(&self.stage.database().display().to_string());
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
    client.context(said!(language(), en: "no HTTP client could be made", zh: "无法创建 HTTP 客户端"))
}

fn header(answer: &reqwest::Response, name: &str) -> String {
    let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// The text of an answer: of a chat completion, or of the events of a response.
fn answered(text: &str, streamed: bool) -> String {
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
    let (mut text, language) = (String::new(), language());
    let opening: Usd = shown.opening_balance.parse()?;
    let scene = said!(
        language,
        en: "A gateway on a temporary database, a simulated upstream, and the user '{USER}' with {opening:#}.",
        zh: "一个使用临时数据库的网关，一个模拟的上游，以及余额为 {opening:#} 的用户 '{USER}'。",
    );
    writeln!(text, "{scene}")?;
    let mut sum = format!("{opening:#}");
    for call in &shown.calls {
        let how = match call.streamed {
            true => said!(language, en: "streamed", zh: "流式"),
            false => said!(language, en: "plain", zh: "非流式"),
        };
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
    let balance = said!(language, en: "Balance  {sum} = {balance:#}", zh: "余额  {sum} = {balance:#}");
    writeln!(text, "\n{balance}\n")?;
    let Some(invitation) = invitation else {
        let on = said!(
            language,
            en: "Go on with it: it serves, for Codex and any OpenAI client",
            zh: "继续使用：为 Codex 和任何 OpenAI 客户端提供服务",
        );
        writeln!(text, "{on}\n  {}", shown.next)?;
        return Ok(text);
    };
    writeln!(text, "{}\n", invitation.listening)?;
    let parts = [
        (
            said!(
                language,
                en: "Codex through it (needs the codex CLI; no file is changed)",
                zh: "通过它使用 Codex（需要 codex 命令行；不改动任何文件）",
            ),
            &invitation.codex,
        ),
        (
            said!(
                language,
                en: "Any client: the base URL and the key are in these",
                zh: "任何客户端：其中有 base URL 和密钥",
            ),
            &invitation.curl,
        ),
        (
            said!(language, en: "What it wrote", zh: "它写下的内容"),
            &invitation.look,
        ),
    ];
    for (title, commands) in parts {
        writeln!(text, "{title}\n  {}\n", commands.join("\n  "))?;
    }
    let end = said!(
        language,
        en: "Ctrl-C stops it and removes the database.",
        zh: "Ctrl-C 停止它并删除数据库。",
    );
    writeln!(text, "{end}")?;
    Ok(text)
}

/// The note by which `gateway codex` finds this demo.
struct Note;

impl Note {
    fn leave(demo: &Demo, global: &Global) -> anyhow::Result<Note> {
        let running = runtime::Running {
            url: demo.stage.server.base_url(),
            key: demo.key.clone(),
            pid: std::process::id(),
        };
        let place = runtime::path();
        let shown = place.display();
        runtime::write(&running)
            .with_context(|| said!(language(), en: "{shown} could not be written", zh: "无法写入 {shown}"))?;
        global.say(&said!(language(), en: "its address and key are in {shown}", zh: "它的地址和密钥在 {shown} 中"));
        Ok(Note)
    }

    /// Takes the note away; one that is gone, or another's, is left alone.
    fn remove(self) -> anyhow::Result<()> {
        match runtime::read() {
            Some(running) if running.pid == std::process::id() => {}
            _ => return Ok(()),
        }
        let place = runtime::path();
        let shown = place.display();
        runtime::remove().with_context(|| said!(language(), en: "{shown} could not be removed", zh: "无法删除 {shown}"))
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
        assert_eq!(answered(plain, false), "Hello there");
        let stream = "event: x\ndata: {\"delta\":\"Hello \"}\n\ndata: {\"delta\":\"there\"}\n\ndata: {}\n\n";
        assert_eq!(answered(stream, true), "Hello there");
    }
}
