//! One attempt of a call: a place on a connection, the request sent, and what came back.
//!
//! ```text
//!   seat ---> send ---- never written, refused, beyond GOAWAY ---> never left: it goes elsewhere
//!               | answer begins            | anything else
//!               v                          v
//!            response                    error: it may have been processed
//! ```
//!
//! Owns what is told of both: an answer that is a bare status, and an error after the request had left, are failures that
//! [`crate::retry`] may make another attempt for. Nothing else is ever sent twice.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use h2::RecvStream;
use http::{HeaderMap, Response, request};
use tonic::{Code, Status};

use super::{
    Inner,
    connection::{Connection, InFlight, Seating},
    error::{ChannelError, Fate, fate},
    pump::{Pump, Pumped, Pumping},
    request_body::RequestBody,
    request_head,
    response_body::ResponseBody,
};
use crate::{
    balance::Outcome,
    members::{Deadline, Member, Offered, RouteError, SharedError, within},
    retry::{Attempted, Failure, Given, NotTaken, Pushback, Sender},
    runtime::Task,
};

/// A call, as its attempts see it.
pub(super) struct Call<'a> {
    pub(super) inner: &'a Inner,
    pub(super) head: request::Parts,
    body: Mutex<Body>,
    pub(super) deadline: Option<Deadline>,
    /// How many attempts there are right now.
    attempts: AtomicU32,
}

/// Where a call's body is.
enum Body {
    /// Nobody sends of it.
    Here(RequestBody),
    /// An attempt is sending it.
    Pumped(Pumped),
    /// It was answered, or lost with an attempt.
    Gone,
}

/// An attempt, as long as it goes on.
struct Running<'a>(&'a AtomicU32);

type Answer = Result<Response<ResponseBody>, ChannelError>;

