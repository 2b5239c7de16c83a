//! Redemption codes: money that is whoever's redeems it, once. The code itself is not stored.

use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::audit::{self, Act};
use super::columns::{Micros, broken, hex};
use super::digest::Hash;
use super::entries::{self, Credit, CreditRefused, Times};
use super::users::{self, User};
use super::{Actor, CodeId, KeyId, Outcome, Store, StoreError, Tried, UserId};

use crate::money::Usd;
use crate::redemption::RedemptionHash;

/// A code as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCode {
    /// The id.
    pub id: CodeId,
    /// What is shown of it.
    pub prefix: String,
    /// SHA-256 of it.
    pub hash: RedemptionHash,
    /// What it is worth.
    pub amount: Usd,
    /// The operator's note.
    pub note: Option<String>,
    /// From then on it is not redeemed.
    pub expires_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When, by whom, and as which entry it was redeemed.
    pub redeemed: Option<RedeemedBy>,
}

/// What became of a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeemedBy {
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub user: UserId,
    /// The name of that user.
    pub user_name: String,
    /// The number of the entry that it became.
    pub entry: i64,
}

/// What may be done with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeState {
    /// It may be redeemed.
    Open,
    /// It was.
    Redeemed,
    /// Nobody may redeem it any more.
    Revoked,
    /// Its time is over.
    Expired,
}

impl CodeState {
    /// `open`, `redeemed`, `revoked`, `expired`.
    pub const fn name(self) -> &'static str {
        match self {
            CodeState::Open => "open",
            CodeState::Redeemed => "redeemed",
            CodeState::Revoked => "revoked",
            CodeState::Expired => "expired",
        }
    }
}

impl StoredCode {
    /// What may be done with it at a time.
    pub fn state(&self, now: Timestamp) -> CodeState {
        if self.redeemed.is_some() {
            CodeState::Redeemed
        } else if self.revoked_at.is_some() {
            CodeState::Revoked
        } else if self.expires_at.is_some_and(|end| end <= now) {
            CodeState::Expired
        } else {
            CodeState::Open
        }
    }
}

/// Codes to make, all alike.
#[derive(Clone, Debug)]
pub struct NewCodes {
    /// Id, what is shown, and hash of each.
    pub codes: Vec<(CodeId, String, RedemptionHash)>,
    /// What each is worth.
    pub amount: Usd,
    /// The operator's note.
    pub note: Option<String>,
    /// From then on they are not redeemed.
    pub expires_at: Option<Timestamp>,
}

/// Why a code was not revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRevoked {
    /// There is none.
    NoCode,
    /// It was redeemed before.
    Redeemed(RedeemedBy),
}

/// A code that was redeemed.
#[derive(Clone, Debug)]
pub struct Redeemed {
    /// The code.
    pub code: StoredCode,
    /// Whose it is, as the user is at this moment.
    pub user: User,
    /// Whether it was redeemed by this.
    pub times: Times,
}

/// Why a code was not redeemed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRedeemed {
    /// There is no such code, or it is revoked, expired or another user's: which of these, nobody is told.
    NoCode,
    /// The balance would not fit.
    TooLarge,
}

impl ToSql for RedemptionHash {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.as_slice()))
    }
}

impl FromSql for RedemptionHash {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<RedemptionHash> {
        Hash::column_result(value).map(RedemptionHash)
    }
}

/// The reference of the entry that a code becomes.
pub(super) fn reference(id: CodeId) -> String {
    format!("code {id}")
}

/// Codes with the names of their users, and what stands behind.
pub(super) fn select(rest: &str) -> String {
    format!("SELECT c.*, u.name AS user_name FROM codes c LEFT JOIN users u ON u.id = c.user_id {rest}")
}

