//! A call with an `Idempotency-Key` is one exchange and at most one charge, however often and whenever it comes; where
//! answers are recorded, it has one answer.

use std::sync::Arc;
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Script};
use codex_gateway::store::keys::KeyChange;
use codex_gateway::store::users::UserStatus;
use codex_gateway::store::{Actor, Outcome};
use codex_gateway::time::now;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::client::{Answer, Client, MODEL, chat, exchange_of, response};
use crate::concurrency::{gated, next};
use crate::harness::Harness;
use crate::shutdown::Office;

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Calls of every billed endpoint, plain and streamed.
fn calls() -> Vec<(&'static str, Value)> {
    let streamed = json!({"stream": true});
    vec![
        ("/v1/chat/completions", chat("sim:words-16", &json!({}))),
        ("/v1/chat/completions", chat("sim:words-16", &streamed)),
        ("/v1/responses", response("sim:words-16", &json!({}))),
        ("/v1/responses", response("sim:words-16", &streamed)),
        ("/v1/completions", json!({"model": MODEL, "prompt": "sim:words-16"})),
        (
            "/v1/embeddings",
            json!({"model": "text-embedding-3-small", "input": "Hello"}),
        ),
    ]
}

async fn call(client: &Client, name: &str, path: &str, body: &Value) -> Answer {
    let request = client
        .request(reqwest::Method::POST, path)
        .header("idempotency-key", name);
    let request = request
        .header("content-type", "application/json")
        .body(body.to_string());
    Answer::of(request.send().await.expect("the gateway answers")).await
}

/// A call under way; it is dropped with the set.
fn begin(client: &Client, name: &str, path: &'static str, body: &Value) -> JoinSet<Answer> {
    let (client, name, body) = (client.clone(), name.to_owned(), body.clone());
    let mut calls = JoinSet::new();
    calls.spawn(async move { call(&client, &name, path, &body).await });
    calls
}

/// A refusal that is final, as the endpoint's clients need it; gives its `error.gateway`.
fn is_final(answer: Answer, path: &str, code: &str) -> Value {
    let (status, said) = match path {
        "/v1/responses" => (400, "invalid_prompt"),
        _ => (409, code),
    };
    let answer = answer.expect(status);
    assert_eq!(
        (answer.header("x-should-retry"), answer.header("retry-after")),
        ("false", "")
    );
    let error = answer.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["gateway"]["code"]),
        (&json!(said), &json!(code))
    );
    error["gateway"].clone()
}

/// A refusal because the call runs.
fn runs(answer: Answer) -> Value {
    let answer = answer.expect(409);
    assert_eq!(answer.header("x-should-retry"), "", "it may be repeated");
    assert!(
        matches!(answer.header("retry-after").parse(), Ok(1..=10)),
        "{:?}",
        answer.headers
    );
    let gateway = answer.json()["error"]["gateway"].clone();
    assert_eq!(gateway["code"], "idempotency_in_progress");
    gateway
}

