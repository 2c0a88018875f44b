//! The last known good views, in a file, so that a client that restarts while the registry is down still knows whom to
//! call (C1).
//!
//! Owns the format and the writing: a new file beside the old one, fsync, then rename, so that whatever happens one of
//! the two is there whole. A file that is corrupt, of another version, or not there is never an error: it is as if
//! nothing had been cached.
//!
//! ```text
//!   "regcache" | version: u32 | XXH3-64 of the rest: u64 | protobuf: views { key, selector, cursor, instances }
//! ```
//! Integers are little-endian.

use std::{
    collections::HashMap,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use registry_proto::v1;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    model::InstanceList,
    view::{Cursor, ViewKey, wire},
    watch::Restored,
};

const MAGIC: &[u8; 8] = b"regcache";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 8;
/// Changes of this long are written together.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// At most so many views are kept; one more replaces an arbitrary other.
const MAX_VIEWS: usize = 10_000;

/// Counts the writes of this process.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// The file, and what is to be in it.
#[derive(Debug)]
pub(super) struct CacheFile {
    path: PathBuf,
    saved: Mutex<HashMap<ViewKey, Restored>>,
    dirty: tokio::sync::Notify,
    writing: tokio::sync::Mutex<()>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is not a cache file")]
    Foreign,
    #[error("it is of version {0}, and this program knows {VERSION} only")]
    Version(u32),
    #[error("its checksum does not match")]
    Checksum,
    #[error("it cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(message, repeated, tag = "1")]
    views: Vec<CachedView>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CachedView {
    #[prost(message, optional, tag = "1")]
    key: Option<v1::ServiceKey>,
    #[prost(message, optional, tag = "2")]
    selector: Option<v1::Selector>,
    #[prost(message, optional, tag = "3")]
    cursor: Option<v1::Cursor>,
    #[prost(message, repeated, tag = "4")]
    instances: Vec<v1::Instance>,
}

impl CacheFile {
    /// Reads the file, if there is one that can be used. Blocks on the file system.
    pub(super) fn open(path: PathBuf) -> Self {
        let saved = match read(&path) {
            Ok(saved) => saved,
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the cache file is ignored, and will be replaced");
                HashMap::new()
            }
        };
        Self {
            path,
            saved: Mutex::new(saved),
            dirty: tokio::sync::Notify::new(),
            writing: tokio::sync::Mutex::new(()),
        }
    }

    /// What was last known of a view.
    pub(super) fn get(&self, key: &ViewKey) -> Option<Restored> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Keeps a view, to be written soon.
    pub(super) fn put(&self, key: &ViewKey, cursor: Cursor, instances: InstanceList) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.len() >= MAX_VIEWS
            && !saved.contains_key(key)
            && let Some(other) = saved.keys().next().cloned()
        {
            saved.remove(&other);
        }
        saved.insert(key.clone(), Restored { cursor, instances });
        drop(saved);
        self.dirty.notify_one();
    }

    /// Writes the file whenever something changed, until the task is dropped.
    pub(super) async fn keep_writing(self: Arc<Self>) {
        loop {
            self.dirty.notified().await;
            tokio::time::sleep(DEBOUNCE).await;
            if let Err(error) = self.write().await {
                tracing::warn!(path = %self.path.display(), %error, "the cache file was not written");
            }
        }
    }

    /// Writes the file now.
    pub(super) async fn write(&self) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || replace(&path, &encode(&saved)))
            .await
            .map_err(io::Error::other)?
    }
}

fn read(path: &Path) -> Result<HashMap<ViewKey, Restored>, Unusable> {
    decode(&fs::read(path)?)
}

fn decode(bytes: &[u8]) -> Result<HashMap<ViewKey, Restored>, Unusable> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(Unusable::Foreign)?;
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Unusable::Foreign);
    }
    let (version, checksum) = rest.split_at(4);
    let version = version.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    let checksum = checksum.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    if version != VERSION {
        return Err(Unusable::Version(version));
    }
    if xxh3_64(body) != checksum {
        return Err(Unusable::Checksum);
    }
    Ok(Body::decode(body)?.views.into_iter().filter_map(restore).collect())
}

