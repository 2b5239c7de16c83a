//! Events: what is settled and what moves a balance reaches every sink, at least once and in order, whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use codex_gateway::store::UserId;
use futures_util::future::join_all;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::books::Books;
use crate::client::{Client, chat};
use crate::harness::{Builder, Harness};

/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reading is free and a token written costs 1/16 dollar: 16 tokens are exactly a dollar.
const DOLLAR: &str = r#"{"kind":"text","rates":{"input":"0","output":"62500"},"max_input":100000,"max_output":1000}"#;

const SECRET: &str = "a secret that both know";

/// A request of the gateway.
#[derive(Clone, Debug)]
struct Posted {
    headers: HeaderMap,
    body: Bytes,
}

/// What a receiver does with a request.
#[derive(Clone, Debug)]
enum Does {
    Answer(StatusCode, &'static [(&'static str, &'static str)]),
    Hang,
}

/// A receiver of webhooks. It answers as it is told, and then 200.
struct Receiver {
    url: String,
    inner: Arc<Inner>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Inner {
    posted: watch::Sender<Vec<Posted>>,
    does: Vec<Does>,
}

impl Receiver {
    async fn start(does: Vec<Does>) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/events?a=b", listener.local_addr().expect("an address"));
        let inner = Arc::new(Inner {
            posted: watch::Sender::new(Vec::new()),
            does,
        });
        let router = Router::new().fallback(take).with_state(Arc::clone(&inner));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                served = async { axum::serve(listener, router).await } => served.expect("it serves"),
            }
        });
        Receiver {
            url,
            inner,
            stop,
            tasks,
        }
    }

    /// Everything that was posted, once it is as wanted.
    async fn once(&self, wanted: impl Fn(&[Posted]) -> bool) -> Vec<Posted> {
        let mut posted = self.inner.posted.subscribe();
        let seen = tokio::time::timeout(PATIENCE, posted.wait_for(|posted| wanted(posted))).await;
        match seen {
            Ok(posted) => posted.expect("the receiver lives").clone(),
            Err(_) => panic!("{:#?}", self.events()),
        }
    }

    /// The events that were posted, once there are so many different ones.
    async fn once_there_are(&self, count: usize) -> Vec<Value> {
        let ids = |posted: &[Posted]| {
            events(posted)
                .iter()
                .map(|event| event["id"].to_string())
                .collect::<BTreeSet<_>>()
        };
        events(&self.once(|posted| ids(posted).len() >= count).await)
    }

    fn events(&self) -> Vec<Value> {
        events(&self.inner.posted.borrow())
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn take(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut number = 0;
    inner.posted.send_modify(|posted| {
        number = posted.len();
        posted.push(Posted { headers, body });
    });
    match inner.does.get(number) {
        Some(Does::Hang) => std::future::pending().await,
        Some(Does::Answer(status, headers)) => {
            let mut answer = Response::builder().status(*status);
            for (name, value) in *headers {
                answer = answer.header(*name, *value);
            }
            answer.body("no".into()).expect("an answer")
        }
        None => Response::new("thanks".into()),
    }
}

fn events(posted: &[Posted]) -> Vec<Value> {
    let of = |posted: &Posted| -> Vec<Value> {
        let body: Value = serde_json::from_slice(&posted.body).expect("JSON");
        body["events"].as_array().expect("events").clone()
    };
    posted.iter().flat_map(of).collect()
}

/// HMAC by its definition (RFC 2104), beside the gateway's.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let hash = |pad: u8, message: &[u8]| {
        let mut hash = Sha256::new();
        hash.update(block.map(|byte| byte ^ pad));
        hash.update(message);
        hash.finalize().to_vec()
    };
    hash(0x5c, &hash(0x36, message))
}

fn assert_signed(posted: &Posted) {
    let header = |name: &str| posted.headers[name].to_str().expect("text").to_owned();
    let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
    let mut message = format!("{id}.{at}.").into_bytes();
    message.extend_from_slice(&posted.body);
    let expected = base64::engine::general_purpose::STANDARD.encode(hmac(SECRET.as_bytes(), &message));
    assert_eq!(header("webhook-signature"), format!("v1,{expected}"));
    let last = events(std::slice::from_ref(posted)).pop().expect("an event");
    assert_eq!(last["id"], id.as_str(), "it is that of its last event");
    assert_eq!(header("content-type"), "application/json");
}

fn webhook(name: &str, url: &str, more: &str) -> String {
    format!("[[sink]]\nname = \"{name}\"\nurl = \"{url}\"\nsecret = \"{SECRET}\"\nallow_private = true\n{more}\n")
}

