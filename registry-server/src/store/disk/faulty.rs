//! A disk in memory that can fail, tear, forget and lose power, from a seed.
//!
//! ```text
//! write ──► current, dirty sectors ──sync──► durable         a failed sync leaves sectors clean and not durable,
//! create, rename, remove ──► names, pending ──sync_dir──► durable names                   as real systems do
//! power loss: any subset of dirty sectors, any prefix or any subset of pending names, any size between
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{Disk, DiskFile};

/// What is written as a whole.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Clone, Default)]
pub(in super::super) struct FaultyDisk(Arc<Mutex<Inner>>);

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Fault {
    /// It is half done, and nothing works from then on.
    PowerLoss,
    /// It fails, and everything works afterwards.
    Error,
    /// It and all that needs room after it fail, until the end: a write after half of it.
    Full,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending: Vec<Naming>,
    next_id: u64,
    operations: usize,
    fault: Option<(usize, Fault)>,
    off: bool,
    full: bool,
    /// What is read of this file is an error.
    unreadable: Option<String>,
    /// There is no room for files of such names.
    crowded_out: Option<String>,
}

#[derive(Clone, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum Naming {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

/// What a changing operation may do.
#[derive(PartialEq, Eq)]
enum Turn {
    Whole,
    /// Then it fails.
    Half,
    Nothing,
}

impl FaultyDisk {
    /// Chooses the operation, counted from now on, at which the fault happens.
    pub(in super::super) fn fail_at(&self, operation: usize, fault: Fault) {
        let mut inner = self.inner();
        inner.operations = 0;
        inner.fault = Some((operation, fault));
    }

    /// From now on this file cannot be read; or, if the name is empty, the directory cannot be listed.
    pub(in super::super) fn fail_reads_of(&self, name: &str) {
        self.inner().unreadable = Some(name.to_owned());
    }

    /// From now on there is no room for files whose names begin so, until this is called with `None`.
    pub(in super::super) fn leave_no_room_for(&self, prefix: Option<&str>) {
        self.inner().crowded_out = prefix.map(str::to_owned);
    }

    /// Whether the chosen operation was reached.
    pub(in super::super) fn faulted(&self) -> bool {
        let inner = self.inner();
        inner.fault.is_none_or(|(at, _)| inner.operations > at)
    }

    /// What is there when the power comes back.
    pub(in super::super) fn after_power_loss(&self, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let inner = self.inner();
        let mut names = inner.durable_names.clone();
        // A journal keeps names in order; a system without one may not.
        let (kept, likely) = (random.usize(..=inner.pending.len()), random.f64());
        let in_order = random.bool();
        for (at, naming) in inner.pending.iter().enumerate() {
            if if in_order { at < kept } else { random.f64() < likely } {
                apply(&mut names, naming);
            }
        }
        let files = inner.files.iter().map(|(id, content)| {
            let bytes = content.after_power_loss(&mut random);
            (*id, Content { current: bytes.clone(), durable: bytes, dirty: BTreeSet::new() })
        });
        let files = files.collect();
        let durable_names = names.clone();
        Self(Arc::new(Mutex::new(Inner {
            files,
            names,
            durable_names,
            next_id: inner.next_id,
            ..Inner::default()
        })))
    }

    /// What is there when only the process was killed: what was not synced stays so.
    pub(in super::super) fn after_kill(&self) -> Self {
        let inner = self.inner();
        Self(Arc::new(Mutex::new(Inner {
            files: inner.files.clone(),
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            pending: inner.pending.clone(),
            next_id: inner.next_id,
            ..Inner::default()
        })))
    }

