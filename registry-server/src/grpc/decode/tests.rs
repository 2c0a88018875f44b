//! Every decoder on requests of all kinds: good ones, ones with anything at the edge or beyond it, damaged ones, and bytes.

use proptest::{
    collection::vec,
    option,
    prelude::*,
    strategy::{Union, ValueTree as _},
};
use prost::Message as _;
use registry_proto::v1;

use super::{fuzzing, *};

/// Mostly good; else something at an edge.
fn mostly<T: std::fmt::Debug + Clone + 'static>(
    good: impl Strategy<Value = T> + 'static,
    edges: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    Union::new_weighted(vec![(30, good.boxed()), (1, edges.boxed())])
}

fn name() -> impl Strategy<Value = String> {
    let edge = prop_oneof![
        Just(String::new()),
        (252..256_usize).prop_map(|size| "n".repeat(size)),
        Just("x".repeat(5_000)),
        ".{0,6}",
        "[a:/@._\\[\\]-]{1,5}",
    ];
    mostly("[a-c]{1,2}", edge)
}

fn key() -> impl Strategy<Value = Option<v1::ServiceKey>> {
    let key = (mostly(prop_oneof![Just(String::new()), "[nm]"], name()), name());
    option::weighted(0.98, key.prop_map(|(namespace, service)| v1::ServiceKey { namespace, service }))
}

fn duration() -> impl Strategy<Value = Option<prost_types::Duration>> {
    let seconds =
        prop_oneof![Just(i64::MIN), Just(-1), 0..3_i64, 3_599..3_601_i64, 86_399..86_402_i64, Just(i64::MAX)];
    let nanos = prop_oneof![Just(i32::MIN), Just(-1), Just(999_999_999), Just(1_000_000_000), Just(i32::MAX)];
    let duration = (mostly(2..3_000_i64, seconds), mostly(Just(0), nanos));
    option::of(duration.prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }))
}

fn address() -> impl Strategy<Value = String> {
    let good =
        prop_oneof!["10\\.0\\.0\\.[1-9]:80", Just("[::1]:65535".to_owned()), Just("unix:/run/a".to_owned())];
    let edge = prop_oneof![
        ".{0,20}",
        "(\\[[:0-9a-f]{0,6}\\]?|[a-z.-]{0,4})(:[0-9+-]{0,6})?",
        "unix:/?[a/]{0,3}",
        (256..264_usize).prop_map(|size| format!("{}:80", "h".repeat(size - 3))),
    ];
    mostly(good, edge)
}

fn tags() -> impl Strategy<Value = std::collections::HashMap<String, String>> {
    let small = prop::collection::hash_map("[a-c]", "[x-z]{0,2}", 0..3);
    let many = (63..67_usize).prop_map(|count| (0..count).map(|n| (n.to_string(), String::new())).collect());
    let long = (127..130_usize, 4_095..4_098_usize)
        .prop_map(|(key, value)| [("k".repeat(key), "v".repeat(value))].into());
    let empty = Just([(String::new(), String::new())].into());
    let heavy = Just((0..5).map(|n| (n.to_string(), "v".repeat(4_096))).collect());
    mostly(small, prop_oneof![many, long, empty, heavy])
}

fn status() -> impl Strategy<Value = i32> {
    mostly(0..4_i32, prop_oneof![Just(-1), Just(4), Just(i32::MIN), Just(i32::MAX)])
}

fn weight() -> impl Strategy<Value = Option<u32>> {
    option::of(mostly(0..65_536_u32, prop_oneof![Just(65_536), Just(u32::MAX)]))
}

fn instance() -> impl Strategy<Value = v1::Instance> {
    let text = || mostly("[a-z]{0,3}", prop_oneof![Just("z".repeat(253)), Just("z".repeat(254))]);
    let locality = (text(), text()).prop_map(|(region, zone)| v1::Locality { region, zone });
    let id = prop_oneof![Just(String::new()), name()];
    (id, address(), weight(), tags(), option::of(locality), status()).prop_map(
        |(id, address, weight, tags, locality, status)| v1::Instance {
            id,
            address,
            weight,
            tags,
            locality,
            status,
            ..v1::Instance::default()
        },
    )
}

