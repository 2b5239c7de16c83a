//! Exactly once: the calls that came with an `Idempotency-Key`.
//!
//! A row says which exchange a name stands for, among the calls of one gateway key. It is written in the transaction that
//! takes the hold, so of any number of calls at once the first gets the hold, and the others find its row. What the row
//! means follows from its hold alone, and nothing else has to be kept in step with it:
//!
//! | the hold is | the same call | another call under the same name |
//! |---|---|---|
//! | open | is refused: it runs | is refused: it is another call |
//! | settled | is refused: it is done, and this was its charge | is refused: it is another call |
//! | released: nothing was charged | takes the row over, with a hold of its own | likewise |
//!
//! Whether a call is a repetition is asked before anything else that it might be refused for: a key that may not use the
//! model any more is told what became of its call all the same. The hold's transaction asks once more, and decides.
//!
//! A call that is refused before it has a hold writes no row. A process that dies leaves its holds open; its next start
//! releases them, which frees their names. The schema holds the last line of the table too: a row changes only while its
//! hold is released, and never goes.
//!
//! The same call is the same endpoint and the same body, byte for byte, decompressed. Names and bodies are kept as
//! SHA-256. Another gateway key is another client: its names are its own, also when it is one that was rotated.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest as _, Sha256};

use super::digest::{Digest, Hash};
use super::{ExchangeId, KeyId, Store, StoreError};
use crate::call::Endpoint;
use crate::money::Usd;

/// The name that a client gave to a call, and the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    name: Hash,
    body: Hash,
}

impl Once {
    /// Of the value of `Idempotency-Key` and of the body, decompressed.
    pub fn new(name: &str, endpoint: Endpoint, body: &[u8]) -> Once {
        let mut of_name = Digest::new("codex-gateway idempotency key 1");
        of_name.field("name", ValueRef::Text(name.as_bytes()));
        let mut of_body = Digest::new("codex-gateway idempotency body 1");
        of_body.field("path", ValueRef::Text(endpoint.path().as_bytes()));
        of_body.field("body", ValueRef::Blob(&Sha256::digest(body)));
        Once {
            name: of_name.finish(),
            body: of_body.finish(),
        }
    }
}

/// Why a call that came with a name is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It runs already, as this exchange.
    Running(ExchangeId),
    /// It is done.
    Done {
        /// As this exchange.
        exchange: ExchangeId,
        /// What that was charged.
        charge: Usd,
    },
    /// The name is another call's.
    OtherCall,
}

pub(super) const FIND: &str = "SELECT i.body_hash, i.exchange_id, h.state,
            (SELECT charge_nanos - uncollected_nanos FROM usage_logs WHERE exchange_id = i.exchange_id)
     FROM idempotency i JOIN holds h ON h.exchange_id = i.exchange_id WHERE i.key_id = ?1 AND i.name_hash = ?2";

