//! Refusals: why the gateway does not forward a call, and the one table of how each is told to the client. The words are
//! in [`crate::texts`].
//!
//! OpenAI's shape everywhere. On `/v1/responses` some rows differ, because of how Codex reads them: it repeats 403,
//! 413, 502 and 504 up to thirty times, shows the message of a 400 `invalid_prompt` and of a 404 `model_not_found`
//! after one request, and that of a 429 only through `x-codex-promo-message`. A 409 it repeats six times, OpenAI's SDKs
//! twice: those that are final come with `x-should-retry: false`, and to Codex as a 400 `invalid_prompt`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::budget::Limit;
use crate::call::{CallError, Endpoint};
use crate::code::Code;
use crate::codec::CodingError;
use crate::hold::{Form, Shortfall, Unquoted};
use crate::key::Foreign;
use crate::limits::Limited;
use crate::money::Usd;
use crate::usage::Tokens;

/// Why a call is not forwarded, or its answer not passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The head of the request may be read in two ways; its connection is closed.
    Malformed(Ambiguity),
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
    Coding(Unreadable),
    /// No key, or none that is good: one answer for all.
    BadKey,
    /// A token that is plainly another service's.
    ForeignKey(Foreign),
    /// Too many tokens that were no good key came from the address.
    TooManyFailures {
        /// How long until the next is looked at as one.
        wait: Duration,
    },
    /// There are as many connections, or calls, as there may be.
    Full,
    /// The address has as many connections as it may have.
    Crowded,
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
    /// No such object is known to be this user's.
    NoObject {
        /// Its id.
        id: String,
    },
    /// The user has as many objects of a kind as may be.
    TooManyObjects {
        /// How many may be.
        most: u32,
    },
    /// A background response that runs cannot be deleted.
    StillRuns {
        /// Its id.
        id: String,
    },
    /// The user has as many background responses as may run at once.
    TooManyInBackground {
        /// How many may.
        most: u32,
    },
    /// More earlier answers and items than are looked up for one call.
    TooManyReferences {
        /// How many are.
        most: usize,
    },
    /// A hosted tool whose cost cannot be set aside.
    UnpricedTool(Unquoted),
    /// A question about usage that is not understood.
    Question {
        /// The parameter.
        param: String,
        /// What is wrong with it.
        why: Wrong,
    },
    /// No exchange of this key has that id.
    NoReceipt,
    /// No exchange of this key is of that session.
    NoSession,
    /// What was asked about is more than one answer reads.
    TooMuch,
    /// No code that this key's user may redeem, or has redeemed: one answer for all that are not.
    NoCode,
    /// The key tried too many codes that were none.
    TooManyTries {
        /// How long it has to wait.
        wait: Duration,
    },
    /// A limit of the key, its user or the model: requests or tokens a minute, or calls at once.
    RateLimited {
        /// What the key, the user or the model is called.
        name: String,
        /// Which limit.
        limit: Limited,
        /// How long it has to be waited for, in whole seconds.
        wait: Duration,
    },
    /// The call needs more tokens than its key, its user or the model may use in a minute.
    TooManyTokens {
        /// What the key, the user or the model is called.
        name: String,
        /// Which limit.
        limit: Limited,
        /// How many it needs.
        needed: u64,
    },
    /// The room does not pay for the call.
    Short {
        /// Whose.
        user: String,
        /// Of what it is too much.
        limit: Limit,
        /// How much is missing.
        shortfall: Shortfall,
    },
    /// `Idempotency-Key` is not one line of 1 to 255 printable ASCII characters.
    IdempotencyKey,
    /// The call with this `Idempotency-Key` runs still.
    InProgress {
        /// Its exchange.
        exchange: Uuid,
    },
    /// The call with this `Idempotency-Key` is done and charged.
    AlreadyDone {
        /// Its exchange.
        exchange: Uuid,
        /// What it was charged.
        charge: Usd,
    },
    /// This `Idempotency-Key` came with another call before.
    IdempotencyMismatch,
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
    /// No WebSocket was asked for where one is spoken, or none is spoken.
    UpgradeRequired,
    /// A frame while the answer to the one before it comes.
    OneAtATime,
    /// The response that a create leans on is not what its connection remembers, and nobody else keeps it.
    NoPrevious {
        /// `previous_response_id`
        id: String,
    },
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
    Quota {
        /// When to come again, if it said so.
        retry_after: Option<Duration>,
    },
    /// It says that it is overloaded.
    Overloaded {
        /// When to come again, if it said so.
        retry_after: Option<Duration>,
    },
    /// It answered with a fault of its own.
    Failed,
    /// It kept failing, and is left alone for a while.
    Resting {
        /// Until the next call is let through.
        wait: Duration,
    },
    /// As many calls are under way at it as the setting allows.
    Full,
}

