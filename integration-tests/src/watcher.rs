//! The reference watcher: follows one view over `Watch` or `Subscribe`, resumes by its cursor, and records all it is told.
//!
//! It judges nothing: [`crate::validate`] does, from the record.

use std::time::Duration;

use registry_proto::v1::{self, subscribe_response::Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    history::{Cursor, Event, Recorder, Selection, WatcherRecord},
    process::{Client, within},
    replica::{Assembler, Replica},
    requests,
};

/// Something that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);
const VIEW: u32 = 7;

/// Which call a watcher uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// `Watch`.
    Watch,
    /// `Subscribe`, with one view.
    Subscribe,
}

/// A watcher of one view.
#[derive(Debug)]
pub struct Watcher {
    request: v1::WatchRequest,
    over: Over,
    recorder: Recorder,
    record: WatcherRecord,
    replica: Replica,
    assembler: Assembler,
    stream: Option<Source>,
}

#[derive(Debug)]
enum Source {
    Watch(Streaming<v1::Change>),
    /// The sender is kept: a client that has nothing more to ask may be taken for one that leaves.
    Subscribe(Streaming<v1::SubscribeResponse>, #[allow(dead_code)] mpsc::Sender<v1::SubscribeRequest>),
}

impl Watcher {
    /// A watcher that has not opened a stream yet. `view` names what it watches: watchers of one name watch the same.
    pub fn new(name: &str, view: &str, request: v1::WatchRequest, over: Over, recorder: &Recorder) -> Self {
        let service = match &request.scope {
            Some(v1::watch_request::Scope::Key(key)) => key.service.clone(),
            _ => String::new(),
        };
        let record = WatcherRecord {
            name: name.into(),
            view: view.into(),
            service,
            selection: request.selector.as_ref().map(Selection::of).unwrap_or_default(),
            include_all: request.include_all,
            events: Vec::new(),
        };
        Self {
            request,
            over,
            recorder: recorder.clone(),
            record,
            replica: Replica::default(),
            assembler: Assembler::default(),
            stream: None,
        }
    }

    /// Follows a whole service.
    pub fn of(name: &str, service: &str, over: Over, recorder: &Recorder) -> Self {
        Self::new(name, service, requests::watch(service), over, recorder)
    }

    /// Opens a stream, from the cursor if there is one.
    pub async fn open(&mut self, client: &Client) -> Result<(), Status> {
        self.open_with(client, false).await
    }

    /// Opens a stream, from the cursor if there is one, and asks for a snapshot all the same if `forced`.
    pub async fn open_with(&mut self, client: &Client, forced: bool) -> Result<(), Status> {
        let cursor = self.replica.resume();
        let wire =
            |cursor: &Cursor| v1::Cursor { epoch: cursor.epoch.to_string(), revision: cursor.revision };
        let request = v1::WatchRequest {
            cursor: cursor.as_ref().map(wire),
            force_snapshot: forced,
            ..self.request.clone()
        };
        self.stream = None;
        self.assembler = Assembler::default();
        let at = self.recorder.stamp();
        let mut client = client.clone();
        let source = match self.over {
            Over::Watch => Source::Watch(client.watch(request).await?.into_inner()),
            Over::Subscribe => {
                let (send, requests) = mpsc::channel(4);
                send.try_send(requests::subscribe(VIEW, request)).expect("the channel is new");
                let stream = client.subscribe(ReceiverStream::new(requests)).await?;
                Source::Subscribe(stream.into_inner(), send)
            }
        };
        self.stream = Some(source);
        self.record.events.push(Event::Opened { cursor, forced, at, run: 0 });
        Ok(())
    }

    /// The next whole thing that the stream tells. `Err`: it ended, and why.
    pub async fn next(&mut self) -> Result<&Event, Status> {
        loop {
            let stream = self.stream.as_mut().ok_or_else(|| Status::cancelled("no stream is open"))?;
            let message = match stream {
                Source::Watch(stream) => stream.message().await.map(|it| it.map(of_watch)),
                Source::Subscribe(stream, _) => {
                    stream.message().await.map(|it| it.and_then(|it| it.response))
                }
            };
            let message = message.and_then(|it| it.ok_or_else(|| Status::cancelled("the stream ended")));
            if message.is_err() {
                self.stream = None;
            }
            let event = match message? {
                Response::Change(change) => match self.assembler.take(change, &self.recorder) {
                    Ok(None) => continue,
                    Ok(Some(told)) => {
                        self.replica.apply(&told);
                        Event::Told(told)
                    }
                    Err(problem) => panic!("W4 atomic: {}: {problem}", self.record.name),
                },
                Response::Bookmark(bookmark) => {
                    let cursor = Cursor { epoch: bookmark.epoch.into(), revision: bookmark.revision };
                    self.replica.bookmark(&cursor);
                    Event::Bookmark(cursor)
                }
                Response::ViewError(refused) => Event::Refused(refused),
                Response::GoAway(_) => Event::GoAway,
            };
            self.record.events.push(event);
            return Ok(self.record.events.last().expect("it was just pushed"));
        }
    }

    /// Reads until the view is as wanted. Panics if the stream ends, or nothing more comes for long.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Replica) -> bool) {
        while !wanted(&self.replica) {
            let told = within(what, PATIENCE, self.next()).await;
            if let Err(ended) = told {
                panic!("{}: the stream ended before {what}: {ended}", self.record.name);
            }
        }
    }

    /// Reads until everything up to a revision is told.
    pub async fn reach(&mut self, revision: u64) {
        self.until(&format!("revision {revision}"), |view| view.cursor >= revision).await;
    }

    /// Reads until the initial state is complete: the first bookmark.
    pub async fn settle(&mut self) {
        loop {
            match within("a bookmark", PATIENCE, self.next()).await {
                Ok(Event::Bookmark(_)) => return,
                Ok(_) => {}
                Err(ended) => panic!("{}: the stream ended before a bookmark: {ended}", self.record.name),
            }
        }
    }

    /// Reads until the stream ends, and says why it did.
    pub async fn drain(&mut self) -> Status {
        loop {
            if let Err(ended) = within("the stream's end", PATIENCE, self.next()).await {
                return ended;
            }
        }
    }

    /// Closes the stream; the cursor stays.
    pub fn close(&mut self) {
        self.stream = None;
    }

    /// The view as far as it was told.
    pub fn view(&self) -> &Replica {
        &self.replica
    }

    /// What it was told since the last stream was opened.
    pub fn since_opened(&self) -> &[Event] {
        let opened = self.record.events.iter().rposition(|event| matches!(event, Event::Opened { .. }));
        &self.record.events[opened.map_or(0, |at| at + 1)..]
    }

    /// Why the last stream started with a snapshot; `None` if it did not.
    pub fn reset_reason(&self) -> Option<v1::ResetReason> {
        self.since_opened().iter().find_map(|event| match event {
            Event::Told(told) => Some(told.snapshot.then_some(told.reason)),
            _ => None,
        })?
    }

    /// All that it was told so far.
    pub fn clone_record(&self) -> WatcherRecord {
        self.record.clone()
    }

    /// All that it was told.
    pub fn into_record(self) -> WatcherRecord {
        self.record
    }
}

/// On `Watch`, a bookmark is a kind of change.
fn of_watch(change: v1::Change) -> Response {
    if change.kind == i32::from(v1::ChangeKind::Bookmark) {
        let v1::Change { epoch, revision, .. } = change;
        return Response::Bookmark(v1::Bookmark { epoch, revision, ack_requested: false });
    }
    Response::Change(change)
}
