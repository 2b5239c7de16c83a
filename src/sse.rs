//! Server-sent events: bytes to events, whatever pieces they come in, without changing a byte.
//!
//! Lines end by LF, CR or CRLF, mixed as they like ([the standard]). An event is complete with the byte that ends its
//! blank line: when that is a CR and nothing follows it yet, the event does not wait to see whether an LF comes; a
//! lone LF that does come is the first byte of the next piece.
//!
//! [the standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// An event over this size leaves as it comes, but for its blank line.
pub const PASS_THROUGH_BYTES: usize = 64 * 1024;

/// The data of one event kept for the meter, at most.
pub const MAX_EVENT_BYTES: usize = 32 * 1024 * 1024;

/// An event's name, at most: OpenAI's longest has 50 bytes; a longer one is none of those the gateway acts on.
pub const MAX_NAME_BYTES: usize = 256;

/// A line's beginning that decides whether it is kept: a byte order mark and the longest field name with its colon.
const FIELD_BYTES: usize = BOM.len() + "event:".len();

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Bytes that may leave together, and the event they end, if they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Exactly the upstream's bytes.
    pub bytes: Bytes,
    /// The event that is complete with these bytes; `None` for a part of a long event.
    pub event: Option<Event>,
}

/// One event, as a browser's parser would dispatch it, comments and blank lines included as events without data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The `event:` field; `None` beyond [`MAX_NAME_BYTES`].
    pub name: Option<String>,
    /// All `data:` lines joined by newlines; `None` without any, or beyond [`MAX_EVENT_BYTES`].
    pub data: Option<Bytes>,
    /// Whether the data was too long to keep.
    pub oversized: bool,
}

/// Splits a stream into pieces.
///
/// Each byte is looked at once and copied at most twice (to be held until its event is complete, and for the meter);
/// an event that lies within one chunk is not copied at all. Held are at most [`PASS_THROUGH_BYTES`] and the chunks
/// pushed but not yet taken, kept for the meter at most [`MAX_EVENT_BYTES`].
#[derive(Debug, Default)]
pub struct Splitter {
    /// Pushed, and not yet looked at.
    input: VecDeque<Bytes>,
    /// Looked at, and not yet given out.
    held: BytesMut,
    /// The beginning of a line whose end has not come, unless it is `dull`.
    line: BytesMut,
    /// The line so far is a comment or a field that nobody needs, or its event is oversized.
    dull: bool,
    /// A line of the stream has ended: a byte order mark cannot come any more.
    past_first_line: bool,
    /// The last byte was a CR that ended a line: an LF now is the rest of that line's end.
    after_cr: bool,
    /// How many of the last bytes are a line's end.
    line_end: usize,
    /// A byte of an event has come whose end has not.
    open: bool,
    /// Parts of the event have been given out.
    passing: bool,
    /// The event so far.
    event: Event,
}

impl Splitter {
    /// A splitter at the start of a stream.
    pub fn new() -> Splitter {
        Splitter::default()
    }

