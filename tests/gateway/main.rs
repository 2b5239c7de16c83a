//! The gateway's promises, kept by its real server on a real database file, with the simulator upstream.
//!
//! ONE crate, so that it links once; a file per promise. Expected charges come from the simulator's log and the
//! catalogue's JSON (`price`), never from the gateway's own usage, meter or pricing.

mod backup;
mod billing;
mod books;
mod campaign;
mod cli;
mod client;
mod concurrency;
mod credit;
mod cuts;
mod demo;
mod faults;
mod hangups;
mod harness;
mod hostile;
mod keys;
mod ledgers;
mod limits;
mod network;
mod payer;
mod price;
mod prices;
mod properties;
mod rawhttp;
mod refusals;
mod replay;
mod routing;
mod seal;
mod security;
mod shutdown;
mod state;
mod streaming;
mod tampering;
mod verification;
