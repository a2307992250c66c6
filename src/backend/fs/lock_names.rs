//! Names of lock files.
//!
//! Source: PBS datastore format, locks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::backend::LockScope;
use crate::format::Digest;
use crate::format::name::{GroupName, Namespace, SnapshotName};

/// The move journal. It belongs to no object, and is never removed.
pub(super) const JOURNAL: &str = "move-journal";
/// The directory of lock files whose names are hashes, since the names of their objects are too long.
pub(super) const HASHED: &str = "hashed";

/// The path of a lock file below the lock directory.
pub(super) fn lock_file(scope: &LockScope) -> PathBuf {
    let (namespace, path) = match scope {
        LockScope::Group(group) => (group.namespace(), format!("{}/{}", group.backup_type(), group.id())),
        LockScope::Snapshot(snapshot) => (snapshot.namespace(), in_namespace(snapshot)),
        LockScope::Manifest(snapshot) => (snapshot.namespace(), in_namespace(snapshot) + "/.index.json.lck"),
        LockScope::Store => return PathBuf::from("store"),
    };
    namespace_directory(namespace).join(file_name(&path))
}

fn in_namespace(snapshot: &SnapshotName) -> String {
    let group = snapshot.group();
    format!("{}/{}/{}", group.backup_type(), group.id(), snapshot.time())
}

fn namespace_directory(namespace: &Namespace) -> PathBuf {
    let name = namespace.components().collect::<Vec<_>>().join(":");
    // PBS cannot lock an object in a namespace with a longer name.
    if name.len() < 256 {
        PathBuf::from(name)
    } else {
        Path::new(HASHED).join(Digest::of(name.as_bytes()).to_string())
    }
}

/// The path within the namespace as one file name, with the escapes of systemd, or with a hash if that is too long.
fn file_name(path: &str) -> PathBuf {
    let mut name = String::new();
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' => name.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => _ = write!(name, "\\x{byte:02x}"),
        }
    }
    if name.len() < 255 {
        return PathBuf::from(name);
    }
    let (head, tail) = (&name[..80], &name[name.len() - 80..]);
    Path::new(HASHED).join(format!("{head}...{tail}-{}", Digest::of(path.as_bytes())))
}

/// The path in the store of the group or snapshot of a lock file; `None` if the name is not that of a lock file.
pub(super) fn locked_object(name: &str) -> Option<String> {
    let (namespace, name) = name.rsplit_once('/').unwrap_or(("", name));
    let mut bytes = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let (byte, length) = match first {
            '-' => (b'/', 1),
            '\\' => (u8::from_str_radix(rest.strip_prefix("\\x")?.get(..2)?, 16).ok()?, 4),
            _ => (u8::try_from(first).ok()?, 1),
        };
        bytes.push(byte);
        rest = rest.get(length..)?;
    }
    let path = String::from_utf8(bytes).ok()?;
    let path = path.strip_suffix("/.index.json.lck").unwrap_or(&path);
    let mut whole = String::new();
    for part in namespace.split(':').filter(|part| !part.is_empty()) {
        whole.extend(["ns/", part, "/"]);
    }
    let path = whole + path;
    // A name that parses contains no `..` and leads to nothing outside of the store.
    (path.parse::<SnapshotName>().is_ok() || path.parse::<GroupName>().is_ok()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_files_have_the_names_that_pbs_uses() {
        let snapshot = "vm/100/2022-05-02T08:11:33Z".parse().unwrap();
        let name = r"vm-100-2022\x2d05\x2d02T08\x3a11\x3a33Z-.index.json.lck";
        assert_eq!(lock_file(&LockScope::Manifest(snapshot)), Path::new(name));
        let group = "ns/a/ns/b/host/x-y".parse().unwrap();
        assert_eq!(lock_file(&LockScope::Group(group)), Path::new(r"a:b/host-x\x2dy"));
    }

    #[test]
    fn the_name_of_a_lock_file_identifies_its_object() {
        for path in [
            "host/a",
            "ns/a/ns/b/host/x-y.z_",
            "vm/100/2022-05-02T08:11:33Z",
            "ns/x/ct/1-\\-2/2022-05-02T08:11:33Z",
        ] {
            let scopes = match path.parse::<SnapshotName>() {
                Ok(name) => vec![LockScope::Snapshot(name.clone()), LockScope::Manifest(name)],
                Err(_) => path.parse().map(LockScope::Group).into_iter().collect(),
            };
            for scope in scopes {
                let name = lock_file(&scope);
                assert_eq!(locked_object(name.to_str().unwrap()).as_deref(), Some(path), "{name:?}");
            }
        }
        for name in
            ["move-journal", "..-..", "host-a-b", r"host-\x", r"host-\xzz", "a/../host-a", "host-\u{e4}"]
        {
            assert_eq!(locked_object(name), None, "{name}");
        }
    }

    #[test]
    fn a_long_name_is_hashed() {
        let group = format!("host/{}", "a-".repeat(100)).parse().unwrap();
        let LockScope::Group(group) = LockScope::Group(group) else { unreachable!() };
        let name = lock_file(&LockScope::Group(group));
        let name = name.to_str().unwrap();
        assert!(name.starts_with(r"hashed/host-a\x2da\x2d"), "{name}");
        assert_eq!(name.len(), "hashed/".len() + 80 + 3 + 80 + 1 + 64);
    }
}
