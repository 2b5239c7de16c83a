//! How values stand in columns: ids as 16 bytes, money in nano-dollars, times in microseconds, names as text.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::attempts::Outcome;
use super::digest::Hash;
use super::keys::Key;
use super::usage_log::{Basis, State};
use super::users::UserStatus;
use super::{CodeId, ExchangeId, KeyId, UserId};
use crate::budget::Period;
use crate::call::Endpoint;
use crate::config::OnHangup;
use crate::fail_point::Injected;
use crate::limits::AtMost;
use crate::money::Usd;
use crate::origin::{Client, Kind, Label};
use crate::pricing::{Factor, ListName, SearchTool};
use crate::texts::Language;
use crate::usage::{CacheTtl, Tier, Tokens};

/// An error for a value that a row must not hold: a row that does not parse is an error, never a zero.
pub(super) fn unreadable(what: &str) -> FromSqlError {
    FromSqlError::Other(format!("{what} does not parse").into())
}

/// An error of an operation that found what must not be.
pub(super) fn broken(what: impl Into<String>) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(what.into().into())
}

/// The error of a statement that a crash test made fail.
pub(super) fn injected(point: Injected) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(point))
}

macro_rules! id_column {
    ($id:ident) => {
        impl ToSql for $id {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::from(self.0.as_bytes().as_slice()))
            }
        }

        impl FromSql for $id {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<$id> {
                Uuid::from_slice(value.as_blob()?)
                    .map($id)
                    .map_err(|_| unreadable("an id"))
            }
        }

        impl $id {
            /// As a value to store and to hash.
            pub(super) fn value(&self) -> ValueRef<'_> {
                ValueRef::Blob(self.0.as_bytes())
            }
        }

        impl std::fmt::Display for $id {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id_column!(UserId);
id_column!(KeyId);
id_column!(ExchangeId);
id_column!(CodeId);

impl ToSql for Usd {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.nanos()))
    }
}

impl FromSql for Usd {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Usd> {
        value.as_i64().map(Usd::from_nanos)
    }
}

impl FromSql for Tokens {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Tokens> {
        let count = value.as_i64()?;
        u64::try_from(count)
            .ok()
            .and_then(Tokens::new)
            .ok_or(FromSqlError::OutOfRange(count))
    }
}

/// A time as the database holds it: microseconds since 1970, UTC.
#[derive(Clone, Copy)]
pub(super) struct Micros(pub(super) Timestamp);

impl ToSql for Micros {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.as_microsecond()))
    }
}

impl FromSql for Micros {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Micros> {
        let micros = value.as_i64()?;
        Timestamp::from_microsecond(micros)
            .map(Micros)
            .map_err(|_| FromSqlError::OutOfRange(micros))
    }
}

/// The time without what is finer than a microsecond: what comes back from the database.
pub(super) fn to_the_microsecond(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

/// A text column with a fixed set of words.
pub(super) trait Word: Copy + Sized + 'static {
    /// Every value.
    const ALL: &'static [Self];
    /// What the column is about, for messages.
    const WHAT: &'static str;
    /// The word in the column.
    fn word(self) -> &'static str;

    /// The value of a word.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.word() == word)
    }
}

macro_rules! words {
    ($type:ident, $what:literal, $($value:ident => $word:expr),+ $(,)?) => {
        impl Word for $type {
            const ALL: &'static [$type] = &[$($type::$value),+];
            const WHAT: &'static str = $what;
            fn word(self) -> &'static str {
                match self { $($type::$value => $word),+ }
            }
        }

        impl ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::from(self.word()))
            }
        }

        impl FromSql for $type {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<$type> {
                $type::from_word(value.as_str()?).ok_or_else(|| unreadable($type::WHAT))
            }
        }
    };
}

words!(
    UserStatus, "a status",
    Active => UserStatus::Active.name(), Suspended => UserStatus::Suspended.name(),
);
words!(Language, "a language", English => Language::English.name(), Chinese => Language::Chinese.name());
words!(CacheTtl, "how long cache writes live", Minutes30 => "30m", Hours12 => "12h");
words!(SearchTool, "a kind of web search", Current => "current", Preview => "preview");
words!(OnHangup, "what a hang-up does", Drain => "drain", Cancel => "cancel");
words!(Period, "a budget's period", Total => Period::Total.name(), Day => Period::Day.name(), Month => Period::Month.name());
words!(Basis, "a usage's basis", Reported => "reported", Estimated => "estimated");
words!(Tier, "a tier",
    Standard => Tier::Standard.name(), Flex => Tier::Flex.name(), Priority => Tier::Priority.name(),
    Ultrafast => Tier::Ultrafast.name(), Batch => Tier::Batch.name(),
);
words!(Endpoint, "an endpoint",
    ChatCompletions => Endpoint::ChatCompletions.path(), Responses => Endpoint::Responses.path(),
    Compact => Endpoint::Compact.path(),
    Completions => Endpoint::Completions.path(), Embeddings => Endpoint::Embeddings.path(),
    ImageGenerations => Endpoint::ImageGenerations.path(), ImageEdits => Endpoint::ImageEdits.path(),
    Speech => Endpoint::Speech.path(), Transcriptions => Endpoint::Transcriptions.path(),
    Translations => Endpoint::Translations.path(),
);
words!(Outcome, "what became of an attempt",
    Answered => Outcome::Answered.name(), Refused => Outcome::Refused.name(),
    Unreachable => Outcome::Unreachable.name(), Timeout => Outcome::Timeout.name(),
    Broken => Outcome::Broken.name(), Abandoned => Outcome::Abandoned.name(),
);
words!(Kind, "what a call was for",
    Turn => Kind::Turn.name(), Title => Kind::Title.name(), Compaction => Kind::Compaction.name(),
    Review => Kind::Review.name(), Prewarm => Kind::Prewarm.name(), SubAgent => Kind::SubAgent.name(),
);
words!(State, "how an exchange ended",
    Completed => State::Completed.name(), Incomplete => State::Incomplete.name(), Refused => State::Refused.name(),
    Failed => State::Failed.name(), Broken => State::Broken.name(), Limited => State::Limited.name(),
    Left => State::Left.name(), Cancelled => State::Cancelled.name(), Interrupted => State::Interrupted.name(),
);

