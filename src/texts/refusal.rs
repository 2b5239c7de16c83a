//! What each refusal says: what happened, whether it was charged, and what to do.

use super::{Language, Said, request, shell_word};
use crate::budget::{Limit, Owner, Period};
use crate::hold::{Form, Shortfall, Unquoted};
use crate::limits::{Limited, What, Whose};
use crate::refusal::{BUSY_RETRY, FULL_RETRY, HELD_RETRY, Refusal, UpstreamFault, in_seconds, is_held, receipt};
use crate::said;

/// The message of a refusal.
pub fn message(refusal: &Refusal, language: Language) -> Said {
    match refusal {
        Refusal::Malformed(ambiguity) => said!(
            language,
            en: "This request is not taken: {why}. Nothing was sent.",
            zh: "不接受此请求：{why}。未转发任何内容。",
            why = request::head(*ambiguity, language),
        ),
        Refusal::Call(error) => request::body(error, language),
        Refusal::TooLarge { limit } => said!(
            language,
            en: "The request is larger than this gateway takes ({limit} bytes decompressed). Send less, or ask its operator to raise [server] max_body.",
            zh: "请求超过此网关接受的大小（解压后 {limit} 字节）。请减小请求，或请管理员调大 [server] max_body。",
        ),
        Refusal::BodyLost => said!(
            language,
            en: "The request body did not arrive whole and in time. Send it again.",
            zh: "请求体没有完整、及时地到达。请重新发送。",
        ),
        Refusal::Coding(why) => said!(
            language,
            en: "The request cannot be read: {why}.",
            zh: "无法读取请求：{why}。",
            why = request::coding(*why, language),
        ),
        Refusal::BadKey => said!(
            language,
            en: "This is not a valid key of this gateway. Send 'Authorization: Bearer sk-gw-…' with a key that its operator issued to you (gateway key issue).",
            zh: "这不是此网关的有效密钥。请用管理员签发给您的密钥（gateway key issue）发送 'Authorization: Bearer sk-gw-…'。",
        ),
        Refusal::ForeignKey(whose) => said!(
            language,
            en: "This looks like {whose}. This gateway takes its own keys, which start with sk-gw-: ask its operator for one.",
            zh: "这看起来是{whose}。此网关只接受自己的密钥，以 sk-gw- 开头：请向管理员索取。",
            whose = request::token(*whose, language),
        ),
        Refusal::TooManyFailures { wait } => said!(
            language,
            en: "Too many tokens from this address were no valid key of this gateway, and this was none either. Check the key (it starts with sk-gw-), and try again in {after}s.",
            zh: "来自此地址的无效密钥过多，这个也不是此网关的有效密钥。请检查密钥（以 sk-gw- 开头），并在 {after}s 后重试。",
            after = in_seconds(*wait).as_secs(),
        ),
        Refusal::Full => said!(
            language,
            en: "This gateway has as many connections or calls as it takes. Nothing was sent and nothing charged. Please try again in {after}s; its operator can raise [server] max_connections.",
            zh: "此网关的连接数或调用数已达上限。未转发任何内容，也未收费。请在 {after}s 后重试；管理员可调大 [server] max_connections。",
            after = FULL_RETRY.as_secs(),
        ),
        Refusal::Crowded => said!(
            language,
            en: "There are as many connections from this address as one may have here. Close some, or try again in {after}s; the operator can raise [server] max_connections_per_address, or name a proxy in trusted_proxies.",
            zh: "来自此地址的连接数已达上限。请关闭一些连接，或在 {after}s 后重试；管理员可调大 [server] max_connections_per_address，或将代理写入 trusted_proxies。",
            after = FULL_RETRY.as_secs(),
        ),
        Refusal::Ip => said!(
            language,
            en: "This key may not be used from this address. Ask the operator of this gateway to allow it.",
            zh: "不允许从此地址使用这个密钥。请让此网关的管理员放行该地址。",
        ),
        Refusal::Suspended { user } => said!(
            language,
            en: "The user {user} is suspended. Ask the operator of this gateway to run: gateway user activate {user}",
            zh: "用户 {user} 已被停用。请让此网关的管理员运行：gateway user activate {user}",
        ),
        Refusal::NoModel { model, nearest } => match nearest {
            Some(nearest) => said!(
                language,
                en: "The model '{model}' is not offered here to this key. The nearest that it may use is '{nearest}'; GET /v1/models lists all.",
                zh: "此处不向这个密钥提供模型 '{model}'。它可用的最接近的模型是 '{nearest}'；GET /v1/models 列出全部。",
            ),
            None => said!(
                language,
                en: "The model '{model}' is not offered here to this key. GET /v1/models lists what it may use.",
                zh: "此处不向这个密钥提供模型 '{model}'。GET /v1/models 列出它可用的模型。",
            ),
        },
        Refusal::Unpriced {
            model,
            priced_as,
            list,
            nearest,
        } => unpriced(model, priced_as, list, nearest.as_deref(), language),
        Refusal::NotYours { param, id } => said!(
            language,
            en: "{param}: '{id}' is not known to be made by this user through this gateway. Send its content in 'input' instead.",
            zh: "{param}：没有记录表明 '{id}' 是此用户经由此网关产生的。请改为在 'input' 中发送其内容。",
        ),
        Refusal::NoObject { id } => said!(
            language,
            en: "'{id}' is not known to be made by this user through this gateway.",
            zh: "没有记录表明 '{id}' 是此用户经由此网关产生的。",
        ),
        Refusal::StillRuns { id } => said!(
            language,
            en: "'{id}' is still running, and what it costs is known only at its end. POST /v1/responses/{id}/cancel ends it; then it can be deleted.",
            zh: "'{id}' 仍在进行，其费用在结束时才知道。POST /v1/responses/{id}/cancel 会结束它；之后即可删除。",
        ),
        Refusal::TooManyInBackground { most } => said!(
            language,
            en: "{most} background responses of this user are running, which is the most. Wait for some to end, or cancel some.",
            zh: "此用户已有 {most} 个后台响应正在进行，这是上限。请等待其中一些结束，或取消一些。",
        ),
        Refusal::TooManyObjects { most } => said!(
            language,
            en: "This user has {most} of these already. Delete some first.",
            zh: "此用户已有 {most} 个。请先删除一些。",
        ),
        Refusal::TooManyReferences { most } => said!(
            language,
            en: "The request refers to more than {most} earlier items. Send their content in 'input' instead.",
            zh: "请求引用了超过 {most} 个之前的项。请改为在 'input' 中发送其内容。",
        ),
        Refusal::UnpricedTool(Unquoted::Untold(form)) => {
            let (name, instead) = match form {
                Form::Response => ("response_format", "'json' (/v1/audio/translations: 'verbose_json')"),
                Form::Stream => ("stream_format", "'sse'"),
            };
            said!(
                language,
                en: "{name}: in this form the answer does not tell what it used, so it cannot be billed here. Ask for {instead}.",
                zh: "{name}：这种形式的回答不说明用量，无法在这里计费。请改用 {instead}。",
            )
        }
        Refusal::UnpricedTool(why) => said!(
            language,
            en: "A hosted tool of this request cannot be billed here: {why}. Leave the tool out, or ask the operator of this gateway to set its price.",
            zh: "此请求的一个托管工具无法在此计费：{why}。请去掉该工具，或请此网关的管理员设置其价格。",
            why = request::tool(why, language),
        ),
        Refusal::Question { param, why } => said!(
            language,
            en: "{param}: {why}.",
            zh: "{param}：{why}。",
            why = request::question(why, language),
        ),
        Refusal::NoReceipt => said!(
            language,
            en: "This key made no request with that id here whose answer has ended. The id is the x-request-id of the answer, or the id in its body; GET /v1/gateway/requests lists them.",
            zh: "这个密钥没有此编号且回答已结束的请求。编号是回答的 x-request-id，或其内容中的 id；GET /v1/gateway/requests 列出它们。",
        ),
        Refusal::NoSession => said!(
            language,
            en: "This key made no request in a session of that id whose answer has ended. GET /v1/gateway/sessions lists them.",
            zh: "这个密钥在此编号的会话中没有回答已结束的请求。GET /v1/gateway/sessions 列出它们。",
        ),
        Refusal::TooMuch => said!(
            language,
            en: "That is more than is read for one answer. Ask for a shorter span of time, or for fewer groups.",
            zh: "这超出了一次回答所读取的数量。请缩短时间范围，或减少分组。",
        ),
        Refusal::NoCode => said!(
            language,
            en: "There is no such code to redeem: it may be mistyped, revoked, expired or used. Ask whoever gave it to you for another.",
            zh: "没有可兑换的这个码：可能输入有误、已撤销、已过期或已使用。请向给你此码的人要另一个。",
        ),
        Refusal::TooManyTries { wait } => said!(
            language,
            en: "This key tried too many codes that cannot be redeemed. Please try again in {after}s.",
            zh: "这个密钥尝试了太多无法兑换的码。请在 {after}s 后重试。",
            after = wait.as_secs(),
        ),
        Refusal::RateLimited { name, limit, wait } => said!(
            language,
            en: "Rate limit reached for {of}: {many}. Please try again in {after}s.",
            zh: "{of}已达到速率限制：{many}。请在 {after}s 后重试。",
            of = whose(name, *limit, language),
            many = many(*limit, language),
            after = wait.as_secs(),
        ),
        Refusal::TooManyTokens { name, limit, needed } => said!(
            language,
            en: "This call is too large for the rate limit of {of}: {many}, and it needs {needed}. Send less, state a smaller output limit, or ask the operator of this gateway for a larger rate limit; sent again as it is, it is refused again.",
            zh: "此调用超出{of}的速率限制：{many}，而它需要 {needed} 个。请减少内容、给出更小的输出上限，或请此网关的管理员调大速率限制；原样重发仍会被拒绝。",
            of = whose(name, *limit, language),
            many = many(*limit, language),
        ),
        Refusal::Short { user, limit, shortfall } => short(user, *limit, shortfall, language),
        Refusal::IdempotencyKey => said!(
            language,
            en: "Idempotency-Key is one header of 1 to 255 printable ASCII characters; over a WebSocket, it is `ws_request_header_idempotency_key` in the `client_metadata` of each create. Nothing was sent.",
            zh: "Idempotency-Key 是一个请求头，由 1 到 255 个可打印的 ASCII 字符组成；在 WebSocket 上，它是每个 create 的 `client_metadata` 中的 `ws_request_header_idempotency_key`。未转发任何内容。",
        ),
        Refusal::InProgress { exchange } => said!(
            language,
            en: "The call with this Idempotency-Key is still running, as {exchange}. Nothing was sent. Please try again in {after}s.",
            zh: "带有此 Idempotency-Key 的调用仍在进行，编号 {exchange}。未转发任何内容。请在 {after}s 后重试。",
            after = HELD_RETRY.as_secs(),
        ),
        Refusal::AlreadyDone { exchange, charge } => said!(
            language,
            en: "The call with this Idempotency-Key is done and was charged {charge:#}. Nothing was sent or charged again. GET {receipt} is its receipt; another call needs another Idempotency-Key.",
            zh: "带有此 Idempotency-Key 的调用已完成，费用 {charge:#}。没有再次转发，也没有再次计费。GET {receipt} 是它的收据；另一个调用需要另一个 Idempotency-Key。",
            receipt = receipt(*exchange),
        ),
        Refusal::IdempotencyMismatch => said!(
            language,
            en: "This Idempotency-Key came with another call before. Nothing was sent. Another call needs another Idempotency-Key.",
            zh: "此 Idempotency-Key 之前用于另一个调用。未转发任何内容。另一个调用需要另一个 Idempotency-Key。",
        ),
        Refusal::NotSupported { endpoint } => said!(
            language,
            en: "{endpoint} is not offered by this gateway: what it costs, or whose answers and files it touches, cannot be metered here. Nothing was sent.",
            zh: "此网关不提供 {endpoint}：它的费用，或它涉及谁的回答和文件，无法在此计量。未转发任何内容。",
        ),
        Refusal::NoRoute { endpoint } => said!(
            language,
            en: "There is no {endpoint} here. This gateway serves POST /v1/responses, /v1/chat/completions, /v1/completions, /v1/embeddings, GET /v1/models and GET /v1/gateway/me; GET /openapi.json describes all it serves.",
            zh: "此处没有 {endpoint}。此网关提供 POST /v1/responses、/v1/chat/completions、/v1/completions、/v1/embeddings、GET /v1/models 和 GET /v1/gateway/me；GET /openapi.json 描述其全部接口。",
        ),
        Refusal::Method { allowed } => said!(
            language,
            en: "This path takes {allowed} here.",
            zh: "此路径在此只接受 {allowed}。",
        ),
        Refusal::UpgradeRequired => said!(
            language,
            en: "GET /v1/responses is for a WebSocket, which the request does not ask for in a way that is understood, or which is switched off here ([server] websocket). POST /v1/responses answers with server-sent events.",
            zh: "GET /v1/responses 用于 WebSocket；请求没有以可理解的方式要求 WebSocket，或此处已将其关闭（[server] websocket）。POST /v1/responses 以 server-sent events 回答。",
        ),
        Refusal::OneAtATime => said!(
            language,
            en: "A response is under way on this WebSocket, which answers one create after the other. Wait for its end, or open another connection.",
            zh: "此 WebSocket 上有一个 response 正在进行；它逐个回答 create。请等待其结束，或打开另一个连接。",
        ),
        Refusal::NoPrevious { id } => said!(
            language,
            en: "previous_response_id: this connection does not remember '{id}'; it remembers its last response. Send the conversation's items in 'input' instead.",
            zh: "previous_response_id：此连接没有记住 '{id}'；它只记住最近的一个 response。请改为在 'input' 中发送对话的各项。",
        ),
        Refusal::Busy => said!(
            language,
            en: "The gateway takes no more calls at the moment. Please try again in {after}s.",
            zh: "网关此刻不再接受更多调用。请在 {after}s 后重试。",
            after = BUSY_RETRY.as_secs(),
        ),
        Refusal::Storage => said!(
            language,
            en: "The gateway cannot write its books at the moment, so it takes no calls. Nothing was charged. Please try again.",
            zh: "网关此刻无法写入账本，因此不接受调用。未产生费用。请重试。",
        ),
        Refusal::Unsettled => said!(
            language,
            en: "The gateway failed while it wrote down this call, so it is not known whether it was charged. Its receipt will tell, once the gateway runs again.",
            zh: "网关在记录此调用时出错，因此不知道是否已计费。网关恢复运行后，收据会说明。",
        ),
        Refusal::ShuttingDown => said!(
            language,
            en: "The gateway is being restarted. Nothing was charged. Please try again.",
            zh: "网关正在重启。未产生费用。请重试。",
        ),
        Refusal::Upstream(fault) => said!(
            language,
            en: "{what} Nothing was charged.",
            zh: "{what}未产生费用。",
            what = self::fault(*fault, language),
        ),
        Refusal::Internal => said!(
            language,
            en: "The gateway failed on this request; its log says why. Nothing was charged.",
            zh: "网关在处理此请求时出错；原因见其日志。未产生费用。",
        ),
    }
}

