//! The outbox: what is told to others, written in the transaction of what it tells, and how far each sink has it.
//!
//! An event is written by whatever moves the money, a server's writer or a command beside it, and only while there is a
//! row in `sinks`: where there is none, an exchange pays for a look at an empty table. Rows of `sinks` are made at the
//! start of a server, from its settings, and with them what is called a low balance and a spent budget, so that every
//! process means the same by it. Events are numbered in the order in which they were committed. A sink's row says up to
//! which of them it has; what all have is deleted, a few at a time.
//!
//! What is in `data` is promised to others (docs/events.md): fields are added, never changed. No key, prompt or answer is
//! in it.

use std::convert::Infallible;
use std::fmt::Display;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::budgets::{self, Payers, Spender, Standing};
use super::columns::{Micros, broken, json};
use super::entries::Entry;
use super::usage_log::{Basis, ExchangeRow, Settled, State};
use super::{ExchangeId, KeyId, Outcome, Store, StoreError, Tried, UserId};
use crate::budget::{Owner, Period};
use crate::config::EventsConfig;
use crate::event::Kind;
use crate::money::Usd;
use crate::origin::Origin;
use crate::usage::Usage;

/// Whether events are told to anybody.
pub(super) const ANY: &str = "EXISTS (SELECT 1 FROM sinks)";

/// Events that are deleted in one transaction, at most.
const DELETED_AT_ONCE: i64 = 4_096;

/// The names in `meta` of what is called low and spent.
const LOW_BALANCE: &str = "low_balance";
const SPENT_SHARE: &str = "spent_share";

/// An event as a sink sends it: the document that docs/events.md describes.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Its id, however often it is sent.
    #[serde(serialize_with = "shown")]
    pub id: Uuid,
    /// Its place in the order of all events.
    pub seq: i64,
    /// What happened, by the name of a [`Kind`]: a text, since a later release may have written it.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    pub at: Timestamp,
    /// Whom it is about.
    pub user: About,
    /// The rest of it.
    pub data: Box<RawValue>,
}

/// Whom an event is about.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The user.
    #[serde(serialize_with = "shown")]
    pub id: UserId,
    /// The user's name when the event is sent.
    pub name: String,
}

/// How far a sink is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkState {
    /// Its name.
    pub name: String,
    /// The last event that it has.
    pub delivered: i64,
    /// Events that wait for it.
    pub waiting: i64,
    /// Since when the first of them does.
    pub waiting_since: Option<Timestamp>,
    /// Events that it never got, because too many waited.
    pub lost: i64,
    /// Since when nothing can be delivered, and why.
    pub failing: Option<(Timestamp, String)>,
}

/// What became of events at a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It has them, up to this one.
    Delivered {
        /// Which sink.
        sink: String,
        /// The last of them.
        seq: i64,
    },
    /// So many waited that it does not get those up to this one.
    Lost {
        /// Which sink.
        sink: String,
        /// The last of them.
        seq: i64,
        /// How many.
        count: i64,
    },
    /// They could not be delivered.
    Failing {
        /// Which sink.
        sink: String,
        /// Why.
        why: String,
        /// When.
        now: Timestamp,
    },
}

// Writing them -------------------------------------------------------------------------------------------------------

/// `exchange.settled`, `exchange.released`: what a receipt says, without its lines.
#[derive(Serialize)]
struct OfExchange<'a> {
    #[serde(serialize_with = "shown")]
    id: ExchangeId,
    #[serde(serialize_with = "shown")]
    key: KeyId,
    state: &'static str,
    estimated: bool,
    endpoint: &'static str,
    streamed: bool,
    model: &'a str,
    priced_model: &'a str,
    answered_model: Option<&'a str>,
    upstream: &'a str,
    price_list: Option<&'a str>,
    tier: &'static str,
    usage: &'a Usage,
    cost: Usd,
    priced: Usd,
    charge: Usd,
    uncollected: Usd,
    hold: Usd,
    balance_after: Usd,
    attempts: u32,
    response_id: Option<&'a str>,
    started_at: Timestamp,
    first_byte_ms: Option<u128>,
    duration_ms: u128,
    #[serde(flatten)]
    origin: &'a Origin,
}

