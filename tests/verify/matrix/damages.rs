//! What happens to an object.

use std::fmt;

use crate::matrix::image::{Entry, Image};
use crate::matrix::kinds::Target;

/// Damage of an object, or of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Damage {
    /// Another file has its bytes too, under a name that nothing has.
    Copied,
    /// Half of it is lost.
    Cut,
    /// It does not exist.
    Deleted,
    /// A named pipe has its name.
    Fifo,
    /// The highest bit is another one: of the first byte, of the one in the middle, of the last one. In a text, that is always damage.
    Flipped(Position),
    /// A symbolic link has its name, which leads to nothing.
    LinkToNothing,
    /// A symbolic link has its name, which leads to another good one of the kind.
    LinkToOther,
    /// It is what it was some time ago.
    Older,
    /// It changed places with another one of the kind.
    Swapped,
    /// A directory has the name of a file, or a file that of a directory.
    WrongType,
    /// All of its bytes are lost.
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Position {
    First,
    Middle,
    Last,
}

impl Damage {
    pub(crate) const ALL: [Self; 13] = [
        Self::Copied,
        Self::Cut,
        Self::Deleted,
        Self::Fifo,
        Self::Flipped(Position::First),
        Self::Flipped(Position::Middle),
        Self::Flipped(Position::Last),
        Self::LinkToNothing,
        Self::LinkToOther,
        Self::Older,
        Self::Swapped,
        Self::WrongType,
        Self::Zero,
    ];

    /// Returns `true` if an object in a bucket can have it.
    pub(crate) fn is_of_objects(self) -> bool {
        !matches!(self, Self::Fifo | Self::LinkToNothing | Self::LinkToOther | Self::WrongType)
    }

    /// Damages an object. Returns `false` if that is not possible, or changes nothing.
    pub(crate) fn apply(self, image: &mut Image, older: &Image, target: &Target) -> bool {
        let before = image.clone();
        if self.change(image, older, target).is_none() {
            *image = before;
            return false;
        }
        *image != before
    }

    fn change(self, image: &mut Image, older: &Image, target: &Target) -> Option<()> {
        let path = target.path.as_str();
        let name = path.trim_end_matches('/');
        let empty = Entry::File(bytes::Bytes::new());
        match self {
            Self::Copied => {
                let spare = target.spare.as_deref()?;
                let taken = image.take(path);
                image.give(path, taken.clone());
                image.give(spare, taken);
            }
            Self::Cut => {
                let bytes = image.file(path)?.clone();
                image.put(path, Entry::File(bytes.slice(..bytes.len() / 2)));
            }
            Self::Deleted => drop(image.take(path)),
            Self::Fifo => {
                image.take(path);
                image.put(name, Entry::Fifo);
            }
            Self::Flipped(position) => {
                let mut bytes = image.file(path)?.to_vec();
                let last = bytes.len().checked_sub(1)?;
                let at = match position {
                    Position::First => 0,
                    Position::Middle => last / 2,
                    Position::Last => last,
                };
                bytes[at] ^= 0x80;
                image.put(path, Entry::File(bytes.into()));
            }
            Self::LinkToNothing => {
                image.take(path);
                image.put(name, Entry::Link("nothing".to_owned()));
            }
            Self::LinkToOther => {
                let partner = target.partner.as_deref()?.trim_end_matches('/');
                image.take(path);
                image.put(name, Entry::Link(partner.to_owned()));
            }
            Self::Older => {
                let bytes = older.file(path)?.clone();
                image.put(path, Entry::File(bytes));
            }
            Self::Swapped => {
                let partner = target.partner.as_deref()?;
                let (one, other) = (image.take(path), image.take(partner));
                image.give(path, other);
                image.give(partner, one);
            }
            Self::WrongType => {
                image.take(path);
                image.put(name, if path.ends_with('/') { empty } else { Entry::Directory });
            }
            Self::Zero => {
                image.file(path)?;
                image.put(path, empty);
            }
        }
        Some(())
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Copied => "copied",
            Self::Cut => "cut",
            Self::Deleted => "deleted",
            Self::Fifo => "fifo",
            Self::Flipped(Position::First) => "flip-first",
            Self::Flipped(Position::Middle) => "flip-middle",
            Self::Flipped(Position::Last) => "flip-last",
            Self::LinkToNothing => "link-nothing",
            Self::LinkToOther => "link-other",
            Self::Older => "older",
            Self::Swapped => "swapped",
            Self::WrongType => "wrong-type",
            Self::Zero => "zero",
        })
    }
}
