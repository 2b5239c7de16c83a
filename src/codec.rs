//! Content codings: compressed bodies decoded within a bound, whole or piece by piece.

use std::io::{self, Write};

use brotli::writer::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation};

/// Bytes decoded between two looks at the bound.
const CHUNK: usize = 16 * 1024;

/// The largest window a zstd frame may ask for, as a power of two: 8 MiB, what RFC 9659 lets a content coding use.
/// Without it twenty bytes could make the decoder set 128 MiB aside.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A content coding of RFC 9110 §8.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Not encoded.
    Identity,
    /// `gzip`, also of several members.
    Gzip,
    /// `deflate`: zlib, or the bare deflate that some clients send by that name.
    Deflate,
    /// `br`.
    Brotli,
    /// `zstd`, also of several frames.
    Zstd,
}

/// A `Content-Encoding` that is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodingError {
    /// More than one coding in a row: each would multiply what a few bytes unfold to.
    Several,
    /// A coding that is not ours.
    Unknown,
}

/// Why an encoded body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It unfolds to more than the bound.
    #[error("the decoded body is too large")]
    TooLarge,
    /// It is damaged, cut off, or not in the coding that its header names.
    #[error("the body is not in the content coding its header names, or is cut off")]
    Broken,
}

impl Coding {
    /// Reads the value of `Content-Encoding`; an empty one and `identity` are [`Coding::Identity`]. Case does not count.
    pub fn parse(header: &str) -> Result<Coding, CodingError> {
        let named = header.split(',').map(str::trim);
        let mut codings = named.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"));
        let Some(name) = codings.next() else {
            return Ok(Coding::Identity);
        };
        if codings.next().is_some() {
            return Err(CodingError::Several);
        }
        match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Ok(Coding::Gzip),
            "deflate" => Ok(Coding::Deflate),
            "br" => Ok(Coding::Brotli),
            "zstd" => Ok(Coding::Zstd),
            _ => Err(CodingError::Unknown),
        }
    }
}

/// Decodes a whole body of at most `limit` decoded bytes. Never holds more than `limit` bytes decoded, and the coding's
/// window (8 MiB of zstd, 16 MiB of br).
///
/// # Errors
/// [`DecodeError::TooLarge`] as soon as the bound is passed, [`DecodeError::Broken`] for damaged or cut-off bodies.
pub fn decode(coding: Coding, bytes: Bytes, limit: usize) -> Result<Bytes, DecodeError> {
    if coding == Coding::Identity {
        return if bytes.len() > limit {
            Err(DecodeError::TooLarge)
        } else {
            Ok(bytes)
        };
    }
    let mut decoder = Decoder::new(coding, limit);
    decoder.feed(&bytes)?;
    decoder.end()?;
    Ok(decoder.take())
}

/// Decodes piece by piece, for the streams that the meter has to read.
pub struct Decoder {
    engine: Engine,
    limit: usize,
    failed: Option<DecodeError>,
}

/// The decoders behind it. Each writes into a [`Sink`] that refuses what passes the bound.
enum Engine {
    Identity(Sink),
    Gzip(Box<MultiGzDecoder<Sink>>),
    Deflate(Box<Inflate>),
    Brotli(Box<Unbrotli>),
    Zstd(Box<Unzstd>),
}

impl Decoder {
    /// A decoder that gives at most `limit` bytes for each piece it is fed.
    pub fn new(coding: Coding, limit: usize) -> Decoder {
        let sink = Sink {
            decoded: Vec::new(),
            room: limit,
            overflowed: false,
        };
        let (engine, failed) = match coding {
            Coding::Identity => (Engine::Identity(sink), None),
            Coding::Gzip => (Engine::Gzip(Box::new(MultiGzDecoder::new(sink))), None),
            Coding::Deflate => (Engine::Deflate(Box::new(Inflate::new(sink))), None),
            Coding::Brotli => (Engine::Brotli(Box::new(Unbrotli::new(sink))), None),
            Coding::Zstd => match Unzstd::new(sink) {
                Ok(zstd) => (Engine::Zstd(Box::new(zstd)), None),
                // zstd could not set a context aside; every call of this decoder says so.
                Err(_) => (Engine::Identity(Sink::default()), Some(DecodeError::Broken)),
            },
        };
        Decoder { engine, limit, failed }
    }

