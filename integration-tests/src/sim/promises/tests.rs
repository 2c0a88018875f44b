//! Each promise bites on a trace that breaks it.

use super::*;

const NOW: Duration = Duration::ZERO;

fn seen(ids: &[&str]) -> Seen {
    ids.iter().map(|id| ((*id).to_owned(), 1)).collect()
}

/// A watcher that saw these views, with the differences that lead from one to the next.
fn watched(views: &[&[&str]]) -> Trace {
    let trace = Trace::default();
    let mut before = Seen::new();
    for all in views {
        let all = seen(all);
        let missing = |from: &Seen, of: &Seen| {
            from.iter().filter(|(id, _)| !of.contains_key(*id)).map(|(id, w)| (id.clone(), *w)).collect()
        };
        trace.add(
            NOW,
            Event::View {
                who: "watcher".to_owned(),
                added: missing(&all, &before),
                updated: Seen::new(),
                removed: missing(&before, &all),
                all: all.clone(),
            },
        );
        before = all;
    }
    trace
}

fn called(trace: &Trace, outcome: Result<&str, &str>, nobody: bool) {
    let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
    trace.add(NOW, Event::Called { who: "caller".to_owned(), began: NOW, outcome, nobody });
}

#[test]
fn kept_promises_pass() {
    let trace = watched(&[&[], &["a"], &["a", "b"]]);
    called(&trace, Err("not discovered yet"), true);
    called(&trace, Ok("a"), false);
    called(&trace, Ok("b"), false);
    c1_last_known_good(&trace);
    l1_no_early_expiry(&trace);
    w2_gapless(&trace);
    w8_nothing_to_resync(&trace);
    all_is_well(&watched(&[&[]]), &Seen::new(), NOW);
}

#[test]
#[should_panic(expected = "C1 broken at 0ns: watcher")]
fn an_emptied_view_breaks_c1() {
    c1_last_known_good(&watched(&[&["a"], &[]]));
}

#[test]
#[should_panic(expected = "C1 broken at 0ns: caller")]
fn a_caller_left_with_nobody_breaks_c1() {
    let trace = Trace::default();
    called(&trace, Ok("a"), false);
    called(&trace, Err("nobody"), true);
    c1_last_known_good(&trace);
}

#[test]
#[should_panic(expected = "L1 broken at 0ns: watcher lost a")]
fn a_lost_instance_breaks_l1() {
    l1_no_early_expiry(&watched(&[&["a", "b"], &["b"]]));
}

#[test]
#[should_panic(expected = "W2 broken")]
fn a_difference_that_leads_elsewhere_breaks_w2() {
    let trace = watched(&[&["a"]]);
    let none = Seen::new;
    let all = seen(&["a", "b"]);
    let who = "watcher".to_owned();
    trace.add(NOW, Event::View { who, all, added: none(), updated: none(), removed: none() });
    w2_gapless(&trace);
}

#[test]
#[should_panic(expected = "W8")]
fn a_resync_breaks_w8() {
    let trace = Trace::default();
    trace.add(NOW, Event::Healthy { who: "watcher".to_owned(), streams: 1, resyncs: 1 });
    w8_nothing_to_resync(&trace);
}

