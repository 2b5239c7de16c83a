//! The gateway's promises, kept by its real server on a real database file, with the simulator upstream.
//!
//! ONE crate, so that it links once; a file per promise. Expected charges come from the simulator's log and the
//! catalogue's JSON (`price`), never from the gateway's own usage, meter or pricing.

mod audit;
mod background;
mod backup;
mod billing;
mod books;
mod budgets;
mod campaign;
mod cli;
mod client;
mod codes;
mod codex;
mod concurrency;
mod credit;
mod cuts;
mod demo;
mod doctor;
mod endpoints;
mod events;
mod faults;
mod forms;
mod guard;
mod hangups;
mod harness;
mod hostile;
mod idempotency;
mod keys;
mod ledgers;
mod limits;
mod metrics;
mod network;
mod packages;
mod payer;
mod price;
mod prices;
mod properties;
mod rates;
mod rawhttp;
mod refunds;
mod refusals;
mod reload;
mod replay;
mod routing;
mod seal;
mod security;
mod sessions;
mod shutdown;
mod state;
mod statements;
mod status;
mod streaming;
mod tampering;
mod texts;
#[cfg(feature = "otlp")]
mod traces;
mod translation;
mod translation_chat;
mod upgrade;
mod upstreams;
mod verification;
mod websocket;
