//! Patterns of the caller and of pattern files.

use std::ffi::CStr;
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::ParseError;
use crate::tree::disk::open;
use crate::tree::disk::status::Status;
use crate::tree::{EntryKind, Excludes};

/// Name of a pattern file.
pub(super) const FILE_NAME: &CStr = c".pxarexclude";

/// Maximum length of a pattern file in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The patterns of one directory, above those of the directories that it lies in.
#[derive(Debug)]
pub(super) struct Layer {
    above: Patterns,
    /// Number of levels between the root and the directory.
    depth: usize,
    excludes: Excludes,
}

/// The patterns that apply in a directory; `None` without any.
pub(super) type Patterns = Option<Arc<Layer>>;

impl Layer {
    pub(super) fn of_caller(excludes: &Excludes) -> Patterns {
        let excludes = excludes.clone();
        (!excludes.is_empty()).then(|| Arc::new(Self { above: None, depth: 0, excludes }))
    }

    /// Returns `true` if the patterns exclude the entry of this path from the root.
    pub(super) fn excludes(&self, path: &[u8], kind: EntryKind) -> bool {
        let names: Vec<_> = path.split(|byte| *byte == b'/').collect();
        let mut layer = Some(self);
        while let Some(now) = layer {
            if let Some(excluded) = now.excludes.decide(&names, now.depth, kind) {
                return excluded;
            }
            layer = now.above.as_deref();
        }
        false
    }

    /// Adds the pattern file of a directory, if it has one, and returns its invalid lines, or why it cannot be read.
    pub(super) fn add_file(
        patterns: &mut Patterns,
        directory: BorrowedFd<'_>,
        depth: usize,
    ) -> Vec<ParseError> {
        let text = match read(directory) {
            Ok(Some(text)) => text,
            Ok(None) => return Vec::new(),
            Err(error) => return vec![ParseError::new(format!("it cannot be read: {error}"))],
        };
        if text.len() as u64 > MAX_BYTES {
            return vec![ParseError::new(format!("it is longer than {MAX_BYTES} bytes"))];
        }
        let (excludes, errors) = Excludes::valid_lines(&text);
        if !excludes.is_empty() {
            *patterns = Some(Arc::new(Self { above: patterns.take(), depth, excludes }));
        }
        errors
    }
}

/// `None` if there is no regular file of the name.
fn read(directory: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let file = match open::to_read(directory, FILE_NAME) {
        // It vanished, or it is a symbolic link or a socket.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        opened => opened?,
    };
    if !Status::of(&file)?.file_type().is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_BYTES + 1).read_to_end(&mut text)?;
    Ok(Some(text))
}
