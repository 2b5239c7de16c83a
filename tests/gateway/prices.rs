//! Prices: set beside the running server, by (list, model) and date; without one nothing goes upstream.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use codex_gateway::config::Pricing;
use codex_gateway::pricing::ListName;
use codex_gateway::store::usage_log::ExchangeRow;
use codex_gateway::store::{Create, Store};
use serde_json::{Value, json};

use crate::cli::Home;
use crate::client::{Answer, Client, MODEL, chat};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};
use crate::upgrade::Serving;

/// A change that an operator makes in another process is in force within this time.
const IN_FORCE: Duration = Duration::from_secs(1);

async fn ask(client: &Client, model: &str) -> Answer {
    client
        .post("/v1/chat/completions", &chat("Hello", &json!({"model": model})))
        .await
}

/// Calls a model once; gives the receipt and what the upstream's count costs by this price.
async fn billed(harness: &Harness, model: &str, price: &Value, factor: &str) -> (ExchangeRow, i128) {
    let answer = ask(&harness.client, model).await.expect(200);
    let usage = harness.served().pop().and_then(|served| served.usage).expect("a usage");
    (
        harness.receipt(answer.exchange()),
        expected_charge(&usage, price, factor),
    )
}

fn charge(row: &ExchangeRow) -> i128 {
    i128::from(row.charge.nanos())
}

/// Calls until the bill is made by this price.
async fn until_billed_by(harness: &Harness, model: &str, price: &Value) -> ExchangeRow {
    let start = Instant::now();
    loop {
        let (row, expected) = billed(harness, model, price, "1").await;
        if charge(&row) == expected {
            return row;
        }
        assert!(start.elapsed() < IN_FORCE, "still {} and not {expected}", charge(&row));
    }
}

/// The catalogue's price with other rates for plain input and output.
fn with_rates(price: &Value, input: &str, output: &str) -> Value {
    let mut price = price.clone();
    price["rates"]["input"] = input.into();
    price["rates"]["output"] = output.into();
    price
}

