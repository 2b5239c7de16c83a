//! Streams cut at every byte, on either side: a row each, an honest end, and nothing charged but what was priced.
//!
//! `GATEWAY_CUT_STREAMS` says how many streams of our own, and how many recordings, are cut at every byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codex_gateway::config::OnHangup;
use codex_gateway::simulator::{Gate, Playwright, Request, Script, ServedUsage, Step};
use codex_gateway::store::entries::Credit;
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use codex_gateway::store::{Actor, UserId};
use codex_gateway::time;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::books::Books;
use crate::campaign;
use crate::client::{Client, drain};
use crate::harness::{Harness, committed};
use crate::price::{at_hour, expected_charge, find_in_catalogue};
use crate::replay::{self, Recorded};

/// Exchanges at the same time.
const AT_ONCE: usize = 32;

/// Nothing takes so long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of the streams that are not cut at every byte, so many places are.
const SAMPLE: usize = 4;

/// At one of so many bytes, this one, it is the poor client that leaves.
const ONE_IN: usize = 8;
const POOR: usize = 5;

/// Among so many recordings there are some that cost more than a poor client has.
const ENOUGH: usize = 20;

/// What a stream is worth to users who pay for all of it.
const RICH: &str = "1000000";

/// Who cuts, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The upstream's connection breaks.
    Breaks,
    /// The upstream ends cleanly, as if that were all.
    Ends,
    /// The client leaves; the upstream would go on.
    Leaves,
}

impl Cut {
    const ALL: [Cut; 3] = [Cut::Breaks, Cut::Ends, Cut::Leaves];
}

/// What the upstream and a client that leaves at the same byte tell each other.
struct Meeting {
    /// The upstream has the call.
    called: Notify,
    /// The upstream may go on.
    left: Gate,
}

/// A recorded stream, and where its events end.
struct Stream {
    recorded: Recorded,
    /// Where each whole event ends, and whether it may be the stream's end.
    events: Vec<(usize, bool)>,
    meetings: Vec<Meeting>,
}

impl Stream {
    fn new(recorded: Recorded) -> Stream {
        let text = String::from_utf8(recorded.bytes.to_vec()).expect("text");
        let blanks = ["\r\n\r\n", "\r\r", "\n\n"];
        let blank = blanks.into_iter().find(|blank| text.contains(blank));
        let mut end = 0;
        let events = text.split_inclusive(blank.expect("the end of an event")).map(|event| {
            end += event.len();
            (end, may_end(event))
        });
        let meeting = |_| Meeting {
            called: Notify::new(),
            left: Gate::closed(),
        };
        Stream {
            events: events.collect(),
            meetings: (0..=recorded.bytes.len()).map(meeting).collect(),
            recorded,
        }
    }

    /// How much of the first bytes is whole events.
    fn whole(&self, at: usize) -> usize {
        let ends = self.events.iter().map(|(end, _)| *end);
        ends.take_while(|end| *end <= at).last().unwrap_or(0)
    }

    /// How much of the first bytes leaves at once at least: whole events before what may be the end.
    fn leaves_at_once(&self, at: usize) -> usize {
        let events = self.events.iter().take_while(|(end, may_end)| *end <= at && !may_end);
        events.last().map_or(0, |(end, _)| *end)
    }

    /// Whether nothing that may be the stream's end is among the first bytes.
    fn is_cut(&self, at: usize) -> bool {
        self.leaves_at_once(at) == self.whole(at)
    }

    /// The upstream: how the stream is cut, and where, stands in a field that passes the gateway.
    fn playwright(self: &Arc<Stream>) -> Playwright {
        let stream = Arc::clone(self);
        Arc::new(move |request: &Request| {
            let asked = request.json["user"].as_str().and_then(|user| user.split_once(' '));
            let (cut, at) = asked.expect("how and where");
            let at: usize = at.parse().expect("a number");
            let (before, after) = (stream.recorded.bytes.slice(..at), stream.recorded.bytes.slice(at..));
            let send = |bytes: Bytes| (!bytes.is_empty()).then(|| Step::send(bytes));
            let mut steps = Vec::from_iter(send(before));
            match cut {
                "Breaks" => steps.push(Step::Break),
                "Ends" => {}
                _ => {
                    let meeting = &stream.meetings[at];
                    meeting.called.notify_one();
                    steps.push(Step::Wait(meeting.left.clone()));
                    steps.extend(send(after));
                }
            }
            Script::sse(steps)
        })
    }

