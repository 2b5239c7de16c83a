//! Seals: a line that is kept elsewhere shows that history was only added to.

use std::fs;

use serde_json::json;

use crate::cli::{Home, alter};

/// A database with a few entries, and its seal.
fn sealed() -> (Home, String) {
    let home = Home::with_alice();
    home.ok("user add bob --balance 7");
    let seal = home.ok("ledger seal").trim_end().to_owned();
    (home, seal)
}

/// Verifying against this seal finds this.
fn finds(home: &Home, seal: &str, what: &str) {
    let error = home.fails(&format!("ledger verify --seal {seal}"), 8);
    assert!(
        error.contains("the books do not balance: table ledger_entries"),
        "{error}"
    );
    assert!(error.contains(what), "{error}");
}

#[test]
fn history_that_was_only_added_to_keeps_its_seal() {
    let (home, seal) = sealed();
    assert_eq!(seal.split(':').next(), Some("2"));
    home.ok("user credit alice 3");
    home.ok("user add eve --balance 1");
    home.ok("user add zoe");
    home.ok("user suspend bob");
    let told = home.ok(&format!("ledger verify --seal {seal}"));
    assert!(
        told.contains("entries were only added since entry 2 was sealed"),
        "{told}"
    );
    let later = home.json("ledger seal");
    assert_eq!(later["sequence"], json!(4));
    let digest = later["digest"].as_str().expect("a digest");
    assert_eq!((digest.len(), &later["seal"]), (64, &json!(format!("4:{digest}"))));
    assert_eq!(home.json(&format!("ledger verify --seal 4:{digest}"))["balanced"], true);
}

#[test]
fn the_seal_of_an_empty_ledger_is_a_seal() {
    let home = Home::with_alice();
    home.ok("user add bob");
    // SHA-256 of the domain, the field `sequence` and its number, each with its length: no heads.
    let empty = "02972eaf32215dc1797c39b90f0c78938bcd3a939b0a474f2c8d06b9c92ece18";
    assert_eq!(home.json(&format!("ledger verify --seal 0:{empty}"))["balanced"], true);
    finds(&home, &format!("0:{}", "0".repeat(64)), "row 0: is sealed");
}

#[test]
fn a_history_rewritten_with_all_its_hashes_does_not_fit_its_seal() {
    let (home, seal) = sealed();
    // The same names and numbers; an entry that says something else.
    let other = Home::with_alice();
    other.ok("user add bob --balance 8");
    assert_eq!(other.json("ledger verify")["balanced"], true);
    finds(&other, &seal, "history was changed since");
    home.ok(&format!("ledger verify --seal {seal}"));
}

#[test]
fn a_history_that_lost_its_end_does_not_fit_its_seal() {
    let (home, _) = sealed();
    home.ok("user credit bob 1");
    let seal = home.ok("ledger seal");
    alter(
        &home.database(),
        "DELETE FROM ledger_entries WHERE seq = 3; DELETE FROM audit_log WHERE seq = 5;
         UPDATE users SET balance_nanos = 7000000000, entries = 1,
                head_hash = (SELECT hash FROM ledger_entries WHERE seq = 2) WHERE name = 'bob';",
    );
    // Whoever does this knows of the mark beside the database.
    fs::remove_file(home.database().with_extension("db.mark")).expect("removed");
    assert_eq!(home.json("ledger verify")["balanced"], true, "nothing else shows it");
    finds(
        &home,
        seal.trim_end(),
        "row 3: is sealed and not there: the last entry is 2",
    );
}

#[test]
fn a_seal_that_is_none_is_wrong_usage_and_told_how_it_looks() {
    let (home, seal) = sealed();
    for wrong in ["x", "2", "2:", "-1:00", &seal[..seal.len() - 1], &format!("{seal}0")] {
        let ran = home.run(&format!("ledger verify --seal={wrong}"));
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{wrong}: {}", ran.err);
        assert!(ran.err.contains("64 hexadecimal digits"), "{wrong}: {}", ran.err);
    }
}