/// Writes a row as a newer binary with another catalogue would.
fn catalogue_row(harness: &Harness, model: &str, from: &str, price: &Value) {
    harness.alter(&format!(
        "INSERT INTO model_pricing (list, model, from_at, source, price, recorded_at)
         VALUES ('openai', '{model}', unixepoch('{from}') * 1000000, 'catalogue', '{price}', unixepoch() * 1000000);
         UPDATE meta SET value = 'of a newer binary' WHERE name = 'catalogue'"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_set_beside_the_server_is_in_force_within_a_second_and_past_bills_stay() {
    let harness = Harness::start().await;
    let old = catalogue("openai", MODEL);
    let (before, expected) = billed(&harness, MODEL, &old, "1").await;
    assert_eq!(charge(&before), expected);
    harness.operate(&format!(
        "price set {MODEL} --list openai --input 20.000000001 --output 123.4"
    ));
    let new = with_rates(&old, "20.000000001", "123.4");
    let after = until_billed_by(&harness, MODEL, &new).await;
    assert!(after.charge > before.charge && after.price_from > before.price_from);
    assert_eq!(
        harness.receipt(&before.id.0.to_string()),
        before,
        "the past bill is as it was"
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_from_a_later_date_waits_for_it() {
    let harness = Harness::start().await;
    let old = catalogue("openai", MODEL);
    harness.operate(&format!(
        "price set {MODEL} --list openai --input 20 --output 100 --from 2999-01-01"
    ));
    tokio::time::sleep(IN_FORCE).await;
    let (row, expected) = billed(&harness, MODEL, &old, "1").await;
    assert_eq!(charge(&row), expected);
    harness.finish().await;
}

/// Pastes a command of the operator into a shell on this database.
fn paste(harness: &Harness, line: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_gateway"));
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.env_clear().env("HOME", "/nonexistent");
    shell.env(
        "PATH",
        format!("{}:{path}", program.parent().expect("a folder").display()),
    );
    shell.env("GATEWAY_DATABASE__PATH", harness.database());
    let ran = shell.current_dir("/").args(["-c", line]).output().expect("a shell");
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// A refusal for want of a price: never upstream; gives its message.
async fn unpriced(harness: &Harness, model: &str) -> String {
    let seen = harness.served().len();
    for (path, asked) in [
        ("/v1/chat/completions", json!({"messages": []})),
        ("/v1/responses", json!({"input": "Hello"})),
        ("/v1/completions", json!({"prompt": "Hello"})),
        ("/v1/embeddings", json!({"input": "Hello"})),
    ] {
        let mut body = asked;
        body["model"] = model.into();
        let refused = harness.client.post(path, &body).await.expect(404);
        assert_eq!(refused.json()["error"]["code"], "model_not_found");
        assert_eq!(refused.json()["error"]["param"], "model");
    }
    assert_eq!(harness.served().len(), seen, "{model} did not reach the upstream");
    let refused = ask(&harness.client, model).await.expect(404).json();
    refused["error"]["message"].as_str().expect("a message").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_price_stays_here_until_the_printed_command_has_run() {
    let builder = Harness::builder().upstream("aliases = { quick = \"gpt-6.1-solo\" }");
    let harness = builder.start().await;
    catalogue("deepseek", "deepseek-chat");
    // Unknown to everybody; an alias of such a one; priced, but in the list of another vendor; hard to quote.
    for (model, priced_as, nearest) in [
        ("gpt-6.1-zol", "gpt-6.1-zol", Some("gpt-6.1-sol")),
        ("quick", "gpt-6.1-solo", Some("gpt-6.1-sol")),
        ("deepseek-chat", "deepseek-chat", None),
        ("it's;$HOME`x`", "it's;$HOME`x`", None),
    ] {
        let message = unpriced(&harness, model).await;
        assert!(message.contains(&format!("'{model}'")), "{message}");
        if let Some(nearest) = nearest {
            assert!(message.contains(&format!("'{nearest}'")), "{message}");
        }
        let (_, command) = message.split_once("can run: ").expect("a command");
        assert!(command.starts_with("gateway price set "), "{command}");
        paste(&harness, &command.replace("USD", "2.5"));
        let start = Instant::now();
        while ask(&harness.client, model).await.status != 200 {
            assert!(start.elapsed() < IN_FORCE, "{command}");
        }
        let served = harness.served().pop().expect("a call");
        assert_eq!(served.model, priced_as);
        let price = json!({"rates": {"input": "2.5", "output": "2.5"}});
        let (row, expected) = billed(&harness, model, &price, "1").await;
        assert_eq!(
            (charge(&row), row.model.as_str(), row.priced_model.as_str()),
            (expected, model, priced_as)
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_free_upstream_nothing_is_set_aside_and_nothing_charged() {
    let builder = Harness::builder().balance("0").settings("[billing]\nmarkup = 2");
    let harness = builder
        .tweak(|config| config.upstreams[0].prices = Pricing::Free)
        .start()
        .await;
    let answer = ask(&harness.client, "anything-at-all").await.expect(200);
    assert_eq!(
        (answer.header("x-gateway-cost"), answer.header("x-gateway-balance")),
        ("0", "0")
    );
    let usage = harness.served().pop().and_then(|served| served.usage).expect("a usage");
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.held.nanos(), row.cost.nanos(), row.charge.nanos()), (0, 0, 0));
    assert_eq!((&row.list, row.price_from), (&None, None));
    assert_eq!(
        (row.usage.input_tokens.get(), row.usage.output_tokens.get()),
        (usage.input, usage.output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uplift_and_markup_multiply_and_are_rounded_once() {
    // Rates at which neither cost nor charge is whole: 0.123456789 × 1.1 × 1.234567 per million.
    let odd = r#"{"kind":"text","rates":{"input":"0.123456789","output":"0.987654321"},"regional_uplift":"1.1"}"#;
    let builder = Harness::builder()
        .price("odd", odd)
        .settings("[billing]\nmarkup = 1.234567");
    let harness = builder.upstream("region = \"eu\"").start().await;
    let odd: Value = serde_json::from_str(odd).expect("JSON");
    for (model, price, uplift, factor) in [
        ("odd", odd, Some("1.1"), "1.3580237"),
        ("gpt-5.4", catalogue("openai", "gpt-5.4"), Some("1.1"), "1.3580237"),
    ] {
        let (row, expected) = billed(&harness, model, &price, factor).await;
        assert_eq!((charge(&row), row.uplift.as_deref()), (expected, uplift), "{model}");
        let (row, cost) = billed(&harness, model, &price, "1.1").await;
        assert_eq!(
            i128::from(row.cost.nanos()),
            cost,
            "{model}: the cost is before the markup"
        );
    }
    let plain = r#"{"kind":"text","rates":{"input":"2","output":"10"}}"#;
    harness.operate("price set no-uplift --list openai --input 2 --output 10");
    let price: Value = serde_json::from_str(plain).expect("JSON");
    let (row, expected) = billed(&harness, "no-uplift", &price, "1.234567").await;
    assert_eq!(
        (charge(&row), row.uplift),
        (expected, None),
        "only where the price says so"
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_region_there_is_no_uplift() {
    let harness = Harness::start().await;
    let price = catalogue("openai", "gpt-5.4");
    assert_eq!(price["regional_uplift"], "1.1");
    let (row, expected) = billed(&harness, "gpt-5.4", &price, "1").await;
    assert_eq!((charge(&row), row.uplift), (expected, None));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cheaper_hours_are_cheaper() {
    let at = |days: &str| {
        format!(
            r#"{{"kind":"text","rates":{{"input":"2","output":"10"}},"off_peak":{{"windows":[{{"days":[{days}],"hours":["00:00-00:00"]}}],
                "rates":{{"input":"1","output":"4"}}}}}}"#
        )
    };
    let harness = Harness::builder().price("always", &at("1,2,3,4,5,6,7")).start().await;
    let (row, expected) = billed(
        &harness,
        "always",
        &json!({"rates": {"input": "1", "output": "4"}}),
        "1",
    )
    .await;
    assert_eq!(charge(&row), expected);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_catalogue_counts_from_its_date_and_the_operators_price_wins_over_it() {
    let harness = Harness::start().await;
    let old = catalogue("openai", MODEL);
    let (first, expected) = billed(&harness, MODEL, &old, "1").await;
    assert_eq!(charge(&first), expected);

    let newer = with_rates(&old, "3", "30");
    catalogue_row(&harness, MODEL, "2026-11-20", &newer);
    catalogue_row(&harness, MODEL, "2999-01-01", &with_rates(&old, "9", "90"));
    let second = until_billed_by(&harness, MODEL, &newer).await;

    harness.operate(&format!(
        "price set {MODEL} --list openai --input 5 --output 50 --from 2026-11-17"
    ));
    let operators = with_rates(&newer, "5", "50");
    let third = until_billed_by(&harness, MODEL, &operators).await;
    catalogue_row(&harness, MODEL, "2026-11-21", &with_rates(&old, "7", "70"));
    tokio::time::sleep(IN_FORCE).await;
    until_billed_by(&harness, MODEL, &operators).await;

    for row in [first, second, third] {
        assert_eq!(
            harness.receipt(&row.id.0.to_string()),
            row,
            "past bills are as they were"
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_binary_adds_what_an_older_one_did_not_know_and_changes_nothing_else() {
    let harness = Harness::start().await;
    harness.operate("price set gpt-5.5 --list openai --input 5 --output 50");
    // As an older binary would have left it: a model less, another price for a row of the same date.
    let changed = with_rates(&catalogue("openai", "gpt-5.4"), "1", "2");
    harness.alter(&format!(
        "DELETE FROM model_pricing WHERE list = 'openai' AND model = '{MODEL}';
         UPDATE model_pricing SET price = '{changed}' WHERE list = 'openai' AND model = 'gpt-5.4';
         UPDATE meta SET value = 'of an older binary' WHERE name = 'catalogue'"
    ));
    let start = Instant::now();
    while ask(&harness.client, MODEL).await.status != 404 {
        assert!(start.elapsed() < IN_FORCE);
    }
    let rates = |store: &Store, model: &str| -> Value {
        let list = ListName::openai();
        let row = store
            .price(&list, model, codex_gateway::time::now())
            .expect("read")
            .expect("a price");
        serde_json::from_str::<Value>(&row.price.to_json()).expect("JSON")["rates"].clone()
    };
    let newer = Store::open(&harness.database(), Create::Never).expect("it opens");
    assert_eq!(rates(&newer, MODEL), catalogue("openai", MODEL)["rates"], "added");
    assert_eq!(rates(&newer, "gpt-5.4"), changed["rates"], "what is written stays");
    assert_eq!(rates(&newer, "gpt-5.5")["input"], "5", "the operator's wins");
    let start = Instant::now();
    while ask(&harness.client, MODEL).await.status != 200 {
        assert!(start.elapsed() < IN_FORCE);
    }
    until_billed_by(&harness, MODEL, &catalogue("openai", MODEL)).await;
    harness.finish().await;
}

/// What is in force of a model.
fn in_force(home: &Home, model: &str) -> Value {
    home.json(&format!("price list {model} --list openai"))["items"][0].clone()
}

/// A number that SQL finds in the database of this home.
#[expect(clippy::disallowed_methods, reason = "beside the store")]
fn number(home: &Home, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(home.database()).expect("it opens");
    conn.query_row(sql, [], |row| row.get(0)).expect(sql)
}

/// How many acts on prices the audit log has.
fn acts(home: &Home) -> i64 {
    number(home, "SELECT COUNT(*) FROM audit_log WHERE action = 'price.set'")
}

#[test]
fn an_export_as_a_sheet_is_edited_and_imported() {
    let home = Home::with_alice();
    home.ok("price set mine --list own --input 2 --output 10 --from 2026-01-01");
    home.ok("price set mine --list own --input 3 --output 10 --from 2999-01-01");
    let sheet = home.ok("price export --csv");
    let unchanged = home.run_with("price import - --yes", &[], &sheet);
    assert!(unchanged.err.contains("nothing differs"), "{}", unchanged.err);

    // A rate, and a model more with a tier of its own.
    let (lines, was) = (
        sheet.lines().count(),
        "own,mine,2026-01-01T00:00:00Z,operator,text,,,,2,",
    );
    assert!(sheet.contains(was), "{sheet}");
    let edited = [
        sheet.replace(was, &was.replace(",2,", ",2.5,")),
        format!("own,second,2026-02-01,,text,,,,1,,,,,4{}\n", ",".repeat(16)),
        format!("own,second,2026-02-01,,,flex,,,0.5{}\n", ",".repeat(21)),
    ]
    .concat();
    fs::write(home.path().join("prices.csv"), &edited).expect("written");
    assert_eq!(edited.lines().count(), lines + 2);
    let shown = home.run("price import prices.csv");
    assert_eq!(shown.code, 2, "{}", shown.err);
    assert!(
        shown.out.contains("rates.input") && shown.out.contains("+25%") && shown.out.contains("tiers.flex.rates.input"),
        "{}",
        shown.out
    );
    let before = acts(&home);
    let written = home.json("price import prices.csv --yes");
    let input = &written["items"][0];
    assert_eq!(
        (&input["field"], &input["before"], &input["after"], &input["percent"]),
        (&json!("rates.input"), &json!("2"), &json!("2.5"), &json!("25"))
    );
    assert_eq!(acts(&home), before + 2, "each price that was written leaves its act");
    let again = home.run("price import prices.csv --yes");
    assert!(again.err.contains("nothing differs"), "{}", again.err);
    let second = &home.json("price list second --list own")["items"][0];
    assert_eq!(
        (&second["price"], &second["from"], &second["source"]),
        (
            &json!({"kind":"text","rates":{"input":"1","output":"4"},"tiers":{"flex":{"rates":{"input":"0.5"}}}}),
            &json!("2026-02-01T00:00:00Z"),
            &json!("operator")
        )
    );
    assert!(home.ok("ledger verify").contains("the books balance"));
}

#[test]
fn a_sheet_without_lists_and_dates_is_told_them() {
    let home = Home::with_alice();
    let sheet = "model,output\ngpt-6.1-sol,11\nnew,5\n";
    let unlisted = home.run_with("price import - --yes", &[], sheet);
    assert_eq!(unlisted.code, 2);
    assert!(unlisted.err.contains("line 2: which list?"), "{}", unlisted.err);
    let unpriced = home.run_with("price import - --yes --list openai", &[], sheet);
    assert!(
        unpriced.code == 2 && unpriced.err.contains("line 3: the price has no rate for input"),
        "{}",
        unpriced.err
    );
    assert_eq!(acts(&home), 0, "nor the row that is right");
    let ran = home.run_with(
        "price import - --yes --list openai --from 2026-11-20",
        &[],
        "model,output\ngpt-6.1-sol,11\n",
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    let mut expected = catalogue("openai", MODEL);
    expected["rates"]["output"] = "11".into();
    let row = in_force(&home, MODEL);
    assert_eq!(
        (&row["price"], &row["from"]),
        (&expected, &json!("2026-11-20T00:00:00Z")),
        "what the sheet does not say stays"
    );
}

#[test]
fn a_row_that_is_wrong_is_told_by_its_place_and_nothing_is_written() {
    let home = Home::with_alice();
    let good = r#"{"list":"openai","model":"good","from":"2026-01-01T00:00:00Z","price":{"kind":"text","rates":{"input":"1","output":"1"}}}"#;
    let bad = good.replace("good", "bad");
    for (name, text, says) in [
        (
            "a.csv",
            "list,model,input,output\nopenai,good,1,1\nopenai,bad,-1,1\n".to_owned(),
            "line 3, column 3 (input): the rate \"-1\" is not between 0",
        ),
        (
            "b.csv",
            "list,model,input,output\nopenai,good,1,1\nopenai,bad,0.1234567891,1\n".to_owned(),
            "line 3, column 3 (input)",
        ),
        (
            "c.csv",
            "list,model,input,output\nopenai,good,1,1\nopenai,bad,,1\n".to_owned(),
            "line 3: the price has no rate for input",
        ),
        (
            "d.csv",
            "list,model,input,output,per_call\nopenai,good,1,1,2\n".to_owned(),
            "line 1, column 5: there is no column \"per_call\"",
        ),
        (
            "e.json",
            format!("{{\"prices\":[\n{good},\n  {}]}}", bad.replace("\"1\"", "\"-1\"")),
            "line 3, column 72, bad: not a price",
        ),
        (
            "f.json",
            format!("{{\"prices\":[\n{good},\n{}]}}", bad.replace("openai", "no list")),
            "line 3, column 71: \"no list\" is not a name",
        ),
    ] {
        fs::write(home.path().join(name), text).expect("written");
        for (command, in_vain) in [
            (format!("price import {name} --yes"), "nothing was imported"),
            (format!("price diff {name}"), "nothing was compared"),
        ] {
            let error = home.fails(&command, 2);
            assert!(error.contains(says) && error.contains(in_vain), "{command}: {error}");
        }
    }
    home.fails("price list good", 5);
    assert_eq!(acts(&home), 0);
}

#[test]
fn an_import_is_one_transaction() {
    let home = Home::with_alice();
    let sheet = "list,model,input,output\nown,one,1,1\nown,two,1,1\n";
    let commits = || number(&home, "SELECT count FROM commits");
    let before = commits();
    let ran = home.run_with("price import - --yes", &[], sheet);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!((commits(), acts(&home)), (before + 1, 2));
    let times = "SELECT COUNT(DISTINCT recorded_at) FROM model_pricing WHERE source = 'operator'";
    assert_eq!(number(&home, times), 1);
}

#[test]
fn prices_are_compared_with_a_file_another_date_and_the_catalogue() {
    let home = Home::with_alice();
    let diff = |line: &str| home.json(&format!("price diff {line}"))["items"].clone();
    let change = |found: &Value| {
        let item = |item: &Value| ["model", "field", "before", "after", "percent"].map(|name| item[name].clone());
        let items = found.as_array().expect("a list").iter();
        items.map(item).collect::<Vec<_>>()
    };
    assert_eq!(diff(""), json!([]), "no price is the operator's");
    home.ok("price set gpt-5.5 --list openai --input 2.5");
    home.ok("price set mine --list own --input 1 --output 1 --from 2026-01-01");
    home.ok("price set mine --list own --input 1 --output 4 --from 2026-02-01");
    let theirs = catalogue("openai", "gpt-5.5")["rates"]["input"].clone();
    assert_eq!(theirs, "5");
    assert_eq!(
        change(&diff("")),
        [[
            json!("gpt-5.5"),
            json!("rates.input"),
            json!("5"),
            json!("2.5"),
            json!("-50")
        ]]
    );
    let told = home.run("price diff");
    assert!(
        told.out.contains("catalogue") && told.out.contains("-50%") && told.err.contains("1 price of yours"),
        "{told:?}"
    );
    assert_eq!(
        change(&diff("--list own --from 2026-01-15 --to 2026-02-01")),
        [[
            json!("mine"),
            json!("rates.output"),
            json!("1"),
            json!("4"),
            json!("300")
        ]]
    );
    let first = diff("--list own --from 2025-12-31 --to 2026-01-31");
    assert_eq!(
        change(&first)[1],
        [
            json!("mine"),
            json!("rates.input"),
            json!(null),
            json!("1"),
            json!(null)
        ],
        "its first price"
    );
    assert_eq!(diff("--list own --from 2026-02-01"), json!([]));
    fs::write(
        home.path().join("p.csv"),
        "list,model,output\nown,mine,3\nopenai,gpt-5.5,1\n",
    )
    .expect("written");
    assert_eq!(
        change(&diff("p.csv --list own")),
        [[
            json!("mine"),
            json!("rates.output"),
            json!("4"),
            json!("3"),
            json!("-25")
        ]]
    );
    assert_eq!(acts(&home), 3, "nothing was written");
    assert_eq!(home.run("price diff --to 2026-01-01").code, 2);
    assert_eq!(home.run("price diff p.csv --from 2026-01-01 --to 2026-02-01").code, 2);
    home.fails("price diff --list owm", 5);
}

#[test]
fn the_history_of_a_price_says_who_wrote_what_and_when_it_was_in_force() {
    let home = Home::with_alice();
    for (input, from) in [("5", "2026-01-01"), ("6", "2999-01-01"), ("7", "2026-01-01")] {
        home.ok(&format!(
            "price set {MODEL} --list openai --input {input} --output 9 --from {from}"
        ));
    }
    let items = home.json(&format!("price history {MODEL} --list openai"))["items"].clone();
    let of = |at: usize| &items[at];
    let told: Vec<_> = items
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| {
            (
                item["price"]["rates"]["input"].as_str().expect("a rate").to_owned(),
                item["source"].as_str().expect("a word").to_owned(),
            )
        })
        .collect();
    let operator = |input: &str| (input.to_owned(), "operator".to_owned());
    let first = catalogue("openai", MODEL)["rates"]["input"]
        .as_str()
        .expect("a rate")
        .to_owned();
    assert_eq!(
        told,
        [
            operator("5"),
            operator("7"),
            (first, "catalogue".to_owned()),
            operator("6")
        ]
    );
    assert_eq!(
        of(0)["by"],
        "cli:tester@".to_owned() + of(0)["by"].as_str().expect("text").split('@').nth(1).expect("a host")
    );
    assert_eq!(of(2)["by"], json!(null));
    // The row that was replaced was in force until the one in its place was written, which is until the next begins.
    assert_eq!(
        of(0)["in_force"],
        json!({"from": of(0)["recorded_at"], "until": of(1)["recorded_at"]})
    );
    assert_eq!(
        of(1)["in_force"],
        json!({"from": of(1)["recorded_at"], "until": "2999-01-01T00:00:00Z"})
    );
    assert_eq!(
        of(3)["in_force"],
        json!({"from": "2999-01-01T00:00:00Z", "until": null})
    );
    assert_eq!(
        of(2)["in_force"],
        json!({"from": of(2)["recorded_at"], "until": of(0)["recorded_at"]}),
        "the catalogue's, until the operator wrote one"
    );
    let table = home.ok(&format!("price history {MODEL}"));
    assert!(
        table.contains("from 2999-01-01 00:00:00") && table.contains("catalogue"),
        "{table}"
    );
    assert!(home.fails("price history gpt-6.1-zol", 5).contains("near  gpt-6.1-sol"));
    home.fails(&format!("price history {MODEL} --list openia"), 5);
}

#[test]
fn a_server_starts_and_names_the_models_without_a_price_in_one_line() {
    let home = Home::with_alice();
    let serve = |models: &str| {
        home.settings(&format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[database]\nmin_free = \"0\"\nballast = \"0\"\n[[upstream]]\nname = \"local\"\n\
             base_url = \"http://127.0.0.1:9/v1\"\nprices = \"openai\"\nmodels = [{models}]\naliases = {{ fast = \"mini\" }}\n",
        ));
        let serving = Serving::start(&home);
        assert!(serving.url.starts_with("http://127.0.0.1:"), "it serves");
        drop(serving);
        let log = fs::read_to_string(home.path().join("serve.log")).expect("a log");
        log.lines()
            .filter(|line| line.contains("no price"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let warned = serve(&format!("\"{MODEL}\", \"mine\", \"own-*\""));
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].contains("openai/mine, openai/own-*, openai/mini"),
        "{warned:?}"
    );
    assert!(
        warned[0].contains("WARN") && warned[0].contains("gateway price check"),
        "{warned:?}"
    );
    let many: Vec<String> = (0..30).map(|n| format!("\"m{n}\"")).collect();
    let warned = serve(&many.join(", "));
    assert!(
        warned.len() == 1 && warned[0].contains("openai/m19, and 11 more"),
        "{warned:?}"
    );
    home.ok("price set mini --list openai --input 1 --output 1");
    assert_eq!(serve(&format!("\"{MODEL}\"")), [] as [String; 0]);
}
