//! The state of all instances of one view, and its changes: at each interval, and when requests have news.
//!
//! State is kept by id and address, whatever else of an instance changes, and goes when it leaves the view.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire},
        },
    },
    time::Duration,
};

use super::{OutlierDetection, Sample, Tally, share, tally::Phase};
use crate::model::{Address, Instance};

/// Judges the instances of one view. Told the time, as a duration since any start that stays the same.
#[derive(Debug)]
pub struct Detector {
    settings: OutlierDetection,
    /// In the view's order.
    hosts: Vec<Host>,
    by_id: HashMap<Arc<str>, usize>,
    rng: fastrand::Rng,
    /// Set by tallies that have something to settle.
    bell: Arc<AtomicBool>,
    /// When the interval ends.
    next: Duration,
    /// How many hosts are not admitted.
    out: usize,
}

#[derive(Debug)]
struct Host {
    id: Arc<str>,
    address: Address,
    eligible: bool,
    tally: Arc<Tally>,
    /// How often it was ejected, less the intervals since that it did well in.
    times: u32,
    judgement: Judgement,
    /// The probe that is under way, and since when at the latest.
    probe: Option<(u64, Duration)>,
}

/// What holds for an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judgement {
    /// It may be chosen.
    #[default]
    Admitted,
    /// It is not to be chosen.
    Ejected(Ejection),
    /// The ejection is over, and one request at a time shows whether it is well.
    Probing(Ejection),
}

/// How an instance came to be ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejection {
    /// Why.
    pub cause: EjectionCause,
    /// Since when, by the clock that the detector is told.
    pub since: Duration,
    /// Until when; what comes then is a probe.
    pub until: Duration,
    /// By how many times the base time it was lengthened: at least 1.
    pub times: u32,
}

/// Why an instance was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EjectionCause {
    /// It succeeded less often than the others.
    SuccessRate,
    /// Too many of its requests failed.
    FailurePercentage,
    /// Too many failed in a row.
    ConsecutiveFailures,
    /// It was ejected before, and the probe failed, or was not answered.
    Probe,
}

/// What became of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The instance's id.
    pub id: Arc<str>,
    /// Its address.
    pub address: Address,
    /// What holds now.
    pub judgement: Judgement,
}

impl Detector {
    /// Of no instances yet. `seed` starts the randomness, of which there is none where all is enforced.
    pub fn new(settings: OutlierDetection, now: Duration, seed: u64) -> Self {
        Self {
            next: now.saturating_add(settings.interval),
            settings,
            hosts: Vec::new(),
            by_id: HashMap::new(),
            rng: fastrand::Rng::with_seed(seed),
            bell: Arc::default(),
            out: 0,
        }
    }

    /// Takes in a view. What is known of an instance stays, by its id and address; what left is forgotten. If an id comes
    /// twice, the first counts.
    pub fn follow(&mut self, view: &[Arc<Instance>]) {
        let mut before: Vec<Option<Host>> = std::mem::take(&mut self.hosts).into_iter().map(Some).collect();
        let by_id = std::mem::take(&mut self.by_id);
        for instance in view {
            if self.by_id.contains_key(&instance.id) {
                continue;
            }
            let known = by_id.get(&instance.id).and_then(|index| before[*index].take());
            let known = known.filter(|host| host.address == instance.address);
            let mut host = known.unwrap_or_else(|| self.stranger(instance));
            host.eligible = instance.takes_requests();
            self.by_id.insert(Arc::clone(&instance.id), self.hosts.len());
            self.hosts.push(host);
        }
        self.out = self.hosts.iter().filter(|host| host.is_out()).count();
    }

    /// Where requests to an instance of the view are counted.
    pub fn tally(&self, instance: &Instance) -> Option<&Arc<Tally>> {
        self.host(instance).map(|host| &host.tally)
    }

    /// What holds for an instance. One that is not of the view is admitted.
    pub fn judgement(&self, instance: &Instance) -> Judgement {
        if self.out == 0 {
            return Judgement::Admitted;
        }
        self.host(instance).map(|host| host.judgement).unwrap_or_default()
    }

    /// How many instances of the view are ejected or on probation.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Whether there is something to [`settle`](Self::settle).
    pub fn has_news(&self) -> bool {
        self.bell.load(Acquire)
    }

