//! Refusals: why the gateway does not forward a call, and the one table of how each is told to the client.
//!
//! OpenAI's shape everywhere. On `/v1/responses` some rows differ, because of how Codex reads them: it repeats 403,
//! 413, 502 and 504 up to thirty times, shows the message of a 400 `invalid_prompt` and of a 404 `model_not_found`
//! after one request, and that of a 429 only through `x-codex-promo-message`.

use std::time::Duration;

use serde::Serialize;

use crate::call::{CallError, Endpoint};
use crate::hold::Shortfall;
use crate::money::Usd;
use crate::usage::Tokens;

/// Why a call is not forwarded, or its answer not passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The head of the request may be read in two ways; its connection is closed.
    Malformed(&'static str),
    /// The body is no call that can be billed.
    Call(CallError),
    /// The body is larger than the setting, in bytes decompressed.
    TooLarge {
        /// The setting.
        limit: usize,
    },
    /// The body did not come in time, or not whole.
    BodyLost,
    /// The body's content coding is not understood, or it does not decode.
    Coding(String),
    /// No key, or none that is good: one answer for all.
    BadKey,
    /// A token that is plainly another service's.
    ForeignKey(&'static str),
    /// The key may not be used from this address.
    Ip,
    /// The user is suspended.
    Suspended {
        /// Who.
        user: String,
    },
    /// No upstream serves the model, or the key may not use it.
    NoModel {
        /// What was asked for.
        model: String,
        /// The nearest that the key may use.
        nearest: Option<String>,
    },
    /// An upstream serves the model, but nothing says what it costs.
    Unpriced {
        /// What was asked for.
        model: String,
        /// What would have to be priced.
        priced_as: String,
        /// Where.
        list: String,
        /// The nearest that has a price.
        nearest: Option<String>,
    },
    /// State at the upstream that is not shown to be this user's.
    NotYours {
        /// The field.
        param: &'static str,
        /// The id in it.
        id: String,
    },
    /// More earlier answers and items than are looked up for one call.
    TooManyReferences {
        /// How many are.
        most: usize,
    },
    /// A hosted tool whose cost cannot be set aside.
    UnpricedTool(String),
    /// A question about usage that is not understood.
    Question {
        /// The parameter.
        param: String,
        /// What is wrong with it.
        why: String,
    },
    /// No exchange of this key has that id.
    NoReceipt,
    /// What was asked about is more than one answer reads.
    TooMuch,
    /// The room does not pay for the call.
    Short {
        /// Whose.
        user: String,
        /// How much is missing.
        shortfall: Shortfall,
    },
    /// The endpoint is not metered here.
    NotSupported {
        /// Method and path.
        endpoint: String,
    },
    /// No such path.
    NoRoute {
        /// Method and path.
        endpoint: String,
    },
    /// A WebSocket where server-sent events are spoken.
    UpgradeRequired,
    /// Another method than the path takes.
    Method {
        /// The one it takes.
        allowed: &'static str,
    },
    /// More calls than the writer can take.
    Busy,
    /// The books cannot be written.
    Storage,
    /// Whether the call was charged is not known: its commit failed.
    Unsettled,
    /// The server stops.
    ShuttingDown,
    /// The upstream did not do its part; nothing is charged.
    Upstream(UpstreamFault),
    /// A fault of the gateway itself; nothing is charged.
    Internal,
}

/// What an upstream did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamFault {
    /// No connection.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The answer broke off.
    Broken,
    /// The answer is longer than the setting.
    TooLong,
    /// The answer came in a coding that does not decode within bounds.
    Undecodable,
    /// A redirect, which is not followed.
    Redirect,
    /// The gateway's own credential was refused.
    Credential,
    /// The operator's own account is used up.
    Quota,
    /// It says that it is overloaded.
    Overloaded,
    /// It answered with a fault of its own.
    Failed,
}

/// How a refusal is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// HTTP status.
    pub status: u16,
    /// `error.type`
    pub kind: &'static str,
    /// `error.code`
    pub code: &'static str,
    /// `error.param`
    pub param: Option<String>,
    /// What happened and what to do.
    pub message: String,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// `x-codex-promo-message`: ASCII, without a final dot, because Codex goes on after it. Comes with
    /// `x-should-retry: false`.
    pub promo: Option<String>,
    /// `error.gateway`
    pub gateway: GatewayDetail,
}

/// What programs may want to know of a refusal: `error.gateway`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GatewayDetail {
    /// The reason, whatever `error.code` had to be for the client's sake.
    pub code: &'static str,
    /// Which limit refused: `balance`, `max_body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<Usd>,
    /// What running calls hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Usd>,
    /// What was needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed: Option<Usd>,
    /// The largest output limit that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_limit: Option<Tokens>,
}