    fn body(&self, cut: Cut, at: usize) -> Value {
        let mut body = json!({"model": self.recorded.model, "stream": true, "user": format!("{cut:?} {at}")});
        match self.recorded.path {
            "/chat/completions" => body["messages"] = json!([{"role": "user", "content": "Hello"}]),
            "/completions" => body["prompt"] = json!("Hello"),
            _ => body["input"] = json!("Hello"),
        }
        if self.recorded.path != "/responses" {
            body["stream_options"] = json!({"include_usage": true});
        }
        body
    }
}

/// Whether an event may be the last one that means something; rather too often than never.
fn may_end(event: &str) -> bool {
    let words = [
        "[DONE]",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error\":{",
        "error\": {",
        "event: error",
        "\"type\":\"error",
        "\"type\": \"error",
    ];
    words.iter().any(|word| event.contains(word))
}

/// What only the upstream may say.
const WORDS: [&str; 3] = ["[DONE]", "event: response.completed", "event: response.incomplete"];

/// Who calls, so that the rows can be told apart.
struct Clients {
    reads: Client,
    drains: Client,
    cancels: Client,
    /// Has money for its holds, and not for its charges.
    poor: Client,
}

impl Clients {
    fn new(harness: &Harness) -> Clients {
        Clients {
            reads: harness.add_client("reads", RICH),
            drains: harness.add_client_who("drains", RICH, OnHangup::Drain),
            cancels: harness.add_client_who("cancels", RICH, OnHangup::Cancel),
            poor: harness.add_client_who("poor", "0", OnHangup::Drain),
        }
    }

