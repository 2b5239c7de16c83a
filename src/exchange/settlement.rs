//! Settlement: what was seen of the answer becomes usage, price and charge, in one transaction with the hold's end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::HeaderMap;

use super::admission::Admitted;
use super::background::Detached;
use super::counting::count;
use super::traces::Parent;
use super::{Ending, Gateway, Last, Permit, Phase, Settle, Try, Upstream, Watch};
use crate::call::{Echo, Endpoint, Medium};
use crate::code::Code;
use crate::fail_point::{self, Injected, Point};
use crate::meter::{End, Progress, Reading};
use crate::metrics::Ended;
use crate::money::Usd;
use crate::pricing::{Bill, Class, Priced, bill};
use crate::refusal::Refusal;
use crate::store::attempts::Attempt;
use crate::store::background::Background;
use crate::store::keys::Key;
use crate::store::ledger::{CloseHold, Closed, Excess, Hold};
use crate::store::usage_log::{Basis, ExchangeRow, State};
use crate::store::{ExchangeId, NotClosed, Place};
use crate::time::{Stopwatch, now};
use crate::tokens::{self, Encoding};
use crate::usage::{Tier, Tokens, Usage};

/// Closes the hold, and says what may leave then. A refusal means that the hold stays open, and the next start or the
/// sweep releases it; or that whether it was charged is not known.
pub(super) async fn settle(
    gateway: &Gateway,
    admitted: Admitted,
    permit: &mut Permit,
    watch: &Watch,
    ending: Ending,
) -> (Result<Closed, Refusal>, Last) {
    let (Ending { state, settle, last }, since_ended) = (ending, Stopwatch::start());
    watch.entry.is(Phase::Settling);
    let receipt = receipt(&admitted, watch, state, settle);
    let (close, last) = match AssertUnwindSafe(receipt).catch_unwind().await {
        Ok(Ok(close)) => (close, last),
        failed => {
            let error = failed.map_or_else(|_| "it panicked".to_owned(), |_| "it was made to fail".to_owned());
            tracing::error!(exchange = %admitted.id(), error, "what the call cost cannot be told; it is released, and its end does not leave");
            (released(&admitted, watch), Last::Abort)
        }
    };
    permit.settle(&close.row.usage);
    let told = Told {
        upstream: Some(Arc::clone(&admitted.live.upstreams[sent_to(&admitted, watch)])),
        key: Some(Arc::clone(&admitted.key)),
        is_aliased: admitted.target.aliased,
        parent: &watch.parent,
        code: code(&last, admitted.call.endpoint),
        before: watch.admission,
        since_ended,
    };
    let (hold, place) = (admitted.hold, admitted.place);
    (write(gateway, (hold, place), close, told).await, last)
}

/// Settles a background response by what its upstream says of it in the end, or without that. What it cost may not be told
/// now: it is given back then.
pub(super) async fn settle_background(
    gateway: &Gateway,
    mut detached: Detached,
    said: Option<&Reading>,
) -> Option<Detached> {
    let since_ended = Stopwatch::start();
    let receipt = AssertUnwindSafe(background_receipt(&detached.background, said, detached.output)).catch_unwind();
    let close = match receipt.await {
        Ok(Ok(close)) => close,
        failed => {
            detached.has_failed(failed.map_or("it panicked", |_| "it was made to fail"));
            return Some(detached);
        }
    };
    let Detached {
        background,
        hold,
        place,
        ..
    } = detached;
    let which = background.draft.key.to_string();
    let key = gateway.store.blocking(move |store| store.find_keys(&which)).await;
    // Without it only the log and the span lack a name.
    let key = key.ok().and_then(|found| found.into_iter().next());
    let live = gateway.live();
    let told = Told {
        upstream: live.upstream(&background.draft.upstream).map(Arc::clone),
        key: key.map(Arc::new),
        is_aliased: background.draft.model != background.draft.priced_model,
        parent: &gateway.tracer.parent(&HeaderMap::new()),
        code: None,
        before: Duration::ZERO,
        since_ended,
    };
    if write(gateway, (hold, place), close, told).await.is_err() {
        tracing::error!(exchange = %background.draft.id, "the background response stays unsettled; the next start asks for it again");
    }
    None
}

