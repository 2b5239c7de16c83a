//! Backups of a running gateway, the way back, and what becomes of databases of other versions: the real program.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Simulator};
use codex_gateway::store::usage_log::State;
use codex_gateway::store::{KeyId, UserId};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::books::Books;
use crate::client::{Client, chat, drain, http};

/// A folder with a gateway's settings, its database, and a folder for backups.
struct Site {
    home: TempDir,
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// A running `gateway serve`; it is killed at the end.
struct Serving {
    child: Child,
    url: String,
}

impl Site {
    fn new() -> Site {
        let home = TempDir::new().expect("a folder");
        fs::create_dir(home.path().join("backups")).expect("a folder");
        Site { home }
    }

    /// With a user alice, who has $5.
    fn with_alice() -> Site {
        let site = Site::new();
        site.json("user add alice --balance 5");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.path("gateway.db")
    }

    /// The database file as SQLite sees it, beside the gateway.
    #[expect(clippy::disallowed_methods, reason = "what the store would not do")]
    fn raw(path: &Path) -> Connection {
        Connection::open(path).expect("it opens")
    }

    fn number(path: &Path, sql: &str) -> i64 {
        Site::raw(path).query_row(sql, [], |row| row.get(0)).expect(sql)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("USER", "operator");
        command.current_dir(self.path("backups")).stdin(Stdio::null());
        command
            .arg("--database")
            .arg(self.database())
            .args(line.split_whitespace());
        command
    }

    fn run(&self, line: &str) -> Ran {
        ran(&self.command(line).output().expect("the program starts"))
    }

    fn ok(&self, line: &str) -> Ran {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        ran
    }

    fn json(&self, line: &str) -> Value {
        let ran = self.ok(&format!("{line} --json"));
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{line}: {error}: {}", ran.out))
    }

    /// A failure: its code, at most four lines on stderr, nothing on stdout.
    fn fails(&self, line: &str, code: i32) -> String {
        let ran = self.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{line}: {}", ran.err);
        assert!(
            ran.err.starts_with("error: ") && ran.err.lines().count() <= 4,
            "{}",
            ran.err
        );
        ran.err
    }

    fn balance(&self) -> Value {
        self.json("user show alice")["balance"].clone()
    }

    /// What is in a folder, by name.
    fn names(&self, folder: &str) -> Vec<String> {
        let found = fs::read_dir(self.path(folder)).expect("listed");
        let name = |found: std::io::Result<fs::DirEntry>| found.expect("listed").file_name().into_string();
        let mut names: Vec<String> = found.map(|found| name(found).expect("text")).collect();
        names.sort();
        names
    }

    /// Makes the database one of version 1, as the first release left it.
    fn downgrade(&self) {
        let sql = [
            include_str!("../data/downgrade-to-1.sql"),
            "PRAGMA wal_checkpoint(TRUNCATE)",
        ]
        .concat();
        Site::raw(&self.database()).execute_batch(&sql).expect("downgraded");
        fs::remove_file(self.path("gateway.db.mark")).expect("there was none");
    }

    fn version(path: &Path) -> i64 {
        Site::number(path, "PRAGMA user_version")
    }

    /// Starts a server on a simulated upstream.
    fn serve(&self, simulator: &Simulator) -> Serving {
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[database]\nmin_free = \"0\"\nballast = \"0\"\n\
             [[upstream]]\nname = \"first\"\nbase_url = \"{}\"\napi_key = \"sk-upstream\"\nprices = \"openai\"\n",
            simulator.base_url()
        );
        fs::write(self.path("gateway.toml"), settings).expect("settings written");
        let mut command = self.command("serve --quiet");
        command.arg("--config").arg(self.path("gateway.toml"));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("text");
        let url = line
            .trim_end()
            .strip_prefix("listening on ")
            .expect("it serves")
            .to_owned();
        Serving { child, url }
    }

