//! Prices: set, imported, exported and checked.

use std::fs;

use serde_json::{Value, json};

use super::Home;

fn rates(home: &Home, model: &str) -> Value {
    home.json(&format!("price list {model}"))["items"][0]["price"]["rates"].clone()
}

#[test]
fn prices_are_set_over_what_there_is_and_like_another() {
    let home = Home::with_alice();
    let first = home.json("price set mine --input 2.5 --cached-input 0.25 --output 10");
    assert_eq!(first["items"][0]["before"], Value::Null);
    let second = home.json("price set mine --output 12");
    assert_eq!(
        second["items"].as_array().map(Vec::len),
        Some(1),
        "only what differs is shown"
    );
    assert_eq!(
        (&second["items"][0]["field"], &second["items"][0]["before"]),
        (&json!("rates.output"), &json!("10"))
    );
    assert_eq!(
        rates(&home, "mine"),
        json!({"input":"2.5","cached_input":"0.25","output":"12"})
    );
    home.ok("price set other --like openai:mine --input 3 --list elsewhere");
    assert_eq!(rates(&home, "other")["input"], "3");
    assert_eq!(home.json("price list other")["items"][0]["list"], "elsewhere");
    assert!(home.fails("price set more --like mime", 5).contains("near  mine"));
    assert!(home.fails("price set half --input 1", 2).contains("output"));
    assert!(home.fails("price list mime", 5).contains("near  mine"));
}

#[test]
fn the_operators_price_wins_over_the_catalogue() {
    let home = Home::with_alice();
    assert_eq!(
        home.json("price list gpt-4o --list openai")["items"][0]["source"],
        "catalogue"
    );
    home.ok("price set gpt-4o --input 1.75");
    let row = &home.json("price list gpt-4o --list openai")["items"][0];
    assert_eq!(
        (&row["source"], &row["price"]["rates"]["input"]),
        (&json!("operator"), &json!("1.75"))
    );
    assert_eq!(row["price"]["rates"]["output"], "10", "what was not given stays");
}

#[test]
fn a_price_equal_to_the_catalogues_can_be_pinned() {
    let home = Home::with_alice();
    let pinned = home.json("price set gpt-4o --input 2.5");
    assert_eq!(
        (&pinned["items"][0]["field"], &pinned["items"][0]["after"]),
        (&json!("by"), &json!("operator"))
    );
    assert_eq!(
        home.json("price list gpt-4o --list openai")["items"][0]["source"],
        "operator"
    );
    assert!(home.run("price set gpt-4o --input 2.5").err.contains("nothing differs"));
    let other = Home::with_alice();
    let moved = other.run_with("price import - --yes --json", &[], &home.ok("price export"));
    let moved: Value = serde_json::from_str(&moved.out).expect("JSON");
    assert_eq!(
        moved["items"].as_array().map(Vec::len),
        Some(1),
        "the pin moves, the catalogue does not: {moved}"
    );
}

#[test]
fn an_export_holds_what_was_and_what_will_be() {
    let home = Home::with_alice();
    for (from, rate) in [("2026-01-01", "1"), ("2026-02-01", "2"), ("2099-01-01", "1")] {
        home.ok(&format!("price set mine --input {rate} --output 1 --from {from}"));
    }
    let export = home.ok("price export");
    assert!(
        home.run_with("price import -", &[], &export)
            .err
            .contains("nothing differs")
    );
    let other = Home::with_alice();
    other.ok("price set mine --input 1 --output 1 --from 2025-01-01");
    assert_eq!(other.run_with("price import - --yes", &[], &export).code, 0);
    let mine = |home: &Home| {
        let all: Value = serde_json::from_str(&home.ok("price export")).expect("JSON");
        let rows = all["prices"].as_array().expect("a list").iter();
        let mine = rows.filter(|row| row["model"] == "mine");
        mine.map(|row| (row["from"].clone(), row["price"]["rates"]["input"].clone()))
            .collect::<Vec<_>>()
    };
    let (theirs, ours) = (mine(&other), mine(&home));
    assert_eq!(
        theirs[1..],
        ours[1..],
        "what is the same since 2025 need not be there twice"
    );
    assert_eq!(ours.len(), 3);
    let third = Home::with_alice();
    assert_eq!(
        third
            .run_with("price import - --yes --from 2026-03-01 --list openai", &[], &export)
            .code,
        0
    );
    assert_eq!(mine(&third), [(json!("2026-03-01T00:00:00Z"), json!("2"))]);
}

