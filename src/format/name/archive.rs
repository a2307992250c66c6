use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::name::{NAME_MAX, NameFault, NameKind};
use crate::wording::text_as_json;

/// A file of a snapshot that the manifest lists: a safe id that ends in `.blob`, `.didx` or `.fidx`.
///
/// Never `index.json.blob` or `client.log.blob`: the manifest and the client log are no archives, and a manifest that
/// lists itself could make a reader overwrite it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveName(String);

/// Stored form of an archive. The format defines exactly these three, so the enum is exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchiveKind {
    /// One blob, `.blob`.
    Blob,
    /// A dynamic index, `.didx`: a stream cut by content.
    Dynamic,
    /// A fixed index, `.fidx`: an image cut into equal chunks.
    Fixed,
}

impl ArchiveName {
    /// Maximum bytes of the name of a new archive. Longer names can be read, but temporary names made
    /// from them might not fit the 255 bytes of a directory entry.
    pub(crate) const MAX_NEW_BYTES: usize = 200;

    /// The archive `name` of that kind. A missing suffix is added: both `disk.img` and `disk.img.fidx`
    /// give `disk.img.fidx`.
    ///
    /// # Errors
    /// If the result is not a valid name, or `name` has the suffix of another kind.
    pub(crate) fn with_kind(name: &str, kind: ArchiveKind) -> Result<Self, ParseError> {
        match ArchiveKind::of(name) {
            None => format!("{name}{}", kind.extension()).parse(),
            Some(found) if found == kind => name.parse(),
            Some(found) => {
                let (wanted, found) = (kind.extension(), found.extension());
                Err(ParseError::new(format!("an archive of this kind ends in {wanted}, not in {found}")))
            }
        }
    }

    /// The archive that users mean by `name`: itself if it has the suffix of a kind; otherwise its ending
    /// decides the kind.
    ///
    /// | ends in | kind |
    /// |---|---|
    /// | `.pxar` `.mpxar` `.ppxar` `.pcat1` | dynamic |
    /// | `.img` | fixed |
    /// | `.conf` `.json` `.key` `.log` | blob |
    ///
    /// Source: PBS datastore format §1.3.
    ///
    /// # Errors
    /// If `name` has none of these endings, or the result is not a valid name.
    pub fn implicit(name: &str) -> Result<Self, ParseError> {
        if ArchiveKind::of(name).is_some() {
            return name.parse();
        }
        let kind = match name.rsplit_once('.') {
            Some((_, "pxar" | "mpxar" | "ppxar" | "pcat1")) => ArchiveKind::Dynamic,
            Some((_, "img")) => ArchiveKind::Fixed,
            Some((_, "conf" | "json" | "key" | "log")) => ArchiveKind::Blob,
            _ => return Err(NameKind::Archive.fault(NameFault::Extension)),
        };
        Self::with_kind(name, kind)
    }

    /// Checks that an archive of this name may be created: at most [`MAX_NEW_BYTES`](Self::MAX_NEW_BYTES).
    ///
    /// # Errors
    /// If it is longer.
    pub(crate) fn check_new(&self) -> Result<(), ParseError> {
        if self.0.len() > Self::MAX_NEW_BYTES {
            return Err(NameKind::Archive.fault(NameFault::TooLong));
        }
        Ok(())
    }

    /// Its stored form.
    pub fn kind(&self) -> ArchiveKind {
        // INVARIANT: every constructor has found a kind, so the fallback is never used.
        ArchiveKind::of(&self.0).unwrap_or(ArchiveKind::Blob)
    }

    /// The name without the suffix of its kind: `disk.img` of `disk.img.fidx`.
    pub fn stem(&self) -> &str {
        self.0.rsplit_once('.').map_or(&self.0, |(stem, _)| stem)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ArchiveKind {
    /// All kinds.
    pub(crate) const ALL: [Self; 3] = [Self::Blob, Self::Dynamic, Self::Fixed];

    /// Suffix of names of this kind: `.blob`, `.didx` or `.fidx`.
    pub(crate) const fn extension(self) -> &'static str {
        match self {
            Self::Blob => ".blob",
            Self::Dynamic => ".didx",
            Self::Fixed => ".fidx",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| name.ends_with(kind.extension()))
    }
}

impl FromStr for ArchiveName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let name = NameKind::Archive;
        name.safe_id(text, NAME_MAX)?;
        if ArchiveKind::of(text).is_none() {
            return Err(name.fault(NameFault::Extension));
        }
        if matches!(text, "index.json.blob" | "client.log.blob") {
            return Err(name.fault(NameFault::Reserved));
        }
        Ok(Self(text.to_owned()))
    }
}

text_as_json!(ArchiveName);

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchiveName({self})")
    }
}