    /// Who leaves at this byte.
    fn who_leaves(&self, at: usize) -> &Client {
        match at % ONE_IN {
            POOR => &self.poor,
            odd if odd % 2 == 1 => &self.cancels,
            _ => &self.drains,
        }
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Counts {
    cuts: usize,
    refused: usize,
    left: usize,
    uncollected: i128,
}

/// Cuts at these bytes in every way, and looks at the books.
async fn cut_at(recorded: Recorded, places: Vec<usize>) -> Counts {
    let stream = Arc::new(Stream::new(recorded));
    let harness = replay::with_vendors(Harness::builder().playwright(stream.playwright()));
    let harness = harness.start().await;
    let clients = Clients::new(&harness);
    let whole = stream.recorded.bytes.len();
    let reference = read(&stream, &clients.reads, Cut::Ends, whole).await;
    let all = places.iter().flat_map(|at| Cut::ALL.map(|cut| (cut, *at)));
    let cuts = all.map(|(cut, at)| cut_once(&stream, &harness, &clients, cut, at));
    let done: Vec<Done> = stream::iter(cuts).buffer_unordered(AT_ONCE).collect().await;
    let books = harness.finish().await;
    let mut counts = check(&stream, &clients, &books, &reference, &done);
    counts.cuts = done.len();
    counts
}

/// A cut that was made.
enum Done {
    /// The client read to the end: the exchange.
    Read(Cut, usize, String),
    Left,
    /// A poor client's call, not admitted.
    Refused,
}

async fn cut_once(stream: &Stream, harness: &Harness, clients: &Clients, cut: Cut, at: usize) -> Done {
    let done = async {
        match cut {
            Cut::Breaks | Cut::Ends => Done::Read(cut, at, read(stream, &clients.reads, cut, at).await),
            Cut::Leaves => leave(stream, harness, clients, at).await,
        }
    };
    let done = timeout(PATIENCE, done).await;
    done.unwrap_or_else(|_| panic!("{} {cut:?} at {at}: no end", stream.recorded.file))
}

/// Reads a stream that the upstream cuts: its end is the upstream's, or an error. Gives the exchange.
async fn read(stream: &Stream, client: &Client, cut: Cut, at: usize) -> String {
    let what = format!("{} {cut:?} at {at}", stream.recorded.file);
    let path = format!("/v1{}", stream.recorded.path);
    let answer = client.send(&path, &stream.body(cut, at)).await;
    let (status, exchange) = (answer.status(), answer.headers()["x-request-id"].clone());
    let (arrived, end) = drain(answer).await;
    let arrived = String::from_utf8_lossy(&arrived).into_owned();
    assert!(status == 200 || stream.whole(at) == 0, "{what}: {status} {arrived}");
    let sent = match cut {
        Cut::Ends => at,
        _ => stream.whole(at),
    };
    let sent = String::from_utf8_lossy(&stream.recorded.bytes[..sent]);
    for word in WORDS {
        let (arrived, sent) = (arrived.matches(word).count(), sent.matches(word).count());
        assert!(arrived <= sent, "{what}: {arrived} {word} of {sent}");
    }
    let begun = stream.leaves_at_once(at);
    assert!(
        arrived.as_bytes().starts_with(&stream.recorded.bytes[..begun]),
        "{what}: {arrived}"
    );
    if cut == Cut::Breaks && stream.is_cut(at) && status == 200 {
        let told = &arrived[begun..];
        assert!(end.is_err() || told.contains("server_error"), "{what}: {arrived}");
    }
    exchange.to_str().expect("text").to_owned()
}

/// Leaves when all that can have come has.
async fn leave(stream: &Stream, harness: &Harness, clients: &Clients, at: usize) -> Done {
    let client = clients.who_leaves(at);
    let mut body = stream.body(Cut::Leaves, at);
    if client.user == clients.poor.user {
        // The least that can be held, and about as much money.
        let limit = match stream.recorded.path {
            "/responses" => "max_output_tokens",
            _ => "max_tokens",
        };
        body[limit] = json!(16);
        pay_in(harness, client.user, 150_000);
    }
    let meeting = &stream.meetings[at];
    let path = format!("/v1{}", stream.recorded.path);
    let mut asked = Box::pin(client.send(&path, &body));
    let answer = tokio::select! {
        answer = &mut asked => Some(answer),
        () = meeting.called.notified(), if stream.leaves_at_once(at) == 0 => None,
    };
    if let Some(answer) = answer {
        if answer.status() == 429 && client.user == clients.poor.user {
            return Done::Refused;
        }
        assert_eq!(answer.status(), 200, "{} at {at}", stream.recorded.file);
        let (mut pieces, mut arrived) = (answer.bytes_stream(), 0);
        while arrived < stream.leaves_at_once(at) {
            let Some(piece) = pieces.next().await else {
                // Its limit ended it.
                assert_eq!(client.user, clients.poor.user, "{} at {at}", stream.recorded.file);
                break;
            };
            arrived += piece.expect("bytes").len();
        }
    }
    drop(asked);
    // The gateway notices a moment later, which nothing tells when it drains.
    tokio::time::sleep(Duration::from_millis(10)).await;
    if client.user != clients.cancels.user {
        meeting.left.open();
    }
    Done::Left
}

fn pay_in(harness: &Harness, user: UserId, nanos: i64) {
    let credit = Credit {
        user,
        amount: codex_gateway::money::Usd::from_nanos(nanos),
        adjustment: false,
        reference: None,
        note: None,
    };
    committed(harness.store.credit(&credit, &Actor("test".into()), time::now()));
}

/// One row each; what is charged and what could not be is what was priced.
fn check(stream: &Stream, clients: &Clients, books: &Books, reference: &str, done: &[Done]) -> Counts {
    let file = &stream.recorded.file;
    let reference = books.exchange(reference);
    let mut counts = Counts {
        refused: done.iter().filter(|done| matches!(done, Done::Refused)).count(),
        ..Counts::default()
    };
    assert_eq!(
        books.exchanges.len() + counts.refused,
        done.len() + 1,
        "{file}: a row each"
    );
    for done in done {
        if let Done::Read(Cut::Breaks, at, exchange) = done
            && stream.is_cut(*at)
        {
            let state = books.exchange(exchange).state;
            let nothing_came = *at == 0 && state == State::Failed;
            assert!(state == State::Broken || nothing_came, "{file} at {at}: {state:?}");
        }
    }
    let is_whole = reference.basis == Basis::Reported && reference.state != State::Failed;
    for row in &books.exchanges {
        if let Some(priced) = priced(&stream.recorded, row) {
            assert_eq!(i128::from(row.charge.nanos()), priced, "{file}: {row:?}");
        }
        if row.basis == Basis::Estimated {
            assert!(
                row.charge.saturating_sub(row.uncollected) <= row.held,
                "{file}: {row:?}"
            );
        }
        if row.user == clients.drains.user && is_whole {
            assert_eq!(
                (row.charge, row.basis),
                (reference.charge, Basis::Reported),
                "{file}: {row:?}"
            );
        }
        if row.user != clients.poor.user {
            assert_eq!(row.uncollected.nanos(), 0, "{file}: {row:?}");
        }
        counts.left += usize::from(row.state == State::Left);
        counts.uncollected += i128::from(row.uncollected.nanos());
    }
    let priced: i128 = books.exchanges.iter().map(|row| i128::from(row.charge.nanos())).sum();
    assert_eq!(books.charged() + counts.uncollected, priced, "{file}");
    counts
}

/// What a row's usage costs by the catalogue; not for hosted tools, which have fees.
fn priced(recorded: &Recorded, row: &ExchangeRow) -> Option<i128> {
    let usage = ServedUsage {
        input: row.usage.input_tokens.get(),
        cached: row.usage.cached_tokens.get(),
        cache_write: row.usage.cache_write_tokens.get(),
        output: row.usage.output_tokens.get(),
        reasoning: 0,
        tier: Some(format!("{:?}", row.tier).to_lowercase()),
    };
    let tools = &row.usage.tools;
    if (tools.web_searches, tools.file_searches, tools.containers) != (0, 0, 0) || tools.image_gen.is_some() {
        return None;
    }
    let price = at_hour(find_in_catalogue(recorded.list?, &recorded.model)?, row.started_at);
    Some(expected_charge(&usage, &price, "1"))
}

/// Every byte, or a sample of them that hits other ones each time.
fn places(recorded: &Recorded, every_byte: bool, dice: &mut campaign::Dice) -> Vec<usize> {
    let length = recorded.bytes.len();
    if every_byte {
        return (0..=length).collect();
    }
    let mut places: Vec<usize> = (0..SAMPLE).map(|_| dice.roll(length + 1)).collect();
    // One at which the poor client leaves, so that there is no sample without any.
    places.push((dice.roll(length / ONE_IN + 1) * ONE_IN + POOR).min(length));
    places.sort_unstable();
    places.dedup();
    places
}

/// Cuts streams, the shortest first: as many as `GATEWAY_CUT_STREAMS` says, each at every byte; else all of them, only
/// so many at every byte. Gives how many streams that were, and what could not be collected, in nano-dollars.
async fn cut_all(suite: &str, mut streams: Vec<Recorded>, at_every_byte: usize) -> (usize, i128) {
    let mut dice = campaign::Dice(campaign::seed());
    let said = campaign::size("GATEWAY_CUT_STREAMS", 0);
    streams.sort_by_key(|recorded| recorded.bytes.len());
    if said > 0 {
        streams.truncate(said);
    }
    let (count, at_every_byte) = (streams.len(), at_every_byte.max(said).min(streams.len()));
    let mut sum = Counts::default();
    for (number, recorded) in streams.into_iter().enumerate() {
        let places = places(&recorded, number < at_every_byte, &mut dice);
        let counts = cut_at(recorded, places).await;
        sum.cuts += counts.cuts;
        sum.refused += counts.refused;
        sum.left += counts.left;
        sum.uncollected += counts.uncollected;
    }
    let counts = json!({
        "streams": count, "at_every_byte": at_every_byte, "cuts": sum.cuts, "left": sum.left,
        "refused": sum.refused, "uncollected_nanos": sum.uncollected.to_string(),
    });
    campaign::report(suite, counts);
    (count, sum.uncollected)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_our_own_cut_at_every_byte_are_settled_once_and_never_said_to_be_whole() {
    cut_all("cuts", replay::of_our_own(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_streams_cut_at_every_byte_are_settled_once_and_never_said_to_be_whole() {
    let recordings = replay::recordings();
    if recordings.is_empty() {
        return campaign::skip("recorded_cuts", "fixtures absent");
    }
    let (streams, uncollected) = cut_all("recorded_cuts", recordings, 0).await;
    assert!(streams < ENOUGH || uncollected > 0, "what is not collected counts too");
}
