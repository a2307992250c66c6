//! The syntax of the shared files.
//!
//! | line | meaning |
//! |---|---|
//! | `[default]`, `[profile NAME]` in the configuration; `[NAME]` in the credentials | begins a profile |
//! | `[sso-session NAME]`, `[services NAME]` and the like | begins a section that is skipped |
//! | `name = value` | a setting; names are in any case. A blank before `#` or `;` begins a comment |
//! | blanks, then anything | belongs to the setting above, and is skipped |
//! | `#` or `;`, then anything | a comment |
//!
//! A profile that occurs repeatedly has the settings of all its sections. The last value of a setting counts, and one in the credentials.

use std::collections::BTreeMap;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::credentials::variables::read_text;

/// Kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Config,
    Credentials,
}

/// The settings of a profile.
pub(super) type Settings = BTreeMap<String, Zeroizing<String>>;

/// All profiles of both files.
#[derive(Default)]
pub(crate) struct Profiles(BTreeMap<String, Settings>);

impl Profiles {
    /// Reads both files. Blocks.
    ///
    /// # Errors
    /// As [`read_text`]; `InvalidInput` for a section without end.
    pub(super) fn read(config: &Path, credentials: &Path) -> Result<Self> {
        let mut profiles = Self::default();
        for (kind, path) in [(Kind::Config, config), (Kind::Credentials, credentials)] {
            if let Some(text) = read_text(path)? {
                profiles.add(kind, &text).map_err(|line| {
                    let refused = Error::new(ErrorKind::InvalidInput, "read the profiles in");
                    refused.on(path.display()).because(format!("line {line} is a section without end"))
                })?;
            }
        }
        Ok(profiles)
    }

    /// Adds the profiles of a text. The error is the number of a line that begins a section and does not end it: its settings must not
    /// become those of the profile before it.
    pub(crate) fn add(&mut self, kind: Kind, text: &str) -> std::result::Result<(), usize> {
        let mut profile: Option<&mut Settings> = None;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with(|c: char| c.is_whitespace() || matches!(c, '#' | ';')) {
                continue;
            }
            if let Some(heading) = line.strip_prefix('[') {
                let (heading, _) = heading.split_once(']').ok_or(number + 1)?;
                profile = name_of(kind, heading).map(|name| self.0.entry(name.to_owned()).or_default());
            } else if let (Some(profile), Some((name, value))) = (&mut profile, line.split_once('=')) {
                let value = without_comment(value).trim();
                profile.insert(name.trim().to_ascii_lowercase(), Zeroizing::new(value.to_owned()));
            }
        }
        Ok(())
    }

    pub(crate) fn has(&self, profile: &str) -> bool {
        self.0.contains_key(profile)
    }

    /// The setting of a profile; an empty one counts as missing.
    pub(super) fn get(&self, profile: &str, setting: &str) -> Option<&str> {
        let value = self.0.get(profile)?.get(setting)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Name of the profile that a section begins.
fn name_of(kind: Kind, heading: &str) -> Option<&str> {
    let heading = heading.trim();
    let named = heading.strip_prefix("profile").filter(|rest| rest.starts_with([' ', '\t'])).map(str::trim);
    match (kind, named) {
        (Kind::Config, Some(name)) => Some(name),
        (Kind::Config, None) => Some(heading).filter(|heading| *heading == "default"),
        (Kind::Credentials, _) => Some(heading),
    }
}

fn without_comment(value: &str) -> &str {
    let blank = |at: usize| value[..at].ends_with([' ', '\t']);
    let mut marks = value.match_indices(['#', ';']).map(|(at, _)| at);
    marks.find(|at| blank(*at)).map_or(value, |at| &value[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str, credentials: &str) -> Profiles {
        let mut profiles = Profiles::default();
        profiles.add(Kind::Config, config).unwrap();
        profiles.add(Kind::Credentials, credentials).unwrap();
        profiles
    }

    #[test]
    fn settings_belong_to_the_section_above_them() {
        let config = "stray = 1\n# [profile c]\n[default] # mine\nRegion=eu-central-1\n[profile a b]\nregion = x ; no\n\
                      s3 =\n  region = nested\n[sso-session a]\nregion = y\n[plain]\nregion = z\n[profile\ttab]\nregion=w\r\n";
        let profiles =
            parse(config, "[ default ]\nregion = us-east-1\n[profile q]\nk=v#x;y\n[default]\nother=\n");
        for (profile, setting, value) in [
            ("default", "region", Some("us-east-1")),
            ("default", "other", None),
            ("a b", "region", Some("x")),
            ("tab", "region", Some("w")),
            ("profile q", "k", Some("v#x;y")),
            ("a", "region", None),
            ("plain", "region", None),
            ("c", "region", None),
        ] {
            assert_eq!(profiles.get(profile, setting), value, "{profile} {setting}");
        }
        assert!(profiles.has("tab") && !profiles.has("plain") && !profiles.has("a"));
    }

    #[test]
    fn a_section_without_end_is_an_error() {
        let mut profiles = Profiles::default();
        assert_eq!(profiles.add(Kind::Credentials, "[a]\naws_access_key_id = x\n[b\nregion = y\n"), Err(3));
    }
}
