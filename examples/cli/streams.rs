//! Standard output and standard error that may be closed or full. The macros here take the place of those of the standard
//! library, which panic there, in all code below `mod cli`.
//!
//! | | standard output | standard error |
//! |---|---|---|
//! | its reader went away | the rest is dropped, and the exit status is that of the rest of the run | the rest is dropped |
//! | it cannot be written to | the rest is dropped, one message on standard error, exit status 1 | the rest is dropped |

use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

macro_rules! println {
    () => {
        $crate::cli::streams::print(format_args!(""))
    };
    ($($argument:tt)*) => {
        $crate::cli::streams::print(format_args!($($argument)*))
    };
}

macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::cli::streams::tell(format_args!($($argument)*))
    };
}

/// Why nothing more is written to standard output.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// `true` once something was written to standard output, or it was reserved for data.
static USED: AtomicBool = AtomicBool::new(false);

/// Keeps standard output for data: it gets no JSON object.
pub(crate) fn reserve() {
    USED.store(true, Ordering::Relaxed);
}

/// Returns `true` if standard output is [reserved](reserve), or something was written to it.
pub(crate) fn is_used() -> bool {
    USED.load(Ordering::Relaxed)
}

/// Writes a line to standard output.
pub(crate) fn print(line: fmt::Arguments<'_>) {
    reserve();
    let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    if failed.is_none() {
        *failed = writeln!(io::stdout(), "{line}").err();
    }
}

/// Writes a line to standard error.
pub(crate) fn tell(line: fmt::Arguments<'_>) {
    // If this fails, nothing is left where that could be reported.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Flushes standard output, and returns why not all of it was written. A reader that has seen enough is no failure.
pub(crate) fn end() -> Option<io::Error> {
    let failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let failed = failed.or_else(|| io::stdout().flush().err());
    failed.filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
}
