//! The harness: the real server on port 0, a real database file, and the simulator; the laws are checked at the end.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use codex_gateway::bilingual;
use codex_gateway::config::{Config, OnHangup, Sources};
use codex_gateway::key::GatewayKey;
use codex_gateway::limits::Rates;
use codex_gateway::money::Usd;
use codex_gateway::pricing::{ListName, Price};
use codex_gateway::server::{self, Server};
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Playwright, Served, Simulator};
use codex_gateway::store::keys::NewKey;
use codex_gateway::store::usage_log::ExchangeRow;
use codex_gateway::store::users::{NewUser, User};
use codex_gateway::store::{Actor, Create, KeyId, Outcome, Store, UserId};
use codex_gateway::time;
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use crate::books::Books;
use crate::client::{Client, http};

/// A running gateway. [`Harness::finish`] has to be called at the end of every test.
pub struct Harness {
    /// Calls as the first user.
    pub client: Client,
    /// Reads and writes the database as an operator does, beside the server.
    pub store: Store,
    /// The upstream.
    pub simulator: Simulator,
    /// The second upstream, if the test asked for one.
    pub second: Option<Simulator>,
    server: Option<Server>,
    config: Config,
    dir: TempDir,
}

/// What a gateway is started with.
pub struct Builder {
    balance: String,
    credit_line: String,
    on_hangup: OnHangup,
    playwright: Playwright,
    second: Option<Playwright>,
    settings: String,
    upstream: String,
    of_second: String,
    vendors: Vec<(String, String, String)>,
    tweak: Box<dyn FnOnce(&mut Config) + Send>,
    prices: Vec<(String, String)>,
}

impl Harness {
    /// A gateway with a user who has $5, and the standard playwright.
    pub async fn start() -> Harness {
        Harness::builder().start().await
    }

    /// A gateway with something else.
    pub fn builder() -> Builder {
        Builder {
            balance: "5".into(),
            credit_line: "0".into(),
            on_hangup: OnHangup::Drain,
            playwright: standard(Pace::default()),
            second: None,
            settings: String::new(),
            upstream: String::new(),
            of_second: String::new(),
            vendors: Vec::new(),
            tweak: Box::new(|_| {}),
            prices: Vec::new(),
        }
    }

    /// Another user with a key.
    pub fn add_client(&self, name: &str, balance: &str) -> Client {
        add_client(&self.store, &self.base_url(), name, balance, "0", |_| {})
    }

    /// Another user with a key that is limited in some way.
    pub fn add_limited(&self, name: &str, limit: impl FnOnce(&mut NewKey)) -> Client {
        add_client(&self.store, &self.base_url(), name, "5", "0", limit)
    }

    /// Another user, whose key says what happens when its client leaves.
    pub fn add_client_who(&self, name: &str, balance: &str, on_hangup: OnHangup) -> Client {
        let says = |key: &mut NewKey| key.on_hangup = Some(on_hangup);
        add_client(&self.store, &self.base_url(), name, balance, "0", says)
    }

    /// Where the server listens.
    pub fn base_url(&self) -> String {
        self.server.as_ref().map(Server::base_url).expect("the server runs")
    }

    /// Where the metrics are, if the settings say so.
    pub fn metrics_url(&self) -> Option<String> {
        self.server.as_ref().and_then(Server::metrics_url)
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        database(&self.dir)
    }

    /// The first user, as the database has it now.
    pub fn user(&self) -> User {
        let found = self.store.find_user(&self.client.user.0.to_string());
        found.expect("the database can be read").expect("the user is there")
    }

    /// The receipt of an exchange that has been settled.
    pub fn receipt(&self, id: &str) -> ExchangeRow {
        let found = self.store.find_exchange(id).expect("the database can be read");
        found.unwrap_or_else(|| panic!("no exchange {id}"))
    }

