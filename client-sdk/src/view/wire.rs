//! Instances, keys and selectors between the wire and the SDK's own words.

use std::collections::HashMap;

use registry_proto::v1;

use super::{LocalView, ViewKey};
use crate::model::{AddressError, Instance, Selector, Status};

/// The greatest weight of the protocol; a greater one is read as this.
const MAX_WEIGHT: u32 = 65_535;

/// Reads an instance. An unknown status is read as `Down`: what is not understood is not called.
pub(crate) fn instance(wire: v1::Instance) -> Result<Instance, AddressError> {
    let mut builder = Instance::builder(wire.address.parse()?)
        .weight(wire.weight.unwrap_or(1).min(MAX_WEIGHT))
        .status(status(wire.status))
        .held(wire.held.is_some())
        .revisions(wire.create_revision, wire.mod_revision);
    if !wire.id.is_empty() {
        builder = builder.id(wire.id);
    }
    if let Some(locality) = wire.locality {
        builder = builder.locality(locality.region, locality.zone);
    }
    for (key, value) in wire.tags {
        builder = builder.tag(key, value);
    }
    Ok(builder.build())
}

/// Writes an instance.
pub(crate) fn to_wire(instance: &Instance) -> v1::Instance {
    let status = match instance.status {
        Status::Up => v1::InstanceStatus::Up,
        Status::Draining => v1::InstanceStatus::Draining,
        Status::Down => v1::InstanceStatus::Down,
    };
    v1::Instance {
        id: instance.id.to_string(),
        address: instance.address.to_string(),
        weight: Some(instance.weight),
        tags: instance.tags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        locality: Some(v1::Locality {
            region: instance.locality.region.to_string(),
            zone: instance.locality.zone.to_string(),
        }),
        status: status.into(),
        create_revision: instance.create_revision,
        mod_revision: instance.mod_revision,
        held: instance.held.then(v1::Held::default),
        ..v1::Instance::default()
    }
}

/// Writes what is asked for to follow a view from where it is.
pub(crate) fn watch(view: &LocalView) -> v1::WatchRequest {
    let key = view.key();
    let cursor = view.cursor();
    v1::WatchRequest {
        scope: Some(v1::watch_request::Scope::Key(service(key))),
        selector: Some(selector(&key.selector)),
        cursor: cursor.map(|at| v1::Cursor { epoch: at.epoch.to_string(), revision: at.revision }),
        include_all: false,
        force_snapshot: view.needs_snapshot(),
    }
}

/// Writes the service that a view is of.
pub(crate) fn service(key: &ViewKey) -> v1::ServiceKey {
    v1::ServiceKey { namespace: key.namespace.to_string(), service: key.service.to_string() }
}

/// Writes a selector.
pub(crate) fn selector(selector: &Selector) -> v1::Selector {
    let statuses = selector.asked_statuses().map(|status| match status {
        Status::Up => v1::InstanceStatus::Up.into(),
        Status::Draining => v1::InstanceStatus::Draining.into(),
        Status::Down => v1::InstanceStatus::Down.into(),
    });
    v1::Selector {
        tags: selector
            .required_tags()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect::<HashMap<_, _>>(),
        zone: selector.required_zone().unwrap_or_default().to_owned(),
        statuses: statuses.collect(),
    }
}

/// Reads a selector.
pub(crate) fn selector_of(wire: v1::Selector) -> Selector {
    let mut selector = Selector::all().zone(wire.zone).statuses(wire.statuses.into_iter().map(status));
    for (key, value) in wire.tags {
        selector = selector.tag(key, value);
    }
    selector
}

fn status(wire: i32) -> Status {
    match v1::InstanceStatus::try_from(wire) {
        Ok(v1::InstanceStatus::Up | v1::InstanceStatus::Unspecified) => Status::Up,
        Ok(v1::InstanceStatus::Draining) => Status::Draining,
        Ok(v1::InstanceStatus::Down) | Err(_) => Status::Down,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_comes_back_as_it_was() {
        let before = Instance::builder("unix:/run/a.sock".parse().expect("valid"))
            .id("a")
            .weight(0)
            .tag("k", "v")
            .locality("r", "z")
            .status(Status::Draining)
            .held(true)
            .revisions(3, 4)
            .build();
        assert_eq!(instance(to_wire(&before)).expect("readable"), before);
        let before = Selector::all().tag("k", "v").zone("z").statuses([Status::Down, Status::Up]);
        assert_eq!(selector_of(selector(&before)), before);
    }

    #[test]
    fn what_is_not_understood_is_not_called() {
        let wire =
            v1::Instance { address: "a:1".into(), status: 99, weight: Some(1 << 20), ..Default::default() };
        let read = instance(wire).expect("readable");
        assert_eq!((read.status, read.weight, &*read.id), (Status::Down, MAX_WEIGHT, "a:1"));
        assert!(instance(v1::Instance::default()).is_err());
    }
}
