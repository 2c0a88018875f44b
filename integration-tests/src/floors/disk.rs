//! A disk in memory that fails once, at an operation of the floor's choice, and then loses power or only its process.
//!
//! As with real disks, what was written and not synced may be there after a power loss, in any part, or not; a failed sync
//! forgets what it should have made durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use registry_server::store::disk::{Disk, DiskFile};

/// What a disk writes whole or not at all; the store counts on that to tell an interrupted write from damage.
const SECTOR: usize = 512;

/// A disk. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct BadDisk(Arc<Mutex<Inner>>);

#[derive(Clone, Debug, Default)]
struct Inner {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next: u64,
    /// So many operations more work.
    fails_after: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl BadDisk {
    /// The operation after so many more fails, half done. All later ones work.
    pub(super) fn fail_after(&self, operations: usize) {
        self.inner().fails_after = Some(operations);
    }

    /// What is there when only the process was killed.
    pub(super) fn after_kill(&self) -> Self {
        Self(Arc::new(Mutex::new(Inner { fails_after: None, ..self.inner().clone() })))
    }

    /// What is there when the power comes back.
    pub(super) fn after_power_loss(&self, rng: &mut fastrand::Rng) -> Self {
        let mut after = self.inner().clone();
        after.fails_after = None;
        after.names = after.durable_names.clone();
        for content in after.files.values_mut() {
            let likely = rng.f64();
            let size = rng.usize(content.durable.len().min(content.now.len())..=content.now.len());
            for sector in std::mem::take(&mut content.dirty) {
                if rng.f64() < likely {
                    content.make_durable(sector);
                }
            }
            if rng.bool() {
                content.durable.resize(size.max(content.durable.len().min(content.now.len())), 0);
            }
            content.now = content.durable.clone();
        }
        Self(Arc::new(Mutex::new(after)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether an operation is the one that fails.
    fn fails(&mut self) -> bool {
        match &mut self.fails_after {
            Some(0) => {
                self.fails_after = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

fn failed<T>() -> io::Result<T> {
    Err(io::Error::other("the disk failed, as it was drawn"))
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        if end > offset {
            self.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }

    fn make_durable(&mut self, sector: usize) {
        let (from, end) = (sector * SECTOR, (sector * SECTOR + SECTOR).min(self.now.len()));
        if from < end {
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[from..end].copy_from_slice(&self.now[from..end]);
        }
    }
}

impl Disk for BadDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let inner = self.inner();
        Ok(inner.files[&inner.id(name)?].now.clone())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.read(name).map(|bytes| bytes.len() as u64)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        let id = if let Ok(id) = inner.id(name) {
            id
        } else {
            inner.next += 1;
            let id = inner.next;
            inner.names.insert(name.to_owned(), id);
            inner.files.insert(id, Content::default());
            id
        };
        Ok(Box::new(BadFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let id = inner.id(from)?;
        if inner.fails() {
            return failed();
        }
        inner.names.remove(from);
        inner.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.id(name)?;
        if inner.fails() {
            return failed();
        }
        inner.names.remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.fails() {
            return failed();
        }
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        format!("bad/{name}")
    }
}

struct BadFile {
    disk: BadDisk,
    id: u64,
}

impl BadFile {
    /// Does all of something, or half of it and fails.
    fn act(&self, act: impl FnOnce(&mut Content, bool)) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let fails = inner.fails();
        act(inner.files.entry(self.id).or_default(), fails);
        if fails { failed() } else { Ok(()) }
    }
}

impl DiskFile for BadFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.act(|content, fails| {
            let written = if fails { bytes.len() / 2 } else { bytes.len() };
            content.write(offset, &bytes[..written]);
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.act(|content, fails| {
            let dirty = std::mem::take(&mut content.dirty);
            if !fails {
                content.durable.resize(content.now.len(), 0);
                for sector in dirty {
                    content.make_durable(sector);
                }
            }
        })
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        self.act(|content, fails| {
            if !fails {
                content.now.truncate(size);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_stays_and_what_failed_may_go() {
        let disk = BadDisk::default();
        let mut file = disk.open("log").expect("opens");
        disk.sync_dir().expect("works");
        file.write_at(0, &[1; 100]).expect("works");
        file.sync().expect("works");
        disk.fail_after(1);
        file.write_at(100, &[2; 1_000]).expect("works");
        file.sync().expect_err("fails");
        file.sync().expect("works, and makes nothing durable that the one before forgot");
        let killed = disk.after_kill();
        assert_eq!(killed.read("log").expect("is there").len(), 1_100);
        for seed in 0..100 {
            let lost = disk.after_power_loss(&mut fastrand::Rng::with_seed(seed));
            let bytes = lost.read("log").expect("is there");
            assert!(bytes[..100].iter().all(|byte| *byte == 1), "what was synced stays");
            assert!(bytes[100..].iter().all(|byte| *byte == 0), "what was forgotten is not there");
        }
    }
}
