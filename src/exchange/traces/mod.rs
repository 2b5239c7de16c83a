//! A span for each exchange, for OpenTelemetry: with the feature `otlp`, and only where the environment names a collector.
//!
//! ```text
//! the client's traceparent ── Parent ─┐
//! settlement ── row ── Draft ── end ──┴▶ queue (bounded; what does not fit is dropped) ▶ a thread's batches ▶ collector
//! ```
//!
//! A span is made when its exchange is settled, of what its receipt and its line in the log have: closed lists, without
//! keys, prompts and answers. Nothing on a call's path waits for it. A normal build has none of it (`off.rs`).

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub(super) use off::Parent;
#[cfg(not(feature = "otlp"))]
pub use off::Tracer;
#[cfg(feature = "otlp")]
pub(super) use otlp::Parent;
#[cfg(feature = "otlp")]
pub use otlp::Tracer;