/// What a background response used and costs. `output` is what of it was seen, beside what is said now.
async fn background_receipt(
    background: &Background,
    said: Option<&Reading>,
    output: Tokens,
) -> Result<CloseHold, Injected> {
    fail_point::hit(Point::Over)?;
    let (draft, nothing) = (&background.draft, Reading::default());
    let (state, settle) = match said {
        // Nobody can say any more.
        None => (State::Broken, Settle::Usage),
        Some(reading) => match (reading.progress, reading.end) {
            (Progress::Cancelled, _) => (State::Cancelled, Settle::Usage),
            (_, Some(End::Failed)) => (State::Failed, Settle::UsageOfDelivered),
            (_, Some(End::Incomplete)) => (State::Incomplete, Settle::Usage),
            (_, Some(End::Completed) | None) => (State::Completed, Settle::Usage),
        },
    };
    let reading = said.unwrap_or(&nothing);
    tell_of_problem(draft.id, reading);
    let delivered = output > Tokens::ZERO || reading.visible_bytes() > 0;
    let (usage, basis) = match told(settle, reading.usage.as_ref(), delivered) {
        Some(usage) => (usage, Basis::Reported),
        None => {
            let usage = Usage {
                input_tokens: background.input,
                output_tokens: shown(reading, &draft.priced_model).await.max(output),
                tools: reading.tools.clone(),
                ..Usage::default()
            };
            (usage, Basis::Estimated)
        }
    };
    let tier = reading.tier.unwrap_or(match basis {
        Basis::Reported => Tier::Standard,
        Basis::Estimated => background.tier,
    });
    let outcome = Outcome {
        state,
        basis,
        tier,
        bill: price(draft.id, &background.priced, &usage, tier),
        usage,
    };
    let lasted = Duration::try_from(now().duration_since(draft.started_at));
    let draft = ExchangeRow {
        duration: lasted.unwrap_or_default(),
        response_id: Some(background.response.clone()),
        ..draft.clone()
    };
    Ok(CloseHold {
        row: row(draft, &background.priced, reading, outcome),
        excess: excess(settle, basis),
        attempts: background.attempts.clone(),
    })
}

/// The visible output of a response, counted.
pub(super) async fn shown(reading: &Reading, model: &str) -> Tokens {
    let (encoding, _) = Encoding::of(model);
    let (visible, beyond) = counted(reading, u64::MAX);
    let guess = || tokens::guess_output(reading.visible_bytes());
    count(move || tokens::estimate_output(&visible, beyond, encoding), guess).await
}

/// What the exchange used and costs.
async fn receipt(admitted: &Admitted, watch: &Watch, state: State, settle: Settle) -> Result<CloseHold, Injected> {
    fail_point::hit(Point::BeforeSettlement)?;
    let (usage, basis) = measure(admitted, watch, settle).await;
    let reading = watch.meter.reading();
    // Only the end of an answer tells the tier for certain; without one it is the tier that was asked for.
    let tier = reading.tier.unwrap_or(match basis {
        Basis::Reported => Tier::Standard,
        Basis::Estimated => admitted.sent.tier,
    });
    let bill = price(admitted.id(), &admitted.priced, &usage, tier);
    let outcome = Outcome {
        state,
        basis,
        usage,
        tier,
        bill,
    };
    Ok(CloseHold {
        row: row(draft(admitted, watch), &admitted.priced, reading, outcome),
        excess: excess(settle, basis),
        attempts: attempts(admitted, watch),
    })
}

fn excess(settle: Settle, basis: Basis) -> Excess {
    match (settle, basis) {
        (Settle::Capped, _) | (_, Basis::Estimated) => Excess::Waive,
        _ => Excess::Collect,
    }
}

/// Closes the hold without a charge: the gateway itself failed.
fn released(admitted: &Admitted, watch: &Watch) -> CloseHold {
    let nothing = Outcome {
        state: State::Failed,
        basis: Basis::Reported,
        usage: Usage::default(),
        tier: Tier::Standard,
        bill: Bill::nothing(),
    };
    CloseHold {
        row: row(draft(admitted, watch), &admitted.priced, watch.meter.reading(), nothing),
        excess: Excess::Waive,
        attempts: attempts(admitted, watch),
    }
}

/// The upstream that was asked last.
fn sent_to(admitted: &Admitted, watch: &Watch) -> usize {
    watch.last.map_or(admitted.target.upstream, |last| last.upstream)
}

