//! Which instances of a service a view contains.

use std::{collections::BTreeMap, sync::Arc};

use super::{Instance, Status};

/// Chooses instances by what they say of themselves. The default chooses all. Canonical: equal selections compare and
/// hash equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    tags: BTreeMap<Arc<str>, Arc<str>>,
    zone: Option<Arc<str>>,
    statuses: Vec<u8>,
}

impl Selector {
    /// All instances.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only instances that have this tag with exactly this value, besides what was asked before.
    #[must_use]
    pub fn tag(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.tags.insert(key.into(), value.into());
        self
    }

    /// Only instances in this zone.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into()).filter(|zone: &Arc<str>| !zone.is_empty());
        self
    }

    /// Only instances of these statuses. None, or all there are: any.
    #[must_use]
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = Status>) -> Self {
        self.statuses = statuses.into_iter().map(number).collect();
        self.statuses.sort_unstable();
        self.statuses.dedup();
        if self.statuses.len() == STATUSES {
            self.statuses.clear();
        }
        self
    }

    /// Whether the selection contains the instance.
    pub fn matches(&self, instance: &Instance) -> bool {
        self.tags.iter().all(|(key, value)| instance.tags.get(&**key).is_some_and(|v| *v == **value))
            && self.zone.as_ref().is_none_or(|zone| *zone == instance.locality.zone)
            && (self.statuses.is_empty() || self.statuses.contains(&number(instance.status)))
    }

    /// The required tags, ordered by key.
    pub fn required_tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The required zone.
    pub fn required_zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The statuses asked for. Empty: any.
    pub fn asked_statuses(&self) -> impl Iterator<Item = Status> {
        self.statuses.iter().map(|number| match number {
            0 => Status::Up,
            1 => Status::Draining,
            _ => Status::Down,
        })
    }
}

/// How many there are.
const STATUSES: usize = 3;

fn number(status: Status) -> u8 {
    match status {
        Status::Up => 0,
        Status::Draining => 1,
        Status::Down => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_selections_compare_equal() {
        let one =
            Selector::all().tag("a", "1").tag("b", "2").statuses([Status::Down, Status::Up, Status::Up]);
        let two = Selector::all().tag("b", "2").tag("a", "1").statuses([Status::Up, Status::Down]);
        assert_eq!(one, two);
        assert_eq!(Selector::all().zone(""), Selector::all());
        let any = Selector::all().statuses([Status::Up, Status::Draining, Status::Down]);
        assert_eq!(any, Selector::all(), "whatever the status");
    }

    #[test]
    fn it_matches_tags_zone_and_status_together() {
        let address = "a:1".parse().expect("valid");
        let instance = Instance::builder(address).tag("v", "2").locality("r", "z").build();
        let selector = Selector::all().tag("v", "2").zone("z").statuses([Status::Up]);
        assert!(selector.matches(&instance));
        assert!(!selector.clone().tag("w", "1").matches(&instance));
        assert!(!selector.clone().zone("y").matches(&instance));
        assert!(!selector.statuses([Status::Down]).matches(&instance));
    }
}