fn restore(view: CachedView) -> Option<(ViewKey, Restored)> {
    let (key, cursor) = (view.key?, view.cursor?);
    let selector = view.selector.map(wire::selector_of).unwrap_or_default();
    let key = ViewKey { namespace: key.namespace.into(), service: key.service.into(), selector };
    let cursor = Cursor { epoch: cursor.epoch.into(), revision: cursor.revision };
    let instances =
        view.instances.into_iter().filter_map(|instance| wire::instance(instance).ok()).map(Arc::new);
    Some((key, Restored { cursor, instances: instances.collect() }))
}

fn encode(saved: &HashMap<ViewKey, Restored>) -> Vec<u8> {
    let view = |(key, restored): (&ViewKey, &Restored)| CachedView {
        key: Some(wire::service(key)),
        selector: Some(wire::selector(&key.selector)),
        cursor: Some(v1::Cursor {
            epoch: restored.cursor.epoch.to_string(),
            revision: restored.cursor.revision,
        }),
        instances: restored.instances.iter().map(|instance| wire::to_wire(instance)).collect(),
    };
    let body = Body { views: saved.iter().map(view).collect() }.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Puts `bytes` in the place of the file at once: whoever reads sees the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path)?;
    let written = fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The rename itself is durable once the directory is; where directories cannot be opened, that has to do.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(directory) = fs::File::open(directory) {
        directory.sync_all()?;
    }
    Ok(())
}

/// A name of this process, and of this write: two caches on one file must not write to one temporary file.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{write}.tmp", std::process::id()));
    Ok(path.with_file_name(name))
}

/// What holds of any bytes in the file's place: they are views or are ignored, and views are written as they were read.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check(bytes: &[u8]) {
    let same = |one: &HashMap<ViewKey, Restored>, other: &HashMap<ViewKey, Restored>| {
        one.len() == other.len()
            && one.iter().all(|(key, view)| {
                other
                    .get(key)
                    .is_some_and(|it| (&it.cursor, &it.instances) == (&view.cursor, &view.instances))
            })
    };
    // No fuzzer guesses a checksum: the bytes are tried as a body, too.
    let mut whole = [MAGIC.as_slice(), &VERSION.to_le_bytes(), &xxh3_64(bytes).to_le_bytes()].concat();
    whole.extend_from_slice(bytes);
    for file in [bytes, &whole] {
        if let Ok(saved) = decode(file) {
            let again = decode(&encode(&saved)).expect("what was written can be read");
            assert!(same(&saved, &again), "views came back as others");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Instance, Selector};

    fn key(service: &str) -> ViewKey {
        ViewKey { namespace: "n".into(), service: service.into(), selector: Selector::all().tag("a", "b") }
    }

    fn saved() -> HashMap<ViewKey, Restored> {
        let instance = Instance::builder("a:1".parse().expect("valid")).weight(3).revisions(4, 5).build();
        let cursor = Cursor { epoch: "e".into(), revision: 9 };
        [(key("s"), Restored { cursor, instances: [Arc::new(instance)].into() })].into()
    }

    #[test]
    fn what_was_written_is_read() {
        let read = decode(&encode(&saved())).expect("good");
        let (before, after) = (&saved()[&key("s")], &read[&key("s")]);
        assert_eq!((&before.cursor, &before.instances), (&after.cursor, &after.instances));
    }

    #[test]
    fn every_damage_is_seen_and_none_panics() {
        let good = encode(&saved());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            assert!(decode(&bad).is_err(), "byte {i}");
            assert!(decode(&good[..i]).is_err(), "cut at {i}");
        }
        let mut newer = good;
        newer[8] = 2;
        assert!(matches!(decode(&newer), Err(Unusable::Version(2))));
    }

    #[test]
    fn two_caches_on_one_file_write_to_no_common_temporary_file() {
        let path = Path::new("/var/cache/views");
        let (one, two) = (temporary(path).expect("a name"), temporary(path).expect("a name"));
        assert_ne!(one, two);
        assert_eq!((one.parent(), two.parent()), (path.parent(), path.parent()));
    }

    #[tokio::test]
    async fn a_damaged_file_is_ignored_and_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cache");
        fs::write(&path, b"nonsense").expect("written");
        let cache = CacheFile::open(path.clone());
        assert!(cache.get(&key("s")).is_none());
        let one = saved().remove(&key("s")).expect("there");
        cache.put(&key("s"), one.cursor, one.instances);
        cache.write().await.expect("written");
        assert!(CacheFile::open(path).get(&key("s")).is_some());
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1, "no temporary file stays");
    }
}
