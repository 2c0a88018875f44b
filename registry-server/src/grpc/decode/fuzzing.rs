//! What holds of any request, as checks that panic: for tests that make requests up, and for fuzzers. The rules of the
//! protocol are written here a second time, as `docs/protocol.md` has them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use prost::Message as _;
use registry_proto::v1;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{Invalid, TtlBounds, fields::Path};
use crate::core::{Command, Instance, LeaseId, Selector, ServiceKey, Spec};

/// How many kinds of request there are.
pub(crate) const KINDS: u8 = 14;

/// These bytes come as a request of some kind.
pub(crate) fn any_request(kind: u8, bytes: &[u8]) {
    match kind % KINDS {
        0 => v1::RegisterRequest::decode(bytes).map_or((), |it| register(&it)),
        1 => v1::DeregisterRequest::decode(bytes).map_or((), |it| deregister(&it)),
        2 => v1::SetOverrideRequest::decode(bytes).map_or((), |it| set_override(&it)),
        3 => v1::ResolveHoldRequest::decode(bytes).map_or((), |it| resolve_hold(&it)),
        4 => v1::KeepAliveRequest::decode(bytes).map_or((), |it| leases(&it)),
        5 => v1::WatchRequest::decode(bytes).map_or((), |it| watch(&it)),
        6 => v1::Selector::decode(bytes).map_or((), |it| selector(&it)),
        7 => v1::ListServicesRequest::decode(bytes)
            .map_or((), |it| list(it.namespace, it.page_size, &it.page_token)),
        8 => v1::ListOverridesRequest::decode(bytes)
            .map_or((), |it| list(it.namespace, it.page_size, &it.page_token)),
        9 => v1::DiscoverRequest::decode(bytes).map_or((), |it| discover(&it)),
        10 => v1::WaitAppliedRequest::decode(bytes).map_or((), |it| wait_applied(&it)),
        11 => v1::ExplainRequest::decode(bytes).map_or((), |it| explain(&it)),
        12 => v1::Hello::decode(bytes).map_or((), |it| hello(&it)),
        // What comes on a stream depends on what came before: see `streams::fuzzing`.
        _ => v1::SubscribeRequest::decode(bytes).map_or((), |it| {
            if let Some(v1::subscribe_request::Request::Subscribe(it)) = it.request {
                watch(&it.watch.unwrap_or_default());
            }
        }),
    }
}

/// What is refused is refused with the field and a problem that is fit for an answer.
fn told<T>(result: Result<T, Invalid>) -> Option<T> {
    result
        .inspect_err(|invalid| {
            assert!(!invalid.field.is_empty() && !invalid.problem.is_empty(), "{invalid:?}");
            assert!(invalid.to_string().len() < 1_024, "an answer that repeats a large request: {invalid}");
            answered(&Status::from(invalid.clone()));
        })
        .ok()
}

fn named(text: &str, beside: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || beside.contains(c);
    assert!((1..=253).contains(&text.len()) && text.chars().all(allowed), "taken as a name: `{text}`");
}

fn key(key: &ServiceKey) {
    named(&key.namespace, "._-");
    named(&key.service, "._-/");
}

fn short(text: &str, limit: usize) {
    assert!(text.len() <= limit, "a text of {} bytes", text.len());
}

pub(crate) fn register(request: &v1::RegisterRequest) {
    let bounds = TtlBounds { least: Duration::from_secs(2), most: Duration::from_hours(1) };
    let Some(command) = told(super::register(request, bounds)) else { return };
    let Command::Register { registrant, ttl, instances, .. } = command else { panic!("another command") };
    assert!(request.encoded_len() <= 4 << 20 && request.lease_id.len() == 16);
    named(&registrant.uid, "._-:/@");
    assert!((2_000..=3_600_000).contains(&ttl), "{ttl} ms");
    assert!((1..=10_000).contains(&instances.len()) && instances.len() == request.registrations.len());
    let mut seen = BTreeSet::new();
    for (service, id, spec) in &instances {
        key(service);
        named(id, "._-:/@[]");
        assert!(seen.insert((service, id)), "{service} {id} twice");
        taken(spec);
    }
}