/// Where it was sent, if that was more than once.
pub(super) fn attempts(admitted: &Admitted, watch: &Watch) -> Vec<Attempt> {
    if watch.earlier.is_empty() {
        return Vec::new();
    }
    let attempt = |made: &Try| Attempt {
        upstream: admitted.live.upstreams[made.upstream].name().to_owned(),
        outcome: made.outcome,
        status: made.status.map(|status| status.as_u16()),
        began: made.began,
        took: made.took,
    };
    watch.earlier.iter().chain(&watch.last).map(attempt).collect()
}

/// What operators are told of a settlement, beside its usage row.
struct Told<'a> {
    /// The upstream that was asked last; `None`: it is not there any more.
    upstream: Option<Arc<Upstream>>,
    /// The key of the call; `None`: it cannot be read.
    key: Option<Arc<Key>>,
    /// Whether the model was asked for under another name.
    is_aliased: bool,
    parent: &'a Parent,
    /// The code of a refusal that leaves in place of an answer.
    code: Option<&'static str>,
    /// How long the call took before its hold.
    before: Duration,
    since_ended: Stopwatch,
}

/// Hands it to the writer, waits until it is durable, and tells operators of it: in the metrics, in the exchange's one line
/// in the log, and in its span.
async fn write(
    gateway: &Gateway,
    (hold, place): (Hold, Place),
    close: CloseHold,
    told: Told<'_>,
) -> Result<Closed, Refusal> {
    let (row, metrics) = (&close.row, &gateway.metrics);
    gateway.roll.ended(row);
    if let Some(upstream) = &told.upstream {
        upstream.note(row.state);
    }
    let draft = told
        .key
        .as_ref()
        .zip(told.upstream.as_ref())
        .map(|(key, upstream)| gateway.tracer.draft(row, key, upstream, told.parent));
    let line = Line::of(row);
    // Only those have an end.
    let is_listed =
        row.list.is_some() || told.is_aliased || told.upstream.as_ref().is_some_and(|of| line.is_model_of(of));
    let closed = gateway.writer.close(hold, place, close).await;
    let model = is_listed.then_some(line.priced_model.as_str());
    let closed = closed.map_err(|failed| {
        metrics.unsettled(line.endpoint, model);
        tracing::error!(exchange = %line.id, error = &failed as &dyn std::error::Error, "the call is not settled");
        match failed {
            NotClosed::Unknown(_) => Refusal::Unsettled,
            NotClosed::NotWritten(_) => Refusal::Storage,
        }
    });
    let failed = closed.as_ref().err().map(|refusal| code_of(refusal, line.endpoint));
    let code = failed.or(told.code);
    if let Some(draft) = draft {
        draft.end(closed.as_ref().ok().map(|closed| closed.charged), code);
    }
    let closed = closed?;
    metrics.ended(&Ended {
        endpoint: line.endpoint,
        model,
        state: line.state,
        usage: &line.usage,
        charged: closed.charged,
        uncollected: closed.uncollected,
        duration: line.duration,
        first_byte: line.first_byte,
        overhead: told.before + told.since_ended.elapsed(),
    });
    tracing::info!(
        exchange = %line.id,
        user = told.key.as_ref().map(|key| key.user_name.as_str()),
        key = told.key.as_ref().map(|key| key.prefix.as_str()),
        endpoint = line.endpoint.path(),
        model = line.model,
        upstream = line.upstream,
        state = line.state.name(),
        status = line.status,
        code,
        attempts = line.attempts,
        input_tokens = line.usage.input_tokens.get(),
        output_tokens = line.usage.output_tokens.get(),
        charged = %closed.charged,
        first_byte_ms = line.first_byte.map(millis),
        duration_ms = millis(line.duration),
        "settled"
    );
    if closed.uncollected.nanos() > 0 {
        tracing::warn!(exchange = %line.id, uncollected = %closed.uncollected, "the charge was more than the hold and the balance");
    }
    Ok(closed)
}

/// What is told of a usage row once it is written.
struct Line {
    id: ExchangeId,
    endpoint: Endpoint,
    model: String,
    priced_model: String,
    upstream: String,
    state: State,
    status: Option<u16>,
    attempts: u32,
    usage: Usage,
    first_byte: Option<Duration>,
    duration: Duration,
}

