//! Answers that are put together from the state: lists.

use std::sync::Arc;

use prost::Message;
use registry_proto::v1;

use crate::{
    core::{Service, ServiceKey, State, Status},
    hub::{wire_key, wire_override, wire_time},
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
                number(
                    service.instances.in_any_order().filter(|instance| instance.status() == status).count(),
                )
            };
            v1::ServiceSummary {
                key: Some(wire_key(key)),
                instances: number(service.instances.len()),
                up: count(Status::Up),
                draining: count(Status::Draining),
                down: count(Status::Down),
                held: number(
                    service.instances.in_any_order().filter(|instance| instance.held.is_some()).count(),
                ),
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
    let held = service.instances.in_any_order().filter_map(|instance| instance.held.as_ref());
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

/// The room that an answer has.
#[derive(Default)]
pub(super) struct Room {
    taken: usize,
}

impl Room {
    /// Whether one more entry fits.
    pub(super) fn takes(&mut self, entry: &impl Message) -> bool {
        // With its tag and length.
        self.taken += entry.encoded_len() + 8;
        self.taken <= MAX_LIST
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Base, Override};

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
}
