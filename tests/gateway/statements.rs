//! Statements: a month of a balance in three forms, which lead from the opening balance to the closing one exactly.

use codex_gateway::money::Usd;
use codex_gateway::time::now;
use rust_decimal::Decimal;
use serde_json::json;

use crate::cli::{Home, exchange};

/// This month, as a statement is asked for.
fn month() -> String {
    now().strftime("%Y-%m").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_leads_from_the_opening_balance_to_the_closing_one() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    let id = exchange(&home, Usd::ZERO).await;
    exchange(&home, Usd::ZERO).await;
    home.ok("user credit alice 2 --reference invoice-1 --note =1+1,");
    home.ok("user credit alice -0.5 --adjust");
    home.ok(&format!("refund {id} --amount 0.001"));
    let month = month();
    let statement = home.json(&format!("statement alice --month {month}"));
    assert_eq!(
        (&statement["opening"], &statement["closing"], &statement["month"]),
        (&json!("0"), &json!("6.495"), &json!(month))
    );
    assert_eq!(
        statement["totals"],
        json!({"credits": "7", "adjustments": "-0.5", "refunds": "0.001", "charges": "0.006"})
    );
    let kinds: Vec<_> = statement["movements"]
        .as_array()
        .expect("movements")
        .iter()
        .map(|line| &line["kind"])
        .collect();
    assert_eq!(kinds, ["credit", "credit", "adjustment", "refund"]);
    assert_eq!(statement["movements"][3]["exchange"], json!(id));
    let charges = &statement["charges"][0];
    assert_eq!(
        (
            &charges["model"],
            &charges["exchanges"],
            &charges["input_tokens"],
            &charges["charge"]
        ),
        (&json!("gpt-4o"), &json!(2), &json!(2000), &json!("0.006"))
    );
    let csv = home.ok(&format!("statement alice --month {month} --csv"));
    let mut lines = csv.lines();
    assert_eq!(
        lines.next(),
        Some(
            "kind,day,time,model,exchanges,input_tokens,cached_tokens,output_tokens,amount,entry,exchange,reference,note"
        )
    );
    let amount = |line: &&str| Decimal::from_str_exact(line.split(',').nth(8).expect("a column")).expect("exact");
    let amounts: Vec<Decimal> = lines.clone().collect::<Vec<_>>().iter().map(amount).collect();
    let (closing, others) = amounts.split_last().expect("lines");
    assert_eq!(others.iter().sum::<Decimal>(), *closing);
    assert!(csv.contains(",invoice-1,\"'=1+1,\"\n"), "{csv}");
    let text = home.ok(&format!("statement alice --month {month}"));
    for part in [
        "opening balance",
        "closing balance   $6.495",
        "charges          -$0.006",
        "total",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn a_month_without_entries_is_a_statement_too() {
    let home = Home::with_alice();
    let before = home.json("statement alice --month 2020-02");
    assert_eq!((&before["opening"], &before["closing"]), (&json!("0"), &json!("0")));
    let to_come = home.json("statement alice --month 2999-12");
    assert_eq!((&to_come["opening"], &to_come["closing"]), (&json!("5"), &json!("5")));
    assert!(home.ok("statement alice --month 2020-02").contains("$0.00"));
    home.fails("statement alice --month 2026-13", 2);
    home.fails("statement alcie --month 2026-11", 5);
}

#[test]
fn a_statement_that_does_not_add_up_is_not_printed() {
    let home = Home::with_alice();
    #[expect(clippy::disallowed_methods, reason = "what the store would not do")]
    let file = rusqlite::Connection::open(home.database()).expect("it opens");
    file.execute_batch("DROP TRIGGER entries_are_final; UPDATE ledger_entries SET amount_nanos = 4000000000")
        .expect("altered");
    let error = home.fails(&format!("statement alice --month {}", month()), 8);
    assert!(error.contains("gateway ledger verify"), "{error}");
}
