//! What a verification promises: whatever is altered, it finds and names.

use super::super::entries::ENTRY_COLUMNS;
use super::super::ledger::HOLD_COLUMNS;
use super::super::testing::*;
use super::super::usage_log::{ExchangeRow, ORIGIN_COLUMNS, USAGE_COLUMNS};
use super::*;
use crate::limits::RatesChange;
use crate::origin::Origin;
use crate::pricing::Price;
use crate::store::ledger::{CloseHold, Excess};
use crate::store::users::UserChange;
use rusqlite::types::Value;

/// Columns whose change `verify` cannot see, and why that is no loss.
const UNSEEN: [(&str, &str); 2] = [
    // Neither money nor state; whoever can write it can sign in, not spend.
    ("users", "password_hash"),
    // Of an open hold: labels that the client makes up. A closed one has none.
    ("holds", "origin"),
];

/// Books in which each table has a row of each kind.
fn books() -> Desk {
    let desk = Desk::new();
    let ada = desk.user("ada", "9");
    desk.user("bob", "0");
    let rates = RatesChange {
        tpm: Some("1000".parse().ok()),
        ..RatesChange::default()
    };
    let limited = UserChange {
        rates,
        ..UserChange::default()
    };
    done(desk.store.change_user(ada.id, &limited, &by(), at(1)));
    let key = desk.key(&ada);
    let adjusted = top_up(&ada, "-1", Some("correction"));
    done(desk.store.credit(&adjusted, &by(), at(2)));
    for (charge, excess) in [("1", Excess::Collect), ("0", Excess::Collect), ("3", Excess::Waive)] {
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        let mut close = CloseHold {
            excess,
            ..closing(id, &key, charge)
        };
        if charge == "3" {
            // Of a client that says nothing, as of versions that did not keep it.
            close.row.origin = Origin::default();
        }
        desk.close(id, &close);
    }
    desk.set_aside(&ask(exchange(), &key, "2"));
    desk.assert_books_balance();
    desk
}

fn columns(conn: &Connection, table: &str) -> Vec<String> {
    let mut statement = conn
        .prepare("SELECT name FROM pragma_table_info(?1)")
        .expect("prepared");
    let names = statement.query_map([table], |row| row.get(0)).expect("read");
    names.collect::<Result<_, _>>().expect("names")
}

fn altered(value: Value, column: &str) -> Value {
    match value {
        Value::Null if column.ends_with("_at") || column.ends_with("_limit") => Value::Integer(7),
        Value::Null if column.ends_with("_id") => Value::Blob(vec![9; 16]),
        Value::Null => Value::Text("x".to_owned()),
        Value::Integer(number) if column == "seq" => Value::Integer(number + 1000),
        Value::Integer(number) => Value::Integer(number + 1),
        Value::Text(text) => Value::Text(match text.as_str() {
            "active" => "suspended".to_owned(),
            "open" | "released" => "settled".to_owned(),
            "settled" => "released".to_owned(),
            "completed" => "left".to_owned(),
            "credit" => "adjustment".to_owned(),
            "sub-agent" => "turn".to_owned(),
            // As good a label as before.
            other if ORIGIN_COLUMNS.contains(&column) => format!("{other}x"),
            other => format!("{other} "),
        }),
        Value::Blob(mut bytes) => {
            bytes[0] ^= 1;
            Value::Blob(bytes)
        }
        Value::Real(_) => panic!("no real numbers here"),
    }
}

fn as_the_column_takes_it(conn: &Connection, table: &str, column: &str, value: Value) -> Value {
    let kind: String = conn
        .query_row(
            "SELECT type FROM pragma_table_info(?1) WHERE name = ?2",
            [table, column],
            |row| row.get(0),
        )
        .expect("a type");
    match (kind.as_str(), value) {
        ("INTEGER", Value::Text(_)) => Value::Integer(7),
        ("TEXT", Value::Blob(_) | Value::Integer(_)) => Value::Text("x".to_owned()),
        ("BLOB", Value::Text(_) | Value::Integer(_)) => Value::Blob(vec![9; 16]),
        (_, value) => value,
    }
}

