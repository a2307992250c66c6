//! The contract of `Runtime`, on every implementation.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _, Cursor};
use larder::backend::MemoryBackend;
use larder::error::{Error, ErrorKind};
#[cfg(feature = "testing")]
use larder::internal::sim::Simulation as _;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options};
use larder_testing::on_every_runtime;

#[test]
fn spawned_tasks_run_without_a_waiter() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            let inner = Arc::clone(&runtime);
            runtime.spawn(Box::pin(async move {
                inner.sleep(Duration::from_millis(1)).await;
                sender.send(7).unwrap();
            }));
            assert_eq!(receiver.await, Ok(7));
        })
    });
}

#[test]
fn blocking_jobs_run_once_and_in_parallel_with_tasks() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let runs = Arc::new(AtomicUsize::new(0));
            let jobs = (0..50).map(|number| {
                let runs = Arc::clone(&runs);
                runtime.run_blocking("count", move || {
                    runs.fetch_add(1, Ordering::Relaxed);
                    Ok(number)
                })
            });
            let numbers: Vec<_> = futures::future::try_join_all(jobs).await.unwrap();
            assert_eq!(numbers, (0..50).collect::<Vec<_>>());
            assert_eq!(runs.load(Ordering::Relaxed), 50);
        })
    });
}

/// Proves H164.
#[test]
fn a_panicking_job_is_an_internal_error_and_affects_no_other_job() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            for _ in 0..20 {
                let job = || -> Result<(), Error> { std::panic::resume_unwind(Box::new("on purpose")) };
                let error = runtime.run_blocking("panic", job).await.unwrap_err();
                assert_eq!((error.kind(), error.action()), (ErrorKind::Internal, "panic"));
            }
            runtime.spawn(Box::pin(async { std::panic::resume_unwind(Box::new("on purpose")) }));
            assert_eq!(runtime.run_blocking("work", || Ok(1)).await.unwrap(), 1);
            runtime.sleep(Duration::from_millis(1)).await;
        })
    });
}

#[test]
fn a_job_runs_to_its_end_although_its_future_was_dropped() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            let (open, gate) = std::sync::mpsc::channel();
            let job = runtime.run_blocking("send", move || {
                gate.recv().unwrap();
                sender.send(()).unwrap();
                Ok(())
            });
            // Polled once, so that the job is on its way, and dropped before it can end.
            assert!(futures::FutureExt::now_or_never(job).is_none());
            open.send(()).unwrap();
            assert_eq!(receiver.await, Ok(()));
        })
    });
}

#[test]
fn sleeps_end_in_order_and_the_clock_is_monotonic() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let start = runtime.monotonic();
            let late = runtime.sleep(Duration::from_hours(1));
            let early = runtime.sleep(Duration::from_millis(5));
            // The one that was asked for later ends first, however busy the machine is.
            let first = futures::future::select(late, early).await;
            assert!(matches!(first, futures::future::Either::Right(_)));
            assert!(runtime.monotonic() >= start + Duration::from_millis(5));
            let start = runtime.monotonic();
            runtime.sleep(Duration::from_millis(30)).await;
            assert!(runtime.monotonic() >= start + Duration::from_millis(30));
        })
    });
}

#[test]
fn random_bytes_differ() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let (mut one, mut other) = ([0; 33], [0; 33]);
            runtime.fill_random(&mut one);
            runtime.fill_random(&mut other);
            assert_ne!(one, other);
            assert!(runtime.parallelism().get() >= 1);
        })
    });
}

/// Proves H155.
///
/// The number of jobs that ran at once, found by letting each wait for the others as long as more come.
#[test]
fn the_pool_of_blocking_threads_is_bounded() {
    let most = 3;
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::with_threads(most.try_into().unwrap()));
    let (started, running) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    for _ in 0..10 {
        let (started, wait) = (started.clone(), Arc::clone(&wait));
        runtime.spawn_blocking(Box::new(move || {
            started.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
        }));
    }
    for _ in 0..most {
        running.recv().unwrap();
    }
    assert!(running.try_recv().is_err(), "a fourth job runs beside three that have not ended");
    for _ in 0..10 {
        release.send(()).unwrap();
    }
    for _ in most..10 {
        running.recv().unwrap();
    }
}

