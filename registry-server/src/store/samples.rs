//! Records and bases for the store's tests: some by number, any by proptest.

use std::sync::Arc;

use proptest::{collection, option, prelude::*};

use super::{Fold, Loaded};
use crate::core::{
    Base, Carried, Cause, Event, Held, Instance, InstanceId, Lease, LeaseId, Loss, Override, Record,
    Registrant, Revision, ServiceKey, Spec, Status,
};

/// The nth record. Each is different.
pub(super) fn record(n: u64) -> Record {
    let key = ServiceKey { namespace: "default".into(), service: format!("service-{}", n % 3).into() };
    let spec = Spec {
        address: format!("10.0.0.{}:80", n % 250).into(),
        weight: 1,
        tags: [("version".into(), format!("v{n}").into())].into(),
        region: "".into(),
        zone: "a".into(),
        status: Status::Up,
    };
    let lease = LeaseId(u128::from(n).to_be_bytes());
    let registered =
        Event::Registered { key, id: format!("instance-{n}").into(), spec: Arc::new(spec), lease };
    Record { wall: n, cause: Cause::Register, actor: "uid#1".into(), events: vec![registered] }
}

/// As [`record`], with so much text that groups of them go over several sectors of a disk.
pub(super) fn large_record(n: u64) -> Record {
    let mut large = record(n);
    for event in &mut large.events {
        if let Event::Registered { spec, .. } = event {
            let text = "padding ".repeat(usize::try_from(n % 4).expect("small") * 50);
            Arc::make_mut(spec).tags.insert("text".into(), text.into());
        }
    }
    large
}

/// The removal of what the nth record registered.
pub(super) fn removal(n: u64) -> Record {
    let key = ServiceKey { namespace: "default".into(), service: format!("service-{}", n % 3).into() };
    let removed = Event::Removed { key, id: format!("instance-{n}").into(), loss: Some(Loss::Expired) };
    Record { wall: n, cause: Cause::Expire, actor: "uid#1".into(), events: vec![removed] }
}

/// A fold for tests: remembers the wall time of every record under its revision, so that nothing goes unnoticed.
pub(super) fn fold() -> Fold {
    Arc::new(|mut base, records| {
        for committed in records {
            assert!(committed.revision > base.revision, "folded twice or out of order");
            base.revision = committed.revision;
            let key =
                ServiceKey { namespace: "folded".into(), service: committed.revision.to_string().into() };
            base.services.push((key, committed.revision, committed.record.wall));
        }
        base
    })
}

/// All that a store holds, as the test fold and the tail tell it: revisions and wall times.
pub(super) fn visible(loaded: &Loaded) -> Vec<(Revision, u64)> {
    let base = loaded.base.services.iter().map(|(_, revision, wall)| (*revision, *wall));
    base.chain(loaded.tail.iter().map(|committed| (committed.revision, committed.record.wall))).collect()
}

fn text() -> BoxedStrategy<Arc<str>> {
    "[a-zä/:]{0,6}".prop_map(Arc::from).boxed()
}

fn key() -> impl Strategy<Value = ServiceKey> {
    (text(), text()).prop_map(|(namespace, service)| ServiceKey { namespace, service })
}

fn lease_id() -> impl Strategy<Value = LeaseId> {
    any::<[u8; 16]>().prop_map(LeaseId)
}

fn registrant() -> impl Strategy<Value = Registrant> {
    (text(), any::<u64>()).prop_map(|(uid, generation)| Registrant { uid, generation })
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(Status::Up), Just(Status::Draining), Just(Status::Down)]
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![Just(Loss::TakenOver), Just(Loss::Deregistered), Just(Loss::Expired), Just(Loss::Evicted)]
}

fn cause() -> impl Strategy<Value = Cause> {
    prop_oneof![
        Just(Cause::Register),
        Just(Cause::Deregister),
        Just(Cause::Expire),
        Just(Cause::Override),
        Just(Cause::OverrideExpire),
        Just(Cause::RenewHeld),
        Just(Cause::HoldExpire),
        Just(Cause::ResolveHold),
    ]
}

fn spec() -> impl Strategy<Value = Arc<Spec>> {
    (text(), any::<u16>(), collection::btree_map(text(), text(), 0..3), text(), text(), status()).prop_map(
        |(address, weight, tags, region, zone, status)| {
            Arc::new(Spec { address, weight, tags: tags.into(), region, zone, status })
        },
    )
}

fn held() -> impl Strategy<Value = Held> {
    (any::<u64>(), any::<u64>(), text()).prop_map(|(since, until, reason)| Held { since, until, reason })
}

fn over() -> impl Strategy<Value = Override> {
    let numbers = (option::of(any::<u16>()), option::of(status()), option::of(any::<u64>()));
    (numbers, any::<u64>(), any::<u64>(), text(), text()).prop_map(
        |((weight, status, expires_at), set_at, revision, actor, reason)| Override {
            weight,
            status,
            expires_at,
            set_at,
            revision,
            actor,
            reason,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let id = || text().prop_map(|id| -> InstanceId { id });
    prop_oneof![
        (lease_id(), registrant(), any::<u64>()).prop_map(|(lease, registrant, ttl)| Event::LeaseGranted {
            lease,
            registrant,
            ttl
        }),
        lease_id().prop_map(|lease| Event::LeaseEnded { lease }),
        (key(), id(), spec(), lease_id()).prop_map(|(key, id, spec, lease)| Event::Registered {
            key,
            id,
            spec,
            lease
        }),
        (key(), id(), proptest::option::of(loss())).prop_map(|(key, id, loss)| Event::Removed {
            key,
            id,
            loss
        }),
        (key(), id(), held()).prop_map(|(key, id, held)| Event::Held { key, id, held }),
        (key(), id()).prop_map(|(key, id)| Event::Released { key, id }),
        (key(), id(), over()).prop_map(|(key, id, over)| Event::OverrideSet { key, id, over }),
        (key(), id()).prop_map(|(key, id)| Event::OverrideCleared { key, id }),
    ]
}

/// Any record.
pub(super) fn any_record() -> impl Strategy<Value = Record> {
    (any::<u64>(), cause(), text(), collection::vec(event(), 1..4))
        .prop_map(|(wall, cause, actor, events)| Record { wall, cause, actor, events })
}

/// Any base.
pub(crate) fn any_base() -> impl Strategy<Value = Base> {
    let instance = (text(), spec(), lease_id(), any::<[u64; 4]>(), option::of(held().prop_map(Box::new)))
        .prop_map(|(id, spec, lease, [create_revision, mod_revision, registered_at, changed_at], held)| {
            Instance {
                id,
                spec,
                lease,
                create_revision,
                mod_revision,
                registered_at,
                changed_at,
                held,
                over: None,
            }
        });
    let lost = collection::btree_map((key(), text()), loss(), 0..3);
    let lease = (registrant(), any::<u64>(), lost).prop_map(|(registrant, ttl, lost)| Lease {
        registrant,
        ttl,
        instances: Carried::default(),
        lost: lost.into(),
    });
    (
        (1..u64::MAX, any::<u64>()),
        collection::vec((key(), any::<u64>(), any::<u64>()), 0..4),
        collection::vec((key(), instance), 0..4),
        collection::vec((lease_id(), lease), 0..4),
        collection::vec((key(), text(), over()), 0..4),
    )
        .prop_map(|((revision, forgotten_through), services, instances, leases, overrides)| Base {
            revision,
            forgotten_through,
            services,
            instances,
            leases,
            overrides,
        })
}
