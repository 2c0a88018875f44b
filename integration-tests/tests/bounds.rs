//! Bad input of every kind: each gets its code, reason and field, a message that names the limit, and changes nothing.

// Tables: long, and with literals and numbers side by side.
#![allow(clippy::needless_pass_by_value, clippy::too_many_lines)]

use std::time::Duration;

use integration_tests::{
    history::Recorder,
    process::{Client, within},
    requests::{self, instance, key, register},
    server_setup,
    stream::Stream,
    writers,
};
use registry_proto::v1::{self, subscribe_request::Request as Asked, watch_request::Scope};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const SERVICE: &str = "bounds";
const INVALID: Code = Code::InvalidArgument;

/// A request to any of the calls.
#[derive(Clone, Debug)]
enum Call {
    Register(v1::RegisterRequest),
    KeepAlive(v1::KeepAliveRequest),
    Deregister(v1::DeregisterRequest),
    SetOverride(v1::SetOverrideRequest),
    ListOverrides(v1::ListOverridesRequest),
    ResolveHold(v1::ResolveHoldRequest),
    Discover(v1::DiscoverRequest),
    ListServices(v1::ListServicesRequest),
    Watch(v1::WatchRequest),
    WaitApplied(v1::WaitAppliedRequest),
    Explain(v1::ExplainRequest),
}

/// What is wrong, and how it must be refused.
struct Case {
    what: String,
    call: Call,
    code: Code,
    reason: &'static str,
    field: String,
    /// What the message must name.
    says: String,
}

impl Call {
    async fn send(self, mut client: Client) -> Result<(), Status> {
        match self {
            Self::Register(it) => client.register(it).await.map(drop),
            Self::KeepAlive(it) => {
                let (send, requests) = tokio::sync::mpsc::channel(1);
                send.try_send(it).expect("the channel is new");
                let mut answers = client.keep_alive(ReceiverStream::new(requests)).await?.into_inner();
                answers.message().await.map(drop)
            }
            Self::Deregister(it) => client.deregister(it).await.map(drop),
            Self::SetOverride(it) => client.set_override(it).await.map(drop),
            Self::ListOverrides(it) => client.list_overrides(it).await.map(drop),
            Self::ResolveHold(it) => client.resolve_hold(it).await.map(drop),
            Self::Discover(it) => client.discover(it).await.map(drop),
            Self::ListServices(it) => client.list_services(it).await.map(drop),
            Self::Watch(it) => client.watch(it).await.map(drop),
            Self::WaitApplied(it) => client.wait_applied(it).await.map(drop),
            Self::Explain(it) => client.explain(it).await.map(drop),
        }
    }
}

fn invalid(what: &str, field: &str, says: impl ToString, call: Call) -> Case {
    Case {
        what: what.into(),
        call,
        code: INVALID,
        reason: "INVALID_FIELD",
        field: field.into(),
        says: says.to_string(),
    }
}

fn refused(what: &str, code: Code, reason: &'static str, says: impl ToString, call: Call) -> Case {
    Case { what: what.into(), call, code, reason, field: String::new(), says: says.to_string() }
}

/// A registration of one instance under the lease 7, doctored.
fn one(doctor: impl FnOnce(&mut v1::Instance)) -> Call {
    let mut it = instance("new");
    doctor(&mut it);
    Call::Register(register(7, SERVICE, vec![it]))
}

fn whole(doctor: impl FnOnce(&mut v1::RegisterRequest)) -> Call {
    let mut it = register(7, SERVICE, vec![instance("good"), instance("new")]);
    doctor(&mut it);
    Call::Register(it)
}

fn keyed(namespace: &str, service: &str) -> v1::ServiceKey {
    v1::ServiceKey { namespace: namespace.into(), service: service.into() }
}

fn tags(count: usize) -> std::collections::HashMap<String, String> {
    (0..count).map(|number| (format!("k{number}"), String::new())).collect()
}

