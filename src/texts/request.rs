//! What is wrong with a request: its head, its body, its parameters.

use super::{Language, Said};
use crate::call::{BodyProblem, CallError, Instead, Problem, Wanted};
use crate::hold::Unquoted;
use crate::key::Foreign;
use crate::refusal::{Ambiguity, Unreadable, Wrong};
use crate::said;

/// What is wrong with a body, and what to change.
pub(super) fn body(error: &CallError, language: Language) -> Said {
    match error {
        CallError::Body(problem) => match problem {
            BodyProblem::NotUtf8 => said!(
                language,
                en: "The request body is not UTF-8. Send JSON in UTF-8.",
                zh: "请求体不是 UTF-8。请发送 UTF-8 编码的 JSON。",
            ),
            BodyProblem::NotJson { line, column } => said!(
                language,
                en: "The request body is not valid JSON (line {line}, column {column}). Send one JSON object, in UTF-8.",
                zh: "请求体不是有效的 JSON（第 {line} 行，第 {column} 列）。请发送一个 UTF-8 编码的 JSON 对象。",
            ),
            BodyProblem::NotAnObject => said!(
                language,
                en: "The request body is JSON, but not an object. Send an object such as {{\"model\": …}}.",
                zh: "请求体是 JSON，但不是对象。请发送对象，例如 {{\"model\": …}}。",
            ),
            BodyProblem::NotAForm => said!(
                language,
                en: "The body is not a form (multipart/form-data) that can be read in one way only: its boundary, and each part with its name, have to be plain",
                zh: "请求体不是只有一种读法的表单（multipart/form-data）：边界以及每个部分及其名称都必须明确",
            ),
            BodyProblem::TooManyParameters { most } => said!(
                language,
                en: "The request has more than {most} parameters. Leave out those that are not OpenAI's.",
                zh: "请求的参数超过 {most} 个。请去掉不属于 OpenAI 的参数。",
            ),
        },
        CallError::Param { name, problem } => parameter(name, problem, language),
    }
}

fn parameter(name: &str, problem: &Problem, language: Language) -> Said {
    match problem {
        Problem::NoModel => said!(
            language,
            en: "The request names no model. Set `{name}`; GET /v1/models lists what this key may use.",
            zh: "请求没有指明模型。请设置 `{name}`；GET /v1/models 列出此密钥可用的模型。",
        ),
        Problem::NotAModel => said!(
            language,
            en: "`{name}` must be the name of a model; GET /v1/models lists what this key may use.",
            zh: "`{name}` 必须是模型的名称；GET /v1/models 列出此密钥可用的模型。",
        ),
        Problem::Miswritten => said!(
            language,
            en: "A parameter is `{name}` but for the case of its letters. Write `{name}`.",
            zh: "有一个参数与 `{name}` 只有大小写不同。请写成 `{name}`。",
        ),
        Problem::Unclear { what } => said!(
            language,
            en: "Servers read the `{what}` of the form's part `{name}` in different ways. Write it plainly, text in UTF-8, or leave it out.",
            zh: "不同的服务器对表单中 `{name}` 部分的 `{what}` 读法不同。请写得明确（文本用 UTF-8），或去掉它。",
        ),
        Problem::Repeated => said!(
            language,
            en: "`{name}` appears more than once. Send it once.",
            zh: "`{name}` 出现了不止一次。请只发送一次。",
        ),
        Problem::Type(wanted) => said!(
            language,
            en: "`{name}` must be {wanted}.",
            zh: "`{name}` 必须是{wanted}。",
            wanted = self::wanted(*wanted, language),
        ),
        Problem::Zero => said!(language, en: "`{name}` must be at least 1.", zh: "`{name}` 至少为 1。"),
        Problem::Above { most } => said!(
            language,
            en: "`{name}` must be at most {most}.",
            zh: "`{name}` 不得超过 {most}。",
        ),
        Problem::NotOneOf(words) => said!(
            language,
            en: "`{name}` must be one of {words}.",
            zh: "`{name}` 必须是以下之一：{words}。",
            words = words.join(", "),
        ),
        Problem::TooDeep => said!(
            language,
            en: "`{name}` is nested more than 128 levels deep; flatten it.",
            zh: "`{name}` 的嵌套超过 128 层；请减少层数。",
        ),
        Problem::BrokenText => said!(
            language,
            en: "`{name}` holds a string with half of a surrogate pair (a cut emoji), or a number out of range; send whole characters.",
            zh: "`{name}` 中有半个代理对（被截断的 emoji）或超出范围的数字；请发送完整的字符。",
        ),
        Problem::Unsupported(instead) => said!(
            language,
            en: "`{name}` is not supported by this gateway. {instead}",
            zh: "此网关不支持 `{name}`。{instead}",
            instead = self::instead(*instead, language),
        ),
        Problem::Untranslatable { item, to } => said!(
            language,
            en: "`{item}` (at `{name}`) has no counterpart in {to}, which is all that this model's upstream takes. Leave it out, or use another model.",
            zh: "`{item}`（位于 `{name}`）在 {to} 中没有对应，而此模型的上游只接受该接口。请去掉它，或使用其他模型。",
            to = to.path(),
        ),
    }
}

