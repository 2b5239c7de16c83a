//! `gateway serve`: start the server, say where it is and what it forwards to, stop it cleanly.

use std::net::SocketAddr;
use std::time::Duration;

use crate::admin::{self, Unpriced};
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::reload::Reloads;
use crate::cli::stop::StopSignals;
use crate::cli::{Global, actor, block_on, language, output, values};
use crate::config::{Config, Flag, Pricing, UpstreamConfig};
use crate::language::{Language, Said};
use crate::said;
use crate::server::{self, Server, StartError};
use crate::store::{Create, Outcome, Store};
use crate::time;
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Variables by which other programs are told a proxy; the gateway takes it from `[[upstream]] proxy` only.
const PROXY_VARIABLES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// How long a server that has to stop because of its books still answers: those who wait for an answer are told that
/// nobody knows its outcome, new calls are refused, and `/readyz` says why.
const FAREWELL: Duration = Duration::from_millis(500);

/// How many of the models without a price are named at start.
const NAMED_UNPRICED: usize = 20;

/// Serve the gateway until SIGTERM or Ctrl-C
///
/// Changed settings are taken in while it runs: within seconds of a change, or at once with SIGHUP.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = values::listen)]
    listen: Option<SocketAddr>,
    /// Go on with a database that lacks what was there before: a lost log, or an old copy in its place
    #[arg(long)]
    accept_loss: bool,
}

/// Runs the command.
///
/// # Errors
/// Settings that are not valid, an address or a database that cannot be had, books of unknown outcome.
pub fn run(args: ServeArgs, global: &Global) -> anyhow::Result<()> {
    let flag = |listen: SocketAddr| Flag {
        name: "--listen",
        table: "server",
        key: "listen",
        value: listen.to_string(),
    };
    let flags = args.listen.map(flag).into_iter().collect();
    block_on(async { serve(Reloads::load(global, flags)?, args.accept_loss, global).await })
}

/// There is nothing to forward to.
pub(super) fn no_upstream() -> Failure {
    let language = language();
    let what = said!(
        language,
        en: "there is no upstream to forward calls to",
        zh: "没有可以转发调用的上游",
    );
    Failure::new(Exit::Settings, what)
        .why(said!(
            language,
            en: "no [[upstream]] is configured, and OPENAI_API_KEY is not set",
            zh: "没有配置 [[upstream]]，也没有设置 OPENAI_API_KEY",
        ))
        .fix(said!(
            language,
            en: "export OPENAI_API_KEY=sk-…   (or write [[upstream]] into gateway.toml; to try without a key: gateway demo)",
            zh: "export OPENAI_API_KEY=sk-…   （或在 gateway.toml 中写入 [[upstream]]；无密钥试用：gateway demo）",
        ))
}

async fn serve(mut reloads: Reloads, accept_loss: bool, global: &Global) -> anyhow::Result<()> {
    let config = reloads.settings().config.clone();
    let mut signals = StopSignals::watch()?;
    let _file_size = survive_file_size_limit()?;
    let open = if accept_loss {
        Store::open_at_a_loss
    } else {
        Store::open
    };
    let store = open(&config.database, Create::IfMissing).map_err(Failure::from)?;
    if accept_loss {
        accept(&store, global)?;
    }
    let unpriced = admin::unpriced(&store, &config, time::now()).map_err(Failure::from)?;
    let (introduction, exposed) = (introduction(&config, language()), exposed(&config));
    let server = server::start(config, store).await.map_err(not_started)?;
    warn_of_unpriced(&unpriced);
    if let Some(exposed) = exposed {
        tracing::warn!("{exposed}");
    }
    let (language, url) = (language(), server.base_url());
    // Programs wait for this line, so it is the same in every language.
    if let Err(error) = output::print(&format!("listening on {url}\n")) {
        global.say(&said!(
            language,
            en: "listening on {url} (stdout: {error})",
            zh: "正在监听 {url}（stdout：{error}）",
        ));
    }
    let metrics = server
        .metrics_url()
        .map(|url| said!(language, en: "metrics   {url}", zh: "指标      {url}"));
    for line in introduction.into_iter().chain(metrics) {
        global.say(&line);
    }
    tokio::select! {
        () = signals.any() => stop(server, &mut signals, global).await,
        () = reloads.until_hung_up(&server) => stop(server, &mut signals, global).await,
        why = server.failed() => {
            server.cut_off();
            tokio::time::sleep(FAREWELL).await;
            Err(books_failed(why))
        }
    }
}

fn books_failed(why: String) -> anyhow::Error {
    let language = language();
    let what = said!(
        language,
        en: "the server stopped, because what it wrote last may not be durable",
        zh: "服务器已停止，因为最后写入的内容可能没有落盘",
    );
    Failure::new(Exit::Failed, what)
        .why(Said::verbatim(why))
        .fix(said!(
            language,
            en: "start it again: it recovers from disk, and no charge is made twice",
            zh: "重新启动：它会从磁盘恢复，不会重复计费",
        ))
        .into()
}