    /// A user with a key.
    fn client(&self, name: &str, serving: &Serving) -> Client {
        let user = self.json(&format!("user add {name} --balance 50"));
        let key = self.json(&format!("key issue {name}"));
        let id = |of: &Value| of["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        Client {
            user: UserId(id(&user)),
            key_id: KeyId(id(&key)),
            key: key["key"].as_str().expect("a key").to_owned(),
            base_url: serving.url.clone(),
            http: http(),
        }
    }
}

fn ran(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

impl Serving {
    fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

async fn simulator() -> Simulator {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let started = Simulator::start(anywhere, standard(Pace::default()), Options::default()).await;
    started.expect("a free port")
}

/// Calls without end, plain and streamed, of several users.
struct Load {
    over: Arc<AtomicBool>,
    /// The exchanges whose answers came whole.
    whole: Arc<Mutex<BTreeSet<String>>>,
    /// One more has come.
    came: Arc<Notify>,
    callers: JoinSet<()>,
}

/// What the load expects of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Each succeeds.
    Success,
    /// Nothing: the server is going to be killed.
    Anything,
}

impl Load {
    fn start(clients: &[Client], expect: Expect) -> Load {
        let mut load = Load {
            over: Arc::default(),
            whole: Arc::default(),
            came: Arc::default(),
            callers: JoinSet::new(),
        };
        for client in clients.iter().flat_map(|client| [client.clone(), client.clone()]) {
            let (over, whole, came) = (Arc::clone(&load.over), Arc::clone(&load.whole), Arc::clone(&load.came));
            load.callers.spawn(async move {
                let mut streamed = false;
                while !over.load(Ordering::Relaxed) {
                    streamed = !streamed;
                    match (one_call(&client, streamed).await, expect) {
                        (Ok(id), _) => {
                            whole.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                            came.notify_one();
                        }
                        (Err(_), Expect::Anything) => break,
                        (Err(why), Expect::Success) => panic!("a call was disturbed: {why}"),
                    }
                }
            });
        }
        load
    }

    fn whole(&self) -> BTreeSet<String> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more calls are through.
    async fn more(&self, calls: usize) {
        let enough = self.whole().len() + calls;
        while self.whole().len() < enough {
            self.came.notified().await;
        }
    }

    async fn end(mut self) -> BTreeSet<String> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("no caller fails");
        }
        self.whole()
    }
}

/// A call whose answer comes whole; the exchange's id.
async fn one_call(client: &Client, streamed: bool) -> Result<String, String> {
    let body = chat("Hello", &json!({"stream": streamed, "max_completion_tokens": 100}));
    let answer = client.try_send("/v1/chat/completions", &body).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    let id = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let id = id.unwrap_or_default().to_owned();
    let (bytes, ended) = drain(answer).await;
    ended.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = status == 200 && (!streamed || text.ends_with("data: [DONE]\n\n"));
    if whole { Ok(id) } else { Err(format!("{status} {text}")) }
}

/// Runs an operator's command while the callers go on.
async fn beside<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_beside_a_busy_server_disturb_no_call_and_hold_all_that_was_answered() {
    let (site, simulator) = (Arc::new(Site::new()), simulator().await);
    let serving = site.serve(&simulator);
    let clients = ["alice", "bob", "carol"].map(|name| site.client(name, &serving));
    let load = Load::start(&clients, Expect::Success);
    load.more(20).await;
    for n in 0..4 {
        let before = load.whole();
        let (at, file) = (Arc::clone(&site), format!("{n}.db"));
        let told = beside(move || at.json(&format!("backup {n}.db"))).await;
        let copy = site.path("backups").join(&file);
        assert_eq!(told["path"], json!(copy));
        assert_eq!(told["bytes"], json!(fs::metadata(&copy).expect("there").len()));
        assert_eq!(told["users"], json!(3));
        let last = Site::number(&copy, "SELECT MAX(seq) FROM ledger_entries");
        assert_eq!(
            (&told["entries"], &told["last_entry"]["seq"]),
            (&json!(last), &json!(last))
        );
        let charged = exchanges(&copy);
        assert!(before.is_subset(&charged), "what was answered before it began is in it");
        load.more(20).await;
    }
    let whole = load.end().await;
    drop(serving);
    assert!(whole.is_subset(&exchanges(&site.database())));
    let names: Vec<String> = (0..4).map(|n| format!("{n}.db")).collect();
    assert_eq!(site.names("backups"), names, "nothing is left beside them");
}

