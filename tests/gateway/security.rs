//! The controls of SECURITY.md that no other promise covers: what strangers write stays data, and what is secret stays.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use codex_gateway::key::GatewayKey;
use codex_gateway::limits::Rates;
use codex_gateway::money::Usd;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Playwright, Request, Script, Simulator};
use codex_gateway::store::entries::Credit;
use codex_gateway::store::users::NewUser;
use codex_gateway::store::{Actor, UserId};
use codex_gateway::time;
use futures_util::StreamExt;
use http::{Method, StatusCode};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use uuid::Uuid;

use crate::books::Books;
use crate::cli::ended;
use crate::client::{Answer, Client, FROM_ANYWHERE, MODEL, chat, http, nth_address, response};
use crate::harness::{Harness, committed};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has been an order somewhere to some program.
const ORDERS: [&str; 28] = [
    "' OR '1'='1",
    "' OR 1=1 --",
    "'; DROP TABLE users; --",
    "'; UPDATE users SET balance_nanos = 9000000000000; --",
    "\" OR \"\"=\"",
    "') OR ('1'='1",
    "1; ATTACH DATABASE '/tmp/x' AS x; --",
    "' UNION SELECT hash FROM api_keys --",
    "x' AND randomblob(900000000) --",
    "%",
    "%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%",
    "_%_%_",
    "?1",
    ":id",
    "$1",
    "@x",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/x}",
    "$(reboot)",
    "`reboot`",
    "| reboot",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data",
    "<script>alert(1)</script>",
    "%s%n%x",
    "\\",
    "x\r\nX-Injected: yes",
];

/// Each of them as it is, quoted, commented, repeated and disguised.
fn corpus() -> Vec<String> {
    let dresses: [fn(&str) -> String; 18] = [
        str::to_owned,
        |order| format!("gpt-6.1-sol{order}"),
        |order| format!("{order}gpt-6.1-sol"),
        |order| format!("'{order}'"),
        |order| format!("\"{order}\""),
        |order| format!("`{order}`"),
        |order| format!("[{order}]"),
        |order| format!("/*{order}*/"),
        |order| format!("--{order}\n"),
        |order| format!("{order}\0{order}"),
        |order| format!("\u{feff}{order}"),
        |order| order.replace('\'', "\u{2019}"),
        |order| order.replace('\'', "''"),
        |order| order.replace(' ', "/**/"),
        |order| order.to_uppercase(),
        |order| order.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        |order| format!("alice{order}@example.org"),
        |order| order.repeat(100),
    ];
    ORDERS
        .iter()
        .flat_map(|order| dresses.map(|dress| dress(order)))
        .collect()
}

/// The schema, and the rows of every table that a client's words must not change.
#[expect(clippy::disallowed_methods, reason = "beside the store, to see what is there")]
fn state(database: &Path) -> Vec<String> {
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("it opens");
    let mut rows = Vec::new();
    for sql in [
        "SELECT type || name || coalesce(sql, '') FROM sqlite_master ORDER BY 1",
        "SELECT hex(id) || name || status || credit_line_nanos FROM users ORDER BY 1",
        "SELECT hex(hash) || prefix || coalesce(revoked_at, 0) || coalesce(expires_at, 0) FROM api_keys ORDER BY 1",
        "SELECT action || subject || coalesce(after, '') FROM audit_log ORDER BY seq",
    ] {
        let mut statement = conn.prepare(sql).expect(sql);
        let found = statement.query_map([], |row| row.get::<_, String>(0)).expect(sql);
        rows.extend(found.map(|row| row.expect(sql)));
    }
    rows
}

async fn status(request: reqwest::RequestBuilder) -> StatusCode {
    let answer = Answer::of(request.send().await.expect("an answer")).await;
    let text = answer.text().to_lowercase();
    assert!(!text.contains("sqlite") && !text.contains("syntax error"), "{text}");
    assert_eq!(answer.header("x-injected"), "");
    answer.status
}

