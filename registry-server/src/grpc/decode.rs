//! Requests as the core's words: validated as a whole before anything is done, so that bad input changes nothing.

use std::{collections::HashSet, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use prost::Message;
use registry_proto::v1;
use tonic::Status;

use super::{
    fields::{self, Path},
    status::{self, Invalid},
};
use crate::{
    core::{Command, OverrideSpec, Registrant, Revision, Selector, ServiceKey, Spec},
    hub::{PageToken, Start},
};

/// Bytes of a request.
const MAX_REQUEST: usize = 4 << 20;
/// Registrations, instances or leases in one request.
const MAX_BATCH: usize = 10_000;
/// Bytes of an instance.
const MAX_INSTANCE: usize = 16 << 10;
const MAX_ACTOR: usize = 253;
const MAX_REASON: usize = 1_024;
const MAX_OVERRIDE: Duration = Duration::from_hours(8760);
const DEFAULT_TTL: Duration = Duration::from_secs(15);
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
const MAX_WAIT: Duration = Duration::from_mins(5);
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// The TTLs that the server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    /// The shortest, 1 s or longer.
    pub least: Duration,
    /// The longest, 24 h or shorter.
    pub most: Duration,
}

impl Default for TtlBounds {
    fn default() -> Self {
        Self { least: Duration::from_secs(1), most: Duration::from_hours(24) }
    }
}

/// What a watch asks for.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) key: ServiceKey,
    pub(super) selector: Selector,
    pub(super) include_all: bool,
    pub(super) start: Start,
}

/// What `WaitApplied` waits for.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) key: ServiceKey,
    /// Empty: whichever it is.
    pub(super) epoch: Arc<str>,
    pub(super) revision: Revision,
    pub(super) share: f64,
    pub(super) timeout: Duration,
}

/// What `Discover` reads.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) key: ServiceKey,
    pub(super) selector: Selector,
    pub(super) min_revision: Revision,
    /// A further page; `None` for the first.
    pub(super) page: Option<PageToken>,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Listed {
    /// Empty: all.
    pub(super) namespace: String,
    pub(super) size: usize,
    pub(super) after: Option<(ServiceKey, Arc<str>)>,
}

pub(super) fn register(request: &v1::RegisterRequest, bounds: TtlBounds) -> Result<Command, Invalid> {
    let root = Path::Root;
    within_bytes(request)?;
    let path = root.field("registrations");
    within_batch(request.registrations.len(), path)?;
    if request.registrations.is_empty() {
        return Err(path.invalid("is empty; register at least one instance"));
    }
    let lease = fields::lease_id(&request.lease_id, root.field("lease_id"))?;
    let registrant = root.field("registrant");
    let from = fields::required(request.registrant.as_ref(), registrant)?;
    let uid = fields::uid(&from.instance_uid, registrant.field("instance_uid"))?;
    let registrant = Registrant { uid, generation: from.generation };
    let ttl = match request.ttl {
        Some(ttl) => fields::duration(ttl, bounds.least, bounds.most, root.field("ttl"))?,
        None => millis(DEFAULT_TTL.clamp(bounds.least, bounds.most)),
    };
    let mut seen = HashSet::new();
    let mut instances = Vec::with_capacity(request.registrations.len());
    for (index, registration) in request.registrations.iter().enumerate() {
        let at = path.index(index);
        let key = fields::key(registration.key.as_ref(), at.field("key"))?;
        let instance_path = at.field("instance");
        let instance = fields::required(registration.instance.as_ref(), instance_path)?;
        let (id, spec) = spec(instance, instance_path)?;
        // Nearly all requests name one.
        if request.registrations.len() > 1 && !seen.insert((key.clone(), Arc::clone(&id))) {
            return Err(instance_path
                .field("id")
                .invalid(format!("`{id}` is in this batch twice for {key}")));
        }
        instances.push((key, id, Arc::new(spec)));
    }
    Ok(Command::Register { lease, registrant, ttl, instances })
}

