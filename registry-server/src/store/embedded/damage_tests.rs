//! Damaged directories: files that are missing, cut short, or altered, down to the single bit. Each is a clear error that
//! changes nothing, or a recovery with everything that was acknowledged; but for the one case that cannot be decided, a log
//! that was not closed in order and is cut short. Nothing panics.

use std::collections::BTreeMap;

use proptest::{collection, prelude::*};

use super::*;
use crate::store::{
    disk::faulty::FaultyDisk,
    samples::{fold, record, visible},
};

type Files = BTreeMap<String, Vec<u8>>;

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 600,
        grow_bytes: 0,
        history_records: 4,
        ..EmbeddedOptions::new(fold(), 0xE)
    }
}

fn open(disk: &FaultyDisk) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open_on(Arc::new(disk.clone()), options())
}

/// The files of a store with a base, history, and a tail, killed or closed in order; and what it holds.
fn filled(killed: bool, grow_bytes: u64) -> (Files, Vec<(Revision, u64)>) {
    let disk = FaultyDisk::default();
    let options = EmbeddedOptions { grow_bytes, ..options() };
    let mut store = EmbeddedStore::open_on(Arc::new(disk.clone()), options).unwrap();
    for n in 0..19 {
        store.append(&[record(n)]).unwrap();
        store.settle();
    }
    store.unmarked &= !killed;
    drop(store);
    (disk.contents(), (0..19).map(|n| (n + 1, n)).collect())
}

fn newest_log(files: &Files) -> String {
    files.keys().rfind(|name| name.starts_with("log-")).unwrap().clone()
}

/// What a damaged directory opens as; `None` for an error that names the file and changes nothing.
fn opened(damaged: &Files, name: &str, context: &str) -> Option<Vec<(Revision, u64)>> {
    let disk = FaultyDisk::with(damaged);
    match open(&disk) {
        Ok(mut store) => Some(visible(&store.load().unwrap())),
        Err(error) => {
            assert!(matches!(error, StoreError::Corrupt { .. }), "{context}: {error}");
            let said = error.to_string();
            let named = said.contains(name) || said.contains("disk/ is corrupt");
            assert!(named && said.contains("offset") && said.contains("backup"), "{context}: {said}");
            assert_eq!(&disk.contents(), damaged, "{context}: a damaged store was touched");
            None
        }
    }
}

#[test]
fn a_bit_flipped_in_any_byte_of_any_file_loses_nothing_unsaid() {
    for (killed, grow_bytes) in [(true, 0), (true, 1_024), (false, 0)] {
        let (files, all) = filled(killed, grow_bytes);
        let newest = newest_log(&files);
        let mut recovered = 0;
        for (name, bytes) in &files {
            for (at, byte) in bytes.iter().enumerate() {
                for mask in [1 << (at % 8), 0xFF] {
                    let context =
                        format!("{name} at {at}, {mask:#x}, killed: {killed}, grown by {grow_bytes}");
                    let mut damaged = files.clone();
                    damaged.get_mut(name).unwrap()[at] ^= mask;
                    if let Some(loaded) = opened(&damaged, name, &context) {
                        assert!(
                            loaded == all && *name == newest && *byte == 0,
                            "{context}: passed unnoticed"
                        );
                        recovered += 1;
                    }
                }
            }
        }
        // Just after the last group: what is there in place of zeros looks like the beginning of another one.
        assert_eq!(recovered > 0, grow_bytes > 0);
    }
}

