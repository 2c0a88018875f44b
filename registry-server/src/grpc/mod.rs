//! The wire: decode, validate, call the registry, encode. The only home of `Status`.
//!
//! Keeps the bounds of the protocol: a bad request gets an error that names the field and the limit, and changes
//! nothing. What is not there yet answers `UNIMPLEMENTED` by name.

mod calls;
mod decode;
mod explained;
mod feeder;
mod fields;
mod head;
mod lists;
mod seats;
mod status;
mod streams;
mod unary;
mod until;

use std::{pin::Pin, sync::Arc, time::Duration};

use prost::Message;
use registry_proto::{Frame, server::registry_server, v1};
use tokio::{sync::watch, time::timeout};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::{calls::Calls, streams::leave_margin};
pub use self::{
    decode::TtlBounds,
    status::{ERROR_DOMAIN, Invalid},
};
#[cfg(feature = "fuzzing")]
pub(crate) use self::{decode::fuzzing::any_request, streams::fuzzing as stream};
use self::{
    decode::{Awaited, Listed, Read},
    fields::Path,
    seats::{Seat, Seats},
    streams::{BEHIND_WAIT, SubscribeStream, WatchStream},
    until::{Until, leaving},
};
use crate::{
    applied::{Applied, Watchers},
    core::{LeaseId, Loss, Renewal, Revision, ServiceKey},
    hub::{PageToken, ReadPage, Start, wire_key},
    registry::{Registry, Renewer},
    runtime::Runtime,
};

/// `WaitApplied` calls at a time.
const MAX_WAITS: usize = 1_000;

/// What can be set about the wire.
#[derive(Clone, Copy, Debug)]
pub struct GrpcSettings {
    /// The TTLs that are taken. 1 s to 24 h.
    pub ttl: TtlBounds,
    /// `Watch` and `Subscribe` streams at a time. 100,000.
    pub max_streams: usize,
}

impl Default for GrpcSettings {
    fn default() -> Self {
        Self { ttl: TtlBounds::default(), max_streams: 100_000 }
    }
}

/// The service `registry.v1.Registry`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RegistryService {
    registry: Registry,
    settings: GrpcSettings,
    runtime: Runtime,
    stopping: watch::Receiver<Option<Duration>>,
    watchers: Watchers,
    /// Of `Watch` and `Subscribe`.
    streams: Arc<Seats>,
    /// Of `KeepAlive`.
    renewing: Arc<Seats>,
    /// Of `WaitApplied`.
    waits: Arc<Seats>,
}

impl RegistryService {
    /// The service over a registry. When `stopping` holds a time, streams are told to leave within it, and new ones are
    /// refused; everything else goes on.
    pub fn new(
        registry: Registry,
        settings: GrpcSettings,
        runtime: Runtime,
        stopping: watch::Receiver<Option<Duration>>,
    ) -> Self {
        let watchers = Watchers::new(registry.hub().clone(), runtime.clone());
        let (streams, renewing, waits) = (Arc::default(), Arc::default(), Arc::default());
        Self { registry, settings, runtime, stopping, watchers, streams, renewing, waits }
    }

    fn epoch(&self) -> String {
        self.registry.hub().epoch().to_owned()
    }

    /// Waits until there is no stream.
    pub async fn streams_ended(&self) {
        self.streams.all_free().await;
        self.renewing.all_free().await;
    }

    fn seat(&self) -> Result<Seat, Status> {
        self.refuse_when_stopping()?;
        let limit = self.settings.max_streams;
        Seat::take(&self.streams, limit).ok_or_else(|| status::too_many_streams(limit))
    }

    /// A stream that was opened now would be sent away at once.
    fn refuse_when_stopping(&self) -> Result<(), Status> {
        if self.stopping.borrow().is_none() {
            return Ok(());
        }
        let half_a_second = Duration::from_millis(500);
        Err(status::shutting_down(half_a_second + self.runtime.jitter(half_a_second)))
    }

