//! Access control lists: the form of the format and that of the system.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 4 | version | u32 little-endian, 2 |
//! | 4 + 8·i | 2 | tag | u16 little-endian |
//! | 6 + 8·i | 2 | permissions | u16 little-endian |
//! | 8 + 8·i | 4 | user or group | u32 little-endian, all ones for tags without |
//!
//! Source: Linux `include/uapi/linux/posix_acl_xattr.h`; pxar format, ACL items.

use std::io;

use crate::pxar::{Acl, AclEntry, DefaultAcl};

const VERSION: u32 = 2;

/// The user or group of a tag without; the system refuses it for the others.
const NO_ID: u32 = u32::MAX;

const USER_OBJECT: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJECT: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A list of the system, taken apart.
#[derive(Default)]
struct Parts {
    group_object: Option<u64>,
    groups: Vec<AclEntry>,
    mask: Option<u64>,
    other: Option<u64>,
    user_object: Option<u64>,
    users: Vec<AclEntry>,
}

/// Adds an access list of the system to one of the format.
pub(crate) fn add_access(value: &[u8], acl: &mut Acl) -> io::Result<()> {
    let parts = parse(value)?;
    // Without a mask it equals the group bits of the mode.
    acl.group_object = parts.group_object.filter(|_| parts.mask.is_some());
    (acl.users, acl.groups) = (parts.users, parts.groups);
    Ok(())
}

/// Adds a default list of the system to one of the format.
pub(crate) fn add_default(value: &[u8], acl: &mut Acl) -> io::Result<()> {
    let parts = parse(value)?;
    let has_base = parts.user_object.or(parts.group_object).or(parts.other).or(parts.mask).is_some();
    acl.inherited = has_base.then(|| {
        let mut list = Box::<DefaultAcl>::default();
        (list.group_object, list.mask) = (parts.group_object, parts.mask);
        (list.other, list.user_object) = (parts.other, parts.user_object);
        (list.users, list.groups) = (parts.users, parts.groups);
        list
    });
    Ok(())
}

/// The access list of the system for an object of this mode; `None` if the mode says everything.
pub(crate) fn access(acl: &Acl, mode: u32) -> Option<Vec<u8>> {
    if acl.users.is_empty() && acl.groups.is_empty() && acl.group_object.is_none() {
        return None;
    }
    let bits = |shift: u32| Some(u64::from(mode >> shift & 7));
    let group = acl.group_object.or(bits(3));
    Some(render(&Parts {
        group_object: group,
        groups: acl.groups.clone(),
        mask: bits(3),
        other: bits(0),
        user_object: bits(6),
        users: acl.users.clone(),
    }))
}

/// The default list of the system.
pub(crate) fn default(list: &DefaultAcl) -> Vec<u8> {
    render(&Parts {
        group_object: list.group_object,
        groups: list.groups.clone(),
        mask: list.mask,
        other: list.other,
        user_object: list.user_object,
        users: list.users.clone(),
    })
}

/// The order is that of the tags; the system refuses others.
fn render(parts: &Parts) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    let mut add = |tag: u16, permissions: u64, id: u64| {
        // Values of an archive that do not fit must not become others.
        let permissions = u16::try_from(permissions).unwrap_or(u16::MAX);
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(u32::try_from(id).unwrap_or(NO_ID).to_le_bytes());
    };
    let none = NO_ID.into();
    parts.user_object.iter().for_each(|permissions| add(USER_OBJECT, *permissions, none));
    parts.users.iter().for_each(|user| add(USER, user.permissions, user.id));
    parts.group_object.iter().for_each(|permissions| add(GROUP_OBJECT, *permissions, none));
    parts.groups.iter().for_each(|group| add(GROUP, group.permissions, group.id));
    parts.mask.iter().for_each(|permissions| add(MASK, *permissions, none));
    parts.other.iter().for_each(|permissions| add(OTHER, *permissions, none));
    value
}

fn parse(value: &[u8]) -> io::Result<Parts> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the access control list is malformed");
    let (version, rest) = value.split_first_chunk().ok_or_else(malformed)?;
    let (entries, rest) = rest.as_chunks::<8>();
    if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
        return Err(malformed());
    }
    let mut parts = Parts::default();
    for [tag_low, tag_high, low, high, id @ ..] in entries {
        let permissions = u64::from(u16::from_le_bytes([*low, *high]));
        let named = AclEntry { id: u32::from_le_bytes(*id).into(), permissions };
        match u16::from_le_bytes([*tag_low, *tag_high]) {
            USER_OBJECT => parts.user_object = Some(permissions),
            USER => parts.users.push(named),
            GROUP_OBJECT => parts.group_object = Some(permissions),
            GROUP => parts.groups.push(named),
            MASK => parts.mask = Some(permissions),
            OTHER => parts.other = Some(permissions),
            _ => return Err(malformed()),
        }
    }
    parts.users.sort_unstable();
    parts.groups.sort_unstable();
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const NONE: u32 = u32::MAX;

    #[test]
    fn an_access_list_keeps_its_named_entries_in_order_and_the_group_beside_a_mask() {
        let value = list(&[
            (USER_OBJECT, 6, NONE),
            (USER, 4, 1000),
            (USER, 7, 5),
            (GROUP_OBJECT, 5, NONE),
            (GROUP, 1, 0),
            (MASK, 7, NONE),
            (OTHER, 4, NONE),
        ]);
        let mut acl = Acl::default();
        add_access(&value, &mut acl).unwrap();
        let entry = |id, permissions| AclEntry { id, permissions };
        assert_eq!(acl.users, [entry(5, 7), entry(1000, 4)]);
        assert_eq!((&*acl.groups, acl.group_object), (&[entry(0, 1)][..], Some(5)));
        let in_order = list(&[
            (USER_OBJECT, 6, NONE),
            (USER, 7, 5),
            (USER, 4, 1000),
            (GROUP_OBJECT, 5, NONE),
            (GROUP, 1, 0),
            (MASK, 7, NONE),
            (OTHER, 4, NONE),
        ]);
        assert_eq!(access(&acl, 0o100_674), Some(in_order));
    }

    #[test]
    fn a_list_without_a_mask_is_that_of_the_mode() {
        let mut acl = Acl::default();
        let base = [(USER_OBJECT, 6, NONE), (GROUP_OBJECT, 4, NONE), (OTHER, 0, NONE)];
        add_access(&list(&base), &mut acl).unwrap();
        assert!(acl.is_empty() && access(&acl, 0o640).is_none());
        add_default(&list(&base), &mut acl).unwrap();
        let inherited = acl.inherited.unwrap();
        assert_eq!(default(&inherited), list(&base));
        assert_eq!((inherited.user_object, inherited.group_object), (Some(6), Some(4)));
        assert_eq!((inherited.other, inherited.mask), (Some(0), None));
    }

    #[test]
    fn malformed_lists_are_refused() {
        let mut acl = Acl::default();
        let long = [list(&[]), vec![0; 7]].concat();
        for value in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", &long, &list(&[(0x40, 0, 0)])] {
            assert!(add_access(value, &mut acl).is_err(), "{value:?}");
        }
    }
}
