//! Task ids of PBS.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

use crate::format::name::{AuthId, BackupTime};
use crate::wording::text_as_json;

/// Task id as PBS writes it.
///
/// It records who verified a snapshot or collected garbage, and when the task began.
///
/// ```text
/// UPID:node1:00001234:0000ABCD:00000000:6878F2C0:verify_snapshot:store1\x3avm-100-6878F2C0:root@pam:
///      node  pid      process  task     start    type            id                        auth id
///                     start             epoch
/// ```
///
/// Source: PBS datastore format §6.4.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Upid {
    text: String,
    start: u32,
}

impl Upid {
    /// Builds the id of a task of this type, such as `verify`, that `auth_id` started at `start`.
    pub(crate) fn builder(task_type: &str, start: BackupTime, auth_id: &AuthId) -> UpidBuilder {
        UpidBuilder {
            node: "localhost".to_owned(),
            pid: 0,
            process_start: 0,
            task: 0,
            start,
            task_type: task_type.to_owned(),
            id: String::new(),
            auth_id: auth_id.to_string(),
        }
    }

    /// Start of the task, in seconds since 1970-01-01T00:00:00Z.
    pub fn start_epoch(&self) -> i64 {
        i64::from(self.start)
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Builder of a [`Upid`].
#[must_use]
#[derive(Clone, Debug)]
pub(crate) struct UpidBuilder {
    node: String,
    pid: u32,
    process_start: u64,
    task: u64,
    start: BackupTime,
    task_type: String,
    id: String,
    auth_id: String,
}

impl UpidBuilder {
    /// Host name, without domain, of the machine of the task. Default: `localhost`.
    #[cfg(test)]
    pub(crate) fn node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// Process id, and start of the process in clock ticks since boot. Default: 0, 0.
    #[cfg(test)]
    pub(crate) fn process(mut self, pid: u32, start_ticks: u64) -> Self {
        (self.pid, self.process_start) = (pid, start_ticks);
        self
    }

    /// Number of the task within the process. Default: 0.
    #[cfg(test)]
    pub(crate) fn task(mut self, number: u64) -> Self {
        self.task = number;
        self
    }

    /// Subject of the task, as any text. Default: empty.
    pub(crate) fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// Returns the id.
    ///
    /// # Errors
    /// If node or type contain a forbidden character, the start is after the year 2106, or the ticks need more
    /// than 36 bits.
    pub(crate) fn build(self) -> Result<Upid, ParseError> {
        let Self { node, pid, process_start, task, start, task_type, id, auth_id } = self;
        let start = start.epoch();
        let id = escape(&id);
        format!(
            "UPID:{node}:{pid:08X}:{process_start:08X}:{task:08X}:{start:08X}:{task_type}:{id}:{auth_id}:"
        )
        .parse()
    }
}

impl FromStr for Upid {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or_else(not_a_upid);
        let [upid, node, pid, process_start, task] = [next()?, next()?, next()?, next()?, next()?];
        let [start, task_type, _id, auth_id, end] = [next()?, next()?, next()?, next()?, next()?];
        let valid = parts.next().is_none()
            && upid == "UPID"
            && is_node(node)
            && is_hex(pid, 8..=8)
            && is_hex(process_start, 8..=9)
            && is_hex(task, 8..=16)
            && is_hex(start, 8..=8)
            && !task_type.is_empty()
            && !auth_id.is_empty()
            && end.is_empty()
            && !text.contains(char::is_whitespace);
        if !valid {
            return Err(not_a_upid());
        }
        let start = u32::from_str_radix(start, 16).map_err(|_| not_a_upid())?;
        Ok(Self { text: text.to_owned(), start })
    }
}

text_as_json!(Upid);

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn not_a_upid() -> ParseError {
    ParseError::new("not a task id of the form UPID:node:pid:process start:task:start:type:id:auth id:")
}

fn is_hex(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_node(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn escape(id: &str) -> String {
    let escaped = id.bytes().enumerate().map(|(at, byte)| match byte {
        b'/' => "-".to_owned(),
        b'.' if at == 0 => "\\x2e".to_owned(),
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BY_PBS: &str = "UPID:vm:000073D8:00057516:00000000:6B043380:verify:fix\\x2dA:root@pam:";

    #[test]
    fn ids_of_pbs_are_read_and_written() {
        let start = BackupTime::from_epoch(0x6B04_3380).unwrap();
        let upid: Upid = BY_PBS.parse().unwrap();
        assert_eq!(upid.start_epoch(), 0x6B04_3380);
        let built = Upid::builder("verify", start, &AuthId::root()).node("vm").process(0x73D8, 0x57516);
        assert_eq!(built.id("fix-A").build(), Ok(upid));
        let text = "UPID:node1:00001234:0000ABCD:00000000:6878F2C0:verify_snapshot:store1\\x3avm-100-6878F2C0:root@pam:";
        let start = BackupTime::from_epoch(0x6878_F2C0).unwrap();
        let built =
            Upid::builder("verify_snapshot", start, &AuthId::root()).node("node1").process(0x1234, 0xABCD);
        assert_eq!(built.id("store1:vm/100/6878F2C0").build(), text.parse());
    }

    #[test]
    fn malformed_task_ids_are_refused() {
        for (from, to) in [
            ("UPID", "upid"),
            (":vm:", "::"),
            (":vm:", ":-vm:"),
            (":vm:", ":vm-:"),
            (":vm:", ":v.m:"),
            ("000073D8", "00073D8"),
            ("000073D8", "0000073D8"),
            ("00057516", "0000057516"),
            ("00057516", "0005751G"),
            ("6B043380", "16B043380"),
            ("6B043380", "+B043380"),
            (":verify:", "::"),
            ("fix", "f ix"),
            ("root@pam:", ":"),
            ("root@pam:", "root@pam"),
            ("root@pam:", "root@pam:\n"),
            ("root@pam:", "root@pam::"),
        ] {
            let text = BY_PBS.replace(from, to);
            assert_eq!(text.parse::<Upid>(), Err(not_a_upid()), "{text}");
        }
        assert!(BY_PBS.replace("fix\\x2dA", "").parse::<Upid>().is_ok());
        assert!(BY_PBS.to_lowercase().replace("upid", "UPID").parse::<Upid>().is_ok());
        let late = Upid::builder("verify", BackupTime::MAX, &AuthId::root());
        assert_eq!(late.build(), Err(not_a_upid()));
    }

    proptest! {
        #[test]
        fn any_subject_makes_a_task_id(id in ".*", pid: u32, ticks in 0..1_u64 << 36, task: u64, epoch in 1..=u32::MAX) {
            let start = BackupTime::from_epoch(i64::from(epoch)).unwrap();
            let upid = Upid::builder("verify", start, &AuthId::root()).process(pid, ticks).task(task).id(&id).build().unwrap();
            prop_assert_eq!(upid.start_epoch(), i64::from(epoch));
            prop_assert_eq!(upid.as_str().parse(), Ok(upid.clone()));
        }

        #[test]
        fn no_text_panics(any in ".*", near in "UPID:[a-z:0-9A-F@-]{0,60}") {
            let _ = any.parse::<Upid>();
            let _ = near.parse::<Upid>();
        }
    }
}
