//! The addresses for one request, in the order in which to try them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    sync::{Arc, Weak},
};

use super::{
    Eligible, LoadBalanceError, PickContext, PickError, Picker, Policy, Refused,
    entry::{Built, Entry},
    way::Way,
};
use crate::model::{Address, Endpoint};

/// First the instance that the policy picked, then the others, each once: at random by weight, whatever the policy; those
/// that have no share now (see [`shape`](super::shape)) after the others, and held ones last. Ends when all were tried.
///
/// It names addresses, and is told nothing of what becomes of them: policies that learn learn nothing here, and those that
/// count have nothing in flight, so that least request is a random choice by weight and a bound never binds. For these,
/// [`Handle`](super::Handle), the channel and the layer.
///
/// It looks at the instances anew for each retry, so an instance that left meanwhile, or takes no more requests, is not
/// tried (C2), and one that came is. It holds nothing of the cache: if that is gone, or has forgotten the endpoint, before the
/// first retry, there is no retry.
pub struct Candidates<P: Policy> {
    first: Address,
    /// How many were given out.
    given: usize,
    /// Where the others are found. What retries need is made when there is one: few requests come to that.
    others: Option<Way>,
    retry: Option<Box<Retry<P>>>,
}

struct Retry<P: Policy> {
    entry: Weak<Entry<P>>,
    /// What was known last.
    built: Arc<Built<P>>,
    tried: HashSet<Address>,
    random: fastrand::Rng,
    /// What `queue` was made from.
    of: Option<Eligible>,
    queue: Queue,
}

/// Places, by rank and then by when their turn is, as the bits of a number that is not negative.
type Queue = BinaryHeap<Reverse<(u8, u64, usize)>>;

impl<P: Policy> Candidates<P> {
    /// The endpoint names an address: no balancing.
    pub(crate) fn fixed(address: Address) -> Self {
        Self { first: address, given: 0, others: None, retry: None }
    }

    /// Of what is known, and the way to what will be.
    #[inline]
    pub(super) fn of(
        built: Option<&Built<P>>,
        entry: Way,
        endpoint: &Endpoint,
    ) -> Result<Self, LoadBalanceError> {
        let Some(picker) = built.and_then(|built| built.picker.as_ref()) else {
            return Err(nothing(built.map(|built| built.eligible.refused()), endpoint));
        };
        match picker.pick(&PickContext { hash_key: endpoint.hash_key, ..PickContext::new() }) {
            Ok(pick) => {
                let first = pick.instance().address.clone();
                Ok(Self { first, given: 0, others: Some(entry), retry: None })
            }
            Err(error) => Err(not_picked(error, endpoint)),
        }
    }
}

#[cold]
fn nothing(refused: Option<Refused>, endpoint: &Endpoint) -> LoadBalanceError {
    let reason = match refused {
        Some(refused) => refused.to_string(),
        None => "nothing is known of it yet".to_owned(),
    };
    LoadBalanceError::NoInstances { endpoint: endpoint.to_string(), reason }
}

#[cold]
fn not_picked(error: PickError, endpoint: &Endpoint) -> LoadBalanceError {
    let endpoint = endpoint.to_string();
    match error {
        PickError::NoInstances => {
            LoadBalanceError::NoInstances { endpoint, reason: "the policy chose none of them".to_owned() }
        }
        source => LoadBalanceError::Pick { endpoint, source },
    }
}

impl<P: Policy> Iterator for Candidates<P> {
    type Item = Address;

    #[inline]
    fn next(&mut self) -> Option<Address> {
        self.given += 1;
        if self.given == 1 { Some(self.first.clone()) } else { self.retry() }
    }
}

impl<P: Policy> Candidates<P> {
    /// The first was taken and another one is wanted.
    #[cold]
    fn retry(&mut self) -> Option<Address> {
        if let Some(entry) = self.others.take() {
            self.retry = Retry::after(self.first.clone(), &entry.follow()?).map(Box::new);
        }
        self.retry.as_mut()?.next()
    }
}

impl<P: Policy> Retry<P> {
    fn after(first: Address, entry: &Arc<Entry<P>>) -> Option<Self> {
        let random = fastrand::Rng::with_seed(entry.retry_seed());
        let (entry, built) = (Arc::downgrade(entry), entry.load_full()?);
        Some(Self { entry, built, tried: HashSet::from([first]), random, of: None, queue: BinaryHeap::new() })
    }

    fn next(&mut self) -> Option<Address> {
        // A key that was forgotten meanwhile is known as it was last.
        if let Some(newest) = self.entry.upgrade().and_then(|entry| entry.load_full()) {
            self.built = newest;
        }
        let now = self.built.eligible.clone();
        if self.of.as_ref().is_none_or(|of| !of.is_same(&now)) {
            self.queue = order(&now, &self.tried, &mut self.random);
        }
        let of = self.of.insert(now);
        loop {
            let Reverse((_, _, index)) = self.queue.pop()?;
            let instance = of.get(index)?;
            // Twice in one list, it is still tried once.
            if self.tried.insert(instance.address.clone()) {
                return Some(instance.address.clone());
            }
        }
    }
}

impl<P: Policy> std::fmt::Debug for Candidates<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidates").finish_non_exhaustive()
    }
}

/// A random order by weight, without replacement: each draws the time of its first event at a rate of its weight, and the
/// earliest comes first (Efraimidis and Spirakis, *Weighted random sampling with a reservoir*, 2006).
fn order(eligible: &Eligible, tried: &HashSet<Address>, random: &mut fastrand::Rng) -> Queue {
    let mut queue = Vec::with_capacity(eligible.first().len() + eligible.last().len());
    for (index, instance) in eligible.first().iter().chain(eligible.last().iter()).enumerate() {
        if tried.contains(&instance.address) {
            continue;
        }
        let time = -(1.0 - random.f64()).ln() / f64::from(instance.weight.max(1));
        let rank = if index < eligible.first().len() { 0 } else { 1 + u8::from(instance.held) };
        // Of numbers that are not negative, the bits are in the order of the numbers.
        queue.push(Reverse((rank, time.abs().to_bits(), index)));
    }
    queue.into()
}
