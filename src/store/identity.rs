//! Identity of a store, and the features that a program must understand to change it: `.larder/store.json` (D7, H91, H92).
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `features` | array of strings | features that a program must understand before it changes anything |
//! | `state` | string, usually absent | `destroying` while the store is being destroyed |
//! | `uuid` | string | 32 hexadecimal digits, drawn once |
//! | `version` | integer | 1 |
//!
//! PBS ignores the file. A store made by PBS has none until this crate changes it. Reading never writes it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, PutMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

const DESTROYING: &str = "destroying";
const LIMIT_BYTES: u64 = 64 << 10;
const VERSION: u64 = 1;

/// Features that this version understands.
const UNDERSTOOD: [&str; 0] = [];

/// The identity record of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) features: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    pub(super) uuid: String,
    version: u64,
}

impl Identity {
    pub(super) fn draw(runtime: &dyn Runtime) -> Self {
        let mut random = [0; 16];
        runtime.fill_random(&mut random);
        let uuid = format!("{:032x}", u128::from_le_bytes(random));
        Self { features: Vec::new(), state: None, uuid, version: VERSION }
    }

    /// Reads it; `None` for a store of PBS.
    pub(super) async fn read(backend: &dyn Backend) -> Result<Option<Self>> {
        let object = match backend.get(&Key::Store, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            object => object?,
        };
        let identity = serde_json::from_slice(&object.bytes);
        identity
            .map(Some)
            .map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(Key::Store).because(error))
    }

    /// Stores it if there is none. The caller holds the lock of the store.
    pub(super) async fn create(&self, backend: &dyn Backend) -> Result<()> {
        if let Some(left) = backend.in_doubt(&Key::Store) {
            let why = format!(
                "a request to delete the last one may still be executed for {} s",
                left.as_secs() + 1
            );
            return Err(Error::new(ErrorKind::Busy, "create").on(Key::Store).because(why));
        }
        self.write(backend, backend.capabilities().create_mode()).await
    }

    /// The same record with a new identity.
    pub(super) fn renewed(self, runtime: &dyn Runtime) -> Self {
        Self { uuid: Self::draw(runtime).uuid, ..self }
    }

    /// Replaces the stored record. The caller holds the exclusive lock of the store.
    pub(super) async fn replace(&self, backend: &dyn Backend) -> Result<()> {
        self.write(backend, PutMode::Replace).await
    }

    /// Marks a store whose destruction begins or continues.
    pub(super) async fn mark_destroying(mut self, backend: &dyn Backend) -> Result<()> {
        self.state = Some(DESTROYING.to_owned());
        self.write(backend, PutMode::Replace).await
    }

    async fn write(&self, backend: &dyn Backend, mode: PutMode) -> Result<()> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::new(ErrorKind::Internal, "write").on(Key::Store).because(error))?;
        backend.put(&Key::Store, Bytes::from(json), mode).await.map(drop)
    }

    /// Returns `true` if the store is partly destroyed.
    pub(super) fn is_being_destroyed(&self) -> bool {
        self.state.as_deref() == Some(DESTROYING)
    }

    /// Reason why this version cannot change the store, if any.
    pub(super) fn write_blocker(&self) -> Option<String> {
        if self.version != VERSION {
            return Some(format!("the store is of version {}, this is {VERSION}", self.version));
        }
        let unknown = self.features.iter().find(|feature| !UNDERSTOOD.contains(&feature.as_str()))?;
        Some(format!("the store needs the feature {unknown:?}, which this version does not know"))
    }
}
