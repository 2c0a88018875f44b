//! A request's body that can be sent again.
//!
//! What an attempt sends is kept, up to a bound, until an answer begins: if the attempt turns out never to have left, the
//! next one sends the same bytes and then goes on where the first stopped. A body has one owner at a time: the call, or the
//! [pump](super::pump) of its present attempt. Owns no decision whether to try again.
//!
//! It reads one frame ahead, so that the last one is known to be the last: then the end of a request costs no frame.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use tonic::Status;

/// A request's body, whoever gets it.
pub(super) struct RequestBody {
    body: tonic::body::Body,
    /// What was read: what is kept of what was sent, and what is to be sent.
    read: VecDeque<Bytes>,
    /// How many of them the present attempt has sent.
    sent: usize,
    /// How many of them any attempt has sent.
    kept: usize,
    /// How many bytes more may be kept. `None`: something was not kept.
    room: Option<usize>,
    /// Once it is known.
    end: Option<End>,
}

/// What a body ended with.
enum End {
    Nothing,
    Trailers(HeaderMap),
    Failed(Status),
}

/// What an attempt sends next.
#[derive(Debug)]
pub(super) enum Piece {
    Data {
        data: Bytes,
        /// Whether nothing comes after it.
        last: bool,
    },
    Trailers(HeaderMap),
    /// Nothing, after all.
    End,
    /// It has [failed](RequestBody::error).
    Failed,
}

impl RequestBody {
    /// Keeps at most `limit` bytes.
    pub(super) fn new(body: tonic::body::Body, limit: usize) -> Self {
        Self { body, read: VecDeque::new(), sent: 0, kept: 0, room: Some(limit), end: None }
    }

    /// Whether all of it can be sent (again): else too much of it is gone.
    pub(super) fn is_whole(&self) -> bool {
        self.room.is_some()
    }

    /// Begins at its front, for another attempt.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// An answer has begun: nothing is sent again.
    pub(super) fn commit(&mut self) {
        if self.room.take().is_some() {
            self.read.drain(..self.sent);
            (self.sent, self.kept) = (0, 0);
        }
    }

    /// What the caller's own stream failed with.
    pub(super) fn error(&self) -> Option<&Status> {
        match &self.end {
            Some(End::Failed(status)) => Some(status),
            _ => None,
        }
    }

    /// Whether it is known to be nothing at all.
    pub(super) fn is_nothing(&self) -> bool {
        self.read.is_empty() && self.room.is_some() && matches!(self.end, Some(End::Nothing))
    }

