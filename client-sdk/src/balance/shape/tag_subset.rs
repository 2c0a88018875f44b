//! Instances with certain tags only, and what to do where there are none.
//!
//! After Envoy's subset load balancer and its fallback policies (*Load balancer subsets*: no fallback, any endpoint, default
//! subset), with one subset for each caller instead of one for each request.

use std::{borrow::Cow, sync::Arc};

use super::Filter;
use crate::{
    balance::CallerOrder,
    model::{Instance, InstanceList},
};

type Tags = Vec<(Cow<'static, str>, Cow<'static, str>)>;

/// Keeps the instances whose tags have certain values, all of them.
///
/// Whether there are any is asked of all that may be chosen, whatever their health: a subset that is ill is not left. Where
/// the others need never be known, a [`Selector`](crate::model::Selector) has the registry leave them out.
///
/// ```
/// use client_sdk::balance::shape::TagSubset;
/// let canary = TagSubset::new([("version", "2"), ("stage", "canary")]).or_tags([("version", "2")]);
/// ```
#[derive(Clone, Debug)]
pub struct TagSubset {
    tags: Tags,
    fallback: Fallback,
}

/// What is used where no instance has the tags.
#[derive(Clone, Debug)]
enum Fallback {
    Nothing,
    Any,
    Tags(Tags),
}

impl TagSubset {
    /// The instances that have all these tags. Where there are none, none is used and requests fail, unless a fallback is
    /// set. Without tags it keeps all.
    pub fn new<K, V>(tags: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<Cow<'static, str>>,
        V: Into<Cow<'static, str>>,
    {
        Self { tags: pairs(tags), fallback: Fallback::Nothing }
    }

    /// Where no instance has the tags, any will do.
    #[must_use]
    pub fn or_any(mut self) -> Self {
        self.fallback = Fallback::Any;
        self
    }

    /// Where no instance has the tags, those with these will do. Where there are none of these either, none is used.
    #[must_use]
    pub fn or_tags<K, V>(mut self, tags: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<Cow<'static, str>>,
        V: Into<Cow<'static, str>>,
    {
        self.fallback = Fallback::Tags(pairs(tags));
        self
    }
}

impl Filter for TagSubset {
    fn filter(&self, instances: &InstanceList, _: CallerOrder) -> InstanceList {
        let found = with(instances, &self.tags);
        match &self.fallback {
            _ if !found.is_empty() => found,
            Fallback::Nothing => found,
            Fallback::Any => Arc::clone(instances),
            Fallback::Tags(tags) => with(instances, tags),
        }
    }
}

fn pairs<K, V>(tags: impl IntoIterator<Item = (K, V)>) -> Tags
where
    K: Into<Cow<'static, str>>,
    V: Into<Cow<'static, str>>,
{
    tags.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

fn with(instances: &InstanceList, tags: &Tags) -> InstanceList {
    let has =
        |instance: &&Arc<Instance>| tags.iter().all(|(key, value)| instance.tags.get(key) == Some(value));
    if instances.iter().all(|instance| has(&instance)) {
        return Arc::clone(instances);
    }
    instances.iter().filter(has).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tags: &[&[(&'static str, &'static str)]]) -> InstanceList {
        let build = |(port, tags): (usize, &&[(&'static str, &'static str)])| {
            let address = format!("a:{}", port + 1).parse().expect("valid");
            let plain = Instance::builder(address).id(port.to_string());
            Arc::new(tags.iter().fold(plain, |built, (key, value)| built.tag(*key, *value)).build())
        };
        tags.iter().enumerate().map(build).collect()
    }

    fn ids(filter: &TagSubset, all: &InstanceList) -> Vec<String> {
        filter.filter(all, CallerOrder::new(1)).iter().map(|instance| instance.id.to_string()).collect()
    }

    #[test]
    fn all_tags_must_be_equal() {
        let all = list(&[
            &[("version", "2"), ("stage", "canary")],
            &[("version", "2")],
            &[("version", "1"), ("stage", "canary")],
            &[],
        ]);
        let both = [("version", "2"), ("stage", "canary")];
        assert_eq!(ids(&TagSubset::new(both), &all), ["0"]);
        assert_eq!(ids(&TagSubset::new([("version", "2")]), &all), ["0", "1"]);
        assert_eq!(ids(&TagSubset::new::<&str, &str>([]), &all).len(), 4);
    }

    #[test]
    fn where_no_instance_has_the_tags_the_fallback_says_what_is_used() {
        let all = list(&[&[("version", "1")], &[]]);
        let two = || TagSubset::new([("version", "2")]);
        assert!(ids(&two(), &all).is_empty());
        assert_eq!(ids(&two().or_any(), &all), ["0", "1"]);
        assert_eq!(ids(&two().or_tags([("version", "1")]), &all), ["0"]);
        assert!(ids(&two().or_tags([("version", "3")]), &all).is_empty());
        let there = list(&[&[("version", "1")], &[("version", "2")]]);
        assert_eq!(ids(&two().or_any(), &there), ["1"], "a fallback is for where there are none");
    }
}
