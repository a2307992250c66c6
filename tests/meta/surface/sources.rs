//! Reads modules, definitions and `impl` blocks from the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::text::{closing, code_of, split_at_commas, statements};

/// A definition, or a name that a `use` brings.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) public: bool,
    pub(super) hidden: bool,
    /// What follows the name, without the body.
    pub(super) text: String,
    /// The types that a user reads, with the names of methods and fields.
    pub(super) signatures: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Function,
    Module,
    Trait,
    Type,
    Use,
    Value,
}

/// The items of each module by its path, and the items of each `impl` block with the module that it stands in and the type it names.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) modules: BTreeMap<String, Vec<Item>>,
    pub(super) impls: Vec<Impl>,
}

pub(super) struct Impl {
    pub(super) module: String,
    pub(super) of: String,
    pub(super) items: Vec<Item>,
}

impl Sources {
    pub(super) fn of_the_crate() -> Self {
        let mut sources = Self::default();
        sources.read_file(Path::new("src/lib.rs"), "");
        sources
    }

    /// Modules by their paths, the first of them the root.
    pub(super) fn of_texts(texts: &[(&str, &str)]) -> Self {
        let mut sources = Self::default();
        for &(module, text) in texts {
            sources.read_module(module, &code_of(text));
        }
        sources
    }

    fn read_file(&mut self, file: &Path, module: &str) {
        let text = fs::read_to_string(file).unwrap();
        for (name, gated) in self.read_module(module, &code_of(&text)) {
            let folder = match module {
                "" => Path::new("src").to_owned(),
                module => Path::new("src").join(module.replace("::", "/")),
            };
            let (flat, door) = (folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs"));
            assert!(gated || flat.exists() || door.exists(), "{} has no file", join(module, &name));
            self.read_file(if flat.exists() { &flat } else { &door }, &join(module, &name));
        }
    }

    /// Returns the modules that have a file of their own.
    fn read_module(&mut self, module: &str, code: &str) -> Vec<(String, bool)> {
        let (mut items, mut files) = (Vec::new(), Vec::new());
        for (head, body) in statements(code) {
            if head.contains("#[cfg(test)]") {
                continue;
            }
            if let Some(of) = type_of_impl(&head) {
                let items =
                    statements(&body).iter().filter_map(|(head, body)| Item::read(head, body)).collect();
                self.impls.push(Impl { module: module.to_owned(), of, items });
            } else if let Some(item) = Item::read(&head, &body) {
                match item.kind {
                    Kind::Module if head.ends_with(';') => files.push((item.name.clone(), false)),
                    Kind::Module => {
                        let inner = self.read_module(&join(module, &item.name), &body);
                        assert!(inner.is_empty(), "a module with a file in {module}::{}", item.name);
                    }
                    Kind::Use => {
                        items.extend(names_of_use(&item.text).into_iter().map(|(name, text)| Item {
                            name,
                            text,
                            ..item.clone()
                        }));
                        continue;
                    }
                    _ => {}
                }
                items.push(item);
            }
        }
        self.modules.insert(module.to_owned(), items);
        files
    }

    /// The module that a path names, seen from another.
    pub(super) fn module_at(&self, from: &str, path: &str) -> String {
        match path.strip_prefix("crate::") {
            Some(path) => path.to_owned(),
            None => {
                self.resolve(from, path).map_or_else(|| panic!("{from}: no module {path}"), |(path, _)| path)
            }
        }
    }

    /// The definition that a path names, seen from a module.
    pub(super) fn resolve(&self, from: &str, path: &str) -> Option<(String, &Item)> {
        let path = path.trim_start_matches("::");
        let (first, rest) = path.split_once("::").map_or((path, None), |(first, rest)| (first, Some(rest)));
        match (first, rest) {
            ("crate", Some(rest)) => return self.resolve("", rest),
            ("self", Some(rest)) => return self.resolve(from, rest),
            ("super", Some(rest)) => {
                return self.resolve(from.rsplit_once("::").map_or("", |(above, _)| above), rest);
            }
            _ => {}
        }
        let item = self.modules.get(from)?.iter().find(|item| item.name == first)?;
        match (item.kind, rest) {
            (Kind::Use, None) if item.text == first => None,
            (Kind::Use, None) => self.resolve(from, &item.text),
            (Kind::Use, Some(rest)) if item.text != first => {
                self.resolve(from, &format!("{}::{rest}", item.text))
            }
            (Kind::Module, Some(rest)) => self.resolve(&join(from, first), rest),
            (_, None) => Some((join(from, first), item)),
            _ => None,
        }
    }
}

impl Item {
    fn read(head: &str, body: &str) -> Option<Self> {
        let mut rest = head.trim_start();
        let mut hidden = false;
        while let Some(attribute) = rest.strip_prefix('#') {
            let end = closing(attribute, '[', ']')?;
            hidden |= attribute[..end].replace(' ', "").contains("doc(hidden)");
            rest = attribute[end..].trim_start();
        }
        let mut public = false;
        if let Some(after) = rest.strip_prefix("pub") {
            public = after.starts_with(' ');
            rest = if public { after.trim_start() } else { after[closing(after, '(', ')')?..].trim_start() };
        }
        let mut words = rest.splitn(2, ' ');
        let (mut word, mut after) = (words.next()?, words.next().unwrap_or_default());
        while matches!(word, "async" | "unsafe" | "default") || word == "const" && after.starts_with("fn ") {
            (word, after) = after.split_once(' ')?;
        }
        let kind = match word {
            "fn" => Kind::Function,
            "mod" => Kind::Module,
            "trait" => Kind::Trait,
            "struct" | "enum" | "union" | "type" => Kind::Type,
            "use" => Kind::Use,
            "const" | "static" => Kind::Value,
            _ => return None,
        };
        let ends = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, text) =
            if kind == Kind::Use { ("", after.trim_end_matches(';')) } else { after.split_at(ends) };
        let text = text.trim_end_matches(';').to_owned();
        let signatures = match (kind, word) {
            (Kind::Function, _) => vec![(String::new(), format!("{name}{text}"))],
            (Kind::Trait, _) => methods(body),
            (_, "struct") => public_fields(&text, body),
            (Kind::Type, _) => vec![(String::new(), format!("{text} {body}"))],
            (Kind::Value, _) => vec![(String::new(), text.split('=').next().unwrap_or_default().to_owned())],
            (Kind::Module | Kind::Use, _) => Vec::new(),
        };
        Some(Self { name: name.to_owned(), kind, public, hidden, text, signatures })
    }
}

