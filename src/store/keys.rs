//! Keys: hashes of gateway keys, whose they are and what they may do.

use ipnet::IpNet;
use jiff::Timestamp;

use super::{Actor, KeyId, Outcome, Store, StoreError, UserId};
use crate::config::OnHangup;
use crate::key::KeyHash;

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
    /// Whether its user is suspended (checked once more in the hold's WHERE).
    pub user_suspended: bool,
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
}

impl Store {
    /// Issues a key; the refusal is: no such user.
    pub fn issue_key(&self, _new: &NewKey, _by: &Actor, _now: Timestamp) -> Outcome<Key, ()> {
        todo!()
    }

    /// Keys by id (whole, or a unique start of it) or by shown prefix; several when it is not unique.
    pub fn find_keys(&self, _which: &str) -> Result<Vec<Key>, StoreError> {
        todo!()
    }

    /// A user's keys, or all.
    pub fn keys(&self, _of: Option<UserId>) -> Result<Vec<Key>, StoreError> {
        todo!()
    }

    /// Revokes at `now`; revoking twice changes nothing. The refusal is: no such key.
    pub fn revoke_key(&self, _id: KeyId, _by: &Actor, _now: Timestamp) -> Outcome<Key, ()> {
        todo!()
    }

    /// Issues `new` with the old key's permissions, and lets the old one end at `old_until`, in one transaction.
    /// The refusal is: no such key, or it is not valid any more.
    pub fn rotate_key(
        &self,
        _old: KeyId,
        _new: &NewKey,
        _old_until: Timestamp,
        _by: &Actor,
        _now: Timestamp,
    ) -> Outcome<Key, ()> {
        todo!()
    }

    /// The key with this hash, whatever its state; from the cache when nothing changed since. Unknown ones too.
    pub fn key_by_hash(&self, _hash: &KeyHash) -> Result<Option<Key>, StoreError> {
        todo!()
    }

    /// Notes uses, in one write for many: off the hot path.
    pub fn touch_keys(&self, _used: &[(KeyId, Timestamp)]) -> Outcome<(), ()> {
        todo!()
    }
}
