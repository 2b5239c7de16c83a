//! JSON as it is written, looked at member by member, so that what is passed on keeps its order and its numbers.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The members of an object. Of two of one name the later one counts.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Object<'a>(#[serde(borrow)] BTreeMap<String, &'a RawValue>);

impl<'a> Object<'a> {
    /// The object that `json` is, if it is one.
    pub(super) fn read(json: &'a str) -> Option<Object<'a>> {
        serde_json::from_str(json).ok()
    }

    /// The JSON of a member; `null` is none.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied().filter(|value| value.get() != "null")
    }

    /// The members that are there.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        let there = self.0.iter().filter(|(_, value)| value.get() != "null");
        there.map(|(name, value)| (name.as_str(), *value))
    }

    /// The member, if it is a string.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        text(self.get(name)?)
    }

    /// Whether the member is `true`.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.get() == "true")
    }

    /// The member, if it is an object.
    pub(super) fn object(&self, name: &str) -> Option<Object<'a>> {
        Object::read(self.get(name)?.get())
    }

    /// The elements of the member, if it is a list.
    pub(super) fn list(&self, name: &str) -> Option<Vec<&'a RawValue>> {
        list(self.get(name)?)
    }
}

/// The string that a value is.
pub(super) fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The elements of the list that a value is.
pub(super) fn list(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}
