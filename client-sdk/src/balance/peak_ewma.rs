//! The one of two from which an answer is expected sooner, by a latency average that is quick to believe bad news.
//!
//! Peak EWMA as in Finagle's load metric of that name: a latency above the average becomes the average at once, a lower one
//! moves it by how long ago the last one was, with the time constant `decay`. The cost of an instance is its average
//! × (requests in flight + 1), where requests in flight to an instance of twice the mean weight count half; of two drawn in
//! proportion to their weights the cheaper one is chosen, and of two that are equal the one drawn first.
//!
//! A failure is charged as a latency of `penalty` at least, so that an instance that fails fast never looks good. Without
//! news the average fades, so that an instance that did badly is tried again in time. What is learnt fades exactly, what a
//! pick compares nearly so, which saves it two exponentials.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Load, Outcome, Pick, PickContext, PickError, Picker, Policy, Report,
    alias::{AliasTable, select},
    fading::Fading,
    least_request::draw_two,
    loads::Loads,
    random::Random,
};
use crate::{model::InstanceList, runtime::Runtime};

/// Chooses the sooner of two instances drawn by weight. Averages survive changes of the instances.
#[derive(Debug)]
pub struct PeakEwma {
    seeds: Random,
    settings: Arc<Settings>,
    loads: Loads<Latency>,
}

#[derive(Clone, Debug)]
struct Settings {
    runtime: Runtime,
    fading: Fading,
    default_rtt: Duration,
    penalty: Duration,
}

/// Chooses for [`PeakEwma`].
#[derive(Debug)]
pub struct PeakEwmaPicker {
    instances: InstanceList,
    seats: Box<[Seat]>,
    table: AliasTable,
    random: Random,
    settings: Arc<Settings>,
}

/// What a pick looks at, side by side.
#[derive(Debug)]
struct Seat {
    latency: Arc<Latency>,
    /// The same, as what a pick reports to.
    report: Arc<dyn Report>,
    /// What a request in flight counts: the mean weight ÷ its own.
    counts: f32,
}

/// What was learnt of one instance.
#[derive(Debug)]
struct Latency {
    settings: Arc<Settings>,
    pending: AtomicU32,
    /// The average and when it was that, in one word: read and replaced without a lock.
    average: AtomicU64,
}

/// A latency in milliseconds, at a time in milliseconds (that wraps after 49 days; only differences count).
#[derive(Clone, Copy)]
struct Average {
    millis: f32,
    at: u32,
}

impl PeakEwma {
    /// Peak EWMA with a decay of 10 s, 30 ms for an instance that nothing is known of, and 1 s charged for a failure.
    pub fn new(runtime: &Runtime) -> Self {
        let settings = Settings {
            runtime: runtime.clone(),
            fading: Fading::new(Duration::from_secs(10)),
            default_rtt: Duration::from_millis(30),
            penalty: Duration::from_secs(1),
        };
        Self { seeds: Random::new(runtime.random()), settings: Arc::new(settings), loads: Loads::default() }
    }

    /// Sets the time constant with which the average moves to lower latencies. Default 10 s; at least 1 ms.
    #[must_use]
    pub fn decay(mut self, decay: Duration) -> Self {
        Arc::make_mut(&mut self.settings).fading = Fading::new(decay);
        self
    }

    /// Sets the latency that is assumed of an instance that nothing is known of. Default 30 ms.
    #[must_use]
    pub fn default_rtt(mut self, rtt: Duration) -> Self {
        Arc::make_mut(&mut self.settings).default_rtt = rtt;
        self
    }

    /// Sets the least latency that a failure is charged as. Default 1 s.
    #[must_use]
    pub fn penalty(mut self, penalty: Duration) -> Self {
        Arc::make_mut(&mut self.settings).penalty = penalty;
        self
    }
}

impl Policy for PeakEwma {
    type Picker = PeakEwmaPicker;

    fn build(&self, instances: &InstanceList) -> PeakEwmaPicker {
        let latencies = self.loads.of(instances, || Latency::new(&self.settings));
        let mean = mean_weight(instances);
        let seats = instances.iter().zip(latencies).map(|(instance, latency)| Seat {
            report: Arc::clone(&latency) as Arc<dyn Report>,
            latency,
            #[allow(clippy::cast_precision_loss)] // to compare by
            counts: mean / instance.weight.max(1) as f32,
        });
        PeakEwmaPicker {
            instances: Arc::clone(instances),
            seats: seats.collect(),
            table: AliasTable::new(instances.iter().map(|instance| instance.weight)),
            random: Random::new(self.seeds.next()),
            settings: Arc::clone(&self.settings),
        }
    }
}

/// Of those that have one.
fn mean_weight(instances: &InstanceList) -> f32 {
    let weights = instances.iter().map(|instance| instance.weight).filter(|weight| *weight > 0);
    let (total, count) =
        weights.fold((0.0, 0.0), |(total, count), weight| (total + f64::from(weight), count + 1.0));
    #[allow(clippy::cast_possible_truncation)] // to compare by
    let mean = (total / f64::max(count, 1.0)) as f32;
    mean
}