fn builder(settings: &str) -> Builder {
    Harness::builder().settings(settings).price("dollar", DOLLAR)
}

/// A call that costs a dollar.
fn a_dollar() -> Value {
    chat("sim:words-100", &json!({"model": "dollar", "max_tokens": 16}))
}

async fn spend_a_dollar(client: &Client) {
    client.post("/v1/chat/completions", &a_dollar()).await.expect(200);
}

fn of_type<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

fn nanos(amount: &Value) -> i128 {
    let amount: codex_gateway::money::Usd = amount.as_str().expect("a text").parse().expect("an amount");
    i128::from(amount.nanos())
}

/// Every event once, in the order in which they came first; of each user's, what came first came in order.
fn first_times(events: &[Value]) -> Vec<Value> {
    let mut seen = BTreeMap::<i64, Value>::new();
    let mut last = BTreeMap::<String, i64>::new();
    for event in events {
        let seq = event["seq"].as_i64().expect("a number");
        if let Some(before) = seen.get(&seq) {
            assert_eq!(before, event, "it is the same whenever it is sent");
            continue;
        }
        let newest = last.entry(event["user"]["id"].to_string()).or_default();
        assert!(*newest < seq, "{event} came after {newest}");
        *newest = seq;
        seen.insert(seq, event.clone());
    }
    seen.into_values().collect()
}

/// That events tell of every exchange and of all the money in the books, and of nothing else.
fn assert_complete(events: &[Value], books: &Books) {
    let events = first_times(events);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut told = BTreeMap::new();
    for kind in ["exchange.settled", "exchange.released"] {
        for event in of_type(&events, kind) {
            let data = &event["data"];
            assert_eq!(kind == "exchange.settled", data["charge"] != "0", "{event}");
            assert!(
                told.insert(text(&data["id"]), nanos(&data["charge"])).is_none(),
                "{event}"
            );
        }
    }
    let charged = |row: &codex_gateway::store::usage_log::ExchangeRow| {
        i128::from(row.charge.nanos()) - i128::from(row.uncollected.nanos())
    };
    let written: BTreeMap<_, _> = books
        .exchanges
        .iter()
        .map(|row| (row.id.0.to_string(), charged(row)))
        .collect();
    assert_eq!(told, written);
    let mut balances = BTreeMap::<UserId, i128>::new();
    for event in of_type(&events, "balance.changed") {
        let user = UserId(text(&event["user"]["id"]).parse().expect("an id"));
        let balance = balances.entry(user).or_default();
        *balance += nanos(&event["data"]["amount"]);
        assert_eq!(*balance, nanos(&event["data"]["balance_after"]), "{event}");
    }
    let users = books
        .users
        .iter()
        .map(|user| (user.id, i128::from(user.balance.nanos())));
    assert_eq!(balances, users.collect());
}

