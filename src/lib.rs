//! Codex Gateway.

pub mod call;
pub mod codec;
pub mod config;
pub mod exchange;
pub mod hold;
pub mod key;
pub mod meter;
pub mod money;
pub mod pricing;
pub mod refusal;
pub mod route;
pub mod sse;
pub mod store;
pub mod time;
pub mod tokens;
pub mod usage;