    /// Runs the operator's program on this database, in a process of its own beside the server; it has to succeed.
    /// Gives its JSON document.
    pub fn operate(&self, line: &str) -> Value {
        let mut program = Command::new(env!("CARGO_BIN_EXE_gateway"));
        program.env_clear().env("HOME", self.dir.path()).env("USER", "operator");
        program.current_dir(self.dir.path()).args(line.split_whitespace());
        let ran = program.arg("--json").arg("--database").arg(self.database()).output();
        let ran = ran.expect("the program starts");
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// A client with a key that the operator's program issues to the first user, with these flags.
    pub fn issue(&self, flags: &str) -> Client {
        let issued = self.operate(&format!("key issue alice {flags}"));
        let id = issued["id"].as_str().and_then(|id| id.parse().ok());
        Client {
            key: issued["key"].as_str().expect("a key").to_owned(),
            key_id: KeyId(id.expect("an id")),
            ..self.client.clone()
        }
    }

    /// Changes the database by SQL, beside the gateway and its store.
    #[expect(clippy::disallowed_methods, reason = "what the store would not do")]
    pub fn alter(&self, sql: &str) {
        let file = rusqlite::Connection::open(self.database()).expect("the database opens");
        let patience = file.busy_timeout(Duration::from_secs(5));
        patience.and_then(|()| file.execute_batch(sql)).expect(sql);
    }

    /// Waits until no exchange runs.
    pub async fn server_is_idle(&self) {
        if let Some(server) = &self.server {
            server.idle().await;
        }
    }

    /// Ends running streams, as a second SIGTERM does.
    pub fn cut_off(&self) {
        if let Some(server) = &self.server {
            server.cut_off();
        }
    }

    /// Stops the server, as SIGTERM does.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await.expect("the books are written");
        }
    }

    /// Starts it once more, on another port.
    pub async fn start_again(&mut self) {
        let started = server::start(self.config.clone(), self.store.clone()).await;
        self.server = Some(started.expect("the server starts"));
        self.client.base_url = self.base_url();
    }

    /// What the first upstream served so far.
    pub fn served(&self) -> Vec<Served> {
        self.simulator.served()
    }

    /// Stops the server as SIGTERM does, which settles what runs; stops the upstreams; checks the books.
    pub async fn finish(mut self) -> Books {
        self.stop().await;
        Books::checked(&self.database())
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        // A test that failed has said why; one that forgot has not looked at the books.
        if self.server.is_some() && !std::thread::panicking() {
            panic!("the test ended without Harness::finish");
        }
    }
}

impl Builder {
    /// What the first user has, in dollars.
    pub fn balance(mut self, usd: &str) -> Builder {
        usd.clone_into(&mut self.balance);
        self
    }

    /// How far below zero the first user may go, in dollars.
    pub fn credit_line(mut self, usd: &str) -> Builder {
        usd.clone_into(&mut self.credit_line);
        self
    }

    /// What happens when a client leaves.
    pub fn on_hangup(mut self, choice: OnHangup) -> Builder {
        self.on_hangup = choice;
        self
    }

    /// What the upstream plays.
    pub fn playwright(mut self, playwright: Playwright) -> Builder {
        self.playwright = playwright;
        self
    }

    /// A second upstream named `second`, tried after the first; its price list is `openai` too.
    pub fn second(mut self, playwright: Playwright) -> Builder {
        self.second = Some(playwright);
        self
    }

    /// More settings of the second upstream, as TOML lines.
    pub fn of_second(mut self, toml: &str) -> Builder {
        self.of_second.push_str(toml);
        self.of_second.push('\n');
        self
    }

    /// More settings, as TOML tables.
    pub fn settings(mut self, toml: &str) -> Builder {
        self.settings.push_str(toml);
        self.settings.push('\n');
        self
    }

    /// More settings of the first upstream, as TOML lines.
    pub fn upstream(mut self, toml: &str) -> Builder {
        self.upstream.push_str(toml);
        self.upstream.push('\n');
        self
    }

    /// Another upstream, tried before the first: the same simulator, with a price list (which names it too) and globs
    /// of models.
    pub fn vendor(self, prices: &str, models: &[&str]) -> Builder {
        self.vendor_with(prices, models, "")
    }

    /// Such an upstream with more settings, as TOML lines.
    pub fn vendor_with(mut self, prices: &str, models: &[&str], toml: &str) -> Builder {
        let models = format!("{models:?}");
        self.vendors.push((prices.to_owned(), models, toml.to_owned()));
        self
    }

    /// Changes the settings when they have been read.
    pub fn tweak(mut self, tweak: impl FnOnce(&mut Config) + Send + 'static) -> Builder {
        self.tweak = Box::new(tweak);
        self
    }

    /// An operator's price in the list `openai`, as JSON.
    pub fn price(mut self, model: &str, json: &str) -> Builder {
        self.prices.push((model.to_owned(), json.to_owned()));
        self
    }

    /// Starts it all.
    pub async fn start(self) -> Harness {
        let dir = TempDir::new().expect("a directory");
        let simulator = simulate(self.playwright.clone()).await;
        let second = match &self.second {
            Some(playwright) => Some(simulate(playwright.clone()).await),
            None => None,
        };
        let mut config = self.config(&dir, &simulator, second.as_ref());
        config.billing.on_hangup = self.on_hangup;
        let store = Store::open(&config.database, Create::IfMissing).expect("a database");
        set_prices(&store, &self.prices);
        (self.tweak)(&mut config);
        let server = server::start(config.clone(), store.clone())
            .await
            .expect("the server starts");
        let client = add_client(
            &store,
            &server.base_url(),
            "alice",
            &self.balance,
            &self.credit_line,
            |_| {},
        );
        Harness {
            client,
            store,
            simulator,
            second,
            server: Some(server),
            config,
            dir,
        }
    }

