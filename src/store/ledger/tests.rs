//! What the ledger promises: of holds and settlements, and what statements and schema keep alone.

use rusqlite::{ErrorCode, params};

use super::super::keys::Key;
use super::super::testing::*;
use super::super::usage_log::{self, State};
use super::super::users::{User, UserStatus};
use super::super::{attempts, commits, entries, idempotency};
use super::closing::{CLOSE, GIVE_BACK, give_back};
use super::taking::{ACCOUNT, INSERT, SET_ASIDE};
use super::*;
use crate::origin::{Client, Kind, Label};

/// SQLite makes and drops a whole table for an `IN` with more than two words, for `RETURNING`, and for rows that are
/// selected to be inserted: a fifth of a call's time, when all of them did.
#[test]
fn a_call_makes_no_tables_for_itself() {
    let desk = Desk::new();
    let conn = desk.raw();
    for sql in [
        &**ACCOUNT,
        &**SET_ASIDE,
        &**INSERT,
        CLOSE,
        GIVE_BACK,
        &**usage_log::INSERT,
        &**entries::INSERT,
        events::INSERT,
        idempotency::FIND,
        idempotency::CLAIM,
        attempts::INSERT,
        commits::COUNT,
    ] {
        let mut explain = conn.prepare(&format!("EXPLAIN {sql}")).expect("it explains");
        let parameters = vec![rusqlite::types::Value::Null; explain.parameter_count()];
        let steps = explain.query_map(rusqlite::params_from_iter(parameters), |row| row.get(1));
        let steps: Vec<String> = steps.expect("run").collect::<Result<_, _>>().expect("read");
        assert!(
            steps.len() > 10 && !steps.iter().any(|step| step == "OpenEphemeral"),
            "{sql}: {steps:?}"
        );
    }
}

#[test]
fn a_hold_sets_money_aside_and_its_settlement_takes_what_it_cost() {
    let desk = Desk::new();
    let ada = desk.user("ada", "5");
    let key = desk.key(&ada);
    let id = exchange();
    let hold = done(desk.place(&ask(id, &key, "2")));
    assert_eq!(hold.amount, usd("2"));
    assert_eq!((desk.now(&ada).held, desk.now(&ada).available()), (usd("2"), usd("3")));
    desk.assert_books_balance();
    let closed = desk.close(id, &closing(id, &key, "0.75"));
    assert_eq!(
        closed,
        Closed {
            charged: usd("0.75"),
            uncollected: Usd::ZERO,
            balance: usd("4.25"),
            available: usd("4.25"),
        }
    );
    assert_eq!(
        desk.now(&ada),
        User {
            balance: usd("4.25"),
            ..ada.clone()
        }
    );
    let entries = desk.store.entries(ada.id, None, 10).expect("entries");
    let kinds: Vec<_> = entries
        .iter()
        .map(|e| (e.kind.as_str(), e.amount, e.balance_after))
        .collect();
    assert_eq!(
        kinds,
        [("charge", usd("-0.75"), usd("4.25")), ("credit", usd("5"), usd("5"))]
    );
    desk.assert_books_balance();
}

#[test]
fn closing_twice_changes_nothing_and_gives_the_first_answer() {
    let desk = Desk::new();
    let ada = desk.user("ada", "5");
    let key = desk.key(&ada);
    let id = exchange();
    desk.set_aside(&ask(id, &key, "2"));
    let first = desk.close(id, &closing(id, &key, "1"));
    assert_eq!(desk.close(id, &closing(id, &key, "2")), first);
    assert_eq!(desk.now(&ada).balance, usd("4"));
    assert_eq!(desk.store.verify().expect("it verifies").exchanges, 1);
    desk.assert_books_balance();
}

#[test]
fn taking_the_same_hold_twice_takes_it_once() {
    let desk = Desk::new();
    let ada = desk.user("ada", "5");
    let key = desk.key(&ada);
    let asked = ask(exchange(), &key, "2");
    let first = done(desk.place(&asked));
    assert_eq!(done(desk.place(&asked)), first);
    assert_eq!(desk.now(&ada).held, usd("2"));
    let other = desk.key(&ada);
    let stolen = desk.place(&PlaceHold { key: other.id, ..asked });
    assert!(matches!(stolen, Outcome::NotCommitted(_)), "{stolen:?}");
    desk.assert_books_balance();
}

