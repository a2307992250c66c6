//! New chunks from one far bucket to another, against plain gets and puts of the same chunks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use larder::backend::{Backend, PutMode};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::internal::blob::MAX_ENCODED_CHUNK_BYTES;
use larder::sync::{self, SyncOptions};

use crate::data::{CHUNK, back_up, speed, stored, timed};
use crate::far::{STORE, Server};
use crate::random::random;
use crate::report::{Report, Target};
use crate::{Outcome, Plan};

/// The part of the plain speed that is wanted.
const SHARE: f64 = 0.9;
/// How many plain copies are under way. They share the link, so that of more of them the first is there later, and until then there is
/// nothing to put: 16 are faster than 32 or 64.
const PLAIN_IN_FLIGHT: usize = 16;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Outcome<()> {
    for round in 0..plan.rounds {
        let data = random(7 + round as u64, plan.size);
        let chunks = stored(&data, CHUNK)?;
        block_on(one(round, &data, &chunks, report))?;
    }
    Ok(())
}

async fn one(round: usize, data: &[u8], chunks: &[(Digest, Bytes)], report: &mut Report) -> Outcome<()> {
    let (mut near, mut far) = (Server::start().await?, Server::start().await?);
    let first = near.process(None).await?;
    back_up(&first.store, data, CHUNK, None).await?;
    first.end().await?;
    let (source, target) = (near.process(None).await?, far.process(None).await?);
    target.take_lease().await?;
    let (from, to) = (near.backend(STORE)?, far.backend("plain")?);
    near.go_away()?;
    far.go_away()?;
    let mut plainly = Duration::ZERO;
    if !round.is_multiple_of(2) {
        plainly = timed(copy_plainly(&from, &to, chunks)).await?.0;
    }
    near.requests()?;
    far.requests()?;
    let (time, sent) = timed(async {
        let mut plan = sync::plan(&source.store, &target.store, SyncOptions::default()).await?;
        let done = plan.execute().await?;
        if !done.is_complete() {
            return Err(format!("not all was brought over: {done:?}").into());
        }
        Ok(done.stats().chunks_sent)
    })
    .await?;
    let (read, written) = (near.requests()?, far.requests()?);
    if round.is_multiple_of(2) {
        plainly = timed(copy_plainly(&from, &to, chunks)).await?.0;
    }
    source.end().await?;
    target.end().await?;
    let (speed, plain) = (speed(data.len(), time), speed(data.len(), plainly));
    report.add("sync: plain gets and puts, 16 at a time", plain, "MB/s", Target::Open);
    report.add("sync", speed, "MB/s", Target::Open);
    report.add("sync / plain gets and puts", speed / plain, "", Target::AtLeast(SHARE));
    let most = Some(chunks.len() as u64);
    *report.count("sync: requests about chunks, source", read.chunks(), most) = read.text();
    *report.count("sync: requests about chunks, target", written.chunks(), most) =
        format!("{sent} sent; {}", written.text());
    Ok(())
}

/// Reads each chunk here and stores it there, and nothing else.
async fn copy_plainly(
    from: &Arc<dyn Backend>,
    to: &Arc<dyn Backend>,
    chunks: &[(Digest, Bytes)],
) -> Outcome<()> {
    let copies = stream::iter(chunks.iter().map(|(digest, _)| *digest)).map(|digest| async move {
        let object = from.get(&Key::Chunk(digest), MAX_ENCODED_CHUNK_BYTES as u64).await?;
        to.put(&Key::Chunk(digest), object.bytes, PutMode::Create).await.map(drop)
    });
    Ok(copies.buffer_unordered(PLAIN_IN_FLIGHT).try_collect().await?)
}