/// `x-codex-promo-message`, of refusals that have one: Codex shows it, and goes on after it. So it is ASCII, hence
/// English, and has no final dot.
pub fn promo(refusal: &Refusal) -> Option<String> {
    let Refusal::Short { user, limit, shortfall } = refusal else {
        return None;
    };
    if is_held(shortfall) {
        return None;
    }
    let why = gone(user, *limit, shortfall, Language::English);
    let promo = match limit {
        Limit::Balance => format!("{why} Ask the operator of this gateway for credit for {user}"),
        Limit::Budget { .. } => format!("{why} Ask the operator of this gateway for a larger budget"),
    };
    Some(
        promo
            .chars()
            .filter(|c| c.is_ascii() && !c.is_ascii_control())
            .collect(),
    )
}

fn unpriced(model: &str, priced_as: &str, list: &str, nearest: Option<&str>, language: Language) -> Said {
    let hint = nearest.map_or_else(Said::default, |nearest| {
        said!(
            language,
            en: " The nearest priced model is '{nearest}'.",
            zh: "最接近的有价格的模型是 '{nearest}'。",
        )
    });
    let priced_as = shell_word(priced_as);
    said!(
        language,
        en: "The model '{model}' has no price here, so it is not offered; nothing was charged.{hint} The operator of this gateway can run: gateway price set {priced_as} --list {list} --input USD --output USD",
        zh: "模型 '{model}' 在此没有价格，因此不提供；未产生费用。{hint}此网关的管理员可以运行：gateway price set {priced_as} --list {list} --input USD --output USD",
    )
}

