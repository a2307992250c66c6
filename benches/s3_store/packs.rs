//! Packed stores beside loose ones.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use larder::backend::{Backend, PutMode};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::gc::{self, GcOptions};
use larder::internal::packs::segment;

use crate::data::{CHUNK, back_up, copy_out, newest, opened, speed, timed};
use crate::far::{Form, Requests, STORE, Server};
use crate::random::random;
use crate::report::{Report, Target};
use crate::server::bucket::filler;
use crate::{Outcome, Plan};

const SMALL: usize = 64 << 10;
const PACK: usize = 32 << 20;
/// Plain requests of the size of a pack at the same time.
const PLAIN_IN_FLIGHT: usize = 4;
const GIB: f64 = (1_u64 << 30) as f64;
const MIB: usize = 1 << 20;

/// The chunks of 1 TiB, those in a pack, and packs of which nothing is in use: one of so many.
const CHUNKS: u64 = 1 << 18;
const IN_PACK: u64 = 8;
const GARBAGE: u64 = 20;
/// Number of chunks of a store that is opened.
const MANY: u64 = 10_000_000;

/// Goals for one size of chunks.
struct Goals {
    chunk: usize,
    gets: f64,
    name: &'static str,
    puts: f64,
    share: f64,
}

const GOALS: [Goals; 2] = [
    Goals { chunk: CHUNK, gets: 68.0, name: "4 MiB", puts: 34.0, share: 0.95 },
    Goals { chunk: SMALL, gets: 68.0, name: "64 KiB", puts: 36.0, share: 0.9 },
];

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Outcome<()> {
    for goals in GOALS {
        for round in 0..plan.rounds {
            let data = random(round as u64 + 77, plan.size);
            for form in [Form::Loose, Form::Packed] {
                block_on(one(&goals, form, &data, report))?;
            }
        }
    }
    Ok(())
}

/// A backup and a restore by another process.
async fn one(goals: &Goals, form: Form, data: &[u8], report: &mut Report) -> Outcome<()> {
    let mut server = Server::start().await?;
    let process = server.form(form, None).await?;
    let plain = server.backend("plain")?;
    process.take_lease().await?;
    server.go_away()?;
    let bodies: Vec<_> = data.chunks(PACK).map(Bytes::copy_from_slice).collect();
    let (plainly, ()) = timed(put_bodies(&plain, &bodies)).await?;
    server.requests()?;
    let (stored, _) = timed(back_up(&process.store, data, goals.chunk, None)).await?;
    let put = server.requests()?;
    process.end().await?;
    let (got, ()) = timed(get_bodies(&plain, &bodies)).await?;
    let process = server.form(form, None).await?;
    server.requests()?;
    let (restored, size) = timed(async {
        let archive = opened(&newest(&process.store).await?).await?;
        copy_out(&archive).await
    })
    .await?;
    if size != data.len() as u64 {
        return Err("not all was restored".into());
    }
    let gets = server.requests()?;
    process.end().await?;
    let times = [(stored, plainly), (restored, got)];
    tell(goals, form, data.len(), (&put, &gets), times, report);
    random_read(goals, form, data, &mut server, report).await
}

fn tell(
    goals: &Goals,
    form: Form,
    bytes: usize,
    (puts, gets): (&Requests, &Requests),
    times: [(Duration, Duration); 2],
    report: &mut Report,
) {
    let (name, per_gib) = (goals.name, GIB / bytes as f64);
    let at_most = |most| if form == Form::Packed { Target::AtMost(most) } else { Target::Open };
    let at_least = |least| if form == Form::Packed { Target::AtLeast(least) } else { Target::Open };
    let of_data = |requests: &Requests, method| {
        let of = |what| requests.of(&format!("{method} {what}")) as f64;
        (of("chunk") + of("pack") + of("segment")) * per_gib
    };
    let row = |what: &str| format!("{name}, {}: {what}", form.name());
    *report.add(&row("PUTs of data for a GiB"), of_data(puts, "PUT"), "", at_most(goals.puts)) = puts.text();
    *report.add(&row("GETs of data for a GiB"), of_data(gets, "GET"), "", at_most(goals.gets)) = gets.text();
    for (what, (time, plain)) in ["backup / plain puts", "restore / plain gets"].into_iter().zip(times) {
        let share = plain.as_secs_f64() / time.as_secs_f64();
        *report.add(&row(what), share, "", at_least(goals.share)) =
            format!("{:.1} and {:.1} MB/s", speed(bytes, time), speed(bytes, plain));
    }
}

/// A read of 64 KiB by a process without local state: the requests after the snapshot is open.
async fn random_read(
    goals: &Goals,
    form: Form,
    data: &[u8],
    server: &mut Server,
    report: &mut Report,
) -> Outcome<()> {
    let process = server.form(form, None).await?;
    let archive = opened(&newest(&process.store).await?).await?;
    server.requests()?;
    let start = data.len() / 2;
    let (time, bytes) = timed(async { Ok(archive.read_exact_at(start as u64, SMALL).await?) }).await?;
    if bytes != data[start..start + SMALL] {
        return Err("other bytes were read".into());
    }
    let requests = server.requests()?;
    let most = if form == Form::Packed { Some(3) } else { None };
    let row = format!("{}, {}: requests of a random read of 64 KiB", goals.name, form.name());
    *report.count(&row, requests.total(), most) =
        format!("{:.0} ms; {}", time.as_secs_f64() * 1e3, requests.text());
    process.end().await
}

