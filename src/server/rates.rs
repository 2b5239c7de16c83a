//! What is left of the rate limits, in OpenAI's headers: of each kind the tightest that the call was counted for. A call
//! without a limit has none of them.

use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

use crate::limits::{Level, Standing};

/// The limit, what is left of it, and until when it is whole again.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];

const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Writes what is left into the headers of an answer.
pub(super) fn tell(standing: &Standing, headers: &mut HeaderMap) {
    for (names, level) in [(REQUESTS, standing.requests), (TOKENS, standing.tokens)] {
        let Some(Level {
            limit,
            remaining,
            reset,
        }) = level
        else {
            continue;
        };
        let [of_limit, of_remaining, of_reset] = names;
        headers.insert(of_limit, HeaderValue::from(limit));
        headers.insert(of_remaining, HeaderValue::from(remaining));
        if let Ok(reset) = HeaderValue::try_from(span(reset)) {
            headers.insert(of_reset, reset);
        }
    }
}

/// A span of time as OpenAI writes it, rounded up to a millisecond: `6ms`, `1s`, `6m0s`, `1m30.5s`, `1h0m0s`.
fn span(time: Duration) -> String {
    let millis = time.as_micros().div_ceil(1_000);
    let (whole, rest) = (millis / 1_000, millis % 1_000);
    if whole == 0 && rest > 0 {
        return format!("{rest}ms");
    }
    let (hours, minutes, seconds) = (whole / 3_600, whole / 60 % 60, whole % 60);
    let fraction = match rest {
        0 => String::new(),
        rest => format!(".{rest:03}").trim_end_matches('0').to_owned(),
    };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, minutes) => format!("{minutes}m{seconds}{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_openai_writes_them() {
        for (micros, text) in [
            (0, "0s"),
            (1, "1ms"),
            (6_000, "6ms"),
            (999_001, "1s"),
            (1_000_000, "1s"),
            (8_640_000, "8.64s"),
            (59_999_999, "1m0s"),
            (90_500_000, "1m30.5s"),
            (360_000_000, "6m0s"),
            (3_600_000_000, "1h0m0s"),
            (7_384_005_000, "2h3m4.005s"),
        ] {
            assert_eq!(span(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn what_has_no_limit_has_no_headers() {
        let (mut headers, mut standing) = (HeaderMap::new(), Standing::default());
        tell(&standing, &mut headers);
        assert!(headers.is_empty());
        standing.tokens = Some(Level {
            limit: 1_000,
            remaining: 20,
            reset: Duration::from_secs(58),
        });
        tell(&standing, &mut headers);
        let value = |name: &str| headers[name].to_str().expect("text").to_owned();
        assert_eq!(headers.len(), 3);
        assert_eq!(value("x-ratelimit-limit-tokens"), "1000");
        assert_eq!(value("x-ratelimit-remaining-tokens"), "20");
        assert_eq!(value("x-ratelimit-reset-tokens"), "58s");
    }
}
