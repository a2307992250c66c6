//! The findings of a backup or restore of trees, for people and as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use larder::tree::{Problem, TreeFinding, TreeReport};

/// Maximum number of printed findings of a kind.
const MAX_PRINTED: u64 = 100;

/// The report of one archive. It prints each finding when it comes, one line on standard error, up to 100 of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    archive: String,
    found: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    /// Number of printed findings by kind.
    printed: HashMap<String, u64>,
    report: TreeReport,
}

impl Findings {
    pub(crate) fn new(archive: &str) -> Self {
        Self { archive: archive.to_owned(), found: Arc::default() }
    }

    pub(crate) fn add(&self, finding: TreeFinding) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = match finding.problem {
            Problem::NotSet(attribute) => format!("{attribute} not set"),
            problem => problem.code().to_owned(),
        };
        let printed = found.printed.entry(kind).or_default();
        *printed += 1;
        if *printed <= MAX_PRINTED {
            eprintln!("{finding}");
        }
        if *printed == MAX_PRINTED {
            eprintln!("of this kind no more are printed; --json lists all");
        }
        found.report.add(finding);
    }

    pub(crate) fn report(&self) -> TreeReport {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).report.clone()
    }
}

/// Number of findings of several archives that are not notices.
pub(crate) fn losses(findings: &[Findings]) -> u64 {
    findings.iter().map(|findings| findings.report().losses).sum()
}

/// The list for `--json`: paths as in the messages.
pub(crate) fn json(findings: &[Findings]) -> Vec<serde_json::Value> {
    let of_archive = |findings: &Findings| {
        let of_finding = |finding: &TreeFinding| {
            serde_json::json!({
                "archive": findings.archive,
                "path": finding.shown_path(),
                "problem": finding.problem.code(),
                "message": message(finding),
                "notice": finding.problem.is_notice(),
            })
        };
        findings.report().findings.iter().map(of_finding).collect::<Vec<_>>()
    };
    findings.iter().flat_map(of_archive).collect()
}

/// The problem and its cause, on one line.
fn message(finding: &TreeFinding) -> String {
    match &finding.cause {
        Some(cause) => format!("{}: {cause}", finding.problem),
        None => finding.problem.to_string(),
    }
}

/// One line for each finding, at most `max_bytes` altogether.
pub(crate) fn log(findings: &[Findings], max_bytes: usize) -> String {
    let mut text = String::new();
    let mut omitted = 0;
    for findings in findings {
        let report = findings.report();
        for finding in &report.findings {
            let line = format!("{}: {finding}\n", findings.archive);
            if text.len() + line.len() > max_bytes {
                omitted += 1;
            } else {
                text += &line;
            }
        }
        omitted += report.beyond;
    }
    if omitted > 0 {
        let _ = writeln!(text, "and {omitted} more");
    }
    text
}
