//! A disk in memory that outlives its host and can lose power: what was not synced is gone then.
//!
//! Torn and failing writes are the store's own tests' business; here everything works until the power goes.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use registry_server::store::disk::{Disk, DiskFile};

/// A disk. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next: u64,
    off: bool,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
}

impl SimulatedDisk {
    /// The power goes: what was not synced is lost, and nothing works until it is back.
    pub fn cut_power(&self) {
        let mut inner = self.inner();
        inner.off = true;
        inner.names = inner.durable_names.clone();
        for content in inner.files.values_mut() {
            content.now.clone_from(&content.durable);
        }
    }

    /// The power is back.
    pub fn restore_power(&self) {
        self.inner().off = false;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.inner();
        if inner.off { Err(io::Error::other("the disk has no power")) } else { Ok(inner) }
    }
}

impl Inner {
    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn content(&mut self, id: u64) -> &mut Content {
        self.files.entry(id).or_default()
    }
}

impl Disk for SimulatedDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.powered()?.names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut inner = self.powered()?;
        let id = inner.id(name)?;
        Ok(inner.content(id).now.clone())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.read(name).map(|bytes| bytes.len() as u64)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.powered()?;
        let id = inner.id(name).unwrap_or_else(|_| {
            inner.next += 1;
            inner.next
        });
        inner.names.insert(name.to_owned(), id);
        Ok(Box::new(SimulatedFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.powered()?;
        let id = inner.id(from)?;
        inner.names.remove(from);
        inner.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.id(name)?;
        inner.names.remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        format!("simulated/{name}")
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    id: u64,
}

impl DiskFile for SimulatedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut inner = self.disk.powered()?;
        let content = &mut inner.content(self.id).now;
        let end = offset + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.disk.powered()?;
        let content = inner.content(self.id);
        content.durable.clone_from(&content.now);
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        self.disk.powered()?.content(self.id).now.truncate(size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_takes_what_was_not_synced() {
        let disk = SimulatedDisk::default();
        let mut kept = disk.open("kept").expect("opens");
        kept.write_at(0, b"synced").expect("writes");
        kept.sync().expect("syncs");
        disk.sync_dir().expect("syncs");
        kept.write_at(6, b" and not").expect("writes");
        disk.open("unnamed").expect("opens");
        disk.cut_power();
        assert!(kept.sync().is_err() && disk.list().is_err());
        disk.restore_power();
        assert_eq!(disk.list().expect("lists"), ["kept"]);
        assert_eq!(disk.read("kept").expect("reads"), b"synced");
    }
}
