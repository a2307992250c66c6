//! The one gate for chunks: nothing else makes a chunk key to put, to touch or to delete (H3).
//!
//! # Storing
//! All of it happens inside the critical section of the digest, after the chunk was pinned for its writer:
//!
//! | the store says | what is done |
//! |---|---|
//! | the writer confirmed it before | nothing |
//! | absent | encode, create |
//! | present, named by an explicit base, not empty | touched: known (D9) |
//! | present, as long as what would be stored | touched: a duplicate (D8) |
//! | present, of another length | read and validate: good → a duplicate, bad → replace (D8, H77) |
//! | cannot say, named by an explicit base | known (D9) |
//! | cannot say | encode, create; if it exists, as above |

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::backend::{Backend, PutMode, Touched};
use crate::buffers::{Buffer, Buffers};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{
    Blob, BlobDecoder, BlobEncoder, DecodeError, MAX_CHUNK_BYTES, MAX_ENCODED_CHUNK_BYTES, MIN_BLOB_BYTES,
    PlaintextSize,
};
use crate::format::layout::Key;
use crate::store::pins::{Pins, Sections, WriterPins};

/// What a chunk is longer by in its encoded form, at most.
const ROOM_BYTES: usize = MAX_ENCODED_CHUNK_BYTES - MAX_CHUNK_BYTES;

/// The chunks of a store.
#[derive(Debug)]
pub(in crate::store) struct ChunkStore {
    backend: Arc<dyn Backend>,
    codecs: Arc<Codecs>,
    pub(in crate::store) pins: Pins,
    sections: Sections,
}

/// Contexts for coding and buffers for its results, used again and again.
#[derive(Debug)]
struct Codecs {
    buffers: Arc<Buffers>,
    decoders: Mutex<Vec<BlobDecoder>>,
    encoders: Mutex<Vec<BlobEncoder>>,
    level: i32,
}

/// What makes a writer believe that a chunk is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Evidence {
    /// The base of the backup names it.
    Base,
    /// Nothing.
    Nothing,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Stored {
    /// The store had it, in an object of this many bytes.
    Duplicate(u64),
    /// The base named it, or this writer stored it before.
    Known,
    /// It is new, in an object of this many bytes.
    New(u64),
}

impl ChunkStore {
    pub(in crate::store) fn new(backend: Arc<dyn Backend>, level: i32, kept_bytes: usize) -> Self {
        let codecs = Codecs {
            buffers: Buffers::new(kept_bytes),
            decoders: Mutex::default(),
            encoders: Mutex::default(),
            level,
        };
        Self { backend, codecs: Arc::new(codecs), pins: Pins::default(), sections: Sections::default() }
    }

    /// Makes sure that the chunk is in the store, and pins it for the writer.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk in the store or not, and pinned.
    pub(in crate::store) async fn put(
        &self,
        writer: &WriterPins,
        digest: Digest,
        plaintext: &Bytes,
        evidence: Evidence,
    ) -> Result<Stored> {
        if writer.is_confirmed(&digest) {
            return Ok(Stored::Known);
        }
        let _section = self.sections.enter(digest).await;
        if writer.pin(digest) {
            return Ok(Stored::Known);
        }
        let stored = self.put_pinned(digest, plaintext, evidence).await?;
        writer.confirm(digest);
        Ok(stored)
    }

    async fn put_pinned(&self, digest: Digest, plaintext: &Bytes, evidence: Evidence) -> Result<Stored> {
        let key = Key::Chunk(digest);
        let touched = self.touch_one(&key).await?;
        let present = match touched {
            Touched::Present(info) if evidence == Evidence::Base && info.size >= MIN_BLOB_BYTES as u64 => {
                return Ok(Stored::Known);
            }
            Touched::Unknown if evidence == Evidence::Base => return Ok(Stored::Known),
            Touched::Present(info) => Some(info.size),
            _ => None,
        };
        let blob = self.encode(plaintext).await?;
        let size = blob.len() as u64;
        let present = match present {
            Some(present) => present,
            None => match self.backend.put(&key, blob.clone(), self.create_mode()).await {
                Ok(_) => return Ok(Stored::New(size)),
                // Somebody else was faster, or the backend could not say: 412 is compared, not believed (H24).
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.backend.head(&key).await?.size,
                Err(error) => return Err(error),
            },
        };
        if present == size || self.is_good(digest, plaintext.len()).await? {
            return Ok(Stored::Duplicate(present));
        }
        self.backend.put(&key, blob, PutMode::Replace).await?;
        Ok(Stored::New(size))
    }