    /// Takes what came from the upstream. Call [`Splitter::next_piece`] until there is none before the next push, so
    /// that no more than a chunk waits.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.input.push_back(chunk);
        }
    }

    /// The next piece that may leave, if there is one.
    pub fn next_piece(&mut self) -> Option<Piece> {
        while let Some(mut chunk) = self.input.pop_front() {
            if let Some(end) = self.scan(&chunk) {
                let rest = chunk.split_off(end);
                if !rest.is_empty() {
                    self.input.push_front(rest);
                }
                return Some(self.complete(chunk));
            }
            if let Some(bytes) = self.hold(chunk) {
                return Some(Piece { bytes, event: None });
            }
        }
        None
    }

    /// Whether the stream stands between two events: the only place for a keep-alive.
    pub fn between_events(&self) -> bool {
        !self.open && self.input.is_empty()
    }

    /// At the upstream's clean end: the rest, as the last event. Its bytes are empty when all of a long event has
    /// left already. Call it until there is nothing: what was pushed and not taken comes first.
    pub fn finish(&mut self) -> Option<Piece> {
        if let Some(piece) = self.next_piece() {
            return Some(piece);
        }
        if !self.open && self.held.is_empty() {
            return None;
        }
        self.end_line(&Bytes::new(), &[]);
        Some(self.complete(Bytes::new()))
    }

    /// Looks for the end of the event in a chunk, taking in its lines.
    fn scan(&mut self, chunk: &Bytes) -> Option<usize> {
        let mut at = 0;
        while at < chunk.len() {
            if std::mem::take(&mut self.after_cr) && chunk[at] == b'\n' {
                self.line_end += 1;
                at += 1;
                continue;
            }
            let Some(length) = memchr2(b'\n', b'\r', &chunk[at..]) else {
                self.begin_line(&chunk[at..]);
                return None;
            };
            let blank = self.end_line(chunk, &chunk[at..at + length]);
            at += length + 1;
            self.line_end = 1;
            self.after_cr = chunk[at - 1] == b'\r';
            if blank {
                return Some(self.with_line_feed(chunk, at));
            }
            self.open = true;
        }
        None
    }

    /// The end of an event at `at`, or behind the LF of its CRLF when that is there.
    fn with_line_feed(&mut self, chunk: &Bytes, at: usize) -> usize {
        if self.after_cr && chunk.get(at) == Some(&b'\n') {
            self.after_cr = false;
            return at + 1;
        }
        at
    }

    /// Keeps the beginning of a line, as far as its event is for the meter.
    fn begin_line(&mut self, part: &[u8]) {
        self.open = true;
        self.line_end = 0;
        let (head, tail) = part.split_at(part.len().min(FIELD_BYTES));
        for part in [head, tail] {
            if !self.dull {
                self.keep(part);
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if self.line.len() + part.len() > self.room() {
            self.overflow();
            self.dull = true;
            return;
        }
        self.line.extend_from_slice(part);
        self.dull = self.line.len() >= FIELD_BYTES && !self.is_wanted();
        if self.dull {
            self.line = BytesMut::new();
        }
    }

    /// Whether the line that has begun is worth keeping.
    fn is_wanted(&mut self) -> bool {
        let content = self.content(&self.line);
        if content.starts_with(b"event:") {
            let short = content.len() <= "event: ".len() + MAX_NAME_BYTES;
            if !short {
                self.event.name = None;
            }
            return short;
        }
        content.starts_with(b"data:") && !self.event.oversized
    }

    /// Takes in a line whose end has come; `rest` is what was not kept of it, a part of `chunk`. Whether it is blank.
    fn end_line(&mut self, chunk: &Bytes, rest: &[u8]) -> bool {
        let blank = if self.dull {
            false
        } else if self.line.is_empty() {
            self.whole_line(chunk, rest)
        } else if self.line.len() + rest.len() > self.room() {
            self.overflow();
            false
        } else {
            self.line.extend_from_slice(rest);
            let line = std::mem::take(&mut self.line).freeze();
            self.whole_line(&line, &line)
        };
        self.dull = false;
        self.past_first_line = true;
        blank
    }

    /// Takes in a line that is a part of `source`. Whether it is blank.
    fn whole_line(&mut self, source: &Bytes, line: &[u8]) -> bool {
        let content = self.content(line);
        self.field(source, content);
        content.is_empty()
    }

    /// A line without the byte order mark that may stand before the first.
    fn content<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        if self.past_first_line {
            return line;
        }
        line.strip_prefix(BOM).unwrap_or(line)
    }

    /// Takes in a field, whose line is a part of `source`.
    fn field(&mut self, source: &Bytes, line: &[u8]) {
        let colon = memchr(b':', &line[..line.len().min(FIELD_BYTES)]).unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => self.data(source.slice_ref(value)),
            b"event" => {
                let short = value.len() <= MAX_NAME_BYTES;
                self.event.name = short.then(|| String::from_utf8_lossy(value).into_owned());
            }
            _ => {}
        }
    }

    /// Takes in the value of a `data` line: the first as it is, each further one joined to those before it.
    fn data(&mut self, value: Bytes) {
        if self.event.oversized {
            return;
        }
        let kept = self.event.data.as_ref().map_or(0, |before| before.len() + 1);
        if kept + value.len() > MAX_EVENT_BYTES {
            return self.overflow();
        }
        let Some(before) = self.event.data.take() else {
            self.event.data = Some(value);
            return;
        };
        let mut joined = before
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        joined.extend_from_slice(b"\n");
        joined.extend_from_slice(&value);
        self.event.data = Some(joined.freeze());
    }

    /// How long a line may be and still be kept.
    fn room(&self) -> usize {
        let kept = self.event.data.as_ref().map_or(0, Bytes::len);
        (MAX_EVENT_BYTES + FIELD_BYTES + 1).saturating_sub(kept)
    }

    /// Gives up the event's data.
    fn overflow(&mut self) {
        self.event.oversized = true;
        self.event.data = None;
        self.line = BytesMut::new();
    }

    /// The piece that ends with `last`.
    fn complete(&mut self, last: Bytes) -> Piece {
        self.open = false;
        self.passing = false;
        self.line_end = 0;
        let event = std::mem::take(&mut self.event);
        Piece {
            bytes: self.with_held(last),
            event: Some(event),
        }
    }

    /// Holds a chunk whose event goes on; what may leave of it, when the event is long.
    fn hold(&mut self, chunk: Bytes) -> Option<Bytes> {
        self.passing |= self.held.len() + chunk.len() > PASS_THROUGH_BYTES;
        if !self.passing {
            self.held.extend_from_slice(&chunk);
            return None;
        }
        let mut leaving = self.with_held(chunk);
        let blank_line_may_follow = leaving.split_off(leaving.len().saturating_sub(self.line_end));
        self.held.extend_from_slice(&blank_line_may_follow);
        (!leaving.is_empty()).then_some(leaving)
    }

    /// What is held, and `last`.
    fn with_held(&mut self, last: Bytes) -> Bytes {
        if self.held.is_empty() {
            return last;
        }
        self.held.extend_from_slice(&last);
        std::mem::take(&mut self.held).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    /// All pieces of a stream that comes in these chunks.
    fn pieces<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Piece> {
        let mut splitter = Splitter::new();
        let mut pieces = Vec::new();
        for chunk in chunks {
            splitter.push(Bytes::copy_from_slice(chunk));
            pieces.extend(std::iter::from_fn(|| splitter.next_piece()));
        }
        pieces.extend(std::iter::from_fn(|| splitter.finish()));
        pieces
    }

    /// The bytes of all pieces, and their events without those of comments and blank lines.
    fn joined(pieces: Vec<Piece>) -> (Vec<u8>, Vec<Event>) {
        let bytes = pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect();
        let events = pieces.into_iter().filter_map(|piece| piece.event);
        (bytes, events.filter(|event| *event != Event::default()).collect())
    }

    fn event(name: Option<&str>, data: &str) -> Event {
        Event {
            name: name.map(Into::into),
            data: Some(Bytes::copy_from_slice(data.as_bytes())),
            oversized: false,
        }
    }

    /// A stream cut at these places, which may repeat.
    fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
    }

    fn read_by_sse_stream(stream: &[u8]) -> Vec<Event> {
        let whole = [stream, b"\n\n"].concat();
        let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(whole))]);
        let mut events = sse_stream::SseByteStream::new(chunks);
        let mut read = Vec::new();
        while let Some(next) = futures_util::FutureExt::now_or_never(events.next()).expect("nothing to wait for") {
            let next = next.expect("UTF-8");
            let data = next.data.map(Bytes::from);
            read.push(Event {
                name: next.event,
                data,
                oversized: false,
            });
        }
        read.retain(|event| *event != Event::default());
        read
    }

    #[test]
    fn an_event_leaves_with_its_blank_line_and_not_before() {
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from_static(b"event: a\ndata: 1\n"));
        assert_eq!(splitter.next_piece(), None);
        assert!(!splitter.between_events());
        splitter.push(Bytes::from_static(b"\ndata: 2"));
        let piece = splitter.next_piece().expect("the first event");
        assert_eq!(piece.bytes, "event: a\ndata: 1\n\n");
        assert_eq!(piece.event, Some(event(Some("a"), "1")));
        assert_eq!(splitter.next_piece(), None);
        splitter.push(Bytes::from_static(b"\n\n"));
        assert_eq!(splitter.next_piece().expect("the second event").bytes, "data: 2\n\n");
        assert!(splitter.between_events());
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn lines_end_by_lf_cr_and_crlf() {
        let stream = b"data: 1\r\rdata: 2\r\n\r\ndata: 3\r\n\ndata: 4\n\r\ndata: 5\n\r";
        let (bytes, events) = joined(pieces([&stream[..]]));
        assert_eq!(bytes, stream);
        assert_eq!(events, ["1", "2", "3", "4", "5"].map(|data| event(None, data)));
    }

    #[test]
    fn an_event_that_ends_in_cr_does_not_wait_for_a_lf() {
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from_static(b"data: 1\r\n\r"));
        assert_eq!(splitter.next_piece().expect("the event").event, Some(event(None, "1")));
        assert!(splitter.between_events());
        splitter.push(Bytes::from_static(b"\n"));
        assert_eq!(splitter.next_piece(), None, "the LF belongs to the line that is over");
        assert!(splitter.between_events());
        splitter.push(Bytes::from_static(b"data: 2\r\n\r\n"));
        let piece = splitter.next_piece().expect("the second event");
        assert_eq!(
            (&piece.bytes[..], piece.event),
            (&b"\ndata: 2\r\n\r\n"[..], Some(event(None, "2")))
        );
    }

    #[test]
    fn a_byte_order_mark_stands_before_the_first_line_only() {
        let (_, events) = joined(pieces([&b"\xEF\xBB\xBFdata: 1\n\n\xEF\xBB\xBFdata: 2\n\n"[..]]));
        assert_eq!(events, [event(None, "1")]);
        let (_, events) = joined(pieces(b"\xEF\xBB\xBFdata: 1\n\n".chunks(1)));
        assert_eq!(events, [event(None, "1")]);
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        for (stream, expected) in [
            ("data: a\ndata:b\ndata:  c\n\n", event(None, "a\nb\n c")),
            ("data\n\n", event(None, "")),
            ("data\ndata\n\n", event(None, "\n")),
            (
                ": comment\nid: 7\nretry: 1\nevent: x\nevent: y\ndata: 1\nDATA: 2\n data: 3\n\n",
                event(Some("y"), "1"),
            ),
            ("data: no blank line", event(None, "no blank line")),
        ] {
            assert_eq!(joined(pieces([stream.as_bytes()])).1, [expected], "{stream:?}");
        }
        let comments = pieces([&b": OPENROUTER PROCESSING\n\n\n"[..]]);
        assert_eq!(comments.len(), 2);
        assert!(comments.iter().all(|piece| piece.event == Some(Event::default())));
    }

    #[test]
    fn an_event_within_a_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        let within = chunk.as_ptr_range();
        let mut splitter = Splitter::new();
        splitter.push(chunk);
        for piece in std::iter::from_fn(|| splitter.next_piece()) {
            let data = piece.event.and_then(|event| event.data).expect("data");
            assert!(within.contains(&piece.bytes.as_ptr()) && within.contains(&data.as_ptr()));
        }
    }

    #[test]
    fn a_long_event_passes_but_for_its_blank_line() {
        let text = "x".repeat(PASS_THROUGH_BYTES);
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from(format!("event: long\ndata: {text}")));
        let part = splitter.next_piece().expect("a part");
        assert_eq!((part.bytes.len(), part.event), (text.len() + 18, None));
        assert!(!splitter.between_events());
        splitter.push(Bytes::from_static(b"\r"));
        assert_eq!(splitter.next_piece(), None);
        splitter.push(Bytes::from_static(b"\n"));
        assert_eq!(splitter.next_piece(), None);
        splitter.push(Bytes::from_static(b"data: y\n"));
        assert_eq!(splitter.next_piece().expect("a part").bytes, "\r\ndata: y");
        splitter.push(Bytes::from_static(b"\n"));
        let last = splitter.next_piece().expect("the end");
        assert_eq!(last.bytes, "\n\n");
        assert_eq!(last.event, Some(event(Some("long"), &format!("{text}\ny"))));
        assert!(splitter.between_events());
    }

    #[test]
    fn the_rest_of_a_long_event_is_an_event_even_without_bytes() {
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from("data: ".to_owned() + &"x".repeat(PASS_THROUGH_BYTES)));
        assert!(splitter.next_piece().is_some());
        let last = splitter.finish().expect("the event");
        assert!(last.bytes.is_empty());
        assert!(last.event.is_some_and(|event| event.data.is_some()));
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn an_event_beyond_the_bound_passes_without_being_kept() {
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from_static(b"event: response.completed\ndata: "));
        let chunk = Bytes::from(vec![b'x'; 1024 * 1024]);
        let mut passed = 0;
        for _ in 0..40 {
            splitter.push(chunk.clone());
            passed += std::iter::from_fn(|| splitter.next_piece())
                .map(|piece| piece.bytes.len())
                .sum::<usize>();
            assert!(splitter.held.len() <= PASS_THROUGH_BYTES && splitter.line.len() <= MAX_EVENT_BYTES + FIELD_BYTES);
        }
        assert!(passed >= 40 * chunk.len());
        splitter.push(Bytes::from_static(b"\ndata: more\n\ndata: next\n\n"));
        let oversized = Event {
            name: Some("response.completed".into()),
            data: None,
            oversized: true,
        };
        let rest: Vec<Event> = std::iter::from_fn(|| splitter.next_piece())
            .filter_map(|piece| piece.event)
            .collect();
        assert_eq!(rest, [oversized, event(None, "next")]);
    }

    #[test]
    fn an_endless_comment_is_not_kept() {
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from_static(b": "));
        for _ in 0..100 {
            splitter.push(Bytes::from(vec![b'x'; PASS_THROUGH_BYTES]));
            while splitter.next_piece().is_some() {}
            assert!(splitter.line.is_empty());
        }
        splitter.push(Bytes::from_static(b"\n\n"));
        assert_eq!(
            splitter.next_piece().and_then(|piece| piece.event),
            Some(Event::default())
        );
    }

    #[test]
    fn reading_is_linear_in_bytes_however_they_come() {
        let one = "data: ".to_owned() + &"x".repeat(1024 * 1024) + "\n\n";
        let many = "data:x\n".repeat(800_000) + "\n";
        for (stream, length) in [(one, 1), (many, 7)] {
            let started = Instant::now();
            let (bytes, events) = joined(pieces(stream.as_bytes().chunks(length)));
            assert_eq!((bytes.len(), events.len()), (stream.len(), 1));
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "took {:?}",
                started.elapsed()
            );
        }
    }

    fn line() -> impl Strategy<Value = String> {
        let text = prop_oneof!["[a-z :é😀\\[\\]]{0,12}", Just("[DONE]".to_owned())];
        let field = prop_oneof![
            4 => Just("data: "), 2 => Just("data:"), 1 => Just("data"), 2 => Just("event: "), 1 => Just("event:"),
            1 => Just("id: "), 1 => Just(":"), 3 => Just(""),
        ];
        let end = prop_oneof![
            Just("\n"),
            Just("\r"),
            Just("\r\n"),
            Just("\n\n"),
            Just("\r\n\r\n"),
            Just("\r\r")
        ];
        (field, text, end).prop_map(|(field, text, end)| format!("{field}{text}{end}"))
    }

    fn stream() -> impl Strategy<Value = String> {
        (
            prop_oneof![Just(""), Just("\u{feff}")],
            prop::collection::vec(line(), 0..12),
            "[a-z:]{0,6}",
        )
            .prop_map(|(mark, lines, rest)| format!("{mark}{}{rest}", lines.concat()))
    }

    proptest! {
        #[test]
        fn any_cut_of_a_stream_reads_alike_and_as_sse_stream_reads_it(
            stream in stream(), cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let stream = stream.as_bytes();
            let expected = (stream.to_vec(), read_by_sse_stream(stream));
            prop_assert_eq!(joined(pieces([stream])), expected.clone());
            prop_assert_eq!(joined(pieces(cut(stream, &cuts))), expected.clone());
            prop_assert_eq!(joined(pieces(stream.chunks(1))), expected);
        }

        #[test]
        fn any_cut_of_a_long_event_reads_alike(
            lines in prop::collection::vec((0usize..40_000, prop_oneof![Just("\n"), Just("\r"), Just("\r\n")]), 1..8),
            cuts in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let mut stream: String = lines.iter().map(|(length, end)| format!("data: {}{end}", "é".repeat(*length))).collect();
            stream.push_str("\r\n\ndata: last");
            let stream = stream.as_bytes();
            let whole = joined(pieces([stream]));
            prop_assert_eq!(&whole.0, stream);
            prop_assert_eq!(&joined(pieces(cut(stream, &cuts))), &whole);
        }
    }
}
