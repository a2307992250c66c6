//! New data to the server and back, against plain puts and gets.

use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use larder::format::Digest;

use crate::data::{
    CHUNK, back_up, copy_out, get_in_turn, get_plainly, newest, opened, put_plainly, speed, stored, timed,
};
use crate::far::{DELAY, Process, RATE, Requests, STORE, Server, heartbeats_in};
use crate::random::random;
use crate::report::{Report, Target};
use crate::{Outcome, Plan};

/// The part of the plain speed that is wanted.
const SHARE: f64 = 0.9;
/// How many times as fast as a reader that does one after the other a restore is to be.
const TIMES: f64 = 10.0;
/// The length of small chunks, and how many there are.
const SMALL: usize = 64 << 10;
const SMALL_COUNT: usize = 2048;
/// How many bytes are read one after the other.
const IN_TURN: usize = 64 << 20;
const SMALL_IN_TURN: usize = 4 << 20;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Outcome<()> {
    for round in 0..plan.rounds {
        let data = random(round as u64, plan.size);
        let chunks = stored(&data, CHUNK)?;
        block_on(upload(round, &data, &chunks, report))?;
        block_on(restore(round, &data, &chunks, report))?;
    }
    Ok(())
}

/// A backup of new data, and puts of the same chunks into another store: how long each takes, and the requests of the backup.
async fn uploaded(
    round: usize,
    data: &[u8],
    chunks: &[(Digest, Bytes)],
    chunk: usize,
) -> Outcome<(Duration, Duration, Requests)> {
    let mut server = Server::start().await?;
    let process = server.process(None).await?;
    let plain = server.backend("plain")?;
    process.take_lease().await?;
    server.go_away()?;
    let mut plainly = Duration::ZERO;
    if !round.is_multiple_of(2) {
        plainly = timed(put_plainly(&plain, chunks)).await?.0;
    }
    server.requests()?;
    let (time, _) = timed(back_up(&process.store, data, chunk, None)).await?;
    let requests = server.requests()?;
    if round.is_multiple_of(2) {
        plainly = timed(put_plainly(&plain, chunks)).await?.0;
    }
    process.end().await?;
    Ok((time, plainly, requests))
}

async fn upload(round: usize, data: &[u8], chunks: &[(Digest, Bytes)], report: &mut Report) -> Outcome<()> {
    let (time, plainly, requests) = uploaded(round, data, chunks, CHUNK).await?;
    let (speed, plain) = (speed(data.len(), time), speed(data.len(), plainly));
    report.add("new data: plain puts, 32 at a time", plain, "MB/s", Target::Open);
    report.add("new data: backup", speed, "MB/s", Target::Open);
    report.add("new data: backup / plain puts", speed / plain, "", Target::AtLeast(SHARE));
    let (count, archives) = (chunks.len() as u64, 1);
    let most = count + 2 * (archives + 1) + 4;
    *report.count("new data: requests of the backup", requests.total(), Some(most)) =
        format!("{count} chunks; {}", requests.text());
    let heartbeats = Some(heartbeats_in(time));
    report.count("new data: requests of the backup, heartbeats", requests.heartbeats(), heartbeats);
    let looks = requests.of("GET chunk") + requests.of("HEAD chunk");
    report.count("new data: looks at single chunks", looks, Some(0));
    report.count("new data: listings of chunks", requests.of("LIST chunk"), Some(0));
    Ok(())
}

/// A restore without local copies, gets of the same chunks, and a reader that does one after the other.
async fn restore(round: usize, data: &[u8], chunks: &[(Digest, Bytes)], report: &mut Report) -> Outcome<()> {
    let times = restored(round, data, chunks, CHUNK, IN_TURN).await?;
    let plain = speed(data.len(), times.plain);
    let restored = speed(data.len(), times.restore);
    let in_turn = speed(IN_TURN.min(data.len()), times.in_turn);
    report.add("cold restore: plain gets, 32 at a time", plain, "MB/s", Target::Open);
    report.add("cold restore", restored, "MB/s", Target::Open);
    report.add("cold restore / plain gets", restored / plain, "", Target::AtLeast(SHARE));
    report.add("cold restore: one chunk of 4 MiB after the other", in_turn, "MB/s", Target::Open);
    *report.add("cold restore / one of 4 MiB after the other", restored / in_turn, "", Target::Open) =
        format!("the link keeps it below {:.2}", bound(CHUNK));
    Ok(())
}

/// How many times as fast as one chunk after the other the link can be: it carries them all the time, and not only after each
/// delay.
fn bound(chunk: usize) -> f64 {
    1.0 + DELAY.as_secs_f64() * RATE as f64 / chunk as f64
}

/// Small chunks, where the delay counts.
pub(crate) fn run_small(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let data = random(1 << 20, SMALL * SMALL_COUNT);
    let chunks = stored(&data, SMALL)?;
    for round in 0..plan.rounds {
        let (time, plainly, _) = block_on(uploaded(round, &data, &chunks, SMALL))?;
        let (backup, plain) = (speed(data.len(), time), speed(data.len(), plainly));
        report.add("chunks of 64 KiB: plain puts, 32 at a time", plain, "MB/s", Target::Open);
        report.add("chunks of 64 KiB: backup", backup, "MB/s", Target::Open);
        report.add("chunks of 64 KiB: backup / plain puts", backup / plain, "", Target::AtLeast(SHARE));
        let times = block_on(restored(round, &data, &chunks, SMALL, SMALL_IN_TURN))?;
        let (restored, plain) = (speed(data.len(), times.restore), speed(data.len(), times.plain));
        let in_turn = speed(SMALL_IN_TURN, times.in_turn);
        report.add("chunks of 64 KiB: plain gets, 32 at a time", plain, "MB/s", Target::Open);
        report.add("chunks of 64 KiB: cold restore", restored, "MB/s", Target::Open);
        report.add("chunks of 64 KiB: restore / plain gets", restored / plain, "", Target::AtLeast(SHARE));
        report.add("chunks of 64 KiB: one after the other", in_turn, "MB/s", Target::Open);
        let name = "chunks of 64 KiB: restore / one after the other";
        *report.add(name, restored / in_turn, "", Target::AtLeast(TIMES)) =
            format!("the link keeps it below {:.1}", bound(SMALL));
    }
    Ok(())
}

struct Times {
    in_turn: Duration,
    plain: Duration,
    restore: Duration,
}

async fn restored(
    round: usize,
    data: &[u8],
    chunks: &[(Digest, Bytes)],
    chunk: usize,
    in_turn: usize,
) -> Outcome<Times> {
    let mut server = Server::start().await?;
    let first = server.process(None).await?;
    back_up(&first.store, data, chunk, None).await?;
    first.end().await?;
    let process: Process = server.process(None).await?;
    let plain = server.backend(STORE)?;
    server.go_away()?;
    let mut plainly = Duration::ZERO;
    if !round.is_multiple_of(2) {
        plainly = timed(get_plainly(&plain, chunks)).await?.0;
    }
    let (restore, size) = timed(async {
        let archive = opened(&newest(&process.store).await?).await?;
        copy_out(&archive).await
    })
    .await?;
    if size != data.len() as u64 {
        return Err("not all was restored".into());
    }
    if round.is_multiple_of(2) {
        plainly = timed(get_plainly(&plain, chunks)).await?.0;
    }
    let some = &chunks[..(in_turn / chunk).min(chunks.len())];
    let (in_turn, ()) = timed(get_in_turn(&plain, some, chunk)).await?;
    process.end().await?;
    Ok(Times { in_turn, plain: plainly, restore })
}
