//! The recorder: keeps an answer as it is sent, for the client that sends its call again.
//!
//! It is there only when the operator turned it on and the call has a name. An answer is kept when it came to an end of its
//! own and was charged, also when its client left before that; else, and when it is too long or there is no memory, the
//! client is told that the call is done. It is written after the settlement, which it can neither delay nor undo, and before
//! the end leaves, so that whoever has the end can have all of it again. Until it is sealed, the answer is in memory only.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Answer, Body, Last};
use crate::fail_point::{self, Point};
use crate::recording::{NONCE, SealingKey, head};
use crate::store::{ExchangeId, Writer};
use crate::time::now;

/// The longest answer that is recorded, head included.
const MAX_RECORDING: usize = 8 * 1024 * 1024;

/// What all answers that are being recorded take of the memory.
const RECORDING_MEMORY: usize = 256 * 1024 * 1024;

/// What a permit stands for.
const UNIT: usize = 64 * 1024;

/// The memory that recorded answers may take: while they are recorded, and while they are given again.
#[derive(Debug)]
pub struct RecordingMemory(Arc<Semaphore>);

/// The memory of one answer that is given again; given back when it is dropped.
#[derive(Debug)]
pub struct Replaying(OwnedSemaphorePermit);

impl RecordingMemory {
    /// Room for the longest recording; `None`: there is none.
    pub fn room(&self) -> Option<Replaying> {
        let most = u32::try_from(MAX_RECORDING / UNIT).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(most).ok().map(Replaying)
    }
}

impl Replaying {
    /// Keeps only what so many bytes take.
    pub fn shrink(&mut self, bytes: usize) {
        let over = (self.0.num_permits() * UNIT).saturating_sub(bytes) / UNIT;
        drop(self.0.split(over));
    }
}

impl Default for RecordingMemory {
    fn default() -> RecordingMemory {
        RecordingMemory(Arc::new(Semaphore::new(RECORDING_MEMORY / UNIT)))
    }
}

/// Records one answer.
#[derive(Debug)]
pub(super) struct Recorder {
    key: SealingKey,
    free: Arc<Semaphore>,
    /// Head and body so far; `None`: it is given up.
    plain: Option<Vec<u8>>,
    memory: Vec<OwnedSemaphorePermit>,
}

impl Recorder {
    pub(super) fn new(key: SealingKey, memory: &RecordingMemory) -> Recorder {
        Recorder {
            key,
            free: Arc::clone(&memory.0),
            plain: Some(Vec::new()),
            memory: Vec::new(),
        }
    }

    /// The head.
    pub(super) fn begin(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.take(&head(status, headers));
    }

    /// What comes next.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let Some(mut plain) = self.plain.take() else {
            return;
        };
        let length = plain.len() + bytes.len();
        while length <= MAX_RECORDING && length > self.memory.len() * UNIT {
            match Arc::clone(&self.free).try_acquire_owned() {
                Ok(more) => self.memory.push(more),
                Err(_) => break,
            }
        }
        if length > MAX_RECORDING.min(self.memory.len() * UNIT) {
            self.memory.clear();
            return;
        }
        plain.extend_from_slice(bytes);
        self.plain = Some(plain);
    }

    /// Keeps the answer, whose end this is.
    pub(super) async fn keep(mut self, writer: &Writer, exchange: ExchangeId, last: &Last) {
        match last {
            Last::Answer(Answer {
                status,
                headers,
                body: Body::Whole(bytes),
            }) => {
                self.begin(*status, headers);
                self.take(bytes);
            }
            Last::Pieces(pieces) => pieces.iter().for_each(|piece| self.take(piece)),
            Last::Answer(_) | Last::Refusal(_) | Last::Abort | Last::Nothing => return,
        }
        let (key, Some(plain)) = (self.key, self.plain) else {
            tracing::debug!(%exchange, "the answer is too long to be recorded, or there is no memory for it");
            return;
        };
        let sealing = tokio::task::spawn_blocking(move || {
            let mut nonce = [0; NONCE];
            getrandom::fill(&mut nonce).ok().and_then(|()| key.seal(plain, nonce))
        });
        let recorded = match (sealing.await, fail_point::hit(Point::Recording)) {
            (Ok(Some(sealed)), Ok(())) => writer
                .record(exchange, sealed, now())
                .await
                .map_err(|error| error.to_string()),
            (_, Err(injected)) => Err(injected.to_string()),
            (Ok(None) | Err(_), Ok(())) => Err("it cannot be sealed".to_owned()),
        };
        if let Err(why) = recorded {
            tracing::warn!(%exchange, why, "the answer is not recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::GatewayKey;

    fn recorder(memory: &RecordingMemory) -> Recorder {
        let key = SealingKey::of(&GatewayKey::from_entropy([1; 32]), uuid::Uuid::nil());
        Recorder::new(key.expect("a key"), memory)
    }

    #[test]
    fn an_answer_that_is_too_long_is_given_up_and_its_memory_given_back() {
        let memory = RecordingMemory::default();
        let mut long = recorder(&memory);
        long.take(&vec![0; MAX_RECORDING]);
        assert_eq!(long.plain.as_ref().map(Vec::len), Some(MAX_RECORDING));
        long.take(b"1");
        long.take(b"2");
        assert_eq!(long.plain, None);
        assert_eq!(memory.0.available_permits(), RECORDING_MEMORY / UNIT);
    }

    #[test]
    fn an_answer_that_is_given_again_takes_what_it_has() {
        let memory = RecordingMemory::default();
        let mut some: Vec<Replaying> = std::iter::from_fn(|| memory.room()).collect();
        assert_eq!(some.len(), RECORDING_MEMORY / MAX_RECORDING);
        some[0].shrink(UNIT + 1);
        assert_eq!(memory.0.available_permits(), MAX_RECORDING / UNIT - 2);
        assert!(memory.room().is_none(), "not for the longest");
        some.truncate(1);
        some[0].shrink(0);
        assert_eq!(memory.0.available_permits(), RECORDING_MEMORY / UNIT);
    }

    #[test]
    fn all_recorded_answers_together_take_no_more_than_there_is_for_them() {
        let memory = RecordingMemory::default();
        let eight = vec![0; MAX_RECORDING];
        let mut all: Vec<_> = (0..RECORDING_MEMORY / MAX_RECORDING + 1)
            .map(|_| recorder(&memory))
            .collect();
        all.iter_mut().for_each(|one| one.take(&eight));
        assert_eq!(all.iter().filter(|one| one.plain.is_none()).count(), 1);
        drop(all);
        assert_eq!(memory.0.available_permits(), RECORDING_MEMORY / UNIT);
    }
}
