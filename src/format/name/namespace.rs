use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::name::{NameFault, NameKind};
use crate::wording::text_as_json;

/// A namespace: the path of names that leads to it from the root, at most 7 of them and 256 bytes joined.
///
/// Written `a/b`; the root is the empty text. Ordered component by component, so that a namespace is directly followed
/// by everything in it.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Namespace {
    // Components joined by '/'; each is a safe id, so splitting restores them.
    joined: String,
}

impl Namespace {
    /// Maximum number of components below the root.
    pub(crate) const MAX_DEPTH: usize = 7;
    /// Maximum bytes of the components joined by `/`. One component has at most 255.
    pub(crate) const MAX_BYTES: usize = 256;

    /// The namespace that contains all others.
    #[must_use]
    pub const fn root() -> Self {
        Self { joined: String::new() }
    }

    /// Returns `true` if this is the root.
    pub fn is_root(&self) -> bool {
        self.joined.is_empty()
    }

    /// The parent namespace; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let parent = self.joined.rsplit_once('/').map_or("", |(parent, _)| parent);
        Some(Self { joined: parent.to_owned() })
    }

    /// The child namespace `name`.
    ///
    /// # Errors
    /// If `name` is not a safe id, or the result would be too deep or too long.
    pub fn child(&self, name: &str) -> Result<Self, ParseError> {
        let kind = NameKind::Namespace;
        kind.safe_id(name, Self::MAX_BYTES - 1)?;
        if self.depth() >= Self::MAX_DEPTH {
            return Err(kind.fault(NameFault::TooDeep));
        }
        if self.joined.len() + name.len() + 1 > Self::MAX_BYTES {
            return Err(kind.fault(NameFault::TooLong));
        }
        let joined = if self.is_root() { name.to_owned() } else { format!("{}/{name}", self.joined) };
        Ok(Self { joined })
    }

    /// The names from the root to this namespace; none for the root.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        // Splitting the empty text would give one empty component.
        self.joined.split('/').filter(|component| !component.is_empty())
    }

    /// Number of components: 0 for the root.
    pub(crate) fn depth(&self) -> usize {
        self.components().count()
    }

    /// Returns `true` if `other` is this namespace or lies anywhere below it.
    ///
    /// Compared by component: `a` contains `a/b` but not `ab`.
    pub fn contains(&self, other: &Self) -> bool {
        let mut theirs = other.components();
        self.components().all(|ours| theirs.next() == Some(ours))
    }

    /// The directory of this namespace relative to the datastore: `ns/a/ns/b`, empty for the root.
    pub(crate) fn directory(&self) -> String {
        let mut directory = String::new();
        for component in self.components() {
            let slash = if directory.is_empty() { "" } else { "/" };
            directory.push_str(slash);
            directory.push_str("ns/");
            directory.push_str(component);
        }
        directory
    }

    /// Splits `path` into the namespace of its leading `ns/<component>` pairs and what follows them.
    pub(super) fn split(path: &str) -> Result<(Self, &str), ParseError> {
        let mut namespace = Self::root();
        let mut rest = path;
        while let Some(pairs) = rest.strip_prefix("ns/") {
            let (component, after) =
                pairs.split_once('/').ok_or(NameKind::Namespace.fault(NameFault::Form))?;
            namespace = namespace.child(component)?;
            rest = after;
        }
        Ok((namespace, rest))
    }
}

impl FromStr for Namespace {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Ok(Self::root());
        }
        text.split('/').try_fold(Self::root(), |namespace, component| namespace.child(component))
    }
}

text_as_json!(Namespace);

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.joined)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({self})")
    }
}

impl Ord for Namespace {
    fn cmp(&self, other: &Self) -> Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for Namespace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
