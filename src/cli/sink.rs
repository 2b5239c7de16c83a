//! `gateway sink …`: where events go, and how far each is.

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::failure::{Exit, Failure, no_sink};
use super::output::{self, Column, Items};
use super::{Global, block_on, language};
use crate::config::SinkConfig;
use crate::events::Sink;
use crate::language::Said;
use crate::said;
use crate::store::Create;
use crate::store::events::SinkState;

/// What to do with sinks.
#[derive(Debug, Subcommand)]
pub enum SinkCommand {
    /// Where events go, how many wait, and what is in the way
    List,
    /// Send one event of the type `sink.test` to a sink, which tells of nothing; exit code 7 when it does not arrive
    Test(TestArgs),
}

/// Which sink.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `sink list`: a sink of the settings, of the server that started last, or of both.
#[derive(Serialize)]
struct SinkView {
    name: String,
    /// As the settings say; `null`: they do not know it any more.
    to: Option<String>,
    types: Vec<&'static str>,
    /// `null`: no server was started with it yet.
    delivered: Option<i64>,
    waiting: i64,
    waiting_since: Option<Timestamp>,
    lost: i64,
    failing_since: Option<Timestamp>,
    failure: Option<String>,
}

impl SinkView {
    fn new(name: &str, config: Option<&SinkConfig>, state: Option<&SinkState>) -> SinkView {
        let (failing_since, failure) = state.and_then(|state| state.failing.clone()).unzip();
        SinkView {
            name: name.to_owned(),
            to: config.map(|sink| sink.target.to_string()),
            types: config.map_or_else(Vec::new, |sink| sink.types.iter().map(|kind| kind.name()).collect()),
            delivered: state.map(|state| state.delivered),
            waiting: state.map_or(0, |state| state.waiting),
            waiting_since: state.and_then(|state| state.waiting_since),
            lost: state.map_or(0, |state| state.lost),
            failing_since,
            failure,
        }
    }

    fn cells(&self) -> Vec<String> {
        let trouble = match (&self.failing_since, &self.failure, self.delivered) {
            (Some(since), Some(why), _) => {
                let (since, why) = (output::time(*since), output::plain(why));
                said!(language(), en: "since {since}: {why}", zh: "自 {since}：{why}").into()
            }
            (_, _, None) => {
                said!(language(), en: "begins at the next start of a server", zh: "下次启动服务器时开始").into()
            }
            _ => String::new(),
        };
        vec![
            self.name.clone(),
            self.to
                .clone()
                .unwrap_or_else(|| said!(language(), en: "(not in the settings)", zh: "（不在设置中）").into()),
            self.delivered.map_or_else(String::new, |seq| seq.to_string()),
            self.waiting.to_string(),
            self.waiting_since.map_or_else(String::new, output::time),
            self.lost.to_string(),
            trouble,
        ]
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: &SinkCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        SinkCommand::List => list(global),
        SinkCommand::Test(args) => test(&args.name, global),
    }
}

/// `sink test`: that it has arrived; else the command fails.
#[derive(Serialize)]
struct Arrived<'a> {
    name: &'a str,
    ok: bool,
}

fn test(name: &str, global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.complete().map_err(Failure::from)?;
    let sink = config.sinks.iter().find(|sink| sink.name == name);
    let sink = sink.ok_or_else(|| no_sink(name, &config.sinks))?;
    let sink = Sink::new(sink, &config.database);
    let mut sink = sink.map_err(|error| Failure::new(Exit::Settings, error.told(language())))?;
    if let Err(why) = block_on(async { Ok(sink.test().await) })? {
        let what = said!(language(), en: "sink '{name}' does not take events", zh: "事件去向 '{name}' 不接收事件");
        return Err(Failure::new(Exit::Upstream, what).why(Said::verbatim(why)).into());
    }
    if global.json {
        return output::json(&Arrived { name, ok: true });
    }
    global.say(&said!(language(), en: "sink '{name}' took the event", zh: "事件去向 '{name}' 已接收事件"));
    Ok(())
}

fn list(global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.config;
    let states = global.store(Create::Never)?.sinks().map_err(Failure::from)?;
    let of = |name: &str| states.iter().find(|state| state.name == name);
    let configured = config
        .sinks
        .iter()
        .map(|sink| SinkView::new(&sink.name, Some(sink), of(&sink.name)));
    let is_configured = |state: &&SinkState| config.sinks.iter().any(|sink| sink.name == state.name);
    let others = states.iter().filter(|state| !is_configured(state));
    let items: Vec<SinkView> = configured
        .chain(others.map(|state| SinkView::new(&state.name, None, Some(state))))
        .collect();
    if global.json {
        return output::json(&Items { items });
    }
    if items.is_empty() {
        global.say(&said!(
            language(),
            en: "no sink: write [[sink]] into gateway.toml (docs/events.md)",
            zh: "没有事件去向：请在 gateway.toml 中写入 [[sink]]（docs/events.md）",
        ));
        return Ok(());
    }
    let columns = [
        Column::Left("sink"),
        Column::Left("to"),
        Column::Right("delivered"),
        Column::Right("waiting"),
        Column::Left("since (UTC)"),
        Column::Right("lost"),
        Column::Left("trouble"),
    ];
    output::table(&columns, items.iter().map(SinkView::cells).collect())
}