fn short(user: &str, limit: Limit, short: &Shortfall, language: Language) -> Said {
    if !is_held(short) {
        let (why, command) = (gone(user, limit, short, language), more(user, limit));
        return said!(
            language,
            en: "{why} Ask the operator of this gateway to run: {command}",
            zh: "{why}请让此网关的管理员运行：{command}",
        );
    }
    let Shortfall {
        needed,
        available,
        held,
        ..
    } = short;
    let (of, largest, after) = (
        of(user, limit, language),
        largest_limit(short, language),
        HELD_RETRY.as_secs(),
    );
    said!(
        language,
        en: "Rate limit reached for {user}: this call needs up to {needed:#}, and of the {of} {available:#} is available while running calls hold {held:#}.{largest} Please try again in {after}s.",
        zh: "{user} 已达到速率限制：此调用最多需要 {needed:#}，{of}可用 {available:#}，正在进行的调用占用 {held:#}。{largest}请在 {after}s 后重试。",
    )
}

/// That the money is gone, the largest limit that it pays for, and when there is more by itself.
fn gone(user: &str, limit: Limit, short: &Shortfall, language: Language) -> Said {
    let Shortfall {
        needed,
        available,
        held,
        ..
    } = short;
    let (of, largest) = (of(user, limit, language), largest_limit(short, language));
    let resets = limit.resets_at().map_or_else(
        Said::default,
        |at| said!(language, en: " It is whole again at {at}.", zh: "它将于 {at} 恢复。"),
    );
    said!(
        language,
        en: "The {of} does not pay for this call: it needs up to {needed:#}, {available:#} is available and {held:#} is held by running calls.{resets}{largest}",
        zh: "此调用最多需要 {needed:#}，而{of}不足以支付：可用 {available:#}，正在进行的调用占用 {held:#}。{resets}{largest}",
    )
}

