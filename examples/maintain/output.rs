//! Output of a command: lines for people as they come, or one JSON object at the end.

use std::fmt::Display;

use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

/// The output so far, and the problems found.
pub(crate) struct Output {
    json: Option<Map<String, Value>>,
    trouble: Vec<String>,
}

impl Output {
    pub(crate) fn new(as_json: bool) -> Self {
        Self { json: as_json.then(Map::new), trouble: Vec::new() }
    }

    /// A line for people.
    pub(crate) fn say(&self, line: impl Display) {
        if self.json.is_none() {
            println!("{line}");
        }
    }

    /// Requests sent to a server, for people.
    pub(crate) fn say_requests(&self, requests: &Value) {
        if self.json.is_none() {
            crate::cli::tell_requests(Some(requests));
        }
    }

    /// A part of the object for programs.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        if let Some(object) = &mut self.json {
            object.insert(key.to_owned(), value.into());
        }
    }

    /// Something because of which the run did not go well.
    pub(crate) fn trouble(&mut self, why: impl Display) {
        self.trouble.push(why.to_string());
    }

    /// Prints the object, if one is wanted, and returns what is the matter, if anything is.
    pub(crate) fn end(mut self, requests: Option<&Value>) -> Option<String> {
        self.set("requests", requests.cloned());
        if !self.trouble.is_empty() {
            let error = crate::cli::error_json(None, &self.trouble.join("; "), 1);
            self.set("error", error);
        }
        match self.json {
            Some(object) => println!("{}", Value::Object(object)),
            None => crate::cli::tell_requests(requests),
        }
        (!self.trouble.is_empty()).then(|| self.trouble.join("; "))
    }
}

/// Something and how many, in the singular or plural.
pub(crate) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> HumanBytes {
    HumanBytes(bytes)
}

/// A snapshot with what is said of it.
pub(crate) fn about(snapshot: impl Display, key: &str, said: &str) -> Value {
    json!({ "snapshot": snapshot.to_string(), key: said })
}
