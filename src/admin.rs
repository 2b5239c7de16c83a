//! What operators do, once, for the command line and every other door.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::config::OnHangup;
use crate::key::GatewayKey;
use crate::money::Usd;
use crate::pricing::{ListName, Price};
use crate::route::nearest;
use crate::store::entries::{Credit, CreditRefused, Entry, MAX_BALANCE, Times};
use crate::store::keys::{Key, NewKey};
use crate::store::prices::PriceSource;
use crate::store::usage_log::ExchangeRow;
use crate::store::users::{NewUser, User, UserStatus, UserTaken};
use crate::store::{Actor, KeyId, Outcome, Store, StoreError, UserId};

/// Most characters in a name, a note or a reference.
pub const LONGEST_TEXT: usize = 200;

/// Most characters in the name of a user or a key.
pub const LONGEST_NAME: usize = 64;

/// How many of the requests that begin alike are named.
const NAMED_MATCHES: u32 = 5;

/// Why an act was not done. Nothing was written, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("there is no {what} '{name}'")]
    NotFound {
        /// `user`, `key`, `request`, `model`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// Several fit.
    #[error("'{name}' fits several {what}s")]
    Ambiguous {
        /// `key`, `request`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What fits, or the first of it.
        matches: Vec<String>,
    },
    /// The name is taken.
    #[error("there is already a {what} '{name}'")]
    Exists {
        /// `user`, `email address`, `reference`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A rule forbids it.
    #[error("{what}")]
    NotAllowed {
        /// What is forbidden, and why.
        what: String,
        /// What to do instead.
        fix: String,
    },
    /// A value cannot be used.
    #[error("{what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
        /// What would be right.
        fix: String,
    },
    /// The database failed; nothing was written.
    #[error("the database could not be used")]
    Storage(#[from] StoreError),
    /// The commit failed: it may or may not have been written.
    #[error("the database failed while writing: whether it was written shows only after a look")]
    Unknown(#[source] StoreError),
}

type Done<T> = Result<T, AdminError>;

fn done<D, R>(outcome: Outcome<D, R>, refused: impl FnOnce(R) -> AdminError) -> Done<D> {
    match outcome {
        Outcome::Committed(value) => Ok(value),
        Outcome::Refused(why) => Err(refused(why)),
        Outcome::NotCommitted(error) => Err(AdminError::Storage(error)),
        Outcome::Unknown(error) => Err(AdminError::Unknown(error)),
    }
}

fn invalid<T>(what: impl Into<String>, fix: impl Into<String>) -> Done<T> {
    Err(AdminError::Invalid {
        what: what.into(),
        fix: fix.into(),
    })
}

fn new_id(now: Timestamp) -> Done<Uuid> {
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let mut random = [0; 10];
    fill(&mut random)?;
    Ok(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

fn fill(bytes: &mut [u8]) -> Done<()> {
    getrandom::fill(bytes).or_else(|error| invalid(format!("the system gives no random bytes: {error}"), "try again"))
}

// ---- users

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
}

/// A handle: no spaces, and not to be taken for an e-mail address or an id.
fn check_user_name(name: &str) -> Done<()> {
    let odd = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let fix = "use a handle like alice or team-blue";
    if name.is_empty() || name.chars().count() > LONGEST_NAME {
        return invalid(format!("a user's name has 1 to {LONGEST_NAME} characters"), fix);
    }
    if name.starts_with('-') || name.chars().any(odd) {
        return invalid(
            "a user's name has no spaces or control characters and starts with no hyphen",
            fix,
        );
    }
    if name.contains('@') {
        return invalid("a user's name holds no @", "put the address into --email");
    }
    if Uuid::try_parse(name).is_ok() || name.starts_with("sk-") {
        return invalid("this name looks like an id or a key", fix);
    }
    Ok(())
}

fn check_email(email: &str) -> Done<()> {
    let fits = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty() && !domain.contains('@');
    let plain = email.len() <= LONGEST_TEXT && !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if plain && email.split_once('@').is_some_and(fits) {
        return Ok(());
    }
    invalid(
        format!("'{email}' is not an e-mail address"),
        "write it like alice@example.com",
    )
}

fn check_text(what: &str, text: &str) -> Done<()> {
    if text.is_empty() || text.chars().count() > LONGEST_TEXT || text.chars().any(char::is_control) {
        let fix = format!("use 1 to {LONGEST_TEXT} characters, no control characters");
        return invalid(format!("the {what} cannot be used"), fix);
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
    for (what, amount) in [("balance", spec.balance), ("credit line", spec.credit_line)] {
        if amount.is_negative() || amount > MAX_BALANCE {
            return invalid(
                format!("a {what} of {amount:#} cannot be given"),
                format!("write an amount like 5 or 0.25, from 0 to {MAX_BALANCE}"),
            );
        }
    }
    let new = NewUser {
        id: UserId(new_id(now)?),
        name: spec.name.clone(),
        email: spec.email.clone(),
        credit_line: spec.credit_line,
        balance: spec.balance,
    };
    done(store.add_user(&new, by, now), |taken| match taken {
        UserTaken::Name => AdminError::Exists {
            what: "user",
            name: spec.name.clone(),
        },
        UserTaken::Email => AdminError::Exists {
            what: "user with the address",
            name: spec.email.clone().unwrap_or_default(),
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
        what: "user",
        name: who.to_owned(),
        nearest: nearest(who, users.iter().map(|user| user.name.as_str())).map(str::to_owned),
    })
}

fn no_user(who: &str) -> AdminError {
    AdminError::NotFound {
        what: "user",
        name: who.to_owned(),
        nearest: None,
    }
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
        return invalid("zero is no amount to credit", "write an amount like 5 or 0.25");
    }
    if spec.amount.is_negative() && spec.kind == CreditKind::Credit {
        return Err(AdminError::NotAllowed {
            what: "a credit is not negative".into(),
            fix: format!(
                "say that it is a correction: gateway user credit {who} {} --adjust",
                spec.amount
            ),
        });
    }
    spec.reference
        .as_deref()
        .map_or(Ok(()), |text| check_text("reference", text))?;
    spec.note.as_deref().map_or(Ok(()), |text| check_text("note", text))?;
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
        CreditRefused::BelowHeld(user) => AdminError::NotAllowed {
            what: format!(
                "the balance of {:#} would fall below what is held by running calls, {:#}",
                user.balance, user.held
            ),
            fix: match user.unheld() {
                most if most > Usd::ZERO => format!("take out at most {most}"),
                _ => "nothing can be taken out now; a credit line is not paid out".into(),
            },
        },
        CreditRefused::OtherReference(entry) => AdminError::Exists {
            what: "different credit with the reference",
            name: entry.reference.unwrap_or_default(),
        },
        CreditRefused::TooLarge => AdminError::Invalid {
            what: format!("the balance of {:#} would become too large", found.balance),
            fix: format!("credit at most {}", MAX_BALANCE.saturating_sub(found.balance)),
        },
    }
}

// ---- keys

/// A key to issue.
#[derive(Clone, Debug, Default)]
pub struct KeySpec {
    /// What it is called; `None`: `key N`.
    pub name: Option<String>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// Globs of models it may use.
    pub models: Vec<String>,
    /// Where it may be used from.
    pub ips: Vec<IpNet>,
    /// What happens when its client leaves.
    pub on_hangup: Option<OnHangup>,
}

/// A key that was just made: the only time it is whole.
#[derive(Debug)]
pub struct Issued {
    /// The key itself, to be shown once.
    pub secret: GatewayKey,
    /// What is stored.
    pub key: Key,
}

fn new_secret() -> Done<GatewayKey> {
    let mut entropy = [0; 32];
    fill(&mut entropy)?;
    Ok(GatewayKey::from_entropy(entropy))
}

/// Issues a key to a user.
///
/// # Errors
/// No such user; a name, expiry or pattern that cannot be used; the database failed.
pub fn issue_key(store: &Store, who: &str, spec: &KeySpec, by: &Actor, now: Timestamp) -> Done<Issued> {
    if spec.expires_at.is_some_and(|at| at <= now) {
        return invalid("the key would already be expired", "give a time to come: --expires 30d");
    }
    if let Some(glob) = spec.models.iter().find(|glob| glob.is_empty()) {
        return invalid(
            format!("'{glob}' is not a pattern of models"),
            "write a name, or a pattern such as 'gpt-*'",
        );
    }
    let owner = user(store, who)?;
    let name = match &spec.name {
        Some(name) => name.clone(),
        None => format!("key {}", store.keys(Some(owner.id))?.len() + 1),
    };
    check_text("key's name", &name)?;
    let secret = new_secret()?;
    let new = NewKey {
        id: KeyId(new_id(now)?),
        user_id: owner.id,
        name,
        prefix: secret.prefix().to_owned(),
        hash: secret.hash(),
        expires_at: spec.expires_at,
        models: spec.models.clone(),
        ips: spec.ips.clone(),
        on_hangup: spec.on_hangup,
    };
    let key = done(store.issue_key(&new, by, now), |()| no_user(who))?;
    Ok(Issued { secret, key })
}

/// What may be said of a text that could be a key.
fn veiled(which: &str) -> String {
    if which.starts_with("sk-") && which.chars().count() > 16 {
        let start: String = which.chars().take(14).collect();
        return format!("{start}…");
    }
    which.to_owned()
}

/// The one key with this id, start of an id, or prefix; the key itself does too.
///
/// # Errors
/// There is none, with the nearest, or several; the database failed.
pub fn key(store: &Store, which: &str) -> Done<Key> {
    if let Ok(secret) = GatewayKey::parse(which)
        && let Some(key) = store.key_by_hash(&secret.hash())?
    {
        return Ok(Arc::unwrap_or_clone(key));
    }
    let mut found = store.find_keys(which)?;
    if found.is_empty() {
        // A start of what is shown will do, as long as it is one key's.
        found = store
            .keys(None)?
            .into_iter()
            .filter(|key| key.prefix.starts_with(which))
            .collect();
    }
    match (found.pop(), found.is_empty()) {
        (Some(key), true) => Ok(key),
        (Some(key), false) => Err(AdminError::Ambiguous {
            what: "key",
            name: veiled(which),
            matches: std::iter::once(&key)
                .chain(&found)
                .map(|key| format!("{} ({}/{})", key.prefix, key.user_name, key.name))
                .collect(),
        }),
        (None, _) => Err(AdminError::NotFound {
            what: "key",
            name: veiled(which),
            nearest: nearest_key(&store.keys(None)?, which),
        }),
    }
}

fn nearest_key(keys: &[Key], which: &str) -> Option<String> {
    if let Some(named) = keys.iter().find(|key| key.name == which) {
        return Some(named.prefix.clone());
    }
    nearest(which, keys.iter().map(|key| key.prefix.as_str())).map(str::to_owned)
}

fn no_key(which: &str) -> AdminError {
    AdminError::NotFound {
        what: "key",
        name: veiled(which),
        nearest: None,
    }
}

/// Revokes a key; revoking twice changes nothing.
///
/// # Errors
/// There is no such key; the database failed.
pub fn revoke_key(store: &Store, which: &str, by: &Actor, now: Timestamp) -> Done<Key> {
    let found = key(store, which)?;
    done(store.revoke_key(found.id, by, now), |()| no_key(which))
}

/// Issues a key in place of another, which stays valid until `old_until`.
///
/// # Errors
/// There is no such key, it is not valid any more, or it was rotated before; the database failed.
pub fn rotate_key(store: &Store, which: &str, old_until: Timestamp, by: &Actor, now: Timestamp) -> Done<Issued> {
    let old = key(store, which)?;
    let secret = new_secret()?;
    let new = NewKey {
        id: KeyId(new_id(now)?),
        user_id: old.user_id,
        name: old.name.clone(),
        prefix: secret.prefix().to_owned(),
        hash: secret.hash(),
        expires_at: old.expires_at,
        models: old.models.clone(),
        ips: old.ips.clone(),
        on_hangup: old.on_hangup,
    };
    let refused = |()| AdminError::NotAllowed {
        what: format!(
            "the key {} is revoked or expired, or has been rotated before",
            old.prefix
        ),
        fix: format!(
            "rotate the key in its place (gateway key list {0}), or issue another: gateway key issue {0}",
            old.user_name
        ),
    };
    let key = done(store.rotate_key(old.id, &new, old_until, by, now), refused)?;
    Ok(Issued { secret, key })
}

// ---- prices

/// A price to write.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceSpec {
    /// The list.
    pub list: ListName,
    /// The model.
    pub model: String,
    /// In force from.
    pub from: Timestamp,
    /// The rates.
    pub price: Price,
    /// What becomes of it when the catalogue says the same.
    pub same: Same,
}

/// What becomes of a price that is the catalogue's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// It is written: it holds when a later catalogue says something else.
    Pin,
    /// It is left out: the catalogue goes on deciding.
    Skip,
}

/// What writing a price would change.
#[derive(Clone, Debug)]
pub struct PriceChange {
    /// What would be written.
    pub spec: PriceSpec,
    /// Field, what is in force at that time, what would be.
    pub fields: Vec<(String, Option<String>, Option<String>)>,
}

/// What of the prices differs from those in force when they would begin. A price that is the operator's already is
/// left out; one that is only the catalogue's so far, as it says itself.
///
/// # Errors
/// The database failed.
pub fn price_changes(store: &Store, specs: Vec<PriceSpec>) -> Done<Vec<PriceChange>> {
    let mut changes = Vec::new();
    for spec in &specs {
        let before = store.price(&spec.list, &spec.model, spec.from)?;
        let mut fields = differences(before.as_ref().map(|row| row.price.as_ref()), &spec.price);
        if let (Some(row), true) = (&before, fields.is_empty()) {
            let comes_between = |other: &PriceSpec| {
                (&other.list, &other.model) == (&spec.list, &spec.model) && (row.from..spec.from).contains(&other.from)
            };
            let field = |name: &str, before: String, after: String| (name.to_owned(), Some(before), Some(after));
            fields.push(match (row.source, spec.same) {
                (PriceSource::Operator, _) if specs.iter().any(comes_between) => {
                    field("from", row.from.to_string(), spec.from.to_string())
                }
                (PriceSource::Operator, _) | (PriceSource::Catalogue, Same::Skip) => continue,
                (PriceSource::Catalogue, Same::Pin) => field(
                    "by",
                    row.source.word().to_owned(),
                    PriceSource::Operator.word().to_owned(),
                ),
            });
        }
        changes.push(PriceChange {
            spec: spec.clone(),
            fields,
        });
    }
    Ok(changes)
}

fn differences(before: Option<&Price>, after: &Price) -> Vec<(String, Option<String>, Option<String>)> {
    let before = before.map(price_fields).unwrap_or_default();
    let after = price_fields(after);
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .map(|name| (name.clone(), before.get(name).cloned(), after.get(name).cloned()))
        .filter(|(_, before, after)| before != after)
        .collect()
}

/// A price as flat fields: `rates.input`, `tiers.flex.rates.output`, `steps.0.above`.
pub fn price_fields(price: &Price) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let json = serde_json::from_str(&price.to_json()).unwrap_or(Value::Null);
    flatten("", &json, &mut fields);
    fields
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let under = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&under(key), value, into)),
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(at, value)| flatten(&under(&at.to_string()), value, into));
        }
        Value::String(text) => drop(into.insert(path.to_owned(), text.clone())),
        other => drop(into.insert(path.to_owned(), other.to_string())),
    }
}

