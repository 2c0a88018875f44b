//! Each promise bites on a trace that breaks it, and on none that keeps it. Those of the whole system are doctored in
//! `tests/simulated.rs`.

use super::*;
use crate::validate::applications::{
    everyone_is_well, l1_nobody_is_lost, w2_differences_lead_to_views, w8_nothing_to_resync,
};

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

/// What broke, in words; empty if nothing did.
fn said(judged: Result<(), Broken>) -> String {
    judged.err().map(|broken| broken.to_string()).unwrap_or_default()
}

fn ends_with(instances: &Seen) -> BTreeMap<String, Seen> {
    BTreeMap::from([("registry-0".to_owned(), instances.clone())])
}

#[test]
fn kept_promises_pass() {
    let trace = watched(&[&[], &["a"], &["a", "b"]]);
    called(&trace, Err("not discovered yet"), true);
    called(&trace, Ok("a"), false);
    assert_eq!(said(c1_last_known_good(&trace, NOW)), "");
    assert_eq!(said(l1_nobody_is_lost(&trace)), "");
    assert_eq!(said(w2_differences_lead_to_views(&trace)), "");
    assert_eq!(said(w8_nothing_to_resync(&trace)), "");
    assert_eq!(said(everyone_is_well(&watched(&[&[]]), &ends_with(&Seen::new()), NOW)), "");
}

fn holds(trace: &Trace, at: u64, epoch: &str, all: &[&str]) {
    let (who, epoch) = ("registry-0".to_owned(), epoch.to_owned());
    trace.add(seconds(at), Event::Holds { who, epoch, all: seen(all) });
}

fn sees(trace: &Trace, at: u64, all: &[&str]) {
    let (who, added) = ("watcher".to_owned(), Seen::new());
    let view = Event::View { who, all: seen(all), updated: added.clone(), removed: added.clone(), added };
    trace.add(seconds(at), view);
}

#[test]
fn an_emptied_view_breaks_c1_unless_a_registry_was_emptied() {
    let broken = said(c1_last_known_good(&watched(&[&["a"], &[]]), NOW));
    assert!(broken.starts_with("C1") && broken.contains("watcher knows no instance any longer"), "{broken}");
    let judge = |how: &dyn Fn(&Trace)| {
        let trace = Trace::default();
        holds(&trace, 1, "e", &["a"]);
        sees(&trace, 2, &["a"]);
        how(&trace);
        said(c1_last_known_good(&trace, seconds(99)))
    };
    assert_eq!(
        judge(&|trace| {
            holds(trace, 3, "e", &[]);
            sees(trace, 4, &[]);
        }),
        ""
    );
    let lost_its_data = judge(&|trace| {
        holds(trace, 3, "f", &[]);
        sees(trace, 4, &[]);
    });
    assert!(lost_its_data.starts_with("C1"), "{lost_its_data}");
    let long_ago = |trace: &Trace| {
        holds(trace, 3, "f", &[]);
        sees(trace, 40, &[]);
    };
    assert_eq!(judge(&long_ago), "", "an empty view of a new history is doubted for 30 s");
    let refilled = |trace: &Trace| {
        holds(trace, 3, "e", &[]);
        holds(trace, 4, "e", &["a"]);
        sees(trace, 9, &[]);
    };
    assert!(judge(&refilled).starts_with("C1"));
}

#[test]
fn a_caller_left_with_nobody_breaks_c1_if_it_knows_someone() {
    let trace = Trace::default();
    knows(&trace, 0, &[("a", 1)]);
    called(&trace, Err("nobody"), true);
    assert!(said(c1_last_known_good(&trace, NOW)).contains("caller has nobody to call"));
    let trace = Trace::default();
    knows(&trace, 0, &[("a", 0)]);
    called(&trace, Err("nobody"), true);
    assert_eq!(said(c1_last_known_good(&trace, NOW)), "");
}

#[test]
fn a_lost_instance_breaks_l1() {
    assert!(said(l1_nobody_is_lost(&watched(&[&["a", "b"], &["b"]]))).contains("watcher lost a"));
}

#[test]
fn a_difference_that_leads_elsewhere_breaks_w2() {
    let trace = watched(&[&["a"]]);
    let none = Seen::new;
    let all = seen(&["a", "b"]);
    let who = "watcher".to_owned();
    trace.add(NOW, Event::View { who, all, added: none(), updated: none(), removed: none() });
    assert!(said(w2_differences_lead_to_views(&trace)).starts_with("W2"));
}

#[test]
fn a_resync_breaks_w8() {
    let trace = Trace::default();
    trace.add(NOW, Event::Healthy { who: "watcher".to_owned(), streams: 1, resyncs: 1 });
    assert!(said(w8_nothing_to_resync(&trace)).starts_with("W8"));
}

#[test]
fn whoever_ends_with_another_view_or_a_failed_call_is_not_well() {
    let ends = ends_with(&seen(&["a", "b"]));
    assert!(said(everyone_is_well(&watched(&[&["a"]]), &ends, NOW)).contains("watcher ends with"));
    let trace = watched(&[&["a", "b"]]);
    called(&trace, Err("lost"), false);
    assert!(said(everyone_is_well(&trace, &ends, NOW)).contains("a call of caller fails: lost"));
    let trace = watched(&[&["a", "b"]]);
    trace.add(NOW, Event::Holds { who: "registry-0".to_owned(), epoch: "e".to_owned(), all: seen(&["a"]) });
    assert!(said(everyone_is_well(&trace, &ends, NOW)).starts_with("L1"));
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
    assert_eq!(said(c2_no_dead_picks(&trace, NOW)), "");
}

