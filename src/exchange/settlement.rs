//! Settlement: what was seen of the answer becomes usage, price and charge, in one transaction with the hold's end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::admission::Admitted;
use super::{Ending, Gateway, Last, Permit, Phase, Settle, Try, Watch};
use crate::call::{Echo, Endpoint, Medium};
use crate::code::Code;
use crate::fail_point::{self, Injected, Point};
use crate::meter::Reading;
use crate::metrics::Ended;
use crate::money::Usd;
use crate::pricing::{Bill, Class, bill};
use crate::refusal::Refusal;
use crate::store::NotClosed;
use crate::store::attempts::Attempt;
use crate::store::ledger::{CloseHold, Closed, Excess};
use crate::store::usage_log::{Basis, ExchangeRow, State};
use crate::time::Stopwatch;
use crate::tokens::{self, Encoding};
use crate::usage::Tier;
use crate::usage::{Tokens, Usage};

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
    (write(gateway, admitted, watch, close, &last, since_ended).await, last)
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
    let bill = price(admitted, &usage, tier);
    let outcome = Outcome {
        state,
        basis,
        usage,
        tier,
        bill,
    };
    let excess = match (settle, basis) {
        (Settle::Capped, _) | (_, Basis::Estimated) => Excess::Waive,
        _ => Excess::Collect,
    };
    Ok(CloseHold {
        row: row(admitted, watch, outcome),
        excess,
        attempts: attempts(admitted, watch),
    })
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
        row: row(admitted, watch, nothing),
        excess: Excess::Waive,
        attempts: attempts(admitted, watch),
    }
}

/// The upstream that was asked last.
fn sent_to(admitted: &Admitted, watch: &Watch) -> usize {
    watch.last.map_or(admitted.target.upstream, |last| last.upstream)
}