/// The exchanges that a database has a charge for.
fn exchanges(path: &Path) -> BTreeSet<String> {
    let conn = Site::raw(path);
    let mut statement = conn
        .prepare("SELECT exchange_id FROM ledger_entries WHERE kind = 'charge'")
        .expect("SQL");
    let ids = statement.query_map([], |row| row.get::<_, [u8; 16]>(0)).expect("read");
    ids.map(|id| uuid::Uuid::from_bytes(id.expect("an id")).to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_restored_and_served_as_of_its_last_backup() {
    let (site, simulator) = (Arc::new(Site::new()), simulator().await);
    let mut serving = site.serve(&simulator);
    let clients = ["alice", "bob", "carol"].map(|name| site.client(name, &serving));
    let load = Load::start(&clients, Expect::Anything);
    load.more(20).await;
    let before = load.whole();
    let at = Arc::clone(&site);
    let saved = beside(move || at.json("backup night.db")).await;
    load.more(20).await;
    serving.kill();
    load.end().await;
    // The file is lost; its log, its index, its mark and its lock are still there.
    fs::remove_file(site.database()).expect("removed");
    assert!(site.path("gateway.db-wal").exists() && site.path("gateway.db.mark").exists());

    let restored = site.json("restore night.db");
    assert_eq!(restored["last_entry"], saved["last_entry"]);
    assert_eq!(
        restored["replaced"]["kept"].as_array().map(Vec::len),
        Some(2),
        "log and index: {restored}"
    );
    let mut serving = site.serve(&simulator);
    let books = site.json("ledger verify");
    assert_eq!(books["balanced"], json!(true), "{books}");
    assert_eq!(books["entries"], saved["entries"], "starting charges nobody");
    assert_eq!(books["open_holds"], json!(0), "what ran at the backup is closed");
    for id in &before {
        let receipt = site.json(&format!("request show {id}"));
        assert_eq!(receipt["id"], json!(id));
    }
    for client in &clients {
        let client = Client {
            base_url: serving.url.clone(),
            ..client.clone()
        };
        one_call(&client, true)
            .await
            .expect("keys are valid and money is there");
    }
    serving.kill();
    let copy = Site::raw(&site.path("backups/night.db"));
    let open: i64 = copy
        .query_row("SELECT COUNT(*) FROM holds WHERE state = 'open'", [], |row| row.get(0))
        .expect("read");
    let books = Books::checked(&site.database());
    let interrupted = books
        .exchanges
        .iter()
        .filter(|row| row.state == State::Interrupted)
        .count();
    assert_eq!(
        i64::try_from(interrupted),
        Ok(open),
        "calls that ran at the backup charge nothing"
    );
    let charged = exchanges(&site.path("backups/night.db")).len();
    assert_eq!(books.exchanges.len(), charged + interrupted + clients.len());
}

#[tokio::test]
async fn nothing_is_restored_below_a_running_server() {
    let (site, simulator) = (Site::with_alice(), simulator().await);
    site.ok("backup b.db");
    let mut serving = site.serve(&simulator);
    let error = site.fails("restore b.db --force", 4);
    assert!(error.contains(&serving.url), "it is named: {error}");
    assert!(error.contains(&format!("process {}", serving.child.id())), "{error}");
    serving.kill();
    site.ok("restore b.db --force");
}

#[test]
fn a_backup_takes_nobodys_place_unless_told() {
    let site = Site::with_alice();
    let said = site.ok("backup b.db").out;
    assert!(
        said.contains("entries  1\n") && said.contains("as of    entry 1, 20"),
        "{said}"
    );
    site.ok("user credit alice 1");
    let before = fs::read(site.path("backups/b.db")).expect("there");
    let error = site.fails("backup b.db", 6);
    assert!(
        error.contains("backups/b.db is there already") && error.contains("--force"),
        "{error}"
    );
    assert!(fs::read(site.path("backups/b.db")).expect("there") == before);
    site.ok("backup b.db --force");
    assert_eq!(
        Site::number(&site.path("backups/b.db"), "SELECT COUNT(*) FROM ledger_entries"),
        2
    );
    assert_eq!(site.names("backups"), ["b.db"]);
}

#[test]
fn files_that_cannot_be_backups_are_refused_with_what_to_do() {
    let site = Site::with_alice();
    site.ok("backup b.db");
    let database = site.database().display().to_string();
    for (line, code, says) in [
        ("backup -".to_owned(), 2, "not a pipe"),
        ("restore -".to_owned(), 2, "not a pipe"),
        (
            format!("backup {database} --force"),
            2,
            "belongs to the database itself",
        ),
        (
            format!("backup ../gateway.db{} --force", ".mark"),
            2,
            "belongs to the database itself",
        ),
        (
            format!("restore {database} --force"),
            2,
            "belongs to the database itself",
        ),
        ("backup .".to_owned(), 2, "is a folder"),
        ("restore .".to_owned(), 2, "is a folder"),
        ("backup nowhere/b.db".to_owned(), 5, "there is no "),
        ("restore nothing.db".to_owned(), 5, "there is no "),
    ] {
        let error = site.fails(&line, code);
        assert!(error.contains(says) && error.contains("fix "), "{line}: {error}");
    }
    assert_eq!(site.names("backups"), ["b.db"]);
    assert_eq!(site.balance(), json!("5"));
}

#[test]
fn without_a_database_there_is_no_backup_and_a_restore_makes_one() {
    let site = Site::with_alice();
    site.ok("backup b.db");
    fs::remove_file(site.database()).expect("removed");
    let error = site.fails("backup c.db", 5);
    assert!(error.contains(&site.database().display().to_string()), "{error}");
    assert_eq!(site.names("backups"), ["b.db"]);
    let ran = site.ok("restore b.db");
    assert!(ran.out.contains("as of     entry 1, 20"), "{}", ran.out);
    assert_eq!(ran.err, "not in it: what was settled and credited since\n");
    assert_eq!(site.balance(), json!("5"));
}

#[test]
fn a_database_that_is_there_is_replaced_only_when_told_and_is_kept() {
    let site = Site::with_alice();
    site.ok("backup b.db");
    site.ok("user credit alice 1");
    site.ok("user credit alice 2");
    let error = site.fails("restore b.db", 6);
    assert_eq!(site.balance(), json!("8"));
    // The command that it names does it.
    let command = error
        .trim_end()
        .rsplit_once("(it is kept beside): ")
        .expect("a command")
        .1;
    let done = Command::new("sh")
        .arg("-c")
        .arg(command)
        .env_clear()
        .output()
        .expect("a shell");
    let done = ran(&done);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(
        done.err
            .starts_with("not in it: entries 2 to 3 of the database that was replaced, the last of 20")
    );
    assert_eq!(site.balance(), json!("5"));
    let names = site.names("");
    let kept = names
        .iter()
        .find(|name| name.starts_with("gateway.db.replaced-"))
        .expect("it is kept");
    assert!(done.out.contains(kept.as_str()), "{}", done.out);
    let act = site.json("audit list --action database.restore")["items"][0].clone();
    assert_eq!(
        (&act["before"]["last_entry"], &act["after"]["last_entry"]),
        (&json!(3), &json!(1)),
        "{act}"
    );
    site.ok(&format!("restore ../{kept} --force"));
    assert_eq!(site.balance(), json!("8"));
}

/// The command at the end of an error looks into the file that the error is about.
fn finds_the_gift(error: &str, file: &str) {
    let (_, command) = error.trim_end().rsplit_once("all that is wrong: ").expect("a command");
    assert!(command.contains(file), "{command}");
    let looked = Command::new("sh").args(["-c", command]).env_clear().output();
    let looked = ran(&looked.expect("a shell"));
    assert_eq!(looked.code, 8, "{looked:?}");
    assert!(looked.out.contains("ledger_entries"), "{looked:?}");
}

#[test]
fn books_that_do_not_balance_are_neither_backed_up_nor_restored() {
    let site = Site::with_alice();
    site.ok("backup b.db");
    let altered = "DROP TRIGGER entries_are_final; UPDATE ledger_entries SET note = 'a gift'";
    fs::copy(site.path("backups/b.db"), site.path("backups/altered.db")).expect("copied");
    Site::raw(&site.path("backups/altered.db"))
        .execute_batch(altered)
        .expect("altered");
    let error = site.fails("restore altered.db --force", 8);
    assert!(
        error.contains("altered.db do not balance: table ledger_entries, row 1"),
        "{error}"
    );
    finds_the_gift(&error, "altered.db");
    Site::raw(&site.database()).execute_batch(altered).expect("altered");
    let error = site.fails("backup b.db --force", 8);
    assert!(error.contains("gateway.db do not balance"), "{error}");
    finds_the_gift(&error, "gateway.db");
    assert_eq!(site.names("backups"), ["altered.db", "b.db"]);
    site.ok("restore b.db --force");
    assert_eq!(site.json("ledger verify")["balanced"], json!(true));
}

/// The version that this program makes.
fn ours() -> i64 {
    let set = include_str!("../../schema.sql").split_once("PRAGMA user_version = ");
    let version = set.and_then(|(_, rest)| rest.split(';').next()?.parse().ok());
    version.expect("a version")
}

#[test]
fn commands_that_find_an_earlier_version_at_once_migrate_it_once() {
    let site = Site::with_alice();
    site.downgrade();
    let mut all: Vec<Child> = Vec::new();
    for _ in 0..6 {
        let mut command = site.command("user show alice --json");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        all.push(command.spawn().expect("the program starts"));
    }
    for one in all {
        let ran = ran(&one.wait_with_output().expect("it ends"));
        assert!(ran.code == 0 && ran.out.contains("\"balance\": \"5\""), "{ran:?}");
    }
    assert_eq!(Site::version(&site.database()), ours());
    assert_eq!(Site::version(&site.path("gateway.db.version-1.backup")), 1);
    let names = site.names("");
    assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
    assert_eq!(site.json("ledger verify")["balanced"], json!(true));
}

#[test]
fn a_database_of_a_newer_release_is_left_alone_and_the_way_back_is_told() {
    let site = Site::with_alice();
    site.downgrade();
    site.ok("user credit alice 1");
    Site::raw(&site.database())
        .execute_batch(&format!(
            "CREATE TABLE tomorrow (a); PRAGMA user_version = {}",
            ours() + 1
        ))
        .expect("set");
    for line in ["user show alice", "serve", "backup b.db", "ledger verify"] {
        if line == "serve" {
            fs::write(
                site.path("gateway.toml"),
                "[[upstream]]\nname = \"a\"\nbase_url = \"http://127.0.0.1:9\"\n",
            )
            .expect("written");
        }
        let config = site.path("gateway.toml").display().to_string();
        let line = if line == "serve" {
            format!("serve --config {config}")
        } else {
            line.to_owned()
        };
        let error = site.fails(&line, 1);
        let told = format!("gateway.db is of version {}, this program knows {}", ours() + 1, ours());
        assert!(error.contains(&told), "{line}: {error}");
    }
    let error = site.fails("user show alice", 1);
    let command = error
        .trim_end()
        .rsplit_once("go back to what was before it: ")
        .expect("a command")
        .1;
    let backup = site.path("gateway.db.version-1.backup");
    assert!(
        command.ends_with(&format!("restore {} --force", backup.display())),
        "{command}"
    );
    let done = Command::new("sh")
        .arg("-c")
        .arg(command)
        .env_clear()
        .output()
        .expect("a shell");
    assert_eq!(ran(&done).code, 0, "{:?}", ran(&done));
    assert_eq!(site.balance(), json!("5"), "as it was before the first migration");
    let kept = site
        .names("")
        .into_iter()
        .find(|name| name.contains(".replaced-"))
        .expect("it is kept");
    assert_eq!(Site::version(&site.path(&kept)), ours() + 1);
    assert_eq!(Site::number(&site.path(&kept), "SELECT COUNT(*) FROM tomorrow"), 0);

    Site::raw(&site.database())
        .execute_batch(&format!("PRAGMA user_version = {}", ours() + 2))
        .expect("set");
    fs::remove_file(backup).expect("removed");
    let error = site.fails("user show alice", 1);
    let release = env!("CARGO_PKG_VERSION");
    assert!(
        error.contains(&format!("use that release, or a later one (this is {release})")),
        "{error}"
    );
}

/// Runs a script with `$SMALL` a disk of so much that only the script sees; `None` where the system does not allow it.
fn on_a_small_disk(site: &Site, size: &str, script: &str) -> Option<Ran> {
    let small = site.path("small");
    fs::create_dir_all(&small).expect("a folder");
    let mount = format!("mount -t tmpfs -o size={size} tmpfs \"$SMALL\" || exit 77\ncd \"$SMALL\"\n{script}");
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount]);
    shell
        .env("SMALL", &small)
        .env("HOME", site.home.path())
        .env("USER", "operator");
    shell
        .env("GATEWAY", env!("CARGO_BIN_EXE_gateway"))
        .env("DATABASE", site.database());
    let ran = shell.output().ok().map(|output| ran(&output));
    let refused = |ran: &Ran| ran.code == 77 || ran.err.starts_with("unshare:");
    let ran = ran.filter(|ran| !refused(ran));
    if ran.is_none() {
        println!("no small disk: user namespaces are not allowed here");
    }
    ran
}

