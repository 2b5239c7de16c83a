//! What a session cost, turn by turn, and what made it dear.
//!
//! [`Tally`] is told the exchanges of one session in the order in which they came, and makes a [`Report`] of them: a pure
//! function of usage rows and the prices they were billed by. Turns, kinds and sub-agents each add up to the total, and
//! the total to what the ledger says of these exchanges. Causes do not: a sub-agent's call at a dear tier is in two of them.
//!
//! What a cause cost is the difference of two bills of the same exchange, the one that was made and the one without the
//! cause: with the input read from the cache, at the standard tier, or at the rates of a short input. Nothing is rounded
//! but by [`bill`].
//!
//! Whether input could have been in the cache is judged within a thread, the session's own or that of a sub-agent: what
//! the call before it read is at the beginning of what this one reads, unless the conversation was compacted in between.
//! Titles and reviews are conversations of their own beside it. Of a client that says of no call what turn it is of, or what
//! for, no thread is known: conversations that have nothing in common may share the name that makes them a session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::money::Usd;
use crate::origin::{Client, Kind, Label, Origin};
use crate::pricing::{Factor, Price, SearchTool, Terms, bill};
use crate::store::sessions::OfSession;
use crate::store::usage_log::{ExchangeRow, State, UsageSum};
use crate::usage::{Tier, Tokens, Usage};

/// After so long without a call a prompt may have left the cache: the shortest life that vendors promise.
const PAUSE: Duration = Duration::from_secs(5 * 60);

/// Fewer tokens than this are not missed: caches begin with so many, and go on in blocks of a hundred or more.
const MISSED_AT_LEAST: u64 = 1_024;

/// What a session came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The client of the newest exchange that names one.
    pub client: Option<Client>,
    /// The models that were asked for.
    pub models: BTreeSet<String>,
    /// When its first exchange began.
    pub began: Timestamp,
    /// When the last one ended.
    pub ended: Timestamp,
    /// All of it.
    pub total: UsageSum,
    /// Turn by turn, in the order in which they began.
    pub turns: Vec<Turn>,
    /// By what the calls were for, in the order of [`Kind`]; the group is the kind's name, or empty.
    pub kinds: Vec<UsageSum>,
    /// By the sub-agents that asked, in the order in which they began; the group is the id. What the session asked itself
    /// is not among them.
    pub agents: Vec<UsageSum>,
    /// What made it dear, the dearest first.
    pub causes: Vec<Cause>,
}

/// One turn of the user's, with all that was asked for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// The client's id for it; `None`: all calls of which none is known.
    pub id: Option<Label>,
    /// When its first exchange began.
    pub began: Timestamp,
    /// When the last one ended.
    pub ended: Timestamp,
    /// All of it; the group is the id, or empty.
    pub sum: UsageSum,
    /// What made it dear, the dearest first.
    pub causes: Vec<Cause>,
}

/// Something that made a session dear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What.
    pub what: What,
    /// How many exchanges.
    pub exchanges: u64,
    /// How many tokens it was about.
    pub tokens: u64,
    /// What would not have been charged without it.
    pub charge: Usd,
}

/// What makes a session dear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Input that the call before had read was not in the cache any more, after a pause.
    MissAfterPause,
    /// Input was read anew because the conversation had been compacted.
    MissAfterCompaction,
    /// Input was read anew because another model or upstream was asked.
    MissAfterChange,
    /// Input that the call before had read was not read from the cache, for no reason that can be seen here.
    Miss,
    /// Calls that made the conversation short.
    Compaction,
    /// Calls that reviewed what was done.
    Review,
    /// Calls that found a title.
    Title,
    /// Calls that put a prompt into the cache.
    Prewarm,
    /// Calls of sub-agents.
    SubAgents,
    /// A tier that is dearer than the standard one.
    Tier,
    /// Inputs so long that the whole call has dearer rates.
    LongInput,
    /// Answers that did not come to their end and were paid for.
    Unfinished,
}

impl What {
    /// Every cause.
    pub const ALL: [What; 12] = [
        What::MissAfterPause,
        What::MissAfterCompaction,
        What::MissAfterChange,
        What::Miss,
        What::Compaction,
        What::Review,
        What::Title,
        What::Prewarm,
        What::SubAgents,
        What::Tier,
        What::LongInput,
        What::Unfinished,
    ];

