//! Answers that are put together from the state: lists, and explanations.

use std::sync::Arc;

use prost::Message;
use registry_proto::v1;

use crate::{
    core::{Cause, Held, Service, ServiceKey, State, Status},
    hub::{Happened, Past, wire_instance, wire_key, wire_override, wire_time},
};

/// Bytes of a list in one answer: it stays under 1 MiB, and each entry is far smaller.
const MAX_LIST: usize = 768 << 10;

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
                held_reason: held_reason(service),
            }
        })
        .collect::<Vec<_>>();
    let more = found.len() > size;
    found.truncate(size);
    let last = found.last().and_then(|summary| summary.key.as_ref()).filter(|_| more);
    let next_page_token = last.map(|key| format!("{} {} -", key.namespace, key.service)).unwrap_or_default();
    v1::ListServicesResponse { epoch, revision: state.revision(), services: found, next_page_token }
}

/// Why instances of a service are held: the reason of the newest hold.
fn held_reason(service: &Service) -> String {
    let held = service.instances.values().filter_map(|instance| instance.held.as_ref());
    held.max_by_key(|held| held.since).map(|held| held.reason.to_string()).unwrap_or_default()
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
    let mut room = Room::default();
    let fitting = found.iter().take(size).take_while(|over| room.takes(*over)).count();
    let more = found.len() > fitting;
    found.truncate(fitting);
    let last = found.last().filter(|_| more).and_then(|over| Some((over.key.as_ref()?, &over.id)));
    let next_page_token =
        last.map(|(key, id)| format!("{} {} {id}", key.namespace, key.service)).unwrap_or_default();
    v1::ListOverridesResponse { epoch, revision: state.revision(), overrides: found, next_page_token }
}

/// What the recent log knows of one instance, newest first, as far as it fits into an answer.
pub(super) fn explained(epoch: String, past: Past) -> v1::ExplainResponse {
    let event = |it: Happened| v1::Event {
        revision: it.revision,
        at: Some(wire_time(it.wall)),
        cause: wire_cause(it.cause).into(),
        actor: it.actor.to_string(),
        detail: detail(&it),
        instance: it.after.as_deref().map(wire_instance),
    };
    let mut room = Room::default();
    let revisions: Vec<_> = past.events.iter().map(|event| event.revision).collect();
    let events: Vec<_> = past.events.into_iter().map(event).take_while(|event| room.takes(event)).collect();
    let (known_since_revision, known_since) = match revisions.get(events.len()) {
        // As if all from the first that does not fit had been forgotten.
        Some(left_out) => (*left_out, events.last().and_then(|oldest| oldest.at)),
        None => (past.known_since, past.known_since_wall.map(wire_time)),
    };
    v1::ExplainResponse { epoch, events, known_since_revision, known_since }
}

/// The room that an answer has.
#[derive(Default)]
struct Room {
    taken: usize,
}

impl Room {
    /// Whether one more entry fits.
    fn takes(&mut self, entry: &impl Message) -> bool {
        // With its tag and length.
        self.taken += entry.encoded_len() + 8;
        self.taken <= MAX_LIST
    }
}

fn detail(happened: &Happened) -> String {
    let (before, after) = (happened.before.as_deref(), happened.after.as_deref());
    let held = |held: &Held| held.reason.to_string();
    match (before, after) {
        (None, Some(_)) => "came".to_owned(),
        (Some(_), None) => "left".to_owned(),
        (Some(before), Some(after)) => match (&before.held, &after.held) {
            _ if before.create_revision != after.create_revision => {
                "was taken over by a new incarnation under another lease".to_owned()
            }
            (None, Some(why)) => held(why),
            (Some(_), None) => "is no longer held".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Base, Instance, LeaseId, Override, Spec};

    fn over() -> Override {
        Override {
            weight: Some(1),
            status: None,
            expires_at: None,
            set_at: 0,
            revision: 1,
            actor: "a".repeat(253).into(),
            reason: "r".repeat(1_024).into(),
        }
    }

    #[test]
    fn a_page_of_overrides_stays_under_1_mib_and_the_pages_hold_all() {
        let key = ServiceKey { namespace: "n".into(), service: "s".repeat(253).into() };
        let overrides = (0..1_500).map(|n| (key.clone(), format!("i{n:04}").into(), over())).collect();
        let state = State::from_base(Base { overrides, ..Base::default() });
        let (mut after, mut seen) = (None, 0);
        loop {
            let page = super::overrides(&state, "e".into(), "", &after, 1_000);
            assert!(page.encoded_len() < 1 << 20, "{} bytes", page.encoded_len());
            seen += page.overrides.len();
            if page.next_page_token.is_empty() {
                break;
            }
            after = super::super::decode::list_token(&page.next_page_token).expect("a token of ours");
        }
        assert_eq!(seen, 1_500);
    }

    #[test]
    fn an_explanation_stays_under_1_mib_and_says_from_when_it_knows() {
        let spec = Spec {
            address: "127.0.0.1:1".into(),
            weight: 1,
            tags: [("k".into(), "v".repeat(4_000).into())].into(),
            region: "".into(),
            zone: "".into(),
            status: Status::Up,
        };
        let instance = Arc::new(Instance {
            id: "i".into(),
            spec: Arc::new(spec),
            lease: LeaseId([1; 16]),
            create_revision: 1,
            mod_revision: 1,
            registered_at: 0,
            changed_at: 0,
            held: None,
            over: None,
        });
        let happened = |revision| Happened {
            revision,
            wall: revision * 1_000,
            cause: Cause::Register,
            actor: "u#1".into(),
            before: Some(Arc::clone(&instance)),
            after: Some(Arc::clone(&instance)),
        };
        let of = |events: u64| Past {
            events: (11..=10 + events).rev().map(happened).collect(),
            known_since: 5,
            known_since_wall: Some(5_000),
        };
        let whole = explained("e".into(), of(10));
        assert_eq!((whole.events.len(), whole.known_since_revision), (10, 5));
        let cut = explained("e".into(), of(1_000));
        assert!(cut.encoded_len() < 1 << 20, "{} bytes", cut.encoded_len());
        let (newest, oldest) = (&cut.events[0], cut.events.last().expect("some"));
        // The one before the oldest is the newest that is not told.
        assert_eq!((newest.revision, oldest.revision), (1_010, cut.known_since_revision + 1));
        assert_eq!(cut.known_since, oldest.at);
    }
}