/// How the head of a request may be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// CONNECT or TRACE.
    Proxy,
    /// No `Host`.
    NoHost,
    /// More than one `Host`.
    Hosts,
    /// A `Host` that is no name.
    NotAHost,
    /// A target at another server than `Host`.
    OtherServer,
    /// A target that is no path.
    NotAPath,
    /// A control character or a backslash in the path.
    Control,
    /// `//` in the path.
    DoubleSlash,
    /// `.` or `..` in the path.
    Dots,
    /// `%2f` in the path.
    EncodedSlash,
    /// A header twice of which one counts.
    Repeated,
    /// A transfer coding other than chunked.
    TransferCoding,
    /// An expectation other than 100-continue.
    Expectation,
    /// Plain HTTP where TLS is spoken.
    InTheClear,
}

/// Why the bytes of a body are not those of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Encoded more than once.
    Several,
    /// In a coding that is not ours.
    Unknown,
    /// `Content-Encoding` is no text.
    Header,
    /// Damaged, cut off, or not in the coding that it names.
    Broken,
}

impl From<CodingError> for Unreadable {
    fn from(error: CodingError) -> Unreadable {
        match error {
            CodingError::Several => Unreadable::Several,
            CodingError::Unknown => Unreadable::Unknown,
        }
    }
}

/// What is wrong with a parameter of a question about usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The query does not parse.
    Unreadable,
    /// The query has too many parameters.
    Parameters {
        /// How many are read.
        most: usize,
    },
    /// The path takes none.
    TakesNone,
    /// There is no such parameter.
    Unknown {
        /// Those there are.
        known: String,
    },
    /// It is there more than once.
    Twice,
    /// It has too many values.
    Values {
        /// How many are read.
        most: usize,
    },
    /// It is no whole number within these bounds.
    NotWithin {
        /// The smallest.
        least: String,
        /// The largest.
        most: String,
    },
    /// It is none of these.
    NotOneOf {
        /// What it may be.
        words: String,
    },
    /// It is no date and no time.
    NotATime,
    /// It is not what an answer gave as `next_page`.
    NotAPage,
    /// It is an id, of letters, digits and a few signs.
    NotASession,
    /// It is missing, and has to be there, in Unix seconds.
    NoStart,
    /// It is not before the end.
    NotBefore {
        /// The parameter that is.
        end: &'static str,
    },
    /// It is not after the start.
    NotAfter {
        /// The parameter that is.
        start: &'static str,
    },
    /// The body is no object with this one text.
    NotOneText,
    /// The body is too long.
    Bytes {
        /// How long it may be.
        most: usize,
    },
    /// With it the balance would not fit.
    TooMuchMoney,
    /// It is too long before `until`.
    Days {
        /// How long it may be.
        most: i64,
    },
}

/// How a refusal is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// HTTP status.
    pub status: u16,
    /// `error.type`
    pub kind: &'static str,
    /// `error.code`
    pub code: Code,
    /// `error.param`
    pub param: Option<String>,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// `x-should-retry: false`: it is final, though its status is one that OpenAI's SDKs repeat.
    pub is_final: bool,
    /// Whether `x-codex-promo-message` carries the words.
    pub promo: bool,
    /// `error.gateway`
    pub gateway: GatewayDetail,
}

/// What programs may want to know of a refusal: `error.gateway`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayDetail {
    /// The reason, whatever `error.code` had to be for the client's sake.
    pub code: Code,
    /// Which limit refused: `balance`, `max_body`, `key_rpm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
    /// When the budget that refused is whole again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
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
    /// The exchange it is about, when that is not the one that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// What that one was charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charge: Option<Usd>,
    /// The path of its receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
}

impl GatewayDetail {
    /// A reason, without numbers.
    fn of(code: Code) -> GatewayDetail {
        GatewayDetail {
            code,
            limit: None,
            resets_at: None,
            available: None,
            held: None,
            needed: None,
            largest_limit: None,
            exchange: None,
            charge: None,
            receipt: None,
        }
    }
}

/// Running calls settle within this time, mostly; Codex waits it out at most six times.
pub const HELD_RETRY: Duration = Duration::from_secs(5);

