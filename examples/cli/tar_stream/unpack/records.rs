//! Pax records: what an extended header says of the entries behind it.

use std::collections::BTreeMap;

/// Records by their keys. One that comes again replaces the one before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    by_key: BTreeMap<String, Vec<u8>>,
    /// The parts of a sparse file, whose records come again and again (GNU format 0.0).
    pub(crate) sparse: Vec<(u64, u64)>,
}

impl Records {
    /// Adds the records of an extended header: `LENGTH KEY=VALUE\n`. `false` if some of it makes no sense.
    pub(crate) fn add(&mut self, mut data: &[u8]) -> bool {
        let mut offset = None;
        while !data.is_empty() {
            let Some((key, value, rest)) = record(data) else { return false };
            match key {
                "GNU.sparse.offset" => offset = decimal(value),
                "GNU.sparse.numbytes" => match (offset.take(), decimal(value)) {
                    (Some(offset), Some(length)) => self.sparse.push((offset, length)),
                    _ => return false,
                },
                // An empty value takes a global one back.
                _ => drop(self.by_key.insert(key.to_owned(), value.to_vec())),
            }
            data = rest;
        }
        true
    }

    /// These records where there are none of the same key.
    pub(crate) fn with_defaults(mut self, defaults: &Self) -> Self {
        for (key, value) in &defaults.by_key {
            self.by_key.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self
    }

    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.by_key.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(decimal)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.by_key.iter().map(|(key, value)| (key.as_str(), value.as_slice()))
    }
}

fn record(data: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let blank = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let line = data.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&line[..equals]).ok()?;
    Some((key, &line[equals + 1..], &data[length..]))
}

pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_and_nonsense_is_noticed() {
        let mut records = Records::default();
        assert!(records.add(b"12 path=a\nb\n11 mtime=1\n5 a=\n"));
        assert_eq!(records.get("path"), Some(&b"a\nb"[..]));
        assert_eq!((records.number("mtime"), records.get("a")), (Some(1), None));
        assert!(records.add(b"23 GNU.sparse.offset=5\n25 GNU.sparse.numbytes=7\n"));
        assert_eq!(records.sparse, [(5, 7)]);
        for nonsense in [&b"x"[..], b"8 path=a\n", b"99 path=a\n", b"0 \n", b"11 path:a1\n", b"-1 path=a\n"] {
            assert!(!Records::default().add(nonsense), "{nonsense:?}");
        }
    }
}