/// Echoes one connection and hangs up.
fn echo() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::Builder::new()
        .spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut buffer = vec![0; 10_000];
            loop {
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    read => writer.write_all(&buffer[..read]).unwrap(),
                }
            }
            writer.shutdown(std::net::Shutdown::Both).unwrap();
        })
        .unwrap();
    port
}

async fn exchange(connection: Box<dyn larder::rt::Connection>) {
    let sent = larder_testing::noise(1, 1 << 20);
    let (mut reader, mut writer) = connection.split();
    let send = async {
        writer.write_all(&sent).await.unwrap();
        writer.close().await.unwrap();
    };
    let receive = async {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        received
    };
    let ((), received) = futures::join!(send, receive);
    assert!(received == sent);
}

fn on_real_runtimes(body: fn(Arc<dyn Runtime>) -> BoxFuture<'static, ()>) {
    futures::executor::block_on(body(Arc::new(ThreadRuntime::new())));
    #[cfg(feature = "tokio")]
    {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let runtime: Arc<dyn Runtime> = Arc::new(larder::rt::TokioRuntime::new(tokio.handle().clone()));
        tokio.block_on(body(Arc::clone(&runtime)));
        // Outside of the runtime too.
        futures::executor::block_on(body(runtime));
    }
    #[cfg(feature = "smol")]
    futures::executor::block_on(body(Arc::new(larder::rt::SmolRuntime::new())));
}

#[test]
fn connections_carry_bytes_in_both_directions_until_closed() {
    on_real_runtimes(|runtime| {
        Box::pin(async move {
            exchange(runtime.connect("127.0.0.1", echo()).await.unwrap()).await;
        })
    });
}

/// Proves H156.
///
/// The library starts no runtime and blocks on none, so that its futures are polled inside of any other one and outside.
#[test]
fn a_backup_runs_inside_and_outside_of_any_executor() {
    let own = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let alone = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let threads: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let runtimes = [
        threads,
        #[cfg(feature = "tokio")]
        Arc::new(larder::rt::TokioRuntime::new(own.handle().clone())),
    ];
    for runtime in runtimes {
        let run = || backup_and_restore(Arc::clone(&runtime));
        futures::executor::block_on(run());
        own.block_on(run());
        alone.block_on(run());
        alone.block_on(async { alone.spawn(run()).await.unwrap() });
        many.block_on(async { many.spawn(run()).await.unwrap() });
    }
}

async fn backup_and_restore(runtime: Arc<dyn Runtime>) {
    let store = Datastore::create(Arc::new(MemoryBackend::new(runtime)), Options::default()).await.unwrap();
    let data = larder_testing::noise(1, 1 << 20);
    let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
    backup.stream("data.bin", Cursor::new(data.clone())).await.unwrap();
    let snapshot = backup.finish().await.unwrap().snapshot;
    let mut read = Vec::new();
    snapshot.archive("data.bin.didx").await.unwrap().read_to_end(&mut read).await.unwrap();
    assert!(read == data);
    // A backup that is dropped is cleaned up in the background, and blocks nothing either.
    drop(store.backup(&"host/a".parse().unwrap()).begin().await.unwrap());
}

#[test]
fn a_connection_to_a_closed_port_is_an_error() {
    on_real_runtimes(|runtime| {
        Box::pin(async move {
            let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let error = runtime.connect("127.0.0.1", port).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        })
    });
}

#[cfg(feature = "testing")]
mod simulated {
    use larder::rt::SimRuntime;

    use super::*;

