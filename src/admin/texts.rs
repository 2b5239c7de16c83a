//! What is said of an act that was not done: what happened, and what to do.

use super::error::{AmountOf, Forbidden, Taken, TextOf, Thing, Unusable};
use super::{LONGEST_NAME, LONGEST_TEXT, MOST_CODES};
use crate::language::{Language, Said};
use crate::said;
use crate::store::entries::MAX_BALANCE;

impl Thing {
    /// That there is none of this name.
    pub fn lacking(&self, name: &str, language: Language) -> Said {
        match self {
            Thing::User => said!(language, en: "there is no user '{name}'", zh: "没有用户 '{name}'"),
            Thing::Key => said!(language, en: "there is no key '{name}'", zh: "没有密钥 '{name}'"),
            Thing::Code => said!(language, en: "there is no code '{name}'", zh: "没有兑换码 '{name}'"),
            Thing::Request => said!(language, en: "there is no request '{name}'", zh: "没有请求 '{name}'"),
            Thing::Price { list: None } => said!(
                language,
                en: "there is no price for the model '{name}'",
                zh: "没有模型 '{name}' 的价格",
            ),
            Thing::Price { list: Some(list) } => said!(
                language,
                en: "there is no price for the model '{name}' in the list '{list}'",
                zh: "价目表 '{list}' 中没有模型 '{name}' 的价格",
            ),
            Thing::PriceList => said!(language, en: "there is no price list '{name}'", zh: "没有价目表 '{name}'"),
        }
    }

    /// That the name fits several.
    pub fn ambiguous(&self, name: &str, language: Language) -> Said {
        match self {
            Thing::User => said!(language, en: "'{name}' fits several users", zh: "'{name}' 与多个用户相符"),
            Thing::Key => said!(language, en: "'{name}' fits several keys", zh: "'{name}' 与多个密钥相符"),
            Thing::Code => said!(language, en: "'{name}' fits several codes", zh: "'{name}' 与多个兑换码相符"),
            Thing::Request => said!(language, en: "'{name}' fits several requests", zh: "'{name}' 与多个请求相符"),
            Thing::Price { .. } => said!(language, en: "'{name}' fits several prices", zh: "'{name}' 与多个价格相符"),
            Thing::PriceList => said!(
                language,
                en: "'{name}' fits several price lists",
                zh: "'{name}' 与多个价目表相符",
            ),
        }
    }

    /// The command that lists what there is.
    pub const fn lister(&self) -> &'static str {
        match self {
            Thing::User => "gateway user list",
            Thing::Key => "gateway key list",
            Thing::Code => "gateway code list",
            Thing::Request => "gateway request list",
            Thing::Price { .. } | Thing::PriceList => "gateway price list",
        }
    }
}

impl Taken {
    /// That there is one already.
    pub fn is_there(self, name: &str, language: Language) -> Said {
        match self {
            Taken::User => said!(language, en: "there is already a user '{name}'", zh: "已有用户 '{name}'"),
            Taken::Email => said!(
                language,
                en: "there is already a user with the address '{name}'",
                zh: "已有使用邮箱 '{name}' 的用户",
            ),
            Taken::Credit => said!(
                language,
                en: "there is already a different credit with the reference '{name}'",
                zh: "已有使用编号 '{name}' 的另一笔充值",
            ),
            Taken::Entry => said!(
                language,
                en: "there is already a different entry with the reference '{name}'",
                zh: "已有使用编号 '{name}' 的另一笔记录",
            ),
        }
    }

    /// What to do.
    pub fn fix(self, name: &str, language: Language) -> Said {
        match self {
            Taken::User => {
                said!(language, en: "see it: gateway user show {name}", zh: "查看：gateway user show {name}")
            }
            Taken::Email => said!(language, en: "use another one", zh: "请换一个"),
            Taken::Credit => said!(
                language,
                en: "use another --reference; the first one was credited",
                zh: "使用另一个 --reference；第一笔已入账",
            ),
            Taken::Entry => said!(
                language,
                en: "use another --reference; see what it is of: gateway ledger list USER",
                zh: "使用另一个 --reference；查看它属于哪一笔：gateway ledger list USER",
            ),
        }
    }
}

