//! Databases of other releases: what an earlier one wrote stays to the letter, and the newer catalogue is taken over.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use codex_gateway::pricing;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Simulator};
use codex_gateway::store::{KeyId, UserId};
use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::cli::Home;
use crate::client::{Client, MODEL, chat, http};
use crate::price::{catalogue, expected_charge, nanos};

/// The tables and the rows of a database that the last binary of version 1 made.
const TABLES: &str = include_str!("../data/schema-1.sql");
const ROWS: &str = include_str!("../data/rows-1.sql");

/// What that binary had charged, by exchange: user, model, dollars.
const CHARGED: [(&str, &str, &str, &str); 5] = [
    (
        "01a2238d-bd7f-70b4-b788-195a897b66fb",
        "ada",
        "mistral-large-4",
        "0.0000903",
    ),
    (
        "01a2238d-c0f0-7109-ae6a-57f8b3d797d3",
        "ada",
        "mistral-large-4-0",
        "0.000639",
    ),
    ("01a2238d-c100-73a4-a170-b5eb300550e3", "ada", MODEL, "0.00024"),
    (
        "01a2238d-c115-765f-adba-235187beb90c",
        "ada",
        "own-model",
        "0.000028358",
    ),
    ("01a2238d-c125-70c8-93a5-15b348a923e4", "bob", MODEL, "0.000262"),
];

#[expect(clippy::disallowed_methods, reason = "what the store would not do")]
fn raw(path: &Path) -> Connection {
    Connection::open(path).expect("it opens")
}

/// The days from which the catalogue of that binary was in force.
fn known_to_it(from: Timestamp) -> bool {
    from <= "2026-11-23T00:00:00Z".parse().expect("a time")
}

/// Puts the database of the earlier binary where this home has its own.
fn earlier(home: &Home) {
    fs::create_dir_all(home.database().parent().expect("a folder")).expect("made");
    let conn = raw(&home.database());
    conn.execute_batch(TABLES).expect("tables");
    // Triggers watch what a program writes, not rows that were written.
    let triggers: Vec<(String, String)> = {
        let mut found = conn
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
            .expect("prepared");
        let rows = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.expect("read").collect::<Result<_, _>>().expect("text")
    };
    let run = |sql: &str| conn.execute_batch(sql).expect(sql);
    run("PRAGMA foreign_keys = OFF; BEGIN");
    triggers
        .iter()
        .for_each(|(name, _)| run(&format!("DROP TRIGGER {name}")));
    run(ROWS);
    let (_, rows) = pricing::catalogue().expect("a catalogue");
    let its = rows.iter().filter(|row| known_to_it(row.from));
    for row in its {
        let from = row.from.as_microsecond();
        conn.execute(
            "INSERT INTO model_pricing VALUES (?1, ?2, ?3, 'catalogue', ?4, ?3)",
            (row.list.as_str(), &row.model, from, &row.price),
        )
        .expect("a row");
    }
    triggers.iter().for_each(|(_, sql)| run(sql));
    run("COMMIT");
}

/// Rows as they are stored, of some columns of a table.
fn rows(path: &Path, table: &str, columns: &[String], which: &str) -> Vec<Vec<Cell>> {
    let conn = raw(path);
    let names = columns.join(", ");
    let sql = format!("SELECT {names} FROM {table} WHERE {which} ORDER BY {names}");
    let mut select = conn.prepare(&sql).expect(&sql);
    let row = |row: &rusqlite::Row<'_>| (0..columns.len()).map(|at| row.get(at)).collect();
    let all = select.query_map([], row).expect("read");
    all.collect::<rusqlite::Result<_>>().expect("cells")
}

/// All that an earlier binary wrote and that nobody may change, with the columns it had then.
struct Past {
    tables: Vec<Table>,
}

/// Rows of a table.
struct Table {
    name: &'static str,
    /// Which of them.
    which: &'static str,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Past {
    fn read(path: &Path) -> Past {
        let columns = |table: &str| -> Vec<String> {
            let conn = raw(path);
            let mut names = conn
                .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))
                .expect("prepared");
            let rows = names.query_map([], |row| row.get(0)).expect("read");
            rows.collect::<Result<_, _>>().expect("text")
        };
        let last = "exchange_id <= X'01A2238DC12570C893A515B348A923E4'";
        let tables = [
            ("ledger_entries", "seq <= 8"),
            ("usage_logs", last),
            ("usage_items", last),
            ("holds", last),
            ("audit_log", "seq <= 10"),
            (
                "model_pricing",
                "source = 'operator' OR from_at <= unixepoch('2026-11-23') * 1000000",
            ),
        ];
        let read = |(name, which)| {
            let columns = columns(name);
            let rows = rows(path, name, &columns, which);
            assert!(!rows.is_empty(), "{name}");
            Table {
                name,
                which,
                columns,
                rows,
            }
        };
        Past {
            tables: tables.into_iter().map(read).collect(),
        }
    }

    fn stands(&self, path: &Path) {
        for table in &self.tables {
            let is = rows(path, table.name, &table.columns, table.which);
            assert_eq!(is, table.rows, "{} is as it was, to the byte", table.name);
        }
    }
}

/// A running `gateway serve` of this home; its log is in `serve.log`.
pub struct Serving {
    child: Child,
    pub url: String,
}