/// Alters one value of the n-th row, and names the row; `None` when there is no such row.
fn alter(desk: &Desk, table: &str, column: &str, nth: i64) -> Option<Vec<String>> {
    let raw = desk.raw();
    raw.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;")
        .expect("settings");
    let id = if table == "ledger_entries" {
        "seq"
    } else if table == "users" {
        "id"
    } else {
        "exchange_id"
    };
    let select = format!("SELECT {column}, {id} FROM {table} ORDER BY {id} LIMIT 1 OFFSET {nth}");
    let (value, key): (Value, Value) = raw.query_row(&select, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    let new = as_the_column_takes_it(&raw, table, column, altered(value, column));
    let update = format!("UPDATE {table} SET {column} = ?1 WHERE {id} = ?2");
    raw.execute(&update, rusqlite::params![new, key]).expect(&update);
    let name = |value: &Value| shown(value.into());
    Some(if column == id {
        vec![name(&key), name(&new)]
    } else {
        vec![name(&key)]
    })
}

fn drop_triggers(desk: &Desk) {
    let raw = desk.raw();
    let mut statement = raw
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        .expect("prepared");
    let names: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .expect("read")
        .collect::<Result<_, _>>()
        .expect("names");
    for name in names {
        raw.execute_batch(&format!("DROP TRIGGER {name}")).expect("dropped");
    }
}

#[test]
fn any_altered_value_is_found_and_its_table_and_row_are_named() {
    let mut looked_at = 0;
    for table in ["users", "holds", "ledger_entries", "usage_logs"] {
        let template = books();
        drop_triggers(&template);
        template
            .raw()
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .expect("checkpointed");
        for column in columns(&template.raw(), table) {
            if UNSEEN.contains(&(table, column.as_str())) {
                continue;
            }
            for nth in 0.. {
                let before = save(&template, table);
                let Some(rows) = alter(&template, table, &column, nth) else {
                    break;
                };
                let findings = template.store.verify().expect("it verifies").findings;
                let named = findings.iter().any(|f| f.table == table && rows.contains(&f.row));
                assert!(named, "{table}.{column} of {rows:?}: {findings:#?}");
                restore(&template, table, &before);
                looked_at += 1;
            }
            template.assert_books_balance();
        }
    }
    assert!(looked_at > 250, "only {looked_at} values were altered");
}

fn save(desk: &Desk, table: &str) -> Vec<Vec<Value>> {
    let raw = desk.raw();
    let width = columns(&raw, table).len();
    let mut statement = raw.prepare(&format!("SELECT * FROM {table}")).expect("prepared");
    let rows = statement
        .query_map([], |row| (0..width).map(|i| row.get(i)).collect())
        .expect("read");
    rows.collect::<Result<_, _>>().expect("rows")
}

fn restore(desk: &Desk, table: &str, rows: &[Vec<Value>]) {
    let raw = desk.raw();
    raw.execute_batch("PRAGMA foreign_keys = OFF; BEGIN IMMEDIATE")
        .expect("begun");
    raw.execute(&format!("DELETE FROM {table}"), []).expect("emptied");
    for row in rows {
        let marks: Vec<String> = (1..=row.len()).map(|i| format!("?{i}")).collect();
        let insert = format!("INSERT INTO {table} VALUES ({})", marks.join(", "));
        raw.execute(&insert, rusqlite::params_from_iter(row)).expect("restored");
    }
    raw.execute_batch("COMMIT").expect("committed");
}

#[test]
fn a_closed_hold_that_says_who_asked_is_found_and_the_schema_has_none() {
    let desk = books();
    let raw = desk.raw();
    let alter = "UPDATE holds SET origin = '{}' WHERE state = 'settled'";
    raw.execute(alter, []).expect_err("a CHECK is in its way");
    raw.execute_batch("PRAGMA ignore_check_constraints = ON")
        .expect("a setting");
    assert!(raw.execute(alter, []).expect(alter) > 0);
    let findings = desk.store.verify().expect("it verifies").findings;
    assert!(findings.iter().any(|f| f.table == "holds"), "{findings:#?}");
}

#[test]
fn a_missing_row_is_found() {
    for (sql, table) in [
        ("DELETE FROM users WHERE name = 'bob'", "users"),
        ("DELETE FROM ledger_entries WHERE seq = 1", "ledger_entries"),
        ("DELETE FROM ledger_entries WHERE seq = 4", "usage_logs"),
        ("DELETE FROM holds WHERE state = 'open'", "users"),
        ("DELETE FROM holds WHERE state = 'released'", "usage_logs"),
        ("DELETE FROM usage_logs WHERE charge_nanos = 0", "holds"),
        ("DELETE FROM api_keys", "api_keys"),
        ("UPDATE api_keys SET models = '[]'", "api_keys"),
        ("UPDATE api_keys SET rpm = 7", "api_keys"),
        ("UPDATE api_keys SET tpm = 7", "api_keys"),
        ("UPDATE api_keys SET concurrency = 7", "api_keys"),
    ] {
        let desk = books();
        drop_triggers(&desk);
        let raw = desk.raw();
        raw.execute_batch("PRAGMA foreign_keys = OFF").expect("settings");
        assert!(raw.execute(sql, []).expect(sql) > 0, "{sql}");
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(findings.iter().any(|f| f.table == table), "{sql}: {findings:#?}");
    }
}

/// Cuts the newest entries off, and makes the balance fit what is left.
fn cut(desk: &Desk, sql: &str) {
    drop_triggers(desk);
    let raw = desk.raw();
    raw.execute_batch(&format!(
        "PRAGMA foreign_keys = OFF; {sql};
         UPDATE users SET balance_nanos =
             (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE user_id = users.id)"
    ))
    .expect(sql);
}

#[test]
fn books_whose_end_was_cut_off_do_not_balance() {
    let charged = books();
    cut(
        &charged,
        "CREATE TEMP TABLE last AS SELECT exchange_id FROM ledger_entries ORDER BY seq DESC LIMIT 1;
         DELETE FROM ledger_entries WHERE exchange_id IN last; DELETE FROM usage_logs WHERE exchange_id IN last;
         DELETE FROM holds WHERE exchange_id IN last",
    );
    let credited = Desk::new();
    credited.user("ada", "9");
    cut(&credited, "DELETE FROM ledger_entries");
    let free = books();
    cut(
        &free,
        "CREATE TEMP TABLE free AS SELECT exchange_id FROM usage_logs WHERE charge_nanos = 0;
         DELETE FROM usage_logs WHERE exchange_id IN free; DELETE FROM holds WHERE exchange_id IN free",
    );
    for desk in [&charged, &credited, &free] {
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(findings.iter().any(|f| f.table == "users"), "{findings:#?}");
    }
    let findings = credited.store.verify().expect("it verifies").findings;
    assert!(
        findings.iter().any(|f| f.table == "ledger_entries" && f.row == "1"),
        "{findings:#?}"
    );
}

#[test]
fn a_receipt_that_does_not_come_to_its_charge_is_found() {
    type Change = fn(&mut ExchangeRow);
    let changes: [(Change, &str); 6] = [
        (|row| row.cost = usd("1.5"), "its cost is 1.5"),
        (|row| row.charge = usd("1.5"), "its charge is 1.5"),
        (|row| row.markup = "1.1".to_owned(), "its charge is 1,"),
        (|row| row.uplift = Some("1.1".to_owned()), "its cost is 1,"),
        (|row| row.lines[0].amount = "7".to_owned(), "cannot be added up"),
        (
            |row| row.usage.output_tokens = crate::usage::Tokens::saturating(9999),
            "its lines count its output otherwise",
        ),
    ];
    for (change, says) in changes {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "9"));
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        let mut close = closing(id, &key, "1");
        change(&mut close.row);
        desk.close(id, &close);
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(
            findings.iter().any(|f| f.problem.contains(says)),
            "{says}: {findings:#?}"
        );
    }
}

