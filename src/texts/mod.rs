//! What the gateway says to people, in English and in Chinese.
//!
//! A text is written once, by [`said!`](crate::said). Numbers, money, names and commands are the same in both. Headers are
//! ASCII, hence English.

mod explanation;
mod refusal;
mod request;
mod stream;

pub use crate::language::{Language, Said};
pub use explanation::{Explanation, Labels, again, charged, explain, statuses};
pub use refusal::{message, promo};
pub use stream::{broke_off, restarted, unread};

/// A text as one word of a shell. Clients choose names of models, and operators paste the command that has one in it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:+@".contains(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
