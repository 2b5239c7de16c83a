//! How long a recording is, by what its own bytes say: what is set aside for it must not be less than what is billed.
//!
//! An upstream decodes what it is sent, and bills how long that is. What a header says of it may be wrong, or missing in
//! what was recorded as it went on; so the frames are counted, each for what it says itself, and the longer of both counts.
//!
//! ```text
//! FLAC   frames whose header checks       STREAMINFO's count of samples
//! Ogg    packets of Opus, Vorbis, Speex   granule positions, from the first page's on
//! WAV    bytes by what a sample takes     (PCM; else at a bit for each)
//! MP4    samples of a track               its duration
//! other  bytes, at the least that a second takes
//! ```

use std::collections::BTreeMap;

/// Bytes that a second of sound takes at least, where its format is not read: a third of the lowest rate that MP3 has.
const LEAST_BYTES_A_SECOND: u64 = 500;

/// And usually: 64 kbit/s.
const LIKELY_BYTES_A_SECOND: u64 = 8_000;

/// Streams that one Ogg file is read for; one with more is bounded by its bytes.
const MOST_STREAMS: usize = 64;

/// A packet of Opus has no more, in samples at 48 kHz: 120 ms.
const OPUS_PACKET: u64 = 5_760;

/// What Opus decodes to.
const OPUS_RATE: u64 = 48_000;

/// A sample of an MP4 track stands for no more samples of sound: a frame of HE-AAC.
const AAC_FRAME: u64 = 2_048;

/// Microseconds of a second.
const SECOND: u64 = 1_000_000;

/// How long a recording is, in seconds that have begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Length {
    /// At most.
    pub most: u64,
    /// As far as can be told: what is billed when the answer does not say.
    pub likely: u64,
}

impl Length {
    /// Of a file. Not for an async thread where it is long.
    pub fn of(file: &[u8]) -> Length {
        let read = flac(file)
            .or_else(|| ogg(file))
            .or_else(|| wave(file, count(file.len())))
            .or_else(|| mp4(file));
        read.map_or_else(|| Length::by_bytes(count(file.len())), Micros::begun)
    }

    /// Of a file of at most so many bytes, of which only the beginning is here. A bound wherever its bytes are one; what is
    /// packed more densely is longer, as [`Length::of`] the whole file then says.
    pub fn of_beginning(beginning: &[u8], bytes: u64) -> Length {
        wave(beginning, bytes).map_or_else(|| Length::by_bytes(bytes), Micros::begun)
    }

    /// Of a file in a format that is not read.
    pub fn by_bytes(bytes: u64) -> Length {
        Length {
            most: bytes.div_ceil(LEAST_BYTES_A_SECOND),
            likely: bytes.div_ceil(LIKELY_BYTES_A_SECOND),
        }
    }

    /// One after the other.
    pub fn and(self, other: Length) -> Length {
        Length {
            most: self.most.saturating_add(other.most),
            likely: self.likely.saturating_add(other.likely),
        }
    }
}

/// The same to the microsecond.
#[derive(Clone, Copy, Debug)]
struct Micros {
    most: u64,
    likely: u64,
}

impl Micros {
    /// It is known.
    fn exactly(micros: u64) -> Micros {
        Micros {
            most: micros,
            likely: micros,
        }
    }

    /// What frames or packets stand for at most, and what is told of them; nothing is told by zero.
    fn of(counted: u64, told: u64) -> Micros {
        let most = counted.max(told);
        let likely = if told > 0 { told } else { most };
        Micros { most, likely }
    }

    fn and(self, other: Micros) -> Micros {
        Micros {
            most: self.most.saturating_add(other.most),
            likely: self.likely.saturating_add(other.likely),
        }
    }