#[test]
fn what_a_charge_takes_beyond_its_hold_comes_from_what_is_available_and_the_rest_is_recorded() {
    let desk = Desk::new();
    for (excess, charged) in [(Excess::Collect, "4"), (Excess::Waive, "1")] {
        let user = desk.user(&format!("{excess:?}"), "5");
        let key = desk.key(&user);
        let (mine, other) = (exchange(), exchange());
        desk.set_aside(&ask(mine, &key, "1"));
        desk.set_aside(&ask(other, &key, "1"));
        let closed = desk.close(
            mine,
            &CloseHold {
                excess,
                ..closing(mine, &key, "10")
            },
        );
        let charged = usd(charged);
        assert_eq!(
            (closed.charged, closed.uncollected),
            (charged, usd("10").saturating_sub(charged))
        );
        assert_eq!(desk.now(&user).held, usd("1"));
        assert!(!desk.now(&user).available().is_negative());
    }
    desk.assert_books_balance();
}

#[test]
fn a_hold_is_refused_with_the_reason() {
    let desk = Desk::new();
    let ada = desk.user("ada", "1");
    let (key, revoked) = (desk.key(&ada), desk.key(&ada));
    let short = HoldRefused::Short(
        Limit::Balance,
        Shortfall {
            needed: usd("1.000001"),
            available: usd("1"),
            held: Usd::ZERO,
            largest_limit: None,
        },
    );
    match refused(desk.place(&ask(exchange(), &key, "1.000001"))) {
        HoldRefused::Short(limit, found) => {
            assert_eq!(
                HoldRefused::Short(
                    limit,
                    Shortfall {
                        largest_limit: None,
                        ..found
                    }
                ),
                short
            );
        }
        other => panic!("{other:?}"),
    }
    done(desk.store.revoke_key(revoked.id, &by(), at(2)));
    assert_eq!(
        refused(desk.place(&ask(exchange(), &revoked, "1"))),
        HoldRefused::KeyGone
    );
    let late = PlaceHold {
        user: desk.user("bob", "1").id,
        ..ask(exchange(), &key, "1")
    };
    assert_eq!(refused(desk.place(&late)), HoldRefused::KeyGone);
    done(desk.store.set_user_status(ada.id, UserStatus::Suspended, &by(), at(3)));
    assert_eq!(refused(desk.place(&ask(exchange(), &key, "1"))), HoldRefused::Suspended);
    desk.assert_books_balance();
}

#[test]
fn what_running_calls_hold_is_not_available_to_another() {
    let desk = Desk::new();
    let ada = desk.user("ada", "3");
    let key = desk.key(&ada);
    desk.set_aside(&ask(exchange(), &key, "2"));
    let HoldRefused::Short(Limit::Balance, short) = refused(desk.place(&ask(exchange(), &key, "1.5"))) else {
        panic!("it is only short");
    };
    assert_eq!((short.available, short.held), (usd("1"), usd("2")));
}

#[test]
fn the_statement_alone_takes_nothing_that_is_not_there() {
    let desk = Desk::new();
    let ada = desk.user("ada", "7");
    let (key, revoked) = (desk.key(&ada), desk.key(&ada));
    done(desk.store.revoke_key(revoked.id, &by(), at(2)));
    let raw = desk.raw();
    let takes = |key: &Key, amount: &str| {
        let ask = ask(exchange(), key, "1");
        set_aside(&Prepared::of(&raw), &ask, usd(amount)).expect("no error")
    };
    assert!(!takes(&key, "7.000000001") && !takes(&key, "-1") && !takes(&revoked, "1"));
    assert!(takes(&key, "7"));
    assert!(!takes(&key, "0.000000001"));
    done(desk.store.set_user_status(ada.id, UserStatus::Suspended, &by(), at(3)));
    assert!(!takes(&key, "0"));
}

#[test]
fn the_statement_alone_gives_nothing_back_for_a_charge_that_is_not_there() {
    let desk = Desk::new();
    let ada = desk.user("ada", "7");
    let key = desk.key(&ada);
    let (mine, other) = (exchange(), exchange());
    desk.set_aside(&ask(mine, &key, "2"));
    desk.set_aside(&ask(other, &key, "3"));
    let raw = desk.raw();
    let raw = Prepared::of(&raw);
    let hold = stored_hold(&raw, mine).expect("it reads").expect("it is there");
    let unpaid = give_back(&raw, &hold, usd("4.000000001")).expect_err("the other hold is not there to be taken");
    assert!(unpaid.to_string().contains("does not pay"), "{unpaid}");
    assert_eq!(desk.now(&ada).held, usd("5"));
    give_back(&raw, &hold, usd("4")).expect("what is available pays");
    assert_eq!(desk.now(&ada).held, usd("3"));
}

