//! A panic of the user's balancer while it builds over an older view, step by step: what is kept of it, and what the next call gets.

use std::sync::OnceLock;

use super::*;
use crate::{
    balance::RoundRobin,
    model::{Address, Instance, InstanceList},
    runtime::{Runtime, TokioClock, TokioConnect, TokioSpawn},
};

/// Round robin that gets a newer view brought while it builds its first, and then panics.
struct Interrupted {
    inner: RoundRobin,
    entry: OnceLock<(Weak<Entry<Self>>, View)>,
    built: Mutex<Vec<usize>>,
}

impl Policy for Interrupted {
    type Picker = <RoundRobin as Policy>::Picker;

    fn build(&self, instances: &InstanceList) -> Self::Picker {
        let mut built = self.built.lock().expect("not poisoned");
        built.push(instances.len());
        if let (1, Some((entry, newer))) = (built.len(), self.entry.get()) {
            let entry = entry.upgrade().expect("it is building");
            assert!(entry.offer(newer.clone()), "it is newer");
            drop(built);
            panic!("as it is to");
        }
        self.inner.build(instances)
    }
}

fn view(version: u64, addresses: &[&str]) -> View {
    let instance = |address: &&str| {
        let address: Address = address.parse().expect("an address");
        Arc::new(Instance::builder(address).build())
    };
    View { instances: addresses.iter().map(instance).collect(), version: Some(version) }
}

#[test]
fn a_view_that_comes_while_a_policy_panics_over_an_older_one_is_not_lost() {
    let runtime = Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 1);
    let policy =
        Interrupted { inner: RoundRobin::new(&runtime), entry: OnceLock::new(), built: Mutex::default() };
    let recipe = Recipe::new(policy, &runtime);
    let entry = Entry::new(1);
    let newer = view(2, &["a:1", "b:1"]);
    assert!(recipe.policy.entry.set((Arc::downgrade(&entry), newer.clone())).is_ok());
    assert!(entry.offer(view(1, &["a:1"])));
    entry.build(&recipe);
    assert_eq!(
        *recipe.policy.built.lock().expect("not poisoned"),
        [1, 2],
        "the newer one is built all the same"
    );
    let built = entry.load_full().expect("built");
    assert_eq!((built.version, built.eligible.first().len()), (newer.version, 2));
}
