//! The load: people who call all the time, several calls each at once, and note what they get.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use codex_gateway::money::Usd;
use codex_gateway::store::Store;
use codex_gateway::store::entries::Credit;
use codex_gateway::time;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Client, chat, events, response};
use crate::dice::Dice;
use crate::harness::{add_client, committed, operator};
use crate::rig::{Machine, PATIENCE, Serving};

/// The header that tells a call from every other; it goes on to the upstream.
pub const MARK: &str = "x-client-request-id";

/// How long somebody waits who was refused.
const REST: Duration = Duration::from_millis(20);

/// Somebody who calls.
#[derive(Clone)]
pub struct Person {
    client: Client,
    /// How many calls at once.
    lines: usize,
    means: Means,
}

/// How much money there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    /// More than all calls cost.
    Plenty,
    /// For two calls at once and a few in all.
    Little,
}

/// What became of a call, as its client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is not over.
    UnderWay,
    /// There was nobody to connect to.
    NeverSent,
    /// The connection broke before the end.
    Cut,
    /// The answer came to its end.
    Whole,
    /// The stream came to an end that says that something went wrong.
    Failed(String),
    /// The client had enough after the first piece.
    HungUp,
    /// There was an error instead of an answer: this.
    Refused(String),
}

/// A call, as its client sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What the call is known by: the value of [`MARK`].
    pub mark: String,
    /// Whether a stream was asked for.
    pub streamed: bool,
    /// The status, once the head of the answer was there.
    pub status: Option<u16>,
    /// The gateway's id of the exchange, which came with it.
    pub exchange: Option<String>,
    /// The upstream's id, which came with the answer.
    pub response: Option<String>,
    /// What became of it.
    pub fate: Fate,
}

/// People calling a gateway, until it is gone or they are told to stop.
pub struct Load {
    log: Log,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// What everybody notes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

/// Numbers for calls, unique in this process.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Three people with plenty, ten calls at once each, and three with little, two each.
pub fn six_people(store: &Store) -> Vec<Person> {
    let person = |(name, balance, lines, means)| Person {
        client: add_client(store, "", name, balance, "0", |_| {}),
        lines,
        means,
    };
    let plenty = ["alice", "bob", "carol"].map(|name| (name, "200", 10, Means::Plenty));
    let little = ["dan", "erin", "frank"].map(|name| (name, "0.0015", 2, Means::Little));
    plenty.into_iter().chain(little).map(person).collect()
}

impl Person {
    /// Gives those with little a little more, as an operator does beside the running server.
    pub fn help(&self, store: &Store) {
        if self.means == Means::Little {
            let credit = Credit {
                user: self.client.user,
                amount: "0.0005".parse::<Usd>().expect("an amount"),
                adjustment: false,
                reference: None,
                note: None,
            };
            committed(store.credit(&credit, &operator(), time::now()));
        }
    }

    /// The person as a client of this gateway.
    pub fn client_of(&self, serving: &Serving) -> Client {
        Client {
            base_url: serving.url.clone(),
            ..self.client.clone()
        }
    }
}

impl Load {
    /// Everybody calls.
    pub fn start(machine: &Machine, serving: &Serving) -> Load {
        let load = Load {
            log: Log::default(),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        for person in &machine.people {
            for _ in 0..person.lines {
                let line = Line {
                    client: person.client_of(serving),
                    means: person.means,
                    log: load.log.clone(),
                    stop: load.stop.clone(),
                };
                load.tracker.spawn(line.keep_calling());
            }
        }
        load.tracker.close();
        load
    }

    /// One call of somebody with plenty, that is to come whole.
    #[cfg(feature = "failpoints")]
    pub async fn one(machine: &Machine, serving: &Serving) -> Seen {
        let (log, client) = (Log::default(), machine.people[0].client_of(serving));
        let ask = Ask {
            hangs_up: false,
            ..Ask::new(CALLS.fetch_add(1, Ordering::Relaxed), Means::Plenty)
        };
        let note = log.begin(ask.mark.clone(), ask.streamed);
        let fate = call(&client, &ask, &note).await;
        note.write(|seen| seen.fate = fate);
        log.lock()[0].clone()
    }

    /// What everybody has seen until now.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().clone()
    }

    /// Waits until the gateway is gone for everybody.
    pub async fn until_it_is_gone(self) -> Vec<Seen> {
        let gone = timeout(PATIENCE, self.tracker.wait()).await;
        gone.unwrap_or_else(|_| panic!("somebody is still served: {:?}", self.seen()));
        self.seen()
    }

