//! Documents as trees of elements, for untrusted documents.
//!
//! Elements are identified by their local names; namespaces, attributes, comments and processing instructions are skipped.
//! Document types are refused, so the only entities are the five of XML itself. Depth and size are limited (H117).

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::errors::Error as ReaderError;
use quick_xml::events::{BytesRef, Event};
use zeroize::Zeroizing;

use crate::wire::s3_xml::XmlError;

/// Maximum depth of nested elements. S3 needs six.
const DEPTH_LIMIT: usize = 16;
/// Maximum number of elements. A tree takes far more memory than its text if elements are small; a page of 1000
/// objects has about 15,000.
const ELEMENT_LIMIT: usize = 1 << 18;

/// Names of elements that occur for each object of a listing.
const OFTEN: [&str; 6] = ["Contents", "Key", "LastModified", "ETag", "Size", "StorageClass"];

/// An element. Text beside child elements, which S3 does not use, is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    children: Vec<Element>,
    pub(super) name: Cow<'static, str>,
    text: String,
}

impl Element {
    /// Parses a document of at most `limit` bytes, with white space before and after it.
    pub(super) fn parse(document: &[u8], limit: usize) -> Result<Self, XmlError> {
        if document.len() > limit {
            return Err(XmlError::TooLarge);
        }
        let text = str::from_utf8(document).map_err(|_| XmlError::Malformed)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_ascii_start();
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = Vec::new();
        let mut root = None;
        let mut elements = 0;
        loop {
            match reader.read_event().map_err(|error| malformed(&error))? {
                Event::Start(_) | Event::Empty(_) if root.is_some() => return Err(XmlError::Malformed),
                Event::Start(start) => {
                    check_limits(open.len(), &mut elements)?;
                    open.push(Self::named(start.local_name().as_ref()));
                }
                Event::Empty(start) => {
                    check_limits(open.len(), &mut elements)?;
                    close(Self::named(start.local_name().as_ref()), &mut open, &mut root);
                }
                Event::End(_) => {
                    let element = open.pop().ok_or(XmlError::Malformed)?;
                    close(element, &mut open, &mut root);
                }
                Event::Text(text) => add(&text.xml10_content(), &mut open)?,
                Event::CData(text) => add(&text.xml10_content(), &mut open)?,
                Event::GeneralRef(reference) => {
                    let character = character(&reference)?;
                    open.last_mut().ok_or(XmlError::Malformed)?.text.push(character);
                }
                Event::DocType(_) => return Err(XmlError::DocumentType),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => return root.filter(|_| open.is_empty()).ok_or(XmlError::Truncated),
            }
        }
    }

    fn named(name: &str) -> Self {
        // Frequent names are not allocated.
        let name = match OFTEN.iter().find(|often| **often == name) {
            Some(often) => Cow::Borrowed(*often),
            None => Cow::Owned(name.to_owned()),
        };
        let room = if name == OFTEN[0] { OFTEN.len() - 1 } else { 0 };
        Self { children: Vec::with_capacity(room), name, text: String::new() }
    }

    /// The first child with this name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children with this name.
    pub(super) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Removes and returns the first child with this name.
    pub(super) fn take(&mut self, name: &str) -> Option<Self> {
        let at = self.children.iter().position(|child| child.name == name)?;
        Some(self.children.remove(at))
    }

    /// Its text as a secret, trimmed; `None` if it is empty.
    pub(super) fn into_secret(self) -> Option<Zeroizing<String>> {
        let text = Zeroizing::new(self.text);
        Some(text.trim_ascii()).filter(|text| !text.is_empty()).map(|text| Zeroizing::new(text.to_owned()))
    }

    /// Its text, verbatim.
    pub(super) fn text(&self) -> &str {
        if self.children.is_empty() { &self.text } else { "" }
    }

    /// The text of the first child with this name, trimmed; `None` if it is missing or
    /// empty.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text().trim_ascii()).filter(|text| !text.is_empty())
    }
}

/// Returns `true` if another element may begin at this depth.
fn check_limits(depth: usize, elements: &mut usize) -> Result<(), XmlError> {
    *elements += 1;
    if depth >= DEPTH_LIMIT {
        return Err(XmlError::TooDeep);
    }
    if *elements > ELEMENT_LIMIT { Err(XmlError::TooLarge) } else { Ok(()) }
}

fn close(element: Element, open: &mut [Element], root: &mut Option<Element>) {
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None => *root = Some(element),
    }
}

fn add(text: &str, open: &mut [Element]) -> Result<(), XmlError> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim_ascii().is_empty() => {}
        None => return Err(XmlError::Malformed),
    }
    Ok(())
}

fn character(reference: &BytesRef<'_>) -> Result<char, XmlError> {
    if let Some(character) = reference.resolve_char_ref().map_err(|_| XmlError::Malformed)? {
        return Ok(character);
    }
    match &**reference {
        "amp" => Ok('&'),
        "apos" => Ok('\''),
        "gt" => Ok('>'),
        "lt" => Ok('<'),
        "quot" => Ok('"'),
        _ => Err(XmlError::Malformed),
    }
}

fn malformed(error: &ReaderError) -> XmlError {
    match error {
        // The document ended inside an element.
        ReaderError::Syntax(_) => XmlError::Truncated,
        _ => XmlError::Malformed,
    }
}
