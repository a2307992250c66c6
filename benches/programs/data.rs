//! The data that is backed up.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::peers::Step;

const SMALL_FILES: usize = 43_800;
const SMALL_BYTES: u64 = 568_000_000;
const FILES_IN_A_DIRECTORY: usize = 150;
const LARGE_FILES: usize = 40;
const LARGE_BYTES: u64 = 2_000_000_000;
const MANY_FILES: u64 = 10_000;

/// A directory to back up.
#[derive(Debug)]
pub(crate) struct Set {
    bytes: u64,
    files: u64,
    /// The goals of the steps, as parts of the time of `restic`.
    goals: [f64; 4],
    is_ours: bool,
    pub(crate) path: PathBuf,
}

impl Set {
    /// Small files in many directories.
    pub(crate) fn small(scratch: &Path) -> Outcome<Self> {
        let path = scratch.join("small");
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut left = SMALL_BYTES;
        let mean = SMALL_BYTES / SMALL_FILES as u64;
        for number in 0..SMALL_FILES {
            let directory = path.join(format!("d{}", number / FILES_IN_A_DIRECTORY));
            if number % FILES_IN_A_DIRECTORY == 0 {
                fs::create_dir_all(&directory)?;
            }
            // Many are much smaller than the mean, as in most trees of files.
            let draw = random.next() % 1000;
            let bytes = if number + 1 == SMALL_FILES {
                left
            } else {
                (draw * draw * draw * mean / 250_000_000).min(left)
            };
            left -= bytes;
            let name = directory.join(format!("f{}", number % FILES_IN_A_DIRECTORY));
            random.write(&mut File::create(name)?, bytes, number)?;
        }
        rustix::fs::syncfs(File::open(&path)?)?;
        Ok(Self { goals: [0.25, 0.25, 0.25, 0.3], is_ours: true, ..Self::given(&path)? })
    }

    /// Binaries of 50 MB.
    pub(crate) fn large(scratch: &Path) -> Outcome<Self> {
        let path = scratch.join("large");
        fs::create_dir_all(&path)?;
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for number in 0..LARGE_FILES {
            let mut file = File::create(path.join(format!("f{number}")))?;
            random.write(&mut file, LARGE_BYTES / LARGE_FILES as u64, number)?;
        }
        rustix::fs::syncfs(File::open(&path)?)?;
        Ok(Self { goals: [0.25, 0.45, 0.35, 0.45], is_ours: true, ..Self::given(&path)? })
    }

    /// A directory of the user.
    pub(crate) fn given(path: &Path) -> Outcome<Self> {
        let mut set = Self { bytes: 0, files: 0, goals: [1.0; 4], is_ours: false, path: path.to_owned() };
        let mut buffer = Vec::new();
        set.walk(path, false, &mut buffer)?;
        Ok(set)
    }

    /// Reads everything, so that it is in the page cache.
    pub(crate) fn read_through(&self) -> Outcome<()> {
        let mut counted = Self { bytes: 0, files: 0, path: self.path.clone(), ..*self };
        counted.walk(&self.path, true, &mut vec![0; 1 << 20])?;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn goal(&self, step: Step) -> Option<f64> {
        if self.is_ours { self.goals.get(step as usize).copied() } else { None }
    }

    pub(crate) fn has_many_files(&self) -> bool {
        self.files >= MANY_FILES
    }

    /// Fails if a restored directory differs.
    pub(crate) fn compare(&self, restored: &Path) -> Outcome<()> {
        let same =
            Command::new("diff").args(["-rq", "--no-dereference"]).args([&self.path, restored]).status()?;
        if same.success() { Ok(()) } else { Err(format!("{} differs", restored.display()).into()) }
    }

    pub(crate) fn remove(&self) -> Outcome<()> {
        Ok(fs::remove_dir_all(&self.path)?)
    }

    fn walk(&mut self, directory: &Path, reads: bool, buffer: &mut [u8]) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.walk(&entry.path(), reads, buffer)?;
            } else if kind.is_file() {
                (self.files, self.bytes) = (self.files + 1, self.bytes + entry.metadata()?.len());
                if reads {
                    let mut file = File::open(entry.path())?;
                    while file.read(buffer)? > 0 {}
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files, {} MB", self.files, self.bytes / 1_000_000)
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// Writes so many bytes. Even files do not compress; odd ones have four letters at random, which compress to a quarter.
    fn write(&mut self, file: &mut File, bytes: u64, number: usize) -> io::Result<()> {
        let mut left = bytes;
        let mut block = Vec::with_capacity(1 << 16);
        while left > 0 {
            block.clear();
            let wanted = usize::try_from(left.min(1 << 16)).unwrap_or(0);
            while block.len() < wanted {
                let word = self.next();
                if number.is_multiple_of(2) {
                    block.extend_from_slice(&word.to_le_bytes()[..6]);
                } else {
                    let pairs = word.to_le_bytes();
                    block.extend((0..24).map(|at| b"acgt"[usize::from(pairs[at / 4] >> (2 * (at % 4)) & 3)]));
                }
            }
            file.write_all(&block[..wanted])?;
            left -= wanted as u64;
        }
        Ok(())
    }
}
