//! A form that is still arriving: what is known of the call when its first file begins, and the most that it may come to.
//!
//! OpenAI's clients put the fields of a form before its files. So when the first file begins, what chooses the upstream and
//! the price is here, and what is missing is bounded by its length: [`Begun::most`] is the call that money can be set aside
//! for. It is a bound of what forms hold, not of what they may hold: a field that comes behind the file, more images than
//! are thought of, or a recording that is packed more densely than sound is may be more. So the form is read again when all
//! of it is here, as any other ([`Call::parse_form`]), and that is what it is billed by.

use bytes::Bytes;

use super::media::{self, Head, MAX_PART_HEAD, boundary};
use super::{Call, Endpoint, Length, Medium};

/// Of the first file so much has to be here: in it the head of a WAV says how long a second is.
const BEGINNING: usize = 256;

/// Fields before the first file take no more: 32,000 characters of a prompt, and others.
const MOST_BEFORE: usize = 160 * 1024;

/// Text that may come behind the first file, in bytes.
const TEXT_BEHIND: u64 = 4_096;

/// Images in a form that names its first `image[]`: the most that OpenAI takes.
const IMAGES: u64 = 16;

/// And in another one: the image and its mask.
const IMAGE_AND_MASK: u64 = 2;

/// Looks for the first file of a form while it comes. What it has looked at is not looked at again.
#[derive(Debug)]
pub struct Opening {
    endpoint: Endpoint,
    content_type: String,
    /// `--boundary`, behind the end of a line.
    mark: Vec<u8>,
    /// Behind the last mark that was found; 0: before the first.
    at: usize,
    /// From here on the next mark is looked for, once the head of a part is read.
    content: Option<usize>,
}

/// What is known of a form whose first file begins.
#[derive(Clone, Debug)]
pub struct Begun {
    /// What is here, as a call of its own: its body is what stands before the content of the file.
    pub call: Call,
    /// The most that the whole form may come to.
    pub most: Call,
    /// What ends the form; nothing of it, and nothing behind it, may be sent before the form is read whole.
    pub closing: Vec<u8>,
}

/// What the beginning of a form shows.
#[derive(Debug)]
pub enum Shown {
    /// Not enough.
    Little,
    /// Nothing that could be relied on: all of it has to be here first.
    Nothing,
    /// Its first file begins.
    File(Box<Begun>),
}

impl Opening {
    /// Of a form; `None` where its content type names no boundary.
    pub fn of(endpoint: Endpoint, content_type: &str) -> Option<Opening> {
        let boundary = boundary(content_type)?;
        Some(Opening {
            endpoint,
            content_type: content_type.to_owned(),
            mark: format!("\r\n--{boundary}").into_bytes(),
            at: 0,
            content: None,
        })
    }

    /// What all that has come of a form of this length shows. Each time it is given more of the same.
    pub fn look(&mut self, came: &[u8], length: usize) -> Shown {
        if came.len() >= length {
            return Shown::Nothing;
        }
        match self.file(came) {
            Ok(None) if came.len() > MOST_BEFORE => Shown::Nothing,
            Ok(None) => Shown::Little,
            Ok(Some(file)) if came.len() < file + BEGINNING => Shown::Little,
            Ok(Some(file)) => self
                .begun(came, file, length)
                .map_or(Shown::Nothing, |begun| Shown::File(Box::new(begun))),
            Err(NoForm) => Shown::Nothing,
        }
    }

    /// Where the content of the first file begins.
    fn file(&mut self, came: &[u8]) -> Result<Option<usize>, NoForm> {
        if self.at == 0 {
            let first = &self.mark[2..];
            let here = first.len().min(came.len());
            if came[..here] != first[..here] {
                return Err(NoForm);
            }
            if here < first.len() {
                return Ok(None);
            }
            self.at = here;
        }
        loop {
            match self.content {
                None => match head(&came[self.at..])? {
                    None => return Ok(None),
                    Some((head, length)) if head.is_file => return Ok(Some(self.at + length)),
                    Some((_, length)) => self.content = Some(self.at + length),
                },
                Some(from) => {
                    let Some(end) = memchr::memmem::find(&came[from..], &self.mark) else {
                        // The mark may have begun.
                        let open = came.len().saturating_sub(self.mark.len());
                        self.content = Some(from.max(open));
                        return Ok(None);
                    };
                    (self.at, self.content) = (from + end + self.mark.len(), None);
                }
            }
        }
    }

    /// The call that is here, read as a form that ends with the beginning of its file.
    fn begun(&self, came: &[u8], file: usize, length: usize) -> Option<Begun> {
        let closing = [&self.mark, &b"--"[..]].concat();
        let ended: Bytes = [&came[..file], &closing].concat().into();
        let mut call = media::form(self.endpoint, &self.content_type, &ended).ok()?;
        call.body = ended.slice(..file);
        let mut most = call.clone();
        let rest = u64::try_from(length - file).ok()?;
        match &mut most.medium {
            Medium::Sound { length, .. } => *length = Length::of_beginning(&came[file..], rest),
            _ => most.input.images = self.images(&came[..file]),
        }
        most.input.text_bytes = most.input.text_bytes.saturating_add(TEXT_BEHIND.min(rest));
        Some(Begun { call, most, closing })
    }

    fn images(&self, before: &[u8]) -> u64 {
        let several =
            head(&before[self.at..]).is_ok_and(|head| head.is_some_and(|(head, _)| head.name.ends_with("[]")));
        if several { IMAGES } else { IMAGE_AND_MASK }
    }
}