#[test]
fn what_had_no_price_may_be_missing_from_a_receipt_and_what_had_one_may_not() {
    let desk = Desk::new();
    let key = desk.key(&desk.user("ada", "9"));
    let id = exchange();
    desk.set_aside(&ask(id, &key, "2"));
    let mut close = closing(id, &key, "0");
    close.row.usage.tools = crate::usage::ToolUsage::default();
    close.row.lines.clear();
    desk.close(id, &close);
    desk.assert_books_balance();
    let json = r#"{"kind":"text","rates":{"input":"1","output":"1"}}"#;
    let price = Price::from_json(json).expect("a price");
    let from = close.row.price_from.expect("a date");
    let row = (crate::pricing::ListName::openai(), close.row.priced_model, from, price);
    done(desk.store.set_prices(&[row], &by(), at(2)));
    let findings = desk.store.verify().expect("it verifies").findings;
    assert!(
        findings.iter().any(|f| f.problem.contains("were used and priced")),
        "{findings:#?}"
    );
}

#[test]
fn every_credit_is_the_act_of_somebody() {
    for sql in [
        "DELETE FROM audit_log WHERE action = 'ledger.adjust'",
        r#"UPDATE audit_log SET after = replace(after, '"amount":"-1"', '"amount":"-2"') WHERE action = 'ledger.adjust'"#,
    ] {
        let desk = books();
        drop_triggers(&desk);
        assert!(desk.raw().execute(sql, []).expect(sql) > 0, "{sql}");
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(!findings.is_empty(), "{sql}");
    }
}