/// What a call did not fit into, as a part of a sentence.
fn of(user: &str, limit: Limit, language: Language) -> Said {
    let Limit::Budget { owner, period, .. } = limit else {
        return said!(language, en: "balance of {user}", zh: " {user} 的余额");
    };
    let period = match period {
        Period::Total => said!(language, en: "in total", zh: "总预算"),
        Period::Day => said!(language, en: "for a day", zh: "每日预算"),
        Period::Month => said!(language, en: "for a month", zh: "每月预算"),
    };
    match owner {
        Owner::User => said!(language, en: "budget of {user} {period}", zh: " {user} 的{period}"),
        Owner::Key => said!(language, en: "budget of this key {period}", zh: "此密钥的{period}"),
    }
}

/// Who has a rate limit, as a part of a sentence.
fn whose(name: &str, limit: Limited, language: Language) -> Said {
    match limit.whose {
        Whose::Key => said!(language, en: "this key ('{name}')", zh: "此密钥（'{name}'）"),
        Whose::User => said!(language, en: "{name}, all keys together", zh: "{name}（所有密钥合计）"),
        Whose::Model => {
            said!(language, en: "the model '{name}', everybody together", zh: "模型 '{name}'（所有人合计）")
        }
    }
}

/// A rate limit, as a part of a sentence.
fn many(limit: Limited, language: Language) -> Said {
    let Limited { what, limit, .. } = limit;
    match what {
        What::Requests => said!(language, en: "{limit} requests a minute", zh: "每分钟 {limit} 个请求"),
        What::Tokens => said!(language, en: "{limit} tokens a minute", zh: "每分钟 {limit} 个 token"),
        What::Calls => said!(language, en: "{limit} calls at once", zh: "同时 {limit} 个调用"),
    }
}