    /// When to [`tick`](Self::tick) next. `None`: never, for all algorithms are off.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.settings.is_off()).then_some(self.next)
    }

    /// An interval ended. In gRFC A50's order: the counts are taken, success rates judged, then failure percentages, then
    /// multipliers fall and ejections end. What requests had told of before comes first.
    pub fn tick(&mut self, now: Duration) -> Vec<News> {
        self.next = now.saturating_add(self.settings.interval);
        let mut news = self.settle(now);
        let samples = self.samples();
        if let Some(by) = self.settings.success_rate {
            let outliers = by.outliers(&samples);
            self.eject_some(outliers, EjectionCause::SuccessRate, by.enforcement_percent, now, &mut news);
        }
        if let Some(by) = self.settings.failure_percentage {
            let outliers = by.outliers(&samples, self.eligible());
            self.eject_some(
                outliers,
                EjectionCause::FailurePercentage,
                by.enforcement_percent,
                now,
                &mut news,
            );
        }
        for index in 0..self.hosts.len() {
            self.pass_time(index, now, &mut news);
        }
        news
    }

    /// Takes in what requests had to tell: too many failures in a row, and how probes went. Costs next to nothing if there
    /// is nothing.
    pub fn settle(&mut self, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        if !self.bell.swap(false, AcqRel) {
            return news;
        }
        for index in 0..self.hosts.len() {
            let host = &mut self.hosts[index];
            let struck = host.tally.take_strike();
            match (host.judgement, host.tally.phase().0) {
                (Judgement::Admitted, _) if struck => {
                    self.eject(index, EjectionCause::ConsecutiveFailures, now, &mut news);
                }
                (Judgement::Probing(_), Phase::Proven) => {
                    host.tally.admit();
                    host.judgement = Judgement::Admitted;
                    host.probe = None;
                    self.out -= 1;
                    news.push(host.news());
                }
                (Judgement::Probing(_), Phase::Failed) => {
                    self.eject_longer(index, EjectionCause::Probe, now, &mut news);
                }
                _ => {}
            }
        }
        news
    }

    fn host(&self, instance: &Instance) -> Option<&Host> {
        let host = self.hosts.get(*self.by_id.get(&instance.id)?)?;
        (host.address == instance.address).then_some(host)
    }

    fn stranger(&self, instance: &Instance) -> Host {
        Host {
            id: Arc::clone(&instance.id),
            address: instance.address.clone(),
            eligible: false,
            tally: Arc::new(Tally::new(self.settings.consecutive_failures, &self.bell)),
            times: 0,
            judgement: Judgement::Admitted,
            probe: None,
        }
    }

    /// How many instances take requests, ejected or not.
    fn eligible(&self) -> usize {
        self.hosts.iter().filter(|host| host.eligible).count()
    }

    /// What each that can be judged did since the last time; the others' counts go.
    fn samples(&self) -> Vec<Sample> {
        let sample = |(host, it): (usize, &Host)| {
            let (successes, failures) = it.tally.take();
            (it.eligible && !it.is_out()).then_some(Sample { host, successes, failures })
        };
        self.hosts.iter().enumerate().filter_map(sample).collect()
    }

    fn eject_some(
        &mut self,
        outliers: Vec<usize>,
        cause: EjectionCause,
        enforcement_percent: u32,
        now: Duration,
        news: &mut Vec<News>,
    ) {
        for index in outliers {
            if !self.has_share() {
                return;
            }
            let enforced = enforcement_percent >= 100 || self.rng.u32(0..100) < enforcement_percent;
            if enforced && !self.hosts[index].is_out() {
                self.eject(index, cause, now, news);
            }
        }
    }

    /// Whether one more may be ejected.
    fn has_share(&self) -> bool {
        let out = self.hosts.iter().filter(|host| host.eligible && host.is_out()).count();
        out < share::most(self.eligible(), self.settings.max_ejection_percent)
    }

    /// Ejects one that is admitted, if the share allows it.
    fn eject(&mut self, index: usize, cause: EjectionCause, now: Duration, news: &mut Vec<News>) {
        if self.hosts[index].eligible && self.has_share() {
            self.out += 1;
            self.eject_longer(index, cause, now, news);
        }
    }

    /// Ejects one that has its share already, for longer than the last time.
    fn eject_longer(&mut self, index: usize, cause: EjectionCause, now: Duration, news: &mut Vec<News>) {
        let host = &mut self.hosts[index];
        host.times = host.times.saturating_add(1).min(self.settings.most_times());
        let until = now.saturating_add(self.settings.ejection_time(host.times));
        host.judgement = Judgement::Ejected(Ejection { cause, since: now, until, times: host.times });
        host.probe = None;
        host.tally.eject();
        news.push(host.news());
    }

    /// Multipliers fall, ejections end, and probes that are not decided for too long are.
    fn pass_time(&mut self, index: usize, now: Duration, news: &mut Vec<News>) {
        let patience = self.settings.base_ejection_time;
        let host = &mut self.hosts[index];
        match host.judgement {
            Judgement::Admitted => host.times = host.times.saturating_sub(1),
            Judgement::Ejected(ejection) if now >= ejection.until => {
                host.judgement = Judgement::Probing(ejection);
                host.tally.await_probe();
                news.push(host.news());
            }
            Judgement::Ejected(_) => {}
            Judgement::Probing(_) => {
                let (phase, nth) = host.tally.phase();
                if !matches!(phase, Phase::Out | Phase::OutAnswered) {
                    host.probe = None;
                    return;
                }
                let since = match host.probe {
                    Some((known, since)) if known == nth => since,
                    _ => {
                        host.probe = Some((nth, now));
                        now
                    }
                };
                if now.saturating_sub(since) < patience {
                    return;
                }
                match phase {
                    // A stream that goes on for long says nothing, and keeps nobody out.
                    Phase::OutAnswered if host.tally.recall(nth, Phase::Waiting) => news.push(host.news()),
                    Phase::Out if host.tally.recall(nth, Phase::Failed) => {
                        self.eject_longer(index, EjectionCause::Probe, now, news);
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Host {
    fn is_out(&self) -> bool {
        self.judgement != Judgement::Admitted
    }

    fn news(&self) -> News {
        News { id: Arc::clone(&self.id), address: self.address.clone(), judgement: self.judgement }
    }
}

impl Judgement {
    /// The ejection that it is about.
    pub fn ejection(&self) -> Option<Ejection> {
        match self {
            Self::Admitted => None,
            Self::Ejected(ejection) | Self::Probing(ejection) => Some(*ejection),
        }
    }
}

impl EjectionCause {
    /// In a word, for counting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::Probe => "probe",
        }
    }
}

impl std::fmt::Display for EjectionCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SuccessRate => "it succeeded less often than the others",
            Self::FailurePercentage => "too many of its requests failed",
            Self::ConsecutiveFailures => "too many of its requests failed in a row",
            Self::Probe => "the probe after its ejection failed",
        })
    }
}

#[cfg(test)]
mod tests;
