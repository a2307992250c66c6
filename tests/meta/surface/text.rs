//! Splits the text of a source file into statements.

/// The statements of a block: what stands before the braces or the semicolon, with the latter, and what stands in the braces.
pub(super) fn statements(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while !rest.is_empty() && !rest.starts_with('}') {
        let (mut depth, mut end, mut body) = (0_i32, rest.len(), None);
        let is_use = |head: &str| head.split_whitespace().any(|word| word == "use");
        for (at, c) in rest.char_indices() {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                ';' if depth == 0 => end = at + 1,
                '{' if depth == 0 && !is_use(&rest[..at]) => {
                    let length = closing(&rest[at..], '{', '}').unwrap_or(rest.len() - at);
                    body = Some((at, at + length));
                    end = at + length;
                }
                _ => continue,
            }
            if end < rest.len() || body.is_some() {
                break;
            }
        }
        match body {
            Some((from, to)) => found.push((rest[..from].to_owned(), rest[from + 1..to].to_owned())),
            None => found.push((rest[..end].to_owned(), String::new())),
        }
        rest = rest[end..].trim_start();
    }
    found
}

/// The parts between the commas that stand in no brackets.
pub(super) fn split_at_commas(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts, mut last) = (0_i32, 0, Vec::new(), ' ');
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if last == '-' || last == '=' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth <= 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
        last = c;
    }
    parts.push(&text[from..]);
    parts
}

/// Where the bracket that a text begins with is closed, behind it.
pub(super) fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let (mut depth, mut last) = (0_usize, ' ');
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close && !(close == '>' && (last == '-' || last == '=')) {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(at + c.len_utf8());
            }
        }
        last = c;
    }
    None
}

/// The code of a file in one line, without comments and without the contents of literals.
pub(super) fn code_of(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(length) =
            raw_string(rest).filter(|_| !code.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            length
        } else if c == '"' {
            end_of_literal(rest, '"')
        } else if c == '\'' && is_char(rest) {
            end_of_literal(rest, '\'')
        } else {
            code.push(if c.is_whitespace() { ' ' } else { c });
            c.len_utf8()
        };
        rest = &rest[skipped..];
    }
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The length of the raw string at the begin of a text.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &after[..hashes]);
    let start = text.len() - after.len() + hashes + 1;
    Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()))
}

/// `true` for a literal, `false` for a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}

fn end_of_literal(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\\' if !escaped => escaped = true,
            c if c == quote && !escaped => return at + 1,
            _ => escaped = false,
        }
    }
    text.len()
}