/// The methods of a trait, each with its signature.
fn methods(body: &str) -> Vec<(String, String)> {
    let items = statements(body).into_iter().filter_map(|(head, body)| Item::read(&head, &body));
    items.map(|item| (item.name.clone(), format!("{}{}", item.name, item.text))).collect()
}

/// The public fields of a structure, each with its type.
fn public_fields(head: &str, body: &str) -> Vec<(String, String)> {
    let fields = head.split_once('(').map_or(body, |(_, fields)| fields);
    let mut found = Vec::new();
    for field in split_at_commas(fields) {
        let Some((_, field)) = field.split_once("pub ") else { continue };
        let (name, text) = field.split_once(": ").unwrap_or(("", field));
        found.push((name.to_owned(), text.to_owned()));
    }
    found
}

pub(super) fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// The type of an inherent `impl`.
fn type_of_impl(head: &str) -> Option<String> {
    let mut rest = head.trim_start();
    while let Some(attribute) = rest.strip_prefix('#') {
        rest = attribute[closing(attribute, '[', ']')?..].trim_start();
    }
    let rest = rest.strip_prefix("impl")?;
    let rest = if rest.starts_with('<') { &rest[closing(rest, '<', '>')?..] } else { rest };
    if rest.contains(" for ") {
        return None;
    }
    Some(rest.trim_start().split(['<', ' ', '{']).next()?.to_owned())
}

/// The names that a `use` brings, each with its path.
fn names_of_use(tree: &str) -> Vec<(String, String)> {
    let tree = tree.trim();
    if let Some((before, list)) = tree.split_once('{') {
        let list = list.trim_end().trim_end_matches('}');
        return split_at_commas(list)
            .into_iter()
            .flat_map(|part| names_of_use(&format!("{before}{}", part.trim())))
            .collect();
    }
    if tree.is_empty() || tree.ends_with("::") {
        return Vec::new();
    }
    let (path, name) = tree.split_once(" as ").unwrap_or((tree, tree.rsplit("::").next().unwrap()));
    let path = path.strip_suffix("::self").unwrap_or(path);
    let name = if name == "self" { path.rsplit("::").next().unwrap() } else { name };
    vec![(name.to_owned(), path.to_owned())]
}
