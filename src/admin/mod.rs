//! What operators do, once, for the command line and every other door.

mod checks;
mod codes;
mod error;
mod keys;
mod prices;
mod refunds;
mod texts;
mod users;

use jiff::Timestamp;
use uuid::Uuid;

pub use self::codes::{CodeSpec, MOST_CODES, code, create_codes, revoke_code};
pub use self::error::{AdminError, AmountOf, Forbidden, Taken, TextOf, Thing, Unusable};
pub use self::keys::{Issued, KeySpec, change_key, issue_key, key, revoke_key, rotate_key};
pub use self::prices::{
    FieldChange, PriceChange, PriceSpec, Same, Unpriced, price, price_changes, price_differences, price_fields,
    set_prices, unpriced,
};
pub use self::refunds::{RefundSpec, refund};
use self::users::no_user;
pub use self::users::{CreditKind, CreditSpec, UserSpec, add_user, change_user, credit, set_status, user};
use crate::store::usage_log::ExchangeRow;
use crate::store::{Outcome, Store};

/// Most characters in a name, a note or a reference.
pub const LONGEST_TEXT: usize = 200;

/// Most characters in the name of a user or a key.
pub const LONGEST_NAME: usize = 64;

/// How many of the requests that begin alike are named.
const NAMED_MATCHES: u32 = 5;

type Done<T> = Result<T, AdminError>;

fn done<D, R>(outcome: Outcome<D, R>, refused: impl FnOnce(R) -> AdminError) -> Done<D> {
    match outcome {
        Outcome::Committed(value) => Ok(value),
        Outcome::Refused(why) => Err(refused(why)),
        Outcome::NotCommitted(error) => Err(AdminError::Storage(error)),
        Outcome::Unknown(error) => Err(AdminError::Unknown(error)),
    }
}

fn invalid<T>(what: Unusable) -> Done<T> {
    Err(AdminError::Invalid(what))
}

fn new_id(now: Timestamp) -> Done<Uuid> {
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let mut random = [0; 10];
    fill(&mut random)?;
    Ok(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

fn fill(bytes: &mut [u8]) -> Done<()> {
    getrandom::fill(bytes).or_else(|error| invalid(Unusable::NoRandom { why: error.to_string() }))
}

/// An exchange by its id, a unique start of it, or the upstream's response id.
///
/// # Errors
/// There is none, or several begin so; the database failed.
pub fn exchange(store: &Store, which: &str) -> Done<ExchangeRow> {
    if let Some(row) = store.find_exchange(which)? {
        return Ok(row);
    }
    let name = which.to_owned();
    let matches = store.exchanges_starting(which, NAMED_MATCHES)?;
    Err(match matches.is_empty() {
        true => AdminError::NotFound {
            what: Thing::Request,
            name,
            nearest: None,
        },
        false => AdminError::Ambiguous {
            what: Thing::Request,
            name,
            matches: matches.iter().map(ToString::to_string).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_of_the_given_time() {
        let at: Timestamp = "2026-11-24T00:00:00Z".parse().expect("a time");
        let id = new_id(at).expect("random");
        assert_eq!(id.get_version_num(), 7);
        let (seconds, _) = id.get_timestamp().expect("a time").to_unix();
        assert_eq!(i64::try_from(seconds), Ok(at.as_second()));
    }
}
