//! The codes of the gateway's own errors: `error.code` and `error.gateway.code`.

use std::fmt;

use serde::{Serialize, Serializer};

/// An enum of codes: each with its name on the wire, in the order of the list.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal,)*) => {
        /// What a program may tell an error by.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$code),*];

            /// The name on the wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    /// The head of the request may be read in two ways.
    MalformedRequest = "malformed_request",
    /// The body is no JSON object.
    InvalidJson = "invalid_json",
    /// A parameter that has to be there.
    MissingRequiredParameter = "missing_required_parameter",
    /// A parameter that is almost one.
    UnknownParameter = "unknown_parameter",
    /// A parameter that is there twice.
    DuplicateParameter = "duplicate_parameter",
    /// A parameter of another type.
    InvalidType = "invalid_type",
    /// A parameter with a value that does not go.
    InvalidValue = "invalid_value",
    /// A parameter that is not served here.
    UnsupportedParameter = "unsupported_parameter",
    /// A body above the setting.
    RequestTooLarge = "request_too_large",
    /// A body that did not come.
    IncompleteBody = "incomplete_body",
    /// A body in a coding that cannot be read.
    UnsupportedEncoding = "unsupported_encoding",
    /// What Codex is told of a policy, so that it shows our words.
    InvalidPrompt = "invalid_prompt",
    /// No good key.
    InvalidApiKey = "invalid_api_key",
    /// A key used from elsewhere.
    IpNotAllowed = "ip_not_allowed",
    /// A user who is suspended.
    UserSuspended = "user_suspended",
    /// A model that is not offered.
    ModelNotFound = "model_not_found",
    /// An exchange that is not this key's.
    RequestNotFound = "request_not_found",
    /// A question about too much.
    ReportTooLarge = "report_too_large",
    /// A redemption code that is none for this user.
    CodeNotFound = "code_not_found",
    /// The money is gone.
    InsufficientQuota = "insufficient_quota",
    /// Later, it may go.
    RateLimitExceeded = "rate_limit_exceeded",
    /// The call with this name runs.
    IdempotencyInProgress = "idempotency_in_progress",
    /// The call with this name is done.
    AlreadyDone = "already_done",
    /// Another call has this name.
    IdempotencyMismatch = "idempotency_mismatch",
    /// An endpoint that is not metered.
    EndpointNotSupported = "endpoint_not_supported",
    /// No such path.
    NotFound = "not_found",
    /// Another method.
    MethodNotAllowed = "method_not_allowed",
    /// No WebSocket.
    UpgradeRequired = "upgrade_required",
    /// A frame beside an answer, on a WebSocket.
    ResponseInProgress = "response_in_progress",
    /// A response that a WebSocket does not remember.
    PreviousResponseNotFound = "previous_response_not_found",
    /// The books cannot be written.
    StorageUnavailable = "storage_unavailable",
    /// The server stops.
    ShuttingDown = "shutting_down",
    /// The upstream failed.
    UpstreamError = "upstream_error",
    /// The upstream was too slow.
    UpstreamTimeout = "upstream_timeout",
    /// The upstream takes no more; or what Codex is told of its trouble.
    ServerIsOverloaded = "server_is_overloaded",
    /// A stream that broke.
    ServerError = "server_error",
    /// A fault of the gateway.
    InternalError = "internal_error",
}

impl Code {
    /// The code of a name on the wire.
    pub fn named(name: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The HTTP statuses that it comes with, also as Codex is told them; none: inside a stream that has begun.
    pub const fn statuses(self) -> &'static [u16] {
        match self {
            Code::MalformedRequest
            | Code::InvalidJson
            | Code::MissingRequiredParameter
            | Code::UnknownParameter
            | Code::DuplicateParameter
            | Code::InvalidType
            | Code::InvalidValue
            | Code::UnsupportedParameter
            | Code::IncompleteBody
            | Code::UnsupportedEncoding
            | Code::InvalidPrompt
            | Code::ResponseInProgress
            | Code::PreviousResponseNotFound
            | Code::ReportTooLarge => &[400],
            Code::InvalidApiKey => &[401],
            Code::IpNotAllowed | Code::UserSuspended | Code::EndpointNotSupported => &[403, 400],
            Code::ModelNotFound | Code::RequestNotFound | Code::CodeNotFound | Code::NotFound => &[404],
            Code::MethodNotAllowed => &[405],
            Code::IdempotencyInProgress => &[409],
            Code::AlreadyDone | Code::IdempotencyMismatch => &[409, 400],
            Code::RequestTooLarge => &[413, 400],
            Code::UpgradeRequired => &[426],
            Code::InsufficientQuota | Code::RateLimitExceeded => &[429],
            Code::InternalError => &[500],
            Code::UpstreamError => &[502, 503],
            Code::StorageUnavailable | Code::ShuttingDown | Code::ServerIsOverloaded => &[503],
            Code::UpstreamTimeout => &[504, 503],
            Code::ServerError => &[],
        }
    }

    /// Whether the call was charged.
    pub const fn charged(self) -> Charged {
        match self {
            Code::ServerError => Charged::Delivered,
            Code::StorageUnavailable | Code::UpstreamError => Charged::SeeReceipt,
            _ => Charged::Nothing,
        }
    }

    /// Whether the very same request may succeed when it is sent again.
    pub const fn again(self) -> Again {
        match self {
            Code::RateLimitExceeded
            | Code::IdempotencyInProgress
            | Code::ShuttingDown
            | Code::UpstreamError
            | Code::UpstreamTimeout
            | Code::ServerIsOverloaded
            | Code::ServerError
            | Code::IncompleteBody
            | Code::ResponseInProgress
            | Code::RequestNotFound => Again::Later,
            Code::StorageUnavailable => Again::AfterReceipt,
            Code::InsufficientQuota | Code::UserSuspended | Code::IpNotAllowed | Code::ModelNotFound => {
                Again::AfterOperator
            }
            _ => Again::Never,
        }
    }
}

/// What a call that ended with a code cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Charged {
    /// Nothing.
    Nothing,
    /// What was delivered before it broke.
    Delivered,
    /// Nothing, unless its message says that it is not known; then the receipt tells.
    SeeReceipt,
}

/// Whether sending the same request again helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Again {
    /// It will be refused again.
    Never,
    /// After a while.
    Later,
    /// Once the receipt shows that it was not charged.
    AfterReceipt,
    /// Once the operator has done something.
    AfterOperator,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own() {
        for code in Code::ALL {
            assert_eq!(Code::named(code.name()), Some(*code));
        }
        assert_eq!(Code::named("nonsense"), None);
    }
}