/// One order in every place of a request that is looked up.
async fn order(harness: &Harness, nth: u32, words: &str) {
    let client = &harness.client;
    let model = client.request(Method::POST, "/v1/chat/completions");
    let named = status(model.json(&json!({"model": words, "messages": []}))).await;
    assert!(matches!(named.as_u16(), 400 | 404), "{words}: {named}");
    let path: String = words.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let shown = status(client.request(Method::GET, &format!("/v1/models/{path}"))).await;
    assert!(matches!(shown.as_u16(), 400 | 404), "{words}: {shown}");
    for more in [
        json!({"previous_response_id": words}),
        json!({"input": [{"type": "item_reference", "id": words}]}),
    ] {
        let leaning = client
            .request(Method::POST, "/v1/responses")
            .json(&response("Hello", &more));
        assert_eq!(status(leaning).await, 400, "{words}");
    }
    let key = http::HeaderValue::from_bytes(format!("Bearer {words}").as_bytes());
    if let Ok(key) = key {
        let stranger = client
            .http
            .get(format!("{}/v1/models", client.base_url))
            .header("x-forwarded-for", nth_address(nth))
            .header("authorization", key);
        assert_eq!(status(stranger).await, 401, "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_orders_in_every_field_are_words_and_nothing_more() {
    let harness = Harness::builder().settings(FROM_ANYWHERE).start().await;
    let corpus = corpus();
    assert!(corpus.len() >= 500, "{}", corpus.len());
    let before = state(&harness.database());
    let orders = futures_util::stream::iter((0..).zip(&corpus)).map(|(nth, words)| order(&harness, nth, words));
    orders.buffer_unordered(8).collect::<()>().await;
    assert!(harness.served().is_empty(), "none of it went upstream");
    let (store, alice) = (&harness.store, harness.user());
    for words in &corpus {
        assert_eq!(store.find_user(words).expect("it is looked up"), None, "{words}");
        assert!(store.find_keys(words).expect("it is looked up").is_empty(), "{words}");
        assert_eq!(store.find_exchange(words).expect("it is looked up"), None, "{words}");
    }
    assert!(state(&harness.database()) == before, "and nothing has changed");
    // Where words are kept, they are kept as they are.
    let nanos = |nanos| Usd::from_nanos(nanos);
    let operator = Actor("tester".into());
    for words in &corpus {
        let credit = Credit {
            user: alice.id,
            amount: nanos(1),
            adjustment: false,
            reference: Some(words.clone()),
            note: Some(words.clone()),
        };
        let (entry, ..) = committed(store.credit(&credit, &operator, time::now()));
        assert_eq!(
            (entry.reference.as_ref(), entry.note.as_ref()),
            (Some(words), Some(words))
        );
    }
    let name = "'; DROP TABLE users; --".to_owned();
    let new = NewUser {
        id: UserId(Uuid::now_v7()),
        name: name.clone(),
        email: None,
        credit_line: nanos(0),
        balance: nanos(1),
        budgets: Vec::new(),
        rates: Rates::default(),
    };
    committed(store.add_user(&new, &operator, time::now()));
    let found = store.find_user(&name).expect("it is looked up").expect("it is there");
    assert_eq!(found.id, new.id);
    let whole = json!({"user": corpus[2], "metadata": {"x": corpus[3]}, "safety_identifier": corpus[7]});
    harness
        .client
        .post("/v1/chat/completions", &chat(&corpus[4], &whole))
        .await
        .expect(200);
    let served = harness.served();
    assert_eq!(served[0].path, "/v1/chat/completions");
    assert_eq!(served[0].headers["host"], harness.simulator.address().to_string());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_by_all_of_it() {
    let harness = Harness::start().await;
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).expect("random numbers");
    let alices = GatewayKey::from_entropy(entropy);
    entropy[31] ^= 1;
    let (bobs, nobodys) = (GatewayKey::from_entropy(entropy), {
        entropy[31] ^= 2;
        GatewayKey::from_entropy(entropy)
    });
    assert_eq!(alices.reveal()[..45], bobs.reveal()[..45], "they begin alike");
    let issue = |name: &str, key: &GatewayKey| {
        harness.add_limited(name, |new| {
            new.prefix = key.prefix().to_owned();
            new.hash = key.hash();
        })
    };
    let with = |client: Client, key: &GatewayKey| Client {
        key: key.reveal().to_owned(),
        ..client
    };
    let alice = with(issue("alice-2", &alices), &alices);
    let bob = with(issue("bob", &bobs), &bobs);
    // Twice: from the database and from the cache.
    for _ in 0..2 {
        let ids =
            [alice.chat("Hello").await, bob.chat("Hello").await].map(|answer| answer.expect(200).exchange().to_owned());
        let users = ids.map(|id| harness.receipt(&id).user);
        assert_eq!(users, [alice.user, bob.user]);
        with(bob.clone(), &nobodys).chat("Hello").await.expect(401);
    }
    harness.finish().await;
}

/// Secrets that may be nowhere but where they were given.
const UPSTREAM_KEY: &str = "sk-canary-upstream-5d0c2f";
const UPSTREAM_HEADER: &str = "canary-header-8b31e7";
const PROMPT: &str = "canary-prompt-4c77a9";
const WRONG_KEY: &str = "canary-wrong-key-e05d13";

/// An upstream that tells everybody the credential it was sent, and fails in many ways.
fn talkative() -> Playwright {
    let inner = standard(Pace::default());
    Arc::new(move |request: &Request| {
        let script = inner(request);
        if script.status == StatusCode::OK {
            return script.header("x-echo", UPSTREAM_KEY).header("set-cookie", UPSTREAM_KEY);
        }
        let message = format!("Incorrect API key provided: {UPSTREAM_KEY} {UPSTREAM_HEADER}");
        let code = if script.status == StatusCode::TOO_MANY_REQUESTS {
            "insufficient_quota"
        } else {
            "invalid_api_key"
        };
        Script::json(
            script.status,
            &json!({"error": {"message": message, "type": code, "param": null, "code": code}}),
        )
    })
}

/// The real program at work in a directory of its own, saying all it can.
struct Program {
    home: tempfile::TempDir,
    child: Child,
    base_url: String,
}

impl Program {
    async fn start(upstream: &str, log: &str, env: &[(&str, &str)]) -> Program {
        let home = tempfile::tempdir().expect("a directory");
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[database]\npath = \"books.db\"\n[log]\nlevel = \"trace\"\nformat = \"{log}\"\n\
             [[upstream]]\nname = \"first\"\nbase_url = \"{upstream}\"\napi_key = \"env:CANARY\"\nprices = \"openai\"\n\
             headers = {{ x-team = \"{UPSTREAM_HEADER}\" }}\n"
        );
        fs::write(home.path().join("gateway.toml"), settings).expect("settings");
        let said = |name: &str| Stdio::from(fs::File::create(home.path().join(name)).expect("a file"));
        // Whatever the operator's mask is, files are their owner's.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 000; exec \"$0\" serve", env!("CARGO_BIN_EXE_gateway")]);
        Program::place(&mut command, home.path());
        command
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(said("stderr"))
            .kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .expect("in time")
            .expect("text");
        let line = line.unwrap_or_else(|| fs::read_to_string(home.path().join("stderr")).expect("text"));
        let base_url = line.strip_prefix("listening on ").expect(&line).to_owned();
        Program { home, child, base_url }
    }

    fn place(command: &mut Command, home: &Path) {
        command
            .env_clear()
            .env("HOME", home)
            .env("USER", "operator")
            .env("CANARY", UPSTREAM_KEY);
        command.current_dir(home).stdin(Stdio::null());
    }

    /// What a command prints, on both of its outputs.
    async fn says(&self, line: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        Program::place(&mut command, self.home.path());
        let ran = command.args(line.split_whitespace()).output().await.expect("it runs");
        let text = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(ran.status.success(), "{line}: {text:?}");
        text.concat()
    }

    async fn client(&self) -> Client {
        let document = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
        let user = document(self.says("user add alice --balance 5 --json").await);
        let key = document(self.says("key issue alice --json").await);
        let id = |of: &Value| of["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        Client {
            user: UserId(id(&user)),
            key_id: codex_gateway::store::KeyId(id(&key)),
            key: key["key"].as_str().expect("a key").to_owned(),
            base_url: self.base_url.clone(),
            http: http(),
        }
    }

    /// Stops it, and gives every file it left behind but the settings.
    async fn stop(mut self) -> (tempfile::TempDir, Vec<(PathBuf, Vec<u8>)>) {
        ended(&mut self.child, PATIENCE).await;
        let files = files(self.home.path());
        (self.home, files)
    }
}

/// Every file below a folder but the settings.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("gateway.toml") {
            let bytes = fs::read(&path).expect("a file");
            found.push((path, bytes));
        }
    }
    found
}