impl Forbidden {
    /// What is forbidden, and why.
    pub fn what(&self, language: Language) -> Said {
        match self {
            Forbidden::CreditLineInUse {
                credit_line,
                balance,
                held,
                ..
            } => said!(
                language,
                en: "of the credit line of {credit_line:#} more is in use: the balance is {balance:#}, and running calls hold {held:#}",
                zh: "信用额度 {credit_line:#} 中已使用的更多：余额是 {balance:#}，正在进行的调用占用 {held:#}",
            ),
            Forbidden::NegativeCredit { .. } => said!(language, en: "a credit is not negative", zh: "充值不能是负数"),
            Forbidden::BelowHeld { balance, held, .. } => said!(
                language,
                en: "the balance of {balance:#} would fall below what is held by running calls, {held:#}",
                zh: "余额 {balance:#} 会低于正在进行的调用所占用的 {held:#}",
            ),
            Forbidden::Running { request } => said!(
                language,
                en: "the request {request} is still running: nothing was charged for it yet",
                zh: "请求 {request} 仍在进行：尚未扣费",
            ),
            Forbidden::NothingCharged { request } => said!(
                language,
                en: "nothing was charged for the request {request}",
                zh: "请求 {request} 没有扣费",
            ),
            Forbidden::GivenBack { request } => said!(
                language,
                en: "all that was charged for the request {request} was given back before",
                zh: "请求 {request} 的扣费此前已全部退回",
            ),
            Forbidden::MoreThanLeft { request, left } => said!(
                language,
                en: "{left:#} is left of what was charged for the request {request}",
                zh: "请求 {request} 的扣费中还剩 {left:#} 可退",
            ),
            Forbidden::RefundTooLarge => said!(
                language,
                en: "the balance would become larger than {MAX_BALANCE:#}",
                zh: "余额会超过 {MAX_BALANCE:#}",
            ),
            Forbidden::Redeemed { code, user, .. } => said!(
                language,
                en: "the code {code} was redeemed by {user}",
                zh: "兑换码 {code} 已被 {user} 兑换",
            ),
            Forbidden::KeyOver { key, .. } => said!(
                language,
                en: "the key {key} is revoked, or was rotated",
                zh: "密钥 {key} 已吊销，或已轮换",
            ),
            Forbidden::NotRotated { key, .. } => said!(
                language,
                en: "the key {key} is revoked or expired, or has been rotated before",
                zh: "密钥 {key} 已吊销、已过期，或此前已轮换",
            ),
            Forbidden::PriceTwice => said!(language, en: "the prices were not written", zh: "价格未写入"),
        }
    }

    /// What to do instead.
    pub fn fix(&self, language: Language) -> Said {
        match self {
            Forbidden::CreditLineInUse { least, .. } => said!(
                language,
                en: "leave a credit line of at least {least}",
                zh: "信用额度至少保留 {least}",
            ),
            Forbidden::NegativeCredit { user, amount } => said!(
                language,
                en: "say that it is a correction: gateway user credit {user} {amount} --adjust",
                zh: "说明这是更正：gateway user credit {user} {amount} --adjust",
            ),
            Forbidden::BelowHeld { most: Some(most), .. } => {
                said!(language, en: "take out at most {most}", zh: "最多取出 {most}")
            }
            Forbidden::BelowHeld { most: None, .. } => said!(
                language,
                en: "nothing can be taken out now; a credit line is not paid out",
                zh: "现在无法取出；信用额度不能提现",
            ),
            Forbidden::Running { request } => said!(
                language,
                en: "wait until it has ended: gateway request show {request}",
                zh: "等它结束：gateway request show {request}",
            ),
            Forbidden::NothingCharged { request } | Forbidden::GivenBack { request } => said!(
                language,
                en: "see its receipt: gateway request show {request}",
                zh: "查看其收据：gateway request show {request}",
            ),
            Forbidden::MoreThanLeft { left, .. } => {
                said!(language, en: "give back at most {left}", zh: "最多退回 {left}")
            }
            Forbidden::RefundTooLarge => said!(language, en: "give back less", zh: "请少退一些"),
            Forbidden::Redeemed { user, amount, .. } => said!(
                language,
                en: "to take it back: gateway user credit {user} -{amount} --adjust",
                zh: "如需收回：gateway user credit {user} -{amount} --adjust",
            ),
            Forbidden::KeyOver { user, .. } => said!(
                language,
                en: "change the key in its place (gateway key list {user})",
                zh: "修改接替它的密钥（gateway key list {user}）",
            ),
            Forbidden::NotRotated { user, .. } => said!(
                language,
                en: "rotate the key in its place (gateway key list {user}), or issue another: gateway key issue {user}",
                zh: "轮换接替它的密钥（gateway key list {user}），或另外签发：gateway key issue {user}",
            ),
            Forbidden::PriceTwice => said!(
                language,
                en: "see that each model is there once",
                zh: "请确保每个模型只出现一次",
            ),
        }
    }
}