#[test]
fn a_disk_that_fills_during_a_backup_keeps_the_one_before() {
    let site = Site::with_alice();
    let script = r#"
        "$GATEWAY" --database "$DATABASE" backup b.db || exit 1
        cp b.db "$HOME/before.db"
        "$GATEWAY" --database "$DATABASE" user credit alice 1 || exit 1
        "$GATEWAY" --database "$DATABASE" backup b.db --force
        echo "exit $?"
        cmp b.db "$HOME/before.db" && echo kept
        ls -A"#;
    let Some(ran) = on_a_small_disk(&site, "480k", script) else {
        return;
    };
    assert!(
        ran.err
            .contains("error: the backup could not be made\n  why   copying "),
        "{ran:?}"
    );
    assert!(ran.err.contains("database or disk is full"), "{ran:?}");
    assert!(ran.out.ends_with("exit 1\nkept\nb.db\n"), "{ran:?}");
    assert_eq!(site.balance(), json!("6"));
}

#[test]
fn a_disk_that_fills_during_a_restore_leaves_the_database_as_it_is() {
    let site = Site::with_alice();
    site.ok("backup b.db");
    let script = r#"
        cp "$HOME/backups/b.db" gateway.db
        "$GATEWAY" --database gateway.db user credit alice 1 || exit 1
        rm -f gateway.db.lock
        "$GATEWAY" --database gateway.db restore "$HOME/backups/b.db" --force
        echo "exit $?"
        "$GATEWAY" --database gateway.db user show alice --json | grep '"balance"'
        ls -A | grep -v -e mark -e lock"#;
    for size in ["500k", "800k", "1000k"] {
        let Some(ran) = on_a_small_disk(&site, size, script) else {
            return;
        };
        assert!(
            ran.err.contains("error: the backup was not restored\n  why   "),
            "{size}: {ran:?}"
        );
        // The latter where no room is left for what SQLite shares between processes.
        let is_full = ["database or disk is full", "disk I/O error: Error code 4874"];
        assert!(is_full.iter().any(|why| ran.err.contains(why)), "{size}: {ran:?}");
        assert!(ran.out.contains("exit 1\n  \"balance\": \"6\""), "{size}: {ran:?}");
        assert!(!ran.out.contains("partial"), "{size}: {ran:?}");
    }
}

