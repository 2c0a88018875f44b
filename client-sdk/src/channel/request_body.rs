//! A request's body that can be sent again.
//!
//! A request body is read by one attempt at a time. What was read is kept, up to a bound, until an answer begins: if the
//! attempt turns out never to have left, the next one reads the same bytes and then goes on where the first stopped.
//! Owns no decision whether to try again.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

/// A request's body, before it is known who gets it.
pub(super) struct Replay(Arc<Mutex<Source>>);

/// The body of one attempt.
pub(super) struct RequestBody {
    source: Arc<Mutex<Source>>,
    attempt: u32,
    /// What an earlier attempt read already.
    again: VecDeque<Bytes>,
}

struct Source {
    body: tonic::body::Body,
    /// The attempt that may read; earlier ones read no more.
    attempt: u32,
    kept: Kept,
    /// Whether the present attempt was asked for anything.
    asked: bool,
    /// Whether anything was read from the body itself.
    read: bool,
    error: Option<Status>,
}

enum Kept {
    /// Everything read so far, and how much more may be kept.
    All { frames: Vec<Bytes>, room: usize },
    /// Not everything: it cannot be sent again.
    Not,
}

impl Replay {
    /// Keeps at most `limit` bytes.
    pub(super) fn new(body: tonic::body::Body, limit: usize) -> Self {
        let kept = Kept::All { frames: Vec::new(), room: limit };
        Self(Arc::new(Mutex::new(Source { body, attempt: 0, kept, asked: false, read: false, error: None })))
    }

    /// The body for the next attempt; the one before reads no more. `None`: too much of it is gone.
    pub(super) fn attempt(&self) -> Option<RequestBody> {
        let mut source = lock(&self.0);
        let Kept::All { frames, .. } = &source.kept else { return None };
        let again = frames.iter().cloned().collect();
        source.attempt += 1;
        source.asked = false;
        Some(RequestBody { source: Arc::clone(&self.0), attempt: source.attempt, again })
    }

    /// Whether the present attempt has a body of which nothing was asked for yet.
    pub(super) fn untouched(&self) -> bool {
        lock(&self.0).untouched()
    }

    /// The present attempt is given up: it reads no more. Whether it had [read nothing yet](Self::untouched).
    pub(super) fn abandon(&self) -> bool {
        let mut source = lock(&self.0);
        source.attempt += 1;
        source.untouched()
    }

    /// An answer has begun: nothing is sent again.
    pub(super) fn commit(&self) {
        lock(&self.0).kept = Kept::Not;
    }

    /// What the caller's own stream failed with.
    pub(super) fn take_error(&self) -> Option<Status> {
        lock(&self.0).error.take()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut source = lock(&this.source);
        if source.attempt != this.attempt {
            return Poll::Ready(Some(Err(Status::cancelled("the request went to another instance"))));
        }
        source.asked = true;
        if let Some(data) = this.again.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        source.read = true;
        let frame = ready!(Pin::new(&mut source.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => source.keep(frame),
            Some(Err(status)) => source.error = Some(status.clone()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && lock(&self.source).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let source = lock(&self.source);
        if source.read { SizeHint::default() } else { source.body.size_hint() }
    }
}

impl Source {
    fn untouched(&self) -> bool {
        let empty = !self.read && self.body.is_end_stream();
        !self.asked && !empty
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Kept::All { frames, room } = &mut self.kept else { return };
        match frame.data_ref() {
            Some(data) if data.len() <= *room => {
                *room -= data.len();
                frames.push(data.clone());
            }
            _ => self.kept = Kept::Not,
        }
    }
}

fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn body(chunks: &[&'static str]) -> tonic::body::Body {
        let frames: Vec<_> =
            chunks.iter().map(|c| Ok::<_, Status>(Frame::data(Bytes::from_static(c.as_bytes())))).collect();
        tonic::body::Body::new(StreamBody::new(tokio_stream::iter(frames)))
    }

    async fn next(body: &mut RequestBody) -> Option<Result<Bytes, Status>> {
        body.frame().await.map(|frame| frame.map(|f| f.into_data().expect("data")))
    }

    #[tokio::test]
    async fn a_second_attempt_reads_what_the_first_read_and_then_goes_on() {
        let replay = Replay::new(body(&["a", "b", "c"]), 10);
        assert!(replay.untouched());
        let mut first = replay.attempt().expect("fresh");
        assert_eq!(next(&mut first).await.expect("some").expect("data"), "a");
        assert_eq!(next(&mut first).await.expect("some").expect("data"), "b");
        assert!(!replay.untouched());
        let mut second = replay.attempt().expect("all kept");
        assert!(replay.untouched());
        assert!(next(&mut first).await.expect("some").is_err(), "the first attempt reads no more");
        let all = (&mut second).collect().await.expect("readable").to_bytes();
        assert_eq!(all, "abc");
        let third = replay.attempt().expect("all kept");
        assert_eq!(third.collect().await.expect("readable").to_bytes(), "abc");
    }

    #[tokio::test]
    async fn beyond_its_bound_a_body_is_not_sent_again() {
        let replay = Replay::new(body(&["abc", "def"]), 4);
        let mut first = replay.attempt().expect("fresh");
        next(&mut first).await;
        assert!(replay.attempt().is_some());
        let mut second = replay.attempt().expect("kept");
        next(&mut second).await;
        next(&mut second).await;
        assert!(replay.attempt().is_none());
    }

    #[tokio::test]
    async fn an_abandoned_attempt_reads_nothing_more() {
        let replay = Replay::new(body(&["abc"]), 4);
        let mut first = replay.attempt().expect("fresh");
        assert!(replay.abandon(), "nothing was read");
        assert!(next(&mut first).await.expect("some").is_err());
        let mut second = replay.attempt().expect("all kept");
        assert_eq!(next(&mut second).await.expect("some").expect("data"), "abc");
        assert!(!replay.abandon());
    }

    #[tokio::test]
    async fn an_answer_ends_the_keeping() {
        let replay = Replay::new(body(&["abc"]), 4);
        let mut first = replay.attempt().expect("fresh");
        next(&mut first).await;
        replay.commit();
        assert!(replay.attempt().is_none());
    }
}
