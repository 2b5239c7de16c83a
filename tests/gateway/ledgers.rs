//! Ledgers of any size, written as a server writes them: several users at once, whole receipts, one writer.

use std::path::Path;
use std::time::Duration;

use codex_gateway::call::{Endpoint, HostedTools};
use codex_gateway::config::DiskConfig;
use codex_gateway::hold::{self, Ask, Policy, Quote};
use codex_gateway::money::Usd;
use codex_gateway::origin::{Client, Kind, Label, Origin};
use codex_gateway::pricing::{self, Factor, ListName, Price, SearchTool, Terms};
use codex_gateway::store::keys::Key;
use codex_gateway::store::ledger::{CloseHold, Excess, PlaceHold};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use codex_gateway::store::{Actor, Create, ExchangeId, Outcome, Store, Writer};
use codex_gateway::time;
use codex_gateway::usage::{CacheTtl, Tier, Tokens, ToolUsage, Usage};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::harness::{committed, new_key, new_user};

/// The model that everybody uses.
const MODEL: &str = "gpt-5";

/// Exchanges under way at once.
const AT_ONCE: usize = 1_024;

/// Each how many an exchange fails, and costs nothing.
const FAILS: u64 = 50;

/// A ledger that grows.
pub struct Ledger {
    /// The database.
    pub store: Store,
    keys: Vec<Key>,
    price: Price,
    from: Timestamp,
}

impl Ledger {
    /// A new database with so many users, each with money and a key.
    pub fn with_users(path: &Path, users: usize) -> Ledger {
        let store = Store::open(path, Create::IfMissing).expect("a database");
        let (_, catalogue) = pricing::catalogue().expect("a catalogue");
        let row = catalogue
            .iter()
            .find(|row| row.list.as_str() == "openai" && row.model == MODEL);
        let row = row.expect("the catalogue has the model");
        let price = Price::from_json(&row.price).expect("a price");
        let from = row.from;
        let keys = (0..users)
            .map(|number| rich(&store, &format!("user-{number}")))
            .collect();
        Ledger {
            store,
            keys,
            price,
            from,
        }
    }

    /// Makes so many more charges, and a failed exchange now and then.
    pub async fn charge(&self, charges: u64) {
        let (writer, tracker) = self.writer();
        self.charge_by(&writer, charges).await;
        stop(writer, tracker).await;
    }

    /// The writer of a server.
    pub fn writer(&self) -> (Writer, TaskTracker) {
        let tracker = TaskTracker::new();
        (self.store.start_writer(&tracker, DiskConfig::default()), tracker)
    }

    /// The same by a writer that goes on.
    pub async fn charge_by(&self, writer: &Writer, charges: u64) {
        let exchanges = (0..charges + charges / FAILS).map(|number| self.exchange(writer, number));
        futures_util::stream::iter(exchanges)
            .for_each_concurrent(AT_ONCE, |exchange| exchange)
            .await;
    }

    /// Takes a hold that nobody closes.
    pub async fn hold_by(&self, writer: &Writer) {
        let ask = self.ask(ExchangeId(Uuid::now_v7()), &self.keys[0], 0);
        let asked = writer.hold(ask).await.expect("there is room in the queue");
        assert!(matches!(asked, Outcome::Committed(_)), "not held: {asked:?}");
    }

    async fn exchange(&self, writer: &Writer, number: u64) {
        let at = usize::try_from(number).expect("a number") % self.keys.len();
        let (key, id) = (&self.keys[at], ExchangeId(Uuid::now_v7()));
        let asked = writer
            .hold(self.ask(id, key, number))
            .await
            .expect("there is room in the queue");
        let Outcome::Committed((hold, place)) = asked else {
            panic!("not held: {asked:?}");
        };
        let close = CloseHold {
            row: self.row(id, key, number),
            excess: Excess::Collect,
            attempts: Vec::new(),
        };
        writer.close(hold, place, close).await.expect("it settles");
    }

