//! The few calls that the embedded store makes to a file system, and the real one behind them.
//!
//! Owns the lock on the data directory. Knows nothing of formats: names and bytes. That everything goes through
//! [`Disk`] is what lets tests fail, tear or lose any single write, fsync or rename.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::StoreError;

/// One flat directory of files.
pub trait Disk: Send + Sync + 'static {
    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// The whole content of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// The size of a file in bytes.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Opens a file for writing, creating it if it is not there. Its content stays.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file another name, atomically replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Where a file is, for messages.
    fn describe(&self, name: &str) -> String;
}

/// A file open for writing.
pub trait DiskFile: Send {
    /// Writes all of `bytes` at `offset`, growing the file if need be.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written durable: the content, and of the metadata what is needed to read it back, such as the
    /// size (`fdatasync`).
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `size` bytes.
    fn truncate(&mut self, size: u64) -> io::Result<()>;
}

/// A directory of the real file system, locked for this process while this value lives.
#[derive(Debug)]
pub struct RealDisk {
    directory: PathBuf,
    _lock: File,
}

const LOCK: &str = "lock";

impl RealDisk {
    /// Creates the directory if need be, and locks it. The operating system releases the lock when the process ends,
    /// however it ends; the empty file `lock` stays and means nothing by itself.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |what: &str, error: &io::Error| {
            StoreError::Io(format!("could not {what} the data directory {}: {error}", directory.display()))
        };
        let parents = parents(directory);
        fs::create_dir_all(directory).map_err(|error| failed("create", &error))?;
        for parent in parents {
            // Not every user may open the parents: then the directory was not created just now either.
            if let Ok(parent) = File::open(parent) {
                parent.sync_all().map_err(|error| failed("create", &error))?;
            }
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LOCK))
            .map_err(|error| failed("write to", &error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::Locked { directory: directory.display().to_string() })
            }
            Err(TryLockError::Error(error)) => Err(failed("lock", &error)),
        }
    }
}

/// The directories that have to be synced for this one to be certainly there: its parent, even if all are there already
/// (a start before this one may have been interrupted), and those above it as far as they are to be created.
fn parents(directory: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let above: Vec<_> = absolute.ancestors().skip(1).map(Path::to_owned).collect();
    let there = above.iter().position(|parent| parent.is_dir());
    above.into_iter().take(there.map_or(1, |at| at + 1)).collect()
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.directory.join(name))
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        fs::metadata(self.directory.join(name)).map(|metadata| metadata.len())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        Ok(Box::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn describe(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code))] // fuzzers need no faults
pub(super) mod faulty;
#[cfg(test)]
mod tests;