/// Reads a code.
pub(super) fn code(row: &Row<'_>) -> rusqlite::Result<StoredCode> {
    let time = |column: &str| row.get::<_, Option<Micros>>(column).map(|at| at.map(|at| at.0));
    let redeemed = match time("redeemed_at")? {
        None => None,
        Some(at) => Some(RedeemedBy {
            at,
            user: row.get("user_id")?,
            user_name: row.get("user_name")?,
            entry: row.get("entry")?,
        }),
    };
    Ok(StoredCode {
        id: row.get("id")?,
        prefix: row.get("prefix")?,
        hash: row.get("hash")?,
        amount: row.get("amount_nanos")?,
        note: row.get("note")?,
        expires_at: time("expires_at")?,
        created_at: row.get::<_, Micros>("created_at")?.0,
        revoked_at: time("revoked_at")?,
        redeemed,
    })
}

/// What the audit log keeps of a code, and `verify` compares.
pub(super) fn audited(code: &StoredCode) -> serde_json::Value {
    let redeemed = code.redeemed.as_ref();
    serde_json::json!({
        "prefix": code.prefix,
        "hash": hex(&code.hash.0),
        "amount": code.amount,
        "note": code.note,
        "expires_at": code.expires_at.map(Timestamp::as_microsecond),
        "created_at": code.created_at.as_microsecond(),
        "revoked_at": code.revoked_at.map(Timestamp::as_microsecond),
        "redeemed_at": redeemed.map(|by| by.at.as_microsecond()),
        "user": redeemed.map(|by| by.user.to_string()),
        "entry": redeemed.map(|by| by.entry),
    })
}

fn there(conn: &Connection, id: CodeId) -> rusqlite::Result<StoredCode> {
    conn.prepare_cached(&select("WHERE c.id = ?1"))?.query_row([id], code)
}

fn create(tx: &Connection, new: &NewCodes, by: &Actor, now: Timestamp) -> Tried<Vec<StoredCode>, ()> {
    let mut made = Vec::new();
    for (id, prefix, hash) in &new.codes {
        tx.prepare_cached(
            "INSERT INTO codes (id, prefix, hash, amount_nanos, note, expires_at, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            id,
            prefix,
            hash,
            new.amount,
            new.note,
            new.expires_at.map(Micros),
            Micros(now)
        ])?;
        let code = there(tx, *id)?;
        record(tx, "code.create", None, &code, by, now)?;
        made.push(code);
    }
    Ok(Ok(made))
}

fn record(
    tx: &Connection,
    action: &'static str,
    before: Option<&StoredCode>,
    after: &StoredCode,
    by: &Actor,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let act = Act {
        by,
        at,
        action,
        subject: after.id.to_string(),
        before: before.map(|code| audited(code).to_string()),
        after: audited(after).to_string(),
    };
    audit::record(tx, &act)
}

fn revoke(tx: &Connection, id: CodeId, by: &Actor, now: Timestamp) -> Tried<StoredCode, NotRevoked> {
    let found = tx
        .prepare_cached(&select("WHERE c.id = ?1"))?
        .query_row([id], code)
        .optional()?;
    let Some(before) = found else {
        return Ok(Err(NotRevoked::NoCode));
    };
    if let Some(by) = before.redeemed {
        return Ok(Err(NotRevoked::Redeemed(by)));
    }
    if before.revoked_at.is_some() {
        return Ok(Ok(before));
    }
    tx.prepare_cached("UPDATE codes SET revoked_at = ?2 WHERE id = ?1")?
        .execute(params![id, Micros(now)])?;
    let after = there(tx, id)?;
    record(tx, "code.revoke", Some(&before), &after, by, now)?;
    Ok(Ok(after))
}

