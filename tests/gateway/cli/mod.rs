//! The command line: what commands print, how they fail, and what scripts may rely on.

mod books;
mod keys;
mod pipes;
mod prices;
mod settings;
mod users;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use assert_cmd::Command;
use codex_gateway::call::{Endpoint, HostedTools};
use codex_gateway::config::DiskConfig;
use codex_gateway::hold::{self, Ask, Policy};
use codex_gateway::money::Usd;
use codex_gateway::origin::{Client, Kind, Label, Origin};
use codex_gateway::pricing::{Factor, ListName, SearchTool, Terms, bill};
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Simulator};
use codex_gateway::store::ledger::{CloseHold, Excess, PlaceHold};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use codex_gateway::store::{Create, ExchangeId, Outcome, Store};
use codex_gateway::time::now;
use codex_gateway::usage::{CacheTtl, Tier, Tokens, Usage};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// A home folder of its own, and nothing else in the environment.
pub struct Home {
    folder: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Home {
    pub fn new() -> Home {
        Home {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// With a user alice, who has $5.
    pub fn with_alice() -> Home {
        let home = Home::new();
        home.ok("user add alice --balance 5");
        home
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn database(&self) -> PathBuf {
        self.path().join(".local/share/codex-gateway/gateway.db")
    }

    pub fn settings(&self, text: &str) {
        fs::write(self.path().join("gateway.toml"), text).expect("settings written");
    }

    pub fn run_with(&self, line: &str, env: &[(&str, &str)], stdin: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command
            .env_clear()
            .env("HOME", self.path())
            .env("USER", "tester")
            .envs(env.iter().copied());
        command
            .current_dir(self.path())
            .args(line.split_whitespace())
            .write_stdin(stdin);
        let output = command.output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ran {
            code: output.status.code().expect("an exit code"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    pub fn run(&self, line: &str) -> Ran {
        self.run_with(line, &[], "")
    }

    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        ran.out
    }

    /// The one JSON document that is all of stdout.
    pub fn json(&self, line: &str) -> Value {
        let out = self.ok(&format!("{line} --json"));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}: {out}"))
    }

    /// A failure: its code, at most four lines on stderr, nothing on stdout.
    pub fn fails(&self, line: &str, code: i32) -> String {
        let ran = self.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{line}: {}", ran.err);
        assert!(ran.err.starts_with("error: "), "{line}: {}", ran.err);
        assert!(ran.err.lines().count() <= 4, "{line}: {}", ran.err);
        ran.err
    }

    /// What a command does whose output goes there.
    pub fn run_into(&self, line: &str, stdout: Stdio) -> Ran {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.env_clear().env("HOME", self.path()).current_dir(self.path());
        let ran = command.args(line.split(' ')).stdout(stdout).output();
        let ran = ran.expect("the program starts");
        Ran {
            code: ran.status.code().expect("an exit code"),
            out: String::new(),
            err: String::from_utf8_lossy(&ran.stderr).into_owned(),
        }
    }

    fn balance(&self, user: &str) -> Value {
        self.json(&format!("user show {user}"))["balance"].clone()
    }
}

/// Where nothing can be written: a pipe that nobody reads, and a disk that is full.
pub fn nowhere() -> [Stdio; 2] {
    let (reader, closed) = std::io::pipe().expect("a pipe");
    drop(reader);
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    [closed.into(), full.expect("Linux has it").into()]
}

/// A program with its stdout and its stderr on pipes.
pub fn piped(home: &Home, line: &str) -> Child {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    program.env_clear().env("HOME", home.path()).env("USER", "tester");
    program.current_dir(home.path()).args(line.split_whitespace());
    let child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    child.spawn().expect("the program starts")
}

/// The exit code of a program that is asked to stop; it has to end in time.
pub async fn stopped(mut child: Child) -> Option<i32> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), Signal::TERM).expect("the signal is sent");
    for _ in 0..2_000 {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    child.kill().and_then(|()| child.wait()).expect("ended");
    None
}

/// Stops a server as an operator does; it has to end well, and in time.
pub async fn ended(child: &mut tokio::process::Child, patience: std::time::Duration) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    kill_process(pid.expect("it runs"), Signal::TERM).expect("a signal");
    let status = tokio::time::timeout(patience, child.wait()).await.expect("it stops");
    let status = status.expect("a status");
    assert!(status.success(), "{status}");
}

/// Where a server says that it listens.
pub fn served_at(child: &mut Child) -> String {
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    out.read_line(&mut line).expect("text");
    line.trim_end()
        .strip_prefix("listening on ")
        .expect("an address")
        .to_owned()
}

/// Settings with a simulated upstream.
pub async fn simulated(home: &Home) -> Simulator {
    let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = Simulator::start(anywhere, standard(Pace::default()), Options::default());
    let simulator = simulator.await.expect("a free port");
    home.settings(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"first\"\nbase_url = \"{}\"\nprices = \"openai\"\n",
        simulator.base_url()
    ));
    simulator
}

/// One settled exchange of alice's, of $0.003, and, when asked, one hold that stays open.
pub async fn exchange(home: &Home, hold_open: Usd) -> String {
    let store = Store::open(&home.database(), Create::Never).expect("the database");
    let tracker = TaskTracker::new();
    let writer = store.start_writer(&tracker, DiskConfig::default());
    let user = store.find_user("alice").expect("read").expect("alice");
    let key = store.keys(Some(user.id)).expect("read").remove(0);
    let at = now();
    let row = store
        .price(&ListName::openai(), "gpt-4o", at)
        .expect("read")
        .expect("a price");
    let terms = Terms {
        price: &row.price,
        image_price: None,
        search: SearchTool::Current,
        tier: Tier::Standard,
        region: None,
        markup: Factor::parse("1.2").expect("a factor"),
        at,
    };
    let place = |input: u64| {
        let ask = Ask {
            input: Tokens::saturating(input),
            rejected: Tokens::ZERO,
            stated: Some(Tokens::saturating(100)),
            cache_ttl: CacheTtl::Minutes30,
            choices: 1,
            tools: &HostedTools::default(),
            medium: codex_gateway::call::Medium::Text,
        };
        PlaceHold {
            exchange: ExchangeId(Uuid::now_v7()),
            user: user.id,
            key: key.id,
            budgets: key.budgets,
            quote: hold::quote(&ask, &terms).expect("a quote"),
            policy: Policy {
                share_ppm: 250_000,
                min_output: Tokens::saturating(8_192),
            },
            endpoint: Endpoint::ChatCompletions,
            streamed: false,
            model: "gpt-4o".into(),
            priced_model: "gpt-4o".into(),
            upstream: "openai".into(),
            list: Some(ListName::openai()),
            origin: codex_gateway::origin::Origin::default(),
            once: None,
            now: at,
        }
    };
    let (taken, right) = match writer.hold(place(10_000)).await.expect("not busy") {
        Outcome::Committed(taken) => taken,
        other => panic!("{other:?}"),
    };
    let usage = Usage {
        input_tokens: Tokens::saturating(1_000),
        cached_tokens: Tokens::saturating(400),
        output_tokens: Tokens::saturating(50),
        ..Usage::default()
    };
    let billed = bill(&usage, &terms).expect("a bill");
    let id = taken.exchange.0.to_string();
    let close = CloseHold {
        row: ExchangeRow {
            id: taken.exchange,
            user: user.id,
            key: key.id,
            endpoint: Endpoint::ChatCompletions,
            streamed: false,
            model: "gpt-4o".into(),
            priced_model: "gpt-4o".into(),
            answered_model: Some("gpt-4o-2024-11-20".into()),
            upstream: "openai".into(),
            list: Some(ListName::openai()),
            price_from: Some(row.from),
            tier: Tier::Standard,
            state: State::Completed,
            basis: Basis::Reported,
            usage,
            lines: billed.lines,
            uplift: None,
            markup: "1.2".into(),
            cost: billed.cost,
            charge: billed.charge,
            uncollected: Usd::ZERO,
            held: taken.amount,
            output_limit: None,
            balance_after: Usd::ZERO,
            response_id: Some("chatcmpl-1".into()),
            item_ids: Vec::new(),
            upstream_request_id: Some("req_1".into()),
            upstream_status: Some(200),
            attempts: 1,
            started_at: at,
            first_byte: None,
            duration: std::time::Duration::from_millis(5),
            origin: Origin {
                session: Label::new("ses-7"),
                turn: Label::new("t-1"),
                agent: Label::new("a-1"),
                kind: Some(Kind::SubAgent),
                client: Client::parse("codex_exec/0.169.0"),
            },
        },
        excess: Excess::Collect,
        attempts: Vec::new(),
    };
    writer.close(taken, right, close).await.expect("settled");
    if hold_open > Usd::ZERO {
        // 1.2 × 2.5 dollars per million tokens of input are 3 dollars per million.
        let tokens = hold_open.nanos().unsigned_abs() / 3_000;
        assert!(matches!(writer.hold(place(tokens)).await, Ok(Outcome::Committed(_))));
    }
    drop(writer);
    tracker.close();
    tracker.wait().await;
    id
}

/// Changes rows behind the gateway's back: the triggers that forbid it are dropped first.
#[expect(clippy::disallowed_methods, reason = "what the store would never do is done here")]
pub fn alter(database: &Path, sql: &str) {
    let database = rusqlite::Connection::open(database).expect("opened");
    let names = "SELECT name FROM sqlite_master WHERE type = 'trigger'";
    let mut statement = database.prepare(names).expect("a statement");
    let names = statement.query_map([], |row| row.get::<_, String>(0)).expect("names");
    let names: Vec<String> = names.collect::<Result<_, _>>().expect("names");
    for name in names {
        database
            .execute_batch(&format!("DROP TRIGGER {name}"))
            .expect("dropped");
    }
    database.execute_batch(sql).expect("changed");
}
