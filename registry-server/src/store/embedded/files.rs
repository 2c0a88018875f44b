//! The files of the embedded store: their names, how each is read whole and checked, how each comes to be.
//!
//! Changes nothing while it reads.

use std::io;

use super::super::{
    StoreError,
    disk::{Disk, DiskFile},
    frame::{self, HEADER, Header, Kind, Next},
    record::{
        Counts, DecodeError, Extent, Group, Interner, Part, decode_extent, decode_group, decode_part,
        encode_base,
    },
};
use crate::core::{Base, Committed, Revision};

/// What a directory lists, by kind; revisions ascending.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The revisions of the bases.
    pub(super) bases: Vec<Revision>,
    /// The revisions before the logs.
    pub(super) logs: Vec<Revision>,
    /// Files that were not finished.
    pub(super) temporary: Vec<String>,
}

/// A log, read.
#[derive(Debug)]
pub(super) struct Log {
    /// The history that it belongs to.
    pub(super) epoch: u128,
    /// The last revision before it.
    pub(super) start: Revision,
    /// Its last revision, or `start`.
    pub(super) last: Revision,
    /// Its records, those wanted.
    pub(super) records: Vec<Committed>,
    /// Where its last whole frame stands, and that frame.
    pub(super) last_frame: Option<(u64, Vec<u8>)>,
    /// Where its last whole frame ends.
    pub(super) end: u64,
    /// The size of the file.
    pub(super) size: u64,
    /// Set if what follows `end` is a torn tail.
    pub(super) torn: Option<&'static str>,
}

const TEMPORARY: &str = ".tmp";

/// The name of the base at a revision.
pub(super) fn base_name(revision: Revision) -> String {
    format!("base-{revision:020}")
}

/// The name of the log of what follows a revision.
pub(super) fn log_name(start: Revision) -> String {
    format!("log-{start:020}")
}

/// Says what could not be done to which file.
pub(super) fn io_error(disk: &dyn Disk, what: &str, name: &str, error: &io::Error) -> StoreError {
    StoreError::Io(format!("could not {what} {}: {error}", disk.describe(name)))
}

/// What is there. Names that are none of ours are passed over.
pub(super) fn list(disk: &dyn Disk) -> Result<Listing, StoreError> {
    let names = disk.list().map_err(|error| io_error(disk, "list", "", &error))?;
    let mut listing = Listing::default();
    for name in names {
        let ours = |prefix| {
            let digits =
                name.strip_prefix(prefix)?.strip_suffix(TEMPORARY).unwrap_or(name.strip_prefix(prefix)?);
            let whole = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
            if whole { digits.parse::<Revision>().ok() } else { None }
        };
        match (ours("base-"), ours("log-")) {
            (None, None) => {}
            _ if name.ends_with(TEMPORARY) => listing.temporary.push(name),
            (Some(base), _) => listing.bases.push(base),
            (_, Some(log)) => listing.logs.push(log),
        }
    }
    listing.bases.sort_unstable();
    listing.logs.sort_unstable();
    Ok(listing)
}

/// Makes an empty log; its name and header are durable when this returns.
pub(super) fn create_log(
    disk: &dyn Disk,
    epoch: u128,
    start: Revision,
) -> Result<Box<dyn DiskFile>, StoreError> {
    let header = Header { kind: Kind::Log, epoch, revision: start };
    publish(disk, &log_name(start), |file| file.write_at(0, &header.encode()))
}

/// A log that is read one group after the other: of its records no more are in memory than are being looked at.
pub(super) struct Groups {
    file: String,
    epoch: u128,
    bytes: Vec<u8>,
    /// Where the next frame stands.
    at: usize,
    /// The last revision before it.
    last: Revision,
}

/// What comes next in a log.
pub(super) enum Step {
    /// A group.
    Group(Group),
    /// Nothing more was written.
    End,
    /// No whole frame, for this reason.
    Bad(&'static str),
}

impl Groups {
    /// Reads the file and checks its header.
    pub(super) fn open(disk: &dyn Disk, start: Revision) -> Result<Self, StoreError> {
        let (bytes, file) = read(disk, &log_name(start))?;
        let header = Header::decode(&file, Kind::Log, &bytes)?;
        let groups = Self { file, epoch: header.epoch, bytes, at: HEADER, last: start };
        if header.revision != start {
            let what = format!("its header says that it follows revision {}", header.revision);
            return Err(groups.corrupt(32, what));
        }
        Ok(groups)
    }

