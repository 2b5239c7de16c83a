//! Codex Gateway: a prepaid gateway for the Codex CLI and any OpenAI client. One binary, one SQLite file, exact bills.
//!
//! The modules in reading order, from the bottom up; a module uses what stands above it here, never what stands below.
//! A stranger reads this list and then [`exchange`], and knows how the gateway works.
//!
//! [`fail_point`] is where the crash tests make it fail.
//!
//! Vocabulary: values and rules, without clock, I/O or async.
//! [`money`] and [`usage`] are what is counted; [`call`] is a request as far as its cost and its route depend on it;
//! [`pricing`] makes money of usage and [`tokens`] bounds and estimates it; [`hold`] says how much to set aside and
//! [`refusal`] how a refusal is told; [`sse`] and [`meter`] read an answer as it passes; [`key`], [`codec`], [`route`]
//! and [`config`] are what their names say.
//!
//! [`store`] is the only door to SQLite. [`time`] reads the clock. [`exchange`] carries one call from admission to
//! settlement. [`admin`] is what operators do.
//!
//! The edge: [`server`], the [`simulator`] that plays an upstream, and the command line in [`cli`].

pub mod fail_point;

pub mod money;
pub mod usage;

pub mod call;
pub mod pricing;
pub mod tokens;

pub mod hold;
pub mod refusal;

pub mod meter;
pub mod sse;

pub mod codec;
pub mod config;
pub mod key;
pub mod route;

pub mod store;

pub mod admin;
pub mod exchange;
pub mod time;

pub mod cli;
pub mod server;
pub mod simulator;
