//! The memory of WebSockets: the messages they read and the responses they remember.
//!
//! It is a part of the memory of request bodies, and no more than half of it, so that idle connections leave calls the
//! rest. A message takes what has come of it. A connection keeps what its longest message took: the library keeps that
//! buffer, too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::READ;
use crate::exchange::{BODY_MEMORY, BODY_UNIT, BodyMemory, time_of, units};

/// What all WebSockets together may take, in bytes.
const WEBSOCKETS: usize = BODY_MEMORY / 2;

/// What stands before the payload of a Ping or a Pong from a client.
const CONTROL_HEAD: usize = 6;

/// The memory of all WebSockets.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    own: Arc<Semaphore>,
    bodies: BodyMemory,
}

/// What one of them takes of it; given back when this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    own: OwnedSemaphorePermit,
    of_bodies: OwnedSemaphorePermit,
}

impl Memory {
    pub(super) fn of(bodies: &BodyMemory) -> Memory {
        Memory {
            own: Arc::new(Semaphore::new(WEBSOCKETS / BODY_UNIT)),
            bodies: bodies.clone(),
        }
    }

    /// Room for so many bytes, if there is any.
    pub(super) fn room(&self, bytes: usize) -> Option<Room> {
        Some(Room {
            own: Arc::clone(&self.own).try_acquire_many_owned(units(bytes)).ok()?,
            of_bodies: self.bodies.take(bytes).ok()?,
        })
    }
}

impl Room {
    fn bytes(&self) -> usize {
        self.own.num_permits() * BODY_UNIT
    }

    fn merge(&mut self, other: Room) {
        self.own.merge(other.own);
        self.of_bodies.merge(other.of_bodies);
    }
}

/// A stream whose messages take memory as they come, and time.
#[derive(Debug)]
pub(super) struct Measured<S> {
    stream: S,
    memory: Memory,
    /// What a message may take, as it comes.
    most: usize,
    room: Option<Room>,
    /// What has come of the message that is not whole yet.
    read: usize,
    /// Since when.
    since: Option<Instant>,
}

impl<S> Measured<S> {
    /// For messages of so many bytes. What they take as they come is no more than twice that, however small their fragments
    /// are; a read may have more behind one.
    pub(super) fn new(stream: S, memory: Memory, max_message: usize) -> Measured<S> {
        Measured {
            stream,
            memory,
            most: max_message.saturating_mul(2).saturating_add(READ),
            room: None,
            read: 0,
            since: None,
        }
    }

    /// A message is whole; what comes from here on is of the next.
    pub(super) fn is_whole(&mut self) {
        (self.read, self.since) = (0, None);
    }

    /// A frame of the WebSocket's own has come, which may be between the fragments of a message: with so many bytes of
    /// payload.
    pub(super) fn is_beside(&mut self, payload: usize) {
        self.read = self.read.saturating_sub(CONTROL_HEAD + payload);
        if self.read == 0 {
            self.since = None;
        }
    }

    /// The memory that it keeps.
    pub(super) fn held(&self) -> usize {
        self.room.as_ref().map_or(0, Room::bytes)
    }

    /// When the message that comes has to be whole, if one comes: in this time, and more for what has come of it.
    pub(super) fn has_until(&self, patience: Duration) -> Option<Instant> {
        self.since.map(|since| since + patience + time_of(self.read))
    }

    fn came(&mut self, bytes: usize) -> io::Result<()> {
        self.read += bytes;
        if self.read > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.since.get_or_insert_with(Instant::now);
        let has = self.held();
        if self.read <= has {
            return Ok(());
        }
        let more = self.memory.room(self.read - has).ok_or(io::ErrorKind::OutOfMemory)?;
        match &mut self.room {
            Some(room) => room.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Measured<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        match into.filled().len() - before {
            0 => read,
            bytes => read.map(|read| read.and_then(|()| self.came(bytes))),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Measured<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn all_together_take_no_more_than_there_is_for_them_and_leave_the_rest_to_bodies() {
        let bodies = BodyMemory::default();
        let memory = Memory::of(&bodies);
        let rooms: Vec<Room> = std::iter::from_fn(|| memory.room(WEBSOCKETS / 4)).collect();
        assert_eq!(rooms.len(), 4);
        assert!(bodies.take(WEBSOCKETS).is_ok(), "half of it is left");
        assert!(bodies.take(WEBSOCKETS + BODY_UNIT).is_err());
        drop(rooms);
        let all = bodies.take(BODY_MEMORY).expect("it is given back");
        assert!(memory.room(1).is_none(), "nor is there any where bodies have all");
        drop(all);
        assert!(memory.room(WEBSOCKETS).is_some());
    }

    #[tokio::test]
    async fn a_message_takes_what_has_come_of_it_and_fails_where_there_is_none() {
        let memory = Memory::of(&BodyMemory::default());
        let all = memory.own.available_permits();
        let taken = || (all - memory.own.available_permits()) * BODY_UNIT;
        let (mut theirs, ours) = duplex(100_000);
        let mut measured = Measured::new(ours, memory.clone(), 100_000);
        let mut read = vec![0; 10_000];
        assert_eq!((taken(), measured.has_until(Duration::ZERO)), (0, None));
        for (bytes, wanted) in [(1, 4_096), (8_191, 8_192), (1, 12_288)] {
            theirs.write_all(&vec![b' '; bytes]).await.expect("it is written");
            measured.read_exact(&mut read[..bytes]).await.expect("room");
            assert_eq!(taken(), wanted);
        }
        assert!(measured.has_until(Duration::ZERO).is_some());
        measured.is_whole();
        assert_eq!((taken(), measured.has_until(Duration::ZERO)), (12_288, None));
        theirs.write_all(&[b' '; 10_000]).await.expect("it is written");
        measured.read_exact(&mut read).await.expect("room");
        assert_eq!(taken(), 12_288, "what the longest took serves the next");
        assert_eq!(measured.held(), 12_288);
        let rest = memory.room(WEBSOCKETS - 12_288).expect("the rest");
        theirs.write_all(&[b' '; 10_000]).await.expect("it is written");
        let error = measured.read_exact(&mut read).await.expect_err("there is none");
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        drop((rest, measured));
        assert_eq!(taken(), 0);
    }

    #[tokio::test]
    async fn what_comes_between_fragments_gives_a_message_neither_memory_nor_time() {
        let memory = Memory::of(&BodyMemory::default());
        let (mut theirs, ours) = duplex(100_000);
        let mut measured = Measured::new(ours, memory, 10_000);
        let mut read = vec![0; 10_000];
        for _ in 0..3 {
            theirs.write_all(&[b' '; 10_009]).await.expect("it is written");
            measured.read_exact(&mut read).await.expect("room");
            measured.read_exact(&mut read[..9]).await.expect("room");
            measured.is_beside(3);
            assert!(measured.has_until(Duration::ZERO).is_some(), "the message still comes");
        }
        theirs.write_all(&[b' '; 10_000]).await.expect("it is written");
        let error = measured.read_exact(&mut read).await.expect_err("it is too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        measured.is_whole();
        theirs.write_all(&[b' '; 9]).await.expect("it is written");
        measured.read_exact(&mut read[..9]).await.expect("room");
        measured.is_beside(3);
        assert_eq!(measured.has_until(Duration::ZERO), None, "nothing does");
    }
}
