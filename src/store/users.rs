//! Users: who owns a balance.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::audit::{self, Act};
use super::budgets::{self, Change, Spender};
use super::columns::{Micros, Word, broken};
use super::entries::{self, Credit};
use super::{Actor, Outcome, Store, StoreError, Tried, UserId};
use crate::budget::Budget;
use crate::limits::{Rates, RatesChange};
use crate::money::Usd;
use crate::pricing::Factor;
use crate::texts::Language;

/// Whether a user may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserStatus {
    /// Yes.
    Active,
    /// No; running calls settle.
    Suspended,
}

impl UserStatus {
    /// `active`, `suspended`.
    pub const fn name(self) -> &'static str {
        match self {
            UserStatus::Active => "active",
            UserStatus::Suspended => "suspended",
        }
    }
}

/// A user and the state of the balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The handle, unique, without spaces.
    pub name: String,
    /// An e-mail address, unique.
    pub email: Option<String>,
    /// May call or not.
    pub status: UserStatus,
    /// Σ entries.
    pub balance: Usd,
    /// How far below zero the balance may go.
    pub credit_line: Usd,
    /// Σ open holds.
    pub held: Usd,
    /// When the user was added.
    pub created_at: Timestamp,
    /// What the user pays per dollar of cost; `None`: as the settings say.
    pub markup: Option<Factor>,
    /// The language of what the user is told; `None`: as the client asks.
    pub language: Option<Language>,
    /// How often and how much at once, all keys together; what is `None` has no limit.
    pub rates: Rates,
}

impl User {
    /// balance − open holds: what may be taken out, for the credit line is there to be called with, not to be paid out.
    pub fn unheld(&self) -> Usd {
        self.balance.saturating_sub(self.held)
    }

    /// balance + credit line − open holds.
    pub fn available(&self) -> Usd {
        self.balance.saturating_add(self.credit_line).saturating_sub(self.held)
    }
}

/// A user to add.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The id to give, so that repeating is harmless.
    pub id: UserId,
    /// The handle.
    pub name: String,
    /// An e-mail address.
    pub email: Option<String>,
    /// How far below zero the balance may go.
    pub credit_line: Usd,
    /// The first credit; zero makes no entry.
    pub balance: Usd,
    /// What the user may spend at most.
    pub budgets: Vec<Budget>,
    /// How often and how much at once, all keys together.
    pub rates: Rates,
}

/// What to change of a user; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// How far below zero the balance may go.
    pub credit_line: Option<Usd>,
    /// What the user pays per dollar of cost; `Some(None)`: as the settings say.
    pub markup: Option<Option<Factor>>,
    /// The language of what the user is told; `Some(None)`: as the client asks.
    pub language: Option<Option<Language>>,
    /// Budgets.
    pub budgets: Vec<Change>,
    /// How often and how much at once, all keys together.
    pub rates: RatesChange,
}

/// Why a user was not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserUnchanged {
    /// No such user.
    NoUser,
    /// The credit line would not cover what is spent and held.
    CreditLineInUse(User),
}

/// Why a user was not added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserTaken {
    /// The name exists.
    Name,
    /// This address exists.
    Email(String),
}

/// The columns of a user, in the order of [`user`].
pub(super) const USER: &str = "id, name, email, status, balance_nanos, credit_line_nanos, held_nanos, created_at, markup, language, rpm, tpm, concurrency";

/// Reads a user.
pub(super) fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: row.get("id")?,
        name: row.get("name")?,
        email: row.get("email")?,
        status: row.get("status")?,
        balance: row.get("balance_nanos")?,
        credit_line: row.get("credit_line_nanos")?,
        held: row.get("held_nanos")?,
        created_at: row.get::<_, Micros>("created_at")?.0,
        markup: row.get("markup")?,
        language: row.get("language")?,
        rates: Rates {
            rpm: row.get("rpm")?,
            tpm: row.get("tpm")?,
            concurrency: row.get("concurrency")?,
        },
    })
}

