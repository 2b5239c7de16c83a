//! `gateway turn-cost`: what a turn of Codex was charged, for the `Stop` hook that `gateway connect codex --turn-cost` puts
//! into the profile.
//!
//! Codex runs it when a turn ends, gives it the session's and the turn's id on stdin, and shows the `systemMessage` of its
//! answer under the turn's. By then every call of the turn is settled: the end of an answer leaves after its charge is
//! durable. So the sum is exact, sub-agents included. It only reads; whatever fails is said in the same place, and never stops a turn.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::codex::KEY_VARIABLE;
use super::codex::access::{base, http_client};
use super::connect::PROFILE;
use super::{block_on, language, output};
use crate::language::Said;
use crate::money::Usd;
use crate::said;

/// How long the gateway may take: Codex waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// What Codex writes is the last answer and some ids; more than this is not read.
const MOST_INPUT: u64 = 16 * 1024 * 1024;

/// What a turn of Codex was charged, for its Stop hook.
#[derive(Clone, Debug, clap::Args)]
pub struct TurnCostArgs {
    /// The profile of Codex that names the gateway and its key
    #[arg(long, value_name = "FILE")]
    pub profile: PathBuf,
}

/// What Codex says of a turn that ends.
#[derive(Debug, Deserialize)]
struct Ended {
    session_id: String,
    turn_id: String,
}

/// Answers the hook, always with exit code 0.
///
/// # Errors
/// Nothing can be written to stdout.
pub fn run(args: &TurnCostArgs) -> anyhow::Result<()> {
    let told = block_on(async {
        let told = tokio::time::timeout(PATIENCE, bill(&args.profile)).await;
        Ok(told.unwrap_or_else(|_| {
            Err(said!(language(), en: "the gateway did not answer in time", zh: "网关没有及时回答"))
        }))
    })?;
    let message = told.unwrap_or_else(
        |why| said!(language(), en: "The cost of this turn is not known: {why}", zh: "无法得知本轮的费用：{why}"),
    );
    output::print(&format!("{}\n", json!({ "systemMessage": message }))).map(drop)
}

/// The line for the turn that stdin names.
async fn bill(profile: &Path) -> Result<Said, Said> {
    // On a thread of its own: whoever leaves stdin open would else keep the timeout from being looked at.
    let reading = tokio::task::spawn_blocking(|| {
        let mut input = String::new();
        let read = std::io::stdin().take(MOST_INPUT).read_to_string(&mut input);
        read.ok().and_then(|_| serde_json::from_str::<Ended>(&input).ok())
    });
    let ended = reading.await.ok().flatten();
    let ended =
        ended.ok_or_else(|| said!(language(), en: "stdin does not name a turn", zh: "标准输入没有指明是哪一轮"))?;
    let provider = Provider::read(profile)?;
    let turn = provider.turn(&ended).await?;
    let me = provider.get("/v1/gateway/me").await?;
    Ok(turn.told(money(&me["available"])?))
}

/// Where the gateway is, and the key, as the profile says it to Codex.
struct Provider {
    url: String,
    key: String,
    http: reqwest::Client,
}

impl Provider {
    fn read(profile: &Path) -> Result<Provider, Said> {
        let shown = profile.display();
        let text = std::fs::read_to_string(profile).map_err(
            |error| said!(language(), en: "{shown} cannot be read: {error}", zh: "无法读取 {shown}：{error}"),
        )?;
        let (url, key) = provider(&text, |name| std::env::var(name).ok())
            .ok_or_else(|| said!(language(), en: "{shown} names no gateway and key", zh: "{shown} 中没有网关和密钥"))?;
        let http = http_client(&url).map_err(|failure| Said::verbatim(failure.to_string()))?;
        Ok(Provider { url, key, http })
    }