/// Puts of bodies as large as packs.
async fn put_bodies(backend: &Arc<dyn Backend>, bodies: &[Bytes]) -> Outcome<()> {
    let puts = stream::iter(bodies.iter().cloned().enumerate()).map(|(number, body)| async move {
        backend.put(&key(number), body, PutMode::Replace).await.map(drop)
    });
    Ok(puts.buffer_unordered(PLAIN_IN_FLIGHT).try_collect().await?)
}

async fn get_bodies(backend: &Arc<dyn Backend>, bodies: &[Bytes]) -> Outcome<()> {
    let gets = stream::iter(0..bodies.len())
        .map(|number| async move { backend.get(&key(number), 2 * PACK as u64).await.map(drop) });
    Ok(gets.buffer_unordered(PLAIN_IN_FLIGHT).try_collect().await?)
}

fn key(number: usize) -> Key {
    Key::Chunk(Digest::of(&number.to_le_bytes()))
}

/// Garbage collection of 1 TiB.
pub(crate) fn run_gc(_: &Plan, report: &mut Report) -> Outcome<()> {
    let mut server = block_on(Server::start())?;
    block_on(async { server.form(Form::Packed, None).await?.end().await })?;
    let used = CHUNKS - CHUNKS / GARBAGE / IN_PACK * IN_PACK;
    block_on(async {
        let backend = server.backend(STORE)?;
        crate::gc::make_snapshots(backend.as_ref(), used / 8, 8, |snapshot| {
            Key::Enclosed(Box::new(snapshot))
        })
        .await?;
        let layout = Layout { in_pack: IN_PACK, in_segment: 1 << 14, length: CHUNK - MIB / 64 };
        layout.put_segments(backend.as_ref(), CHUNKS).await
    })?;
    let packs: Vec<_> = (0..CHUNKS / IN_PACK).map(pack_path).collect::<Option<_>>().ok_or("no path")?;
    server.fill_packs(&packs, PACK)?;
    server.be_slow()?;
    block_on(async {
        let process = server.form(Form::Packed, None).await?;
        process.take_lease().await?;
        server.requests()?;
        let options = GcOptions::default().grace(Duration::ZERO).consistent_listings();
        let (time, done) = timed(async {
            let mut plan = gc::plan(&process.store, options).await?;
            Ok(plan.execute().await?)
        })
        .await?;
        if done.removed.chunks != CHUNKS - used {
            return Err(format!("not all was removed: {done:?}").into());
        }
        let requests = server.requests()?;
        report.count("1 TiB, packed: pages of packs", requests.of("LIST pack"), Some(34));
        report.count("1 TiB, packed: bulk deletions", requests.of("POST bucket"), Some(34));
        *report.add("1 TiB, packed: plan and execution", time.as_secs_f64(), "s", Target::Open) =
            requests.text();
        process.end().await
    })
}

/// Opening a store of very many chunks that has not changed, by a process that begins.
pub(crate) fn run_open(_: &Plan, report: &mut Report) -> Outcome<()> {
    let mut server = block_on(Server::start())?;
    block_on(async {
        server.form(Form::Packed, None).await?.end().await?;
        let layout = Layout { in_pack: 512, in_segment: 1 << 20, length: SMALL - 256 };
        layout.put_segments(server.backend(STORE)?.as_ref(), MANY).await
    })?;
    let scratch = tempfile::tempdir()?;
    let found = scratch.path().join("server.json");
    std::fs::write(&found, server.found().to_json())?;
    let local = scratch.path().join("local");
    server.go_away()?;
    for (what, local) in
        [("no local state", None), ("local state", Some(&local)), ("local state again", Some(&local))]
    {
        let (opened, begun, done) = crate::opening::child_run(&mut server, &found, local)?;
        let name = format!("10 million chunks, packed, {what}");
        let is_again = what.ends_with("again");
        let limit = |most| if is_again { Target::AtMost(most) } else { Target::Open };
        report.add(&format!("{name}: until it is open"), opened.as_secs_f64(), "s", limit(0.5));
        report.add(&format!("{name}: until a backup can begin"), begun.as_secs_f64(), "s", Target::Open);
        *report.add(&format!("{name}: memory for a million chunks"), done.mib / 10.0, "MiB", limit(2.0)) =
            done.requests;
    }
    Ok(())
}

/// How chunks lie in packs and segments.
struct Layout {
    in_pack: u64,
    in_segment: u64,
    length: usize,
}

impl Layout {
    /// Puts segments with the records of so many chunks of [`filler`].
    async fn put_segments(&self, backend: &dyn Backend, chunks: u64) -> Outcome<()> {
        let mut first = 0;
        while first < chunks {
            let end = chunks.min(first + self.in_segment);
            let records = (first..end).map(|number| {
                let (pack, at) = (number / self.in_pack, number % self.in_pack);
                (u32::try_from(pack).unwrap_or(u32::MAX), at, filler(number))
            });
            let n = u32::try_from(first / self.in_segment)?;
            let (key, bytes) = segment(n, PACK, self.length, records).ok_or("no segment")?;
            backend.put(&key, bytes, PutMode::Replace).await?;
            first = end;
        }
        Ok(())
    }
}

fn pack_path(number: u64) -> Option<String> {
    larder::internal::packs::pack_key(u32::try_from(number).ok()?).map(|key| key.to_string())
}
