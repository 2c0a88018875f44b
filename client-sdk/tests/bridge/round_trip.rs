//! Ours to tower's and back again.

use std::{collections::BTreeMap, sync::Arc};

use client_sdk::{
    bridge::{LiveInstance, ServiceChanges, TowerDiscover},
    discover::Discover,
    model::{Instance, Status},
    runtime::Runtime,
};
use proptest::prelude::*;

use crate::fake::{Fake, endpoint, settle};

fn there_and_back(fake: &Arc<Fake>) -> TowerDiscover {
    let services = ServiceChanges::new(Arc::clone(fake), endpoint(), &Runtime::tokio(), |live| live);
    TowerDiscover::new(services, &Runtime::tokio(), |_, live: &LiveInstance| (*live.get()).clone())
}

/// By id, since tower knows no order.
fn by_id(list: &[Arc<Instance>]) -> BTreeMap<Arc<str>, Arc<Instance>> {
    list.iter().map(|instance| (Arc::clone(&instance.id), Arc::clone(instance))).collect()
}

/// A view: for each of a few ids nothing, or its port and whether it takes requests.
fn view() -> impl Strategy<Value = Vec<Instance>> {
    prop::collection::vec(prop::option::of((1_u16..4, 0..4)), 6).prop_map(|slots| {
        let build = |(slot, (port, kind))| {
            let builder = Instance::builder(format!("a:{port}").parse().unwrap()).id(format!("id-{slot}"));
            match kind {
                0 => builder.weight(0).build(),
                1 => builder.status(Status::Draining).build(),
                _ => builder.weight(3).tag("v", "1").build(),
            }
        };
        slots.into_iter().enumerate().filter_map(|(slot, it)| Some((slot, it?))).map(build).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_comes_back_are_the_instances_that_take_requests(views in prop::collection::vec((view(), any::<bool>()), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fake = Fake::with("s", &[]);
            let back = there_and_back(&fake);
            for (view, look) in views {
                fake.publish("s", &view);
                if !look {
                    // Several changes become one.
                    continue;
                }
                settle().await;
                let takes: Vec<_> = view.into_iter().filter(Instance::takes_requests).map(Arc::new).collect();
                // Nothing is told of a view before its first instance.
                if let Some(known) = &back.view(&endpoint()).unwrap().borrow().view {
                    assert_eq!(by_id(&known.instances), by_id(&takes));
                } else {
                    assert!(takes.is_empty());
                }
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_view_that_is_replaced_as_a_whole_is_never_empty_on_the_way() {
    let instance = |port| Instance::builder(format!("a:{port}").parse().unwrap()).build();
    let fake = Fake::with("s", &[instance(1), instance(2)]);
    let back = there_and_back(&fake);
    let mut changes = back.watch().unwrap();
    assert_eq!(back.discover(&endpoint()).await.unwrap().len(), 2);
    assert_eq!(changes.recv().await.unwrap().added.len(), 2);
    for port in (3..200).step_by(2) {
        fake.publish("s", &[instance(port), instance(port + 1)]);
        let change = changes.recv().await.unwrap();
        assert_eq!((change.all.len(), change.added.len(), change.removed.len()), (2, 2, 2), "at once (W4)");
    }
}
