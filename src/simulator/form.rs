//! Forms: the parts of a `multipart/form-data` body, read the simplest way.

use bytes::Bytes;
use http::header::CONTENT_TYPE;

use super::Request;

/// One part.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) filename: Option<String>,
    pub(super) content: Bytes,
}

/// The parts of a request's form; none when it is no form.
pub(super) fn parts(request: &Request) -> Vec<Part> {
    let kind = request.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let boundary = kind.and_then(|kind| kind.split("boundary=").nth(1));
    let Some(boundary) = boundary.map(|boundary| boundary.trim_matches('"')) else {
        return Vec::new();
    };
    let (body, mark) = (&request.body, format!("--{boundary}"));
    let marks: Vec<usize> = memchr::memmem::find_iter(body, mark.as_bytes()).collect();
    let between = marks.windows(2).map(|pair| body.slice(pair[0] + mark.len()..pair[1]));
    between.filter_map(|part| read(&part)).collect()
}

fn read(part: &Bytes) -> Option<Part> {
    let end = memchr::memmem::find(part, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&part[..end]).into_owned();
    let value = |name: &str| {
        let from = head.find(name)? + name.len();
        head[from..].split('"').next().map(str::to_owned)
    };
    Some(Part {
        name: value(" name=\"")?,
        filename: value("filename=\""),
        content: part.slice(end + 4..part.len().saturating_sub(2).max(end + 4)),
    })
}
