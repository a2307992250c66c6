//! Search for entries by pattern.

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::FileKind;
use crate::tree::policy::excludes::LeadingPath;
use crate::tree::read::Tree;
use crate::tree::read::walk::{TreeStep, TreeWalk};
use crate::tree::{EntryKind, Excludes};

/// Entries of a tree that match a pattern, in the order of the archive.
#[derive(Debug)]
pub struct TreeFind {
    pattern: Excludes,
    state: State,
    tree: Tree,
}

#[derive(Debug)]
enum State {
    Begin,
    End,
    /// The entry that the walk yields first is the only one that may match.
    One(Box<TreeWalk>),
    Walk(Box<TreeWalk>),
}

impl TreeFind {
    pub(super) fn new(tree: &Tree, text: &[u8]) -> Result<Self> {
        let mut pattern = Excludes::default();
        let invalid = |error| {
            Error::new(ErrorKind::InvalidInput, "find entries")
                .on(String::from_utf8_lossy(text))
                .because(error)
        };
        pattern.push(text).map_err(invalid)?;
        Ok(Self { pattern, state: State::Begin, tree: tree.clone() })
    }

    /// Returns the next match, or a part of the tree that is lost and may have matched; `None` at the end.
    ///
    /// # Errors
    /// Any failure of the backend. The search goes on with the next call.
    pub async fn next(&mut self) -> Result<Option<TreeStep>> {
        loop {
            let step = match &mut self.state {
                State::Begin => {
                    self.state = begin(&self.tree, self.pattern.leading_path()).await?;
                    continue;
                }
                State::End => return Ok(None),
                State::One(walk) => {
                    let step = walk.next().await?;
                    if matches!(step, Some(TreeStep::Entry(_)) | None) {
                        self.state = State::End;
                    }
                    step
                }
                State::Walk(walk) => walk.next().await?,
            };
            match step {
                Some(TreeStep::Entry(entry)) => {
                    let is_directory = entry.kind == FileKind::Directory;
                    let kind = if is_directory { EntryKind::Directory } else { EntryKind::Other };
                    if self.pattern.excludes(&entry.path, kind) {
                        return Ok(Some(TreeStep::Entry(entry)));
                    }
                }
                Some(TreeStep::DirectoryEnd(_)) => {}
                step => return Ok(step),
            }
        }
    }
}

/// Begins where all matches are. Damage on the way there costs a walk through everything.
async fn begin(tree: &Tree, leading: Option<LeadingPath>) -> Result<State> {
    let Some(LeadingPath { is_all, path }) = leading else { return Ok(State::Walk(Box::new(tree.walk()))) };
    match tree.walk_from(path).await {
        Ok(walk) if is_all => Ok(State::One(Box::new(walk))),
        Ok(walk) => Ok(State::Walk(Box::new(walk))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(State::End),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(State::Walk(Box::new(tree.walk()))),
        Err(error) => Err(error),
    }
}
