//! Counts the public surface of the crate from its sources, and holds its limit.
//!
//! A public item is a `pub` struct, enum, trait, function, constant, static or type alias that a path outside of the crate reaches with all
//! features on, and a `pub` function or constant of such a type. Variants, fields and the methods of traits do not count. Modules below
//! `#[doc(hidden)]` are no part of the surface.

mod reports;
mod sources;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use sources::{Item, Kind, Sources, join};
use text::{closing, split_at_commas};

/// The most public items. Lower it whenever the surface shrinks.
const MAX_ITEMS: usize = 852;

#[test]
fn the_surface_has_no_more_items_than_its_limit() {
    let surface = Surface::read(&Sources::of_the_crate());
    let count = surface.items().len();
    assert!(count <= MAX_ITEMS, "{count} public items, at most {MAX_ITEMS}\n{}", surface.table());
}

#[test]
fn no_two_public_types_share_a_name() {
    let surface = Surface::read(&Sources::of_the_crate());
    assert_eq!(surface.shared_names(), Vec::<String>::new());
}

#[test]
fn no_public_signature_has_an_anonymous_tuple() {
    let surface = Surface::read(&Sources::of_the_crate());
    assert_eq!(surface.tuples(), Vec::<String>::new());
}

#[test]
fn every_public_type_has_a_path() {
    let sources = Sources::of_the_crate();
    let surface = Surface::read(&sources);
    assert_eq!(surface.without_a_path(&sources), Vec::<String>::new());
}

#[test]
fn the_tests_of_the_surface_would_notice() {
    let sources = Sources::of_texts(&[
        (
            "",
            "pub mod a; mod b; mod c;\n#[doc(hidden)]\npub mod door { pub use crate::c::*; }\npub use b::{Reached, other as renamed};",
        ),
        (
            "a",
            "/// pub struct InComment;\npub struct One { pub pair: (u8, u8) }\npub(crate) struct Inner;\nimpl Inner { pub fn no(&self) {} }\n\
            impl One { pub fn yes(&self, f: impl Fn(u8, u8) -> (u8, u8)) {} fn private(&self) {} pub(crate) fn own(&self) {} }\n\
            pub trait Shared { fn method(&self) -> Option<(u8, Vec<u8>)>; }\n#[cfg(test)]\nmod tests { pub struct Test; }",
        ),
        (
            "b",
            "pub struct Reached(u8, pub Vec<(u8, u8)>);\npub fn other(a: (u8), b: ()) -> [u8; 2] { (1, 2) }\npub struct Lost;\npub enum Shared { A(u8, u8) }\npub use self::d::Deep; mod d { pub struct Deep; }",
        ),
        (
            "c",
            "pub struct Hidden;\nimpl Hidden { pub fn hidden() -> (u8, u8) {} }\nimpl crate::a::One { pub const MAX: usize = 1; }\nimpl Clone for Hidden {}",
        ),
    ]);
    let surface = Surface::read(&sources);
    let items: Vec<_> = surface.items().into_iter().collect();
    assert_eq!(items, ["a::One", "a::One::MAX", "a::One::yes", "a::Shared", "b::Reached", "b::other"]);
    assert_eq!(
        surface.tuples(),
        [
            "a::One::pair: (u8, u8)",
            "a::Shared::method: (u8, Vec<u8>)",
            "b::Reached: (u8, u8)",
            "a::One::yes: (u8, u8)"
        ]
    );
    assert_eq!(surface.without_a_path(&sources), ["b::Lost", "b::Shared", "b::d::Deep"]);
    assert_eq!(surface.shared_names(), Vec::<String>::new());
    let sources =
        Sources::of_texts(&[("", "pub mod a; pub mod b;"), ("a", "pub struct X;"), ("b", "pub enum X {}")]);
    assert_eq!(Surface::read(&sources).shared_names(), ["X: a::X, b::X"]);
}

/// What outside users reach, by the paths of the definitions.
struct Surface {
    types: BTreeMap<String, Item>,
    members: BTreeMap<String, Item>,
    behind_the_door: BTreeSet<String>,
}

