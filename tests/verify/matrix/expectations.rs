//! What each damage costs: the rows of `table.txt`.

use std::fs;
use std::path::Path;

use crate::matrix::cell::{Remedy, joined};
use crate::matrix::damages::Damage;
use crate::matrix::kinds::{Kind, Labels, Target};
use crate::matrix::scene::Form;

/// All rows.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verify/matrix/table.txt");
        let text = fs::read_to_string(path).unwrap();
        let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect();
        Self(rows.map(cells).collect())
    }

    /// What is observed in a cell, and the remedy.
    pub(crate) fn expected(
        &self,
        form: Form,
        kind: Kind,
        damage: Damage,
        target: &Target,
    ) -> (String, Option<Remedy>) {
        let fits = |row: &&Vec<String>| {
            row[0].split(' ').any(|name| name == format!("{kind:?}"))
                && row[1].split(' ').all(|word| word == "-" || form.name().contains(word))
                && row[2].split(' ').any(|word| is_called(damage, word))
        };
        let Some(row) = self.0.iter().find(fits) else { return ("no row".to_owned(), None) };
        let fill = |part: &str| filled(part, target);
        let parts: Vec<_> = row[3].split(' ').filter_map(fill).collect();
        (parts.join(" "), row.get(4).map(|name| Remedy::parse(name)))
    }
}

/// An observation with the labels of snapshots; `None` if it is of none.
fn filled(part: &str, target: &Target) -> Option<String> {
    let (name, labels) = part.split_once(':')?;
    let both: Labels = target.users.union(&target.partner_users).copied().collect();
    let labels = match labels {
        "U" => joined(&target.users),
        "P" => joined(&target.partner_users),
        "UP" => joined(&both),
        "ALL" => "a1,a2,b1,n1".to_owned(),
        other => other.to_owned(),
    };
    (!labels.is_empty()).then(|| format!("{name}:{labels}"))
}

fn is_called(damage: Damage, word: &str) -> bool {
    let is_linked = matches!(damage, Damage::Fifo | Damage::LinkToNothing | Damage::LinkToOther);
    match word {
        "flip" => matches!(damage, Damage::Flipped(_)),
        "linked" => is_linked,
        "odd" => is_linked || damage == Damage::WrongType,
        _ => word == damage.to_string(),
    }
}
