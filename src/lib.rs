//! Codex Gateway: a prepaid gateway for the Codex CLI and any OpenAI client. One binary, one SQLite file, exact bills.
//!
//! The modules in reading order, from the bottom up; a module uses what stands above it here, never what stands below.
//! A stranger reads this list and then [`exchange`], and knows how the gateway works.
//!
//! [`fail_point`] is where the crash tests make it fail; [`language`] has the form of all that is said to people.
//!
//! Vocabulary: values and rules, without clock, I/O or async.
//! [`code`]s tell errors apart, [`key`], [`redemption`] codes and [`codec`] are what their names say;
//! [`money`] and [`usage`] are what is counted; [`call`] is a request as far as its cost and its route depend on it, [`origin`] who asked,
//! [`endpoints`] what is served;
//! [`pricing`] makes money of usage and [`tokens`] bounds and estimates it; [`budget`] says what may be spent in which
//! span of time, [`hold`] how much to set aside and [`refusal`] how a refusal is told, in the words of [`texts`]; [`sse`]
//! and [`meter`] read an answer as it passes, [`translate`] puts it into another wire format; [`route`] and [`config`] are what their names say, [`event`] is what others are
//! told, [`breaker`] leaves alone what fails and [`retry`] knows what may be sent once more.
//!
//! [`time`] reads the clock. [`store`] is the only door to SQLite. [`session`] says what made one dear. [`exchange`] carries one call from admission to
//! settlement. [`admin`] is what operators do. [`events`] sends on what happened.
//!
//! The edge: [`server`], the [`simulator`] that plays an upstream, and the command line in [`cli`].

pub mod fail_point;
pub mod language;

pub mod code;
pub mod codec;
pub mod key;
pub mod money;
pub mod recording;
pub mod redemption;
pub mod usage;

pub mod call;
pub mod endpoints;
pub mod origin;
pub mod pricing;
pub mod tokens;

pub mod budget;
pub mod hold;
pub mod limits;
pub mod refusal;
pub mod texts;

pub mod meter;
pub mod sse;
pub mod translate;

pub mod breaker;
pub mod config;
pub mod event;
pub mod retry;
pub mod route;

pub mod histogram;
pub mod time;

pub mod store;

pub mod session;

pub mod metrics;

pub mod admin;
pub mod events;
pub mod exchange;

pub mod cli;
pub mod server;
pub mod simulator;
