//! Users: who owns a balance.

use jiff::Timestamp;

use super::{Actor, Outcome, Store, StoreError, UserId};
use crate::money::Usd;

/// Whether a user may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserStatus {
    /// Yes.
    Active,
    /// No; running calls settle.
    Suspended,
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

impl Store {
    /// Adds a user, with the opening credit as an entry, in one transaction.
    pub fn add_user(&self, _new: &NewUser, _by: &Actor, _now: Timestamp) -> Outcome<User, UserTaken> {
        todo!()
    }

    /// A user by name, email or id.
    pub fn find_user(&self, _who: &str) -> Result<Option<User>, StoreError> {
        todo!()
    }

    /// All users, by name.
    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        todo!()
    }

    /// Suspends or activates; the refusal is: no such user.
    pub fn set_user_status(&self, _id: UserId, _to: UserStatus, _by: &Actor, _now: Timestamp) -> Outcome<User, ()> {
        todo!()
    }
}
