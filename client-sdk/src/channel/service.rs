//! One call: choose, send, and as long as the request has not left, choose again.
//!
//! ```text
//!            no instance                  a change, or the time is up
//!   choose --------------> wait for one ------------------------------> choose | error
//!     | instance
//!     v      handed back, refused, beyond GOAWAY
//!   send ---------------------------------------> choose among the others
//!     | answer begins            | anything else
//!     v                          v
//!   response                   error: it may have been processed
//! ```
//!
//! Keeps C2 and *at most once*: each choice reads the newest routes, no connection is given the same request twice, and
//! a request that may have been processed is never sent again.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, Uri, request, uri::PathAndQuery};
use tonic::Status;

use super::{
    BalancedChannel, Inner,
    chooser::{Addresses, Chooser},
    connection::{Connection, InFlight, Origin, Seat, Seating},
    error::{ChannelError, Fate, SharedError, fate},
    request_body::{Replay, RequestBody},
    response_body::ResponseBody,
    routes::{Outlook, Tried},
    shared::Place,
};
use crate::{
    balance::{LoadBalanceError, Outcome, Pick, PickContext},
    runtime::BoxFuture,
};

/// A foreign load balancer's addresses may repeat and never end; so many times the number of instances are looked at.
const ROUNDS: usize = 4;

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
    deadline: Option<Deadline>,
    tried: Tried,
    /// What the last attempt failed with.
    last: Option<SharedError>,
    waited: Option<Waited>,
}

/// The caller's own.
#[derive(Clone, Copy)]
struct Deadline {
    timeout: Duration,
    at: Duration,
}

struct Waited {
    _place: Place,
    /// When to stop waiting for an instance.
    until: Duration,
}

/// How a round over the instances ended.
enum Round {
    Answered(Response<ResponseBody>),
    /// Nobody took it; with the version of the routes that were read last.
    Nobody(u64),
    /// The load balancer names nobody.
    Refused(u64, LoadBalanceError),
}

#[allow(clippy::large_enum_variant)] // moved once; a box would cost every call an allocation
enum Attempt {
    Answered(Response<ResponseBody>),
    NotTaken,
}

impl Call {
    fn new(inner: Arc<Inner>, request: Request<tonic::body::Body>) -> Self {
        let (head, body) = request.into_parts();
        let now = || inner.shared.runtime.now();
        let deadline = grpc_timeout(&head.headers)
            .map(|timeout| Deadline { timeout, at: now().saturating_add(timeout) });
        let body = Replay::new(body, inner.shared.settings.replay_limit);
        Self { inner, head, body, deadline, tried: Tried::default(), last: None, waited: None }
    }

    async fn run(mut self) -> Result<Response<ResponseBody>, ChannelError> {
        loop {
            let (version, refusal) = match self.round().await? {
                Round::Answered(response) => return Ok(response),
                Round::Nobody(version) => (version, None),
                Round::Refused(version, refusal) => (version, Some(refusal)),
            };
            self.wait(version, refusal).await?;
        }
    }

    /// Offers the request to each instance that it was not given to yet.
    async fn round(&mut self) -> Result<Round, ChannelError> {
        let shared = Arc::clone(&self.inner.shared);
        let (mut addresses, mut looks) = match &shared.chooser {
            Chooser::Policy(_) => (None, 0),
            Chooser::LoadBalance(balance) => {
                let version = shared.routes.load().version;
                let asked = balance.addresses(&shared.endpoint);
                match self.before_deadline(asked, false, || "the load balancer's answer".to_owned()).await? {
                    Ok(addresses) => (Some(addresses), ROUNDS * shared.routes.load().entries.len()),
                    Err(refusal) => return Ok(Round::Refused(version, refusal)),
                }
            }
        };
        loop {
            let (version, choice) = self.choose(addresses.as_mut(), &mut looks)?;
            let Some((pick, connection)) = choice else { return Ok(Round::Nobody(version)) };
            if let Attempt::Answered(response) = self.attempt(pick, &connection).await? {
                return Ok(Round::Answered(response));
            }
        }
    }

    /// The next instance by the newest routes, and their version.
    #[allow(clippy::type_complexity)] // a pair, named in the line above
    fn choose(
        &self,
        addresses: Option<&mut Addresses>,
        looks: &mut usize,
    ) -> Result<(u64, Option<(Pick, Arc<Connection>)>), ChannelError> {
        let shared = &self.inner.shared;
        let routes = shared.routes.load();
        let choice = match (&shared.chooser, addresses) {
            (Chooser::Policy(policy), _) => {
                let context = PickContext { hash_key: shared.endpoint.hash_key };
                routes.pick(&**policy, &context, &self.tried).map_err(|source| {
                    let endpoint = shared.endpoint.to_string();
                    ChannelError::Pick { endpoint, source }
                })?
            }
            (Chooser::LoadBalance(_), Some(addresses)) => loop {
                if *looks == 0 {
                    break None;
                }
                *looks -= 1;
                let Some(address) = addresses.next() else { break None };
                if let Some(choice) = routes.at(&address, &self.tried) {
                    break Some(choice);
                }
            },
            (Chooser::LoadBalance(_), None) => None,
        };
        Ok((routes.version, choice.map(|(pick, connection)| (pick, Arc::clone(connection)))))
    }