fn holds(bytes: &[u8], canary: &str) -> bool {
    bytes.windows(canary.len()).any(|window| window == canary.as_bytes())
}

/// Calls of every end, with the prompt in them; what the client was told.
async fn exercise(client: &Client) -> Vec<String> {
    let mut told = Vec::new();
    for play in [
        "",
        "sim:401",
        "sim:403",
        "sim:quota",
        "sim:500",
        "sim:refuse",
        "sim:cut",
        "sim:eof",
        "sim:error",
        "sim:broken-json",
    ] {
        let prompt = format!("{PROMPT} {play}");
        for (path, mut body) in [
            ("/v1/chat/completions", chat(&prompt, &json!({}))),
            ("/v1/responses", response(&prompt, &json!({"instructions": PROMPT}))),
        ] {
            for streamed in [false, true] {
                body["stream"] = streamed.into();
                let answer = client.send(path, &body).await;
                told.push(format!("{:?}", answer.headers()));
                told.push(String::from_utf8_lossy(&crate::client::drain(answer).await.0).into_owned());
            }
        }
    }
    for (path, body) in [
        ("/v1/chat/completions", format!("{{\"{PROMPT}")),
        ("/v1/responses", json!({"model": PROMPT, "input": PROMPT}).to_string()),
        (
            "/v1/embeddings",
            json!({"model": MODEL, "dimensions": PROMPT, "input": 5}).to_string(),
        ),
        (
            "/v1/responses",
            response(PROMPT, &json!({"previous_response_id": "resp_x"})).to_string(),
        ),
    ] {
        let answer = client.request(Method::POST, path).body(body).send().await;
        Answer::of(answer.expect("an answer")).await;
    }
    let stranger = Client {
        key: format!("sk-gw-{WRONG_KEY}"),
        ..client.clone()
    };
    told.push(stranger.chat(PROMPT).await.expect(401).text());
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_but_where_it_was_given() {
    let anywhere = ([127, 0, 0, 1], 0).into();
    let simulator = Simulator::start(anywhere, talkative(), Options::default())
        .await
        .expect("a port");
    for log in ["text", "json"] {
        let program = Program::start(&simulator.base_url(), log, &[]).await;
        let client = program.client().await;
        let told = exercise(&client).await;
        assert!(
            told.iter().any(|text| text.contains(PROMPT)),
            "the answers quote the prompt"
        );
        for text in &told {
            assert!(
                !text.contains(UPSTREAM_KEY) && !text.contains(UPSTREAM_HEADER),
                "a client was told: {text}"
            );
        }
        let mut said = Vec::new();
        for line in [
            "config show",
            "config check",
            "config show --json",
            "user show alice",
            "key list",
            "key list --json",
            "request list",
            "request list --json",
            "usage --json",
            "ledger list alice",
            "ledger verify",
        ] {
            said.push((PathBuf::from(line), program.says(line).await.into_bytes()));
        }
        let (home, files) = program.stop().await;
        let logged = files.iter().find(|(path, _)| path.ends_with("stderr")).expect("a log");
        assert!(
            holds(&logged.1, "settled") && holds(&logged.1, "TRACE"),
            "the log says all it can"
        );
        assert!(files.iter().any(|(path, _)| path.ends_with("books.db")));
        for (place, bytes) in files.iter().chain(&said) {
            for canary in [UPSTREAM_KEY, UPSTREAM_HEADER, PROMPT, WRONG_KEY, &client.key] {
                assert!(!holds(bytes, canary), "{canary} stands in {}", place.display());
            }
        }
        for (path, _) in &files {
            let mode = fs::metadata(path).expect("a file").permissions().mode() & 0o777;
            assert!(mode == 0o600 || path.ends_with("stderr"), "{mode:o} {}", path.display());
        }
        let books = Books::checked(&home.path().join("books.db"));
        assert!(books.exchanges.len() >= 40);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_variable_of_the_environment_sends_a_call_elsewhere() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("it does not block");
    let proxy = format!("http://{}", elsewhere.local_addr().expect("an address"));
    let anywhere = ([127, 0, 0, 1], 0).into();
    let simulator = Simulator::start(anywhere, talkative(), Options::default())
        .await
        .expect("a port");
    let names = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "OPENAI_BASE_URL",
        "OPENAI_API_BASE",
    ];
    let env = names.map(|name| (name, proxy.as_str()));
    let program = Program::start(&simulator.base_url(), "text", &env).await;
    program.client().await.chat("Hello").await.expect(200);
    assert_eq!(simulator.served().len(), 1);
    let asked = elsewhere.accept().map(|(_, whom)| whom);
    assert_eq!(
        asked.map_err(|error| error.kind()),
        Err(ErrorKind::WouldBlock),
        "nobody was asked for the way"
    );
    program.stop().await;
}

#[test]
fn a_million_ids_are_a_million_and_random_in_every_random_bit() {
    let count = 1_000_000_u32;
    let mut ids = HashSet::with_capacity(1_000_000);
    let mut ones = [0_u32; 128];
    for _ in 0..count {
        let id = Uuid::now_v7().as_u128();
        ids.insert(id);
        for (bit, ones) in ones.iter_mut().enumerate() {
            *ones += u32::from(id >> bit & 1 == 1);
        }
    }
    assert_eq!(ids.len(), 1_000_000);
    // Below the time, the counter and the variant.
    for (bit, ones) in ones.iter().enumerate().take(32) {
        assert!(
            (count * 49 / 100..=count * 51 / 100).contains(ones),
            "bit {bit}: {ones}"
        );
    }
}

/// The acts in the audit log: who, what, and whether there is a state before and after.
#[expect(
    clippy::disallowed_methods,
    reason = "beside the store, to see what is there and what it lets be changed"
)]
fn acts(database: &Path) -> Vec<(String, String, bool, bool)> {
    let conn = Connection::open(database).expect("it opens");
    let mut acts = conn
        .prepare("SELECT actor, action, before IS NOT NULL, after IS NOT NULL FROM audit_log ORDER BY seq")
        .expect("a table");
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let acts = acts
        .query_map([], row)
        .expect("rows")
        .map(|act| act.expect("a row"))
        .collect();
    for change in [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "UPDATE OR REPLACE audit_log SET seq = 1",
    ] {
        conn.execute(change, []).expect_err(change);
    }
    acts
}