    /// The name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            What::MissAfterPause => "cache_miss_after_pause",
            What::MissAfterCompaction => "cache_miss_after_compaction",
            What::MissAfterChange => "cache_miss_after_change",
            What::Miss => "cache_miss",
            What::Compaction => "compaction",
            What::Review => "review",
            What::Title => "title",
            What::Prewarm => "prewarm",
            What::SubAgents => "sub_agents",
            What::Tier => "tier",
            What::LongInput => "long_input",
            What::Unfinished => "unfinished",
        }
    }
}

/// Causes while they are added up.
type Causes = BTreeMap<What, Cause>;

/// A report in the making.
#[derive(Debug, Default)]
pub struct Tally {
    report: Report,
    turns: BTreeMap<Option<Label>, (usize, Causes)>,
    kinds: BTreeMap<Option<Kind>, UsageSum>,
    agents: BTreeMap<Label, usize>,
    causes: Causes,
    threads: BTreeMap<Conversation, Thread>,
}

/// Calls of which each begins with what the one before it read: of the session itself or of a sub-agent, and if it is
/// another one beside that, for what.
type Conversation = (Option<Label>, Option<Kind>);

/// Of which conversation a call is; `None`: its client does not say.
fn conversation(origin: &Origin) -> Option<Conversation> {
    let beside = match origin.kind {
        Some(Kind::Title | Kind::Review) => origin.kind,
        Some(Kind::Turn | Kind::Compaction | Kind::Prewarm | Kind::SubAgent) => None,
        None => {
            origin.turn.as_ref()?;
            None
        }
    };
    Some((origin.agent.clone(), beside))
}

/// What is known of a thread when its next call comes.
#[derive(Debug)]
struct Thread {
    /// What the call before it read: how much of the next input may be in the cache. `None`: it was compacted.
    read: Option<u64>,
    model: String,
    upstream: String,
    ended: Timestamp,
}

impl Tally {
    /// How many turns and sub-agents there are: what its memory is proportional to.
    pub fn parts(&self) -> usize {
        self.report.turns.len() + self.report.agents.len()
    }

    /// Adds the exchange that came next.
    pub fn add(&mut self, step: &OfSession) {
        let OfSession { row, refunded, .. } = step;
        let ended = ended_at(row);
        if self.report.turns.is_empty() {
            self.report.began = row.started_at;
        }
        self.report.ended = self.report.ended.max(ended);
        if let Some(client) = &row.origin.client {
            self.report.client = Some(client.clone());
        }
        if !self.report.models.contains(&row.model) {
            self.report.models.insert(row.model.clone());
        }
        let conversation = conversation(&row.origin);
        let of_thread = conversation
            .as_ref()
            .and_then(|conversation| self.threads.get(conversation));
        let found = causes(step, of_thread);
        add(&mut self.report.total, row, *refunded);
        add(self.kinds.entry(row.origin.kind).or_default(), row, *refunded);
        if let Some(agent) = &row.origin.agent {
            let agents = &mut self.report.agents;
            let at = *self.agents.entry(agent.clone()).or_insert_with(|| {
                agents.push(UsageSum {
                    group: agent.to_string(),
                    ..UsageSum::default()
                });
                agents.len() - 1
            });
            add(&mut agents[at], row, *refunded);
        }
        let turns = &mut self.report.turns;
        let id = &row.origin.turn;
        let (at, of_turn) = self.turns.entry(id.clone()).or_insert_with(|| {
            turns.push(Turn {
                id: id.clone(),
                began: row.started_at,
                ended,
                sum: UsageSum {
                    group: id.as_ref().map(Label::to_string).unwrap_or_default(),
                    ..UsageSum::default()
                },
                causes: Vec::new(),
            });
            (turns.len() - 1, Causes::new())
        });
        let turn = &mut turns[*at];
        turn.ended = turn.ended.max(ended);
        add(&mut turn.sum, row, *refunded);
        for cause in found {
            note(&mut self.causes, cause);
            note(of_turn, cause);
        }
        if let Some(conversation) = conversation {
            self.read_by(conversation, row, ended);
        }
    }

    /// Remembers what a call read for the next one of its conversation.
    fn read_by(&mut self, conversation: Conversation, row: &ExchangeRow, ended: Timestamp) {
        let input = row.usage.input_tokens.get();
        if input == 0 {
            return;
        }
        let thread = Thread {
            read: (row.origin.kind != Some(Kind::Compaction)).then_some(input),
            model: row.priced_model.clone(),
            upstream: row.upstream.clone(),
            ended,
        };
        self.threads.insert(conversation, thread);
    }

