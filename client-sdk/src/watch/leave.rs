//! Leaving a stream in good order, so that nobody waits for what was followed on it (C4).
//!
//! ```text
//!   unsubscribe each view ──▶ close our side ──▶ the registry ends its own: it has heard all of it
//! ```
//!
//! A stream that just ends says nothing of the kind: whoever was on it may be about to come back, and goes by what it knew,
//! so the registry has drains wait for it, for 20 s. Owns how a stream is left, not when, nor how long that may take.

use std::time::Duration;

use registry_proto::v1::{self, subscribe_request::Request};
use tokio::sync::mpsc;
use tonic::Streaming;

/// Why the registry may not know that a watcher left. Nothing is to be done about it: drains of what it watched then wait for
/// it as for one that crashed, for up to 20 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// There was no stream to say it on, or it broke.
    #[error(
        "the registry could not be told that we leave, for there is no stream to it; drains may wait for us for 20 s"
    )]
    NoStream,
    /// The registry did not end the stream in time, which is the client's request timeout. Perhaps it is one that never does
    /// (it is older), and knows all the same.
    #[error("the registry did not confirm within {0:?} that we left; drains may wait for us for 20 s")]
    Unconfirmed(Duration),
}

/// Unsubscribes these views, which are all that the stream has, and waits until the registry has heard of it: for ever, if
/// it never says so.
pub(super) async fn take_leave(
    requests: mpsc::Sender<v1::SubscribeRequest>,
    mut responses: Streaming<v1::SubscribeResponse>,
    views: Vec<u32>,
) -> Result<(), LeaveError> {
    let say = async move {
        for view_id in views {
            let request = Some(Request::Unsubscribe(v1::UnsubscribeView { view_id }));
            if requests.send(v1::SubscribeRequest { request }).await.is_err() {
                return false; // the stream is gone
            }
        }
        true // and our side is closed
    };
    let mut say = std::pin::pin!(say);
    let mut said = None;
    loop {
        tokio::select! {
            biased;
            all = &mut say, if said.is_none() => said = Some(all),
            // Read on, whatever it is: a registry that cannot send does not listen.
            message = responses.message() => match message {
                Ok(Some(_)) => {}
                Ok(None) if said == Some(true) => return Ok(()),
                Ok(None) | Err(_) => return Err(LeaveError::NoStream),
            },
        }
    }
}
