//! What holds of any content of the store's files, as checks that panic: for tests and fuzzers.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;

use super::{
    EmbeddedOptions, EmbeddedStore, Store,
    disk::faulty::FaultyDisk,
    frame::{self, Header, Kind},
    record::{DecodeError, Interner, Part, decode_group, decode_part, encode_base, encode_group},
};
use crate::core::{Base, Cause, Record};

/// These bytes are the payload of a frame of a log: what is read is written, and read again, as the same.
pub(crate) fn group(payload: &[u8]) {
    let Ok(group) = read(decode_group(payload, 0, &mut Interner::default())) else { return };
    let consecutive =
        (group.previous..).zip(&group.records).all(|(before, it)| Some(it.revision) == before.checked_add(1));
    if consecutive {
        let records: Vec<_> = group.records.iter().map(|committed| committed.record.clone()).collect();
        let mut again = Vec::new();
        encode_group(&mut again, group.previous, &records);
        assert_eq!(
            decode_group(&again, 0, &mut Interner::default()),
            Ok(group),
            "records came back as others"
        );
    }
}

/// These bytes are the payload of a frame of a base.
pub(crate) fn part(payload: &[u8]) {
    let mut base = Base::default();
    if read(decode_part(payload, &mut base, &mut Interner::default())).is_err() {
        return;
    }
    let mut again = Base::default();
    let written = encode_base(&base, |part| {
        let whole = decode_part(&part.encode_to_vec(), &mut again, &mut Interner::default());
        assert!(matches!(whole, Ok(Part::Content | Part::Footer(_))), "{whole:?}");
        Ok::<_, ()>(())
    });
    assert_eq!(written, Ok(()));
    assert_eq!(again, base, "a base came back as another");
}

fn read<T>(result: Result<T, DecodeError>) -> Result<T, DecodeError> {
    result.inspect_err(|(DecodeError::Newer(what) | DecodeError::Malformed(what))| assert!(!what.is_empty()))
}

/// These are pieces of the files of a directory, each with a number that says of which and how: either it opens and takes a
/// record that is there after the next start, or there is an error and nothing was changed.
pub(crate) fn directory<'a>(pieces: impl IntoIterator<Item = (u8, &'a [u8])>) {
    let mut files = BTreeMap::new();
    for (kind, piece) in pieces {
        let start = u64::from(kind >> 4);
        let (name, of) = if kind & 1 == 0 {
            (format!("log-{start:020}"), Kind::Log)
        } else {
            (format!("base-{start:020}"), Kind::Base)
        };
        let header = || Header { kind: of, epoch: 0xE, revision: start }.encode().to_vec();
        let file: &mut Vec<u8> = files.entry(name).or_insert_with(header);
        match kind >> 1 & 3 {
            0 | 1 => {
                // No fuzzer guesses a checksum.
                let at = file.len() as u64;
                let _ = frame::push(file, at, |out| out.extend_from_slice(piece));
            }
            2 => file.extend_from_slice(piece),
            _ => file.resize(file.len() + piece.len(), 0),
        }
    }
    let disk = FaultyDisk::with(&files);
    let open = || {
        let fold = Arc::new(|mut base: Base, records: &mut dyn Iterator<Item = crate::core::Committed>| {
            base.revision = records.last().map_or(base.revision, |committed| committed.revision);
            base
        });
        EmbeddedStore::open_on(Arc::new(disk.clone()), EmbeddedOptions::new(fold, 1))
    };
    let mut store = match open() {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains("disk/"), "{error} does not say which file");
            assert_eq!(disk.contents(), files, "refused, and changed: {error}");
            return;
        }
    };
    let loaded = store.load().expect("it is loaded once");
    let record = Record { wall: 77, cause: Cause::Register, actor: "".into(), events: Vec::new() };
    let revisions = store.append(std::slice::from_ref(&record)).expect("it takes records");
    // Folds what it found full.
    store.settle();
    drop(store);
    let again = open().and_then(|mut store| store.load()).expect("what it wrote it can read");
    assert_eq!(again.epoch, loaded.epoch);
    let last = again.tail.last().expect("what was appended is there");
    assert_eq!((vec![last.revision], &last.record), (revisions, &record));
    let before = loaded.tail.last().map_or(loaded.base.revision, |committed| committed.revision);
    assert!(last.revision > before, "revisions grow");
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::samples, *};

    proptest! {
        #[test]
        fn whatever_stands_in_the_files_they_open_or_are_left_as_they_are(
            pieces in vec((any::<u8>(), vec(any::<u8>(), 0..60)), 0..6),
            records in vec((any::<u8>(), 0..4_u64, vec(samples::any_record(), 0..3)), 0..5),
            at in any::<prop::sample::Index>(),
        ) {
            directory(pieces.iter().map(|(kind, piece)| (*kind, &piece[..])));
            // Good groups, in files and in an order that may fit.
            let mut pieces = pieces;
            let mut previous = 0;
            for (kind, skip, records) in records {
                let mut payload = Vec::new();
                previous += u64::from(skip == 3);
                encode_group(&mut payload, previous, &records);
                previous += records.len() as u64;
                let kind = if skip == 0 { kind & 0xF0 } else { 0 };
                let at = at.index(pieces.len() + 1);
                pieces.insert(if skip == 2 { at } else { pieces.len() }, (kind, payload));
            }
            pieces.retain(|(kind, piece)| kind & 0xF1 != 0 || piece.len() < 8 || kind & 6 == 0);
            directory(pieces.iter().map(|(kind, piece)| (*kind, &piece[..])));
        }

        #[test]
        fn what_is_read_is_written_as_it_was(record in samples::any_record(), base in samples::any_base(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut payload = Vec::new();
            encode_group(&mut payload, 3, &[record]);
            let place = at.index(payload.len());
            payload[place] = byte;
            group(&payload);
            let mut payloads = Vec::new();
            encode_base(&base, |part| { payloads.push(part.encode_to_vec()); Ok::<_, ()>(()) }).expect("it is written");
            for mut payload in payloads {
                part(&payload);
                let place = at.index(payload.len().max(1));
                if let Some(place) = payload.get_mut(place) {
                    *place = byte;
                }
                part(&payload);
            }
        }
    }
}