fn wanted(wanted: Wanted, language: Language) -> Said {
    match wanted {
        Wanted::Text => said!(language, en: "a string", zh: "字符串"),
        Wanted::Bool => said!(language, en: "true or false", zh: " true 或 false"),
        Wanted::Count => said!(language, en: "a whole number, at least 1", zh: "不小于 1 的整数"),
        Wanted::Object => said!(language, en: "an object", zh: "对象"),
        Wanted::List => said!(language, en: "a list", zh: "列表"),
        Wanted::TextOrList => said!(language, en: "a string or a list", zh: "字符串或列表"),
        Wanted::TextOrObject => {
            said!(language, en: "a string or an object with an `id`", zh: "字符串或含有 `id` 的对象")
        }
        Wanted::Messages => said!(language, en: "a list of messages", zh: "消息列表"),
        Wanted::Tools => said!(language, en: "a list of tools", zh: "工具列表"),
        Wanted::Functions => said!(language, en: "a list of functions", zh: "函数列表"),
    }
}

fn instead(instead: Instead, language: Language) -> Said {
    match instead {
        Instead::PostResponse => said!(
            language,
            en: "Background responses are made by `POST /v1/responses` over HTTP. Leave it out, or make the call there.",
            zh: "后台响应须通过 HTTP 的 `POST /v1/responses` 创建。请去掉它，或改在那里调用。",
        ),
        Instead::SendPrompt => said!(
            language,
            en: "Send the prompt's text in `instructions` or `input` instead.",
            zh: "请改为在 `instructions` 或 `input` 中发送提示的文本。",
        ),
        Instead::SetMaxTokens => said!(
            language,
            en: "It would override the limit that is paid for. Set `max_tokens` instead.",
            zh: "它会越过已付费的上限。请改为设置 `max_tokens`。",
        ),
        Instead::OneModel => said!(
            language,
            en: "A call is priced by one model and its tools: name the model in `model`.",
            zh: "一次调用按一个模型及其工具计价：请在 `model` 中指明模型。",
        ),
        Instead::SendContent => said!(
            language,
            en: "Containers, vector stores, skills and files for tools are not kept apart by user. Send the content itself.",
            zh: "容器、向量库、技能和供工具使用的文件不按用户隔离。请直接发送内容本身。",
        ),
        Instead::OneAtATime => said!(
            language,
            en: "A connection answers one create after the other. Leave it out, and open another connection for what is to run beside it.",
            zh: "一个连接逐个回答 create。请去掉它；需要同时进行的，请打开另一个连接。",
        ),
        Instead::OneImageModel => said!(
            language,
            en: "Two image generation tools name different models. Send one.",
            zh: "两个图像生成工具指明了不同的模型。请只发送一个。",
        ),
    }
}

