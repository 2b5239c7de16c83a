//! Keys: hashes of gateway keys, whose they are and what they may do.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::audit::{self, Act};
use super::budgets::{self, Change, Spender};
use super::columns::{Json, Micros, Validity, Word, hex, id_range, in_column, is_valid, json, unreadable};
use super::users::{self, UserStatus};
use super::{Actor, KeyId, Outcome, Store, StoreError, Tried, UserId};
use crate::budget::Budget;
use crate::config::OnHangup;
use crate::key::KeyHash;
use crate::limits::{Rates, RatesChange};
use crate::pricing::Factor;
use crate::route::model_allowed;
use crate::texts::Language;

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The id.
    pub id: KeyId,
    /// Whose it is.
    pub user_id: UserId,
    /// The user's name.
    pub user_name: String,
    /// What it is called: `laptop`, `key 1`.
    pub name: String,
    /// What is shown of it.
    pub prefix: String,
    /// What is stored of it.
    pub hash: KeyHash,
    /// When it stops working by itself; a rotated key's grace ends here too.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Globs of the models it may use; empty: all.
    pub models: Vec<String>,
    /// Where it may be used from; empty: anywhere.
    pub ips: Vec<IpNet>,
    /// What happens when its client leaves; `None`: the setting.
    pub on_hangup: Option<OnHangup>,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it was last used, to a minute.
    pub last_used_at: Option<Timestamp>,
    /// The key whose budgets and limits it shares: its own, or that of the key it was rotated from.
    pub budgets: KeyId,
    /// How often and how much at once; what is `None` is as the settings say.
    pub rates: Rates,
    /// The same of all keys of its user together; what is `None` has no limit.
    pub user_rates: Rates,
    /// What its user pays per dollar of cost; `None`: as the settings say.
    pub user_markup: Option<Factor>,
    /// The language of what its user is told; `None`: as the client asks.
    pub user_language: Option<Language>,
    /// Whether its user is suspended (checked once more in the hold's WHERE).
    pub user_suspended: bool,
}

impl Key {
    /// Whether it may use a model.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || model_allowed(&self.models, model)
    }
}

/// A key to issue.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The id to give.
    pub id: KeyId,
    /// Whose it will be.
    pub user_id: UserId,
    /// What it is called.
    pub name: String,
    /// What is shown.
    pub prefix: String,
    /// What is stored.
    pub hash: KeyHash,
    /// When it stops working by itself.
    pub expires_at: Option<Timestamp>,
    /// Globs of models.
    pub models: Vec<String>,
    /// Where from.
    pub ips: Vec<IpNet>,
    /// What happens when its client leaves.
    pub on_hangup: Option<OnHangup>,
    /// The key whose budgets it shares; `None`: its own.
    pub budgets: Option<KeyId>,
    /// What it may spend at most.
    pub limits: Vec<Budget>,
    /// How often and how much at once.
    pub rates: Rates,
}

/// What to change of a key; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    /// What it is called.
    pub name: Option<String>,
    /// When it stops working by itself; `Some(None)`: not.
    pub expires_at: Option<Option<Timestamp>>,
    /// Globs of models; empty: all.
    pub models: Option<Vec<String>>,
    /// Where from; empty: anywhere.
    pub ips: Option<Vec<IpNet>>,
    /// What happens when its client leaves; `Some(None)`: as the settings say.
    pub on_hangup: Option<Option<OnHangup>>,
    /// Budgets.
    pub budgets: Vec<Change>,
    /// How often and how much at once.
    pub rates: RatesChange,
}

/// Why a key was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUnchanged {
    /// No such key.
    NoKey,
    /// It is revoked, or is in the grace of its rotation. (One that has expired may be given another end.)
    Over,
}

/// The columns of a key with its user, from `api_keys k JOIN users u`.
const KEY: &str =
    "k.id, k.user_id, u.name AS user_name, k.name, k.prefix, k.hash, k.expires_at, k.revoked_at, k.models, k.ips,
    k.on_hangup, k.created_at, k.last_used_at, u.status, COALESCE(k.budget_id, k.id) AS budgets, u.markup, u.language,
    k.rpm, k.tpm, k.concurrency, u.rpm AS user_rpm, u.tpm AS user_tpm, u.concurrency AS user_concurrency";