/// Running calls settle within this time, mostly; Codex waits it out at most six times.
const HELD_RETRY: Duration = Duration::from_secs(5);

/// Until the writer has room again.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Until an operator or a restart has mended it; Codex waits that long thirty times.
const DOWN_RETRY: Duration = Duration::from_secs(5);

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Refusal {
    /// The row of the table. `endpoint` is what the client called, when it is a billed one.
    pub fn told(&self, endpoint: Option<Endpoint>) -> Told {
        let codex = endpoint == Some(Endpoint::Responses);
        let told = |status, kind, code, message: String| Told {
            status,
            kind,
            code,
            param: None,
            message,
            retry_after: None,
            promo: None,
            gateway: GatewayDetail {
                code,
                ..GatewayDetail::default()
            },
        };
        // What Codex repeats although it is final: a 400 whose message it shows instead.
        let policy = |status, code, message: String| {
            let mut told = told(status, INVALID, code, message);
            if codex {
                (told.status, told.code) = (400, "invalid_prompt");
            }
            told
        };
        let later = |told: Told, after| Told {
            retry_after: Some(after),
            ..told
        };
        match self {
            Refusal::Malformed(why) => told(400, INVALID, "malformed_request", format!("This request is not taken: {why}. Nothing was sent.")),
            Refusal::Call(error) => Told { param: error.param.clone(), ..told(400, INVALID, error.code, error.message.clone()) },
            Refusal::TooLarge { limit } => {
                let message = format!(
                    "The request is larger than this gateway takes ({limit} bytes decompressed). Send less, or ask its \
                     operator to raise [server] max_body."
                );
                let told = policy(413, "request_too_large", message);
                Told { gateway: GatewayDetail { limit: Some("max_body"), ..told.gateway }, ..told }
            }
            Refusal::BodyLost => told(400, INVALID, "incomplete_body", "The request body did not arrive whole and in time. Send it again.".into()),
            Refusal::Coding(why) => told(400, INVALID, "unsupported_encoding", format!("The request cannot be read: {why}.")),
            Refusal::BadKey => told(401, INVALID, "invalid_api_key", "This is not a valid key of this gateway. Send 'Authorization: Bearer sk-gw-…' with a key that its operator issued to you (gateway key issue).".into()),
            Refusal::ForeignKey(whose) => told(401, INVALID, "invalid_api_key", format!("This looks like {whose}. This gateway takes its own keys, which start with sk-gw-: ask its operator for one.")),
            Refusal::Ip => policy(403, "ip_not_allowed", "This key may not be used from this address. Ask the operator of this gateway to allow it.".into()),
            Refusal::Suspended { user } => policy(403, "user_suspended", format!("The user {user} is suspended. Ask the operator of this gateway to run: gateway user activate {user}")),
            Refusal::NoModel { model, nearest } => {
                let hint = nearest.as_ref().map_or_else(|| "GET /v1/models lists what it may use.".to_owned(), |name| format!("The nearest that it may use is '{name}'; GET /v1/models lists all."));
                Told { param: Some("model".into()), ..told(404, INVALID, "model_not_found", format!("The model '{model}' is not offered here to this key. {hint}")) }
            }
            Refusal::Unpriced { model, priced_as, list, nearest } => {
                let hint = nearest.as_ref().map_or_else(String::new, |name| format!(" The nearest priced model is '{name}'."));
                Told { param: Some("model".into()), ..told(404, INVALID, "model_not_found", format!("The model '{model}' has no price here, so it is not offered; nothing was charged.{hint} The operator of this gateway can run: gateway price set {} --list {list} --input USD --output USD", shell_word(priced_as))) }
            }
            Refusal::NotYours { param, id } => Told { param: Some((*param).into()), ..told(400, INVALID, "unsupported_parameter", format!("{param}: '{id}' is not known to be made by this user through this gateway. Send the conversation's items in 'input' instead.")) },
            Refusal::TooManyReferences { most } => Told {
                param: Some("input".into()),
                ..told(
                    400,
                    INVALID,
                    "invalid_value",
                    format!("The request refers to more than {most} earlier items. Send their content in 'input' instead."),
                )
            },
            Refusal::UnpricedTool(why) => Told { param: Some("tools".into()), ..told(400, INVALID, "unsupported_parameter", format!("A hosted tool of this request cannot be billed here: {why}. Leave the tool out, or ask the operator of this gateway to set its price.")) },
            Refusal::Question { param, why } => Told { param: Some(param.clone()), ..told(400, INVALID, "invalid_value", format!("{param}: {why}.")) },
            Refusal::NoReceipt => told(404, INVALID, "request_not_found", "This key made no request with that id here whose answer has ended. The id is the x-request-id of the answer, or the id in its body; GET /v1/gateway/requests lists them.".into()),
            Refusal::TooMuch => told(400, INVALID, "report_too_large", "That is more than is read for one answer. Ask for a shorter span of time, or for fewer groups.".into()),
            Refusal::Short { user, shortfall } => told_short(user, shortfall),
            Refusal::NotSupported { endpoint } => policy(403, "endpoint_not_supported", format!("{endpoint} is not offered by this gateway: what it costs, or whose answers and files it touches, cannot be metered here. Nothing was sent.")),
            Refusal::NoRoute { endpoint } => told(404, INVALID, "not_found", format!("There is no {endpoint} here. This gateway serves POST /v1/responses, /v1/chat/completions, /v1/completions, /v1/embeddings, GET /v1/models and GET /v1/gateway/me; GET /openapi.json describes all it serves.")),
            Refusal::Method { allowed } => told(
                405,
                INVALID,
                "method_not_allowed",
                format!("This path takes {allowed} here."),
            ),
            Refusal::UpgradeRequired => told(426, INVALID, "upgrade_required", "This gateway answers POST /v1/responses with server-sent events; it does not speak WebSocket here.".into()),
            Refusal::Busy => later(told(429, "rate_limit_error", "rate_limit_exceeded", "The gateway takes no more calls at the moment. Please try again in 1s.".into()), BUSY_RETRY),
            Refusal::Storage => later(told(503, SERVER, "storage_unavailable", "The gateway cannot write its books at the moment, so it takes no calls. Nothing was charged. Please try again.".into()), DOWN_RETRY),
            Refusal::Unsettled => told(
                503,
                SERVER,
                "storage_unavailable",
                "The gateway failed while it wrote down this call, so it is not known whether it was charged. Its receipt \
                 will tell, once the gateway runs again."
                    .into(),
            ),
            Refusal::ShuttingDown => later(told(503, SERVER, "shutting_down", "The gateway is being restarted. Nothing was charged. Please try again.".into()), BUSY_RETRY),
            Refusal::Upstream(fault) => told_fault(*fault, codex),
            Refusal::Internal => told(500, SERVER, "internal_error", "The gateway failed on this request; its log says why. Nothing was charged.".into()),
        }
    }
}

