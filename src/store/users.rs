//! Users: who owns a balance.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::audit::{self, Act};
use super::columns::{Micros, Word, broken};
use super::entries::{self, Credit};
use super::{Actor, Outcome, Store, StoreError, Tried, UserId};
use crate::money::Usd;

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
}

/// Why a user was not added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserTaken {
    /// The name exists.
    Name,
    /// The address exists.
    Email,
}

/// The columns of a user, in the order of [`user`].
pub(super) const USER: &str = "id, name, email, status, balance_nanos, credit_line_nanos, held_nanos, created_at";

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
        "INSERT INTO users (id, name, email, status, credit_line_nanos, created_at)
         VALUES (?1, ?2, ?3, 'active', ?4, ?5)",
    )?
    .execute(params![new.id, new.name, new.email, new.credit_line, Micros(now)])?;
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
        Some(email) if exists(email)? => Ok(Some(UserTaken::Email)),
        _ => Ok(None),
    }
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
            (new("bob", Some("ADA@example.org")), UserTaken::Email),
            (new("bob", Some("ada")), UserTaken::Email),
        ] {
            assert_eq!(refused(desk.store.add_user(&taken, &by(), at(1))), why);
        }
        assert_eq!(desk.store.users().expect("read").len(), 1);
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
