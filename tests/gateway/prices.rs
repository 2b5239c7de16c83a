//! Prices: set beside the running server, by (list, model) and date; without one nothing goes upstream.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use codex_gateway::config::Pricing;
use codex_gateway::pricing::ListName;
use codex_gateway::store::usage_log::ExchangeRow;
use codex_gateway::store::{Create, Store};
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, chat};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};

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
