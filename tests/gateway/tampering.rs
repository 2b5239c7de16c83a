//! Single bits that flip, in the database and in its log: whatever a query returns otherwise, and every commit that is
//! gone, is found when the database is opened, by its high-water mark or by `ledger verify`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use codex_gateway::pricing::{ListName, Price};
use codex_gateway::store::{Actor, Create, Store};
use codex_gateway::time;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde_json::json;
use tempfile::TempDir;

use crate::campaign::{self, Dice};
use crate::harness::committed;
use crate::ledgers::{Ledger, stop};

/// How many bits flip in an ordinary run.
const FLIPS: usize = 100;

/// What queries are about.
const TABLES: [&str; 5] = ["users", "holds", "ledger_entries", "usage_logs", "usage_items"];

/// A database and what lies beside it, as a process left it.
struct Scene {
    folder: PathBuf,
    /// The file in which a bit flips.
    target: &'static str,
    /// What queries return, and how many commits there are.
    before: Answers,
    queries: Vec<Query>,
}

/// A query with its parameters.
struct Query {
    sql: String,
    values: Vec<Value>,
}

/// What queries return; an error is an answer.
#[derive(PartialEq, Eq)]
struct Answers {
    commits: Option<i64>,
    rows: Vec<Result<Vec<Vec<String>>, String>>,
}

/// What became of the flips.
#[derive(Default)]
struct Tally {
    changed: u64,
    dropped: u64,
    harmless: u64,
    found: u64,
    by_integrity_check: u64,
    missed: Vec<String>,
}

// What queries return ------------------------------------------------------------------------------------------------

#[expect(
    clippy::disallowed_methods,
    reason = "what other programs read is read beside the store"
)]
fn open(folder: &Path) -> rusqlite::Result<Connection> {
    Connection::open(folder.join("gateway.db"))
}

/// Whole rows as text that tells values apart.
fn rows(conn: &Connection, query: &Query) -> rusqlite::Result<Vec<Vec<String>>> {
    let mut statement = conn.prepare_cached(&query.sql)?;
    let width = statement.column_count();
    let read = statement.query_map(params_from_iter(&query.values), |row| {
        (0..width)
            .map(|at| row.get_ref(at).map(|value| format!("{value:?}")))
            .collect()
    })?;
    read.collect()
}

/// Queries that read each table whole, in the order of each index, and row by row by each index.
fn queries(conn: &Connection) -> rusqlite::Result<Vec<Query>> {
    let mut queries = Vec::new();
    let mut ask = |sql: String, values| queries.push(Query { sql, values });
    for table in TABLES {
        ask(format!("SELECT * FROM {table} NOT INDEXED"), Vec::new());
        let mut ways = vec![];
        let mut indexes = conn.prepare("SELECT name FROM pragma_index_list(?1)")?;
        for index in indexes.query_map([table], |row| row.get::<_, String>(0))? {
            let columns = "SELECT group_concat(name) FROM pragma_index_info(?1)";
            ways.push(conn.query_row(columns, [index?], |row| row.get::<_, String>(0))?);
        }
        if matches!(table, "ledger_entries" | "usage_logs") {
            ways.push("rowid".to_owned());
        }
        for way in ways {
            ask(format!("SELECT {way} FROM {table} ORDER BY {way}"), Vec::new());
            let tests: Vec<String> = (1..)
                .zip(way.split(','))
                .map(|(at, name)| format!("{name} IS ?{at}"))
                .collect();
            let sql = format!("SELECT * FROM {table} WHERE {}", tests.join(" AND "));
            let mut keys = conn.prepare(&format!("SELECT DISTINCT {way} FROM {table}"))?;
            let values = |row: &rusqlite::Row<'_>| (0..tests.len()).map(|at| row.get::<_, Value>(at)).collect();
            for key in keys.query_map([], values)? {
                ask(sql.clone(), key?);
            }
        }
    }
    Ok(queries)
}

/// What the queries return in a database.
fn answers(conn: &Connection, queries: &[Query]) -> Answers {
    let ask = |query: &Query| rows(conn, query).map_err(|error| error.to_string());
    Answers {
        commits: conn.query_row("SELECT count FROM commits", [], |row| row.get(0)).ok(),
        rows: queries.iter().map(ask).collect(),
    }
}

// Scenes -------------------------------------------------------------------------------------------------------------

/// Copies a database and what lies beside it, in a process of its own: in this one closing the copied files would drop
/// SQLite's locks.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-r")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp runs");
    assert!(copied.success(), "{} is copied", from.display());
}

/// A copy of what lies there now, in which bits of `target` will flip.
fn scene(dir: &TempDir, live: &Path, name: &str, target: &'static str) -> Scene {
    let folder = dir.path().join(name);
    copy(live, &folder);
    let read = dir.path().join(format!("{name}-read"));
    copy(&folder, &read);
    let conn = open(&read).expect("it opens");
    let queries = queries(&conn).expect("it reads");
    let before = answers(&conn, &queries);
    let wrong = before.rows.iter().find_map(|rows| rows.as_ref().err());
    assert_eq!((wrong, before.commits.is_some()), (None, true), "{name}");
    Scene {
        folder,
        target,
        before,
        queries,
    }
}

