//! One call: search for a connection, send, and as long as the request has not left, search on.
//!
//! ```text
//!   search ---> send ---- never written, refused, beyond GOAWAY ---> search among the others
//!                 | answer begins            | anything else
//!                 v                          v
//!              response                    error: it may have been processed
//! ```
//!
//! Keeps *at most once*: a request that may have been processed is never sent again. How an instance is chosen and
//! waited for is the business of [`crate::members`].

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, request};
use http_body::Body;
use tonic::Status;

use super::{
    BalancedChannel, Inner,
    connection::{Connection, InFlight, Seating},
    error::{ChannelError, Fate, fate},
    pump::{Pump, Pumping},
    request_body::RequestBody,
    request_head,
    response_body::ResponseBody,
};
use crate::{
    balance::{Outcome, PickContext},
    members::{Deadline, Member, Ongoing, RouteError, Search, SharedError, within},
    runtime::BoxFuture,
};

impl tower::Service<Request<tonic::body::Body>> for BalancedChannel {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Status>>;

    /// Always ready: waiting for an instance happens in the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let call = Call::new(Arc::clone(&self.inner), request);
        Box::pin(async move { call.run().await.map_err(Status::from) })
    }
}

struct Call {
    /// Keeps the driver and its connections alive while the call is made.
    inner: Arc<Inner>,
    head: request::Parts,
    /// `None`: with the present attempt.
    body: Option<RequestBody>,
    search: Search<Connection>,
}

#[allow(clippy::large_enum_variant)] // moved once; a box would cost every call an allocation
enum Attempt {
    Answered(Response<ResponseBody>),
    NotTaken,
}

impl Call {
    fn new(inner: Arc<Inner>, request: Request<tonic::body::Body>) -> Self {
        let (mut head, body) = request.into_parts();
        let shared = &inner.shared;
        let now = shared.runtime.now();
        let deadline = request_head::grpc_timeout(&head.headers)
            .map(|timeout| Deadline { timeout, at: now.saturating_add(timeout) });
        let random = || shared.runtime.random();
        let key =
            inner.settings.hash_keys.key(&head.extensions, &head.headers, shared.endpoint.hash_key, random);
        request_head::prepare(&mut head, &body.size_hint());
        let context = PickContext { hash_key: key, ..PickContext::new() }.now(now);
        let body = Some(RequestBody::new(body, inner.settings.replay_limit));
        let search = Search::new(Arc::clone(shared), context, deadline);
        Self { inner, head, body, search }
    }

    async fn run(mut self) -> Result<Response<ResponseBody>, ChannelError> {
        loop {
            let (call, connection) = self.search.next().await?;
            if let Attempt::Answered(response) = self.attempt(call, &connection).await? {
                return Ok(response);
            }
        }
    }

