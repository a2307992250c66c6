//! JSON values with strict parsing and one way of writing.
//!
//! Objects are sorted maps of this crate, so output does not depend on the features of `serde_json` that another
//! crate of the program enables.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

pub(super) type Object = BTreeMap<String, Json>;

/// A JSON value. Integers that need more than 64 bits become the nearest float.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Array(Vec<Self>),
    Bool(bool),
    Float(f64),
    Negative(i64),
    Null,
    Object(Object),
    String(String),
    Unsigned(u64),
}

/// Reason why bytes are not an accepted JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JsonError {
    /// An object contains a key twice: readers would disagree on which one counts (H178).
    DuplicateKey,
    /// Not JSON, not UTF-8, or nested deeper than 128 levels.
    Syntax { line: usize, column: usize },
}

impl Json {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        serde_json::from_slice(bytes).map_err(|error| {
            // The visitor accepts values of every type; it refuses duplicate keys and numbers out of range.
            if error.is_data() && error.to_string().starts_with(DUPLICATE) {
                JsonError::DuplicateKey
            } else {
                JsonError::Syntax { line: error.line(), column: error.column() }
            }
        })
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer from 0 to 2^63 − 1, which every reader can hold.
    pub(super) fn as_size(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) if i64::try_from(*number).is_ok() => Some(*number),
            _ => None,
        }
    }

    /// The value without white space, keys in byte order. Source: PBS datastore format §6.5.
    pub(super) fn compact(&self) -> String {
        format!("{self}")
    }

    /// The value over several lines, two spaces per level, keys in byte order.
    pub(super) fn pretty(&self) -> String {
        format!("{self:#}")
    }

    /// `indent`: nesting level of this value, or `None` for a single line.
    fn write(&self, f: &mut fmt::Formatter<'_>, indent: Option<usize>) -> fmt::Result {
        let inner = indent.map(|level| level + 1);
        match self {
            Self::Array(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    start_item(f, at, inner)?;
                    item.write(f, inner)?;
                }
                end_items(f, items.is_empty(), indent)?;
                f.write_str("]")
            }
            Self::Bool(value) => write!(f, "{value}"),
            // Unlike Display, Debug always marks a float as one, and uses exponents for huge values.
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Negative(value) => write!(f, "{value}"),
            Self::Null => f.write_str("null"),
            Self::Object(object) => {
                f.write_str("{")?;
                for (at, (key, value)) in object.iter().enumerate() {
                    start_item(f, at, inner)?;
                    write_string(f, key)?;
                    f.write_str(if indent.is_some() { ": " } else { ":" })?;
                    value.write(f, inner)?;
                }
                end_items(f, object.is_empty(), indent)?;
                f.write_str("}")
            }
            Self::String(text) => write_string(f, text),
            Self::Unsigned(value) => write!(f, "{value}"),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, f.alternate().then_some(0))
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Self {
        Self::Unsigned(number)
    }
}

fn start_item(f: &mut fmt::Formatter<'_>, at: usize, indent: Option<usize>) -> fmt::Result {
    if at > 0 {
        f.write_str(",")?;
    }
    new_line(f, indent)
}

fn end_items(f: &mut fmt::Formatter<'_>, empty: bool, indent: Option<usize>) -> fmt::Result {
    if empty { Ok(()) } else { new_line(f, indent) }
}

fn new_line(f: &mut fmt::Formatter<'_>, indent: Option<usize>) -> fmt::Result {
    let Some(level) = indent else {
        return Ok(());
    };
    f.write_str("\n")?;
    (0..level).try_for_each(|_| f.write_str("  "))
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\u{8}' => f.write_str("\\b")?,
            '\t' => f.write_str("\\t")?,
            '\n' => f.write_str("\\n")?,
            '\u{c}' => f.write_str("\\f")?,
            '\r' => f.write_str("\\r")?,
            '\0'..='\u{1f}' => write!(f, "\\u{:04x}", u32::from(c))?,
            _ => f.write_char(c)?,
        }
    }
    f.write_str("\"")
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(u64::try_from(value).map_or(Json::Negative(value), Json::Unsigned))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Object::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.is_empty() && key == NUMBER {
                let text: String = entries.next_value()?;
                return number(&text).ok_or_else(|| A::Error::custom("a number out of range"));
            }
            if object.insert(key, entries.next_value()?).is_some() {
                return Err(A::Error::custom(DUPLICATE));
            }
        }
        Ok(Json::Object(object))
    }
}

fn number(text: &str) -> Option<Json> {
    if let Ok(value) = text.parse() {
        return Some(Json::Unsigned(value));
    }
    if let Ok(value) = text.parse() {
        return Some(Json::Negative(value));
    }
    text.parse().ok().filter(|value: &f64| value.is_finite()).map(Json::Float)
}

const DUPLICATE: &str = "duplicate key";
/// The form in which `serde_json` yields numbers if any crate of the program enables `arbitrary_precision`.
const NUMBER: &str = "$serde_json::private::Number";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Json, JsonError> {
        Json::parse(text.as_bytes())
    }

    #[test]
    fn numbers_are_read_in_every_form_of_serde_json() {
        for (text, number) in
            [("12", Json::Unsigned(12)), ("-7", Json::Negative(-7)), ("1.5", Json::Float(1.5))]
        {
            let wrapped = format!(r#"{{"$serde_json::private::Number":"{text}"}}"#);
            assert_eq!(parse(&wrapped), Ok(number.clone()), "{text}");
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        assert!(parse(r#"{"$serde_json::private::Number":"1e999"}"#).is_err());
        assert_eq!(parse("2.2222222222222225e23").unwrap().compact(), "2.2222222222222225e23");
    }

    /// Proves H178.
    #[test]
    fn a_repeated_key_is_refused_at_every_level() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            assert_eq!(parse(text), Err(JsonError::DuplicateKey), "{text}");
        }
        assert!(parse(r#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn malformed_json_is_refused() {
        let deep = "[".repeat(100_000);
        for text in
            ["", "{", "{} {}", "nul", "[1,]", "'a'", "01", "NaN", "1e999", "\"\\ud800\"", "\"\n\"", &deep]
        {
            assert!(matches!(parse(text), Err(JsonError::Syntax { .. })), "{text:.20}");
        }
        assert!(matches!(Json::parse(b"\"\xff\""), Err(JsonError::Syntax { .. })));
    }

    #[test]
    fn values_have_one_canonical_form() {
        let value = parse(
            r#" {"b" : [ ], "a\u001F/é\b\f\"\\": [-1, 1.0, true, null, {}], "c": 18446744073709551615} "#,
        );
        let text = r#"{"a\u001f/é\b\f\"\\":[-1,1.0,true,null,{}],"b":[],"c":18446744073709551615}"#;
        assert_eq!(value.as_ref().map(Json::compact).as_deref(), Ok(text));
        assert_eq!(parse(r#"{"a":[1,{}]}"#).unwrap().pretty(), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<u64>().prop_map(Json::Unsigned),
            (i64::MIN..0).prop_map(Json::Negative),
            any::<f64>().prop_map(Json::Float),
            ".*".prop_map(Json::String),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Json::Array),
                prop::collection::btree_map(".*", inner, 0..5).prop_map(Json::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_are_read_as_they_are_written(value in any_json()) {
            prop_assert_eq!(parse(&value.compact()), Ok(value.clone()));
            prop_assert_eq!(parse(&value.pretty()), Ok(value));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\",:0-9a\\\\u-]{0,40}") {
            let _ = Json::parse(&bytes);
            let _ = parse(&text);
        }
    }
}