fn taken(spec: &Spec) {
    assert!(spec.address.len() <= 261);
    let port = || spec.address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    assert!(spec.address.starts_with("unix:/") || port().is_some_and(|it| it.is_ok_and(|port| port > 0)));
    assert!(spec.tags.len() <= 64);
    let bounded =
        |(key, value): (&Arc<str>, &Arc<str>)| (1..=128).contains(&key.len()) && value.len() <= 4_096;
    assert!(spec.tags.iter().all(bounded));
    short(&spec.region, 253);
    short(&spec.zone, 253);
}

pub(crate) fn deregister(request: &v1::DeregisterRequest) {
    let Some(command) = told(super::deregister(request)) else { return };
    let Command::Deregister { lease, instances, actor } = command else { panic!("another command") };
    assert!(lease.is_some() || !instances.is_empty(), "asks for nothing");
    assert!(instances.len() <= 10_000 && instances.len() == request.instances.len());
    let mut seen = BTreeSet::new();
    for (service, id, _) in &instances {
        key(service);
        named(id, "._-:/@[]");
        assert!(seen.insert((service, id)), "{service} {id} twice");
    }
    short(&actor, 253);
}

pub(crate) fn set_override(request: &v1::SetOverrideRequest) {
    let Some(command) = told(super::set_override(request)) else { return };
    let Command::SetOverride { key: service, id, set, actor, reason } = command else {
        panic!("another command")
    };
    key(&service);
    named(&id, "._-:/@[]");
    short(&actor, 253);
    short(&reason, 1_024);
    if let Some(set) = set {
        assert!(set.weight.is_some() || set.status.is_some(), "sets nothing");
        assert!(set.expires_in.is_none_or(|millis| (1_000..=8_760 * 3_600_000).contains(&millis)));
    }
}

pub(crate) fn resolve_hold(request: &v1::ResolveHoldRequest) {
    let Some(command) = told(super::resolve_hold(request)) else { return };
    let Command::ResolveHold { key: service, ids, actor, .. } = command else { panic!("another command") };
    key(&service);
    assert!(ids.len() <= 10_000);
    for id in &ids {
        named(id, "._-:/@[]");
    }
    short(&actor, 253);
}

pub(crate) fn leases(request: &v1::KeepAliveRequest) {
    if let Some(leases) = told(super::leases(request)) {
        let asked: BTreeSet<_> = request.lease_ids.iter().map(Vec::as_slice).collect();
        let read: BTreeSet<_> = leases.iter().map(|lease| lease.0.as_slice()).collect();
        assert!(read == asked && leases.len() == read.len() && leases.len() <= 10_000, "each once");
    }
}

pub(crate) fn watch(request: &v1::WatchRequest) {
    match super::watch(request, Path::Root) {
        Ok(watched) => {
            key(&watched.key);
            canonical(&watched.selector);
        }
        Err(status) => answered(&status),
    }
}

/// A refusal is fit for an answer: bounded, with a reason, and with the field where one is at fault.
pub(crate) fn answered(status: &Status) {
    let details = status.get_error_details();
    assert!(!status.message().is_empty() && status.message().len() < 1_024, "{status}");
    assert!(details.error_info().is_some_and(|info| !info.reason.is_empty()), "no reason: {status}");
    if status.code() == tonic::Code::InvalidArgument {
        let field = details.bad_request().and_then(|bad| bad.field_violations.first());
        assert!(field.is_some_and(|it| !it.field.is_empty()), "no field: {status}");
    }
    let mut headers = tonic::codegen::http::HeaderMap::new();
    status.add_header(&mut headers).expect("an answer can be written");
}