/// How a head may be read in two ways, as the middle of a sentence.
pub(super) fn head(ambiguity: Ambiguity, language: Language) -> Said {
    match ambiguity {
        Ambiguity::Proxy => said!(
            language,
            en: "this is no proxy, and takes neither CONNECT nor TRACE",
            zh: "这不是代理，不接受 CONNECT 和 TRACE",
        ),
        Ambiguity::NoHost => said!(language, en: "it has no Host", zh: "没有 Host"),
        Ambiguity::Hosts => said!(language, en: "it has more than one Host", zh: "有不止一个 Host"),
        Ambiguity::NotAHost => said!(language, en: "its Host is not the name of a host", zh: "Host 不是主机名"),
        Ambiguity::OtherServer => said!(
            language,
            en: "its target names another server than its Host",
            zh: "目标与 Host 指向不同的服务器",
        ),
        Ambiguity::NotAPath => said!(language, en: "its target is not a path", zh: "目标不是路径"),
        Ambiguity::Control => said!(
            language,
            en: "its path has a control character or a backslash",
            zh: "路径中有控制字符或反斜杠",
        ),
        Ambiguity::DoubleSlash => said!(
            language,
            en: "its path has // (does the base URL end in a slash?)",
            zh: "路径中有 //（base URL 是否以斜杠结尾？）",
        ),
        Ambiguity::Dots => said!(language, en: "its path has . or .. in it", zh: "路径中有 . 或 .."),
        Ambiguity::EncodedSlash => said!(language, en: "its path has an encoded slash", zh: "路径中有编码的斜杠"),
        Ambiguity::Repeated => said!(
            language,
            en: "it has more than one Authorization, api-key or Content-Encoding",
            zh: "有不止一个 Authorization、api-key 或 Content-Encoding",
        ),
        Ambiguity::TransferCoding => said!(
            language,
            en: "its Transfer-Encoding is not just chunked",
            zh: "Transfer-Encoding 不只是 chunked",
        ),
        Ambiguity::Expectation => said!(
            language,
            en: "it expects something other than 100-continue",
            zh: "Expect 不是 100-continue",
        ),
        Ambiguity::InTheClear => said!(
            language,
            en: "it is plain HTTP, and TLS is spoken here: use https://",
            zh: "它是明文 HTTP，而此处使用 TLS：请用 https://",
        ),
    }
}

/// Why a body cannot be read, as the middle of a sentence.
pub(super) fn coding(why: Unreadable, language: Language) -> Said {
    match why {
        Unreadable::Several => said!(
            language,
            en: "the body is encoded more than once; send it with one content coding at most (zstd, gzip, deflate or br)",
            zh: "请求体经过了多次编码；请至多使用一种内容编码（zstd、gzip、deflate 或 br）",
        ),
        Unreadable::Unknown => said!(
            language,
            en: "the content coding of the body is not understood; send it as zstd, gzip, deflate, br, or not encoded",
            zh: "不认识请求体的内容编码；请使用 zstd、gzip、deflate、br，或不编码",
        ),
        Unreadable::Header => said!(
            language,
            en: "Content-Encoding is not readable; send it as zstd, gzip, deflate, br, or leave it out",
            zh: "Content-Encoding 不可读；请使用 zstd、gzip、deflate、br，或不发送",
        ),
        Unreadable::Broken => said!(
            language,
            en: "the body is not in the content coding its header names, or is cut off",
            zh: "请求体与请求头所指明的内容编码不符，或被截断",
        ),
    }
}

/// What another service's token is, as a part of a sentence.
pub(super) fn token(whose: Foreign, language: Language) -> Said {
    match whose {
        Foreign::Key(service) => {
            let an = if service.starts_with(['A', 'O', 'x']) {
                "an"
            } else {
                "a"
            };
            said!(language, en: "{an} {service} key", zh: " {service} 的密钥")
        }
        Foreign::LikeOpenAi => said!(
            language,
            en: "a key of OpenAI or of a service like it",
            zh: " OpenAI 或类似服务的密钥",
        ),
        Foreign::OpenAiAdmin => said!(language, en: "an OpenAI admin key", zh: " OpenAI 的管理密钥"),
        Foreign::OpenAiSession => said!(language, en: "an OpenAI session token", zh: " OpenAI 的会话令牌"),
        Foreign::ChatGptSession => said!(language, en: "a ChatGPT session token", zh: " ChatGPT 的会话令牌"),
    }
}

