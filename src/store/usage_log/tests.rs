//! What usage rows promise: written and read, found, and summed.

use super::super::keys::Key;
use super::super::refunds::Refund;
use super::super::testing::*;
use super::finding::{ITEM_MADE_BY, RESPONSE_MADE_BY};
use super::*;

fn settled(desk: &Desk, key: &Key, charge: &str) -> ExchangeRow {
    let id = exchange_id();
    desk.set_aside(&ask(id, key, "1"));
    let close = closing(id, key, charge);
    let closed = desk.close(id, &close);
    ExchangeRow {
        held: usd("1"),
        uncollected: closed.uncollected,
        balance_after: closed.balance,
        ..close.row
    }
}

fn exchange_id() -> ExchangeId {
    super::super::testing::exchange()
}

#[test]
fn a_row_comes_back_as_it_was_written() {
    let desk = Desk::new();
    let key = desk.key(&desk.user("ada", "5"));
    let row = settled(&desk, &key, "0.75");
    let response = row.response_id.clone().expect("it has one");
    for which in [row.id.to_string(), row.id.to_string()[..20].to_owned(), response] {
        assert_eq!(
            desk.store.find_exchange(&which).expect("it reads").as_ref(),
            Some(&row),
            "{which}"
        );
    }
    assert_eq!(desk.store.find_exchange("resp_other").expect("it reads"), None);
    settled(&desk, &key, "0");
    assert_eq!(
        desk.store.find_exchange("01").expect("it reads"),
        None,
        "not a unique start"
    );
}

#[test]
fn only_this_users_responses_and_items_are_found() {
    let desk = Desk::new();
    let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
    let row = settled(&desk, &desk.key(&ada), "0.75");
    let response = row.response_id.clone().expect("it has one");
    let made = |user: UserId, upstream: &str| {
        let response = desk
            .store
            .response_made_by(user, upstream, &response)
            .expect("it reads");
        let item = desk
            .store
            .item_made_by(user, upstream, &row.item_ids[0])
            .expect("it reads");
        (response.is_some(), item)
    };
    assert_eq!(made(ada.id, "openai"), (true, true));
    assert_eq!(made(ada.id, "other"), (false, false));
    assert_eq!(made(bob.id, "openai"), (false, false));
}

#[test]
fn a_filter_takes_what_it_names_and_pages_through_the_rest() {
    let desk = Desk::new();
    let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
    let (adas, bobs) = (desk.key(&ada), desk.key(&bob));
    let rows = [
        settled(&desk, &adas, "1"),
        settled(&desk, &bobs, "0"),
        settled(&desk, &adas, "0.5"),
    ];
    let ids = |filter: ExchangeFilter| -> Vec<ExchangeId> {
        let filter = ExchangeFilter {
            limit: filter.limit.max(2),
            ..filter
        };
        desk.store
            .exchanges(&filter)
            .expect("it reads")
            .iter()
            .map(|row| row.id)
            .collect()
    };
    let all = ExchangeFilter::default();
    assert_eq!(ids(all.clone()), [rows[2].id, rows[1].id]);
    assert_eq!(
        ids(ExchangeFilter {
            before: Some(rows[1].id),
            ..all.clone()
        }),
        [rows[0].id]
    );
    assert_eq!(
        ids(ExchangeFilter {
            after: Some(rows[0].id),
            ..all.clone()
        }),
        [rows[1].id, rows[2].id]
    );
    assert_eq!(
        ids(ExchangeFilter {
            user: Some(bob.id),
            ..all.clone()
        }),
        [rows[1].id]
    );
    assert_eq!(
        ids(ExchangeFilter {
            key: Some(adas.id),
            ..all.clone()
        }),
        [rows[2].id, rows[0].id]
    );
    assert!(
        ids(ExchangeFilter {
            until: Some(at(10)),
            ..all.clone()
        })
        .is_empty()
    );
    assert!(
        ids(ExchangeFilter {
            model: Some("other".into()),
            since: Some(at(10)),
            ..all
        })
        .is_empty()
    );
}