pub(crate) fn list(namespace: String, size: u32, token: &str) {
    let asked = namespace.clone();
    let Some(listed) = told(super::list(namespace, size, token)) else { return };
    assert_eq!(listed.namespace, asked);
    if !asked.is_empty() {
        named(&asked, "._-");
    }
    assert!((1..=1_000).contains(&listed.size) && (listed.after.is_none() == token.is_empty()));
}

pub(crate) fn discover(request: &v1::DiscoverRequest) {
    selector(&request.selector.clone().unwrap_or_default());
    let Some(read) = told(super::discover(request)) else { return };
    key(&read.key);
    canonical(&read.selector);
    assert_eq!(read.min_revision, request.min_revision);
    assert_eq!(read.page.is_none(), request.page_token.is_empty());
}

pub(crate) fn wait_applied(request: &v1::WaitAppliedRequest) {
    let Some(awaited) = told(super::wait_applied(request)) else { return };
    key(&awaited.key);
    short(&awaited.epoch, 253);
    assert!(awaited.revision > 0 && awaited.revision == request.revision);
    assert!(awaited.share > 0.0 && awaited.share <= 1.0, "a share of {}", awaited.share);
    assert!(awaited.timeout <= Duration::from_mins(5), "waits for {:?}", awaited.timeout);
}

pub(crate) fn explain(request: &v1::ExplainRequest) {
    let Some((service, id)) = told(super::explain(request)) else { return };
    key(&service);
    named(&id, "._-:/@[]");
}

pub(crate) fn hello(request: &v1::Hello) {
    if let Some(client) = told(super::hello(request)) {
        named(&client, "._-:/@");
    }
}

/// A selector: what is read is canonical, and selects what the request says, word by word.
pub(crate) fn selector(request: &v1::Selector) {
    let Some(read) = told(super::selector(Some(request), Path::Root.field("selector"))) else { return };
    canonical(&read);
    for instance in universe() {
        assert_eq!(read.matches(&instance), naive(request, &instance), "{request:?} and {instance:?}");
    }
}

fn canonical(selector: &Selector) {
    let statuses = selector.statuses().iter().rev().chain(selector.statuses()).copied();
    let tags = selector.tags().iter().rev().map(|(key, value)| (key.clone(), value.clone()));
    assert_eq!(&Selector::new(tags, selector.zone(), statuses), selector, "the order of words matters");
}

/// What a selector selects, by its words.
pub(crate) fn naive(request: &v1::Selector, instance: &Instance) -> bool {
    let number = match instance.spec.status {
        crate::core::Status::Up => 1,
        crate::core::Status::Draining => 2,
        crate::core::Status::Down => 3,
    };
    let tagged = |(key, value): (&String, &String)| {
        instance.spec.tags.get(key.as_str()).is_some_and(|it| **it == **value)
    };
    request.tags.iter().all(tagged)
        && (request.zone.is_empty() || *request.zone == *instance.spec.zone)
        && (request.statuses.is_empty() || request.statuses.contains(&number))
}

/// Instances of all kinds of a small world: two tags with values or without, zones, statuses.
pub(crate) fn universe() -> Vec<Instance> {
    let values = [None, Some(""), Some("x"), Some("y")];
    let mut all = Vec::new();
    for a in values {
        for b in values {
            for zone in ["", "x", "y"] {
                for status in
                    [crate::core::Status::Up, crate::core::Status::Draining, crate::core::Status::Down]
                {
                    let tags = [("a", a), ("b", b)];
                    let tags = tags.into_iter().filter_map(|(key, value)| Some((key.into(), value?.into())));
                    let spec = Spec {
                        address: "a:1".into(),
                        weight: 1,
                        tags: tags.collect(),
                        region: "".into(),
                        zone: zone.into(),
                        status,
                    };
                    all.push(Instance {
                        id: "i".into(),
                        spec: Arc::new(spec),
                        lease: LeaseId([0; 16]),
                        create_revision: 1,
                        mod_revision: 1,
                        registered_at: 0,
                        changed_at: 0,
                        held: None,
                        over: None,
                    });
                }
            }
        }
    }
    all
}