#[tokio::test(flavor = "multi_thread")]
async fn every_act_of_an_operator_is_written_down_and_stays() {
    let harness = Harness::start().await;
    let key = harness.issue("--name to-rotate");
    let (rotate, revoke) = (
        format!("key rotate {}", key.key_id.0),
        format!("key revoke {}", key.key_id.0),
    );
    // What each is written down as, and whether there was something before it.
    let lines: [(&str, &[(&str, bool)]); 9] = [
        (
            "user add dave --balance 1",
            &[("user.add", false), ("ledger.credit", true)],
        ),
        ("user credit dave 2 --reference r-1", &[("ledger.credit", true)]),
        ("user credit dave --adjust -1", &[("ledger.adjust", true)]),
        ("user suspend dave", &[("user.status", true)]),
        ("user activate dave", &[("user.status", true)]),
        ("key issue dave", &[("key.issue", false)]),
        (&rotate, &[("key.rotate", true), ("key.issue", false)]),
        (&revoke, &[("key.revoke", true)]),
        (
            "price set my-model --input 1 --output 2 --list openai",
            &[("price.set", false)],
        ),
    ];
    let mut seen = acts(&harness.database()).len();
    for (line, expected) in lines {
        harness.operate(line);
        let acts = acts(&harness.database());
        let new: Vec<_> = acts[seen..]
            .iter()
            .map(|(_, action, before, _)| (action.as_str(), *before))
            .collect();
        assert_eq!(new, expected, "{line}");
        assert!(
            acts[seen..]
                .iter()
                .all(|(who, _, _, after)| who.starts_with("cli:operator@") && *after),
            "{acts:?}"
        );
        seen = acts.len();
    }
    harness.operate("user credit dave 2 --reference r-1");
    assert_eq!(acts(&harness.database()).len(), seen, "what changes nothing is no act");
    harness.finish().await;
}