impl Unusable {
    /// What is wrong with it.
    pub fn what(&self, language: Language) -> Said {
        match self {
            Unusable::NoRandom { why } => said!(
                language,
                en: "the system gives no random bytes: {why}",
                zh: "系统没有给出随机字节：{why}",
            ),
            Unusable::UserNameLength => said!(
                language,
                en: "a user's name has 1 to {LONGEST_NAME} characters",
                zh: "用户名的长度为 1 到 {LONGEST_NAME} 个字符",
            ),
            Unusable::UserNameCharacters => said!(
                language,
                en: "a user's name has no spaces or control characters and starts with no hyphen",
                zh: "用户名不能含有空格或控制字符，也不能以连字符开头",
            ),
            Unusable::UserNameAt => said!(language, en: "a user's name holds no @", zh: "用户名不能含有 @"),
            Unusable::UserNameLikeId => said!(
                language,
                en: "this name looks like an id or a key",
                zh: "这个名称看起来像 ID 或密钥",
            ),
            Unusable::Email(email) => said!(
                language,
                en: "'{email}' is not an e-mail address",
                zh: "'{email}' 不是邮箱地址",
            ),
            Unusable::Text(TextOf::Reference) => {
                said!(language, en: "the reference cannot be used", zh: "无法使用此编号")
            }
            Unusable::Text(TextOf::Note) => said!(language, en: "the note cannot be used", zh: "无法使用此备注"),
            Unusable::Text(TextOf::KeyName) => {
                said!(language, en: "the key's name cannot be used", zh: "无法使用此密钥名称")
            }
            Unusable::Amount {
                what: AmountOf::Balance,
                amount,
            } => said!(
                language,
                en: "a balance of {amount:#} cannot be given",
                zh: "余额不能是 {amount:#}",
            ),
            Unusable::Amount {
                what: AmountOf::CreditLine,
                amount,
            } => said!(
                language,
                en: "a credit line of {amount:#} cannot be given",
                zh: "信用额度不能是 {amount:#}",
            ),
            Unusable::BudgetTwice(period) => said!(
                language,
                en: "the budget for {period} is given twice",
                zh: "{period} 的预算给出了两次",
            ),
            Unusable::ZeroCredit => said!(language, en: "zero is no amount to credit", zh: "充值金额不能是零"),
            Unusable::BalanceTooLarge { balance } => said!(
                language,
                en: "the balance of {balance:#} would become too large",
                zh: "余额 {balance:#} 会变得过大",
            ),
            Unusable::ZeroRefund => said!(language, en: "a refund is more than zero", zh: "退款必须大于零"),
            Unusable::CodeAmount(amount) => said!(
                language,
                en: "a code cannot be worth {amount:#}",
                zh: "兑换码的面额不能是 {amount:#}",
            ),
            Unusable::CodeCount(count) => said!(
                language,
                en: "{count} codes cannot be made at once",
                zh: "不能一次制作 {count} 个兑换码",
            ),
            Unusable::CodesExpired => said!(
                language,
                en: "the codes would already be expired",
                zh: "这些兑换码一开始就已过期",
            ),
            Unusable::NewKeyExpired | Unusable::KeyExpired => {
                said!(language, en: "the key would already be expired", zh: "此密钥一开始就已过期")
            }
            Unusable::NoPattern => said!(language, en: "'' is not a pattern of models", zh: "'' 不是模型的模式"),
        }
    }