    /// The report.
    pub fn finish(mut self) -> Report {
        for (at, of_turn) in self.turns.into_values() {
            self.report.turns[at].causes = dearest_first(of_turn);
        }
        let named = |(kind, sum): (Option<Kind>, UsageSum)| UsageSum {
            group: kind.map(Kind::name).unwrap_or_default().to_owned(),
            ..sum
        };
        self.report.kinds = self.kinds.into_iter().map(named).collect();
        self.report.causes = dearest_first(self.causes);
        self.report
    }
}

fn dearest_first(causes: Causes) -> Vec<Cause> {
    let mut causes: Vec<Cause> = causes.into_values().collect();
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.charge));
    causes
}

fn note(causes: &mut Causes, found: Cause) {
    let cause = causes.entry(found.what).or_insert(Cause {
        exchanges: 0,
        tokens: 0,
        charge: Usd::ZERO,
        ..found
    });
    cause.exchanges += 1;
    cause.tokens += found.tokens;
    cause.charge = cause.charge.saturating_add(found.charge);
}

fn add(sum: &mut UsageSum, row: &ExchangeRow, refunded: Usd) {
    sum.exchanges += 1;
    sum.input_tokens += row.usage.input_tokens.get();
    sum.cached_tokens += row.usage.cached_tokens.get();
    sum.output_tokens += row.usage.output_tokens.get();
    sum.cost = sum.cost.saturating_add(row.cost);
    sum.charge = sum.charge.saturating_add(collected(row));
    sum.uncollected = sum.uncollected.saturating_add(row.uncollected);
    sum.refunded = sum.refunded.saturating_add(refunded);
}

fn collected(row: &ExchangeRow) -> Usd {
    row.charge.saturating_sub(row.uncollected)
}

fn ended_at(row: &ExchangeRow) -> Timestamp {
    row.started_at.checked_add(row.duration).unwrap_or(row.started_at)
}

/// What made an exchange dear, each with one exchange.
fn causes(step: &OfSession, thread: Option<&Thread>) -> Vec<Cause> {
    let row = &step.row;
    let paid = collected(row);
    if paid <= Usd::ZERO {
        return Vec::new();
    }
    let all = row.usage.input_tokens.get() + row.usage.output_tokens.get();
    let of_kind = match row.origin.kind {
        Some(Kind::Compaction) => Some(What::Compaction),
        Some(Kind::Review) => Some(What::Review),
        Some(Kind::Title) => Some(What::Title),
        Some(Kind::Prewarm) => Some(What::Prewarm),
        Some(Kind::SubAgent) => Some(What::SubAgents),
        Some(Kind::Turn) | None => None,
    };
    let unfinished = match row.state {
        State::Left | State::Cancelled | State::Broken | State::Failed => Some(What::Unfinished),
        State::Completed | State::Incomplete | State::Refused | State::Limited | State::Interrupted => None,
    };
    let wholly = of_kind.into_iter().chain(unfinished).map(|what| (what, all, paid));
    let mut found: Vec<_> = wholly.collect();
    if let Some(bills) = Bills::of(step) {
        let missed = thread.and_then(|thread| missed(row, thread));
        found.extend(
            missed.map(|(what, tokens)| (what, tokens, bills.beyond(&cached(&row.usage, tokens), &bills.terms))),
        );
        let standard = Terms {
            tier: Tier::Standard,
            ..bills.terms.clone()
        };
        found.push((What::Tier, all, bills.beyond(&row.usage, &standard)));
        let short = without_steps(bills.terms.price);
        let short = Terms {
            price: &short,
            ..bills.terms.clone()
        };
        found.push((
            What::LongInput,
            row.usage.input_tokens.get(),
            bills.beyond(&row.usage, &short),
        ));
    }
    found
        .into_iter()
        .filter(|(.., charge)| *charge > Usd::ZERO)
        .map(|(what, tokens, charge)| Cause {
            what,
            exchanges: 1,
            tokens,
            charge: charge.min(paid),
        })
        .collect()
}