/// The answer once the call under this name does not run any more.
async fn when_it_does_not_run(client: &Client, name: &str, path: &str, body: &Value) -> Answer {
    let asking = async {
        loop {
            let answer = call(client, name, path, body).await;
            if answer.status != 409 || answer.json()["error"]["code"] != "idempotency_in_progress" {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_done_is_told_with_its_charge_and_its_receipt_and_not_made_again() {
    let harness = Harness::start().await;
    let (alice, calls) = (&harness.client, calls());
    for (number, (path, body)) in calls.iter().enumerate() {
        let name = format!("call {number}");
        let first = call(alice, &name, path, body).await.expect(200);
        let balance = harness.user().balance;
        let done = is_final(call(alice, &name, path, body).await, path, "already_done");
        let charge = harness.receipt(first.exchange()).charge;
        assert_eq!(
            (&done["exchange"], &done["charge"]),
            (&json!(first.exchange()), &json!(charge.to_string()))
        );
        let receipt = alice.get(done["receipt"].as_str().expect("a path")).await.expect(200);
        assert_eq!(receipt.json()["charge"], charge.to_string());
        let mut other = body.clone();
        other["user"] = json!("somebody");
        is_final(call(alice, &name, path, &other).await, path, "idempotency_mismatch");
        assert_eq!(harness.user().balance, balance, "{path}");
    }
    let (first, second) = (&calls[0], &calls[2]);
    is_final(
        call(alice, "call 0", second.0, &second.1).await,
        second.0,
        "idempotency_mismatch",
    );
    call(alice, "Call 0", first.0, &first.1).await.expect(200);
    assert_eq!(harness.served().len(), calls.len() + 1);
    assert_eq!(harness.finish().await.exchanges.len(), calls.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_has_names_of_its_own_and_a_rotated_one_too() {
    let harness = Harness::start().await;
    let (path, body) = &calls()[0];
    let (alice, bob) = (harness.client.clone(), harness.add_client("bob", "1"));
    let second = harness.issue("");
    let rotated = harness.operate(&format!("key rotate {} --grace 1h", alice.key));
    let heir = Client {
        key: rotated["key"].as_str().expect("a key").to_owned(),
        ..alice.clone()
    };
    for client in [&alice, &bob, &second, &heir] {
        call(client, "n", path, body).await.expect(200);
    }
    for client in [&alice, &bob, &second, &heir] {
        is_final(call(client, "n", path, body).await, path, "already_done");
    }
    assert_eq!(harness.finish().await.exchanges.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_call_runs_it_is_not_made_again() {
    let gate = Gate::closed();
    let harness = Harness::builder().playwright(gated(&gate)).start().await;
    for (number, (path, body)) in calls().into_iter().enumerate() {
        let name = format!("call {number}");
        let mut first = begin(&harness.client, &name, path, &body);
        harness.simulator.arrived(number + 1).await;
        let running = runs(call(&harness.client, &name, path, &body).await);
        let mut other = body.clone();
        other["user"] = json!("somebody");
        is_final(
            call(&harness.client, &name, path, &other).await,
            path,
            "idempotency_mismatch",
        );
        gate.let_through(1);
        let first = next(&mut first, 1).await.remove(0).expect(200);
        assert_eq!(running["exchange"], first.exchange());
        is_final(call(&harness.client, &name, path, &body).await, path, "already_done");
    }
    assert_eq!(harness.finish().await.exchanges.len(), calls().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_calls_at_once_one_is_made() {
    let harness = Harness::start().await;
    for (number, (path, body)) in calls().into_iter().enumerate() {
        let barrier = Arc::new(Barrier::new(50));
        let mut all = JoinSet::new();
        for _ in 0..50 {
            let (client, barrier, body) = (harness.client.clone(), Arc::clone(&barrier), body.clone());
            all.spawn(async move {
                barrier.wait().await;
                call(&client, &format!("call {number}"), path, &body).await
            });
        }
        let answers = all.join_all().await;
        let made = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(made, 1, "{path}");
        for refused in answers.into_iter().filter(|answer| answer.status != 200) {
            match refused.json()["error"]["gateway"]["code"].as_str() {
                Some("already_done") => drop(is_final(refused, path, "already_done")),
                _ => drop(runs(refused)),
            }
        }
        assert_eq!(harness.served().len(), number + 1);
    }
    assert_eq!(harness.finish().await.exchanges.len(), calls().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_refused_or_cost_nothing_frees_its_name() {
    let harness = Harness::builder().balance("0").start().await;
    let (alice, path) = (&harness.client, "/v1/chat/completions");
    let body = chat("sim:words-16", &json!({}));
    call(alice, "n", path, &body).await.expect(429);
    call(alice, "n", path, &json!({"model": "no-such", "messages": []}))
        .await
        .expect(404);
    call(alice, "n", path, &json!({"messages": []})).await.expect(400);
    harness.operate("user credit alice 5");
    for play in ["500", "400", "429", "refuse"] {
        let fails = chat(&format!("sim:{play}"), &json!({}));
        let before = harness.served().len();
        for _ in 0..2 {
            let failed = call(alice, "n", path, &fails).await;
            assert!(failed.status.as_u16() >= 400, "{play}");
        }
        assert!(harness.served().len() >= before + 2, "{play}: made again");
    }
    let first = call(alice, "n", path, &body).await.expect(200);
    let done = is_final(call(alice, "n", path, &body).await, path, "already_done");
    assert_eq!(done["exchange"], first.exchange());
    let books = harness.finish().await;
    let charged = books.exchanges.iter().filter(|row| row.charge.nanos() > 0);
    assert_eq!(charged.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_client_left_frees_its_name_when_nothing_is_charged_and_keeps_it_when_something_is() {
    let gate = Gate::closed();
    let harness = Harness::builder().playwright(gated(&gate)).start().await;
    let path = "/v1/chat/completions";
    for (number, (play, is_charged)) in [("sim:words-16", true), ("sim:500", false)].into_iter().enumerate() {
        let (client, body) = (harness.client.clone(), chat(play, &json!({})));
        let name = format!("call {number}");
        let leaves = begin(&harness.client, &name, path, &body);
        harness.simulator.arrived(number + 1).await;
        drop(leaves);
        runs(call(&client, &name, path, &body).await);
        gate.let_through(1);
        if is_charged {
            is_final(
                when_it_does_not_run(&client, &name, path, &body).await,
                path,
                "already_done",
            );
        } else {
            let other = chat("sim:words-1", &json!({}));
            harness.simulator.ended(u64::try_from(number).expect("small")).await;
            let waits = async {
                while harness.user().held.nanos() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, waits).await.expect("it is released");
            gate.let_through(1);
            call(&client, &name, path, &other).await.expect(200);
            is_final(call(&client, &name, path, &other).await, path, "already_done");
        }
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_frees_the_names_of_what_ran_and_of_nothing_that_was_charged() {
    let office = Office::new("").await;
    let mut serving = office.serve();
    let client = office.client(&serving);
    let (path, body) = ("/v1/chat/completions", chat("Hello", &json!({"stream": true})));
    office.gate.let_through(1);
    call(&client, "done", path, &body).await.expect(200);
    let running = client
        .request(reqwest::Method::POST, path)
        .header("idempotency-key", "running");
    let mut running = running.body(body.to_string()).send().await.expect("a head");
    running.chunk().await.expect("a piece").expect("not the end");
    runs(call(&client, "running", path, &body).await);
    serving.signal(Signal::KILL);
    serving.end().await;
    office.gate.open();

    let serving = office.serve();
    let client = Client {
        base_url: serving.url.clone(),
        ..client
    };
    is_final(call(&client, "done", path, &body).await, path, "already_done");
    call(&client, "running", path, &body).await.expect(200);
    is_final(call(&client, "running", path, &body).await, path, "already_done");
    serving.stop().await;
    let books = crate::books::Books::checked(&office.database());
    let charged = books.exchanges.iter().filter(|row| row.charge.nanos() > 0);
    assert_eq!((charged.count(), books.exchanges.len()), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_done_is_told_as_that_whatever_it_would_be_refused_for_by_now() {
    for records in ["", RECORDS] {
        let harness = Harness::builder().settings(records).start().await;
        let (id, user) = (harness.client.key_id, harness.client.user);
        let (by, store) = (Actor("test".to_owned()), harness.store.clone());
        let may_use = |models: &str| {
            let change = KeyChange {
                models: Some(vec![models.to_owned()]),
                ..KeyChange::default()
            };
            let changed = store.change_key(id, &change, &by, now());
            assert!(matches!(changed, Outcome::Committed(_)), "{changed:?}");
        };
        let is = |status| {
            let changed = store.set_user_status(user, status, &by, now());
            assert!(matches!(changed, Outcome::Committed(_)), "{changed:?}");
        };
        for (number, (path, body)) in calls().into_iter().enumerate() {
            let name = format!("call {number}");
            let first = call(&harness.client, &name, path, &body).await.expect(200);
            for code in ["model_not_found", "user_suspended"] {
                match code {
                    "model_not_found" => may_use("gpt-none"),
                    _ => is(UserStatus::Suspended),
                }
                let again = call(&harness.client, &name, path, &body).await;
                if records.is_empty() {
                    let done = is_final(again, path, "already_done");
                    assert_eq!(done["exchange"], first.exchange(), "{code}");
                } else {
                    is_again(&again, &first);
                }
                let mut other = body.clone();
                other["user"] = json!("somebody");
                let mismatch = call(&harness.client, &name, path, &other).await;
                is_final(mismatch, path, "idempotency_mismatch");
                for fresh in ["a name", "another"] {
                    let fresh = call(&harness.client, fresh, path, &body).await.json();
                    assert_eq!(fresh["error"]["gateway"]["code"], code, "{path}");
                }
                may_use("*");
            }
            is(UserStatus::Active);
        }
        assert_eq!(harness.finish().await.exchanges.len(), calls().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_done_is_told_as_that_when_nobody_serves_its_model_any_more() {
    let office = Office::new("").await;
    office.gate.open();
    let serving = office.serve();
    let client = office.client(&serving);
    let (path, body) = ("/v1/chat/completions", chat("Hello", &json!({})));
    let first = call(&client, "done", path, &body).await.expect(200);
    serving.stop().await;
    office.replace("name = \"first\"", "name = \"second\"\nmodels = [\"gpt-none\"]");
    let serving = office.serve();
    let client = Client {
        base_url: serving.url.clone(),
        ..client
    };
    let done = is_final(call(&client, "done", path, &body).await, path, "already_done");
    assert_eq!(done["exchange"], first.exchange());
    call(&client, "new", path, &body).await.expect(404);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_though_a_hold_cannot_be_released_and_its_name_stays_taken() {
    let office = Office::new("").await;
    let mut serving = office.serve();
    let client = office.client(&serving);
    let (path, body) = ("/v1/chat/completions", chat("Hello", &json!({"stream": true})));
    let mut ids = Vec::new();
    let mut answers = Vec::new();
    for name in ["stuck", "free"] {
        let running = client
            .request(reqwest::Method::POST, path)
            .header("idempotency-key", name);
        let mut running = running.body(body.to_string()).send().await.expect("a head");
        running.chunk().await.expect("a piece").expect("not the end");
        ids.push(exchange_of(&running));
        answers.push(running);
    }
    serving.signal(Signal::KILL);
    serving.end().await;
    office.gate.open();
    office.alter(&format!(
        "CREATE TRIGGER never BEFORE INSERT ON usage_logs WHEN NEW.exchange_id = x'{}'
         BEGIN SELECT RAISE(ABORT, 'it is stuck'); END",
        ids[0].replace('-', "")
    ));

    let serving = office.serve();
    let client = Client {
        base_url: serving.url.clone(),
        ..client
    };
    let said = serving.said();
    let told = said.lines().find(|line| line.contains("it is stuck"));
    assert!(told.is_some_and(|line| line.contains(&ids[0])), "{said}");
    runs(call(&client, "stuck", path, &body).await);
    call(&client, "free", path, &body).await.expect(200);
    serving.stop().await;
    office.alter("DROP TRIGGER never");
    office.serve().stop().await;
    crate::books::Books::checked(&office.database());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_one_line_of_printable_characters() {
    let harness = Harness::start().await;
    let (path, body) = &calls()[0];
    let asking = |names: &[&[u8]]| {
        let mut request = harness.client.request(reqwest::Method::POST, path);
        for name in names {
            let name = http::HeaderValue::from_bytes(name).expect("a value");
            request = request.header("idempotency-key", name);
        }
        let request = request
            .header("content-type", "application/json")
            .body(body.to_string());
        async move { Answer::of(request.send().await.expect("the gateway answers")).await }
    };
    let long = [b'n'; 256];
    for names in [&[&b""[..]][..], &[&long], &[b"a\tb"], &["ä".as_bytes()], &[b"a", b"a"]] {
        let error = asking(names).await.expect(400).json()["error"].clone();
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("invalid_value"), &json!("Idempotency-Key"))
        );
    }
    assert_eq!(harness.served().len(), 0);
    asking(&[&long[1..]]).await.expect(200);
    asking(&[b"~ !"]).await.expect(200);
    harness.finish().await;
}

/// Answers are recorded.
const RECORDS: &str = "[billing]\nrecord_answers = true";

/// The headers of an answer without those of its connection.
fn head(answer: &Answer) -> http::HeaderMap {
    let mut headers = answer.headers.clone();
    for name in ["date", "content-length", "transfer-encoding", "idempotent-replayed"] {
        headers.remove(name);
    }
    headers
}

/// The same answer once more.
fn is_again(again: &Answer, first: &Answer) {
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(head(again), head(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_answer_comes_again_byte_for_byte_and_lies_in_no_file_in_the_clear() {
    let harness = Harness::builder().settings(RECORDS).start().await;
    let (alice, name) = (&harness.client, "a name for the call");
    for (number, (path, body)) in calls().into_iter().enumerate() {
        let (name, body) = (
            format!("{name} {number}"),
            body.to_string().replace("sim:words-16", "a waterfall here"),
        );
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let first = call(alice, &name, path, &body).await.expect(200);
        assert_eq!(first.header("idempotent-replayed"), "");
        assert!(
            path.ends_with("embeddings") || first.text().contains("simulated"),
            "{}",
            first.text()
        );
        for _ in 0..2 {
            is_again(&call(alice, &name, path, &body).await, &first);
        }
        let mut other = body.clone();
        other["user"] = json!("somebody");
        is_final(call(alice, &name, path, &other).await, path, "idempotency_mismatch");
        assert_eq!(harness.served().len(), number + 1);
    }
    alice.chat("without a name").await.expect(200);
    let database = harness.database();
    let mut files: Vec<u8> = Vec::new();
    for end in ["", "-wal"] {
        files.extend(std::fs::read(format!("{}{end}", database.display())).expect("a file"));
    }
    for secret in [name, "waterfall", "simulated"] {
        assert_eq!(memchr::memmem::find(&files, secret.as_bytes()), None, "{secret}");
    }
    assert_eq!(harness.finish().await.exchanges.len(), calls().len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_its_client_did_not_wait_for_is_recorded_too() {
    let gate = Gate::closed();
    let harness = Harness::builder()
        .settings(RECORDS)
        .playwright(gated(&gate))
        .start()
        .await;
    for (number, (path, body)) in calls().into_iter().enumerate() {
        let name = format!("call {number}");
        let leaves = begin(&harness.client, &name, path, &body);
        harness.simulator.arrived(number + 1).await;
        drop(leaves);
        runs(call(&harness.client, &name, path, &body).await);
        gate.let_through(1);
        // Between its charge and its recording it is told that it is done.
        let asking = async {
            loop {
                let answer = call(&harness.client, &name, path, &body).await;
                if answer.status == 200 {
                    return answer;
                }
            }
        };
        let first = tokio::time::timeout(PATIENCE, asking).await.expect("it is recorded");
        is_again(&call(&harness.client, &name, path, &body).await, &first);
    }
    assert_eq!(harness.finish().await.exchanges.len(), calls().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_is_a_day_old_or_damaged_is_not_given_out() {
    let harness = Harness::builder().settings(RECORDS).start().await;
    let (path, body) = &calls()[1];
    for (name, change) in [
        ("old", "recorded_at = recorded_at - 86400000000"),
        ("damaged", "sealed = zeroblob(length(sealed))"),
        ("cut off", "sealed = x'00'"),
    ] {
        let first = call(&harness.client, name, path, body).await.expect(200);
        is_again(&call(&harness.client, name, path, body).await, &first);
        harness.alter(&format!("UPDATE recordings SET {change}"));
        let done = is_final(call(&harness.client, name, path, body).await, path, "already_done");
        assert_eq!(done["exchange"], first.exchange());
    }
    assert_eq!(harness.finish().await.exchanges.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_long_or_broke_off_is_not_recorded() {
    let long = "x".repeat(9 * 1024 * 1024);
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
    let message = json!({"role": "assistant", "content": long});
    let long = Script::json(
        http::StatusCode::OK,
        &json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}),
    );
    let inner = standard(Pace::default());
    let playwright: Playwright = Arc::new(move |request: &Request| match request.streamed() {
        true => inner(request),
        false => long.clone(),
    });
    let harness = Harness::builder()
        .settings(RECORDS)
        .playwright(playwright)
        .start()
        .await;
    let path = "/v1/chat/completions";
    for (name, body) in [
        ("long", chat("Hello", &json!({}))),
        ("broken", chat("sim:cut", &json!({"stream": true}))),
    ] {
        let first = call(&harness.client, name, path, &body).await.expect(200);
        let done = is_final(call(&harness.client, name, path, &body).await, path, "already_done");
        assert_eq!(done["exchange"], first.exchange());
    }
    assert_eq!(harness.finish().await.exchanges.len(), 2);
}