fn registrations() -> Vec<Case> {
    let mut cases = vec![
        invalid("a lease id of 15 bytes", "lease_id", 16, whole(|it| it.lease_id = vec![1; 15])),
        invalid("no lease id", "lease_id", 16, whole(|it| it.lease_id.clear())),
        invalid("no registrant", "registrant", "required", whole(|it| it.registrant = None)),
        invalid(
            "no uid",
            "registrant.instance_uid",
            "required",
            whole(|it| {
                it.registrant = Some(v1::Registrant::default());
            }),
        ),
        invalid(
            "a uid of 254 characters",
            "registrant.instance_uid",
            253,
            whole(|it| {
                it.registrant = Some(v1::Registrant { instance_uid: "u".repeat(254), generation: 1 });
            }),
        ),
        invalid("no registrations", "registrations", "at least one", whole(|it| it.registrations.clear())),
        invalid(
            "10,001 instances",
            "registrations",
            10_000,
            whole(|it| {
                it.registrations = (0..10_001)
                    .map(|number| v1::Registration {
                        key: Some(key(SERVICE)),
                        instance: Some(instance(&format!("i{number}"))),
                    })
                    .collect();
            }),
        ),
        invalid(
            "more than 4 MiB",
            "request",
            4 << 20,
            whole(|it| {
                it.registrations = (0..300)
                    .map(|number| {
                        let tags = (0..4).map(|tag| (format!("k{tag}"), "v".repeat(3_900))).collect();
                        let instance = Some(v1::Instance { tags, ..instance(&format!("i{number}")) });
                        v1::Registration { key: Some(key(SERVICE)), instance }
                    })
                    .collect();
            }),
        ),
        invalid(
            "an id twice",
            "registrations[1].instance.id",
            "twice",
            whole(|it| {
                it.registrations[1] = it.registrations[0].clone();
            }),
        ),
        invalid(
            "an id twice, once by its address",
            "registrations[1].instance.id",
            "twice",
            whole(|it| {
                it.registrations[0].instance = Some(instance(""));
                it.registrations[1].instance = Some(instance("10.0.0.1:8080"));
            }),
        ),
        invalid("no key", "registrations[1].key", "required", whole(|it| it.registrations[1].key = None)),
        invalid(
            "no instance",
            "registrations[1].instance",
            "required",
            whole(|it| {
                it.registrations[1].instance = None;
            }),
        ),
        invalid(
            "an instance of more than 16 KiB",
            "registrations[0].instance",
            16 << 10,
            one(|it| {
                it.tags = (0..5).map(|tag| (format!("k{tag}"), "v".repeat(4_000))).collect();
            }),
        ),
        invalid("65 tags", "registrations[0].instance.tags", 64, one(|it| it.tags = tags(65))),
        invalid(
            "a tag's key of 129 bytes",
            "registrations[0].instance.tags",
            128,
            one(|it| {
                it.tags = [("k".repeat(129), String::new())].into();
            }),
        ),
        invalid(
            "a tag without a key",
            "registrations[0].instance.tags",
            128,
            one(|it| {
                it.tags = [(String::new(), "v".into())].into();
            }),
        ),
        invalid(
            "a tag's value of 4,097 bytes",
            "registrations[0].instance.tags",
            4_096,
            one(|it| {
                it.tags = [("k".into(), "v".repeat(4_097))].into();
            }),
        ),
        invalid(
            "a weight of 65,536",
            "registrations[0].instance.weight",
            65_535,
            one(|it| it.weight = Some(65_536)),
        ),
        invalid("an unknown status", "registrations[0].instance.status", 9, one(|it| it.status = 9)),
        invalid(
            "an id of 254 characters",
            "registrations[0].instance.id",
            253,
            one(|it| it.id = "i".repeat(254)),
        ),
        invalid("an id with a blank", "registrations[0].instance.id", "' '", one(|it| it.id = "a b".into())),
        invalid(
            "a region of 254 bytes",
            "registrations[0].instance.locality.region",
            253,
            one(|it| {
                it.locality = Some(v1::Locality { region: "r".repeat(254), zone: String::new() });
            }),
        ),
        invalid(
            "a zone of 254 bytes",
            "registrations[0].instance.locality.zone",
            253,
            one(|it| {
                it.locality = Some(v1::Locality { region: String::new(), zone: "z".repeat(254) });
            }),
        ),
    ];
    for (address, says) in [
        ("", "required"),
        ("10.0.0.1", "no port"),
        ("10.0.0.1:0", "65535"),
        ("10.0.0.1:65536", "65535"),
        ("10.0.0.1:+80", "65535"),
        (":80", "host"),
        ("ho st:80", "host"),
        ("[::1:80", "host"),
        ("[nonsense]:80", "host"),
        ("unix:relative", "absolute"),
        ("unix:", "absolute"),
    ] {
        let call = one(|it| it.address = address.into());
        cases.push(invalid(
            &format!("the address `{address}`"),
            "registrations[0].instance.address",
            says,
            call,
        ));
    }
    let call = one(|it| it.address = format!("{}:80", "h".repeat(259)));
    cases.push(invalid("an address of 262 characters", "registrations[0].instance.address", 261, call));
    for (millis, what) in
        [(999, "below 1 s"), (24 * 3_600_000 + 1, "above 24 h"), (-1_000, "negative"), (0, "zero")]
    {
        let nanos = i32::try_from(millis % 1000 * 1_000_000).expect("below a second");
        let ttl = Some(prost_types::Duration { seconds: millis / 1000, nanos });
        cases.push(invalid(&format!("a TTL that is {what}"), "ttl", "1s", whole(|it| it.ttl = ttl)));
    }
    cases
}