#[test]
#[should_panic(expected = "nobody reached b")]
fn an_instance_that_is_never_called_is_not_well() {
    let trace = watched(&[&["a", "b"]]);
    called(&trace, Ok("a"), false);
    all_is_well(&trace, &seen(&["a", "b"]), NOW);
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A caller that got such a view then.
fn knows(trace: &Trace, at: u64, view: &[(&str, u32)]) {
    let all: Seen = view.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    let (added, updated, removed) = (all.clone(), Seen::new(), Seen::new());
    trace.add(seconds(at), Event::View { who: "caller".to_owned(), all, added, updated, removed });
}

/// A call that was answered by `b`.
fn answered_by_b(trace: &Trace, began: u64, ended: u64) {
    let (who, began, outcome) = ("caller".to_owned(), seconds(began), Ok("b".to_owned()));
    trace.add(seconds(ended), Event::Called { who, began, outcome, nobody: false });
}

#[test]
fn c2_allows_calls_that_began_before_the_view_changed_or_ended_after_it() {
    let trace = Trace::default();
    knows(&trace, 1, &[("a", 1), ("b", 1)]);
    knows(&trace, 3, &[("a", 1), ("b", 0)]);
    answered_by_b(&trace, 2, 4);
    answered_by_b(&trace, 3, 5);
    knows(&trace, 6, &[("a", 1)]);
    knows(&trace, 8, &[("a", 1), ("b", 2)]);
    answered_by_b(&trace, 7, 9);
    c2_no_dead_picks(&trace);
}

#[test]
#[should_panic(expected = "C2 broken at 4s: caller called b")]
fn a_call_to_one_that_was_gone_breaks_c2() {
    let trace = Trace::default();
    knows(&trace, 1, &[("a", 1), ("b", 1)]);
    knows(&trace, 2, &[("a", 1)]);
    answered_by_b(&trace, 3, 4);
    c2_no_dead_picks(&trace);
}

#[test]
#[should_panic(expected = "C2 broken at 5s: caller called b")]
fn a_call_to_one_of_weight_0_breaks_c2() {
    let trace = Trace::default();
    knows(&trace, 1, &[("a", 1), ("b", 0)]);
    knows(&trace, 4, &[("a", 2), ("b", 0)]);
    answered_by_b(&trace, 2, 5);
    c2_no_dead_picks(&trace);
}

/// Two registries serve, and the caller, who follows the first one, is cut off from it at 10 s.
fn cut_off() -> Trace {
    let trace = Trace::default();
    for who in ["registry-0", "registry-1"] {
        let (who, epoch) = (who.to_owned(), "e".to_owned());
        trace.add(NOW, Event::Started { who, epoch, revision: 0, instances: 0 });
    }
    knows(&trace, 1, &[("a", 1)]);
    trace.add(seconds(10), Event::Fault(Fault::Partition("caller".to_owned(), "registry-0".to_owned())));
    trace
}

fn troubled(trace: &Trace, at: u64) {
    trace.add(seconds(at), Event::Troubled { who: "caller".to_owned(), error: "silence".to_owned() });
}

fn healthy(trace: &Trace, at: u64) {
    trace.add(seconds(at), Event::Healthy { who: "caller".to_owned(), streams: 2, resyncs: 0 });
}

#[test]
fn c3_allows_15_s_to_notice_and_asks_nothing_of_whom_the_cut_does_not_concern() {
    let trace = cut_off();
    troubled(&trace, 25);
    knows(&trace, 26, &[("a", 1_001)]);
    healthy(&trace, 27);
    // It follows the other one by now.
    trace.add(seconds(28), Event::Fault(Fault::Crash("registry-0".to_owned())));
    c3_never_deaf(&trace, seconds(500));
    // Nobody can be reached any longer: it cannot resume.
    trace.add(seconds(500), Event::Fault(Fault::Crash("registry-1".to_owned())));
    troubled(&trace, 501);
    c3_never_deaf(&trace, seconds(900));
}

#[test]
#[should_panic(expected = "C3 broken at 26s: caller does not notice that it is cut off from registry-0")]
fn one_that_does_not_notice_breaks_c3() {
    c3_never_deaf(&cut_off(), seconds(26));
}

#[test]
#[should_panic(expected = "C3 broken at 31s: caller does not notice that it is cut off from registry-1")]
fn one_that_does_not_notice_a_crash_of_the_second_registry_breaks_c3() {
    let trace = cut_off();
    troubled(&trace, 12);
    knows(&trace, 13, &[("a", 1_001)]);
    healthy(&trace, 14);
    trace.add(seconds(15), Event::Fault(Fault::Crash("registry-1".to_owned())));
    troubled(&trace, 31);
    c3_never_deaf(&trace, seconds(31));
}

#[test]
#[should_panic(expected = "C3 broken at 33s: caller does not resume")]
fn one_that_notices_and_does_not_resume_elsewhere_breaks_c3() {
    let trace = cut_off();
    troubled(&trace, 12);
    c3_never_deaf(&trace, seconds(33));
}