    /// Nobody calls any more, and what is under way goes on to its end.
    pub async fn stop(self) -> Vec<Seen> {
        self.stop.cancel();
        self.until_it_is_gone().await
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note a call.
    fn begin(&self, mark: String, streamed: bool) -> Note {
        let mut log = self.lock();
        log.push(Seen {
            mark,
            streamed,
            status: None,
            exchange: None,
            response: None,
            fate: Fate::UnderWay,
        });
        Note(self.clone(), log.len() - 1)
    }
}

/// Where one call is noted.
struct Note(Log, usize);

impl Note {
    fn write(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.lock()[self.1]);
    }
}

/// One of a person's lines: a call after the other.
struct Line {
    client: Client,
    means: Means,
    log: Log,
    stop: CancellationToken,
}

impl Line {
    /// Calls until told to stop, or until nobody is there any more.
    async fn keep_calling(self) {
        while !self.stop.is_cancelled() {
            let ask = Ask::new(CALLS.fetch_add(1, Ordering::Relaxed), self.means);
            let note = self.log.begin(ask.mark.clone(), ask.streamed);
            let fate = call(&self.client, &ask, &note).await;
            note.write(|seen| seen.fate = fate.clone());
            match fate {
                Fate::NeverSent => return,
                Fate::Cut if !self.is_anybody_there().await => return,
                Fate::Refused(_) => sleep(REST).await,
                _ => {}
            }
        }
    }

    async fn is_anybody_there(&self) -> bool {
        let asked = self.client.request(reqwest::Method::GET, "/healthz").send().await;
        asked.is_ok_and(|answer| answer.status() == 200)
    }
}

/// What is asked.
struct Ask {
    mark: String,
    path: &'static str,
    streamed: bool,
    /// Whether the client hangs up after the first piece of a stream.
    hangs_up: bool,
    /// Whether it has a name, so that it is made once and, where that is on, recorded.
    named: bool,
    body: Value,
}

impl Ask {
    /// Every endpoint, whole and streamed; with a limit or, where there is plenty, without; some hang up.
    fn new(number: u64, means: Means) -> Ask {
        let mut dice = Dice::new(number);
        let (mark, prompt) = (
            format!("call-{number}"),
            "word ".repeat(usize::try_from(1 + number % 40).expect("few")),
        );
        let streamed = dice.between(0, 5) < 3;
        let mut more = json!({"stream": streamed});
        let limited = means == Means::Little || dice.between(0, 8) > 0;
        let (path, limit, make): (_, _, fn(&str, &Value) -> Value) = match dice.between(0, 2) {
            0 => ("/v1/chat/completions", "max_completion_tokens", chat),
            _ => ("/v1/responses", "max_output_tokens", response),
        };
        if limited {
            more[limit] = json!(dice.between(16, 80));
        }
        Ask {
            body: make(&prompt, &more),
            hangs_up: streamed && dice.between(0, 16) == 0,
            named: number.is_multiple_of(3),
            mark,
            path,
            streamed,
        }
    }
}

/// Makes a call and notes what comes.
async fn call(client: &Client, ask: &Ask, note: &Note) -> Fate {
    let mut request = client.request(reqwest::Method::POST, ask.path).header(MARK, &ask.mark);
    if ask.named {
        request = request.header("idempotency-key", &ask.mark);
    }
    let sent = request
        .header("content-type", "application/json")
        .body(ask.body.to_string());
    let mut answer = match sent.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return Fate::NeverSent,
        Err(_) => return Fate::Cut,
    };
    let id = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    note.write(|seen| {
        seen.exchange = id.map(str::to_owned);
        seen.status = Some(answer.status().as_u16());
    });
    let mut body = Vec::new();
    let ended = loop {
        match answer.chunk().await {
            Ok(Some(_)) if ask.hangs_up && answer.status() == 200 => return Fate::HungUp,
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&body).into_owned();
    if answer.status() != 200 {
        return if ended { Fate::Refused(text) } else { Fate::Cut };
    }
    note.write(|seen| seen.response = response_id(&body, ask.streamed));
    match ask.streamed {
        false if ended => Fate::Whole,
        false => Fate::Cut,
        // Who has seen the last event has the whole answer, even when the connection breaks after it.
        true if text.contains("data: [DONE]")
            || text.contains("event: response.completed")
            || text.contains("event: response.incomplete") =>
        {
            Fate::Whole
        }
        true if ended => Fate::Failed(text),
        true => Fate::Cut,
    }
}

/// The upstream's id of an answer.
fn response_id(body: &[u8], streamed: bool) -> Option<String> {
    let first = match streamed {
        true => events(body).into_iter().next()?,
        false => serde_json::from_slice(body).ok()?,
    };
    let id = if first["response"].is_object() {
        &first["response"]["id"]
    } else {
        &first["id"]
    };
    id.as_str().map(str::to_owned)
}
