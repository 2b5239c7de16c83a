//! A database with a past: many users, keys and calls, written straight into its tables.
//!
//! The rows are what settlements leave, in number and size; their hashes are not computed, so `ledger verify` would say
//! that it was tampered with. Speed does not depend on that.

use std::path::Path;

use codex_gateway::key::GatewayKey;
use codex_gateway::store::{Create, Store};
use codex_gateway::time::now;
use rusqlite::{Connection, params};

/// How much of a past.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// Users; each has as many keys.
    pub users: i64,
    /// Keys.
    pub keys: i64,
    /// Calls, each with hold, entry and usage row.
    pub calls: i64,
}

/// Microseconds of 2026-11-01, when the past begins.
const BEGINNING: i64 = 1_793_491_200_000_000;

/// Between two calls.
const APART: i64 = 200_000;

/// Writes it into an empty database. Returns `some` keys, spread over all users.
pub fn write(database: &Path, past: Past, some: i64) -> Vec<String> {
    #[expect(clippy::disallowed_methods, reason = "the store has no operation that makes a past")]
    let mut conn = Connection::open(database).expect("a database");
    conn.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -200000; PRAGMA foreign_keys = OFF;",
    )
    .expect("settings");
    let tx = conn.transaction().expect("nobody else writes");
    let later = set_aside(&tx);
    users(&tx, past);
    let keys = keys(&tx, past, some);
    calls(&tx, past);
    for sql in later {
        tx.execute_batch(&sql).expect("as it was");
    }
    tx.commit().expect("written");
    conn.execute_batch("ANALYZE; PRAGMA journal_mode = WAL;")
        .expect("as it was");
    drop(conn);
    // As a server does when a day is over: else it would be at it while it is measured.
    let store = Store::open(database, Create::Never).expect("a database");
    while store.roll_up(now()).expect("it is summed") {}
    keys
}

/// Drops triggers and indices, which cost less when made at the end; returns how to make them.
fn set_aside(conn: &Connection) -> Vec<String> {
    let mut ask = conn
        .prepare("SELECT type, name, sql FROM sqlite_schema WHERE type IN ('trigger', 'index') AND sql IS NOT NULL")
        .expect("a query");
    let found: Vec<(String, String, String)> = ask
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("rows");
    for (kind, name, _) in &found {
        conn.execute_batch(&format!("DROP {kind} {name}")).expect("dropped");
    }
    found.into_iter().map(|(_, _, sql)| sql).collect()
}

fn users(conn: &Connection, past: Past) {
    conn.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
         INSERT INTO users (id, name, status, balance_nanos, created_at, entries, head_hash, holds)
         SELECT unhex(printf('%032x', i)), printf('user%d', i), 'active', 1000000000000000, ?2, ?3, zeroblob(32), ?3 FROM n",
        params![past.users, BEGINNING, past.calls / past.users],
    )
    .expect("users");
}

fn keys(conn: &Connection, past: Past, some: i64) -> Vec<String> {
    let mut insert = conn
        .prepare("INSERT INTO api_keys (id, user_id, name, prefix, hash, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
        .expect("a statement");
    let every = (past.keys / some).max(1);
    let mut taken = Vec::new();
    for number in 0..past.keys {
        let mut entropy = [0; 32];
        entropy[..8].copy_from_slice(&number.wrapping_mul(0x1E37_79B9_7F4A_7C15).to_be_bytes());
        let key = GatewayKey::from_entropy(entropy);
        let (key_id, user) = (id(number), id(number % past.users));
        insert
            .execute(params![
                key_id,
                user,
                format!("key{number}"),
                key.prefix(),
                key.hash().0,
                BEGINNING
            ])
            .expect("a key");
        if number % every == 0 {
            taken.push(key.reveal().to_owned());
        }
    }
    taken
}

/// A number as a UUID.
fn id(number: i64) -> [u8; 16] {
    i128::from(number).to_be_bytes()
}

/// Ids ascend with time, as the gateway's do.
fn calls(conn: &Connection, past: Past) {
    let each = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1),
         call AS (SELECT i, ?2 + i * ?3 AS at,
                         unhex(printf('%012x7%03x8%015x', (?2 + i * ?3) / 1000, i % 4096, i)) AS id,
                         unhex(printf('%032x', i % ?4)) AS user, unhex(printf('%032x', i % ?5)) AS key FROM n)";
    let statements = [
        "INSERT INTO holds (exchange_id, user_id, key_id, amount_nanos, output_limit, endpoint, streamed, model,
                            priced_model, upstream, list, placed_at, hash, state, closed_at)
         SELECT id, user, key, 2000000, NULL, '/responses', 1, 'gpt-4.1-mini', 'gpt-4.1-mini', 'openai', 'openai', at,
                zeroblob(32), 'settled', at + 2000000 FROM call",
        "INSERT INTO usage_logs (exchange_id, user_id, key_id, endpoint, streamed, model, priced_model, answered_model,
             upstream, list, price_from, tier, state, basis, input_tokens, cached_tokens, cache_write_tokens,
             cache_write_12h_tokens, audio_input_tokens, output_tokens, reasoning_tokens, audio_output_tokens,
             web_searches, file_searches, containers, lines, markup, cost_nanos, charge_nanos, uncollected_nanos,
             held_nanos, balance_after_nanos, response_id, item_ids, upstream_request_id, upstream_status, attempts,
             started_at, first_byte_us, duration_us, row_hash)
         SELECT id, user, key, '/responses', 1, 'gpt-4.1-mini', 'gpt-4.1-mini', 'gpt-4.1-mini-2025-04-14', 'openai',
             'openai', 1793404800000000, 'standard', 'completed', 'reported', 212, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0,
             '[{\"class\":\"input\",\"quantity\":212,\"rate\":\"0.4\",\"amount\":\"0.0000848\"},{\"class\":\"output\",\"quantity\":64,\"rate\":\"1.6\",\"amount\":\"0.0001024\"}]',
             '1', 187200, 187200, 0, 2000000, 1000000000000000, printf('resp_%048x', i), '[]', printf('req_%032x', i),
             200, 1, at, 400000, 2000000, zeroblob(32) FROM call",
        "INSERT INTO ledger_entries (user_id, kind, amount_nanos, balance_after_nanos, exchange_id, at, hash)
         SELECT user, 'charge', -187200, 1000000000000000, id, at + 2000000, zeroblob(32) FROM call",
    ];
    for statement in statements {
        conn.execute(
            &format!("{each} {statement}"),
            params![past.calls, BEGINNING, APART, past.users, past.keys],
        )
        .expect("calls");
    }
}
