//! The passage: which bytes of a stream leave at once, which wait for the settlement, and which nobody asked for.
//!
//! Pure: the relay does the waiting and the sending.

use bytes::Bytes;

use crate::meter::{Meter, Seen};
use crate::sse::{Piece, Splitter};

/// Whether the client asked for the usage event of a chat or completions stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UsageEvent {
    /// It did, or the endpoint has none: everything passes.
    Passes,
    /// The gateway asked for it: the event is taken out again.
    IsTakenOut,
}

/// Where in a stream the relay stands.
#[derive(Debug)]
pub(super) struct Passage {
    splitter: Splitter,
    usage_event: UsageEvent,
    /// The end: a terminal event and what followed it.
    end: Vec<Bytes>,
    /// Whether a terminal event was seen; a translation may make nothing of it.
    ends: bool,
    end_bytes: usize,
    /// Whether parts of an unfinished event have left.
    inside_event: bool,
    /// An event was taken out that ended with a CR: an LF that comes next is the rest of it.
    taken_out_to_cr: bool,
}

impl Passage {
    /// At the start of a stream.
    pub(super) fn new(usage_event: UsageEvent) -> Passage {
        Passage {
            splitter: Splitter::new(),
            usage_event,
            end: Vec::new(),
            ends: false,
            end_bytes: 0,
            inside_event: false,
            taken_out_to_cr: false,
        }
    }

    /// Takes what came from the upstream; [`Passage::next_piece`] gives it out.
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.splitter.push(chunk);
    }

    /// The next piece that is whole, and what the meter sees in it.
    pub(super) fn next_piece(&mut self, meter: &mut Meter) -> Option<(Piece, Seen)> {
        let piece = self.splitter.next_piece()?;
        let seen = look_at(&piece, meter);
        Some((piece, seen))
    }

    /// At the upstream's clean end: the rest, as the last event. Call it until there is nothing.
    pub(super) fn last_piece(&mut self, meter: &mut Meter) -> Option<(Piece, Seen)> {
        let piece = self.splitter.finish()?;
        let seen = look_at(&piece, meter);
        Some((piece, seen))
    }

    /// The bytes, when they leave now; else the end has begun, and they wait for it, or nobody asked for them.
    pub(super) fn place(&mut self, bytes: Bytes, seen: Seen, whole_event: bool) -> Option<Bytes> {
        let bytes = self.take_out(bytes, seen);
        self.ends |= seen.terminal.is_some();
        if self.ends {
            bytes.into_iter().for_each(|bytes| self.hold_back(bytes));
            return None;
        }
        let bytes = bytes?;
        self.inside_event = !whole_event;
        Some(bytes)
    }

    /// The rest at the upstream's clean end waits like a terminal event.
    pub(super) fn place_last(&mut self, bytes: Bytes, seen: Seen) {
        if let Some(bytes) = self.take_out(bytes, seen) {
            self.hold_back(bytes);
        }
    }

    /// What is left of a piece without the usage event that nobody asked for. When a chunk ends between a CR and its
    /// LF, the LF comes with the next piece, and stays or goes with the event before.
    fn take_out(&mut self, mut bytes: Bytes, seen: Seen) -> Option<Bytes> {
        let of_the_one_before = usize::from(bytes.starts_with(b"\n"));
        if std::mem::take(&mut self.taken_out_to_cr) {
            bytes = bytes.slice(of_the_one_before..);
        }
        if seen.usage_only && self.usage_event == UsageEvent::IsTakenOut {
            self.taken_out_to_cr = bytes.ends_with(b"\r");
            bytes.truncate(usize::from(bytes.starts_with(b"\n")));
        }
        Some(bytes).filter(|bytes| !bytes.is_empty())
    }

    fn hold_back(&mut self, bytes: Bytes) {
        self.ends = true;
        self.end_bytes += bytes.len();
        self.end.push(bytes);
    }

    /// Whether a terminal event was seen; everything after it belongs to the end.
    pub(super) fn end_has_begun(&self) -> bool {
        self.ends
    }

    /// How much waits for the settlement.
    pub(super) fn end_bytes(&self) -> usize {
        self.end_bytes
    }

    /// The end, for the settlement to let go.
    pub(super) fn take_end(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.end)
    }

    /// Whether what left ends with an unfinished event.
    pub(super) fn inside_event(&self) -> bool {
        self.inside_event
    }

    /// Whether a part of an event is there, and not all of it.
    pub(super) fn event_has_begun(&self) -> bool {
        !self.splitter.between_events()
    }

    /// Whether something of the gateway's own may go out now.
    pub(super) fn between_events(&self) -> bool {
        !self.end_has_begun() && self.splitter.between_events()
    }
}

