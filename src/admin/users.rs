//! Users, and what is put into their balances.

use jiff::Timestamp;
use uuid::Uuid;

use super::checks::{check_changes, check_periods, check_words};
use super::{
    AdminError, AmountOf, Done, Forbidden, LONGEST_NAME, LONGEST_TEXT, Taken, Thing, Unusable, done, invalid, new_id,
};
use crate::budget::Budget;
use crate::limits::Rates;
use crate::money::Usd;
use crate::route::nearest;
use crate::store::entries::{Credit, CreditRefused, Entry, MAX_BALANCE, Times};
use crate::store::users::{NewUser, User, UserChange, UserStatus, UserTaken, UserUnchanged};
use crate::store::{Actor, Store, UserId};

/// A user to add.
#[derive(Clone, Debug)]
pub struct UserSpec {
    /// Any handle without spaces.
    pub name: String,
    /// An e-mail address.
    pub email: Option<String>,
    /// The first credit.
    pub balance: Usd,
    /// How far below zero the balance may go.
    pub credit_line: Usd,
    /// What the user may spend at most.
    pub budgets: Vec<Budget>,
    /// How often and how much at once, all keys together.
    pub rates: Rates,
}

/// A handle: no spaces, and not to be taken for an e-mail address or an id.
fn check_user_name(name: &str) -> Done<()> {
    let odd = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if name.is_empty() || name.chars().count() > LONGEST_NAME {
        return invalid(Unusable::UserNameLength);
    }
    if name.starts_with('-') || name.chars().any(odd) {
        return invalid(Unusable::UserNameCharacters);
    }
    if name.contains('@') {
        return invalid(Unusable::UserNameAt);
    }
    if Uuid::try_parse(name).is_ok() || name.starts_with("sk-") {
        return invalid(Unusable::UserNameLikeId);
    }
    Ok(())
}

fn check_email(email: &str) -> Done<()> {
    let fits = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty() && !domain.contains('@');
    let plain = email.len() <= LONGEST_TEXT && !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if plain && email.split_once('@').is_some_and(fits) {
        return Ok(());
    }
    invalid(Unusable::Email(email.to_owned()))
}

fn check_amount(what: AmountOf, amount: Usd) -> Done<()> {
    if amount.is_negative() || amount > MAX_BALANCE {
        return invalid(Unusable::Amount { what, amount });
    }
    Ok(())
}

/// Adds a user, with the first credit.
///
/// # Errors
/// The name or address is taken or cannot be used, an amount is negative, the database failed.
pub fn add_user(store: &Store, spec: &UserSpec, by: &Actor, now: Timestamp) -> Done<User> {
    check_user_name(&spec.name)?;
    spec.email.as_deref().map_or(Ok(()), check_email)?;
    check_amount(AmountOf::Balance, spec.balance)?;
    check_amount(AmountOf::CreditLine, spec.credit_line)?;
    check_periods(spec.budgets.iter().map(|budget| budget.period))?;
    let new = NewUser {
        id: UserId(new_id(now)?),
        name: spec.name.clone(),
        email: spec.email.clone(),
        credit_line: spec.credit_line,
        balance: spec.balance,
        budgets: spec.budgets.clone(),
        rates: spec.rates,
    };
    done(store.add_user(&new, by, now), |taken| match taken {
        UserTaken::Name => AdminError::Exists {
            what: Taken::User,
            name: spec.name.clone(),
        },
        UserTaken::Email(name) => AdminError::Exists {
            what: Taken::Email,
            name,
        },
    })
}

/// A user by name, e-mail address or id.
///
/// # Errors
/// There is none, with the nearest name; the database failed.
pub fn user(store: &Store, who: &str) -> Done<User> {
    if let Some(user) = store.find_user(who)? {
        return Ok(user);
    }
    let users = store.users()?;
    Err(AdminError::NotFound {
        what: Thing::User,
        name: who.to_owned(),
        nearest: nearest(who, users.iter().map(|user| user.name.as_str())).map(str::to_owned),
    })
}

pub(super) fn no_user(who: &str) -> AdminError {
    AdminError::NotFound {
        what: Thing::User,
        name: who.to_owned(),
        nearest: None,
    }
}