impl Picker for PeakEwmaPicker {
    #[inline]
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        let (one, other) = draw_two(&self.table, &self.random)?;
        let now = context.now.unwrap_or_else(|| self.settings.runtime.now());
        let (Some(first), Some(second)) = (self.seats.get(one), self.seats.get(other)) else {
            return Err(PickError::NoInstances);
        };
        let cost = |seat: &Seat| seat.latency.cost(&self.settings.fading, seat.counts, stamp(now));
        let chosen = select(cost(second) < cost(first), other, one);
        let seat = self.seats.get(chosen).ok_or(PickError::NoInstances)?;
        let pick = Pick::new(&self.instances, chosen)?;
        seat.latency.pending.fetch_add(1, Ordering::Relaxed);
        Ok(pick.reporting(&seat.report, now))
    }

    fn load(&self, index: usize) -> Option<Load> {
        let known = &self.seats.get(index)?.latency;
        let in_flight = known.pending.load(Ordering::Relaxed);
        let average = Average::unpack(known.average.load(Ordering::Relaxed));
        let passed = average.passed(stamp(self.settings.runtime.now()));
        let faded = f64::from(average.millis) * self.settings.fading.exactly(passed);
        Some(Load { in_flight, latency: Some(Duration::from_secs_f64(faded / 1_000.0)) })
    }
}

impl Latency {
    fn new(settings: &Arc<Settings>) -> Self {
        let average = Average { millis: millis(settings.default_rtt), at: stamp(settings.runtime.now()) };
        Self {
            settings: Arc::clone(settings),
            pending: AtomicU32::new(0),
            average: AtomicU64::new(average.pack()),
        }
    }

    #[inline]
    fn cost(&self, fading: &Fading, counts: f32, now: u32) -> f32 {
        let average = Average::unpack(self.average.load(Ordering::Relaxed));
        #[allow(clippy::cast_precision_loss)] // to compare by
        let with_this = self.pending.load(Ordering::Relaxed) as f32 * counts + 1.0;
        // A floor, so that requests in flight still count when the average has faded.
        (average.millis * fading.quickly(average.passed(now))).max(0.001) * with_this
    }

    fn observe(&self, latency: Duration, now: Duration) {
        let (latency, at) = (millis(latency), stamp(now));
        let moved = |packed: u64| {
            let average = Average::unpack(packed);
            #[allow(clippy::cast_possible_truncation)] // a factor from 0 to 1
            let kept = self.settings.fading.exactly(average.passed(at)) as f32;
            let millis = if latency > average.millis {
                latency
            } else {
                average.millis * kept + latency * (1.0 - kept)
            };
            Some(Average { millis, at }.pack())
        };
        // The closure never refuses.
        let _ = self.average.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }
}

impl Report for Latency {
    fn answered(&self, since: Duration) {
        let now = self.settings.runtime.now();
        self.observe(now.saturating_sub(since), now);
    }

    fn finished(&self, outcome: Outcome, since: Option<Duration>) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        let latency = |now: Duration| since.map(|since| now.saturating_sub(since));
        match outcome {
            Outcome::Failure => {
                let now = self.settings.runtime.now();
                self.observe(latency(now).unwrap_or_default().max(self.settings.penalty), now);
            }
            // Its latency is known since the answer began.
            _ if since.is_none() => {}
            Outcome::Success => self.answered(since.unwrap_or_default()),
            // It may have been given up because it took so long: that it took this long is known.
            Outcome::Cancelled => {
                let now = self.settings.runtime.now();
                let latency = latency(now).unwrap_or_default();
                if millis(latency) > Average::unpack(self.average.load(Ordering::Relaxed)).millis {
                    self.observe(latency, now);
                }
            }
        }
    }
}

impl Average {
    /// Milliseconds from then to now.
    #[inline]
    fn passed(self, now: u32) -> u32 {
        // A time that seems to lie before the average's is another thread's, a moment ago.
        let passed = now.wrapping_sub(self.at);
        if passed > u32::MAX / 2 { 0 } else { passed }
    }

    fn pack(self) -> u64 {
        (u64::from(self.millis.to_bits()) << 32) | u64::from(self.at)
    }

    #[allow(clippy::cast_possible_truncation)] // both halves, on purpose
    fn unpack(packed: u64) -> Self {
        Self { millis: f32::from_bits((packed >> 32) as u32), at: packed as u32 }
    }
}

