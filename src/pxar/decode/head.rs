//! Decoding of the start of an archive, and of the head of an entry: everything before its contents, its children, or the next entry.

use bytes::Bytes;

use crate::pxar::decode::items::{FaultAt, Header, Items, Parsed, Stop, number, parsed};
use crate::pxar::fault::TreeFault;
use crate::pxar::item::{
    self, HEADER_BYTES, MAX_ATTRIBUTE_BYTES, MAX_HEAD_BYTES, MAX_NAME_BYTES, MAX_XATTRS,
};
use crate::pxar::kind::{Device, FileKind};
use crate::pxar::metadata::{Acl, AclEntry, DefaultAcl, Metadata, Mtime, Stat, Xattr};

/// Maximum length of a prelude.
const MAX_PRELUDE_BYTES: usize = 1 << 20;

/// Form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArchiveForm {
    /// Contents of files are in a payload stream.
    Split,
    /// Contents of files are in the archive.
    Unified,
}

/// The items before the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArchiveStart {
    /// Length of the start.
    pub(crate) bytes: usize,
    pub(crate) form: ArchiveForm,
    pub(crate) prelude: Bytes,
}

/// Place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryPlace {
    /// In a directory: a name precedes it.
    Child,
    /// The root, which has no name.
    Root,
}

/// The head of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryHead {
    /// Length of the head, including the header of a PAYLOAD.
    pub(crate) bytes: usize,
    pub(crate) contents: ContentsAt,
    pub(crate) kind: FileKind,
    /// Empty for a hard link.
    pub(crate) metadata: Metadata,
    /// Empty for the root.
    pub(crate) name: Bytes,
}

/// Where the contents of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentsAt {
    /// Behind the head.
    Here,
    /// With the entry whose FILENAME is at this distance before that of this entry.
    Link(u64),
    /// The entry has none.
    None,
    /// In the payload stream, behind the header at this position.
    Payload(u64),
}

/// Decodes the start of an archive.
pub(crate) fn parse_start(bytes: &[u8]) -> Result<Parsed<ArchiveStart>, FaultAt> {
    parsed(start(&mut Items::new(bytes, MAX_HEAD_BYTES)))
}

fn start(items: &mut Items<'_>) -> Result<ArchiveStart, Stop> {
    let unified = ArchiveStart { bytes: 0, form: ArchiveForm::Unified, prelude: Bytes::new() };
    let header = items.header()?;
    match header.kind {
        item::ENTRY | item::ENTRY_V1 => return Ok(unified),
        item::FORMAT_VERSION => {}
        _ => return Err(items.fault(TreeFault::Magic)),
    }
    let at_version = items.fault(TreeFault::Version);
    let [version] = items.numbers(header)?;
    match version {
        1 => return Ok(ArchiveStart { bytes: items.at(), ..unified }),
        item::SPLIT_VERSION => {}
        _ => return Err(at_version),
    }
    let header = items.header()?;
    let prelude = match header.kind {
        item::PRELUDE => Bytes::copy_from_slice(items.content(header, 0, MAX_PRELUDE_BYTES)?),
        _ => Bytes::new(),
    };
    Ok(ArchiveStart { bytes: items.at(), form: ArchiveForm::Split, prelude })
}

/// Decodes the head of an entry.
pub(crate) fn parse_head(
    bytes: &[u8],
    form: ArchiveForm,
    place: EntryPlace,
) -> Result<Parsed<EntryHead>, FaultAt> {
    parsed(head(&mut Items::new(bytes, MAX_HEAD_BYTES), form, place))
}

