//! What budgets promise: to calls, when they are set, across days, and by the schema alone.

use super::super::keys::Key;
use super::super::ledger::{self, CloseHold, Excess, HoldRefused, PlaceHold};
use super::super::prepared::Prepared;
use super::super::refunds::Refund;
use super::super::testing::*;
use super::super::users::User;
use super::*;
use crate::hold::Shortfall;

const DAY: i64 = 86_400;

fn budget(text: &str) -> Change {
    Change::Set(text.parse().expect("a budget"))
}

fn give(desk: &Desk, of: Spender, changes: &[Change]) -> Vec<Standing> {
    done(desk.store.change_budgets(of, changes, &by(), at(5)))
}

fn of_user(user: &User) -> Spender {
    Spender::User(user.id)
}

fn of_key(key: &Key) -> Spender {
    Spender::Key(key.budgets)
}

/// Limit, spent and held of each budget.
fn state(desk: &Desk, of: Spender, seconds: i64) -> Vec<(Period, String, String)> {
    let standing = desk.store.budgets(of, at(seconds)).expect("read");
    let texts = standing.iter().map(|budget| (budget.period, budget.spent, budget.held));
    texts
        .map(|(period, spent, held)| (period, spent.to_string(), held.to_string()))
        .collect()
}

/// Takes a hold some seconds later than others.
fn ask_at(key: &Key, amount: &str, seconds: i64) -> PlaceHold {
    PlaceHold {
        now: at(seconds),
        ..ask(exchange(), key, amount)
    }
}

/// Closes it as its time wants.
fn closing_of(ask: &PlaceHold, key: &Key, charge: &str) -> CloseHold {
    let mut close = closing(ask.exchange, key, charge);
    close.row.started_at = ask.now;
    close
}

/// A call of which nothing is collected.
fn not_collected(desk: &Desk, key: &Key) {
    let call = ask_at(key, "0", 10);
    desk.set_aside(&call);
    let close = CloseHold {
        excess: Excess::Waive,
        ..closing_of(&call, key, "5")
    };
    assert_eq!(desk.close(call.exchange, &close).charged, Usd::ZERO);
}

fn why(desk: &Desk, ask: &PlaceHold) -> (Limit, Shortfall) {
    match refused(desk.place(ask)) {
        HoldRefused::Short(limit, shortfall) => (limit, shortfall),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_fits_into_every_budget_of_its_user_and_its_key_or_is_refused_by_the_one_it_does_not_fit() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let (key, other) = (desk.key(&ada), desk.key(&ada));
    give(&desk, of_user(&ada), &[budget("5/day"), budget("8/month")]);
    give(&desk, of_key(&key), &[budget("3")]);
    desk.set_aside(&ask(exchange(), &key, "2"));
    let (limit, short) = why(&desk, &ask(exchange(), &key, "1.5"));
    assert_eq!(limit.name(), "key_budget_total");
    assert_eq!(
        (short.needed, short.available, short.held),
        (usd("1.5"), usd("1"), usd("2"))
    );
    desk.set_aside(&ask(exchange(), &other, "3"));
    let (limit, short) = why(&desk, &ask(exchange(), &other, "0.000000001"));
    assert_eq!(limit.name(), "user_budget_day");
    assert_eq!(limit.resets_at(), Period::Day.resets_at(at(10)));
    assert_eq!((short.available, short.held), (Usd::ZERO, usd("5")));
    let (limit, short) = why(&desk, &ask_at(&other, "4", 10 + DAY));
    assert_eq!((limit.name(), short.available), ("user_budget_month", usd("3")));
    desk.assert_books_balance();
}

#[test]
fn what_is_charged_stays_spent_and_what_was_held_beyond_comes_back() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("5/day")]);
    let call = ask_at(&key, "4", 10);
    desk.set_aside(&call);
    assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "0".into(), "4".into())]);
    desk.close(call.exchange, &closing_of(&call, &key, "1.5"));
    assert_eq!(
        state(&desk, of_key(&key), 10),
        [(Period::Day, "1.5".into(), "0".into())]
    );
    desk.set_aside(&ask_at(&key, "3.5", 11));
    assert_eq!(why(&desk, &ask_at(&key, "0.1", 11)).0.name(), "key_budget_day");
    desk.assert_books_balance();
}

