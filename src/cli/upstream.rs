//! `gateway upstream …`: which upstreams there are, whether they answer, and a simulated one for people who try things.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde::Serialize;

use super::failure::{no_upstream, not_listening, upstreams_fail};
use super::output::{Column, Items};
use super::stop::StopSignals;
use super::{Failure, Global, block_on, language, output, values};
use crate::config::{Config, Pricing, UpstreamConfig};
use crate::said;
use crate::server;
use crate::simulator::playwright::{Pace, standard};
use crate::simulator::{Options, Simulator};
use crate::time::{Stopwatch, now};

/// Pieces of an answer at most: each is a step in memory.
const MAX_CHUNKS: u64 = 100_000;

/// How long an upstream has for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Upstreams.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum UpstreamCommand {
    /// The configured upstreams: where they are, what they serve, and who is asked first
    List,
    /// Ask upstreams for their models, with the gateway's credential, which costs nothing; exit code 7 when one fails
    Test(TestArgs),
    /// Run only the simulated upstream: OpenAI-shaped answers with usage, without a key and without a network
    Simulate(SimulateArgs),
}

/// Which upstreams are asked.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// How the simulated upstream answers.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081", value_parser = values::listen)]
    pub listen: SocketAddr,
    /// Silence before each answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay_ms: u64,
    /// Pieces of a streamed answer [default: one per token]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CHUNKS))]
    pub chunks: Option<u64>,
    /// Silence between two events of a stream, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub chunk_delay_ms: u64,
}

impl SimulateArgs {
    fn pace(&self) -> Pace {
        Pace {
            delay: Duration::from_millis(self.delay_ms),
            chunks: self.chunks.and_then(|count| usize::try_from(count).ok()),
            chunk_delay: Duration::from_millis(self.chunk_delay_ms),
        }
    }
}

/// Runs a command about upstreams.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: UpstreamCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        UpstreamCommand::List => list(global),
        UpstreamCommand::Test(args) => test(&args, global),
        UpstreamCommand::Simulate(args) => block_on(simulate(args, global)),
    }
}

/// An upstream as `upstream list` shows it.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    base_url: &'a str,
    api_key_from: Option<&'a str>,
    models: &'a [String],
    aliases: &'a BTreeMap<String, String>,
    /// A list, or `free`.
    prices: String,
    wire: &'static str,
    websocket: bool,
    region: Option<&'a str>,
    priority: u32,
    weight: u32,
    max_concurrency: Option<u32>,
}

impl Listed<'_> {
    fn new(upstream: &UpstreamConfig) -> Listed<'_> {
        Listed {
            name: &upstream.name,
            base_url: &upstream.base_url,
            api_key_from: upstream.api_key_origin.as_deref(),
            models: &upstream.models,
            aliases: &upstream.aliases,
            prices: match &upstream.prices {
                Pricing::List(list) => list.to_string(),
                Pricing::Free => "free".to_owned(),
            },
            wire: upstream.wire.name(),
            websocket: upstream.websocket,
            region: upstream.region.as_deref(),
            priority: upstream.priority,
            weight: upstream.weight,
            max_concurrency: upstream.max_concurrency,
        }
    }

    fn row(&self) -> Vec<String> {
        let aliases = self.aliases.iter().map(|(alias, model)| format!("{alias} = {model}"));
        let models: Vec<String> = self.models.iter().cloned().chain(aliases).collect();
        vec![
            self.name.to_owned(),
            self.base_url.to_owned(),
            output::plain(&models.join(", ")),
            self.prices.clone(),
            self.wire.to_owned(),
            self.priority.to_string(),
            self.weight.to_string(),
            self.max_concurrency.map_or("-".to_owned(), |most| most.to_string()),
        ]
    }
}

/// Those of the settings, whether their secrets can be read or not; who is asked first comes first.
fn list(global: &Global) -> anyhow::Result<()> {
    let Config { mut upstreams, .. } = global.settings(Vec::new())?.config;
    upstreams.sort_by_key(|upstream| upstream.priority);
    let items: Vec<Listed<'_>> = upstreams.iter().map(Listed::new).collect();
    if global.json {
        return output::json(&Items { items });
    }
    if items.is_empty() {
        global.say(&said!(
            language(),
            en: "no upstream: write [[upstream]] into gateway.toml, or set OPENAI_API_KEY",
            zh: "没有上游：在 gateway.toml 中写入 [[upstream]]，或设置 OPENAI_API_KEY",
        ));
        return Ok(());
    }
    let left = ["name", "base_url", "models", "prices", "wire"].map(Column::Left);
    let right = ["priority", "weight", "max_concurrency"].map(Column::Right);
    let columns: Vec<Column> = left.into_iter().chain(right).collect();
    output::table(&columns, items.iter().map(Listed::row).collect())
}

/// What an upstream answered.
#[derive(Serialize)]
struct Tested {
    name: String,
    base_url: String,
    /// Whether it is there, and does not refuse the credential.
    ok: bool,
    status: Option<u16>,
    latency_ms: u128,
    /// How far this machine's clock is ahead of its, when it tells the time.
    clock_ahead_seconds: Option<i64>,
    error: Option<String>,
}

