//! Redemption codes.

use jiff::Timestamp;
use uuid::Uuid;

use super::checks::check_words;
use super::{AdminError, Done, Forbidden, NAMED_MATCHES, Thing, Unusable, done, fill, invalid, new_id};
use crate::money::Usd;
use crate::redemption::{self, RedemptionCode};
use crate::store::codes::{NewCodes, NotRevoked, StoredCode};
use crate::store::entries::MAX_BALANCE;
use crate::store::{Actor, CodeId, Store};

/// Most codes that are made at once.
pub const MOST_CODES: u32 = 10_000;

/// Codes to make, all alike.
#[derive(Clone, Debug)]
pub struct CodeSpec {
    /// What each is worth.
    pub amount: Usd,
    /// How many.
    pub count: u32,
    /// From then on they are not redeemed.
    pub expires_at: Option<Timestamp>,
    /// A note, which is that of the credit too.
    pub note: Option<String>,
}

/// Makes redemption codes. This is the only time they are whole.
///
/// # Errors
/// An amount, count, time or note that cannot be used; the database failed.
pub fn create_codes(
    store: &Store,
    spec: &CodeSpec,
    by: &Actor,
    now: Timestamp,
) -> Done<Vec<(RedemptionCode, StoredCode)>> {
    if spec.amount <= Usd::ZERO || spec.amount > MAX_BALANCE {
        return invalid(Unusable::CodeAmount(spec.amount));
    }
    if !(1..=MOST_CODES).contains(&spec.count) {
        return invalid(Unusable::CodeCount(spec.count));
    }
    if spec.expires_at.is_some_and(|at| at <= now) {
        return invalid(Unusable::CodesExpired);
    }
    check_words(None, spec.note.as_deref())?;
    let count = usize::try_from(spec.count).unwrap_or(usize::MAX);
    // Made in the order in which they are listed.
    let mut ids = (0..count).map(|_| new_id(now)).collect::<Done<Vec<_>>>()?;
    ids.sort_unstable();
    let secret = |_| {
        let mut entropy = [0; redemption::SYMBOLS];
        fill(&mut entropy).map(|()| RedemptionCode::from_entropy(entropy))
    };
    let secrets = (0..count).map(secret).collect::<Done<Vec<_>>>()?;
    let codes = ids.into_iter().zip(&secrets);
    let codes = codes
        .map(|(id, secret)| (CodeId(id), secret.prefix(), secret.hash()))
        .collect();
    let new = NewCodes {
        codes,
        amount: spec.amount,
        note: spec.note.clone(),
        expires_at: spec.expires_at,
    };
    let made = done(store.create_codes(&new, by, now), |()| unheard_of(""))?;
    Ok(secrets.into_iter().zip(made).collect())
}

/// The one code with this id, or of which this is what is shown, or the start of it; the code itself does too.
///
/// # Errors
/// There is none, or several; the database failed.
pub fn code(store: &Store, which: &str) -> Done<StoredCode> {
    let shown = redemption::shown(which);
    let mut found = store.find_codes(Uuid::try_parse(which).ok(), shown.as_deref())?;
    if let Some(secret) = RedemptionCode::parse(which) {
        found.retain(|code| code.hash == secret.hash());
    }
    let name = shown.unwrap_or_else(|| which.to_owned());
    match (found.pop(), found.is_empty()) {
        (Some(code), true) => Ok(code),
        (Some(code), false) => Err(AdminError::Ambiguous {
            what: Thing::Code,
            name,
            matches: found
                .iter()
                .chain([&code])
                .take(NAMED_MATCHES as usize)
                .map(|code| code.id.to_string())
                .collect(),
        }),
        (None, _) => Err(unheard_of(&name)),
    }
}

fn unheard_of(name: &str) -> AdminError {
    AdminError::NotFound {
        what: Thing::Code,
        name: name.to_owned(),
        nearest: None,
    }
}

/// Revokes a code; revoking twice changes nothing.
///
/// # Errors
/// There is no such code, or it was redeemed; the database failed.
pub fn revoke_code(store: &Store, which: &str, by: &Actor, now: Timestamp) -> Done<StoredCode> {
    let found = code(store, which)?;
    done(store.revoke_code(found.id, by, now), |why| match why {
        NotRevoked::NoCode => unheard_of(&found.prefix),
        NotRevoked::Redeemed(redeemed) => AdminError::NotAllowed(Forbidden::Redeemed {
            code: found.prefix.clone(),
            user: redeemed.user_name,
            amount: found.amount,
        }),
    })
}