/// Books with a charge of which a part was given back, and a charge and a refund of another user.
fn refunded() -> Desk {
    let desk = Desk::new();
    for name in ["ada", "bob"] {
        let key = desk.key(&desk.user(name, "9"));
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        desk.close(id, &closing(id, &key, "1"));
        for _ in 0..2 {
            let refund = crate::store::refunds::Refund {
                exchange: id,
                amount: Some(usd("0.4")),
                reference: None,
                note: None,
            };
            done(desk.store.refund(&refund, &by(), at(20)));
        }
    }
    desk.assert_books_balance();
    desk
}

#[test]
fn a_refund_of_more_than_the_charge_or_of_anothers_is_found() {
    let adas = "(SELECT e.exchange_id FROM ledger_entries e JOIN users u ON u.id = e.user_id WHERE u.name = 'ada' AND e.kind = 'charge')";
    for (sql, problem) in [
        (
            "UPDATE ledger_entries SET amount_nanos = 600000001 WHERE kind = 'refund' AND seq = (SELECT MAX(seq) FROM ledger_entries)".to_owned(),
            "gives back more than was charged",
        ),
        (
            format!("UPDATE ledger_entries SET refunds = {adas} WHERE seq = (SELECT MAX(seq) FROM ledger_entries)"),
            "gives back what was another user's charge",
        ),
        (
            format!("UPDATE ledger_entries SET refunds = {adas} WHERE seq = (SELECT MAX(seq) FROM ledger_entries)"),
            "gives back more than was charged",
        ),
        (
            "UPDATE ledger_entries SET refunds = zeroblob(16) WHERE seq = (SELECT MAX(seq) FROM ledger_entries)".to_owned(),
            "gives back more than was charged",
        ),
    ] {
        let desk = refunded();
        drop_triggers(&desk);
        let raw = desk.raw();
        raw.execute_batch("PRAGMA foreign_keys = OFF").expect("settings");
        assert!(raw.execute(&sql, []).expect(&sql) > 0, "{sql}");
        let findings = desk.store.verify().expect("it verifies").findings;
        let found = |f: &Finding| f.table == "ledger_entries" && f.problem == problem;
        assert!(findings.iter().any(found), "{sql}: {findings:#?}");
    }
}

