//! What the store's tests share: a database in a folder of its own, and things to put into it.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use super::entries::Credit;
use super::keys::{Key, NewKey};
use super::ledger::{CloseHold, Excess, Hold, PlaceHold};
use super::prepared::Prepared;
use super::usage_log::{Basis, ExchangeRow, State};
use super::users::{NewUser, User};
use super::{Actor, Create, ExchangeId, KeyId, Outcome, Store, UserId};
use crate::call::{Endpoint, HostedTools};
use crate::hold::{self, Ask, Policy, Quote};
use crate::key::KeyHash;
use crate::limits::Rates;
use crate::money::Usd;
use crate::origin::{Client, Kind, Label, Origin};
use crate::pricing::{Class, Factor, Line, ListName, Price, SearchTool, Terms};
use crate::usage::Tier;
use crate::usage::{CacheTtl, ImageUsage, Tokens, ToolUsage, Usage};

/// A database in a folder that goes with it.
pub(super) struct Desk {
    folder: TempDir,
    pub(super) store: Store,
}

impl Desk {
    pub(super) fn new() -> Desk {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("gateway.db"), Create::IfMissing).expect("a database");
        Desk { folder, store }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("gateway.db")
    }

    /// The same database as another process opens it.
    pub(super) fn again(&self) -> Store {
        Store::open(&self.path(), Create::Never).expect("it is there")
    }

    /// A connection without any of the store's protections but the schema's.
    #[expect(
        clippy::disallowed_methods,
        reason = "tests go past the store to see what the schema holds alone"
    )]
    pub(super) fn raw(&self) -> Connection {
        let conn = Connection::open(self.path()).expect("it opens");
        conn.execute_batch("PRAGMA recursive_triggers = ON; PRAGMA busy_timeout = 5000;")
            .expect("settings");
        conn
    }

    pub(super) fn user(&self, name: &str, balance: &str) -> User {
        let new = NewUser {
            id: UserId(Uuid::now_v7()),
            name: name.to_owned(),
            email: Some(format!("{name}@example.org")),
            credit_line: Usd::ZERO,
            balance: usd(balance),
            budgets: Vec::new(),
            rates: Rates::default(),
        };
        done(self.store.add_user(&new, &by(), at(0)))
    }

    pub(super) fn key(&self, user: &User) -> Key {
        let id = Uuid::now_v7();
        done(self.store.issue_key(&new_key(user.id, id), &by(), at(1)))
    }

    /// A user's state now.
    pub(super) fn now(&self, user: &User) -> User {
        let found = self.store.find_user(&user.id.to_string()).expect("it reads");
        found.expect("the user is there")
    }

    pub(super) fn assert_books_balance(&self) {
        let findings = self.store.verify().expect("it verifies").findings;
        assert!(findings.is_empty(), "{findings:#?}");
    }

    /// Takes a hold in a transaction of its own.
    pub(super) fn place(&self, ask: &PlaceHold) -> Outcome<Hold, super::ledger::HoldRefused> {
        self.store
            .write("placing", |tx| super::ledger::place(&Prepared::of(tx), ask))
    }

    /// Takes a hold that has to be given, and tells how much it is.
    pub(super) fn set_aside(&self, ask: &PlaceHold) -> Usd {
        done(self.place(ask)).amount
    }

    /// Closes a hold in a transaction of its own.
    pub(super) fn close(&self, exchange: ExchangeId, close: &CloseHold) -> super::ledger::Closed {
        done(self.store.write::<_, ()>("closing", |tx| {
            super::ledger::close(&Prepared::of(tx), exchange, close).map(Ok)
        }))
    }
}

pub(super) fn new_key(user_id: UserId, id: Uuid) -> NewKey {
    let mut hash = [7; 32];
    hash[..16].copy_from_slice(id.as_bytes());
    NewKey {
        id: KeyId(id),
        user_id,
        name: "laptop".to_owned(),
        prefix: format!("sk-gw-{}", &id.simple().to_string()[20..]),
        hash: KeyHash(hash),
        expires_at: None,
        models: vec!["gpt-*".to_owned()],
        ips: vec!["10.0.0.0/8".parse().expect("a network")],
        on_hangup: Some(crate::config::OnHangup::Drain),
        budgets: None,
        limits: Vec::new(),
        rates: Rates::default(),
    }
}

pub(super) fn done<D, R: std::fmt::Debug>(outcome: Outcome<D, R>) -> D {
    match outcome {
        Outcome::Committed(done) => done,
        Outcome::Refused(why) => panic!("refused: {why:?}"),
        Outcome::NotCommitted(e) | Outcome::Unknown(e) => panic!("failed: {e}: {:?}", e.source),
    }
}

pub(super) fn refused<D: std::fmt::Debug, R>(outcome: Outcome<D, R>) -> R {
    match outcome {
        Outcome::Refused(why) => why,
        Outcome::Committed(done) => panic!("committed: {done:?}"),
        Outcome::NotCommitted(e) | Outcome::Unknown(e) => panic!("failed: {e}: {:?}", e.source),
    }
}

pub(super) fn usd(text: &str) -> Usd {
    text.parse().expect("an amount")
}

pub(super) fn by() -> Actor {
    Actor("test".to_owned())
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + seconds).expect("a time")
}

pub(super) fn top_up(user: &User, amount: &str, reference: Option<&str>) -> Credit {
    Credit {
        user: user.id,
        amount: usd(amount),
        adjustment: amount.starts_with('-'),
        reference: reference.map(str::to_owned),
        note: Some("a note".to_owned()),
    }
}

