//! A `Subscribe` stream by hand, for tests of the protocol itself.

use std::time::Duration;

use registry_proto::v1::{self, subscribe_response::Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::process::{Client, within};

/// Something that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Both directions of one stream.
#[derive(Debug)]
pub struct Stream {
    requests: mpsc::Sender<v1::SubscribeRequest>,
    responses: Streaming<v1::SubscribeResponse>,
}

impl Stream {
    /// Opens a stream without views.
    pub async fn open(client: &Client) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(64);
        let responses = client.clone().subscribe(ReceiverStream::new(sent)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// Asks for something.
    pub async fn ask(&self, request: v1::SubscribeRequest) {
        self.requests.send(request).await.expect("the stream is open");
    }

    /// What comes next. Panics if the stream ends.
    pub async fn next(&mut self) -> (u32, Response) {
        let message = within("the stream's next message", PATIENCE, self.responses.message()).await;
        let message = message.expect("the stream goes on").expect("the stream goes on");
        (message.view_id, message.response.expect("a response says something"))
    }

    /// The next change of a view; whatever comes before it is passed over, but no refusal.
    pub async fn change(&mut self, view_id: u32) -> v1::Change {
        loop {
            match self.next().await {
                (id, Response::Change(change)) if id == view_id => return change,
                (id, Response::ViewError(error)) => panic!("view {id} was refused: {error:?}"),
                _ => {}
            }
        }
    }

    /// The next refusal; whatever comes before it is passed over.
    pub async fn refusal(&mut self) -> (u32, v1::ViewError) {
        loop {
            if let (id, Response::ViewError(error)) = self.next().await {
                return (id, error);
            }
        }
    }

    /// The next bookmark, and the changes that came before it.
    pub async fn bookmark(&mut self) -> (v1::Bookmark, Vec<(u32, v1::Change)>) {
        let mut changes = Vec::new();
        loop {
            match self.next().await {
                (_, Response::Bookmark(bookmark)) => return (bookmark, changes),
                (id, Response::Change(change)) => changes.push((id, change)),
                (id, other) => panic!("view {id}: {other:?}"),
            }
        }
    }

    /// Closes this side, and goes on reading.
    pub fn close_side(self) -> Streaming<v1::SubscribeResponse> {
        self.responses
    }

    /// Closes this side, and waits for the server to end its own.
    pub async fn ends(self) {
        let mut responses = self.close_side();
        let ends = async { while responses.message().await.expect("it ends in good order").is_some() {} };
        within("the stream's end", PATIENCE, ends).await;
    }
}
