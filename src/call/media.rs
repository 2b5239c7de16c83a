//! Calls to image and audio endpoints: what bounds their cost beside text; and forms, which some of them come in.
//!
//! A form is read as strictly as JSON: upstreams differ in what they make of a part that is there twice, is written in
//! another case, or stands outside of the boundaries. All of it is here when it is read, because the model may come last;
//! what is known before is [`super::arriving`]'s.

use std::ops::Range;

use bytes::Bytes;

use super::fields::{Member, wrong_type};
use super::input::decoded;
use super::parse::{MAX_CHOICES, is_model};
use super::sound::Length;
use super::splice::Places;
use super::{BodyProblem, Call, CallError, Echo, Endpoint, HostedTools, InputShape, Problem, Wanted};
use crate::usage::{CacheTtl, Tier};

/// What a call makes or hears beside text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// Nothing.
    #[default]
    Text,
    /// Images.
    Image {
        /// Output tokens of each, at most.
        tokens: u64,
    },
    /// It hears a recording.
    Sound {
        /// How long it is.
        length: Length,
        /// Whether the answer, in the form that was asked for, tells its usage.
        tells: bool,
    },
    /// It speaks.
    Speech {
        /// The text, in characters.
        characters: u64,
        /// Whether the answer, in the form that was asked for, tells its usage.
        tells: bool,
    },
}

/// A square of 1024 pixels, in pixels: an image of it was seen to have 272, 1,056 and 4,160 output tokens.
const SQUARE: u64 = 1024 * 1024;
const LOW: u64 = 272;
const MEDIUM: u64 = 1_056;
const HIGH: u64 = 4_160;

/// An image whose size is not told has no more pixels.
const LARGEST: u64 = 4 * SQUARE;

/// Partial images, and text of a model that thinks before it draws.
const BESIDE: u64 = 2_500;

/// More parts than any form has.
const MAX_PARTS: usize = 64;

/// The head of a part, at most, in bytes.
pub(super) const MAX_PART_HEAD: usize = 4_096;

/// Parts that decide what a call costs or how its answer comes.
const DECIDING: [&str; 8] = [
    "model",
    "n",
    "partial_images",
    "quality",
    "response_format",
    "size",
    "stream",
    "stream_format",
];

/// What a JSON call makes beside text.
pub(super) fn of_json(endpoint: Endpoint, members: &[Member<'_>]) -> Medium {
    let texts = |name: &'static str| {
        let named = members
            .iter()
            .filter(move |member| member.name.eq_ignore_ascii_case(name));
        named.filter_map(|member| decoded(member.value))
    };
    match endpoint {
        Endpoint::ImageGenerations | Endpoint::ImageEdits => Medium::Image {
            tokens: image_tokens(texts("quality"), texts("size")),
        },
        Endpoint::Speech => {
            let formats: Vec<_> = texts("stream_format").collect();
            Medium::Speech {
                characters: texts("input").map(|text| length(text.chars().count())).sum(),
                tells: formats.len() == 1 && formats[0] == "sse",
            }
        }
        _ => Medium::Text,
    }
}

/// Output tokens of an image, at most: by the dearest of all that is written of it.
fn image_tokens<T: AsRef<str>>(qualities: impl Iterator<Item = T>, sizes: impl Iterator<Item = T>) -> u64 {
    let of_square = qualities.map(|quality| match quality.as_ref() {
        "low" => LOW,
        "medium" => MEDIUM,
        _ => HIGH,
    });
    let pixels = sizes.map(|size| {
        let sides = size.as_ref().split_once('x');
        let sides = sides.and_then(|(width, height)| Some((width.parse::<u32>().ok()?, height.parse::<u32>().ok()?)));
        sides.map_or(LARGEST, |(width, height)| {
            u64::from(width).saturating_mul(u64::from(height))
        })
    });
    let of_square = of_square.max().unwrap_or(HIGH);
    let pixels = pixels.max().unwrap_or(LARGEST).max(1);
    of_square.saturating_mul(pixels).div_ceil(SQUARE).saturating_add(BESIDE)
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What the head of a part says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) is_file: bool,
    /// Whether its content, as text, is what its bytes are in UTF-8.
    is_plain: bool,
}

