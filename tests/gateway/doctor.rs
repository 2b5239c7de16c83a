//! `gateway doctor`: a healthy gateway has nothing to mend; each fault is found, with what to do.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use assert_cmd::Command;
use codex_gateway::money::Usd;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Simulator};
use codex_gateway::store::ServerLock;
use rusqlite::Connection;
use serde_json::Value;

use crate::cli::{Home, exchange};

/// A gateway with a user, and an upstream at an address.
struct Patient {
    home: Home,
}

/// What the doctor said, and its exit code.
struct Diagnosis {
    code: i32,
    report: Value,
}

impl Patient {
    fn new(base_url: &str, more: &str) -> Patient {
        let patient = Patient {
            home: Home::with_alice(),
        };
        patient.settings(base_url, more);
        patient
    }

    fn settings(&self, base_url: &str, more: &str) {
        let text = format!(
            "{more}\n[[upstream]]\nname = \"openai\"\nbase_url = \"{base_url}\"\napi_key = \"file:key\"\nprices = \"openai\"\n"
        );
        self.write("gateway.toml", &text, 0o644);
        self.write("key", "sk-upstream", 0o600);
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.home.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn examine(&self, flags: &str) -> Diagnosis {
        let ran = self.home.run(&format!("doctor --json {flags}"));
        let report = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {} {}", ran.out, ran.err));
        Diagnosis { code: ran.code, report }
    }

    /// The database as SQLite sees it.
    #[expect(clippy::disallowed_methods, reason = "what the store would not do")]
    fn raw(&self) -> Connection {
        Connection::open(self.home.database()).expect("it opens")
    }

    /// Where a table's first page begins in the file.
    fn page_of(&self, table: &str) -> usize {
        let root: u32 = self
            .raw()
            .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [table], |row| {
                row.get(0)
            })
            .expect("a table");
        usize::try_from(root - 1).expect("small") * 4096
    }
}

impl Diagnosis {
    fn checks(&self, name: &str) -> Vec<&Value> {
        let checks = self.report["checks"].as_array().expect("checks");
        checks.iter().filter(|check| check["name"] == name).collect()
    }

    /// The check of a name that came out like that; what it says and what to do are `words`.
    fn finds(&self, name: &str, state: &str, words: &[&str]) {
        let of_name = self.checks(name);
        let found = of_name.iter().find(|check| check["state"] == state);
        let check = found.unwrap_or_else(|| panic!("no {state} of {name}: {:#}", self.report));
        for word in words {
            assert!(check.to_string().contains(word), "{check:#} does not say {word}");
        }
        assert_eq!(
            check["fix"].is_string(),
            matches!(state, "warning" | "failure"),
            "{check:#}"
        );
    }

    fn is(self, code: i32, state: &str) -> Diagnosis {
        assert_eq!(
            (self.code, self.report["state"].as_str()),
            (code, Some(state)),
            "{:#}",
            self.report
        );
        self
    }
}

/// An upstream that gives every request the same answer.
fn answering(head: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = Vec::new();
            let mut some = [0; 1024];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = stream.read(&mut some).expect("a request");
                assert!(read > 0, "a whole head");
                request.extend_from_slice(&some[..read]);
            }
            let request = String::from_utf8(request).expect("text");
            assert!(
                request.starts_with("GET /v1/models HTTP/1.1\r\n"),
                "nothing that costs: {request}"
            );
            assert!(request.contains("authorization: Bearer sk-upstream\r\n"), "{request}");
            let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).expect("written");
        }
    });
    url
}

const NO_ONE: &str = "http://127.0.0.1:1/v1";

