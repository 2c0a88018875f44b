//! What those who speak the protocol by hand wrote down: the history that [`crate::validate`] judges. It outlives the hosts
//! that write in it.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    history::{Cursor, History, LeaseRecord, MassExpiry, OverrideRecord, Reading, Recorder},
    watcher::Watcher,
    writers::Writer,
};

/// The record. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Notebook {
    recorder: Recorder,
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug, Default)]
struct Pages {
    watchers: BTreeMap<String, Watcher>,
    writers: BTreeMap<String, Writer>,
    /// By a number, so that one that proves nothing can be taken out again.
    leases: BTreeMap<u64, LeaseRecord>,
    /// The simulation ends, and with it everyone, whatever they were doing.
    concluded: bool,
    readings: Vec<Reading>,
    overrides: Vec<OverrideRecord>,
    expiries: Vec<MassExpiry>,
}

impl Notebook {
    /// What keeps instances once and gives stamps.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Takes the watcher of this name, which goes on where it was left, or makes it.
    pub fn watcher(&self, name: &str, new: impl FnOnce(&Recorder) -> Watcher) -> Kept<Watcher> {
        let known = self.pages().watchers.remove(name);
        self.keep(name, known.unwrap_or_else(|| new(&self.recorder)))
    }

    /// Takes the writer of this name, which goes on where it was left, or makes it.
    pub fn writer(&self, name: &str, new: impl FnOnce(&Recorder) -> Writer) -> Kept<Writer> {
        let known = self.pages().writers.remove(name);
        self.keep(name, known.unwrap_or_else(|| new(&self.recorder)))
    }

    /// Adds what was read.
    pub fn read(&self, reading: Reading) {
        self.pages().readings.push(reading);
    }

    /// Adds a lease, or replaces what was said of it.
    pub fn lease(&self, number: u64, lease: LeaseRecord) {
        self.pages().leases.insert(number, lease);
    }

    /// A renewal of the lease was answered with an exception.
    pub fn exception(&self, number: u64, exception: String) {
        if let Some(lease) = self.pages().leases.get_mut(&number) {
            lease.exceptions.push(exception);
        }
    }

    /// Takes a lease out: its registrant could not renew it, so what becomes of it proves nothing. In the end nobody is excused:
    /// who is stopped then had renewed until then.
    pub fn excuse(&self, number: u64) {
        let mut pages = self.pages();
        if !pages.concluded {
            pages.leases.remove(&number);
        }
    }

    /// The simulation ends.
    pub fn conclude(&self) {
        self.pages().concluded = true;
    }

    /// Adds what an operator asks, and says which it is.
    pub fn asked(&self, record: OverrideRecord) -> usize {
        let overrides = &mut self.pages().overrides;
        overrides.push(record);
        overrides.len() - 1
    }

    /// What an operator asked was answered.
    pub fn answered(&self, number: usize, answer: Cursor) {
        if let Some(record) = self.pages().overrides.get_mut(number) {
            record.answer = Some(answer);
        }
    }

    /// Adds a mass expiry.
    pub fn expiry(&self, expiry: MassExpiry) {
        self.pages().expiries.push(expiry);
    }

    /// All of it. Nobody may write in it any more.
    pub fn into_history(self) -> History {
        let pages = std::mem::take(&mut *self.pages());
        History {
            watchers: pages.watchers.into_values().map(Watcher::into_record).collect(),
            writes: pages.writers.into_values().flat_map(|writer| writer.writes).collect(),
            readings: pages.readings,
            leases: pages.leases.into_values().collect(),
            overrides: pages.overrides,
            expiries: pages.expiries,
            ..History::default()
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep<T: Back>(&self, name: &str, it: T) -> Kept<T> {
        Kept { it: Some(it), name: name.to_owned(), notebook: self.clone() }
    }
}

/// Something of the notebook that is in use. It is back when this is dropped, by whatever end of its host.
#[derive(Debug)]
pub struct Kept<T: Back> {
    it: Option<T>,
    name: String,
    notebook: Notebook,
}

impl<T: Back> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.it.as_ref().expect("it is there until this is dropped")
    }
}

impl<T: Back> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.it.as_mut().expect("it is there until this is dropped")
    }
}

impl<T: Back> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some(it) = self.it.take() {
            it.back(&self.notebook, std::mem::take(&mut self.name));
        }
    }
}

/// What can be put back.
pub trait Back {
    /// Puts it back.
    fn back(self, notebook: &Notebook, name: String);
}

impl Back for Watcher {
    fn back(mut self, notebook: &Notebook, name: String) {
        self.close();
        notebook.pages().watchers.insert(name, self);
    }
}

impl Back for Writer {
    fn back(self, notebook: &Notebook, name: String) {
        notebook.pages().writers.insert(name, self);
    }
}
