//! `gateway serve`: start the server, say where it is and what it forwards to, stop it cleanly.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cli::failure::{self, Exit, Failure};
use crate::cli::stop::StopSignals;
use crate::cli::{Global, actor, block_on, output};
use crate::config::{self, Config, Flag, Pricing, UpstreamConfig};
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

/// Serve the gateway until SIGTERM or Ctrl-C.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = config::listen)]
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
    let config = global
        .settings(args.listen.map(flag).into_iter().collect())?
        .complete()
        .map_err(Failure::from)?;
    if config.upstreams.is_empty() {
        return Err(no_upstream().into());
    }
    block_on(serve(config, args.accept_loss, global))
}

fn no_upstream() -> Failure {
    Failure::new(Exit::Settings, "there is no upstream to forward calls to")
        .why("no [[upstream]] is configured, and OPENAI_API_KEY is not set")
        .fix("export OPENAI_API_KEY=sk-…   (or write [[upstream]] into gateway.toml; to try without a key: gateway demo)")
}

async fn serve(config: Config, accept_loss: bool, global: &Global) -> anyhow::Result<()> {
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
    let introduction = introduction(&config);
    let server = server::start(config, store).await.map_err(not_started)?;
    if let Err(error) = output::print(&format!("listening on {}\n", server.base_url())) {
        global.say(&format!("listening on {} (stdout: {error})", server.base_url()));
    }
    for line in introduction {
        global.say(&line);
    }
    tokio::select! {
        () = signals.any() => stop(server, &mut signals, global).await,
        why = server.failed() => {
            server.cut_off();
            tokio::time::sleep(FAREWELL).await;
            Err(books_failed(why))
        }
    }
}

fn books_failed(why: String) -> anyhow::Error {
    Failure::new(
        Exit::Failed,
        "the server stopped, because what it wrote last may not be durable",
    )
    .why(why)
    .fix("start it again: it recovers from disk, and no charge is made twice")
    .into()
}

/// Goes on without what the database lacks of what was there before.
fn accept(store: &Store, global: &Global) -> anyhow::Result<()> {
    let Some(lost) = store.behind() else { return Ok(()) };
    match store.accept_loss(&actor(), time::now()) {
        Outcome::Committed(()) | Outcome::Refused(()) => {
            global.say(&format!("accepted: {lost}"));
            Ok(())
        }
        Outcome::NotCommitted(error) | Outcome::Unknown(error) => Err(Failure::from(error).into()),
    }
}

/// A limit on the size of files (`ulimit -f`) is an error of the write, which is handled, not a signal that kills.
fn survive_file_size_limit() -> anyhow::Result<Signal> {
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    signal(kind).context("signals cannot be watched")
}

/// Lets running calls finish; a second signal ends them at once.
async fn stop(server: Server, signals: &mut StopSignals, global: &Global) -> anyhow::Result<()> {
    global.say("stopping: no new calls; running ones may finish (once more to end them now)");
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
fn introduction(config: &Config) -> Vec<String> {
    let mut lines: Vec<String> = config.upstreams.iter().map(describe).collect();
    lines.push(format!("database  {}", config.database.display()));
    let ignored: Vec<&str> = PROXY_VARIABLES
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some())
        .collect();
    if !ignored.is_empty() && config.upstreams.iter().any(|upstream| upstream.proxy.is_none()) {
        lines.push(format!(
            "ignored   {}: set [[upstream]] proxy to use a proxy",
            ignored.join(", ")
        ));
    }
    lines
}

fn describe(upstream: &UpstreamConfig) -> String {
    let key = match (&upstream.api_key, &upstream.api_key_origin) {
        (None, _) => "no key".to_owned(),
        (Some(_), Some(origin)) => format!("key from {origin}"),
        (Some(_), None) => "key set".to_owned(),
    };
    let prices = match &upstream.prices {
        Pricing::List(list) => format!("prices {list}"),
        Pricing::Free => "free".to_owned(),
    };
    format!("upstream  {} at {}, {key}, {prices}", upstream.name, upstream.base_url)
}

fn not_started(error: StartError) -> anyhow::Error {
    match error {
        StartError::NoUpstream => no_upstream().into(),
        StartError::Listen { addr, source } => failure::not_listening(addr, &source, "serve").into(),
        StartError::Upstream(error) => Failure::new(Exit::Settings, error.to_string()).into(),
        StartError::Open(error) => Failure::from(error).into(),
        StartError::Store(error) => Failure::from(error).into(),
    }
}