/// How much of the input might have been read from the cache and was not, and why.
fn missed(row: &ExchangeRow, thread: &Thread) -> Option<(What, u64)> {
    let usage = &row.usage;
    // Audio and what is kept for long have rates of their own.
    let apart = usage.cache_write_12h_tokens.get() + usage.audio_input_tokens.get();
    let anew = usage
        .input_tokens
        .get()
        .saturating_sub(usage.cached_tokens.get() + apart);
    let known = thread
        .read
        .unwrap_or(u64::MAX)
        .saturating_sub(usage.cached_tokens.get());
    let missed = anew.min(known);
    if missed < MISSED_AT_LEAST {
        return None;
    }
    let pause = row.started_at.duration_since(thread.ended);
    let what = match thread.read {
        None => What::MissAfterCompaction,
        Some(_) if (&thread.model, &thread.upstream) != (&row.priced_model, &row.upstream) => What::MissAfterChange,
        Some(_) if Duration::try_from(pause).is_ok_and(|pause| pause > PAUSE) => What::MissAfterPause,
        Some(_) => What::Miss,
    };
    Some((what, missed))
}

/// The same usage with so many more tokens from the cache, which need not be written to it then.
fn cached(usage: &Usage, tokens: u64) -> Usage {
    Usage {
        cached_tokens: Tokens::saturating(usage.cached_tokens.get() + tokens),
        cache_write_tokens: Tokens::saturating(usage.cache_write_tokens.get().saturating_sub(tokens)),
        ..usage.clone()
    }
}

fn without_steps(price: &Price) -> Price {
    let mut price = price.clone();
    price.steps.clear();
    for card in price.tiers.values_mut() {
        card.steps.clear();
    }
    price
}

/// What an exchange was billed by, to bill it otherwise.
struct Bills<'a> {
    usage: &'a Usage,
    terms: Terms<'a>,
}