impl Tested {
    async fn of(config: &UpstreamConfig) -> Tested {
        let watch = Stopwatch::start();
        let asked = match server::upstream(config, None) {
            Ok(upstream) => upstream.probe(PATIENCE).await,
            Err(error) => Err(error.what.of(language()).to_string()),
        };
        let latency_ms = watch.elapsed().as_millis();
        let (name, base_url) = (config.name.clone(), config.base_url.clone());
        match asked {
            Ok(probe) => {
                let error = told(probe.status);
                Tested {
                    name,
                    base_url,
                    ok: error.is_none() || is_no_list(probe.status),
                    status: Some(probe.status.as_u16()),
                    latency_ms,
                    clock_ahead_seconds: probe.date.map(|date| now().duration_since(date).as_secs()),
                    error,
                }
            }
            Err(error) => Tested {
                name,
                base_url,
                ok: false,
                status: None,
                latency_ms,
                clock_ahead_seconds: None,
                error: Some(error),
            },
        }
    }

    fn row(&self) -> Vec<String> {
        let shown = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        vec![
            self.name.clone(),
            if self.ok { "ok" } else { "failed" }.to_owned(),
            shown(self.status.map(|status| status.to_string())),
            format!("{} ms", self.latency_ms),
            shown(self.clock_ahead_seconds.map(|seconds| format!("{seconds} s"))),
            output::plain(self.error.as_deref().unwrap_or("")),
        ]
    }
}

/// Servers that list no models serve them all the same; whether they take the credential is not known.
fn is_no_list(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
}

/// What a status means; `None`: all is well.
fn told(status: StatusCode) -> Option<String> {
    let language = language();
    let told = match status {
        status if status.is_success() => return None,
        status if is_no_list(status) => said!(
            language,
            en: "it lists no models, so that nobody knows whether it takes the credential",
            zh: "它不列出模型，因此不知道它是否接受凭证",
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            said!(language, en: "it refuses the credential", zh: "它拒绝了凭证")
        }
        status if status.is_redirection() => said!(
            language,
            en: "it redirects, which the gateway does not follow",
            zh: "它要求重定向，网关不跟随重定向",
        ),
        _ => said!(language, en: "it answers, but not as it should", zh: "它有回答，但不正常"),
    };
    Some(told.to_string())
}

/// Asks each, all at once.
fn test(args: &TestArgs, global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.complete().map_err(Failure::from)?;
    let is_meant = |upstream: &&UpstreamConfig| args.name.as_ref().is_none_or(|name| *name == upstream.name);
    let meant: Vec<&UpstreamConfig> = config.upstreams.iter().filter(is_meant).collect();
    if meant.is_empty() {
        return Err(no_upstream(args.name.as_deref(), &config.upstreams).into());
    }
    let items = block_on(async { Ok(join_all(meant.into_iter().map(Tested::of)).await) })?;
    let failed: Vec<String> = items
        .iter()
        .filter(|tested| !tested.ok)
        .map(|tested| tested.name.clone())
        .collect();
    if global.json {
        output::json(&Items { items })?;
    } else {
        let columns = [
            Column::Left("name"),
            Column::Left("result"),
            Column::Right("status"),
            Column::Right("latency"),
            Column::Right("clock ahead"),
            Column::Left(""),
        ];
        output::table(&columns, items.iter().map(Tested::row).collect())?;
    }
    match failed.as_slice() {
        [] => Ok(()),
        _ => Err(upstreams_fail(&failed).into()),
    }
}

/// Serves until a stop signal.
async fn simulate(args: SimulateArgs, global: &Global) -> anyhow::Result<()> {
    let mut signals = StopSignals::watch()?;
    // Nobody reads its log here.
    let options = Options { remember: 0 };
    let started = Simulator::start(args.listen, standard(args.pace()), options).await;
    let simulator = started.map_err(|error| not_listening(args.listen, &error, "upstream simulate"))?;
    let address = simulator.address();
    match global.json {
        true => {
            output::json(&serde_json::json!({"url": format!("http://{address}"), "base_url": simulator.base_url()}))?
        }
        false => drop(output::print(&format!("listening on http://{address}\n"))?),
    }
    let url = simulator.base_url();
    global.say(&said!(
        language(),
        en: "As an upstream: base_url = \"{url}\". Ctrl-C stops it.",
        zh: "作为上游：base_url = \"{url}\"。Ctrl-C 停止它。",
    ));
    signals.any().await;
    simulator.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    #[test]
    fn what_is_typed_becomes_the_pace() {
        let line = ["x", "--delay-ms", "20", "--chunks", "3", "--chunk-delay-ms", "5"];
        let pace = Line::try_parse_from(line)
            .map(|line| line.args.pace())
            .expect("a good line");
        let expected = (Duration::from_millis(20), Some(3), Duration::from_millis(5));
        assert_eq!((pace.delay, pace.chunks, pace.chunk_delay), expected);
        assert!(Line::try_parse_from(["x", "--chunks", "0"]).is_err());
    }
}