impl Line {
    fn of(row: &ExchangeRow) -> Line {
        Line {
            id: row.id,
            endpoint: row.endpoint,
            model: row.model.clone(),
            priced_model: row.priced_model.clone(),
            upstream: row.upstream.clone(),
            state: row.state,
            status: row.upstream_status,
            attempts: row.attempts,
            usage: row.usage.clone(),
            first_byte: row.first_byte,
            duration: row.duration,
        }
    }

    fn is_model_of(&self, upstream: &Upstream) -> bool {
        upstream.models().any(|name| name == self.priced_model)
    }
}

/// In a type that JSON has a number for.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The code that the client is given, when it gets a refusal for an answer.
fn code(last: &Last, endpoint: Endpoint) -> Option<&'static str> {
    match last {
        Last::Refusal(refusal) => Some(code_of(refusal, endpoint)),
        Last::Abort => Some(Code::InternalError.name()),
        Last::Answer(_) | Last::Pieces(_) | Last::Nothing => None,
    }
}

fn code_of(refusal: &Refusal, endpoint: Endpoint) -> &'static str {
    refusal.told(Some(endpoint)).gateway.code.name()
}

/// The usage to charge, and where it comes from.
async fn measure(admitted: &Admitted, watch: &Watch, settle: Settle) -> (Usage, Basis) {
    let reading = watch.meter.reading();
    tell_of_problem(admitted.id(), reading);
    // What was spoken is known from the call, unless it failed before any of it came.
    let was_spoken = settle != Settle::UsageOfDelivered || watch.delivered;
    let spoken = by_characters(admitted).filter(|_| was_spoken);
    let reported = reading.usage.as_ref().filter(|usage| has_rates(admitted, usage));
    let reported = spoken.as_ref().or(reported).cloned();
    let reported = reported.map(|usage| with_searches(admitted, usage));
    match told(settle, reported.as_ref(), watch.delivered) {
        Some(usage) => (usage, Basis::Reported),
        None => (estimate(admitted, watch).await, Basis::Estimated),
    }
}

fn tell_of_problem(exchange: ExchangeId, reading: &Reading) {
    if let Some(problem) = &reading.usage_problem {
        tracing::warn!(%exchange, %problem, "the upstream's usage cannot be believed; settled by estimate");
    }
}

/// The usage that is charged for an ending; `None`: it has to be estimated.
fn told(settle: Settle, reported: Option<&Usage>, delivered: bool) -> Option<Usage> {
    match (settle, reported) {
        (Settle::Nothing, _) => Some(Usage::default()),
        (_, Some(usage)) => Some(usage.clone()),
        (Settle::UsageOfDelivered, None) if !delivered => Some(Usage::default()),
        (_, None) => None,
    }
}

/// The usage of speech that is billed by the character.
fn by_characters(admitted: &Admitted) -> Option<Usage> {
    match admitted.call.medium {
        Medium::Speech { characters, .. } if is_billed_by(admitted, Class::Characters) => Some(Usage {
            characters: u32::try_from(characters).unwrap_or(u32::MAX),
            ..Usage::default()
        }),
        _ => None,
    }
}

/// Whether what is told of a medium is in units of its price: seconds say nothing where tokens are billed, nor do tokens
/// where seconds are.
fn has_rates(admitted: &Admitted, usage: &Usage) -> bool {
    let is_priced = |bill: Bill| bill.unpriced.is_empty() || !bill.lines.is_empty();
    !admitted.call.endpoint.is_medium() || bill(usage, &admitted.priced.terms(Tier::Standard)).is_ok_and(is_priced)
}

fn is_billed_by(admitted: &Admitted, class: Class) -> bool {
    admitted.priced.price.rates.contains_key(&class)
}

/// A chat answer does not count its searches: one that may search is billed one.
fn with_searches(admitted: &Admitted, mut usage: Usage) -> Usage {
    if admitted.sent.endpoint == Endpoint::ChatCompletions && admitted.sent.tools.web_search {
        usage.tools.web_searches = usage.tools.web_searches.max(1);
    }
    usage
}

