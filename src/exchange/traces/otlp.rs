//! With the feature: the OpenTelemetry SDK, told by its standard variables where spans go and how many wait.
//!
//! Names and values are those of the semantic conventions for generative AI, the client's side: the gateway is the client
//! of the upstream. What they have no name for is `gateway.…`.

use std::borrow::Cow;
use std::env;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use reqwest::{Client, redirect};
use tokio::runtime::Handle;

use crate::call::Endpoint;
use crate::exchange::Upstream;
use crate::exchange::upstream::{install_crypto, roots};
use crate::language::Language;
use crate::money::Usd;
use crate::origin::Label;
use crate::pricing::ListName;
use crate::store::keys::Key;
use crate::store::usage_log::{ExchangeRow, State};
use crate::usage::Tokens;

/// Where the collector is; the first one counts.
const ENDPOINTS: [&str; 2] = [
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_ENDPOINT,
];

/// How long a batch may take, in milliseconds; the first one counts.
const TIMEOUTS: [&str; 2] = [
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT,
];

/// How long a stop waits for the collector to take what is left.
const STOP: Duration = Duration::from_secs(2);

/// Makes spans and sends them, where a collector is named.
#[derive(Debug)]
pub struct Tracer(Option<Sending>);

#[derive(Debug)]
struct Sending {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The span that the client made the call in; else none.
#[derive(Debug)]
pub(in crate::exchange) struct Parent(Context);

/// A span that waits for the end of its settlement.
pub(in crate::exchange) struct Draft<'a>(Option<Open<'a>>);

struct Open<'a> {
    tracer: &'a SdkTracer,
    parent: &'a Parent,
    name: String,
    attributes: Vec<KeyValue>,
    state: State,
    status: Option<u16>,
    started: SystemTime,
    ended: SystemTime,
}

impl Tracer {
    /// Reads the environment. A collector that is named wrongly is logged, and nothing is sent: traces keep no server from
    /// its calls.
    pub fn start() -> Tracer {
        if !is_wanted(variable) {
            return Tracer(None);
        }
        let started = provider().inspect_err(|error| tracing::error!(error, "no traces are sent"));
        Tracer(started.ok().map(|provider| Sending {
            tracer: provider.tracer("codex-gateway"),
            provider,
        }))
    }

    /// Sends what waits, within two seconds, and takes nothing after it.
    pub async fn stop(&self) {
        let Some(Sending { provider, .. }) = &self.0 else {
            return;
        };
        let provider = provider.clone();
        let stopping = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(STOP));
        let stopped = stopping.await.map_err(|error| error.to_string());
        if let Err(error) = stopped.and_then(|stopped| stopped.map_err(|error| error.to_string())) {
            tracing::warn!(error, "the last traces were not sent");
        }
    }

    /// The span that a valid `traceparent` names.
    pub(in crate::exchange) fn parent(&self, headers: &HeaderMap) -> Parent {
        let none = Context::new();
        Parent(match self.0 {
            Some(_) => TraceContextPropagator::new().extract_with_context(&none, &HeaderExtractor(headers)),
            None => none,
        })
    }

    /// What is known of an exchange before its hold is closed.
    pub(in crate::exchange) fn draft<'a>(
        &'a self,
        row: &ExchangeRow,
        key: &Key,
        upstream: &Upstream,
        parent: &'a Parent,
    ) -> Draft<'a> {
        Draft(self.0.as_ref().map(|Sending { tracer, .. }| {
            let started = SystemTime::UNIX_EPOCH + row.started_at.as_duration().unsigned_abs();
            Open {
                tracer,
                parent,
                name: format!("{} {}", operation(row.endpoint), row.priced_model),
                attributes: attributes(row, key, upstream),
                state: row.state,
                status: row.upstream_status,
                started,
                ended: started + row.duration,
            }
        }))
    }
}