fn lease_id() -> impl Strategy<Value = Vec<u8>> {
    mostly(vec(any::<u8>(), 16), vec(any::<u8>(), 0..18))
}

fn register() -> impl Strategy<Value = v1::RegisterRequest> {
    let registration = (key(), option::weighted(0.98, instance()))
        .prop_map(|(key, instance)| v1::Registration { key, instance });
    let registrant = (name(), any::<u64>())
        .prop_map(|(instance_uid, generation)| v1::Registrant { instance_uid, generation });
    (lease_id(), option::weighted(0.98, registrant), duration(), vec(registration, 0..4)).prop_map(
        |(lease_id, registrant, ttl, registrations)| v1::RegisterRequest {
            lease_id,
            registrant,
            ttl,
            registrations,
        },
    )
}

fn deregister() -> impl Strategy<Value = v1::DeregisterRequest> {
    let named = (key(), name(), any::<u64>()).prop_map(|(key, id, create_revision)| v1::InstanceRef {
        key,
        id,
        create_revision,
    });
    (prop_oneof![Just(vec![]), lease_id()], vec(named, 0..4), name())
        .prop_map(|(lease_id, instances, actor)| v1::DeregisterRequest { lease_id, instances, actor })
}

fn set_override() -> impl Strategy<Value = v1::SetOverrideRequest> {
    use v1::set_override_request::Action;
    let set = (weight(), status(), duration()).prop_map(|(weight, status, expires_in)| {
        Action::Set(v1::Override { weight, status, expires_in, ..v1::Override::default() })
    });
    let action = prop_oneof![3 => set, 1 => Just(Action::Clear(v1::ClearOverride {}))];
    let reason = mostly(".{0,9}", prop_oneof![Just("r".repeat(1_024)), Just("r".repeat(1_025))]);
    (key(), name(), option::weighted(0.98, action), name(), reason).prop_map(
        |(key, id, action, actor, reason)| v1::SetOverrideRequest { key, id, action, actor, reason },
    )
}

fn resolve_hold() -> impl Strategy<Value = v1::ResolveHoldRequest> {
    (key(), vec(name(), 0..4), -1..4_i32, name())
        .prop_map(|(key, ids, action, actor)| v1::ResolveHoldRequest { key, ids, action, actor })
}

fn wait_applied() -> impl Strategy<Value = v1::WaitAppliedRequest> {
    let share = prop_oneof![Just(f64::NAN), Just(-0.0), Just(5e-324), Just(1.000_000_1), any::<f64>()];
    let revision = mostly(1..9_u64, prop_oneof![Just(0), Just(u64::MAX)]);
    let epoch = mostly("[0-9a-f]{0,32}", prop_oneof![Just("e".repeat(253)), Just("e".repeat(254))]);
    (key(), revision, mostly(0.0..1.0, share), duration(), epoch).prop_map(
        |(key, revision, share, timeout, epoch)| v1::WaitAppliedRequest {
            key,
            revision,
            share,
            timeout,
            epoch,
        },
    )
}

fn token() -> impl Strategy<Value = String> {
    mostly("([0-9]{1,3}[. ]){2}[0-9]", prop_oneof![Just(String::new()), ".{0,9}", Just("1.".repeat(4_000))])
}