fn head(items: &mut Items<'_>, form: ArchiveForm, place: EntryPlace) -> Result<EntryHead, Stop> {
    let mut name = Bytes::new();
    if place == EntryPlace::Child {
        name = filename(items)?;
        let header = items.header()?;
        if header.kind == item::HARDLINK {
            return hard_link(items, header, name);
        }
    }
    let stat = stat(items)?;
    let mut attributes = Attributes { metadata: Metadata::new(stat), ..Attributes::default() };
    let header = loop {
        let header = items.header()?;
        if !attributes.read(items, header)? {
            break header;
        }
    };
    let of_mode = stat.mode & item::TYPE_MASK;
    let (kind, contents) = closing(items, header, form, of_mode)?;
    if kind.type_bits() != of_mode || (place == EntryPlace::Root && kind != FileKind::Directory) {
        return Err(items.fault(TreeFault::Kind));
    }
    Ok(EntryHead { bytes: items.at(), contents, kind, metadata: attributes.metadata, name })
}

fn filename(items: &mut Items<'_>) -> Result<Bytes, Stop> {
    let header = items.header()?;
    if header.kind != item::FILENAME {
        return Err(items.fault(TreeFault::Item));
    }
    let invalid = items.fault(TreeFault::Name);
    let content = items.content(header, 2, MAX_NAME_BYTES + 1)?;
    match content.split_last() {
        Some((0, name)) if item::is_name(name) => Ok(Bytes::copy_from_slice(name)),
        _ => Err(invalid),
    }
}

fn hard_link(items: &mut Items<'_>, header: Header, name: Bytes) -> Result<EntryHead, Stop> {
    let invalid = items.fault(TreeFault::Link);
    let content = items.content(header, 10, MAX_NAME_BYTES + 9)?;
    let distance = number(content, 0);
    let Some((0, target)) = content[8..].split_last() else { return Err(invalid) };
    if distance == 0 || !item::is_link_path(target) {
        return Err(invalid);
    }
    let kind = FileKind::HardLink { target: Bytes::copy_from_slice(target) };
    let contents = ContentsAt::Link(distance);
    Ok(EntryHead { bytes: items.at(), contents, kind, metadata: Metadata::default(), name })
}

fn stat(items: &mut Items<'_>) -> Result<Stat, Stop> {
    let header = items.header()?;
    let (kind, content) = (items.fault(TreeFault::Kind), items.fault(TreeFault::Content));
    let (words, mtime) = match header.kind {
        item::ENTRY => {
            let [mode, flags, owner, seconds, rest] = items.numbers(header)?;
            // The upper half is not initialised in old archives.
            ([mode, flags, owner], Mtime { seconds: seconds.cast_signed(), nanoseconds: lower(rest) })
        }
        item::ENTRY_V1 => {
            let [mode, flags, owner, time] = items.numbers(header)?;
            let nanoseconds = lower(time % 1_000_000_000);
            ([mode, flags, owner], Mtime { seconds: (time / 1_000_000_000).cast_signed(), nanoseconds })
        }
        _ => return Err(items.fault(TreeFault::Item)),
    };
    let [mode, flags, owner] = words;
    if mtime.nanoseconds >= 1_000_000_000 {
        return Err(content);
    }
    let mode = u16::try_from(mode).map_err(|_| kind)?;
    Ok(Stat { flags, gid: lower(owner >> 32), mode: u32::from(mode), mtime, uid: lower(owner) })
}

