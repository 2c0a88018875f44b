//! The answer to "why?": what the recent log knows of one instance, in words.
//!
//! Owns the words. What is known, and from when on, is the hub's to say; causes and actors are those of the records.

use registry_proto::v1;

use super::lists::Room;
use crate::{
    core::{Cause, Instance, Override, Status},
    hub::{Happened, Past, wire_instance, wire_time},
};

/// What the recent log knows of one instance, newest first, as far as it fits into an answer.
pub(super) fn explained(epoch: String, past: &Past) -> v1::ExplainResponse {
    let event = |it: &Happened| v1::Event {
        revision: it.revision,
        at: Some(wire_time(it.wall)),
        cause: cause(it).into(),
        actor: it.actor.to_string(),
        detail: detail(it, past),
        instance: it.after.as_deref().map(wire_instance),
    };
    let mut room = Room::default();
    let events: Vec<_> = past.events.iter().map(event).take_while(|event| room.takes(event)).collect();
    let (known_since_revision, known_since) = match past.events.get(events.len()) {
        // As if all from the first that does not fit had been forgotten.
        Some(left_out) => (left_out.revision, events.last().and_then(|oldest| oldest.at)),
        None => (past.known_since, past.known_since_wall.map(wire_time)),
    };
    v1::ExplainResponse { epoch, events, known_since_revision, known_since }
}

/// A newer incarnation took the place of an older one.
fn superseded(it: &Happened) -> Option<(&Instance, &Instance)> {
    let (before, after) = (it.before.as_deref()?, it.after.as_deref()?);
    (before.create_revision != after.create_revision).then_some((before, after))
}

fn detail(it: &Happened, past: &Past) -> String {
    if let Some((before, after)) = superseded(it) {
        return supersession(before, after, it, past);
    }
    match (it.before.as_deref(), it.after.as_deref()) {
        (None, Some(after)) if after.over.is_some() => {
            "was registered, under an operator's override".to_owned()
        }
        (None, Some(_)) => "was registered".to_owned(),
        (Some(_), None) => gone(it.cause).to_owned(),
        (Some(before), Some(after)) => match (&before.held, &after.held) {
            (None, Some(why)) => why.reason.to_string(),
            (Some(_), None) => format!("{}, and is no longer held", freed(it.cause)),
            _ if before.over != after.over => overridden(it.cause, after.over.as_deref()),
            _ => "was changed by its registrant".to_owned(),
        },
        (None, None) => String::new(),
    }
}

/// By whom, of which incarnation, under which lease; and who had it before, if that is known.
fn supersession(before: &Instance, after: &Instance, by: &Happened, past: &Past) -> String {
    // The newest first, and one a revision.
    let at = past.events.partition_point(|it| it.revision > before.create_revision);
    let earlier = past.events.get(at).filter(|it| it.revision == before.create_revision);
    let whose = earlier.map_or_else(String::new, |it| format!(" of {}", it.actor));
    format!(
        "was superseded: {} registered it at revision {} under the lease {}, in the place of the incarnation{whose} from \
         revision {} under the lease {}",
        by.actor, after.create_revision, after.lease, before.create_revision, before.lease
    )
}

fn gone(cause: Cause) -> &'static str {
    match cause {
        Cause::Deregister => "was deregistered",
        Cause::Expire => "left: its lease ran out",
        Cause::HoldExpire => "left: its hold time passed, and its lease had run out before",
        Cause::ResolveHold => "was evicted by an operator while it was held",
        Cause::Register | Cause::Override | Cause::OverrideExpire | Cause::RenewHeld => "left",
    }
}

fn freed(cause: Cause) -> &'static str {
    match cause {
        Cause::Register => "was registered again",
        Cause::RenewHeld => "was renewed",
        Cause::ResolveHold => "was released by an operator",
        _ => "was freed",
    }
}

fn overridden(cause: Cause, over: Option<&Override>) -> String {
    let Some(over) = over else {
        let ended = if cause == Cause::OverrideExpire { "expired" } else { "was cleared" };
        return format!("its override {ended}");
    };
    let status = over.status.map(|status| match status {
        Status::Up => "UP",
        Status::Draining => "DRAINING",
        Status::Down => "DOWN",
    });
    let words = over.weight.map(|weight| format!(" weight {weight}"));
    let words: Vec<_> = words.into_iter().chain(status.map(|status| format!(" status {status}"))).collect();
    let reason = if over.reason.is_empty() { String::new() } else { format!(": {}", over.reason) };
    format!("was overridden to{}{reason}", words.join(" and"))
}

fn cause(it: &Happened) -> v1::Cause {
    if superseded(it).is_some() {
        return v1::Cause::Supersede;
    }
    match it.cause {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::*;
    use crate::core::{LeaseId, Spec};

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
        let whole = explained("e".into(), &of(10));
        assert_eq!((whole.events.len(), whole.known_since_revision), (10, 5));
        let cut = explained("e".into(), &of(1_000));
        assert!(cut.encoded_len() < 1 << 20, "{} bytes", cut.encoded_len());
        let (newest, oldest) = (&cut.events[0], cut.events.last().expect("some"));
        // The one before the oldest is the newest that is not told.
        assert_eq!((newest.revision, oldest.revision), (1_010, cut.known_since_revision + 1));
        assert_eq!(cut.known_since, oldest.at);
    }
}