    /// The next group, which has to follow the one before; its records only if one of them is after `wanted`.
    pub(super) fn step(&mut self, wanted: Revision, strings: &mut Interner) -> Result<Step, StoreError> {
        let (payload, end) = match frame::next(&self.bytes, self.at) {
            Next::Frame { payload, end } => (payload, end),
            Next::End => return Ok(Step::End),
            Next::Bad(what) => return Ok(Step::Bad(what)),
        };
        let group = decode_group(payload, wanted, strings)
            .map_err(|error| decode_error(&self.file, self.at, error))?;
        if group.previous != self.last || group.last < self.last {
            let what = format!(
                "a group is of revisions after {} to {}, expected after {}",
                group.previous, group.last, self.last
            );
            return Err(self.corrupt(self.at, what));
        }
        (self.last, self.at) = (group.last, end);
        Ok(Step::Group(group))
    }

    /// As [`step`](Self::step), of a log that takes no more appends and so has no torn tail.
    pub(super) fn step_sealed(
        &mut self,
        wanted: Revision,
        strings: &mut Interner,
    ) -> Result<Option<Group>, StoreError> {
        match self.step(wanted, strings)? {
            Step::Group(group) => Ok(Some(group)),
            Step::End => Ok(None),
            Step::Bad(what) => Err(self.corrupt(self.at, what.to_owned())),
        }
    }

