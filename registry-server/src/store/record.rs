//! The inner format: payloads of frames to the core's words and back, as protobuf messages.
//!
//! Settled: fields and kinds are added, never changed. A field that this version does not know is passed over; an event
//! or a value that it does not know is refused as written by a newer version, since the state would be wrong without
//! it. The messages are written by hand, beside the core's types that they mirror; `wire` has the derives.

use std::sync::Arc;

use prost::Message;

mod encode;
mod extent;
mod interner;
mod numbers;

use self::numbers::{cause, loss, loss_number, status, status_number};
pub(super) use self::{
    encode::encode_group,
    extent::{Extent, decode_extent},
    interner::Interner,
};
use super::wire;
use crate::core::{
    Base, Carried, Committed, Event, Held, Instance, InstanceId, Lease, LeaseId, Loss, Override, Record,
    Registrant, Revision, ServiceKey, Spec,
};

/// Why a payload cannot be read, although its checksum is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// A later version added something.
    Newer(String),
    /// No version writes this.
    Malformed(String),
}

/// One frame of a log: the records that were made durable together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The last revision before the group.
    pub(super) previous: Revision,
    /// The last revision of the group, or `previous`.
    pub(super) last: Revision,
    /// Empty too in the mark that is left when a store is closed in order.
    pub(super) records: Vec<Committed>,
}

/// One frame of a base.
#[derive(Debug)]
pub(super) enum Part {
    /// Some of its content was added to the base.
    Content,
    /// The last frame: the base has to hold as much as is counted here.
    Footer(Counts),
}

/// How much a base holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Its revision.
    pub(super) revision: Revision,
    services: u64,
    instances: u64,
    leases: u64,
    overrides: u64,
}

impl Counts {
    /// Of this base.
    pub(super) fn of(base: &Base) -> Self {
        Self {
            revision: base.revision,
            services: base.services.len() as u64,
            instances: base.instances.len() as u64,
            leases: base.leases.len() as u64,
            overrides: base.overrides.len() as u64,
        }
    }
}

/// Reads a group; its records only if one of them is after `wanted`.
pub(super) fn decode_group(
    payload: &[u8],
    wanted: Revision,
    strings: &mut Interner,
) -> Result<Group, DecodeError> {
    let failed = |error| malformed(format!("a group does not decode: {error}"));
    let head = wire::GroupHead::decode(payload).map_err(failed)?;
    if head.previous < head.last && head.last <= wanted {
        return Ok(Group { previous: head.previous, last: head.last, records: Vec::new() });
    }
    let group = wire::Group::decode(payload).map_err(failed)?;
    let mut last = group.previous;
    let mut records = Vec::with_capacity(group.records.len());
    for record in group.records {
        if record.revision <= last {
            return Err(malformed(format!("revision {} follows revision {last}", record.revision)));
        }
        last = record.revision;
        let events = record.events.into_iter().map(|event| event_from_wire(event, strings));
        records.push(Committed {
            revision: record.revision,
            record: Record {
                wall: record.wall,
                cause: cause(record.cause)?,
                actor: record.actor.into(),
                events: events.collect::<Result<_, _>>()?,
            },
        });
    }
    if last != group.last {
        return Err(malformed(format!("a group ends at revision {last} and says {}", group.last)));
    }
    Ok(Group { previous: group.previous, last, records })
}

/// How many things one frame of a base carries at most.
const PART: usize = 256;

/// Calls `emit` with the payload of each frame of a base, the footer last.
pub(super) fn encode_base<E>(
    base: &Base,
    mut emit: impl FnMut(&wire::Part) -> Result<(), E>,
) -> Result<(), E> {
    for services in base.services.chunks(PART) {
        let services = services.iter().map(|(key, revision, changed_at)| wire::Service {
            key: Some(key_to_wire(key)),
            revision: *revision,
            changed_at: *changed_at,
        });
        emit(&wire::Part { services: services.collect(), ..wire::Part::default() })?;
    }
    for instances in base.instances.chunks(PART) {
        let instances = instances.iter().map(|(key, instance)| instance_to_wire(key, instance));
        emit(&wire::Part { instances: instances.collect(), ..wire::Part::default() })?;
    }
    for leases in base.leases.chunks(PART) {
        let leases = leases.iter().map(|(id, lease)| wire::Lease {
            id: id.0.to_vec(),
            registrant: Some(registrant_to_wire(&lease.registrant)),
            ttl: lease.ttl,
            lost: lease.lost.iter().map(|((key, id), loss)| removed_to_wire(key, id, Some(*loss))).collect(),
        });
        emit(&wire::Part { leases: leases.collect(), ..wire::Part::default() })?;
    }
    for overrides in base.overrides.chunks(PART) {
        let overrides = overrides.iter().map(|(key, id, over)| override_to_wire(key, id, over));
        emit(&wire::Part { overrides: overrides.collect(), ..wire::Part::default() })?;
    }
    let counts = Counts::of(base);
    let footer = wire::Footer {
        revision: counts.revision,
        forgotten_through: base.forgotten_through,
        services: counts.services,
        instances: counts.instances,
        leases: counts.leases,
        overrides: counts.overrides,
    };
    emit(&wire::Part { footer: Some(footer), ..wire::Part::default() })
}

