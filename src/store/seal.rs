//! Seals: all that the ledger was up to an entry, in one line that is kept elsewhere.

use std::fmt;
use std::str::FromStr;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};

use super::columns::{hash, hex};
use super::digest::Digest;
use super::{Store, StoreError};
use crate::language::{Language, Said, Tell};
use crate::said;

/// The domain of a seal's digest.
const SEAL_DOMAIN: &str = "codex-gateway seal 1";

/// What the ledger was up to an entry. Whoever keeps it sees later that entries were only added after that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The number of the last entry it covers; zero: none.
    pub sequence: i64,
    /// SHA-256 over the newest hash of each user's entries up to it; what exactly stands in `store/digest.rs`.
    pub digest: [u8; 32],
}

/// That a text is not a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseSealError;

impl Tell for ParseSealError {
    fn told(&self, language: Language) -> Said {
        said!(
            language,
            en: "write a seal as `gateway ledger seal` prints it: the number of an entry, a colon, and 64 hexadecimal digits",
            zh: "请按 `gateway ledger seal` 打印的样子写封存：条目编号、冒号和 64 位十六进制数字",
        )
    }
}

impl fmt::Display for Seal {
    /// `SEQUENCE:DIGEST`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex(&self.digest))
    }
}

impl FromStr for Seal {
    type Err = ParseSealError;

    fn from_str(text: &str) -> Result<Seal, ParseSealError> {
        let (sequence, digest) = text.trim().split_once(':').ok_or(ParseSealError)?;
        if !sequence.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseSealError);
        }
        Ok(Seal {
            sequence: sequence.parse().map_err(|_| ParseSealError)?,
            digest: hash(digest).ok_or(ParseSealError)?,
        })
    }
}

/// The number of the last entry; zero: there is none.
pub(super) fn last_sequence(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("SELECT COALESCE(MAX(seq), 0) FROM ledger_entries", [], |row| row.get(0))
}

/// The seal of the entries up to a number.
pub(super) fn up_to(conn: &Connection, sequence: i64) -> rusqlite::Result<Seal> {
    let mut statement = conn.prepare(
        "SELECT id, (SELECT hash FROM ledger_entries WHERE user_id = users.id AND seq <= ?1
                     ORDER BY seq DESC LIMIT 1) AS head
         FROM users ORDER BY id",
    )?;
    let mut digest = Digest::new(SEAL_DOMAIN);
    digest.field("sequence", ValueRef::Integer(sequence));
    let mut rows = statement.query(params![sequence])?;
    while let Some(row) = rows.next()? {
        let head = row.get_ref("head")?;
        if head != ValueRef::Null {
            digest.field("user_id", row.get_ref("id")?);
            digest.field("head_hash", head);
        }
    }
    Ok(Seal {
        sequence,
        digest: digest.finish(),
    })
}

impl Store {
    /// The seal of all entries there are.
    pub fn seal(&self) -> Result<Seal, StoreError> {
        self.read("sealing the ledger", |conn| {
            let snapshot = conn.unchecked_transaction()?;
            up_to(&snapshot, last_sequence(&snapshot)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_seal_is_read_as_it_is_written_and_nothing_else_is() {
        let seal = Seal {
            sequence: 907,
            digest: [0xA7; 32],
        };
        let text = seal.to_string();
        assert_eq!(text, format!("907:{}", "a7".repeat(32)));
        assert_eq!(text.parse(), Ok(seal));
        assert_eq!(text.to_uppercase().parse(), Ok(seal));
        for wrong in [
            String::new(),
            "907".to_owned(),
            text.replace("907", ""),
            text.replace("907", "-7"),
            text.replace("907", "+7"),
            text.replace("907", "99999999999999999999"),
            text.replace("a7", "7"),
            text.replace(":a7", ":zz"),
            format!("{text}:"),
            format!("{text}a7"),
        ] {
            assert_eq!(wrong.parse::<Seal>(), Err(ParseSealError), "{wrong}");
        }
    }

    #[test]
    fn a_seal_is_what_the_documentation_says() {
        let desk = Desk::new();
        let (bob, ada, _) = (desk.user("bob", "3"), desk.user("ada", "5"), desk.user("eve", "0"));
        let entries = |user| desk.store.entries(user, None, 9).expect("read");
        let heads = [(bob.id, entries(bob.id)[0].hash), (ada.id, entries(ada.id)[0].hash)];
        let mut digest = Digest::new("codex-gateway seal 1");
        digest.field("sequence", ValueRef::Integer(2));
        for (id, head) in heads {
            digest.field("user_id", ValueRef::Blob(id.0.as_bytes()));
            digest.field("head_hash", ValueRef::Blob(&head));
        }
        let seal = desk.store.seal().expect("sealed");
        assert_eq!((seal.sequence, seal.digest), (2, digest.finish()));
    }

    #[test]
    fn what_is_added_later_changes_no_earlier_seal() {
        let desk = Desk::new();
        let nothing = desk.store.seal().expect("sealed");
        assert_eq!(nothing.sequence, 0);
        let ada = desk.user("ada", "5");
        let before = desk.store.seal().expect("sealed");
        desk.user("bob", "7");
        done(desk.store.credit(&top_up(&ada, "3", None), &by(), at(2)));
        let after = desk.store.seal().expect("sealed");
        assert_eq!(after.sequence, 3);
        let again = |seal: Seal| {
            let sealed = desk.store.read("sealing", |conn| up_to(conn, seal.sequence));
            assert_eq!(sealed.expect("sealed"), seal);
        };
        for seal in [nothing, before, after] {
            again(seal);
        }
    }
}