/// The lower half of a word.
fn lower(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Decodes the item that ends an entry. Directories, pipes and sockets end without one, where the next entry or the table follows.
fn closing(
    items: &mut Items<'_>,
    header: Header,
    form: ArchiveForm,
    of_mode: u32,
) -> Result<(FileKind, ContentsAt), Stop> {
    let none = |kind| Ok((kind, ContentsAt::None));
    match header.kind {
        item::PAYLOAD if form == ArchiveForm::Unified => {
            items.skip_header();
            Ok((FileKind::File { size: header.content }, ContentsAt::Here))
        }
        item::PAYLOAD_REF if form == ArchiveForm::Split => {
            let invalid = items.fault(TreeFault::Payload);
            let [offset, size] = items.numbers(header)?;
            let end = offset.checked_add(size).and_then(|end| end.checked_add(HEADER_BYTES as u64));
            if offset < HEADER_BYTES as u64 || end.is_none() {
                return Err(invalid);
            }
            Ok((FileKind::File { size }, ContentsAt::Payload(offset)))
        }
        item::SYMLINK => {
            let invalid = items.fault(TreeFault::Content);
            match items.content(header, 2, MAX_NAME_BYTES + 1)?.split_last() {
                Some((0, target)) if item::is_symlink_target(target) => {
                    none(FileKind::Symlink { target: Bytes::copy_from_slice(target) })
                }
                _ => Err(invalid),
            }
        }
        item::DEVICE => {
            let [major, minor] = items.numbers(header)?;
            let device = Device { major, minor };
            match of_mode {
                item::BLOCK_DEVICE => none(FileKind::BlockDevice(device)),
                _ => none(FileKind::CharDevice(device)),
            }
        }
        item::FILENAME | item::GOODBYE => match of_mode {
            item::FIFO => none(FileKind::Fifo),
            item::SOCKET => none(FileKind::Socket),
            _ => none(FileKind::Directory),
        },
        _ => Err(items.fault(TreeFault::Item)),
    }
}

/// Attributes of an entry, while they are decoded.
#[derive(Default)]
struct Attributes {
    metadata: Metadata,
    has_default_acl: bool,
}

impl Attributes {
    /// Decodes the next item if it is an attribute.
    fn read(&mut self, items: &mut Items<'_>, header: Header) -> Result<bool, Stop> {
        let twice = items.fault(TreeFault::DuplicateAttribute);
        let Metadata { acl, capabilities, project, xattrs, .. } = &mut self.metadata;
        match header.kind {
            item::XATTR if xattrs.len() >= MAX_XATTRS => return Err(items.fault(TreeFault::Bounds)),
            item::XATTR => xattrs.push(xattr(items, header)?),
            item::ACL_USER => acl.users.push(acl_entry(items, header)?),
            item::ACL_GROUP => acl.groups.push(acl_entry(items, header)?),
            item::ACL_DEFAULT_USER => inherited(acl).users.push(acl_entry(items, header)?),
            item::ACL_DEFAULT_GROUP => inherited(acl).groups.push(acl_entry(items, header)?),
            item::ACL_GROUP_OBJ => {
                let [permissions] = items.numbers(header)?;
                if acl.group_object.replace(permissions).is_some() {
                    return Err(twice);
                }
            }
            item::ACL_DEFAULT => {
                let base: [u64; 4] = items.numbers(header)?;
                if std::mem::replace(&mut self.has_default_acl, true) {
                    return Err(twice);
                }
                let base =
                    base.map(|permissions| Some(permissions).filter(|one| *one != item::NO_PERMISSIONS));
                let list = inherited(acl);
                [list.user_object, list.group_object, list.other, list.mask] = base;
            }
            item::FCAPS => {
                let value = items.content(header, 0, MAX_ATTRIBUTE_BYTES)?;
                if capabilities.replace(Bytes::copy_from_slice(value)).is_some() {
                    return Err(twice);
                }
            }
            item::QUOTA_PROJID => {
                let [number] = items.numbers(header)?;
                if project.replace(number).is_some() {
                    return Err(twice);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn inherited(acl: &mut Acl) -> &mut DefaultAcl {
    acl.inherited.get_or_insert_default()
}

fn acl_entry(items: &mut Items<'_>, header: Header) -> Result<AclEntry, Stop> {
    let [id, permissions] = items.numbers(header)?;
    Ok(AclEntry { id, permissions })
}

fn xattr(items: &mut Items<'_>, header: Header) -> Result<Xattr, Stop> {
    let invalid = items.fault(TreeFault::Content);
    let content = items.content(header, 0, MAX_ATTRIBUTE_BYTES)?;
    match content.iter().position(|byte| *byte == 0) {
        None | Some(0) => Err(invalid),
        Some(end) => {
            let (name, value) = (&content[..end], &content[end + 1..]);
            Ok(Xattr { name: Bytes::copy_from_slice(name), value: Bytes::copy_from_slice(value) })
        }
    }
}