/// `balance.changed`: an entry of the ledger.
#[derive(Serialize)]
struct OfEntry<'a> {
    entry: i64,
    kind: &'a str,
    amount: Usd,
    balance_after: Usd,
    /// What is charged for, or given back.
    exchange: Option<String>,
    reference: Option<&'a str>,
    note: Option<&'a str>,
}

/// `balance.low`
#[derive(Serialize)]
struct OfLowBalance {
    balance: Usd,
    low_balance: Usd,
}

/// `budget.spent`
#[derive(Serialize)]
struct OfBudget {
    of: Owner,
    key: Option<String>,
    period: Period,
    limit: Usd,
    spent: Usd,
    left: Usd,
    resets_at: Option<Timestamp>,
}

fn shown<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(super) const INSERT: &str =
    "INSERT INTO events (seq, id, user_id, type, at, data) VALUES (NULL, ?1, ?2, ?3, ?4, ?5)";

fn write(tx: &Connection, kind: Kind, (user, at): (UserId, Timestamp), data: &impl Serialize) -> rusqlite::Result<()> {
    let id = Uuid::now_v7();
    tx.prepare_cached(INSERT)?
        .execute(params![id.as_bytes(), user, kind.name(), Micros(at), json(data)?])
        .map(drop)
}

/// Tells that an exchange is over; part of the closing of its hold. `charged` is what it took.
pub(super) fn exchange_closed(
    tx: &Connection,
    (row, settled): (&ExchangeRow, &Settled),
    (charged, at): (Usd, Timestamp),
) -> rusqlite::Result<()> {
    let kind = if charged > Usd::ZERO {
        Kind::ExchangeSettled
    } else {
        Kind::ExchangeReleased
    };
    let data = OfExchange {
        id: settled.exchange,
        key: settled.key,
        state: row.state.name(),
        estimated: row.basis == Basis::Estimated && row.state != State::Interrupted,
        endpoint: row.endpoint.path(),
        streamed: row.streamed,
        model: &row.model,
        priced_model: &row.priced_model,
        answered_model: row.answered_model.as_deref(),
        upstream: &row.upstream,
        price_list: row.list.as_ref().map(|list| list.as_str()),
        tier: row.tier.name(),
        usage: &row.usage,
        cost: row.cost,
        priced: row.charge,
        charge: charged,
        uncollected: settled.uncollected,
        hold: settled.held,
        balance_after: settled.balance_after,
        attempts: row.attempts,
        response_id: row.response_id.as_deref(),
        started_at: row.started_at,
        first_byte_ms: row.first_byte.map(|span| span.as_millis()),
        duration_ms: row.duration.as_millis(),
        origin: &row.origin,
    };
    write(tx, kind, (settled.user, at), &data)
}

/// Tells of an entry, and of a balance that it made low; part of the transaction that appends it.
pub(super) fn balance_changed(tx: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    let data = OfEntry {
        entry: entry.seq,
        kind: &entry.kind,
        amount: entry.amount,
        balance_after: entry.balance_after,
        exchange: entry.exchange.or(entry.refunds).map(|id| id.to_string()),
        reference: entry.reference.as_deref(),
        note: entry.note.as_deref(),
    };
    let about = (entry.user, entry.at);
    write(tx, Kind::BalanceChanged, about, &data)?;
    let Some(low_balance) = setting(tx, LOW_BALANCE)?.map(Usd::from_nanos) else {
        return Ok(());
    };
    let before = entry.balance_after.saturating_sub(entry.amount);
    if before < low_balance || entry.balance_after >= low_balance {
        return Ok(());
    }
    let data = OfLowBalance {
        balance: entry.balance_after,
        low_balance,
    };
    write(tx, Kind::BalanceLow, about, &data)
}

/// Tells of the budgets that a charge has spent, as they stand after it; part of the closing of its hold.
pub(super) fn budgets_charged(
    tx: &Connection,
    of: Payers,
    placed_at: Timestamp,
    (charged, at): (Usd, Timestamp),
) -> rusqlite::Result<()> {
    let Some(share) = setting(tx, SPENT_SHARE)? else {
        return Ok(());
    };
    for (owner, spender, key) in [
        (Owner::Key, Spender::Key(of.key), Some(of.key.to_string())),
        (Owner::User, Spender::User(of.user), None),
    ] {
        for budget in budgets::standing(tx, spender, placed_at)? {
            if !has_just_spent(&budget, charged, share) {
                continue;
            }
            let data = OfBudget {
                of: owner,
                key: key.clone(),
                period: budget.period,
                limit: budget.limit,
                spent: budget.spent,
                left: budget.limit.saturating_sub(budget.spent).max(Usd::ZERO),
                resets_at: budget.resets_at,
            };
            write(tx, Kind::BudgetSpent, (of.user, at), &data)?;
        }
    }
    Ok(())
}