fn redeem(
    tx: &Connection,
    hash: RedemptionHash,
    (user, key): (UserId, KeyId),
    now: Timestamp,
) -> Tried<Redeemed, NotRedeemed> {
    let found = tx
        .prepare_cached(&select("WHERE c.hash = ?1"))?
        .query_row([hash], code)
        .optional()?;
    let Some(before) = found else {
        return Ok(Err(NotRedeemed::NoCode));
    };
    let owner = users::by_id(tx, user)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    match (before.state(now), &before.redeemed) {
        (CodeState::Open, _) => {}
        (CodeState::Redeemed, Some(first)) if first.user == user => {
            return Ok(Ok(Redeemed {
                code: before,
                user: owner,
                times: Times::Again,
            }));
        }
        _ => return Ok(Err(NotRedeemed::NoCode)),
    }
    let by = Actor(format!("key:{key}"));
    let credit = Credit {
        user,
        amount: before.amount,
        adjustment: false,
        reference: Some(reference(before.id)),
        note: before.note.clone(),
    };
    let (entry, owner) = match entries::credit(tx, &credit, &by, now)? {
        Ok((entry, owner, Times::First)) => (entry, owner),
        Err(CreditRefused::TooLarge) => return Ok(Err(NotRedeemed::TooLarge)),
        other => return Err(broken(format!("the code {} is credited already: {other:?}", before.id))),
    };
    tx.prepare_cached("UPDATE codes SET redeemed_at = ?2, user_id = ?3, entry = ?4 WHERE id = ?1")?
        .execute(params![before.id, Micros(now), user, entry.seq])?;
    let after = there(tx, before.id)?;
    record(tx, "code.redeem", Some(&before), &after, &by, now)?;
    Ok(Ok(Redeemed {
        code: after,
        user: owner,
        times: Times::First,
    }))
}

impl Store {
    /// Makes codes, all or none.
    pub fn create_codes(&self, new: &NewCodes, by: &Actor, now: Timestamp) -> Outcome<Vec<StoredCode>, ()> {
        self.write("making codes", |tx| create(tx, new, by, now))
    }

    /// Revokes a code; revoking twice changes nothing.
    pub fn revoke_code(&self, id: CodeId, by: &Actor, now: Timestamp) -> Outcome<StoredCode, NotRevoked> {
        self.write("revoking a code", |tx| revoke(tx, id, by, now))
    }

    /// Credits a code to a user who has it, by a key of theirs. Repeating gives the first answer again.
    pub fn redeem(&self, hash: RedemptionHash, by: (UserId, KeyId), now: Timestamp) -> Outcome<Redeemed, NotRedeemed> {
        let mut before = None;
        let outcome = self.write("redeeming a code", |tx| {
            Ok(match redeem(tx, hash, by, now)? {
                // Nothing was written, so nothing is committed and no cache is dropped.
                Ok(again) if again.times == Times::Again => {
                    before = Some(again);
                    Err(NotRedeemed::NoCode)
                }
                other => other,
            })
        });
        before.map_or(outcome, Outcome::Committed)
    }

    /// All codes, oldest first.
    pub fn codes(&self) -> Result<Vec<StoredCode>, StoreError> {
        self.read("reading the codes", |conn| {
            conn.prepare_cached(&select("ORDER BY c.id"))?
                .query_map([], code)?
                .collect()
        })
    }

