//! Pure: our instances as volo's, and the difference between two of its lists.
//!
//! The home of C2 towards volo, which knows of no status and sends requests to instances of weight 0.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

use ::volo::{
    discovery::{Change, Instance as VoloInstance},
    net::Address as VoloAddress,
};

use super::VoloKey;
use crate::{
    balance::{Eligible, Refused},
    model::{Address, AddressKind, Instance, InstanceList},
};

/// Instances that many hold at once.
pub(super) type VoloList = Arc<[Arc<VoloInstance>]>;

/// What volo is told of a view.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Whom it may choose: each address once.
    pub(super) instances: VoloList,
    /// Whom not, and why.
    pub(super) refused: Refused,
    /// How many would take requests at addresses that volo cannot express.
    pub(super) unusable: usize,
}

impl Told {
    /// What volo is told of a view, after it was told `before`: those that are as they were are shared.
    pub(super) fn of(all: &InstanceList, before: &[Arc<VoloInstance>]) -> Self {
        let unusable = |i: &Arc<Instance>| i.takes_requests() && to_volo(&i.address).is_none();
        let without = all.iter().filter(|instance| unusable(instance)).count();
        let usable = match without {
            0 => Arc::clone(all),
            _ => all.iter().filter(|instance| !unusable(instance)).cloned().collect(),
        };
        let eligible = Eligible::of(&usable);
        let mut refused = eligible.refused();
        refused.total = all.len();
        let known: HashMap<_, _> = before.iter().map(|instance| (&instance.address, instance)).collect();
        let instances = by_address(eligible.first())
            .into_iter()
            .map(|(address, instance)| match known.get(&address) {
                Some(known) if known.weight == instance.weight && known.tags == instance.tags => {
                    Arc::clone(known)
                }
                _ => {
                    let (weight, tags) = (instance.weight, instance.tags.clone());
                    Arc::new(VoloInstance { address, weight, tags })
                }
            })
            .collect();
        Self { instances, refused, unusable: without }
    }
}

/// The change from one list to another, as volo compares: by address.
pub(super) fn change<K>(
    key: VoloKey<K>,
    before: &[Arc<VoloInstance>],
    all: &[Arc<VoloInstance>],
) -> Change<VoloKey<K>> {
    let old: HashMap<_, _> = before.iter().map(|instance| (&instance.address, instance)).collect();
    let new: HashMap<_, _> = all.iter().map(|instance| (&instance.address, instance)).collect();
    let in_old = |instance: &VoloInstance| old.get(&instance.address).copied();
    Change {
        key,
        all: all.to_vec(),
        added: all.iter().filter(|i| in_old(i).is_none()).cloned().collect(),
        updated: all.iter().filter(|i| in_old(i).is_some_and(|o| o != *i)).cloned().collect(),
        removed: before.iter().filter(|i| !new.contains_key(&i.address)).cloned().collect(),
    }
}

/// The address in volo's words. `None` for a host name, which volo does not know, and for the path of a socket that is
/// longer than the system allows.
pub(super) fn to_volo(address: &Address) -> Option<VoloAddress> {
    match address.kind() {
        AddressKind::Tcp { .. } => address.as_str().parse::<SocketAddr>().ok().map(VoloAddress::Ip),
        #[cfg(unix)]
        AddressKind::Unix(path) => {
            std::os::unix::net::SocketAddr::from_pathname(path).ok().map(VoloAddress::Unix)
        }
        #[cfg(not(unix))]
        AddressKind::Unix(_) => None,
    }
}

