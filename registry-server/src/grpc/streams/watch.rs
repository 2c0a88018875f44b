//! `Watch`: one view, with bookmarks; enough for command-line tools. Its client says nothing and cannot ack, so how it goes does
//! not matter to anybody.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use prost::Message;
use registry_proto::{Frame, v1};
use tokio_stream::Stream;
use tonic::Status;

use super::{BoxFuture, Stopping, stopped};
use crate::{
    applied::Watchers,
    grpc::{
        decode::Watched,
        feeder::{Fed, Feeder},
        seats::Seat,
        status,
    },
    hub::{Hub, Step},
    runtime::Runtime,
};

/// The answer to `Watch`.
pub(in crate::grpc) struct WatchStream {
    feeder: Feeder,
    key: v1::ServiceKey,
    epoch: String,
    stopping: BoxFuture<Duration>,
    runtime: Runtime,
    ended: bool,
    _seat: Seat,
}

impl WatchStream {
    pub(in crate::grpc) fn open(
        hub: Hub,
        watchers: &Watchers,
        watched: &Watched,
        stopping: Stopping,
        runtime: Runtime,
        seat: Seat,
    ) -> Result<Self, Status> {
        let epoch = hub.epoch().to_owned();
        let mut feeder = Feeder::new(hub, watchers, runtime.clone());
        feeder.open(0, watched)?;
        let key = crate::hub::wire_key(&watched.key);
        Ok(Self { feeder, key, epoch, stopping: stopped(stopping), runtime, ended: false, _seat: seat })
    }
}

impl Stream for WatchStream {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut listening = false;
        let fed = loop {
            if this.feeder.rang()
                && let Poll::Ready(spread) =
                    this.stopping.as_mut().poll(&mut Context::from_waker(&this.feeder.bell()))
            {
                this.ended = true;
                return Poll::Ready(Some(Err(status::shutting_down(this.runtime.jitter(spread)))));
            }
            match this.feeder.poll(false) {
                Poll::Ready(fed) => break fed,
                Poll::Pending if listening => return Poll::Pending,
                Poll::Pending => {}
            }
            this.feeder.listen(cx);
            listening = true;
        };
        let frame = match fed {
            Fed::Step(_, Step { part, reset_reason, .. }) => {
                Frame { prefix: reset(reset_reason), shared: part.as_message(), ..Frame::default() }
            }
            Fed::Bookmark { revision, .. } => Frame::of(&v1::Change {
                key: Some(this.key.clone()),
                kind: v1::ChangeKind::Bookmark.into(),
                epoch: this.epoch.clone(),
                revision,
                ..v1::Change::default()
            }),
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

fn reset(reason: Option<v1::ResetReason>) -> bytes::Bytes {
    reason.map_or_else(bytes::Bytes::new, |reason| {
        v1::Change { reset_reason: reason.into(), ..v1::Change::default() }.encode_to_vec().into()
    })
}