#[test]
fn a_call_belongs_to_the_window_in_which_its_hold_was_taken() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("5/day")]);
    let late = ask_at(&key, "5", 10);
    desk.set_aside(&late);
    let tomorrow = ask_at(&key, "5", 10 + DAY);
    desk.set_aside(&tomorrow);
    let mut ends_tomorrow = closing_of(&late, &key, "2");
    ends_tomorrow.row.duration = std::time::Duration::from_hours(25);
    desk.close(late.exchange, &ends_tomorrow);
    assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "2".into(), "0".into())]);
    assert_eq!(
        state(&desk, of_key(&key), 10 + DAY),
        [(Period::Day, "0".into(), "5".into())]
    );
    desk.close(tomorrow.exchange, &closing_of(&tomorrow, &key, "0"));
    assert_eq!(
        state(&desk, of_key(&key), 10 + DAY),
        [(Period::Day, "0".into(), "0".into())]
    );
    desk.assert_books_balance();
}

#[test]
fn a_charge_beyond_its_hold_takes_no_more_than_the_budgets_leave() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("5")]);
    give(&desk, of_user(&ada), &[budget("4/month")]);
    let call = ask_at(&key, "1", 10);
    desk.set_aside(&call);
    desk.set_aside(&ask_at(&key, "2", 10));
    let closed = desk.close(call.exchange, &closing_of(&call, &key, "9"));
    assert_eq!((closed.charged, closed.uncollected), (usd("2"), usd("7")));
    assert_eq!(
        state(&desk, of_user(&ada), 10),
        [(Period::Month, "2".into(), "2".into())]
    );
    desk.assert_books_balance();
}

#[test]
fn each_budget_binds_a_charge_beyond_its_hold_by_what_is_spent_of_it() {
    for budgets in [["4/day", "9/month"], ["9/day", "4/month"]] {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &budgets.map(budget));
        let closed = ["1", "9"].map(|charge| {
            let call = ask_at(&key, "1", 10);
            desk.set_aside(&call);
            desk.close(call.exchange, &closing_of(&call, &key, charge)).charged
        });
        assert_eq!(closed, [usd("1"), usd("3")], "{budgets:?}");
        desk.assert_books_balance();
    }
}

#[test]
fn a_budget_counts_what_was_spent_in_its_window_before_it_was_set() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let (key, other) = (desk.key(&ada), desk.key(&ada));
    for (key, charge) in [(&key, "1"), (&other, "0.5")] {
        let call = ask_at(key, "2", 10);
        desk.set_aside(&call);
        desk.close(call.exchange, &closing_of(&call, key, charge));
    }
    let before = ask_at(&key, "2", 10 - DAY);
    desk.set_aside(&before);
    desk.close(before.exchange, &closing_of(&before, &key, "2"));
    // What is another's, and what could not be collected.
    let bob = desk.key(&desk.user("bob", "100"));
    let bobs = ask_at(&bob, "2", 10);
    desk.set_aside(&bobs);
    desk.close(bobs.exchange, &closing_of(&bobs, &bob, "2"));
    not_collected(&desk, &key);
    let open = ask_at(&key, "3", 10);
    desk.set_aside(&open);
    give(&desk, of_user(&ada), &[budget("9/day")]);
    give(&desk, of_key(&key), &[budget("9/day"), budget("20/total")]);
    assert_eq!(
        state(&desk, of_user(&ada), 10),
        [(Period::Day, "1.5".into(), "3".into())]
    );
    assert_eq!(
        state(&desk, of_key(&key), 10),
        [
            (Period::Day, "1".into(), "3".into()),
            (Period::Total, "3".into(), "3".into())
        ]
    );
    desk.close(open.exchange, &closing_of(&open, &key, "3"));
    assert_eq!(
        state(&desk, of_user(&ada), 10),
        [(Period::Day, "4.5".into(), "0".into())]
    );
    desk.assert_books_balance();
}