    /// Gives the request to one connection.
    async fn attempt(&mut self, pick: Pick, connection: &Arc<Connection>) -> Result<Attempt, ChannelError> {
        let address = connection.address();
        // Counted first: a connection with something in flight is not gone.
        let mut call = connection.begin(pick);
        let Some(seat) = self.seat(connection, &mut call).await? else {
            self.tried.add(connection, 0);
            return Ok(Attempt::NotTaken);
        };
        let Seat { mut sender, origin, nth } = seat;
        self.tried.add(connection, nth);
        let Some(body) = self.body.attempt() else {
            let limit = self.inner.shared.settings.replay_limit;
            let source = self.last.clone().unwrap_or_else(|| Arc::new(Status::unavailable("not taken")));
            return Err(ChannelError::NotReplayable { address: address.clone(), limit, source });
        };
        let sent = sender.try_send_request(self.request(origin, body));
        drop(sender);
        let sent = self.before_deadline(sent, true, || format!("the answer of {address}")).await;
        let sent = sent.map_err(|error| self.unless_queued(error))?;
        let mut error = match sent {
            Ok(response) => {
                self.body.commit();
                let left = self.deadline.map(|deadline| (deadline.timeout, self.left(deadline.at)));
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
        if never_sent {
            self.last = Some(Arc::new(error));
            return Ok(Attempt::NotTaken);
        }
        let error = match fate(address, error) {
            Fate::Refused(error) => {
                self.tried.add_all(connection);
                error
            }
            Fate::GoneAway(error) => {
                connection.retire(nth);
                error
            }
            Fate::Unknown(error) => {
                call.finish(Outcome::Failure);
                return Err(error);
            }
        };
        self.last = Some(Arc::new(error));
        Ok(Attempt::NotTaken)
    }

    /// A place on one of the instance's connections that the request was not given to yet.
    async fn seat(
        &self,
        connection: &Arc<Connection>,
        call: &mut InFlight,
    ) -> Result<Option<Seat>, ChannelError> {
        let tried = |nth| self.tried.has(connection, nth);
        match call.seat(tried) {
            Seating::Seated(seat) => Ok(Some(seat)),
            Seating::None => Ok(None),
            Seating::Full => {
                let waiting_for = || format!("another connection to {}", connection.address());
                self.before_deadline(call.wait_for_seat(tried), false, waiting_for).await
            }
        }
    }

    /// A call whose time was up before its connection had room for it has not been sent, and will not be.
    fn unless_queued(&self, error: ChannelError) -> ChannelError {
        match error {
            ChannelError::DeadlineExceeded { timeout, reason, .. } if self.body.abandon() => {
                ChannelError::DeadlineExceeded { timeout, sent: false, reason }
            }
            error => error,
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

    /// Waits until there are newer routes than those of `version`. Fails if there is nothing to wait for, or no longer.
    async fn wait(&mut self, version: u64, refusal: Option<LoadBalanceError>) -> Result<(), ChannelError> {
        let shared = Arc::clone(&self.inner.shared);
        let mut published = shared.published.subscribe();
        if *published.borrow_and_update() > version {
            return Ok(());
        }
        let outlook = shared.routes.load().outlook(&shared.endpoint, self.last.as_ref());
        let (hopeful, error) = match (outlook, refusal) {
            (Outlook::Hopeful(error), None) => (true, error),
            (Outlook::Bleak(error), None) => (false, error),
            (Outlook::Hopeful(_), Some(refusal)) => (true, self.refused(refusal)),
            (Outlook::Bleak(_), Some(refusal)) => (false, self.refused(refusal)),
        };
        if !hopeful && !shared.settings.wait_for_ready {
            return Err(error);
        }
        if self.waited.is_none() {
            let until = shared.runtime.now().saturating_add(shared.settings.longest_wait());
            // A caller's own deadline says how long it waits, if it chose to wait at all.
            let until = if shared.settings.wait_for_ready && shared.settings.max_wait.is_none() {
                self.deadline.map_or(until, |deadline| deadline.at)
            } else {
                until
            };
            self.waited = Some(Waited { _place: shared.queue()?, until });
        }
        let until = self.waited.as_ref().map_or(Duration::ZERO, |waited| waited.until);
        let changed = tokio::time::timeout(self.left(until), published.changed());
        match self.before_deadline(changed, false, || error.to_string()).await? {
            Ok(_) => Ok(()),
            Err(_) => match self.deadline {
                Some(deadline) if deadline.at <= until => {
                    Err(deadline_exceeded(deadline, false, error.to_string()))
                }
                _ => Err(error),
            },
        }
    }

    fn refused(&self, refusal: LoadBalanceError) -> ChannelError {
        let endpoint = self.inner.shared.endpoint.to_string();
        match refusal {
            LoadBalanceError::NoInstances { reason, .. } => ChannelError::NoInstances { endpoint, reason },
            LoadBalanceError::Discover { source, .. } => {
                ChannelError::Discovery { endpoint, source: Some(source) }
            }
            source @ LoadBalanceError::Other(_) => ChannelError::LoadBalance { endpoint, source },
        }
    }

    /// Bounds what the call waits for by its own deadline.
    async fn before_deadline<T>(
        &self,
        future: impl Future<Output = T> + Send,
        sent: bool,
        waiting_for: impl Fn() -> String + Send,
    ) -> Result<T, ChannelError> {
        let Some(deadline) = self.deadline else { return Ok(future.await) };
        tokio::time::timeout(self.left(deadline.at), future)
            .await
            .map_err(|_| deadline_exceeded(deadline, sent, format!("waiting for {}", waiting_for())))
    }

    fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.inner.shared.runtime.now())
    }
}

fn deadline_exceeded(deadline: Deadline, sent: bool, reason: String) -> ChannelError {
    ChannelError::DeadlineExceeded { timeout: deadline.timeout, sent, reason }
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