impl FromSql for Label {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Label> {
        Label::new(value.as_str()?).ok_or_else(|| unreadable("a client's id"))
    }
}

impl FromSql for Client {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Client> {
        Client::parse(value.as_str()?).ok_or_else(|| unreadable("a client's name"))
    }
}

impl ToSql for Factor {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.to_string()))
    }
}

impl FromSql for Factor {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Factor> {
        Factor::parse(value.as_str()?).map_err(|_| unreadable("a markup"))
    }
}

impl ToSql for AtMost {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.get()))
    }
}

impl FromSql for AtMost {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<AtMost> {
        let limit = u32::try_from(value.as_i64()?).ok().and_then(AtMost::new);
        limit.ok_or_else(|| unreadable("a limit"))
    }
}

impl FromSql for ListName {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<ListName> {
        ListName::parse(value.as_str()?).map_err(|_| unreadable("a price list's name"))
    }
}

/// Text that holds JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Json<T>> {
        serde_json::from_str(value.as_str()?)
            .map(Json)
            .map_err(|e| FromSqlError::Other(Box::new(e)))
    }
}

/// JSON for a text column.
pub(super) fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// A count of tokens as a value.
pub(super) fn tokens(count: Tokens) -> ValueRef<'static> {
    ValueRef::Integer(i64::try_from(count.get()).unwrap_or(i64::MAX))
}

/// A text, or NULL.
pub(super) fn text(text: Option<&str>) -> ValueRef<'_> {
    text.map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes()))
}

/// The names of columns, and as many numbered parameters: `a, b` and `?1, ?2`.
pub(super) fn names_and_marks(names: &[&str], further: &[&str]) -> (String, String) {
    let names = [names, further].concat();
    let marks: Vec<String> = (1..=names.len()).map(|number| format!("?{number}")).collect();
    (names.join(", "), marks.join(", "))
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hash of its hexadecimal digits.
pub(super) fn hash(digits: &str) -> Option<Hash> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// A span in whole microseconds.
pub(super) fn micros(span: Duration) -> ValueRef<'static> {
    ValueRef::Integer(i64::try_from(span.as_micros()).unwrap_or(i64::MAX))
}

/// A span in whole microseconds, as a column.
pub(super) struct Span(pub(super) Duration);

impl FromSql for Span {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Span> {
        let micros = value.as_i64()?;
        u64::try_from(micros)
            .map(|micros| Span(Duration::from_micros(micros)))
            .map_err(|_| FromSqlError::OutOfRange(micros))
    }
}

/// A count or a sum of counts, as a column.
pub(super) struct Count(pub(super) u64);

impl FromSql for Count {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Count> {
        let count = value.as_i64()?;
        u64::try_from(count)
            .map(Count)
            .map_err(|_| FromSqlError::OutOfRange(count))
    }
}

/// The error of a column whose value was read but is not what it has to be.
pub(super) fn in_column(error: FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Null, Box::new(error))
}

/// The first and last id that begin with these hexadecimal digits; `None` when it is no beginning of an id.
pub(super) fn id_range(start: &str) -> Option<([u8; 16], [u8; 16])> {
    let digits: String = start.chars().filter(|c| *c != '-').collect();
    let fits = !digits.is_empty() && digits.len() <= 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let edge = |fill: &str| {
        let padding = fill.repeat(32_usize.saturating_sub(digits.len()));
        u128::from_str_radix(&format!("{digits}{padding}"), 16)
            .ok()
            .map(u128::to_be_bytes)
    };
    fits.then(|| Some((edge("0")?, edge("f")?))).flatten()
}

/// Whether a key is valid at a time.
pub(super) fn is_valid(key: &Key, at: Timestamp) -> Validity {
    let expired = key.expires_at.is_some_and(|end| end <= at);
    if expired || key.revoked_at.is_some() {
        Validity::Over
    } else {
        Validity::Valid
    }
}

/// Whether a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// It may.
    Valid,
    /// It was revoked, or it expired.
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_words_come_back<T: Word + PartialEq + std::fmt::Debug>() {
        for value in T::ALL {
            assert_eq!(T::from_word(value.word()), Some(*value));
        }
    }

    #[test]
    fn every_word_of_a_column_is_read_back() {
        all_words_come_back::<UserStatus>();
        all_words_come_back::<OnHangup>();
        all_words_come_back::<Basis>();
        all_words_come_back::<Tier>();
        all_words_come_back::<Endpoint>();
        all_words_come_back::<State>();
        all_words_come_back::<Kind>();
    }
}