    /// All files, as a process reads them.
    pub(in super::super) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.inner();
        inner.names.iter().map(|(name, id)| (name.clone(), inner.files[id].current.clone())).collect()
    }

    /// A disk with these files, all durable.
    pub(in super::super) fn with(contents: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut inner = Inner::default();
        for (name, bytes) in contents {
            let content = Content { current: bytes.clone(), durable: bytes.clone(), dirty: BTreeSet::new() };
            inner.files.insert(inner.next_id, content);
            inner.names.insert(name.clone(), inner.next_id);
            inner.next_id += 1;
        }
        inner.durable_names = inner.names.clone();
        Self(Arc::new(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

impl Inner {
    /// `room`: whether it needs any.
    fn turn(&mut self, room: bool) -> Turn {
        if self.off {
            return Turn::Nothing;
        }
        self.operations += 1;
        match self.fault {
            Some((at, Fault::Full)) if at < self.operations => {
                self.full = true;
                if room { Turn::Half } else { Turn::Whole }
            }
            Some((at, fault)) if at == self.operations - 1 => {
                self.off = fault == Fault::PowerLoss;
                Turn::Half
            }
            _ => Turn::Whole,
        }
    }

    fn done(&self, turn: &Turn) -> io::Result<()> {
        match turn {
            Turn::Whole => Ok(()),
            _ if self.full => Err(io::ErrorKind::StorageFull.into()),
            _ => Err(io::Error::other("injected fault")),
        }
    }

    fn is_crowded_out(&self, id: u64) -> bool {
        let mut names = self.names.iter().filter(|(_, of)| **of == id);
        names.any(|(name, _)| self.crowded_out.as_ref().is_some_and(|prefix| name.starts_with(prefix)))
    }

    fn readable(&self, name: &str) -> io::Result<()> {
        if self.unreadable.as_deref() == Some(name) {
            Err(io::Error::other("injected fault"))
        } else {
            Ok(())
        }
    }

    fn name(&mut self, naming: Naming) -> io::Result<()> {
        let turn = self.turn(!matches!(naming, Naming::Remove(_)));
        if turn == Turn::Whole {
            apply(&mut self.names, &naming);
            self.pending.push(naming);
        }
        self.done(&turn)
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

fn apply(names: &mut BTreeMap<String, u64>, naming: &Naming) {
    match naming {
        Naming::Create(name, id) => {
            names.insert(name.clone(), *id);
        }
        Naming::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        Naming::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(bytes);
        if end > offset {
            self.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.current.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            copy_sector(&self.current, &mut self.durable, sector);
        }
    }

    fn after_power_loss(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let (less, more) =
            (self.durable.len().min(self.current.len()), self.durable.len().max(self.current.len()));
        bytes.resize(more, 0);
        let likely = random.f64();
        for sector in &self.dirty {
            if random.f64() < likely {
                copy_sector(&self.current, &mut bytes, *sector);
            }
        }
        let size = match random.u8(..3) {
            0 => self.durable.len(),
            1 => self.current.len(),
            _ => random.usize(less..=more),
        };
        bytes.truncate(size);
        bytes
    }
}

fn copy_sector(from: &[u8], to: &mut [u8], sector: usize) {
    let start = sector * SECTOR;
    let end = (start + SECTOR).min(from.len()).min(to.len());
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

impl Disk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.inner();
        inner.readable("")?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let inner = self.inner();
        inner.readable(name)?;
        Ok(inner.files[&inner.id(name)?].current.clone())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.read(name).map(|bytes| bytes.len() as u64)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        if inner.id(name).is_err() {
            let id = inner.next_id;
            inner.name(Naming::Create(name.to_owned(), id))?;
            inner.next_id += 1;
            inner.files.insert(id, Content::default());
        }
        let id = inner.id(name)?;
        Ok(Box::new(FaultyFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.id(from)?;
        inner.name(Naming::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.id(name)?;
        inner.name(Naming::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let turn = inner.turn(false);
        if turn == Turn::Whole {
            inner.durable_names = inner.names.clone();
            inner.pending.clear();
        }
        inner.done(&turn)
    }

    fn describe(&self, name: &str) -> String {
        format!("disk/{name}")
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    id: u64,
}

impl FaultyFile {
    fn act(&self, end: Option<usize>, act: impl FnOnce(&mut Content, &Turn)) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let grows = end.is_some_and(|end| end > inner.files[&self.id].current.len());
        let turn = if grows && inner.is_crowded_out(self.id) { Turn::Half } else { inner.turn(grows) };
        act(inner.files.get_mut(&self.id).expect("files are never forgotten"), &turn);
        inner.done(&turn)
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("it fits into memory");
        self.act(Some(offset + bytes.len()), |content, turn| match turn {
            Turn::Whole => content.write(offset, bytes),
            Turn::Half => content.write(offset, &bytes[..bytes.len() / 2]),
            Turn::Nothing => {}
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.act(None, |content, turn| match turn {
            Turn::Whole => content.sync(),
            // The system forgets that these sectors are not durable.
            Turn::Half => content.dirty.clear(),
            Turn::Nothing => {}
        })
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).expect("it fits into memory");
        self.act(Some(size), |content, turn| {
            if *turn == Turn::Whole {
                content.current.resize(size, 0);
            }
        })
    }
}