#[test]
fn altered_codes_are_found() {
    for sql in [
        "UPDATE codes SET amount_nanos = 4000000000",
        "UPDATE codes SET hash = randomblob(32)",
        "UPDATE codes SET expires_at = NULL, note = 'x'",
        "UPDATE codes SET revoked_at = NULL WHERE revoked_at IS NOT NULL",
        "UPDATE codes SET redeemed_at = NULL, user_id = NULL, entry = NULL WHERE entry IS NOT NULL",
        "UPDATE codes SET user_id = (SELECT id FROM users WHERE name = 'bob') WHERE entry IS NOT NULL",
        "UPDATE codes SET entry = 1 WHERE entry IS NOT NULL",
        "DELETE FROM codes WHERE revoked_at IS NOT NULL",
        "INSERT INTO codes (id, prefix, hash, amount_nanos, created_at) VALUES (randomblob(16), 'gwc-x', randomblob(32), 1, 1)",
        "UPDATE ledger_entries SET reference = NULL WHERE reference LIKE 'code %'",
        "UPDATE ledger_entries SET reference = 'code ' || (SELECT subject FROM audit_log WHERE action = 'code.revoke') WHERE seq = 1",
    ] {
        let desk = Desk::new();
        let ada = desk.user("ada", "1");
        desk.user("bob", "1");
        let secrets = [1, 2].map(|n| crate::redemption::RedemptionCode::from_entropy([n; crate::redemption::SYMBOLS]));
        let id = |_| crate::store::CodeId(uuid::Uuid::now_v7());
        let new = crate::store::codes::NewCodes {
            codes: secrets
                .each_ref()
                .map(|code| (id(code), code.prefix(), code.hash()))
                .to_vec(),
            amount: usd("3"),
            note: None,
            expires_at: Some(at(100)),
        };
        let made = done(desk.store.create_codes(&new, &by(), at(1)));
        done(desk.store.redeem(secrets[0].hash(), (ada.id, desk.key(&ada).id), at(2)));
        done(desk.store.revoke_code(made[1].id, &by(), at(2)));
        desk.assert_books_balance();
        drop_triggers(&desk);
        let raw = desk.raw();
        raw.execute_batch("PRAGMA foreign_keys = OFF").expect("settings");
        assert!(raw.execute(sql, []).expect(sql) > 0, "{sql}");
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(findings.iter().any(|f| f.table == "codes"), "{sql}: {findings:#?}");
    }
}