/// Little enough that the machine of a test has it.
const SMALL: &str = "[database]\nmin_free = \"1MiB\"\nballast = \"0\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_gateway_has_nothing_to_mend() {
    let simulator = Simulator::start(
        (Ipv4Addr::LOCALHOST, 0).into(),
        standard(Pace::default()),
        Options::default(),
    )
    .await
    .expect("a simulator");
    let patient = Patient::new(&simulator.base_url(), SMALL);
    let before = fs::read(patient.home.database()).expect("the database");
    let found = patient.examine("");
    for name in [
        "settings",
        "secrets",
        "permissions",
        "database",
        "integrity",
        "server",
        "holds",
        "clock",
        "prices",
        "disk",
        "upstream",
    ] {
        found.finds(name, "ok", &[]);
    }
    assert_eq!(found.code, 0, "{:#}", found.report);
    assert_eq!(
        fs::read(patient.home.database()).expect("the database"),
        before,
        "nothing is written"
    );
    let asked = simulator.served();
    let models = |asked: &codex_gateway::simulator::Served| asked.path == "/v1/models";
    assert!(!asked.is_empty() && asked.iter().all(models), "no call was made");
    let shown = patient.home.ok("doctor");
    assert!(shown.lines().all(|line| !line.starts_with("failure")), "{shown}");
    let chinese = patient.home.run_with("doctor", &[("LANG", "zh_CN.UTF-8")], "");
    assert!(
        chinese.out.contains("正常") && chinese.err.contains("失败：0"),
        "{} {}",
        chinese.out,
        chinese.err
    );
    simulator.stop().await;
}

#[test]
fn settings_that_are_not_valid_are_3_and_a_missing_secret_is_a_failure() {
    let patient = Patient::new(NO_ONE, "[server]\nlisten = 7");
    let found = patient.examine("--offline").is(3, "failure");
    found.finds("settings", "failure", &["gateway.toml", "gateway config check"]);
    patient.settings(NO_ONE, SMALL);
    fs::remove_file(patient.home.path().join("key")).expect("removed");
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("secrets", "failure", &["api_key", "cannot be read"]);
    found.finds("upstream", "skipped", &[]);
    patient.write("gateway.toml", SMALL, 0o644);
    let found = patient.examine("").is(1, "failure");
    found.finds("upstream", "failure", &["OPENAI_API_KEY", "gateway.toml"]);
}

#[test]
fn a_secret_that_everybody_may_read_is_a_failure() {
    let patient = Patient::new(NO_ONE, SMALL);
    patient.write("key", "sk-upstream", 0o644);
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("permissions", "failure", &["chmod o= ", "key", "644"]);
    patient.write("key", "sk-upstream", 0o640);
    patient.examine("--offline").finds("permissions", "ok", &[]);
    // What goes along with calls, and what TLS is served with.
    let other = format!(
        "[server]\ntls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n{SMALL}\n\
         [[upstream]]\nname = \"openai\"\nbase_url = \"{NO_ONE}\"\nheaders = {{ x-token = \"file:token\" }}\n"
    );
    patient.write("gateway.toml", &other, 0o644);
    for (secret, other) in [("key.pem", "token"), ("token", "key.pem")] {
        patient.write(secret, "secret", 0o644);
        patient.write(other, "secret", 0o600);
        let found = patient.examine("--offline").is(1, "failure");
        found.finds("permissions", "failure", &["chmod o= ", secret, "644"]);
    }
    patient.settings(NO_ONE, SMALL);
    // In the settings themselves; the text of it is shown nowhere.
    let text = format!("{SMALL}\n[[upstream]]\nname = \"openai\"\nbase_url = \"{NO_ONE}\"\napi_key = \"sk-inside\"\n");
    patient.write("gateway.toml", &text, 0o644);
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("permissions", "failure", &["chmod o= gateway.toml", "644"]);
    assert!(!found.report.to_string().contains("sk-inside"));
    patient.write("gateway.toml", &text, 0o600);
    patient.examine("--offline").finds("permissions", "ok", &[]);
}

