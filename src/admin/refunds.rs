//! Charges given back.

use jiff::Timestamp;

use super::checks::check_words;
use super::{AdminError, Done, Forbidden, Taken, Unusable, done, exchange, invalid};
use crate::money::Usd;
use crate::store::refunds::{Refund, RefundRefused, Refunded};
use crate::store::usage_log::ExchangeRow;
use crate::store::{Actor, Store};

/// A charge to give back.
#[derive(Clone, Debug, Default)]
pub struct RefundSpec {
    /// How much of it; `None`: all that is left.
    pub amount: Option<Usd>,
    /// The operator's reference; the same one refunds once.
    pub reference: Option<String>,
    /// The operator's note.
    pub note: Option<String>,
}

/// Gives a charge back, to the balance it was taken from. Repeating a reference gives the first entry again.
///
/// # Errors
/// No such exchange, one that is running or took nothing, more than is left, a reference used otherwise.
pub fn refund(store: &Store, which: &str, spec: &RefundSpec, by: &Actor, now: Timestamp) -> Done<Refunded> {
    if spec.amount.is_some_and(|amount| amount <= Usd::ZERO) {
        return invalid(Unusable::ZeroRefund);
    }
    check_words(spec.reference.as_deref(), spec.note.as_deref())?;
    let row = match exchange(store, which) {
        Err(AdminError::NotFound { .. }) if store.is_running(which)? => {
            return Err(AdminError::NotAllowed(Forbidden::Running {
                request: which.to_owned(),
            }));
        }
        other => other?,
    };
    let refund = Refund {
        exchange: row.id,
        amount: spec.amount,
        reference: spec.reference.clone(),
        note: spec.note.clone(),
    };
    done(store.refund(&refund, by, now), |why| refund_refused(&row, why))
}

fn refund_refused(row: &ExchangeRow, why: RefundRefused) -> AdminError {
    let request = row.id.0;
    match why {
        RefundRefused::NothingCharged => AdminError::NotAllowed(Forbidden::NothingCharged { request }),
        RefundRefused::TooMuch(Usd::ZERO) => AdminError::NotAllowed(Forbidden::GivenBack { request }),
        RefundRefused::TooMuch(left) => AdminError::NotAllowed(Forbidden::MoreThanLeft { request, left }),
        RefundRefused::OtherReference(entry) => AdminError::Exists {
            what: Taken::Entry,
            // It was found by it.
            name: entry.reference.unwrap_or_default(),
        },
        RefundRefused::TooLarge => AdminError::NotAllowed(Forbidden::RefundTooLarge),
    }
}
