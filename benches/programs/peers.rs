//! The programs, and how each does a step.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::measured;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    First,
    /// A backup that reads all files again.
    Again,
    Restore,
    /// A check of all data.
    Check,
    /// A new store.
    Create,
}

impl Step {
    pub(crate) const ALL: [Self; 5] = [Self::Create, Self::First, Self::Again, Self::Restore, Self::Check];
    pub(crate) const COMPARED: [Self; 4] = [Self::First, Self::Again, Self::Restore, Self::Check];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Larder,
    LarderEncrypted,
    LarderPacked,
    Restic,
    Borg,
}

impl Program {
    const ALL: [Self; 5] =
        [Self::Larder, Self::LarderEncrypted, Self::LarderPacked, Self::Restic, Self::Borg];

    /// Those that are wanted and can be run.
    pub(crate) fn installed(wanted: &[String]) -> Outcome<Vec<Self>> {
        if let Some(unknown) =
            wanted.iter().find(|name| Self::ALL.iter().all(|program| program.option() != **name))
        {
            return Err(format!("there is no program {unknown}").into());
        }
        let is_wanted = |program: &Self| {
            if wanted.is_empty() {
                *program != Self::LarderPacked
            } else {
                wanted.iter().any(|name| name == program.option())
            }
        };
        Ok(Self::ALL.into_iter().filter(is_wanted).filter(|program| !program.version().is_empty()).collect())
    }

    fn option(self) -> &'static str {
        match self {
            Self::Larder => "larder",
            Self::LarderEncrypted => "encrypted",
            Self::LarderPacked => "packed",
            Self::Restic => "restic",
            Self::Borg => "borg",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LarderEncrypted => "larder, encrypted",
            Self::LarderPacked => "larder, packed",
            other => other.option(),
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        !matches!(self, Self::Restic | Self::Borg)
    }

    /// Empty if it is not installed.
    pub(crate) fn version(self) -> String {
        let arguments = match self {
            Self::Restic => ["restic", "version"],
            Self::Borg => ["borg", "--version"],
            _ => return format!("this source, version {}", env!("CARGO_PKG_VERSION")),
        };
        let output = Command::new(arguments[0]).arg(arguments[1]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }

    /// The process of a step. `place` is the same for all steps of a round.
    pub(crate) fn command(self, step: Step, source: &Path, place: &Path) -> Outcome<measured::Step> {
        let restored = place.join("restored");
        if step == Step::Restore {
            fs::create_dir(&restored)?;
        }
        let store = place.join("store").into_os_string();
        let text = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let (mut directory, mut environment) = (None, Vec::new());
        let arguments = match self {
            Self::Restic => {
                environment.push(("RESTIC_PASSWORD", "bench".into()));
                environment.push(("RESTIC_CACHE_DIR", place.join("cache").into_os_string()));
                let mut arguments = text(&["restic", "--quiet", "--repo"]);
                arguments.push(store);
                match step {
                    Step::Create => arguments.extend(text(&["init"])),
                    Step::First => arguments.extend(["backup".into(), source.into()]),
                    Step::Again => arguments.extend(["backup".into(), "--force".into(), source.into()]),
                    Step::Restore => {
                        arguments.extend(text(&["restore", "latest", "--target"]));
                        arguments.push(restored.into());
                    }
                    Step::Check => arguments.extend(text(&["check", "--read-data"])),
                }
                arguments
            }
            Self::Borg => {
                environment.push(("BORG_PASSPHRASE", "bench".into()));
                environment.push(("BORG_BASE_DIR", place.join("base").into_os_string()));
                environment.push(("BORG_REPO", store));
                match step {
                    Step::Create => text(&["borg", "init", "--encryption", "repokey"]),
                    Step::First | Step::Again => {
                        directory = Some(source.to_owned());
                        let name = if step == Step::First { "::first" } else { "::again" };
                        text(&["borg", "create", "--files-cache", "disabled", name, "."])
                    }
                    Step::Restore => {
                        directory = Some(restored);
                        text(&["borg", "extract", "::again"])
                    }
                    Step::Check => text(&["borg", "check", "--verify-data"]),
                }
            }
            Self::Larder | Self::LarderEncrypted | Self::LarderPacked => {
                let mut arguments = vec![std::env::current_exe()?.into_os_string(), "larder".into()];
                arguments.push(self.option().into());
                arguments.push(format!("{step:?}").into());
                arguments.push(store);
                arguments.push(source.into());
                arguments.push(restored.into());
                arguments
            }
        };
        Ok(measured::Step { arguments, directory, environment })
    }

    /// Where the source was restored to.
    pub(crate) fn restored(self, source: &Path, place: &Path) -> PathBuf {
        let restored = place.join("restored");
        match self {
            Self::Restic => restored.join(source.strip_prefix("/").unwrap_or(source)),
            _ => restored,
        }
    }
}
