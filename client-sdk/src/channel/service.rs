//! One call: search for a connection, send, and as long as the request has not left, search on.
//!
//! ```text
//!   search ---> send ---- handed back, refused, beyond GOAWAY ---> search among the others
//!                 | answer begins            | anything else
//!                 v                          v
//!              response                    error: it may have been processed
//! ```
//!
//! Keeps *at most once*: a request that may have been processed is never sent again. How an instance is chosen and
//! waited for is the business of [`crate::members`].

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, Uri, request, uri::PathAndQuery};
use tonic::Status;

use super::{
    BalancedChannel, Inner,
    connection::{Connection, InFlight, Origin, Seat, Seating},
    error::{ChannelError, Fate, fate},
    request_body::{Replay, RequestBody},
    response_body::ResponseBody,
};
use crate::{
    balance::{Outcome, PickContext},
    members::{Deadline, Member, Ongoing, RouteError, Search, within},
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
    body: Replay,
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
        let deadline =
            grpc_timeout(&head.headers).map(|timeout| Deadline { timeout, at: now.saturating_add(timeout) });
        let random = || shared.runtime.random();
        let key =
            inner.settings.hash_keys.key(&head.extensions, &head.headers, shared.endpoint.hash_key, random);
        // They are for whoever stands before the channel; copies of them for each attempt would go nowhere.
        head.extensions = http::Extensions::new();
        let context = PickContext { hash_key: key, ..PickContext::new() }.now(now);
        let body = Replay::new(body, inner.settings.replay_limit);
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
        let address = connection.address();
        // Counted first: a connection with something in flight is not gone.
        let mut call = connection.begin(call);
        let Some(seat) = self.seat(connection, &mut call).await? else {
            self.search.not_taken(connection, 0, None);
            call.not_taken();
            return Ok(Attempt::NotTaken);
        };
        let Seat { mut sender, origin, nth } = seat;
        let Some(body) = self.body.attempt() else {
            let limit = self.inner.settings.replay_limit;
            let source =
                self.search.last().cloned().unwrap_or_else(|| Arc::new(Status::unavailable("not taken")));
            call.not_taken();
            return Err(ChannelError::NotReplayable { address: address.clone(), limit, source });
        };
        let sent = sender.try_send_request(self.request(origin, body));
        drop(sender);
        let Ok(sent) = within(self.remaining(), sent).await else {
            let error = self.too_late(&format!("the answer of {address}"));
            if error.never_left() {
                call.not_taken();
            } else {
                call.finish(Outcome::Failure);
            }
            return Err(error);
        };
        let mut error = match sent {
            Ok(response) => {
                self.body.commit();
                let left = self.search.deadline();
                let left = left.map(|deadline| (deadline.timeout, self.search.left(deadline.at)));
                let (head, body) = response.into_parts();
                let body = ResponseBody::new(&head.headers, body, call, left);
                return Ok(Attempt::Answered(Response::from_parts(head, body)));
            }
            Err(error) => error,
        };
        if let Some(status) = self.body.take_error() {
            return Err(ChannelError::Request(status));
        }
        let handed_back = error.take_message().is_some();
        // A body that was not even asked for its first byte: the connection ended before it sent the request.
        let never_sent = handed_back || self.body.untouched();
        let error = error.into_error();
        tracing::debug!(%address, %error, handed_back, "not answered");
        let error = if never_sent {
            error
        } else {
            match fate(address, error) {
                Fate::Refused(error) => {
                    self.search.refused(connection, Arc::new(error));
                    call.not_taken();
                    return Ok(Attempt::NotTaken);
                }
                Fate::GoneAway(error) => {
                    connection.retire(nth);
                    error
                }
                Fate::Unknown(error) => {
                    call.failed(&error);
                    return Err(error);
                }
            }
        };
        self.search.not_taken(connection, nth, Some(Arc::new(error)));
        call.not_taken();
        Ok(Attempt::NotTaken)
    }

    /// A place on one of the instance's connections that the request was not given to yet.
    async fn seat(
        &mut self,
        connection: &Arc<Connection>,
        call: &mut InFlight,
    ) -> Result<Option<Seat>, ChannelError> {
        let (tried, remaining) = (self.search.tried(), self.remaining());
        let tried = |nth| tried.has(connection, nth);
        match call.seat(tried) {
            Seating::Seated(seat) => Ok(Some(seat)),
            Seating::None => Ok(None),
            Seating::Full => {
                let seat = within(remaining, call.wait_for_seat(tried)).await;
                let seat = seat
                    .map_err(|_| self.too_late(&format!("another connection to {}", connection.address())))?;
                if seat.is_none() {
                    // What turned it away is about to be published.
                    tokio::task::yield_now().await;
                }
                Ok(seat)
            }
        }
    }

    /// How long it is until the deadline, if there is one.
    fn remaining(&self) -> Option<Duration> {
        self.search.deadline().map(|deadline| self.search.left(deadline.at))
    }

    /// The time is up. A call whose connection had no room for it until now was not sent, and will not be.
    fn too_late(&self, waiting_for: &str) -> ChannelError {
        let timeout = self.search.deadline().map_or(Duration::ZERO, |deadline| deadline.timeout);
        let reason = format!("waiting for {waiting_for}");
        if self.body.abandon() {
            RouteError::DeadlineExceeded { timeout, reason }.into()
        } else {
            ChannelError::DeadlineExceeded { timeout, reason }
        }
    }

    fn request(&self, origin: Origin, body: RequestBody) -> Request<RequestBody> {
        let mut head = self.head.clone();
        // An authority that the caller set (`with_origin`) is kept.
        if head.uri.authority().is_none() {
            let mut parts = std::mem::take(&mut head.uri).into_parts();
            parts.scheme = Some(origin.scheme);
            parts.authority = Some(origin.authority);
            parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
            head.uri = Uri::from_parts(parts).expect("scheme, authority and path are all there");
        }
        head.version = http::Version::HTTP_2;
        Request::from_parts(head, body)
    }
}

/// The timeout of a call, as the gRPC protocol writes it: at most eight digits and a unit. What is written otherwise is
/// left to the server to refuse.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_grpc_protocol_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header's value"));
            grpc_timeout(&headers)
        };
        for (text, millis) in
            [("2H", 7_200_000), ("3M", 180_000), ("4S", 4000), ("5m", 5), ("99999999m", 99_999_999)]
        {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("8n"), Some(Duration::from_nanos(8)));
        for text in ["", "S", "5", "5s", "-5S", "123456789S", "5 S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
