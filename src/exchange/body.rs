//! The body of a request as it comes: the memory that it takes by and by, and the time that it has.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::uploading::time_of;
use crate::refusal::Refusal;

/// Bodies above this are parsed off the async threads.
pub const PARSE_INLINE: usize = 256 * 1024;

/// Request bodies held in memory by all calls together: a few small compressed ones unfold to as much.
pub const BODY_MEMORY: usize = 512 * 1024 * 1024;

/// What a permit stands for.
pub const BODY_UNIT: usize = 4096;

/// How long a body waits for the memory to unfold in.
const MEMORY_WAIT: Duration = Duration::from_secs(5);

/// The memory that request bodies may take, from the first byte to the settlement.
#[derive(Clone, Debug)]
pub struct BodyMemory(Arc<Semaphore>);

impl Default for BodyMemory {
    fn default() -> BodyMemory {
        BodyMemory(Arc::new(Semaphore::new(BODY_MEMORY / BODY_UNIT)))
    }
}

impl BodyMemory {
    /// Takes room for so many bytes, if it is there.
    ///
    /// # Errors
    /// It is not.
    pub fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.0)
            .try_acquire_many_owned(units(bytes))
            .map_err(|_| Refusal::Busy)
    }

    /// Waits a little for room for so many bytes.
    ///
    /// # Errors
    /// There is none for too long.
    pub async fn wait(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let taking = Arc::clone(&self.0).acquire_many_owned(units(bytes.min(BODY_MEMORY)));
        timeout(MEMORY_WAIT, taking)
            .await
            .map_err(|_| Refusal::Busy)?
            .map_err(|_| Refusal::ShuttingDown)
    }
}

/// So many bytes in permits.
pub fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BODY_UNIT).max(1)).unwrap_or(u32::MAX)
}

/// A body that comes. What has come of it gives it more time: a long one may come slowly, and one that trickles may not.
#[derive(Debug)]
pub struct Incoming {
    /// Behind a lock that nobody waits for: others may look at what it is a part of while it comes.
    body: Mutex<Body>,
    memory: BodyMemory,
    taken: OwnedSemaphorePermit,
    /// Bytes that have come, and how many may.
    length: usize,
    limit: usize,
    patience: Duration,
    /// How long its client was waited for, and since when it is again.
    waited: Duration,
    since: Option<Instant>,
}

impl Incoming {
    /// A body of at most `limit` bytes, whose client is waited for so long, and longer for what has come.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(memory: &BodyMemory, body: Body, limit: usize, patience: Duration) -> Result<Incoming, Refusal> {
        Ok(Incoming {
            body: Mutex::new(body),
            taken: memory.take(1)?,
            memory: memory.clone(),
            length: 0,
            limit,
            patience,
            waited: Duration::ZERO,
            since: None,
        })
    }

    /// The next piece, with memory for it; `None`: that was all. May be dropped and asked again.
    ///
    /// # Errors
    /// It is too long, does not come whole or in time, or there is no memory for it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let Some(data) = self.frame().await? else {
                return Ok(None);
            };
            let Some(data) = data else { continue };
            self.length += data.len();
            if self.length > self.limit {
                return Err(Refusal::TooLarge { limit: self.limit });
            }
            let missing = usize::try_from(units(self.length))
                .unwrap_or(usize::MAX)
                .saturating_sub(self.taken.num_permits());
            if missing > 0 {
                self.taken.merge(self.memory.take(missing * BODY_UNIT)?);
            }
            return Ok(Some(data));
        }
    }

    /// Data, or what is none.
    async fn frame(&mut self) -> Result<Option<Option<Bytes>>, Refusal> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let patience = self.patience + time_of(self.length);
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = sleep_until(since + patience.saturating_sub(self.waited)) => return Err(Refusal::BodyLost),
        };
        self.waited += since.elapsed();
        self.since = None;
        match frame {
            None => Ok(None),
            Some(frame) => Ok(Some(frame.map_err(|_| Refusal::BodyLost)?.into_data().ok())),
        }
    }

    /// All of it behind what has come, and the memory that it takes.
    ///
    /// # Errors
    /// As of [`Incoming::next`].
    pub async fn rest(mut self, mut came: Vec<Bytes>) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        while let Some(piece) = self.next().await? {
            came.push(piece);
        }
        // Copied once, also when it is one frame: that is a part of a larger buffer, which it would keep.
        Ok((came.concat().into(), self.taken))
    }

    /// Reads on what nobody wants any more: a client that is answered meanwhile would not find its answer if its connection
    /// were closed while it sends.
    pub(super) async fn let_pass(mut self) {
        let limit = self.limit;
        while self.length <= limit {
            match self.frame().await {
                Ok(Some(data)) => self.length += data.map_or(0, |data| data.len()),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// A permit of the memory for nothing.
    pub(super) fn no_memory(&mut self) -> Option<OwnedSemaphorePermit> {
        self.taken.split(0)
    }

    /// The memory that it has taken.
    pub(super) fn into_memory(self) -> OwnedSemaphorePermit {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    async fn collect(
        memory: &BodyMemory,
        body: Body,
        limit: usize,
        patience: Duration,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        Incoming::new(memory, body, limit, patience)?.rest(Vec::new()).await
    }

    #[tokio::test]
    async fn small_bodies_leave_room_and_a_large_one_waits_or_is_told_to_come_again() {
        let memory = BodyMemory::default();
        let small: Vec<_> = (0..10_000)
            .map(|_| memory.take(2_000))
            .collect::<Result<_, _>>()
            .expect("room");
        let large = memory.take(400 * 1024 * 1024).expect("room");
        assert_eq!(memory.take(200 * 1024 * 1024).err(), Some(Refusal::Busy));
        drop(large);
        let waited = memory
            .wait(BODY_MEMORY - 10_000 * BODY_UNIT)
            .await
            .expect("it is given back");
        assert!(waited.num_permits() > 0);
        assert_eq!(small.len(), 10_000);
    }

    #[tokio::test]
    async fn a_body_takes_the_memory_that_has_come_of_it() {
        let memory = BodyMemory::default();
        let (bytes, taken) = collect(&memory, Body::from(vec![b' '; 10_000]), 10_000, Duration::ZERO)
            .await
            .expect("it fits");
        assert_eq!((bytes.len(), taken.num_permits()), (10_000, 3));
        let refused = collect(&memory, Body::from(vec![b' '; 10_001]), 10_000, Duration::ZERO).await;
        assert_eq!(refused.err(), Some(Refusal::TooLarge { limit: 10_000 }));
    }

    #[tokio::test]
    async fn a_body_has_more_time_for_what_has_come_and_one_that_trickles_has_not() {
        let patience = Duration::from_millis(200);
        let body = move |piece: usize| {
            let pieces = stream::unfold(0, move |sent| async move {
                tokio::time::sleep(patience / 4).await;
                (sent < 12).then(|| (Ok::<_, Infallible>(Bytes::from(vec![b' '; piece])), sent + 1))
            });
            Body::from_stream(pieces)
        };
        let (memory, limit) = (BodyMemory::default(), 16 << 20);
        let (bytes, _) = collect(&memory, body(1 << 20), limit, patience)
            .await
            .expect("it comes");
        assert_eq!(bytes.len(), 12 << 20);
        let trickles = collect(&memory, body(1), limit, patience).await;
        assert_eq!(trickles.err(), Some(Refusal::BodyLost));
    }
}