    fn ask(&self, exchange: ExchangeId, key: &Key, number: u64) -> PlaceHold {
        PlaceHold {
            exchange,
            user: key.user_id,
            key: key.id,
            budgets: key.budgets,
            quote: self.quote(Tokens::saturating(1_000 + number % 5_000)),
            policy: Policy {
                share_ppm: 250_000,
                min_output: Tokens::saturating(8192),
            },
            endpoint: Endpoint::Responses,
            streamed: true,
            model: MODEL.to_owned(),
            priced_model: MODEL.to_owned(),
            upstream: "openai".to_owned(),
            list: Some(ListName::openai()),
            origin: codex_gateway::origin::Origin::default(),
            once: None,
            now: time::now(),
        }
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            price: &self.price,
            image_price: None,
            search: SearchTool::Current,
            tier: Tier::Standard,
            region: None,
            markup: Factor::parse("1.04").expect("a factor"),
            at: self.from,
        }
    }

    fn quote(&self, input: Tokens) -> Quote {
        let tools = HostedTools::default();
        let ask = Ask {
            input,
            rejected: Tokens::ZERO,
            stated: Some(Tokens::saturating(2_000)),
            cache_ttl: CacheTtl::Minutes30,
            choices: 1,
            tools: &tools,
            medium: codex_gateway::call::Medium::Text,
        };
        hold::quote(&ask, &self.terms()).expect("a quote")
    }

    /// A receipt as Codex makes them: most of the input is cached, much of the output is reasoning.
    fn row(&self, id: ExchangeId, key: &Key, number: u64) -> ExchangeRow {
        let fails = number % (FAILS + 1) == FAILS;
        let tokens = |count: u64| Tokens::saturating(if fails { 0 } else { count });
        let usage = Usage {
            input_tokens: tokens(1_000 + number % 5_000),
            cached_tokens: tokens(700),
            output_tokens: tokens(200 + number % 700),
            reasoning_tokens: tokens(100),
            cache_write_tokens: Tokens::ZERO,
            cache_write_12h_tokens: Tokens::ZERO,
            audio_input_tokens: Tokens::ZERO,
            audio_output_tokens: Tokens::ZERO,
            tools: ToolUsage::default(),
            seconds: 0,
            characters: 0,
        };
        let bill = pricing::bill(&usage, &self.terms()).expect("a bill");
        let name = |kind: &str| format!("{kind}_{}{:016x}", id.0.simple(), number);
        ExchangeRow {
            id,
            user: key.user_id,
            key: key.id,
            endpoint: Endpoint::Responses,
            streamed: true,
            model: MODEL.to_owned(),
            priced_model: MODEL.to_owned(),
            answered_model: (!fails).then(|| "gpt-5-2025-08-07".to_owned()),
            upstream: "openai".to_owned(),
            list: Some(ListName::openai()),
            price_from: Some(self.from),
            tier: Tier::Standard,
            state: if fails { State::Failed } else { State::Completed },
            basis: Basis::Reported,
            usage,
            lines: bill.lines,
            uplift: None,
            markup: "1.04".to_owned(),
            cost: bill.cost,
            charge: bill.charge,
            uncollected: Usd::ZERO,
            held: Usd::ZERO,
            output_limit: None,
            balance_after: Usd::ZERO,
            response_id: (!fails).then(|| name("resp")),
            item_ids: if fails {
                Vec::new()
            } else {
                vec![name("rs"), name("msg")]
            },
            upstream_request_id: Some(format!("req_{}", id.0.simple())),
            upstream_status: Some(if fails { 500 } else { 200 }),
            attempts: 1,
            started_at: time::now(),
            first_byte: Some(Duration::from_micros(431_210 + number % 1_000)),
            duration: Duration::from_micros(2_318_112 + number % 100_000),
            origin: Origin {
                session: Label::new(&format!("ses-{}", number / 40)),
                turn: Label::new(&format!("turn-{}", number / 4)),
                agent: Label::new("agent").filter(|_| number % 4 == 1),
                kind: Some(if number % 4 == 1 { Kind::SubAgent } else { Kind::Turn }),
                client: Client::parse("codex_exec/0.169.0"),
            },
        }
    }
}

/// Waits until all that was asked of a writer is in the database, and its log is gone.
pub async fn stop(writer: Writer, tracker: TaskTracker) {
    drop(writer);
    tracker.close();
    tracker.wait().await;
}

/// A user with a million dollars, and a key.
fn rich(store: &Store, name: &str) -> Key {
    let actor = Actor("test".to_owned());
    let user = committed(store.add_user(&new_user(name, "1000000", "0"), &actor, time::now()));
    let (key, _) = new_key(user.id);
    committed(store.issue_key(&key, &actor, time::now()))
}
