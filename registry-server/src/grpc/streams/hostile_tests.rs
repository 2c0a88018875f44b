//! `Subscribe` streams of clients that may ask anything, in any order.

use proptest::{collection::vec, option, prelude::*};
use registry_proto::v1::{self, subscribe_request::Request};

use super::fuzzing::{Checked, Step, watch_service};
use crate::grpc::feeder::MAX_VIEWS_OF_SERVICE;

fn watch_request() -> impl Strategy<Value = v1::WatchRequest> {
    let epoch =
        prop_oneof![4 => Just("e".to_owned()), 1 => Just(String::new()), 1 => Just("x".repeat(5_000))];
    let revision = prop_oneof![4 => 0..6_u64, 1 => Just(u64::MAX)];
    let cursor = option::of((epoch, revision).prop_map(|(epoch, revision)| v1::Cursor { epoch, revision }));
    let scope = prop_oneof![
        6 => Just(watch_service().scope),
        1 => Just(None),
        1 => Just(Some(v1::watch_request::Scope::Namespace("n".into()))),
        1 => ".{0,5}".prop_map(|service| Some(v1::watch_request::Scope::Key(v1::ServiceKey {
            namespace: String::new(),
            service,
        }))),
    ];
    let selector = option::of("[ab]{0,2}".prop_map(|zone| v1::Selector { zone, ..v1::Selector::default() }));
    (scope, selector, cursor, any::<bool>(), any::<bool>()).prop_map(
        |(scope, selector, cursor, include_all, force_snapshot)| v1::WatchRequest {
            scope,
            selector,
            cursor,
            include_all,
            force_snapshot,
        },
    )
}

fn request() -> impl Strategy<Value = Option<Request>> {
    let name = prop_oneof![3 => "[ab]", 1 => ".{0,3}", 1 => Just("n".repeat(254))];
    let hello = (name, any::<bool>()).prop_map(|(client_id, acks)| v1::Hello { client_id, acks });
    let subscribe = (0..4_u32, option::weighted(0.9, watch_request()))
        .prop_map(|(view_id, watch)| v1::SubscribeView { view_id, watch });
    let epoch = prop_oneof![4 => Just("e".to_owned()), 1 => ".{0,5}", 1 => Just("\u{fffd}".repeat(2_000))];
    let revision = prop_oneof![4 => 0..6_u64, 1 => Just(u64::MAX)];
    let ack = (epoch, revision).prop_map(|(epoch, revision)| v1::Ack { epoch, revision });
    prop_oneof![
        2 => hello.prop_map(|it| Some(Request::Hello(it))),
        4 => subscribe.prop_map(|it| Some(Request::Subscribe(it))),
        1 => (0..4_u32).prop_map(|view_id| Some(Request::Unsubscribe(v1::UnsubscribeView { view_id }))),
        3 => ack.prop_map(|it| Some(Request::Ack(it))),
        1 => Just(None),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => request().prop_map(|request| Step::Ask(v1::SubscribeRequest { request })),
        4 => (1..9_u8).prop_map(Step::Read),
        2 => Just(Step::Publish),
        1 => Just(Step::Wait),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #[test]
    fn whatever_a_client_asks_on_a_stream_is_answered_by_field_and_piles_up_nothing(
        steps in vec(step(), 1..60),
    ) {
        let mut checked = Checked::new();
        for step in steps {
            checked.step(step);
        }
    }
}

/// As many views of one service as a client likes would make each change that somebody waits for cost as much as all of them.
#[test]
fn views_of_one_service_without_end_are_refused_one_by_one() {
    let mut checked = Checked::new();
    let ask = |request| Step::Ask(v1::SubscribeRequest { request: Some(request) });
    let most = u32::try_from(MAX_VIEWS_OF_SERVICE).expect("small");
    for view_id in 1..=2 * most {
        let selector = Some(v1::Selector { zone: format!("z{}", view_id % 60), ..v1::Selector::default() });
        let watch = Some(v1::WatchRequest { selector, ..watch_service() });
        checked.step(ask(Request::Subscribe(v1::SubscribeView { view_id, watch })));
        checked.step(ask(Request::Ack(v1::Ack { epoch: "e".into(), revision: u64::MAX })));
        checked.step(Step::Read(4));
    }
    assert_eq!(checked.views(), MAX_VIEWS_OF_SERVICE);
    // One that goes makes room for one.
    checked.step(ask(Request::Unsubscribe(v1::UnsubscribeView { view_id: 1 })));
    for view_id in [7_000, 7_001] {
        let watch = Some(watch_service());
        checked.step(ask(Request::Subscribe(v1::SubscribeView { view_id, watch })));
    }
    checked.step(Step::Read(9));
    assert_eq!(checked.views(), MAX_VIEWS_OF_SERVICE);
}

/// What an ack, or the end of a stream, costs does not multiply its views by those of everyone who waits.
#[test]
fn an_ack_for_all_views_of_a_service_counts_for_each_and_the_streams_end_leaves_each_behind() {
    let mut checked = Checked::new();
    let ask = |request| Step::Ask(v1::SubscribeRequest { request: Some(request) });
    checked.step(ask(Request::Hello(v1::Hello { client_id: "c".into(), acks: true })));
    for view_id in 1..=40 {
        let watch = Some(watch_service());
        checked.step(ask(Request::Subscribe(v1::SubscribeView { view_id, watch })));
    }
    checked.step(Step::Read(u8::MAX));
    checked.step(Step::Publish);
    checked.step(Step::Wait);
    checked.step(Step::Read(u8::MAX));
    assert_eq!((checked.waited().lagging, checked.waited().acked), (1, 0));
    checked.step(ask(Request::Ack(v1::Ack { epoch: "e".into(), revision: 2 })));
    checked.step(Step::Read(1));
    assert_eq!((checked.waited().lagging, checked.waited().acked), (0, 1));
    checked.step(Step::Publish);
    checked.step(Step::Wait);
    checked.step(Step::Reconnect);
    assert_eq!((checked.waited().lagging, checked.waited().disconnected), (0, 1), "all its views vanished");
}