pub(super) fn deregister(request: &v1::DeregisterRequest) -> Result<Command, Invalid> {
    let root = Path::Root;
    within_bytes(request)?;
    let path = root.field("instances");
    within_batch(request.instances.len(), path)?;
    let lease = if request.lease_id.is_empty() {
        None
    } else {
        Some(fields::lease_id(&request.lease_id, root.field("lease_id"))?)
    };
    if lease.is_none() && request.instances.is_empty() {
        return Err(root.field("lease_id").invalid("is required if no `instances` are named"));
    }
    let mut seen = HashSet::new();
    let mut instances = Vec::with_capacity(request.instances.len());
    for (index, named) in request.instances.iter().enumerate() {
        let at = path.index(index);
        let key = fields::key(named.key.as_ref(), at.field("key"))?;
        let id = fields::instance_id(&named.id, at.field("id"))?;
        if request.instances.len() > 1 && !seen.insert((key.clone(), Arc::clone(&id))) {
            return Err(at.field("id").invalid(format!("`{id}` is in this batch twice for {key}")));
        }
        instances.push((key, id, named.create_revision));
    }
    let actor = fields::text(&request.actor, MAX_ACTOR, root.field("actor"))?;
    Ok(Command::Deregister { lease, instances, actor })
}

pub(super) fn set_override(request: &v1::SetOverrideRequest) -> Result<Command, Invalid> {
    use v1::set_override_request::Action;
    let root = Path::Root;
    let key = fields::key(request.key.as_ref(), root.field("key"))?;
    let id = fields::instance_id(&request.id, root.field("id"))?;
    let action = fields::required(request.action.as_ref(), root.field("action"))?;
    let set = match action {
        Action::Clear(_) => None,
        Action::Set(over) => {
            let path = root.field("set");
            let weight =
                over.weight.map(|weight| fields::weight(weight, path.field("weight"))).transpose()?;
            let status = fields::status(over.status, path.field("status"))?;
            if weight.is_none() && status.is_none() {
                return Err(path.invalid("sets neither weight nor status; set one, or use `clear`"));
            }
            let bounded =
                |it| fields::duration(it, Duration::from_secs(1), MAX_OVERRIDE, path.field("expires_in"));
            let expires_in = over.expires_in.map(bounded).transpose()?;
            Some(OverrideSpec { weight, status, expires_in })
        }
    };
    let actor = fields::text(&request.actor, MAX_ACTOR, root.field("actor"))?;
    let reason = fields::text(&request.reason, MAX_REASON, root.field("reason"))?;
    Ok(Command::SetOverride { key, id, set, actor, reason })
}

pub(super) fn resolve_hold(request: &v1::ResolveHoldRequest) -> Result<Command, Invalid> {
    use v1::resolve_hold_request::Action;
    let root = Path::Root;
    let key = fields::key(request.key.as_ref(), root.field("key"))?;
    let path = root.field("ids");
    within_batch(request.ids.len(), path)?;
    let ids = request.ids.iter().enumerate().map(|(index, id)| fields::instance_id(id, path.index(index)));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let evict = match Action::try_from(request.action) {
        Ok(Action::Release) => false,
        Ok(Action::Evict) => true,
        _ => return Err(root.field("action").invalid("must be RELEASE or EVICT")),
    };
    let actor = fields::text(&request.actor, MAX_ACTOR, root.field("actor"))?;
    Ok(Command::ResolveHold { key, ids, evict, actor })
}

/// The leases to renew, each once: naming one ten thousand times must not have all that it lost told as often.
pub(super) fn leases(request: &v1::KeepAliveRequest) -> Result<Vec<crate::core::LeaseId>, Invalid> {
    let path = Path::Root;
    let path = path.field("lease_ids");
    within_batch(request.lease_ids.len(), path)?;
    if let [only] = request.lease_ids.as_slice() {
        return Ok(vec![fields::lease_id(only, path.index(0))?]);
    }
    let count = request.lease_ids.len();
    // A hash with a random key, so that nobody can make it slow; and room, for nearly always they are told apart.
    let mut seen = HashSet::with_capacity_and_hasher(count, RandomState::default());
    let mut leases = Vec::with_capacity(count);
    for (index, id) in request.lease_ids.iter().enumerate() {
        let lease = fields::lease_id(id, path.index(index))?;
        if seen.insert(lease) {
            leases.push(lease);
        }
    }
    Ok(leases)
}

