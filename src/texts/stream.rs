//! What is said at the end of a stream that did not end well.

use super::{Language, Said};
use crate::said;

/// The upstream broke off.
pub fn broke_off(language: Language) -> Said {
    said!(
        language,
        en: "The upstream's answer broke off. What was delivered is charged.",
        zh: "上游的回答中断了。已送达的部分已计费。",
    )
}

/// A part of what the upstream sent is not what it speaks.
pub fn unread(language: Language) -> Said {
    said!(
        language,
        en: "A part of the upstream's answer could not be read. What was delivered is charged.",
        zh: "上游回答的一部分无法读取。已送达的部分已计费。",
    )
}

/// The gateway stops.
pub fn restarted(language: Language) -> Said {
    said!(
        language,
        en: "The gateway is being restarted. What was delivered is charged.",
        zh: "网关正在重启。已送达的部分已计费。",
    )
}
