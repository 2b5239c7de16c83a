//! The gateway's promises.

mod cli;