#[test]
fn reports_add_up_to_the_ledger_by_any_group() {
    let desk = Desk::new();
    let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "0.5"));
    let (adas, bobs) = (desk.key(&ada), desk.key(&bob));
    settled(&desk, &adas, "1");
    settled(&desk, &adas, "0.5");
    let poor = exchange_id();
    desk.set_aside(&ask(poor, &bobs, "0.25"));
    desk.close(poor, &closing(poor, &bobs, "2"));
    let refund = Refund {
        exchange: poor,
        amount: Some(usd("0.25")),
        reference: None,
        note: None,
    };
    done(desk.store.refund(&refund, &by(), at(90_000)));
    let bobs_only = ExchangeFilter {
        user: Some(bob.id),
        until: Some(at(11)),
        ..ExchangeFilter::default()
    };
    for (filter, refunded) in [
        (bobs_only.clone(), "0.25"),
        (
            ExchangeFilter {
                user: Some(ada.id),
                ..bobs_only.clone()
            },
            "0",
        ),
        (
            ExchangeFilter {
                model: Some("other".into()),
                ..bobs_only
            },
            "0",
        ),
    ] {
        let (_, total) = desk.store.usage(&filter, GroupBy::Day).expect("summed");
        assert_eq!(total.refunded, usd(refunded), "{filter:?}");
    }
    for (by, groups) in [
        (GroupBy::Day, vec!["2026-09-21"]),
        (GroupBy::User, vec!["ada", "bob"]),
        (
            GroupBy::Key,
            vec![adas.id.to_string().leak() as &str, bobs.id.to_string().leak()],
        ),
        (GroupBy::Model, vec!["gpt"]),
        (GroupBy::Upstream, vec!["openai"]),
    ] {
        let (rows, total) = desk.store.usage(&ExchangeFilter::default(), by).expect("summed");
        assert_eq!(rows.iter().map(|row| row.group.as_str()).collect::<Vec<_>>(), groups);
        let expected = UsageSum {
            group: String::new(),
            exchanges: 3,
            input_tokens: 350_138,
            cached_tokens: 30,
            output_tokens: 150,
            cost: usd("3.5"),
            charge: usd("2"),
            uncollected: usd("1.5"),
            refunded: usd("0.25"),
        };
        assert_eq!(total, expected, "{by:?}");
        assert_eq!(rows.last().map(|row| row.refunded), Some(usd("0.25")), "{by:?}");
    }
}

#[test]
fn a_response_and_an_item_are_found_without_reading_all_that_their_user_did() {
    let desk = Desk::new();
    let conn = desk.raw();
    let plan = |sql: &str| -> Vec<String> {
        let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
        let steps = explain.query_map(["", "", ""], |row| row.get("detail")).expect(sql);
        steps.collect::<Result<_, _>>().expect(sql)
    };
    assert_eq!(
        plan(RESPONSE_MADE_BY),
        [
            "SEARCH usage_logs USING INDEX usage_logs_by_response (response_id=?)",
            "USE TEMP B-TREE FOR ORDER BY"
        ]
    );
    assert_eq!(
        plan(ITEM_MADE_BY),
        [
            "SEARCH i USING PRIMARY KEY (item_id=?)",
            "SEARCH u USING INDEX sqlite_autoindex_usage_logs_1 (exchange_id=?)"
        ]
    );
}

#[test]
fn a_start_of_several_ids_names_them_all() {
    let desk = Desk::new();
    let ada = desk.user("ada", "5");
    let key = desk.key(&ada);
    let (first, second) = (settled(&desk, &key, "1").id, settled(&desk, &key, "1").id);
    let start = &first.to_string()[..4];
    assert_eq!(desk.store.find_exchange(start).expect("it reads"), None);
    let named = |start: &str, limit| desk.store.exchanges_starting(start, limit).expect("it reads");
    let mut both = [first, second];
    both.sort();
    assert_eq!(named(start, 10), both);
    assert_eq!(named(start, 1).len(), 1);
    assert_eq!(named(&first.to_string(), 10), [first]);
    assert!(named("resp_x", 10).is_empty());
}
