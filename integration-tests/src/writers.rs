//! Writers whose every effect can be recognised later, and readings to recognise it in.
//!
//! A [`Writer`] owns batches of instances that nobody else writes and that it only writes as a whole, one call after the
//! other; each write leaves its number in a tag. So any view tells which write of each batch it shows.

use std::sync::Arc;

use registry_proto::v1;
use tonic::{Code, Status};

use crate::{
    history::{Action, Outcome, Reading, Recorder, VALUE_TAG, Write},
    process::Client,
    replica::{Assembler, Replica},
    requests,
};

/// Instances of a batch.
pub const BATCH: usize = 3;

/// A writer of one lease.
#[derive(Debug)]
pub struct Writer {
    number: u64,
    service: String,
    recorder: Recorder,
    batches: Vec<Arc<[String]>>,
    count: u64,
    /// What it did.
    pub writes: Vec<Write>,
}

impl Writer {
    /// A writer that writes `batches` batches in turn.
    pub fn new(number: u64, service: &str, batches: usize, recorder: &Recorder) -> Self {
        let members = |batch| (0..BATCH).map(|member| format!("w{number}-b{batch}-{member}")).collect();
        Self {
            number,
            service: service.into(),
            recorder: recorder.clone(),
            batches: (0..batches).map(members).collect(),
            count: 0,
            writes: Vec::new(),
        }
    }

    /// Writes the next batch. Most writes register it with a new value; every eleventh removes it.
    pub async fn write(&mut self, client: &Client, run: u32) -> Result<u64, Status> {
        self.count += 1;
        let members =
            Arc::clone(&self.batches[usize::try_from(self.count).unwrap_or(0) % self.batches.len()]);
        let action = if self.count.is_multiple_of(11) { Action::Delete } else { Action::Put(self.count) };
        let at = self.writes.len();
        self.writes.push(Write {
            view: self.service.clone(),
            members: Arc::clone(&members),
            action,
            started: self.recorder.stamp(),
            outcome: Outcome::Unknown,
        });
        let answer = self.send(client.clone(), &members, action).await;
        self.writes[at].outcome = match &answer {
            Ok((revision, incarnations)) => Outcome::Acked {
                at: self.recorder.stamp(),
                run,
                revision: *revision,
                incarnations: incarnations.clone(),
            },
            // Whatever else comes from a server that dies says nothing about what it did.
            Err(refused) if matches!(refused.code(), Code::InvalidArgument | Code::FailedPrecondition) => {
                Outcome::Refused
            }
            Err(_) => Outcome::Unknown,
        };
        answer.map(|(revision, _)| revision)
    }

    async fn send(
        &self,
        mut client: Client,
        members: &[String],
        action: Action,
    ) -> Result<(u64, Vec<u64>), Status> {
        let Action::Put(value) = action else {
            let answer = client.deregister(requests::deregister(&self.service, members)).await?;
            return Ok((answer.into_inner().revision, Vec::new()));
        };
        let instance = |id: &String| v1::Instance {
            tags: [(VALUE_TAG.to_owned(), value.to_string())].into(),
            ..requests::instance(id)
        };
        let instances = members.iter().map(instance).collect();
        let answer = client.register(requests::register(self.number, &self.service, instances)).await?;
        let answer = answer.into_inner();
        Ok((answer.revision, answer.instances.iter().map(|named| named.create_revision).collect()))
    }
}

/// Reads a whole service, page by page.
pub async fn read(client: &Client, service: &str, run: u32, recorder: &Recorder) -> Result<Reading, Status> {
    let mut client = client.clone();
    let started = recorder.stamp();
    let mut request = requests::discover(service);
    let mut whole: Option<v1::Change> = None;
    loop {
        let page = client.discover(request.clone()).await?.into_inner();
        let change = page.change.ok_or_else(|| Status::internal("a page without a change"))?;
        let change = match whole.take() {
            None => change,
            Some(before) if (before.revision, &before.epoch) == (change.revision, &change.epoch) => {
                let all = [before.all, change.all].concat();
                v1::Change { all, ..change }
            }
            Some(before) => {
                let problem = format!("pages of the revisions {} and {}", before.revision, change.revision);
                return Err(Status::internal(problem));
            }
        };
        if !page.next_page_token.is_empty() {
            request.page_token = page.next_page_token;
            whole = Some(change);
            continue;
        }
        // A page holds several parts, merged: together they are one.
        let one = v1::Change { part: 0, last_part: 0, ..change };
        let told = Assembler::default().take(one, recorder).map_err(Status::internal)?;
        let told = told.ok_or_else(|| Status::internal("pages that are not whole"))?;
        let mut view = Replica::default();
        view.apply(&told);
        return Ok(Reading {
            view: service.into(),
            started,
            run,
            epoch: told.epoch,
            revision: told.revision,
            digest: told.digest,
            items: view.items,
        });
    }
}