/// Until the writer has room again.
pub const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Until other connections are closed.
pub const FULL_RETRY: Duration = Duration::from_secs(5);

/// Until an operator or a restart has mended it; Codex waits that long thirty times.
const DOWN_RETRY: Duration = Duration::from_secs(5);

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// A row whose reason is its code.
fn row(status: u16, kind: &'static str, code: Code) -> Told {
    Told {
        status,
        kind,
        code,
        param: None,
        retry_after: None,
        is_final: false,
        promo: false,
        gateway: GatewayDetail::of(code),
    }
}

impl Told {
    fn about(self, param: &str) -> Told {
        Told {
            param: Some(param.to_owned()),
            ..self
        }
    }

    fn later(self, after: Duration) -> Told {
        Told {
            retry_after: Some(after),
            ..self
        }
    }

    /// Because of an earlier exchange.
    fn because_of(mut self, exchange: Uuid) -> Told {
        self.gateway.exchange = Some(exchange.to_string());
        self
    }
}

impl Refusal {
    /// The row of the table. `endpoint` is what the client called, when it is a billed one.
    pub fn told(&self, endpoint: Option<Endpoint>) -> Told {
        let codex = endpoint.is_some_and(Endpoint::is_responses);
        // What Codex repeats although it is final: a 400 whose message it shows instead.
        let policy = |status, code| {
            let mut told = row(status, INVALID, code);
            if codex {
                (told.status, told.code) = (400, Code::InvalidPrompt);
            }
            told
        };
        let repeated = |code| Told {
            is_final: true,
            ..policy(409, code)
        };
        match self {
            Refusal::Malformed(_) => row(400, INVALID, Code::MalformedRequest),
            Refusal::Call(error) => Told {
                param: error.param().map(str::to_owned),
                ..row(400, INVALID, error.code())
            },
            Refusal::TooLarge { .. } => {
                let mut told = policy(413, Code::RequestTooLarge);
                told.gateway.limit = Some("max_body");
                told
            }
            Refusal::BodyLost => row(400, INVALID, Code::IncompleteBody),
            Refusal::Coding(_) => row(400, INVALID, Code::UnsupportedEncoding),
            Refusal::BadKey | Refusal::ForeignKey(_) => row(401, INVALID, Code::InvalidApiKey),
            Refusal::TooManyFailures { wait } => {
                row(429, "rate_limit_error", Code::RateLimitExceeded).later(in_seconds(*wait))
            }
            Refusal::Full => Told {
                // Codex repeats a 503 with this code at most five times, and one with the header thirty times.
                retry_after: (!codex).then_some(FULL_RETRY),
                ..row(503, SERVER, Code::ServerIsOverloaded)
            },
            Refusal::Crowded => {
                let mut told = row(429, "rate_limit_error", Code::RateLimitExceeded).later(FULL_RETRY);
                told.gateway.limit = Some("max_connections_per_address");
                told
            }
            Refusal::Ip => policy(403, Code::IpNotAllowed),
            Refusal::Suspended { .. } => policy(403, Code::UserSuspended),
            Refusal::NoModel { .. } | Refusal::Unpriced { .. } => row(404, INVALID, Code::ModelNotFound).about("model"),
            Refusal::NotYours { param, .. } => row(400, INVALID, Code::UnsupportedParameter).about(param),
            Refusal::NoObject { .. } => row(404, INVALID, Code::NotFound),
            Refusal::TooManyObjects { .. } => row(400, INVALID, Code::InvalidValue),
            Refusal::StillRuns { .. } => row(400, INVALID, Code::ResponseInProgress),
            Refusal::TooManyInBackground { .. } => {
                let mut told = row(429, "rate_limit_error", Code::RateLimitExceeded).later(HELD_RETRY);
                told.gateway.limit = Some("background_responses");
                told
            }
            Refusal::TooManyReferences { .. } => row(400, INVALID, Code::InvalidValue).about("input"),
            Refusal::UnpricedTool(Unquoted::Untold(form)) => {
                row(400, INVALID, Code::UnsupportedParameter).about(match form {
                    Form::Response => "response_format",
                    Form::Stream => "stream_format",
                })
            }
            Refusal::UnpricedTool(_) => row(400, INVALID, Code::UnsupportedParameter).about("tools"),
            Refusal::Question { param, .. } => row(400, INVALID, Code::InvalidValue).about(param),
            Refusal::NoReceipt | Refusal::NoSession => row(404, INVALID, Code::RequestNotFound),
            Refusal::TooMuch => row(400, INVALID, Code::ReportTooLarge),
            Refusal::NoCode => row(404, INVALID, Code::CodeNotFound).about("code"),
            Refusal::TooManyTries { wait } => row(429, "rate_limit_error", Code::RateLimitExceeded).later(*wait),
            Refusal::RateLimited { limit, wait, .. } => {
                let mut told = row(429, "rate_limit_error", Code::RateLimitExceeded).later(*wait);
                told.gateway.limit = Some(limit.name());
                told
            }
            Refusal::TooManyTokens { limit, .. } => {
                let mut told = policy(413, Code::RequestTooLarge);
                told.gateway.limit = Some(limit.name());
                told
            }
            Refusal::Short { limit, shortfall, .. } => told_short(*limit, shortfall),
            Refusal::IdempotencyKey => row(400, INVALID, Code::InvalidValue).about("Idempotency-Key"),
            Refusal::InProgress { exchange } => row(409, INVALID, Code::IdempotencyInProgress)
                .because_of(*exchange)
                .later(HELD_RETRY),
            Refusal::AlreadyDone { exchange, charge } => {
                let mut told = repeated(Code::AlreadyDone).because_of(*exchange);
                told.gateway.charge = Some(*charge);
                told.gateway.receipt = Some(receipt(*exchange));
                told
            }
            Refusal::IdempotencyMismatch => repeated(Code::IdempotencyMismatch),
            Refusal::NotSupported { .. } => policy(403, Code::EndpointNotSupported),
            Refusal::NoRoute { .. } => row(404, INVALID, Code::NotFound),
            Refusal::Method { .. } => row(405, INVALID, Code::MethodNotAllowed),
            Refusal::UpgradeRequired => row(426, INVALID, Code::UpgradeRequired),
            Refusal::OneAtATime => row(400, INVALID, Code::ResponseInProgress),
            Refusal::NoPrevious { .. } => {
                row(400, INVALID, Code::PreviousResponseNotFound).about("previous_response_id")
            }
            Refusal::Busy => row(429, "rate_limit_error", Code::RateLimitExceeded).later(BUSY_RETRY),
            Refusal::Storage => row(503, SERVER, Code::StorageUnavailable).later(DOWN_RETRY),
            Refusal::Unsettled => row(503, SERVER, Code::StorageUnavailable),
            Refusal::ShuttingDown => row(503, SERVER, Code::ShuttingDown).later(BUSY_RETRY),
            Refusal::Upstream(fault) => told_fault(*fault, codex),
            Refusal::Internal => row(500, SERVER, Code::InternalError),
        }
    }
}

