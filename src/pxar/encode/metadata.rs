//! Encoding of metadata: an ENTRY item and the items of attributes.

use crate::pxar::encode::error::TreeEncodeError;
use crate::pxar::item::{self, MAX_ATTRIBUTE_BYTES, MAX_XATTRS};
use crate::pxar::metadata::{Acl, AclEntry, Metadata, Stat};

/// Appends the metadata of an entry in the order of the stock clients.
pub(super) fn encode(metadata: &Metadata, out: &mut Vec<u8>) -> Result<(), TreeEncodeError> {
    encode_stat(&metadata.stat, out)?;
    if metadata.xattrs.len() > MAX_XATTRS {
        return Err(TreeEncodeError::Length("the metadata"));
    }
    for xattr in &metadata.xattrs {
        if xattr.name.is_empty() || xattr.name.contains(&0) {
            return Err(TreeEncodeError::Name);
        }
        attribute(item::XATTR, &[&xattr.name, &[0], &xattr.value], out)?;
    }
    encode_acl(&metadata.acl, out);
    if let Some(capabilities) = &metadata.capabilities {
        attribute(item::FCAPS, &[capabilities], out)?;
    }
    if let Some(project) = metadata.project {
        push_numbers(item::QUOTA_PROJID, &[project], out);
    }
    Ok(())
}

fn encode_stat(stat: &Stat, out: &mut Vec<u8>) -> Result<(), TreeEncodeError> {
    if stat.mtime.nanoseconds >= 1_000_000_000 {
        return Err(TreeEncodeError::Length("the number of nanoseconds"));
    }
    out.extend_from_slice(&item::header(item::ENTRY, 56));
    out.extend_from_slice(&u64::from(stat.mode).to_le_bytes());
    out.extend_from_slice(&stat.flags.to_le_bytes());
    out.extend_from_slice(&stat.uid.to_le_bytes());
    out.extend_from_slice(&stat.gid.to_le_bytes());
    out.extend_from_slice(&stat.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&u64::from(stat.mtime.nanoseconds).to_le_bytes());
    Ok(())
}

fn encode_acl(acl: &Acl, out: &mut Vec<u8>) {
    named(item::ACL_USER, &acl.users, out);
    named(item::ACL_GROUP, &acl.groups, out);
    if let Some(permissions) = acl.group_object {
        push_numbers(item::ACL_GROUP_OBJ, &[permissions], out);
    }
    let Some(inherited) = &acl.inherited else { return };
    let base = [inherited.user_object, inherited.group_object, inherited.other, inherited.mask];
    if base.iter().any(Option::is_some) {
        let base = base.map(|permissions| permissions.unwrap_or(item::NO_PERMISSIONS));
        push_numbers(item::ACL_DEFAULT, &base, out);
    }
    named(item::ACL_DEFAULT_USER, &inherited.users, out);
    named(item::ACL_DEFAULT_GROUP, &inherited.groups, out);
}

fn named(kind: u64, entries: &[AclEntry], out: &mut Vec<u8>) {
    for entry in entries {
        push_numbers(kind, &[entry.id, entry.permissions], out);
    }
}

fn attribute(kind: u64, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), TreeEncodeError> {
    if parts.iter().map(|part| part.len()).sum::<usize>() > MAX_ATTRIBUTE_BYTES {
        return Err(TreeEncodeError::Length("an attribute"));
    }
    push_item(kind, parts, out);
    Ok(())
}

/// Appends an item whose content is numbers.
pub(super) fn push_numbers(kind: u64, content: &[u64], out: &mut Vec<u8>) {
    out.extend_from_slice(&item::header(kind, (item::HEADER_BYTES + 8 * content.len()) as u64));
    for number in content {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Appends an item whose content has several parts.
pub(super) fn push_item(kind: u64, parts: &[&[u8]], out: &mut Vec<u8>) {
    let content: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&item::header(kind, (item::HEADER_BYTES + content) as u64));
    for part in parts {
        out.extend_from_slice(part);
    }
}