/// The source files, without their tests.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(&path) {
                found.push(path);
            }
        }
    }
    /// Modules that only tests have.
    fn is_test(path: &Path) -> bool {
        path.ends_with("tests.rs") || path.iter().any(|part| part == "model") && path.iter().any(|part| part == "store")
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file");
        let code = text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default()
            .to_owned();
        let name = path
            .strip_prefix(&root)
            .expect("below src")
            .to_string_lossy()
            .into_owned();
        (name, code)
    };
    found.into_iter().map(read).collect()
}

/// What is put into SQL by `format!`, none of it anybody's words: constants, names of columns and tables that the code
/// lists, numbered marks, and whole numbers.
const PUT_INTO_SQL: [&str; 51] = [
    "ANY",
    "CACHE_KIB",
    "DAY_US",
    "FROM",
    "KEY",
    "KEY_IS_VALID",
    "ROLLED_UNTIL",
    "USER",
    "any",
    "before",
    "behind",
    "columns",
    "condition",
    "conditions",
    "counts",
    "day",
    "days",
    "filter.limit",
    "from",
    "group",
    "hold",
    "index",
    "limit",
    "marks",
    "mode",
    "names",
    "newest",
    "number",
    "of_day",
    "of_days",
    "of_key",
    "of_row",
    "of_user",
    "order",
    "origin",
    "owner",
    "rest",
    "rolled_until",
    "room",
    "rows",
    "shown",
    "start",
    "sums",
    "table",
    "told",
    "until",
    "usage",
    "users::USER",
    "values.len()",
    "which",
    "whose",
];