/// Bad keys, for every call that has one.
fn keys() -> Vec<Case> {
    type Keyed = fn(Option<v1::ServiceKey>) -> Call;
    let calls: [(&str, Keyed); 8] = [
        ("registrations[0].key", |key| whole(|it| it.registrations[0].key = key)),
        ("instances[0].key", |key| {
            let named = v1::InstanceRef { key, id: "good".into(), create_revision: 0 };
            Call::Deregister(v1::DeregisterRequest { instances: vec![named], ..Default::default() })
        }),
        ("key", |key| {
            Call::SetOverride(v1::SetOverrideRequest { key, ..requests::override_weight(SERVICE, "good", 1) })
        }),
        ("key", |key| Call::ResolveHold(v1::ResolveHoldRequest { key, action: 1, ..Default::default() })),
        ("key", |key| Call::Discover(v1::DiscoverRequest { key, ..Default::default() })),
        ("key", |key| Call::Watch(v1::WatchRequest { scope: key.map(Scope::Key), ..Default::default() })),
        ("key", |key| Call::Explain(v1::ExplainRequest { key, id: "good".into() })),
        ("key", |key| {
            Call::Watch(v1::WatchRequest {
                scope: key.map(Scope::Key),
                force_snapshot: true,
                ..Default::default()
            })
        }),
    ];
    let mut cases = Vec::new();
    for (field, call) in calls {
        cases.push(invalid("no key", field, "required", call(None)));
        for (namespace, service, part, says) in [
            ("", "", "service", "required"),
            ("", "a b", "service", "' '"),
            ("", "ü", "service", "'ü'"),
            ("a/b", "s", "namespace", "'/'"),
        ] {
            let field = format!("{field}.{part}");
            cases.push(invalid("a bad name", &field, says, call(Some(keyed(namespace, service)))));
        }
        let long = "s".repeat(254);
        cases.push(invalid("a long service", &format!("{field}.service"), 253, call(Some(keyed("", &long)))));
        cases.push(invalid(
            "a long namespace",
            &format!("{field}.namespace"),
            253,
            call(Some(keyed(&long, "s"))),
        ));
    }
    cases
}

fn removals_and_renewals() -> Vec<Case> {
    let named = |id: &str| v1::InstanceRef { key: Some(key(SERVICE)), id: id.into(), create_revision: 0 };
    let removal = |doctor: fn(&mut v1::DeregisterRequest)| {
        let mut it = requests::deregister(SERVICE, &["good".into()]);
        doctor(&mut it);
        Call::Deregister(it)
    };
    let many = (0..10_001).map(|number| named(&format!("i{number}"))).collect();
    vec![
        invalid(
            "nothing to remove",
            "lease_id",
            "required",
            Call::Deregister(v1::DeregisterRequest::default()),
        ),
        invalid("a lease id of 3 bytes", "lease_id", 16, removal(|it| it.lease_id = vec![1; 3])),
        invalid(
            "an instance without an id",
            "instances[0].id",
            "required",
            removal(|it| it.instances[0].id.clear()),
        ),
        invalid(
            "an instance twice",
            "instances[1].id",
            "twice",
            removal(|it| it.instances.push(it.instances[0].clone())),
        ),
        invalid("10,001 instances", "instances", 10_000, {
            Call::Deregister(v1::DeregisterRequest { instances: many, ..Default::default() })
        }),
        // Few enough, and each within its own limits.
        invalid("a removal of more than 4 MiB", "request", 4 << 20, {
            let key = keyed(&"n".repeat(253), &"s".repeat(253));
            let named = |number| v1::InstanceRef {
                key: Some(key.clone()),
                id: format!("{number:0>253}"),
                create_revision: 0,
            };
            let instances = (0..6_000).map(named).collect();
            Call::Deregister(v1::DeregisterRequest { instances, ..Default::default() })
        }),
        invalid("an actor of 254 bytes", "actor", 253, removal(|it| it.actor = "a".repeat(254))),
        refused("another lease's instance", Code::FailedPrecondition, "LEASE_MISMATCH", "good", {
            removal(|it| it.lease_id = requests::lease(99))
        }),
        refused("another incarnation", Code::FailedPrecondition, "INCARNATION_MISMATCH", "good", {
            removal(|it| it.instances[0].create_revision = 1_000_000)
        }),
        refused("a lease of another registrant", Code::FailedPrecondition, "SUPERSEDED", "registrant", {
            whole(|it| it.lease_id = requests::lease(1))
        }),
        refused(
            "an older generation",
            Code::FailedPrecondition,
            "SUPERSEDED",
            "generation",
            whole(|it| {
                it.registrant = Some(v1::Registrant { instance_uid: "r1".into(), generation: 0 });
            }),
        ),
        invalid("a lease to renew of 17 bytes", "lease_ids[1]", 16, {
            Call::KeepAlive(v1::KeepAliveRequest {
                lease_ids: vec![requests::lease(1), vec![0; 17]],
                request_id: 1,
            })
        }),
        invalid("10,001 leases to renew", "lease_ids", 10_000, {
            Call::KeepAlive(v1::KeepAliveRequest {
                lease_ids: vec![requests::lease(1); 10_001],
                request_id: 1,
            })
        }),
    ]
}