/// One part of a form.
struct Part {
    head: Head,
    place: Range<usize>,
}

/// The parts that decide, each at most once.
struct Parts<'a> {
    body: &'a [u8],
    all: Vec<Part>,
}

impl<'a> Parts<'a> {
    fn read(content_type: &str, body: &'a [u8]) -> Result<Parts<'a>, CallError> {
        let no_form = || CallError::Body(BodyProblem::NotAForm);
        let boundary = boundary(content_type).ok_or_else(no_form)?;
        let mark = format!("--{boundary}");
        let mut rest = body.strip_prefix(mark.as_bytes()).ok_or_else(no_form)?;
        let (mut all, after_mark) = (Vec::new(), format!("\r\n{mark}"));
        while let Some(part) = rest.strip_prefix(b"\r\n") {
            let within = &part[..part.len().min(MAX_PART_HEAD)];
            let head = memchr::memmem::find(within, b"\r\n\r\n").ok_or_else(no_form)?;
            let content = &part[head + 4..];
            let end = memchr::memmem::find(content, after_mark.as_bytes()).ok_or_else(no_form)?;
            let start = body.len() - content.len();
            let head = std::str::from_utf8(&part[..head]).map_err(|_| no_form())?;
            if all.len() == MAX_PARTS {
                return Err(no_form());
            }
            all.push(Part {
                head: Head::read(head)?,
                place: start..start + end,
            });
            rest = &content[end + after_mark.len()..];
        }
        let ends = rest
            .strip_prefix(b"--")
            .is_some_and(|rest| rest.trim_ascii().is_empty());
        match ends && !all.is_empty() {
            true => Ok(Parts { body, all }),
            false => Err(no_form()),
        }
    }

    /// Refuses what an upstream could read in another way.
    fn check(&self) -> Result<(), CallError> {
        let mut seen = Vec::new();
        for Part { head: part, .. } in &self.all {
            let plain = part.name.trim_end_matches("[]").to_ascii_lowercase();
            let Some(name) = DECIDING.into_iter().find(|name| *name == plain) else {
                continue;
            };
            if part.name != name || part.is_file {
                return Err(CallError::of(name, Problem::Miswritten));
            }
            if !part.is_plain {
                return Err(unclear(name, "Content-Type"));
            }
            if seen.contains(&name) {
                return Err(CallError::of(name, Problem::Repeated));
            }
            seen.push(name);
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Option<&Range<usize>> {
        self.all
            .iter()
            .find(|part| part.head.name == name)
            .map(|part| &part.place)
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, CallError> {
        let place = self.place(name).map(|place| &self.body[place.clone()]);
        let read = |bytes| std::str::from_utf8(bytes).map_err(|_| CallError::Body(BodyProblem::NotUtf8));
        place.map(read).transpose()
    }

    /// Bytes of the parts that are no files.
    fn text_bytes(&self) -> u64 {
        let parts = self.all.iter().filter(|part| !part.head.is_file);
        parts.map(|part| length(part.place.len())).sum()
    }

    /// How long the recordings are.
    fn sound(&self) -> Length {
        let files = self.all.iter().filter(|part| part.head.is_file);
        let lengths = files.map(|part| Length::of(&self.body[part.place.clone()]));
        lengths.fold(Length::default(), Length::and)
    }
}

/// The boundary that a content type names.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let named = content_type.split(';').filter_map(|part| part.trim().split_once('='));
    let mut boundaries = named.filter(|(name, _)| name.eq_ignore_ascii_case("boundary"));
    let (_, written) = boundaries.next().filter(|_| boundaries.next().is_none())?;
    let plain = written
        .strip_prefix('"')
        .map_or(Some(written), |rest| rest.strip_suffix('"'))?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
    ((1..=70).contains(&plain.len()) && plain.bytes().all(fits)).then_some(plain)
}

/// What of a part servers would read in different ways.
fn unclear(part: &str, what: &'static str) -> CallError {
    CallError::of(part, Problem::Unclear { what })
}

impl Head {
    /// Takes what all parsers read alike: parameters in any order, in quotes or as a word, a name of the file in another
    /// script (RFC 5987) beside or in place of the plain one, and further headers, which mean nothing in a form. Parsers
    /// differ in which of two names they take, in `name*`, in a backslash before a quote, in what ends a line, and in whether
    /// they decode what a transfer encoding or a charset names.
    pub(super) fn read(text: &str) -> Result<Head, CallError> {
        let no_form = || CallError::Body(BodyProblem::NotAForm);
        let (mut disposition, mut kinds, mut is_encoded) = (None, Vec::new(), false);
        for line in text.split("\r\n") {
            let (name, value) = line.split_once(':').ok_or_else(no_form)?;
            if line.contains(char::is_control) || !is_word(name) {
                return Err(no_form());
            }
            match name.to_ascii_lowercase().as_str() {
                "content-disposition" if disposition.is_some() => return Err(no_form()),
                "content-disposition" => disposition = Some(Disposition::read(value.trim()).ok_or_else(no_form)?),
                "content-type" => kinds.push(value.trim()),
                "content-transfer-encoding" => {
                    let as_it_is = ["7bit", "8bit", "binary"];
                    is_encoded |= !as_it_is.iter().any(|word| value.trim().eq_ignore_ascii_case(word));
                }
                _ => {}
            }
        }
        let Disposition {
            name,
            is_file,
            unclear: what,
        } = disposition.ok_or_else(no_form)?;
        if let Some(what) = what.or(is_encoded.then_some("Content-Transfer-Encoding")) {
            return Err(unclear(&name, what));
        }
        Ok(Head {
            is_plain: kinds.len() < 2 && kinds.iter().all(|kind| is_utf8(kind)),
            name,
            is_file,
        })
    }
}

/// Whether text of this content type is read as UTF-8 (or ASCII), which is what is assumed where none is named.
fn is_utf8(content_type: &str) -> bool {
    let named = content_type.split(';').skip(1);
    let named = named.filter_map(|part| part.trim().split_once('='));
    let mut charsets = named.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    charsets.all(|(_, charset)| {
        let charset = charset.trim().trim_matches('"');
        ["utf-8", "utf8", "us-ascii", "ascii"]
            .iter()
            .any(|plain| charset.eq_ignore_ascii_case(plain))
    })
}

/// A token of RFC 9110 §5.6.2, without what parsers take for more than a letter.
fn is_word(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+[]".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

/// What `Content-Disposition` says of a part.
struct Disposition {
    name: String,
    is_file: bool,
    /// What of it servers would read in different ways.
    unclear: Option<&'static str>,
}

impl Disposition {
    /// `None` where not even the name is plain.
    fn read(value: &str) -> Option<Disposition> {
        let mut rest = value
            .get(..9)
            .filter(|kind| kind.eq_ignore_ascii_case("form-data"))
            .map(|_| &value[9..])?;
        let (mut names, mut plain, mut extended, mut unclear) = (Vec::new(), 0, 0, None);
        while !rest.is_empty() {
            let parameter = rest
                .trim_start_matches([' ', '\t'])
                .strip_prefix(';')?
                .trim_start_matches([' ', '\t']);
            let (name, written) = parameter.split_once('=')?;
            let (value, more) = match written.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => written.split_at(written.find([';', ' ', '\t']).unwrap_or(written.len())),
            };
            let is_quoted = written.starts_with('"');
            let ends_plainly = if is_quoted {
                !value.ends_with('\\')
            } else {
                !value.is_empty() && !value.contains('"')
            };
            match name.to_ascii_lowercase().as_str() {
                "name" => {
                    if !ends_plainly || value.contains(['\\', '%']) || !(is_quoted || is_word(value)) {
                        return None;
                    }
                    names.push(value.to_owned());
                }
                "filename" => {
                    plain += 1;
                    unclear = unclear.or((!ends_plainly).then_some("filename"));
                }
                "filename*" => {
                    extended += 1;
                    unclear = unclear.or((is_quoted || !ends_plainly).then_some("filename*"));
                }
                "name*" => unclear = Some("name*"),
                _ => unclear = unclear.or(Some("Content-Disposition")),
            }
            rest = more;
        }
        if plain > 1 || extended > 1 {
            unclear = Some("filename");
        }
        let [name] = <[String; 1]>::try_from(names).ok()?;
        (!name.is_empty()).then_some(Disposition {
            name,
            is_file: plain + extended > 0,
            unclear,
        })
    }
}

/// Reads a form.
pub(super) fn form(endpoint: Endpoint, content_type: &str, body: &Bytes) -> Result<Call, CallError> {
    let parts = Parts::read(content_type, body)?;
    parts.check()?;
    let (Some(model), Some(place)) = (parts.text("model")?, parts.place("model")) else {
        return Err(CallError::of("model", Problem::NoModel));
    };
    if !is_model(model) {
        return Err(CallError::of("model", Problem::NotAModel));
    }
    let stream = match parts.text("stream")? {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(wrong_type("stream", Wanted::Bool)),
    };
    let n = parts.text("n")?.map(|n| n.parse::<u64>().ok().filter(|n| *n > 0));
    let choices = match n {
        None => 1,
        Some(Some(n)) if n <= MAX_CHOICES => u32::try_from(n).unwrap_or(1),
        Some(Some(_)) => return Err(CallError::of("n", Problem::Above { most: MAX_CHOICES })),
        Some(None) => return Err(wrong_type("n", Wanted::Count)),
    };
    let format = parts.text("response_format")?;
    let (medium, images) = match endpoint {
        Endpoint::ImageEdits => {
            let (quality, size) = (parts.text("quality")?, parts.text("size")?);
            let tokens = image_tokens(quality.into_iter(), size.into_iter());
            let files = parts.all.iter().filter(|part| part.head.is_file).count();
            (Medium::Image { tokens }, length(files))
        }
        _ => {
            let medium = Medium::Sound {
                length: parts.sound(),
                tells: match format {
                    Some("verbose_json") => true,
                    // Of a translation it is the text alone.
                    None | Some("json" | "diarized_json") => endpoint == Endpoint::Transcriptions,
                    _ => false,
                },
            };
            (medium, 0)
        }
    };
    one_image_in_a_stream(medium, stream, choices)?;
    Ok(Call {
        endpoint,
        model: model.to_owned(),
        stream,
        background: false,
        include_usage: false,
        output_limit: None,
        choices,
        tier: Tier::default(),
        input: InputShape {
            text_bytes: parts.text_bytes(),
            messages: 1,
            images,
            ..InputShape::default()
        },
        tools: HostedTools::default(),
        refers_to: Vec::new(),
        cache_ttl: CacheTtl::default(),
        echo: Echo::No,
        encrypted: super::AllEncrypted::default(),
        medium,
        form: Some(content_type.to_owned()),
        places: Places {
            model: place.clone(),
            ..Places::default()
        },
        body: body.clone(),
        cache_key: None,
        client_metadata: None,
    })
}

/// Whether several images of a stream tell one usage or several is not known.
pub(super) fn one_image_in_a_stream(medium: Medium, stream: bool, choices: u32) -> Result<(), CallError> {
    match medium {
        Medium::Image { .. } if stream && choices > 1 => Err(CallError::of("n", Problem::Above { most: 1 })),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(head: &str, content: &str) -> String {
        format!("--mark\r\ncontent-disposition: form-data; {head}\r\n\r\n{content}\r\n")
    }

    fn read(endpoint: Endpoint, parts: &[String]) -> Result<Call, CallError> {
        let body = parts.concat() + "--mark--\r\n";
        Call::parse_form(endpoint, "multipart/form-data; boundary=mark", body.into())
    }

    fn model() -> String {
        part("name=\"model\"", "whisper-1")
    }

    fn file(content: &str) -> String {
        part("name=\"file\"; filename=\"a; name=é.mp3\"", content)
    }

    #[test]
    fn a_form_is_read_whatever_its_order() {
        for parts in [[model(), file("12345")], [file("12345"), model()]] {
            let call = read(Endpoint::Transcriptions, &parts).expect("a call");
            assert_eq!(
                (call.model.as_str(), call.stream, call.choices),
                ("whisper-1", false, 1)
            );
            let length = Length::by_bytes(5);
            assert_eq!(call.medium, Medium::Sound { length, tells: true });
            assert_eq!(call.input.text_bytes, 9);
            let edits = crate::call::Edits {
                model: Some("other".into()),
                ..crate::call::Edits::default()
            };
            let sent = call.upstream_body(&edits);
            let expected = String::from_utf8(call.body.to_vec())
                .expect("text")
                .replace("whisper-1", "other");
            assert_eq!(sent, expected);
        }
        let told = |endpoint: Endpoint, format: &str| {
            let parts = [model(), part("name=\"response_format\"", format), file("1")];
            read(endpoint, &parts).expect("a call").medium
        };
        for (format, heard, translated) in [
            ("verbose_json", true, true),
            ("json", true, false),
            ("srt", false, false),
        ] {
            for (endpoint, tells) in [(Endpoint::Transcriptions, heard), (Endpoint::Translations, translated)] {
                assert_eq!(
                    told(endpoint, format),
                    Medium::Sound {
                        length: Length::by_bytes(1),
                        tells
                    },
                    "{endpoint:?} {format}"
                );
            }
        }
        let plain = read(Endpoint::Translations, &[model(), file("1")]).expect("a call");
        let length = Length::by_bytes(1);
        assert_eq!(plain.medium, Medium::Sound { length, tells: false });
    }

    #[test]
    fn what_is_plain_is_read_however_it_is_written() {
        for head in [
            "name=\"model\"\r\nContent-Type: text/plain; charset=UTF-8",
            "name=\"model\"\r\ncontent-type: text/plain; charset=\"us-ascii\"\r\ncontent-length: 9",
            "name=\"model\"\r\ncontent-transfer-encoding: 8bit\r\nMIME-Version: 1.0",
            "name=model",
            "  name=model  ",
        ] {
            let head = head.trim_end();
            let call = read(Endpoint::Transcriptions, &[part(head, "whisper-1"), file("123")]);
            assert_eq!(call.expect(head).model, "whisper-1");
        }
        for head in [
            "name=\"file\"; filename=\"a.mp3\"; filename*=UTF-8''%C3%A9.mp3",
            "name=\"file\"; filename*=UTF-8''%C3%A9.mp3",
            "filename=a.mp3; name=file",
            "name=file;filename=\"C:\\music\\a.mp3\"",
            "name=\"file\" ; filename=\"%22a%22; name=b.mp3\"\r\ncontent-type: audio/mpeg; charset=binary",
        ] {
            let call = read(Endpoint::Transcriptions, &[part(head, "12345"), model()]).expect(head);
            let medium = Medium::Sound {
                length: Length::by_bytes(5),
                tells: true,
            };
            assert_eq!(call.medium, medium, "{head}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_form() {
        let param = |parts: &[String]| {
            let error = read(Endpoint::Transcriptions, parts).expect_err("no call");
            error.param().map(str::to_owned)
        };
        assert_eq!(param(&[model(), model()]).as_deref(), Some("model"));
        assert_eq!(
            param(&[model(), part("name=\"Model\"", "dear")]).as_deref(),
            Some("model")
        );
        assert_eq!(
            param(&[model(), part("name=\"model[]\"", "dear")]).as_deref(),
            Some("model")
        );
        assert_eq!(
            param(&[part("name=\"model\"; filename=\"x\"", "dear")]).as_deref(),
            Some("model")
        );
        assert_eq!(param(&[file("x")]).as_deref(), Some("model"));
        assert_eq!(
            param(&[model(), part("name=\"stream\"", "yes")]).as_deref(),
            Some("stream")
        );
        assert_eq!(param(&[model(), part("name=\"n\"", "0")]).as_deref(), Some("n"));
        assert_eq!(param(&[model(), part("name=model", "x")]).as_deref(), Some("model"));
        assert_eq!(
            param(&[part("filename=\"x\"; name=\"model\"", "x")]).as_deref(),
            Some("model")
        );
        for (wrong, named) in [
            (part("name=\"mo\\del\"", "x"), None),
            (part("name=\"x\\\"; name=\"model\"", "x"), None),
            (part("name=\"x\"; name=\"model\"", "x"), None),
            (part("name=\"%6dodel\"", "x"), None),
            (part("name=mo\"del\"", "x"), None),
            (part("name=", "x"), None),
            (part("name = \"x\"", "x"), None),
            (part("name=\"x\"; name*=utf-8''model", "x"), Some("x")),
            (part("name=\"x\"; filename*=\"utf-8''y\"", "x"), Some("x")),
            (part("name=\"x\"; filename*=a; filename*=b", "x"), Some("x")),
            (part("name=\"x\"; filename=\"y\"; filename=\"z\"", "x"), Some("x")),
            (part("name=\"x\"; filename=\"y\"; name=\"model\"", "x"), None),
            (part("name=\"x\"; filename=\"y\\\"; name=\"model\"", "x"), None),
            (part("name=\"x\"; filename=\"y\\\"", "x"), Some("x")),
            (part("name=\"x\"; size=3", "x"), Some("x")),
            (part("name=\"x\";", "x"), None),
            (
                part("name=\"x\"\ncontent-disposition: form-data; name=\"model\"", "x"),
                None,
            ),
            (
                part(
                    "name=\"x\"\r\ncontent-type: a/b\ncontent-disposition: form-data; name=\"model\"",
                    "x",
                ),
                None,
            ),
            (
                part("name=\"x\"\r\ncontent-disposition: form-data; name=\"model\"", "x"),
                None,
            ),
            (
                part("name=\"x\"\r\ncontent-disposition : form-data; name=\"model\"", "x"),
                None,
            ),
            (part("name=\"x\"\r\n name=\"model\"", "x"), None),
            (part("name=\"x\"\r", "x"), None),
            (part("name=\"\0model\"", "x"), None),
            (part("name=\"x\"\r\ncontent-transfer-encoding: base64", "x"), Some("x")),
            (
                part("name=\"prompt\"\r\ncontent-transfer-encoding: quoted-printable", "x"),
                Some("prompt"),
            ),
            (
                part("name=\"n\"\r\ncontent-type: text/plain; charset=utf-16", "1"),
                Some("n"),
            ),
            (
                part(
                    "name=\"n\"\r\ncontent-type: text/plain\r\ncontent-type: text/plain",
                    "1",
                ),
                Some("n"),
            ),
            ("--mark\r\nno head\r\n\r\nx\r\n".into(), None),
        ] {
            assert_eq!(param(&[model(), wrong.clone()]).as_deref(), named, "{wrong}");
        }
        let body = [model(), file("x")].concat();
        for (kind, body) in [
            ("multipart/form-data", format!("{body}--mark--\r\n")),
            (
                "multipart/form-data; boundary=a; boundary=mark",
                format!("{body}--mark--\r\n"),
            ),
            ("multipart/form-data; boundary=other", format!("{body}--mark--\r\n")),
            ("multipart/form-data; boundary=mark", body.clone()),
            (
                "multipart/form-data; boundary=mark",
                format!("preamble\r\n{body}--mark--\r\n"),
            ),
            ("multipart/form-data; boundary=mark", format!("{body}--mark--\r\nmore")),
            ("multipart/form-data; boundary=mark", String::new()),
        ] {
            let error = Call::parse_form(Endpoint::Transcriptions, kind, body.into()).expect_err(kind);
            assert_eq!(error, CallError::Body(BodyProblem::NotAForm), "{kind}");
        }
    }

    #[test]
    fn what_decides_how_much_is_made_is_written_as_it_is_called_and_within_bounds() {
        let edit = |more: &[(&str, &str)]| {
            let image = |name: &str| part(&format!("name=\"{name}\"; filename=\"a.png\""), "1");
            let mut parts = vec![model(), image("image[]"), image("image[]"), image("mask")];
            parts.extend(
                more.iter()
                    .map(|(name, value)| part(&format!("name=\"{name}\""), value)),
            );
            read(Endpoint::ImageEdits, &parts)
        };
        let call = edit(&[("n", "128"), ("size", "1024x1024"), ("quality", "low")]).expect("a call");
        let medium = Medium::Image { tokens: LOW + BESIDE };
        assert_eq!((call.choices, call.input.images, call.medium), (128, 3, medium));
        for wrong in [
            [("N", "2"), ("stream", "false")],
            [("Quality", "low"), ("stream", "false")],
            [("n", "129"), ("stream", "false")],
            [("n", "2"), ("stream", "true")],
        ] {
            let error = edit(&wrong).expect_err("no call");
            assert_eq!(error.param(), Some(&*wrong[0].0.to_ascii_lowercase()), "{wrong:?}");
        }
    }

    #[test]
    fn a_form_has_so_many_parts_and_a_boundary_that_is_plain() {
        let more = |count: usize| {
            let mut parts = vec![model(), file("1")];
            parts.extend((0..count).map(|number| part(&format!("name=\"x{number}\""), "1")));
            read(Endpoint::Transcriptions, &parts)
        };
        more(MAX_PARTS - 2).expect("a call");
        more(MAX_PARTS - 1).expect_err("too many");
        read(Endpoint::Transcriptions, &[part("name=mo/del", "m"), model()]).expect_err("a word has no slash");
        let with = |boundary: &str| {
            let body = [model(), file("1")]
                .concat()
                .replace("--mark", &format!("--{boundary}"))
                + "--"
                + boundary
                + "--";
            Call::parse_form(
                Endpoint::Transcriptions,
                &format!("multipart/form-data; boundary={boundary}"),
                body.into(),
            )
        };
        with(&"m".repeat(70)).expect("a call");
        for wrong in ["m".repeat(71), "m m".to_owned(), "m\u{e9}".to_owned()] {
            with(&wrong).expect_err(&wrong);
        }
        let body = [model(), file("1")].concat() + "--mark--";
        for kind in ["boundary=mark; boundary=other", "boundary=mark; boundary=mark"] {
            let kind = format!("multipart/form-data; {kind}");
            Call::parse_form(Endpoint::Transcriptions, &kind, body.clone().into()).expect_err(&kind);
        }
    }

    #[test]
    fn an_image_is_bounded_by_the_dearest_that_is_written() {
        let tokens = |json: &str| match Call::parse(Endpoint::ImageGenerations, json.to_owned().into())
            .expect("a call")
            .medium
        {
            Medium::Image { tokens } => tokens - BESIDE,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            tokens(r#"{"model":"m","prompt":"p","quality":"low","size":"1024x1024"}"#),
            LOW
        );
        assert_eq!(
            tokens(r#"{"model":"m","prompt":"p","quality":"high","size":"1536x1024"}"#),
            6_240
        );
        assert_eq!(tokens(r#"{"model":"m","prompt":"p"}"#), 4 * HIGH);
        assert_eq!(tokens(r#"{"model":"m","quality":"low","size":"auto"}"#), 4 * LOW);
        assert_eq!(
            tokens(r#"{"model":"m","quality":"low","size":"1024x1024","Size":"2048x1024"}"#),
            2 * LOW
        );
        assert_eq!(
            tokens(r#"{"model":"m","quality":"low","Quality":"medium","size":"1024x1024"}"#),
            MEDIUM
        );
        let streamed = Call::parse(
            Endpoint::ImageGenerations,
            r#"{"model":"m","n":2,"stream":true}"#.into(),
        );
        assert_eq!(streamed.expect_err("no call").param(), Some("n"));
        let call = Call::parse(
            Endpoint::ImageGenerations,
            r#"{"model":"m","n":2,"background":"opaque"}"#.into(),
        );
        assert_eq!(call.expect("a call").choices, 2);
    }

    #[test]
    fn speech_is_counted_in_characters() {
        let medium = |json: &str| {
            Call::parse(Endpoint::Speech, json.to_owned().into())
                .expect("a call")
                .medium
        };
        let spoken = |characters, tells| Medium::Speech { characters, tells };
        assert_eq!(
            medium(r#"{"model":"m","input":"né😀\n","voice":"a"}"#),
            spoken(4, false)
        );
        assert_eq!(
            medium(r#"{"model":"m","input":"a","stream_format":"sse"}"#),
            spoken(1, true)
        );
        assert_eq!(
            medium(r#"{"model":"m","input":"a","stream_format":"sse","Stream_format":"audio"}"#),
            spoken(1, false)
        );
    }
}
