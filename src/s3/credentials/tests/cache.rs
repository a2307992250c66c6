//! When a client asks its provider. Proves H153.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join_all, poll_immediate, select};

use crate::error::{Error, ErrorKind, Result};
use crate::rt::{Runtime, SimRuntime};
use crate::s3::credentials::{CredentialProvider, Credentials, Keeper};

/// Credentials with a number, or a failure.
#[derive(Debug)]
struct Numbered {
    asked: Mutex<Vec<Duration>>,
    failure: Mutex<Option<ErrorKind>>,
    lifetime: Option<Duration>,
    /// Time that a call takes.
    takes: Duration,
}

impl Numbered {
    fn new(lifetime: Option<Duration>) -> Arc<Self> {
        let takes = Duration::from_millis(500);
        Arc::new(Self { asked: Mutex::default(), failure: Mutex::default(), lifetime, takes })
    }

    fn fails(&self, kind: Option<ErrorKind>) {
        *self.failure.lock().unwrap() = kind;
    }

    fn calls(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl CredentialProvider for Numbered {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(runtime.monotonic());
            asked.len()
        };
        runtime.sleep(self.takes).await;
        if let Some(kind) = *self.failure.lock().unwrap() {
            return Err(Error::new(kind, "ask"));
        }
        let credentials = Credentials::new(number.to_string(), "hidden");
        Ok(match self.lifetime {
            Some(lifetime) => credentials.expires(runtime.now() + lifetime),
            None => credentials,
        })
    }
}

const HOUR: Duration = Duration::from_hours(1);

async fn number(keeper: &Keeper, sim: &SimRuntime) -> Result<String, ErrorKind> {
    keeper.current(sim).await.map(|credentials| credentials.access_key_id).map_err(|error| error.kind())
}

async fn until(sim: &SimRuntime, moment: Duration) {
    sim.sleep(moment.saturating_sub(sim.monotonic())).await;
}

/// Proves H153.
#[test]
fn many_callers_fetch_once() {
    for seed in 0..20 {
        let (sim, provider) = (SimRuntime::new(seed), Numbered::new(Some(HOUR)));
        let keeper = Keeper::new(provider.clone());
        sim.block_on(async {
            let first = join_all((0..50).map(|_| number(&keeper, &sim))).await;
            assert!(first.iter().all(|number| *number == Ok("1".to_owned())), "{first:?}");
            until(&sim, Duration::from_mins(53)).await;
            let second = join_all((0..50).map(|_| number(&keeper, &sim))).await;
            let fresh = second.iter().filter(|number| **number == Ok("2".to_owned())).count();
            assert_eq!(fresh, 1, "one fetches, and the others use what is valid: {second:?}");
            assert_eq!(number(&keeper, &sim).await, Ok("2".to_owned()));
            assert_eq!(provider.calls(), 2);
        });
    }
}

#[test]
fn the_refresh_time_is_before_the_expiry_and_differs_between_hosts() {
    let mut moments = Vec::new();
    for seed in 0..20 {
        let (sim, provider) = (SimRuntime::new(seed), Numbered::new(Some(HOUR)));
        let keeper = Keeper::new(provider.clone());
        sim.block_on(async {
            while provider.calls() < 2 {
                number(&keeper, &sim).await.unwrap();
                sim.sleep(Duration::from_secs(1)).await;
            }
        });
        moments.push(provider.asked.lock().unwrap()[1]);
    }
    let (min, max) = (moments.iter().min().unwrap(), moments.iter().max().unwrap());
    assert!(*min >= Duration::from_mins(50) && *max <= Duration::from_secs(3153), "{moments:?}");
    assert!(*max > *min + Duration::from_mins(1), "{moments:?}");
}

#[test]
fn callers_wait_for_others_in_the_last_minute() {
    let (sim, provider) = (SimRuntime::new(3), Numbered::new(Some(HOUR)));
    let keeper = Keeper::new(provider.clone());
    sim.block_on(async {
        number(&keeper, &sim).await.unwrap();
        until(&sim, Duration::from_secs(3570)).await;
        let numbers = join_all((0..50).map(|_| number(&keeper, &sim))).await;
        assert!(numbers.iter().all(|number| *number == Ok("2".to_owned())), "{numbers:?}");
    });
    assert_eq!(provider.calls(), 2);
}

