//! Wording of reports and events: numbers with their nouns, sizes with their units, errors with their causes; and how a value becomes JSON.
//!
//! Reports and events implement `Display` in `wording.rs` of their room: one line for an event or a part of a report, a few lines for a report,
//! without a line break at the end. With feature `serde` they implement `Serialize`:
//!
//! | value | JSON |
//! |---|---|
//! | structure | object with the names of its fields |
//! | enum without data | its name in snake case |
//! | enum with data | object with one key, its name in snake case; an event has its name in `event`, beside its fields |
//! | name, digest, key, time, amount of money | its text |
//! | duration | number of seconds |
//! | error | object: `kind`, `action`, `subject`, `message` with all causes, `retry_after` |

use std::error::Error;
use std::fmt;

/// A number and a noun, in the singular or plural.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count(pub(crate) u64, pub(crate) &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, noun) = self;
        let plural = match noun.as_bytes().last() {
            _ if *number == 1 => "",
            Some(b's' | b'x') => "es",
            _ => "s",
        };
        write!(f, "{number} {noun}{plural}")
    }
}

/// A number of items of a collection and a noun.
pub(crate) fn count_of(number: usize, noun: &'static str) -> Count {
    Count(u64::try_from(number).unwrap_or(u64::MAX), noun)
}

/// Bytes, in the largest binary unit of which there is one: "1.5 GiB".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return Count(self.0, "byte").fmt(f);
        }
        let (mut value, mut unit) = (self.0 as f64 / 1024.0, "KiB");
        for larger in ["MiB", "GiB", "TiB", "PiB", "EiB"] {
            if value < 1023.95 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        write!(f, "{value:.1} {unit}")
    }
}

/// An error and the chain of its causes, in one line.
#[derive(Clone, Copy)]
pub(crate) struct Causes<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// Parts of a text, of which some may be left out.
#[derive(Debug, Default)]
pub(crate) struct Parts(Vec<String>);

impl Parts {
    /// Adds a part.
    pub(crate) fn add(&mut self, part: impl fmt::Display) {
        self.0.push(part.to_string());
    }

    /// Adds a number and its noun, unless it is 0.
    pub(crate) fn count(&mut self, number: u64, noun: &'static str) {
        if number > 0 {
            self.add(Count(number, noun));
        }
    }

    /// Adds a number and a text behind it, unless it is 0.
    pub(crate) fn number(&mut self, number: u64, text: &str) {
        if number > 0 {
            self.add(format_args!("{number} {text}"));
        }
    }

    /// The parts in one line.
    pub(crate) fn line(&self) -> String {
        self.0.join(", ")
    }

    /// The parts, each in a line.
    pub(crate) fn lines(&self) -> String {
        self.0.join("\n")
    }

    /// The parts in one line, or another text if there are none.
    pub(crate) fn line_or(&self, none: &str) -> String {
        if self.0.is_empty() { none.to_owned() } else { self.line() }
    }
}

/// Implements `Serialize` for types, as the text of their `Display`.
macro_rules! text_as_json {
    ($($type:ty),+ $(,)?) => {$(
        #[cfg(feature = "serde")]
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}

/// Implements `Serialize` for an enum, as the word that this method returns.
macro_rules! word_as_json {
    ($type:ty, $word:ident) => {
        #[cfg(feature = "serde")]
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.$word())
            }
        }
    };
}

/// Implements `Serialize` for a type whose fields are private, as an object with these fields.
macro_rules! fields_as_json {
    ($type:ident, $value:ident => { $($name:ident: $field:expr),+ $(,)? }) => {
        #[cfg(feature = "serde")]
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct as _;
                let $value = self;
                let length = [$(stringify!($name)),+].len();
                let mut fields = serializer.serialize_struct(stringify!($type), length)?;
                $(fields.serialize_field(stringify!($name), &$field)?;)+
                fields.end()
            }
        }
    };
}

pub(crate) use {fields_as_json, text_as_json, word_as_json};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_right_form_of_their_noun() {
        let texts = [(0, "chunk"), (1, "chunk"), (2, "chunk"), (1, "index"), (3, "index")]
            .map(|(number, noun)| Count(number, noun).to_string());
        assert_eq!(texts, ["0 chunks", "1 chunk", "2 chunks", "1 index", "3 indexes"]);
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        let texts = [0, 1, 1023, 1024, 1536, 1 << 20, (1 << 20) - 1, (1 << 30) - (1 << 15), u64::MAX]
            .map(|bytes| Size(bytes).to_string());
        assert_eq!(
            texts,
            [
                "0 bytes",
                "1 byte",
                "1023 bytes",
                "1.0 KiB",
                "1.5 KiB",
                "1.0 MiB",
                "1.0 MiB",
                "1.0 GiB",
                "16.0 EiB"
            ]
        );
    }
}
