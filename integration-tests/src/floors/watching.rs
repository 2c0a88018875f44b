//! Watchers and readers of a hub without a network: streams of several views that read as fast or as slowly as they like,
//! resume, and record what they are told.
//!
//! A stream sends what a server's stream does: its views' parts in turn, then a bookmark. Judges nothing but that parts
//! come whole.

use std::sync::Arc;

use prost::Message;
use registry_proto::v1;
use registry_server::{
    core::{Selector, Status},
    hub::{self, Hub, Signal, Start},
};

use super::draw::{BATCHES, SERVICES, key};
use crate::{
    history::{Cursor, Event, Reading, Recorder, Selection, WatcherRecord},
    replica::{Assembler, Replica},
    validate::{Broken, Promise},
};

/// One stream, open or not.
#[derive(Debug)]
pub(super) struct Stream {
    recorder: Recorder,
    open: Option<Open>,
    views: Vec<View>,
    /// What it was told that no protocol allows.
    pub(super) broken: Vec<Broken>,
}

#[derive(Debug)]
struct Open {
    hub: Hub,
    signal: Arc<Signal>,
    cursors: Vec<hub::Cursor>,
}

#[derive(Debug)]
struct View {
    record: WatcherRecord,
    selector: Selector,
    replica: Replica,
    assembler: Assembler,
}

/// What reading came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// There is more.
    More,
    /// It was told everything, and a bookmark said so.
    All,
    /// No stream is open.
    Closed,
}

impl Stream {
    /// A stream of views drawn at random. The first stream follows all services as they are.
    pub(super) fn draw(number: usize, rng: &mut fastrand::Rng, recorder: &Recorder) -> Self {
        let services = [SERVICES[0], SERVICES[1], BATCHES];
        let count = if number == 0 { services.len() } else { rng.usize(1..4) };
        let views = (0..count).map(|view| {
            let plain = number == 0 || rng.u8(..3) == 0;
            let service = if number == 0 { services[view] } else { services[rng.usize(..services.len())] };
            let (selection, selector) =
                if plain { (Selection::default(), Selector::default()) } else { selection(rng) };
            let name = if plain { service.to_owned() } else { format!("{service} of {selection:?}") };
            View {
                record: WatcherRecord {
                    name: format!("stream {number}, view {view}"),
                    view: name,
                    service: service.to_owned(),
                    selection,
                    include_all: number > 0 && rng.u8(..6) == 0,
                    events: Vec::new(),
                },
                selector,
                replica: Replica::default(),
                assembler: Assembler::default(),
            }
        });
        Self { recorder: recorder.clone(), open: None, views: views.collect(), broken: Vec::new() }
    }

    /// Opens all views, each from its own cursor, in place of what was open.
    pub(super) fn open(&mut self, hub: &Hub, run: u32, forced: bool) {
        self.open = None;
        let signal = Signal::new();
        let mut cursors = Vec::new();
        for (slot, view) in (0..).zip(&mut self.views) {
            let cursor = view.replica.resume();
            // Whoever is ahead of a server waits for it, outside of the hub.
            if cursor.as_ref().is_some_and(|it| *it.epoch == *hub.epoch() && it.revision > hub.head()) {
                return;
            }
            let start = match &cursor {
                None => Start::Fresh,
                Some(_) if forced => Start::Forced,
                Some(it) => Start::Resume { epoch: it.epoch.to_string(), revision: it.revision },
            };
            view.assembler = Assembler::default();
            let forced = start == Start::Forced;
            view.record.events.push(Event::Opened { cursor, forced, at: self.recorder.stamp(), run });
            let service = key(&view.record.service);
            let opened = hub.watch(&service, &view.selector, view.record.include_all, &start, &signal, slot);
            cursors.push(opened.expect("few views are open"));
        }
        self.open = Some(Open { hub: hub.clone(), signal, cursors });
    }

    /// Closes it; the cursors stay.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Marks that wait, and the views there are.
    pub(super) fn marks(&self) -> (usize, usize) {
        self.open.as_ref().map_or((0, 0), |open| (open.signal.marked(), open.cursors.len()))
    }