/// A text as one word of a shell. Clients choose names of models, and operators paste the command that has one in it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:+@".contains(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Money: final for both SDKs and Codex when it is gone, a rate limit when running calls hold it.
fn told_short(user: &str, short: &Shortfall) -> Told {
    let Shortfall {
        needed,
        available,
        held,
        largest_limit,
    } = short;
    let gateway = GatewayDetail {
        code: "insufficient_quota",
        limit: Some("balance"),
        available: Some(*available),
        held: Some(*held),
        needed: Some(*needed),
        largest_limit: *largest_limit,
    };
    let limit = largest_limit.map_or_else(String::new, |limit| {
        format!(" The largest output limit that fits is {} tokens.", limit.get())
    });
    if available.saturating_add(*held) >= *needed {
        let message = format!(
            "Rate limit reached for {user}: this call needs up to {needed:#}, and of the balance {available:#} is available while running calls hold {held:#}.{limit} Please try again in {}s.",
            HELD_RETRY.as_secs()
        );
        return Told {
            status: 429,
            kind: "rate_limit_error",
            code: "rate_limit_exceeded",
            param: None,
            message,
            retry_after: Some(HELD_RETRY),
            promo: None,
            gateway: GatewayDetail {
                code: "rate_limit_exceeded",
                ..gateway
            },
        };
    }
    let why = format!(
        "The balance of {user} does not pay for this call: it needs up to {needed:#}, {available:#} is available and {held:#} is held by running calls."
    );
    let message = format!("{why}{limit} Ask the operator of this gateway to run: gateway user credit {user} AMOUNT");
    let promo = format!("{why}{limit} Ask the operator of this gateway for credit for {user}");
    Told {
        status: 429,
        kind: "usage_limit_reached",
        code: "insufficient_quota",
        param: None,
        message,
        retry_after: None,
        promo: Some(
            promo
                .chars()
                .filter(|c| c.is_ascii() && !c.is_ascii_control())
                .collect(),
        ),
        gateway,
    }
}

