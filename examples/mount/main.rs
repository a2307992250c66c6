//! Mounts an archive of a snapshot read-only: the tree of a file archive, or an image as one file.
//! Run with: cargo run --release --example mount -- --store DIR SNAPSHOT ARCHIVE MOUNTPOINT

#[macro_use]
#[path = "../cli/mod.rs"]
mod cli;
#[cfg(target_os = "linux")]
mod filesystem;

use std::process::ExitCode;

use cli::keys::KeyArguments;
use cli::{Outcome, StoreArguments, Wanted, input};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: mount --store DIR [options] SNAPSHOT ARCHIVE MOUNTPOINT

  SNAPSHOT             such as host/name/2025-07-14T14:20:02Z; host/name/latest is the newest of the group
  ARCHIVE              a file archive such as root.pxar, mounted as a tree; or an image or a stream such as disk.img.fidx,
                       mounted as a directory with one file
  MOUNTPOINT           an existing directory

{}
{}
  --allow-other        other users may look too, as far as the modes of the files let them; without it, only who mounts

It serves until MOUNTPOINT is unmounted, or until SIGINT or SIGTERM and the end of its last user. Everything is read-only. Damaged files give I/O
errors, and what is wrong goes to standard error. Needs /dev/fuse, and unless root runs it, the program fusermount3.",
        cli::STORE_USAGE,
        cli::keys::KEY_USAGE
    )
}

/// Arguments of the command.
#[derive(Default)]
struct Arguments {
    allow_other: bool,
    key: KeyArguments,
    names: Vec<String>,
    store: StoreArguments,
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let mut arguments = Arguments::default();
    while let Some(argument) = cli::next(&mut parser)? {
        if argument == "--allow-other" {
            arguments.allow_other = true;
        } else if !argument.starts_with("--") {
            arguments.names.push(argument);
        } else if !arguments.store.take(&argument, &mut parser)?
            && !arguments.key.take(&argument, &mut parser)?
        {
            return Err(input(format!("{argument}: there is no such option")));
        }
    }
    let names = std::mem::take(&mut arguments.names);
    let [snapshot, archive, mountpoint] = names.as_slice() else {
        return Err(input("SNAPSHOT, ARCHIVE and MOUNTPOINT are wanted"));
    };
    let wanted: Wanted = snapshot.parse().map_err(|error| input(format!("{snapshot}: {error}")))?;
    let wanted = wanted.in_namespace(arguments.store.namespace());
    if !std::path::Path::new(mountpoint).is_dir() {
        return Err(input(format!("{mountpoint}: the mount point is a directory that exists")));
    }
    mount(&arguments, &wanted, archive, mountpoint)
}

/// Takes a mount that is in use out of the tree of directories. The unmounter of the session tries only once.
#[cfg(target_os = "linux")]
fn detach(mountpoint: &str) {
    use std::process::Command;
    let programs = [("umount", "-l"), ("fusermount3", "-uz")];
    let detached = programs.into_iter().any(|(program, options)| {
        let status = Command::new(program).args([options, "--", mountpoint]).status();
        status.is_ok_and(|status| status.success())
    });
    if !detached {
        eprintln!("{mountpoint} is still mounted; unmount it when nothing uses it");
    }
}

#[cfg(not(target_os = "linux"))]
fn mount(_: &Arguments, _: &Wanted, _: &str, _: &str) -> Outcome<()> {
    Err(cli::Failure::Work("this example mounts on Linux only".to_owned()))
}

#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]
fn mount(arguments: &Arguments, wanted: &Wanted, archive: &str, mountpoint: &str) -> Outcome<()> {
    use cli::signals::{arrived, interruptible};
    use cli::{Access, Failure, trees};
    use futures::executor::block_on;

    if !std::path::Path::new("/dev/fuse").exists() {
        let why = "mounting needs /dev/fuse, which this host does not have: load the kernel module fuse, or give the container the device";
        return Err(Failure::Work(why.to_owned()));
    }
    let runtime = cli::runtime();
    let key = block_on(arguments.key.key(runtime.as_ref()))?;
    let opened = block_on(arguments.store.open(&runtime, Access::Read))?;
    let prepared = block_on(interruptible(async {
        let name = wanted.name(&opened.store).await?;
        let snapshot = trees::open_snapshot(&opened.store, &name, key.as_ref()).await?;
        let contents = if trees::is_tree(archive) {
            filesystem::Contents::Tree(snapshot.tree(archive).await?)
        } else {
            filesystem::Contents::Archive(snapshot.archive(archive).await?)
        };
        filesystem::ReadOnly::new(contents, name.time().epoch()).await
    }));
    let served = prepared.and_then(|filesystem| {
        let failed = |error: std::io::Error| Failure::Work(format!("mount on {mountpoint}: {error}"));
        let mut session = filesystem.mount(mountpoint, arguments.allow_other).map_err(failed)?;
        let (mut unmounter, place) = (session.unmount_callable(), mountpoint.to_owned());
        std::thread::spawn(move || {
            block_on(arrived());
            if let Err(error) = unmounter.unmount() {
                eprintln!("unmount: {error}; it ends with its last user");
                detach(&place);
            }
        });
        println!("{archive} is mounted on {mountpoint}");
        session.run().map_err(failed)?;
        // A signal was the way to end it.
        Ok(())
    });
    block_on(opened.close())?;
    served
}
