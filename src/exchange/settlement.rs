//! Settlement: what was seen of the answer becomes usage, price and charge, in one transaction with the hold's end.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::admission::Admitted;
use super::{Ending, Gateway, Last, Settle, Watch};
use crate::call::{Echo, Endpoint};
use crate::fail_point::{self, Injected, Point};
use crate::meter::Reading;
use crate::money::Usd;
use crate::pricing::{Bill, bill};
use crate::refusal::Refusal;
use crate::store::NotClosed;
use crate::store::ledger::{CloseHold, Closed, Excess};
use crate::store::usage_log::{Basis, ExchangeRow, State};
use crate::tokens::{self, Encoding};
use crate::usage::Tier;
use crate::usage::{Tokens, Usage};

/// Closes the hold, and says what may leave then. A refusal means that the hold stays open, and the next start or the
/// sweep releases it; or that whether it was charged is not known.
pub(super) async fn settle(
    gateway: &Gateway,
    admitted: Admitted,
    watch: &Watch,
    ending: Ending,
) -> (Result<Closed, Refusal>, Last) {
    let Ending { state, settle, last } = ending;
    let receipt = receipt(gateway, &admitted, watch, state, settle);
    let (close, last) = match AssertUnwindSafe(receipt).catch_unwind().await {
        Ok(Ok(close)) => (close, last),
        failed => {
            let error = failed.map_or_else(|_| "it panicked".to_owned(), |_| "it was made to fail".to_owned());
            tracing::error!(exchange = %admitted.id(), error, "what the call cost cannot be told; it is released, and its end does not leave");
            (released(gateway, &admitted, watch), Last::Abort)
        }
    };
    (write(gateway, admitted, close).await, last)
}

/// What the exchange used and costs.
async fn receipt(
    gateway: &Gateway,
    admitted: &Admitted,
    watch: &Watch,
    state: State,
    settle: Settle,
) -> Result<CloseHold, Injected> {
    fail_point::hit(Point::BeforeSettlement)?;
    let (usage, basis) = measure(admitted, watch, settle).await;
    let reading = watch.meter.reading();
    // Only the end of an answer tells the tier for certain; without one it is the tier that was asked for.
    let tier = reading.tier.unwrap_or(match basis {
        Basis::Reported => Tier::Standard,
        Basis::Estimated => admitted.call.tier,
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
    let row = row(gateway, admitted, watch, outcome);
    Ok(CloseHold { row, excess })
}

/// Closes the hold without a charge: the gateway itself failed.
fn released(gateway: &Gateway, admitted: &Admitted, watch: &Watch) -> CloseHold {
    let nothing = Outcome {
        state: State::Failed,
        basis: Basis::Reported,
        usage: Usage::default(),
        tier: Tier::Standard,
        bill: Bill::nothing(),
    };
    CloseHold {
        row: row(gateway, admitted, watch, nothing),
        excess: Excess::Waive,
    }
}

/// Hands it to the writer and waits until it is durable.
async fn write(gateway: &Gateway, admitted: Admitted, close: CloseHold) -> Result<Closed, Refusal> {
    let (id, state, duration_ms) = (admitted.id(), close.row.state, close.row.duration.as_millis());
    let upstream = gateway.upstreams[admitted.target.upstream].name();
    let (call, key) = (admitted.call, admitted.key);
    let closed = gateway.writer.close(admitted.hold, admitted.place, close).await;
    let closed = closed.map_err(|failed| {
        tracing::error!(exchange = %id, error = &failed as &dyn std::error::Error, "the call is not settled");
        match failed {
            NotClosed::Unknown(_) => Refusal::Unsettled,
            NotClosed::NotWritten(_) => Refusal::Storage,
        }
    })?;
    tracing::info!(exchange = %id, user = key.user_name, model = call.model, upstream, state = state.name(), charged = %closed.charged, duration_ms, "settled");
    if closed.uncollected.nanos() > 0 {
        tracing::warn!(exchange = %id, uncollected = %closed.uncollected, "the charge was more than the hold and the balance");
    }
    Ok(closed)
}

/// The usage to charge, and where it comes from.
async fn measure(admitted: &Admitted, watch: &Watch, settle: Settle) -> (Usage, Basis) {
    let reading = watch.meter.reading();
    if let Some(problem) = &reading.usage_problem {
        tracing::warn!(exchange = %admitted.id(), %problem, "the upstream's usage cannot be believed; settled by estimate");
    }
    match (settle, &reading.usage) {
        (Settle::Nothing, _) => (Usage::default(), Basis::Reported),
        (_, Some(usage)) => (with_searches(admitted, usage.clone()), Basis::Reported),
        (Settle::UsageOfDelivered, None) if !watch.delivered => (Usage::default(), Basis::Reported),
        (_, None) => (estimate(admitted, watch).await, Basis::Estimated),
    }
}

/// A chat answer does not count its searches: one that may search is billed one.
fn with_searches(admitted: &Admitted, mut usage: Usage) -> Usage {
    if admitted.call.endpoint == Endpoint::ChatCompletions && admitted.call.tools.web_search {
        usage.tools.web_searches = usage.tools.web_searches.max(1);
    }
    usage
}

/// Counted input and counted visible output. Hidden reasoning is not in it.
async fn estimate(admitted: &Admitted, watch: &Watch) -> Usage {
    let reading = watch.meter.reading();
    let (call, (encoding, _)) = (admitted.call.clone(), Encoding::of(&admitted.target.model));
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

fn row(gateway: &Gateway, admitted: &Admitted, watch: &Watch, outcome: Outcome) -> ExchangeRow {
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
        upstream: gateway.upstreams[admitted.target.upstream].name().to_owned(),
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
        upstream_status: watch.status.map(|status| status.as_u16()),
        attempts: watch.attempts,
        started_at: admitted.started_at,
        first_byte: watch.first_byte,
        duration: watch.since_start.elapsed(),
    }
}
