//! Connects to a name with several addresses, in turns and without waiting for silent ones (H145).
//!
//! | event | action |
//! |---|---|
//! | start | try the first address |
//! | an attempt is 250 ms old | try the next address beside it |
//! | an attempt fails | try the next address at once |
//! | an attempt succeeds | drop all others |
//! | all have failed | return the first error |
//!
//! Address families take turns, beginning with that of the first address.
//!
//! Source: RFC 8305 §4 and §5.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::{self, Either};
use futures::stream::{FuturesUnordered, StreamExt as _};

/// Delay after which the next attempt begins beside a pending one.
const STAGGER: Duration = Duration::from_millis(250);

/// Returns the first connection to succeed.
pub(super) async fn connect_first<C, A, S>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> A,
    sleep: impl Fn(Duration) -> S,
) -> io::Result<C>
where
    A: Future<Output = io::Result<C>>,
    S: Future<Output = ()>,
{
    let mut waiting = in_turns(addresses).into_iter();
    let (mut attempts, mut first_error) = (FuturesUnordered::new(), None);
    loop {
        attempts.extend(waiting.next().map(&connect));
        if attempts.is_empty() {
            return Err(first_error.unwrap_or_else(|| io::Error::other("the name has no address")));
        }
        let deadline = async {
            if waiting.len() == 0 {
                future::pending::<()>().await;
            }
            sleep(STAGGER).await;
        };
        match future::select(attempts.next(), std::pin::pin!(deadline)).await {
            Either::Left((Some(Ok(connected)), _)) => return Ok(connected),
            Either::Left((Some(Err(error)), _)) => {
                first_error.get_or_insert(error);
            }
            Either::Left((None, _)) | Either::Right(_) => {}
        }
    }
}

/// The addresses, with alternating families.
fn in_turns(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.into_iter().peekable();
    let Some(first_is_6) = addresses.peek().map(SocketAddr::is_ipv6) else { return Vec::new() };
    let (first, second): (Vec<_>, Vec<_>) = addresses.partition(|address| address.is_ipv6() == first_is_6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        turns.extend(first.next());
        turns.extend(second.next());
    }
    turns
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::rt::{Runtime as _, SimRuntime};

    /// Outcome of each attempt by the last byte of its address, and the number of attempts dropped early.
    async fn attempt(runtime: SimRuntime, address: SocketAddr, open: &AtomicU32) -> io::Result<SocketAddr> {
        struct Open<'a>(&'a AtomicU32);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        open.fetch_add(1, Ordering::Relaxed);
        let _open = Open(open);
        match address.port() {
            1 => future::pending().await,
            2 => Err(io::ErrorKind::ConnectionRefused.into()),
            3 => Err(io::ErrorKind::HostUnreachable.into()),
            _ => {
                runtime.sleep(Duration::from_millis(100)).await;
                Ok(address)
            }
        }
    }

    /// The connected address or the error, and the milliseconds it took.
    fn run(addresses: &[&str]) -> (Result<String, io::ErrorKind>, u128) {
        let (runtime, open) = (SimRuntime::new(1), AtomicU32::new(0));
        let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let found = runtime.block_on(connect_first(
            addresses,
            |address| attempt(runtime.clone(), address, &open),
            |time| {
                let runtime = runtime.clone();
                async move { runtime.sleep(time).await }
            },
        ));
        assert_eq!(open.load(Ordering::Relaxed), 0, "nothing goes on");
        let found = found.map(|address| address.to_string()).map_err(|error| error.kind());
        (found, runtime.monotonic().as_millis())
    }

    /// Proves H145.
    #[test]
    fn a_silent_address_costs_a_quarter_of_a_second() {
        assert_eq!(run(&["1.1.1.1:9"]), (Ok("1.1.1.1:9".to_owned()), 100));
        assert_eq!(run(&["1.1.1.1:1", "1.1.1.2:9"]), (Ok("1.1.1.2:9".to_owned()), 350));
        assert_eq!(run(&["1.1.1.1:2", "1.1.1.2:9"]), (Ok("1.1.1.2:9".to_owned()), 100));
        assert_eq!(run(&["1.1.1.1:1", "1.1.1.2:2", "1.1.1.3:9"]), (Ok("1.1.1.3:9".to_owned()), 350));
        let all = ["[::1]:1", "[::2]:1", "1.1.1.1:9"];
        assert_eq!(run(&all), (Ok("1.1.1.1:9".to_owned()), 350), "the other family is next");
    }

    /// Proves H145.
    #[test]
    fn if_no_address_answers_the_first_error_is_returned() {
        assert_eq!(run(&[]), (Err(io::ErrorKind::Other), 0));
        assert_eq!(run(&["1.1.1.1:3", "1.1.1.2:2"]), (Err(io::ErrorKind::HostUnreachable), 0));
    }

    #[test]
    fn address_families_alternate() {
        let of =
            |texts: &[&str]| -> Vec<SocketAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let given = of(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"]);
        assert_eq!(in_turns(given), of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"]));
        assert!(in_turns([]).is_empty());
    }
}