/// It cannot be told, or is no form.
struct NoForm;

/// The head of the part behind a mark, and the length of it; `None`: it is not all here.
fn head(behind: &[u8]) -> Result<Option<(Head, usize)>, NoForm> {
    let here = behind.len().min(2);
    if behind[..here] != b"\r\n"[..here] {
        return Err(NoForm);
    }
    let part = &behind[here..];
    let within = &part[..part.len().min(MAX_PART_HEAD)];
    let Some(end) = memchr::memmem::find(within, b"\r\n\r\n") else {
        return if part.len() < MAX_PART_HEAD {
            Ok(None)
        } else {
            Err(NoForm)
        };
    };
    let text = std::str::from_utf8(&part[..end]).map_err(|_| NoForm)?;
    let head = Head::read(text).map_err(|_| NoForm)?;
    Ok(Some((head, here + end + 4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "multipart/form-data; boundary=mark";

    fn part(head: &str, content: &str) -> String {
        format!("--mark\r\ncontent-disposition: form-data; {head}\r\n\r\n{content}\r\n")
    }

    fn field(name: &str, value: &str) -> String {
        part(&format!("name=\"{name}\""), value)
    }

    fn file(name: &str, content: &str) -> String {
        part(&format!("name=\"{name}\"; filename=\"a\""), content)
    }

    fn form(parts: &[String]) -> String {
        parts.concat() + "--mark--\r\n"
    }

    /// What is shown of a form that comes in pieces of so many bytes, and how much of it had come by then.
    fn shown(endpoint: Endpoint, form: &str, piece: usize) -> Option<(Begun, usize)> {
        let mut opening = Opening::of(endpoint, KIND).expect("a boundary");
        let mut came = 0;
        loop {
            came = (came + piece).min(form.len());
            match opening.look(&form.as_bytes()[..came], form.len()) {
                Shown::Little => {}
                Shown::Nothing => return None,
                Shown::File(begun) => return Some((*begun, came)),
            }
        }
    }

    #[test]
    fn a_form_is_known_when_its_file_begins_however_it_comes() {
        let sound = "x".repeat(5_000);
        let parts = [
            field("model", "whisper-1"),
            field("prompt", "\r\n--mar\r\n--mar"),
            field("response_format", "verbose_json"),
            file("file", &sound),
        ];
        let form = form(&parts);
        let before = form.find("xxx").expect("the file");
        for piece in [1, 7, 100, 1_000] {
            let (begun, came) = shown(Endpoint::Translations, &form, piece).expect("a file");
            assert!(
                came >= before + BEGINNING && came < before + BEGINNING + piece,
                "{piece}: {came}"
            );
            assert_eq!(begun.call.body, form[..before]);
            assert_eq!(
                (begun.call.model.as_str(), begun.closing.as_slice()),
                ("whisper-1", &b"\r\n--mark--"[..])
            );
            let rest = u64::try_from(form.len() - before).expect("a number");
            let length = Length::by_bytes(rest);
            assert_eq!(begun.most.medium, Medium::Sound { length, tells: true });
            let whole = Call::parse_form(Endpoint::Translations, KIND, form.clone().into()).expect("a form");
            assert_eq!(
                whole.medium,
                Medium::Sound {
                    length: Length::by_bytes(5_000),
                    tells: true
                }
            );
            assert!(begun.most.input.text_bytes >= whole.input.text_bytes);
            assert_eq!(begun.call.input, whole.input, "the limits count what is here");
        }
    }

    #[test]
    fn what_cannot_be_told_before_the_end_is_not() {
        let sound = "x".repeat(5_000);
        let (model, sound) = (field("model", "whisper-1"), file("file", &sound));
        for parts in [
            vec![sound.clone(), model.clone()],
            vec![field("Model", "whisper-1"), sound.clone()],
            vec![model.clone(), model.clone(), sound.clone()],
            vec![model.clone(), field("stream", "perhaps"), sound.clone()],
            vec![model.clone(), part("name=\"a", ""), sound.clone()],
            vec![
                model.clone(),
                part(&format!("name=\"{}\"", "a".repeat(5_000)), ""),
                sound.clone(),
            ],
            vec![model.clone(), field("prompt", &"a".repeat(MOST_BEFORE)), sound.clone()],
            vec![model.clone(), field("prompt", "no file")],
            vec![model.clone(), file("file", "short")],
        ] {
            let form = form(&parts);
            assert!(shown(Endpoint::Transcriptions, &form, 64).is_none(), "{:.200}", form);
        }
        let preamble = format!("before\r\n{}", form(&[model, sound]));
        assert!(shown(Endpoint::Transcriptions, &preamble, 64).is_none());
        assert!(Opening::of(Endpoint::Transcriptions, "multipart/form-data").is_none());
    }

    #[test]
    fn images_are_bounded_by_what_the_first_is_called() {
        let png = "x".repeat(1_000);
        for (name, images) in [("image", 2), ("image[]", 16)] {
            let form = form(&[field("model", "gpt-image-1"), field("n", "2"), file(name, &png)]);
            let (begun, _) = shown(Endpoint::ImageEdits, &form, 64).expect("a file");
            assert_eq!((begun.call.input.images, begun.most.input.images), (1, images));
            assert_eq!((begun.most.choices, begun.most.medium), (2, begun.call.medium));
        }
    }
}