/// What a watch asks for; `path` is where the request stands in a larger one.
pub(super) fn watch(request: &v1::WatchRequest, path: Path<'_>) -> Result<Watched, Status> {
    use v1::watch_request::Scope;
    let key = match fields::required(request.scope.as_ref(), path.field("key"))? {
        Scope::Key(key) => fields::key(Some(key), path.field("key"))?,
        Scope::Namespace(_) => return Err(status::not_implemented("WatchRequest.namespace")),
        Scope::Everything(_) => return Err(status::not_implemented("WatchRequest.everything")),
    };
    let selector = selector(request.selector.as_ref(), path.field("selector"))?;
    let start = match &request.cursor {
        _ if request.force_snapshot => Start::Forced,
        None => Start::Fresh,
        Some(cursor) => {
            let epoch = fields::text(&cursor.epoch, MAX_ACTOR, path.field("cursor").field("epoch"))?;
            Start::Resume { epoch: epoch.to_string(), revision: cursor.revision }
        }
    };
    Ok(Watched { key, selector, include_all: request.include_all, start })
}

pub(super) fn wait_applied(request: &v1::WaitAppliedRequest) -> Result<Awaited, Invalid> {
    let root = Path::Root;
    let key = fields::key(request.key.as_ref(), root.field("key"))?;
    let epoch = fields::text(&request.epoch, MAX_ACTOR, root.field("epoch"))?;
    if request.revision == 0 {
        return Err(root.field("revision").invalid("is required: that of the write's answer"));
    }
    let share = if request.share == 0.0 { 1.0 } else { request.share };
    if !(share > 0.0 && share <= 1.0) {
        return Err(root.field("share").invalid(format!("is {share}; it must be above 0 and at most 1")));
    }
    let timeout = match request.timeout {
        Some(timeout) => fields::duration(timeout, Duration::ZERO, MAX_WAIT, root.field("timeout"))?,
        None => millis(DEFAULT_WAIT),
    };
    let timeout = Duration::from_millis(timeout);
    Ok(Awaited { key, epoch, revision: request.revision, share, timeout })
}

pub(super) fn selector(selector: Option<&v1::Selector>, path: Path<'_>) -> Result<Selector, Invalid> {
    let Some(selector) = selector else { return Ok(Selector::default()) };
    let tags = fields::tags(&selector.tags, path.field("tags"))?;
    let zone = fields::text(&selector.zone, MAX_ACTOR, path.field("zone"))?;
    let statuses = path.field("statuses");
    let asked = selector.statuses.iter().enumerate().map(|(index, number)| {
        let at = statuses.index(index);
        fields::status(*number, at)?
            .ok_or_else(|| at.invalid("is unspecified; name a status, or none at all"))
    });
    Ok(Selector::new(tags, zone, asked.collect::<Result<Vec<_>, Invalid>>()?))
}

pub(super) fn discover(request: &v1::DiscoverRequest) -> Result<Read, Invalid> {
    let root = Path::Root;
    let key = fields::key(request.key.as_ref(), root.field("key"))?;
    let selector = selector(request.selector.as_ref(), root.field("selector"))?;
    let token = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
    let page = token.map(page_token).transpose()?;
    Ok(Read { key, selector, min_revision: request.min_revision, page })
}

/// Which instance `Explain` is about.
pub(super) fn explain(request: &v1::ExplainRequest) -> Result<(ServiceKey, Arc<str>), Invalid> {
    let root = Path::Root;
    let key = fields::key(request.key.as_ref(), root.field("key"))?;
    Ok((key, fields::instance_id(&request.id, root.field("id"))?))
}