#[test]
fn a_file_cut_at_any_length_is_noticed_or_is_a_log_that_was_not_closed() {
    for killed in [true, false] {
        let (files, all) = filled(killed, 0);
        let newest = newest_log(&files);
        for (name, bytes) in &files {
            for length in 0..bytes.len() {
                let context = format!("{name} cut to {length}, killed: {killed}");
                let mut damaged = files.clone();
                damaged.get_mut(name).unwrap().truncate(length);
                if let Some(loaded) = opened(&damaged, name, &context) {
                    if *name != newest {
                        // Without its last groups it is as if it were not there, which old history may be.
                        assert_eq!(loaded, all, "{context}: passed unnoticed");
                        continue;
                    }
                    assert!(length >= frame::HEADER && all.starts_with(&loaded), "{context}");
                    // Whole groups in front of the cut stay.
                    assert_eq!(loaded == all, !killed && length >= bytes.len() - MARK, "{context}");
                }
            }
        }
    }
}

/// The size of the mark of an orderly end: a group of nothing, two small numbers with their tags.
const MARK: usize = frame::FRAME + 4;

#[test]
fn a_missing_file_is_noticed() {
    let (files, all) = filled(true, 0);
    let newest = newest_log(&files);
    for missing in files.keys() {
        let mut left = files.clone();
        left.remove(missing);
        // Of the newest log nothing tells while the one before it is not folded.
        if let Some(loaded) = opened(&left, "disk/", missing) {
            let before = all.iter().position(|(revision, _)| log_name(*revision) == newest);
            assert!(
                loaded == all || *missing == newest && Some(loaded.len()) == before.map(|at| at + 1),
                "{missing}"
            );
        }
    }
}

#[test]
fn a_base_that_no_log_follows_is_noticed() {
    let (mut files, _) = filled(true, 0);
    let disk = FaultyDisk::default();
    files::write_base(&disk, 0xE, &Base { revision: 19, ..Base::default() }, || {}).unwrap();
    files.extend(disk.contents());
    let error = open(&FaultyDisk::with(&files)).unwrap_err();
    assert!(error.to_string().contains("no log of what followed it"), "{error}");
}

#[test]
fn a_revision_beyond_all_counting_is_refused() {
    for start in [Revision::MAX, Revision::MAX - 1, LAST_REVISION + 1] {
        let disk = FaultyDisk::default();
        drop(create_log(&disk, 0xE, start).unwrap());
        let mut base = Base { revision: start, ..Base::default() };
        base.forgotten_through = start;
        files::write_base(&disk, 0xE, &base, || {}).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(error.to_string().contains("beyond what any log reaches"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_damage_panics_or_passes_unnoticed(
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        kind in 0..3_u8,
        noise in collection::vec(any::<u8>(), 1..40),
    ) {
        let (files, all) = filled(true, 0);
        let names: Vec<_> = files.keys().cloned().collect();
        let name = &names[file.index(names.len())];
        let mut damaged = files.clone();
        let bytes = damaged.get_mut(name).unwrap();
        let at = at.index(bytes.len());
        match kind {
            0 => bytes[at] ^= 1 << (noise[0] % 8),
            1 => bytes.truncate(at),
            _ => { let end = bytes.len().min(at + noise.len()); bytes[at..end].copy_from_slice(&noise[..end - at]); }
        }
        let changed = damaged != files;
        let disk = FaultyDisk::with(&damaged);
        match open(&disk) {
            Err(error) => {
                prop_assert!(changed, "{}", error);
                prop_assert_eq!(disk.contents(), damaged);
            }
            Ok(mut store) => {
                // Nothing but the end of the newest log may be taken for a torn tail.
                let loaded = visible(&store.load().unwrap());
                let newest = names.iter().rfind(|name| name.starts_with("log-")).unwrap();
                prop_assert!(all.starts_with(&loaded));
                let last_group_only = kind == 1 || loaded.len() + 1 >= all.len();
                prop_assert!(loaded == all || (name == newest && last_group_only), "{} at {}", name, at);
            }
        }
    }

    #[test]
    fn no_file_content_panics(bytes in collection::vec(any::<u8>(), 0..120), base in any::<bool>()) {
        let name = if base { files::base_name(1) } else { log_name(0) };
        let disk = FaultyDisk::with(&BTreeMap::from([(name, bytes)]));
        prop_assert!(open(&disk).is_err());
    }
}
