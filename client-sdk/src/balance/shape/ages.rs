//! Since when an instance is there: for those that came after the first view, and those that came back.
//!
//! ```text
//!   first view ──► from the start ──┐ down, or nobody could connect to it, and then up and connected again;
//!   later view ──► since then ◄─────┘ another incarnation; another address
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::model::{Address, Instance, Status};

/// What is known of the instances of one view, by id.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// `None`: no view yet.
    known: Option<HashMap<Arc<str>, Known>>,
}

#[derive(Debug)]
struct Known {
    incarnation: u64,
    address: Address,
    /// Its status was down.
    down: bool,
    /// It could not be connected.
    failed: bool,
    since: Option<Duration>,
}

impl Ages {
    /// Takes in a view, whole.
    pub(super) fn view(&mut self, all: &[Arc<Instance>], now: Duration) {
        let came = self.known.is_some().then_some(now);
        let mut before = self.known.take().unwrap_or_default();
        let known = all.iter().map(|instance| {
            let known = match before.remove(&instance.id) {
                Some(known) if known.is(instance) => known.passes(instance.status == Status::Down, now),
                Some(_) => Known::new(instance, Some(now)),
                None => Known::new(instance, came),
            };
            (Arc::clone(&instance.id), known)
        });
        self.known = Some(known.collect());
    }

    /// Takes in whether it can be connected. `None`: nobody can tell now.
    pub(super) fn reached(&mut self, id: &str, reached: Option<bool>, now: Duration) {
        let Some(known) = self.known.as_mut().and_then(|known| known.get_mut(id)) else { return };
        match reached {
            Some(false) => known.failed = true,
            Some(true) if std::mem::take(&mut known.failed) => known.since = Some(now),
            Some(true) | None => {}
        }
    }

    /// Since when it is there. `None`: from the start.
    pub(super) fn since(&self, id: &str) -> Option<Duration> {
        self.known.as_ref()?.get(id)?.since
    }
}

impl Known {
    fn new(instance: &Instance, since: Option<Duration>) -> Self {
        Self {
            incarnation: instance.create_revision,
            address: instance.address.clone(),
            down: instance.status == Status::Down,
            failed: false,
            since,
        }
    }

    fn is(&self, instance: &Instance) -> bool {
        self.incarnation == instance.create_revision && self.address == instance.address
    }

    fn passes(mut self, down: bool, now: Duration) -> Self {
        if self.down && !down {
            self.since = Some(now);
        }
        self.down = down;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, incarnation: u64, status: Status) -> Arc<Instance> {
        let address = "a:1".parse().expect("valid");
        Arc::new(Instance::builder(address).id(id).revisions(incarnation, 0).status(status).build())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_comes_after_the_first_view_or_comes_back_has_an_age() {
        use Status::{Down, Draining, Up};
        let mut ages = Ages::default();
        ages.view(&[instance("a", 1, Up), instance("b", 1, Down), instance("c", 1, Draining)], at(1));
        assert_eq!(["a", "b", "c"].map(|id| ages.since(id)), [None; 3], "the first view");
        let all = [instance("a", 1, Up), instance("b", 1, Up), instance("c", 1, Up), instance("d", 1, Up)];
        ages.view(&all, at(2));
        let since = ["a", "b", "c", "d"].map(|id| ages.since(id));
        assert_eq!(since, [None, Some(at(2)), None, Some(at(2))], "one that drained was warm");
        ages.view(&[instance("a", 2, Up), instance("d", 1, Up)], at(3));
        assert_eq!(["a", "d"].map(|id| ages.since(id)), [Some(at(3)), Some(at(2))], "another incarnation");
        ages.view(&[instance("a", 2, Up), instance("b", 1, Up)], at(4));
        assert_eq!(ages.since("b"), Some(at(4)), "it had been gone");
    }

    #[test]
    fn what_could_not_be_connected_is_new_when_it_is_connected_again() {
        let mut ages = Ages::default();
        ages.view(&[instance("a", 1, Status::Up)], at(1));
        ages.reached("a", Some(true), at(2));
        assert_eq!(ages.since("a"), None);
        ages.reached("a", Some(false), at(3));
        ages.reached("a", None, at(4));
        assert_eq!(ages.since("a"), None, "not yet");
        ages.reached("a", Some(true), at(5));
        ages.reached("a", Some(true), at(6));
        assert_eq!(ages.since("a"), Some(at(5)));
        ages.reached("gone", Some(false), at(7));
    }
}
