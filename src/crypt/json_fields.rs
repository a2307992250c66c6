//! The fields of a JSON object, as text, in the order of the file.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::crypt::errors::KeyError;

/// Names and values of an object. The values are parts of the text that was read, so that no secret is copied.
pub(super) struct JsonFields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> JsonFields<'a> {
    /// Reads an object. A repeated name is refused: readers would disagree on which one counts (H178).
    pub(super) fn parse(json: &'a [u8]) -> Result<Self, KeyError> {
        serde_json::from_slice(json).map_err(|_| KeyError::Damaged("it is not a JSON object"))
    }

    /// Removes a field. One that is `null` counts as missing.
    pub(super) fn take(&mut self, name: &str) -> Option<JsonValue<'a>> {
        let at = self.0.iter().position(|(found, _)| found == name)?;
        let (_, value) = self.0.remove(at);
        Some(JsonValue(value.get())).filter(|value| value.0 != "null")
    }

    /// The one field of an object that has no others.
    pub(super) fn into_only(mut self) -> Option<(String, JsonValue<'a>)> {
        let (name, value) = self.0.pop().filter(|_| self.0.is_empty())?;
        Some((name, JsonValue(value.get())))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields as they are written into an object, each after a comma.
    pub(super) fn to_text(&self) -> String {
        let field = |(name, value): &(String, &RawValue)| format!(",{}:{}", quoted(name), value.get());
        self.0.iter().map(field).collect()
    }
}

/// The text of a value.
#[derive(Clone, Copy)]
pub(super) struct JsonValue<'a>(&'a str);

impl<'a> JsonValue<'a> {
    pub(super) fn as_bytes(self) -> &'a [u8] {
        self.0.as_bytes()
    }

    pub(super) fn to_number(self) -> Option<u64> {
        serde_json::from_str(self.0).ok()
    }

    pub(super) fn to_text(self) -> Option<String> {
        serde_json::from_str(self.0).ok()
    }

    /// The contents of a string without escapes, which stay where they are.
    pub(super) fn as_plain_str(self) -> Option<&'a str> {
        self.0.strip_prefix('"')?.strip_suffix('"').filter(|text| !text.contains('\\'))
    }
}

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    // Serialising a string cannot fail.
    serde_json::to_string(text).unwrap_or_default()
}

impl<'de> Deserialize<'de> for JsonFields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = JsonFields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<JsonFields<'de>, A::Error> {
        let mut fields: Vec<(String, &RawValue)> = Vec::new();
        while let Some(name) = entries.next_key()? {
            if fields.iter().any(|(found, _)| *found == name) {
                return Err(A::Error::custom("a repeated name"));
            }
            fields.push((name, entries.next_value()?));
        }
        Ok(JsonFields(fields))
    }
}
