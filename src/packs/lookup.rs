//! Look-up and reading of chunks through the view.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::backend::{Object, ObjectInfo, Touched};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::Blob;
use crate::format::larder::pack::name::PackName;
use crate::format::layout::Key;
use crate::packs::Packs;
use crate::packs::place::Place;
use crate::packs::put::version_of;
use crate::packs::view::{Contents, View};

/// Maximum number of views in which a copy is looked for while it moves.
const MOST_VIEWS: usize = 10;

/// A chunk, or a quarantined copy of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) digest: Digest,
    /// Number of the quarantined copy.
    pub(super) quarantined: Option<u8>,
}

/// Bytes of a copy, or the place where they are.
enum Found {
    Absent,
    Bytes(Bytes),
    Stored(PackName),
}

/// Looks for a copy in views that are read one after the other.
#[derive(Default)]
struct Looks {
    /// The places of the last view, none of which has the copy.
    failed: Option<Vec<Place>>,
    number: usize,
}

impl Looks {
    /// Returns `true` if a new view may have the copy elsewhere, since none of these places has it: in the first view, and in a later one that
    /// had other places than the one before. A collector moved it again meanwhile.
    fn may_have_moved(&mut self, failed: Vec<Place>) -> bool {
        let is_new = self.failed.as_ref() != Some(&failed);
        let is_first = self.failed.is_none();
        self.number += 1;
        self.failed = Some(failed);
        is_first || is_new && self.number < MOST_VIEWS && !mutated!("moved-copy-is-followed-once")
    }

    /// Returns `true` if the copy was looked for at other places.
    fn is_news(&self, places: &[Place]) -> bool {
        self.failed.as_deref() != Some(places) && !mutated!("fresh-view-has-no-news")
    }

    fn is_first(&self) -> bool {
        self.failed.is_none()
    }
}

impl Copy {
    /// The copy with this key; `None` for any other object.
    pub(super) fn of(key: &Key) -> Option<Self> {
        match key {
            Key::Chunk(digest) => Some(Self { digest: *digest, quarantined: None }),
            Key::Quarantined(digest, number) => Some(Self { digest: *digest, quarantined: Some(*number) }),
            _ => None,
        }
    }

    pub(super) fn key(&self) -> Key {
        match self.quarantined {
            None => Key::Chunk(self.digest),
            Some(number) => Key::Quarantined(self.digest, number),
        }
    }

    /// The places to read, in order of preference.
    fn readable_places(&self, view: &View) -> Vec<Place> {
        if self.quarantined.is_none() { view.readable_places(&self.digest) } else { self.places(view) }
    }

    /// The places that count.
    fn places(&self, view: &View) -> Vec<Place> {
        match self.quarantined {
            None => view.places(&self.digest),
            Some(number) => view.bad(&self.digest).get(usize::from(number)).copied().into_iter().collect(),
        }
    }
}

impl Packs {
    /// Describes a copy. Reads the view again if it has none.
    pub(super) async fn head_copy(self: &Arc<Self>, copy: Copy) -> Result<ObjectInfo> {
        let mut looks = Looks::default();
        loop {
            let places = copy.places(&self.state_of(&copy.digest).await?.view);
            if let Some(info) = self.certain_copy(copy).await? {
                return Ok(info);
            }
            if !looks.may_have_moved(places) {
                return Err(self.absent(copy, "look up"));
            }
            self.refresh_if_stale().await?;
        }
    }

    /// The description of a copy whose pack exists, as far as is known.
    async fn certain_copy(self: &Arc<Self>, copy: Copy) -> Result<Option<ObjectInfo>> {
        let candidates: Vec<_> = {
            let state = self.state_of(&copy.digest).await?;
            let places = copy.places(&state.view).into_iter();
            let found = places.filter_map(|place| {
                let pack = state.view.pack(place.pack)?;
                let is_there = pack.is_listed && pack.reaches(&place);
                Some((place, pack.name, is_there, self.info_of(&state.view, copy, &place)))
            });
            found.collect()
        };
        for (place, name, is_there, info) in candidates {
            // A listing or a read did not find it, and a listing may lag (H13).
            if is_there || self.has_pack(&place, name).await? {
                return Ok(Some(info));
            }
        }
        Ok(None)
    }