#[test]
fn the_schema_alone_stops_an_overdraft() {
    let desk = Desk::new();
    let ada = desk.user("ada", "7");
    let raw = desk.raw();
    let hold = |nanos: i64| {
        raw.execute(
            "UPDATE users SET held_nanos = held_nanos + ?2 WHERE id = ?1",
            params![ada.id, nanos],
        )
    };
    for _ in 0..7 {
        hold(1_000_000_000).expect("the first seven fit");
    }
    let eighth = hold(1_000_000_000).expect_err("the eighth does not");
    assert_eq!(eighth.sqlite_error_code(), Some(ErrorCode::ConstraintViolation));
    assert!(eighth.to_string().contains("available_is_not_negative"), "{eighth}");
}

#[test]
fn the_schema_alone_keeps_the_balance_the_sum_of_the_entries() {
    let desk = Desk::new();
    let ada = desk.user("ada", "7");
    let raw = desk.raw();
    let refused = |sql: &str| match raw.execute(sql, [ada.id]) {
        Err(error) => assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation), "{sql}"),
        Ok(rows) => panic!("{rows} rows by {sql}"),
    };
    refused("UPDATE users SET balance_nanos = balance_nanos + 1 WHERE id = ?1");
    refused("UPDATE users SET id = zeroblob(16) WHERE id = ?1");
    refused("DELETE FROM users WHERE id = ?1");
    refused("UPDATE ledger_entries SET note = 'x' WHERE user_id = ?1");
    refused("DELETE FROM ledger_entries WHERE user_id = ?1");
    refused(
        "REPLACE INTO ledger_entries SELECT seq, user_id, kind, 1, balance_after_nanos + 1, exchange_id, reference,
                note, at, hash, refunds FROM ledger_entries WHERE user_id = ?1",
    );
    refused(
        "REPLACE INTO users SELECT id, name, email, password_hash, status, 0, 0, 0, created_at, 0, NULL, 0, NULL, NULL, NULL, NULL, NULL
         FROM users WHERE id = ?1",
    );
    refused(
        "INSERT INTO ledger_entries SELECT seq + 1, user_id, kind, 5, balance_after_nanos, NULL, NULL, NULL, at,
                hash, NULL FROM ledger_entries WHERE user_id = ?1",
    );
    desk.assert_books_balance();
}

#[test]
fn a_hold_cannot_be_opened_again_or_changed() {
    let desk = Desk::new();
    let ada = desk.user("ada", "7");
    let key = desk.key(&ada);
    let (open, closed) = (exchange(), exchange());
    desk.set_aside(&ask(open, &key, "1"));
    desk.set_aside(&ask(closed, &key, "1"));
    desk.close(closed, &closing(closed, &key, "1"));
    let raw = desk.raw();
    for (sql, id) in [
        (
            "UPDATE holds SET state = 'open', closed_at = NULL WHERE exchange_id = ?1",
            closed,
        ),
        ("UPDATE holds SET state = 'released' WHERE exchange_id = ?1", closed),
        ("DELETE FROM holds WHERE exchange_id = ?1", open),
        ("UPDATE usage_logs SET charge_nanos = 0 WHERE exchange_id = ?1", closed),
        ("DELETE FROM usage_logs WHERE exchange_id = ?1", closed),
    ] {
        raw.execute(sql, [id]).expect_err(sql);
    }
    // Each by itself, and to what it is: so nothing but the trigger refuses it.
    for column in HOLD_COLUMNS.into_iter().chain(["hash"]) {
        let sql = format!("UPDATE holds SET {column} = {column} WHERE exchange_id = ?1");
        let refused = raw.execute(&sql, [open]).expect_err(&sql);
        assert!(refused.to_string().contains("nothing else of it changes"), "{refused}");
    }
    desk.assert_books_balance();
}