impl Draft<'_> {
    /// Hands the span on: with what was charged, if that is known, and the code of a refusal.
    pub(in crate::exchange) fn end(self, charged: Option<Usd>, code: Option<&'static str>) {
        let Some(mut open) = self.0 else { return };
        let error = error(open.state, open.status, code);
        let more = [
            charged.map(|charged| KeyValue::new("gateway.charge_usd", charged.to_string())),
            error.clone().map(|error| KeyValue::new("error.type", error)),
        ];
        open.attributes.extend(more.into_iter().flatten());
        let builder = SpanBuilder::from_name(open.name)
            .with_kind(SpanKind::Client)
            .with_start_time(open.started)
            .with_attributes(open.attributes);
        let mut span = open.tracer.build_with_context(builder, &open.parent.0);
        if error.is_some() {
            span.set_status(Status::error(""));
        }
        span.end_with_timestamp(open.ended);
    }
}

/// What the convention calls it.
fn operation(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Responses | Endpoint::Compact => "chat",
        Endpoint::Completions => "text_completion",
        Endpoint::Embeddings => "embeddings",
        _ => "generate_content",
    }
}

/// What the convention calls who owns a price list; others go by the list's name.
fn provider_name(list: &ListName) -> String {
    match list.as_str() {
        "gemini" => "gcp.gemini",
        "mistral" => "mistral_ai",
        "moonshot" => "moonshot_ai",
        "xai" => "x_ai",
        name => name,
    }
    .to_owned()
}

/// What class of error the call ended with: the code of the gateway's refusal, else the status of the upstream's, else
/// the state. An answer that came, was cut at its limit, or whose client left, is none.
fn error(state: State, status: Option<u16>, code: Option<&'static str>) -> Option<Cow<'static, str>> {
    let of_state = || match (state, status) {
        (State::Completed | State::Incomplete | State::Limited | State::Left, _) => None,
        (State::Refused, Some(status)) => Some(status.to_string().into()),
        (State::Refused | State::Failed | State::Broken | State::Cancelled | State::Interrupted, _) => {
            Some(state.name().into())
        }
    };
    code.map(Cow::Borrowed).or_else(of_state)
}

fn attributes(row: &ExchangeRow, key: &Key, upstream: &Upstream) -> Vec<KeyValue> {
    let provider = row
        .list
        .as_ref()
        .map_or_else(|| upstream.name().to_owned(), provider_name);
    let (usage, server) = (&row.usage, upstream.url());
    let number = |tokens: Tokens| Value::I64(i64::try_from(tokens.get()).unwrap_or(i64::MAX));
    let some = |tokens: Tokens| (tokens > Tokens::ZERO).then(|| number(tokens));
    let text = |text: &str| Some(Value::from(text.to_owned()));
    let (origin, label) = (&row.origin, |label: Option<&Label>| {
        label.and_then(|label| text(label.as_str()))
    });
    let all = [
        ("gen_ai.operation.name", Some(operation(row.endpoint).into())),
        ("gen_ai.provider.name", Some(provider.into())),
        ("gen_ai.request.model", text(&row.priced_model)),
        ("gen_ai.request.stream", row.streamed.then_some(Value::Bool(true))),
        ("gen_ai.response.id", row.response_id.as_deref().and_then(text)),
        ("gen_ai.response.model", row.answered_model.as_deref().and_then(text)),
        ("gen_ai.usage.input_tokens", Some(number(usage.input_tokens))),
        ("gen_ai.usage.cache_read.input_tokens", some(usage.cached_tokens)),
        ("gen_ai.usage.output_tokens", Some(number(usage.output_tokens))),
        ("gen_ai.usage.reasoning.output_tokens", some(usage.reasoning_tokens)),
        ("server.address", server.host_str().and_then(text)),
        (
            "server.port",
            server.port_or_known_default().map(|port| i64::from(port).into()),
        ),
        (
            "http.response.status_code",
            row.upstream_status.map(|status| i64::from(status).into()),
        ),
        ("gen_ai.conversation.id", label(origin.session.as_ref())),
        ("gen_ai.agent.id", label(origin.agent.as_ref())),
        ("gateway.turn", label(origin.turn.as_ref())),
        ("gateway.kind", origin.kind.map(|kind| kind.name().into())),
        (
            "gateway.client",
            origin.client.as_ref().and_then(|client| text(client.as_str())),
        ),
        ("gateway.exchange", Some(row.id.to_string().into())),
        ("gateway.endpoint", Some(row.endpoint.path().into())),
        ("gateway.model", text(&row.model)),
        ("gateway.state", Some(row.state.name().into())),
        ("gateway.upstream", text(&row.upstream)),
        ("gateway.attempts", Some(i64::from(row.attempts).into())),
        ("gateway.user", text(&key.user_name)),
        ("gateway.key", text(&key.prefix)),
    ];
    let there = all
        .into_iter()
        .filter_map(|(name, value)| Some(KeyValue::new(name, value?)));
    there.collect()
}

/// Whether the environment names a collector.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    !is_disabled && ENDPOINTS.into_iter().any(|name| variable(name).is_some())
}