    /// In seconds that have begun.
    fn begun(self) -> Length {
        Length {
            most: self.most.div_ceil(SECOND),
            likely: self.likely.min(self.most).div_ceil(SECOND),
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// So many samples at a rate, in microseconds.
fn micros(samples: u64, rate: u64) -> u64 {
    let micros = u128::from(samples) * u128::from(SECOND);
    u64::try_from(micros.div_ceil(u128::from(rate.max(1)))).unwrap_or(u64::MAX)
}

/// A number of so many bytes, the first of them the highest; `None` where they end before.
fn big(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The same with the first of them the lowest.
fn little(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    )
}

/// RFC 9639.
fn flac(file: &[u8]) -> Option<Micros> {
    let rest = file.strip_prefix(b"fLaC")?;
    // The first block is STREAMINFO, after four bytes of its own head.
    let (rate, samples) = streaminfo(rest.get(4..)?)?;
    Some(Micros::exactly(micros(samples, rate).max(flac_frames(rest, rate))))
}

/// The rate and the count of samples, zero where it is not known.
fn streaminfo(block: &[u8]) -> Option<(u64, u64)> {
    let packed = big(block, 10, 8)?;
    let rate = packed >> 44;
    (rate > 0).then_some((rate, packed & 0xf_ffff_ffff))
}

/// What all frames stand for, in microseconds: what looks like a frame's head and has its checksum is one.
fn flac_frames(bytes: &[u8], of_stream: u64) -> u64 {
    let starts = memchr::memchr_iter(0xff, bytes);
    let frames = starts.filter_map(|at| frame(&bytes[at..], of_stream));
    frames.fold(0, |sum: u64, (samples, rate)| {
        sum.saturating_add(micros(samples, rate.min(of_stream)))
    })
}

/// Samples and rate of the frame that begins here.
fn frame(bytes: &[u8], of_stream: u64) -> Option<(u64, u64)> {
    let &[0xff, 0xf8 | 0xf9, codes, _, number, ..] = bytes else {
        return None;
    };
    // The frame's number, written as UTF-8 is.
    let numbered = match number.leading_ones() {
        0 => 1,
        ones @ 2..=7 => usize::try_from(ones).ok()?,
        _ => return None,
    };
    let mut at = 4 + numbered;
    let mut more = |size: usize| {
        at += size;
        big(bytes, at - size, size)
    };
    let samples = match codes >> 4 {
        0 => return None,
        1 => 192,
        code @ 2..=5 => 576 << (code - 2),
        6 => more(1)? + 1,
        7 => more(2)? + 1,
        code => 256 << (code - 8),
    };
    let rate = match codes & 0xf {
        0 => of_stream,
        1 => 88_200,
        2 => 176_400,
        3 => 192_000,
        4 => 8_000,
        5 => 16_000,
        6 => 22_050,
        7 => 24_000,
        8 => 32_000,
        9 => 44_100,
        10 => 48_000,
        11 => 96_000,
        12 => more(1)? * 1_000,
        13 => more(2)?,
        14 => more(2)? * 10,
        _ => return None,
    };
    let checksum = bytes.get(..at)?.iter().fold(0, |sum, byte| crc8(sum ^ byte));
    (rate > 0 && bytes.get(at) == Some(&checksum)).then_some((samples, rate))
}

/// Eight steps of x⁸ + x² + x + 1.
fn crc8(byte: u8) -> u8 {
    (0..8).fold(byte, |sum, _| if sum & 0x80 == 0 { sum << 1 } else { sum << 1 ^ 0x07 })
}

/// What a stream in Ogg holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Opus,
    /// Any with packets of so many samples at most.
    Packets(u64),
}

/// A stream in Ogg: RFC 3533.
#[derive(Debug)]
struct Stream {
    codec: Codec,
    rate: u64,
    /// Samples of its packets.
    samples: u64,
    /// The first granule position, and the samples until there.
    first: Option<(u64, u64)>,
    last: u64,
}

impl Stream {
    /// By its first packet; `None` of what is not known.
    fn of(packet: &[u8]) -> Option<Stream> {
        let (codec, rate) = if packet.starts_with(b"OpusHead") {
            (Codec::Opus, OPUS_RATE)
        } else if packet.starts_with(b"\x01vorbis") {
            let longest = u64::from(packet.get(28)? >> 4);
            (Codec::Packets((1 << longest) / 2), little(packet, 12, 4)?)
        } else if packet.starts_with(b"Speex   ") {
            let (frame, frames) = (little(packet, 56, 4)?, little(packet, 64, 4)?);
            (
                Codec::Packets(frame.saturating_mul(frames.max(1))),
                little(packet, 36, 4)?,
            )
        } else if packet.starts_with(b"\x7fFLAC") {
            let (rate, _) = streaminfo(packet.get(17..)?)?;
            (Codec::Packets(big(packet, 19, 2)?), rate)
        } else {
            return None;
        };
        (rate > 0).then_some(Stream {
            codec,
            rate,
            samples: 0,
            first: None,
            last: 0,
        })
    }

    /// A packet begins so.
    fn packet(&mut self, packet: &[u8]) {
        let samples = match self.codec {
            Codec::Opus => opus(packet),
            Codec::Packets(samples) => samples,
        };
        self.samples = self.samples.saturating_add(samples);
    }

    /// A page ends at this position: none before there is sound, and where no packet ends.
    fn page_ends(&mut self, granule: u64) {
        if !matches!(granule, 0 | u64::MAX) {
            self.first.get_or_insert((granule, self.samples));
            self.last = self.last.max(granule);
        }
    }

    fn length(&self) -> Micros {
        // What was recorded of a broadcast does not begin at zero.
        let (granule, before) = self.first.unwrap_or_default();
        let told = self.last.saturating_sub(granule).saturating_add(before.min(granule));
        Micros::of(micros(self.samples, self.rate), micros(told, self.rate))
    }
}

/// Samples of a packet of Opus: RFC 6716 §3.1. What tells of the stream is none.
fn opus(packet: &[u8]) -> u64 {
    let Some(first) = packet.first().filter(|_| !packet.starts_with(b"Opus")) else {
        return 0;
    };
    let config = first >> 3;
    let frame = match config {
        0..=11 => [480, 960, 1_920, 2_880][usize::from(config & 3)],
        12..=15 => [480, 960][usize::from(config & 1)],
        _ => [120, 240, 480, 960][usize::from(config & 3)],
    };
    let frames = match first & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => packet.get(1).map_or(0, |count| u64::from(count & 0x3f)),
    };
    (frames * frame).min(OPUS_PACKET)
}

/// All streams of an Ogg file, one after the other.
fn ogg(file: &[u8]) -> Option<Micros> {
    if !file.starts_with(b"OggS") {
        return None;
    }
    let (mut streams, mut rest): (BTreeMap<u64, Stream>, _) = (BTreeMap::new(), file);
    while let Some(start) = memchr::memmem::find(rest, b"OggS") {
        let page = &rest[start..];
        let Some(segments) = page.get(26).and_then(|count| page.get(27..27 + usize::from(*count))) else {
            break;
        };
        let content = &page[27 + segments.len()..];
        let is_continued = page[5] & 1 != 0;
        let (serial, granule) = (little(page, 14, 4)?, little(page, 6, 8)?);
        let (mut at, mut begins) = (0, !is_continued);
        for segment in segments {
            if begins {
                // The end of a file may be cut off: its last packet counts by what is there.
                let packet = content.get(at..).unwrap_or_default();
                let is_full = streams.len() == MOST_STREAMS;
                match streams.get_mut(&serial) {
                    Some(stream) => stream.packet(if *segment == 0 { &[] } else { packet }),
                    None if is_full => return None,
                    None => {
                        streams.insert(serial, Stream::of(packet)?);
                    }
                }
            }
            at += usize::from(*segment);
            begins = *segment < 255;
        }
        if let Some(stream) = streams.get_mut(&serial) {
            stream.page_ends(granule);
        }
        // Not behind the page: a reader that finds it damaged looks for the next one inside.
        rest = &page[4..];
    }
    streams.values().map(Stream::length).reduce(Micros::and)
}

/// Samples of these formats take whole bytes: PCM, floating, A-law, µ-law, and what names one of them further on.
const PCM: [u64; 5] = [1, 3, 6, 7, 0xfffe];

/// Of a file that has so many bytes, which need not be all here.
fn wave(file: &[u8], length: u64) -> Option<Micros> {
    let mut rest = file.strip_prefix(b"RIFF")?.get(4..)?.strip_prefix(b"WAVE")?;
    loop {
        let size = usize::try_from(little(rest, 4, 4)?).ok()?;
        if rest.starts_with(b"fmt ") {
            break;
        }
        rest = rest.get(8..)?.get(size.checked_add(size % 2)?..)?;
    }
    let format = little(rest, 8, 2)?;
    let (channels, rate, bits) = (little(rest, 10, 2)?, little(rest, 12, 4)?, little(rest, 22, 2)?);
    let bits_of_all = match PCM.contains(&format) {
        true => bits.next_multiple_of(8) * channels,
        false => channels,
    };
    let told = micros(
        length.saturating_mul(8),
        rate.checked_mul(bits_of_all).filter(|rate| *rate > 0)?,
    );
    let Length { most, likely } = Length::by_bytes(length);
    Some(match PCM.contains(&format) {
        true => Micros::exactly(told),
        false => Micros {
            most: told.max(most.saturating_mul(SECOND)),
            likely: likely.saturating_mul(SECOND),
        },
    })
}

/// The parts of an MP4 file, and of a part: ISO/IEC 14496-12 §4.2.
fn boxes(mut rest: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (size, name) = (big(rest, 0, 4)?, rest.get(4..8)?);
        let (head, size) = match size {
            0 => (8, rest.len()),
            1 => (16, usize::try_from(big(rest, 8, 8)?).ok()?),
            size => (8, usize::try_from(size).ok()?),
        };
        let content = rest.get(head..size.min(rest.len()))?;
        rest = &rest[size.min(rest.len())..];
        Some((name, content))
    })
}