/// What the audit log keeps of a user, and `verify` compares.
pub(super) fn audited(user: &User) -> serde_json::Value {
    serde_json::json!({
        "name": user.name,
        "email": user.email,
        "status": user.status.word(),
        "credit_line": user.credit_line,
        "created_at": user.created_at.as_microsecond(),
        "markup": user.markup.map(|markup| markup.to_string()),
        "language": user.language.map(Language::name),
        "rpm": user.rates.rpm,
        "tpm": user.rates.tpm,
        "concurrency": user.rates.concurrency,
    })
}

/// A user by id.
pub(super) fn by_id(conn: &Connection, id: UserId) -> rusqlite::Result<Option<User>> {
    conn.prepare_cached(&format!("SELECT {USER} FROM users WHERE id = ?1"))?
        .query_row([id], user)
        .optional()
}

fn add(tx: &Connection, new: &NewUser, by: &Actor, now: Timestamp) -> Tried<User, UserTaken> {
    if let Some(there) = by_id(tx, new.id)? {
        return Ok(Ok(there));
    }
    if let Some(taken) = taken(tx, new)? {
        return Ok(Err(taken));
    }
    tx.prepare_cached(
        "INSERT INTO users (id, name, email, status, credit_line_nanos, created_at, rpm, tpm, concurrency)
         VALUES (?1, ?2, ?3, 'active', ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        new.id,
        new.name,
        new.email,
        new.credit_line,
        Micros(now),
        new.rates.rpm,
        new.rates.tpm,
        new.rates.concurrency,
    ])?;
    let added = by_id(tx, new.id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let act = Act {
        by,
        at: now,
        action: "user.add",
        subject: new.id.to_string(),
        before: None,
        after: audited(&added).to_string(),
    };
    audit::record(tx, &act)?;
    let limits: Vec<Change> = new.budgets.iter().map(|budget| Change::Set(*budget)).collect();
    budgets::change(tx, Spender::User(new.id), &limits, (by, now))?;
    if new.balance == Usd::ZERO {
        return Ok(Ok(added));
    }
    let opening = Credit {
        user: new.id,
        amount: new.balance,
        adjustment: false,
        reference: None,
        note: Some("opening balance".to_owned()),
    };
    match entries::credit(tx, &opening, by, now)? {
        Ok((_, user, _)) => Ok(Ok(user)),
        Err(refused) => Err(broken(format!("the opening balance was refused: {refused:?}"))),
    }
}

/// Names and addresses share one space, so that each finds one user.
fn taken(tx: &Connection, new: &NewUser) -> rusqlite::Result<Option<UserTaken>> {
    let exists = |text: &str| {
        tx.prepare_cached("SELECT 1 FROM users WHERE name = ?1 OR email = ?1")?
            .exists([text])
    };
    if exists(&new.name)? {
        return Ok(Some(UserTaken::Name));
    }
    match &new.email {
        Some(email) if exists(email)? => Ok(Some(UserTaken::Email(email.clone()))),
        _ => Ok(None),
    }
}

fn change(tx: &Connection, id: UserId, change: &UserChange, by: &Actor, now: Timestamp) -> Tried<User, UserUnchanged> {
    let Some(before) = by_id(tx, id)? else {
        return Ok(Err(UserUnchanged::NoUser));
    };
    let after = User {
        credit_line: change.credit_line.unwrap_or(before.credit_line),
        markup: change.markup.unwrap_or(before.markup),
        language: change.language.unwrap_or(before.language),
        rates: change.rates.of(before.rates),
        ..before.clone()
    };
    if after.available().is_negative() {
        return Ok(Err(UserUnchanged::CreditLineInUse(before)));
    }
    if after != before {
        tx.execute(
            "UPDATE users SET credit_line_nanos = ?2, markup = ?3, language = ?4, rpm = ?5, tpm = ?6, concurrency = ?7
             WHERE id = ?1",
            params![
                id,
                after.credit_line,
                after.markup,
                after.language,
                after.rates.rpm,
                after.rates.tpm,
                after.rates.concurrency
            ],
        )?;
        let act = Act {
            by,
            at: now,
            action: "user.set",
            subject: id.to_string(),
            before: Some(audited(&before).to_string()),
            after: audited(&after).to_string(),
        };
        audit::record(tx, &act)?;
    }
    budgets::change(tx, Spender::User(id), &change.budgets, (by, now))?;
    Ok(Ok(after))
}

fn set_status(tx: &Connection, id: UserId, to: UserStatus, by: &Actor, now: Timestamp) -> Tried<User, ()> {
    let Some(before) = by_id(tx, id)? else {
        return Ok(Err(()));
    };
    if before.status == to {
        return Ok(Ok(before));
    }
    tx.execute("UPDATE users SET status = ?2 WHERE id = ?1", params![id, to])?;
    let after = User {
        status: to,
        ..before.clone()
    };
    let act = Act {
        by,
        at: now,
        action: "user.status",
        subject: id.to_string(),
        before: Some(audited(&before).to_string()),
        after: audited(&after).to_string(),
    };
    audit::record(tx, &act)?;
    Ok(Ok(after))
}

impl Store {
    /// Adds a user, with the opening credit as an entry, in one transaction. Adding the same id twice gives the user
    /// that is there.
    pub fn add_user(&self, new: &NewUser, by: &Actor, now: Timestamp) -> Outcome<User, UserTaken> {
        self.write("adding a user", |tx| add(tx, new, by, now))
    }

    /// A user by name, email or id.
    pub fn find_user(&self, who: &str) -> Result<Option<User>, StoreError> {
        self.read("looking for a user", |conn| {
            let id = Uuid::try_parse(who).ok().map(UserId);
            conn.prepare_cached(&format!(
                "SELECT {USER} FROM users WHERE name = ?1 OR email = ?1 OR id = ?2"
            ))?
            .query_row(params![who, id], user)
            .optional()
        })
    }

    /// All users, by name.
    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        self.read("reading the users", |conn| {
            conn.prepare_cached(&format!("SELECT {USER} FROM users ORDER BY name"))?
                .query_map([], user)?
                .collect()
        })
    }

    /// Changes a user, in one transaction.
    pub fn change_user(
        &self,
        id: UserId,
        what: &UserChange,
        by: &Actor,
        now: Timestamp,
    ) -> Outcome<User, UserUnchanged> {
        self.write("changing a user", |tx| change(tx, id, what, by, now))
    }

    /// Suspends or activates; the refusal is: no such user.
    pub fn set_user_status(&self, id: UserId, to: UserStatus, by: &Actor, now: Timestamp) -> Outcome<User, ()> {
        self.write("changing a user's status", |tx| set_status(tx, id, to, by, now))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn new(name: &str, email: Option<&str>) -> NewUser {
        NewUser {
            id: UserId(Uuid::now_v7()),
            name: name.to_owned(),
            email: email.map(str::to_owned),
            credit_line: usd("2"),
            balance: usd("1.5"),
            budgets: Vec::new(),
            rates: Rates::default(),
        }
    }

    #[test]
    fn a_user_is_found_by_name_address_and_id() {
        let desk = Desk::new();
        let ada = new("ada", Some("ada@example.org"));
        let added = done(desk.store.add_user(&ada, &by(), at(0)));
        assert_eq!((added.balance, added.available()), (usd("1.5"), usd("3.5")));
        for who in ["ada", "ADA", "ada@example.org", &ada.id.to_string()] {
            assert_eq!(
                desk.store.find_user(who).expect("it reads").as_ref(),
                Some(&added),
                "{who}"
            );
        }
        assert_eq!(desk.store.find_user("bob").expect("it reads"), None);
        assert_eq!(desk.store.users().expect("read"), std::slice::from_ref(&added));
        assert_eq!(
            done(desk.store.add_user(&ada, &by(), at(9))),
            added,
            "adding twice adds once"
        );
        desk.assert_books_balance();
    }

    #[test]
    fn names_and_addresses_lead_to_one_user_only() {
        let desk = Desk::new();
        done(desk.store.add_user(&new("ada", Some("ada@example.org")), &by(), at(0)));
        for (taken, why) in [
            (new("Ada", None), UserTaken::Name),
            (new("ada@example.org", None), UserTaken::Name),
            (
                new("bob", Some("ADA@example.org")),
                UserTaken::Email("ADA@example.org".to_owned()),
            ),
            (new("bob", Some("ada")), UserTaken::Email("ada".to_owned())),
        ] {
            assert_eq!(refused(desk.store.add_user(&taken, &by(), at(1))), why);
        }
        assert_eq!(desk.store.users().expect("read").len(), 1);
    }

    #[test]
    fn a_user_is_changed_in_one_act_and_not_below_what_is_in_use() {
        let desk = Desk::new();
        let ada = desk.user("ada", "1");
        let set = |change: UserChange| desk.store.change_user(ada.id, &change, &by(), at(1));
        let more = UserChange {
            credit_line: Some(usd("5")),
            markup: Some(Some(Factor::parse("1.2").expect("a factor"))),
            language: Some(Some(Language::Chinese)),
            budgets: vec![Change::Set("3/day".parse().expect("a budget"))],
            rates: RatesChange {
                tpm: Some("1000".parse().ok()),
                ..RatesChange::default()
            },
        };
        let changed = done(set(more.clone()));
        assert_eq!(changed, desk.now(&ada));
        assert_eq!((changed.available(), changed.markup), (usd("6"), more.markup.flatten()));
        assert_eq!(changed.language, Some(Language::Chinese));
        assert_eq!(changed.rates, more.rates.of(Rates::default()));
        assert_eq!(done(set(UserChange::default())), changed, "what is not named stays");
        let key = desk.key(&ada);
        desk.set_aside(&ask(exchange(), &key, "3"));
        let too_little = UserChange {
            credit_line: Some(usd("1.9")),
            ..UserChange::default()
        };
        assert_eq!(refused(set(too_little)), UserUnchanged::CreditLineInUse(desk.now(&ada)));
        let plain = UserChange {
            credit_line: Some(usd("2")),
            markup: Some(None),
            rates: RatesChange {
                tpm: Some(None),
                ..RatesChange::default()
            },
            ..UserChange::default()
        };
        let plain = done(set(plain));
        assert_eq!((plain.markup, plain.rates), (None, Rates::default()));
        desk.assert_books_balance();
        let acts: i64 = desk
            .raw()
            .query_row("SELECT COUNT(*) FROM audit_log WHERE action = 'user.set'", [], |row| {
                row.get(0)
            })
            .expect("counted");
        assert_eq!(acts, 2);
    }

    #[test]
    fn a_status_is_changed_and_written_down() {
        let desk = Desk::new();
        let ada = desk.user("ada", "1");
        for status in [UserStatus::Suspended, UserStatus::Suspended, UserStatus::Active] {
            assert_eq!(
                done(desk.store.set_user_status(ada.id, status, &by(), at(1))).status,
                status
            );
            desk.assert_books_balance();
        }
        let nobody = UserId(Uuid::now_v7());
        refused(desk.store.set_user_status(nobody, UserStatus::Active, &by(), at(1)));
        let acts: i64 = desk
            .raw()
            .query_row(
                "SELECT COUNT(*) FROM audit_log WHERE action = 'user.status'",
                [],
                |row| row.get(0),
            )
            .expect("counted");
        assert_eq!(acts, 2, "what changes nothing is no act");
    }
}