/// A database without a log, one with a log as a killed server leaves it, and one of whose log a part is in the
/// database already.
async fn scenes(dir: &TempDir) -> [Scene; 3] {
    let live = dir.path().join("live");
    fs::create_dir(&live).expect("a folder");
    let ledger = Ledger::with_users(&live.join("gateway.db"), 3);
    set_a_price(&ledger.store);
    let (writer, tracker) = ledger.writer();
    ledger.hold_by(&writer).await;
    ledger.charge_by(&writer, 60).await;
    stop(writer, tracker).await;
    let whole = scene(dir, &live, "whole", "gateway.db");
    let (writer, tracker) = ledger.writer();
    ledger.charge_by(&writer, 30).await;
    let killed = scene(dir, &live, "killed", "gateway.db-wal");
    let reader = open(&live).expect("it opens");
    reader.execute_batch("BEGIN; SELECT * FROM commits").expect("it reads");
    ledger.charge_by(&writer, 15).await;
    let checkpoint = open(&live).and_then(|conn| {
        conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
    });
    let (frames, moved) = checkpoint.expect("a checkpoint");
    assert!(0 < moved && moved < frames, "{moved} of {frames} pages were moved");
    drop(reader);
    ledger.charge_by(&writer, 15).await;
    let half = scene(dir, &live, "half", "gateway.db-wal");
    stop(writer, tracker).await;
    [whole, killed, half]
}

fn set_a_price(store: &Store) {
    let json = r#"{"kind":"text","rates":{"input":"3","output":"4"}}"#;
    let price = Price::from_json(json).expect("a price");
    let row = (ListName::openai(), "mine".to_owned(), time::now(), price);
    committed(store.set_prices(&[row], &Actor("test".to_owned()), time::now()));
}

// Flips --------------------------------------------------------------------------------------------------------------

impl Scene {
    /// Flips one bit in copies, and sees what queries return, and what is found.
    fn flip(&self, dir: &TempDir, dice: &mut Dice, tally: &mut Tally) {
        let [read, started] = ["read", "started"].map(|name| dir.path().join(name));
        copy(&self.folder, &read);
        let file = read.join(self.target);
        let mut bytes = fs::read(&file).expect("read");
        let bit = dice.roll(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, bytes).expect("written");
        copy(&read, &started);
        let found = found(&started);
        let (effect, by_integrity_check) = self.effect(&read);
        for folder in [read, started] {
            fs::remove_dir_all(folder).expect("removed");
        }
        let counted = match effect {
            Effect::None => &mut tally.harmless,
            Effect::Changed => &mut tally.changed,
            Effect::Dropped => &mut tally.dropped,
        };
        *counted += 1;
        if effect != Effect::None {
            tally.by_integrity_check += u64::from(by_integrity_check);
            match found {
                Some(_) => tally.found += 1,
                None => tally.missed.push(format!("bit {bit} of {}", file.display())),
            }
        }
    }

    /// What a flip did, and whether SQLite's own check finds something.
    fn effect(&self, folder: &Path) -> (Effect, bool) {
        let Ok(conn) = open(folder) else {
            return (Effect::Changed, true);
        };
        let after = answers(&conn, &self.queries);
        let check = conn.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        let sound = check.is_ok_and(|said| said == "ok");
        let effect = if after == self.before {
            Effect::None
        } else if after.commits.is_some_and(|count| Some(count) < self.before.commits) {
            Effect::Dropped
        } else {
            Effect::Changed
        };
        (effect, !sound)
    }
}

/// What a flip did.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing that anybody could see.
    None,
    /// A query returns something else.
    Changed,
    /// A commit is gone.
    Dropped,
}

/// What is found when a server starts on it, and verifies.
fn found(folder: &Path) -> Option<String> {
    let store = match Store::open(&folder.join("gateway.db"), Create::Never) {
        Ok(store) => store,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(behind) = store.behind() {
        return Some(behind.to_string());
    }
    match store.verify() {
        Ok(verification) => verification.findings.first().map(|first| first.problem.clone()),
        Err(error) => Some(error.to_string()),
    }
}

/// `GATEWAY_FLIPS=1000 cargo test --release --test gateway flipped_bit -- --nocapture` is the campaign.
#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_that_changes_what_is_read_is_found() {
    let (flips, seed) = (campaign::size("GATEWAY_FLIPS", FLIPS), campaign::seed());
    let dir = TempDir::new().expect("a directory");
    let scenes = scenes(&dir).await;
    let (mut dice, mut tally) = (Dice(seed), Tally::default());
    for number in 0..flips {
        // One half in databases, one half in logs.
        let scene = match number % 4 {
            0 | 1 => &scenes[0],
            2 => &scenes[1],
            _ => &scenes[2],
        };
        scene.flip(&dir, &mut dice, &mut tally);
    }
    let Tally {
        changed,
        dropped,
        harmless,
        found,
        by_integrity_check,
        missed,
    } = &tally;
    assert!(missed.is_empty(), "seed {seed}: {missed:#?}");
    assert!(*changed > 0 && *dropped > 0, "seed {seed}: nothing was put to the test");
    let counts = json!({
        "flips": flips,
        "changed": changed,
        "dropped": dropped,
        "found": found,
        "harmless": harmless,
        "integrity_check_found": by_integrity_check,
    });
    campaign::report("flips", counts);
}