/// A quote whose hold is exactly this amount (above a dollar in whole thousands of nano-dollars).
pub(super) fn quote(amount: Usd) -> Quote {
    let nanos = u64::try_from(amount.nanos()).expect("not negative");
    let (rate, input) = if nanos <= 1_000_000_000 {
        ("0.001", nanos)
    } else {
        ("1", nanos / 1000)
    };
    let json = format!(r#"{{"kind":"text","rates":{{"input":"{rate}","output":"{rate}"}}}}"#);
    let price = Price::from_json(&json).expect("a price");
    let terms = Terms {
        price: &price,
        image_price: None,
        search: SearchTool::Current,
        tier: Tier::Standard,
        region: None,
        markup: Factor::ONE,
        at: at(0),
    };
    let tools = HostedTools::default();
    let ask = Ask {
        input: Tokens::saturating(input),
        rejected: Tokens::ZERO,
        stated: Some(Tokens::ZERO),
        cache_ttl: CacheTtl::Minutes30,
        choices: 1,
        tools: &tools,
        medium: crate::call::Medium::Text,
    };
    hold::quote(&ask, &terms).expect("a quote")
}

pub(super) fn exchange() -> ExchangeId {
    ExchangeId(Uuid::now_v7())
}

pub(super) fn ask(exchange: ExchangeId, key: &Key, amount: &str) -> PlaceHold {
    PlaceHold {
        exchange,
        user: key.user_id,
        key: key.id,
        budgets: key.budgets,
        quote: quote(usd(amount)),
        policy: Policy {
            share_ppm: 250_000,
            min_output: Tokens::saturating(8192),
        },
        endpoint: Endpoint::Responses,
        streamed: true,
        model: "gpt".to_owned(),
        priced_model: "gpt-5".to_owned(),
        upstream: "openai".to_owned(),
        list: Some(ListName::openai()),
        origin: Origin::default(),
        once: None,
        now: at(10),
    }
}

/// Lines in which the plain input makes the charge, at ten dollars per million, and everything else is free.
fn lines(tokens: u64, charge: &str) -> Vec<Line> {
    let free = [
        (Class::CachedInput, 10),
        (Class::CacheWrite, 11),
        (Class::CacheWrite12h, 12),
        (Class::AudioInput, 13),
        (Class::Output, 35),
        (Class::AudioOutput, 15),
        (Class::WebSearch, 1),
        (Class::FileSearch, 2),
        (Class::Container, 3),
        (Class::ImageTextInput, 16),
        (Class::ImageInput, 17),
        (Class::ImageTextOutput, 18),
        (Class::ImageOutput, 19),
    ];
    let line = |class, quantity, rate: &str, amount: &str| Line {
        class,
        quantity,
        rate: rate.to_owned(),
        amount: amount.to_owned(),
    };
    let paid = (tokens > 0).then(|| line(Class::Input, tokens, "10", &usd(charge).to_string()));
    let free = free.map(|(class, quantity)| line(class, quantity, "0", "0"));
    paid.into_iter().chain(free).collect()
}

/// A row in which every column has a value.
pub(super) fn row(exchange: ExchangeId, key: &Key, charge: &str) -> ExchangeRow {
    let some = |n: u64| Tokens::saturating(n);
    let tokens = u64::try_from(usd(charge).nanos() / 10_000).expect("not negative");
    ExchangeRow {
        id: exchange,
        user: key.user_id,
        key: key.id,
        endpoint: Endpoint::Responses,
        streamed: true,
        model: "gpt".to_owned(),
        priced_model: "gpt-5".to_owned(),
        answered_model: Some("gpt-5-2026".to_owned()),
        upstream: "openai".to_owned(),
        list: Some(ListName::openai()),
        price_from: Some(at(-1000)),
        tier: Tier::Flex,
        state: State::Completed,
        basis: Basis::Reported,
        usage: Usage {
            input_tokens: some(tokens + 10 + 11 + 12 + 13),
            cached_tokens: some(10),
            cache_write_tokens: some(11),
            cache_write_12h_tokens: some(12),
            audio_input_tokens: some(13),
            output_tokens: some(50),
            reasoning_tokens: some(14),
            audio_output_tokens: some(15),
            tools: ToolUsage {
                web_searches: 1,
                file_searches: 2,
                containers: 3,
                image_gen: Some(ImageUsage {
                    text_input_tokens: some(16),
                    image_input_tokens: some(17),
                    text_output_tokens: some(18),
                    image_output_tokens: some(19),
                }),
            },
            ..Usage::default()
        },
        lines: lines(tokens, charge),
        uplift: Some("1".to_owned()),
        markup: "1".to_owned(),
        cost: usd(charge),
        charge: usd(charge),
        uncollected: Usd::ZERO,
        held: Usd::ZERO,
        output_limit: Some(some(4096)),
        balance_after: Usd::ZERO,
        response_id: Some(format!("resp_{}", exchange.0.simple())),
        item_ids: vec![format!("msg_{}", exchange.0.simple())],
        upstream_request_id: Some("req_1".to_owned()),
        upstream_status: Some(200),
        attempts: 1,
        started_at: at(10),
        first_byte: Some(Duration::from_millis(300)),
        duration: Duration::from_millis(1200),
        origin: Origin {
            session: Label::new("019a-session"),
            turn: Label::new("019a-turn"),
            agent: Label::new("019a-agent"),
            kind: Some(Kind::SubAgent),
            client: Client::parse("codex_exec/0.169.0"),
        },
    }
}

pub(super) fn closing(exchange: ExchangeId, key: &Key, charge: &str) -> CloseHold {
    CloseHold {
        row: row(exchange, key, charge),
        excess: Excess::Collect,
        attempts: Vec::new(),
    }
}