    fn config(&self, dir: &TempDir, first: &Simulator, second: Option<&Simulator>) -> Config {
        let upstream = |name: &str, simulator: &Simulator, prices: &str, priority: u32, more: &str| {
            let url = simulator.base_url();
            let key = "sk-upstream-secret";
            let more = match more.contains("priority") {
                true => more.to_owned(),
                false => format!("priority = {priority}\n{more}"),
            };
            format!(
                "[[upstream]]\nname = \"{name}\"\nbase_url = \"{url}\"\napi_key = \"{key}\"\nprices = \"{prices}\"\n{more}\n"
            )
        };
        let mut text = format!("{}\n", self.settings);
        for (prices, models, more) in &self.vendors {
            text.push_str(&upstream(
                prices,
                first,
                prices,
                0,
                &format!("models = {models}\n{more}"),
            ));
        }
        text.push_str(&upstream("first", first, "openai", 1, &self.upstream));
        if let Some(second) = second {
            text.push_str(&upstream("second", second, "openai", 2, &self.of_second));
        }
        let env = BTreeMap::from([
            ("GATEWAY_SERVER__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("GATEWAY_DATABASE__PATH".to_owned(), database(dir).display().to_string()),
            ("GATEWAY_DATABASE__MIN_FREE".to_owned(), "0".to_owned()),
            ("GATEWAY_DATABASE__BALLAST".to_owned(), "0".to_owned()),
        ]);
        let sources = Sources {
            file: Some((PathBuf::from("gateway.toml"), text)),
            env: &env,
            flags: Vec::new(),
            read: &|path| {
                let path = path.display();
                Err(bilingual!(en: "{path} is not read by tests", zh: "测试不读取 {path}"))
            },
        };
        let loaded = Config::load(sources).expect("settings");
        loaded.complete().expect("secrets")
    }
}

async fn simulate(playwright: Playwright) -> Simulator {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let started = Simulator::start(anywhere, playwright, Options::default()).await;
    started.expect("a free port")
}

fn database(dir: &TempDir) -> PathBuf {
    dir.path().join("gateway.db")
}

/// Who acts in tests.
pub fn operator() -> Actor {
    Actor("test".into())
}

fn set_prices(store: &Store, prices: &[(String, String)]) {
    let now = time::now();
    let row = |(model, json): &(String, String)| {
        let list = ListName::parse("openai").expect("a name");
        (list, model.clone(), now, Price::from_json(json).expect("a price"))
    };
    let rows: Vec<_> = prices.iter().map(row).collect();
    if !rows.is_empty() {
        committed(store.set_prices(&rows, &operator(), now));
    }
}

/// A user with a key, written beside the server.
pub fn add_client(
    store: &Store,
    base_url: &str,
    name: &str,
    balance: &str,
    credit_line: &str,
    limit: impl FnOnce(&mut NewKey),
) -> Client {
    let user = committed(store.add_user(&new_user(name, balance, credit_line), &operator(), time::now()));
    let (mut new, key) = new_key(user.id);
    limit(&mut new);
    let issued = committed(store.issue_key(&new, &operator(), time::now()));
    Client {
        user: user.id,
        key_id: issued.id,
        key: key.reveal().to_owned(),
        base_url: base_url.to_owned(),
        http: http(),
    }
}

/// A user to add, with dollars.
pub fn new_user(name: &str, balance: &str, credit_line: &str) -> NewUser {
    let usd = |text: &str| text.parse::<Usd>().expect("an amount");
    NewUser {
        id: UserId(Uuid::now_v7()),
        name: name.to_owned(),
        email: None,
        credit_line: usd(credit_line),
        balance: usd(balance),
        budgets: Vec::new(),
        rates: Rates::default(),
    }
}

/// A key to issue, and what it is.
pub fn new_key(user_id: UserId) -> (NewKey, GatewayKey) {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).expect("random numbers");
    let key = GatewayKey::from_entropy(entropy);
    let new = NewKey {
        id: KeyId(Uuid::now_v7()),
        user_id,
        name: "test".into(),
        prefix: key.prefix().to_owned(),
        hash: key.hash(),
        expires_at: None,
        models: Vec::new(),
        ips: Vec::new(),
        on_hangup: None,
        budgets: None,
        limits: Vec::new(),
        rates: Rates::default(),
    };
    (new, key)
}

/// What was written; anything else fails the test.
pub fn committed<D: std::fmt::Debug, R: std::fmt::Debug>(outcome: Outcome<D, R>) -> D {
    match outcome {
        Outcome::Committed(value) => value,
        other => panic!("not committed: {other:?}"),
    }
}