    /// Reads so many messages at most.
    pub(super) fn read(&mut self, messages: usize) -> Read {
        let Some(open) = &mut self.open else { return Read::Closed };
        for _ in 0..messages {
            let head = open.hub.head();
            let step = loop {
                let Some(slot) = open.signal.take() else { break None };
                let slot = usize::try_from(slot).expect("it was given as a slot");
                if let Some(step) = open.cursors[slot].next_step() {
                    break Some((slot, step));
                }
            };
            let Some((slot, step)) = step else {
                let cursor = Cursor { epoch: open.hub.epoch().into(), revision: head };
                for view in &mut self.views {
                    view.replica.bookmark(&cursor);
                    view.record.events.push(Event::Bookmark(cursor.clone()));
                }
                return Read::All;
            };
            let view = &mut self.views[slot];
            let mut change = v1::Change::decode(step.part.as_message()).expect("a hub writes changes");
            change.reset_reason = step.reset_reason.unwrap_or_default().into();
            match view.assembler.take(change, &self.recorder) {
                Ok(None) => {}
                Ok(Some(told)) => {
                    view.replica.apply(&told);
                    view.record.events.push(Event::Told(told));
                }
                Err(what) => {
                    let what = format!("{}: {what}", view.record.name);
                    self.broken.push(Broken { promise: Promise::W4, what });
                }
            }
        }
        Read::More
    }

    /// What each view was told.
    pub(super) fn into_records(self) -> impl Iterator<Item = WatcherRecord> {
        self.views.into_iter().map(|view| view.record)
    }
}

fn selection(rng: &mut fastrand::Rng) -> (Selection, Selector) {
    let parity = rng.bool().then(|| if rng.bool() { "even" } else { "odd" });
    let zone = if rng.bool() { String::new() } else { format!("z{}", rng.u8(..2)) };
    let statuses = match rng.u8(..3) {
        0 => vec![],
        1 => vec![Status::Up],
        _ => vec![Status::Draining, Status::Down],
    };
    let selection = Selection {
        tags: parity.iter().map(|value| ("parity".to_owned(), (*value).to_owned())).collect(),
        zone: zone.clone(),
        statuses: statuses.iter().copied().map(super::witness::status).collect(),
    };
    let tags = parity.map(|value| (Arc::from("parity"), Arc::from(value)));
    (selection, Selector::new(tags, zone, statuses))
}

/// A reading of a service, in the making: page by page, whatever happens in between.
#[derive(Debug)]
pub(super) struct Reader {
    reading: Reading,
    assembler: Assembler,
    next: Option<hub::PageToken>,
    began: bool,
}

impl Reader {
    /// Asks for a service.
    pub(super) fn new(service: &str, hub: &Hub, run: u32, recorder: &Recorder) -> Self {
        let (view, epoch) = (service.to_owned(), hub.epoch().into());
        let reading = Reading { view, started: recorder.stamp(), run, epoch, ..Reading::default() };
        Self { reading, assembler: Assembler::default(), next: None, began: false }
    }

    /// Reads a page. `Ok(Some)`: all of it was read. `Err`: its pages are gone.
    pub(super) fn page(&mut self, hub: &Hub, recorder: &Recorder) -> Result<Option<Reading>, ()> {
        let (service, all) = (key(&self.reading.view), Selector::default());
        let page = match self.next.take() {
            Some(token) => hub.read_on(&service, &all, token).ok_or(())?,
            None if self.began => return Err(()),
            None => hub.read(&service, &all),
        };
        self.began = true;
        self.reading.revision = page.revision;
        for part in page.parts {
            let change = v1::Change::decode(part.as_message()).expect("a hub writes changes");
            let told = self.assembler.take(change, recorder).expect("pages come in order");
            if let Some(told) = told {
                let mut view = Replica::default();
                view.apply(&told);
                (self.reading.digest, self.reading.items) = (told.digest, view.items);
            }
        }
        self.next = page.next;
        Ok(self.next.is_none().then(|| self.reading.clone()))
    }
}