/// Counted input and counted visible output. Hidden reasoning is not in it.
async fn estimate(admitted: &Admitted, watch: &Watch) -> Usage {
    let reading = watch.meter.reading();
    let (call, (encoding, _)) = (admitted.sent.clone(), Encoding::of(&admitted.target.model));
    let bytes = watch.counted_bytes.unwrap_or(u64::MAX).min(reading.visible_bytes());
    let (visible, beyond) = counted(reading, bytes);
    let counting = move || {
        let input = tokens::estimate_input(&call, encoding);
        (input, tokens::estimate_output(&visible, beyond, encoding))
    };
    let guess = || {
        (
            tokens::guess_by_bytes(&admitted.sent.input),
            tokens::guess_output(bytes),
        )
    };
    let (input_tokens, shown) = count(counting, guess).await;
    let echoed = match admitted.sent.echo {
        Echo::No => Tokens::ZERO,
        Echo::Prompt => input_tokens.saturating_mul(admitted.sent.choices),
    };
    let output_tokens = shown.saturating_sub(echoed);
    if admitted.call.endpoint.is_medium() {
        return tokens::estimate_medium(&admitted.call, output_tokens, is_billed_by(admitted, Class::Seconds));
    }
    Usage {
        input_tokens,
        output_tokens,
        tools: reading.tools.clone(),
        ..Usage::default()
    }
}

/// The first so many bytes of what was visible, and how many of them were not kept.
fn counted(reading: &Reading, bytes: u64) -> (String, u64) {
    let most = usize::try_from(bytes).unwrap_or(usize::MAX);
    let kept = &reading.visible[..reading.visible.floor_char_boundary(most)];
    let seen = bytes.min(reading.visible_bytes());
    let beyond = seen.saturating_sub(u64::try_from(kept.len()).unwrap_or(u64::MAX));
    (kept.to_owned(), beyond)
}

/// The bill. What has no rate is not charged, and logged, so that the operator can set its price.
fn price(exchange: ExchangeId, priced: &Priced, usage: &Usage, tier: Tier) -> Bill {
    let bill = bill(usage, &priced.terms(tier)).unwrap_or_else(|error| {
        tracing::error!(%exchange, %error, ?usage, "the usage cannot be priced and is not charged");
        Bill::nothing()
    });
    for class in &bill.unpriced {
        tracing::error!(%exchange, %class, "was used, has no price, and is not charged");
    }
    bill
}

struct Outcome {
    state: State,
    basis: Basis,
    usage: Usage,
    tier: Tier,
    bill: Bill,
}

/// The usage row, as far as it is known before the end: nothing is used, nothing charged.
pub(super) fn draft(admitted: &Admitted, watch: &Watch) -> ExchangeRow {
    ExchangeRow {
        id: admitted.id(),
        user: admitted.key.user_id,
        key: admitted.key.id,
        endpoint: admitted.call.endpoint,
        streamed: admitted.call.stream,
        model: admitted.call.model.clone(),
        priced_model: admitted.target.model.clone(),
        answered_model: None,
        upstream: admitted.live.upstreams[sent_to(admitted, watch)].name().to_owned(),
        list: admitted.priced.list.clone(),
        price_from: admitted.priced.from,
        tier: admitted.sent.tier,
        state: State::Interrupted,
        basis: Basis::Reported,
        usage: Usage::default(),
        lines: Vec::new(),
        uplift: None,
        markup: admitted.priced.markup.to_string(),
        cost: Usd::ZERO,
        charge: Usd::ZERO,
        uncollected: Usd::ZERO,
        held: admitted.hold.amount,
        output_limit: admitted.hold.output_limit,
        balance_after: Usd::ZERO,
        response_id: None,
        item_ids: Vec::new(),
        upstream_request_id: watch.upstream_request_id.clone(),
        upstream_status: watch.last.and_then(|last| last.status).map(|status| status.as_u16()),
        attempts: watch.attempts(),
        started_at: admitted.started_at,
        first_byte: watch.first_byte,
        duration: watch.since_start.elapsed(),
        origin: admitted.origin.clone(),
    }
}

/// The usage row of a draft that has ended.
fn row(draft: ExchangeRow, priced: &Priced, reading: &Reading, outcome: Outcome) -> ExchangeRow {
    let uplift = priced.terms(outcome.tier).uplift();
    ExchangeRow {
        answered_model: reading.model.clone(),
        tier: outcome.tier,
        state: outcome.state,
        basis: outcome.basis,
        usage: outcome.usage,
        lines: outcome.bill.lines,
        uplift: uplift.map(|factor| factor.to_string()),
        cost: outcome.bill.cost,
        charge: outcome.bill.charge,
        response_id: reading.response_id.clone().or(draft.response_id),
        item_ids: reading.item_ids.clone(),
        ..draft
    }
}