fn told_fault(fault: UpstreamFault, codex: bool) -> Told {
    let (status, code, what) = match fault {
        UpstreamFault::Unreachable => (502, "upstream_error", "The upstream cannot be reached."),
        UpstreamFault::Timeout => (504, "upstream_timeout", "The upstream did not answer in time."),
        UpstreamFault::Broken => (502, "upstream_error", "The upstream's answer broke off."),
        UpstreamFault::TooLong => (
            502,
            "upstream_error",
            "The upstream's answer is longer than this gateway takes ([server] max_response).",
        ),
        UpstreamFault::Undecodable => (
            502,
            "upstream_error",
            "The upstream's answer came compressed and cannot be read.",
        ),
        UpstreamFault::Redirect => (
            502,
            "upstream_error",
            "The upstream answered with a redirect, which this gateway does not follow.",
        ),
        UpstreamFault::Credential => (
            502,
            "upstream_error",
            "The upstream refused this gateway's own credential; its operator has to mend that.",
        ),
        UpstreamFault::Quota => (
            503,
            "server_is_overloaded",
            "The upstream account of this gateway takes no more calls at the moment; its operator has to mend that.",
        ),
        UpstreamFault::Overloaded => (503, "server_is_overloaded", "The upstream is overloaded."),
        UpstreamFault::Failed => (502, "upstream_error", "The upstream failed."),
    };
    let message = format!("{what} Nothing was charged.");
    let detail = GatewayDetail {
        code,
        ..GatewayDetail::default()
    };
    // Codex repeats 502, 503 and 504 thirty times, and a 503 with this code at most five.
    let (status, code, retry_after) = match (codex, status) {
        (true, _) => (503, "server_is_overloaded", None),
        (false, 503) => (503, code, Some(DOWN_RETRY)),
        (false, status) => (status, code, None),
    };
    Told {
        status,
        kind: SERVER,
        code,
        param: None,
        message,
        retry_after,
        promo: None,
        gateway: detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(needed: i64, available: i64, held: i64) -> Refusal {
        let shortfall = Shortfall {
            needed: Usd::from_nanos(needed),
            available: Usd::from_nanos(available),
            held: Usd::from_nanos(held),
            largest_limit: None,
        };
        Refusal::Short {
            user: "alice".into(),
            shortfall,
        }
    }

    #[test]
    fn money_that_is_gone_is_final_and_money_that_is_held_is_a_rate_limit() {
        let gone = short(100, 10, 89).told(Some(Endpoint::Responses));
        assert_eq!(
            (gone.status, gone.kind, gone.code),
            (429, "usage_limit_reached", "insufficient_quota")
        );
        let promo = gone.promo.expect("Codex shows this");
        assert!(promo.is_ascii() && !promo.ends_with('.'), "{promo}");
        assert_eq!(gone.retry_after, None);
        let held = short(100, 10, 90).told(Some(Endpoint::Responses));
        assert_eq!(
            (held.status, held.code, held.retry_after),
            (429, "rate_limit_exceeded", Some(HELD_RETRY))
        );
        assert_eq!(held.promo, None);
    }

    #[test]
    fn what_codex_would_repeat_is_told_so_that_it_stops() {
        let suspended = Refusal::Suspended { user: "alice".into() };
        let other = suspended.told(Some(Endpoint::ChatCompletions));
        assert_eq!((other.status, other.code), (403, "user_suspended"));
        let codex = suspended.told(Some(Endpoint::Responses));
        assert_eq!(
            (codex.status, codex.code, codex.gateway.code),
            (400, "invalid_prompt", "user_suspended")
        );
        for fault in [UpstreamFault::Unreachable, UpstreamFault::Timeout, UpstreamFault::Quota] {
            let codex = Refusal::Upstream(fault).told(Some(Endpoint::Responses));
            assert_eq!(
                (codex.status, codex.code, codex.retry_after),
                (503, "server_is_overloaded", None)
            );
        }
        assert_eq!(Refusal::Upstream(UpstreamFault::Timeout).told(None).status, 504);
    }

    #[test]
    fn a_command_to_paste_runs_nothing_but_itself() {
        let told = |model: &str| {
            let refusal = Refusal::Unpriced {
                model: model.into(),
                priced_as: model.into(),
                list: "openai".into(),
                nearest: None,
            };
            refusal.told(None).message
        };
        assert!(told("ft:gpt-5.5:org").contains(" price set ft:gpt-5.5:org --list"));
        assert!(told("x'; rm -rf $HOME").contains(r"price set 'x'\''; rm -rf $HOME' --list"));
    }

    #[test]
    fn no_retry_after_is_above_ten_seconds() {
        for retry in [HELD_RETRY, BUSY_RETRY, DOWN_RETRY] {
            assert!(retry <= Duration::from_secs(10));
        }
    }
}
