//! Figures, their targets, and the table of them.

use serde_json::{Value, json};

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
    /// It is there to explain others.
    Open,
}

impl Target {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::Below(limit) => Some(value < limit),
            Self::Open => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {}", number(least)),
            Self::AtMost(most) => format!("<= {}", number(most)),
            Self::Below(limit) => format!("< {}", number(limit)),
            Self::Open => String::new(),
        }
    }
}

/// A figure, measured once or more.
#[derive(Debug)]
struct Row {
    name: String,
    note: String,
    target: Target,
    unit: &'static str,
    values: Vec<f64>,
}

impl Row {
    fn value(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Takes a figure down. Of several of one name the median counts, and the target and note of the last.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &'static str, target: Target) -> &mut String {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let (name, note) = (name.to_owned(), String::new());
            self.rows.push(Row { name, note, target, unit, values: Vec::new() });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        row.values.push(value);
        row.target = target;
        row.note.clear();
        &mut row.note
    }

    /// A number of requests.
    pub(crate) fn count(&mut self, name: &str, count: u64, most: Option<u64>) -> &mut String {
        let target = most.map_or(Target::Open, |most| Target::AtMost(most as f64));
        self.add(name, count as f64, "requests", target)
    }

    /// Whether all targets are met.
    pub(crate) fn is_met(&self) -> bool {
        self.rows.iter().all(|row| row.target.is_met(row.value()) != Some(false))
    }

    pub(crate) fn print(&self) {
        println!("{:54} {:>9} {:9} {:>9} {:6} note", "figure", "value", "unit", "target", "met");
        for row in &self.rows {
            let value = row.value();
            let met = row.target.is_met(value).map_or("", |met| if met { "yes" } else { "NO" });
            let (value, target) = (number(value), row.target.text());
            println!("{:54} {value:>9} {:9} {target:>9} {met:6} {}", row.name, row.unit, row.note);
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "met": row.target.is_met(row.value()),
                "name": row.name,
                "note": row.note,
                "target": row.target.text(),
                "unit": row.unit,
                "value": row.value(),
                "values": row.values,
            })
        });
        json!({ "figures": rows.collect::<Vec<_>>(), "met": self.is_met() })
    }
}

/// With as many digits as say something.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value.abs() < 10.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}