/// Writes prices, all or none. The operator's rows win over the catalogue's from their date on; past bills stay.
///
/// # Errors
/// The database failed.
pub fn set_prices(store: &Store, changes: &[PriceChange], by: &Actor, now: Timestamp) -> Done<()> {
    let rows: Vec<_> = changes
        .iter()
        .map(|PriceChange { spec, .. }| (spec.list.clone(), spec.model.clone(), spec.from, spec.price.clone()))
        .collect();
    done(store.set_prices(&rows, by, now), |()| AdminError::NotAllowed {
        what: "the prices were not written".into(),
        fix: "see that each model is there once".into(),
    })
}

/// The price of a model in a list at a time.
///
/// # Errors
/// There is none, with the nearest model that has one; the database failed.
pub fn price(store: &Store, list: &ListName, model: &str, at: Timestamp) -> Done<(Price, PriceSource)> {
    if let Some(row) = store.price(list, model, at)? {
        return Ok((row.price.as_ref().clone(), row.source));
    }
    let rows = store.prices(Some(list), None, at)?;
    Err(AdminError::NotFound {
        what: "price for the model",
        name: format!("{model}' in the list '{list}"),
        nearest: nearest(model, rows.iter().map(|row| row.model.as_str())).map(str::to_owned),
    })
}