#[test]
fn an_import_shows_the_differences_and_writes_only_with_consent() {
    let home = Home::with_alice();
    home.ok("price set mine --input 2.5 --output 10");
    let export = home.ok("price export");
    assert!(
        home.run_with("price import -", &[], &export)
            .err
            .contains("nothing differs")
    );
    fs::write(home.path().join("map.json"), LITELLM).expect("written");
    let shown = home.run("price import map.json");
    assert_eq!(shown.code, 2, "{}", shown.err);
    assert!(
        shown.out.contains("gpt-new") && shown.out.contains("0.075"),
        "{}",
        shown.out
    );
    assert!(shown.err.contains("nothing was written; add --yes"), "{}", shown.err);
    assert!(shown.err.contains("left out gpt-odd"), "{}", shown.err);
    home.fails("price list gpt-new", 5);
    let none = home.run("price import map.json --list groq");
    assert_eq!((none.code, none.out.as_str()), (5, ""), "{}", none.err);
    assert!(
        none.err.contains("list 'groq'") && none.err.contains("one of openai"),
        "{}",
        none.err
    );
    let written = home.run("price import map.json --yes");
    assert!(written.err.contains("\n1 price written"), "{}", written.err);
    assert_eq!(
        rates(&home, "gpt-new"),
        json!({"input":"0.3","cached_input":"0.075","output":"1.2"})
    );
    assert!(home.run("price import map.json --yes").err.contains("nothing differs"));
    let other = Home::with_alice();
    other.run_with("price import - --yes", &[], &home.ok("price export"));
    assert_eq!(
        other.json("price list gpt-new")["items"][0]["price"],
        home.json("price list gpt-new")["items"][0]["price"]
    );
}

/// A price map in LiteLLM's form, its numbers as JSON writers print them.
const LITELLM: &str = r#"{"gpt-new":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":3e-07,
    "cache_read_input_token_cost":7.5e-08,"output_cost_per_token":0.0000012},
  "gpt-odd":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":3e-07,"output_cost_per_token":3e-07,
    "output_cost_per_dream":1e-06}}"#;

#[test]
fn an_import_that_is_no_price_list_is_refused() {
    let home = Home::with_alice();
    home.fails("price import nowhere.json", 5);
    for (name, text) in [
        ("a.json", "{}"),
        ("b.json", "not JSON"),
        (
            "c.json",
            r#"{"prices":[{"list":"openai","model":"m","from":"2026-01-01T00:00:00Z","price":{"kind":"text","rates":{"input":1}}}]}"#,
        ),
    ] {
        fs::write(home.path().join(name), text).expect("written");
        assert!(
            home.fails(&format!("price import {name} --yes"), 2)
                .contains("nothing was imported"),
            "{name}"
        );
    }
}

#[test]
fn price_check_names_configured_models_without_a_price() {
    let home = Home::with_alice();
    home.settings(
        "[[upstream]]\nname = \"local\"\nbase_url = \"http://127.0.0.1:9/v1\"\nmodels = [\"mine\", \"own-*\"]\naliases = { fast = \"mini\" }\n",
    );
    let ran = home.run("price check --json");
    let found: Value = serde_json::from_str(&ran.out).expect("JSON");
    let models: Vec<&Value> = found["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| &item["model"])
        .collect();
    assert_eq!(
        (ran.code, models),
        (1, vec![&json!("mine"), &json!("own-*"), &json!("mini")])
    );
    for model in ["mine", "own-1", "mini"] {
        home.ok(&format!("price set {model} --input 1 --output 2"));
    }
    assert!(home.ok("price check").contains("every configured model has a price"));
    assert_eq!(
        home.json("price list mine")["items"][0]["list"],
        "local",
        "the first upstream's list"
    );
}

#[test]
fn a_price_list_that_there_is_not_is_told() {
    let home = Home::with_alice();
    for line in [
        "price list --list openia",
        "price list gpt-4o --list openia",
        "price export --list openia",
    ] {
        let error = home.fails(line, 5);
        assert!(
            error.contains("no price list 'openia'") && error.contains("near  openai"),
            "{line}: {error}"
        );
    }
    home.ok("price set mine --list own --input 1 --output 1 --from 2099-01-01");
    assert_eq!(
        home.json("price list --list own")["items"],
        json!([]),
        "it has none yet"
    );
}

#[test]
fn without_an_upstream_there_is_no_price_to_check() {
    let home = Home::with_alice();
    assert_eq!(
        home.ok("price check"),
        "no upstream is configured, so there is nothing to check\n"
    );
    assert_eq!(home.json("price check")["items"], json!([]));
}

#[test]
fn a_price_that_is_set_names_what_keeps_its_own_rates_and_when_it_begins() {
    let home = Home::with_alice();
    let ran = home.run("price set gpt-5.4 --input 3 --from 2099-01-01");
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in ["rates of their own: ", "flex", "in force from 2099-01-01"] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    let plain = home.run("price set mine --input 3 --output 4");
    assert_eq!(plain.err, "");
    home.ok("price set mine --input 5 --from 2099-01-01");
    let export = home.ok("price export");
    let other = Home::with_alice();
    let shown = other.run_with("price import - --list openai", &[], &export);
    assert!(
        shown.out.lines().next().is_some_and(|head| head.ends_with("from")),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("2099-01-01"), "{}", shown.out);
}