fn operators() -> Vec<Case> {
    use v1::set_override_request::Action;
    let over = |doctor: fn(&mut v1::SetOverrideRequest)| {
        let mut it = requests::override_weight(SERVICE, "good", 3);
        doctor(&mut it);
        Call::SetOverride(it)
    };
    let set = |over: v1::Override| {
        let action = Some(Action::Set(over));
        Call::SetOverride(v1::SetOverrideRequest { action, ..requests::override_weight(SERVICE, "good", 3) })
    };
    let lasting = |seconds| v1::Override {
        weight: Some(1),
        expires_in: Some(requests::seconds(seconds)),
        ..Default::default()
    };
    let hold = |doctor: fn(&mut v1::ResolveHoldRequest)| {
        let mut it = v1::ResolveHoldRequest { key: Some(key(SERVICE)), action: 2, ..Default::default() };
        doctor(&mut it);
        Call::ResolveHold(it)
    };
    vec![
        invalid("no action", "action", "required", over(|it| it.action = None)),
        invalid("no id", "id", "required", over(|it| it.id.clear())),
        invalid("an id of 254 characters", "id", 253, over(|it| it.id = "i".repeat(254))),
        invalid("an id with a blank", "id", "' '", over(|it| it.id = "a b".into())),
        invalid("neither weight nor status", "set", "clear", set(v1::Override::default())),
        invalid("a weight of 65,536", "set.weight", 65_535, {
            set(v1::Override { weight: Some(65_536), ..Default::default() })
        }),
        invalid("an unknown status", "set.status", 7, set(v1::Override { status: 7, ..Default::default() })),
        invalid("an expiry of nothing", "set.expires_in", "1s", set(lasting(0))),
        invalid("an expiry in 366 days", "set.expires_in", "31536000s", set(lasting(366 * 24 * 3600))),
        invalid("an actor of 254 bytes", "actor", 253, over(|it| it.actor = "a".repeat(254))),
        invalid("a reason of 1,025 bytes", "reason", 1_024, over(|it| it.reason = "r".repeat(1_025))),
        invalid("no action on a hold", "action", "EVICT", hold(|it| it.action = 0)),
        invalid("an unknown action on a hold", "action", "EVICT", hold(|it| it.action = 9)),
        invalid("an id without characters", "ids[0]", "required", hold(|it| it.ids = vec![String::new()])),
        invalid("10,001 holds", "ids", 10_000, hold(|it| it.ids = vec!["good".into(); 10_001])),
        invalid("a hold's actor of 254 bytes", "actor", 253, hold(|it| it.actor = "a".repeat(254))),
        refused("an instance that is not held", Code::FailedPrecondition, "NOT_HELD", "good", {
            hold(|it| it.ids = vec!["good".into()])
        }),
        invalid("a page of 1,001 overrides", "page_size", 1_000, {
            Call::ListOverrides(v1::ListOverridesRequest { page_size: 1_001, ..Default::default() })
        }),
        invalid("a token of someone else's", "page_token", "token", {
            Call::ListOverrides(v1::ListOverridesRequest { page_token: "no".into(), ..Default::default() })
        }),
    ]
}