/// Where keys come from.
const FROM: &str = "FROM api_keys k JOIN users u ON u.id = k.user_id";

/// Selects keys.
pub(super) fn select(rest: &str) -> String {
    format!("SELECT {KEY} {FROM} {rest}")
}

/// Reads a key.
pub(super) fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    let time = |column: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<Micros>>(column)?.map(|at| at.0));
    let ips: Json<Vec<String>> = row.get("ips")?;
    Ok(Key {
        id: row.get("id")?,
        user_id: row.get("user_id")?,
        user_name: row.get("user_name")?,
        name: row.get("name")?,
        prefix: row.get("prefix")?,
        hash: KeyHash(row.get("hash")?),
        expires_at: time("expires_at")?,
        revoked_at: time("revoked_at")?,
        models: row.get::<_, Json<Vec<String>>>("models")?.0,
        ips: ips.0.iter().map(|ip| network(ip)).collect::<Result<_, _>>()?,
        on_hangup: row.get("on_hangup")?,
        created_at: row.get::<_, Micros>("created_at")?.0,
        last_used_at: time("last_used_at")?,
        budgets: row.get("budgets")?,
        rates: Rates {
            rpm: row.get("rpm")?,
            tpm: row.get("tpm")?,
            concurrency: row.get("concurrency")?,
        },
        user_rates: Rates {
            rpm: row.get("user_rpm")?,
            tpm: row.get("user_tpm")?,
            concurrency: row.get("user_concurrency")?,
        },
        user_markup: row.get("markup")?,
        user_language: row.get("language")?,
        user_suspended: row.get::<_, UserStatus>("status")? == UserStatus::Suspended,
    })
}

fn network(text: &str) -> rusqlite::Result<IpNet> {
    text.parse().map_err(|_| in_column(unreadable("an address range")))
}

/// What the audit log keeps of a key, and `verify` compares.
pub(super) fn audited(key: &Key) -> serde_json::Value {
    serde_json::json!({
        "user": key.user_id.to_string(),
        "name": key.name,
        "prefix": key.prefix,
        "hash": hex(&key.hash.0),
        "expires_at": key.expires_at.map(Timestamp::as_microsecond),
        "revoked_at": key.revoked_at.map(Timestamp::as_microsecond),
        "models": key.models,
        "ips": key.ips.iter().map(IpNet::to_string).collect::<Vec<_>>(),
        "on_hangup": key.on_hangup.map(Word::word),
        "budgets": (key.budgets != key.id).then(|| key.budgets.to_string()),
        "rpm": key.rates.rpm,
        "tpm": key.rates.tpm,
        "concurrency": key.rates.concurrency,
    })
}

fn by_id(conn: &Connection, id: KeyId) -> rusqlite::Result<Option<Key>> {
    conn.prepare_cached(&select("WHERE k.id = ?1"))?
        .query_row([id], key)
        .optional()
}

