//! Short ways to write requests and to read errors. Owns no rules: what is right is the server's to say.

use registry_proto::v1;
use tonic::Status;
use tonic_types::StatusExt;

/// A service of the namespace `default`.
pub fn key(service: &str) -> v1::ServiceKey {
    v1::ServiceKey { namespace: "default".into(), service: service.into() }
}

/// An instance with an address and nothing else.
pub fn instance(id: &str) -> v1::Instance {
    v1::Instance { id: id.into(), address: "10.0.0.1:8080".into(), ..v1::Instance::default() }
}

/// A lease's id.
pub fn lease(number: u64) -> Vec<u8> {
    (u128::from(number) + 1).to_be_bytes().to_vec()
}

/// A registration of instances of one service, with the registrant `r<lease>` and the longest TTL.
pub fn register(number: u64, service: &str, instances: Vec<v1::Instance>) -> v1::RegisterRequest {
    let registrations = instances
        .into_iter()
        .map(|instance| v1::Registration { key: Some(key(service)), instance: Some(instance) })
        .collect();
    v1::RegisterRequest {
        lease_id: lease(number),
        registrant: Some(v1::Registrant { instance_uid: format!("r{number}"), generation: 1 }),
        ttl: Some(seconds(24 * 3600)),
        registrations,
    }
}

/// The same with a TTL in milliseconds.
pub fn register_for(
    millis: i64,
    number: u64,
    service: &str,
    instances: Vec<v1::Instance>,
) -> v1::RegisterRequest {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).expect("below a second");
    let ttl = prost_types::Duration { seconds: millis / 1000, nanos };
    v1::RegisterRequest { ttl: Some(ttl), ..register(number, service, instances) }
}

/// A duration.
pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Removes instances of one service by name.
pub fn deregister(service: &str, ids: &[String]) -> v1::DeregisterRequest {
    let instances =
        ids.iter().map(|id| v1::InstanceRef { key: Some(key(service)), id: id.clone(), create_revision: 0 });
    v1::DeregisterRequest { instances: instances.collect(), ..v1::DeregisterRequest::default() }
}

/// Reads a service from its first page.
pub fn discover(service: &str) -> v1::DiscoverRequest {
    v1::DiscoverRequest { key: Some(key(service)), ..v1::DiscoverRequest::default() }
}

/// Follows a service from a snapshot.
pub fn watch(service: &str) -> v1::WatchRequest {
    v1::WatchRequest {
        scope: Some(v1::watch_request::Scope::Key(key(service))),
        ..v1::WatchRequest::default()
    }
}

/// Adds a view to a stream.
pub fn subscribe(view_id: u32, watch: v1::WatchRequest) -> v1::SubscribeRequest {
    let view = v1::SubscribeView { view_id, watch: Some(watch) };
    v1::SubscribeRequest { request: Some(v1::subscribe_request::Request::Subscribe(view)) }
}

/// Drops a view from a stream.
pub fn unsubscribe(view_id: u32) -> v1::SubscribeRequest {
    let view = v1::UnsubscribeView { view_id };
    v1::SubscribeRequest { request: Some(v1::subscribe_request::Request::Unsubscribe(view)) }
}

/// Says who the client is, and whether it acks.
pub fn hello(client_id: &str, acks: bool) -> v1::SubscribeRequest {
    let hello = v1::Hello { client_id: client_id.into(), acks };
    v1::SubscribeRequest { request: Some(v1::subscribe_request::Request::Hello(hello)) }
}

/// Says what was applied.
pub fn ack(epoch: &str, revision: u64) -> v1::SubscribeRequest {
    let ack = v1::Ack { epoch: epoch.into(), revision };
    v1::SubscribeRequest { request: Some(v1::subscribe_request::Request::Ack(ack)) }
}

/// Waits until all watchers concerned have applied a revision, for a minute at most.
pub fn wait_applied(service: &str, revision: u64) -> v1::WaitAppliedRequest {
    let timeout = Some(seconds(60));
    v1::WaitAppliedRequest { key: Some(key(service)), revision, timeout, ..v1::WaitAppliedRequest::default() }
}

/// Sets an override's weight.
pub fn override_weight(service: &str, id: &str, weight: u32) -> v1::SetOverrideRequest {
    let set = v1::Override { weight: Some(weight), ..v1::Override::default() };
    v1::SetOverrideRequest {
        key: Some(key(service)),
        id: id.into(),
        action: Some(v1::set_override_request::Action::Set(set)),
        actor: "operator".into(),
        reason: "a test".into(),
    }
}

/// Clears an override.
pub fn clear_override(service: &str, id: &str) -> v1::SetOverrideRequest {
    let clear = v1::set_override_request::Action::Clear(v1::ClearOverride {});
    v1::SetOverrideRequest { action: Some(clear), ..override_weight(service, id, 0) }
}

/// The stable reason of an error; empty if it has none.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// The field that an error names; empty if it names none.
pub fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violation = details.bad_request().and_then(|bad| bad.field_violations.first());
    violation.map(|violation| violation.field.clone()).unwrap_or_default()
}