/// Waits until something is so; it is looked at again and again.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_exchange_and_every_entry_reaches_webhooks_and_files_in_order() {
    let receiver = Receiver::start(Vec::new()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.jsonl");
    let file = format!("[[sink]]\nname = \"file\"\nfile = {path:?}\n");
    let mut harness = builder(&(webhook("hook", &receiver.url, "") + &file))
        .balance("20")
        .start()
        .await;
    let bob = harness.add_client("bob", "20");
    let calls = (0..30).map(|n| {
        let client = if n % 2 == 0 { &harness.client } else { &bob };
        async move {
            match n % 5 {
                0 => drop(client.post("/v1/chat/completions", &chat("sim:400", &json!({}))).await),
                1 => spend_a_dollar(client).await,
                _ => drop(client.chat("hello").await.expect(200)),
            }
        }
    });
    join_all(calls).await;
    harness.operate("user credit bob 3.000000001 --reference r --note thanks");
    let settled = harness.client.chat("hello").await.expect(200);
    harness.operate(&format!("refund {}", settled.header("x-request-id")));
    harness.stop().await;
    // What was not sent before the stop is sent after the next start.
    harness.start_again().await;
    let store = harness.store.clone();
    until("both have all", || {
        store.sinks().expect("read").iter().all(|sink| sink.waiting == 0)
    })
    .await;
    assert!(
        store
            .sinks()
            .expect("read")
            .iter()
            .all(|sink| sink.failing.is_none() && sink.lost == 0)
    );
    let posted = receiver.once(|posted| !posted.is_empty()).await;
    posted.iter().for_each(assert_signed);
    let books = harness.finish().await;
    let by_hook = events(&posted);
    assert_complete(&by_hook, &books);
    let lines = fs::read_to_string(&path).expect("a file");
    let by_file: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_complete(&by_file, &books);
    let credit = of_type(&by_hook, "balance.changed")
        .into_iter()
        .find(|event| event["data"]["reference"] == "r");
    assert_eq!(credit.expect("it is told")["data"]["note"], "thanks");
    assert_eq!(
        first_times(&by_hook)
            .iter()
            .filter(|event| event["data"]["kind"] == "refund")
            .count(),
        1
    );
    for secret in [SECRET, "hello", "sim:words", &bob.key, "sk-upstream"] {
        assert!(!lines.contains(secret), "no prompt, key or answer is told");
    }
    receiver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_gets_the_same_again_and_a_redirect_is_not_followed() {
    let elsewhere = Receiver::start(Vec::new()).await;
    let location: &'static str = Box::leak(elsewhere.url.clone().into_boxed_str());
    let headers: &'static [(&str, &str)] = Box::leak(Box::new([("location", location)]));
    let does = vec![
        Does::Answer(StatusCode::INTERNAL_SERVER_ERROR, &[]),
        Does::Answer(StatusCode::TEMPORARY_REDIRECT, headers),
        Does::Hang,
    ];
    let receiver = Receiver::start(does).await;
    let mut harness = builder(&webhook("hook", &receiver.url, "")).start().await;
    let store = harness.store.clone();
    receiver.once(|posted| !posted.is_empty()).await;
    let failing = || store.sinks().expect("read").remove(0).failing;
    until("it is written down", || failing().is_some()).await;
    spend_a_dollar(&harness.client).await;
    receiver.once(|posted| posted.len() == 3).await;
    assert!(failing().expect("it fails").1.contains("redirect"), "{:?}", failing());
    // It is stopped after it sent and before it was told that the events arrived.
    harness.stop().await;
    harness.start_again().await;
    let told = receiver.once_there_are(3).await;
    until("it works again", || failing().is_none()).await;
    let ids = |posted: &Posted| events(std::slice::from_ref(posted));
    let posted = receiver.once(|posted| posted.len() >= 4).await;
    posted.iter().for_each(assert_signed);
    let first = &ids(&posted[0])[0];
    assert!(
        posted[..4].iter().all(|posted| &ids(posted)[0] == first),
        "nothing goes before it"
    );
    assert_eq!(elsewhere.events(), Vec::<Value>::new());
    // As a restored backup does, it sends again what it does not know to be sent.
    harness.stop().await;
    harness.alter("UPDATE sinks SET delivered = 0");
    let before = receiver.events().len();
    harness.start_again().await;
    let again = receiver.once(|posted| events(posted).len() > before).await;
    assert_eq!(events(&again).last(), told.last(), "the newest is always there");
    let books = harness.finish().await;
    assert_complete(&receiver.events(), &books);
    receiver.end().await;
    elsewhere.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_hangs_keeps_neither_calls_nor_the_others_waiting() {
    let (stuck, good) = (
        Receiver::start(vec![Does::Hang; 100]).await,
        Receiver::start(Vec::new()).await,
    );
    let settings = webhook("stuck", &stuck.url, "") + &webhook("good", &good.url, "types = [\"exchange.settled\"]");
    let harness = builder(&settings).start().await;
    stuck.once(|posted| !posted.is_empty()).await;
    for _ in 0..3 {
        spend_a_dollar(&harness.client).await;
    }
    let told = good.once_there_are(3).await;
    assert_eq!(
        of_type(&told, "exchange.settled").len(),
        told.len(),
        "it asked for these"
    );
    let store = harness.store.clone();
    let waiting = || -> Vec<i64> { store.sinks().expect("read").iter().map(|sink| sink.waiting).collect() };
    until("the other one has all that it wants", || waiting()[0] == 0).await;
    assert_eq!(waiting(), [0, 7], "and what waits for the other stays");
    harness.finish().await;
    stuck.end().await;
    good.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_not_connected_to_unless_it_is_allowed() {
    let receiver = Receiver::start(Vec::new()).await;
    let by_name = receiver.url.replace("127.0.0.1", "localhost");
    let refused = webhook("hook", &by_name, "").replace("allow_private = true", "");
    let harness = builder(&refused).start().await;
    let store = harness.store.clone();
    let failing = || store.sinks().expect("read").remove(0).failing;
    until("it is refused", || failing().is_some()).await;
    assert!(
        failing().expect("it fails").1.contains("allow_private"),
        "{:?}",
        failing()
    );
    assert_eq!(receiver.events(), Vec::<Value>::new());
    harness.finish().await;
    let harness = builder(&webhook("hook", &by_name, "")).start().await;
    receiver.once_there_are(1).await;
    harness.finish().await;
    receiver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_balance_and_a_spent_budget_are_told_once() {
    let receiver = Receiver::start(Vec::new()).await;
    let settings = "[events]\nlow_balance = \"3\"\n".to_owned()
        + &webhook("hook", &receiver.url, "types = [\"balance.low\", \"budget.spent\"]");
    let harness = builder(&settings).start().await;
    harness.operate("user set alice --budget 4");
    let limited = harness.issue("--budget 2/day");
    spend_a_dollar(&limited).await;
    spend_a_dollar(&harness.client).await;
    spend_a_dollar(&limited).await;
    // The balance is two dollars now, and low; the key's budget is spent.
    spend_a_dollar(&harness.client).await;
    // The user's as well.
    harness.operate("user credit alice 0.5");
    harness.operate("user credit alice 5");
    harness.operate("user credit alice -4 --adjust");
    let told = receiver.once_there_are(4).await;
    let books = harness.finish().await;
    assert_eq!(books.users[0].balance.to_string(), "2.5");
    assert_eq!(receiver.events().len(), 4, "{:#?}", receiver.events());
    let low: Vec<_> = of_type(&told, "balance.low")
        .iter()
        .map(|event| event["data"].clone())
        .collect();
    let at = |balance: &str| json!({"balance": balance, "low_balance": "3"});
    assert_eq!(low, [at("2"), at("2.5")]);
    let spent: Vec<_> = of_type(&told, "budget.spent")
        .iter()
        .map(|event| event["data"].clone())
        .collect();
    assert_eq!(spent.len(), 2, "{spent:#?}");
    assert_eq!((&spent[0]["of"], &spent[0]["period"]), (&json!("key"), &json!("day")));
    assert_eq!(spent[0]["key"], limited.key_id.0.to_string());
    let of_user = json!({"of": "user", "key": null, "period": "total", "limit": "4", "spent": "4", "left": "0",
        "resets_at": null});
    assert_eq!(spent[1], of_user);
    receiver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_that_wait_the_oldest_are_lost_and_counted() {
    let receiver = Receiver::start(Vec::new()).await;
    let settings = "[events]\nmax_waiting = 1000\n".to_owned() + &webhook("hook", &receiver.url, "");
    let mut harness = builder(&settings).start().await;
    let store = harness.store.clone();
    until("the first has arrived", || {
        store.sinks().expect("read")[0].delivered == 1
    })
    .await;
    harness.stop().await;
    harness.alter(
        "INSERT INTO events (seq, id, user_id, type, at, data)
         WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1501)
         SELECT i, randomblob(16), (SELECT id FROM users), 'x.y', 0, '{}' FROM n",
    );
    harness.start_again().await;
    let told = receiver.once_there_are(1001).await;
    let seqs: Vec<_> = told[1..].iter().filter_map(|event| event["seq"].as_i64()).collect();
    assert!(
        seqs.iter().copied().eq(502..=1501),
        "{:?} to {:?}",
        seqs.first(),
        seqs.last()
    );
    until("they are gone", || {
        store.events_behind(0, 9).expect("read").0.len() == 1
    })
    .await;
    assert_eq!(store.sinks().expect("read")[0].lost, 500);
    harness.finish().await;
    receiver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_holds_also_while_a_receiver_asks_to_wait() {
    let does = Does::Answer(StatusCode::SERVICE_UNAVAILABLE, &[("retry-after", "3600")]);
    let receiver = Receiver::start(vec![does]).await;
    let settings = "[events]\nmax_waiting = 1000\n".to_owned() + &webhook("hook", &receiver.url, "");
    let harness = builder(&settings).start().await;
    let store = harness.store.clone();
    until("it fails", || store.sinks().expect("read")[0].failing.is_some()).await;
    harness.alter(
        "INSERT INTO events (seq, id, user_id, type, at, data)
         WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1501)
         SELECT i, randomblob(16), (SELECT id FROM users), 'x.y', 0, '{}' FROM n",
    );
    until("the oldest are lost", || store.sinks().expect("read")[0].lost == 501).await;
    harness.finish().await;
    receiver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_sent_to_a_sink_to_see_whether_it_arrives() {
    let does = Does::Answer(StatusCode::FORBIDDEN, &[]);
    let receiver = Receiver::start(vec![does]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = folder.path().join("gateway.toml");
    let file = "[[sink]]\nname = \"archive\"\nfile = \"events.jsonl\"\n";
    let upstream = "[[upstream]]\nname = \"x\"\nbase_url = \"http://127.0.0.1:9/v1\"\nprices = \"free\"\n";
    fs::write(&settings, webhook("hook", &receiver.url, "") + file + upstream).expect("written");
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o600)).expect("it holds a secret");
    let run = async |name: &'static str| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        program
            .env_clear()
            .env("HOME", folder.path())
            .current_dir(folder.path());
        program.args(["sink", "test", name, "--json"]);
        let ran = tokio::task::spawn_blocking(move || program.output()).await;
        let ran = ran.expect("it does not panic").expect("the program starts");
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let (code, said) = run("hook").await;
    assert!(code == Some(7) && said.contains("403"), "{said}");
    for name in ["hook", "archive"] {
        let (code, said) = run(name).await;
        assert_eq!(code, Some(0), "{said}");
    }
    let (code, said) = run("hok").await;
    assert!(code == Some(5) && said.contains("hook"), "{said}");
    let posted = receiver.inner.posted.borrow().last().cloned().expect("two came");
    let told: Value = serde_json::from_slice(&posted.body).expect("JSON");
    let line = fs::read_to_string(folder.path().join("events.jsonl")).expect("a line");
    let line: Value = serde_json::from_str(&line).expect("JSON");
    for event in [&told["events"][0], &line] {
        assert_eq!((&event["type"], &event["seq"]), (&json!("sink.test"), &json!(0)));
    }
    receiver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sink_nothing_is_written() {
    let harness = Harness::start().await;
    harness.client.chat("hello").await.expect(200);
    harness.operate("user credit alice 1");
    let (events, newest) = harness.store.events_behind(0, 9).expect("read");
    assert_eq!((events.len(), newest), (0, 0));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_each_sink_is_is_listed_and_the_doctor_warns_of_one_that_fails() {
    let does = Does::Answer(StatusCode::SERVICE_UNAVAILABLE, &[("retry-after", "3600")]);
    let receiver = Receiver::start(vec![does]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let archive = format!(
        "[[sink]]\nname = \"archive\"\nfile = {:?}\n",
        folder.path().join("events")
    );
    let hook = webhook("hook", &receiver.url, "types = [\"balance.changed\"]");
    let harness = builder(&(hook.clone() + &archive)).start().await;
    let store = harness.store.clone();
    until("one has it, and one fails", || {
        let sinks = store.sinks().expect("read");
        sinks[0].delivered == 1 && sinks[1].failing.is_some()
    })
    .await;
    // The settings have another one now, and one less.
    let next = archive.replace("archive", "next");
    let upstream = "[[upstream]]\nname = \"x\"\nbase_url = \"http://127.0.0.1:9/v1\"\nprices = \"free\"\n";
    let settings = folder.path().join("gateway.toml");
    fs::write(&settings, hook + &next + upstream).expect("written");
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o600)).expect("it holds a secret");
    let listed = harness.operate(&format!("sink list --config {}", settings.display()));
    let items = listed["items"].as_array().expect("a list");
    let of = |field: &str| items.iter().map(|item| item[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("name"), ["hook", "next", "archive"]);
    assert_eq!(of("delivered"), [json!(0), Value::Null, json!(1)]);
    assert_eq!(of("waiting"), [1, 0, 0]);
    assert_eq!(of("types"), [json!(["balance.changed"]), json!([]), json!([])]);
    let to = of("to");
    assert!(to[0].as_str().is_some_and(|to| to.ends_with("/••••")), "{to:?}");
    assert_eq!(to[2], Value::Null);
    let failure = items[0]["failure"].as_str().expect("why");
    assert!(
        failure.contains("503") && items[0]["failing_since"].is_string(),
        "{failure}"
    );
    let found = harness.operate(&format!("doctor --offline --config {}", settings.display()));
    let checks = found["checks"].as_array().expect("checks").iter();
    let sinks: Vec<_> = checks.filter(|check| check["name"] == "sinks").collect();
    let states: Vec<_> = sinks.iter().map(|check| check["state"].clone()).collect();
    assert_eq!(states, ["ok", "warning"], "{sinks:#?}");
    assert!(sinks[1]["what"].as_str().is_some_and(|what| what.contains("503")));
    harness.finish().await;
    receiver.end().await;
}