#[test]
fn a_window_that_is_opened_late_has_what_came_before_there_was_the_budget() {
    // The command read the clock before midnight, and waited: calls of the next day were there first. Or it was set
    // back.
    for set_at in [5 - DAY, 5 + DAY] {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        let (open, done_before) = (ask_at(&key, "2", 10), ask_at(&key, "1", 10));
        desk.set_aside(&open);
        desk.set_aside(&done_before);
        desk.close(done_before.exchange, &closing_of(&done_before, &key, "0.5"));
        let given_back = ask_at(&key, "1", 10);
        desk.set_aside(&given_back);
        desk.close(given_back.exchange, &closing_of(&given_back, &key, "0.7"));
        let all = Refund {
            exchange: given_back.exchange,
            amount: None,
            reference: None,
            note: None,
        };
        done(desk.store.refund(&all, &by(), at(10)));
        let set = [budget("4/day")];
        done(desk.store.change_budgets(of_key(&key), &set, &by(), at(set_at)));
        let next = ask_at(&key, "1.5", 11);
        assert_eq!(why(&desk, &ask_at(&key, "1.6", 11)).0.name(), "key_budget_day");
        desk.set_aside(&next);
        assert_eq!(
            state(&desk, of_key(&key), 10),
            [(Period::Day, "0.5".into(), "3.5".into())]
        );
        desk.assert_books_balance();
        desk.close(open.exchange, &closing_of(&open, &key, "2"));
        desk.close(next.exchange, &closing_of(&next, &key, "1.5"));
        assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "4".into(), "0".into())]);
        desk.assert_books_balance();
    }
}

#[test]
fn a_budget_of_another_day_does_not_bind_a_running_call() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    let call = ask_at(&key, "1", 10);
    desk.set_aside(&call);
    done(
        desk.store
            .change_budgets(of_key(&key), &[budget("0/day")], &by(), at(10 + DAY)),
    );
    let closed = desk.close(call.exchange, &closing_of(&call, &key, "4"));
    assert_eq!((closed.charged, closed.uncollected), (usd("4"), Usd::ZERO));
    desk.assert_books_balance();
}

#[test]
fn a_call_that_costs_nothing_fits_into_a_budget_that_is_overdrawn() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    let call = ask_at(&key, "4", 10);
    desk.set_aside(&call);
    give(&desk, of_key(&key), &[budget("1")]);
    assert_eq!(desk.set_aside(&ask_at(&key, "0", 10)), Usd::ZERO);
    desk.assert_books_balance();
}

#[test]
fn a_limit_below_what_is_spent_stops_calls_and_running_ones_settle() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("9")]);
    let call = ask_at(&key, "4", 10);
    desk.set_aside(&call);
    let lowered = give(&desk, of_key(&key), &[budget("1")]);
    assert_eq!((lowered[0].limit, lowered[0].left()), (usd("1"), Usd::ZERO));
    assert_eq!(why(&desk, &ask_at(&key, "0.5", 10)).0.name(), "key_budget_total");
    let closed = desk.close(call.exchange, &closing_of(&call, &key, "5"));
    assert_eq!(
        (closed.charged, closed.uncollected),
        (usd("4"), usd("1")),
        "the hold, and no more"
    );
    desk.assert_books_balance();
}