#[test]
fn altered_prices_and_keys_are_found() {
    let price = |input: &str| {
        let json = format!(r#"{{"kind":"text","rates":{{"input":"{input}","output":"1"}}}}"#);
        crate::pricing::Price::from_json(&json).expect("a price")
    };
    let list = crate::pricing::ListName::openai();
    for (sql, table) in [
        ("UPDATE api_keys SET hash = zeroblob(32)", "api_keys"),
        (
            "UPDATE model_pricing SET price = replace(price, '7', '8') WHERE source = 'operator'",
            "model_pricing",
        ),
        ("DELETE FROM model_pricing WHERE source = 'operator'", "model_pricing"),
        (
            "UPDATE model_pricing SET price = replace(price, '1', '2') WHERE model = 'gpt-4o'",
            "model_pricing",
        ),
        ("DELETE FROM model_pricing WHERE model = 'gpt-4o'", "model_pricing"),
    ] {
        let desk = books();
        for input in ["6", "7"] {
            // Finer than the database keeps it.
            let from = at(1) + std::time::Duration::from_nanos(7);
            let row = (list.clone(), "m".to_owned(), from, price(input));
            done(desk.store.set_prices(&[row], &by(), at(2)));
        }
        desk.assert_books_balance();
        assert!(desk.raw().execute(sql, []).expect(sql) > 0, "{sql}");
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(findings.iter().any(|f| f.table == table), "{sql}: {findings:#?}");
    }
}

#[test]
fn every_column_of_the_hashed_tables_is_in_a_hash() {
    let desk = Desk::new();
    let raw = desk.raw();
    let own = |table: &str, names: &[&str], apart: &[&str]| {
        let expected: Vec<String> = names.iter().chain(apart).map(|name| (*name).to_owned()).collect();
        assert_eq!(columns(&raw, table), expected, "{table}");
    };
    own("holds", &HOLD_COLUMNS, &["hash", "state", "closed_at", "origin"]);
    own(
        "usage_logs",
        &USAGE_COLUMNS,
        &[&["row_hash"], ORIGIN_COLUMNS.as_slice()].concat(),
    );
    own("ledger_entries", &ENTRY_COLUMNS, &["hash", "refunds"]);
}

#[test]
fn an_index_that_has_something_else_than_its_table_is_found() {
    for (index, table, other) in [
        ("usage_logs_by_user", "usage_logs", "usage_logs (key_id, exchange_id)"),
        ("ledger_entries_by_user", "ledger_entries", "ledger_entries (hash, seq)"),
        ("holds_open", "holds", "holds (user_id) WHERE state = 'settled'"),
    ] {
        let desk = books();
        let change = format!(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = 'CREATE INDEX {index} ON {}' WHERE name = '{index}'",
            other.replace('\'', "''")
        );
        desk.raw().execute_batch(&change).expect(&change);
        let findings = desk.again().verify().expect("it verifies").findings;
        let found = findings
            .iter()
            .any(|f| f.table == table && f.row == "*" && f.problem.contains(index));
        assert!(found, "{index}: {findings:#?}");
    }
}

#[test]
fn items_that_are_not_those_of_the_usage_rows_are_found() {
    for sql in [
        "UPDATE usage_items SET item_id = item_id || 'x' WHERE item_id = (SELECT MAX(item_id) FROM usage_items)",
        "UPDATE usage_items SET exchange_id = (SELECT MIN(exchange_id) FROM usage_items)",
        "DELETE FROM usage_items WHERE item_id = (SELECT MIN(item_id) FROM usage_items)",
        "INSERT INTO usage_items SELECT 'msg_new', exchange_id FROM usage_items LIMIT 1",
    ] {
        let desk = books();
        assert!(desk.raw().execute(sql, []).expect(sql) > 0, "{sql}");
        let findings = desk.store.verify().expect("it verifies").findings;
        let tables: Vec<&str> = findings.iter().map(|f| f.table).collect();
        assert_eq!(tables, ["usage_items"], "{sql}: {findings:#?}");
    }
}

#[test]
fn every_exchange_is_looked_at_once_however_the_work_is_shared() {
    let desk = Desk::new();
    let key = desk.key(&desk.user("ada", "90"));
    for made in 0..100_u64 {
        let verified = desk.store.verify().expect("it verifies");
        assert_eq!((verified.exchanges, verified.findings), (made, Vec::new()));
        let id = exchange();
        desk.set_aside(&ask(id, &key, "1"));
        desk.close(id, &closing(id, &key, "0.5"));
    }
}

#[test]
fn a_database_that_is_behind_its_mark_does_not_balance() {
    let desk = books();
    std::fs::write(desk.path().with_extension("db.mark"), "codex-gateway mark 1 9").expect("written");
    let findings = desk.again().verify().expect("it verifies").findings;
    assert!(findings.iter().any(|f| f.table == "commits"), "{findings:#?}");
}

#[test]
fn damage_that_keeps_rows_from_being_read_is_a_finding() {
    let desk = books();
    let change = "PRAGMA writable_schema = ON;
                  UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'usage_logs')
                  WHERE name = 'usage_items'";
    desk.raw().execute_batch(change).expect(change);
    let findings = desk.again().verify().expect("it verifies").findings;
    let found = |f: &Finding| f.table == "usage_items" && f.problem.starts_with("cannot be read");
    assert!(findings.iter().any(found), "{findings:#?}");
}

#[test]
fn all_connections_see_one_state_however_fast_somebody_writes() {
    let desk = books();
    let stop = &std::sync::atomic::AtomicBool::new(false);
    let writing = desk.raw();
    let seen: rusqlite::Result<Vec<Vec<i64>>> = thread::scope(|scope| {
        scope.spawn(move || {
            writing.execute_batch("PRAGMA synchronous = OFF").expect("set");
            while !stop.load(Ordering::Relaxed) {
                let written = writing.execute("UPDATE commits SET count = count + 1", []);
                written.expect("written");
            }
        });
        let look = |_| snapshot(&desk.store, TRIES)?.iter().map(commits::last).collect();
        let seen = (0..100).map(look).collect();
        stop.store(true, Ordering::Relaxed);
        seen
    });
    let seen = seen.expect("it reads");
    for counts in &seen {
        assert!(
            counts.len() == WORKERS && counts.iter().all(|count| *count == counts[0]),
            "{counts:?}"
        );
    }
    assert!(seen.first() < seen.last(), "nothing was written meanwhile");
}