/// Adds the content of one frame to `base`.
pub(super) fn decode_part(
    payload: &[u8],
    base: &mut Base,
    strings: &mut Interner,
) -> Result<Part, DecodeError> {
    let part =
        wire::Part::decode(payload).map_err(|error| malformed(format!("a part does not decode: {error}")))?;
    for service in part.services {
        base.services.push((key(service.key, strings)?, service.revision, service.changed_at));
    }
    for instance in part.instances {
        base.instances.push(instance_from_wire(instance, strings)?);
    }
    for lease in part.leases {
        let lost = lease.lost.into_iter().map(|lost| {
            let (key, id, loss) = removed_from_wire(lost, strings)?;
            Ok((
                (key, id),
                loss.ok_or_else(|| {
                    DecodeError::Malformed("a lease lost an instance for no reason".to_owned())
                })?,
            ))
        });
        let lost = lost.collect::<Result<_, _>>()?;
        let kept = Lease {
            registrant: registrant(lease.registrant)?,
            ttl: lease.ttl,
            instances: Carried::default(),
            lost,
        };
        base.leases.push((lease_id(&lease.id)?, kept));
    }
    for over in part.overrides {
        base.overrides.push(override_from_wire(over, strings)?);
    }
    let Some(footer) = part.footer else {
        return Ok(Part::Content);
    };
    base.revision = footer.revision;
    base.forgotten_through = footer.forgotten_through;
    Ok(Part::Footer(Counts {
        revision: footer.revision,
        services: footer.services,
        instances: footer.instances,
        leases: footer.leases,
        overrides: footer.overrides,
    }))
}

fn event_from_wire(event: wire::Event, strings: &mut Interner) -> Result<Event, DecodeError> {
    use wire::event::Kind;
    let Some(kind) = event.kind else {
        return Err(DecodeError::Newer("an event of a kind that this version does not know".to_owned()));
    };
    Ok(match kind {
        Kind::LeaseGranted(lease) => Event::LeaseGranted {
            lease: lease_id(&lease.id)?,
            registrant: registrant(lease.registrant)?,
            ttl: lease.ttl,
        },
        Kind::LeaseEnded(ended) => Event::LeaseEnded { lease: lease_id(&ended.id)? },
        Kind::Registered(instance) => Event::Registered {
            key: key(instance.key, strings)?,
            id: instance.id.into(),
            spec: spec(instance.spec, strings)?,
            lease: lease_id(&instance.lease)?,
        },
        Kind::Removed(removed) => {
            let (key, id, loss) = removed_from_wire(removed, strings)?;
            Event::Removed { key, id, loss }
        }
        Kind::Held(named) => Event::Held {
            key: key(named.key, strings)?,
            id: named.id.into(),
            held: held(&named.held.ok_or_else(|| missing("held"))?, strings),
        },
        Kind::Released(named) => Event::Released { key: key(named.key, strings)?, id: named.id.into() },
        Kind::OverrideSet(over) => {
            let (key, id, over) = override_from_wire(over, strings)?;
            Event::OverrideSet { key, id, over }
        }
        Kind::OverrideCleared(named) => {
            Event::OverrideCleared { key: key(named.key, strings)?, id: named.id.into() }
        }
    })
}

fn instance_to_wire(key: &ServiceKey, instance: &Instance) -> wire::Instance {
    wire::Instance {
        key: Some(key_to_wire(key)),
        id: instance.id.to_string(),
        spec: Some(spec_to_wire(&instance.spec)),
        lease: instance.lease.0.to_vec(),
        create_revision: instance.create_revision,
        mod_revision: instance.mod_revision,
        registered_at: instance.registered_at,
        changed_at: instance.changed_at,
        held: instance.held.as_deref().map(held_to_wire),
    }
}