    /// Takes the next piece and returns what can be decoded so far.
    ///
    /// # Errors
    /// As [`decode`]; after an error every call fails the same way.
    pub fn push(&mut self, piece: &[u8]) -> Result<Bytes, DecodeError> {
        self.sink().room = self.limit;
        self.feed(piece)?;
        Ok(self.take())
    }

    /// Ends the input and returns what was left.
    ///
    /// # Errors
    /// [`DecodeError::Broken`] when the input is cut off.
    pub fn finish(mut self) -> Result<Bytes, DecodeError> {
        self.sink().room = self.limit;
        self.end()?;
        Ok(self.take())
    }

    fn feed(&mut self, piece: &[u8]) -> Result<(), DecodeError> {
        self.failed.map_or(Ok(()), Err)?;
        let fed = match &mut self.engine {
            Engine::Identity(sink) => sink.write_all(piece),
            Engine::Gzip(gzip) => gzip.write_all(piece).and_then(|()| gzip.flush()),
            Engine::Deflate(deflate) => deflate.feed(piece),
            Engine::Brotli(brotli) => brotli.feed(piece),
            Engine::Zstd(zstd) => zstd.feed(piece),
        };
        self.judge(fed)
    }

    fn end(&mut self) -> Result<(), DecodeError> {
        self.failed.map_or(Ok(()), Err)?;
        let ended = match &mut self.engine {
            Engine::Identity(_) => Ok(()),
            Engine::Gzip(gzip) => gzip.try_finish(),
            Engine::Deflate(deflate) => deflate.ended.then_some(()).ok_or_else(broken),
            Engine::Brotli(brotli) => brotli.ended.then_some(()).ok_or_else(broken),
            Engine::Zstd(zstd) => zstd.at_frame_end.then_some(()).ok_or_else(broken),
        };
        self.judge(ended)
    }

    fn judge(&mut self, outcome: io::Result<()>) -> Result<(), DecodeError> {
        if outcome.is_ok() {
            return Ok(());
        }
        let error = if self.sink().overflowed {
            DecodeError::TooLarge
        } else {
            DecodeError::Broken
        };
        self.failed = Some(error);
        Err(error)
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.sink().decoded))
    }

    fn sink(&mut self) -> &mut Sink {
        match &mut self.engine {
            Engine::Identity(sink) => sink,
            Engine::Gzip(gzip) => gzip.get_mut(),
            Engine::Deflate(deflate) => &mut deflate.sink,
            Engine::Brotli(brotli) => &mut brotli.sink,
            Engine::Zstd(zstd) => &mut zstd.sink,
        }
    }
}

/// What was decoded, and how much more may be.
#[derive(Default)]
struct Sink {
    decoded: Vec<u8>,
    room: usize,
    overflowed: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(room) = self.room.checked_sub(bytes.len()) else {
            self.overflowed = true;
            return Err(io::Error::other("the decoded body is too large"));
        };
        self.room = room;
        self.make_place(bytes.len());
        self.decoded.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    /// Doubles the buffer like `Vec` does, but never beyond what the bound lets it fill.
    fn make_place(&mut self, more: usize) {
        let needed = self.decoded.len() + more;
        if needed > self.decoded.capacity() {
            let wanted = needed
                .max(2 * self.decoded.capacity())
                .min(needed.saturating_add(self.room));
            self.decoded.reserve_exact(wanted - self.decoded.len());
        }
    }
}

/// Whether an encoded body has ended where its input does.
fn nothing_behind(rest: &[u8]) -> io::Result<()> {
    if rest.is_empty() { Ok(()) } else { Err(broken()) }
}

fn broken() -> io::Error {
    io::Error::from(io::ErrorKind::InvalidData)
}

/// Deflate with or without zlib's header: which one, the first two bytes tell.
struct Inflate {
    sink: Sink,
    state: Option<Decompress>,
    first: Option<u8>,
    ended: bool,
}

impl Inflate {
    fn new(sink: Sink) -> Inflate {
        Inflate {
            sink,
            state: None,
            first: None,
            ended: false,
        }
    }

    fn feed(&mut self, mut piece: &[u8]) -> io::Result<()> {
        while self.state.is_none() {
            let Some((&byte, rest)) = piece.split_first() else {
                return Ok(());
            };
            piece = rest;
            if let Some(first) = self.first.replace(byte) {
                self.state = Some(Decompress::new(is_zlib(first, byte)));
                self.inflate(&[first, byte])?;
            }
        }
        self.inflate(piece)
    }

