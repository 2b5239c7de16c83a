//! What each code means, why it comes, and what to do: `gateway explain`.

use super::{Language, Said};
use crate::code::{Again, Charged, Code};
use crate::said;

/// A code, explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What it means.
    pub means: &'static str,
    /// Why it happens.
    pub why: &'static str,
    /// What the client can do.
    pub client: &'static str,
    /// What the operator can do.
    pub operator: &'static str,
}

/// What the parts of an explanation are called.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the parts")]
pub struct Labels {
    pub code: Said,
    pub means: Said,
    pub why: Said,
    pub client: Said,
    pub operator: Said,
    pub status: Said,
    pub charged: Said,
    pub again: Said,
}

impl Labels {
    /// In a language.
    pub fn new(language: Language) -> Labels {
        Labels {
            code: said!(language, en: "code", zh: "代码"),
            means: said!(language, en: "means", zh: "含义"),
            why: said!(language, en: "why", zh: "原因"),
            client: said!(language, en: "client", zh: "客户端"),
            operator: said!(language, en: "operator", zh: "管理员"),
            status: said!(language, en: "HTTP status", zh: "HTTP 状态"),
            charged: said!(language, en: "charged", zh: "计费"),
            again: said!(language, en: "again", zh: "重试"),
        }
    }
}

/// What a call that ended so cost, in words.
pub fn charged(charged: Charged, language: Language) -> Said {
    match charged {
        Charged::Nothing => said!(language, en: "nothing is charged", zh: "不产生费用"),
        Charged::Delivered => said!(language, en: "what was delivered is charged", zh: "已送达的部分计费"),
        Charged::SeeReceipt => said!(
            language,
            en: "nothing, unless the message says otherwise: then its receipt tells",
            zh: "不产生费用；若消息另有说明，则以收据为准",
        ),
    }
}

/// Whether the same request helps, in words.
pub fn again(again: Again, language: Language) -> Said {
    match again {
        Again::Never => said!(
            language,
            en: "the same request is refused again",
            zh: "同样的请求会再次被拒绝",
        ),
        Again::Later => said!(
            language,
            en: "yes, after Retry-After where it is given",
            zh: "可以；如有 Retry-After，请等待相应时间",
        ),
        Again::AfterReceipt => said!(
            language,
            en: "yes, once no receipt shows that it was charged",
            zh: "可以；先确认没有显示已计费的收据",
        ),
        Again::AfterOperator => said!(
            language,
            en: "once the operator has done something",
            zh: "需管理员处理之后",
        ),
    }
}

/// HTTP statuses in words; none: inside a stream.
pub fn statuses(statuses: &[u16], language: Language) -> Said {
    match statuses {
        [] => said!(language, en: "inside a stream that has begun", zh: "在已开始的流之中"),
        [status] => Said::verbatim(status.to_string()),
        [status, codex @ ..] => said!(
            language,
            en: "{status}; on /v1/responses {codex}",
            zh: "{status}；在 /v1/responses 上为 {codex}",
            codex = codex.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
        ),
    }
}

/// [`explain`], from the rows of a table: each code in each language, as the fields of an [`Explanation`] in their order.
macro_rules! explanations {
    ($($code:ident {
        $($language:ident: $means:literal, $why:literal, $client:literal, $operator:literal;)*
    })*) => {
        /// The explanation of a code.
        pub fn explain(code: Code, language: Language) -> Explanation {
            match (code, language) {
                $($((Code::$code, Language::$language) => Explanation {
                    means: $means,
                    why: $why,
                    client: $client,
                    operator: $operator,
                },)*)*
            }
        }
    };
}

