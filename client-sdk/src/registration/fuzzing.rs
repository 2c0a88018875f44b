//! What holds of a lease whatever a registry answers, as checks that panic: for tests and fuzzers.

use std::{collections::BTreeMap, time::Duration};

use registry_proto::v1;

use super::{
    Watchers,
    lease::{Lease, Slot},
};
use crate::model::Instance;

/// A lease of two instances that is checked after each answer.
pub(crate) struct Checked {
    lease: Lease,
    lost: usize,
}

impl Checked {
    /// As it is before the first answer.
    pub(crate) fn new() -> Self {
        let instances: BTreeMap<_, _> = ["a:1", "b:1"]
            .map(|address| {
                let instance = Instance::builder(address.parse().expect("valid")).build();
                let slot = Slot { namespace: "default".into(), service: "s".into(), id: instance.id.clone() };
                (slot, instance)
            })
            .into();
        let ttl = Duration::from_secs(15);
        let lease = Lease {
            id: [7; 16],
            instance_uid: "u".to_owned(),
            generation: 1,
            ttl,
            granted: ttl,
            revision: 0,
            epoch: String::new(),
            taken: instances.clone(),
            instances,
        };
        Self { lease, lost: 0 }
    }

    /// The registry took the words.
    pub(crate) fn granted(&mut self, response: &v1::RegisterResponse) {
        self.lease.granted(response);
        let bounds = Duration::from_secs(1)..=Duration::from_hours(24);
        assert!(bounds.contains(&self.lease.granted), "renewed every {:?}", self.lease.granted / 3);
        self.check();
    }

    /// The registry says what is lost.
    pub(crate) fn lose(&mut self, lost: Vec<v1::LostInstance>) {
        self.lost += self.lease.lose(lost).gone.len();
        self.check();
    }

    /// The registry says of two services who has applied the words.
    pub(crate) fn applied(answers: &[v1::WaitAppliedResponse; 2]) {
        let mut sum = Watchers::default();
        for answer in answers {
            sum.add(answer);
        }
        let [one, other] = answers;
        assert!(sum.acked >= one.acked.max(other.acked) && sum.lagging >= one.lagging.max(other.lagging));
        assert!(sum.disconnected >= other.disconnected && sum.not_acking >= other.not_acking);
    }

    fn check(&self) {
        assert_eq!(self.lease.instances.len() + self.lost, 2, "each is lost once, and nobody else");
        assert!(self.lease.taken.len() <= 2);
        assert!(self.lease.epoch.len() <= 253 && self.lease.waits().len() <= 1);
        assert_eq!(self.lease.request().registrations.len(), self.lease.instances.len());
        assert_eq!(self.lease.id, [7; 16]);
    }
}
