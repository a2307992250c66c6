//! Temporary names of entries that replace others, or that have their name only when they are whole.
//!
//! ```text
//! NAME.restoring-<16 digits> made → contents and metadata → renamed
//! ```
//! A crash leaves the existing entry or the new one, and at worst the temporary one, whose name says what it is.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd as _;

use rustix::fs::renameat;
use rustix::io::Errno;

use super::directories::{Parent, check_replaceable};
use super::own::exists;
use super::{DirectoryTarget, Existing};
use crate::rename;
use crate::rt::Runtime;
use crate::tree::Problem;
use crate::tree::restore::target::TargetError;

/// Makes an entry under a temporary name, which is returned too.
pub(super) fn make<T>(
    runtime: &dyn Runtime,
    name: &CStr,
    call: impl Fn(&CStr) -> Result<T, Errno>,
) -> Result<(T, CString), Errno> {
    loop {
        let mut random = [0; 8];
        runtime.fill_random(&mut random);
        let temporary = rename::temporary_name(name.to_bytes(), random);
        let temporary = CString::new(temporary).map_err(|_| Errno::INVAL)?;
        match call(&temporary) {
            Err(Errno::EXIST) => {}
            made => return made.map(|made| (made, temporary)),
        }
    }
}

/// Gives an entry its name, if that is free or the entry of another restore may be replaced.
pub(super) fn publish(
    target: &DirectoryTarget,
    parent: &Parent,
    (from, to): (&CStr, &CStr),
) -> Result<(), TargetError> {
    let (directory, existing) = (&parent.fd, target.existing);
    let renamed = if existing == Existing::Replace {
        let own = target.state.own();
        check_replaceable(parent, to, &own)?;
        renameat(directory, from, directory, to).map_err(io::Error::from)
    } else {
        rename::to_free_name_in(directory.as_fd(), from, to)
    };
    renamed.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::EXIST) if existing == Existing::Skip => target.state.own().skipped(directory, to),
        Some(Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY) => exists(Problem::Exists),
        _ => error.into(),
    })
}
