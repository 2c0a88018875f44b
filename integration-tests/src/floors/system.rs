//! The whole system from a seed: servers, SDK clients, registrants and those who speak the protocol by hand, on a simulated
//! network that fails, on hosts that crash, with clocks that are wrong. See [`crate::sim`].
//!
//! ```text
//!  seed ─► Settings::random ─► two of three: chaos; one of three: everything is replaced in good order
//!       ─► all is repaired ─► everyone is well again ─► judged by every validator that there is evidence for
//! ```

use std::{collections::BTreeMap, time::Duration};

use super::Verdict;
use crate::{
    history::{Event, History, WatcherRecord},
    replica::Replica,
    sim::{
        Recorded, Script, Settings, Simulation, Stage, instance::weight_at, raw::settled_views, trace::Seen,
    },
    validate::{
        ALL, Broken, Promise,
        applications::{everyone_is_well, w2_differences_lead_to_views, w8_nothing_to_resync},
        callers::{CALLERS, NOTICED_WITHIN, RESUMED_WITHIN},
    },
};

/// How long chaos lasts.
const CHAOS: Duration = Duration::from_mins(1);
/// How long calls are looked at when everyone is well.
const WELL: Duration = Duration::from_secs(6);
/// Longer than anyone takes who is cut off: to notice, to resume, and to register again.
const TO_BE_WELL: Duration = Duration::from_secs(14);

/// A run: what is needed to judge it.
#[derive(Clone, Debug)]
pub struct Run {
    /// What was seen and told.
    pub recorded: Recorded,
    /// What each registry is to hold in the end.
    pub instances: BTreeMap<String, Seen>,
    /// Since when everyone is to be well.
    pub well: Duration,
}

/// Plays a seed on the highest floor, and judges it.
pub fn verdict(seed: u64) -> Verdict {
    play(seed).verdict(seed)
}

/// Plays a seed.
pub fn play(seed: u64) -> Run {
    play_with(seed, |script| script)
}

/// Plays a seed whose script is changed in some way.
pub fn play_with(seed: u64, change: impl FnOnce(Script) -> Script) -> Run {
    let settings = Settings::random(seed);
    let mut simulation = Simulation::new(settings.clone());
    let script = change(if seed.is_multiple_of(3) { simulation.rolling() } else { simulation.chaos(CHAOS) });
    let quiet = script.end() + NOTICED_WITHIN + RESUMED_WITHIN + TO_BE_WELL;
    let half = script.end() / 2;
    for (at, fault) in script.faults() {
        if *at > half && simulation.now() <= half {
            simulation.run_until(half);
            simulation.enter(Stage::Silence);
        }
        simulation.run_until(*at);
        simulation.apply(fault);
    }
    simulation.run_until(quiet);
    simulation.enter(Stage::Quiet);
    simulation.run_until(quiet + WELL);
    let at = |number: u32| -> Seen {
        simulation.weights().into_iter().map(|(id, weight)| (id, weight_at(number, weight))).collect()
    };
    let instances = (0u32..).take(settings.registries).map(|it| (format!("registry-{it}"), at(it))).collect();
    Run { recorded: simulation.finish(), instances, well: quiet }
}

impl Run {
    /// The promises that were broken, by every validator.
    pub fn judge(&self) -> Vec<Broken> {
        let Recorded { trace, history, until } = &self.recorded;
        let of_callers = CALLERS.iter().map(|judge| judge(trace, *until));
        let of_applications = [
            w2_differences_lead_to_views(trace),
            w8_nothing_to_resync(trace),
            everyone_is_well(trace, &self.instances, self.well),
        ];
        let of_histories = ALL.iter().map(|judge| judge(history));
        let judged =
            of_callers.chain(of_applications).chain(of_histories).chain([ends_with_readings(history)]);
        judged.filter_map(Result::err).collect()
    }

    /// What the validators say.
    pub fn verdict(&self, seed: u64) -> Verdict {
        let Recorded { trace, history, .. } = &self.recorded;
        let told: usize = history.watchers.iter().map(|record| record.events.len()).sum();
        let newest = |record: &WatcherRecord| {
            let revision =
                |event: &Event| if let Event::Told(told) = event { Some(told.revision) } else { None };
            record.events.iter().filter_map(revision).max()
        };
        let commits = history.watchers.iter().filter_map(newest).max().unwrap_or_default();
        Verdict {
            floor: "system",
            seed,
            broken: self.judge(),
            commits: usize::try_from(commits).unwrap_or_default(),
            told: told + trace.events().len(),
        }
    }
}

/// W2, in the end: whoever watched a service that nobody changes any more has what a last reading of it shows.
fn ends_with_readings(history: &History) -> Result<(), Broken> {
    let settled = settled_views("registry-0");
    for record in history.watchers.iter().filter(|record| settled.contains(&record.view)) {
        let mut view = Replica::default();
        for event in &record.events {
            match event {
                Event::Told(told) => view.apply(told),
                Event::Bookmark(bookmark) => view.bookmark(bookmark),
                _ => {}
            }
        }
        let last = history.readings.iter().rfind(|reading| reading.view == record.view);
        if last.is_some_and(|reading| reading.items != view.items) {
            let what = format!("{} ends with another view than a reading shows", record.name);
            return Err(Promise::W2.broken(what));
        }
    }
    Ok(())
}