/// Why nobody can say what a tool may cost, as the middle of a sentence.
pub(super) fn tool(why: &Unquoted, language: Language) -> Said {
    match why {
        Unquoted::NoFee(class) => said!(
            language,
            en: "the price has no fee for {class}",
            zh: "价格中没有 {class} 的费用",
        ),
        Unquoted::NoImagePrice(model) => said!(
            language,
            en: "the image model '{model}' has no price",
            zh: "图像模型 '{model}' 没有价格",
        ),
        Unquoted::Untold(_) => said!(
            language,
            en: "the answer does not tell what it used",
            zh: "回答不说明用量",
        ),
        Unquoted::TooLarge => said!(
            language,
            en: "what the call may cost does not fit",
            zh: "此调用可能的费用过大",
        ),
    }
}

/// What is wrong with a parameter of a question, as the end of a sentence.
pub(super) fn question(why: &Wrong, language: Language) -> Said {
    match why {
        Wrong::Unreadable => said!(language, en: "it does not parse", zh: "无法解析"),
        Wrong::Parameters { most } => said!(
            language,
            en: "it has more than {most} parameters",
            zh: "参数超过 {most} 个",
        ),
        Wrong::TakesNone => said!(language, en: "this path takes no parameters", zh: "此路径不接受参数"),
        Wrong::Unknown { known } => said!(
            language,
            en: "no such parameter here; there are {known}",
            zh: "此处没有这个参数；可用的有 {known}",
        ),
        Wrong::Twice => said!(language, en: "it is there more than once", zh: "出现了不止一次"),
        Wrong::Values { most } => said!(language, en: "it has more than {most} values", zh: "值超过 {most} 个"),
        Wrong::NotWithin { least, most } => said!(
            language,
            en: "it is a whole number from {least} to {most}",
            zh: "应为 {least} 到 {most} 的整数",
        ),
        Wrong::NotOneOf { words } => said!(language, en: "it is one of {words}", zh: "应为以下之一：{words}"),
        Wrong::NotATime => said!(
            language,
            en: "it is a date (2026-11-28) or a time (2026-11-28T15:04:05Z) since 1970",
            zh: "应为 1970 年以后的日期（2026-11-28）或时间（2026-11-28T15:04:05Z）",
        ),
        Wrong::NotAPage => said!(
            language,
            en: "it is what the page before gave as next_page, of the same question",
            zh: "应为同一查询的上一页给出的 next_page",
        ),
        Wrong::NotASession => said!(
            language,
            en: "it is an id that GET /v1/gateway/sessions gives",
            zh: "应为 GET /v1/gateway/sessions 给出的编号",
        ),
        Wrong::NoStart => said!(
            language,
            en: "it has to be there, in Unix seconds",
            zh: "必须给出，以 Unix 秒为单位",
        ),
        Wrong::NotBefore { end } => said!(language, en: "it is not before {end}", zh: "不早于 {end}"),
        Wrong::NotAfter { start } => said!(language, en: "it is not after {start}", zh: "不晚于 {start}"),
        Wrong::NotOneText => said!(
            language,
            en: "the body has to be a JSON object with this text and nothing else",
            zh: "请求体应为只含此文本的 JSON 对象",
        ),
        Wrong::Bytes { most } => said!(
            language,
            en: "the body has more than {most} bytes",
            zh: "请求体超过 {most} 字节",
        ),
        Wrong::TooMuchMoney => said!(
            language,
            en: "with it the balance would become too large",
            zh: "兑换后余额会过大",
        ),
        Wrong::Days { most } => said!(
            language,
            en: "it is more than {most} days before until",
            zh: "比 until 早超过 {most} 天",
        ),
    }
}