#[test]
fn a_call_to_one_that_was_gone_breaks_c2() {
    let trace = Trace::default();
    knows(&trace, 1, &[("a", 1), ("b", 1)]);
    knows(&trace, 2, &[("a", 1)]);
    answered_by_b(&trace, 3, 4);
    assert!(said(c2_no_dead_picks(&trace, NOW)).contains("at 4s caller called b"));
}

#[test]
fn a_call_to_one_of_weight_0_breaks_c2() {
    let trace = Trace::default();
    knows(&trace, 1, &[("a", 1), ("b", 0)]);
    knows(&trace, 4, &[("a", 2), ("b", 0)]);
    answered_by_b(&trace, 2, 5);
    assert!(said(c2_no_dead_picks(&trace, NOW)).contains("at 5s caller called b"));
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
    assert_eq!(said(c3_never_deaf(&trace, seconds(500))), "");
    // Nobody can be reached any longer: it cannot resume.
    trace.add(seconds(500), Event::Fault(Fault::Crash("registry-1".to_owned())));
    troubled(&trace, 501);
    assert_eq!(said(c3_never_deaf(&trace, seconds(900))), "");
}

#[test]
fn one_that_does_not_notice_breaks_c3() {
    let broken = said(c3_never_deaf(&cut_off(), seconds(27)));
    assert!(broken.contains("at 27s caller does not notice that it is cut off from registry-0"), "{broken}");
}

#[test]
fn a_cut_from_the_registry_deafens_and_one_to_it_does_not() {
    for (from, to, deaf) in [("registry-0", "caller", true), ("caller", "registry-0", false)] {
        let trace = cut_off();
        trace.add(seconds(11), Event::Fault(Fault::Repair("caller".to_owned(), "registry-0".to_owned())));
        trace.add(seconds(12), Event::Fault(Fault::OneWay(from.to_owned(), to.to_owned())));
        assert_eq!(said(c3_never_deaf(&trace, seconds(29))).starts_with("C3"), deaf, "{from} to {to}");
    }
}

#[test]
fn one_that_does_not_notice_a_crash_of_the_second_registry_breaks_c3() {
    let trace = cut_off();
    troubled(&trace, 12);
    knows(&trace, 13, &[("a", 1_001)]);
    healthy(&trace, 14);
    trace.add(seconds(15), Event::Fault(Fault::Crash("registry-1".to_owned())));
    troubled(&trace, 32);
    let broken = said(c3_never_deaf(&trace, seconds(32)));
    assert!(broken.contains("at 32s caller does not notice that it is cut off from registry-1"), "{broken}");
}

#[test]
fn one_that_notices_and_does_not_resume_elsewhere_breaks_c3() {
    let trace = cut_off();
    troubled(&trace, 12);
    assert!(said(c3_never_deaf(&trace, seconds(33))).contains("at 33s caller does not resume"));
}

/// The caller follows the first registry, and `a` drains.
fn drains(unaware: bool, cut: bool, promised: bool) -> Trace {
    let trace = cut_off();
    trace.add(seconds(11), Event::Fault(Fault::Repair("caller".to_owned(), "registry-0".to_owned())));
    knows(&trace, 20, &[("a", 1), ("b", 1)]);
    if cut {
        let cut = Fault::OneWay("registry-0".to_owned(), "caller".to_owned());
        trace.add(seconds(21), Event::Fault(cut));
    }
    let drain = |step| Event::Drain { who: "a".to_owned(), step };
    trace.add(seconds(22), drain(DrainStep::Began));
    if !unaware {
        knows(&trace, 22, &[("a", 0), ("b", 1)]);
    }
    let registry = || "registry-0".to_owned();
    trace.add(seconds(23), drain(DrainStep::Told(registry())));
    knows(&trace, 24, &[("b", 1)]);
    trace.add(seconds(25), drain(DrainStep::Knew { registry: registry(), all: promised }));
    trace
}

#[test]
fn a_drain_that_goes_on_before_a_caller_knows_of_it_breaks_c4() {
    let judge = |unaware, cut, promised| said(c4_drain_without_a_sleep(&drains(unaware, cut, promised), NOW));
    assert_eq!(judge(false, false, true), "");
    assert!(judge(true, false, true).contains("at 23s a was told by registry-0"));
    assert_eq!(judge(true, true, true), "", "nobody can tell one that is cut off");
    assert_eq!(judge(true, false, false), "", "the registry did not say that all know");
}

#[test]
fn a_call_that_fails_while_only_drains_happen_breaks_c4() {
    for (began, broken) in [(30, false), (90, true)] {
        let trace = drains(false, false, true);
        let who = || "caller".to_owned();
        let nobody = false;
        let ok = Event::Called { who: who(), began: seconds(24), outcome: Ok("b".to_owned()), nobody };
        trace.add(seconds(24), ok);
        let outcome = Err("lost".to_owned());
        trace.add(seconds(began), Event::Called { who: who(), began: seconds(began), outcome, nobody });
        assert_eq!(said(c4_drain_without_a_sleep(&trace, NOW)).starts_with("C4"), broken);
    }
}