/// As it is told: whole seconds, and never too short.
pub fn in_seconds(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
}

/// The path of an exchange's receipt.
pub fn receipt(exchange: Uuid) -> String {
    format!("/v1/gateway/requests/{exchange}")
}

/// Whether running calls hold what is missing: it comes back when they settle.
pub fn is_held(short: &Shortfall) -> bool {
    short.available.saturating_add(short.held) >= short.needed
}

/// Money: final for both SDKs and Codex when it is gone, a rate limit when running calls hold it.
fn told_short(of: Limit, short: &Shortfall) -> Told {
    let mut told = if is_held(short) {
        row(429, "rate_limit_error", Code::RateLimitExceeded).later(HELD_RETRY)
    } else {
        Told {
            is_final: true,
            promo: true,
            ..row(429, "usage_limit_reached", Code::InsufficientQuota)
        }
    };
    told.gateway = GatewayDetail {
        limit: Some(of.name()),
        resets_at: of.resets_at(),
        available: Some(short.available),
        held: Some(short.held),
        needed: Some(short.needed),
        largest_limit: short.largest_limit,
        ..told.gateway
    };
    told
}

fn told_fault(fault: UpstreamFault, codex: bool) -> Told {
    let told = match fault {
        UpstreamFault::Timeout => row(504, SERVER, Code::UpstreamTimeout),
        UpstreamFault::Quota { retry_after } | UpstreamFault::Overloaded { retry_after } => {
            row(503, SERVER, Code::ServerIsOverloaded).later(retry_after.unwrap_or(DOWN_RETRY))
        }
        UpstreamFault::Resting { wait } => row(503, SERVER, Code::ServerIsOverloaded).later(in_seconds(wait)),
        UpstreamFault::Full => row(503, SERVER, Code::ServerIsOverloaded).later(DOWN_RETRY),
        UpstreamFault::Unreachable
        | UpstreamFault::Broken
        | UpstreamFault::TooLong
        | UpstreamFault::Undecodable
        | UpstreamFault::Redirect
        | UpstreamFault::Credential
        | UpstreamFault::Failed => row(502, SERVER, Code::UpstreamError),
    };
    if codex {
        // Codex repeats 502, 503 and 504 thirty times, and a 503 with this code at most five.
        return Told {
            status: 503,
            code: Code::ServerIsOverloaded,
            retry_after: None,
            ..told
        };
    }
    told
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
            limit: Limit::Balance,
            shortfall,
        }
    }

    #[test]
    fn money_that_is_gone_is_final_and_money_that_is_held_is_a_rate_limit() {
        let gone = short(100, 10, 89).told(Some(Endpoint::Responses));
        assert_eq!(
            (gone.status, gone.kind, gone.code),
            (429, "usage_limit_reached", Code::InsufficientQuota)
        );
        assert_eq!((gone.promo, gone.retry_after), (true, None));
        let held = short(100, 10, 90).told(Some(Endpoint::Responses));
        assert_eq!(
            (held.status, held.code, held.retry_after),
            (429, Code::RateLimitExceeded, Some(HELD_RETRY))
        );
        assert!(!held.promo);
    }

    #[test]
    fn what_codex_would_repeat_is_told_so_that_it_stops() {
        let suspended = Refusal::Suspended { user: "alice".into() };
        let other = suspended.told(Some(Endpoint::ChatCompletions));
        assert_eq!((other.status, other.code), (403, Code::UserSuspended));
        let codex = suspended.told(Some(Endpoint::Responses));
        assert_eq!(
            (codex.status, codex.code, codex.gateway.code),
            (400, Code::InvalidPrompt, Code::UserSuspended)
        );
        let quota = UpstreamFault::Quota { retry_after: None };
        for fault in [UpstreamFault::Unreachable, UpstreamFault::Timeout, quota] {
            let codex = Refusal::Upstream(fault).told(Some(Endpoint::Responses));
            assert_eq!(
                (codex.status, codex.code, codex.retry_after),
                (503, Code::ServerIsOverloaded, None)
            );
        }
        assert_eq!(Refusal::Upstream(UpstreamFault::Timeout).told(None).status, 504);
    }

    #[test]
    fn a_repeated_call_is_final_but_for_one_that_runs() {
        let (exchange, charge) = (Uuid::from_u128(7), Usd::from_nanos(1_500_000_000));
        let done = Refusal::AlreadyDone { exchange, charge };
        for final_one in [done.clone(), Refusal::IdempotencyMismatch] {
            let told = final_one.told(Some(Endpoint::ChatCompletions));
            assert_eq!((told.status, told.code), (409, told.gateway.code));
            assert_eq!((told.is_final, told.retry_after), (true, None));
            let codex = final_one.told(Some(Endpoint::Responses));
            assert_eq!(
                (codex.status, codex.code, codex.gateway),
                (400, Code::InvalidPrompt, told.gateway)
            );
        }
        let told = done.told(None).gateway;
        assert_eq!((told.exchange, told.charge), (Some(exchange.to_string()), Some(charge)));
        let runs = Refusal::InProgress { exchange }.told(Some(Endpoint::Responses));
        assert_eq!((runs.status, runs.code), (409, Code::IdempotencyInProgress));
        assert_eq!((runs.is_final, runs.retry_after), (false, Some(HELD_RETRY)));
    }

    #[test]
    fn what_an_upstream_or_its_breaker_makes_wait_for_is_told() {
        let told = |fault| {
            Refusal::Upstream(fault)
                .told(None)
                .retry_after
                .map(|wait| wait.as_secs())
        };
        let retry_after = Some(Duration::from_secs(17));
        assert_eq!(told(UpstreamFault::Overloaded { retry_after }), Some(17));
        assert_eq!(told(UpstreamFault::Quota { retry_after }), Some(17));
        assert_eq!(told(UpstreamFault::Overloaded { retry_after: None }), Some(5));
        let wait = Duration::from_millis(300);
        assert_eq!(told(UpstreamFault::Resting { wait }), Some(1));
    }

    #[test]
    fn no_retry_after_is_above_ten_seconds() {
        for retry in [HELD_RETRY, BUSY_RETRY, DOWN_RETRY] {
            assert!(retry <= Duration::from_secs(10));
        }
    }
}
