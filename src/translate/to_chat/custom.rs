//! The text of a custom tool's call, out of the JSON arguments of the function it was made into, as they come.

use serde_json::Value;

/// The member that holds the text.
const MEMBER: &str = "input";

/// Reads `{"input": "…"}` piece by piece.
#[derive(Clone, Debug, Default)]
pub(super) struct Input {
    /// The arguments so far.
    json: String,
    /// Where in them the text goes on; `None`: it has not begun.
    at: Option<usize>,
    /// The text has ended.
    ended: bool,
    /// The text so far.
    pub(super) text: String,
}

impl Input {
    /// Takes in more of the arguments; what of the text is new.
    pub(super) fn push(&mut self, arguments: &str) -> String {
        self.json.push_str(arguments);
        if self.at.is_none() {
            self.at = begin(&self.json);
        }
        let mut new = String::new();
        while let (Some(at), false) = (self.at, self.ended) {
            let rest = &self.json[at..];
            match rest.as_bytes().first() {
                None => break,
                Some(b'"') => self.ended = true,
                Some(b'\\') => match escape(rest) {
                    Some((letters, length)) => {
                        new.push_str(&letters);
                        self.at = Some(at + length);
                    }
                    None => break,
                },
                Some(_) => {
                    let length = rest.find(['"', '\\']).unwrap_or(rest.len());
                    new.push_str(&rest[..length]);
                    self.at = Some(at + length);
                }
            }
        }
        self.text.push_str(&new);
        new
    }

    /// The arguments are whole: the rest of the text. A model that writes the text without the JSON around it means the
    /// same.
    pub(super) fn finish(&mut self) -> String {
        let whole = serde_json::from_str::<Value>(&self.json).ok();
        let whole = whole.and_then(|arguments| match arguments {
            Value::String(text) => Some(text),
            arguments => Some(arguments.get(MEMBER)?.as_str()?.to_owned()),
        });
        let whole = match (whole, self.at) {
            (Some(whole), _) => whole,
            (None, None) => self.json.clone(),
            // Cut off, in an escape perhaps.
            (None, Some(at)) => {
                let rest = match self.ended {
                    true => String::new(),
                    false => self.json[at..].to_owned(),
                };
                self.text.push_str(&rest);
                return rest;
            }
        };
        let rest = whole.strip_prefix(&*self.text).unwrap_or_default().to_owned();
        self.text.push_str(&rest);
        rest
    }
}

/// Where the text begins: behind the member's name, a colon and a quote, at the start of the arguments.
fn begin(json: &str) -> Option<usize> {
    let rest = json.trim_start().strip_prefix('{')?.trim_start();
    let rest = rest
        .strip_prefix('"')?
        .strip_prefix(MEMBER)?
        .strip_prefix('"')?
        .trim_start();
    let rest = rest.strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(json.len() - rest.len())
}

/// What an escape stands for, and how long it is; `None`: not all of it is there. A backslash that begins none stands for
/// itself.
fn escape(json: &str) -> Option<(String, usize)> {
    let bytes = json.as_bytes();
    let length = if bytes.get(1)? == &b'u' { 6 } else { 2 };
    let hex = &bytes[2..length.min(bytes.len())];
    if !hex.iter().all(u8::is_ascii_hexdigit) {
        return Some(("\\".to_owned(), 1));
    }
    if bytes.len() < length {
        return None;
    }
    if let Some(letters) = written(json, length) {
        return Some((letters, length));
    }
    if length == 2 {
        return Some(("\\".to_owned(), 1));
    }
    // Half of a character: the other half may follow.
    let rest = &bytes[length..];
    if bytes.len() < 12 && (rest.starts_with(b"\\u") || b"\\u".starts_with(rest)) {
        return None;
    }
    let whole = written(json, 12).map(|letters| (letters, 12));
    whole.or_else(|| Some((char::REPLACEMENT_CHARACTER.to_string(), length)))
}

/// What is written in so many bytes of a JSON string.
fn written(json: &str, length: usize) -> Option<String> {
    let written = json.get(..length)?;
    serde_json::from_str(&format!("\"{written}\"")).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&str]) -> (String, String) {
        let mut input = Input::default();
        let mut told: String = pieces.iter().map(|piece| input.push(piece)).collect();
        told.push_str(&input.finish());
        (told, input.text)
    }

    proptest! {
        #[test]
        fn the_text_is_told_piece_by_piece_whatever_the_cuts(text in any::<String>(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let json = serde_json::json!({"input": text}).to_string();
            let mut places: Vec<usize> = cuts.iter().map(|cut| json.floor_char_boundary(cut.index(json.len()))).collect();
            places.extend([0, json.len()]);
            places.sort_unstable();
            let pieces: Vec<&str> = places.windows(2).map(|ends| &json[ends[0]..ends[1]]).collect();
            prop_assert_eq!(read(&pieces), (text.clone(), text));
        }
    }

    #[test]
    fn a_text_without_json_around_it_is_the_text() {
        let patch = "*** Begin Patch\n*** End Patch";
        for written in [patch.to_owned(), serde_json::json!(patch).to_string()] {
            assert_eq!(read(&[&written]).1, patch);
        }
    }

    #[test]
    fn an_emoji_in_two_escapes_is_one_character() {
        assert_eq!(read(&[r#"{"input": "a\ud8"#, r#"3d\ude00b""#, "}"]).1, "a😀b");
        assert_eq!(read(&[r#"{"input":"a\ud83db"}"#]).1, "a\u{FFFD}b");
        assert_eq!(read(&[r#"{"input":"a\ud83d"}"#]).1, "a\u{FFFD}");
    }

    #[test]
    fn what_is_no_escape_stands_as_it_is_written() {
        for (json, text) in [
            (r#"{"input": "\d+ \"q\" \n"}"#, "\\d+ \"q\" \n"),
            (r#"{"input": "C:\users\文件 and more"}"#, "C:\\users\\文件 and more"),
            (r#"{"input": "\u文"}"#, "\\u文"),
            (r#"{"input": "\u1"}"#, "\\u1"),
            (r#"{"input": "a\u12"#, "a\\u12"),
        ] {
            let pieces: Vec<String> = json.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            for pieces in [&pieces[..], &[json]] {
                assert_eq!(read(pieces), (text.to_owned(), text.to_owned()), "{json}");
            }
        }
    }
}