fn reads_and_watches() -> Vec<Case> {
    let selecting = |selector: v1::Selector| {
        [
            Call::Discover(v1::DiscoverRequest {
                selector: Some(selector.clone()),
                ..requests::discover(SERVICE)
            }),
            Call::Watch(v1::WatchRequest { selector: Some(selector), ..requests::watch(SERVICE) }),
        ]
    };
    let mut cases = Vec::new();
    for (what, field, says, selector) in [
        ("65 tags", "selector.tags", "64", v1::Selector { tags: tags(65), ..Default::default() }),
        ("a long zone", "selector.zone", "253", v1::Selector { zone: "z".repeat(254), ..Default::default() }),
        (
            "an unknown status",
            "selector.statuses[0]",
            "9",
            v1::Selector { statuses: vec![9], ..Default::default() },
        ),
        ("no status", "selector.statuses[1]", "unspecified", {
            v1::Selector { statuses: vec![1, 0], ..Default::default() }
        }),
    ] {
        cases.extend(selecting(selector).map(|call| invalid(what, field, says, call)));
    }
    for (namespace, says) in [("a/b", "'/'"), ("a b", "' '"), (&*"n".repeat(254), "253")] {
        let namespace = namespace.to_owned();
        let services = v1::ListServicesRequest { namespace: namespace.clone(), ..Default::default() };
        let overrides = v1::ListOverridesRequest { namespace, ..Default::default() };
        for call in [Call::ListServices(services), Call::ListOverrides(overrides)] {
            cases.push(invalid("a list of a bad namespace", "namespace", says, call));
        }
    }
    let scoped = |scope| Call::Watch(v1::WatchRequest { scope: Some(scope), ..Default::default() });
    cases.extend([
        invalid("a page token that is none", "page_token", "token", {
            Call::Discover(v1::DiscoverRequest { page_token: "x".into(), ..requests::discover(SERVICE) })
        }),
        refused("a page that is gone", Code::Aborted, "PAGE_EXPIRED", "page_token", {
            Call::Discover(v1::DiscoverRequest {
                page_token: "999999.1.1".into(),
                ..requests::discover(SERVICE)
            })
        }),
        refused("a revision that is far ahead", Code::Unavailable, "REPLICA_BEHIND", 1_000_000, {
            Call::Discover(v1::DiscoverRequest { min_revision: 1_000_000, ..requests::discover(SERVICE) })
        }),
        invalid("a page of 1,001 services", "page_size", 1_000, {
            Call::ListServices(v1::ListServicesRequest { page_size: 1_001, ..Default::default() })
        }),
        invalid("a token of someone else's", "page_token", "token", {
            Call::ListServices(v1::ListServicesRequest { page_token: "no".into(), ..Default::default() })
        }),
        invalid(
            "a cursor's epoch of 254 bytes",
            "cursor.epoch",
            253,
            Call::Watch(v1::WatchRequest {
                cursor: Some(v1::Cursor { epoch: "e".repeat(254), revision: 1 }),
                ..requests::watch(SERVICE)
            }),
        ),
        invalid("an explanation of no instance", "id", "required", {
            Call::Explain(v1::ExplainRequest { key: Some(key(SERVICE)), id: String::new() })
        }),
        invalid("an explanation of an id of 254 characters", "id", 253, {
            Call::Explain(v1::ExplainRequest { key: Some(key(SERVICE)), id: "i".repeat(254) })
        }),
        refused(
            "a watch of a namespace",
            Code::Unimplemented,
            "NOT_IMPLEMENTED",
            "WatchRequest.namespace",
            scoped(Scope::Namespace("default".into())),
        ),
        refused(
            "a watch of everything",
            Code::Unimplemented,
            "NOT_IMPLEMENTED",
            "WatchRequest.everything",
            scoped(Scope::Everything(v1::Everything {})),
        ),
    ]);
    cases
}

fn waits() -> Vec<Case> {
    let wait = || requests::wait_applied(SERVICE, 1);
    let share = |share: f64| {
        Call::WaitApplied(v1::WaitAppliedRequest { share, ..requests::wait_applied(SERVICE, 1) })
    };
    let for_nanos = |seconds: i64, nanos: i32| {
        let timeout = Some(prost_types::Duration { seconds, nanos });
        Call::WaitApplied(v1::WaitAppliedRequest { timeout, ..requests::wait_applied(SERVICE, 1) })
    };
    vec![
        invalid("a wait for no service", "key", "required", {
            Call::WaitApplied(v1::WaitAppliedRequest { key: None, ..wait() })
        }),
        invalid("a wait for no revision", "revision", "required", {
            Call::WaitApplied(requests::wait_applied(SERVICE, 0))
        }),
        invalid("a share below 0", "share", "above 0", share(-0.1)),
        invalid("a share above 1", "share", "at most 1", share(1.01)),
        invalid("a share that is no number", "share", "NaN", share(f64::NAN)),
        invalid("a wait of more than 5 min", "timeout", "300s", for_nanos(300, 1)),
        invalid("a wait of less than nothing", "timeout", "-1", for_nanos(-1, 0)),
        invalid("an epoch of 254 bytes", "epoch", 253, {
            Call::WaitApplied(v1::WaitAppliedRequest { epoch: "e".repeat(254), ..wait() })
        }),
        Case {
            field: "epoch".into(),
            ..refused("a wait in another history", Code::FailedPrecondition, "EPOCH_CHANGED", "`e`", {
                Call::WaitApplied(v1::WaitAppliedRequest { epoch: "e".into(), ..wait() })
            })
        },
        Case {
            field: "key".into(),
            ..refused("a wait for a service of nobody's", Code::NotFound, "UNKNOWN_SERVICE", "nobody", {
                Call::WaitApplied(requests::wait_applied("nobody", 1))
            })
        },
        refused("a wait for what is far ahead", Code::Unavailable, "REPLICA_BEHIND", 1_000_000, {
            Call::WaitApplied(requests::wait_applied(SERVICE, 1_000_000))
        }),
    ]
}