/// Whether a budget is spent, to a share of millionths, and was not before a charge.
fn has_just_spent(budget: &Standing, charged: Usd, share: i64) -> bool {
    let mark = i128::from(budget.limit.nanos()) * i128::from(share);
    let is_spent = |spent: Usd| i128::from(spent.nanos()) * 1_000_000 >= mark;
    is_spent(budget.spent) && !is_spent(budget.spent.saturating_sub(charged))
}

/// What the settings of the last server call low, or spent.
fn setting(tx: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    let text: Option<String> = tx
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    let number = text.map(|text| {
        text.parse()
            .map_err(|_| broken(format!("`{name}` in meta is no number")))
    });
    number.transpose()
}

// Sending them -------------------------------------------------------------------------------------------------------

/// What to write down when so many events are lost to a sink: once that they are, and as often again as it takes until they
/// are deleted. Each transaction deletes some; a sink that fails for long would otherwise let the outbox grow.
pub fn loss(sink: &str, seq: i64, count: i64) -> impl Iterator<Item = Note> {
    let again = std::iter::repeat_n(0, usize::try_from(count / DELETED_AT_ONCE).unwrap_or(0));
    let sink = sink.to_owned();
    std::iter::once(count).chain(again).map(move |count| Note::Lost {
        sink: sink.clone(),
        seq,
        count,
    })
}

/// Writes down what became of events; part of a transaction.
pub(super) fn note(tx: &Connection, note: &Note) -> rusqlite::Result<()> {
    match note {
        Note::Delivered { sink, seq } => {
            tx.prepare_cached(
                "UPDATE sinks SET delivered = ?2, failing_at = NULL, failure = NULL WHERE name = ?1 AND delivered <= ?2",
            )?
            .execute(params![sink, seq])?;
            delete(tx).map(drop)
        }
        Note::Lost { sink, seq, count } => {
            tx.prepare_cached("UPDATE sinks SET delivered = ?2, lost = lost + ?3 WHERE name = ?1 AND delivered <= ?2")?
                .execute(params![sink, seq, count])?;
            delete(tx).map(drop)
        }
        Note::Failing { sink, why, now } => tx
            .prepare_cached("UPDATE sinks SET failing_at = COALESCE(failing_at, ?3), failure = ?2 WHERE name = ?1")?
            .execute(params![sink, why, Micros(*now)])
            .map(drop),
    }
}

/// Deletes some of the events that every sink has, but never the newest; part of a transaction. How many.
fn delete(tx: &Connection) -> rusqlite::Result<usize> {
    tx.prepare_cached(
        "DELETE FROM events WHERE seq <= MIN(COALESCE((SELECT MIN(delivered) FROM sinks), 9223372036854775807),
                                             (SELECT MAX(seq) FROM events) - 1,
                                             (SELECT MIN(seq) FROM events) + ?1 - 1)",
    )?
    .execute([DELETED_AT_ONCE])
}

/// What the last server made of its settings.
#[derive(PartialEq, Eq)]
struct Opened {
    names: Vec<String>,
    low_balance: Option<i64>,
    spent_share: Option<i64>,
}

fn opened(conn: &Connection) -> rusqlite::Result<Opened> {
    let names = conn
        .prepare("SELECT name FROM sinks ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(Opened {
        names,
        low_balance: setting(conn, LOW_BALANCE)?,
        spent_share: setting(conn, SPENT_SHARE)?,
    })
}

