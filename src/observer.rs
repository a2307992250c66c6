//! Observers of progress.

use std::fmt;

/// Observer of the events of an operation. Every closure `Fn(&E)` is one.
///
/// The working task calls it, often several times a second, so it must return at once and must not block. Each operation has its own
/// type of event.
pub trait Observer<E: ?Sized>: Send + Sync + 'static {
    /// Called for each event.
    fn on_event(&self, event: &E);
}

impl<E: ?Sized, F: Fn(&E) + Send + Sync + 'static> Observer<E> for F {
    fn on_event(&self, event: &E) {
        self(event);
    }
}

impl<E: ?Sized> fmt::Debug for dyn Observer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