// ---- exchanges

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
            what: "request",
            name,
            nearest: None,
        },
        false => AdminError::Ambiguous {
            what: "request",
            name,
            matches: matches.iter().map(ToString::to_string).collect(),
        },
    })
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

    #[test]
    fn a_whole_key_is_never_quoted() {
        let key = "sk-gw-0123456789abcdefghijklmnopqrstuvwxyz";
        assert_eq!(veiled(key), "sk-gw-01234567…");
        assert_eq!(veiled("sk-gw-0123"), "sk-gw-0123");
    }

    #[test]
    fn a_price_differs_where_its_fields_do() {
        let of = |text: &str| Price::from_json(text).expect("a price");
        let old = of(r#"{"kind":"text","rates":{"input":"1","output":"2"}}"#);
        let new = of(r#"{"kind":"text","rates":{"input":"1","output":"3","cached_input":"0.1"}}"#);
        assert_eq!(
            differences(Some(&old), &new),
            [
                ("rates.cached_input".to_owned(), None, Some("0.1".to_owned())),
                ("rates.output".to_owned(), Some("2".to_owned()), Some("3".to_owned())),
            ]
        );
        assert!(differences(Some(&old), &old).is_empty());
        assert_eq!(differences(None, &old).len(), 3);
    }

    #[test]
    fn ids_are_made_of_the_given_time() {
        let at: Timestamp = "2026-11-24T00:00:00Z".parse().expect("a time");
        let id = new_id(at).expect("random");
        assert_eq!(id.get_version_num(), 7);
        let (seconds, _) = id.get_timestamp().expect("a time").to_unix();
        assert_eq!(i64::try_from(seconds), Ok(at.as_second()));
    }
}