/// Where it was sent, if that was more than once.
fn attempts(admitted: &Admitted, watch: &Watch) -> Vec<Attempt> {
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

/// Hands it to the writer, waits until it is durable, and tells operators of it: in the metrics, in the exchange's one line
/// in the log, and in its span.
async fn write(
    gateway: &Gateway,
    admitted: Admitted,
    watch: &Watch,
    close: CloseHold,
    last: &Last,
    since_ended: Stopwatch,
) -> Result<Closed, Refusal> {
    let (id, state, usage, duration) = (
        admitted.id(),
        close.row.state,
        close.row.usage.clone(),
        close.row.duration,
    );
    let upstream = Arc::clone(&admitted.live.upstreams[sent_to(&admitted, watch)]);
    gateway.roll.ended(&close.row);
    upstream.note(state);
    let draft = gateway
        .tracer
        .draft(&close.row, &admitted.key, &upstream, &watch.parent);
    let (call, key, target, metrics) = (admitted.call, admitted.key, admitted.target, &gateway.metrics);
    // Only those have an end.
    let is_listed =
        admitted.priced.list.is_some() || target.aliased || upstream.models().any(|name| name == target.model);
    let model = is_listed.then_some(target.model.as_str());
    let closed = gateway.writer.close(admitted.hold, admitted.place, close).await;
    let closed = closed.map_err(|failed| {
        metrics.unsettled(call.endpoint, model);
        tracing::error!(exchange = %id, error = &failed as &dyn std::error::Error, "the call is not settled");
        match failed {
            NotClosed::Unknown(_) => Refusal::Unsettled,
            NotClosed::NotWritten(_) => Refusal::Storage,
        }
    });
    let failed = closed.as_ref().err().map(|refusal| code_of(refusal, call.endpoint));
    let code = failed.or_else(|| code(last, call.endpoint));
    draft.end(closed.as_ref().ok().map(|closed| closed.charged), code);
    let closed = closed?;
    metrics.ended(&Ended {
        endpoint: call.endpoint,
        model,
        state,
        usage: &usage,
        charged: closed.charged,
        uncollected: closed.uncollected,
        duration,
        first_byte: watch.first_byte,
        overhead: watch.admission + since_ended.elapsed(),
    });
    tracing::info!(
        exchange = %id,
        user = key.user_name,
        key = key.prefix,
        endpoint = call.endpoint.path(),
        model = call.model,
        upstream = upstream.name(),
        state = state.name(),
        status = watch.last.and_then(|last| last.status).map(|status| status.as_u16()),
        code,
        attempts = watch.attempts(),
        input_tokens = usage.input_tokens.get(),
        output_tokens = usage.output_tokens.get(),
        charged = %closed.charged,
        first_byte_ms = watch.first_byte.map(millis),
        duration_ms = millis(duration),
        "settled"
    );
    if closed.uncollected.nanos() > 0 {
        tracing::warn!(exchange = %id, uncollected = %closed.uncollected, "the charge was more than the hold and the balance");
    }
    Ok(closed)
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
    if let Some(problem) = &reading.usage_problem {
        tracing::warn!(exchange = %admitted.id(), %problem, "the upstream's usage cannot be believed; settled by estimate");
    }
    // What was spoken is known from the call.
    let spoken = by_characters(admitted);
    let reported = reading.usage.as_ref().filter(|usage| has_rates(admitted, usage));
    match (settle, spoken.as_ref().or(reported)) {
        (Settle::Nothing, _) => (Usage::default(), Basis::Reported),
        (_, Some(usage)) => (with_searches(admitted, usage.clone()), Basis::Reported),
        (Settle::UsageOfDelivered, None) if !watch.delivered => (Usage::default(), Basis::Reported),
        (_, None) => (estimate(admitted, watch).await, Basis::Estimated),
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
    let (visible, beyond) = counted(reading, watch.counted_bytes.unwrap_or(u64::MAX));
    let counting = tokio::task::spawn_blocking(move || {
        let input = tokens::estimate_input(&call, encoding);
        let shown = tokens::estimate_output(&visible, beyond, encoding);
        let echoed = match call.echo {
            Echo::No => Tokens::ZERO,
            Echo::Prompt => input.saturating_mul(call.choices),
        };
        (input, shown.saturating_sub(echoed))
    });
    let (input_tokens, output_tokens) = counting.await.unwrap_or_default();
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
fn price(admitted: &Admitted, usage: &Usage, tier: Tier) -> Bill {
    let bill = bill(usage, &admitted.priced.terms(tier)).unwrap_or_else(|error| {
        tracing::error!(exchange = %admitted.id(), %error, ?usage, "the usage cannot be priced and is not charged");
        Bill::nothing()
    });
    for class in &bill.unpriced {
        tracing::error!(exchange = %admitted.id(), %class, "was used, has no price, and is not charged");
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

fn row(admitted: &Admitted, watch: &Watch, outcome: Outcome) -> ExchangeRow {
    let reading = watch.meter.reading();
    let terms = admitted.priced.terms(outcome.tier);
    ExchangeRow {
        id: admitted.id(),
        user: admitted.key.user_id,
        key: admitted.key.id,
        endpoint: admitted.call.endpoint,
        streamed: admitted.call.stream,
        model: admitted.call.model.clone(),
        priced_model: admitted.target.model.clone(),
        answered_model: reading.model.clone(),
        upstream: admitted.live.upstreams[sent_to(admitted, watch)].name().to_owned(),
        list: admitted.priced.list.clone(),
        price_from: admitted.priced.from,
        tier: outcome.tier,
        state: outcome.state,
        basis: outcome.basis,
        usage: outcome.usage,
        lines: outcome.bill.lines,
        uplift: terms.uplift().map(|factor| factor.to_string()),
        markup: admitted.priced.markup.to_string(),
        cost: outcome.bill.cost,
        charge: outcome.bill.charge,
        uncollected: Usd::ZERO,
        held: admitted.hold.amount,
        output_limit: admitted.hold.output_limit,
        balance_after: Usd::ZERO,
        response_id: reading.response_id.clone(),
        item_ids: reading.item_ids.clone(),
        upstream_request_id: watch.upstream_request_id.clone(),
        upstream_status: watch.last.and_then(|last| last.status).map(|status| status.as_u16()),
        attempts: watch.attempts(),
        started_at: admitted.started_at,
        first_byte: watch.first_byte,
        duration: watch.since_start.elapsed(),
        origin: admitted.origin.clone(),
    }
}