/// Makes the sinks those of the settings. A new one begins with what comes next; one that is gone is forgotten.
fn open(tx: &Connection, wanted: &Opened) -> rusqlite::Result<()> {
    for name in opened(tx)?.names.iter().filter(|name| !wanted.names.contains(name)) {
        tx.execute("DELETE FROM sinks WHERE name = ?1", [name])?;
    }
    for name in &wanted.names {
        tx.execute(
            "INSERT INTO sinks (name, delivered) VALUES (?1, (SELECT COALESCE(MAX(seq), 0) FROM events))
             ON CONFLICT DO NOTHING",
            [name],
        )?;
    }
    for (name, value) in [(LOW_BALANCE, wanted.low_balance), (SPENT_SHARE, wanted.spent_share)] {
        tx.execute("DELETE FROM meta WHERE name = ?1", [name])?;
        if let Some(value) = value {
            tx.execute(
                "INSERT INTO meta (name, value) VALUES (?1, ?2)",
                params![name, value.to_string()],
            )?;
        }
    }
    Ok(())
}

impl Store {
    /// Makes the sinks those of a server that starts. Without any, nothing is told from now on, and what was to be told
    /// is forgotten.
    ///
    /// # Errors
    /// The database failed.
    pub fn open_sinks(&self, names: &[&str], config: &EventsConfig) -> Result<(), StoreError> {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        let are_any = !names.is_empty();
        let wanted = Opened {
            names,
            low_balance: config.low_balance.filter(|_| are_any).map(Usd::nanos),
            spent_share: are_any.then_some(i64::from(config.spent_share_ppm)),
        };
        if self.read("reading the sinks", opened)? != wanted {
            self.change_sinks(|tx| open(tx, &wanted))?;
        }
        while !are_any && self.read("looking for events", are_old)? {
            self.change_sinks(|tx| delete(tx).map(drop))?;
        }
        Ok(())
    }

    fn change_sinks(&self, act: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        let write = |tx: &Connection| -> Tried<(), Infallible> { act(tx).map(Ok) };
        match self.write("opening the sinks", write) {
            Outcome::Committed(()) => Ok(()),
            Outcome::Refused(never) => match never {},
            Outcome::NotCommitted(error) | Outcome::Unknown(error) => Err(error),
        }
    }

    /// Events behind a place, in order, at most so many; and the place of the newest.
    ///
    /// # Errors
    /// The database failed.
    pub fn events_behind(&self, seq: i64, limit: u32) -> Result<(Vec<Event>, i64), StoreError> {
        self.read("reading events", |conn| {
            let newest = conn
                .prepare_cached("SELECT COALESCE(MAX(seq), 0) FROM events")?
                .query_row([], |row| row.get(0))?;
            if newest <= seq {
                return Ok((Vec::new(), newest));
            }
            let events = conn
                .prepare_cached(
                    "SELECT e.seq, e.id, e.type, e.at, e.user_id, u.name, e.data
                     FROM events e JOIN users u ON u.id = e.user_id WHERE e.seq > ?1 ORDER BY e.seq LIMIT ?2",
                )?
                .query_map(params![seq, limit], event)?
                .collect::<Result<_, _>>()?;
            Ok((events, newest))
        })
    }

    /// Up to which event a sink has them all.
    ///
    /// # Errors
    /// The database failed, or there is no such sink.
    pub fn delivered(&self, sink: &str) -> Result<i64, StoreError> {
        self.read("reading how far a sink is", |conn| {
            conn.prepare_cached("SELECT delivered FROM sinks WHERE name = ?1")?
                .query_row([sink], |row| row.get(0))
        })
    }

    /// How far each sink is, by name.
    ///
    /// # Errors
    /// The database failed.
    pub fn sinks(&self) -> Result<Vec<SinkState>, StoreError> {
        self.read("reading the sinks", |conn| {
            conn.prepare_cached(
                "SELECT name, delivered, lost, failing_at, failure,
                        (SELECT COUNT(*) FROM events WHERE seq > delivered) AS waiting,
                        (SELECT at FROM events WHERE seq > delivered ORDER BY seq LIMIT 1) AS waiting_since
                 FROM sinks ORDER BY name",
            )?
            .query_map([], |row| {
                let failing = row.get::<_, Option<Micros>>("failing_at")?.map(|at| at.0);
                Ok(SinkState {
                    name: row.get("name")?,
                    delivered: row.get("delivered")?,
                    waiting: row.get("waiting")?,
                    waiting_since: row.get::<_, Option<Micros>>("waiting_since")?.map(|at| at.0),
                    lost: row.get("lost")?,
                    failing: failing.zip(row.get("failure")?),
                })
            })?
            .collect()
        })
    }
}