impl Sender<Connection> for Call<'_> {
    type Answer = Answer;

    async fn attempt(&self, given: Given<Connection>) -> Attempted<Answer> {
        let Given { call, member: connection, offered, earlier, last } = given;
        let running = Running::begin(&self.attempts);
        // Counted first: a connection with something in flight is not gone.
        let mut call = connection.begin(call);
        match self.seat(&connection, &mut call, &offered).await {
            Ok(true) => {}
            Ok(false) => return not_taken(call, 0, None),
            Err(error) => return Attempted::Ended(Err(error.into()), None),
        }
        let Some(mut body) = self.take().filter(RequestBody::is_whole) else {
            if !running.is_alone() {
                // It waited for its place until the other one had the body.
                call.not_taken();
                return Attempted::NotTaken(NotTaken::Unready);
            }
            return Attempted::Ended(Err(self.not_replayable(call, last)), None);
        };
        body.rewind();
        // Before anything is sent, so that what is there of it goes out together with the head.
        poll_fn(|cx| {
            body.read_ahead(cx);
            Poll::Ready(())
        })
        .await;
        if let Some(status) = body.error() {
            return Attempted::Ended(Err(ChannelError::Request(status.clone())), None);
        }
        let (nth, before) = (call.lane().nth, call.lane().writes());
        let mut head = request_head::towards(&call.lane().origin, &self.head);
        let left = self.deadline.map(|deadline| (deadline.timeout, self.left(deadline)));
        request_head::tell_attempt(head.headers_mut(), earlier, left);
        let (response, stream) = match call.send(head, body.is_nothing()) {
            Ok(sent) => sent,
            Err(error) => {
                self.keep(Some(body));
                return not_taken(call, nth, Some(Arc::new(error)));
            }
        };
        let mut pumping = None;
        if body.is_nothing() {
            self.keep(Some(body));
        } else {
            let mut pump = Pump::new(body, stream);
            if poll_fn(|cx| Poll::Ready(pump.poll(cx))).await.is_ready() {
                self.keep(Some(pump.into_body()));
            } else {
                let goes_on = pump.go_on(&self.inner.shared.runtime);
                *self.body() = Body::Pumped(goes_on.pumped());
                pumping = Some(goes_on);
            }
        }
        let Ok(response) = within(self.remaining(), response).await else {
            let (timeout, address) = (self.timeout(), connection.address());
            call.finish(Outcome::Failure);
            let reason = format!("waiting for the answer of {address}");
            return Attempted::Ended(Err(ChannelError::DeadlineExceeded { timeout, reason }), None);
        };
        let error = match response {
            Ok(response) => return self.answered(response, pumping, call),
            Err(error) => error,
        };
        if let Some(pumping) = pumping {
            // It hears of the end of its stream as we do.
            self.keep(pumping.back().await);
        }
        let own = match &*self.body() {
            Body::Here(body) => body.error().cloned(),
            Body::Pumped(_) | Body::Gone => None,
        };
        if let Some(status) = own {
            return Attempted::Ended(Err(ChannelError::Request(status)), None);
        }
        // Nothing at all was written since: it was still with us when its connection ended.
        let never_sent = call.lane().writes() == before;
        tracing::debug!(address = %connection.address(), %error, never_sent, "not answered");
        match fate(&call, error, never_sent) {
            Fate::Refused(error) => {
                call.not_taken();
                Attempted::NotTaken(NotTaken::Member(Arc::new(error)))
            }
            Fate::NeverLeft(error) => not_taken(call, nth, Some(Arc::new(error))),
            Fate::GoneAway(error) => {
                call.lane().retire();
                not_taken(call, nth, Some(Arc::new(error)))
            }
            Fate::Unknown(error) => {
                call.failed(&error);
                let failure = match &error {
                    ChannelError::Reset { code, .. } => Failure::Lost(*code),
                    _ => Failure::Lost(Code::Unavailable),
                };
                Attempted::Ended(Err(error), Some(failure))
            }
        }
    }

    fn is_repeatable(&self) -> bool {
        match &*self.body() {
            Body::Here(body) => body.is_whole(),
            Body::Pumped(pumped) => pumped.is_whole(),
            Body::Gone => false,
        }
    }

    /// All of it is with HTTP/2 already.
    fn is_repeatable_beside(&self) -> bool {
        matches!(&*self.body(), Body::Here(body) if body.is_whole())
    }

    fn take_back(&self) -> bool {
        let mut place = self.body();
        if let Body::Pumped(pumped) = &*place
            && let Some(body) = pumped.take_whole()
        {
            *place = Body::Here(body);
        }
        matches!(&*place, Body::Here(body) if body.is_whole())
    }

    fn too_slow(&self, member: &Connection, timeout: Duration) -> Answer {
        Err(ChannelError::TooSlow { address: member.address().clone(), timeout })
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(
        inner: &'a Inner,
        head: request::Parts,
        body: RequestBody,
        deadline: Option<Deadline>,
    ) -> Self {
        Self { inner, head, body: Mutex::new(Body::Here(body)), deadline, attempts: AtomicU32::new(0) }
    }

    /// A place on one of the instance's connections that the request was not given to yet. Whether there is one.
    async fn seat(
        &self,
        connection: &Arc<Connection>,
        call: &mut InFlight,
        offered: &Offered,
    ) -> Result<bool, RouteError> {
        let tried = |nth| offered.has(nth);
        let seated = match call.seat(tried) {
            Seating::Seated => return Ok(true),
            Seating::None => false,
            Seating::Full => within(self.remaining(), call.wait_for_seat(tried)).await.map_err(|_| {
                let reason = format!("waiting for room on a connection to {}", connection.address());
                RouteError::DeadlineExceeded { timeout: self.timeout(), reason }
            })?,
        };
        if !seated {
            // What turned it away is about to be published.
            tokio::task::yield_now().await;
        }
        Ok(seated)
    }

    /// An answer has begun. If it is a bare failure it has ended too, and the body is kept.
    fn answered(
        &self,
        response: Response<RecvStream>,
        pumping: Option<Pumping>,
        call: InFlight,
    ) -> Attempted<Answer> {
        let left = self.deadline.map(|deadline| (deadline.timeout, self.left(deadline)));
        let (head, stream) = response.into_parts();
        let failure = if stream.is_end_stream() { bare_status(&head.headers) } else { None };
        let (stopping, pump) = match pumping {
            Some(pumping) if failure.is_some() => (Some(pumping), None),
            Some(pumping) => (None, Some(self.commit(pumping))),
            None => (None, None),
        };
        let body = ResponseBody::new(&head.headers, stream, pump, call, left);
        if let Some(pumping) = stopping {
            // Only now: a stream that was reset does not tell any more that its answer came to an end.
            self.keep(pumping.stop());
        }
        Attempted::Ended(Ok(Response::from_parts(head, body)), failure)
    }

    fn not_replayable(&self, call: InFlight, last: Option<SharedError>) -> ChannelError {
        let (address, limit) = (call.address().clone(), self.inner.settings.replay_limit);
        call.not_taken();
        let source = last.unwrap_or_else(|| Arc::new(Status::unavailable("not taken")));
        ChannelError::NotReplayable { address, limit, source }
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body, unless another attempt has it.
    fn take(&self) -> Option<RequestBody> {
        let mut place = self.body();
        match std::mem::replace(&mut *place, Body::Gone) {
            Body::Here(body) => Some(body),
            elsewhere => {
                *place = elsewhere;
                None
            }
        }
    }

    /// Keeps the body for another attempt.
    fn keep(&self, body: Option<RequestBody>) {
        *self.body() = body.map_or(Body::Gone, Body::Here);
    }

    /// An answer has begun: nothing is sent again.
    fn commit(&self, pumping: Pumping) -> Task {
        *self.body() = Body::Gone;
        pumping.commit()
    }

    /// The whole time that the caller gave the call.
    fn timeout(&self) -> Duration {
        self.deadline.map_or(Duration::ZERO, |deadline| deadline.timeout)
    }

    /// How long it is until the deadline, if there is one.
    fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| self.left(deadline))
    }

    fn left(&self, deadline: Deadline) -> Duration {
        deadline.at.saturating_sub(self.inner.shared.runtime.now())
    }
}

impl<'a> Running<'a> {
    fn begin(attempts: &'a AtomicU32) -> Self {
        attempts.fetch_add(1, Ordering::Relaxed);
        Self(attempts)
    }

    fn is_alone(&self) -> bool {
        self.0.load(Ordering::Relaxed) <= 1
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The nth connection to the instance did not take the request.
fn not_taken(call: InFlight, nth: u64, error: Option<SharedError>) -> Attempted<Answer> {
    call.not_taken();
    Attempted::NotTaken(NotTaken::Connection(nth, error))
}

/// What an answer says that is nothing but a status: in its headers, which end it.
fn bare_status(headers: &HeaderMap) -> Option<Failure> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    (code != Code::Ok).then(|| Failure::Answered { code, pushback: Pushback::of(headers) })
}