/// Whether a call was taken before. What counts is what the hold's transaction reads.
pub(super) fn repeated(tx: &Connection, key: KeyId, once: &Once) -> rusqlite::Result<Option<Repeat>> {
    tx.prepare_cached(FIND)?
        .query_row(params![key, once.name], |row| {
            let (body, exchange, state): (Hash, ExchangeId, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(match state.as_str() {
                "released" => None,
                _ if body != once.body => Some(Repeat::OtherCall),
                "open" => Some(Repeat::Running(exchange)),
                _ => Some(Repeat::Done {
                    exchange,
                    charge: row.get(3)?,
                }),
            })
        })
        .optional()
        .map(Option::flatten)
}

impl Store {
    /// Whether a call was taken before, as of now: it is told so whatever it would be refused for if it were new.
    pub fn repeated(&self, key: KeyId, once: &Once) -> Result<Option<Repeat>, StoreError> {
        self.read("looking for a call by its name", |conn| repeated(conn, key, once))
    }
}

pub(super) const CLAIM: &str =
    "INSERT INTO idempotency (key_id, name_hash, body_hash, exchange_id) VALUES (?1, ?2, ?3, ?4)
     ON CONFLICT (key_id, name_hash) DO UPDATE SET body_hash = excluded.body_hash, exchange_id = excluded.exchange_id";

/// Lets a name stand for an exchange that has its hold. Fails when it stands for one that runs or was charged, whatever
/// was read before.
pub(super) fn claim(tx: &Connection, key: KeyId, once: &Once, exchange: ExchangeId) -> rusqlite::Result<()> {
    tx.prepare_cached(CLAIM)?
        .execute(params![key, once.name, once.body, exchange])
        .map(drop)
}

/// Rows that must not be: each stands for an exchange of its own gateway key.
pub(super) const UNFOUNDED: &str = "SELECT i.name_hash FROM idempotency i LEFT JOIN holds h USING (exchange_id)
     WHERE h.key_id IS NOT i.key_id";

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::keys::Key;
    use super::super::ledger::{HoldRefused, PlaceHold};
    use super::super::testing::*;
    use super::*;

    fn once(name: &str, body: &str) -> Once {
        Once::new(name, Endpoint::Responses, body.as_bytes())
    }

    fn named(key: &Key, once: Once) -> PlaceHold {
        PlaceHold {
            once: Some(once),
            ..ask(exchange(), key, "1")
        }
    }

    fn repeat(desk: &Desk, key: &Key, once: Once) -> Repeat {
        match desk.place(&named(key, once)) {
            Outcome::Refused(HoldRefused::Repeated(repeat)) => repeat,
            other => panic!("{other:?}"),
        }
    }

    fn rows(desk: &Desk) -> i64 {
        let counted = desk
            .raw()
            .query_row("SELECT COUNT(*) FROM idempotency", [], |row| row.get(0));
        counted.expect("a number")
    }

    #[test]
    fn a_name_stands_for_one_exchange_while_it_runs_and_when_it_is_charged() {
        let desk = Desk::new();
        // Nothing is left when it is done: that it is done is what counts.
        let ada = desk.user("ada", "1");
        let (key, other) = (desk.key(&ada), desk.key(&ada));
        let first = named(&key, once("n", "a"));
        let hold = done(desk.place(&first));
        assert_eq!(done(desk.place(&first)), hold, "the same hold once more");
        assert_eq!(repeat(&desk, &key, once("n", "a")), Repeat::Running(first.exchange));
        assert_eq!(repeat(&desk, &key, once("n", "b")), Repeat::OtherCall);
        desk.close(first.exchange, &closing(first.exchange, &key, "1"));
        let (exchange, charge) = (first.exchange, usd("1"));
        assert_eq!(repeat(&desk, &key, once("n", "a")), Repeat::Done { exchange, charge });
        assert_eq!(repeat(&desk, &key, once("n", "b")), Repeat::OtherCall);
        assert_eq!(desk.now(&ada).held, usd("0"));
        for (key, once) in [(&key, once("m", "a")), (&other, once("n", "a"))] {
            let short = refused(desk.place(&named(key, once)));
            assert!(matches!(short, HoldRefused::Short(..)), "{short:?}");
        }
        assert_eq!(rows(&desk), 1, "what is refused leaves no row");
        desk.assert_books_balance();
    }

    #[test]
    fn a_name_is_free_again_when_its_exchange_was_released() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let first = named(&key, once("n", "a"));
        desk.set_aside(&first);
        desk.close(first.exchange, &closing(first.exchange, &key, "0"));
        let second = named(&key, once("n", "b"));
        desk.set_aside(&second);
        assert_eq!(repeat(&desk, &key, once("n", "b")), Repeat::Running(second.exchange));
        assert_eq!(
            done(desk.store.release_interrupted(at(70))).released,
            1,
            "its process died"
        );
        let third = named(&key, once("n", "a"));
        desk.set_aside(&third);
        desk.close(third.exchange, &closing(third.exchange, &key, "1"));
        assert!(matches!(repeat(&desk, &key, once("n", "a")), Repeat::Done { .. }));
        assert_eq!(rows(&desk), 1);
        desk.assert_books_balance();
    }

    #[test]
    fn an_exchange_that_runs_or_was_charged_keeps_its_name_by_the_statement_alone() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let (first, second) = (named(&key, once("n", "a")), ask(exchange(), &key, "1"));
        desk.set_aside(&first);
        desk.set_aside(&second);
        let raw = desk.raw();
        let claimed = || claim(&raw, key.id, &once("n", "a"), second.exchange);
        let running = claimed().expect_err("it runs").to_string();
        assert!(running.contains("keeps its Idempotency-Key"), "{running}");
        desk.close(first.exchange, &closing(first.exchange, &key, "1"));
        claimed().expect_err("it was charged");
        raw.execute("DELETE FROM idempotency", []).expect_err("it stays");
    }

    #[test]
    fn a_name_of_another_keys_exchange_is_found() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let (key, other) = (desk.key(&ada), desk.key(&ada));
        let first = ask(exchange(), &key, "1");
        desk.set_aside(&first);
        claim(&desk.raw(), other.id, &once("n", "a"), first.exchange).expect("the schema lets it");
        let findings = desk.store.verify().expect("it verifies").findings;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].table, "idempotency");
    }

    #[test]
    fn another_endpoint_is_another_call() {
        let chat = Once::new("n", Endpoint::ChatCompletions, b"a");
        assert_ne!(chat, once("n", "a"));
        assert_eq!(once("n", "a"), once("n", "a"));
    }
}
