//! The upstreams: each is asked for its models, with the gateway's credential. That costs nothing.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use jiff::SignedDuration;

use super::Check;
use crate::config::UpstreamConfig;
use crate::exchange::Probe;
use crate::language::Language;
use crate::said;
use crate::server;
use crate::time::now;

/// How long an upstream has for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A clock may differ so much from an upstream's.
const APART: SignedDuration = SignedDuration::from_secs(60);

pub(super) fn none(language: Language) -> Check {
    let what = said!(
        language,
        en: "none is configured, and OPENAI_API_KEY is not set: gateway serve does not start",
        zh: "没有配置上游，也没有设置 OPENAI_API_KEY：gateway serve 无法启动",
    );
    let fix = said!(
        language,
        en: "export OPENAI_API_KEY=sk-…   (or write [[upstream]] into gateway.toml)",
        zh: "export OPENAI_API_KEY=sk-…   （或在 gateway.toml 中写入 [[upstream]]）",
    );
    Check::failure("upstream", what, fix)
}

pub(super) fn left_out(language: Language) -> Check {
    Check::skipped(
        "upstream",
        said!(language, en: "not asked (--offline)", zh: "未询问（--offline）"),
    )
}

pub(super) async fn check(upstreams: &[UpstreamConfig], language: Language) -> Vec<Check> {
    let asked = upstreams.iter().map(|upstream| ask(upstream, language));
    join_all(asked).await.into_iter().flatten().collect()
}

async fn ask(config: &UpstreamConfig, language: Language) -> Vec<Check> {
    let (name, url) = (&config.name, &config.base_url);
    let asked = match server::upstream(config, None) {
        Ok(upstream) => upstream.probe(PATIENCE).await,
        Err(error) => Err(error.what.of(language).to_string()),
    };
    match asked {
        Ok(probe) => std::iter::once(answered(config, &probe, language))
            .chain(clock(config, &probe, language))
            .collect(),
        Err(why) => {
            let what = said!(
                language,
                en: "{name} cannot be reached at {url}: {why}",
                zh: "无法在 {url} 连接 {name}：{why}",
            );
            let fix = said!(
                language,
                en: "see whether base_url, proxy and ca_file of [[upstream]] {name} are right, and try: curl -sS {url}/models",
                zh: "检查 [[upstream]] {name} 的 base_url、proxy 和 ca_file 是否正确，并尝试：curl -sS {url}/models",
            );
            vec![Check::failure("upstream", what, fix)]
        }
    }
}

fn answered(config: &UpstreamConfig, probe: &Probe, language: Language) -> Check {
    let (name, url, status) = (&config.name, &config.base_url, probe.status.as_u16());
    match probe.status {
        status if status.is_success() => {
            let what = said!(language, en: "{name} answers at {url}", zh: "{name} 在 {url} 有回答");
            Check::ok("upstream", what)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let what = match &config.api_key_origin {
                Some(origin) => said!(
                    language,
                    en: "{name} refuses the credential from {origin} ({status})",
                    zh: "{name} 拒绝了来自 {origin} 的凭证（{status}）",
                ),
                None => said!(
                    language,
                    en: "{name} wants a credential ({status}), and none is configured",
                    zh: "{name} 需要凭证（{status}），但没有配置",
                ),
            };
            let fix = said!(
                language,
                en: "put a good key into api_key of [[upstream]] {name}, or into what it names",
                zh: "在 [[upstream]] {name} 的 api_key 中，或其指向之处，填入有效的密钥",
            );
            Check::failure("upstream", what, fix)
        }
        code if code.is_redirection() => {
            let what = said!(
                language,
                en: "{name} redirects from {url} ({status}), which the gateway does not follow",
                zh: "{name} 从 {url} 重定向（{status}），网关不跟随重定向",
            );
            let fix = said!(
                language,
                en: "write the address that it redirects to into base_url of [[upstream]] {name}",
                zh: "将重定向的目标地址写入 [[upstream]] {name} 的 base_url",
            );
            Check::failure("upstream", what, fix)
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            let what = said!(
                language,
                en: "{name} can be reached, but does not list models at {url}/models ({status}): whether it takes the credential is not known",
                zh: "可以连接 {name}，但 {url}/models 不列出模型（{status}）：不知道它是否接受凭证",
            );
            let fix = said!(
                language,
                en: "see whether base_url of [[upstream]] {name} ends right before /chat/completions, mostly in /v1",
                zh: "检查 [[upstream]] {name} 的 base_url 是否正好在 /chat/completions 之前结束，通常以 /v1 结尾",
            );
            Check::warning("upstream", what, fix)
        }
        _ => {
            let what = said!(
                language,
                en: "{name} can be reached, but answers {status} at the moment",
                zh: "可以连接 {name}，但目前返回 {status}",
            );
            let fix = said!(
                language,
                en: "look at the status page and at the account of {name}, and ask again: gateway doctor",
                zh: "查看 {name} 的状态页面和账户，然后再次运行：gateway doctor",
            );
            Check::warning("upstream", what, fix)
        }
    }
}

/// The clock against the upstream's.
fn clock(config: &UpstreamConfig, probe: &Probe, language: Language) -> Option<Check> {
    let apart = now().duration_since(probe.date?);
    if apart.abs() <= APART {
        return None;
    }
    let (name, seconds) = (&config.name, apart.as_secs());
    let what = said!(
        language,
        en: "it differs by {seconds} seconds from the one of {name}: days, prices and expiry of keys go by it",
        zh: "与 {name} 的时钟相差 {seconds} 秒：日期、价格和密钥的有效期都依赖它",
    );
    let fix = said!(language, en: "set it: timedatectl set-ntp true", zh: "校准时钟：timedatectl set-ntp true");
    Some(Check::warning("clock", what, fix))
}