fn there(conn: &Connection, id: KeyId) -> rusqlite::Result<Key> {
    by_id(conn, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

fn issue(tx: &Connection, new: &NewKey, by: &Actor, now: Timestamp) -> Tried<Key, ()> {
    if let Some(there) = by_id(tx, new.id)? {
        return Ok(Ok(there));
    }
    if users::by_id(tx, new.user_id)?.is_none() {
        return Ok(Err(()));
    }
    let ips: Vec<String> = new.ips.iter().map(IpNet::to_string).collect();
    tx.prepare_cached(
        "INSERT INTO api_keys (id, user_id, name, prefix, hash, expires_at, models, ips, on_hangup, created_at, budget_id,
                               rpm, tpm, concurrency)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?
    .execute(params![
        new.id,
        new.user_id,
        new.name,
        new.prefix,
        new.hash.0,
        new.expires_at.map(Micros),
        json(&new.models)?,
        json(&ips)?,
        new.on_hangup,
        Micros(now),
        new.budgets,
        new.rates.rpm,
        new.rates.tpm,
        new.rates.concurrency,
    ])?;
    let issued = there(tx, new.id)?;
    let subject = new.id.to_string();
    audit::record(
        tx,
        &Act {
            by,
            at: now,
            action: "key.issue",
            subject,
            before: None,
            after: audited(&issued).to_string(),
        },
    )?;
    let limits: Vec<Change> = new.limits.iter().map(|budget| Change::Set(*budget)).collect();
    budgets::change(tx, Spender::Key(issued.budgets), &limits, (by, now))?;
    Ok(Ok(issued))
}

fn set(tx: &Connection, id: KeyId, to: &KeyChange, by: &Actor, now: Timestamp) -> Tried<Key, KeyUnchanged> {
    let Some(before) = by_id(tx, id)? else {
        return Ok(Err(KeyUnchanged::NoKey));
    };
    // The end of a key that was rotated is that of its grace.
    let has_heir = audit::last_state(tx, "key.rotate", &id.to_string())?.is_some();
    if before.revoked_at.is_some() || has_heir {
        return Ok(Err(KeyUnchanged::Over));
    }
    let to_be = to.clone();
    let after = Key {
        name: to_be.name.unwrap_or_else(|| before.name.clone()),
        expires_at: to_be.expires_at.unwrap_or(before.expires_at),
        models: to_be.models.unwrap_or_else(|| before.models.clone()),
        ips: to_be.ips.unwrap_or_else(|| before.ips.clone()),
        on_hangup: to_be.on_hangup.unwrap_or(before.on_hangup),
        rates: to_be.rates.of(before.rates),
        ..before.clone()
    };
    if after != before {
        let ips: Vec<String> = after.ips.iter().map(IpNet::to_string).collect();
        tx.execute(
            "UPDATE api_keys SET name = ?2, expires_at = ?3, models = ?4, ips = ?5, on_hangup = ?6,
                    rpm = ?7, tpm = ?8, concurrency = ?9
             WHERE id = ?1",
            params![
                id,
                after.name,
                after.expires_at.map(Micros),
                json(&after.models)?,
                json(&ips)?,
                after.on_hangup,
                after.rates.rpm,
                after.rates.tpm,
                after.rates.concurrency,
            ],
        )?;
        let act = Act {
            by,
            at: now,
            action: "key.set",
            subject: id.to_string(),
            before: Some(audited(&before).to_string()),
            after: audited(&there(tx, id)?).to_string(),
        };
        audit::record(tx, &act)?;
    }
    budgets::change(tx, Spender::Key(before.budgets), &to.budgets, (by, now))?;
    there(tx, id).map(Ok)
}

/// Changes a key and writes the change down.
fn change(
    tx: &Connection,
    before: &Key,
    action: &'static str,
    (sql, at): (&str, Timestamp),
    (by, now): (&Actor, Timestamp),
) -> rusqlite::Result<Key> {
    tx.execute(sql, params![before.id, Micros(at)])?;
    let after = there(tx, before.id)?;
    let act = Act {
        by,
        at: now,
        action,
        subject: before.id.to_string(),
        before: Some(audited(before).to_string()),
        after: audited(&after).to_string(),
    };
    audit::record(tx, &act)?;
    Ok(after)
}

fn revoke(tx: &Connection, id: KeyId, by: &Actor, now: Timestamp) -> Tried<Key, ()> {
    match by_id(tx, id)? {
        None => Ok(Err(())),
        Some(key) if key.revoked_at.is_some() => Ok(Ok(key)),
        Some(key) => {
            let sql = "UPDATE api_keys SET revoked_at = ?2 WHERE id = ?1";
            change(tx, &key, "key.revoke", (sql, now), (by, now)).map(Ok)
        }
    }
}

/// A key to issue in place of another, with its permissions.
fn rotate(
    tx: &Connection,
    old: KeyId,
    new: &NewKey,
    old_until: Timestamp,
    (by, now): (&Actor, Timestamp),
) -> Tried<Key, ()> {
    if let Some(there) = by_id(tx, new.id)? {
        return Ok(Ok(there));
    }
    let Some(key) = by_id(tx, old)?.filter(|key| is_valid(key, now) == Validity::Valid) else {
        return Ok(Err(()));
    };
    // Its end is that of its grace, which is none for its heir to have.
    if audit::last_state(tx, "key.rotate", &old.to_string())?.is_some() {
        return Ok(Err(()));
    }
    let until = key.expires_at.map_or(old_until, |end| end.min(old_until));
    let sql = "UPDATE api_keys SET expires_at = ?2 WHERE id = ?1";
    change(tx, &key, "key.rotate", (sql, until), (by, now))?;
    let heir = NewKey {
        user_id: key.user_id,
        models: key.models,
        ips: key.ips,
        on_hangup: key.on_hangup,
        budgets: Some(key.budgets),
        limits: Vec::new(),
        rates: key.rates,
        ..new.clone()
    };
    issue(tx, &heir, by, now)
}

/// Notes uses; part of a transaction.
pub(super) fn touch(tx: &Connection, used: &[(KeyId, Timestamp)]) -> rusqlite::Result<()> {
    let mut update = tx.prepare_cached(
        "UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2)",
    )?;
    for (id, at) in used {
        update.execute(params![id, Micros(*at)])?;
    }
    Ok(())
}

impl Store {
    /// Issues a key; the refusal is: no such user. Issuing the same id twice gives the key that is there.
    pub fn issue_key(&self, new: &NewKey, by: &Actor, now: Timestamp) -> Outcome<Key, ()> {
        self.write("issuing a key", |tx| issue(tx, new, by, now))
    }

    /// Keys by id (whole, or a unique start of it) or by shown prefix (or a whole key that begins with it); several
    /// when it is not unique.
    pub fn find_keys(&self, which: &str) -> Result<Vec<Key>, StoreError> {
        let range = id_range(which);
        if let Some((id, _)) = range.filter(|(low, high)| low == high) {
            // By a prefix all keys are looked through.
            let found = self.read("looking up a key", |conn| by_id(conn, KeyId(Uuid::from_bytes(id))));
            return Ok(found?.into_iter().collect());
        }
        self.read("looking for a key", |conn| {
            let (low, high) = range.unzip();
            conn.prepare_cached(&select(
                "WHERE k.id BETWEEN ?2 AND ?3 OR (k.prefix <> '' AND substr(?1, 1, length(k.prefix)) = k.prefix)
                 ORDER BY k.created_at, k.id",
            ))?
            .query_map(params![which, low, high], key)?
            .collect()
        })
    }

    /// A user's keys, or all, in the order of issue.
    pub fn keys(&self, of: Option<UserId>) -> Result<Vec<Key>, StoreError> {
        self.read("reading the keys", |conn| {
            conn.prepare_cached(&select(
                "WHERE ?1 IS NULL OR k.user_id = ?1 ORDER BY k.created_at, k.id",
            ))?
            .query_map([of], key)?
            .collect()
        })
    }

    /// Changes a key, in one transaction.
    pub fn change_key(&self, id: KeyId, to: &KeyChange, by: &Actor, now: Timestamp) -> Outcome<Key, KeyUnchanged> {
        self.write("changing a key", |tx| set(tx, id, to, by, now))
    }

    /// Revokes at `now`; revoking twice changes nothing. The refusal is: no such key.
    pub fn revoke_key(&self, id: KeyId, by: &Actor, now: Timestamp) -> Outcome<Key, ()> {
        self.write("revoking a key", |tx| revoke(tx, id, by, now))
    }

    /// Issues `new` with the old key's permissions, and lets the old one end at `old_until`, in one transaction.
    /// The refusal is: no such key, or it is not valid any more, or it has an heir already.
    pub fn rotate_key(
        &self,
        old: KeyId,
        new: &NewKey,
        old_until: Timestamp,
        by: &Actor,
        now: Timestamp,
    ) -> Outcome<Key, ()> {
        self.write("rotating a key", |tx| rotate(tx, old, new, old_until, (by, now)))
    }

    /// Another number whenever somebody else than calls wrote to the database: keys, users or prices may be others.
    pub fn generation(&self) -> u64 {
        self.caches().generation()
    }

    /// The key with this hash as far as memory knows; unknown ones, too.
    pub fn known_key(&self, hash: &KeyHash) -> Option<Option<Arc<Key>>> {
        self.caches().known_key(hash)
    }

    /// The key with this hash, whatever its state. What is kept in memory is answered at once, all else is read off the
    /// async threads.
    pub async fn look_up_key(&self, hash: KeyHash) -> Result<Option<Arc<Key>>, StoreError> {
        match self.known_key(&hash) {
            Some(known) => Ok(known),
            None => self.blocking(move |store| store.key_by_hash(&hash)).await,
        }
    }

    /// The key with this hash, whatever its state; from memory when nothing changed since. Unknown ones too.
    pub fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<Arc<Key>>, StoreError> {
        self.caches().key(hash, || {
            self.read("looking up a key", |conn| {
                conn.prepare_cached(&select("WHERE k.hash = ?1"))?
                    .query_row([hash.0], key)
                    .optional()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_key_comes_back_as_it_was_issued() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let id = Uuid::now_v7();
        let new = NewKey {
            expires_at: Some(at(500)),
            rates: Rates {
                rpm: "60".parse().ok(),
                tpm: "100000".parse().ok(),
                concurrency: "5".parse().ok(),
            },
            ..new_key(ada.id, id)
        };
        let key = done(desk.store.issue_key(&new, &by(), at(1)));
        let expected = Key {
            budgets: new.id,
            rates: new.rates,
            user_rates: Rates::default(),
            user_markup: None,
            user_language: None,
            id: KeyId(id),
            user_id: ada.id,
            user_name: "ada".to_owned(),
            name: new.name.clone(),
            prefix: new.prefix.clone(),
            hash: new.hash,
            expires_at: Some(at(500)),
            revoked_at: None,
            models: new.models.clone(),
            ips: new.ips.clone(),
            on_hangup: new.on_hangup,
            created_at: at(1),
            last_used_at: None,
            user_suspended: false,
        };
        assert_eq!(key, expected);
        assert_eq!(
            desk.store.key_by_hash(&new.hash).expect("it reads"),
            Some(expected.clone().into())
        );
        assert_eq!(done(desk.store.issue_key(&new, &by(), at(2))), expected);
        assert_eq!(desk.store.key_by_hash(&KeyHash([0; 32])).expect("it reads"), None);
        let nobodys = NewKey {
            user_id: UserId(Uuid::now_v7()),
            ..new_key(ada.id, Uuid::now_v7())
        };
        refused(desk.store.issue_key(&nobodys, &by(), at(1)));
        desk.assert_books_balance();
    }

    #[test]
    fn a_key_is_found_by_its_id_or_what_is_shown_of_it() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let (one, two) = (desk.key(&ada), desk.key(&ada));
        let found = |which: &str| -> Vec<KeyId> {
            desk.store
                .find_keys(which)
                .expect("it reads")
                .iter()
                .map(|key| key.id)
                .collect()
        };
        assert_eq!(found(&one.id.to_string()), [one.id]);
        assert_eq!(found(&two.prefix), [two.id]);
        assert_eq!(found(&format!("{}and-the-rest-of-it", two.prefix)), [two.id]);
        assert_eq!(
            found(&one.id.to_string()[..4]),
            [one.id, two.id],
            "both begin with the same hour"
        );
        assert!(found("sk-gw-").is_empty());
        assert!(found("").is_empty());
    }

    #[test]
    fn a_rotated_key_hands_its_permissions_over_and_ends_after_the_grace() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let limited = KeyChange {
            rates: RatesChange {
                rpm: Some("60".parse().ok()),
                ..RatesChange::default()
            },
            ..KeyChange::default()
        };
        let old = done(desk.store.change_key(desk.key(&ada).id, &limited, &by(), at(2)));
        let bare = NewKey {
            models: vec![],
            ips: vec![],
            on_hangup: None,
            rates: Rates::default(),
            ..new_key(ada.id, Uuid::now_v7())
        };
        let new = done(desk.store.rotate_key(old.id, &bare, at(100), &by(), at(50)));
        assert_eq!(
            (&new.models, &new.ips, new.on_hangup, new.rates),
            (&old.models, &old.ips, old.on_hangup, old.rates)
        );
        let ends: Vec<_> = desk
            .store
            .keys(Some(ada.id))
            .expect("read")
            .iter()
            .map(|key| key.expires_at)
            .collect();
        assert_eq!(ends, [Some(at(100)), None]);
        refused(
            desk.store
                .rotate_key(old.id, &new_key(ada.id, Uuid::now_v7()), at(300), &by(), at(200)),
        );
        desk.assert_books_balance();
    }

    #[test]
    fn revoking_twice_keeps_the_first_time() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "0"));
        done(desk.store.revoke_key(key.id, &by(), at(5)));
        assert_eq!(
            done(desk.store.revoke_key(key.id, &by(), at(6))).revoked_at,
            Some(at(5))
        );
        refused(desk.store.revoke_key(KeyId(Uuid::now_v7()), &by(), at(6)));
        desk.assert_books_balance();
    }
}
