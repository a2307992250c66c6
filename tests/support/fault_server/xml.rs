//! As much XML as S3 needs.

use std::fmt::Write as _;

/// An element of a request's body.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) children: Vec<Element>,
}

impl Element {
    /// Reads a document strictly: elements, attributes, the five named references and those by number.
    pub(super) fn parse(document: &str) -> Result<Self, String> {
        let mut rest = document.trim_start();
        if let Some(after) = rest.strip_prefix("<?xml ") {
            rest = after.split_once("?>").ok_or("the declaration has no end")?.1.trim_start();
        }
        let (element, rest) = Self::parse_one(rest, 0)?;
        if rest.trim().is_empty() { Ok(element) } else { Err("something comes after the end".to_owned()) }
    }

    /// The text of the first child of that name.
    pub(super) fn child(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|child| child.name == name).map(|child| child.text.as_str())
    }

    pub(super) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    fn parse_one(rest: &str, depth: usize) -> Result<(Self, &str), String> {
        let after = rest.strip_prefix('<').ok_or("there is no element")?;
        let (tag, mut rest) = after.split_once('>').ok_or("a tag has no end")?;
        let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_:.".contains(c);
        if name.is_empty() || !name.chars().all(is_name) || tag.contains('<') || depth > 8 {
            return Err(format!("the tag {tag:?}"));
        }
        if attributes.matches(['"', '\'']).count() % 2 != 0 {
            return Err(format!("the attributes of {tag:?}"));
        }
        let mut element = Self { name: name.to_owned(), ..Self::default() };
        if empty {
            return Ok((element, rest));
        }
        loop {
            let (text, tag) = rest.split_at(rest.find('<').ok_or_else(|| format!("{name} has no end"))?);
            unescape(text, &mut element.text)?;
            if let Some(end) = tag.strip_prefix("</") {
                let (end, after) = end.split_once('>').ok_or("a tag has no end")?;
                if end.trim_end() != name {
                    return Err(format!("{name} ends as {end}"));
                }
                return Ok((element, after));
            }
            let (child, after) = Self::parse_one(tag, depth + 1)?;
            element.children.push(child);
            rest = after;
        }
    }
}

/// A document with this root, as S3 starts and ends it.
pub(super) fn document(root: &str, content: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <{root} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{content}</{root}>"
    )
}

/// An element with this text.
pub(super) fn tag(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// The document without any element of this name.
pub(super) fn without(document: &str, name: &str) -> String {
    let (start, end, empty) = (format!("<{name}>"), format!("</{name}>"), format!("<{name}/>"));
    let mut kept = String::new();
    let mut rest = document;
    while let Some((before, after)) = rest.split_once(&start) {
        kept.push_str(before);
        rest = after.split_once(&end).map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    kept.replace(&empty, "")
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write these. S3 does it like this.
            c if c.is_control() => {
                write!(escaped, "&#x{:X};", u32::from(c)).expect("a string takes everything");
            }
            c => escaped.push(c),
        }
    }
    escaped
}

fn unescape(mut text: &str, to: &mut String) -> Result<(), String> {
    while let Some((before, after)) = text.split_once('&') {
        to.push_str(before);
        let (name, rest) = after.split_once(';').ok_or("a bare &")?;
        to.push(match name {
            "amp" => '&',
            "apos" => '\'',
            "gt" => '>',
            "lt" => '<',
            "quot" => '"',
            _ => numbered(name).ok_or("an unknown reference")?,
        });
        text = rest;
    }
    to.push_str(text);
    Ok(())
}

fn numbered(name: &str) -> Option<char> {
    let number = name.strip_prefix('#')?;
    let code = match number.strip_prefix('x') {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => number.parse(),
    };
    char::from_u32(code.ok()?)
}
