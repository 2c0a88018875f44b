//! The background task of a channel: follows the view, owns the connections, publishes the routes.
//!
//! It works whether or not calls are made, so an idle channel connects, notices dead peers, and drains. A change of the
//! view is published at once (C2); changes of connections, of which there may be a thousand in a moment, are gathered
//! for a few milliseconds: until then each call finds out for itself that a connection is not ready.
//!
//! Keeps C1 in that a failing discovery changes nothing but the error that the routes carry, and the *make before
//! break* of the channel: a connection ends only when its instance left the view or changed its address, after what is
//! in flight on it. Weight, tags and status never close one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    chooser::Chooser,
    connection::{ConnectionState, Order, Owner},
    routes::{Entry, Routes},
    shared::Shared,
};
use crate::{
    discover::{Followed, ViewState},
    model::{Instance, InstanceList},
};

/// How long changes of connections are gathered.
const GATHER: Duration = Duration::from_millis(5);

pub(super) struct Driver {
    shared: Arc<Shared>,
    followed: Followed,
    instances: InstanceList,
    state: ViewState,
    owners: HashMap<Arc<str>, Owner>,
    /// What left the view and still finishes what it has.
    leaving: Vec<(Arc<Instance>, Owner)>,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, followed: Followed) -> Self {
        Self {
            shared,
            followed,
            instances: InstanceList::default(),
            state: ViewState::default(),
            owners: HashMap::new(),
            leaving: Vec::new(),
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        self.take_view();
        self.publish();
        let mut closed = false;
        loop {
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                biased;
                changed = self.followed.receiver().changed(), if !closed => {
                    closed = changed.is_err();
                    self.take_view();
                }
                () = shared.wake.notified() => {
                    if !self.opens() {
                        tokio::select! {
                            biased;
                            changed = self.followed.receiver().changed(), if !closed => {
                                closed = changed.is_err();
                                self.take_view();
                            }
                            () = tokio::time::sleep(GATHER) => {}
                        }
                    }
                }
            }
            self.publish();
        }
    }

    /// Takes in the newest state of the view.
    fn take_view(&mut self) {
        self.state = self.followed.receiver().borrow_and_update().clone();
        let Some(view) = self.state.view.clone() else { return };
        if Arc::ptr_eq(&view.instances, &self.instances) {
            return;
        }
        if let Chooser::LoadBalance(balance) = &self.shared.chooser {
            balance.changed(&self.shared.endpoint, &self.instances, &view);
        }
        // A list that names an id twice is answered by its first.
        let mut seen = HashSet::new();
        let instances: InstanceList =
            view.instances.iter().filter(|instance| seen.insert(&*instance.id)).cloned().collect();
        let before = std::mem::replace(&mut self.instances, Arc::clone(&view.instances));
        for gone in before.iter().filter(|instance| !seen.contains(&*instance.id)) {
            self.leave(gone);
        }
        let before: HashMap<&str, &Arc<Instance>> = before.iter().map(|i| (&*i.id, i)).collect();
        for instance in instances.iter() {
            let moved = |owner: &Owner| *owner.connection.address() != instance.address;
            if self.owners.get(&instance.id).is_some_and(moved) {
                self.leave(before.get(&*instance.id).unwrap_or(&instance));
            }
            let order = if instance.takes_requests() {
                Order::Connect { incarnation: instance.create_revision }
            } else {
                Order::Rest
            };
            if let Some(owner) = self.owners.get(&instance.id) {
                owner.instance_changed(Arc::clone(instance));
                owner.order(order);
            } else {
                let owner = self.shared.connect(Arc::clone(instance), order);
                self.owners.insert(Arc::clone(&instance.id), owner);
            }
        }
    }

    /// Whether the first instance that a call can go to is there: calls wait for it.
    fn opens(&self) -> bool {
        !self.shared.routes.load().is_open()
            && self.owners.values().any(|owner| owner.connection.state() == ConnectionState::Ready)
    }

    fn leave(&mut self, instance: &Arc<Instance>) {
        if let Some(owner) = self.owners.remove(&instance.id) {
            owner.order(Order::Drain);
            self.leaving.push((Arc::clone(instance), owner));
        }
    }

    fn publish(&mut self) {
        self.leaving.retain(|(_, owner)| !owner.connection.is_gone());
        let mut seen = HashSet::new();
        let present = self.instances.iter().filter(|instance| seen.insert(&*instance.id));
        let present = present.filter_map(|instance| {
            let owner = self.owners.get(&instance.id)?;
            Some(entry(instance, owner, false))
        });
        let leaving = self.leaving.iter().map(|(instance, owner)| entry(instance, owner, true));
        let entries = present.chain(leaving).collect();
        let before = self.shared.routes.load();
        self.shared.publish(Routes::build(
            &before,
            entries,
            self.state.view.is_some(),
            self.state.error.clone(),
            &self.shared.chooser,
        ));
    }
}

fn entry(instance: &Arc<Instance>, owner: &Owner, removed: bool) -> Entry {
    Entry { instance: Arc::clone(instance), connection: Arc::clone(&owner.connection), removed }
}