/// An address that is registered under two ids is one instance to volo: the newer incarnation.
fn by_address(instances: &[Arc<Instance>]) -> Vec<(VoloAddress, &Arc<Instance>)> {
    let mut list: Vec<(VoloAddress, &Arc<Instance>)> = Vec::with_capacity(instances.len());
    let mut at: HashMap<VoloAddress, usize> = HashMap::with_capacity(instances.len());
    for instance in instances {
        let Some(address) = to_volo(&instance.address) else { continue };
        match at.entry(address.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(list.len());
                list.push((address, instance));
            }
            Entry::Occupied(at) => {
                let (_, known) = &mut list[*at.get()];
                if known.create_revision <= instance.create_revision {
                    *known = instance;
                }
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Status;

    fn instance(address: &str, weight: u32) -> Instance {
        Instance::builder(address.parse().expect("valid")).weight(weight).build()
    }

    fn list(instances: impl IntoIterator<Item = Instance>) -> InstanceList {
        instances.into_iter().map(Arc::new).collect()
    }

    fn addresses(list: &[Arc<VoloInstance>]) -> Vec<String> {
        list.iter().map(|instance| instance.address.to_string()).collect()
    }

    #[test]
    fn what_takes_no_requests_is_not_told_to_volo() {
        let draining =
            Instance::builder("10.0.0.1:1".parse().expect("valid")).status(Status::Draining).build();
        let held = Instance::builder("10.0.0.2:1".parse().expect("valid")).held(true).build();
        let all = list([instance("10.0.0.3:1", 0), draining, held.clone(), instance("10.0.0.4:1", 7)]);
        let told = Told::of(&all, &[]);
        assert_eq!(
            (addresses(&told.instances), told.instances[0].weight),
            (vec!["10.0.0.4:1".to_owned()], 7)
        );
        assert_eq!(told.refused.to_string(), "4 instances: 1 of weight 0, 1 draining");
        let told = Told::of(&list([held, instance("10.0.0.3:1", 0)]), &[]);
        assert_eq!(addresses(&told.instances), ["10.0.0.2:1"], "there are no others");
    }

    #[test]
    fn addresses_that_volo_cannot_express_are_left_out_and_counted() {
        let long = format!("unix:/{}", "a".repeat(200));
        let all = list([
            instance("greeter.local:1", 1),
            instance(&long, 1),
            instance("draining.local:1", 0),
            instance("[::1]:1", 1),
            instance("[fe80::1%2]:1", 1),
            instance("unix:/run/a.sock", 1),
        ]);
        let told = Told::of(&all, &[]);
        assert_eq!((told.unusable, told.refused.total, told.refused.weightless), (2, 6, 1));
        assert_eq!(addresses(&told.instances), ["[::1]:1", "[fe80::1%2]:1", "/run/a.sock"]);
    }

    #[test]
    fn a_held_instance_stands_in_for_one_that_volo_cannot_express() {
        let held = Instance::builder("10.0.0.2:1".parse().expect("valid")).held(true).build();
        let told = Told::of(&list([instance("greeter.local:1", 1), held]), &[]);
        assert_eq!(addresses(&told.instances), ["10.0.0.2:1"]);
    }

    #[test]
    fn an_address_under_two_ids_is_one_instance_the_newer_one() {
        let under = |id: &str, revision, weight| {
            let address = "10.0.0.1:1".parse().expect("valid");
            Instance::builder(address).id(id).weight(weight).revisions(revision, revision).build()
        };
        for pair in [[under("a", 1, 1), under("b", 2, 5)], [under("b", 2, 5), under("a", 1, 1)]] {
            let told = Told::of(&list(pair), &[]);
            assert_eq!((told.instances.len(), told.instances[0].weight), (1, 5));
        }
    }

    #[test]
    fn a_change_is_by_address_and_sees_weights_and_tags() {
        let tagged = Instance::builder("10.0.0.3:1".parse().expect("valid")).tag("v", "2").build();
        let all = [1, 2, 3, 4].map(|n| instance(&format!("10.0.0.{n}:1"), 1));
        let before = Told::of(&list(all.clone()), &[]);
        let next = [all[0].clone(), instance("10.0.0.2:1", 9), tagged, instance("10.0.0.5:1", 1)];
        let after = Told::of(&list(next), &before.instances);
        let change = change(VoloKey::View(()), &before.instances, &after.instances);
        assert_eq!(addresses(&change.all), ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.5:1"]);
        assert_eq!(addresses(&change.added), ["10.0.0.5:1"]);
        assert_eq!(addresses(&change.updated), ["10.0.0.2:1", "10.0.0.3:1"]);
        assert_eq!(addresses(&change.removed), ["10.0.0.4:1"]);
        assert!(Arc::ptr_eq(&before.instances[0], &after.instances[0]), "what did not change is shared");
    }
}