#[test]
fn without_room_for_a_backup_an_earlier_version_stays() {
    let site = Site::with_alice();
    site.downgrade();
    let script = r#"
        cp "$DATABASE" gateway.db
        "$GATEWAY" --database gateway.db user list
        echo "exit $?"
        ls -A
        cp gateway.db "$HOME/after.db""#;
    let Some(ran) = on_a_small_disk(&site, "560k", script) else {
        return;
    };
    assert!(
        ran.err
            .contains("of version 1 and stays so, because no backup of it could be made"),
        "{ran:?}"
    );
    assert!(ran.err.contains("database or disk is full"), "{ran:?}");
    assert_eq!(ran.out, "exit 1\ngateway.db\n", "{ran:?}");
    assert_eq!(Site::version(&site.path("after.db")), 1);
}

#[cfg(feature = "failpoints")]
mod killed {
    //! What a process leaves that dies at the worst moment.

    use super::*;

    fn dies(site: &Site, line: &str, points: &str) {
        let ran = site
            .command(line)
            .env("FAILPOINTS", points)
            .output()
            .expect("the program starts");
        assert!(ran.status.code().is_none(), "{line}: it was killed: {ran:?}");
    }

    #[test]
    fn a_backup_that_is_killed_leaves_the_one_before_and_the_next_one_clears_up() {
        let site = Site::with_alice();
        site.ok("backup b.db");
        site.ok("user credit alice 1");
        dies(&site, "backup b.db --force", "backup=return(kill)");
        assert_eq!(
            Site::number(&site.path("backups/b.db"), "SELECT COUNT(*) FROM ledger_entries"),
            1
        );
        assert_eq!(site.names("backups").len(), 2, "what it wrote");
        site.ok("backup b.db --force");
        assert_eq!(site.names("backups"), ["b.db"]);
        assert_eq!(
            Site::number(&site.path("backups/b.db"), "SELECT COUNT(*) FROM ledger_entries"),
            2
        );
        let ran = site
            .command("backup b.db --force")
            .env("FAILPOINTS", "backup=return(error)")
            .output();
        let ran = ran.expect("the program starts");
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert_eq!(site.names("backups"), ["b.db"]);
    }

    #[test]
    fn a_migration_that_is_killed_is_not_there_or_whole() {
        for point in ["backup", "migration"] {
            let site = Site::with_alice();
            site.downgrade();
            dies(&site, "user list", &format!("{point}=return(kill)"));
            assert_eq!(Site::version(&site.database()), 1, "{point}");
            assert_eq!(site.balance(), json!("5"), "{point}: the next start migrates");
            assert_eq!(Site::version(&site.path("gateway.db.version-1.backup")), 1);
            let names = site.names("");
            assert!(!names.iter().any(|name| name.contains("partial")), "{point}: {names:?}");
        }
    }

    #[test]
    fn a_restore_that_is_killed_changes_nothing_or_all() {
        let site = Site::with_alice();
        site.ok("backup b.db");
        site.ok("user credit alice 1");
        // Killed when the copy of what is replaced is to take its name.
        dies(&site, "restore b.db --force", "backup=return(kill)");
        assert_eq!(site.balance(), json!("6"));
        site.ok("restore b.db --force");
        assert_eq!(site.balance(), json!("5"));
        let names = site.names("");
        assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
    }
}