/// Goes on without what the database lacks of what was there before.
fn accept(store: &Store, global: &Global) -> anyhow::Result<()> {
    let Some(lost) = store.behind() else { return Ok(()) };
    match store.accept_loss(&actor(), time::now()) {
        Outcome::Committed(()) | Outcome::Refused(()) => {
            let lost = failure::behind(&lost, language());
            global.say(&said!(language(), en: "accepted: {lost}", zh: "已接受：{lost}"));
            Ok(())
        }
        Outcome::NotCommitted(error) | Outcome::Unknown(error) => Err(Failure::from(error).into()),
    }
}

/// A limit on the size of files (`ulimit -f`) is an error of the write, which is handled, not a signal that kills.
fn survive_file_size_limit() -> anyhow::Result<Signal> {
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    signal(kind).context(said!(language(), en: "signals cannot be watched", zh: "无法监视信号"))
}

/// Lets running calls finish; a second signal ends them at once.
async fn stop(server: Server, signals: &mut StopSignals, global: &Global) -> anyhow::Result<()> {
    global.say(&said!(
        language(),
        en: "stopping: no new calls; running ones may finish (once more to end them now)",
        zh: "正在停止：不接受新的调用；进行中的可以完成（再来一次则立即结束）",
    ));
    let cutoff = server.cutoff();
    let stopping = server.stop();
    tokio::pin!(stopping);
    tokio::select! {
        stopped = &mut stopping => return stopped.map_err(books_failed),
        () = signals.any() => cutoff.cancel(),
    }
    stopping.await.map_err(books_failed)
}

/// What a person wants to know at start: where calls go, whose key pays, where the books are, what is ignored.
fn introduction(config: &Config, language: Language) -> Vec<Said> {
    let describe = |upstream| describe(upstream, language);
    let mut lines: Vec<Said> = config.upstreams.iter().map(describe).collect();
    let database = config.database.display();
    lines.push(said!(language, en: "database  {database}", zh: "数据库  {database}"));
    let ignored: Vec<&str> = PROXY_VARIABLES
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some())
        .collect();
    if !ignored.is_empty() && config.upstreams.iter().any(|upstream| upstream.proxy.is_none()) {
        let ignored = ignored.join(", ");
        lines.push(said!(
            language,
            en: "ignored   {ignored}: set [[upstream]] proxy to use a proxy",
            zh: "已忽略  {ignored}：如需代理，请设置 [[upstream]] proxy",
        ));
    }
    lines
}

/// What is wrong with listening in the clear where others can listen, too.
fn exposed(config: &Config) -> Option<Said> {
    let (language, listen) = (language(), config.server.listen);
    config.server.in_the_clear().then(|| {
        said!(
            language,
            en: "keys and prompts reach {listen} in the clear: set [server] tls_cert and tls_key, or trusted_proxies to the proxy that ends TLS",
            zh: "密钥和提示词以明文到达 {listen}：请设置 [server] tls_cert 和 tls_key，或将终止 TLS 的代理写入 trusted_proxies",
        )
    })
}

/// Says in one line for which configured models calls will be refused, for want of a price.
pub(super) fn warn_of_unpriced(unpriced: &[Unpriced]) {
    let name = |one: &Unpriced| format!("{}/{}", one.list, output::plain(&one.model));
    let (named, more) = unpriced.split_at(unpriced.len().min(NAMED_UNPRICED));
    let mut names: Vec<String> = named.iter().map(name).collect();
    names.dedup();
    names.extend((!more.is_empty()).then(|| format!("and {} more", more.len())));
    if !names.is_empty() {
        tracing::warn!(
            models = names.join(", "),
            "configured models have no price, and calls to them are refused: see `gateway price check`"
        );
    }
}

fn describe(upstream: &UpstreamConfig, language: Language) -> Said {
    let key = match (&upstream.api_key, &upstream.api_key_origin) {
        (None, _) => said!(language, en: "no key", zh: "没有密钥"),
        (Some(_), Some(origin)) => said!(language, en: "key from {origin}", zh: "密钥来自 {origin}"),
        (Some(_), None) => said!(language, en: "key set", zh: "密钥已设置"),
    };
    let prices = match &upstream.prices {
        Pricing::List(list) => said!(language, en: "prices {list}", zh: "价目表 {list}"),
        Pricing::Free => said!(language, en: "free", zh: "免费"),
    };
    let (name, url) = (&upstream.name, &upstream.base_url);
    said!(
        language,
        en: "upstream  {name} at {url}, {key}, {prices}",
        zh: "上游    {name}，{url}，{key}，{prices}",
    )
}

fn not_started(error: StartError) -> anyhow::Error {
    match error {
        StartError::NoUpstream => no_upstream().into(),
        StartError::Listen { addr, source } => failure::not_listening(addr, &source, "serve").into(),
        StartError::Sink(error) => Failure::new(Exit::Settings, error.told(language())).into(),
        StartError::Metrics { addr, source } => failure::metrics_not_listening(addr, &source).into(),
        StartError::Upstream(error) => Failure::new(Exit::Settings, error.told(language())).into(),
        StartError::Tls(error) => Failure::from(error).into(),
        StartError::Open(error) => Failure::from(error).into(),
        StartError::Store(error) => Failure::from(error).into(),
    }
}
