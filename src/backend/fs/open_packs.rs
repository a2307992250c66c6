//! Packs that stay open for a while: each is written once, and has many chunks that are read one by one.
//!
//! A file that stays open shows neither that its name was removed nor that another file has it now. So each use compares the file with what
//! it was when it was opened: its number of names, and the time of its last change, which a removal or a change of a name sets. In doubt, it
//! is opened again by its name. A file without a name is closed at the next use of the cache, so that its space becomes free.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::backend::fs::call::errno;
use crate::format::larder::pack::name::PackName;

/// Maximum number of packs that stay open.
const OPEN_PACKS: usize = 8;

/// The packs that were opened last.
#[derive(Debug, Default)]
pub(super) struct OpenPacks {
    packs: Mutex<VecDeque<Arc<OpenPack>>>,
}

/// A pack that is open.
#[derive(Debug)]
pub(super) struct OpenPack {
    file: File,
    name: PackName,
    /// As it was opened.
    then: Metadata,
}

impl OpenPacks {
    /// A pack that is open, and its description now. Unless it stayed open, `open` opens it.
    ///
    /// # Errors
    /// The errors of `open`.
    pub(super) fn get(
        &self,
        name: PackName,
        open: impl Fn() -> io::Result<(File, Metadata)>,
    ) -> io::Result<(Arc<OpenPack>, Metadata)> {
        let known = self.packs().iter().find(|pack| pack.name == name).map(Arc::clone);
        if let Some(known) = known {
            if let Some(now) = known.unchanged() {
                return Ok((known, now));
            }
            self.forget(name);
        }
        let opened = match open() {
            // Without a descriptor for this pack, those of other packs are of no use.
            Err(error) if matches!(errno(&error), Some(Errno::EMFILE | Errno::ENFILE)) => {
                self.packs().clear();
                open()
            }
            opened => opened,
        };
        let (file, then) = opened?;
        let pack = Arc::new(OpenPack { file, name, then: then.clone() });
        self.add(Arc::clone(&pack));
        Ok((pack, then))
    }

    /// Closes a pack whose name was removed.
    pub(super) fn forget(&self, name: PackName) {
        self.packs().retain(|pack| pack.name != name);
    }

    fn add(&self, pack: Arc<OpenPack>) {
        let mut packs = self.packs();
        packs.retain(|open| open.name != pack.name && open.unchanged().is_some());
        // Checked under the lock: a removal of its name forgets the pack afterwards, or is visible here.
        if pack.unchanged().is_some() {
            packs.truncate(OPEN_PACKS - 1);
            packs.push_front(pack);
        }
    }

    fn packs(&self) -> MutexGuard<'_, VecDeque<Arc<OpenPack>>> {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenPack {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The description of the file if its name is certainly the same.
    fn unchanged(&self) -> Option<Metadata> {
        let now = self.file.metadata().ok()?;
        let state = |of: &Metadata| (of.nlink(), of.ctime(), of.ctime_nsec());
        (now.nlink() > 0 && state(&now) == state(&self.then)).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use super::*;

    fn name(n: u32) -> PackName {
        PackName { session: crate::format::larder::pack::name::SessionId::from_bytes([7; 16]), n }
    }

    fn opened(path: &Path) -> io::Result<(File, Metadata)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    }

    /// The text of a pack, and how often it was opened for that.
    fn read(packs: &OpenPacks, n: u32, path: &Path) -> (io::Result<String>, usize) {
        let times = Cell::new(0);
        let text = packs.get(name(n), || {
            times.set(times.get() + 1);
            opened(path)
        });
        let text = text.and_then(|(pack, now)| {
            let mut bytes = vec![0; usize::try_from(now.len()).unwrap()];
            pack.file().read_exact_at(&mut bytes, 0)?;
            Ok(String::from_utf8(bytes).unwrap())
        });
        (text, times.get())
    }

    fn is_read(packs: &OpenPacks, path: &Path, text: &str, opened: usize) {
        let (found, times) = read(packs, 1, path);
        assert_eq!((found.unwrap().as_str(), times), (text, opened));
    }