    fn corrupt(&self, at: usize, what: String) -> StoreError {
        StoreError::Corrupt { file: self.file.clone(), offset: at as u64, what }
    }
}

/// Reads a log: checks all of it, and gives the groups that have records after `wanted`. A torn tail is an error unless
/// this is the newest.
pub(super) fn read_log(
    disk: &dyn Disk,
    start: Revision,
    newest: bool,
    wanted: Revision,
    strings: &mut Interner,
) -> Result<Log, StoreError> {
    let mut groups = Groups::open(disk, start)?;
    let mut records = Vec::new();
    let mut last_frame = None;
    let torn = loop {
        let at = groups.at;
        match groups.step(wanted, strings)? {
            Step::Group(group) => {
                records.extend(group.records);
                last_frame = Some(at..groups.at);
            }
            Step::End => break None,
            Step::Bad(what) if !newest => return Err(groups.corrupt(at, what.to_owned())),
            Step::Bad(what) => {
                if let Some(next) = frame::written_after(&groups.bytes, at) {
                    let what = format!("{what}, and what was written later stands at offset {next}");
                    return Err(groups.corrupt(at, what));
                }
                if !frame::is_unfinished(&groups.bytes, at) {
                    let what =
                        format!("{what}, and nothing of it is missing as after a write that was interrupted");
                    return Err(groups.corrupt(at, what));
                }
                break Some(what);
            }
        }
    };
    Ok(Log {
        epoch: groups.epoch,
        start,
        last: groups.last,
        records,
        last_frame: last_frame.map(|frame| (frame.start as u64, groups.bytes[frame].to_vec())),
        end: groups.at as u64,
        size: groups.bytes.len() as u64,
        torn,
    })
}

/// What the groups of a log cover that takes no more appends, oldest first.
pub(super) fn read_extents(disk: &dyn Disk, start: Revision) -> Result<Vec<Extent>, StoreError> {
    let (bytes, file) = read(disk, &log_name(start))?;
    let mut extents = Vec::new();
    let mut at = HEADER;
    loop {
        match frame::next(&bytes, at) {
            Next::Frame { payload, end } => {
                let extent = decode_extent(payload, (end - at) as u64);
                extents.push(extent.map_err(|error| decode_error(&file, at, error))?);
                at = end;
            }
            Next::End => return Ok(extents),
            Next::Bad(what) => {
                return Err(StoreError::Corrupt { file, offset: at as u64, what: what.to_owned() });
            }
        }
    }
}

/// Reads a base, with the epoch that it belongs to.
pub(super) fn read_base(
    disk: &dyn Disk,
    revision: Revision,
    strings: &mut Interner,
) -> Result<(Base, u128), StoreError> {
    let (bytes, file) = read(disk, &base_name(revision))?;
    let header = Header::decode(&file, Kind::Base, &bytes)?;
    let corrupt = |at: usize, what: &str| StoreError::Corrupt {
        file: file.clone(),
        offset: at as u64,
        what: what.into(),
    };
    let mut base = Base::default();
    let mut at = HEADER;
    let counts = loop {
        match frame::next(&bytes, at) {
            Next::Frame { payload, end } => {
                let part = decode_part(payload, &mut base, strings)
                    .map_err(|error| decode_error(&file, at, error))?;
                at = end;
                if let Part::Footer(counts) = part {
                    break counts;
                }
            }
            Next::End => return Err(corrupt(at, "it ends without its footer")),
            Next::Bad(what) => return Err(corrupt(at, what)),
        }
    };
    if at != bytes.len() {
        return Err(corrupt(at, "something follows its footer"));
    }
    if counts != Counts::of(&base) || base.revision != revision || header.revision != revision {
        return Err(corrupt(at, "its footer does not agree with its name and content"));
    }
    Ok((base, header.epoch))
}

/// Writes a base; it is durable under its name when this returns. Gives its size. Before each piece it calls `pause`.
pub(super) fn write_base(
    disk: &dyn Disk,
    epoch: u128,
    base: &Base,
    mut pause: impl FnMut(),
) -> Result<u64, StoreError> {
    const WRITE: usize = 1 << 20;
    let mut offset = 0;
    publish(disk, &base_name(base.revision), |file| {
        let header = Header { kind: Kind::Base, epoch, revision: base.revision };
        let mut buffer = header.encode().to_vec();
        encode_base(base, |part| {
            let at = offset + buffer.len() as u64;
            frame::push(&mut buffer, at, |out| {
                prost::Message::encode(part, out).expect("a vector takes any message");
            })
            .map_err(|size| io::Error::other(format!("a part of the base has {size} bytes")))?;
            if buffer.len() >= WRITE {
                pause();
                file.write_at(offset, &buffer)?;
                // Else all of it would be written at the end, and a group that is appended meanwhile would wait behind it.
                file.sync()?;
                offset += buffer.len() as u64;
                buffer.clear();
            }
            io::Result::Ok(())
        })?;
        pause();
        file.write_at(offset, &buffer)?;
        offset += buffer.len() as u64;
        Ok(())
    })?;
    Ok(offset)
}

/// Writes a file under a temporary name, and gives it its own when it is durable. What could not be finished is removed,
/// since it may be what fills the disk.
fn publish(
    disk: &dyn Disk,
    name: &str,
    content: impl FnOnce(&mut dyn DiskFile) -> io::Result<()>,
) -> Result<Box<dyn DiskFile>, StoreError> {
    let temporary = format!("{name}{TEMPORARY}");
    let published = || {
        let mut file = disk.open(&temporary)?;
        file.truncate(0)?;
        content(file.as_mut())?;
        file.sync()?;
        disk.rename(&temporary, name)?;
        disk.sync_dir()?;
        Ok(file)
    };
    published().map_err(|error| {
        // If that fails too, the next start removes it.
        let _ = disk.remove(&temporary);
        io_error(disk, "create", name, &error)
    })
}

fn read(disk: &dyn Disk, name: &str) -> Result<(Vec<u8>, String), StoreError> {
    let bytes = disk.read(name).map_err(|error| io_error(disk, "read", name, &error))?;
    Ok((bytes, disk.describe(name)))
}

fn decode_error(file: &str, at: usize, error: DecodeError) -> StoreError {
    let (file, offset) = (file.to_owned(), at as u64);
    match error {
        DecodeError::Newer(what) => StoreError::Newer { file, offset, what },
        DecodeError::Malformed(what) => StoreError::Corrupt { file, offset, what },
    }
}
