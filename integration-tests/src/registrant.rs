//! A registrant that goes on renewing its leases, at a pace of its own, and records what it is answered.

use std::time::Duration;

use registry_proto::v1;
use tokio::{sync::watch, task::JoinHandle, time::interval};
use tokio_stream::{StreamExt, wrappers::IntervalStream};
use tonic::Status;

use crate::process::{Client, within};

/// Something that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A registrant at work. It stops renewing when it is dropped.
#[derive(Debug)]
pub struct Registrant {
    renewed: watch::Receiver<Renewed>,
    task: JoinHandle<()>,
}

/// What its renewals came to so far.
#[derive(Clone, Debug, Default)]
pub struct Renewed {
    /// Answers.
    pub answers: u64,
    /// The exceptions in them, in words.
    pub exceptions: Vec<String>,
    /// Why the stream ended, once it has.
    pub ended: Option<Status>,
}

impl Registrant {
    /// Renews the leases every `pace` on one stream.
    pub async fn start(client: &Client, leases: Vec<Vec<u8>>, pace: Duration) -> Result<Self, Status> {
        let mut request_id = 0;
        let requests = IntervalStream::new(interval(pace)).map(move |_| {
            request_id += 1;
            v1::KeepAliveRequest { lease_ids: leases.clone(), request_id }
        });
        let mut answers = client.clone().keep_alive(requests).await?.into_inner();
        let (record, renewed) = watch::channel(Renewed::default());
        let task = tokio::spawn(async move {
            let ended = loop {
                let answer = match answers.message().await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => break Status::cancelled("the stream ended"),
                    Err(status) => break status,
                };
                record.send_modify(|renewed| {
                    renewed.answers += 1;
                    renewed
                        .exceptions
                        .extend(answer.exceptions.iter().map(|exception| format!("{exception:?}")));
                });
            };
            record.send_modify(|renewed| renewed.ended = Some(ended));
            // Whoever asks later is told, too.
            record.closed().await;
        });
        Ok(Self { renewed, task })
    }

    /// Waits for further answers, and tells of all that there were.
    pub async fn renewed(&self, further: u64) -> Renewed {
        let mut renewed = self.renewed.clone();
        let until = renewed.borrow().answers + further;
        let enough = |renewed: &Renewed| renewed.answers >= until || renewed.ended.is_some();
        let enough = within("renewals", PATIENCE, renewed.wait_for(enough)).await;
        let renewed = enough.expect("the task tells").clone();
        assert!(renewed.answers >= until, "the server ended renewals: {:?}", renewed.ended);
        renewed
    }
}

impl Registrant {
    /// Waits until the server ends the stream, and says why it did.
    pub async fn ended(&self) -> Status {
        let mut renewed = self.renewed.clone();
        let ended =
            within("the end of renewals", PATIENCE, renewed.wait_for(|renewed| renewed.ended.is_some()));
        let ended = ended.await.expect("the task tells").ended.clone();
        ended.expect("it was just there")
    }
}

impl Drop for Registrant {
    fn drop(&mut self) {
        self.task.abort();
    }
}
