//! The page of all metrics, in the two text formats that Prometheus reads.
//!
//! A family is always named, and has no series but those of models and upstreams that were called; these have every outcome,
//! so that the first failure is seen as a rise from zero.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{Attempt, Breaker, Counter, Metrics, OUTCOMES, Sight, UNSETTLED};
use crate::call::Endpoint;
use crate::code::Code;
use crate::histogram::Histogram;
use crate::money::Usd;
use crate::pricing::Class;
use crate::store::usage_log::State;

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the reader accepts: OpenMetrics when it names it.
    pub fn accepted(accept: &str) -> Format {
        match accept.contains("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// The media type.
    pub const fn media(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes the page.
///
/// # Errors
/// None but those of formatting.
pub fn page(metrics: &Arc<Metrics>, sight: Sight, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page {
        metrics: Arc::clone(metrics),
        sight,
    }));
    let mut page = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut page, &registry)?,
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

#[derive(Debug)]
struct Page {
    metrics: Arc<Metrics>,
    sight: Sight,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Writer(encoder);
        self.exchanges(&mut page)?;
        self.money(&mut page)?;
        self.upstreams(&mut page)?;
        self.storage(&mut page)?;
        self.process(&mut page)
    }
}

impl Page {
    fn exchanges(&self, page: &mut Writer<'_>) -> fmt::Result {
        let Metrics { models, refusals, .. } = &*self.metrics;
        let ends = models.iter().flat_map(|(model, of)| {
            let by_endpoint = Endpoint::ALL.iter().zip(&of.exchanges);
            let called = by_endpoint.filter(|(_, ends)| ends.iter().any(|count| count.get() > 0));
            called.flat_map(move |(endpoint, ends)| {
                let labels = move |outcome| [("endpoint", endpoint.path()), ("model", model), ("outcome", outcome)];
                (0..OUTCOMES)
                    .zip(ends)
                    .map(move |(end, count)| (labels(outcome(end)), count))
            })
        });
        page.counters(
            "gateway_exchanges",
            "Calls that took a hold, by how they ended; unsettled ones are not charged yet, or nobody knows.",
            ends,
        )?;
        page.times(
            "gateway_exchange_duration_seconds",
            "From the hold of a call to the end of its answer.",
            &self.metrics.durations,
        )?;
        page.times(
            "gateway_time_to_first_byte_seconds",
            "From the hold of a call to the head of the upstream's answer.",
            &self.metrics.first_bytes,
        )?;
        page.times(
            "gateway_overhead_seconds",
            "What the gateway itself adds to a call: from its parsed body until it is sent upstream, and from the upstream's \
             last byte until the charge is durable. Passing the pieces of an answer on is not in it.",
            &self.metrics.overheads,
        )?;
        let refused = Code::ALL.iter().zip(refusals);
        page.counters(
            "gateway_refusals",
            "Answers of the gateway's own in place of an upstream's, by the code that they give.",
            refused.map(|(code, count)| ([("code", code.name())], count)),
        )?;
        page.gauge(
            "gateway_connections",
            "Open connections of clients.",
            Some(self.metrics.connections.load(Ordering::Relaxed)),
        )
    }

    fn money(&self, page: &mut Writer<'_>) -> fmt::Result {
        let Metrics {
            models,
            charged,
            uncollected,
            ..
        } = &*self.metrics;
        let tokens = models.iter().flat_map(|(model, of)| {
            let by_class = Class::ALL.iter().zip(&of.tokens);
            let used = by_class.filter(|(_, count)| count.get() > 0);
            used.map(move |(class, count)| ([("model", model), ("class", class.name())], count))
        });
        page.counters(
            "gateway_tokens",
            "Tokens of settled calls, each in one class: cached input is not in input, reasoning is not in output.",
            tokens,
        )?;
        page.total("gateway_charged_usd", "US dollars charged.", usd(charged))?;
        page.total(
            "gateway_uncollected_usd",
            "US dollars of charges that neither hold nor balance paid for.",
            usd(uncollected),
        )?;
        page.gauge(
            "gateway_open_holds",
            "Calls with money set aside that are not settled yet, in the database.",
            self.sight.open.map(|(count, _)| count),
        )?;
        page.gauge(
            "gateway_held_usd",
            "US dollars that they set aside.",
            self.sight.open.and_then(|(_, held)| floating(held)),
        )?;
        page.gauge(
            "gateway_background_responses",
            "Of the open holds: those of background responses that run at their upstreams.",
            self.sight.background,
        )
    }