    /// Gives the request to one connection.
    async fn attempt(
        &mut self,
        call: Ongoing,
        connection: &Arc<Connection>,
    ) -> Result<Attempt, ChannelError> {
        // Counted first: a connection with something in flight is not gone.
        let mut call = connection.begin(call);
        if !self.seat(connection, &mut call).await? {
            return Ok(self.not_taken(connection, call, 0, None));
        }
        let Some(mut body) = self.body.take().filter(RequestBody::is_whole) else {
            return Err(self.not_replayable(call));
        };
        body.rewind();
        // Before anything is sent, so that what is there of it goes out together with the head.
        poll_fn(|cx| {
            body.read_ahead(cx);
            Poll::Ready(())
        })
        .await;
        if let Some(status) = body.error() {
            return Err(ChannelError::Request(status.clone()));
        }
        let (nth, before) = (call.lane().nth, call.lane().writes());
        let head = request_head::towards(&call.lane().origin, &self.head);
        let (response, stream) = match call.send(head, body.is_nothing()) {
            Ok(sent) => sent,
            Err(error) => {
                self.body = Some(body);
                return Ok(self.not_taken(connection, call, nth, Some(Arc::new(error))));
            }
        };
        let mut pumping = None;
        if body.is_nothing() {
            self.body = Some(body);
        } else {
            let mut pump = Pump::new(body, stream);
            if poll_fn(|cx| Poll::Ready(pump.poll(cx))).await.is_ready() {
                self.body = Some(pump.into_body());
            } else {
                pumping = Some(pump.go_on(&self.inner.shared.runtime));
            }
        }
        let Ok(response) = within(self.remaining(), response).await else {
            let (timeout, address) = (self.timeout(), connection.address());
            call.finish(Outcome::Failure);
            let reason = format!("waiting for the answer of {address}");
            return Err(ChannelError::DeadlineExceeded { timeout, reason });
        };
        let error = match response {
            Ok(response) => {
                let left = self.search.deadline();
                let left = left.map(|deadline| (deadline.timeout, self.search.left(deadline.at)));
                let (head, stream) = response.into_parts();
                let pump = pumping.map(Pumping::commit);
                let body = ResponseBody::new(&head.headers, stream, pump, call, left);
                return Ok(Attempt::Answered(Response::from_parts(head, body)));
            }
            Err(error) => error,
        };
        if let Some(pumping) = pumping {
            // It hears of the end of its stream as we do.
            self.body = pumping.back().await;
        }
        if let Some(status) = self.body.as_ref().and_then(RequestBody::error) {
            return Err(ChannelError::Request(status.clone()));
        }
        // Nothing at all was written since: it was still with us when its connection ended.
        let never_sent = call.lane().writes() == before;
        tracing::debug!(address = %connection.address(), %error, never_sent, "not answered");
        match fate(&call, error, never_sent) {
            Fate::Refused(error) => {
                self.search.refused(connection, Arc::new(error));
                call.not_taken();
                Ok(Attempt::NotTaken)
            }
            Fate::NeverLeft(error) => Ok(self.not_taken(connection, call, nth, Some(Arc::new(error)))),
            Fate::GoneAway(error) => {
                call.lane().retire();
                Ok(self.not_taken(connection, call, nth, Some(Arc::new(error))))
            }
            Fate::Unknown(error) => {
                call.finish(Outcome::Failure);
                Err(error)
            }
        }
    }

    /// A place on one of the instance's connections that the request was not given to yet. Whether there is one.
    async fn seat(
        &mut self,
        connection: &Arc<Connection>,
        call: &mut InFlight,
    ) -> Result<bool, ChannelError> {
        let (tried, remaining) = (self.search.tried(), self.remaining());
        let tried = |nth| tried.has(connection, nth);
        let seated = match call.seat(tried) {
            Seating::Seated => return Ok(true),
            Seating::None => false,
            Seating::Full => within(remaining, call.wait_for_seat(tried)).await.map_err(|_| {
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

    /// The nth connection to the instance did not take the request.
    fn not_taken(
        &mut self,
        connection: &Arc<Connection>,
        call: InFlight,
        nth: u64,
        error: Option<SharedError>,
    ) -> Attempt {
        self.search.not_taken(connection, nth, error);
        call.not_taken();
        Attempt::NotTaken
    }

    fn not_replayable(&self, call: InFlight) -> ChannelError {
        let (address, limit) = (call.address().clone(), self.inner.settings.replay_limit);
        call.not_taken();
        let source =
            self.search.last().cloned().unwrap_or_else(|| Arc::new(Status::unavailable("not taken")));
        ChannelError::NotReplayable { address, limit, source }
    }

    /// The whole time that the caller gave the call.
    fn timeout(&self) -> Duration {
        self.search.deadline().map_or(Duration::ZERO, |deadline| deadline.timeout)
    }

    /// How long it is until the deadline, if there is one.
    fn remaining(&self) -> Option<Duration> {
        self.search.deadline().map(|deadline| self.search.left(deadline.at))
    }
}
