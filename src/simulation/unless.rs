//! An action for an operation that does not come to its end, also if a crash ends its actor.

/// Executes an action when it is dropped, unless it was defused.
pub(crate) struct Unless<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Unless<F> {
    pub(crate) fn done(otherwise: F) -> Self {
        Self(Some(otherwise))
    }

    pub(crate) fn settle(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Unless<F> {
    fn drop(&mut self) {
        if let Some(otherwise) = self.0.take() {
            otherwise();
        }
    }
}