    /// The codes of which this is the id or what is shown begins so.
    pub fn find_codes(&self, id: Option<Uuid>, shown: Option<&str>) -> Result<Vec<StoredCode>, StoreError> {
        self.read("looking for a code", |conn| {
            conn.prepare_cached(&select(
                "WHERE c.id = ?1 OR substr(c.prefix, 1, length(?2)) = ?2 ORDER BY c.id",
            ))?
            .query_map(params![id.map(CodeId), shown], code)?
            .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::redemption::{RedemptionCode, SYMBOLS};

    fn made(desk: &Desk, secret: u8, amount: &str, expires_at: Option<Timestamp>) -> (RedemptionCode, StoredCode) {
        let code = RedemptionCode::from_entropy([secret; SYMBOLS]);
        let new = NewCodes {
            codes: vec![(CodeId(Uuid::now_v7()), code.prefix(), code.hash())],
            amount: usd(amount),
            note: Some("autumn".into()),
            expires_at,
        };
        let stored = done(desk.store.create_codes(&new, &by(), at(1)));
        (code, stored[0].clone())
    }

    #[test]
    fn a_code_is_redeemed_once_and_again_only_told() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "1"), desk.user("bob", "0"));
        let (adas, bobs) = (desk.key(&ada), desk.key(&bob));
        let (code, stored) = made(&desk, 7, "10", None);
        let redeem = |who: &User, key: KeyId| desk.store.redeem(code.hash(), (who.id, key), at(5));
        let first = done(redeem(&ada, adas.id));
        assert_eq!((first.times, first.user.balance), (Times::First, usd("11")));
        let other = desk.key(&ada).id;
        let commits = || -> i64 {
            let read = desk.raw().query_row("SELECT count FROM commits", [], |row| row.get(0));
            read.expect("counted")
        };
        let before = commits();
        let again = done(redeem(&ada, other));
        assert_eq!(commits(), before, "what is only told is not written");
        assert_eq!(
            (again.times, again.code, again.user.balance),
            (Times::Again, first.code.clone(), usd("11"))
        );
        assert_eq!(refused(redeem(&bob, bobs.id)), NotRedeemed::NoCode);
        assert_eq!(desk.now(&bob).balance, Usd::ZERO);
        let entry = desk.store.entries(ada.id, None, 1).expect("it reads").remove(0);
        assert_eq!(
            (
                entry.kind.as_str(),
                entry.amount,
                entry.reference.as_deref(),
                entry.note.as_deref()
            ),
            ("credit", usd("10"), Some(reference(stored.id).as_str()), Some("autumn"))
        );
        assert_eq!(
            first.code.redeemed.map(|by| (by.user_name, by.entry)),
            Some(("ada".into(), entry.seq))
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_code_that_is_revoked_or_expired_or_not_there_has_one_answer() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let key = desk.key(&ada);
        let (revoked, stored) = made(&desk, 1, "10", None);
        let (expired, late) = made(&desk, 2, "10", Some(at(5)));
        let nowhere = RedemptionCode::from_entropy([3; SYMBOLS]);
        for _ in 0..2 {
            done(desk.store.revoke_code(stored.id, &by(), at(2)));
        }
        for code in [revoked, expired, nowhere] {
            let why = refused(desk.store.redeem(code.hash(), (ada.id, key.id), at(5)));
            assert_eq!(why, NotRedeemed::NoCode);
        }
        assert_eq!(
            (late.state(at(4)), late.state(at(5))),
            (CodeState::Open, CodeState::Expired)
        );
        let (last, stored) = made(&desk, 4, "10", Some(at(6)));
        done(desk.store.redeem(last.hash(), (ada.id, key.id), at(5)));
        let why = refused(desk.store.revoke_code(stored.id, &by(), at(7)));
        assert!(matches!(why, NotRevoked::Redeemed(_)), "{why:?}");
        let again = done(desk.store.redeem(last.hash(), (ada.id, key.id), at(8)));
        assert_eq!(
            (again.times, again.user.balance),
            (Times::Again, usd("10")),
            "also after its time"
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_code_never_takes_somebodys_credit_for_its_own_and_no_balance_overflows() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let key = desk.key(&ada);
        let (code, stored) = made(&desk, 1, "3", None);
        let credit = top_up(&ada, "3", Some(&reference(stored.id)));
        done(desk.store.credit(&credit, &by(), at(2)));
        let outcome = desk.store.redeem(code.hash(), (ada.id, key.id), at(3));
        assert!(matches!(outcome, Outcome::NotCommitted(_)), "{outcome:?}");
        let most = entries::MAX_BALANCE.saturating_sub(usd("3")).to_string();
        done(desk.store.credit(&top_up(&ada, &most, None), &by(), at(4)));
        let (code, _) = made(&desk, 2, "0.000000001", None);
        let why = refused(desk.store.redeem(code.hash(), (ada.id, key.id), at(5)));
        assert_eq!(why, NotRedeemed::TooLarge);
    }

    #[test]
    fn the_code_itself_is_nowhere_in_the_database() {
        let desk = Desk::new();
        let (code, _) = made(&desk, 9, "3", None);
        desk.raw()
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .expect("written");
        let bytes = std::fs::read(desk.path()).expect("the file");
        let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds(&code.prefix()) && !holds(&code.reveal()) && !holds(&code.reveal().replace('-', "")));
    }
}