    #[test]
    fn a_pack_is_opened_once_until_another_process_removes_or_replaces_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, other) = (scratch.path().join("pack"), scratch.path().join("other"));
        let packs = OpenPacks::default();
        fs::write(&path, "old").unwrap();
        is_read(&packs, &path, "old", 1);
        is_read(&packs, &path, "old", 0);
        fs::write(&other, "new").unwrap();
        fs::rename(&other, &path).unwrap();
        is_read(&packs, &path, "new", 1);
        is_read(&packs, &path, "new", 0);
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&packs, 1, &path).0.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(packs.packs().len(), 0, "its space is free");
    }

    /// Until a change of a file gets another time than the last change of this one.
    fn wait_for_a_tick(path: &Path, clock: &Path) {
        let time = |metadata: Metadata| (metadata.ctime(), metadata.ctime_nsec());
        let then = time(fs::metadata(path).unwrap());
        while {
            fs::write(clock, "x").unwrap();
            time(fs::metadata(clock).unwrap()) == then
        } {}
    }

    /// As a copy of the store by hard links does.
    #[test]
    fn a_pack_that_has_another_name_too_is_opened_again_after_its_own_was_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, link) = (scratch.path().join("pack"), scratch.path().join("link"));
        fs::write(&path, "old").unwrap();
        for is_linked_before in [true, false] {
            let packs = OpenPacks::default();
            if is_linked_before {
                fs::hard_link(&path, &link).unwrap();
            }
            is_read(&packs, &path, "old", 1);
            if !is_linked_before {
                wait_for_a_tick(&path, &scratch.path().join("clock"));
                fs::hard_link(&path, &link).unwrap();
            }
            fs::remove_file(&path).unwrap();
            let (found, times) = read(&packs, 1, &path);
            assert_eq!((found.unwrap_err().kind(), times), (io::ErrorKind::NotFound, 1));
            fs::rename(&link, &path).unwrap();
        }
    }

    #[test]
    fn a_cut_pack_shows_its_new_length() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pack");
        let packs = OpenPacks::default();
        fs::write(&path, "long").unwrap();
        is_read(&packs, &path, "long", 1);
        File::options().write(true).open(&path).unwrap().set_len(2).unwrap();
        assert_eq!(read(&packs, 1, &path).0.unwrap(), "lo");
    }

    #[test]
    fn at_most_eight_packs_stay_open_and_removed_ones_are_closed_first() {
        let scratch = tempfile::tempdir().unwrap();
        let packs = OpenPacks::default();
        let path = |n: u32| scratch.path().join(n.to_string());
        for n in 0..20 {
            fs::write(path(n), "x").unwrap();
            read(&packs, n, &path(n)).0.unwrap();
            assert!(packs.packs().len() <= OPEN_PACKS);
        }
        assert_eq!(packs.packs().len(), OPEN_PACKS);
        assert_eq!(read(&packs, 19, &path(19)).1, 0);
        assert_eq!(read(&packs, 11, &path(11)).1, 1, "it was closed");
        for n in 14..20 {
            fs::remove_file(path(n)).unwrap();
        }
        read(&packs, 0, &path(0)).0.unwrap();
        let mut left: Vec<_> = packs.packs().iter().map(|pack| pack.name.n).collect();
        left.sort_unstable();
        assert_eq!(left, [0, 11, 13]);
    }

    /// A reader that opened a pack before this process removed its name keeps it, and the cache does not.
    #[test]
    fn a_pack_that_is_removed_while_a_reader_opens_it_does_not_stay_open() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pack");
        let packs = OpenPacks::default();
        fs::write(&path, "old").unwrap();
        let (pack, _) = packs
            .get(name(1), || {
                let pack = opened(&path)?;
                fs::remove_file(&path)?;
                packs.forget(name(1));
                Ok(pack)
            })
            .unwrap();
        assert_eq!(packs.packs().len(), 0);
        let mut bytes = [0; 3];
        pack.file().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"old");
    }

    #[test]
    fn without_a_free_descriptor_the_open_packs_are_closed_for_another_attempt() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pack");
        fs::write(&path, "x").unwrap();
        for errno in [Errno::EMFILE, Errno::ENFILE] {
            let packs = OpenPacks::default();
            read(&packs, 1, &path).0.unwrap();
            let limited =
                || if packs.packs().is_empty() { opened(&path) } else { Err(io::Error::from(errno)) };
            packs.get(name(2), limited).unwrap();
            assert_eq!(packs.packs().len(), 1);
            // If that does not help, the error is the one of the system.
            let refused = packs.get(name(3), || Err(io::Error::from(errno))).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(errno as i32));
        }
    }
}