    fn upstreams(&self, page: &mut Writer<'_>) -> fmt::Result {
        let upstreams = self.metrics.upstreams.iter();
        let tried = upstreams.filter(|(_, of)| of.attempts.iter().any(|count| count.get() > 0));
        let attempts = tried.flat_map(|(upstream, of)| {
            let by_outcome = Attempt::ALL.iter().zip(&of.attempts);
            by_outcome.map(move |(outcome, count)| ([("upstream", upstream), ("outcome", outcome.name())], count))
        });
        page.counters(
            "gateway_upstream_attempts",
            "Calls sent to upstreams, each try for itself, by what came of it until the head of the answer.",
            attempts,
        )?;
        let help = "Whether calls go to an upstream: 0 they do (closed), 1 a few do to find out (half open), 2 they do not (open).";
        let mut family = page
            .0
            .encode_descriptor("gateway_upstream_breaker_state", help, None, MetricType::Gauge)?;
        for (upstream, breaker) in &self.sight.breakers {
            let state: u32 = match breaker {
                Breaker::Closed => 0,
                Breaker::HalfOpen => 1,
                Breaker::Open => 2,
            };
            family
                .encode_family(&[("upstream", upstream.as_str())])?
                .encode_gauge(&state)?;
        }
        Ok(())
    }

    fn storage(&self, page: &mut Writer<'_>) -> fmt::Result {
        let counts = &self.sight.counts;
        page.times(
            "gateway_commit_duration_seconds",
            "From the beginning of the writer's transaction until it is durable.",
            &counts.commits,
        )?;
        page.histogram(
            "gateway_commit_batch_size",
            "Operations that share one transaction.",
            &counts.batches,
            floating_count,
        )?;
        page.gauge(
            "gateway_write_queue_depth",
            "Operations that wait for the writer.",
            Some(counts.depth()),
        )?;
        page.gauge(
            "gateway_ready",
            "Whether calls are taken, as /readyz says: 1 they are, 0 they are refused.",
            Some(u32::from(self.sight.ready)),
        )
    }

    fn process(&self, page: &mut Writer<'_>) -> fmt::Result {
        let process = &self.sight.process;
        let help = "The program that runs; its value is 1.";
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        let mut info = page
            .0
            .encode_descriptor("gateway_build_info", help, None, MetricType::Gauge)?;
        info.encode_family(&labels)?.encode_gauge(&1_u32)?;
        let started = Duration::try_from(self.metrics.started.duration_since(jiff::Timestamp::UNIX_EPOCH));
        page.gauge(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970.",
            started.ok().map(|since| since.as_secs_f64()),
        )?;
        if let Some(cpu) = process.cpu {
            page.total(
                "process_cpu_seconds",
                "The processor's time that the process took.",
                Some(cpu.as_secs_f64()),
            )?;
        }
        page.gauge(
            "process_resident_memory_bytes",
            "Memory of the process that is not paged out.",
            process.resident,
        )?;
        page.gauge("process_open_fds", "Open files of the process.", process.open_files)?;
        page.gauge("process_max_fds", "How many files it may have open.", process.max_files)
    }
}

/// The label of an end.
fn outcome(end: usize) -> &'static str {
    State::ALL.get(end).map_or(UNSETTLED, |state| state.name())
}

/// Nano-dollars as dollars.
fn usd(nanos: &Counter) -> Option<f64> {
    i64::try_from(nanos.get()).ok().map(Usd::from_nanos).and_then(floating)
}

/// The nearest number to an exact decimal.
fn floating(amount: Usd) -> Option<f64> {
    amount.to_string().parse().ok()
}

/// The nearest number to a count.
fn floating_count(count: u64) -> f64 {
    count.to_string().parse().unwrap_or(f64::INFINITY)
}

/// Microseconds as seconds.
fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// Writes families of metrics.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// Counters with labels.
    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        counters: impl Iterator<Item = ([(&'static str, &'l str); N], &'l Counter)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, counter) in counters {
            let mut one = family.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, u64, u64>(&counter.get(), None)?;
        }
        Ok(())
    }

    /// One counter; without a value it is only named.
    fn total(&mut self, name: &str, help: &str, value: Option<impl EncodeCounterValue>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        value.map_or(Ok(()), |value| {
            family.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// One gauge; without a value it is only named.
    fn gauge(&mut self, name: &str, help: &str, value: Option<impl EncodeGaugeValue>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        value.map_or(Ok(()), |value| family.encode_gauge(&value))
    }

    /// A histogram of microseconds.
    fn times(&mut self, name: &str, help: &str, of: &Histogram) -> fmt::Result {
        self.histogram(name, help, of, seconds)
    }

    fn histogram(&mut self, name: &str, help: &str, of: &Histogram, unit: impl Fn(u64) -> f64) -> fmt::Result {
        let seen = of.seen();
        let below = seen.buckets.iter().map(|(bound, count)| (unit(*bound), *count));
        let buckets: Vec<(f64, u64)> = below.chain([(f64::INFINITY, seen.above)]).collect();
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(unit(seen.sum), seen.count(), &buckets, None)
    }
}
