//! The trial of a place: conditional puts and entity tags.

use object_store::path::Path;
use object_store::{
    Error as ClientError, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion,
};

use crate::backend::object_store::errors::failed;
use crate::backend::object_store::{location, version};
use crate::error::{ErrorKind, Result};
use crate::rt::Runtime;

/// Returns `true` if a put with each of the conditions has an effect exactly when its condition holds.
///
/// # Errors
/// `Unsupported` if objects have no entity tag; any failure without a definite answer.
pub(super) async fn has_conditional_puts(client: &dyn ObjectStore, runtime: &dyn Runtime) -> Result<bool> {
    let place = new_location(runtime)?;
    let tried = try_puts(client, &place).await;
    if matches!(&tried, Err(error) if error.kind() == ErrorKind::Denied) {
        // Nothing can be stored, with or without a condition. A place that may not be read fails here.
        return client
            .list_with_delimiter(None)
            .await
            .map(|_| false)
            .map_err(|error| failed(error, "list", &"the store"));
    }
    // The name is random, and not used again: a late deletion does no harm, nor does an object that stays.
    let _ = client.delete(&place).await;
    tried
}

/// A location that nothing else uses.
pub(super) fn new_location(runtime: &dyn Runtime) -> Result<Path> {
    let mut random = [0; 16];
    runtime.fill_random(&mut random);
    location(&format!(".larder/trial-{:032x}", u128::from_le_bytes(random)))
}

async fn try_puts(client: &dyn ObjectStore, place: &Path) -> Result<bool> {
    let error = |error| failed(error, "try conditional puts at", place);
    let put = |text: &'static str, mode: PutMode| async move {
        client.put_opts(place, PutPayload::from_static(text.as_bytes()), mode.into()).await
    };
    let has_tag = || async { version(&client.head(place).await.map_err(error)?).map(drop) };
    let first = match put("one", PutMode::Create).await {
        Err(refused) if is_unsupported(&refused) => {
            put("one", PutMode::Overwrite).await.map_err(error)?;
            return has_tag().await.map(|()| false);
        }
        first => UpdateVersion::from(first.map_err(error)?),
    };
    has_tag().await?;
    if !is_refused(put("two", PutMode::Create).await).map_err(error)? {
        return Ok(false);
    }
    match put("three", PutMode::Update(first.clone())).await {
        Err(refused) if is_unsupported(&refused) || is_condition(&refused) => return Ok(false),
        updated => updated.map_err(error)?,
    };
    is_refused(put("four", PutMode::Update(first)).await).map_err(error)
}

/// Returns `true` if a put failed on its condition, and `false` if it was executed in spite of it, or is not supported.
fn is_refused<T>(put: object_store::Result<T>) -> object_store::Result<bool> {
    match put {
        Ok(_) => Ok(false),
        Err(error) if is_condition(&error) => Ok(true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_condition(error: &ClientError) -> bool {
    matches!(error, ClientError::AlreadyExists { .. } | ClientError::Precondition { .. })
}

fn is_unsupported(error: &ClientError) -> bool {
    matches!(error, ClientError::NotImplemented { .. } | ClientError::NotSupported { .. })
}