impl<'a> Bills<'a> {
    fn of(step: &'a OfSession) -> Option<Bills<'a>> {
        let row = &step.row;
        Some(Bills {
            usage: &row.usage,
            terms: Terms {
                price: step.price.as_deref()?,
                // What image models and searches cost is the same in both bills.
                image_price: None,
                search: SearchTool::Current,
                tier: row.tier,
                region: row.uplift.as_ref().map(|_| ""),
                markup: Factor::parse(&row.markup).ok()?,
                at: row.started_at,
            },
        })
    }

    /// How much more was charged than by other terms for another usage.
    fn beyond(&self, usage: &Usage, terms: &Terms<'_>) -> Usd {
        match (bill(self.usage, &self.terms), bill(usage, terms)) {
            (Ok(billed), Ok(other)) => billed.charge.saturating_sub(other.charge).max(Usd::ZERO),
            _ => Usd::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::call::Endpoint;
    use crate::pricing::ListName;
    use crate::store::usage_log::Basis;
    use crate::store::{ExchangeId, KeyId, UserId};

    /// Dollars per million tokens: 2 for input, 0.2 from the cache, 10 for output.
    const PRICE: &str = r#"{"kind":"text","rates":{"input":"2","cached_input":"0.2","output":"10"},
        "steps":[{"above":10000,"rates":{"input":"4","cached_input":"0.4","output":"15"}}],
        "tiers":{"priority":{"rates":{"input":"4","cached_input":"0.4","output":"20"}}}}"#;

    fn usd(text: &str) -> Usd {
        text.parse().expect("an amount")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).expect("a time")
    }

    fn price() -> Arc<Price> {
        Arc::new(Price::from_json(PRICE).expect("a price"))
    }

    /// A call that takes a second: tokens read, of them from the cache, and generated.
    fn step(turn: &str, kind: Kind, seconds: i64, [input, cached, output]: [u64; 3]) -> OfSession {
        let usage = Usage {
            input_tokens: Tokens::saturating(input),
            cached_tokens: Tokens::saturating(cached),
            output_tokens: Tokens::saturating(output),
            ..Usage::default()
        };
        let row = ExchangeRow {
            id: ExchangeId(uuid::Uuid::now_v7()),
            user: UserId(uuid::Uuid::nil()),
            key: KeyId(uuid::Uuid::nil()),
            endpoint: Endpoint::Responses,
            streamed: true,
            model: "m".to_owned(),
            priced_model: "m".to_owned(),
            answered_model: None,
            upstream: "openai".to_owned(),
            list: Some(ListName::openai()),
            price_from: Some(at(-1)),
            tier: Tier::Standard,
            state: State::Completed,
            basis: Basis::Reported,
            usage,
            lines: Vec::new(),
            uplift: None,
            markup: "1".to_owned(),
            cost: Usd::ZERO,
            charge: Usd::ZERO,
            uncollected: Usd::ZERO,
            held: Usd::ZERO,
            output_limit: None,
            balance_after: Usd::ZERO,
            response_id: None,
            item_ids: Vec::new(),
            upstream_request_id: None,
            upstream_status: Some(200),
            attempts: 1,
            started_at: at(seconds),
            first_byte: None,
            duration: Duration::from_secs(1),
            origin: Origin {
                session: Label::new("s"),
                turn: Label::new(turn),
                agent: None,
                kind: Some(kind),
                client: Client::parse("codex_exec/0.169.0"),
            },
        };
        OfSession {
            row,
            refunded: Usd::ZERO,
            price: Some(price()),
        }
    }

    /// The same with something else about it.
    fn with(mut step: OfSession, change: impl FnOnce(&mut ExchangeRow)) -> OfSession {
        change(&mut step.row);
        step
    }

    fn report(steps: Vec<OfSession>) -> Report {
        let mut tally = Tally::default();
        for mut step in steps {
            let bill = bill(
                &step.row.usage,
                &Bills::of(&step).map_or_else(|| panic!("a price"), |bills| bills.terms),
            );
            step.row.charge = bill.expect("a bill").charge;
            tally.add(&step);
        }
        tally.finish()
    }

    fn shown(causes: &[Cause]) -> Vec<String> {
        let one = |cause: &Cause| {
            let Cause {
                what,
                exchanges,
                tokens,
                charge,
            } = cause;
            format!("{} {exchanges} {tokens} {charge}", what.name())
        };
        causes.iter().map(one).collect()
    }

    #[test]
    fn a_session_is_told_turn_by_turn_with_what_made_it_dear() {
        let turn = Kind::Turn;
        let other_model = |row: &mut ExchangeRow| row.priced_model = "n".to_owned();
        let report = report(vec![
            step("1", turn, 0, [5_000, 0, 100]),
            step("1", turn, 30, [6_000, 5_000, 100]),
            // Ten minutes later.
            step("2", turn, 631, [7_000, 0, 100]),
            with(step("2", Kind::SubAgent, 640, [3_000, 0, 50]), |row| {
                row.origin.agent = Label::new("a");
            }),
            step("2", Kind::Compaction, 650, [7_100, 7_000, 200]),
            step("2", turn, 660, [4_000, 1_024, 10]),
            with(step("3", turn, 670, [4_100, 4_000, 100]), |row| {
                row.tier = Tier::Priority
            }),
            with(step("3", turn, 680, [4_200, 0, 0]), other_model),
            with(step("3", turn, 690, [12_000, 4_000, 100]), other_model),
            with(step("3", turn, 700, [12_100, 12_000, 10]), |row| {
                other_model(row);
                row.state = State::Left;
            }),
        ]);
        assert_eq!(report.total.charge, usd("0.0992068"));
        assert_eq!((report.began, report.ended), (at(0), at(701)));
        assert_eq!(report.client.as_ref().map(Client::as_str), Some("codex_exec/0.169.0"));
        let turns: Vec<_> = report
            .turns
            .iter()
            .map(|turn| (turn.sum.group.as_str(), turn.sum.exchanges, turn.sum.charge))
            .collect();
        assert_eq!(
            turns,
            [
                ("1", 2, usd("0.015")),
                ("2", 4, usd("0.0313568")),
                ("3", 4, usd("0.05285"))
            ]
        );
        let kinds: Vec<_> = report
            .kinds
            .iter()
            .map(|sum| (sum.group.as_str(), sum.charge))
            .collect();
        assert_eq!(
            kinds,
            [
                ("turn", usd("0.0891068")),
                ("compaction", usd("0.0036")),
                ("sub-agent", usd("0.0065"))
            ]
        );
        assert_eq!(report.agents.len(), 1);
        assert_eq!(
            (report.agents[0].group.as_str(), report.agents[0].charge),
            ("a", usd("0.0065"))
        );
        assert!(
            report.turns[0].causes.is_empty(),
            "a first turn reads what no cache has"
        );
        assert_eq!(
            shown(&report.turns[1].causes),
            [
                // 6,000 tokens that cost 2 and not 0.2 dollars per million.
                "cache_miss_after_pause 1 6000 0.0108",
                "sub_agents 1 3050 0.0065",
                "cache_miss_after_compaction 1 2976 0.0053568",
                "compaction 1 7300 0.0036",
            ]
        );
        assert_eq!(
            shown(&report.turns[2].causes),
            [
                // 0.0351 and 0.00535 for what costs 0.0178 and 0.0027 below 10,000 tokens.
                "long_input 2 24100 0.01995",
                "cache_miss_after_change 1 4100 0.00738",
                "unfinished 1 12110 0.00535",
                "tier 1 4200 0.002",
            ]
        );
        assert_eq!(report.causes.len(), 8);
        assert_eq!(shown(&report.causes)[0], "long_input 2 24100 0.01995");
    }

    #[test]
    fn a_thread_misses_only_what_it_read_itself() {
        let of = |agent: &str, seconds, tokens| {
            with(step("1", Kind::SubAgent, seconds, tokens), |row| {
                row.origin.agent = Label::new(agent)
            })
        };
        let report = report(vec![
            step("1", Kind::Turn, 0, [9_000, 0, 0]),
            of("a", 1, [9_000, 0, 0]),
            of("b", 2, [9_000, 0, 0]),
            of("a", 3, [9_500, 0, 0]),
            step("1", Kind::Turn, 4, [9_100, 8_960, 0]),
        ]);
        let missed: Vec<_> = report.causes.iter().filter(|cause| cause.what == What::Miss).collect();
        assert_eq!(missed.len(), 1);
        assert_eq!((missed[0].exchanges, missed[0].tokens), (1, 9_000));
    }

    #[test]
    fn conversations_with_nothing_in_common_miss_nothing_of_one_another() {
        let report = report(vec![
            step("1", Kind::Turn, 0, [9_000, 0, 0]),
            step("1", Kind::Review, 1, [8_000, 0, 0]),
            step("1", Kind::Title, 2, [7_000, 0, 0]),
            step("1", Kind::Turn, 3, [9_100, 8_960, 0]),
            step("1", Kind::Review, 4, [8_100, 7_936, 0]),
        ]);
        let is_miss = |cause: &Cause| cause.what.name().starts_with("cache_miss");
        assert!(!report.causes.iter().any(is_miss), "{:?}", shown(&report.causes));

        // One key of the cache, and no word of who uses it for what.
        let keyed = |seconds, tokens| {
            with(step("1", Kind::Turn, seconds, tokens), |row| {
                (row.origin.turn, row.origin.kind) = (None, None);
            })
        };
        let report = self::report(vec![
            keyed(0, [5_000, 0, 0]),
            keyed(1, [6_000, 1_024, 0]),
            keyed(2, [5_500, 1_024, 0]),
            keyed(900, [9_000, 0, 0]),
        ]);
        assert_eq!(shown(&report.causes), [""; 0]);
    }

    #[test]
    fn what_was_not_paid_or_has_no_price_made_nothing_dear() {
        let mut tally = Tally::default();
        let mut free = step("1", Kind::Turn, 0, [9_000, 0, 0]);
        free.price = None;
        tally.add(&free);
        let mut poor = with(step("1", Kind::Compaction, 900, [9_000, 0, 0]), |row| {
            row.charge = usd("0.018");
            row.uncollected = usd("0.017");
            row.origin = Origin::default();
            row.state = State::Left;
        });
        poor.refunded = usd("0.0005");
        tally.add(&poor);
        let report = tally.finish();
        // Of what was for nothing, no more is said than was paid.
        assert_eq!(shown(&report.causes), ["unfinished 1 9000 0.001"]);
        assert_eq!(
            (report.total.charge, report.total.uncollected),
            (usd("0.001"), usd("0.017"))
        );
        assert_eq!(report.total.refunded, usd("0.0005"));
        let turns: Vec<_> = report.turns.iter().map(|turn| turn.sum.group.as_str()).collect();
        assert_eq!(turns, ["1", ""], "what names no turn is one of its own");
        assert_eq!(
            report.kinds.iter().map(|sum| sum.group.as_str()).collect::<Vec<_>>(),
            ["", "turn"]
        );
    }

    #[test]
    fn what_is_written_to_the_cache_anew_is_missed_too() {
        let report = report(vec![
            step("1", Kind::Turn, 0, [5_000, 0, 0]),
            with(step("1", Kind::Turn, 1, [5_000, 0, 0]), |row| {
                row.usage.cache_write_tokens = Tokens::saturating(4_000);
            }),
        ]);
        assert_eq!(shown(&report.causes), ["cache_miss 1 5000 0.009"]);
    }
}