    async fn get(&self, path: &str) -> Result<Value, Said> {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.key);
        let silent = || said!(language(), en: "the gateway does not answer", zh: "网关没有回答");
        let answer = request.send().await.map_err(|_| silent())?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(|_| silent())?;
        if status.is_success() {
            return Ok(body);
        }
        let message = body["error"]["message"].as_str();
        Err(message.map_or_else(
            || said!(language(), en: "the gateway answers {status}", zh: "网关返回 {status}"),
            |message| Said::verbatim(output::plain(message)),
        ))
    }

    /// The turn, of its session.
    async fn turn(&self, ended: &Ended) -> Result<Turn, Said> {
        let id = utf8_percent_encode(&ended.session_id, NON_ALPHANUMERIC);
        let session = self.get(&format!("/v1/gateway/sessions/{id}")).await?;
        Turn::find(&session, &ended.turn_id)
    }
}

/// The gateway's address and the key in a profile.
fn provider(profile: &str, variable: impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    let table: toml::Table = profile.parse().ok()?;
    let provider = table.get("model_providers")?.get(PROFILE)?;
    let text = |name: &str| provider.get(name).and_then(toml::Value::as_str);
    let key = text("experimental_bearer_token").map(str::to_owned);
    let key = key.or_else(|| variable(text("env_key").unwrap_or(KEY_VARIABLE)))?;
    Some((base(text("base_url")?), key))
}

/// What the calls of a turn add up to.
#[derive(Debug)]
struct Turn {
    charge: Usd,
    input: u64,
    cached: u64,
    output: u64,
}

impl Turn {
    /// The turn of this id.
    fn find(session: &Value, id: &str) -> Result<Turn, Said> {
        let mut turns = session["turns"].as_array().into_iter().flatten();
        let turn = turns
            .find(|turn| turn["id"] == id)
            .ok_or_else(|| said!(language(), en: "the gateway knows of no call of it", zh: "网关没有它的调用记录"))?;
        let tokens = |name: &str| turn[name].as_u64().unwrap_or(0);
        Ok(Turn {
            charge: money(&turn["charge"])?,
            input: tokens("input_tokens"),
            cached: tokens("cached_tokens"),
            output: tokens("output_tokens"),
        })
    }

    fn told(&self, available: Usd) -> Said {
        let count = output::count;
        let (charge, input, cached) = (self.charge, count(self.input), count(self.cached));
        let written = count(self.output);
        said!(
            language(),
            en: "This turn: {charge:#} ({input} in, {cached} of them cached, {written} out). Balance {available:#}",
            zh: "本轮：{charge:#}（输入 {input}，其中缓存 {cached}，输出 {written}）。余额 {available:#}",
        )
    }
}

fn money(value: &Value) -> Result<Usd, Said> {
    let amount = value.as_str().and_then(|text| text.parse().ok());
    amount.ok_or_else(|| said!(language(), en: "the gateway's answer cannot be read", zh: "无法读懂网关的回答"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turn_is_told_to_the_nano_dollar() {
        let turn = |id: Value, charge: &str| json!({"id": id, "charge": charge, "input_tokens": 40_000, "cached_tokens": 32_000, "output_tokens": 1_000});
        let session =
            json!({"turns": [turn("a".into(), "5"), turn(Value::Null, "1"), turn("b".into(), "0.021316812")]});
        let told = Turn::find(&session, "b")
            .expect("the turn")
            .told(Usd::from_nanos(4_850_000_000));
        assert_eq!(
            told.to_string(),
            "This turn: $0.021316812 (40,000 in, 32,000 of them cached, 1,000 out). Balance $4.85"
        );
        assert!(Turn::find(&session, "c").is_err());
    }

    #[test]
    fn the_gateway_and_the_key_are_those_of_the_profile() {
        let profile =
            |credential: &str| format!("[model_providers.gateway]\nbase_url = \"http://h:1/v1\"\n{credential}\n");
        let of = |credential: &str| provider(&profile(credential), |name| (name == "MINE").then(|| "sk-gw-v".into()));
        let found = |key: &str| Some(("http://h:1".to_owned(), key.to_owned()));
        assert_eq!(of("experimental_bearer_token = \"sk-gw-x\""), found("sk-gw-x"));
        assert_eq!(of("env_key = \"MINE\""), found("sk-gw-v"));
        assert_eq!(of("env_key = \"OTHER\""), None);
        assert_eq!(provider("nonsense =", |_| None), None);
    }
}