    /// Ten tasks that take turns; the order in which they did.
    fn order(seed: u64) -> (Vec<usize>, u64, u64) {
        let sim = SimRuntime::new(seed);
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let (sender, receiver) = mpsc::channel();
        for number in 0..10 {
            let (runtime, sender) = (Arc::clone(&runtime), sender.clone());
            sim.spawn(Box::pin(async move {
                for _ in 0..3 {
                    runtime.run_blocking("turn", || Ok(())).await.unwrap();
                    sender.send(number).unwrap();
                }
            }));
        }
        sim.run_until_idle();
        (receiver.try_iter().collect(), sim.steps(), sim.trace())
    }

    #[test]
    fn a_seed_decides_the_schedule() {
        assert_eq!(order(1), order(1));
        assert_eq!(order(1).0.len(), 30);
        assert_ne!(order(1).0, order(2).0);
        assert_ne!(order(1).2, order(2).2);
    }

    #[test]
    fn a_simulated_day_takes_no_real_time() {
        let sim = SimRuntime::new(0);
        let day = Duration::from_hours(24);
        let before = sim.now();
        sim.block_on(sim.sleep(day));
        assert_eq!(sim.monotonic(), day);
        assert_eq!(sim.now(), before + day);
        sim.set_clock_back(2 * day);
        assert_eq!(sim.now(), before - day);
        sim.set_clock_forward(day);
        assert_eq!((sim.now(), sim.monotonic()), (before, day));
    }

    #[test]
    fn a_suspension_advances_clocks_but_not_timers() {
        let sim = SimRuntime::new(0);
        let (hour, before) = (Duration::from_hours(1), sim.now());
        sim.block_on(async {
            let timer = sim.sleep(Duration::from_secs(10));
            futures::pin_mut!(timer);
            assert!(futures::poll!(timer.as_mut()).is_pending());
            sim.suspend(hour);
            assert_eq!((sim.now(), sim.monotonic()), (before + hour, hour));
            assert!(futures::poll!(timer.as_mut()).is_pending());
            timer.await;
        });
        assert_eq!(sim.monotonic(), hour + Duration::from_secs(10));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_deadlock_of_the_simulation_panics() {
        SimRuntime::new(0).block_on(futures::future::pending::<()>());
    }

    #[test]
    fn a_port_has_one_listener_at_a_time() {
        let sim = SimRuntime::new(4);
        sim.block_on(async {
            let mut first = sim.listen(80).unwrap();
            // A task waits for a connection while the port is asked for again.
            let (sender, ended) = futures::channel::oneshot::channel();
            sim.spawn(Box::pin(async move {
                let _ = first.accept().await;
                drop(first);
                let _ = sender.send(());
            }));
            sim.sleep(Duration::from_secs(1)).await;
            assert_eq!(sim.listen(80).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
            drop(sim.connect("anywhere", 80).await.unwrap());
            ended.await.unwrap();
            let mut second = sim.listen(80).unwrap();
            let (accepted, connected) = futures::join!(second.accept(), sim.connect("anywhere", 80));
            assert!(accepted.is_ok() && connected.is_ok());
        });
    }

    #[test]
    fn simulated_connections_are_in_memory() {
        let sim = SimRuntime::new(3);
        sim.block_on(async {
            assert!(sim.connect("anywhere", 80).await.is_err());
            let mut listener = sim.listen(80).unwrap();
            let connection = sim.connect("anywhere", 80).await.unwrap();
            let serve = async {
                let (mut reader, mut writer) = listener.accept().await.unwrap().split();
                let mut buffer = vec![0; 1000];
                loop {
                    match reader.read(&mut buffer).await.unwrap() {
                        0 => break,
                        read => writer.write_all(&buffer[..read]).await.unwrap(),
                    }
                }
                writer.close().await.unwrap();
            };
            futures::join!(serve, exchange(connection));
        });
    }
}

/// Proves H17.
///
/// Another runtime must understand the times that one runtime recorded for requests in doubt.
#[test]
fn the_runtimes_of_a_process_have_one_monotonic_clock() {
    let early = ThreadRuntime::new();
    futures::executor::block_on(early.sleep(Duration::from_millis(20)));
    let (before, late) = (early.monotonic(), ThreadRuntime::new());
    let between = late.monotonic();
    assert!(before <= between && between <= early.monotonic());
}