#[test]
fn a_budget_that_is_dropped_and_set_again_is_whole() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("3/day")]);
    let call = ask_at(&key, "2", 10);
    desk.set_aside(&call);
    assert_eq!(give(&desk, of_key(&key), &[Change::Drop(Period::Day)]), []);
    desk.set_aside(&ask_at(&key, "5", 10));
    desk.close(call.exchange, &closing_of(&call, &key, "1"));
    desk.assert_books_balance();
    give(&desk, of_key(&key), &[budget("7/day")]);
    assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "1".into(), "5".into())]);
    desk.assert_books_balance();
}

#[test]
fn a_rotated_key_spends_from_the_budget_of_the_one_it_replaces() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let old = desk.key(&ada);
    give(&desk, of_key(&old), &[budget("5/day")]);
    desk.set_aside(&ask_at(&old, "3", 10));
    let rotate = |from: &Key| {
        let new = new_key(ada.id, Uuid::now_v7());
        done(desk.store.rotate_key(from.id, &new, at(100), &by(), at(6)))
    };
    let heir = rotate(&old);
    let second = rotate(&heir);
    assert_eq!((heir.budgets, second.budgets), (old.id, old.id));
    assert_eq!(why(&desk, &ask_at(&second, "2.5", 10)).0.name(), "key_budget_day");
    let call = ask_at(&second, "2", 10);
    desk.set_aside(&call);
    assert_eq!(why(&desk, &ask_at(&old, "0.5", 10)).0.name(), "key_budget_day");
    desk.close(call.exchange, &closing_of(&call, &second, "2"));
    assert_eq!(
        state(&desk, of_key(&second), 10),
        [(Period::Day, "2".into(), "3".into())]
    );
    desk.assert_books_balance();
}

#[test]
fn of_what_does_not_fit_the_one_that_is_used_up_is_told() {
    let desk = Desk::new();
    let ada = desk.user("ada", "3");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("2/day")]);
    // The balance is held, and comes back; the budget is spent, and does not.
    let call = ask_at(&key, "2", 10);
    desk.set_aside(&call);
    desk.close(call.exchange, &closing_of(&call, &key, "2"));
    let other = desk.key(&ada);
    desk.set_aside(&ask_at(&other, "1", 10));
    assert_eq!(why(&desk, &ask_at(&key, "0.5", 10)).0.name(), "key_budget_day");
    assert_eq!(why(&desk, &ask_at(&other, "0.5", 10)).0, Limit::Balance);
}

#[test]
fn what_was_spent_before_a_budget_was_set_is_the_same_from_days_as_from_rows() {
    let desk = Desk::new();
    let (ada, bob) = (desk.user("ada", "1000"), desk.user("bob", "1000"));
    let keys = [desk.key(&ada), desk.key(&ada), desk.key(&bob)];
    for number in 0..60_i64 {
        let key = &keys[usize::try_from(number % 3).expect("few")];
        let call = ask_at(key, "2", number / 3 * (DAY / 3) + number);
        desk.set_aside(&call);
        desk.close(call.exchange, &closing_of(&call, key, &format!("0.{:03}", number + 1)));
        if number % 7 == 0 {
            let part = Refund {
                exchange: call.exchange,
                amount: (number % 2 == 0).then(|| usd("0.001")),
                reference: None,
                note: None,
            };
            done(desk.store.refund(&part, &by(), call.now));
        }
    }
    not_collected(&desk, &keys[0]);
    let spenders = [of_user(&ada), of_user(&bob), of_key(&keys[0]), of_key(&keys[1])];
    let raw = desk.raw();
    let all = || -> Vec<_> {
        let moments = (-1..8).map(|day| at(day * DAY + 10));
        let windows = moments.flat_map(|now| Period::ALL.map(|period| (period, now)));
        let asked = windows.flat_map(|window| spenders.map(|of| (window, of)));
        let sums = asked.map(|((period, now), of)| {
            let span = (period.start(now), period.resets_at(now).unwrap_or(Timestamp::MAX));
            sums(&raw, of, span, Among::History).expect("they are read")
        });
        sums.collect()
    };
    let from_rows = all();
    for day in 1..9 {
        while desk.store.roll_up(at(day * DAY)).expect("it is summed") {}
        assert_eq!(all(), from_rows, "{day} days are over");
    }
    give(&desk, of_user(&ada), &[budget("500")]);
    let (_, spent, _) = &state(&desk, of_user(&ada), 10)[0];
    assert_eq!(*spent, from_rows[0].1.to_string());
    desk.assert_books_balance();
    // It reads no rows of days that are summed.
    raw.execute(
        "UPDATE usage_days SET charge_nanos = charge_nanos + 1 WHERE day_at = (SELECT MIN(day_at) FROM usage_days)",
        [],
    )
    .expect("altered");
    assert_ne!(all(), from_rows);
}