    fn inflate(&mut self, mut input: &[u8]) -> io::Result<()> {
        let Some(state) = self.state.as_mut() else {
            return Err(broken());
        };
        let mut chunk = [0; CHUNK];
        while !self.ended {
            let (read_before, written_before) = (state.total_in(), state.total_out());
            let status = state
                .decompress(input, &mut chunk, FlushDecompress::None)
                .map_err(|_| broken())?;
            let read = usize::try_from(state.total_in() - read_before).map_err(|_| broken())?;
            let written = usize::try_from(state.total_out() - written_before).map_err(|_| broken())?;
            self.sink.write_all(&chunk[..written])?;
            input = &input[read..];
            self.ended = status == Status::StreamEnd;
            if written < CHUNK && (input.is_empty() || read == 0) {
                break;
            }
        }
        nothing_behind(input)
    }
}

/// RFC 1950 §2.2: method 8, and a check that makes the two bytes a multiple of 31.
fn is_zlib(first: u8, second: u8) -> bool {
    first & 0x0f == 8 && (u16::from(first) * 256 + u16::from(second)).is_multiple_of(31)
}

/// Brotli. Its crate's own writer keeps back what does not fit its buffer until the next write, so this calls below it.
struct Unbrotli {
    sink: Sink,
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    total_out: usize,
    ended: bool,
}

impl Unbrotli {
    fn new(sink: Sink) -> Unbrotli {
        let alloc = StandardAlloc::default;
        Unbrotli {
            sink,
            state: BrotliState::new(alloc(), alloc(), alloc()),
            total_out: 0,
            ended: false,
        }
    }

    fn feed(&mut self, piece: &[u8]) -> io::Result<()> {
        let (mut left, mut read) = (piece.len(), 0);
        let mut chunk = [0; CHUNK];
        while !self.ended {
            let (mut room, mut written) = (CHUNK, 0);
            let (out, total) = (&mut chunk, &mut self.total_out);
            let state = &mut self.state;
            let result =
                BrotliDecompressStream(&mut left, &mut read, piece, &mut room, &mut written, out, total, state);
            self.sink.write_all(&chunk[..written])?;
            match result {
                BrotliResult::ResultSuccess => self.ended = true,
                BrotliResult::NeedsMoreOutput => {}
                // Said with a full chunk too, when more output waits.
                BrotliResult::NeedsMoreInput if written == CHUNK => {}
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::ResultFailure => return Err(broken()),
            }
        }
        nothing_behind(&piece[read..])
    }
}

/// Zstandard frames, one after another.
struct Unzstd {
    sink: Sink,
    state: ZstdDecoder<'static>,
    at_frame_end: bool,
}

impl Unzstd {
    fn new(sink: Sink) -> io::Result<Unzstd> {
        let mut state = ZstdDecoder::new()?;
        state.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
        Ok(Unzstd {
            sink,
            state,
            at_frame_end: false,
        })
    }