/// Any other request, as its number and its bytes.
fn encoded() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let lease_ids = (vec(lease_id(), 0..4), 1..3_usize).prop_map(|(ids, times)| vec![ids; times].concat());
    let keep_alive =
        lease_ids.prop_map(|lease_ids| v1::KeepAliveRequest { lease_ids, request_id: 1 }.encode_to_vec());
    let discover = (key(), option::of(selector()), any::<u64>(), token()).prop_map(
        |(key, selector, min_revision, page_token)| {
            v1::DiscoverRequest { key, selector, min_revision, page_token }.encode_to_vec()
        },
    );
    let list = (mostly(Just(String::new()), name()), mostly(0..1_001_u32, any::<u32>()), token()).prop_map(
        |(namespace, page_size, page_token)| {
            v1::ListOverridesRequest { namespace, page_size, page_token }.encode_to_vec()
        },
    );
    let explain = (key(), name()).prop_map(|(key, id)| v1::ExplainRequest { key, id }.encode_to_vec());
    let hello =
        (name(), any::<bool>()).prop_map(|(client_id, acks)| v1::Hello { client_id, acks }.encode_to_vec());
    let of = |kind: u8, bytes: BoxedStrategy<Vec<u8>>| bytes.prop_map(move |bytes| (kind, bytes));
    prop_oneof![
        of(0, register().prop_map(|it| it.encode_to_vec()).boxed()),
        of(1, deregister().prop_map(|it| it.encode_to_vec()).boxed()),
        of(2, set_override().prop_map(|it| it.encode_to_vec()).boxed()),
        of(3, resolve_hold().prop_map(|it| it.encode_to_vec()).boxed()),
        of(4, keep_alive.boxed()),
        of(6, selector().prop_map(|it| it.encode_to_vec()).boxed()),
        // Both lists ask alike, down to the numbers of their fields.
        of(7, list.boxed()),
        of(9, discover.boxed()),
        of(10, wait_applied().prop_map(|it| it.encode_to_vec()).boxed()),
        of(11, explain.boxed()),
        of(12, hello.boxed()),
    ]
}

fn selector() -> impl Strategy<Value = v1::Selector> {
    let tags = prop::collection::hash_map("[ab]", "[xy]?", 0..3);
    (tags, "[xy]?", vec(1..4_i32, 0..5)).prop_map(|(tags, zone, statuses)| v1::Selector {
        tags,
        zone,
        statuses,
    })
}

fn read(request: &v1::Selector) -> Selector {
    super::selector(Some(request), Path::Root).expect("a good selector")
}

proptest! {
    #[test]
    fn whatever_is_asked_is_within_bounds_or_is_refused_by_field(
        register in register(),
        deregister in deregister(),
        set_override in set_override(),
        resolve_hold in resolve_hold(),
    ) {
        fuzzing::register(&register);
        fuzzing::deregister(&deregister);
        fuzzing::set_override(&set_override);
        fuzzing::resolve_hold(&resolve_hold);
    }

    #[test]
    fn whoever_reads_renews_waits_or_asks_why_is_within_bounds_or_is_refused_by_field((kind, bytes) in encoded()) {
        fuzzing::any_request(kind, &bytes);
    }

    #[test]
    fn no_bytes_and_no_damaged_request_panic(
        kind in any::<u8>(),
        bytes in vec(any::<u8>(), 0..200),
        (good_kind, mut damaged) in encoded(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        fuzzing::any_request(kind, &bytes);
        if !damaged.is_empty() {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        fuzzing::any_request(good_kind, &damaged);
    }

    #[test]
    fn a_selector_selects_what_its_words_say(request in selector()) {
        fuzzing::selector(&request);
    }

    #[test]
    fn selectors_are_equal_if_and_only_if_they_mean_the_same(one in selector(), other in selector()) {
        let universe = fuzzing::universe();
        let same = universe.iter().all(|it| fuzzing::naive(&one, it) == fuzzing::naive(&other, it));
        prop_assert_eq!(read(&one) == read(&other), same);
    }

    #[test]
    fn tokens_are_ours_or_refused(token in "[0-9]{0,22}[. ][0-9]{0,22}[. ][0-9a-z]{0,22}|.{0,30}") {
        if let Ok(page) = page_token(&token) {
            let again = format!("{}.{}.{}", page.generation, page.part, page.revision);
            prop_assert_eq!(page_token(&again), Ok(page));
        }
        if let Ok(Some((key, id))) = list_token(&token) {
            prop_assert_eq!(format!("{} {} {id}", key.namespace, key.service), token);
        }
    }
}

/// The generators reach both sides: what they make is often taken, and often refused.
#[test]
fn of_the_requests_made_up_many_are_good_and_many_are_not() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let good = (0..400).filter(|_| {
        let request = register().new_tree(&mut runner).expect("a request").current();
        super::register(&request, TtlBounds::default()).is_ok()
    });
    let good = good.count();
    assert!((40..360).contains(&good), "{good} of 400");
    let good = (0..400).filter(|_| {
        let request = wait_applied().new_tree(&mut runner).expect("a request").current();
        super::wait_applied(&request).is_ok()
    });
    let good = good.count();
    assert!((40..360).contains(&good), "{good} of 400");
}
