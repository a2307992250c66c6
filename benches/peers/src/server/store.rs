//! Objects in memory. What an object was in holds the next one: fresh memory costs more than what is written to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many buffers lie ready at most.
const MOST_FREE: usize = 64;

#[derive(Default)]
pub(super) struct Store {
    free: Mutex<Vec<Vec<u8>>>,
    objects: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
}

impl Store {
    /// A buffer with anything in it, if possible one of at least this length.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        let mut free = lock(&self.free);
        let fits =
            free.iter().position(|buffer| buffer.capacity() >= length && buffer.capacity() / 2 <= length);
        fits.map_or_else(Vec::new, |number| free.swap_remove(number))
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut free = lock(&self.free);
        if free.len() < MOST_FREE {
            free.push(buffer);
        }
    }

    pub(super) fn put(&self, key: &str, object: Vec<u8>) {
        let old = lock(&self.objects).insert(key.to_owned(), Arc::new(object));
        if let Some(old) = old.and_then(Arc::into_inner) {
            self.give_back(old);
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Vec<u8>>> {
        lock(&self.objects).get(key).cloned()
    }

    pub(super) fn delete(&self, key: &str) {
        lock(&self.objects).remove(key);
    }

    /// All objects below the prefix in a query, of which only the slashes are decoded, in one page.
    pub(super) fn listing(&self, query: &str) -> String {
        let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
        let prefix = prefix.replace("%2F", "/");
        let mut text = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
        for (key, object) in lock(&self.objects).iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let size = object.len();
            let _ = write!(text, "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"00\"</ETag>");
            text += "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>";
        }
        text + "</ListBucketResult>"
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
