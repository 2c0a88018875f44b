//! Fleets worked out by hand, and invariants over random histories.

use proptest::prelude::*;

use super::*;
use crate::{
    balance::Outcome::{self, Cancelled, Failure, Success},
    model::Status,
    outlier::{FailurePercentage, Passage, SuccessRate},
};

fn instance(port: u16) -> Arc<Instance> {
    Arc::new(Instance::builder(format!("a:{port}").parse().expect("valid")).id(format!("i{port}")).build())
}

fn view(ports: impl IntoIterator<Item = u16>) -> Vec<Arc<Instance>> {
    ports.into_iter().map(instance).collect()
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

struct Fleet {
    detector: Detector,
    view: Vec<Arc<Instance>>,
}

impl Fleet {
    fn of(size: u16, settings: OutlierDetection) -> Self {
        let mut detector = Detector::new(settings, secs(0), 7);
        let view = view(1..=size);
        detector.follow(&view);
        Self { detector, view }
    }

    fn end(&self, index: usize, times: u32, outcome: Outcome) {
        let tally = self.detector.tally(&self.view[index]).expect("of the view");
        for _ in 0..times {
            let _ = tally.finished(outcome, None);
        }
    }

    fn did(&self, index: usize, successes: u32, failures: u32) {
        // The last is a success, so that the failures are not the last word of a row.
        self.end(index, failures, Failure);
        self.end(index, successes, Success);
    }

    /// Sends one request that is the probe.
    fn probed(&self, index: usize, outcome: Outcome) {
        let tally = self.detector.tally(&self.view[index]).expect("of the view");
        let Some(Passage::Probe(probe)) = tally.enter() else { panic!("{index} takes no probe") };
        let _ = tally.finished(outcome, Some(probe));
    }

    /// Indices and judgements of the news.
    fn told(&self, news: &[News]) -> Vec<(usize, Judgement)> {
        let index = |news: &News| self.view.iter().position(|it| it.id == news.id).expect("of the view");
        news.iter().map(|news| (index(news), news.judgement)).collect()
    }

    fn tick(&mut self, now: u64) -> Vec<(usize, Judgement)> {
        let news = self.detector.tick(secs(now));
        self.told(&news)
    }

    fn settle(&mut self, now: u64) -> Vec<(usize, Judgement)> {
        let news = self.detector.settle(secs(now));
        self.told(&news)
    }

    fn judgement(&self, index: usize) -> Judgement {
        self.detector.judgement(&self.view[index])
    }
}

fn ejected(cause: EjectionCause, since: u64, until: u64, times: u32) -> Judgement {
    Judgement::Ejected(Ejection { cause, since: secs(since), until: secs(until), times })
}

fn without_rows() -> OutlierDetection {
    OutlierDetection::builder().consecutive_failures(None).build().expect("sensible")
}

#[test]
fn five_failures_in_a_row_eject_at_once_and_four_do_not() {
    let mut fleet = Fleet::of(3, OutlierDetection::default());
    fleet.end(1, 4, Failure);
    assert_eq!(fleet.settle(1), []);
    fleet.end(1, 1, Failure);
    let expected = ejected(EjectionCause::ConsecutiveFailures, 2, 32, 1);
    assert_eq!(fleet.settle(2), [(1, expected)]);
    assert_eq!((fleet.judgement(1), fleet.judgement(0)), (expected, Judgement::Admitted));
    assert_eq!(fleet.settle(3), [], "once");
}

#[test]
fn the_interval_judges_success_rates_and_then_failure_percentages() {
    let mut fleet = Fleet::of(20, without_rows());
    for index in 0..20 {
        fleet.did(index, 100, 0);
    }
    // In all: success rates of 1.0 but for .50 and 0. Both are outliers, and the share is two of twenty.
    fleet.did(3, 0, 100);
    fleet.did(4, 0, 900);
    assert_eq!(
        fleet.tick(10),
        [
            (4, ejected(EjectionCause::SuccessRate, 10, 40, 1)),
            (3, ejected(EjectionCause::SuccessRate, 10, 40, 1))
        ]
    );
    // Too few requests for a success rate, and 45 of 50 failed: by percentage. But the share is used up.
    fleet.did(5, 5, 45);
    assert_eq!(fleet.tick(20), []);
    // At 40 the first two are on probation, and still count.
    fleet.did(5, 5, 45);
    assert_eq!(fleet.tick(40).len(), 2);
    fleet.probed(3, Success);
    assert_eq!(fleet.settle(41), [(3, Judgement::Admitted)]);
    fleet.did(5, 5, 45);
    fleet.did(6, 8, 42);
    assert_eq!(fleet.tick(50), [(5, ejected(EjectionCause::FailurePercentage, 50, 80, 1))]);
}

#[test]
fn only_enough_requests_count_and_only_of_this_interval() {
    let mut fleet = Fleet::of(6, without_rows());
    for tick in 1..4 {
        fleet.did(0, 0, 49);
        for index in 1..6 {
            fleet.did(index, 99, 0);
        }
        assert_eq!(fleet.tick(tick * 10), [], "49 and 99 requests are too few, each time anew");
    }
    fleet.did(0, 0, 50);
    assert_eq!(fleet.tick(40), [(0, ejected(EjectionCause::FailurePercentage, 40, 70, 1))]);
}

#[test]
fn one_probe_decides_and_each_failed_one_takes_longer() {
    let mut fleet = Fleet::of(2, OutlierDetection::default());
    fleet.end(0, 5, Failure);
    fleet.settle(0);
    let mut now = 0;
    for times in 1..=12_u32 {
        let lasts = u64::from(30 * times.min(10));
        let cause = if times == 1 { EjectionCause::ConsecutiveFailures } else { EjectionCause::Probe };
        let expected = ejected(cause, now, now + lasts, times.min(10));
        assert_eq!(fleet.judgement(0), expected, "{times} times");
        assert_eq!(fleet.tick(now + lasts - 1), []);
        now += lasts;
        let probing = Judgement::Probing(expected.ejection().expect("ejected"));
        assert_eq!(fleet.tick(now), [(0, probing)]);
        fleet.probed(0, Failure);
        fleet.settle(now);
    }
    let Judgement::Ejected(last) = fleet.judgement(0) else { panic!("ejected") };
    assert_eq!(fleet.tick(last.until.as_secs()).len(), 1);
    fleet.probed(0, Cancelled);
    assert_eq!(fleet.settle(5000), [], "one that is given up says nothing");
    fleet.probed(0, Success);
    assert_eq!(fleet.settle(5000), [(0, Judgement::Admitted)]);
    // Ten intervals without an ejection, less and less. The next is by what is left.
    for tick in 0..7 {
        assert_eq!(fleet.tick(5010 + tick), []);
    }
    fleet.end(0, 5, Failure);
    assert_eq!(fleet.settle(5020), [(0, ejected(EjectionCause::ConsecutiveFailures, 5020, 5140, 4))]);
}

#[test]
fn what_is_counted_before_an_instance_is_back_is_forgotten() {
    let mut fleet = Fleet::of(2, OutlierDetection::default());
    fleet.end(0, 5, Failure);
    fleet.settle(0);
    fleet.end(0, 4, Failure);
    fleet.tick(30);
    fleet.probed(0, Success);
    fleet.settle(31);
    fleet.end(0, 4, Failure);
    assert_eq!(fleet.settle(32), [], "four, not eight");
    fleet.end(0, 1, Failure);
    assert_eq!(fleet.settle(33).len(), 1);
}

#[test]
fn a_probe_without_an_answer_has_failed_and_one_whose_answer_goes_on_gives_way() {
    let mut fleet = Fleet::of(2, OutlierDetection::default());
    let tally = Arc::clone(fleet.detector.tally(&fleet.view[0]).expect("there"));
    let probe = || match tally.enter() {
        Some(Passage::Probe(probe)) => probe,
        other => panic!("{other:?}"),
    };
    fleet.end(0, 5, Failure);
    fleet.settle(0);
    fleet.tick(30);
    let silent = probe();
    assert_eq!([fleet.tick(40), fleet.tick(60)], [[], []], "noticed at 40");
    assert_eq!(fleet.tick(70), [(0, ejected(EjectionCause::Probe, 70, 130, 2))]);
    assert!(!tally.finished(Success, Some(silent)).settle, "too late");
    assert_eq!(fleet.settle(71), []);
    fleet.tick(130);
    let stream = probe();
    tally.answered(&stream);
    assert_eq!([fleet.tick(140), fleet.tick(160)], [[], []]);
    assert!(matches!(fleet.tick(170)[..], [(0, Judgement::Probing(_))]), "the next may come");
    let _next = probe();
}

#[test]
fn state_stays_by_id_and_address_whatever_else_changes_and_goes_with_the_instance() {
    let mut fleet = Fleet::of(3, OutlierDetection::default());
    fleet.end(0, 5, Failure);
    fleet.settle(0);
    fleet.end(1, 4, Failure);
    let kept = fleet.judgement(0);
    let tallies: Vec<_> =
        fleet.view.iter().map(|it| Arc::clone(fleet.detector.tally(it).expect("there"))).collect();
    let heavier = |it: &Instance| {
        let builder = Instance::builder(it.address.clone()).id(Arc::clone(&it.id)).weight(9).revisions(2, 3);
        Arc::new(builder.tag("version", "2").build())
    };
    fleet.view = vec![heavier(&fleet.view[1]), instance(9), heavier(&fleet.view[0])];
    fleet.detector.follow(&fleet.view);
    assert_eq!((fleet.judgement(2), fleet.detector.out()), (kept, 1));
    assert!(Arc::ptr_eq(fleet.detector.tally(&fleet.view[0]).expect("there"), &tallies[1]));
    assert!(Arc::ptr_eq(fleet.detector.tally(&fleet.view[2]).expect("there"), &tallies[0]));

    let moved = Instance::builder("b:1".parse().expect("valid")).id(Arc::clone(&fleet.view[2].id)).build();
    fleet.view[2] = Arc::new(moved);
    fleet.detector.follow(&fleet.view);
    assert_eq!((fleet.judgement(2), fleet.detector.out()), (Judgement::Admitted, 0), "somebody else");

    fleet.view = view([2]);
    fleet.detector.follow(&fleet.view);
    fleet.view = view([1, 2]);
    fleet.detector.follow(&fleet.view);
    assert_eq!(fleet.judgement(0), Judgement::Admitted, "it left, and what comes back is new");
    fleet.end(1, 1, Failure);
    assert_eq!(fleet.settle(9).len(), 1, "the fifth in a row of the one that stayed");
    assert!(!tallies[2].finished(Failure, None).settle, "nobody listens, and nothing breaks");
}

#[test]
fn the_last_instance_is_never_ejected_and_what_takes_no_requests_has_no_share() {
    let mut fleet = Fleet::of(1, OutlierDetection::default());
    fleet.end(0, 50, Failure);
    assert_eq!(fleet.settle(1), []);
    let mut fleet = Fleet::of(2, OutlierDetection::default());
    let draining = Instance::builder(fleet.view[1].address.clone())
        .id(Arc::clone(&fleet.view[1].id))
        .status(Status::Draining);
    fleet.view[1] = Arc::new(draining.build());
    fleet.detector.follow(&fleet.view);
    fleet.end(0, 5, Failure);
    fleet.end(1, 5, Failure);
    assert_eq!(fleet.settle(1), [], "of those that take requests it is the last");
}

#[test]
fn enforcement_is_by_chance_and_the_same_for_the_same_seed() {
    let by = SuccessRate::new().enforcement_percent(30);
    let settings =
        OutlierDetection::builder().success_rate(by).failure_percentage(None).consecutive_failures(None);
    let settings = settings.build().expect("sensible");
    assert!(!settings.is_certain());
    let enforced = || {
        let round = |seed| {
            let mut fleet = Fleet::of(10, settings.clone());
            fleet.detector.rng = fastrand::Rng::with_seed(seed);
            fleet.did(0, 0, 100);
            (1..10).for_each(|index| fleet.did(index, 100, 0));
            fleet.tick(10).len()
        };
        (0..1000).map(round).sum::<usize>()
    };
    let first = enforced();
    assert!((240..=360).contains(&first), "{first} of 1000 at 30 %");
    assert_eq!(enforced(), first);
}

#[test]
fn with_all_algorithms_off_there_is_nothing_to_wait_for() {
    let off =
        OutlierDetection::builder().success_rate(None).failure_percentage(None).consecutive_failures(None);
    let fleet = Fleet::of(5, off.build().expect("each may be off"));
    assert_eq!(fleet.detector.deadline(), None);
    assert_eq!(Fleet::of(5, without_rows()).detector.deadline(), Some(secs(10)));
}

#[derive(Clone, Debug)]
enum Step {
    Did(usize, u32, u32),
    Probe(usize, Outcome),
    Tick,
    View(Vec<u16>),
}

fn steps() -> impl Strategy<Value = (u32, Vec<Step>)> {
    let outcome = prop_oneof![Just(Success), Just(Failure), Just(Cancelled)];
    let step = prop_oneof![
        4 => (0..40_usize, 0..120_u32, 0..120_u32).prop_map(|(index, good, bad)| Step::Did(index, good, bad)),
        2 => (0..40_usize, outcome).prop_map(|(index, outcome)| Step::Probe(index, outcome)),
        2 => Just(Step::Tick),
        1 => prop::collection::vec(1..40_u16, 0..40).prop_map(Step::View),
    ];
    (0..=100_u32, prop::collection::vec(step, 1..120))
}

proptest! {
    /// No ejection goes beyond the share, or takes the last; multipliers stay in their bounds; the count of those out is
    /// true; and what is said is what holds.
    #[test]
    fn whatever_happens_the_share_the_multipliers_and_the_counts_hold((percent, steps) in steps()) {
        let percentage = FailurePercentage::new().request_volume(1).minimum_hosts(1);
        let settings = OutlierDetection::builder()
            .max_ejection_percent(percent)
            .failure_percentage(percentage)
            .build()
            .expect("sensible");
        let mut fleet = Fleet::of(20, settings);
        let mut now = 0;
        for step in steps {
            let before = fleet.detector.out();
            let mut followed = false;
            match step {
                Step::Did(index, good, bad) => {
                    if index < fleet.view.len() {
                        fleet.end(index, good, Success);
                        fleet.end(index, bad, Failure);
                    }
                }
                Step::Probe(index, outcome) => {
                    if let Some(instance) = fleet.view.get(index) {
                        let tally = fleet.detector.tally(instance).expect("there");
                        if let Some(Passage::Probe(probe)) = tally.enter() {
                            let _ = tally.finished(outcome, Some(probe));
                        }
                    }
                }
                Step::Tick => {
                    now += 10;
                    for (index, judgement) in fleet.tick(now) {
                        prop_assert_eq!(fleet.judgement(index), judgement);
                    }
                }
                Step::View(mut ports) => {
                    ports.sort_unstable();
                    ports.dedup();
                    let known: Vec<_> = fleet.view.iter().map(|it| (Arc::clone(it), fleet.detector.judgement(it))).collect();
                    fleet.view = view(ports);
                    fleet.detector.follow(&fleet.view);
                    for (instance, judgement) in known {
                        let stayed = fleet.view.iter().any(|it| it.id == instance.id);
                        let expected = if stayed { judgement } else { Judgement::Admitted };
                        prop_assert_eq!(fleet.detector.judgement(&instance), expected, "state survives views");
                    }
                    followed = true;
                }
            }
            fleet.settle(now);
            let out = fleet.view.iter().filter(|it| fleet.detector.judgement(it) != Judgement::Admitted).count();
            prop_assert_eq!(out, fleet.detector.out());
            let size = fleet.view.len();
            let most = (size * percent as usize / 100).max(1).min(size.saturating_sub(1));
            // A view that shrank may leave more out than could be ejected now; then nobody joins them.
            prop_assert!(out <= most || out <= before || followed, "{out} of {size} at {percent} %");
            for host in &fleet.detector.hosts {
                prop_assert!(host.times <= 10);
                if let Some(ejection) = host.judgement.ejection() {
                    prop_assert!((1..=10).contains(&ejection.times));
                    let lasts = ejection.until.saturating_sub(ejection.since);
                    prop_assert!(lasts >= secs(30) && lasts <= secs(300));
                }
            }
        }
    }
}