impl Surface {
    fn read(sources: &Sources) -> Self {
        let (mut types, mut hidden) = (BTreeMap::new(), BTreeMap::new());
        reach(sources, "", false, &mut types, &mut hidden);
        let mut members = BTreeMap::new();
        for block in &sources.impls {
            let Some((of, _)) = sources.resolve(&block.module, &block.of) else { continue };
            if types.contains_key(&of) {
                let public = block.items.iter().filter(|item| item.public && !item.hidden);
                members.extend(public.map(|item| (join(&of, &item.name), item.clone())));
            }
        }
        Self { types, members, behind_the_door: hidden.into_keys().collect() }
    }

    fn items(&self) -> BTreeSet<String> {
        self.types.keys().chain(self.members.keys()).cloned().collect()
    }

    /// How many items each room has, and all of them.
    fn table(&self) -> String {
        let mut table = String::new();
        let items = self.items();
        let room_of = |item: &String| item.split("::").next().unwrap_or_default().to_owned();
        let mut rooms: BTreeMap<String, usize> = BTreeMap::new();
        for item in &items {
            *rooms.entry(room_of(item)).or_default() += 1;
        }
        for (room, count) in rooms {
            writeln!(table, "{count:4} {room}").unwrap();
        }
        for item in items {
            writeln!(table, "{item}").unwrap();
        }
        table
    }

    fn shared_names(&self) -> Vec<String> {
        let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (path, item) in &self.types {
            if matches!(item.kind, Kind::Type | Kind::Trait | Kind::Value) {
                names.entry(&item.name).or_default().push(path);
            }
        }
        let shared = names.into_iter().filter(|(_, paths)| paths.len() > 1);
        shared.map(|(name, paths)| format!("{name}: {}", paths.join(", "))).collect()
    }

    /// Tuples in the signatures of functions and methods of traits, and in the types of public fields and aliases.
    fn tuples(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, item) in self.types.iter().chain(&self.members) {
            for (name, text) in &item.signatures {
                let path = if name.is_empty() { path.clone() } else { join(path, name) };
                found.extend(tuples_in(text).map(|tuple| format!("{path}: {tuple}")));
            }
        }
        found
    }

    /// Types and traits that are `pub`, but that no public and no hidden path reaches.
    fn without_a_path(&self, sources: &Sources) -> Vec<String> {
        let mut lost = Vec::new();
        for (module, items) in &sources.modules {
            for item in
                items.iter().filter(|item| item.public && matches!(item.kind, Kind::Type | Kind::Trait))
            {
                let path = join(module, &item.name);
                if !self.types.contains_key(&path) && !self.behind_the_door.contains(&path) {
                    lost.push(path);
                }
            }
        }
        lost
    }
}

/// Adds what the public names of a module lead to.
fn reach(
    sources: &Sources,
    module: &str,
    hidden: bool,
    found: &mut BTreeMap<String, Item>,
    behind_the_door: &mut BTreeMap<String, Item>,
) {
    for item in sources.modules.get(module).into_iter().flatten().filter(|item| item.public) {
        let hidden = hidden || item.hidden;
        if let Some(all_of) = item.text.strip_suffix("::*").filter(|_| item.kind == Kind::Use) {
            let module = sources.module_at(module, all_of);
            reach(sources, &module, hidden, found, behind_the_door);
            continue;
        }
        let resolved = match item.kind {
            Kind::Use => sources.resolve(module, &item.text),
            _ => Some((join(module, &item.name), item)),
        };
        let Some((path, item)) = resolved else { panic!("{module}: {} leads nowhere", item.text) };
        match item.kind {
            Kind::Module => reach(sources, &path, hidden, found, behind_the_door),
            _ if hidden => drop(behind_the_door.insert(path, item.clone())),
            _ => drop(found.insert(path, item.clone())),
        }
    }
}

/// Parentheses with a comma in them that no name and no generics precede: these would be parameters or the fields of a variant.
fn tuples_in(text: &str) -> impl Iterator<Item = String> + '_ {
    text.match_indices('(').filter_map(move |(at, _)| {
        let inner = &text[at..at + closing(&text[at..], '(', ')')?];
        let parts =
            split_at_commas(&inner[1..inner.len() - 1]).iter().filter(|part| !part.trim().is_empty()).count();
        let of_a_name = text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '>'));
        (parts > 1 && !of_a_name).then(|| inner.to_owned())
    })
}
