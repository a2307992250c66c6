//! `chown`: gives a store in a directory to another user, such as that of a PBS.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

use futures::future::{BoxFuture, FutureExt as _};

use crate::cli::{Access, Failure, Outcome, Owner, input, signals};
use crate::output::{Output, count};
use crate::{Asked, Command, Place};

pub(crate) const USAGE: &str = "\
chown USER[:GROUP]     give all files of a store in a directory to a user, by names or numbers. A PBS takes only a store that belongs to
                       its user, backup";

#[derive(Default)]
pub(crate) struct Chown {
    directory: PathBuf,
    owner: Option<Owner>,
}

impl Command for Chown {
    fn take(&mut self, _: &str, _: &mut lexopt::Parser) -> Outcome<bool> {
        Ok(false)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        let [owner] = asked.words.as_slice() else {
            return Err(input("chown: USER[:GROUP] is wanted"));
        };
        self.owner = Some(owner.parse().map_err(input)?);
        self.directory = match asked.store.place() {
            Some(place) if place.contains("://") => {
                return Err(input("chown: objects in a bucket belong to no user"));
            }
            place => place.unwrap_or_default().into(),
        };
        Ok(())
    }

    fn access(&self, _: &Asked) -> Access {
        // Files that a backup makes meanwhile belong to whom the directory of the chunks does when it begins.
        Access::Read
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let Some(owner) = self.owner else { return Ok(()) };
            at.bar.begin("changing owners", None);
            let mut done = 0;
            let failed =
                |path: PathBuf, error: io::Error| Failure::Work(format!("{}: {error}", path.display()));
            // The directory of the chunks comes before what is in it: a writer looks at whom it belongs to.
            let mut paths = vec![self.directory.clone()];
            while let Some(path) = paths.pop() {
                signals::check()?;
                let metadata = fs::symlink_metadata(&path);
                let metadata = match metadata {
                    // It was deleted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && done > 0 => continue,
                    metadata => metadata.map_err(|error| failed(path.clone(), error))?,
                };
                if (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid) {
                    if !at.asked.dry_run {
                        lchown(&path, Some(owner.uid), Some(owner.gid))
                            .map_err(|error| failed(path.clone(), error))?;
                    }
                    done += 1;
                }
                if metadata.is_dir() {
                    paths.extend(children(&path).map_err(|error| failed(path, error))?);
                }
            }
            at.bar.end();
            output.set("executed", !at.asked.dry_run);
            output.set("changed", done);
            let would = if at.asked.dry_run { "would get" } else { "got" };
            output.say(format!("{} {would} the owner {}:{}", count(done, "file"), owner.uid, owner.gid));
            Ok(())
        }
        .boxed()
    }
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
    };
    Ok(paths.into_iter().filter(|path| !path.ends_with("lost+found")).collect())
}