    /// Waits until this server is at `revision`, but not for long.
    async fn reach(&self, revision: Revision, at_most: Duration) -> Result<(), Status> {
        let hub = self.registry.hub();
        if hub.head() >= revision {
            return Ok(());
        }
        let mut head = hub.follow_head();
        match timeout(at_most.min(BEHIND_WAIT), head.wait_for(|head| *head >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(status::replica_behind(revision, hub.head())),
        }
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl registry_server::Registry for RegistryService {
    type KeepAliveStream = Streamed<v1::KeepAliveResponse>;
    type WatchStream = Streamed<Frame>;
    type SubscribeStream = Streamed<Frame>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let request = request.into_inner();
        let command = decode::register(&request, self.settings.ttl)?;
        let crate::core::Command::Register { ttl, instances, .. } = &command else {
            return Err(Status::internal("a registration was decoded as something else"));
        };
        let ttl = Duration::from_millis(*ttl).try_into().ok();
        let named: Vec<_> = instances.iter().map(|(key, id, _)| (key.clone(), Arc::clone(id))).collect();
        let written = self.registry.write(command).await?;
        let instances = named
            .iter()
            .zip(written.incarnations)
            .map(|((key, id), create_revision)| v1::InstanceRef {
                key: Some(wire_key(key)),
                id: id.to_string(),
                create_revision,
            })
            .collect();
        Ok(Response::new(v1::RegisterResponse {
            epoch: self.epoch(),
            revision: written.revision,
            ttl,
            instances,
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        Ok(Response::new(Box::pin(self.renewals(request.into_inner())?)))
    }

    async fn deregister(
        &self,
        request: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::DeregisterResponse>, Status> {
        let command = decode::deregister(request.get_ref())?;
        let written = self.registry.write(command).await?;
        Ok(Response::new(v1::DeregisterResponse {
            epoch: self.epoch(),
            revision: written.revision,
            removed: u32::try_from(written.affected).unwrap_or(u32::MAX),
        }))
    }

    async fn set_override(
        &self,
        request: Request<v1::SetOverrideRequest>,
    ) -> Result<Response<v1::SetOverrideResponse>, Status> {
        let command = decode::set_override(request.get_ref())?;
        let written = self.registry.write(command).await?;
        Ok(Response::new(v1::SetOverrideResponse { epoch: self.epoch(), revision: written.revision }))
    }

    async fn list_overrides(
        &self,
        request: Request<v1::ListOverridesRequest>,
    ) -> Result<Response<v1::ListOverridesResponse>, Status> {
        let v1::ListOverridesRequest { namespace, page_size, page_token } = request.into_inner();
        let Listed { namespace, size, after } = decode::list(namespace, page_size, &page_token)?;
        let epoch = self.epoch();
        let list = move |state: &_, _| lists::overrides(state, epoch, &namespace, &after, size);
        Ok(Response::new(self.registry.inspect(list).await?))
    }

    async fn resolve_hold(
        &self,
        request: Request<v1::ResolveHoldRequest>,
    ) -> Result<Response<v1::ResolveHoldResponse>, Status> {
        let command = decode::resolve_hold(request.get_ref())?;
        let written = self.registry.write(command).await?;
        Ok(Response::new(v1::ResolveHoldResponse {
            epoch: self.epoch(),
            revision: written.revision,
            resolved: u32::try_from(written.affected).unwrap_or(u32::MAX),
        }))
    }

    async fn discover(&self, request: Request<v1::DiscoverRequest>) -> Result<Response<Frame>, Status> {
        let Read { key, selector, min_revision, page } = decode::discover(request.get_ref())?;
        let hub = self.registry.hub();
        let page = if let Some(token) = page {
            hub.read_on(&key, &selector, token).ok_or_else(status::page_expired)?
        } else {
            self.reach(min_revision, BEHIND_WAIT).await?;
            hub.read(&key, &selector)
        };
        Ok(Response::new(discovered(&page)))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        let v1::ListServicesRequest { namespace, page_size, page_token } = request.into_inner();
        let Listed { namespace, size, after } = decode::list(namespace, page_size, &page_token)?;
        let epoch = self.epoch();
        let list = move |state: &_, _| lists::services(state, epoch, &namespace, &after, size);
        Ok(Response::new(self.registry.inspect(list).await?))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watched = decode::watch(request.get_ref(), Path::Root)?;
        let seat = self.seat()?;
        let hub = self.registry.hub();
        if let Start::Resume { epoch, revision } = &watched.start
            && epoch == hub.epoch()
        {
            self.reach(*revision, BEHIND_WAIT).await?;
        }
        let (stopping, runtime) = (self.stopping.clone(), self.runtime.clone());
        let stream = WatchStream::open(hub.clone(), &self.watchers, &watched, stopping, runtime, seat)?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (hub, stopping) = (self.registry.hub().clone(), self.stopping.clone());
        let (requests, runtime, seat) = (request.into_inner(), self.runtime.clone(), self.seat()?);
        let stream = SubscribeStream::new(hub, &self.watchers, requests, stopping, runtime, seat);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn wait_applied(
        &self,
        request: Request<v1::WaitAppliedRequest>,
    ) -> Result<Response<v1::WaitAppliedResponse>, Status> {
        let awaited = decode::wait_applied(request.get_ref())?;
        let _place = Seat::take(&self.waits, MAX_WAITS).ok_or_else(|| status::too_many_waits(MAX_WAITS))?;
        let mut stopping = self.stopping.clone();
        let applied = tokio::select! {
            biased;
            // An error means that the server is gone altogether.
            _ = stopping.wait_for(Option::is_some) => {
                return Err(status::shutting_down(Duration::from_millis(500)));
            }
            applied = self.wait_until_applied(&awaited) => applied?,
        };
        let Applied { counts, satisfied } = applied;
        Ok(Response::new(v1::WaitAppliedResponse {
            acked: counts.acked,
            lagging: counts.lagging,
            disconnected: counts.disconnected,
            not_acking: counts.not_acking,
            satisfied,
        }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (key, id) = decode::explain(request.get_ref())?;
        let past = self.registry.hub().explain(&key, &id);
        Ok(Response::new(explained::explained(self.epoch(), &past)))
    }
}

impl RegistryService {
    /// Renews what a stream asks to, one message after the other.
    fn renewals<R>(
        &self,
        requests: R,
    ) -> Result<impl Stream<Item = Result<v1::KeepAliveResponse, Status>> + Send + Unpin + use<R>, Status>
    where
        R: Stream<Item = Result<v1::KeepAliveRequest, Status>> + Send + 'static,
    {
        self.refuse_when_stopping()?;
        let seat = Seat::take(&self.renewing, usize::MAX);
        // One for all of the stream's messages.
        let renewer = Arc::new(self.registry.renewer());
        let answers = requests.then(move |request| {
            let renewer = Arc::clone(&renewer);
            async move { renew(&renewer, request?).await }
        });
        let stopping = leaving(self.stopping.clone(), self.runtime.clone());
        let ended = async move {
            // The stream's place is free again when its answer is dropped.
            let _seat = seat;
            stopping.await;
        };
        Ok(Until::new(answers, ended))
    }

    async fn wait_until_applied(&self, awaited: &Awaited) -> Result<Applied, Status> {
        let Awaited { key, epoch, revision, share, timeout } = awaited;
        let hub = self.registry.hub();
        if !epoch.is_empty() && **epoch != *hub.epoch() {
            return Err(status::other_epoch(epoch, hub.epoch()));
        }
        let began = self.runtime.now().mono;
        self.reach(*revision, *timeout).await?;
        if !hub.is_known(key, *revision) {
            return Err(status::unknown_service(key));
        }
        let passed = Duration::from_millis(self.runtime.now().mono.saturating_sub(began));
        let waiting = self.watchers.wait(key, *revision, *share);
        Ok(waiting.answered(timeout.saturating_sub(passed)).await)
    }
}

async fn renew(renewer: &Renewer, request: v1::KeepAliveRequest) -> Result<v1::KeepAliveResponse, Status> {
    let leases = decode::leases(&request)?;
    let exceptions = renewer.renew(leases).await?;
    let exceptions = exceptions.into_iter().map(|(lease, renewal)| exception(lease, renewal)).collect();
    let epoch = renewer.registry().hub().epoch().to_owned();
    Ok(v1::KeepAliveResponse { request_id: request.request_id, epoch, exceptions })
}

fn exception(lease: LeaseId, renewal: Renewal) -> v1::LeaseException {
    use v1::{lease_exception::Kind, lost_instance::Reason};
    let reason = |loss| match loss {
        Loss::TakenOver => Reason::TakenOver,
        Loss::Deregistered => Reason::Deregistered,
        Loss::Expired => Reason::Expired,
        Loss::Evicted => Reason::Evicted,
    };
    let wire_lost = |(key, id, loss): (ServiceKey, Arc<str>, Loss)| v1::LostInstance {
        key: Some(wire_key(&key)),
        id: id.to_string(),
        reason: reason(loss).into(),
    };
    let (kind, lost) = match renewal {
        Renewal::Partial(lost) => (Kind::Partial, lost.into_iter().map(wire_lost).collect()),
        Renewal::Superseded => (Kind::Superseded, Vec::new()),
        Renewal::Renewed | Renewal::RenewedHeld | Renewal::Unknown => (Kind::Unknown, Vec::new()),
    };
    v1::LeaseException { lease_id: lease.0.to_vec(), kind: kind.into(), lost, moved_to: String::new() }
}

/// Several parts of a snapshot in one answer: repeated embedded messages are merged, so they read as one.
fn discovered(page: &ReadPage) -> Frame {
    let token = |next: PageToken| format!("{}.{}.{}", next.generation, next.part, next.revision);
    let next_page_token = page.next.map(token).unwrap_or_default();
    let prefix = v1::DiscoverResponse { next_page_token, change: None }.encode_to_vec().into();
    let mut parts = page.parts.iter().map(crate::hub::Part::as_field);
    let (shared, more) = (parts.next().unwrap_or_default(), parts.collect());
    // The parts may be older than the reading, if nothing happened to the service since.
    let change = Some(v1::Change { revision: page.revision, ..v1::Change::default() });
    let suffix = v1::DiscoverResponse { next_page_token: String::new(), change }.encode_to_vec().into();
    Frame { prefix, shared, more, suffix }
}