    /// Looks for a pack that was not found before. Returns `false` also if it was cut before the end of this copy.
    async fn has_pack(&self, place: &Place, name: PackName) -> Result<bool> {
        let found = match self.inner.head(&Key::Pack(name)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found?.size),
        };
        if let Some(pack) = self.state().view.pack_mut(place.pack) {
            pack.is_listed = found.is_some();
            pack.stored_bytes = found;
        }
        Ok(found.is_some_and(|bytes| place.end() <= bytes))
    }

    /// The error for a copy that the view does not have.
    fn absent(&self, copy: Copy, action: &'static str) -> Error {
        let absent = Error::new(ErrorKind::NotFound, action).on(copy.key());
        match self.state().view.damage() {
            Some(damage) => absent.because(damage.clone()),
            None => absent,
        }
    }

    /// The description of a copy that the view has.
    pub(super) async fn known_copy(self: &Arc<Self>, copy: Copy) -> Result<Option<ObjectInfo>> {
        let state = self.state_of(&copy.digest).await?;
        let place = copy.places(&state.view).first().copied();
        Ok(place.map(|place| self.info_of(&state.view, copy, &place)))
    }

    /// As [`known_copy`](Self::known_copy), for a writer.
    pub(super) async fn touch_copy(self: &Arc<Self>, copy: Copy) -> Result<Touched> {
        if copy.quarantined.is_some() {
            return Ok(self.known_copy(copy).await?.map_or(Touched::Absent, Touched::Present));
        }
        {
            let state = self.state_of(&copy.digest).await?;
            if let Some(place) = state.view.reliable_places(&copy.digest).first() {
                return Ok(Touched::Present(self.info_of(&state.view, copy, place)));
            }
            // A new chunk, as most are that a first backup looks for.
            if state.view.places(&copy.digest).is_empty() {
                return Ok(Touched::Absent);
            }
        }
        // The collector of another handle may have moved it to another pack.
        let is_dropped = self.state_of(&copy.digest).await?.view.is_dropped_elsewhere(&copy.digest);
        if is_dropped {
            self.catch_up().await?;
        }
        // A listing may lag, and absence is certain (H13).
        let unlisted = self.state_of(&copy.digest).await?.view.unlisted_places(&copy.digest);
        for (place, name) in unlisted {
            if self.has_pack(&place, name).await? {
                break;
            }
        }
        Ok(self.reliable_copy(copy).await?.map_or(Touched::Absent, Touched::Present))
    }

    async fn reliable_copy(self: &Arc<Self>, copy: Copy) -> Result<Option<ObjectInfo>> {
        let state = self.state_of(&copy.digest).await?;
        let place = state.view.reliable_places(&copy.digest).first().copied();
        Ok(place.map(|place| self.info_of(&state.view, copy, &place)))
    }

    pub(super) fn info_of(&self, view: &View, copy: Copy, place: &Place) -> ObjectInfo {
        let known = view.pack(place.pack).and_then(|pack| pack.last_used);
        // An unknown time counts as new: nothing is deleted because of it.
        let last_used: SystemTime = known.unwrap_or_else(|| self.runtime().now());
        ObjectInfo::new(copy.key(), place.length.into(), last_used, version_of(view, place))
    }

    /// Reads a copy. If a chunk has several, one whose checksum fits.
    pub(super) async fn get_copy(self: &Arc<Self>, copy: Copy, limit: u64) -> Result<Object> {
        let mut looks = Looks::default();
        loop {
            let (places, infos): (Vec<_>, Vec<_>) = {
                let state = self.state_of(&copy.digest).await?;
                let places = copy.readable_places(&state.view);
                let infos = places.iter().map(|place| self.info_of(&state.view, copy, place)).collect();
                (places, infos)
            };
            // A good copy may be in a segment that the view lacks.
            let (several, may_lack) = (places.len() > 1, looks.is_first() && self.may_lack_segments());
            let mut damaged = None;
            for (place, info) in places.iter().zip(infos) {
                if info.size > limit {
                    let error = Error::new(ErrorKind::Corrupt, "read").on(copy.key());
                    return Err(error.because("the object is larger than the limit"));
                }
                match self.read_place(place).await {
                    Ok(bytes) if (several || may_lack) && !is_intact(&bytes) => {
                        damaged.get_or_insert(Ok(Object::new(bytes, info)));
                    }
                    Ok(bytes) => return Ok(Object::new(bytes, info)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        // Writers rely on none of its chunks until a look-up finds it.
                        if let Some(pack) = self.state().view.pack_mut(place.pack) {
                            pack.is_listed = false;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        damaged.get_or_insert(Err(error));
                    }
                    Err(error) => return Err(error),
                }
            }
            if !may_lack && let Some(damaged) = damaged {
                return damaged;
            }
            // Another process may have stored the chunk, or moved it to another pack.
            let mut has_more = looks.may_have_moved(places);
            if has_more && !self.refresh_if_stale().await? && !may_lack {
                // The view may be fresh because another task read it meanwhile.
                has_more = looks.is_news(&copy.readable_places(&self.state_of(&copy.digest).await?.view));
            }
            if !has_more {
                return Err(self.absent(copy, "read"));
            }
        }
    }

    /// Reads a part of a copy.
    pub(super) async fn get_copy_range(self: &Arc<Self>, copy: Copy, range: Range<u64>) -> Result<Object> {
        let info = self.head_copy(copy).await?;
        if range.is_empty() || range.end > info.size {
            return Err(Error::new(ErrorKind::InvalidInput, "read a range of").on(copy.key()));
        }
        let object = self.get_copy(copy, u64::MAX).await?;
        let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let part = bounds.filter(|(_, end)| *end <= object.bytes.len());
        let (start, end) =
            part.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "read a range of").on(copy.key()))?;
        Ok(Object::new(object.bytes.slice(start..end), object.info))
    }

    /// Reads the bytes at a place.
    ///
    /// # Errors
    /// `NotFound` if the pack does not exist.
    pub(super) async fn read_place(self: &Arc<Self>, place: &Place) -> Result<Bytes> {
        self.read_by(place, !self.inner.capabilities().cheap_presence).await
    }

    /// As [`read_place`](Self::read_place), together with others that are read at the same time.
    pub(super) async fn read_with_others(self: &Arc<Self>, place: &Place) -> Result<Bytes> {
        self.read_by(place, true).await
    }

    async fn read_by(self: &Arc<Self>, place: &Place, is_coalesced: bool) -> Result<Bytes> {
        match self.find(place) {
            Found::Absent => Err(Error::new(ErrorKind::NotFound, "read").on("a pack")),
            Found::Bytes(bytes) => Ok(bytes),
            Found::Stored(name) if !is_coalesced => {
                let range = u64::from(place.offset)..place.end();
                let read = self.inner.get_range(&Key::Pack(name), range).await;
                Ok(read.map_err(|error| beyond_end(error, name))?.bytes)
            }
            Found::Stored(name) => self.read_coalesced(name, place).await,
        }
    }

    fn find(&self, place: &Place) -> Found {
        let state = self.state();
        let Some(pack) = state.view.pack(place.pack) else { return Found::Absent };
        let (start, end) = (place.offset as usize, place.offset as usize + place.length as usize);
        match pack.contents.as_deref() {
            None => Found::Stored(pack.name),
            Some(Contents::Open(builder)) => builder
                .get(start..end)
                .map_or(Found::Absent, |blob| Found::Bytes(Bytes::copy_from_slice(blob))),
            Some(Contents::Closed(bytes)) if end <= bytes.len() => Found::Bytes(bytes.slice(start..end)),
            Some(Contents::Closed(_)) => Found::Absent,
        }
    }
}

/// A pack that is shorter than its segment says is damaged: the blob is not missing but unreadable.
pub(super) fn beyond_end(error: Error, name: PackName) -> Error {
    match error.kind() {
        ErrorKind::InvalidInput => Error::new(ErrorKind::Corrupt, "read").on(Key::Pack(name)).because(error),
        _ => error,
    }
}

fn is_intact(bytes: &Bytes) -> bool {
    Blob::parse(bytes.clone()).is_ok_and(|blob| blob.check_crc().is_ok())
}