    /// Pins chunks that are not at hand, because a base names them, and makes sure that they are in the store.
    ///
    /// # Errors
    /// `Corrupt` if one of them is missing: the base is damaged.
    pub(in crate::store) async fn reuse(&self, writer: &WriterPins, digests: &[Digest]) -> Result<()> {
        let mut wanted = digests.to_vec();
        // In order, so that two who want the same do not wait for each other.
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|digest| !writer.is_confirmed(digest));
        let mut sections = Vec::with_capacity(wanted.len());
        for digest in &wanted {
            sections.push(self.sections.enter(*digest).await);
        }
        wanted.retain(|digest| !writer.pin(*digest));
        let keys: Vec<Key> = wanted.iter().copied().map(Key::Chunk).collect();
        for (digest, touched) in wanted.into_iter().zip(self.backend.touch(&keys).await?) {
            match touched {
                Touched::Present(info) if info.size >= MIN_BLOB_BYTES as u64 => {}
                Touched::Unknown => {}
                _ => {
                    return Err(Error::new(ErrorKind::Corrupt, "reuse chunk")
                        .on(digest)
                        .because("the base names it, but it is missing or empty"));
                }
            }
            writer.confirm(digest);
        }
        Ok(())
    }

    /// Reads a chunk of a known plaintext length, checked against its digest.
    pub(in crate::store) async fn get(&self, digest: Digest, length: u64) -> Result<Bytes> {
        let failed = |kind| Error::new(kind, "read chunk").on(digest);
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_CHUNK_BYTES);
        let length =
            length.ok_or_else(|| failed(ErrorKind::Corrupt).because("it is longer than a chunk may be"))?;
        let object = self.backend.get(&Key::Chunk(digest), MAX_ENCODED_CHUNK_BYTES as u64).await?;
        let codecs = Arc::clone(&self.codecs);
        let decode = move || codecs.decode(object.bytes, digest, length);
        self.backend.runtime().run_blocking("decode chunk", decode).await
    }

    /// Reads a blob that is stored as a file of its own.
    pub(in crate::store) async fn decode_blob(&self, blob: Bytes, limit: usize) -> Result<Bytes> {
        let codecs = Arc::clone(&self.codecs);
        let decode = move || {
            let mut decoder = codecs.decoder();
            let decoded =
                Blob::parse(blob).and_then(|blob| decoder.decode_bytes(&blob, PlaintextSize::AtMost(limit)));
            codecs.keep_decoder(decoder);
            decoded.map_err(|error| decode_error(error, "decode blob"))
        };
        self.backend.runtime().run_blocking("decode blob", decode).await
    }

    /// Encodes bytes as a blob.
    pub(in crate::store) async fn encode(&self, plaintext: &Bytes) -> Result<Bytes> {
        let (codecs, plaintext) = (Arc::clone(&self.codecs), plaintext.clone());
        let encode = move || codecs.encode(&plaintext);
        self.backend.runtime().run_blocking("encode blob", encode).await
    }

    /// A buffer to read plaintext into.
    pub(in crate::store) fn buffer(&self, capacity: usize) -> Buffer {
        self.codecs.buffers.take(capacity + ROOM_BYTES)
    }

    async fn touch_one(&self, key: &Key) -> Result<Touched> {
        let touched = self.backend.touch(std::slice::from_ref(key)).await?;
        touched.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Internal, "touch").on(key))
    }

    /// Whether what the store has under the digest is what belongs there.
    async fn is_good(&self, digest: Digest, length: usize) -> Result<bool> {
        match self.get(digest, length as u64).await {
            Ok(_) => Ok(true),
            // A plain chunk is offered: an encrypted one under its digest is a wrong one.
            Err(error) => match error.kind() {
                ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Where conditions do not work, the guard of the store keeps others away, and equal digests have equal contents (D4).
    fn create_mode(&self) -> PutMode {
        if self.backend.capabilities().conditional_put { PutMode::Create } else { PutMode::Replace }
    }
}

impl Codecs {
    fn encode(self: &Arc<Self>, plaintext: &Bytes) -> Result<Bytes> {
        let kept = self.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = match kept {
            Some(encoder) => encoder,
            None => BlobEncoder::new(self.level)
                .map_err(|error| Error::new(ErrorKind::InvalidInput, "encode blob").because(error))?,
        };
        let mut encoded = self.buffers.take(plaintext.len() + ROOM_BYTES);
        let result = encoder.encode(plaintext, &mut encoded);
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        result.map_err(|error| Error::new(ErrorKind::InvalidInput, "encode blob").because(error))?;
        Ok(encoded.freeze())
    }

    fn decode(self: &Arc<Self>, encoded: Bytes, digest: Digest, length: usize) -> Result<Bytes> {
        let mut decoder = self.decoder();
        let decoded = self.decode_chunk(&mut decoder, encoded, length);
        self.keep_decoder(decoder);
        let plaintext = decoded.map_err(|error| decode_error(error, "decode chunk").on(digest))?;
        if Digest::of(&plaintext) == digest {
            return Ok(plaintext);
        }
        let error = Error::new(ErrorKind::Corrupt, "decode chunk").on(digest);
        Err(error.because("the contents have another digest"))
    }

    fn decode_chunk(
        self: &Arc<Self>,
        decoder: &mut BlobDecoder,
        encoded: Bytes,
        length: usize,
    ) -> Result<Bytes, DecodeError> {
        let blob = Blob::parse(encoded)?;
        if !blob.kind().is_compressed() {
            return decoder.decode_bytes(&blob, PlaintextSize::Exactly(length));
        }
        let mut plaintext = self.buffers.take(length + ROOM_BYTES);
        decoder.decode(&blob, &mut plaintext, PlaintextSize::Exactly(length))?;
        Ok(plaintext.freeze())
    }

    fn decoder(&self) -> BlobDecoder {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn keep_decoder(&self, decoder: BlobDecoder) {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
    }
}

fn decode_error(error: DecodeError, action: &'static str) -> Error {
    let kind = if error == DecodeError::Encrypted { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
    Error::new(kind, action).because(error)
}
