//! Data to store, what to store it as, and ways to read it that are none of the store's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::io::sink;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use larder::backend::{Backend, PutMode};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::internal::blob::{Blob, BlobDecoder, MAX_ENCODED_CHUNK_BYTES, PlaintextSize, encode_plain};
use larder::store::{ArchiveReader, Datastore, SnapshotReader, WriterTarget};

use crate::Outcome;

/// The length of a chunk of an image, unless another is asked for.
pub(crate) const CHUNK: usize = 4 << 20;
/// How many plain requests are under way.
pub(crate) const IN_FLIGHT: usize = 32;
const ARCHIVE: &str = "disk.img";

/// The chunks of random data as they are stored.
pub(crate) fn stored(data: &[u8], chunk: usize) -> Outcome<Vec<(Digest, Bytes)>> {
    let encoded = data.chunks(chunk).map(|plaintext| {
        let mut blob = Vec::with_capacity(plaintext.len() + 16);
        encode_plain(plaintext, &mut blob)?;
        Ok((Digest::of(plaintext), Bytes::from(blob)))
    });
    encoded.collect()
}

pub(crate) async fn back_up(
    store: &Datastore,
    data: &[u8],
    chunk: usize,
    base: Option<&SnapshotReader>,
) -> Outcome<SnapshotReader> {
    let backup = store.backup(&"vm/1".parse()?).begin().await?;
    let image = backup.image(ARCHIVE, futures::io::Cursor::new(data), data.len() as u64);
    let image = image.chunk_bytes(chunk as u64);
    match base {
        Some(base) => image.base(base).await?,
        None => image.await?,
    };
    Ok(backup.finish().await?.snapshot)
}

/// The newest snapshot.
pub(crate) async fn newest(store: &Datastore) -> Outcome<SnapshotReader> {
    let name = store.latest(&"vm/1".parse()?).await?.ok_or("there is no snapshot")?;
    Ok(store.snapshot(&name).await?)
}

/// The archive of a snapshot.
pub(crate) async fn opened(snapshot: &SnapshotReader) -> Outcome<ArchiveReader> {
    Ok(snapshot.archive(&format!("{ARCHIVE}.fidx")).await?)
}

/// Writes an archive to nowhere.
pub(crate) async fn copy_out(archive: &ArchiveReader) -> Outcome<u64> {
    Ok(archive.copy_to(&mut WriterTarget::new(sink())).await?)
}

/// Stores chunks, and nothing else.
pub(crate) async fn put_plainly(backend: &Arc<dyn Backend>, chunks: &[(Digest, Bytes)]) -> Outcome<()> {
    let puts = stream::iter(chunks.to_vec()).map(|(digest, blob)| async move {
        backend.put(&Key::Chunk(digest), blob, PutMode::Create).await.map(drop)
    });
    Ok(puts.buffer_unordered(IN_FLIGHT).try_collect().await?)
}

/// Reads chunks, and does nothing with them.
pub(crate) async fn get_plainly(backend: &Arc<dyn Backend>, chunks: &[(Digest, Bytes)]) -> Outcome<()> {
    let gets = stream::iter(chunks.iter().map(|(digest, _)| *digest)).map(|digest| async move {
        backend.get(&Key::Chunk(digest), MAX_ENCODED_CHUNK_BYTES as u64).await.map(drop)
    });
    Ok(gets.buffer_unordered(IN_FLIGHT).try_collect().await?)
}

/// Reads, decodes and checks chunks, one after the other.
pub(crate) async fn get_in_turn(
    backend: &Arc<dyn Backend>,
    chunks: &[(Digest, Bytes)],
    chunk: usize,
) -> Outcome<()> {
    let mut decoder = BlobDecoder::new();
    for (digest, _) in chunks {
        let object = backend.get(&Key::Chunk(*digest), MAX_ENCODED_CHUNK_BYTES as u64).await?;
        let plaintext = decoder.decode_bytes(&Blob::parse(object.bytes)?, PlaintextSize::Exactly(chunk))?;
        if Digest::of(&plaintext) != *digest {
            return Err("a chunk is another one".into());
        }
    }
    Ok(())
}

/// How long something takes.
pub(crate) async fn timed<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<(Duration, T)> {
    let start = Instant::now();
    let done = work.await?;
    Ok((start.elapsed(), done))
}

/// Megabytes a second.
pub(crate) fn speed(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}
