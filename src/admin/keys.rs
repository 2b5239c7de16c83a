//! Gateway keys.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::checks::{check_changes, check_periods, check_text};
use super::{AdminError, Done, Forbidden, TextOf, Thing, Unusable, done, fill, invalid, new_id, no_user, user};
use crate::budget::Budget;
use crate::config::OnHangup;
use crate::key::GatewayKey;
use crate::limits::Rates;
use crate::route::nearest;
use crate::store::keys::{Key, KeyChange, KeyUnchanged, NewKey};
use crate::store::{Actor, KeyId, Store};

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
    /// What it may spend at most.
    pub budgets: Vec<Budget>,
    /// How often and how much at once; what is `None` is as the settings say.
    pub rates: Rates,
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

fn check_models(globs: &[String]) -> Done<()> {
    if globs.iter().any(String::is_empty) {
        return invalid(Unusable::NoPattern);
    }
    Ok(())
}

/// Issues a key to a user.
///
/// # Errors
/// No such user; a name, expiry or pattern that cannot be used; the database failed.
pub fn issue_key(store: &Store, who: &str, spec: &KeySpec, by: &Actor, now: Timestamp) -> Done<Issued> {
    if spec.expires_at.is_some_and(|at| at <= now) {
        return invalid(Unusable::NewKeyExpired);
    }
    check_models(&spec.models)?;
    check_periods(spec.budgets.iter().map(|budget| budget.period))?;
    let owner = user(store, who)?;
    let name = match &spec.name {
        Some(name) => name.clone(),
        None => format!("key {}", store.keys(Some(owner.id))?.len() + 1),
    };
    check_text(TextOf::KeyName, &name)?;
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
        budgets: None,
        limits: spec.budgets.clone(),
        rates: spec.rates,
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
            what: Thing::Key,
            name: veiled(which),
            matches: std::iter::once(&key)
                .chain(&found)
                .map(|key| format!("{} ({}/{})", key.prefix, key.user_name, key.name))
                .collect(),
        }),
        (None, _) => Err(AdminError::NotFound {
            what: Thing::Key,
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
        what: Thing::Key,
        name: veiled(which),
        nearest: None,
    }
}

/// Changes what a key may do; a running server knows at once.
///
/// # Errors
/// No such key, one that is revoked or was rotated, a value that cannot be used; the database failed.
pub fn change_key(store: &Store, which: &str, change: &KeyChange, by: &Actor, now: Timestamp) -> Done<Key> {
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_text(TextOf::KeyName, name))?;
    change.models.as_deref().map_or(Ok(()), check_models)?;
    check_changes(&change.budgets)?;
    if change.expires_at.flatten().is_some_and(|at| at <= now) {
        return invalid(Unusable::KeyExpired);
    }
    let found = key(store, which)?;
    done(store.change_key(found.id, change, by, now), |why| match why {
        KeyUnchanged::NoKey => no_key(which),
        KeyUnchanged::Over => AdminError::NotAllowed(Forbidden::KeyOver {
            key: found.prefix.clone(),
            user: found.user_name.clone(),
        }),
    })
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
        budgets: Some(old.budgets),
        limits: Vec::new(),
        rates: old.rates,
    };
    let refused = |()| {
        AdminError::NotAllowed(Forbidden::NotRotated {
            key: old.prefix.clone(),
            user: old.user_name.clone(),
        })
    };
    let key = done(store.rotate_key(old.id, &new, old_until, by, now), refused)?;
    Ok(Issued { secret, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_key_is_never_quoted() {
        let key = "sk-gw-0123456789abcdefghijklmnopqrstuvwxyz";
        assert_eq!(veiled(key), "sk-gw-01234567…");
        assert_eq!(veiled("sk-gw-0123"), "sk-gw-0123");
    }
}