/// A page of `ListServices` or `ListOverrides`, which ask alike.
pub(super) fn list(namespace: String, size: u32, token: &str) -> Result<Listed, Invalid> {
    if !namespace.is_empty() {
        fields::namespace(&namespace, Path::Root.field("namespace"))?;
    }
    Ok(Listed { namespace, size: page_size(size)?, after: list_token(token)? })
}

/// The name of a stream's client.
pub(super) fn hello(hello: &v1::Hello) -> Result<Arc<str>, Invalid> {
    fields::uid(&hello.client_id, Path::Root.field("hello").field("client_id"))
}

fn page_size(size: u32) -> Result<usize, Invalid> {
    match usize::try_from(size) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) if size <= MAX_PAGE => Ok(size),
        _ => Err(Invalid::new("page_size", format!("is {size}; the limit is {MAX_PAGE}"))),
    }
}

/// The token of a further page of a reading: the snapshot's number, the part's, and the revision that the reading shows.
fn page_token(token: &str) -> Result<PageToken, Invalid> {
    let mut numbers = token.splitn(3, '.').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let parsed = match (next(), next().map(usize::try_from), next()) {
        (Some(generation), Some(Ok(part)), Some(revision)) => Some(PageToken { generation, part, revision }),
        _ => None,
    };
    parsed.ok_or_else(|| {
        Invalid::new("page_token", "is not one that this server gave; start over without a token")
    })
}

/// The token of a further page of a list: the last name of the page before, in three parts.
pub(super) fn list_token(token: &str) -> Result<Option<(ServiceKey, Arc<str>)>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let mut parts = token.splitn(3, ' ');
    let mut next = || parts.next().map(Arc::<str>::from);
    let parsed = match (next(), next(), next()) {
        (Some(namespace), Some(service), Some(id)) => Some((ServiceKey { namespace, service }, id)),
        _ => None,
    };
    parsed
        .map(Some)
        .ok_or_else(|| Invalid::new("page_token", "is not one that this server gave; start over without it"))
}

fn spec(instance: &v1::Instance, path: Path<'_>) -> Result<(Arc<str>, Spec), Invalid> {
    let bytes = instance.encoded_len();
    if bytes > MAX_INSTANCE {
        return Err(path.invalid(format!("has {bytes} bytes; the limit is {MAX_INSTANCE}")));
    }
    let address = fields::address(&instance.address, path.field("address"))?;
    let id = if instance.id.is_empty() {
        // A socket's path may have characters that an id may not.
        fields::instance_id(&address, path.field("id"))?
    } else {
        fields::instance_id(&instance.id, path.field("id"))?
    };
    let locality = path.field("locality");
    let (region, zone) = match &instance.locality {
        Some(it) => (
            fields::text(&it.region, MAX_ACTOR, locality.field("region"))?,
            fields::text(&it.zone, MAX_ACTOR, locality.field("zone"))?,
        ),
        None => Default::default(),
    };
    let spec = Spec {
        address,
        weight: fields::weight(instance.weight.unwrap_or(1), path.field("weight"))?,
        tags: fields::tags(&instance.tags, path.field("tags"))?.into(),
        region,
        zone,
        status: fields::status(instance.status, path.field("status"))?.unwrap_or_default(),
    };
    Ok((id, spec))
}

fn within_bytes(request: &impl Message) -> Result<(), Invalid> {
    let bytes = request.encoded_len();
    if bytes > MAX_REQUEST {
        let problem = format!("has {bytes} bytes; the limit is {MAX_REQUEST}; send several requests");
        return Err(Invalid::new("request", problem));
    }
    Ok(())
}

fn within_batch(found: usize, path: Path<'_>) -> Result<(), Invalid> {
    if found > MAX_BATCH {
        return Err(
            path.invalid(format!("has {found} entries; the limit is {MAX_BATCH}; send several requests"))
        );
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
