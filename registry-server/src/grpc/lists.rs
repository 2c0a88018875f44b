//! Answers that are put together from the state: lists, and explanations.

use std::sync::Arc;

use registry_proto::v1;

use crate::{
    core::{Cause, Held, ServiceKey, State, Status},
    hub::{Happened, wire_instance, wire_key, wire_override, wire_time},
};

type After = Option<(ServiceKey, Arc<str>)>;

pub(super) fn services(
    state: &State,
    epoch: String,
    namespace: &str,
    after: &After,
    size: usize,
) -> v1::ListServicesResponse {
    let from = after.as_ref().map(|(key, _)| key);
    let mut found = state
        .services_after(from)
        .filter(|(key, _)| namespace.is_empty() || *key.namespace == *namespace)
        .take(size + 1)
        .map(|(key, service)| {
            let count = |status: Status| {
                number(service.instances.values().filter(|instance| instance.status() == status).count())
            };
            v1::ServiceSummary {
                key: Some(wire_key(key)),
                instances: number(service.instances.len()),
                up: count(Status::Up),
                draining: count(Status::Draining),
                down: count(Status::Down),
                held: number(service.instances.values().filter(|instance| instance.held.is_some()).count()),
                last_change_revision: service.last_change,
                changed_at: Some(wire_time(service.changed_at)),
            }
        })
        .collect::<Vec<_>>();
    let more = found.len() > size;
    found.truncate(size);
    let last = found.last().and_then(|summary| summary.key.as_ref()).filter(|_| more);
    let next_page_token = last.map(|key| format!("{} {} -", key.namespace, key.service)).unwrap_or_default();
    v1::ListServicesResponse { epoch, revision: state.revision(), services: found, next_page_token }
}

pub(super) fn overrides(
    state: &State,
    epoch: String,
    namespace: &str,
    after: &After,
    size: usize,
) -> v1::ListOverridesResponse {
    let mut found = state
        .overrides_after(after.as_ref())
        .filter(|((key, _), _)| namespace.is_empty() || *key.namespace == *namespace)
        .take(size + 1)
        .map(|((key, id), over)| v1::InstanceOverride {
            key: Some(wire_key(key)),
            id: id.to_string(),
            r#override: Some(wire_override(over)),
            registered: state.instance(key, id).is_some(),
        })
        .collect::<Vec<_>>();
    let more = found.len() > size;
    found.truncate(size);
    let last = found.last().filter(|_| more).and_then(|over| Some((over.key.as_ref()?, &over.id)));
    let next_page_token =
        last.map(|(key, id)| format!("{} {} {id}", key.namespace, key.service)).unwrap_or_default();
    v1::ListOverridesResponse { epoch, revision: state.revision(), overrides: found, next_page_token }
}

/// What the recent log knows of one instance, newest first.
pub(super) fn events(happened: Vec<Happened>) -> Vec<v1::Event> {
    happened
        .into_iter()
        .map(|it| v1::Event {
            revision: it.revision,
            at: Some(wire_time(it.wall)),
            cause: wire_cause(it.cause).into(),
            actor: it.actor.to_string(),
            detail: detail(&it),
            instance: it.after.as_deref().map(wire_instance),
        })
        .collect()
}

fn detail(happened: &Happened) -> String {
    let (before, after) = (happened.before.as_deref(), happened.after.as_deref());
    let held = |held: &Held| held.reason.to_string();
    match (before, after) {
        (None, Some(_)) => "came".to_owned(),
        (Some(_), None) => "left".to_owned(),
        (Some(before), Some(after)) => match (&before.held, &after.held) {
            (None, Some(why)) => held(why),
            (Some(_), None) => "is no longer held".to_owned(),
            _ if before.create_revision != after.create_revision => {
                "was taken over by a new incarnation under another lease".to_owned()
            }
            _ if before.over != after.over => "its override changed".to_owned(),
            _ => "changed".to_owned(),
        },
        (None, None) => String::new(),
    }
}

fn wire_cause(cause: Cause) -> v1::Cause {
    match cause {
        Cause::Register => v1::Cause::Register,
        Cause::Deregister => v1::Cause::Deregister,
        Cause::Expire => v1::Cause::Expire,
        Cause::Override => v1::Cause::Override,
        Cause::OverrideExpire => v1::Cause::OverrideExpire,
        Cause::RenewHeld => v1::Cause::RenewHeld,
        Cause::HoldExpire => v1::Cause::HoldExpire,
        Cause::ResolveHold => v1::Cause::ResolveHold,
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