fn instance_from_wire(
    instance: wire::Instance,
    strings: &mut Interner,
) -> Result<(ServiceKey, Instance), DecodeError> {
    let kept = Instance {
        id: instance.id.into(),
        spec: spec(instance.spec, strings)?,
        lease: lease_id(&instance.lease)?,
        create_revision: instance.create_revision,
        mod_revision: instance.mod_revision,
        registered_at: instance.registered_at,
        changed_at: instance.changed_at,
        held: instance.held.as_ref().map(|value| Box::new(held(value, strings))),
        over: None,
    };
    Ok((key(instance.key, strings)?, kept))
}

fn spec_to_wire(spec: &Spec) -> wire::Spec {
    wire::Spec {
        address: spec.address.to_string(),
        weight: spec.weight.into(),
        tags: spec.tags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        region: spec.region.to_string(),
        zone: spec.zone.to_string(),
        status: status_number(spec.status),
    }
}

fn spec(spec: Option<wire::Spec>, strings: &mut Interner) -> Result<Arc<Spec>, DecodeError> {
    let spec = spec.ok_or_else(|| missing("spec"))?;
    Ok(Arc::new(Spec {
        address: spec.address.into(),
        weight: weight(spec.weight)?,
        tags: spec.tags.iter().map(|(key, value)| (strings.get(key), strings.get(value))).collect(),
        region: strings.get(&spec.region),
        zone: strings.get(&spec.zone),
        status: status(spec.status)?,
    }))
}

fn override_to_wire(key: &ServiceKey, id: &InstanceId, over: &Override) -> wire::Override {
    wire::Override {
        key: Some(key_to_wire(key)),
        id: id.to_string(),
        weight: over.weight.map(u32::from),
        status: over.status.map(status_number),
        expires_at: over.expires_at,
        set_at: over.set_at,
        revision: over.revision,
        actor: over.actor.to_string(),
        reason: over.reason.to_string(),
    }
}

fn override_from_wire(
    over: wire::Override,
    strings: &mut Interner,
) -> Result<(ServiceKey, InstanceId, Override), DecodeError> {
    let kept = Override {
        weight: over.weight.map(weight).transpose()?,
        status: over.status.map(status).transpose()?,
        expires_at: over.expires_at,
        set_at: over.set_at,
        revision: over.revision,
        actor: strings.get(&over.actor),
        reason: strings.get(&over.reason),
    };
    Ok((key(over.key, strings)?, over.id.into(), kept))
}

fn removed_to_wire(key: &ServiceKey, id: &InstanceId, loss: Option<Loss>) -> wire::Removed {
    wire::Removed { key: Some(key_to_wire(key)), id: id.to_string(), loss: loss.map_or(0, loss_number) }
}

fn removed_from_wire(
    removed: wire::Removed,
    strings: &mut Interner,
) -> Result<(ServiceKey, InstanceId, Option<Loss>), DecodeError> {
    let reason = if removed.loss == 0 { None } else { Some(loss(removed.loss)?) };
    Ok((key(removed.key, strings)?, removed.id.into(), reason))
}

fn held_to_wire(held: &Held) -> wire::Held {
    wire::Held { since: held.since, until: held.until, reason: held.reason.to_string() }
}

fn held(held: &wire::Held, strings: &mut Interner) -> Held {
    Held { since: held.since, until: held.until, reason: strings.get(&held.reason) }
}

fn key_to_wire(key: &ServiceKey) -> wire::Key {
    wire::Key { namespace: key.namespace.to_string(), service: key.service.to_string() }
}

fn key(key: Option<wire::Key>, strings: &mut Interner) -> Result<ServiceKey, DecodeError> {
    let key = key.ok_or_else(|| missing("key"))?;
    Ok(ServiceKey { namespace: strings.get(&key.namespace), service: strings.get(&key.service) })
}

fn registrant_to_wire(registrant: &Registrant) -> wire::Registrant {
    wire::Registrant { uid: registrant.uid.to_string(), generation: registrant.generation }
}

fn registrant(registrant: Option<wire::Registrant>) -> Result<Registrant, DecodeError> {
    let registrant = registrant.ok_or_else(|| missing("registrant"))?;
    Ok(Registrant { uid: registrant.uid.into(), generation: registrant.generation })
}

fn lease_id(bytes: &[u8]) -> Result<LeaseId, DecodeError> {
    let bytes =
        bytes.try_into().map_err(|_| malformed(format!("a lease id has {} bytes, not 16", bytes.len())))?;
    Ok(LeaseId(bytes))
}

fn weight(weight: u32) -> Result<u16, DecodeError> {
    u16::try_from(weight).map_err(|_| malformed(format!("a weight is {weight}")))
}

fn malformed(what: String) -> DecodeError {
    DecodeError::Malformed(what)
}

fn missing(field: &str) -> DecodeError {
    malformed(format!("the field `{field}` is missing"))
}

#[cfg(test)]
mod tests;