#[test]
fn holds_of_a_process_that_died_are_released_and_leave_a_row() {
    let desk = Desk::new();
    let ada = desk.user("ada", "7");
    let key = desk.key(&ada);
    let id = exchange();
    let origin = Origin {
        session: Label::new("s"),
        turn: Label::new("t"),
        agent: None,
        kind: Some(Kind::SubAgent),
        client: Client::parse("codex_exec/0.169.0"),
    };
    desk.set_aside(&PlaceHold {
        origin: origin.clone(),
        ..ask(id, &key, "2")
    });
    assert_eq!(desk.store.verify().expect("it verifies").open_holds, 1);
    assert_eq!(done(desk.store.release_interrupted(at(70))).released, 1);
    assert_eq!(done(desk.store.release_interrupted(at(71))), Swept::default());
    let row = desk
        .store
        .find_exchange(&id.to_string())
        .expect("it reads")
        .expect("it is there");
    assert_eq!(
        (row.state, row.held, row.charge),
        (State::Interrupted, usd("2"), Usd::ZERO)
    );
    assert_eq!((row.duration.as_secs(), row.model.as_str()), (60, "gpt"));
    assert_eq!(row.origin, origin, "it is told who asked");
    let kept = "SELECT COUNT(*) FROM holds WHERE origin IS NOT NULL";
    let kept: i64 = desk.raw().query_row(kept, [], |row| row.get(0)).expect("a count");
    assert_eq!(kept, 0, "the usage row has it");
    assert_eq!(desk.now(&ada), ada);
    let late = desk.close(id, &closing(id, &key, "1"));
    assert_eq!(
        late,
        Closed {
            charged: Usd::ZERO,
            uncollected: Usd::ZERO,
            balance: usd("7"),
            available: usd("7"),
        }
    );
    desk.assert_books_balance();
}

#[test]
fn a_hold_that_cannot_be_released_keeps_no_other_from_it() {
    let desk = Desk::new();
    let ada = desk.user("ada", "400");
    let key = desk.key(&ada);
    let ids: Vec<_> = (0..RELEASES_PER_TRANSACTION + 3).map(|_| exchange()).collect();
    for id in &ids {
        desk.set_aside(&ask(*id, &key, "1"));
    }
    let bad = [ids[1], ids[RELEASES_PER_TRANSACTION + 1]];
    for (number, id) in bad.iter().enumerate() {
        desk.raw()
            .execute_batch(&format!(
                "CREATE TRIGGER never_{number} BEFORE INSERT ON usage_logs WHEN NEW.exchange_id = x'{}'
                 BEGIN SELECT RAISE(ABORT, 'never'); END",
                id.0.simple()
            ))
            .expect("made");
    }
    let swept = done(desk.store.release_interrupted(at(70)));
    assert_eq!(swept.released, ids.len() - bad.len());
    let stuck: Vec<_> = swept.stuck.iter().map(|(id, why)| (*id, why.as_str())).collect();
    assert_eq!(stuck, bad.map(|id| (id, "never")));
    assert_eq!(desk.store.open_holds().expect("read"), bad);
    assert_eq!(desk.now(&ada).held, usd("2"), "nothing of it is half done");
    desk.assert_books_balance();
    // By what was written last, no call lasts so long.
    let late = exchange();
    desk.set_aside(&ask(late, &key, "1"));
    let mut close = closing(late, &key, "1");
    close.row.duration = LONGEST_HOLD + Duration::from_secs(1);
    desk.close(late, &close);
    let mut findings = desk.store.verify().expect("it verifies").findings;
    findings.sort_by_key(|finding| bad.iter().position(|id| id.to_string() == finding.row));
    let named: Vec<_> = findings
        .iter()
        .map(|finding| (finding.table, finding.row.clone()))
        .collect();
    assert_eq!(named, bad.map(|id| ("holds", id.to_string())), "{findings:?}");
    assert!(
        findings[0].problem.contains("longer than any call lasts"),
        "{findings:?}"
    );
}

#[test]
fn a_settlement_is_filed_under_its_hold_whatever_its_row_says() {
    let desk = Desk::new();
    let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
    let (key, other) = (desk.key(&ada), desk.key(&bob));
    let (id, stranger) = (exchange(), exchange());
    desk.set_aside(&ask(id, &key, "2"));
    desk.close(id, &closing(stranger, &other, "1"));
    let row = desk.store.find_exchange(&id.to_string()).expect("it reads");
    let row = row.expect("it is there");
    assert_eq!((row.user, row.key, row.held), (ada.id, key.id, usd("2")));
    assert_eq!((desk.now(&ada).balance, desk.now(&bob).balance), (usd("4"), usd("5")));
    desk.assert_books_balance();
}
