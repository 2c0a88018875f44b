//! The driver's part in outlier detection and in limits: each instance's gate, and what is said of an ejection.
//!
//! Owns the [`Detector`] and the gates; does not own what an ejection means for requests (`routes`), nor the timer (`driver`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{Meters, Room, Settings, aperture::Occupancy, gate::Gate};
use crate::{
    model::{Address, Instance},
    outlier::{Detector, Judgement, News},
    runtime::Runtime,
};

pub(super) struct Outliers {
    /// `None`: nobody is judged.
    detector: Option<Detector>,
    /// Of the view's instances, each with where it was.
    gates: HashMap<Arc<str>, (Address, Arc<Gate>)>,
    max_in_flight: Option<usize>,
    room: Arc<Room>,
    wake: Arc<Notify>,
    meters: Arc<Meters>,
    occupancy: Option<Arc<Occupancy>>,
    /// As it was told to the meters.
    out: usize,
}

impl Outliers {
    pub(super) fn new(
        settings: &Settings,
        runtime: &Runtime,
        room: &Arc<Room>,
        wake: &Arc<Notify>,
        meters: &Arc<Meters>,
        occupancy: Option<&Arc<Occupancy>>,
    ) -> Self {
        let detector = settings.outlier_detection.clone().map(|settings| {
            let seed = if settings.is_certain() { 0 } else { runtime.random() };
            Detector::new(settings, runtime.now(), seed)
        });
        Self {
            detector,
            gates: HashMap::new(),
            max_in_flight: settings.max_in_flight,
            room: Arc::clone(room),
            wake: Arc::clone(wake),
            meters: Arc::clone(meters),
            occupancy: occupancy.cloned(),
            out: 0,
        }
    }

    /// Takes in a view: what is known of an instance stays, by its id and address, and what left is forgotten.
    pub(super) fn follow(&mut self, instances: &[Arc<Instance>]) {
        if let Some(detector) = &mut self.detector {
            detector.follow(instances);
        }
        let mut before = std::mem::take(&mut self.gates);
        for instance in instances {
            let known = before.remove(&instance.id).filter(|(address, _)| *address == instance.address);
            let gate = known.unwrap_or_else(|| (instance.address.clone(), self.new_gate(instance)));
            self.gates.insert(Arc::clone(&instance.id), gate);
        }
        self.count();
    }

    /// The gate of an instance of the view.
    pub(super) fn gate(&self, instance: &Instance) -> Arc<Gate> {
        self.gates.get(&instance.id).map_or_else(|| self.new_gate(instance), |(_, gate)| Arc::clone(gate))
    }

    pub(super) fn judgement(&self, instance: &Instance) -> Judgement {
        self.detector.as_ref().map(|detector| detector.judgement(instance)).unwrap_or_default()
    }

    /// When to [`judge`](Self::judge) at the latest.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.detector.as_ref().and_then(Detector::deadline)
    }

    /// Whether requests had something to tell.
    pub(super) fn has_news(&self) -> bool {
        self.detector.as_ref().is_some_and(Detector::has_news)
    }

    /// Takes in what requests had to tell, and the interval's end if it is there. Whether anything changed.
    pub(super) fn judge(&mut self, now: Duration) -> bool {
        let Some(detector) = &mut self.detector else { return false };
        let is_due = detector.deadline().is_some_and(|at| at <= now);
        let news = if is_due { detector.tick(now) } else { detector.settle(now) };
        if news.is_empty() {
            return false;
        }
        self.tell(&news);
        self.count();
        true
    }

    fn new_gate(&self, instance: &Instance) -> Arc<Gate> {
        let tally = self.detector.as_ref().and_then(|detector| detector.tally(instance)).cloned();
        let gate = Gate::new(self.max_in_flight, tally, Arc::clone(&self.room), Arc::clone(&self.wake));
        Arc::new(gate.counted(self.occupancy.clone()))
    }

    fn tell(&self, news: &[News]) {
        for News { id, address, judgement } in news {
            match judgement {
                Judgement::Ejected(ejection) => {
                    self.meters.ejected(ejection.cause);
                    let lasts = ejection.until.saturating_sub(ejection.since);
                    tracing::warn!(%id, %address, cause = %ejection.cause, ?lasts, "ejected");
                }
                Judgement::Probing(_) => tracing::debug!(%id, %address, "one request decides"),
                Judgement::Admitted => tracing::info!(%id, %address, "back after an ejection"),
            }
        }
    }

    /// Tells the meters how many are out.
    fn count(&mut self) {
        let out = self.detector.as_ref().map_or(0, Detector::out);
        self.meters.out(self.out, out);
        self.out = out;
    }
}

impl Drop for Outliers {
    fn drop(&mut self) {
        self.meters.out(self.out, 0);
    }
}
