//! Files that a walk has passed, which hard links may name.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use crate::error::{Error, ErrorKind};
use crate::pxar::{EntryContents, FileKind};
use crate::tree::read::TreeEntry;

/// The positions of files with the hashes of their paths: 16 bytes for each file.
#[derive(Debug, Default)]
pub(super) struct WalkedFiles {
    files: Vec<(u64, u64)>,
    /// `true` if directories may have made-up names.
    has_losses: bool,
    hasher: RandomState,
    is_unsorted: bool,
}

/// The file to which a hard link leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkedFile {
    /// The walk has not passed it: it is not in the part that is walked, or damage hides it.
    NotWalked,
    /// The file at the position of the link has another path than the link says.
    Other,
    /// Its position and its path lead to the same file.
    Walked,
}

/// The error of a hard link whose position and path lead to different files.
pub(super) fn contradiction() -> Error {
    let error = Error::new(ErrorKind::Corrupt, "restore hard link");
    error.because("its position and its path lead to different files")
}

impl WalkedFiles {
    /// Notes a file.
    pub(super) fn note(&mut self, position: u64, path: &[u8]) {
        self.is_unsorted |= self.files.last().is_some_and(|last| last.0 >= position);
        self.files.push((position, self.hash(path)));
    }

    /// Takes the note about a file back if it is the last: the file is damaged.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let hash = self.hash(path);
        self.files.pop_if(|last| last.1 == hash);
    }

    fn hash(&self, path: &[u8]) -> u64 {
        self.hasher.hash_one(path)
    }

    /// Notes that the walk has passed damage.
    pub(super) fn note_loss(&mut self) {
        self.has_losses = true;
    }

    /// Finds the file of a hard link.
    pub(super) fn file_of(&mut self, link: &TreeEntry) -> LinkedFile {
        let (FileKind::HardLink { target }, EntryContents::Of { position }) = (&link.kind, link.contents)
        else {
            return LinkedFile::NotWalked;
        };
        if std::mem::take(&mut self.is_unsorted) {
            self.files.sort_unstable();
        }
        match self.files.binary_search_by_key(&position, |file| file.0) {
            Err(_) => LinkedFile::NotWalked,
            Ok(index) if self.files[index].1 == self.hash(target) => LinkedFile::Walked,
            Ok(_) if self.has_losses => LinkedFile::NotWalked,
            Ok(_) => LinkedFile::Other,
        }
    }
}