/// Changes what a user may do and pays.
///
/// # Errors
/// No such user, a credit line that does not cover what is in use, a budget that is named twice; the database failed.
pub fn change_user(store: &Store, who: &str, change: &UserChange, by: &Actor, now: Timestamp) -> Done<User> {
    change
        .credit_line
        .map_or(Ok(()), |amount| check_amount(AmountOf::CreditLine, amount))?;
    check_changes(&change.budgets)?;
    let found = user(store, who)?;
    done(store.change_user(found.id, change, by, now), |why| match why {
        UserUnchanged::NoUser => no_user(who),
        UserUnchanged::CreditLineInUse(user) => AdminError::NotAllowed(Forbidden::CreditLineInUse {
            credit_line: user.credit_line,
            balance: user.balance,
            held: user.held,
            least: Usd::ZERO.saturating_sub(user.unheld()),
        }),
    })
}

/// Suspends or activates a user.
///
/// # Errors
/// There is no such user; the database failed.
pub fn set_status(store: &Store, who: &str, to: UserStatus, by: &Actor, now: Timestamp) -> Done<User> {
    let found = user(store, who)?;
    done(store.set_user_status(found.id, to, by, now), |()| no_user(who))
}

/// Money to put into a balance, or to take out of it.
#[derive(Clone, Debug)]
pub struct CreditSpec {
    /// How much.
    pub amount: Usd,
    /// Whether it may be negative.
    pub kind: CreditKind,
    /// The operator's reference; the same one credits once.
    pub reference: Option<String>,
    /// The operator's note.
    pub note: Option<String>,
}

/// What kind of credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditKind {
    /// Money came in.
    Credit,
    /// A correction, up or down.
    Adjustment,
}

/// Credits a user. Repeating a reference gives the first entry again.
///
/// # Errors
/// No such user, an amount that does not fit the kind, a balance below what is held, a reference used otherwise.
pub fn credit(store: &Store, who: &str, spec: &CreditSpec, by: &Actor, now: Timestamp) -> Done<(Entry, User, Times)> {
    if spec.amount == Usd::ZERO {
        return invalid(Unusable::ZeroCredit);
    }
    if spec.amount.is_negative() && spec.kind == CreditKind::Credit {
        return Err(AdminError::NotAllowed(Forbidden::NegativeCredit {
            user: who.to_owned(),
            amount: spec.amount,
        }));
    }
    check_words(spec.reference.as_deref(), spec.note.as_deref())?;
    let found = user(store, who)?;
    let credit = Credit {
        user: found.id,
        amount: spec.amount,
        adjustment: spec.kind == CreditKind::Adjustment,
        reference: spec.reference.clone(),
        note: spec.note.clone(),
    };
    done(store.credit(&credit, by, now), |why| credit_refused(&found, why))
}

fn credit_refused(found: &User, why: CreditRefused) -> AdminError {
    match why {
        CreditRefused::NoUser => no_user(&found.name),
        CreditRefused::BelowHeld(user) => AdminError::NotAllowed(Forbidden::BelowHeld {
            balance: user.balance,
            held: user.held,
            most: Some(user.unheld()).filter(|most| *most > Usd::ZERO),
        }),
        CreditRefused::OtherReference(entry) => AdminError::Exists {
            what: Taken::Credit,
            // It was found by it.
            name: entry.reference.unwrap_or_default(),
        },
        CreditRefused::TooLarge => AdminError::Invalid(Unusable::BalanceTooLarge { balance: found.balance }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_not_to_be_taken_for_an_address_or_an_id() {
        for fine in ["alice", "团队", "a.b_c-d", "7", "O'Neil"] {
            assert!(check_user_name(fine).is_ok(), "{fine}");
        }
        let long = "x".repeat(65);
        for wrong in [
            "",
            "a b",
            "a\tb",
            "a@b.c",
            "-x",
            "a\u{202e}b",
            "0190f0a0-0000-7000-8000-000000000000",
            "sk-gw-x",
            &long,
        ] {
            assert!(check_user_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_has_two_halves() {
        assert!(check_email("a@b.example").is_ok());
        for wrong in ["a", "@b", "a@", "a@b@c", "a b@c", "a@b\n"] {
            assert!(check_email(wrong).is_err(), "{wrong:?}");
        }
    }
}