/// The places of a `format!` that are filled in: named ones, and the arguments behind the text.
fn filled(call: &str) -> BTreeSet<String> {
    let text = call.split('"').nth(1).unwrap_or_default();
    let named = text.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let named = named.map(|name| name.split(':').next().unwrap_or_default().trim());
    let behind = call.rsplit('"').next().unwrap_or_default().split(',').map(str::trim);
    named
        .chain(behind)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn sql_is_written_by_hand_and_what_comes_from_outside_is_bound() {
    let known: BTreeSet<&str> = PUT_INTO_SQL.into_iter().collect();
    let verbs = [
        "SELECT ", "INSERT ", "UPDATE ", "DELETE ", "REPLACE ", "PRAGMA ", "ATTACH ", "VACUUM ", " AND ", " WHERE ",
    ];
    let mut seen = 0;
    for (name, code) in sources() {
        let store = name.starts_with("store/");
        assert!(store || !code.contains("rusqlite"), "{name} reaches around the store");
        for call in code.split("format!(").skip(1).filter(|_| store) {
            let mut depth = 1;
            let end = call.find(|c: char| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let call = &call[..end.unwrap_or(call.len())];
            if !verbs.iter().any(|verb| call.contains(verb)) {
                continue;
            }
            seen += 1;
            for put in filled(call) {
                assert!(known.contains(put.as_str()), "{name} puts {put} into SQL: {call}");
            }
        }
    }
    assert!(seen >= 10, "only {seen} found");
    assert_eq!(
        filled("\"SELECT {a} FROM {b:?} LIMIT {}\", c.d()")
            .into_iter()
            .collect::<Vec<_>>(),
        ["a", "b", "c.d()"]
    );
}

#[test]
fn nothing_runs_programs_or_unsafe_code_but_where_it_is_meant() {
    for (name, code) in sources() {
        let codes: Vec<&str> = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let code = codes.join("\n");
        assert!(!code.contains("unsafe "), "{name}");
        let runs = code.contains("process::Command") || code.contains("Command::new(");
        assert!(!runs || name.starts_with("cli/"), "{name} runs programs");
    }
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("the manifest");
    for line in [
        "unsafe_code = \"forbid\"",
        "float_arithmetic = \"deny\"",
        "cast_possible_truncation = \"deny\"",
        "cast_sign_loss = \"deny\"",
        "unwrap_used = \"deny\"",
        "let_underscore_must_use = \"deny\"",
        "overflow-checks = true",
        "panic = \"unwind\"",
    ] {
        assert!(manifest.contains(line), "{line}");
    }
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock").exists());
}