    fn feed(&mut self, mut input: &[u8]) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        let mut more_waits = false;
        while !input.is_empty() || more_waits {
            let status = self.state.run_on_buffers(input, &mut chunk)?;
            self.sink.write_all(&chunk[..status.bytes_written])?;
            input = &input[status.bytes_read..];
            self.at_frame_end = status.remaining == 0;
            // A full chunk may leave more behind; a new frame only begins with new input.
            more_waits = status.bytes_written == CHUNK && !self.at_frame_end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    const ALL: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

    fn encode(coding: Coding, plain: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Identity => plain.to_vec(),
            Coding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(plain).expect("writes to memory");
                encoder.finish().expect("writes to memory")
            }
            Coding::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(plain).expect("writes to memory");
                encoder.finish().expect("writes to memory")
            }
            Coding::Brotli => {
                let mut encoded = Vec::new();
                let mut encoder = brotli::CompressorWriter::new(&mut encoded, 4096, 5, 20);
                encoder.write_all(plain).expect("writes to memory");
                drop(encoder);
                encoded
            }
            Coding::Zstd => zstd::encode_all(plain, 3).expect("writes to memory"),
        }
    }

    fn bare_deflate(plain: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).expect("writes to memory");
        encoder.finish().expect("writes to memory")
    }

    fn text() -> Vec<u8> {
        (0..400_u32)
            .flat_map(|n| format!("data: {{\"n\":{}}}\n\n", n * n).into_bytes())
            .collect()
    }

    fn whole(coding: Coding, encoded: &[u8], limit: usize) -> Result<Bytes, DecodeError> {
        decode(coding, Bytes::copy_from_slice(encoded), limit)
    }

    fn in_pieces(coding: Coding, pieces: &[&[u8]], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = Decoder::new(coding, limit);
        let mut decoded = Vec::new();
        for piece in pieces {
            decoded.extend_from_slice(&decoder.push(piece)?);
        }
        decoded.extend_from_slice(&decoder.finish()?);
        Ok(decoded)
    }

    #[test]
    fn headers_name_one_coding_in_any_case() {
        for (header, expected) in [
            ("", Ok(Coding::Identity)),
            ("identity", Ok(Coding::Identity)),
            ("GZip", Ok(Coding::Gzip)),
            ("x-gzip", Ok(Coding::Gzip)),
            (" deflate ", Ok(Coding::Deflate)),
            ("br", Ok(Coding::Brotli)),
            ("zstd, identity", Ok(Coding::Zstd)),
            ("gzip, gzip", Err(CodingError::Several)),
            ("gzip,br", Err(CodingError::Several)),
            ("compress", Err(CodingError::Unknown)),
        ] {
            assert_eq!(Coding::parse(header), expected, "{header}");
        }
    }

    #[test]
    fn identity_is_passed_on_without_copying() {
        let bytes = Bytes::from_static(b"abc");
        let decoded = decode(Coding::Identity, bytes.clone(), 3).expect("fits");
        assert_eq!(decoded.as_ptr(), bytes.as_ptr());
        assert_eq!(decode(Coding::Identity, bytes, 2), Err(DecodeError::TooLarge));
        assert_eq!(in_pieces(Coding::Identity, &[b"a", b"bc"], 2), Ok(b"abc".to_vec()));
    }

    #[test]
    fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
        let plain = text();
        for coding in ALL {
            let encoded = encode(coding, &plain);
            assert_eq!(
                whole(coding, &encoded, plain.len()),
                Ok(Bytes::from(plain.clone())),
                "{coding:?}"
            );
            assert_eq!(
                whole(coding, &encoded, plain.len() - 1),
                Err(DecodeError::TooLarge),
                "{coding:?}"
            );
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let plain = vec![b'a'; 8 << 20];
        let limit = 100_000;
        for coding in ALL {
            let bomb = encode(coding, &plain);
            assert!(bomb.len() < plain.len() / 900, "{coding:?} {}", bomb.len());
            let mut decoder = Decoder::new(coding, limit);
            assert_eq!(decoder.push(&bomb), Err(DecodeError::TooLarge), "{coding:?}");
            assert!(decoder.sink().decoded.capacity() <= limit, "{coding:?}");
            assert_eq!(decoder.push(b""), Err(DecodeError::TooLarge), "{coding:?}");
            assert_eq!(decoder.finish(), Err(DecodeError::TooLarge), "{coding:?}");
        }
    }

    #[test]
    fn every_split_reads_as_the_whole() {
        let plain = text();
        for coding in ALL {
            let encoded = encode(coding, &plain);
            for at in 0..=encoded.len() {
                let (head, tail) = encoded.split_at(at);
                assert_eq!(
                    in_pieces(coding, &[head, tail], 1 << 20),
                    Ok(plain.clone()),
                    "{coding:?} at {at}"
                );
            }
            let bytes: Vec<&[u8]> = encoded.chunks(1).collect();
            assert_eq!(in_pieces(coding, &bytes, 1 << 20), Ok(plain.clone()), "{coding:?}");
        }
    }

    #[test]
    fn a_few_bytes_that_unfold_to_many_chunks_come_back_whole() {
        let plain = vec![b'a'; 20 * CHUNK + 7];
        for coding in ALL {
            let encoded = encode(coding, &plain);
            assert_eq!(
                whole(coding, &encoded, plain.len()),
                Ok(Bytes::from(plain.clone())),
                "{coding:?}"
            );
            let bytes: Vec<&[u8]> = encoded.chunks(1).collect();
            assert_eq!(in_pieces(coding, &bytes, plain.len()), Ok(plain.clone()), "{coding:?}");
        }
    }

    #[test]
    fn what_is_cut_off_anywhere_is_broken() {
        for coding in ALL {
            let encoded = encode(coding, &text());
            for at in 0..encoded.len() {
                assert_eq!(
                    whole(coding, &encoded[..at], 1 << 20),
                    Err(DecodeError::Broken),
                    "{coding:?} at {at}"
                );
            }
        }
    }

    #[test]
    fn rubbish_and_what_follows_the_end_are_broken() {
        for coding in ALL {
            assert_eq!(
                whole(coding, b"{\"model\":\"gpt-5\"}", 1000),
                Err(DecodeError::Broken),
                "{coding:?}"
            );
            let mut encoded = encode(coding, b"text");
            encoded.extend_from_slice(b"\x01\x02 and more");
            assert_eq!(whole(coding, &encoded, 1000), Err(DecodeError::Broken), "{coding:?}");
        }
    }

    #[test]
    fn members_and_frames_in_a_row_are_one_body() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let row = [encode(coding, b"one "), encode(coding, b""), encode(coding, b"two")].concat();
            assert_eq!(
                whole(coding, &row, 100),
                Ok(Bytes::from_static(b"one two")),
                "{coding:?}"
            );
            let bytes: Vec<&[u8]> = row.chunks(1).collect();
            assert_eq!(in_pieces(coding, &bytes, 100), Ok(b"one two".to_vec()), "{coding:?}");
        }
    }

    #[test]
    fn deflate_is_read_with_and_without_zlib_header() {
        let plain = text();
        let bare = bare_deflate(&plain);
        assert_eq!(whole(Coding::Deflate, &bare, 1 << 20), Ok(Bytes::from(plain.clone())));
        let bytes: Vec<&[u8]> = bare.chunks(1).collect();
        assert_eq!(in_pieces(Coding::Deflate, &bytes, 1 << 20), Ok(plain));
    }

    /// Bytes an encoder wrote, to be looked at before it ends.
    #[derive(Clone, Default)]
    struct Written(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What an encoder has put out once it was flushed, but not ended.
    fn flushed(coding: Coding, plain: &[u8]) -> Vec<u8> {
        let written = Written::default();
        let out = written.clone();
        let mut encoder: Box<dyn Write> = match coding {
            Coding::Identity => Box::new(out),
            Coding::Gzip => Box::new(GzEncoder::new(out, Compression::default())),
            Coding::Deflate => Box::new(ZlibEncoder::new(out, Compression::default())),
            Coding::Brotli => Box::new(brotli::CompressorWriter::new(out, 4096, 5, 20)),
            Coding::Zstd => Box::new(zstd::Encoder::new(out, 3).expect("an encoder")),
        };
        encoder.write_all(plain).expect("writes to memory");
        encoder.flush().expect("writes to memory");
        written.0.take()
    }

    #[test]
    fn a_flushed_event_can_be_read_before_the_end() {
        for plain in [b"data: 1\n\n".to_vec(), vec![b'a'; 20 * CHUNK + 7]] {
            for coding in ALL {
                let mut decoder = Decoder::new(coding, plain.len());
                let decoded = decoder.push(&flushed(coding, &plain)).expect("fits");
                assert!(decoded == plain, "{coding:?} {}", decoded.len());
                assert_eq!(decoder.finish(), Err(DecodeError::Broken), "{coding:?}");
            }
        }
    }

    #[test]
    fn a_zstd_frame_that_wants_a_huge_window_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
        encoder.window_log(27).expect("a window");
        encoder.write_all(&text()).expect("writes to memory");
        let encoded = encoder.finish().expect("writes to memory");
        assert_eq!(whole(Coding::Zstd, &encoded, 1 << 20), Err(DecodeError::Broken));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_in_any_pieces_come_back(plain in prop::collection::vec(any::<u8>(), 0..5000), size in 1_usize..700) {
            for coding in ALL {
                let encoded = encode(coding, &plain);
                let pieces: Vec<&[u8]> = encoded.chunks(size).collect();
                prop_assert_eq!(in_pieces(coding, &pieces, 1 << 20), Ok(plain.clone()));
            }
        }

        #[test]
        fn hostile_bytes_never_pass_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            for coding in ALL {
                if let Ok(decoded) = whole(coding, &bytes, 500) {
                    prop_assert!(decoded.len() <= 500);
                }
            }
        }
    }
}