#[tokio::test]
async fn bad_input_of_every_kind_is_refused_by_name_and_changes_nothing() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let good = vec![instance("good"), instance("other")];
    client.clone().register(register(1, SERVICE, good)).await.expect("good input");
    let before = state(&client).await;

    let cases = [registrations(), keys(), removals_and_renewals(), operators(), reads_and_watches(), waits()]
        .concat_all();
    assert!(cases.len() > 100, "{} cases", cases.len());
    for Case { what, call, code, reason, field, says } in cases {
        let shown = format!("{what}: {}", format!("{call:?}").chars().take(200).collect::<String>());
        let answer = within(&what, Duration::from_secs(30), call.send(client.clone())).await;
        let status = answer.expect_err(&format!("{shown}: was not refused"));
        assert_eq!(status.code(), code, "{shown}: {status:?}");
        assert_eq!(requests::reason(&status), reason, "{shown}");
        assert_eq!(requests::field(&status), field, "{shown}");
        assert!(status.message().contains(&says), "{shown}: `{}` does not name `{says}`", status.message());
        if !field.is_empty() {
            assert!(status.message().starts_with(&field), "{shown}: `{}`", status.message());
        }
        let domain = status.get_error_details().error_info().map(|info| info.domain.clone());
        assert_eq!(domain.as_deref(), Some("registry.v1"), "{shown}");
        assert_eq!(state(&client).await, before, "{shown}: was refused, and changed something");
    }
}

/// What no bad input may change: the head, and all that is shown.
async fn state(client: &Client) -> (u64, String) {
    let recorder = Recorder::default();
    let mut client = client.clone();
    let services =
        client.list_services(v1::ListServicesRequest::default()).await.expect("a list").into_inner();
    let overrides =
        client.list_overrides(v1::ListOverridesRequest::default()).await.expect("a list").into_inner();
    let reading = writers::read(&client, SERVICE, 1, &recorder).await.expect("a reading");
    let shown = format!("{:?} {:?} {:?}", services.services, overrides.overrides, reading.items);
    (services.revision, shown)
}

trait ConcatAll<T> {
    fn concat_all(self) -> Vec<T>;
}

impl<T, const N: usize> ConcatAll<T> for [Vec<T>; N] {
    fn concat_all(self) -> Vec<T> {
        self.into_iter().flatten().collect()
    }
}

#[tokio::test]
async fn good_input_at_every_limit_is_taken() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    let name = "n".repeat(253);
    let full = v1::Instance {
        id: "i".repeat(253),
        address: format!("{}:80", "h".repeat(258)),
        weight: Some(65_535),
        tags: tags(63).into_iter().chain([("k".repeat(128), "v".repeat(4_096))]).collect(),
        locality: Some(v1::Locality { region: name.clone(), zone: name.clone() }),
        status: 3,
        ..Default::default()
    };
    let mut request = register(1, SERVICE, vec![full]);
    request.registrations[0].key = Some(keyed(&name, &name));
    client.register(request.clone()).await.expect("everything is at its limit");
    request.ttl = Some(requests::seconds(1));
    client.register(request).await.expect("the shortest TTL");
    let many = (0..10_000).map(|number| instance(&format!("i{number}"))).collect();
    let answer = client.register(register(2, SERVICE, many)).await.expect("10,000 at once").into_inner();
    assert_eq!(answer.instances.len(), 10_000);
    let addresses = ["[::1]:80", "host.example:80", "unix:/run/a.sock", "127.0.0.1:65535"];
    let all = addresses.map(|address| v1::Instance { address: address.into(), ..Default::default() });
    let answer =
        client.register(register(3, "addresses", all.to_vec())).await.expect("all forms").into_inner();
    let ids: Vec<_> = answer.instances.iter().map(|named| named.id.as_str()).collect();
    assert_eq!(ids, addresses, "the address is the id by default");
}

