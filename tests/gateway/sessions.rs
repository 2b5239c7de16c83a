//! Sessions: what a conversation cost, turn by turn, and nothing of another's.

use std::fs;

use http::Method;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::cli::{Home, exchange};
use crate::client::{Answer, Client, response};
use crate::harness::Harness;
use codex_gateway::money::Usd;
use codex_gateway::origin::{Kind, Label};

/// What a client tells of a call of Codex's, among it what nobody else is to know.
fn metadata(turn: &str, more: &Value) -> String {
    let mut metadata = json!({
        "session_id": "ses-1", "thread_id": "ses-1", "turn_id": turn, "root_turn_id": turn, "request_kind": "turn",
        "thread_source": "user",
        "workspaces": {"/home/ada/secret-project": {"associated_remote_urls": {"origin": "git@example.org:ada/secret"}}},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        metadata[name] = value.clone();
    }
    metadata.to_string()
}

async fn call(client: &Client, headers: &[(&str, &str)], prompt: &str) -> Answer {
    let request = client.request(Method::POST, "/v1/responses");
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request
        .header("content-type", "application/json")
        .body(response(prompt, &json!({})).to_string());
    Answer::of(request.send().await.expect("the gateway answers"))
        .await
        .expect(200)
}

async fn codex(client: &Client, turn: &str, more: &Value) -> Answer {
    let metadata = metadata(turn, more);
    let headers = [
        ("x-codex-turn-metadata", metadata.as_str()),
        (
            "user-agent",
            "codex_exec/0.169.0 (Ubuntu 24.4.0; x86_64) /home/ada/term",
        ),
    ];
    call(client, &headers, "Hello").await
}

fn decimal(value: &Value) -> Decimal {
    Decimal::from_str_exact(value.as_str().expect("a string")).expect("a decimal")
}

fn sum(items: &Value) -> Decimal {
    let items = items.as_array().expect("a list").iter();
    items.map(|item| decimal(&item["charge"])).sum()
}

fn paid(answer: &Answer) -> Decimal {
    Decimal::from_str_exact(answer.header("x-gateway-cost")).expect("a decimal")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_told_turn_by_turn_and_its_total_is_what_the_answers_said() {
    let harness = Harness::builder().settings("[billing]\nmarkup = 1.037").start().await;
    let client = &harness.client;
    let review = json!({"thread_id": "agent-1", "parent_thread_id": "ses-1", "subagent_kind": "guardian",
                        "thread_source": "guardian_review", "turn_id": "t-9", "root_turn_id": "t-1"});
    let calls = [
        codex(client, "t-1", &json!({})).await,
        codex(client, "t-1", &review).await,
        codex(client, "t-2", &json!({"request_kind": "compaction"})).await,
        codex(client, "t-2", &json!({})).await,
    ];
    let costs: Vec<Decimal> = calls.iter().map(paid).collect();
    let total: Decimal = costs.iter().sum();
    // Another session, and a call of none.
    call(client, &[("x-session-affinity", "ses-2")], "Hello").await;
    call(client, &[], "Hello").await;

    let list = client.get("/v1/gateway/sessions").await.expect(200).json();
    let ids: Vec<&Value> = list["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| &item["id"])
        .collect();
    assert_eq!(ids, [&json!("ses-2"), &json!("ses-1")], "newest first");
    let listed = &list["items"][1];
    assert_eq!((decimal(&listed["charge"]), &listed["turns"]), (total, &json!(2)));
    assert_eq!(listed["client"], "codex_exec/0.169.0");

    let shown = client.get("/v1/gateway/sessions/ses-1").await.expect(200);
    assert_eq!(shown.header("cache-control"), "no-store");
    for hidden in ["cost", "markup", "upstream", "secret"] {
        assert!(!shown.text().contains(hidden), "{hidden}: {}", shown.text());
    }
    let session = shown.json();
    assert_eq!(decimal(&session["total"]["charge"]), total);
    for parts in ["turns", "kinds"] {
        assert_eq!(sum(&session[parts]), total, "{parts}");
    }
    let turns = session["turns"].as_array().expect("turns");
    let turns: Vec<_> = turns
        .iter()
        .map(|turn| (turn["id"].clone(), decimal(&turn["charge"])))
        .collect();
    assert_eq!(
        turns,
        [(json!("t-1"), costs[0] + costs[1]), (json!("t-2"), costs[2] + costs[3])],
        "what a sub-agent asks is of the user's turn"
    );
    let agents = session["agents"].as_array().expect("agents");
    assert_eq!(
        (agents.len(), &agents[0]["id"], decimal(&agents[0]["charge"])),
        (1, &json!("agent-1"), costs[1])
    );
    let cause = |name: &str| {
        let causes = session["causes"].as_array().expect("causes").iter();
        causes
            .clone()
            .find(|cause| cause["cause"] == name)
            .map(|cause| decimal(&cause["charge"]))
    };
    assert_eq!((cause("compaction"), cause("review")), (Some(costs[2]), Some(costs[1])));

    let receipts = client
        .get("/v1/gateway/requests?session=ses-1")
        .await
        .expect(200)
        .json();
    assert_eq!(sum(&receipts["items"]), total);
    let first = client
        .get("/v1/gateway/requests?session=ses-1&limit=3")
        .await
        .expect(200)
        .json();
    let rest = format!(
        "/v1/gateway/requests?session=ses-1&page={}",
        first["next_page"].as_str().expect("more")
    );
    let rest = client.get(&rest).await.expect(200).json();
    assert_eq!(sum(&first["items"]) + sum(&rest["items"]), total);
    let receipt = &receipts["items"][0];
    assert_eq!((&receipt["turn"], &receipt["kind"]), (&json!("t-2"), &json!("turn")));

    for (by, groups) in [
        ("session", json!([null, "ses-1", "ses-2"])),
        ("kind", json!([null, "compaction", "review", "turn"])),
        ("client", json!([null, "codex_exec"])),
    ] {
        let usage = client
            .get(&format!("/v1/gateway/usage?by={by}"))
            .await
            .expect(200)
            .json();
        let items = usage["items"].as_array().expect("items");
        assert_eq!(
            items.iter().map(|item| item[by].clone()).collect::<Vec<_>>(),
            *groups.as_array().expect("a list")
        );
        assert_eq!(
            (sum(&usage["items"]), &usage["total"]["exchanges"]),
            (decimal(&usage["total"]["charge"]), &json!(6))
        );
        let usage = harness.operate(&format!("usage --by {by}"));
        let items = usage["items"].as_array().expect("items");
        assert_eq!(items.len(), groups.as_array().map_or(0, Vec::len));
        assert_eq!(
            (sum(&usage["items"]), &usage["total"]["exchanges"]),
            (decimal(&usage["total"]["charge"]), &json!(6))
        );
    }
    let usage = harness.operate("usage --by model --session ses-1");
    assert_eq!(decimal(&usage["total"]["charge"]), total);

    let report = harness.operate("session show ses-1");
    assert_eq!(
        (decimal(&report["total"]["charge"]), &report["user"]),
        (total, &json!("alice"))
    );
    assert_eq!(sum(&report["turns"]), total);
    let list = harness.operate("session list --user alice");
    assert_eq!(
        (&list["items"][1]["id"], decimal(&list["items"][1]["charge"])),
        (&json!("ses-1"), total)
    );
    let exchange = calls[3].exchange();
    harness.operate(&format!("refund {exchange}"));
    assert_eq!(
        decimal(&harness.operate("session show ses-1")["total"]["refunded"]),
        costs[3]
    );
    assert_eq!(
        decimal(&harness.operate("session list")["items"][1]["refunded"]),
        costs[3]
    );

    let file = harness.database();
    let books = harness.finish().await;
    let row = books.exchange(calls[1].exchange());
    assert_eq!(row.origin.session.as_ref().map(Label::as_str), Some("ses-1"));
    assert_eq!(row.origin.kind, Some(Kind::Review));
    for name in [file.clone(), file.with_extension("db-wal")] {
        let bytes = fs::read(name).unwrap_or_default();
        for private in ["secret", "git@", "/home/ada", "Ubuntu"] {
            let is_there = bytes.windows(private.len()).any(|window| window == private.as_bytes());
            assert!(!is_there, "{private} is in the database");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sub_agents_of_sub_agents_ask_is_of_the_session_in_which_the_user_types() {
    let mut harness = Harness::start().await;
    // As versions tell it in which every sub-agent calls itself a session of its own.
    let agent = |thread: &str, parent: &str| json!({"session_id": thread, "thread_id": thread, "parent_thread_id": parent, "subagent_kind": "thread_spawn"});
    for (thread, parent) in [("a", "ses-1"), ("b", "a"), ("c", "b"), ("a", "ses-1"), ("b", "a")] {
        codex(&harness.client, "t-1", &agent(thread, parent)).await;
    }
    // As a newer one does.
    let newer = json!({"thread_id": "d", "parent_thread_id": "c", "subagent_kind": "thread_spawn"});
    codex(&harness.client, "t-1", &newer).await;
    // Another user's sub-agents may have the same names.
    let other = harness.add_client("other", "5");
    codex(&other, "t-1", &agent("b", "ses-9")).await;
    // What was seen before a restart is known after it.
    harness.stop().await;
    harness.start_again().await;
    codex(&harness.client, "t-1", &agent("e", "b")).await;
    codex(&harness.client, "t-1", &json!({})).await;

    let list = harness.client.get("/v1/gateway/sessions").await.expect(200).json();
    let listed = list["items"].as_array().expect("a list");
    assert_eq!(listed.len(), 1, "{list}");
    assert_eq!(
        (&listed[0]["id"], &listed[0]["exchanges"]),
        (&json!("ses-1"), &json!(8))
    );
    let session = harness
        .client
        .get("/v1/gateway/sessions/ses-1")
        .await
        .expect(200)
        .json();
    let agents = session["agents"].as_array().expect("agents").iter();
    let agents: Vec<_> = agents.map(|agent| agent["id"].as_str().expect("an id")).collect();
    assert_eq!(agents, ["a", "b", "c", "d", "e"]);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_keys_session_is_answered_like_one_that_does_not_exist() {
    let harness = Harness::start().await;
    codex(&harness.client, "t-1", &json!({})).await;
    let other = harness.add_client("other", "5");
    let colleague = harness.issue("--name colleague");
    let seen = |answer: &Answer| (answer.status, answer.text().replace(answer.exchange(), "ID"));
    for client in [&other, &colleague] {
        let list = client.get("/v1/gateway/sessions").await.expect(200).json();
        assert_eq!(list["items"], json!([]));
        let nowhere = seen(&client.get("/v1/gateway/sessions/ses-none").await);
        assert_eq!(nowhere.0, 404);
        for id in ["ses-1", "ses", "%FF", "'%20OR%201=1"] {
            assert_eq!(
                seen(&client.get(&format!("/v1/gateway/sessions/{id}")).await),
                nowhere,
                "{id}"
            );
        }
        let receipts = client
            .get("/v1/gateway/requests?session=ses-1")
            .await
            .expect(200)
            .json();
        assert_eq!(receipts["items"], json!([]));
    }
    // Each has one of the same name, and sees its own only.
    let mine = paid(&codex(&other, "t-1", &json!({})).await) + paid(&codex(&other, "t-2", &json!({})).await);
    let session = other.get("/v1/gateway/sessions/ses-1").await.expect(200).json();
    assert_eq!(
        (decimal(&session["total"]["charge"]), &session["total"]["exchanges"]),
        (mine, &json!(2))
    );
    assert_eq!(
        harness.operate("session list")["items"].as_array().map_or(0, Vec::len),
        2
    );
    let of_other = harness.operate("session show ses-1 --user other");
    assert_eq!(
        (decimal(&of_other["total"]["charge"]), &of_other["user"]),
        (mine, &json!("other"))
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_makes_up_changes_nothing_but_the_labels() {
    let harness = Harness::start().await;
    let plain = call(&harness.client, &[], "Hello").await;
    let long = format!(r#"{{"session_id":"{}"}}"#, "x".repeat(20_000));
    for (header, value) in [
        ("x-codex-turn-metadata", "{"),
        ("x-codex-turn-metadata", r#"{"session_id":["a"]}"#),
        ("x-codex-turn-metadata", &long),
        ("session-id", "/home/ada/secret"),
        ("user-agent", "<script>alert(1)</script>"),
    ] {
        let answer = call(&harness.client, &[(header, value)], "Hello").await;
        assert_eq!(paid(&answer), paid(&plain), "{header}");
        let row = harness.receipt(answer.exchange());
        assert_eq!(
            (row.origin.session, row.origin.client),
            (None, None),
            "{header}: {value:.40}"
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reads_a_session_and_is_told_what_is_missing() {
    let home = Home::with_alice();
    home.ok("key issue alice --name laptop");
    let id = exchange(&home, Usd::ZERO).await;
    let shown = home.ok("session show ses");
    for part in [
        "session ses-7",
        "alice",
        "codex_exec/0.169.0",
        "gpt-4o",
        "turn by turn",
        "sub-agent",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(
        shown.contains("\n\nwhat it was for\nkind") && shown.ends_with('\n'),
        "each table stands by itself: {shown}"
    );
    let listed = home.ok("session list");
    assert!(
        listed.contains("ses-7") && listed.contains("codex_exec/0.169.0"),
        "{listed}"
    );
    let receipt = home.ok(&format!("request show {id}"));
    assert!(
        receipt.contains("asked by            codex_exec/0.169.0, sub-agent, session ses-7, turn t-1, agent a-1"),
        "{receipt}"
    );
    let missing = home.fails("session show nothing", 5);
    assert!(missing.contains("gateway session list"), "{missing}");
    home.fails("session show /home", 5);
    assert_eq!(
        home.json("session list --since 2020-01-01 --until 2020-01-02"),
        json!({"items": []})
    );
}