#[test]
fn a_budget_is_somebodys_and_what_changes_nothing_is_no_act() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    for _ in 0..2 {
        give(&desk, of_user(&ada), &[budget("5")]);
    }
    let acts = "SELECT COUNT(*) FROM audit_log WHERE action = 'budget.set'";
    let acts: i64 = desk.raw().query_row(acts, [], |row| row.get(0)).expect("a count");
    assert_eq!(acts, 1);
    let nobody = Spender::User(UserId(Uuid::from_u128(7)));
    refused(desk.store.change_budgets(nobody, &[budget("5")], &by(), at(5)));
    desk.assert_books_balance();
}

#[test]
fn the_schema_alone_keeps_a_budget() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    give(&desk, of_user(&ada), &[budget("5")]);
    let raw = desk.raw();
    let hold = |nanos: i64| raw.execute("UPDATE budget_windows SET held_nanos = held_nanos + ?1", [nanos]);
    for _ in 0..5 {
        hold(1_000_000_000).expect("the first five fit");
    }
    let sixth = hold(1).expect_err("the sixth does not");
    assert!(sixth.to_string().contains("a budget is not exceeded"), "{sixth}");
}

#[test]
fn the_statement_alone_takes_no_hold_beyond_a_budget() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    for (of, text) in [(of_user(&ada), "5/month"), (of_key(&key), "5/day")] {
        give(&desk, of, &[budget(text)]);
        let ask = ask_at(&key, "6", 10);
        let took = ledger::set_aside(&Prepared::of(&desk.raw()), &ask, usd("5.000000001")).expect("no error");
        assert!(!took, "{text}");
        give(
            &desk,
            of,
            &[Change::Drop(
                text.split_once('/').expect("a period").1.parse().expect("one"),
            )],
        );
    }
}

#[test]
fn whatever_is_altered_of_a_budget_is_found() {
    let desk = Desk::new();
    let ada = desk.user("ada", "100");
    let key = desk.key(&ada);
    give(&desk, of_key(&key), &[budget("5/day")]);
    desk.set_aside(&ask_at(&key, "3", 10));
    desk.assert_books_balance();
    for sql in [
        "UPDATE budgets SET limit_nanos = limit_nanos + 1",
        "UPDATE budget_windows SET held_nanos = held_nanos - 1",
        "UPDATE budget_windows SET start_at = start_at + 1",
        "UPDATE budget_windows SET spent_nanos = spent_nanos + 1",
        "DELETE FROM budgets",
        "INSERT INTO budgets SELECT owner_id, 'total', 1, 1 FROM budgets",
        "INSERT INTO budgets VALUES (zeroblob(16), 'total', 1, 1)",
    ] {
        let raw = desk.raw();
        raw.execute_batch("SAVEPOINT altered").expect("begun");
        raw.execute(sql, []).expect(sql);
        assert!(!wrong(&raw).expect("it reads").is_empty(), "{sql}");
        raw.execute_batch("ROLLBACK TO altered; RELEASE altered")
            .expect("undone");
        assert_eq!(wrong(&raw).expect("it reads"), []);
    }
}