explanations! {
    MalformedRequest {
        English:
            "The head of the request could be read in two ways, so it is not read at all.",
            "Two Host headers, an odd Transfer-Encoding, a path with .. or // in it: a proxy in front may have taken it for another request.",
            "Send one Host, one Authorization and a plain path. A base URL must not end in a slash.",
            "See what the proxy in front of the gateway makes of requests.";
        Chinese:
            "请求头可能有两种读法，因此完全不读取。",
            "有两个 Host、异常的 Transfer-Encoding，或路径中有 .. 或 //：前面的代理可能把它当成了另一个请求。",
            "只发送一个 Host、一个 Authorization 和普通的路径。base URL 不能以斜杠结尾。",
            "检查网关前面的代理如何处理请求。";
    }
    InvalidJson {
        English:
            "The body is not one JSON object in UTF-8.",
            "It was cut off, is in another encoding, or is a list or a text.",
            "Send one JSON object; the message names line and column.",
            "Nothing.";
        Chinese:
            "请求体不是一个 UTF-8 编码的 JSON 对象。",
            "它被截断、使用了其他编码，或是列表或文本。",
            "发送一个 JSON 对象；消息中指明了行和列。",
            "无需处理。";
    }
    MissingRequiredParameter {
        English:
            "A parameter is missing without which the call cannot be priced.",
            "The request names no model.",
            "Set `model`; GET /v1/models lists what the key may use.",
            "Nothing.";
        Chinese:
            "缺少一个参数，没有它就无法为调用计价。",
            "请求没有指明模型。",
            "设置 `model`；GET /v1/models 列出此密钥可用的模型。",
            "无需处理。";
    }
    UnknownParameter {
        English:
            "A parameter differs from a known one only in the case of its letters.",
            "Some upstreams would take it for the known one, others not: the call could cost something else than was set aside.",
            "Write the parameter as the message does.",
            "Nothing.";
        Chinese:
            "有一个参数与已知参数只有大小写不同。",
            "有的上游会把它当作已知参数，有的不会：调用的费用可能与预留的不同。",
            "按消息中的写法书写该参数。",
            "无需处理。";
    }
    DuplicateParameter {
        English:
            "A parameter that decides what the call costs is there twice.",
            "Upstreams differ in which of the two they take.",
            "Send it once.",
            "Nothing.";
        Chinese:
            "一个决定费用的参数出现了两次。",
            "不同的上游会取其中不同的一个。",
            "只发送一次。",
            "无需处理。";
    }
    InvalidType {
        English:
            "A parameter is of another type than it has to be.",
            "For instance a number written as a text: upstreams differ in how they read that.",
            "Send the type that the message names.",
            "Nothing.";
        Chinese:
            "一个参数的类型不对。",
            "例如把数字写成了文本：不同的上游对此有不同的读法。",
            "使用消息中指明的类型。",
            "无需处理。";
    }
    InvalidValue {
        English:
            "A parameter has a value that does not go.",
            "It is out of bounds, not one of a few words, or too many of a kind; `error.param` names it.",
            "Send a value within the bounds that the message names.",
            "Nothing.";
        Chinese:
            "一个参数的值不可用。",
            "它超出范围、不在允许的取值之中，或数量过多；`error.param` 指明是哪一个。",
            "发送消息中指明的范围内的值。",
            "无需处理。";
    }
    UnsupportedParameter {
        English:
            "A parameter or a tool of the request cannot be served or billed here.",
            "It would use state that only the upstream keeps, another model than the one priced, or a tool without a price.",
            "Leave it out, or do what the message says instead.",
            "If it is a tool, put its fee into the price of the model: gateway price set --help";
        Chinese:
            "请求中的一个参数或工具无法在此提供或计费。",
            "它会用到只有上游保存的状态、与计价模型不同的模型，或没有价格的工具。",
            "去掉它，或按消息所说的方式替代。",
            "如果是工具，请将其费用写入模型的价格：gateway price set --help";
    }
    RequestTooLarge {
        English:
            "The body is larger than the gateway takes, counted after decompression, or needs more tokens than may be used in a minute.",
            "The conversation, or a file or image in it, is larger than [server] max_body; or with its output limit it is larger than the tokens a minute of the key, the user or the model.",
            "Send less: shorten the conversation, leave out files, or state a smaller output limit.",
            "Raise [server] max_body in the settings and restart; or the tokens a minute: gateway key set KEY --tpm N, gateway user set USER --tpm N, [limits].";
        Chinese:
            "请求体超过网关接受的大小（解压后计算），或需要的 token 超过每分钟允许的数量。",
            "对话，或其中的文件或图像，大于 [server] max_body；或连同输出上限，超过密钥、用户或模型每分钟的 token 数。",
            "减少内容：缩短对话，去掉文件，或给出更小的输出上限。",
            "在设置中调大 [server] max_body 并重启；或调大每分钟的 token 数：gateway key set KEY --tpm N、gateway user set USER --tpm N、[limits]。";
    }
    IncompleteBody {
        English:
            "The body did not arrive whole and in time.",
            "The connection broke, or was slower than [server] body_timeout allows.",
            "Send the request again.",
            "Where clients are slow, raise [server] body_timeout.";
        Chinese:
            "请求体没有完整、及时地到达。",
            "连接中断，或慢于 [server] body_timeout 所允许的速度。",
            "重新发送请求。",
            "如果客户端较慢，请调大 [server] body_timeout。";
    }
    UnsupportedEncoding {
        English:
            "The body is compressed in a way that cannot be read.",
            "Content-Encoding names an unknown coding or more than one, or the body is damaged.",
            "Send it as zstd, gzip, deflate or br, or not compressed.",
            "Nothing.";
        Chinese:
            "请求体的压缩方式无法读取。",
            "Content-Encoding 指明了未知的编码或多种编码，或请求体已损坏。",
            "使用 zstd、gzip、deflate 或 br，或不压缩。",
            "无需处理。";
    }
    InvalidPrompt {
        English:
            "A refusal as it is told on /v1/responses: Codex shows the message of this code after one request.",
            "The reason is in `error.gateway.code`.",
            "Look at `error.gateway.code`, and explain that one.",
            "Look at `error.gateway.code`, and explain that one.";
        Chinese:
            "在 /v1/responses 上告知拒绝的方式：Codex 在一次请求后就会显示此代码的消息。",
            "原因在 `error.gateway.code` 中。",
            "查看 `error.gateway.code`，并解释该代码。",
            "查看 `error.gateway.code`，并解释该代码。";
    }
    InvalidApiKey {
        English:
            "The request has no valid key of this gateway.",
            "The key is missing, mistyped, revoked, expired, or another service's. Which one is not told to whoever asks.",
            "Send 'Authorization: Bearer sk-gw-…' with a key of this gateway.",
            "Look at the key, or issue another: gateway key list; gateway key issue USER";
        Chinese:
            "请求没有此网关的有效密钥。",
            "密钥缺失、有误、已吊销、已过期，或属于其他服务。具体是哪一种不会告知请求者。",
            "用此网关的密钥发送 'Authorization: Bearer sk-gw-…'。",
            "查看密钥，或另签发一个：gateway key list；gateway key issue USER";
    }
    IpNotAllowed {
        English:
            "The key is good, but may not be used from this address.",
            "The key was issued for some addresses only. Behind a proxy the address is the proxy's, unless it is trusted.",
            "Use the key from an allowed address, or ask the operator.",
            "Look at the key's addresses (gateway key show KEY), and at [server] trusted_proxies.";
        Chinese:
            "密钥有效，但不允许从此地址使用。",
            "该密钥只为某些地址签发。在代理之后，若代理不受信任，所见地址就是代理的地址。",
            "从允许的地址使用密钥，或联系管理员。",
            "查看密钥允许的地址（gateway key show KEY）和 [server] trusted_proxies。";
    }
    UserSuspended {
        English:
            "The user of the key is suspended: calls are refused, the balance and the receipts can be read.",
            "The operator suspended the user.",
            "Ask the operator.",
            "Let the user call again: gateway user activate USER";
        Chinese:
            "密钥所属的用户已被停用：调用会被拒绝，余额和收据仍可读取。",
            "管理员停用了该用户。",
            "联系管理员。",
            "恢复该用户：gateway user activate USER";
    }
    ModelNotFound {
        English:
            "The model is not offered to this key.",
            "No upstream serves it, the key may not use it, or it has no price: there is no default price.",
            "Take a model of GET /v1/models.",
            "See what has no price: gateway price check. Set one: gateway price set MODEL --input USD --output USD";
        Chinese:
            "不向此密钥提供该模型。",
            "没有上游提供它、密钥不可使用它，或它没有价格：不存在默认价格。",
            "使用 GET /v1/models 列出的模型。",
            "查看哪些没有价格：gateway price check。设置价格：gateway price set MODEL --input USD --output USD";
    }
    RequestNotFound {
        English:
            "This key made no request with that id whose answer has ended.",
            "The id is mistyped, another key's, or the answer still runs.",
            "Take the x-request-id of the answer; GET /v1/gateway/requests lists them.",
            "Look it up: gateway request show ID";
        Chinese:
            "此密钥没有此编号且回答已结束的请求。",
            "编号有误、属于其他密钥，或回答仍在进行。",
            "使用回答的 x-request-id；GET /v1/gateway/requests 列出它们。",
            "查询：gateway request show ID";
    }
    ReportTooLarge {
        English:
            "The question is about more than is read for one answer.",
            "Too many rows or groups lie in the span of time: reading must not delay calls.",
            "Ask for a shorter span of time, or for fewer groups.",
            "The command line has no such bound: gateway usage";
        Chinese:
            "所问的数据超出一次回答所读取的数量。",
            "该时间范围内的行或分组过多：读取不得拖慢调用。",
            "缩短时间范围，或减少分组。",
            "命令行没有此限制：gateway usage";
    }
    CodeNotFound {
        English:
            "There is no such code for this user to redeem.",
            "The code is mistyped, revoked, expired, or another user redeemed it: which of these is not told.",
            "Type it again; O is read as 0, I and L as 1. Ask whoever gave it to you for another.",
            "See what became of it: gateway code list";
        Chinese:
            "没有可供此用户兑换的这个码。",
            "此码输入有误、已撤销、已过期，或已被其他用户兑换：不会说明是哪一种。",
            "重新输入；O 读作 0，I 和 L 读作 1。请向给你此码的人要另一个。",
            "查看它的状态：gateway code list";
    }
    InsufficientQuota {
        English:
            "The balance, or a budget, does not pay for the call.",
            "The most that it may cost is more than is available; `error.gateway` has limit, needed, available, held and, for a budget, resets_at.",
            "Set a lower output limit (`error.gateway.largest_limit` fits), wait until `resets_at`, or ask for more.",
            "Give more: gateway user credit USER AMOUNT; gateway user set USER --budget AMOUNT; gateway key set KEY --budget AMOUNT";
        Chinese:
            "余额或预算不足以支付此调用。",
            "其最高费用超过可用金额；`error.gateway` 中有 limit、needed、available、held，预算还有 resets_at。",
            "设置更低的输出上限（`error.gateway.largest_limit` 可行），等到 `resets_at`，或申请更多额度。",
            "增加额度：gateway user credit USER AMOUNT；gateway user set USER --budget AMOUNT；gateway key set KEY --budget AMOUNT";
    }
    RateLimitExceeded {
        English:
            "The call may go a little later.",
            "The key, its user or the model made as many requests, used as many tokens or has as many calls running as it may; or running calls hold what it needs of the balance or of a budget; or the gateway has no room for more calls at the moment; or too many connections, or too many keys that are none, came from this address. The message says which.",
            "Wait as long as Retry-After says, and send it again.",
            "If it lasts, raise the limit (gateway key set, gateway user set, [limits]), give more credit, or see whether the disk is slow: gateway doctor";
        Chinese:
            "稍后即可进行此调用。",
            "密钥、其用户或模型的请求数、token 数或同时进行的调用数已达上限；或它需要的余额或预算被正在进行的调用占用；或网关此刻没有空间接受更多调用；或来自此地址的连接或无效密钥过多。消息会说明是哪一种。",
            "等待 Retry-After 所示的时间后重新发送。",
            "如果持续出现，请调大限制（gateway key set；gateway user set；[limits]），充值，或检查磁盘是否过慢：gateway doctor";
    }
    IdempotencyInProgress {
        English:
            "The call with this Idempotency-Key is still running.",
            "It was sent again before its first answer had ended; it is made once.",
            "Wait as long as Retry-After says, and send it again.",
            "Nothing. A hold that stays open is released at the next start.";
        Chinese:
            "带有此 Idempotency-Key 的调用仍在进行。",
            "在第一次的回答结束之前又发送了一次；它只会进行一次。",
            "等待 Retry-After 所示的时间后重新发送。",
            "无需处理。一直未关闭的预扣会在下次启动时释放。";
    }
    AlreadyDone {
        English:
            "The call with this Idempotency-Key is done and was charged.",
            "It was sent again; it is charged once. `error.gateway` has exchange, charge and receipt.",
            "Read the receipt. Another call needs another Idempotency-Key.",
            "Nothing.";
        Chinese:
            "带有此 Idempotency-Key 的调用已完成并已计费。",
            "它被再次发送；只计费一次。`error.gateway` 中有 exchange、charge 和 receipt。",
            "查看收据。另一个调用需要另一个 Idempotency-Key。",
            "无需处理。";
    }
    IdempotencyMismatch {
        English:
            "Another call has this Idempotency-Key.",
            "The same key came with another body, or at another path.",
            "Send the same body again, byte for byte, or take another Idempotency-Key.",
            "Nothing.";
        Chinese:
            "此 Idempotency-Key 属于另一个调用。",
            "同一个 Idempotency-Key 附带了不同的请求体，或用于不同的路径。",
            "逐字节地重新发送同样的请求体，或使用另一个 Idempotency-Key。",
            "无需处理。";
    }
    EndpointNotSupported {
        English:
            "The endpoint is OpenAI's, but not offered by this gateway.",
            "What it costs, or whose answers and files it touches, cannot be metered here.",
            "Use /v1/responses or /v1/chat/completions; GET /openapi.json lists what is served.",
            "Nothing: no setting turns it on.";
        Chinese:
            "该接口属于 OpenAI，但此网关不提供。",
            "它的费用，或它涉及谁的回答和文件，无法在此计量。",
            "使用 /v1/responses 或 /v1/chat/completions；GET /openapi.json 列出所提供的接口。",
            "无需处理：没有可以开启它的设置。";
    }
    NotFound {
        English:
            "There is no such path, or this user made no such object here.",
            "A base URL with /v1 missing or doubled, a path that OpenAI does not have either, or the id of a response, conversation or file that is mistyped, deleted or another user's.",
            "Set the base URL to http://HOST:PORT/v1. Take an id from an answer to this user's own keys.",
            "Nothing.";
        Chinese:
            "没有这个路径，或此用户没有在这里生成该对象。",
            "base URL 缺少 /v1 或重复了 /v1，是 OpenAI 也没有的路径，或响应、会话、文件的 id 有误、已删除或属于其他用户。",
            "将 base URL 设为 http://HOST:PORT/v1。请使用此用户自己的密钥所得回答中的 id。",
            "无需处理。";
    }
    MethodNotAllowed {
        English:
            "The path takes another method.",
            "For instance GET where POST is taken.",
            "Use the method that Allow names.",
            "Nothing.";
        Chinese:
            "该路径接受的是其他方法。",
            "例如在接受 POST 的路径上使用了 GET。",
            "使用 Allow 所示的方法。",
            "无需处理。";
    }
    UpgradeRequired {
        English:
            "No WebSocket is opened: none was asked for, or the gateway has them switched off.",
            "Codex tries a WebSocket first where it is told to, and goes on without one after this answer.",
            "Send POST /v1/responses with \"stream\": true.",
            "[server] websocket = true lets clients open one.";
        Chinese:
            "没有打开 WebSocket：请求未要求，或网关已将其关闭。",
            "Codex 在设置要求时会先尝试 WebSocket，收到此回答后改用普通请求。",
            "发送 POST /v1/responses，并设置 \"stream\": true。",
            "[server] websocket = true 允许客户端打开 WebSocket。";
    }
    ResponseInProgress {
        English:
            "A response was under way: a WebSocket answers one create at a time, and a background response that runs is not deleted.",
            "The client sent another frame before the end of the answer, or deleted a background response before its end.",
            "Wait for response.completed, response.incomplete or response.failed, or open another connection; cancel a background response before deleting it.",
            "Nothing.";
        Chinese:
            "有一个 response 正在进行：一个 WebSocket 一次只回答一个 create，正在进行的后台响应也不能删除。",
            "客户端在回答结束之前发送了另一个帧，或在后台响应结束之前删除它。",
            "等待 response.completed、response.incomplete 或 response.failed，或打开另一个连接；删除后台响应之前先取消它。",
            "无需处理。";
    }
    PreviousResponseNotFound {
        English:
            "The WebSocket does not remember the response that the create leans on.",
            "A connection remembers its last response, which is gone with it, or when there is no memory for it.",
            "Send the whole conversation in `input`, without previous_response_id; Codex does so by itself.",
            "Nothing.";
        Chinese:
            "此 WebSocket 没有记住该 create 所依据的 response。",
            "连接只记住最近的一个 response；连接关闭或内存不足时会丢失。",
            "在 `input` 中发送整个对话，不带 previous_response_id；Codex 会自动这样做。",
            "无需处理。";
    }
    StorageUnavailable {
        English:
            "The gateway cannot write its books, so it takes no calls; or it failed while it wrote one down.",
            "The disk is full or failed, or the database was moved.",
            "Try again later. If the message says that it is not known whether it was charged, look for its receipt first.",
            "See what is wrong: gateway doctor. The log has the reason.";
        Chinese:
            "网关无法写入账本，因此不接受调用；或在记录一次调用时出错。",
            "磁盘已满或出错，或数据库被移动。",
            "稍后重试。若消息说明不确定是否已计费，请先查看收据。",
            "检查问题所在：gateway doctor。日志中有原因。";
    }
    ShuttingDown {
        English:
            "The gateway is being stopped and takes no new calls.",
            "It is restarted or updated.",
            "Send it again after Retry-After.",
            "Start it again: gateway serve";
        Chinese:
            "网关正在停止，不接受新的调用。",
            "正在重启或更新。",
            "等待 Retry-After 所示的时间后重新发送。",
            "重新启动：gateway serve";
    }
    UpstreamError {
        English:
            "The upstream failed, or gave an answer that cannot be passed on.",
            "It cannot be reached, broke off, refused the gateway's own credential, redirected, or answered too much.",
            "Send it again after a while.",
            "See which upstream fails and why: gateway doctor";
        Chinese:
            "上游出错，或给出了无法转发的回答。",
            "无法连接、中断、拒绝了网关自己的凭证、重定向，或回答过长。",
            "稍后重新发送。",
            "查看哪个上游出错及其原因：gateway doctor";
    }
    UpstreamTimeout {
        English:
            "The upstream did not answer in time.",
            "It is slow, or the model thinks longer than the upstream's timeouts in the settings allow.",
            "Send it again after a while; streams are given more time than whole answers.",
            "Raise the timeouts of the [[upstream]], or see whether it can be reached: gateway doctor";
        Chinese:
            "上游没有及时回答。",
            "上游较慢，或模型思考的时间超过设置中的上游超时。",
            "稍后重新发送；流式回答的时限比完整回答更长。",
            "调大 [[upstream]] 的超时，或检查能否连接：gateway doctor";
    }
    ServerIsOverloaded {
        English:
            "The upstream takes no more calls at the moment. On /v1/responses all trouble of an upstream is told so.",
            "It is overloaded, or the operator's own account there is used up; `error.gateway.code` has the reason. Or the gateway itself has as many connections as it takes.",
            "Send it again after a while.",
            "Look at the account at the upstream, and at the log; then: gateway doctor";
        Chinese:
            "上游此刻不再接受调用。在 /v1/responses 上，上游的所有问题都以此告知。",
            "上游过载，或管理员在上游的账户已用尽；原因在 `error.gateway.code` 中。也可能是网关自身的连接数已达上限。",
            "稍后重新发送。",
            "查看上游的账户和日志；然后运行：gateway doctor";
    }
    ServerError {
        English:
            "A stream ended before its answer was whole.",
            "The upstream broke off, or the gateway was stopped.",
            "Send the request again; the receipt shows what was delivered.",
            "Look at the log, and at the receipt: gateway request show ID";
        Chinese:
            "流在回答完整之前结束了。",
            "上游中断，或网关被停止。",
            "重新发送请求；收据显示已送达的部分。",
            "查看日志和收据：gateway request show ID";
    }
    InternalError {
        English:
            "The gateway failed on this request.",
            "A fault of the gateway itself.",
            "Tell the operator the x-request-id.",
            "Look for the x-request-id in the log, and report it.";
        Chinese:
            "网关在处理此请求时出错。",
            "网关自身的故障。",
            "将 x-request-id 告知管理员。",
            "在日志中查找 x-request-id，并报告该问题。";
    }
}