    /// Reads what can be read by now, until it knows what to send next and whether that is the last.
    pub(super) fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while self.end.is_none() && self.read.len() < self.sent + 2 {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.end = Some(End::Nothing),
                Poll::Ready(Some(Err(status))) => self.end = Some(End::Failed(status)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.read.push_back(data),
                    // What is neither is not for us.
                    Err(frame) => self.end = frame.into_trailers().ok().map(End::Trailers),
                },
            }
        }
    }

    /// What the present attempt sends next.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        self.read_ahead(cx);
        if let Some(data) = self.take() {
            let last = self.sent == self.read.len() && matches!(self.end, Some(End::Nothing));
            return Poll::Ready(Piece::Data { data, last });
        }
        match &self.end {
            None => Poll::Pending,
            Some(End::Nothing) => Poll::Ready(Piece::End),
            Some(End::Trailers(trailers)) => Poll::Ready(Piece::Trailers(trailers.clone())),
            Some(End::Failed(_)) => Poll::Ready(Piece::Failed),
        }
    }

    /// The next data of those that were read, kept if it may be.
    fn take(&mut self) -> Option<Bytes> {
        let data = self.read.get(self.sent)?;
        if self.sent >= self.kept {
            let Some(room) = self.room.and_then(|room| room.checked_sub(data.len())) else {
                self.commit();
                return self.read.pop_front();
            };
            (self.room, self.kept) = (Some(room), self.sent + 1);
        }
        self.sent += 1;
        Some(data.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio_stream::StreamExt;

    use super::*;

    fn frames(chunks: &[&'static str]) -> Vec<Result<Frame<Bytes>, Status>> {
        chunks.iter().map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes())))).collect()
    }

    fn body(frames: Vec<Result<Frame<Bytes>, Status>>, limit: usize) -> RequestBody {
        RequestBody::new(tonic::body::Body::new(StreamBody::new(tokio_stream::iter(frames))), limit)
    }

    /// The next piece: its data, with a full stop if nothing comes after it.
    fn next(body: &mut RequestBody) -> String {
        match body.poll_piece(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => "...".to_owned(),
            Poll::Ready(Piece::Data { data, last }) => {
                String::from_utf8(data.to_vec()).expect("text") + if last { "." } else { "" }
            }
            Poll::Ready(Piece::End) => ".".to_owned(),
            Poll::Ready(Piece::Trailers(trailers)) => format!("{} trailers.", trailers.len()),
            Poll::Ready(Piece::Failed) => "failed".to_owned(),
        }
    }

    fn all(body: &mut RequestBody) -> String {
        let mut all = String::new();
        while !all.ends_with('.') {
            all += &next(body);
        }
        all
    }

    #[test]
    fn a_second_attempt_sends_what_the_first_sent_and_then_goes_on() {
        let mut body = body(frames(&["a", "b", "c"]), 10);
        assert_eq!((next(&mut body), next(&mut body)), ("a".to_owned(), "b".to_owned()));
        for _ in 0..3 {
            body.rewind();
            assert_eq!(all(&mut body), "abc.");
        }
    }

    #[test]
    fn the_last_piece_is_known_to_be_the_last() {
        assert_eq!(all(&mut body(frames(&["abc"]), 10)), "abc.");
        assert_eq!(all(&mut body(frames(&["abc", "", "d"]), 10)), "abcd.");
        let mut nothing = body(Vec::new(), 10);
        nothing.read_ahead(&mut Context::from_waker(Waker::noop()));
        assert!(nothing.is_nothing());
        assert_eq!(next(&mut nothing), ".");
    }

    #[test]
    fn what_is_there_is_not_held_back_for_what_is_to_come() {
        let coming = tokio_stream::iter(frames(&["a"])).chain(tokio_stream::pending());
        let mut body = RequestBody::new(tonic::body::Body::new(StreamBody::new(coming)), 10);
        assert_eq!((next(&mut body), next(&mut body)), ("a".to_owned(), "...".to_owned()));
        assert!(!body.is_nothing());
        body.rewind();
        assert_eq!((next(&mut body), next(&mut body)), ("a".to_owned(), "...".to_owned()));
    }

    #[test]
    fn beyond_its_bound_a_body_is_not_sent_again() {
        let mut body = body(frames(&["abc", "def", "g"]), 4);
        assert_eq!(next(&mut body), "abc");
        assert!(body.is_whole(), "what was only read ahead is not lost");
        body.rewind();
        assert_eq!((next(&mut body), next(&mut body)), ("abc".to_owned(), "def".to_owned()));
        assert!(!body.is_whole());
        assert_eq!(all(&mut body), "g.", "the present attempt goes on");
    }

    #[test]
    fn each_byte_counts_once_however_often_it_is_sent() {
        let mut body = body(frames(&["abc", "d"]), 4);
        for _ in 0..9 {
            assert_eq!(all(&mut body), "abcd.");
            assert!(body.is_whole());
            body.rewind();
        }
    }

    #[test]
    fn an_answer_ends_the_keeping() {
        let mut body = body(frames(&["a", "b", "c"]), 10);
        assert_eq!(next(&mut body), "a");
        body.commit();
        assert_eq!(all(&mut body), "bc.");
        assert!(!body.is_whole() && !body.is_nothing());
    }

    #[test]
    fn trailers_and_failures_come_after_the_data_each_time() {
        let mut ends = frames(&["a"]);
        ends.push(Ok(Frame::trailers(HeaderMap::new())));
        let mut ends = body(ends, 10);
        for _ in 0..2 {
            assert_eq!((next(&mut ends), next(&mut ends)), ("a".to_owned(), "0 trailers.".to_owned()));
            ends.rewind();
        }
        let mut fails = frames(&["a"]);
        fails.push(Err(Status::data_loss("lost it")));
        let mut fails = body(fails, 10);
        assert!(fails.error().is_none());
        assert_eq!((next(&mut fails), next(&mut fails)), ("a".to_owned(), "failed".to_owned()));
        assert_eq!(fails.error().expect("failed").message(), "lost it");
    }
}