#[test]
fn a_database_that_everybody_may_read_is_a_warning_and_one_they_may_write_a_failure() {
    let patient = Patient::new(NO_ONE, SMALL);
    let set = |ending: &str, mode| {
        let mut path = patient.home.database().into_os_string();
        path.push(ending);
        fs::set_permissions(Path::new(&path), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    set(".mark", 0o644);
    let found = patient.examine("--offline");
    found.finds("permissions", "warning", &["chmod o= ", "gateway.db.mark", "644"]);
    assert_eq!(found.code, 0, "it works");
    set("", 0o666);
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("permissions", "failure", &["gateway.db", "666"]);
    // By another name it is the same.
    let link = patient.home.path().join("link.db");
    std::os::unix::fs::symlink(patient.home.database(), link).expect("linked");
    let found = patient.examine("--offline --database link.db").is(1, "failure");
    found.finds("permissions", "warning", &["gateway.db.mark", "644"]);
}

#[test]
fn a_database_that_cannot_be_used_is_a_failure_and_a_missing_one_a_warning() {
    let patient = Patient::new(NO_ONE, SMALL);
    let database = patient.home.database();
    let whole = fs::read(&database).expect("the database");
    // A page of a table, overwritten.
    let mut damaged = whole.clone();
    let page = patient.page_of("model_pricing");
    damaged[page..page + 4096].fill(0x5a);
    fs::write(&database, &damaged).expect("written");
    let found = patient.examine("--offline").is(1, "failure");
    found.finds(
        "integrity",
        "failure",
        &["damage", "ledger verify", "restore FILE --force"],
    );
    fs::write(&database, "no database".repeat(1000)).expect("written");
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("database", "failure", &["is not a gateway database", "--database FILE"]);
    for beside in ["", ".mark"] {
        let mut path = database.clone().into_os_string();
        path.push(beside);
        fs::remove_file(path).expect("removed");
    }
    let found = patient.examine("--offline");
    found.finds("database", "warning", &["there is no database", "gateway user add"]);
    assert_eq!(found.code, 0);
    assert!(!database.exists(), "a look makes none");
}

#[test]
fn a_database_that_lacks_something_is_a_failure() {
    let patient = Patient::new(NO_ONE, SMALL);
    let old = fs::read(patient.home.database()).expect("the database");
    patient.home.ok("user credit alice 1");
    fs::write(patient.home.database(), old).expect("put back");
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("database", "failure", &["restore", "--accept-loss"]);
}

#[test]
fn an_upstream_that_cannot_be_used_is_a_failure() {
    let patient = Patient::new(NO_ONE, SMALL);
    let found = patient.examine("").is(1, "failure");
    found.finds(
        "upstream",
        "failure",
        &["openai", "127.0.0.1:1", "curl -sS http://127.0.0.1:1/v1/models"],
    );
    patient.examine("--offline").finds("upstream", "skipped", &[]);
    for (head, state, words) in [
        (
            "401 Unauthorized",
            "failure",
            &["refuses the credential", "key", "401"][..],
        ),
        ("403 Forbidden", "failure", &["refuses the credential", "403"]),
        (
            "302 Found\r\nlocation: /elsewhere",
            "failure",
            &["redirects", "base_url"],
        ),
        ("404 Not Found", "warning", &["/v1", "404"]),
        ("503 Service Unavailable", "warning", &["503"]),
        ("200 OK", "ok", &["openai"]),
    ] {
        patient.settings(&answering(head), SMALL);
        let found = patient.examine("");
        found.finds("upstream", state, words);
        assert_eq!(found.code, i32::from(state == "failure"), "{head}: {:#}", found.report);
        assert!(
            !found.report.to_string().contains("sk-upstream"),
            "no credential is shown"
        );
    }
    patient.settings(&answering("200 OK\r\ndate: Sat, 01 Jan 2022 00:00:00 GMT"), SMALL);
    patient
        .examine("")
        .finds("clock", "warning", &["openai", "timedatectl"]);
}

#[test]
fn a_model_without_a_price_is_a_failure() {
    let patient = Patient::new(NO_ONE, SMALL);
    let settings = fs::read_to_string(patient.home.path().join("gateway.toml")).expect("settings");
    let served =
        format!("{settings}models = [\"gpt-*\", \"gpt-6.1-soll\"]\naliases = {{ \"house\" = \"none of ours\" }}\n");
    patient.write("gateway.toml", &served, 0o644);
    let found = patient.examine("--offline").is(1, "failure");
    let of = |model: &str| {
        found
            .checks("prices")
            .into_iter()
            .filter(|check| check.to_string().contains(model))
            .count()
    };
    assert_eq!(found.checks("prices").len(), 2, "{:#}", found.report);
    assert_eq!(
        (
            of("price set gpt-6.1-soll --list openai --input USD --output USD"),
            of("'none of ours'")
        ),
        (1, 1)
    );
    found.finds("prices", "failure", &["nearest", "gpt-6.1-sol"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_that_nobody_closes_are_found() {
    let patient = Patient::new(NO_ONE, SMALL);
    patient.home.ok("key issue alice");
    patient.examine("--offline").finds("holds", "ok", &[]);
    exchange(&patient.home, Usd::from_nanos(100_000_000)).await;
    patient
        .examine("--offline")
        .finds("holds", "warning", &["1 open", "process that died", "serve"]);
    // A server that runs has calls of its own; none lasts eight hours.
    let server = ServerLock::acquire(&patient.home.database()).expect("nobody has it");
    server.set_note("http://127.0.0.1:9", None).expect("noted");
    let found = patient.examine("--offline");
    found.finds("holds", "ok", &["1 open"]);
    found.finds("server", "ok", &["http://127.0.0.1:9"]);
    let of_2022 = "x'017f22e279b07cc398c4dc0c0c07398f'";
    let copy = format!(
        "INSERT INTO holds SELECT {of_2022}, user_id, key_id, amount_nanos, output_limit, endpoint, streamed, model,
         priced_model, upstream, list, placed_at, hash, state, closed_at, origin FROM holds WHERE state = 'open'"
    );
    patient.raw().execute(&copy, []).expect("a hold of 2022");
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("holds", "failure", &["1 of 2", "8 hours"]);
}

#[test]
fn a_full_disk_and_one_in_memory_are_found() {
    let patient = Patient::new(NO_ONE, "[database]\nmin_free = \"1024GiB\"");
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let flags = format!("--offline --database {}/gateway.db", memory.path().display());
    let found = patient.examine(&flags).is(1, "failure");
    found.finds("disk", "failure", &["MiB", "min_free of 1048576 MiB"]);
    found.finds("filesystem", "warning", &["tmpfs", "gateway backup FILE"]);
    patient.settings(NO_ONE, SMALL);
    patient.examine(&flags).finds("disk", "ok", &["MiB"]);
}

#[test]
fn a_clock_that_is_behind_what_was_written_is_a_failure() {
    let patient = Patient::new(NO_ONE, SMALL);
    let act = "INSERT INTO audit_log (at, actor, action, subject, before, after)
               SELECT at + 3600000000, actor, action, subject, before, after FROM audit_log ORDER BY seq DESC LIMIT 1";
    patient.raw().execute(act, []).expect("an act of the next hour");
    let found = patient.examine("--offline").is(1, "failure");
    found.finds("clock", "failure", &["seconds behind", "timedatectl"]);
}

#[test]
fn what_is_shown_is_what_the_document_has() {
    let patient = Patient::new(NO_ONE, SMALL);
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let home = patient.home.path();
    command.env_clear().env("HOME", home).current_dir(home).arg("doctor");
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let (shown, summary) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        shown.contains("\nfailure  upstream     openai cannot be reached"),
        "{shown}"
    );
    assert!(
        shown.contains("\nfix                   see whether base_url"),
        "{shown}"
    );
    assert!(summary.starts_with("failures: 1, warnings: "), "{summary}");
}