    /// What would be right.
    pub fn fix(&self, language: Language) -> Said {
        match self {
            Unusable::NoRandom { .. } => said!(language, en: "try again", zh: "请重试"),
            Unusable::UserNameLength | Unusable::UserNameCharacters | Unusable::UserNameLikeId => said!(
                language,
                en: "use a handle like alice or team-blue",
                zh: "请使用 alice 或 team-blue 这样的名称",
            ),
            Unusable::UserNameAt => said!(
                language,
                en: "put the address into --email",
                zh: "请把邮箱写在 --email 中",
            ),
            Unusable::Email(_) => said!(
                language,
                en: "write it like alice@example.com",
                zh: "请写成 alice@example.com 这样",
            ),
            Unusable::Text(_) => said!(
                language,
                en: "use 1 to {LONGEST_TEXT} characters, no control characters",
                zh: "请使用 1 到 {LONGEST_TEXT} 个字符，不含控制字符",
            ),
            Unusable::Amount { .. } => said!(
                language,
                en: "write an amount like 5 or 0.25, from 0 to {MAX_BALANCE}",
                zh: "请写 5 或 0.25 这样的金额，从 0 到 {MAX_BALANCE}",
            ),
            Unusable::BudgetTwice(_) => said!(
                language,
                en: "name each of total, day and month once",
                zh: "total、day 和 month 各写一次",
            ),
            Unusable::ZeroCredit => said!(
                language,
                en: "write an amount like 5 or 0.25",
                zh: "请写 5 或 0.25 这样的金额",
            ),
            Unusable::BalanceTooLarge { balance } => said!(
                language,
                en: "credit at most {most}",
                zh: "最多充值 {most}",
                most = MAX_BALANCE.saturating_sub(*balance),
            ),
            Unusable::ZeroRefund => said!(
                language,
                en: "write an amount like 5 or 0.25, or none for all that is left",
                zh: "请写 5 或 0.25 这样的金额；不写则退回剩余的全部",
            ),
            Unusable::CodeAmount(_) => said!(
                language,
                en: "write an amount like 5 or 0.25, up to {MAX_BALANCE}",
                zh: "请写 5 或 0.25 这样的金额，最多 {MAX_BALANCE}",
            ),
            Unusable::CodeCount(_) => said!(
                language,
                en: "write a count from 1 to {MOST_CODES}",
                zh: "请写 1 到 {MOST_CODES} 的数量",
            ),
            Unusable::CodesExpired => said!(
                language,
                en: "give a time to come: --expires 90d",
                zh: "请给出将来的时间：--expires 90d",
            ),
            Unusable::NewKeyExpired => said!(
                language,
                en: "give a time to come: --expires 30d",
                zh: "请给出将来的时间：--expires 30d",
            ),
            Unusable::KeyExpired => said!(
                language,
                en: "give a time to come, or revoke it: gateway key revoke KEY",
                zh: "请给出将来的时间，或吊销它：gateway key revoke KEY",
            ),
            Unusable::NoPattern => said!(
                language,
                en: "write a name, or a pattern such as 'gpt-*'",
                zh: "请写名称，或 'gpt-*' 这样的模式",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::budget::Period;
    use crate::language::agreement::{agree, samples};
    use crate::money::Usd;
    use crate::pricing::ListName;

    /// Insists that both languages say the same, and name what is given.
    fn check(told: impl Fn(Language) -> Said, says: &str) {
        let [en, zh] = Language::ALL.map(told);
        agree(&en, &zh);
        assert!(en.contains(says) && zh.contains(says), "{says}: {en} / {zh}");
    }

    #[test]
    fn what_is_not_there_or_there_already_is_told_in_every_language() {
        let things = samples!(Thing {
            Thing::User => (Thing::User, ""),
            Thing::Key => (Thing::Key, ""),
            Thing::Code => (Thing::Code, ""),
            Thing::Request => (Thing::Request, ""),
            Thing::Price { .. } => (Thing::Price { list: Some(ListName::openai()) }, "'openai'"),
            Thing::PriceList => (Thing::PriceList, ""),
        });
        for (thing, says) in things.into_iter().chain([(Thing::Price { list: None }, "")]) {
            check(|language| thing.lacking("gpt-9", language), "'gpt-9'");
            check(|language| thing.lacking("gpt-9", language), says);
            check(|language| thing.ambiguous("gpt-9", language), "'gpt-9'");
        }
        for taken in samples!(Taken {
            Taken::User => Taken::User,
            Taken::Email => Taken::Email,
            Taken::Credit => Taken::Credit,
            Taken::Entry => Taken::Entry,
        }) {
            check(|language| taken.is_there("pay-7", language), "'pay-7'");
            check(|language| taken.fix("pay-7", language), "");
        }
    }

    #[test]
    fn what_a_rule_forbids_is_told_in_every_language() {
        let [five, two] = [5, 2].map(|usd| Usd::from_nanos(usd * 1_000_000_000));
        let (request, user, key) = (Uuid::nil(), || "alice".to_owned(), || "sk-gw-x".to_owned());
        let held = |most| Forbidden::BelowHeld {
            balance: five,
            held: two,
            most,
        };
        let all = samples!(Forbidden {
            Forbidden::CreditLineInUse { .. } => (
                Forbidden::CreditLineInUse { credit_line: five, balance: Usd::ZERO, held: two, least: two },
                "$5.00",
                "2",
            ),
            Forbidden::NegativeCredit { .. } => (
                Forbidden::NegativeCredit { user: user(), amount: Usd::ZERO.saturating_sub(two) },
                "",
                "gateway user credit alice -2 --adjust",
            ),
            Forbidden::BelowHeld { .. } => (held(Some(two)), "$2.00", "2"),
            Forbidden::Running { .. } => (Forbidden::Running { request: "0190".into() }, "0190", "gateway request show 0190"),
            Forbidden::NothingCharged { .. } => (Forbidden::NothingCharged { request }, "00000000-", "gateway request show 0"),
            Forbidden::GivenBack { .. } => (Forbidden::GivenBack { request }, "00000000-", "gateway request show 0"),
            Forbidden::MoreThanLeft { .. } => (Forbidden::MoreThanLeft { request, left: two }, "$2.00", "2"),
            Forbidden::RefundTooLarge => (Forbidden::RefundTooLarge, "$", ""),
            Forbidden::Redeemed { .. } => (
                Forbidden::Redeemed { code: "GW-X".into(), user: user(), amount: two },
                "GW-X",
                "gateway user credit alice -2 --adjust",
            ),
            Forbidden::KeyOver { .. } => (
                Forbidden::KeyOver { key: key(), user: user() },
                "sk-gw-x",
                "gateway key list alice",
            ),
            Forbidden::NotRotated { .. } => (
                Forbidden::NotRotated { key: key(), user: user() },
                "sk-gw-x",
                "gateway key issue alice",
            ),
            Forbidden::PriceTwice => (Forbidden::PriceTwice, "", ""),
        });
        for (forbidden, what, fix) in all.into_iter().chain([(held(None), "$5.00", "")]) {
            check(|language| forbidden.what(language), what);
            check(|language| forbidden.fix(language), fix);
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_in_every_language() {
        let two = Usd::from_nanos(2_000_000_000);
        let amounts = samples!(AmountOf {
            AmountOf::Balance => AmountOf::Balance,
            AmountOf::CreditLine => AmountOf::CreditLine,
        });
        let amounts = amounts.map(|what| (Unusable::Amount { what, amount: two }, "$2.00"));
        let texts = samples!(TextOf {
            TextOf::Reference => TextOf::Reference,
            TextOf::Note => TextOf::Note,
            TextOf::KeyName => TextOf::KeyName,
        });
        let texts = texts.map(|text| (Unusable::Text(text), ""));
        let all = samples!(Unusable {
            Unusable::NoRandom { .. } => (Unusable::NoRandom { why: "ENOSYS 38".into() }, "ENOSYS 38"),
            Unusable::UserNameLength => (Unusable::UserNameLength, "64"),
            Unusable::UserNameCharacters => (Unusable::UserNameCharacters, ""),
            Unusable::UserNameAt => (Unusable::UserNameAt, "@"),
            Unusable::UserNameLikeId => (Unusable::UserNameLikeId, ""),
            Unusable::Email(_) => (Unusable::Email("x".into()), "'x'"),
            Unusable::Text(_) => (Unusable::Text(TextOf::Note), ""),
            Unusable::Amount { .. } => (Unusable::Amount { what: AmountOf::Balance, amount: two }, "$2.00"),
            Unusable::BudgetTwice(_) => (Unusable::BudgetTwice(Period::Day), "day"),
            Unusable::ZeroCredit => (Unusable::ZeroCredit, ""),
            Unusable::BalanceTooLarge { .. } => (Unusable::BalanceTooLarge { balance: two }, "$2.00"),
            Unusable::ZeroRefund => (Unusable::ZeroRefund, ""),
            Unusable::CodeAmount(_) => (Unusable::CodeAmount(two), "$2.00"),
            Unusable::CodeCount(_) => (Unusable::CodeCount(10_001), "10001"),
            Unusable::CodesExpired => (Unusable::CodesExpired, ""),
            Unusable::NewKeyExpired => (Unusable::NewKeyExpired, ""),
            Unusable::KeyExpired => (Unusable::KeyExpired, ""),
            Unusable::NoPattern => (Unusable::NoPattern, "''"),
        });
        for (unusable, says) in all.into_iter().chain(amounts).chain(texts) {
            check(|language| unusable.what(language), says);
            check(|language| unusable.fix(language), "");
        }
    }
}