fn inside<'a>(content: &'a [u8], names: &[&[u8]]) -> Option<&'a [u8]> {
    names.iter().try_fold(content, |content, name| {
        let mut parts = boxes(content);
        parts.find(|(found, _)| found == name).map(|(_, content)| content)
    })
}

/// The tracks of sound of an MP4 file. In fragments, each with its own samples, it is bounded by its bytes.
fn mp4(file: &[u8]) -> Option<Micros> {
    if file.get(4..8)? != b"ftyp" || boxes(file).any(|(name, _)| name == b"moof") {
        return None;
    }
    let movies = boxes(file).filter(|(name, _)| *name == b"moov");
    let tracks = movies.flat_map(|(_, movie)| boxes(movie).filter(|(name, _)| *name == b"trak"));
    let media = tracks.filter_map(|(_, track)| inside(track, &[b"mdia"]));
    let is_sound = |media: &&[u8]| inside(media, &[b"hdlr"]).and_then(|kind| kind.get(8..12)) == Some(b"soun");
    let lengths: Option<Vec<Micros>> = media.filter(is_sound).map(track_of_sound).collect();
    lengths?.into_iter().reduce(Micros::and)
}

fn track_of_sound(media: &[u8]) -> Option<Micros> {
    let head = inside(media, &[b"mdhd"])?;
    let (scale, duration) = match head.first()? {
        0 => (big(head, 12, 4)?, big(head, 16, 4)?),
        _ => (big(head, 20, 4)?, big(head, 24, 8)?),
    };
    let table = inside(media, &[b"minf", b"stbl"])?;
    let (entry, sizes) = (inside(table, &[b"stsd"])?, inside(table, &[b"stsz"])?);
    // The entry's rate, before the point of its fixed number.
    let (kind, rate) = (entry.get(12..16)?, big(entry, 40, 2)?);
    let samples = big(sizes, 8, 4)?.saturating_mul(AAC_FRAME);
    let is_read = kind == b"mp4a" && scale > 0 && rate > 0;
    is_read.then(|| Micros::of(micros(samples, rate), micros(duration, scale)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(most: u64, likely: u64) -> Length {
        Length { most, likely }
    }

    /// A FLAC file that says it has so many samples, at 8 kHz.
    fn flac_of(told: u64) -> Vec<u8> {
        let mut file = b"fLaC\x80\0\0\x22".to_vec();
        file.extend([0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]);
        file.extend((8_000_u64 << 44 | 15 << 36 | told).to_be_bytes());
        file.extend([0; 16]);
        file
    }

    /// A frame of silence: 32,768 samples in twelve bytes.
    fn silence(number: u8) -> Vec<u8> {
        let mut frame = vec![0xff, 0xf8, 0xf0, 0x08, number];
        frame.push(frame.iter().fold(0, |sum, byte| crc8(sum ^ byte)));
        frame.extend([0, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn silence_in_flac_is_as_long_as_its_frames_say() {
        // Four seconds each, whatever the header says.
        for told in [0, 1, 8_000 * 10] {
            let frames = (0..100).flat_map(silence);
            let file: Vec<u8> = flac_of(told).into_iter().chain(frames).collect();
            assert!(file.len() < 1_300, "{}", file.len());
            assert_eq!(Length::of(&file), seconds(410, 410), "{told}");
        }
        assert_eq!(Length::of(&flac_of(8_000 * 7)), seconds(7, 7));
        let mut damaged = silence(1);
        damaged[5] ^= 1;
        assert_eq!(Length::of(&[flac_of(0), damaged].concat()), seconds(0, 0));
    }

    #[test]
    fn a_frame_is_read_whatever_its_head_is_made_of() {
        let checked = |mut head: Vec<u8>| {
            head.push(head.iter().fold(0, |sum, byte| crc8(sum ^ byte)));
            frame(&head, 44_100)
        };
        assert_eq!(checked(vec![0xff, 0xf8, 0x10, 0, 0]), Some((192, 44_100)));
        assert_eq!(checked(vec![0xff, 0xf9, 0x59, 0, 0xc2, 0x80]), Some((4_608, 44_100)));
        assert_eq!(checked(vec![0xff, 0xf8, 0x64, 0, 0, 0x0f]), Some((16, 8_000)));
        assert_eq!(
            checked(vec![0xff, 0xf8, 0x7c, 0, 0, 0xff, 0xfe, 9]),
            Some((65_535, 9_000))
        );
        assert_eq!(checked(vec![0xff, 0xf8, 0x8d, 0, 0, 0, 1]), Some((256, 1)));
        for none in [
            vec![0xff, 0xf8, 0x00, 0, 0],
            vec![0xff, 0xf8, 0x1f, 0, 0],
            vec![0xff, 0xf8, 0x10, 0, 0x80],
            vec![0xff, 0xfa, 0x10, 0, 0],
        ] {
            assert_eq!(checked(none.clone()), None, "{none:x?}");
        }
    }

    /// A page of Ogg with these packets, each shorter than a segment.
    fn page(granule: u64, packets: &[&[u8]]) -> Vec<u8> {
        let mut page = b"OggS\0\0".to_vec();
        page.extend(granule.to_le_bytes());
        page.extend([7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        page.push(u8::try_from(packets.len()).expect("few"));
        page.extend(packets.iter().map(|packet| u8::try_from(packet.len()).expect("short")));
        page.extend(packets.concat());
        page
    }

    #[test]
    fn silence_in_opus_is_as_long_as_its_packets_say() {
        let heads = [page(0, &[b"OpusHead\x01\x01"]), page(0, &[b"OpusTags"])].concat();
        // Packets of sixty milliseconds in one byte, as a discontinuous transmission has them.
        let silent = [&b"\x18"[..]; 200].to_vec();
        let told = page(48_000 * 12, &silent);
        let file = [heads.clone(), told.clone()].concat();
        assert!(file.len() < 600);
        assert_eq!(Length::of(&file), seconds(12, 12));
        let untold = page(1, &silent);
        assert_eq!(
            Length::of(&[heads.clone(), untold.clone()].concat()).most,
            12,
            "a page that says less"
        );
        let hidden = page(1, &[&page(1, &silent[..100])]);
        let found = Length::of(&[heads.clone(), hidden, untold].concat());
        assert_eq!(found.most, 19, "a page inside of one that may be skipped");
        // A broadcast that was joined after an hour, with a gap of ten seconds in it.
        let hour = 48_000 * 3_600;
        let joined = [page(hour, &silent), page(hour + 48_000 * 22, &silent)].concat();
        assert_eq!(Length::of(&[heads, joined].concat()), seconds(34, 34));
        for (packet, samples) in [
            (&b"\x80"[..], 120),
            (b"\xff\x06", 5_760),
            (b"\x03\x3f", 5_760),
            (b"\x61", 960),
            (b"\x6a", 1_920),
            (b"", 0),
        ] {
            assert_eq!(opus(packet), samples, "{packet:x?}");
        }
    }

    #[test]
    fn vorbis_and_speex_and_flac_are_read_in_ogg() {
        let mut vorbis = b"\x01vorbis\0\0\0\0\x01".to_vec();
        vorbis.extend(8_000_u32.to_le_bytes());
        vorbis.extend([0; 12]);
        vorbis.extend([0xb8, 1]);
        // 1,024 samples each, and the first one, which tells of the stream, is none.
        let file = [page(0, &[&vorbis]), page(u64::MAX, &[&b"\0"[..]; 125])].concat();
        assert_eq!(Length::of(&file), seconds(16, 16));
        let mut speex = b"Speex   ".to_vec();
        speex.extend([0; 28]);
        for number in [8_000_u32, 0, 0, 1, 0, 160, 0, 2] {
            speex.extend(number.to_le_bytes());
        }
        let file = [page(0, &[&speex]), page(8_000, &[&b"\0"[..]; 100])].concat();
        assert_eq!(Length::of(&file), seconds(4, 1));
        let flac = [b"\x7fFLAC\x01\0\0\0".to_vec(), flac_of(0)].concat();
        let file = [page(0, &[&flac]), page(0, &[&silence(0); 3].map(Vec::as_slice))].concat();
        assert_eq!(Length::of(&file).most, 13);
        let unknown = page(0, &[b"theora"]);
        assert_eq!(Length::of(&unknown), Length::by_bytes(34));
    }

    /// A WAV file of so many bytes of sound.
    fn wave_of(format: u16, rate: u32, bits: u16, length: usize) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        file.extend(format.to_le_bytes());
        file.extend([1, 0]);
        file.extend(rate.to_le_bytes());
        file.extend([0; 6]);
        file.extend(bits.to_le_bytes());
        file.extend(b"data\xff\xff\xff\xff");
        file.resize(file.len() + length, 0);
        file
    }

    #[test]
    fn a_wav_is_as_long_as_its_samples_are() {
        assert_eq!(Length::of(&wave_of(1, 16_000, 16, 320_000)), seconds(11, 11));
        assert_eq!(Length::of(&wave_of(1, 10, 8, 0)), seconds(6, 6), "however slow");
        assert_eq!(Length::of(&wave_of(2, 8_000, 4, 80_000)), seconds(161, 11), "packed");
        let wave = wave_of(1, 16_000, 16, 320_000);
        assert_eq!(
            Length::of_beginning(&wave[..100], 320_056),
            Length::of(&wave),
            "by its head"
        );
        let untold = Length::of_beginning(&wave[..30], 320_056);
        assert_eq!(untold, Length::by_bytes(320_056));
        let endless = wave_of(1, 0, 16, 1_000);
        assert_eq!(Length::of(&endless), Length::by_bytes(1_056));
    }

    fn part(name: &[u8], content: &[u8]) -> Vec<u8> {
        let size = u32::try_from(content.len() + 8).expect("short");
        [&size.to_be_bytes(), name, content].concat()
    }

    /// An MP4 file with a track of so many samples at 8 kHz, that says how long it is in thousandths.
    fn mp4_of(samples: u32, duration: u32) -> Vec<u8> {
        let head = [&[0; 12], &1_000_u32.to_be_bytes()[..], &duration.to_be_bytes()].concat();
        let entry = [&[0; 12], &b"mp4a"[..], &[0; 24], &8_000_u16.to_be_bytes(), &[0; 2]].concat();
        let sizes = [&[0; 8], &samples.to_be_bytes()[..]].concat();
        let table = part(b"stbl", &[part(b"stsd", &entry), part(b"stsz", &sizes)].concat());
        let media = [
            part(b"mdhd", &head),
            part(b"hdlr", b"\0\0\0\0\0\0\0\0soun"),
            part(b"minf", &table),
        ];
        let track = part(b"trak", &part(b"mdia", &media.concat()));
        [part(b"ftyp", b"M4A "), part(b"moov", &track)].concat()
    }

    #[test]
    fn an_mp4_is_as_long_as_its_samples_may_be() {
        assert_eq!(Length::of(&mp4_of(1_000, 128_000)), seconds(256, 128));
        assert_eq!(Length::of(&mp4_of(0, 9_500)), seconds(10, 10));
        let fragments = [mp4_of(0, 0), part(b"moof", b"")].concat();
        assert_eq!(Length::of(&fragments), Length::by_bytes(count(fragments.len())));
    }

    #[test]
    fn bytes_that_end_early_or_say_nonsense_are_bounded_by_their_number() {
        let files = [
            flac_of(0),
            page(9, &[b"OpusHead", b"\x18"]),
            wave_of(1, 8_000, 16, 9),
            mp4_of(1, 1),
        ];
        for file in files {
            for end in 0..file.len() {
                let _: Length = Length::of(&file[..end]);
                let mut other = file.clone();
                other[end] = 0xff;
                let _: Length = Length::of(&other);
            }
        }
        assert_eq!(Length::of(b""), seconds(0, 0));
        assert_eq!(Length::of(&[1; 1_200]), seconds(3, 1));
    }
}
