//! Changes of an answer by the rules, before it is framed.

use std::sync::Arc;

use super::date;
use super::plan::Plan;
use super::reply::Reply;
use super::request::Head;
use super::rule::{Action, Flip};
use super::xml;

/// Seconds by which a request's date may be off.
const MAX_SKEW: u64 = 15 * 60;

/// The answer that takes the place of execution, if there is one.
pub(super) fn instead(plan: &Plan, head: &Head) -> Option<Reply> {
    let answer = plan.actions.iter().find_map(|action| match action {
        Action::Redirect { status, location, region } => Some(redirect(*status, location, region.as_deref())),
        Action::Status { status, code, headers, body } => {
            let mut reply = Reply::error(*status, code);
            if let Some(body) = body {
                reply = Reply { body: Arc::new(body.clone()), ..Reply::empty(*status) };
            }
            reply.headers.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            Some(reply)
        }
        _ => None,
    });
    let blanks = plan.actions.iter().find_map(|action| match action {
        Action::OkWithErrorBody { whitespace, delay } => Some((*whitespace, *delay)),
        _ => None,
    });
    if let Some(lead) = blanks {
        let reply = answer.unwrap_or_else(|| Reply::error(500, "InternalError"));
        return Some(Reply { status: 200, lead: Some(lead), ..reply });
    }
    if answer.is_none() && plan.responds_early() {
        return Some(Reply::error(503, "SlowDown"));
    }
    answer.or_else(|| too_skewed(plan, head))
}

/// Changes the body and the headers that belong to it. Afterwards only the framing is missing.
pub(super) fn body(plan: &Plan, reply: &mut Reply) {
    for action in &plan.actions {
        match action {
            Action::DropXmlElement(name) => {
                // A body that is not text has no elements.
                if let Ok(text) = std::str::from_utf8(&reply.body) {
                    reply.body = Arc::new(xml::without(text, name).into_bytes());
                }
            }
            Action::RetryAfter(text) => reply.headers.push(("Retry-After".to_owned(), (*text).to_owned())),
            _ => {}
        }
    }
    if plan.flips(Flip::Sent) {
        reply.body = Arc::new(flipped(&reply.body));
    }
    for action in &plan.actions {
        if let Action::ContentEncoding(name) = action {
            reply.body = Arc::new(gzip(&reply.body));
            reply.headers.push(("Content-Encoding".to_owned(), (*name).to_owned()));
        }
    }
}

/// Changes the headers as they would be sent.
pub(super) fn headers(plan: &Plan, headers: &mut Vec<(String, String)>) {
    for action in &plan.actions {
        match action {
            Action::AddHeader(name, value) => headers.push(((*name).to_owned(), value.clone())),
            Action::DropHeader(name) => headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name)),
            Action::ReplaceHeader(name, value) => {
                headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
                headers.push(((*name).to_owned(), value.clone()));
            }
            _ => {}
        }
    }
}

/// The bytes with the lowest bit of the middle one flipped.
pub(super) fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes
}

fn redirect(status: u16, location: &str, region: Option<&str>) -> Reply {
    let code = match status {
        301 => "PermanentRedirect",
        400 => "AuthorizationHeaderMalformed",
        _ => "TemporaryRedirect",
    };
    let mut reply = Reply::error(status, code);
    if !location.is_empty() {
        let endpoint = location.split_once("://").map_or(location, |(_, rest)| rest);
        let endpoint = endpoint.split('/').next().unwrap_or_default();
        reply = reply.header("Location", location).detail("Endpoint", endpoint);
    }
    if let Some(region) = region {
        reply = reply.header("x-amz-bucket-region", region).detail("Region", region);
    }
    reply
}

fn too_skewed(plan: &Plan, head: &Head) -> Option<Reply> {
    let now = date::now(plan.skew()?);
    let sent = head.header("x-amz-date")?;
    let off = date::distance(sent, now);
    if off.is_some_and(|off| off <= MAX_SKEW) {
        return None;
    }
    let reply = Reply::error(403, "RequestTimeTooSkewed");
    Some(reply.detail("RequestTime", sent).detail("ServerTime", &date::iso(now)))
}

/// A gzip file that only stores. Source: RFC 1952 §2, RFC 1951 §3.2.4.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for block in bytes.chunks(0xffff) {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        file.push(0);
        file.extend(length.to_le_bytes());
        file.extend((!length).to_le_bytes());
        file.extend_from_slice(block);
    }
    // An empty last block, so that every other one can say that it is not.
    file.extend([1, 0, 0, 0xff, 0xff]);
    file.extend(crc32fast::hash(bytes).to_le_bytes());
    file.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    file
}
