//! The damage matrix: each damage of each kind of object, in each form of a store.
//!
//! A cell damages a copy of a store past all rules. Then it lists and restores everything, collects garbage, verifies, applies the documented
//! remedy if one is needed, backs up the same data again, and collects and verifies once more as another process. The table says what is
//! observed; whatever it says, a sound snapshot is restored bit for bit at each point, no byte is ever wrong, and the new backups
//! are sound.
//!
//! By default a part of the cells runs, a different one in each form of the store. `LARDER_DAMAGE=all` runs every cell, in both orders of verification and
//! collection; `LARDER_DAMAGE_ONLY=text` runs those whose names contain the text. `LARDER_DAMAGE_TABLE=1` prints the observations, and
//! `LARDER_DAMAGE_ERRORS=1` whole errors in them.

mod cell;
mod damages;
mod expectations;
mod image;
mod kinds;
mod local;
mod scene;

use std::collections::BTreeSet;
use std::env;

use larder::format::layout::Key;
use larder::rt::SimRuntime;
use larder_testing::gc_scene::OnFailure;

use crate::matrix::damages::Damage;
use crate::matrix::expectations::Table;
use crate::matrix::image::Entry;
use crate::matrix::kinds::Kind;
use crate::matrix::scene::{Form, Scene};

/// Returns `true` if the cell with this number runs: by default, one in so many.
fn is_chosen(name: &str, number: usize, one_in: usize) -> bool {
    match env::var("LARDER_DAMAGE_ONLY") {
        Ok(only) => name.contains(&only),
        Err(_) => number.is_multiple_of(one_in) || is_thorough(),
    }
}

/// Returns `true` if observations are printed.
fn prints() -> bool {
    env::var_os("LARDER_DAMAGE_TABLE").is_some()
}

/// The parts of a row, sorted, perhaps without what the first verification found.
fn in_any_order(row: &str, ignores_verification: bool) -> Vec<&str> {
    let parts = row.split(' ').filter(|part| !(ignores_verification && part.starts_with("verify")));
    let mut parts: Vec<_> = parts.collect();
    parts.sort_unstable();
    parts
}

/// Returns `true` if every cell runs, in both orders of verification and collection.
fn is_thorough() -> bool {
    env::var_os("LARDER_DAMAGE").is_some()
}

/// Runs all cells of a form; returns the number of cells.
fn run(form: Form) -> usize {
    let (scene, table) = (Scene::new(form), Table::read());
    let (mut cells, mut wrong) = (0, Vec::new());
    // Other cells run in the other forms of the store; a bucket takes longer.
    let (first, one_in) = (usize::from(form.is_packed), if form.is_bucket { 6 } else { 3 });
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let Some(target) = kind.target(&scene) else { continue };
        for (number, damage) in (first + at..).zip(Damage::ALL) {
            let name = format!("{} | {kind:?} | {damage}", form.name());
            if (form.is_bucket && !damage.is_of_objects()) || !is_chosen(&name, number, one_in) {
                continue;
            }
            let (row, remedy) = table.expected(form, kind, damage, &target);
            let _on_failure = OnFailure(name.clone());
            let orders: &[bool] = if is_thorough() { &[false, true] } else { &[false] };
            for &collects_first in orders {
                let sim = SimRuntime::new(cells);
                let ran = sim.block_on(cell::run(&sim, &scene, &target, damage, remedy, collects_first));
                let Some(observed) = ran else { continue };
                cells += 1;
                if prints() {
                    println!("CELL {name} | {observed}");
                }
                // A collection makes chunks known in packs that no segment names.
                let heals_early = collects_first && matches!(kind, Kind::Segment | Kind::Segments);
                if in_any_order(&observed, heals_early) != in_any_order(&row, heals_early) {
                    wrong.push(format!("{name}\n  expected {row}\n  observed {observed}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cells} cells:\n{}", wrong.len(), wrong.join("\n"));
    println!("{}: {cells} cells", form.name());
    usize::try_from(cells).unwrap()
}

/// Proves H78.
#[test]
fn damage_of_a_loose_directory_costs_what_the_table_says() {
    run(Form::ALL[0]);
}

/// Proves H78, H208.
#[test]
fn damage_of_a_packed_directory_costs_what_the_table_says() {
    run(Form::ALL[1]);
}

#[test]
fn damage_of_a_loose_bucket_costs_what_the_table_says() {
    run(Form::ALL[2]);
}

/// Proves H208.
#[test]
fn damage_of_a_packed_bucket_costs_what_the_table_says() {
    run(Form::ALL[3]);
}

/// The names of the variants of [`Key`], by its source: from outside of the crate no match is exhaustive.
fn kinds_of_keys() -> BTreeSet<String> {
    let source = include_str!("../../../src/format/layout.rs");
    let (_, variants) = source.split_once("pub enum Key {").unwrap();
    let (variants, _) = variants.split_once("\n}").unwrap();
    let is_variant = |line: &&str| line.starts_with(|first: char| first.is_ascii_uppercase());
    let variants = variants.lines().map(str::trim).filter(is_variant);
    variants.map(|line| line.split(['(', ',']).next().unwrap().to_owned()).collect()
}

fn kind_of_key(key: &Key) -> String {
    let text = format!("{key:?}");
    text.split(['(', ' ']).next().unwrap().to_owned()
}

#[test]
fn every_kind_of_object_is_in_the_matrix() {
    let (mut covered, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for form in Form::ALL {
        let scene = Scene::new(form);
        let targets: Vec<_> = Kind::ALL.iter().filter_map(|kind| kind.target(&scene)).collect();
        let key = |path: &str| path.strip_prefix(".cnt/").unwrap_or(path).parse::<Key>().ok();
        let exposed = |path: &str| key(path.strip_prefix(".larder/cnt/").unwrap_or(path));
        covered.extend(targets.iter().filter_map(|target| key(&target.path)).map(|key| kind_of_key(&key)));
        for (path, entry) in &scene.image.0 {
            let is_like = |target: &str| match (exposed(path), exposed(target)) {
                (Some(Key::Archive(_, found)), Some(Key::Archive(_, target))) => {
                    found.kind() == target.kind()
                }
                (Some(found), Some(target)) => kind_of_key(&found) == kind_of_key(&target),
                (None, None) => target == path || path.starts_with(target),
                _ => false,
            };
            let is_covered = targets.iter().any(|target| is_like(&target.path));
            if !is_covered && !matches!(entry, Entry::Directory) {
                missing.insert(format!("{}: {path}", form.name()));
            }
        }
    }
    assert_eq!(covered, kinds_of_keys(), "a kind of key has no row");
    assert!(missing.is_empty(), "{missing:#?}");
}
