//! Holds that public types have a form in words and in JSON, as far as they are results and not tools.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Surface;
use super::sources::{Kind, Sources};

/// Public types that a program uses or makes, and that are neither a result nor an event: handles, options, builders, errors of parsers, and
/// the types of the traits for backends, runtimes and transports.
const TOOLS: &[&str] = &[
    "Acl",
    "AclEntry",
    "Addressing",
    "ArchiveEntry",
    "ArchiveKind",
    "ArchivePart",
    "BlockingJob",
    "Capabilities",
    "CatalogDirectory",
    "CatalogEntry",
    "CatalogKind",
    "Cursor",
    "Datastore",
    "Decoder",
    "DefaultAcl",
    "Deleted",
    "Depth",
    "Details",
    "Device",
    "DirectorySource",
    "DirtyMap",
    "Encoder",
    "Encryption",
    "EncryptionKey",
    "Endpoint",
    "EntryContents",
    "EntryKind",
    "Excludes",
    "Existing",
    "FileContents",
    "FileKind",
    "FileSource",
    "FinishedBackup",
    "Framing",
    "GroupRule",
    "Header",
    "Headers",
    "Kdf",
    "KeyFile",
    "LinkId",
    "ListEntry",
    "ListPage",
    "ListQuery",
    "ListingOrder",
    "LocalState",
    "LockMode",
    "LockReach",
    "LockScope",
    "LockTable",
    "Manifest",
    "MasterKey",
    "MasterPrivateKey",
    "Metadata",
    "Mtime",
    "Object",
    "ObjectInfo",
    "OpenFileJob",
    "Orphan",
    "Ownership",
    "PayloadOrigin",
    "PayloadReference",
    "PrefixDirectories",
    "Prices",
    "Progress",
    "Protection",
    "Proxy",
    "PutMode",
    "RateLimits",
    "ReadDir",
    "Recording",
    "Removal",
    "Repair",
    "Request",
    "Response",
    "ResponseHead",
    "Result",
    "RetentionItem",
    "RetentionRules",
    "RootStore",
    "Sample",
    "Scheme",
    "SecretText",
    "Simulation",
    "SingleProcess",
    "Sizes",
    "SmallFile",
    "SourceEntry",
    "SourceListing",
    "SourceRoot",
    "Stat",
    "StoreUrl",
    "Suite",
    "SyncCandidates",
    "SyncLevel",
    "SyncOrder",
    "Timeouts",
    "TlsProvider",
    "TokioIo",
    "Touched",
    "TransportErrorKind",
    "Tree",
    "TreeFault",
    "TreeFile",
    "TreeFind",
    "TreeRestore",
    "TreeStep",
    "TreeWalk",
    "VerifyMode",
    "Version",
    "Xattr",
];

/// Ends of the names of such types.
const ENDS_OF_TOOLS: [&str; 11] = [
    "Backend",
    "Builder",
    "Chunker",
    "Client",
    "Credentials",
    "Error",
    "Options",
    "Reader",
    "Runtime",
    "Target",
    "Writer",
];

#[test]
fn every_public_type_is_a_tool_or_has_words_and_json() {
    let text = code(Path::new("src"));
    let tools: BTreeSet<_> = TOOLS.iter().copied().collect();
    let mut missing = Vec::new();
    for (path, item) in &Surface::read(&Sources::of_the_crate()).types {
        let is_tool = ENDS_OF_TOOLS.iter().any(|end| item.name.ends_with(end));
        if item.kind != Kind::Type || is_tool || tools.contains(item.name.as_str()) {
            continue;
        }
        if !has_json(&text, &item.name) {
            missing.push(format!("{path} has no Serialize"));
        }
        if !text.contains(&format!("Display for {} {{", item.name)) {
            missing.push(format!("{path} has no Display"));
        }
    }
    assert!(
        missing.is_empty(),
        "add results to `wording.rs` of their room, tools to TOOLS\n{}",
        missing.join("\n")
    );
}

#[test]
fn the_test_of_reports_would_notice() {
    let text = "/// Doc.\n#[derive(Clone)]\n#[cfg_attr(feature = \"serde\", derive(serde::Serialize))]\npub struct A {\n}\n\
        #[derive(Clone)]\npub enum B {\n}\ntext_as_json!(C, D);\nfields_as_json!(E, e => {});\nword_as_json!(F, word);";
    let found = ["A", "B", "C", "D", "E", "F", "G"].map(|name| has_json(text, name));
    assert_eq!(found, [true, false, true, true, true, true, false]);
}

/// Returns `true` if a type derives `Serialize`, or a macro implements it.
fn has_json(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().collect();
    let is_definition = |line: &str| {
        let rest = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "));
        rest.and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let derives = lines.iter().enumerate().filter(|(_, line)| is_definition(line)).any(|(at, _)| {
        let above =
            lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("///"));
        above.into_iter().any(|line| line.contains("derive(serde::Serialize)"))
    });
    let named = |open: &str, only_first: bool| {
        text.split(open).skip(1).any(|rest| {
            let names = rest.split(')').next().unwrap_or_default().split(',').map(str::trim);
            names.take(if only_first { 1 } else { usize::MAX }).any(|named| named == name)
        })
    };
    derives
        || named("text_as_json!(", false)
        || named("word_as_json!(", true)
        || named("fields_as_json!(", true)
}

/// The text of all source files.
fn code(directory: &Path) -> String {
    let mut found: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
        .iter()
        .map(|path| if path.is_dir() { code(path) } else { fs::read_to_string(path).unwrap() })
        .collect::<Vec<_>>()
        .join("\n")
}
