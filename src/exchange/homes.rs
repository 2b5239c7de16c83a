//! Homes: at which upstream a thread lives, and who made what a call holds encrypted.
//!
//! By its name a thread has an upstream that everybody computes alike (`route`). What an answer leaves encrypted only the
//! account that made it can read, so where there is more than one upstream its maker is remembered, by a digest of it, and
//! what holds it goes there: of conversations that share a name, and of one that began as a copy of another, each to its own.
//! Of what is not known, and of what is not encrypted but cached, the thread decides. One that was answered elsewhere than its
//! name says lives there from then on; from an upstream of a higher `priority` number, which only stands in, a turn that holds
//! nothing encrypted goes back to where the name says, and the thread with it.
//!
//! All of it is in memory, by numbers, and of too many those that were quiet for longest are forgotten: after a restart a
//! thread is looked for where its name says.

use std::sync::Arc;

use super::Admitted;
use super::recent::Recent;
use crate::call::{AllEncrypted, Encrypted};
use crate::meter::Reading;
use crate::route::Seat;

/// How many of a kind are remembered at least: some 10 MB for a kind.
const SO_MANY: usize = 50_000;

/// Upstreams by their names.
type Names<K> = Recent<K, Arc<str>, SO_MANY>;

/// What lives where.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    /// Threads that live elsewhere than their names say.
    threads: Names<u64>,
    /// The last thing that each answer left encrypted.
    made: Names<Encrypted>,
}

impl Homes {
    /// The upstream, by its name, at which a thread lives; `None`: where its own name says.
    pub(super) fn of_thread(&self, thread: u64) -> Option<Arc<str>> {
        self.threads.get(&thread)
    }

    /// The upstream that made what is encrypted there, the last of it that is known.
    pub(super) fn maker(&self, all: &AllEncrypted) -> Option<Arc<str>> {
        all.newest_first().find_map(|one| self.made.get(&one))
    }

    /// An upstream takes a call: its thread lives there from here on, if it lived elsewhere.
    pub(super) fn taken(&self, admitted: &Admitted) {
        let moved = admitted
            .wish
            .lives
            .is_some_and(|lives| lives != admitted.target.upstream);
        if let (Seat::Thread(thread), true) = (admitted.wish.seat, moved) {
            self.threads.note(thread, admitted.upstream().name().into());
        }
    }

    /// An upstream has answered: what that leaves encrypted is its own.
    pub(super) fn answered(&self, admitted: &Admitted, reading: &Reading) {
        let is_choice = || admitted.live.routes.candidates(&admitted.call.model).nth(1).is_some();
        if let Some(encrypted) = reading.encrypted
            && is_choice()
        {
            self.made.note(encrypted, admitted.upstream().name().into());
        }
    }
}
