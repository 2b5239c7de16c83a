//! The clock: the only place that reads it.

use jiff::Timestamp;

/// Now, for everything that is stored or shown.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A time as the database holds it: microseconds since 1970, UTC.
pub fn to_micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}