#[tokio::test]
async fn a_request_beyond_what_is_read_at_all_changes_nothing() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let before = state(&client).await;
    let huge = (0..3_000).map(|number| v1::Instance {
        tags: [("k".into(), "v".repeat(4_000))].into(),
        ..instance(&format!("i{number}"))
    });
    let refused = client.clone().register(register(1, SERVICE, huge.collect())).await.expect_err("12 MiB");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert_eq!(state(&client).await, before);
}

#[tokio::test]
async fn unknown_things_are_no_errors_and_change_nothing() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    let before = state(&client).await;
    let lease = v1::DeregisterRequest { lease_id: requests::lease(5), ..Default::default() };
    assert_eq!(client.deregister(lease).await.expect("an unknown lease").into_inner().removed, 0);
    let gone = requests::deregister(SERVICE, &["nobody".into()]);
    assert_eq!(client.deregister(gone).await.expect("an unknown instance").into_inner().removed, 0);
    let clear = v1::SetOverrideRequest {
        action: Some(v1::set_override_request::Action::Clear(v1::ClearOverride {})),
        ..requests::override_weight(SERVICE, "nobody", 1)
    };
    client.set_override(clear).await.expect("an unknown override");
    let why = v1::ExplainRequest { key: Some(key(SERVICE)), id: "nobody".into() };
    assert!(client.explain(why).await.expect("an unknown instance").into_inner().events.is_empty());
    let page = client.discover(requests::discover(SERVICE)).await.expect("an unknown service").into_inner();
    let change = page.change.expect("a page has a change");
    assert!(!change.exists && change.all.is_empty() && change.service_instances == 0);
    assert_eq!(state(&client).await, before);
}

#[tokio::test]
async fn a_refused_view_says_why_and_the_stream_goes_on() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    client.register(register(1, SERVICE, vec![instance("good")])).await.expect("good input");
    let mut stream = Stream::open(&client).await.expect("a stream");
    let scoped = |scope| v1::WatchRequest { scope: Some(scope), ..Default::default() };
    let asked = |request| v1::SubscribeRequest { request: Some(request) };
    let selecting = v1::Selector { tags: tags(65), ..Default::default() };
    let unimplemented = Code::Unimplemented;
    for (what, request, view, code, reason, field, says) in [
        ("no request", v1::SubscribeRequest::default(), 0, INVALID, "INVALID_FIELD", "request", "required"),
        (
            "no watch",
            asked(Asked::Subscribe(v1::SubscribeView { view_id: 3, watch: None })),
            3,
            INVALID,
            "INVALID_FIELD",
            "subscribe.watch",
            "required",
        ),
        (
            "no key",
            requests::subscribe(4, v1::WatchRequest::default()),
            4,
            INVALID,
            "INVALID_FIELD",
            "subscribe.watch.key",
            "required",
        ),
        (
            "65 tags",
            requests::subscribe(
                5,
                v1::WatchRequest { selector: Some(selecting), ..requests::watch(SERVICE) },
            ),
            5,
            INVALID,
            "INVALID_FIELD",
            "subscribe.watch.selector.tags",
            "64",
        ),
        (
            "a namespace",
            requests::subscribe(6, scoped(Scope::Namespace("n".into()))),
            6,
            unimplemented,
            "NOT_IMPLEMENTED",
            "",
            "WatchRequest.namespace",
        ),
        (
            "everything",
            requests::subscribe(7, scoped(Scope::Everything(v1::Everything {}))),
            7,
            unimplemented,
            "NOT_IMPLEMENTED",
            "",
            "WatchRequest.everything",
        ),
        (
            "an ack of someone who did not say so",
            asked(Asked::Ack(v1::Ack::default())),
            0,
            INVALID,
            "INVALID_FIELD",
            "ack",
            "hello",
        ),
        (
            "a nameless client",
            asked(Asked::Hello(v1::Hello::default())),
            0,
            INVALID,
            "INVALID_FIELD",
            "hello.client_id",
            "required",
        ),
    ] {
        stream.ask(request).await;
        let (id, error) = stream.refusal().await;
        assert_eq!((id, Code::from(error.code)), (view, code), "{what}: {error:?}");
        assert_eq!((error.reason.as_str(), error.field.as_str()), (reason, field), "{what}");
        assert!(error.message.contains(says), "{what}: {}", error.message);
    }
    stream.ask(requests::subscribe(8, requests::watch(SERVICE))).await;
    assert_eq!(stream.change(8).await.all.len(), 1, "the stream goes on");
}