/// The command that lets a user or a key spend more.
fn more(user: &str, limit: Limit) -> String {
    match limit {
        Limit::Balance => format!("gateway user credit {user} AMOUNT"),
        Limit::Budget { owner, period, .. } => match owner {
            Owner::User => format!("gateway user set {user} --budget AMOUNT/{period}"),
            Owner::Key => format!("gateway key set KEY --budget AMOUNT/{period}"),
        },
    }
}

fn largest_limit(short: &Shortfall, language: Language) -> Said {
    let Some(limit) = short.largest_limit else {
        return Said::default();
    };
    let limit = limit.get();
    said!(
        language,
        en: " The largest output limit that fits is {limit} tokens.",
        zh: "可用的最大输出上限是 {limit} 个 token。",
    )
}

fn fault(fault: UpstreamFault, language: Language) -> Said {
    match fault {
        UpstreamFault::Unreachable => said!(language, en: "The upstream cannot be reached.", zh: "无法连接上游。"),
        UpstreamFault::Timeout => said!(language, en: "The upstream did not answer in time.", zh: "上游没有及时回答。"),
        UpstreamFault::Broken => said!(language, en: "The upstream's answer broke off.", zh: "上游的回答中断了。"),
        UpstreamFault::TooLong => said!(
            language,
            en: "The upstream's answer is longer than this gateway takes ([server] max_response). Images and sound are charged all the same: see the receipt.",
            zh: "上游的回答超过此网关接受的长度（[server] max_response）。图像和声音仍会计费：请查看收据。",
        ),
        UpstreamFault::Undecodable => said!(
            language,
            en: "The upstream's answer cannot be read: it is compressed otherwise than it says, or is none of its endpoint's. Images and sound are charged all the same: see the receipt.",
            zh: "无法读取上游的回答：其压缩与声明不符，或它不是该接口的回答。图像和声音仍会计费：请查看收据。",
        ),
        UpstreamFault::Redirect => said!(
            language,
            en: "The upstream answered with a redirect, which this gateway does not follow.",
            zh: "上游返回了重定向，此网关不跟随重定向。",
        ),
        UpstreamFault::Credential => said!(
            language,
            en: "The upstream refused this gateway's own credential; its operator has to mend that.",
            zh: "上游拒绝了此网关自己的凭证；需要管理员处理。",
        ),
        UpstreamFault::Quota { .. } => said!(
            language,
            en: "The upstream account of this gateway takes no more calls at the moment; its operator has to mend that.",
            zh: "此网关的上游账户此刻不再接受调用；需要管理员处理。",
        ),
        UpstreamFault::Overloaded { .. } => said!(language, en: "The upstream is overloaded.", zh: "上游过载。"),
        UpstreamFault::Resting { .. } => said!(
            language,
            en: "The upstream keeps failing and is left alone for a moment.",
            zh: "上游连续出错，暂时停用片刻。",
        ),
        UpstreamFault::Full => said!(
            language,
            en: "As many calls are under way at the upstream as the gateway allows.",
            zh: "正在上游进行的调用已达网关允许的上限。",
        ),
        UpstreamFault::Failed => said!(language, en: "The upstream failed.", zh: "上游出错。"),
    }
}