/// A variable of the environment; an empty one is none.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn provider() -> Result<SdkTracerProvider, String> {
    let timeout = TIMEOUTS
        .into_iter()
        .find_map(variable)
        .and_then(|text| text.parse().ok());
    let timeout = timeout.map_or(
        opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT,
        Duration::from_millis,
    );
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(timeout)
        .with_http_client(Collector::new(timeout)?)
        .build()
        .map_err(|error| error.to_string())?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource());
    Ok(provider.build())
}

/// Who sends: what the standard variables say, else ourselves.
fn resource() -> Resource {
    let ours = [
        KeyValue::new("service.name", "codex-gateway"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(ours)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// The way to the collector. The SDK asks on a thread of its own, which has no runtime: the server's sends.
#[derive(Debug)]
struct Collector {
    client: Client,
    runtime: Handle,
}

impl Collector {
    fn new(timeout: Duration) -> Result<Collector, String> {
        install_crypto();
        let roots = roots(None).map_err(|error| error.of(Language::English).to_string())?;
        let client = Client::builder()
            .tls_certs_only(roots)
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("codex-gateway/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .build()
            .map_err(|error| error.to_string())?;
        let runtime = Handle::current();
        Ok(Collector { client, runtime })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime
            .spawn(async move { client.send_bytes(request).await })
            .await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_unless_a_collector_is_named() {
        let [traces, all] = ENDPOINTS;
        for (variables, is_sent) in [
            (&[][..], false),
            (&[("OTEL_SERVICE_NAME", "gateway")], false),
            (&[(traces, "http://127.0.0.1:1")], true),
            (&[(all, "http://127.0.0.1:1")], true),
            (&[(all, "http://127.0.0.1:1"), ("OTEL_SDK_DISABLED", "true")], false),
        ] {
            let set = |name: &str| variables.iter().find(|(set, _)| *set == name);
            let variable = |name: &str| set(name).map(|(_, value)| (*value).to_owned());
            assert_eq!(is_wanted(variable), is_sent, "{variables:?}");
        }
    }

    #[test]
    fn an_error_is_told_by_its_code_its_status_or_its_state() {
        for (state, status, code, told) in [
            (State::Completed, Some(200), None, None),
            (State::Limited, Some(200), None, None),
            (State::Left, None, None, None),
            (State::Refused, Some(429), None, Some("429")),
            (State::Broken, Some(200), None, Some("broken")),
            (State::Failed, None, Some("upstream_timeout"), Some("upstream_timeout")),
            (State::Completed, Some(200), Some("unsettled"), Some("unsettled")),
        ] {
            assert_eq!(error(state, status, code).as_deref(), told, "{state:?}");
        }
    }

    #[test]
    fn whose_list_it_is_goes_by_the_name_that_the_convention_has() {
        for (list, name) in [("openai", "openai"), ("xai", "x_ai"), ("mine", "mine")] {
            assert_eq!(provider_name(&ListName::parse(list).expect("a name")), name);
        }
    }
}