fn look_at(piece: &Piece, meter: &mut Meter) -> Seen {
    match &piece.event {
        Some(event) => meter.observe(event),
        // A part of an event too long to wait for: nothing is delivered before its end.
        None => Seen::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::Value;

    use super::*;
    use crate::call::Endpoint;
    use crate::usage::Dialect;

    /// Files up to here are cut at every offset.
    const EVERY_OFFSET: usize = 12 * 1024;

    /// A long stream is cut this often at once, so that all its offsets need no more runs than this.
    const CUT_EVERY: usize = 1024;

    /// What left at once, and what waited for the settlement.
    #[derive(Debug)]
    struct Sent {
        at_once: Vec<u8>,
        end: Vec<u8>,
    }

    impl Sent {
        fn all(&self) -> String {
            let all = [&self.at_once[..], &self.end].concat();
            String::from_utf8(all).expect("text")
        }

        /// The end; a cut between CR and LF may bring it the LF of the event before.
        fn end(&self) -> &[u8] {
            self.end.strip_prefix(b"\n").unwrap_or(&self.end)
        }
    }

    fn relayed(stream: &[u8], cuts: &[usize], endpoint: Endpoint, usage_event: UsageEvent) -> Sent {
        let (mut passage, mut meter) = (Passage::new(usage_event), Meter::new(endpoint, Dialect::OpenAi));
        let stream = Bytes::copy_from_slice(stream);
        let (mut at_once, mut from) = (Vec::new(), 0);
        for to in cuts.iter().copied().chain([stream.len()]) {
            passage.push(stream.slice(from..to));
            while let Some((piece, seen)) = passage.next_piece(&mut meter) {
                at_once.extend(
                    passage
                        .place(piece.bytes, seen, piece.event.is_some())
                        .unwrap_or_default(),
                );
            }
            from = to;
        }
        while let Some((rest, seen)) = passage.last_piece(&mut meter) {
            passage.place_last(rest.bytes, seen);
        }
        let end = passage.take_end().concat();
        Sent { at_once, end }
    }

    /// The stream without its usage events, by the look of its text alone.
    fn without_usage(text: &str) -> String {
        let blank = if text.contains("\r\n\r\n") { "\r\n\r\n" } else { "\n\n" };
        let events = text.split_inclusive(blank).filter(|event| {
            let data = event.lines().filter_map(|line| line.strip_prefix("data:"));
            let chunk = serde_json::from_str::<Value>(&data.collect::<String>()).unwrap_or_default();
            chunk["choices"].as_array().is_none_or(|choices| !choices.is_empty()) || chunk["usage"].is_null()
        });
        events.collect()
    }

    fn endpoint_of(file: &str) -> Option<Endpoint> {
        let other = ["transcription", "images", "realtime"];
        match file.strip_suffix(".sse")? {
            name if other.iter().any(|start| name.starts_with(start)) => None,
            name if name.contains("responses") => Some(Endpoint::Responses),
            name if name.starts_with("completions") => Some(Endpoint::Completions),
            _ => Some(Endpoint::ChatCompletions),
        }
    }

    fn streams_in(folder: &Path) -> Vec<(String, Endpoint, Vec<u8>)> {
        let files = std::fs::read_dir(folder).into_iter().flatten();
        let read = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.to_owned();
            let endpoint = endpoint_of(&name)?;
            Some((name, endpoint, std::fs::read(&path).expect("a listed file")))
        };
        files.filter_map(|file| read(file.expect("an entry").path())).collect()
    }

    /// At every offset the same bytes leave, and the same of them wait for the settlement.
    fn cut_at_every_offset(name: &str, endpoint: Endpoint, stream: &[u8]) {
        let text = String::from_utf8_lossy(stream);
        let whole = relayed(stream, &[], endpoint, UsageEvent::Passes);
        assert_eq!(whole.all(), text, "{name}");
        let taken_out = relayed(stream, &[], endpoint, UsageEvent::IsTakenOut);
        if endpoint != Endpoint::Responses && !text.contains("\r\r") {
            assert_eq!(taken_out.all(), without_usage(&text), "{name}");
        }
        let bytes: Vec<usize> = (0..stream.len()).collect();
        let cuts = (0..CUT_EVERY.min(stream.len())).map(|at| (at..stream.len()).step_by(CUT_EVERY).collect());
        let cuts = cuts.chain([bytes]);
        for cut in cuts {
            let sent = relayed(stream, &cut, endpoint, UsageEvent::IsTakenOut);
            let place = || format!("{name} cut into {} at {:?}", cut.len() + 1, cut.first());
            assert_eq!(sent.all(), taken_out.all(), "{}", place());
            assert_eq!(sent.end(), taken_out.end(), "{}", place());
        }
    }

    fn replay(streams: &[(String, Endpoint, Vec<u8>)]) {
        let half = streams.len() / 2;
        std::thread::scope(|scope| {
            for streams in [&streams[..half], &streams[half..]] {
                scope.spawn(move || {
                    for (name, endpoint, stream) in streams {
                        cut_at_every_offset(name, *endpoint, stream);
                    }
                });
            }
        });
    }

    #[test]
    fn recorded_streams_cut_at_any_offset_leave_as_they_came() {
        let ours = streams_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"));
        assert!(ours.len() >= 20, "{} streams of our own", ours.len());
        replay(&ours);
        let folder = std::env::var_os("GATEWAY_FIXTURES").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"),
            PathBuf::from,
        );
        let mut recorded = streams_in(&folder.join("wire"));
        recorded.retain(|(_, _, stream)| stream.len() <= EVERY_OFFSET);
        recorded.sort_by_key(|(_, _, stream)| stream.len() % 7);
        replay(&recorded);
        match recorded.len() {
            0 => println!("fixtures absent: {}", folder.display()),
            count => println!("replayed {count} recorded streams cut at every offset"),
        }
    }

    #[test]
    fn the_end_begins_with_a_terminal_event_that_a_translation_makes_nothing_of() {
        let mut passage = Passage::new(UsageEvent::Passes);
        let seen = Seen {
            terminal: Some(crate::meter::End::Failed),
            ..Seen::default()
        };
        assert_eq!(passage.place(Bytes::new(), seen, true), None);
        assert!(passage.end_has_begun());
        assert_eq!(passage.place("more".into(), Seen::default(), true), None);
        assert_eq!(passage.take_end(), ["more"]);
    }

    #[test]
    fn what_follows_a_terminal_event_waits_with_it() {
        let stream = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n: bye\n\n";
        let sent = relayed(stream, &[], Endpoint::ChatCompletions, UsageEvent::Passes);
        assert_eq!(sent.end, b"data: [DONE]\n\n: bye\n\n");
    }
}
