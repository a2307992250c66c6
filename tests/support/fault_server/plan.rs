//! The combined actions of all rules for one request.

use std::time::Duration;

use super::rule::{Action, Flip, Framing, Lag};

/// The actions for one request.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
}

/// The end of a pause.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    For(Duration),
    UntilReleased,
}

impl Plan {
    pub(super) fn new(actions: Vec<Action>) -> Self {
        Self { actions }
    }

    pub(super) fn has(&self, is: impl Fn(&Action) -> bool) -> bool {
        self.actions.iter().any(is)
    }

    pub(super) fn closes_after_response(&self) -> bool {
        self.has(|action| matches!(action, Action::CloseAfterResponse))
    }

    pub(super) fn cut_request(&self) -> Option<u64> {
        self.find(|action| if let Action::CutRequestAt(bytes) = action { Some(*bytes) } else { None })
    }

    pub(super) fn cut_response(&self) -> Option<usize> {
        self.find(|action| if let Action::CutResponseAt(bytes) = action { Some(*bytes) } else { None })
    }

    pub(super) fn delay(&self) -> Option<Wait> {
        self.find(|action| match action {
            Action::Delay(time) => Some(Wait::For(*time)),
            Action::DelayUntilReleased => Some(Wait::UntilReleased),
            _ => None,
        })
    }

    pub(super) fn drip(&self) -> Option<(usize, Duration)> {
        self.find(
            |action| if let Action::Drip { bytes, every } = action { Some((*bytes, *every)) } else { None },
        )
    }

    pub(super) fn executes_late(&self) -> Option<Wait> {
        self.find(|action| match action {
            Action::ExecuteLate(time) => Some(Wait::For(*time)),
            Action::ExecuteWhenReleased => Some(Wait::UntilReleased),
            _ => None,
        })
    }

    pub(super) fn executes_then_drops(&self) -> bool {
        self.has(|action| matches!(action, Action::ExecuteThenDrop))
    }

    pub(super) fn flips(&self, where_to: Flip) -> bool {
        self.has(|action| matches!(action, Action::FlipBit(flip) if *flip == where_to))
    }

    pub(super) fn framing(&self) -> Option<Framing> {
        self.find(|action| if let Action::Framing(framing) = action { Some(*framing) } else { None })
    }

    pub(super) fn informational(&self) -> Option<(usize, u16)> {
        self.find(|action| {
            if let Action::Informational(times, status) = action { Some((*times, *status)) } else { None }
        })
    }

    pub(super) fn lag(&self) -> Option<Lag> {
        self.find(|action| if let Action::ListingLag(lag) = action { Some(*lag) } else { None })
    }

    /// The code with which multi-delete refuses a key.
    pub(super) fn refuses_key(&self, key: &str) -> Option<&'static str> {
        self.find(|action| match action {
            Action::RefuseKeys(which, code) if which(key) => Some(*code),
            _ => None,
        })
    }

    pub(super) fn repeats_page(&self) -> bool {
        self.has(|action| matches!(action, Action::RepeatPage))
    }

    pub(super) fn responds_early(&self) -> bool {
        self.has(|action| matches!(action, Action::RespondEarly))
    }

    /// Seconds by which the clock is wrong, if that is to be noticed.
    pub(super) fn skew(&self) -> Option<i64> {
        self.find(|action| if let Action::SkewClock(seconds) = action { Some(*seconds) } else { None })
    }

    pub(super) fn stall_response(&self) -> Option<usize> {
        self.find(|action| if let Action::StallResponseAt(bytes) = action { Some(*bytes) } else { None })
    }

    /// The number of bytes kept of a body that is not read further.
    pub(super) fn store_cut(&self) -> Option<u64> {
        self.find(|action| if let Action::StoreCutAt(bytes) = action { Some(*bytes) } else { None })
    }

    pub(super) fn stops_reading(&self) -> bool {
        self.has(|action| matches!(action, Action::StopReading))
    }

    fn find<T>(&self, which: impl Fn(&Action) -> Option<T>) -> Option<T> {
        self.actions.iter().find_map(which)
    }
}