/// Proves H153.
#[test]
fn valid_credentials_are_used_while_refreshes_fail_with_growing_pauses() {
    let (sim, provider) = (SimRuntime::new(4), Numbered::new(Some(HOUR)));
    let keeper = Keeper::new(provider.clone());
    sim.block_on(async {
        number(&keeper, &sim).await.unwrap();
        provider.fails(Some(ErrorKind::Denied));
        while sim.monotonic() < HOUR {
            assert_eq!(number(&keeper, &sim).await, Ok("1".to_owned()));
            sim.sleep(Duration::from_millis(100)).await;
        }
        let calls = provider.calls();
        assert!((10..=35).contains(&calls), "{calls} in ten minutes");
        until(&sim, HOUR + Duration::from_secs(1)).await;
        let error = number(&keeper, &sim).await;
        assert_eq!(error, Err(ErrorKind::Denied));
        let calls = provider.calls();
        let errors = join_all((0..50).map(|_| number(&keeper, &sim))).await;
        assert!(errors.iter().all(|error| *error == Err(ErrorKind::Denied)));
        assert_eq!(provider.calls(), calls, "callers of one backoff share one failure");
        provider.fails(None);
        sim.sleep(Duration::from_mins(1)).await;
        assert!(number(&keeper, &sim).await.is_ok());
    });
}

/// Proves H153.
#[test]
fn a_provider_that_is_not_available_is_asked_three_times() {
    let (sim, provider) = (SimRuntime::new(5), Numbered::new(None));
    let keeper = Keeper::new(provider.clone());
    sim.block_on(async {
        for (kind, calls) in
            [(ErrorKind::Unavailable, 3), (ErrorKind::Denied, 1), (ErrorKind::InvalidInput, 1)]
        {
            let before = provider.calls();
            provider.fails(Some(kind));
            assert_eq!(number(&keeper, &sim).await, Err(kind));
            assert_eq!(provider.calls() - before, calls, "{kind:?}");
            sim.sleep(Duration::from_mins(1)).await;
        }
        for kind in [ErrorKind::NotFound, ErrorKind::Corrupt, ErrorKind::Conflict, ErrorKind::Unsupported] {
            provider.fails(Some(kind));
            assert_eq!(
                number(&keeper, &sim).await,
                Err(ErrorKind::Denied),
                "{kind:?} would speak of an object"
            );
            sim.sleep(Duration::from_mins(1)).await;
        }
    });
}

#[test]
fn rejected_credentials_are_replaced_at_once_even_in_a_backoff() {
    let (sim, provider) = (SimRuntime::new(6), Numbered::new(Some(HOUR)));
    let keeper = Keeper::new(provider.clone());
    sim.block_on(async {
        let first = keeper.current(&sim).await.unwrap();
        until(&sim, Duration::from_mins(55)).await;
        provider.fails(Some(ErrorKind::Denied));
        assert_eq!(number(&keeper, &sim).await, Ok("1".to_owned()));
        provider.fails(None);
        keeper.expired(&first);
        let second = keeper.current(&sim).await.unwrap();
        assert_eq!(second.access_key_id, "3");
        keeper.expired(&first);
        assert_eq!(number(&keeper, &sim).await, Ok("3".to_owned()), "only those in use are dropped");
    });
}

#[test]
fn credentials_that_look_expired_when_they_arrive_are_tried() {
    let (sim, provider) = (SimRuntime::new(7), Numbered::new(Some(Duration::ZERO)));
    let keeper = Keeper::new(provider.clone());
    sim.block_on(async {
        for _ in 0..100 {
            assert!(number(&keeper, &sim).await.is_ok(), "the clock of this host may be wrong");
            sim.sleep(Duration::from_millis(500)).await;
        }
    });
    assert!((4..=6).contains(&provider.calls()), "{}", provider.calls());
}

#[test]
fn a_dropped_fetch_is_taken_over_by_another_caller() {
    let (sim, provider) = (SimRuntime::new(8), Numbered::new(None));
    let keeper = Keeper::new(provider.clone());
    sim.block_on(async {
        let mut first = Box::pin(number(&keeper, &sim));
        assert!(poll_immediate(&mut first).await.is_none());
        let second = Box::pin(number(&keeper, &sim));
        let waited = select(second, sim.sleep(Duration::from_millis(100))).await;
        let futures::future::Either::Right(((), second)) = waited else { panic!("it did not wait") };
        drop(first);
        assert_eq!(second.await, Ok("2".to_owned()));
    });
}
