//! Objects that upstreams keep for users: whose each is, and where it is.
//!
//! An id is looked up with its user, always: of another user's object nothing is told, not even that it is there.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension, Row, params};

use super::background::{self, Whereabouts};
use super::columns::Micros;
use super::{Outcome, Store, StoreError, UserId};
use crate::endpoints::Kind;

/// Objects of a kind that one user may have.
pub const MOST: u32 = 10_000;

/// How long an upload is kept that is not completed: upstreams give it an hour, and more is not asked of the clocks.
const UPLOAD_LIVES: SignedDuration = SignedDuration::from_hours(24);

/// Why an object is not noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Store {
    /// Notes whose an object is, before its id is told. Uploads that nobody completed are gone by themselves.
    pub fn keep_object(
        &self,
        (user, kind): (UserId, Kind),
        (upstream, id): (&str, &str),
        now: Timestamp,
    ) -> Outcome<(), TooMany> {
        self.write("noting whose an object is", |tx| {
            if kind == Kind::Upload {
                tx.prepare_cached("DELETE FROM stored_objects WHERE user_id = ?1 AND kind = ?2 AND created_at < ?3")?
                    .execute(params![user, kind.name(), Micros(now - UPLOAD_LIVES)])?;
            }
            let there: u32 = tx
                .prepare_cached("SELECT COUNT(*) FROM stored_objects WHERE user_id = ?1 AND kind = ?2")?
                .query_row(params![user, kind.name()], |row| row.get(0))?;
            if there >= MOST {
                return Ok(Err(TooMany));
            }
            tx.prepare_cached(
                "INSERT INTO stored_objects (id, upstream, user_id, kind, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![id, upstream, user, kind.name(), Micros(now)])?;
            Ok(Ok(()))
        })
    }

    /// Forgets one that is deleted.
    pub fn forget_object(&self, user: UserId, (upstream, id): (&str, &str)) -> Outcome<(), TooMany> {
        self.write("forgetting an object", |tx| {
            tx.prepare_cached("DELETE FROM stored_objects WHERE id = ?1 AND upstream = ?2 AND user_id = ?3")?
                .execute(params![id, upstream, user])?;
            Ok(Ok(()))
        })
    }

    /// The upstream that keeps this object of the user's; of a response, the one that runs it, or made it last.
    pub fn where_is(&self, user: UserId, kind: Kind, id: &str) -> Result<Option<Whereabouts>, StoreError> {
        let settled = |row: &Row<'_>| {
            Ok(Whereabouts {
                upstream: row.get(0)?,
                unsettled: None,
            })
        };
        self.read("looking for an object", |conn| match kind {
            Kind::Response => match background::find(conn, user, id)? {
                Some(runs) => Ok(Some(runs)),
                None => conn
                    .prepare_cached(
                        "SELECT upstream FROM usage_logs WHERE response_id = ?1 AND +user_id = ?2
                         ORDER BY exchange_id DESC LIMIT 1",
                    )?
                    .query_row(params![id, user], settled)
                    .optional(),
            },
            Kind::Conversation | Kind::File | Kind::Upload => conn
                .prepare_cached("SELECT upstream FROM stored_objects WHERE id = ?1 AND user_id = ?2 AND kind = ?3")?
                .query_row(params![id, user, kind.name()], settled)
                .optional(),
        })
    }

    /// Whether this upstream keeps this object of the user's.
    pub fn keeps(&self, user: UserId, upstream: &str, kind: Kind, id: &str) -> Result<bool, StoreError> {
        self.read("looking for an object", |conn| {
            conn.prepare_cached(
                "SELECT 1 FROM stored_objects WHERE id = ?1 AND upstream = ?2 AND user_id = ?3 AND kind = ?4",
            )?
            .exists(params![id, upstream, user, kind.name()])
        })
    }

    /// Whether the user may have one more of a kind.
    pub fn may_keep(&self, user: UserId, kind: Kind) -> Result<bool, StoreError> {
        let there = self.read("counting objects", |conn| {
            conn.prepare_cached("SELECT COUNT(*) FROM stored_objects WHERE user_id = ?1 AND kind = ?2")?
                .query_row(params![user, kind.name()], |row| row.get::<_, u32>(0))
        })?;
        Ok(there < MOST)
    }

    /// The upstreams and ids of all objects of a kind that the user has.
    pub fn objects_of(&self, user: UserId, kind: Kind) -> Result<Vec<(String, String)>, StoreError> {
        self.read("reading objects", |conn| {
            conn.prepare_cached(
                "SELECT upstream, id FROM stored_objects WHERE user_id = ?1 AND kind = ?2 ORDER BY created_at, id",
            )?
            .query_map(params![user, kind.name()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn an_object_is_seen_by_its_user_until_it_is_deleted() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
        let kept = desk
            .store
            .keep_object((ada.id, Kind::File), ("openai", "file-1"), at(0));
        assert!(matches!(kept, Outcome::Committed(())), "{kept:?}");
        let seen = |user, kind| {
            let found = desk.store.where_is(user, kind, "file-1").expect("it reads");
            found.map(|found| found.upstream)
        };
        assert_eq!(seen(ada.id, Kind::File).as_deref(), Some("openai"));
        assert_eq!(seen(bob.id, Kind::File), None);
        assert_eq!(seen(ada.id, Kind::Conversation), None);
        assert_eq!(seen(ada.id, Kind::Response), None);
        let keeps = |user, upstream| {
            desk.store
                .keeps(user, upstream, Kind::File, "file-1")
                .expect("it reads")
        };
        assert_eq!((keeps(ada.id, "openai"), keeps(ada.id, "other")), (true, false));
        let others = desk
            .store
            .keep_object((bob.id, Kind::File), ("openai", "file-1"), at(1));
        assert!(matches!(others, Outcome::NotCommitted(_)), "{others:?}");
        assert!(matches!(
            desk.store.forget_object(bob.id, ("openai", "file-1")),
            Outcome::Committed(())
        ));
        assert!(keeps(ada.id, "openai"), "another user deletes nothing");
        assert_eq!(
            desk.store.objects_of(ada.id, Kind::File).expect("it reads"),
            [("openai".to_owned(), "file-1".to_owned())]
        );
        assert!(matches!(
            desk.store.forget_object(ada.id, ("openai", "file-1")),
            Outcome::Committed(())
        ));
        assert!(!keeps(ada.id, "openai"));
    }

    #[test]
    fn nobody_has_more_objects_than_the_bound() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let raw = desk.raw();
        for number in 0..MOST {
            raw.prepare_cached(
                "INSERT INTO stored_objects (id, upstream, user_id, kind, created_at) VALUES (?1, 'o', ?2, 'file', 0)",
            )
            .and_then(|mut insert| insert.execute(params![format!("file-{number}"), ada.id]))
            .expect("it is there");
        }
        let more = |kind| desk.store.keep_object((ada.id, kind), ("o", "one-more"), at(0));
        assert!(matches!(more(Kind::File), Outcome::Refused(TooMany)));
        assert!(!desk.store.may_keep(ada.id, Kind::File).expect("it reads"));
        assert!(matches!(more(Kind::Conversation), Outcome::Committed(())));
    }
}