#[test]
fn a_writer_that_leaves_no_time_for_two_connections_to_begin_leaves_it_for_one() {
    let desk = books();
    let conns = snapshot(&desk.store, 0).expect("it reads");
    assert_eq!(conns.len(), 1);
    let before = commits::last(&conns[0]).expect("read");
    desk.user("eve", "1");
    assert_eq!(commits::last(&conns[0]).expect("read"), before, "it has begun");
}

/// Puts so many more users into the books, each with a key, credits, exchanges and an open hold.
fn grow(desk: &Desk, users: usize) {
    for _ in 0..users {
        let user = desk.user(&uuid::Uuid::now_v7().simple().to_string()[16..], "9");
        let key = desk.key(&user);
        done(desk.store.credit(&top_up(&user, "1", None), &by(), at(2)));
        for charge in ["1", "0"] {
            let id = exchange();
            desk.set_aside(&ask(id, &key, "2"));
            desk.close(id, &closing(id, &key, charge));
        }
        desk.set_aside(&ask(exchange(), &key, "2"));
    }
}

/// The steps of SQLite's machine that each part takes.
fn steps(desk: &Desk) -> Vec<u64> {
    let conn = snapshot(&desk.store, 0).expect("it reads").remove(0);
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counting = std::sync::Arc::clone(&taken);
    let count = move || {
        counting.fetch_add(1, Ordering::Relaxed);
        false
    };
    conn.progress_handler(1, Some(count)).expect("counted");
    let seal = seal::up_to(&conn, seal::last_sequence(&conn).expect("read")).expect("sealed");
    let others = [
        Part::Accounts,
        Part::Holds,
        Part::Items,
        Part::Records,
        Part::Sealed(seal),
    ];
    let all = others.into_iter().chain([Part::Exchanges(i64::MIN, i64::MAX)]);
    all.chain(TABLES.map(Part::Structure))
        .map(|part| {
            taken.store(0, Ordering::Relaxed);
            let done = work(&conn, &[part], &AtomicUsize::new(0)).expect("read");
            assert_eq!(done[0].1.findings, [], "{}", part.table());
            taken.load(Ordering::Relaxed)
        })
        .collect()
}

#[test]
fn twice_the_books_are_twice_the_work() {
    const USERS: usize = 20;
    let desk = Desk::new();
    let mut seen = Vec::new();
    for users in [USERS, USERS, 2 * USERS] {
        grow(&desk, users);
        seen.push(steps(&desk));
    }
    for (part, first) in seen[0].iter().enumerate() {
        // What does not depend on the size falls out of the differences.
        let (once, twice) = (seen[1][part] - first, seen[2][part] - seen[1][part]);
        assert!(
            twice <= 2 * once + once / 10 + 10,
            "part {part}: {once} steps more for {USERS} users, {twice} more for twice as many"
        );
    }
}

#[test]
fn no_table_is_sorted_or_looked_through_for_each_row_of_another() {
    let desk = books();
    for sql in [
        &*accounts::ENTRIES,
        &*exchanges::EXCHANGES,
        &*exchanges::OPEN_HOLDS,
        records::REFUNDS,
    ] {
        let conn = desk.raw();
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
        let unbound = vec![0; plan.parameter_count()];
        let steps = plan.query_map(rusqlite::params_from_iter(unbound), |row| row.get("detail"));
        let steps: Vec<String> = steps.expect(sql).collect::<Result<_, _>>().expect(sql);
        let scans = steps.iter().filter(|step| step.starts_with("SCAN")).count();
        assert!(scans <= 1, "{steps:#?}");
        assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{steps:#?}");
    }
}