fn event(row: &rusqlite::Row<'_>) -> rusqlite::Result<Event> {
    let data = RawValue::from_string(row.get("data")?).map_err(|_| broken("an event does not parse"))?;
    Ok(Event {
        id: Uuid::from_bytes(row.get("id")?),
        seq: row.get("seq")?,
        kind: row.get("type")?,
        at: row.get::<_, Micros>("at")?.0,
        user: About {
            id: row.get("user_id")?,
            name: row.get("name")?,
        },
        data,
    })
}

/// Whether there are events but the newest.
fn are_old(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT MIN(seq) < MAX(seq) FROM events", [], |row| {
        row.get::<_, Option<bool>>(0).map(|old| old.unwrap_or(false))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::budgets::Change;
    use super::super::keys::Key;
    use super::super::ledger::{self, PlaceHold};
    use super::super::prepared::Prepared;
    use super::super::refunds::Refund;
    use super::super::testing::*;
    use super::*;
    use crate::budget::Budget;

    const CONFIG: EventsConfig = EventsConfig {
        low_balance: None,
        spent_share_ppm: 900_000,
        max_waiting: 1000,
    };

    fn told(desk: &Desk) -> Vec<Value> {
        let (events, _) = desk.store.events_behind(0, u32::MAX).expect("read");
        events
            .iter()
            .map(|event| serde_json::to_value(event).expect("JSON"))
            .collect()
    }

    fn types(desk: &Desk) -> Vec<String> {
        let of = |event: &Value| event["type"].as_str().expect("a type").to_owned();
        told(desk).iter().map(of).collect()
    }

    fn exchange_of(desk: &Desk, key: &Key, charge: &str) -> ExchangeId {
        let id = exchange();
        desk.set_aside(&ask(id, key, "1"));
        desk.close(id, &closing(id, key, charge));
        id
    }

    #[test]
    fn without_a_sink_nothing_is_written() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        exchange_of(&desk, &desk.key(&ada), "1");
        assert_eq!(told(&desk), Vec::<Value>::new());
        desk.store.open_sinks(&["a"], &CONFIG).expect("opened");
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(2)));
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(3)));
        assert_eq!(types(&desk).len(), 2);
        desk.store.open_sinks(&[], &CONFIG).expect("opened");
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(4)));
        assert_eq!(types(&desk).len(), 1, "the newest stays, for its number");
        desk.assert_books_balance();
    }

    #[test]
    fn what_an_exchange_and_every_entry_are_told_as() {
        let desk = Desk::new();
        desk.store.open_sinks(&["a"], &CONFIG).expect("opened");
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let id = exchange_of(&desk, &key, "0.75");
        exchange_of(&desk, &key, "0");
        let refund = Refund {
            exchange: id,
            amount: None,
            reference: Some("sorry".to_owned()),
            note: None,
        };
        done(desk.store.refund(&refund, &by(), at(20)));
        done(desk.store.credit(&top_up(&ada, "-1", None), &by(), at(21)));
        let told = told(&desk);
        let expected = [
            "balance.changed",
            "exchange.settled",
            "balance.changed",
            "exchange.released",
            "balance.changed",
            "balance.changed",
        ];
        assert_eq!(types(&desk), expected);
        let user = json!({"id": ada.id.to_string(), "name": "ada"});
        assert!(told.iter().all(|event| event["user"] == user), "{told:#?}");
        let seqs: Vec<_> = told.iter().map(|event| event["seq"].as_i64()).collect();
        assert_eq!(seqs, (1..=6).map(Some).collect::<Vec<_>>());
        let settled = &told[1]["data"];
        for (field, value) in [
            ("id", json!(id.to_string())),
            ("key", json!(key.id.to_string())),
            ("state", json!("completed")),
            ("estimated", json!(false)),
            ("model", json!("gpt")),
            ("cost", json!("0.75")),
            ("charge", json!("0.75")),
            ("uncollected", json!("0")),
            ("hold", json!("1")),
            ("balance_after", json!("4.25")),
            ("duration_ms", json!(1200)),
        ] {
            assert_eq!(settled[field], value, "{field}");
        }
        assert_eq!(settled["usage"]["output_tokens"], 50);
        let charge = json!({"entry": 2, "kind": "charge", "amount": "-0.75", "balance_after": "4.25",
            "exchange": id.to_string(), "reference": null, "note": null});
        assert_eq!(told[2]["data"], charge);
        assert_eq!(told[3]["data"]["charge"], "0");
        let refund = json!({"entry": 3, "kind": "refund", "amount": "0.75", "balance_after": "5",
            "exchange": id.to_string(), "reference": "sorry", "note": null});
        assert_eq!(told[4]["data"], refund);
        assert_eq!(told[5]["data"]["kind"], "adjustment");
        desk.assert_books_balance();
    }

    #[test]
    fn a_settlement_that_is_rolled_back_is_not_told() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        desk.store.open_sinks(&["a"], &CONFIG).expect("opened");
        let id = exchange();
        desk.set_aside(&ask(id, &key, "1"));
        let close = closing(id, &key, "1");
        let undone = desk.store.write("closing", |tx| {
            ledger::close(&Prepared::of(tx), id, &close)?;
            let written: i64 = tx.query_row("SELECT COUNT(*) FROM events", [], |row| row.get(0))?;
            assert_eq!(written, 2, "they are part of it");
            Ok(Err::<(), _>("never mind"))
        });
        assert_eq!(refused(undone), "never mind");
        assert_eq!(told(&desk), Vec::<Value>::new());
        desk.close(id, &close);
        desk.close(id, &close);
        assert_eq!(types(&desk), ["exchange.settled", "balance.changed"], "and once");
        desk.assert_books_balance();
    }

    #[test]
    fn a_balance_is_low_each_time_it_falls_below_and_not_while_it_is() {
        let desk = Desk::new();
        let config = EventsConfig {
            low_balance: Some(usd("2")),
            ..CONFIG
        };
        desk.store.open_sinks(&["a"], &config).expect("opened");
        let ada = desk.user("ada", "3");
        let key = desk.key(&ada);
        let low = |desk: &Desk| -> Vec<Value> {
            let told = told(desk);
            let low = told.iter().filter(|event| event["type"] == "balance.low");
            low.map(|event| event["data"].clone()).collect()
        };
        exchange_of(&desk, &key, "1");
        assert_eq!(low(&desk), Vec::<Value>::new(), "two dollars are not below two");
        exchange_of(&desk, &key, "0.000000001");
        exchange_of(&desk, &key, "0.5");
        let first = json!({"balance": "1.999999999", "low_balance": "2"});
        assert_eq!(low(&desk), std::slice::from_ref(&first));
        done(desk.store.credit(&top_up(&ada, "0.1", None), &by(), at(3)));
        assert_eq!(low(&desk).len(), 1, "still low");
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(4)));
        exchange_of(&desk, &key, "1");
        assert_eq!(
            low(&desk),
            [first, json!({"balance": "1.599999999", "low_balance": "2"})]
        );
        // What another process means by low is what the server does.
        done(desk.again().credit(&top_up(&ada, "1", None), &by(), at(5)));
        done(desk.again().credit(&top_up(&ada, "-1", None), &by(), at(6)));
        assert_eq!(low(&desk).len(), 3);
    }

    #[test]
    fn a_budget_is_spent_once_in_each_window() {
        let desk = Desk::new();
        desk.store.open_sinks(&["a"], &CONFIG).expect("opened");
        let ada = desk.user("ada", "50");
        let key = desk.key(&ada);
        let budget = |text: &str| Change::Set(text.parse::<Budget>().expect("a budget"));
        done(desk.store.write::<_, ()>("setting", |tx| {
            budgets::change(tx, Spender::Key(key.budgets), &[budget("2/day")], (&by(), at(5)))?;
            budgets::change(tx, Spender::User(ada.id), &[budget("40")], (&by(), at(5))).map(Ok)
        }));
        let day = 86_400;
        let call = |seconds: i64, charge: &str| {
            let id = exchange();
            let hold = PlaceHold {
                now: at(seconds),
                ..ask(id, &key, charge)
            };
            desk.set_aside(&hold);
            let mut close = closing(id, &key, charge);
            close.row.started_at = at(seconds);
            desk.close(id, &close);
        };
        let spent = || -> Vec<Value> {
            let told = told(&desk);
            let spent = told.iter().filter(|event| event["type"] == "budget.spent");
            spent.map(|event| event["data"].clone()).collect()
        };
        call(10, "1.7");
        assert_eq!(spent(), Vec::<Value>::new());
        call(11, "0.1");
        call(12, "0.1");
        let first = spent();
        let [only] = first.as_slice() else { panic!("{first:#?}") };
        assert_eq!(
            (&only["of"], &only["period"], &only["spent"], &only["left"]),
            (&json!("key"), &json!("day"), &json!("1.8"), &json!("0.2"))
        );
        assert_eq!(only["key"], json!(key.budgets.to_string()));
        assert!(only["resets_at"].is_string());
        call(10 + day, "1.9");
        assert_eq!(spent().len(), 2, "another day, another window");
        desk.assert_books_balance();
    }

    #[test]
    fn what_every_sink_has_is_deleted_and_no_number_is_given_twice() {
        let desk = Desk::new();
        desk.store.open_sinks(&["a", "b"], &CONFIG).expect("opened");
        let ada = desk.user("ada", "1");
        for n in 0..5 {
            done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(n)));
        }
        let deliver = |sink: &str, seq| {
            let sink = sink.to_owned();
            let note = |tx: &Connection| note(tx, &Note::Delivered { sink, seq }).map(Ok);
            done(desk.store.write::<_, ()>("noting", note));
        };
        let left = || {
            let (events, newest) = desk.store.events_behind(0, 100).expect("read");
            (events.iter().map(|event| event.seq).collect::<Vec<_>>(), newest)
        };
        deliver("a", 6);
        assert_eq!(left(), (vec![1, 2, 3, 4, 5, 6], 6), "the other one has none");
        deliver("b", 4);
        assert_eq!(left(), (vec![5, 6], 6));
        deliver("b", 2);
        assert_eq!(desk.store.delivered("b").expect("read"), 4, "it does not go back");
        deliver("b", 6);
        assert_eq!(left(), (vec![6], 6));
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(9)));
        assert_eq!(left(), (vec![6, 7], 7));
        desk.store.open_sinks(&["b", "c"], &CONFIG).expect("opened");
        let sinks = desk.store.sinks().expect("read");
        let far: Vec<_> = sinks
            .iter()
            .map(|sink| (sink.name.as_str(), sink.delivered, sink.waiting))
            .collect();
        assert_eq!(far, [("b", 6, 1), ("c", 7, 0)], "a new one begins with what comes next");
        assert_eq!(sinks[0].waiting_since, Some(at(9)));
    }

    #[test]
    fn however_many_are_lost_at_once_they_are_deleted() {
        let desk = Desk::new();
        desk.store.open_sinks(&["a"], &CONFIG).expect("opened");
        desk.user("ada", "1");
        let many = "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                    INSERT INTO events (seq, id, user_id, type, at, data)
                    SELECT i, randomblob(16), (SELECT id FROM users), 'x', 0, '{}' FROM n";
        desk.raw().execute_batch(many).expect("there are many");
        for lost in loss("a", 9_000, 9_000) {
            done(desk.store.write::<_, ()>("noting", |tx| note(tx, &lost).map(Ok)));
        }
        let left: i64 = super::super::connection::pragma(&desk.raw(), "SELECT COUNT(*) FROM events").expect("counted");
        assert_eq!((left, desk.store.sinks().expect("read")[0].lost), (1_000, 9_000));
    }

    #[test]
    fn what_is_lost_and_why_it_fails_is_written_down() {
        let desk = Desk::new();
        desk.store.open_sinks(&["a"], &CONFIG).expect("opened");
        desk.user("ada", "1");
        let noted = |what: Note| {
            done(desk.store.write::<_, ()>("noting", |tx| note(tx, &what).map(Ok)));
            desk.store.sinks().expect("read").remove(0)
        };
        let failing = |why: &str, now| Note::Failing {
            sink: "a".to_owned(),
            why: why.to_owned(),
            now,
        };
        noted(failing("503", at(1)));
        let state = noted(failing("no route", at(2)));
        assert_eq!(state.failing, Some((at(1), "no route".to_owned())));
        let lost = Note::Lost {
            sink: "a".to_owned(),
            seq: 1,
            count: 1,
        };
        assert_eq!((noted(lost.clone()).lost, noted(lost).lost), (1, 2));
        let delivered = Note::Delivered {
            sink: "a".to_owned(),
            seq: 1,
        };
        assert_eq!(noted(delivered).failing, None);
    }
}