fn millis(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1_000.0
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // wraps, on purpose
fn stamp(now: Duration) -> u32 {
    (now.as_secs() as u32).wrapping_mul(1_000).wrapping_add(now.subsec_millis())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::{
        model::Instance,
        runtime::{TokioClock, TokioConnect, TokioSpawn},
    };

    fn list(weights: &[u32]) -> InstanceList {
        let build = |(port, weight): (usize, &u32)| {
            let address = format!("a:{}", port + 1).parse().expect("valid");
            Arc::new(Instance::builder(address).weight(*weight).build())
        };
        weights.iter().enumerate().map(build).collect()
    }

    fn policy() -> PeakEwma {
        PeakEwma::new(&Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 1))
    }

    /// Shares after `rounds` requests, one after the other, each answered as `answer` says for its instance.
    async fn shares(
        picker: &PeakEwmaPicker,
        rounds: u32,
        answer: impl Fn(usize) -> (Outcome, u64),
    ) -> Vec<u32> {
        let mut shares = vec![0; picker.instances.len()];
        for _ in 0..rounds {
            let pick = picker.pick(&PickContext::default()).expect("eligible");
            let index =
                picker.instances.iter().position(|it| it.id == pick.instance().id).expect("of the list");
            shares[index] += 1;
            let (outcome, millis) = answer(index);
            advance(Duration::from_millis(millis)).await;
            pick.finish(outcome);
        }
        shares
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_a_stream_goes_on_is_not_latency() {
        let picker = policy().build(&list(&[1]));
        for outcome in [Outcome::Success, Outcome::Cancelled] {
            let mut pick = picker.pick(&PickContext::default()).expect("eligible");
            advance(Duration::from_millis(40)).await;
            pick.answered();
            advance(Duration::from_hours(1)).await;
            pick.finish(outcome);
            let latency = picker.load(0).and_then(|load| load.latency).expect("known");
            assert!(latency <= Duration::from_millis(40), "{latency:?} after {outcome:?}");
        }
        let mut pick = picker.pick(&PickContext::default()).expect("eligible");
        pick.answered();
        pick.finish(Outcome::Failure);
        let latency = picker.load(0).and_then(|load| load.latency).expect("known");
        assert_eq!(latency, Duration::from_secs(1), "a failure is charged all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn among_equally_quick_ones_requests_go_by_weight() {
        let picker = policy().build(&list(&[1, 3, 4]));
        // Given up at once, which says nothing: all keep the latency that is assumed of them.
        let picks = shares(&picker, 80_000, |_| (Outcome::Cancelled, 0)).await;
        for (picks, weight) in picks.iter().zip([1, 3, 4]) {
            let share = f64::from(*picks) / f64::from(10_000 * weight);
            assert!((0.97..1.03).contains(&share), "{picks} of weight {weight}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_instance_gets_little() {
        let picker = policy().build(&list(&[1; 5]));
        let shares =
            shares(&picker, 2_000, |index| (Outcome::Success, if index == 0 { 100 } else { 5 })).await;
        assert!(shares[0] < 40, "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_failing_endpoint_is_not_preferred() {
        // linkerd2-proxy #4537: an instance that answers errors at once must not look like the fastest.
        let picker = policy().build(&list(&[1; 5]));
        let answer = |index| if index == 0 { (Outcome::Failure, 0) } else { (Outcome::Success, 5) };
        let shares = shares(&picker, 2_000, answer).await;
        assert!(shares[0] < 20, "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn bad_news_is_believed_at_once_and_fades() {
        let settings = policy().settings;
        let latency = Latency::new(&settings);
        let at =
            |latency: &Latency| f64::from(latency.cost(&settings.fading, 1.0, stamp(settings.runtime.now())));
        latency.observe(Duration::from_millis(500), settings.runtime.now());
        assert!((at(&latency) - 500.0).abs() < 1.0);
        advance(Duration::from_secs(10)).await;
        assert!(
            (at(&latency) - 500.0 / std::f64::consts::E).abs() < 2.0,
            "one time constant later: {}",
            at(&latency)
        );
        latency.pending.fetch_add(3, Ordering::Relaxed);
        assert!(
            (at(&latency) - 4.0 * 500.0 / std::f64::consts::E).abs() < 8.0,
            "in proportion to what is in flight"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_recovered_gets_its_share_again() {
        let picker = policy().build(&list(&[1; 4]));
        shares(&picker, 500, |index| (Outcome::Success, if index == 0 { 1_000 } else { 5 })).await;
        // Some decay times, in which it is tried now and then.
        advance(Duration::from_mins(1)).await;
        shares(&picker, 12_000, |_| (Outcome::Success, 5)).await;
        let shares = shares(&picker, 4_000, |_| (Outcome::Success, 5)).await;
        assert!(shares[0] > 500, "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_learnt_survives_a_change_and_ends_with_its_picks() {
        let policy = policy();
        let before = policy.build(&list(&[1, 1]));
        let held: Vec<_> =
            (0..10).map(|_| before.pick(&PickContext::default()).expect("eligible").into_owned()).collect();
        let after = policy.build(&list(&[1, 1, 1]));
        let pending = |picker: &PeakEwmaPicker| {
            picker.seats.iter().map(|it| it.latency.pending.load(Ordering::Relaxed)).sum::<u32>()
        };
        assert_eq!(pending(&after), 10);
        drop((before, held));
        assert_eq!(pending(&after), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_instance_none_and_weights_of_0() {
        assert!(policy().build(&list(&[5])).pick(&PickContext::default()).is_ok());
        for weights in [&[][..], &[0], &[0, 0]] {
            let picker = policy().build(&list(weights));
            let refused = picker.pick(&PickContext::default());
            assert_eq!(refused.unwrap_err(), PickError::NoInstances);
        }
    }
}
