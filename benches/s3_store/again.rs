//! A second backup of data that has not changed: what it asks of the server.

use std::path::Path;

use futures::executor::block_on;

use crate::data::{CHUNK, back_up, newest, timed};
use crate::far::{Requests, Server};
use crate::random::random;
use crate::report::{Report, Target};
use crate::{Outcome, Plan};

/// How many bytes are backed up.
const BYTES: usize = 256 << 20;

/// Whether the backup before is named as the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    None,
    Before,
}

pub(crate) fn run(_: &Plan, report: &mut Report) -> Outcome<()> {
    let data = random(2 << 20, BYTES);
    let directory = tempfile::tempdir()?;
    let mut server = block_on(Server::start())?;
    block_on(async {
        let first = server.process(Some(directory.path())).await?;
        back_up(&first.store, &data, CHUNK, None).await?;
        first.end().await
    })?;
    server.go_away()?;
    for (what, local, base) in [
        ("unchanged, local state, no base", Some(directory.path()), Base::None),
        ("unchanged, local state, base", Some(directory.path()), Base::Before),
        ("unchanged, no local state, base", None, Base::Before),
    ] {
        let (seconds, requests) = block_on(second(&mut server, &data, local, base))?;
        *report.count(&format!("{what}: about chunks"), requests.chunks(), Some(0)) = requests.text();
        if base == Base::Before {
            report.count(&format!("{what}: reads of the index"), requests.of("GET index"), Some(1));
        }
        report.count(&format!("{what}: all"), requests.total(), None);
        report.add(&format!("{what}: time"), seconds, "s", Target::Open);
    }
    Ok(())
}

/// By a process that begins; opening and closing are not counted.
async fn second(
    server: &mut Server,
    data: &[u8],
    local: Option<&Path>,
    base: Base,
) -> Outcome<(f64, Requests)> {
    let process = server.process(local).await?;
    process.take_lease().await?;
    server.requests()?;
    let (time, ()) = timed(async {
        let base = if base == Base::Before { Some(newest(&process.store).await?) } else { None };
        back_up(&process.store, data, CHUNK, base.as_ref()).await.map(drop)
    })
    .await?;
    let requests = server.requests()?;
    process.end().await?;
    Ok((time.as_secs_f64(), requests))
}
