//! Mutations: rules of this crate that one build can break, one at a time, to show that a test or a simulated history notices.
//!
//! `docs/mutations.md` lists them, and `tests/mutation/run.py` builds with `--cfg larder_mutation` and selects one by the environment variable
//! `LARDER_MUTATION`. In every other build the macro is a constant, and nothing reads the variable.

/// `mutated!("name")` is `true` if this mutation is selected; `mutated!("name" => statement)` then executes the statement.
#[cfg(larder_mutation)]
macro_rules! mutated {
    ($name:literal) => {
        $crate::mutation::is_selected($name)
    };
    ($name:literal => $statement:expr) => {
        if $crate::mutation::is_selected($name) {
            $statement;
        }
    };
}

/// A constant: no mutation is part of this build.
#[cfg(not(larder_mutation))]
macro_rules! mutated {
    ($name:literal) => {
        false
    };
    ($name:literal => $statement:expr) => {};
}

// Does not compile if the macro reads anything.
#[cfg(not(larder_mutation))]
const _: () = assert!(!mutated!(""));

/// Returns `true` if the environment selects the mutation of this name. The environment is read once.
#[cfg(larder_mutation)]
pub(crate) fn is_selected(name: &str) -> bool {
    static SELECTED: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    SELECTED.get_or_init(|| std::env::var("LARDER_MUTATION").unwrap_or_default()) == name
}