impl Serving {
    pub fn start(home: &Home) -> Serving {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.env_clear().env("HOME", home.path()).current_dir(home.path());
        let mut child = command
            .arg("serve")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(home.path().join("serve.log")).expect("a file"))
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("text");
        let url = line.trim_end().strip_prefix("listening on ").expect("it serves");
        Serving {
            child,
            url: url.to_owned(),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // One that ended by itself has been noticed by its clients.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

async fn simulator(home: &Home) -> Simulator {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let started = Simulator::start(anywhere, standard(Pace::default()), Options::default()).await;
    let simulator = started.expect("a free port");
    let upstream = |list: &str, models: &str| {
        format!(
            "[[upstream]]\nname = \"{list}\"\nbase_url = \"{}\"\napi_key = \"sk-upstream\"\nprices = \"{list}\"\nmodels = [{models}]\n",
            simulator.base_url()
        )
    };
    home.settings(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[database]\nmin_free = \"0\"\nballast = \"0\"\n{}{}{}",
        upstream("mistral", "\"mistral-*\""),
        upstream("moonshot", "\"kimi-*\""),
        upstream("openai", "\"*\"")
    ));
    simulator
}

/// A key of ada's, issued by our binary.
fn ada(home: &Home, serving: &Serving) -> Client {
    let id = |of: &Value| of["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    let issued = home.json("key issue ada");
    Client {
        user: UserId(id(&home.json("user show ada"))),
        key_id: KeyId(id(&issued)),
        key: issued["key"].as_str().expect("a key").to_owned(),
        base_url: serving.url.clone(),
        http: http(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_an_earlier_binary_takes_the_newer_prices_and_keeps_its_bills() {
    let home = Home::new();
    earlier(&home);
    let past = Past::read(&home.database());
    let simulator = simulator(&home).await;
    assert!(home.ok("ledger verify").contains("the books balance"));
    past.stands(&home.database());

    let in_force = |list: &str, model: &str| {
        let row = home.json(&format!("price list {model} --list {list}"))["items"][0].clone();
        (row["source"].clone(), row["price"].clone())
    };
    let (cut, new) = (
        catalogue("mistral", "mistral-large-4"),
        catalogue("moonshot", "kimi-k3.1-pro-highspeed"),
    );
    assert_eq!(cut["rates"]["input"], "0.7", "a newer row than the earlier binary knew");
    assert_eq!(
        in_force("mistral", "mistral-large-4"),
        (json!("catalogue"), cut.clone())
    );
    assert_eq!(
        in_force("moonshot", "kimi-k3.1-pro-highspeed"),
        (json!("catalogue"), new.clone())
    );
    let (by, own) = in_force("mistral", "mistral-large-4-0");
    assert_eq!((by, &own["rates"]["output"]), (json!("operator"), &json!("27")));

    let serving = Serving::start(&home);
    let ada = ada(&home, &serving);
    let unknown_then = json!({"rates": {"input": "0.123456789", "output": "1.5"}});
    for (model, price) in [
        ("mistral-large-4", cut),
        ("kimi-k3.1-pro-highspeed", new),
        ("mistral-large-4-0", own),
        ("own-model", unknown_then),
        (MODEL, catalogue("openai", MODEL)),
    ] {
        let body = chat("Hello again", &json!({"model": model}));
        let answer = ada.post("/v1/chat/completions", &body).await.expect(200);
        let usage = simulator
            .served()
            .pop()
            .and_then(|served| served.usage)
            .expect("a usage");
        let charge = nanos(answer.header("x-gateway-cost"));
        assert_eq!(charge, expected_charge(&usage, &price, "1"), "{model}");
    }
    drop(serving);

    past.stands(&home.database());
    for (id, user, model, charge) in CHARGED {
        let receipt = home.json(&format!("request show {id}"));
        assert_eq!(
            (&receipt["charge"], &receipt["user"], &receipt["model"]),
            (&json!(charge), &json!(user), &json!(model))
        );
    }
    assert!(home.ok("ledger verify").contains("the books balance"));
    assert_eq!(home.json("user show bob")["balance"], "1.999738");
}

#[test]
fn an_older_binary_takes_no_price_away_and_turns_none_back() {
    let home = Home::with_alice();
    home.ok("price set gpt-5.5 --list openai --input 5 --output 50 --from 2026-11-17");
    // As a newer binary leaves a database of the same version: a model more, and two rows of later dates.
    let price = |rate: &str| format!(r#"{{"kind":"text","rates":{{"input":"{rate}","output":"{rate}"}}}}"#);
    for (model, from, rate) in [
        ("gpt-77", "2026-11-20", "7"),
        (MODEL, "2026-11-20", "3"),
        ("gpt-5.5", "2026-11-20", "9"),
        (MODEL, "2999-01-01", "4"),
    ] {
        let price = price(rate);
        raw(&home.database())
            .execute_batch(&format!(
                "INSERT INTO model_pricing (list, model, from_at, source, price, recorded_at) VALUES
                     ('openai', '{model}', unixepoch('{from}') * 1000000, 'catalogue', '{price}', unixepoch() * 1000000);
                 UPDATE meta SET value = 'of a newer binary' WHERE name = 'catalogue'"
            ))
            .expect("written");
    }
    let all = || {
        let columns = ["list", "model", "from_at", "source", "price", "recorded_at"].map(str::to_owned);
        rows(&home.database(), "model_pricing", &columns, "true")
    };
    let left = all();
    for _ in 0..2 {
        for (model, rate, by) in [
            ("gpt-77", "7", "catalogue"),
            (MODEL, "3", "catalogue"),
            ("gpt-5.5", "5", "operator"),
        ] {
            let row = &home.json(&format!("price list {model} --list openai"))["items"][0];
            assert_eq!(
                (&row["price"]["rates"]["input"], &row["source"]),
                (&json!(rate), &json!(by)),
                "{model}"
            );
        }
        assert!(home.ok("ledger verify").contains("the books balance"));
        assert_eq!(all(), left, "every row is as the newer binary left it");
    }
}
