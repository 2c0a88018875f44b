//! The stream that renewals go over. It does not renew by itself, nor open itself again: that is `driver`'s business.

use std::time::Duration;

use registry_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{Connection, RegistryClient};

/// An open stream of renewals.
pub(super) struct Stream {
    pub(super) connection: Connection,
    pub(super) requests: mpsc::Sender<v1::KeepAliveRequest>,
    pub(super) responses: Streaming<v1::KeepAliveResponse>,
}

impl Stream {
    /// Opens a stream within `patience`; the first renewal goes with the first bytes. A connection on which that fails is
    /// retired, so that the next attempt goes elsewhere. The error is for people.
    pub(super) async fn open(
        client: &RegistryClient,
        first: v1::KeepAliveRequest,
        patience: Duration,
    ) -> Result<Self, String> {
        let (requests, receiver) = mpsc::channel(4);
        let _ = requests.try_send(first);
        let (trying, mut tried) = oneshot::channel();
        let open = async move {
            let connection = client.connect().await.map_err(|error| error.to_string())?;
            let _ = trying.send(connection.clone());
            let mut grpc = connection.grpc();
            let answer = grpc.keep_alive(ReceiverStream::new(receiver)).await;
            answer.map(|answer| (connection, answer.into_inner())).map_err(|status| status.to_string())
        };
        let opened = tokio::time::timeout(patience, open)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {patience:?}")));
        match opened {
            Ok((connection, responses)) => Ok(Self { connection, requests, responses }),
            Err(reason) => {
                if let Ok(connection) = tried.try_recv() {
                    connection.retire();
                }
                Err(reason)
            }
        }
    }
}