/// One small message would otherwise be answered by the lease's losses ten thousand times over.
#[tokio::test]
async fn a_lease_that_is_named_many_times_in_one_renewal_is_answered_once() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    let (stays, goes) = (instance("stays"), instance("goes"));
    client.register(register(1, SERVICE, vec![stays, goes])).await.expect("registered");
    client.deregister(requests::deregister(SERVICE, &["goes".into()])).await.expect("deregistered");
    let (renewals, receiver) = tokio::sync::mpsc::channel(1);
    let lease_ids = vec![requests::lease(1); 10_000];
    renewals.send(v1::KeepAliveRequest { lease_ids, request_id: 7 }).await.expect("sent");
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.keep_alive(receiver).await.expect("a stream").into_inner();
    let answer = answers.message().await.expect("open").expect("an answer");
    assert_eq!(answer.request_id, 7);
    let [exception] = answer.exceptions.as_slice() else { panic!("{} answers", answer.exceptions.len()) };
    assert_eq!((exception.lost.len(), exception.lost[0].id.as_str()), (1, "goes"));
}

#[tokio::test]
async fn views_streams_and_selectors_are_bounded() {
    let server = server_setup!().with("--max-streams", "3").start().await;
    let client = server.client().await;
    let selecting = |zone: u32| {
        let selector = Some(v1::Selector { zone: format!("zone-{zone}"), ..Default::default() });
        v1::WatchRequest { selector, ..requests::watch(SERVICE) }
    };
    // 64 selectors of one service at a time.
    let mut stream = Stream::open(&client).await.expect("a stream");
    for zone in 1..=64 {
        stream.ask(requests::subscribe(zone, selecting(zone))).await;
        stream.change(zone).await;
    }
    stream.ask(requests::subscribe(65, selecting(65))).await;
    let (view, error) = stream.refusal().await;
    assert_eq!(
        (view, Code::from(error.code), error.reason.as_str()),
        (65, Code::ResourceExhausted, "TOO_MANY_VIEWS")
    );
    assert!(error.message.contains("64"), "{}", error.message);
    stream.ask(requests::subscribe(66, selecting(64))).await;
    stream.change(66).await;
    stream.ask(requests::subscribe(64, selecting(64))).await;
    stream.change(64).await;

    // 10,000 views of one stream.
    let mut many = Stream::open(&client).await.expect("a stream");
    for view in 1..=10_000 {
        many.ask(requests::subscribe(view, requests::watch(&format!("service-{view}")))).await;
        many.change(view).await;
    }
    many.ask(requests::subscribe(10_001, requests::watch("one-more"))).await;
    let (view, error) = many.refusal().await;
    assert_eq!(
        (view, error.field.as_str(), error.reason.as_str()),
        (10_001, "subscribe.view_id", "INVALID_FIELD")
    );
    assert!(error.message.contains("10000"), "{}", error.message);

    // 256 of one service, on a stream that has room for more.
    many.ask(requests::unsubscribe(1)).await;
    for view in 2..=257 {
        many.ask(requests::subscribe(view, requests::watch(SERVICE))).await;
        many.change(view).await;
    }
    many.ask(requests::subscribe(258, requests::watch(SERVICE))).await;
    let (view, error) = many.refusal().await;
    assert_eq!((view, error.field.as_str()), (258, "subscribe.view_id"));
    assert!(error.message.contains("256"), "{}", error.message);

    // As many streams as was set.
    let third = client.clone().watch(requests::watch(SERVICE)).await.expect("the third stream");
    for refused in [
        client.clone().watch(requests::watch(SERVICE)).await.expect_err("the fourth"),
        Stream::open(&client).await.expect_err("the fourth"),
    ] {
        assert_eq!(
            (refused.code(), requests::reason(&refused).as_str()),
            (Code::ResourceExhausted, "TOO_MANY_STREAMS")
        );
        assert!(refused.message().contains('3') && refused.get_error_details().retry_info().is_some());
    }
    drop(third);
}

#[tokio::test]
async fn a_narrower_ttl_is_named_in_the_refusal() {
    let server = server_setup!().with("--ttl-min", "5s").with("--ttl-max", "10s").start().await;
    let mut client = server.client().await;
    for millis in [4_999, 10_001] {
        let refused = client.register(requests::register_for(millis, 1, SERVICE, vec![instance("a")])).await;
        let refused = refused.expect_err("out of the bounds");
        assert_eq!(requests::field(&refused), "ttl");
        assert!(refused.message().contains("5s to 10s"), "{}", refused.message());
    }
    let mut unset = register(1, SERVICE, vec![instance("a")]);
    unset.ttl = None;
    let answer = client.register(unset).await.expect("the default fits in").into_inner();
    assert_eq!(answer.ttl, Some(requests::seconds(10)), "the answer says which TTL is in force");
}
